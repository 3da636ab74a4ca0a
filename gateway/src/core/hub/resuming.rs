//! Connections that have come back with a cursor and wait to be told what they
//! missed.

use proto::channel::ChannelKey;
use proto::position::Position;

use super::{
    ChannelIndex, ConnectionIndex, Hub, List, Resuming, Returned, Subscriber, Subscription,
};

impl Hub {
    /// The cursor that the edge is to be asked about for those who have come
    /// back: the lowest. `None`: none waits, or the edge has been asked.
    pub fn ask(&mut self, index: ChannelIndex) -> Option<Position> {
        let channel = self.channels.get_mut(index.0 as usize)?;
        // Those of our epoch first, for they can be helped at once.
        let epoch = channel.position.map(|position| position.epoch);
        let order = |cursor: &Position| (Some(cursor.epoch) != epoch, cursor.offset);
        let cursors = channel.resuming.iter().map(|resuming| resuming.cursor);
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
        channel.is_some_and(|channel| !channel.resuming.is_empty())
    }

    /// The edge could not be asked after all.
    pub fn unask(&mut self, index: ChannelIndex) {
        if let Some(channel) = self.channels.get_mut(index.0 as usize) {
            channel.asked = None;
        }
    }

    /// The edge has answered. Where the channel stands here; `None`: the answer
    /// is to something else than was last asked.
    pub fn answered(
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
    pub fn returned(
        &self,
        index: ChannelIndex,
        count: usize,
        meant: impl Fn(Position) -> bool,
    ) -> Vec<Returned> {
        let resuming = &self.channels[index.0 as usize].resuming;
        let meant = resuming.iter().filter(|resuming| meant(resuming.cursor));
        meant.take(count).map(Resuming::returned).collect()
    }

    /// One that waited gets what comes after the channel's position here.
    pub fn go_live(&mut self, index: ChannelIndex, connection: ConnectionIndex) {
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
    pub fn advance(&mut self, index: ChannelIndex, connection: ConnectionIndex, cursor: Position) {
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
