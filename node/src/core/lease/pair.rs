//! The pair lease: every batch or beat of an owner carries the time at which it
//! was sent, and the standby's confirmation echoes it.

use std::time::Duration;

use proto::time::Timestamp;

use super::by_another_clock;

/// How long an owner serves after having sent what was echoed last.
pub const PAIR_LEASE: Duration = Duration::from_millis(300);
/// How long a standby waits after the last echo that it sent to any earlier
/// owner.
pub const PAIR_LEASE_AT_STANDBY: Duration = by_another_clock(PAIR_LEASE, Duration::from_millis(5));
/// How often an owner sends something to each node that stands by for it.
pub const PAIR_BEAT: Duration = Duration::from_millis(50);
/// After how long without an echo the owner proposes to go on without.
pub const PAIR_LOST: Duration = Duration::from_millis(400);

/// The lease of an owner with one standby, from when that one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PairLease {
    since: Timestamp,
    echoed: Option<Timestamp>,
}

impl PairLease {
    /// The standby counts from now on. Until its first echo nothing is served.
    pub fn new(now: Timestamp) -> Self {
        Self {
            since: now,
            echoed: None,
        }
    }

    /// There is a new way to the standby: its silence counts from now.
    pub fn reopened(&mut self, now: Timestamp) {
        self.since = self.since.max(now);
    }

    /// The standby has echoed what was sent at this time. Echoes may come in any
    /// order; one of the future is none.
    pub fn echo(&mut self, now: Timestamp, sent_at: Timestamp) {
        if sent_at <= now {
            self.echoed = self.echoed.max(Some(sent_at));
        }
    }

    /// When that was sent which the standby has echoed last.
    pub fn echoed(&self) -> Option<Timestamp> {
        self.echoed
    }

    /// Until when the owner may serve as far as this standby goes.
    pub fn until(&self) -> Option<Timestamp> {
        self.echoed.map(|echoed| echoed + PAIR_LEASE)
    }

    /// Whether the owner may serve as far as this standby goes.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.until().is_some_and(|until| now < until)
    }

    /// Whether it is time to propose that the standby is none any more. It
    /// counts until the owner has applied that.
    pub fn is_lost(&self, now: Timestamp) -> bool {
        let last = self.echoed.map_or(self.since, |at| at.max(self.since));
        now.since(last) >= PAIR_LOST
    }
}

/// From when a promoted standby may serve: `echoed` is when it sent its last echo
/// to any earlier owner of the shard, by its own clock.
pub fn may_serve_from(echoed: Timestamp) -> Timestamp {
    echoed + PAIR_LEASE_AT_STANDBY
}
