//! What the system promises, one file for each promise: a check of a trace of
//! the simulation, and tests that it notices a bad one.

pub mod acked_is_recoverable;
pub mod acked_survives_one_crash;
pub mod bounded_queues;
pub mod contiguous_offsets;
pub mod exactly_once;
pub mod interest_heals;
pub mod liveness;
pub mod no_duplicate_delivery;
pub mod no_ghost;
pub mod no_ghost_interest;
pub mod no_needless_death;
pub mod no_silent_gap;
pub mod no_stale_answer;
pub mod one_leave_per_lost_member;
pub mod one_owner;
mod rooms;
pub mod rosters_converge;
pub mod same_order_everywhere;

use crate::sim::trace::Trace;

/// A promise was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// By which entry of the trace.
    pub entry: usize,
    /// How.
    pub what: String,
}

/// What a promise has to say of a trace.
pub type Verdict = Result<(), Violation>;

/// Judges a trace.
pub type Check = fn(&Trace) -> Verdict;

/// Every promise, by name.
pub const ALL: [(&str, Check); 17] = [
    ("one_owner", one_owner::check),
    ("no_stale_answer", no_stale_answer::check),
    ("acked_survives_one_crash", acked_survives_one_crash::check),
    ("contiguous_offsets", contiguous_offsets::check),
    ("exactly_once", exactly_once::check),
    ("same_order_everywhere", same_order_everywhere::check),
    ("no_duplicate_delivery", no_duplicate_delivery::check),
    ("no_silent_gap", no_silent_gap::check),
    ("acked_is_recoverable", acked_is_recoverable::check),
    ("interest_heals", interest_heals::check),
    ("no_ghost_interest", no_ghost_interest::check),
    ("no_needless_death", no_needless_death::check),
    ("bounded_queues", bounded_queues::check),
    ("liveness", liveness::check),
    (
        "one_leave_per_lost_member",
        one_leave_per_lost_member::check,
    ),
    ("no_ghost", no_ghost::check),
    ("rosters_converge", rosters_converge::check),
];

/// Breaks a promise.
fn broken(entry: usize, what: impl Into<String>) -> Verdict {
    Err(Violation {
        entry,
        what: what.into(),
    })
}

#[cfg(test)]
mod testing {
    //! Facts for made-up traces.

    use proto::position::{Epoch, Gap, GapReason, Offset, Position};

    use super::Verdict;
    use crate::sim::trace::{Answer, Connection, Fact, Order, Trace, User, Users};

    /// At which of the facts a promise is broken, if it is.
    pub(super) fn broken_at(
        check: fn(&Trace) -> Verdict,
        facts: impl IntoIterator<Item = Fact>,
    ) -> Option<usize> {
        check(&Trace::of(facts)).err().map(|broken| broken.entry)
    }

    pub(super) fn at(epoch: u64, offset: u64) -> Position {
        Position {
            epoch: Epoch(epoch),
            offset: Offset(offset),
        }
    }

    pub(super) fn enters(connection: Connection, user: User) -> Fact {
        Fact::Enters {
            connection,
            channel: 0,
            user,
        }
    }

    pub(super) fn exits(connection: Connection) -> Fact {
        Fact::Exits {
            connection,
            channel: 0,
        }
    }

    pub(super) fn entered(connection: Connection, users: Users) -> Fact {
        Fact::Entered {
            connection,
            channel: 0,
            users,
        }
    }

    pub(super) fn came(connection: Connection, user: User) -> Fact {
        Fact::Came {
            connection,
            channel: 0,
            user,
        }
    }

    pub(super) fn went(connection: Connection, user: User) -> Fact {
        Fact::Went {
            connection,
            channel: 0,
            user,
        }
    }

    pub(super) fn published(epoch: u64, offset: u64, order: Order) -> Fact {
        Fact::Published {
            node: 0,
            fence: 1,
            channel: 0,
            position: at(epoch, offset),
            order,
        }
    }

    pub(super) fn asked(order: Order) -> Fact {
        Fact::Asked {
            order,
            gateway: 0,
            channel: 0,
            probe: false,
            repeats: None,
        }
    }

    pub(super) fn asked_again(order: Order, first: Order) -> Fact {
        Fact::Asked {
            order,
            gateway: 1,
            channel: 0,
            probe: false,
            repeats: Some(first),
        }
    }

    pub(super) fn accepted(order: Order, epoch: u64, offset: u64) -> Fact {
        Fact::Answered {
            order,
            answer: Answer::Accepted(at(epoch, offset)),
        }
    }

    pub(super) fn subscribed() -> Fact {
        Fact::Subscribed {
            connection: 1,
            channel: 0,
            cursor: None,
        }
    }

    pub(super) fn attached(epoch: u64, offset: u64) -> Fact {
        Fact::Attached {
            connection: 1,
            channel: 0,
            position: at(epoch, offset),
        }
    }

    pub(super) fn delivered(epoch: u64, offset: u64, order: Order) -> Fact {
        Fact::Delivered {
            connection: 1,
            channel: 0,
            position: at(epoch, offset),
            order,
        }
    }

    pub(super) fn gap(epoch: u64, offset: u64) -> Fact {
        Fact::Gap {
            connection: 1,
            channel: 0,
            gap: Gap {
                reason: GapReason::Expired,
                earliest: Offset(offset),
                latest: at(epoch, offset),
            },
        }
    }
}
