//! Clients that come back to a channel with a cursor. Each worker has at most
//! one question here, for the lowest cursor of its clients; all that wait are
//! answered from the window, or by one join that reaches back to the lowest.

use std::sync::Arc;

use proto::message::{Missed, Since};
use proto::position::{Gap, GapReason, Position};
use proto::publication::Publication;

use super::{Ask, Attachment, Step};
use crate::core::workers::WorkerId;

/// A worker's clients that wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resuming {
    pub(super) worker: WorkerId,
    /// Where the one that is furthest behind stands.
    cursor: Position,
}

/// What those who come back are given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resumption {
    /// Everything after the cursor, up to where the channel stands here.
    Whole(Vec<Arc<Publication>>),
    /// What comes first after the cursor. The rest follows, in another answer:
    /// with the last of these as its cursor.
    Part(Vec<Arc<Publication>>),
    /// It cannot be given.
    Gap(Gap),
}

/// Whether a gap that one cursor was answered with is another one's as well.
pub fn concerns(gap: &Gap, asked: Position, other: Position) -> bool {
    other.epoch == asked.epoch
        && match gap.reason {
            GapReason::Expired => other.offset.next() < gap.earliest,
            GapReason::Ahead => other.offset >= asked.offset,
            GapReason::NewEpoch | GapReason::Forgotten => true,
        }
}

impl Attachment {
    /// Clients of a worker that follows have come back; the lowest of their
    /// cursors. Replaces what this worker asked before.
    pub fn resume(&mut self, worker: WorkerId, cursor: Position, steps: &mut Vec<Step>) -> Ask {
        self.forget_resuming(worker);
        let waits = self.waiting.iter().any(|(waiting, _)| *waiting == worker);
        if waits || self.told.contains(worker) {
            self.resuming.push(Resuming { worker, cursor });
            self.resume_from_window(steps);
        }
        self.ask_if(!self.resuming.is_empty())
    }

    pub(super) fn forget_resuming(&mut self, worker: WorkerId) {
        self.resuming.retain(|resuming| resuming.worker != worker);
    }

    /// From where to ask the owner. One question is for everybody: if somebody
    /// waits behind our own position it begins there. Where both cannot be had
    /// together, ours comes first, since nothing can be given without it.
    pub(super) fn since(&self) -> Since {
        let epoch = self.position.map(|position| position.epoch);
        let cursors = self.resuming.iter().map(|resuming| resuming.cursor);
        let cursors = cursors.chain(self.returning());
        let lowest = cursors.min_by_key(|cursor| (Some(cursor.epoch) != epoch, cursor.offset));
        match (self.position, lowest) {
            (None, None) => Since::Now,
            (None, Some(cursor)) => Since::Cursor(cursor),
            (Some(position), None) => Since::Delivered(position),
            (Some(position), Some(cursor)) => {
                let covers = cursor.epoch == position.epoch && cursor.offset <= position.offset;
                if covers || self.attached && !self.owed {
                    Since::Cursor(cursor)
                } else {
                    Since::Delivered(position)
                }
            }
        }
    }

    /// The owner has answered; what it says of our own position is done.
    pub(super) fn resume_from_answer(
        &mut self,
        since: Since,
        answered: Position,
        missed: &Missed,
        steps: &mut Vec<Step>,
    ) {
        let (Since::Cursor(asked), Some(position)) = (since, self.position) else {
            return;
        };
        if !self.attached || answered.epoch != position.epoch {
            return;
        }
        match missed {
            Missed::Gap(gap) => {
                self.resuming.retain(|resuming| {
                    let goes = concerns(gap, asked, resuming.cursor);
                    if goes {
                        steps.push(Step::Resumed {
                            worker: resuming.worker,
                            cursor: resuming.cursor,
                            resumption: Resumption::Gap(*gap),
                        });
                    }
                    !goes
                });
                self.gap_for_members(asked, gap);
            }
            Missed::Publications(publications) => self.hand_out(position, publications, steps),
        }
        self.welcome(steps);
    }

    /// Gives those that wait what the owner gave, as far as it has been
    /// delivered here: what is beyond comes to them with everybody else.
    fn hand_out(
        &mut self,
        position: Position,
        publications: &[Arc<Publication>],
        steps: &mut Vec<Step>,
    ) {
        let delivered = publications.partition_point(|p| p.offset <= position.offset);
        self.give_members(position.epoch, &publications[..delivered]);
        let (Some(first), Some(last)) = (
            publications.first().map(|p| p.offset),
            publications[..delivered].last().map(|p| p.offset),
        ) else {
            return;
        };
        let rest = self.window.since(last, position.offset);
        self.resuming.retain_mut(|resuming| {
            let cursor = resuming.cursor;
            let covered = cursor.epoch == position.epoch
                && cursor.offset.next() >= first
                && cursor.offset < last;
            if !covered {
                return true;
            }
            let from = publications.partition_point(|p| p.offset <= cursor.offset);
            let mut given = publications[from..delivered].to_vec();
            let resumption = match &rest {
                Some(rest) => {
                    given.extend_from_slice(rest);
                    Resumption::Whole(given)
                }
                None => {
                    resuming.cursor.offset = last;
                    Resumption::Part(given)
                }
            };
            steps.push(Step::Resumed {
                worker: resuming.worker,
                cursor,
                resumption,
            });
            rest.is_none()
        });
    }

    /// Gives those that wait what the window has. Only while attached: a
    /// channel that is not may stand further by now, or have ended.
    pub(super) fn resume_from_window(&mut self, steps: &mut Vec<Step>) {
        let Some(position) = self.position.filter(|_| self.attached) else {
            return;
        };
        let (window, told) = (&self.window, self.told);
        self.resuming.retain(|resuming| {
            let Resuming { worker, cursor } = *resuming;
            // One that is ahead has seen elsewhere what has not come here yet.
            let reached = cursor.epoch == position.epoch && cursor.offset <= position.offset;
            if !reached || !told.contains(worker) {
                return true;
            }
            let Some(publications) = window.since(cursor.offset, position.offset) else {
                return true;
            };
            steps.push(Step::Resumed {
                worker,
                cursor,
                resumption: Resumption::Whole(publications),
            });
            false
        });
    }
}
