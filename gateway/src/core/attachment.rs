//! What a gateway knows of one channel that it follows.
//!
//! Attached means: everything after `position` comes by the link. A publication
//! is delivered when it is the next one; one that is ahead waits, and the owner
//! is asked for what lies between. While unattached, nothing is delivered and
//! everything waits for the owner's answer.
//!
//! A short window of what was delivered stays, for clients that come back:
//! see `resuming`.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::channel::ChannelName;
use proto::error::ErrorCode;
use proto::id::ConnectionId;
use proto::message::{Joined, Missed, Since};
use proto::position::{Epoch, Gap, GapReason, Offset, Position};
use proto::presence::{User, Users};
use proto::publication::Publication;
use proto::time::Timestamp;

use super::workers::{WorkerId, Workers};
use counting::Counting;
use presence::Presence;
use resuming::Resuming;
use window::Window;

mod cache;
mod counting;
mod presence;
mod resuming;
mod window;

pub use cache::Kept;
pub use presence::Place;
pub use resuming::{Resumption, concerns};

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
        /// What it keeps for those who come.
        kept: Option<Kept>,
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
        /// What the channel keeps behind them for those who come.
        kept: Option<Kept>,
    },
    /// To clients that have come back.
    Resumed {
        /// Whose clients.
        worker: WorkerId,
        /// From where they were asked for.
        cursor: Position,
        /// What they are given.
        resumption: Resumption,
    },
    /// To a member that has come: it is in.
    Welcome {
        /// Where it is.
        place: Place,
        /// Which one.
        connection: ConnectionId,
        /// Where the channel stands.
        position: Position,
        /// Who is there, itself included.
        users: Arc<Users>,
        /// What the channel keeps for those who come.
        kept: Option<Kept>,
        /// If it has come back: what it missed, but for who came and went.
        missed: Option<Missed>,
    },
    /// A member is not let in.
    Refused {
        /// Where it is.
        place: Place,
        /// Which one.
        connection: ConnectionId,
        /// Why.
        code: ErrorCode,
    },
    /// Users have come and gone of whom no publication tells.
    Members {
        /// Who has been told otherwise.
        workers: Workers,
        /// Where the channel stands.
        position: Position,
        /// These have come,
        came: Vec<User>,
        /// and these gone.
        went: Vec<Arc<str>>,
    },
    /// The channel has so many subscribers at all gateways.
    Count {
        /// Who is told.
        workers: Workers,
        /// Where the channel stands.
        position: Position,
        /// How many.
        count: u32,
    },
    /// The window has one more; whoever has the windows says when it goes, with
    /// [`Attachment::release`].
    Kept {
        /// Which one.
        offset: Offset,
        /// Its bytes.
        bytes: usize,
    },
}

/// Whether the owner must be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Ask {
    /// No.
    No,
    /// By a join: see [`Attachment::set_asked`].
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
    /// What came before it.
    window: Window,
    /// Clients that have come back.
    resuming: Vec<Resuming>,
    /// Who is present, if any member is here.
    presence: Option<Box<Presence>>,
    /// What a cache channel keeps for those who come.
    kept: Option<Kept>,
    /// How many subscribers there are, if they are counted.
    counting: Option<Box<Counting>>,
    /// The join that is on its way.
    asked: Option<Asked>,
    /// Something may have been lost since it was sent, which its answer does
    /// not cover: asks again.
    stale: bool,
    /// The owner is to be asked for what comes after our position.
    owed: bool,
    held: BTreeMap<Offset, Arc<Publication>>,
    held_epoch: Option<Epoch>,
    held_bytes: usize,
    /// When to leave, if nobody follows until then.
    pub leave_at: Option<Timestamp>,
    /// Whether it is a cache channel.
    is_cache: bool,
}

/// A join.
#[derive(Debug, Clone, Copy)]
struct Asked {
    version: u64,
    since: Since,
}

impl Ask {
    /// Whether either asks.
    pub fn or(self, other: Self) -> Self {
        match self {
            Self::Join => Self::Join,
            Self::No => other,
        }
    }
}

impl Attachment {
    /// Of a channel that nobody here has followed.
    pub fn new(channel: &ChannelName) -> Self {
        Self {
            is_cache: channel.is_cache(),
            ..Self::default()
        }
    }

    /// Where the channel stands here.
    pub fn position(&self) -> Option<Position> {
        self.position
    }

    /// Whether any worker follows.
    pub fn is_followed(&self) -> bool {
        !self.told.is_empty() || !self.waiting.is_empty()
    }

    /// The version of the join on its way.
    pub fn asked(&self) -> Option<u64> {
        self.asked.map(|asked| asked.version)
    }

    /// What the join on its way asks for: the same, however often it is sent.
    pub fn asked_since(&self) -> Since {
        self.asked.map_or_else(|| self.since(), |asked| asked.since)
    }

    /// A join with this version is to be sent.
    pub fn set_asked(&mut self, version: u64) {
        let since = self.since();
        self.asked = Some(Asked { version, since });
    }

    /// The window lets go of everything up to and with this offset.
    pub fn release(&mut self, offset: Offset) {
        self.window.release(offset);
    }

    /// A worker's first subscriber has come; or its first ones have come back,
    /// with the lowest of their cursors.
    pub fn follow(
        &mut self,
        worker: WorkerId,
        follow: FollowId,
        cursor: Option<Position>,
        steps: &mut Vec<Step>,
    ) -> Ask {
        self.unfollow(worker);
        self.leave_at = None;
        self.waiting.push((worker, follow));
        self.tell_waiting(steps);
        self.look_at_roster(steps);
        if let Some(cursor) = cursor {
            // Asks for both.
            return self
                .resume(worker, cursor, steps)
                .or(self.ask_if(!self.attached));
        }
        self.ask_if(!self.attached)
    }

    /// A worker's last subscriber has gone.
    pub fn unfollow(&mut self, worker: WorkerId) {
        self.told.remove(worker);
        self.waiting.retain(|(waiting, _)| *waiting != worker);
        self.forget_count(worker);
        self.forget_resuming(worker);
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
        self.owe()
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
        now: Timestamp,
        epoch: Epoch,
        publication: Arc<Publication>,
        steps: &mut Vec<Step>,
    ) -> Ask {
        let Some(position) = self.position.filter(|_| self.attached) else {
            self.hold(epoch, publication);
            return self.owe();
        };
        if epoch != position.epoch {
            self.hold(epoch, publication);
            self.attached = false;
            return self.owe();
        }
        if publication.offset <= position.offset {
            return Ask::No;
        }
        if publication.offset != position.offset.next() {
            self.hold(epoch, publication);
            return self.owe();
        }
        self.deliver(now, epoch, publication, steps);
        self.deliver_held(now, steps);
        self.look_at_roster(steps);
        self.resume_from_window(steps);
        Ask::No
    }

    /// The owner has answered the join that was on its way.
    pub fn joined(&mut self, now: Timestamp, joined: Joined, steps: &mut Vec<Step>) -> Ask {
        let since = self.asked_since();
        (self.asked, self.owed) = (None, false);
        let answered = joined.position;
        let kept = joined
            .cached
            .map(|cached| Kept::of(now, answered.epoch, cached));
        match (&joined.missed, self.position) {
            (Missed::Gap(gap), Some(position)) => match since {
                Since::Delivered(asked) => self.close_gap(*gap, kept, asked, position, steps),
                // What has ended for the client has ended for us.
                Since::Cursor(asked)
                    if asked.epoch == position.epoch && answered.epoch != position.epoch =>
                {
                    self.close_gap(*gap, kept, asked, position, steps);
                }
                Since::Cursor(_) | Since::Now => {}
            },
            (Missed::Publications(publications), Some(position)) => {
                if position.epoch == answered.epoch {
                    for publication in publications {
                        self.deliver_if_next(now, position.epoch, publication, steps);
                    }
                }
            }
            // We had nothing, so we missed nothing.
            (missed, None) => {
                self.position = Some(answered);
                self.kept = kept;
                self.fill_window(answered, missed, steps);
            }
        }
        // The answer of another epoch than ours attaches nothing: ours has
        // ended, and its end is still to be told.
        let position = self.position.unwrap_or(answered);
        self.attached = position.epoch == answered.epoch;
        if self.attached {
            self.deliver_held(now, steps);
        }
        self.tell_waiting(steps);
        self.look_at_roster(steps);
        self.resume_from_answer(since, answered, &joined.missed, steps);
        self.resume_from_window(steps);
        let behind = self.position.is_some_and(|p| p.offset < answered.offset);
        let stale = std::mem::take(&mut self.stale);
        self.owed = !self.attached || behind || stale || !self.held.is_empty();
        self.ask_if(self.owed || !self.resuming.is_empty())
    }

    /// What a client asked for when nobody followed here: others may stand a
    /// little behind it.
    fn fill_window(&mut self, answered: Position, missed: &Missed, steps: &mut Vec<Step>) {
        let Missed::Publications(publications) = missed else {
            return;
        };
        // They may end early: then they do not lead to where we stand.
        if publications.last().map(|last| last.offset) == Some(answered.offset) {
            for publication in publications {
                self.keep(publication, steps);
            }
        }
    }

    /// What lies between our position and the channel's cannot be given. But
    /// the answer is of the position that was asked with: what has come by the
    /// link since then may have closed the gap, or reach what can be had.
    fn close_gap(
        &mut self,
        gap: Gap,
        kept: Option<Kept>,
        asked: Position,
        position: Position,
        steps: &mut Vec<Step>,
    ) {
        let went_on = position.epoch == asked.epoch && position.offset > asked.offset;
        if gap.reason == GapReason::Expired && went_on {
            // Perhaps not all the way: then the owner is asked again.
            return;
        }
        self.window.clear();
        self.lose_roster();
        self.position = Some(gap.latest);
        // What is behind that is kept when it comes.
        self.kept = kept.filter(|kept| kept.is_of(gap.latest));
        if !self.told.is_empty() {
            steps.push(Step::Gap {
                workers: self.told,
                gap,
                kept: self.kept.clone(),
            });
        }
    }

    /// The owner is to be asked for what comes after our position.
    fn owe(&mut self) -> Ask {
        self.owed = true;
        self.ask_if(true)
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
        for (worker, follow) in std::mem::take(&mut self.waiting) {
            self.told.insert(worker);
            steps.push(Step::Attached {
                worker,
                follow,
                position,
                kept: self.kept.clone(),
            });
            self.tell_count_to(worker, steps);
        }
    }

    fn deliver_if_next(
        &mut self,
        now: Timestamp,
        epoch: Epoch,
        publication: &Arc<Publication>,
        steps: &mut Vec<Step>,
    ) {
        let next = self.position.map(|position| position.offset.next());
        if next == Some(publication.offset) {
            self.deliver(now, epoch, Arc::clone(publication), steps);
        }
    }

    fn deliver(
        &mut self,
        now: Timestamp,
        epoch: Epoch,
        publication: Arc<Publication>,
        steps: &mut Vec<Step>,
    ) {
        self.position = Some(Position {
            epoch,
            offset: publication.offset,
        });
        let publication = self.fold(epoch, publication);
        self.keep_for_newcomers(now, epoch, &publication);
        self.keep(&publication, steps);
        if !self.told.is_empty() {
            steps.push(Step::Deliver {
                workers: self.told,
                epoch,
                publication,
            });
        }
    }

    fn keep(&mut self, publication: &Arc<Publication>, steps: &mut Vec<Step>) {
        self.window.push(Arc::clone(publication));
        steps.push(Step::Kept {
            offset: publication.offset,
            bytes: publication.bytes(),
        });
    }

    fn deliver_held(&mut self, now: Timestamp, steps: &mut Vec<Step>) {
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
                self.deliver(now, position.epoch, publication, steps);
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
