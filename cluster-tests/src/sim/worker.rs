//! A worker of a gateway: the real hub and fan-out, without sockets. What would
//! be written to a client is written into the trace.
//!
//! Mirrors `gateway/src/worker/{channels,delivery}.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use gateway::broadcast::{Broadcast, Content};
use gateway::core::attachment::FollowId;
use gateway::core::fanout::Fanout;
use gateway::core::hub::{ConnectionIndex, Hub, Subscribed, Unfollowed};
use gateway::core::workers::WorkerId;
use proto::channel::ChannelKey;
use proto::position::Position;

use super::trace::{Connection, Fact, Trace};
use super::workload::{channel_of, order_of};

/// What a gateway may have waiting for a worker, as in the shell.
pub const MAILBOX: usize = 4_096;
/// Mail taken in one round at most.
const ROUND: usize = 64;

/// What the mesh tells a worker.
#[derive(Debug, Clone)]
pub enum Mail {
    /// A channel that it follows stands here.
    Attached {
        /// The channel.
        key: ChannelKey,
        /// Which following.
        follow: FollowId,
        /// Where.
        position: Position,
    },
    /// Something happened in a channel.
    Broadcast(Arc<Broadcast>),
}

/// What a worker tells the mesh.
#[derive(Debug)]
pub enum Told {
    /// It has its first subscriber of a channel.
    Follow(ChannelKey, FollowId),
    /// It has lost its last one.
    Unfollow(ChannelKey),
}

/// See the [module](self).
#[derive(Debug)]
pub struct Worker {
    /// Its number.
    pub id: WorkerId,
    hub: Hub,
    fanout: Fanout,
    /// By connection index; `None`: free.
    connections: Vec<Option<Connection>>,
    untold: BTreeMap<ChannelKey, Option<FollowId>>,
    mail: VecDeque<Mail>,
}

impl Worker {
    /// A worker without connections.
    pub fn new(number: u8) -> Self {
        Self {
            id: WorkerId(number),
            hub: Hub::default(),
            fanout: Fanout::default(),
            connections: Vec::new(),
            untold: BTreeMap::new(),
            mail: VecDeque::new(),
        }
    }

    /// The mesh has something for it.
    pub fn mail(&mut self, mail: Mail) {
        self.mail.push_back(mail);
    }

    /// How much waits for it.
    pub fn waiting(&self) -> usize {
        self.mail.len()
    }

    /// A client has come.
    pub fn accept(&mut self, connection: Connection) {
        match self.connections.iter().position(Option::is_none) {
            Some(free) => self.connections[free] = Some(connection),
            None => self.connections.push(Some(connection)),
        }
    }

    /// A client has gone.
    pub fn remove(&mut self, connection: Connection) {
        if let Some(index) = self.index(connection) {
            self.connections[index.0 as usize] = None;
            for unfollowed in self.hub.remove(index) {
                self.unfollow(Some(unfollowed));
            }
        }
    }

    /// A client wants a channel.
    pub fn subscribe(&mut self, connection: Connection, key: ChannelKey, trace: &mut Trace) {
        let Some(index) = self.index(connection) else {
            return;
        };
        match self.hub.subscribe(index, &key) {
            Subscribed::First(follow) => {
                self.untold.insert(key, Some(follow));
            }
            Subscribed::Live(position) => trace.add(Fact::Attached {
                connection,
                channel: channel_of(&key),
                position,
            }),
            Subscribed::Pending | Subscribed::Already(_) => {}
        }
    }

    /// A client wants a channel no more.
    pub fn unsubscribe(&mut self, connection: Connection, key: &ChannelKey) {
        if let Some(index) = self.index(connection) {
            let unfollowed = self.hub.unsubscribe(index, key);
            self.unfollow(unfollowed);
        }
    }

    /// Takes its mail, and does some of its work. Whether some is left.
    pub fn run(&mut self, slices: usize, trace: &mut Trace) -> bool {
        for _ in 0..ROUND {
            if self.fanout.is_full() {
                break;
            }
            match self.mail.pop_front() {
                Some(Mail::Attached {
                    key,
                    follow,
                    position,
                }) => self.attached(&key, follow, position, trace),
                Some(Mail::Broadcast(broadcast)) => {
                    if let Some(channel) = self.hub.live(&broadcast.key) {
                        let audience = self.hub.audience(channel);
                        self.fanout.push(channel, broadcast, audience);
                    }
                }
                None => break,
            }
        }
        for _ in 0..slices {
            self.fan_out(trace);
        }
        !self.mail.is_empty() || !self.fanout.is_idle()
    }

    /// What the mesh is to be told.
    pub fn tell(&mut self) -> Option<Told> {
        let (key, follow) = self.untold.pop_first()?;
        Some(match follow {
            Some(follow) => Told::Follow(key, follow),
            None => Told::Unfollow(key),
        })
    }

    /// Its connections.
    pub fn connections(&self) -> impl Iterator<Item = Connection> {
        self.connections.iter().flatten().copied()
    }

    fn index(&self, connection: Connection) -> Option<ConnectionIndex> {
        let mut all = self.connections.iter();
        let index = all.position(|known| *known == Some(connection))?;
        Some(ConnectionIndex(index as u32))
    }

    fn attached(
        &mut self,
        key: &ChannelKey,
        follow: FollowId,
        position: Position,
        trace: &mut Trace,
    ) {
        let Some(channel) = self.hub.attached(key, follow, position) else {
            return;
        };
        let end = self.hub.begin_sweep(channel);
        for slot in 0..end {
            if let Some(connection) = self.subscriber(channel, slot) {
                trace.add(Fact::Attached {
                    connection,
                    channel: channel_of(key),
                    position,
                });
            }
        }
        let unfollowed = self.hub.end_sweep(channel);
        self.unfollow(unfollowed);
    }

    fn fan_out(&mut self, trace: &mut Trace) {
        let Some(slice) = self.fanout.next(&mut self.hub) else {
            return;
        };
        for slot in slice.slots.clone() {
            let Some(connection) = self.subscriber(slice.channel, slot) else {
                continue;
            };
            for broadcast in &*slice.broadcasts {
                let channel = channel_of(&broadcast.key);
                trace.add(match &broadcast.content {
                    Content::Publication(publication) => Fact::Delivered {
                        connection,
                        channel,
                        position: broadcast.position(),
                        order: order_of(publication),
                    },
                    Content::Gap(gap) => Fact::Gap {
                        connection,
                        channel,
                        gap: *gap,
                    },
                });
            }
        }
        let unfollowed = self.fanout.done(&slice, &mut self.hub);
        self.unfollow(unfollowed);
    }

    fn subscriber(
        &self,
        channel: gateway::core::hub::ChannelIndex,
        slot: usize,
    ) -> Option<Connection> {
        let index = self.hub.subscriber(channel, slot)?;
        *self.connections.get(index.0 as usize)?
    }

    fn unfollow(&mut self, unfollowed: Option<Unfollowed>) {
        if let Some(Unfollowed { channel, key }) = unfollowed {
            self.fanout.forget(channel);
            self.untold.insert(key, None);
        }
    }
}
