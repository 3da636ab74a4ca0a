//! Standbys as people see them.

use proto::inspection::{ReplicaInfo, ReplicaState};
use proto::time::Timestamp;

use super::{Leases, Peer, Replication, Stage};

impl Replication {
    /// How far the standbys are, and what they let the owner do.
    pub fn describe(&self, now: Timestamp, leases: &Leases) -> Vec<ReplicaInfo> {
        let describe = |peer: &Peer| {
            let lease = leases.pairs.get(&peer.node);
            let left = lease.and_then(|lease| lease.until());
            let echoed = lease.and_then(|lease| lease.echoed());
            let lag_records = peer.sent - peer.confirmed;
            ReplicaInfo {
                node: peer.node.clone(),
                state: match peer.stage {
                    Stage::Filling { .. } => ReplicaState::Filling,
                    Stage::Counting if self.row.in_sync.contains(&peer.node) => {
                        ReplicaState::InSync
                    }
                    Stage::Counting => ReplicaState::Counting,
                    Stage::Retiring { .. } => ReplicaState::Retiring,
                    Stage::Leaving { .. } => ReplicaState::Leaving,
                },
                lag_records,
                lag_ms: match echoed {
                    _ if lag_records == 0 => Some(0),
                    Some(echoed) => Some(now.since(echoed).as_millis() as u64),
                    None => None,
                },
                lease_ms: left.map_or(0, |until| until.since(now).as_millis() as u64),
            }
        };
        self.peers.iter().map(describe).collect()
    }
}
