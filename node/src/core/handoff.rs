//! What is left to do for an owner that is none any more, so that the next one
//! can begin at once and not when all leases are over.
//!
//! ```text
//!   state   │ a standby refuses │ agreed who owns it │ all have confirmed │ 1 s
//!   ────────┼───────────────────┼────────────────────┼────────────────────┼─────
//!   Stopped │ Handing           │ Handing, Done      │ -                  │ Done
//!   Handing │ Handing           │ Handing, Done      │ Done: release      │ Done
//! ```
//!
//! The owner has stopped, because a standby has refused or because it has applied
//! the decision itself. Whoever refuses is the next owner, for one that stays does
//! not; but it is asked to begin only by what it knows itself. What it has sent goes on being confirmed, by the next owner
//! and by the standby that stays; when both have all of it they have the same,
//! and the next owner is told so: **released**. Nothing rests on it. Whoever is
//! not released waits for the leases to end, and fills a standby anew.

use std::sync::Arc;
use std::time::Duration;

use proto::id::NodeRef;
use proto::shard::{Fence, ShardId};
use proto::time::Timestamp;

use super::record::Record;
use super::replication::Replication;
use super::shard::Effect;

/// After which it is of no use: the next owner has begun by itself.
const USELESS: Duration = Duration::from_secs(1);

/// See the [module](self).
#[derive(Debug)]
pub struct Handoff {
    shard: ShardId,
    fence: Fence,
    replication: Replication,
    /// What the next owner needs that no standby has.
    taken: Vec<Arc<Record>>,
    since: Timestamp,
    state: State,
}

/// How far it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Who is the owner now is not known yet.
    Stopped,
    /// It goes to this node.
    Handing(NodeRef),
    Done,
}

/// What happens meanwhile.
#[derive(Debug)]
pub enum Input {
    /// A standby refuses.
    Refused(NodeRef),
    /// It is agreed that this node is the owner.
    Agreed(NodeRef),
    /// A standby has more.
    Confirmed {
        /// Which one.
        from: NodeRef,
        /// Of which recruitment.
        fill: u64,
        /// Up to which number.
        number: u64,
    },
    /// The way to a standby was made anew.
    Reopened(NodeRef),
    /// Time has passed.
    Tick,
}

impl Handoff {
    /// An owner stops. `None`: nobody stood by, so there is nothing to hand over.
    pub fn stop(
        now: Timestamp,
        (shard, fence): (ShardId, Fence),
        (mut replication, taken): (Replication, Vec<Record>),
    ) -> Option<Self> {
        replication.stop();
        let somebody_counts = replication.standbys().any(|(_, counts)| counts);
        somebody_counts.then_some(Self {
            shard,
            fence,
            replication,
            taken: taken.into_iter().map(Arc::new).collect(),
            since: now,
            state: State::Stopped,
        })
    }

    /// The fence under which the node owned the shard.
    pub fn fence(&self) -> Fence {
        self.fence
    }

    /// Whether there is nothing left to do.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Applies one input. The only way it changes.
    pub fn handle(&mut self, now: Timestamp, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Agreed(owner) => {
                self.state = match &self.state {
                    State::Done => State::Done,
                    _ if self.replication.counts(&owner) => State::Handing(owner),
                    _ => State::Done,
                };
            }
            Input::Refused(by) => {
                if self.state != State::Done && self.replication.counts(&by) {
                    self.state = State::Handing(by);
                }
            }
            Input::Confirmed { from, fill, number } => {
                self.replication.confirmed(&from, fill, number);
            }
            Input::Reopened(node) => {
                self.replication.reopened(&node);
                self.replication
                    .replicate((self.shard, self.fence), effects);
            }
            Input::Tick => {}
        }
        if now.since(self.since) >= USELESS {
            self.state = State::Done;
        }
        if let State::Handing(to) = &self.state
            && let Some(part) =
                self.replication
                    .release_to(to, (self.shard, self.fence), &self.taken)
        {
            effects.push(Effect::Release {
                to: to.clone(),
                part,
            });
            self.state = State::Done;
        }
    }
}

#[cfg(test)]
mod tests;
