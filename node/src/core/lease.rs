//! May I serve? Leases, and what both sides of one count on.
//!
//! A **node lease** comes from the Raft leader. Without one a node serves
//! nothing, so a shard that nobody stands by for can be given away once the lease
//! of its owner is over. The holder counts from when it *sent* the renewal, the
//! leader from when it received it and a little longer, so the holder's end comes
//! first whatever the network did, as long as the rates of their clocks differ by
//! no more than [`DRIFT_PERCENT`]. The leader grants only after a quorum round
//! that began after the renewal arrived: who is leader no more grants nothing.
//!
//! A **pair lease** comes from a standby with everything it confirms. Without it
//! an owner serves nothing, so the standby can be promoted without asking anyone.
//!
//! The leader itself asks and is granted by the same path as everyone.

mod pair;
mod table;

use std::collections::BTreeMap;
use std::time::Duration;

use proto::time::Timestamp;

pub use pair::{
    PAIR_BEAT, PAIR_LEASE, PAIR_LEASE_AT_STANDBY, PAIR_LOST, PairLease, may_serve_from,
};
pub use table::{Grant, LeaseTable, NODE_LEASE_AT_LEADER, ROUND_PACE};

/// How long a node lease lasts from when its renewal was sent.
pub const NODE_LEASE: Duration = Duration::from_millis(3_000);
/// How often a node should ask for another.
pub const RENEW_PACE: Duration = Duration::from_millis(500);
/// By how much the rates of two clocks may differ.
pub const DRIFT_PERCENT: u64 = 1;

/// How long something that lasts `lease` by one clock may last by another, and
/// some time for the rounding and for what is between two lines of code.
const fn by_another_clock(lease: Duration, more: Duration) -> Duration {
    let lease = lease.as_millis() as u64;
    let drift = (lease * DRIFT_PERCENT).div_ceil(100);
    Duration::from_millis(lease + drift + more.as_millis() as u64)
}

/// The node lease, at its holder.
#[derive(Debug, Default)]
pub struct NodeLease {
    asked: u64,
    /// When the renewals were sent whose answers can still matter.
    sent: BTreeMap<u64, Timestamp>,
    held: Vec<Held>,
}

/// A lease: until when, for whoever has applied this much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    until: Timestamp,
    applied: u64,
}

impl Held {
    /// Whether this one makes the other needless.
    fn covers(&self, other: &Self) -> bool {
        self.until >= other.until && self.applied <= other.applied
    }
}

impl NodeLease {
    /// The node sends a renewal now: its number.
    pub fn renew(&mut self, now: Timestamp) -> u64 {
        self.sent.retain(|_, sent| now < *sent + NODE_LEASE);
        self.asked += 1;
        self.sent.insert(self.asked, now);
        self.asked
    }

    /// A leader has granted a renewal; `applied` is the read index of its quorum
    /// round. Whoever it is and however late: what was granted before is not
    /// taken back, and this one ends when its own renewal says.
    pub fn granted(&mut self, renewal: u64, applied: u64) {
        let Some(sent) = self.sent.get(&renewal) else {
            return;
        };
        let until = *sent + NODE_LEASE;
        let new = Held { until, applied };
        if !self.held.iter().any(|held| held.covers(&new)) {
            self.held.retain(|held| !new.covers(held));
            self.held.push(new);
        }
        // Granted leases end too; those that ended long ago are dropped here.
        let newest = self.sent.values().max().copied().unwrap_or(*sent);
        self.held.retain(|held| held.until > newest);
    }

    /// Until when the node holds a lease that it may use, having applied this
    /// much. In the past, or `None`: it holds none.
    pub fn until(&self, applied: u64) -> Option<Timestamp> {
        let usable = self.held.iter().filter(|held| held.applied <= applied);
        usable.map(|held| held.until).max()
    }

    /// Whether the node may serve as far as this lease goes.
    pub fn holds(&self, now: Timestamp, applied: u64) -> bool {
        self.until(applied).is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests;
