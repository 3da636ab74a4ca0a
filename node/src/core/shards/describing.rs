//! A shard as people see it.

use proto::inspection::{Answer, ShardInfo, ShardState};
use proto::shard::ShardId;
use proto::time::Timestamp;

use super::Shards;
use crate::core::replication::Leases;

impl Shards {
    /// One shard, for those who look inside.
    pub fn describe_shard(&self, now: Timestamp, shard: ShardId) -> Answer {
        let map = &self.agreed.map;
        if map.rows.is_empty() {
            return Answer::Unavailable("this node has no shard map yet".into());
        }
        let Some((owner, fence)) = map.owner(shard) else {
            return Answer::Unavailable(format!("nobody owns shard {shard}"));
        };
        let served = self.served.get(&shard);
        if served.is_none() && *owner != self.me {
            let owner = owner.clone();
            return Answer::NotOwner { owner };
        }
        let needs_none = *self.leases == Leases::unlimited();
        let node_lease_ms = (!needs_none).then(|| ms(self.leases.node.since(now)));
        let Some(served) = served else {
            return Answer::Shard(ShardInfo {
                shard,
                owner: self.me.clone(),
                fence,
                state: ShardState::Begins,
                waits_for: Some("the leases of earlier owners to end, or what they have".into()),
                waits_ms: 0,
                held: 0,
                channels: 0,
                interest: 0,
                node_lease_ms,
                standbys: Vec::new(),
            });
        };
        let replication = served.replication();
        let acts = replication.acts(now, &self.leases);
        let waits_for = replication.waits_for(now, &self.leases);
        Answer::Shard(ShardInfo {
            shard,
            owner: self.me.clone(),
            fence: served.fence(),
            state: if acts {
                ShardState::Serves
            } else {
                ShardState::Waits
            },
            // An owner that acts waits for confirmation all the time, for moments.
            waits_for: waits_for.filter(|_| !acts || replication.held() > 0),
            waits_ms: ms(replication.stands_still(now)),
            held: replication.held() as u32,
            channels: served.channels() as u32,
            interest: served.interest() as u32,
            node_lease_ms,
            standbys: replication.describe(now, &self.leases),
        })
    }
}

fn ms(duration: std::time::Duration) -> u64 {
    duration.as_millis() as u64
}
