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

use std::collections::HashMap;

use proto::channel::ChannelKey;
use proto::position::Position;
use slab::Slab;

use super::attachment::FollowId;

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
    subscribers: Vec<Subscriber>,
    sweeping: bool,
    holes: u32,
}

/// An entry of a channel: which connection, and where its counterpart is.
#[derive(Debug, Clone, Copy)]
struct Subscriber {
    connection: ConnectionIndex,
    back: u32,
}

/// An entry of a connection: which channel, and where its counterpart is.
#[derive(Debug, Clone, Copy)]
struct Subscription {
    channel: ChannelIndex,
    slot: u32,
}

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
}

impl Hub {
    /// Subscribes a connection to a channel.
    pub fn subscribe(&mut self, connection: ConnectionIndex, key: &ChannelKey) -> Subscribed {
        if let Some(channel) = self.find(connection, key) {
            return Subscribed::Already(self.channels[channel.0 as usize].position);
        }
        let known = self.indices.get(key).copied();
        let index = known.unwrap_or_else(|| self.insert(key));
        let channel = &mut self.channels[index.0 as usize];
        let at = connection.0 as usize;
        if self.connections.len() <= at {
            self.connections.resize_with(at + 1, Vec::new);
        }
        let links = &mut self.connections[at];
        channel.subscribers.push(Subscriber {
            connection,
            back: links.len() as u32,
        });
        links.push(Subscription {
            channel: index,
            slot: channel.subscribers.len() as u32 - 1,
        });
        self.subscriptions += 1;
        match (known, channel.position) {
            (None, _) => Subscribed::First(channel.follow),
            (Some(_), None) => Subscribed::Pending,
            (Some(_), Some(position)) => Subscribed::Live(position),
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

    /// Whether a connection is subscribed to a channel.
    pub fn has(&self, connection: ConnectionIndex, key: &ChannelKey) -> bool {
        self.find(connection, key).is_some()
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
    pub fn subscriber(&self, channel: ChannelIndex, slot: usize) -> Option<ConnectionIndex> {
        let subscriber = self
            .channels
            .get(channel.0 as usize)?
            .subscribers
            .get(slot)?;
        (subscriber.connection != HOLE).then_some(subscriber.connection)
    }

    /// Ends a sweep. `Some`: the last subscriber went during it.
    pub fn end_sweep(&mut self, index: ChannelIndex) -> Option<Unfollowed> {
        let channel = &mut self.channels[index.0 as usize];
        channel.sweeping = false;
        if channel.holes == 0 {
            return None;
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
            subscribers: Vec::new(),
            sweeping: false,
            holes: 0,
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
            slot,
        } = links.swap_remove(at);
        self.subscriptions -= 1;
        if let Some(moved) = links.get(at) {
            self.channels[moved.channel.0 as usize].subscribers[moved.slot as usize].back =
                at as u32;
        }
        let channel = &mut self.channels[index.0 as usize];
        if channel.sweeping {
            channel.subscribers[slot as usize].connection = HOLE;
            channel.holes += 1;
            return None;
        }
        channel.subscribers.swap_remove(slot as usize);
        if let Some(moved) = channel.subscribers.get(slot as usize) {
            self.connections[moved.connection.0 as usize][moved.back as usize].slot = slot;
        }
        self.forget_if_empty(index)
    }

    fn forget_if_empty(&mut self, index: ChannelIndex) -> Option<Unfollowed> {
        if !self.channels[index.0 as usize].subscribers.is_empty() {
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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::position::{Epoch, Offset};
    use std::collections::{BTreeMap, BTreeSet};

    fn key(n: u8) -> ChannelKey {
        ChannelKey {
            app: "a".parse().unwrap(),
            channel: format!("c{n}").parse().unwrap(),
        }
    }

    const POSITION: Position = Position {
        epoch: Epoch(1),
        offset: Offset(1),
    };

    #[test]
    fn the_first_subscriber_follows_and_later_ones_are_live_once_attached() {
        let mut hub = Hub::default();
        let Subscribed::First(follow) = hub.subscribe(ConnectionIndex(0), &key(0)) else {
            panic!("first")
        };
        assert_eq!(
            hub.subscribe(ConnectionIndex(1), &key(0)),
            Subscribed::Pending
        );
        assert_eq!(
            hub.subscribe(ConnectionIndex(1), &key(0)),
            Subscribed::Already(None)
        );
        assert_eq!(hub.live(&key(0)), None);
        assert!(hub.attached(&key(0), follow, POSITION).is_some());
        assert_eq!(hub.attached(&key(0), follow, POSITION), None, "told once");
        assert_eq!(
            hub.subscribe(ConnectionIndex(2), &key(0)),
            Subscribed::Live(POSITION)
        );
        assert_eq!(
            hub.subscribe(ConnectionIndex(1), &key(0)),
            Subscribed::Already(Some(POSITION))
        );
    }

    #[test]
    fn an_answer_to_an_earlier_following_is_not_taken() {
        let mut hub = Hub::default();
        let Subscribed::First(first) = hub.subscribe(ConnectionIndex(0), &key(0)) else {
            panic!("first")
        };
        assert!(hub.unsubscribe(ConnectionIndex(0), &key(0)).is_some());
        let Subscribed::First(second) = hub.subscribe(ConnectionIndex(0), &key(0)) else {
            panic!("first again")
        };
        assert_eq!(hub.attached(&key(0), first, POSITION), None);
        assert!(hub.attached(&key(0), second, POSITION).is_some());
    }

    #[derive(Debug, Clone)]
    enum Op {
        Subscribe(u8, u8),
        Unsubscribe(u8, u8),
        Remove(u8),
        Sweep(u8, u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0_u8..12, 0_u8..4).prop_map(|(c, k)| Op::Subscribe(c, k)),
            2 => (0_u8..12, 0_u8..4).prop_map(|(c, k)| Op::Unsubscribe(c, k)),
            1 => (0_u8..12).prop_map(Op::Remove),
            3 => (0_u8..4, 1_u8..4).prop_map(|(k, slices)| Op::Sweep(k, slices)),
        ]
    }

    /// A sweep in progress: whom it must visit if they stay, and whom it has.
    struct Sweep {
        channel: ChannelIndex,
        next: usize,
        end: usize,
        expected: BTreeSet<u8>,
        visited: Vec<u8>,
    }

    proptest! {
        /// Against the obvious model: a set of connections per channel. A sweep
        /// visits everyone who was there when it began and still is, once, and
        /// nobody who came later.
        #[test]
        fn sweeps_visit_who_was_there_once(ops in prop::collection::vec(op(), 1..200)) {
            let mut hub = Hub::default();
            let mut model: BTreeMap<u8, BTreeSet<u8>> = BTreeMap::new();
            let mut sweeps: BTreeMap<u8, Sweep> = BTreeMap::new();
            for op in ops {
                match op {
                    Op::Subscribe(c, k) => {
                        let new = model.entry(k).or_default().insert(c);
                        let already = matches!(hub.subscribe(ConnectionIndex(c.into()), &key(k)), Subscribed::Already(_));
                        prop_assert_eq!(already, !new);
                    }
                    Op::Unsubscribe(c, k) => {
                        let last = hub.unsubscribe(ConnectionIndex(c.into()), &key(k)).is_some();
                        let was = model.entry(k).or_default().remove(&c);
                        let sweeping = sweeps.get_mut(&k).map(|s| s.expected.remove(&c)).is_some();
                        prop_assert_eq!(last, was && model[&k].is_empty() && !sweeping);
                    }
                    Op::Remove(c) => {
                        hub.remove(ConnectionIndex(c.into()));
                        for (k, members) in &mut model {
                            members.remove(&c);
                            if let Some(sweep) = sweeps.get_mut(k) {
                                sweep.expected.remove(&c);
                            }
                        }
                    }
                    Op::Sweep(k, slots) => {
                        let Some(&channel) = hub.indices.get(&key(k)) else { continue };
                        let sweep = sweeps.entry(k).or_insert_with(|| {
                            let end = hub.begin_sweep(channel);
                            let expected = model.get(&k).cloned().unwrap_or_default();
                            Sweep { channel, next: 0, end, expected, visited: Vec::new() }
                        });
                        for _ in 0..slots {
                            if sweep.next < sweep.end {
                                sweep.visited.extend(hub.subscriber(sweep.channel, sweep.next).map(|c| c.0 as u8));
                                sweep.next += 1;
                            }
                        }
                        if sweep.next == sweep.end {
                            let sweep = sweeps.remove(&k).expect("it is there");
                            hub.end_sweep(sweep.channel);
                            let visited: BTreeSet<u8> = sweep.visited.iter().copied().collect();
                            prop_assert_eq!(visited.len(), sweep.visited.len(), "nobody twice");
                            prop_assert!(sweep.expected.is_subset(&visited), "nobody passed over");
                        }
                    }
                }
                for (k, members) in &model {
                    let audience = hub.indices.get(&key(*k)).map_or(0, |channel| hub.audience(*channel));
                    prop_assert_eq!(audience, members.len());
                }
                prop_assert_eq!(hub.subscriptions(), model.values().map(BTreeSet::len).sum::<usize>());
            }
        }
    }
}
