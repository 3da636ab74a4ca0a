//! The node leases, at the leader.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::id::NodeRef;
use proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::{NODE_LEASE, by_another_clock};
use crate::core::cluster::Cluster;

/// How long a lease may last after its renewal was received.
pub const NODE_LEASE_AT_LEADER: Duration = by_another_clock(NODE_LEASE, Duration::from_millis(20));
/// How often a quorum round may begin.
pub const ROUND_PACE: Duration = Duration::from_millis(100);

/// Which leases may still last. Every node that may become leader has one; it is
/// of use from when that node was [`elected`](Self::elected).
#[derive(Debug, Default)]
pub struct LeaseTable {
    elected: Option<Timestamp>,
    /// Renewals that have arrived since the last round began.
    waiting: BTreeMap<NodeRef, Asked>,
    /// Those that had arrived before, while the round goes on.
    round: Option<BTreeMap<NodeRef, Asked>>,
    round_began: Option<Timestamp>,
    /// In order of time; neither of two makes the other needless.
    granted: BTreeMap<NodeRef, Vec<Lasting>>,
    withheld: BTreeSet<NodeRef>,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    renewal: u64,
    received: Timestamp,
}

/// A lease that was granted.
#[derive(Debug, Clone, Copy)]
struct Lasting {
    until: Timestamp,
    /// What its holder has applied if it uses it.
    applied: u64,
}

/// What is to be sent to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// To whom.
    pub node: NodeRef,
    /// Which of its renewals.
    pub renewal: u64,
    /// How much it must have applied to use it.
    pub applied: u64,
}

impl LeaseTable {
    /// This node has become leader. Its predecessor may have granted leases to
    /// anyone until a moment ago. Whatever was proposed under an earlier term is
    /// decided by now, so nobody is withheld anything.
    pub fn elected(&mut self, now: Timestamp) {
        *self = Self {
            elected: Some(now),
            ..Self::default()
        };
    }

    /// Since when this node leads, if it does.
    pub fn since(&self) -> Option<Timestamp> {
        self.elected
    }

    /// This node leads no more.
    pub fn deposed(&mut self) {
        *self = Self::default();
    }

    /// A renewal has arrived, or one of the leader's own was made.
    pub fn asked(&mut self, now: Timestamp, node: NodeRef, renewal: u64) {
        let newer = self.waiting.get(&node).is_none_or(|w| w.renewal < renewal);
        if newer {
            let received = now;
            self.waiting.insert(node, Asked { renewal, received });
        }
    }

    /// Whether a quorum round is to begin now. Its end has to be told by
    /// [`round_ended`](Self::round_ended), also if it failed.
    pub fn begin_round(&mut self, now: Timestamp) -> bool {
        let soon = |began| now < began + ROUND_PACE;
        let may = self.elected.is_some() && self.round.is_none();
        if !may || self.round_began.is_some_and(soon) {
            return false;
        }
        let (withheld, asking) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(node, _)| self.withheld.contains(node));
        self.waiting = withheld;
        let asking: BTreeMap<_, _> = asking;
        if asking.is_empty() {
            return false;
        }
        self.round = Some(asking);
        self.round_began = Some(now);
        true
    }

    /// The quorum round has ended; `read_index`: this node did lead, and all up
    /// to this was decided when the round began. `None`: it failed. `cluster` has
    /// at least all of that applied: only members get leases, in their present
    /// lives.
    pub fn round_ended(&mut self, read_index: Option<u64>, cluster: &Cluster) -> Vec<Grant> {
        let asking = self.round.take().unwrap_or_default();
        let Some(applied) = read_index else {
            return Vec::new();
        };
        let mut grants = Vec::new();
        for (node, Asked { renewal, received }) in asking {
            if !cluster.is_living(&node) {
                continue;
            }
            let until = received + NODE_LEASE_AT_LEADER;
            let lasting = self.granted.entry(node.clone()).or_default();
            lasting.retain(|other| other.until > received);
            // One that ends no later and requires no less adds nothing.
            lasting.retain(|other| other.until > until || other.applied < applied);
            lasting.push(Lasting { until, applied });
            grants.push(Grant {
                node,
                renewal,
                applied,
            });
        }
        grants
    }

    /// Whether no lease of this life can last any more, by whoever it was
    /// granted.
    pub fn lapsed(&self, now: Timestamp, node: &NodeRef) -> bool {
        self.lapsed_unless_told(now, node, u64::MAX)
    }

    /// Whether no lease of this life can last any more, apart from those whose
    /// holder has applied everything up to `told` if it uses them.
    pub fn lapsed_unless_told(&self, now: Timestamp, node: &NodeRef, told: u64) -> bool {
        let Some(elected) = self.elected else {
            return false;
        };
        let is_over = |lease: &Lasting| lease.until <= now || lease.applied >= told;
        let granted = self.granted.get(node);
        elected + NODE_LEASE_AT_LEADER <= now && granted.is_none_or(|all| all.iter().all(is_over))
    }

    /// From now on these get no lease, not even by the round that goes on. Then
    /// what has lapsed stays so.
    pub fn stop_granting<'a>(&mut self, nodes: impl IntoIterator<Item = &'a NodeRef>) {
        for node in nodes {
            if let Some(round) = &mut self.round {
                round.remove(node);
            }
            self.withheld.insert(node.clone());
        }
    }

    /// From now on these get leases again, by the next round: what they were not
    /// granted for has been applied here, so the read index of that round tells
    /// them of it.
    pub fn grant_again<'a>(&mut self, nodes: impl IntoIterator<Item = &'a NodeRef>) {
        for node in nodes {
            self.withheld.remove(node);
        }
    }

    /// Who gets no leases now.
    pub fn withheld(&self) -> &BTreeSet<NodeRef> {
        &self.withheld
    }

    /// Forgets lives of which nothing can last any more.
    pub fn tidy(&mut self, now: Timestamp, cluster: &Cluster) {
        self.waiting.retain(|node, _| cluster.is_living(node));
        self.granted.retain(|_, all| {
            all.retain(|lease| now < lease.until);
            !all.is_empty()
        });
    }
}
