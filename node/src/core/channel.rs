//! One channel at its owner: gives offsets, keeps the past, knows who listens.

use std::sync::Arc;

use proto::message::{ChannelState, Missed, Publish};
use proto::namespace::HistoryLimits;
use proto::position::{Epoch, Gap, GapReason, Offset, Position};
use proto::publication::Publication;
use proto::time::Timestamp;

use super::history::{History, Since};
use super::interest::Interest;

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
}

impl Channel {
    /// A channel that has had no publication.
    pub fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            head: Offset::ZERO,
            history: History::default(),
            interest: Interest::default(),
            check_is_set: false,
        }
    }

    /// Where the channel stands.
    pub fn position(&self) -> Position {
        Position {
            epoch: self.epoch,
            offset: self.head,
        }
    }

    /// Gives a publication its offset and keeps it.
    pub fn publish(
        &mut self,
        now: Timestamp,
        publish: Publish,
        limits: &HistoryLimits,
    ) -> Arc<Publication> {
        self.head = self.head.next();
        let publication = Arc::new(Publication {
            offset: self.head,
            event: publish.event,
            data: publish.data,
            exclude: publish.exclude,
            accepted_at: publish.accepted_at,
        });
        self.history.append(now, Arc::clone(&publication), limits);
        publication
    }

    /// Where the channel stands, and what came after `have`. The publications
    /// end before that when they would be too many for one message.
    pub fn since(&self, have: Option<Position>) -> (Position, Missed) {
        let head = self.position();
        let Some(have) = have else {
            return (head, Missed::Publications(Vec::new()));
        };
        let gap = |reason| {
            let earliest = self.history.earliest(self.head);
            (
                head,
                Missed::Gap(Gap {
                    reason,
                    earliest,
                    latest: head,
                }),
            )
        };
        if have.epoch != self.epoch {
            return gap(GapReason::NewEpoch);
        }
        if have.offset > self.head {
            return gap(GapReason::Ahead);
        }
        match self.history.since(have.offset, self.head, MISSED_BYTES_MAX) {
            Since::Expired(_) => gap(GapReason::Expired),
            Since::Publications(publications) => (head, Missed::Publications(publications)),
        }
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
        }
    }

    /// Whether nobody would notice that the channel is gone.
    pub fn is_idle(&self) -> bool {
        self.history.is_empty() && self.interest.is_empty()
    }
}
