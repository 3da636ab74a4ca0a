//! A worker's channels and connections: who of its clients gets what.
//!
//! Both directions are kept (a channel's subscribers, a connection's channels)
//! and each entry knows where its counterpart is, so that subscribing and
//! unsubscribing cost the same however many subscribers a channel has.
//!
//! A fan-out goes over a channel's subscribers in slices, and clients come and
//! go in between. So while a sweep is on, a subscriber that goes leaves a hole
//! instead of being replaced by the last one, and the sweep ends where the list
//! ended when it began: nobody is passed over, nobody visited twice, and who
//! came later waits for the next publication.
//!
//! Who comes back with a cursor is subscribed, too, but stands apart until the
//! edge has said what it missed: only then is it known where it goes on. So does
//! who falls behind because it reads too slowly, as soon as there is room again.

use std::collections::HashMap;
use std::sync::Arc;

use proto::channel::ChannelKey;
use proto::position::{Epoch, Offset, Position};
use proto::time::Timestamp;
use slab::Slab;

use super::attachment::FollowId;
use crate::broadcast::{Broadcast, Keeps};

mod resuming;

pub use resuming::{Given, Return, Welcomed};

/// A connection of this worker. Reused after the connection has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionIndex(pub u32);

/// A channel of this worker. Reused after its last subscriber has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelIndex(pub u32);

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Hub {
    indices: HashMap<ChannelKey, ChannelIndex>,
    channels: Slab<Channel>,
    /// By connection index; a connection without subscriptions may be missing.
    connections: Vec<Vec<Subscription>>,
    follows: u64,
    subscriptions: usize,
}

#[derive(Debug)]
struct Channel {
    key: ChannelKey,
    follow: FollowId,
    /// Where the channel stands for who subscribes now; `None`: not attached.
    position: Option<Position>,
    /// What it keeps for who subscribes now, if it is a cache channel.
    kept: Option<Arc<Broadcast>>,
    subscribers: Vec<Subscriber>,
    sweeping: bool,
    holes: u32,
    /// Who has come back and waits.
    resuming: Vec<Resuming>,
    /// The cursor that the edge was last asked about for them.
    asked: Option<Position>,
}

/// An entry of a channel: which connection, and where its counterpart is.
#[derive(Debug, Clone, Copy)]
struct Subscriber {
    connection: ConnectionIndex,
    back: u32,
    /// Whether it is told the position of each publication.
    positions: bool,
    /// Whether it is told who is online, and nothing else.
    watches: bool,
}

/// One that waits: what it will be, and where it stood.
#[derive(Debug, Clone, Copy)]
struct Resuming {
    subscriber: Subscriber,
    cursor: Position,
    /// It has been acknowledged: it has got a first part.
    told: bool,
    stage: Stage,
}

/// What one that waits waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// What it missed: the edge is asked for it.
    Asks,
    /// Room for that.
    IsFull,
    /// The word that it is a member.
    Enters,
}

/// An entry of a connection: which channel, and where its counterpart is.
#[derive(Debug, Clone, Copy)]
struct Subscription {
    channel: ChannelIndex,
    list: List,
    slot: u32,
}

/// In which of a channel's lists a counterpart is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    Subscribers,
    Resuming,
}

/// Where one stands that has not been told yet where it does.
pub const NOWHERE: Position = Position {
    epoch: Epoch(0),
    offset: Offset::ZERO,
};
/// Marks a slot whose subscriber went during a sweep.
const HOLE: ConnectionIndex = ConnectionIndex(u32::MAX);

/// What became of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subscribed {
    /// It is the first one here: the channel must be followed.
    First(FollowId),
    /// Others wait already.
    Pending,
    /// The channel stands here, and what follows comes.
    Live(Position),
    /// It was subscribed before.
    Already(Option<Position>),
    /// It waits to be told what it missed.
    Resuming,
    /// It waits for the word that it is a member.
    Entering,
}

/// How a connection subscribes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wish {
    /// Where it stood when it was last here.
    pub cursor: Option<Position>,
    /// Whether it is told the position of each publication.
    pub positions: bool,
    /// Whether it gets nothing before it is a member, or knows who is.
    pub enters: bool,
    /// Whether it is told who is online, and nothing else.
    pub watches: bool,
}

/// Who gets a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipient {
    /// The connection.
    pub connection: ConnectionIndex,
    /// Whether it is told the position of each publication.
    pub positions: bool,
    /// Whether it is told who is online, and nothing else.
    pub watches: bool,
}

/// One that had waited and is given what it missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Returned {
    /// Who.
    pub recipient: Recipient,
    /// Where it stood.
    pub cursor: Position,
    /// Whether it was acknowledged before.
    pub told: bool,
}

impl Subscriber {
    fn recipient(&self) -> Recipient {
        Recipient {
            connection: self.connection,
            positions: self.positions,
            watches: self.watches,
        }
    }
}

impl Resuming {
    fn asks(&self) -> bool {
        self.stage == Stage::Asks
    }

    fn returned(&self) -> Returned {
        Returned {
            recipient: self.subscriber.recipient(),
            cursor: self.cursor,
            told: self.told,
        }
    }
}

impl Hub {
    /// Subscribes a connection to a channel.
    pub fn subscribe(
        &mut self,
        connection: ConnectionIndex,
        key: &ChannelKey,
        wish: Wish,
    ) -> Subscribed {
        if let Some(channel) = self.find(connection, key) {
            let already = self.is_subscriber(connection, channel);
            let position = self.channels[channel.0 as usize].position;
            return Subscribed::Already(position.filter(|_| already));
        }
        let known = self.indices.get(key).copied();
        let index = known.unwrap_or_else(|| self.insert(key));
        let at = connection.0 as usize;
        if self.connections.len() <= at {
            self.connections.resize_with(at + 1, Vec::new);
        }
        let subscriber = Subscriber {
            connection,
            back: self.connections[at].len() as u32,
            positions: wish.positions,
            watches: wish.watches,
        };
        let channel = &mut self.channels[index.0 as usize];
        let (stage, cursor) = if wish.enters {
            // It is told where it stands when it is a member.
            (Stage::Enters, wish.cursor.or(Some(NOWHERE)))
        } else {
            (Stage::Asks, wish.cursor)
        };
        let (list, slot) = match cursor {
            Some(cursor) => {
                channel.resuming.push(Resuming {
                    subscriber,
                    cursor,
                    told: false,
                    stage,
                });
                (List::Resuming, channel.resuming.len() - 1)
            }
            None => {
                channel.subscribers.push(subscriber);
                (List::Subscribers, channel.subscribers.len() - 1)
            }
        };
        self.connections[at].push(Subscription {
            channel: index,
            list,
            slot: slot as u32,
        });
        self.subscriptions += 1;
        match (known, list, channel.position) {
            (None, ..) => Subscribed::First(channel.follow),
            (Some(_), List::Resuming, _) if wish.enters => Subscribed::Entering,
            (Some(_), List::Resuming, _) => Subscribed::Resuming,
            (Some(_), List::Subscribers, None) => Subscribed::Pending,
            (Some(_), List::Subscribers, Some(position)) => Subscribed::Live(position),
        }
    }

    /// Ends a subscription. `Some`: it was the channel's last one here.
    pub fn unsubscribe(
        &mut self,
        connection: ConnectionIndex,
        key: &ChannelKey,
    ) -> Option<Unfollowed> {
        let channel = self.find(connection, key)?;
        let links = &self.connections[connection.0 as usize];
        let at = links.iter().position(|link| link.channel == channel)?;
        self.unlink(connection, at)
    }

    /// Ends all subscriptions of a connection that has gone. The channels for
    /// which it was the last one here.
    pub fn remove(&mut self, connection: ConnectionIndex) -> Vec<Unfollowed> {
        let mut unfollowed = Vec::new();
        while let Some(last) = self
            .connections
            .get(connection.0 as usize)
            .and_then(|l| l.len().checked_sub(1))
        {
            unfollowed.extend(self.unlink(connection, last));
        }
        if let Some(links) = self.connections.get_mut(connection.0 as usize) {
            *links = Vec::new();
        }
        unfollowed
    }

    /// Gives back what a crowd needed that has gone.
    pub fn shrink(&mut self) {
        let used = self.connections.iter().rposition(|links| !links.is_empty());
        self.connections.truncate(used.map_or(0, |last| last + 1));
        self.connections.shrink_to_fit();
        self.channels.shrink_to_fit();
        self.indices.shrink_to_fit();
    }

    /// The edge says where a channel stands. Its subscribers are to be told;
    /// `None`: the answer is to an earlier following.
    pub fn attached(
        &mut self,
        key: &ChannelKey,
        follow: FollowId,
        position: Position,
    ) -> Option<ChannelIndex> {
        let index = *self.indices.get(key)?;
        let channel = &mut self.channels[index.0 as usize];
        if channel.follow != follow || channel.position.is_some() {
            return None;
        }
        channel.position = Some(position);
        Some(index)
    }

    /// A channel that gets publications: one that has subscribers and is
    /// attached. What comes before was sent to an earlier following.
    pub fn live(&self, key: &ChannelKey) -> Option<ChannelIndex> {
        let index = *self.indices.get(key)?;
        self.channels[index.0 as usize].position.map(|_| index)
    }

    /// From now on who subscribes gets what comes after this.
    pub fn set_position(&mut self, channel: ChannelIndex, position: Position) {
        if let Some(channel) = self.channels.get_mut(channel.0 as usize) {
            channel.position = Some(position);
        }
    }

    /// From now on who subscribes gets what is kept after this.
    pub fn keep(&mut self, channel: ChannelIndex, broadcast: &Arc<Broadcast>) {
        let kept = match broadcast.keeps() {
            Keeps::AsBefore => return,
            Keeps::Itself(_) => Some(Arc::clone(broadcast)),
            Keeps::Other(kept) => kept.clone(),
        };
        self.set_kept(channel, kept);
    }

    /// From now on who subscribes gets this.
    pub fn set_kept(&mut self, channel: ChannelIndex, kept: Option<Arc<Broadcast>>) {
        if let Some(channel) = self.channels.get_mut(channel.0 as usize) {
            channel.kept = kept;
        }
    }

    /// What a cache channel keeps for who subscribes now.
    pub fn kept(&self, key: &ChannelKey, now: Timestamp) -> Option<Arc<Broadcast>> {
        let index = *self.indices.get(key)?;
        let kept = self.channels[index.0 as usize].kept.as_ref();
        kept.filter(|kept| kept.is_kept(now)).cloned()
    }

    /// A channel that has subscribers, or some that wait.
    pub fn index(&self, key: &ChannelKey) -> Option<ChannelIndex> {
        self.indices.get(key).copied()
    }

    /// The channel's key.
    pub fn key(&self, channel: ChannelIndex) -> Option<&ChannelKey> {
        self.channels
            .get(channel.0 as usize)
            .map(|channel| &channel.key)
    }

    /// How many connections get the channel.
    pub fn audience(&self, channel: ChannelIndex) -> usize {
        self.channels.get(channel.0 as usize).map_or(0, |channel| {
            channel.subscribers.len() - channel.holes as usize
        })
    }

    /// How many connections are subscribed to a channel, whatever they wait for.
    pub fn subscribers(&self, channel: ChannelIndex) -> u32 {
        let waiting = self.channels.get(channel.0 as usize);
        let waiting = waiting.map_or(0, |channel| channel.resuming.len());
        (self.audience(channel) + waiting) as u32
    }

    /// Whether a connection is subscribed to a channel.
    pub fn has(&self, connection: ConnectionIndex, key: &ChannelKey) -> bool {
        self.find(connection, key).is_some()
    }

    /// The channels that a connection gets, or waits for, and whether it is only told who
    /// is online.
    pub fn channels_of(
        &self,
        connection: ConnectionIndex,
    ) -> impl Iterator<Item = (&ChannelKey, bool)> {
        let links = self.connections.get(connection.0 as usize);
        let links = links.into_iter().flatten();
        links.map(|link| {
            let channel = &self.channels[link.channel.0 as usize];
            let at = link.slot as usize;
            let subscriber = match link.list {
                List::Subscribers => &channel.subscribers[at],
                List::Resuming => &channel.resuming[at].subscriber,
            };
            (&channel.key, subscriber.watches)
        })
    }

    /// Whether a connection waits for the acknowledgement of a subscription.
    pub fn is_pending(&self, connection: ConnectionIndex) -> bool {
        let links = self.connections.get(connection.0 as usize);
        let mut links = links.into_iter().flatten();
        links.any(|link| {
            let channel = &self.channels[link.channel.0 as usize];
            match link.list {
                List::Subscribers => channel.position.is_none(),
                List::Resuming => !channel.resuming[link.slot as usize].told,
            }
        })
    }

    /// How many channels a connection gets.
    pub fn subscriptions_of(&self, connection: ConnectionIndex) -> usize {
        self.connections
            .get(connection.0 as usize)
            .map_or(0, Vec::len)
    }

    /// All subscriptions of this worker.
    pub fn subscriptions(&self) -> usize {
        self.subscriptions
    }

    /// All channels of this worker.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// Begins a sweep: slots `0..` the result are to be visited, with
    /// [`Hub::subscriber`]. Ended by [`Hub::end_sweep`].
    pub fn begin_sweep(&mut self, channel: ChannelIndex) -> usize {
        let channel = &mut self.channels[channel.0 as usize];
        channel.sweeping = true;
        channel.subscribers.len()
    }

    /// Who is in a slot; `None`: a hole.
    pub fn subscriber(&self, channel: ChannelIndex, slot: usize) -> Option<Recipient> {
        let subscriber = self
            .channels
            .get(channel.0 as usize)?
            .subscribers
            .get(slot)?;
        (subscriber.connection != HOLE).then_some(subscriber.recipient())
    }

    /// Ends a sweep. `Some`: the last subscriber went during it.
    pub fn end_sweep(&mut self, index: ChannelIndex) -> Option<Unfollowed> {
        let channel = &mut self.channels[index.0 as usize];
        channel.sweeping = false;
        if channel.holes == 0 {
            // Those who waited may have gone during it.
            return self.forget_if_empty(index);
        }
        channel.holes = 0;
        channel
            .subscribers
            .retain(|subscriber| subscriber.connection != HOLE);
        for (slot, subscriber) in channel.subscribers.iter().enumerate() {
            let links = &mut self.connections[subscriber.connection.0 as usize];
            links[subscriber.back as usize].slot = slot as u32;
        }
        self.forget_if_empty(index)
    }

    fn link(
        &self,
        connection: ConnectionIndex,
        channel: ChannelIndex,
    ) -> Option<(usize, Subscription)> {
        let links = self.connections.get(connection.0 as usize)?;
        let mut all = links.iter().copied().enumerate();
        all.find(|(_, link)| link.channel == channel)
    }

    fn is_subscriber(&self, connection: ConnectionIndex, channel: ChannelIndex) -> bool {
        let link = self.link(connection, channel);
        link.is_some_and(|(_, link)| link.list == List::Subscribers)
    }

    fn find(&self, connection: ConnectionIndex, key: &ChannelKey) -> Option<ChannelIndex> {
        let index = *self.indices.get(key)?;
        let links = self.connections.get(connection.0 as usize)?;
        links
            .iter()
            .any(|link| link.channel == index)
            .then_some(index)
    }

    fn insert(&mut self, key: &ChannelKey) -> ChannelIndex {
        self.follows += 1;
        let channel = Channel {
            key: key.clone(),
            follow: FollowId(self.follows),
            position: None,
            kept: None,
            subscribers: Vec::new(),
            sweeping: false,
            holes: 0,
            resuming: Vec::new(),
            asked: None,
        };
        let index = ChannelIndex(self.channels.insert(channel) as u32);
        self.indices.insert(key.clone(), index);
        index
    }

    /// Removes a connection's `at`-th subscription on both sides.
    fn unlink(&mut self, connection: ConnectionIndex, at: usize) -> Option<Unfollowed> {
        let links = &mut self.connections[connection.0 as usize];
        let Subscription {
            channel: index,
            list,
            slot,
        } = links.swap_remove(at);
        self.subscriptions -= 1;
        if let Some(moved) = links.get(at) {
            let channel = &mut self.channels[moved.channel.0 as usize];
            let subscriber = match moved.list {
                List::Subscribers => &mut channel.subscribers[moved.slot as usize],
                List::Resuming => &mut channel.resuming[moved.slot as usize].subscriber,
            };
            subscriber.back = at as u32;
        }
        match list {
            List::Resuming => self.take_resuming(index, slot),
            List::Subscribers => self.take_subscriber(index, slot),
        };
        self.forget_if_empty(index)
    }

    fn take_subscriber(&mut self, index: ChannelIndex, slot: u32) -> Subscriber {
        let channel = &mut self.channels[index.0 as usize];
        if channel.sweeping {
            let subscriber = &mut channel.subscribers[slot as usize];
            channel.holes += 1;
            let hole = Subscriber {
                connection: HOLE,
                ..*subscriber
            };
            return std::mem::replace(subscriber, hole);
        }
        let taken = channel.subscribers.swap_remove(slot as usize);
        if let Some(moved) = channel.subscribers.get(slot as usize) {
            self.connections[moved.connection.0 as usize][moved.back as usize].slot = slot;
        }
        taken
    }

    fn forget_if_empty(&mut self, index: ChannelIndex) -> Option<Unfollowed> {
        let channel = &self.channels[index.0 as usize];
        if !channel.subscribers.is_empty() || !channel.resuming.is_empty() || channel.sweeping {
            return None;
        }
        let channel = self.channels.remove(index.0 as usize);
        self.indices.remove(&channel.key);
        Some(Unfollowed {
            channel: index,
            key: channel.key,
        })
    }
}

/// A channel whose last subscriber here has gone. Its index may be reused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfollowed {
    /// Its index until now.
    pub channel: ChannelIndex,
    /// Its key.
    pub key: ChannelKey,
}

#[cfg(test)]
mod tests;
