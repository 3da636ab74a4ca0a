//! What a gateway knows of one channel that it follows.
//!
//! Attached means: everything after `position` comes by the link. A publication
//! is delivered when it is the next one; one that is ahead waits, and the owner
//! is asked for what lies between. While unattached, nothing is delivered and
//! everything waits for the owner's answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::message::{Joined, Missed};
use proto::position::{Epoch, Gap, GapReason, Offset, Position};
use proto::publication::Publication;
use proto::time::Timestamp;

use super::workers::{WorkerId, Workers};

/// Bytes of publications that wait for an earlier one at most. When it is full
/// the newest is dropped: the owner will be asked for it by its offset.
const HELD_BYTES_MAX: usize = 1_024 * 1_024;

/// Names one following of a channel by one worker: an answer to an earlier one
/// must not be taken for an answer to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FollowId(pub u64);

/// What happened to an attachment, for its workers.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Everything after `position` comes from now on.
    Attached {
        /// Who asked.
        worker: WorkerId,
        /// In which following.
        follow: FollowId,
        /// Where the channel stands.
        position: Position,
    },
    /// The next publication.
    Deliver {
        /// Who gets it.
        workers: Workers,
        /// Its epoch.
        epoch: Epoch,
        /// The publication.
        publication: Arc<Publication>,
    },
    /// Publications before the next one are gone.
    Gap {
        /// Who had a position.
        workers: Workers,
        /// Which ones.
        gap: Gap,
    },
}

/// Whether the owner must be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Ask {
    /// No.
    No,
    /// For what comes after the attachment's position.
    Join,
}

/// The state of one followed channel.
#[derive(Debug, Default)]
pub struct Attachment {
    /// Workers that were told where the channel stands, and get what follows.
    told: Workers,
    /// Workers that wait to be told.
    waiting: Vec<(WorkerId, FollowId)>,
    /// Up to where `told` workers have the channel.
    position: Option<Position>,
    attached: bool,
    /// The version of the join that is on its way.
    asked: Option<u64>,
    /// Something may have been lost since it was sent, which its answer does
    /// not cover: asks again.
    stale: bool,
    held: BTreeMap<Offset, Arc<Publication>>,
    held_epoch: Option<Epoch>,
    held_bytes: usize,
    /// When to leave, if nobody follows until then.
    pub leave_at: Option<Timestamp>,
}

impl Attachment {
    /// Where the channel stands here; what a join says we have.
    pub fn position(&self) -> Option<Position> {
        self.position
    }

    /// Whether any worker follows.
    pub fn is_followed(&self) -> bool {
        !self.told.is_empty() || !self.waiting.is_empty()
    }

    /// How many workers follow.
    pub fn followers(&self) -> u32 {
        self.told.len() + self.waiting.len() as u32
    }

    /// The join on its way.
    pub fn asked(&self) -> Option<u64> {
        self.asked
    }

    /// A join with this version has been sent.
    pub fn set_asked(&mut self, version: u64) {
        self.asked = Some(version);
    }

    /// A worker's first subscriber has come.
    pub fn follow(&mut self, worker: WorkerId, follow: FollowId, steps: &mut Vec<Step>) -> Ask {
        self.unfollow(worker);
        self.leave_at = None;
        self.waiting.push((worker, follow));
        self.tell_waiting(steps);
        self.ask_if(!self.attached)
    }

    /// A worker's last subscriber has gone.
    pub fn unfollow(&mut self, worker: WorkerId) {
        self.told.remove(worker);
        self.waiting.retain(|(waiting, _)| *waiting != worker);
    }

    /// The channel has, or may have, another owner: what comes must be joined
    /// to what we have.
    pub fn detach(&mut self) -> Ask {
        self.attached = false;
        self.asked = None;
        Ask::Join
    }

    /// Something may have been lost on the link: asks for what came after.
    pub fn refresh(&mut self) -> Ask {
        // The answer that is on its way may be older than the loss.
        self.stale = self.asked.is_some();
        self.ask_if(true)
    }

    /// The owner may not know that the channel is followed: says so again, with
    /// a new version, and asks for what came after.
    pub fn restate(&mut self) -> Ask {
        self.asked = None;
        self.stale = false;
        Ask::Join
    }

    /// A publication has come by the link.
    pub fn receive(
        &mut self,
        epoch: Epoch,
        publication: Arc<Publication>,
        steps: &mut Vec<Step>,
    ) -> Ask {
        let Some(position) = self.position.filter(|_| self.attached) else {
            self.hold(epoch, publication);
            return self.ask_if(true);
        };
        if epoch != position.epoch {
            self.hold(epoch, publication);
            self.attached = false;
            return self.ask_if(true);
        }
        if publication.offset <= position.offset {
            return Ask::No;
        }
        if publication.offset != position.offset.next() {
            self.hold(epoch, publication);
            return self.ask_if(true);
        }
        self.deliver(epoch, publication, steps);
        self.deliver_held(steps);
        Ask::No
    }

    /// The owner has answered the join that was on its way.
    pub fn joined(&mut self, joined: Joined, steps: &mut Vec<Step>) -> Ask {
        self.asked = None;
        self.attached = true;
        match (joined.missed, self.position) {
            (Missed::Gap(gap), Some(position)) => self.close_gap(gap, position, steps),
            (Missed::Publications(publications), Some(position)) => {
                for publication in publications {
                    if self
                        .position
                        .is_some_and(|p| publication.offset == p.offset.next())
                    {
                        self.deliver(position.epoch, publication, steps);
                    }
                }
            }
            // We had nothing, so we missed nothing.
            (_, None) => self.position = Some(joined.position),
        }
        self.deliver_held(steps);
        self.tell_waiting(steps);
        let behind = self
            .position
            .is_some_and(|p| p.offset < joined.position.offset);
        let stale = std::mem::take(&mut self.stale);
        self.ask_if(behind || stale || !self.held.is_empty())
    }

    /// What lies between our position and the channel's cannot be given. But
    /// the answer is of the position that was asked with: what has come by the
    /// link since then may have closed the gap, or reach what can be had.
    fn close_gap(&mut self, gap: Gap, position: Position, steps: &mut Vec<Step>) {
        let same_epoch = position.epoch == gap.latest.epoch;
        let reached =
            position.offset.next() >= gap.earliest || position.offset >= gap.latest.offset;
        if gap.reason == GapReason::Expired && same_epoch && reached {
            return;
        }
        self.position = Some(gap.latest);
        if !self.told.is_empty() {
            steps.push(Step::Gap {
                workers: self.told,
                gap,
            });
        }
    }

    fn ask_if(&self, needed: bool) -> Ask {
        if needed && self.asked.is_none() {
            Ask::Join
        } else {
            Ask::No
        }
    }

    fn tell_waiting(&mut self, steps: &mut Vec<Step>) {
        let Some(position) = self.position.filter(|_| self.attached) else {
            return;
        };
        for (worker, follow) in self.waiting.drain(..) {
            self.told.insert(worker);
            steps.push(Step::Attached {
                worker,
                follow,
                position,
            });
        }
    }

    fn deliver(&mut self, epoch: Epoch, publication: Arc<Publication>, steps: &mut Vec<Step>) {
        self.position = Some(Position {
            epoch,
            offset: publication.offset,
        });
        if !self.told.is_empty() {
            steps.push(Step::Deliver {
                workers: self.told,
                epoch,
                publication,
            });
        }
    }

    fn deliver_held(&mut self, steps: &mut Vec<Step>) {
        let Some(position) = self.position else {
            return;
        };
        if self.held_epoch != Some(position.epoch) {
            self.drop_held();
            return;
        }
        while let Some(entry) = self.held.first_entry() {
            let next = self.position.map_or(Offset::ZERO, |p| p.offset.next());
            if *entry.key() > next {
                return;
            }
            let publication = entry.remove();
            self.held_bytes -= publication.bytes();
            if publication.offset == next {
                self.deliver(position.epoch, publication, steps);
            }
        }
        self.drop_held();
    }

    fn hold(&mut self, epoch: Epoch, publication: Arc<Publication>) {
        if self.held_epoch != Some(epoch) {
            self.drop_held();
            self.held_epoch = Some(epoch);
        }
        let bytes = publication.bytes();
        if self.held_bytes + bytes > HELD_BYTES_MAX {
            // Not forgotten: it is asked for again after the next answer.
            self.stale = true;
        } else if self.held.insert(publication.offset, publication).is_none() {
            self.held_bytes += bytes;
        }
    }

    fn drop_held(&mut self) {
        self.held.clear();
        self.held_epoch = None;
        self.held_bytes = 0;
    }
}

#[cfg(test)]
mod tests;
