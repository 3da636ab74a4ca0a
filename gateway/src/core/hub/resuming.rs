//! Connections that have come back with a cursor and wait to be told what they
//! missed.
//!
//! The edge answers for the lowest cursor of a channel's connections here, as of
//! where the channel stands at the edge. The worker may be behind that, by what
//! waits for its sweep: so a connection goes on where the channel stands here,
//! and one that is ahead of that waits for the sweep.

use std::sync::Arc;

use proto::channel::ChannelKey;
use proto::position::{Gap, Offset, Position};
use proto::publication::Publication;

use crate::core::attachment::{Resumption, concerns};

use super::{
    ChannelIndex, ConnectionIndex, Hub, List, Recipient, Resuming, Returned, Stage, Subscriber,
    Subscription,
};

/// Connections that are told in one go; the edge is asked again for the rest, so
/// that others get their turn.
const TOGETHER: usize = 256;

/// Connections that are helped, and with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Return {
    /// Who.
    pub back: Vec<Returned>,
    /// What they are given.
    pub given: Given,
    /// Whether the edge is to be asked for others.
    pub ask: bool,
}

/// A connection that is a member now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcomed {
    /// The channel.
    pub channel: ChannelIndex,
    /// Who it is.
    pub recipient: Recipient,
    /// Where it stood when it was last here; [`NOWHERE`](super::NOWHERE): it was not.
    pub cursor: Position,
    /// Whether it gets what comes; else the edge is to be asked for it.
    pub is_live: bool,
}

/// What connections are given that have come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// To each of them those that come after its cursor.
    Publications(Vec<Arc<Publication>>),
    /// The word that it cannot be given, and where they go on.
    Gap(Gap),
}

impl Hub {
    /// The cursor that the edge is to be asked about for those who have come
    /// back: the lowest. `None`: none waits, or the edge has been asked.
    pub fn ask(&mut self, index: ChannelIndex) -> Option<Position> {
        let channel = self.channels.get_mut(index.0 as usize)?;
        // Those of our epoch first, for they can be helped at once.
        let epoch = channel.position.map(|position| position.epoch);
        let order = |cursor: &Position| (Some(cursor.epoch) != epoch, cursor.offset);
        let able = channel.resuming.iter().filter(|one| one.asks());
        let cursors = able.map(|resuming| resuming.cursor);
        let lowest = cursors.min_by_key(order)?;
        let covers = |asked: Position| asked.epoch != lowest.epoch || asked.offset <= lowest.offset;
        if channel.asked.is_some_and(covers) {
            return None;
        }
        channel.asked = Some(lowest);
        Some(lowest)
    }

    /// Whether anybody waits.
    pub fn waits(&self, index: ChannelIndex) -> bool {
        let channel = self.channels.get(index.0 as usize);
        channel.is_some_and(|channel| channel.resuming.iter().any(Resuming::asks))
    }

    /// There is no room for what comes after this cursor: the connection gets no
    /// more of the channel until it [can take](Hub::catch_up) what it missed.
    pub fn fall_behind(
        &mut self,
        connection: ConnectionIndex,
        index: ChannelIndex,
        cursor: Position,
    ) {
        let Some((at, link)) = self.link(connection, index) else {
            return;
        };
        let subscriber = match link.list {
            List::Subscribers => self.take_subscriber(index, link.slot),
            List::Resuming => self.take_resuming(index, link.slot),
        };
        let resuming = &mut self.channels[index.0 as usize].resuming;
        resuming.push(Resuming {
            subscriber,
            cursor,
            told: true,
            stage: Stage::IsFull,
        });
        self.connections[connection.0 as usize][at] = Subscription {
            channel: index,
            list: List::Resuming,
            slot: resuming.len() as u32 - 1,
        };
    }

    /// There is room again: the channels in which the connection fell behind. The
    /// edge is to be asked for each of them.
    pub fn catch_up(&mut self, connection: ConnectionIndex) -> Vec<ChannelIndex> {
        let links = self.connections.get(connection.0 as usize);
        let waits = |link: &&Subscription| link.list == List::Resuming;
        let waiting = links.into_iter().flatten().filter(waits);
        let mut behind = Vec::new();
        for link in waiting {
            let channel = &mut self.channels[link.channel.0 as usize];
            let resuming = &mut channel.resuming[link.slot as usize];
            if resuming.stage == Stage::IsFull {
                resuming.stage = Stage::Asks;
                behind.push(link.channel);
            }
        }
        behind
    }

    /// A connection is a member of a channel that stands here, and is told so; what
    /// comes after that comes to it. `None`: it does not wait for that. `sweeps`:
    /// whether something waits here that is of before that.
    pub fn welcome(
        &mut self,
        connection: ConnectionIndex,
        key: &ChannelKey,
        position: Position,
        sweeps: impl FnOnce(ChannelIndex) -> bool,
    ) -> Option<Welcomed> {
        let index = *self.indices.get(key)?;
        let (_, link) = self.link(connection, index)?;
        if link.list != List::Resuming {
            return None;
        }
        let channel = &mut self.channels[index.0 as usize];
        let one = &mut channel.resuming[link.slot as usize];
        if one.stage != Stage::Enters {
            return None;
        }
        let (recipient, cursor) = (one.subscriber.recipient(), one.cursor);
        (one.stage, one.cursor, one.told) = (Stage::Asks, position, true);
        // What waits here for its sweep is not for who has been told of it.
        let is_live = channel.position == Some(position) && !sweeps(index);
        if is_live {
            self.go_live(index, connection);
        }
        Some(Welcomed {
            channel: index,
            recipient,
            cursor,
            is_live,
        })
    }

    /// Those who have been told of a channel and do not get it at the moment.
    pub fn told_and_waiting(&self, index: ChannelIndex) -> Vec<Recipient> {
        let channel = self.channels.get(index.0 as usize);
        let waiting = channel.into_iter().flat_map(|channel| &channel.resuming);
        let told = waiting.filter(|one| one.told);
        told.map(|one| one.subscriber.recipient()).collect()
    }

    /// The edge could not be asked after all.
    pub fn unask(&mut self, index: ChannelIndex) {
        if let Some(channel) = self.channels.get_mut(index.0 as usize) {
            channel.asked = None;
        }
    }

    /// The edge has answered. Whom that helps, some at a time; they go on with
    /// everybody else, or wait for the rest. `None`: it is an answer to something
    /// else than was last asked. `sweeps`: whether publications wait here.
    pub fn resumed(
        &mut self,
        key: &ChannelKey,
        cursor: Position,
        resumption: &Resumption,
        sweeps: impl FnOnce(ChannelIndex) -> bool,
    ) -> Option<Return> {
        let (channel, position) = self.answered(key, cursor)?;
        let (back, given) = match resumption {
            Resumption::Gap(gap) => self.with_gap(channel, position, cursor, gap),
            Resumption::Whole(publications) => {
                // What is beyond comes by the sweep that it waits for here.
                let end = end(publications, cursor).min(position.offset);
                let back = self.with_publications(channel, position, cursor, end);
                for one in &back {
                    self.go_live(channel, one.recipient.connection);
                }
                (back, given(publications, end))
            }
            Resumption::Part(publications) => {
                let offset = end(publications, cursor);
                let back = self.with_publications(channel, position, cursor, offset);
                for one in &back {
                    let cursor = Position { offset, ..cursor };
                    self.advance(channel, one.recipient.connection, cursor);
                }
                (back, given(publications, offset))
            }
        };
        let ask = self.is_to_ask(channel, position, sweeps(channel));
        Some(Return { back, given, ask })
    }

    fn with_publications(
        &self,
        channel: ChannelIndex,
        position: Position,
        cursor: Position,
        end: Offset,
    ) -> Vec<Returned> {
        self.returned(channel, TOGETHER, |theirs| {
            theirs.epoch == cursor.epoch
                && theirs.epoch == position.epoch
                && (cursor.offset..=end).contains(&theirs.offset)
        })
    }

    fn with_gap(
        &mut self,
        channel: ChannelIndex,
        position: Position,
        cursor: Position,
        gap: &Gap,
    ) -> (Vec<Returned>, Given) {
        // They go on where the channel stands here.
        let told = Gap {
            latest: position,
            ..*gap
        };
        let back = self.returned(channel, TOGETHER, |theirs| {
            // In another epoch than what waits here for its sweep, or behind
            // it, nobody can be put; but one that is ahead of the owner lies.
            let behind = theirs.epoch != position.epoch || theirs.offset <= position.offset;
            gap.latest.epoch == position.epoch
                && concerns(gap, cursor, theirs)
                && (behind || theirs.offset > gap.latest.offset)
        });
        for one in &back {
            self.go_live(channel, one.recipient.connection);
        }
        (back, Given::Gap(told))
    }

    /// Whether the edge is to be asked for those that are left. Whoever has seen
    /// elsewhere what waits to be swept here is helped when it has been.
    fn is_to_ask(&self, channel: ChannelIndex, position: Position, sweeps: bool) -> bool {
        let ahead =
            |theirs: Position| theirs.epoch != position.epoch || theirs.offset > position.offset;
        let left = &self.channels[channel.0 as usize].resuming;
        let mut able = left.iter().filter(|one| one.asks());
        able.any(|one| !(sweeps && ahead(one.cursor)))
    }

    /// Where the channel stands here; `None`: the answer is to something else
    /// than was last asked.
    pub(super) fn answered(
        &mut self,
        key: &ChannelKey,
        cursor: Position,
    ) -> Option<(ChannelIndex, Position)> {
        let index = *self.indices.get(key)?;
        let channel = &mut self.channels[index.0 as usize];
        let position = channel.position?;
        channel.asked.take_if(|asked| *asked == cursor)?;
        Some((index, position))
    }

    /// At most `count` of those who wait and are meant.
    pub(super) fn returned(
        &self,
        index: ChannelIndex,
        count: usize,
        meant: impl Fn(Position) -> bool,
    ) -> Vec<Returned> {
        let resuming = &self.channels[index.0 as usize].resuming;
        let able = resuming.iter().filter(|one| one.asks());
        let meant = able.filter(|resuming| meant(resuming.cursor));
        meant.take(count).map(Resuming::returned).collect()
    }

    /// One that waited gets what comes after the channel's position here.
    pub(super) fn go_live(&mut self, index: ChannelIndex, connection: ConnectionIndex) {
        let Some((at, link)) = self.link(connection, index) else {
            return;
        };
        if link.list == List::Subscribers {
            return;
        }
        let subscriber = self.take_resuming(index, link.slot);
        let subscribers = &mut self.channels[index.0 as usize].subscribers;
        subscribers.push(subscriber);
        self.connections[connection.0 as usize][at] = Subscription {
            channel: index,
            list: List::Subscribers,
            slot: subscribers.len() as u32 - 1,
        };
    }

    /// One that waits has got a first part, and stands here now.
    pub(super) fn advance(
        &mut self,
        index: ChannelIndex,
        connection: ConnectionIndex,
        cursor: Position,
    ) {
        if let Some((_, link)) = self.link(connection, index)
            && link.list == List::Resuming
        {
            let resuming = &mut self.channels[index.0 as usize].resuming[link.slot as usize];
            (resuming.cursor, resuming.told) = (cursor, true);
        }
    }

    pub(super) fn take_resuming(&mut self, index: ChannelIndex, slot: u32) -> Subscriber {
        let resuming = &mut self.channels[index.0 as usize].resuming;
        let taken = resuming.swap_remove(slot as usize).subscriber;
        if let Some(moved) = resuming.get(slot as usize) {
            let Subscriber {
                connection, back, ..
            } = moved.subscriber;
            self.connections[connection.0 as usize][back as usize].slot = slot;
        }
        if resuming.is_empty() {
            // Seldom used, and then by many.
            *resuming = Vec::new();
        }
        taken
    }
}

/// Where publications that come after a cursor end.
fn end(publications: &[Arc<Publication>], cursor: Position) -> Offset {
    publications
        .last()
        .map_or(cursor.offset, |last| last.offset)
}

fn given(publications: &[Arc<Publication>], end: Offset) -> Given {
    let until = publications.partition_point(|publication| publication.offset <= end);
    Given::Publications(publications[..until].to_vec())
}
