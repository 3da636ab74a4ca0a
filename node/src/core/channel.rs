//! One channel at its owner: gives offsets, keeps the past, knows who listens.

use std::sync::Arc;

use proto::channel::ChannelKey;
use proto::inspection::ChannelState;
use proto::message::{Missed, Since};
use proto::namespace::HistoryLimits;
use proto::position::{Epoch, Gap, GapReason, Offset, Position};
use proto::publication::Publication;
use proto::time::Timestamp;

use super::history::{Audience, History, Past};
use super::interest::Interest;
use super::record::ChannelPiece;

/// Bytes of missed publications in one answer; a gateway asks again for more.
const MISSED_BYTES_MAX: usize = 400 * 1_024;

/// The state of a channel during one epoch.
#[derive(Debug)]
pub struct Channel {
    epoch: Epoch,
    head: Offset,
    history: History,
    /// Who listens.
    pub interest: Interest,
    /// Whether the shard has a timer for this channel.
    pub check_is_set: bool,
    /// Whether it is not replicated: the owner alone has it.
    pub is_alone: bool,
    /// What an earlier epoch means: that the channel's state was lost, or
    /// perhaps only that where it stood has been forgotten.
    stranger: GapReason,
}

impl Channel {
    /// A channel that has had no publication. `forgetful`: where channels
    /// stood has been forgotten, and this may be one of them.
    pub fn new(epoch: Epoch, forgetful: bool) -> Self {
        let position = Position {
            epoch,
            offset: Offset::ZERO,
        };
        Self::begun(position, forgetful)
    }

    /// A channel that goes on where it stood.
    pub fn resumed(position: Position) -> Self {
        Self {
            epoch: position.epoch,
            head: position.offset,
            history: History::default(),
            interest: Interest::default(),
            check_is_set: false,
            is_alone: false,
            stranger: GapReason::NewEpoch,
        }
    }

    /// A channel as another process had it.
    pub fn of(now: Timestamp, piece: ChannelPiece) -> Self {
        let history = History::of(now, piece.past, piece.retired, piece.held);
        Self {
            history,
            is_alone: piece.is_alone,
            ..Self::begun(piece.position, piece.forgetful)
        }
    }

    /// All of it but who listens.
    pub fn piece(&self, now: Timestamp, key: ChannelKey) -> ChannelPiece {
        let (past, retired, held) = self.history.piece(now);
        ChannelPiece {
            key,
            position: self.position(),
            forgetful: self.is_forgetful(),
            past,
            retired,
            held,
            is_alone: self.is_alone,
        }
    }

    /// The same, but of its past only what gateways may still have lost.
    pub fn repairable_piece(&self, now: Timestamp, key: ChannelKey) -> ChannelPiece {
        let mut piece = self.piece(now, key);
        let older = piece.past.len().saturating_sub(piece.held as usize);
        piece.past.drain(..older);
        piece.retired = piece.retired.saturating_sub(older as u32);
        piece
    }

    /// A channel without a past that stands there. `forgetful`: it may be one
    /// that was forgotten.
    pub fn begun(position: Position, forgetful: bool) -> Self {
        Self {
            stranger: if forgetful {
                GapReason::Forgotten
            } else {
                GapReason::NewEpoch
            },
            ..Self::resumed(position)
        }
    }

    /// Whether it may be one that was forgotten.
    pub fn is_forgetful(&self) -> bool {
        self.stranger == GapReason::Forgotten
    }

    /// The owner has put a publication here. `false`: another one comes next.
    pub fn replay(
        &mut self,
        now: Timestamp,
        publication: Arc<Publication>,
        limits: &HistoryLimits,
    ) -> bool {
        let is_next = publication.offset == self.head.next();
        if is_next {
            self.head = publication.offset;
            self.history.append(now, publication, limits);
        }
        is_next
    }

    /// Where the channel stands.
    pub fn position(&self) -> Position {
        Position {
            epoch: self.epoch,
            offset: self.head,
        }
    }

    /// Gives a publication its offset and keeps it.
    pub fn append(
        &mut self,
        now: Timestamp,
        limits: &HistoryLimits,
        make: impl FnOnce(Offset) -> Publication,
    ) -> Arc<Publication> {
        self.head = self.head.next();
        let publication = Arc::new(make(self.head));
        self.history.append(now, Arc::clone(&publication), limits);
        publication
    }

    /// Where the channel stands, and what came before that and is wanted. The
    /// publications end early when they would be too many for one message. Who has
    /// a position of an earlier epoch has seen nothing of this one: the gap that it
    /// is told of ends before the first publication that there is.
    pub fn since(&self, since: Since) -> (Position, Missed) {
        let head = self.position();
        let (have, audience) = match since {
            Since::Now => return (head, Missed::Publications(Vec::new())),
            Since::Delivered(position) => (position, Audience::Gateway),
            Since::Cursor(position) => (position, Audience::Client),
        };
        let gap = |reason, offset| {
            let gap = Gap {
                reason,
                earliest: self.history.earliest(self.head),
                latest: Position { offset, ..head },
            };
            (head, Missed::Gap(gap))
        };
        if have.epoch != self.epoch {
            let first = self.history.first(self.head, audience);
            return gap(self.stranger, Offset(first.0.saturating_sub(1)));
        }
        if have.offset > self.head {
            return gap(GapReason::Ahead, self.head);
        }
        let past = self
            .history
            .since(have.offset, self.head, audience, MISSED_BYTES_MAX);
        match past {
            Past::Expired => gap(GapReason::Expired, self.head),
            Past::Publications(publications) => (head, Missed::Publications(publications)),
        }
    }

    /// The repair log lets go of the oldest publication that it has.
    pub fn release(&mut self) {
        self.history.release();
    }

    /// Lets go of what is too old, and says when to look again. `None`: there
    /// is nothing to wait for.
    pub fn expire(&mut self, now: Timestamp, limits: &HistoryLimits) -> Option<Timestamp> {
        self.history.expire(now, limits);
        self.interest.expire(now);
        self.check_at(limits)
    }

    /// When something of this channel will be too old.
    pub fn check_at(&self, limits: &HistoryLimits) -> Option<Timestamp> {
        [self.history.expires_at(limits), self.interest.expires_at()]
            .into_iter()
            .flatten()
            .min()
    }

    /// For those who look inside.
    pub fn describe(&self) -> ChannelState {
        let followers = self.interest.followers();
        ChannelState {
            position: self.position(),
            earliest: self.history.earliest(self.head),
            kept: self.history.len() as u32,
            followers: followers
                .map(|(gateway, count)| (gateway.clone(), count))
                .collect(),
            is_alone: self.is_alone,
        }
    }

    /// Whether nobody would notice that the channel is gone.
    pub fn is_idle(&self) -> bool {
        self.history.is_empty() && self.interest.is_empty()
    }
}
