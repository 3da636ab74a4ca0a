//! A worker of a gateway: the real hub and fan-out, without sockets. What would
//! be written to a client is written into the trace.
//!
//! Mirrors `gateway/src/worker/{channels,delivery,returning}.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use gateway::broadcast::{Broadcast, Content};
use gateway::core::attachment::{FollowId, Resumption};
use gateway::core::fanout::Fanout;
use gateway::core::hub::{ConnectionIndex, Given, Hub, Return, Subscribed, Unfollowed, Wish};
use gateway::core::workers::WorkerId;
use proto::channel::{ChannelKey, ChannelKind};
use proto::id::ConnectionId;
use proto::position::Position;
use proto::presence::{self, Change, Member, Users};

use super::trace::{self, Connection, Fact, Trace, User};
use super::workload::{channel_of, order_of};

/// What a gateway may have waiting for a worker, as in the shell.
pub const MAILBOX: usize = 4_096;
/// How long a client that is gone may take to come back, as in the shell.
const GRACE: Duration = Duration::from_secs(1);
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
    /// A client is a member of a channel.
    Welcome {
        /// The channel.
        key: ChannelKey,
        /// Where it is.
        index: ConnectionIndex,
        /// Which one.
        connection: ConnectionId,
        /// Where the channel stands.
        position: Position,
        /// Who is there.
        users: Arc<Users>,
    },
    /// Clients that have come back are told what they missed.
    Resumed {
        /// To which channel.
        key: ChannelKey,
        /// From where they were asked for.
        cursor: Position,
        /// What they missed.
        resumption: Resumption,
    },
}

/// What a worker tells the mesh.
#[derive(Debug)]
pub enum Told {
    /// It has its first subscriber of a channel.
    Follow(ChannelKey, FollowId, Option<Position>),
    /// It has lost its last one.
    Unfollow(ChannelKey),
    /// Some have come back.
    Resume(ChannelKey, Position),
    /// A client is a member of a channel.
    Enter(ChannelKey, ConnectionIndex, Member),
    /// It is so no longer, perhaps after a while.
    Exit(ChannelKey, ConnectionId, Option<Duration>),
}

/// What the mesh has not been told of a channel yet.
#[derive(Debug, Clone, Copy)]
enum Untold {
    Follow(FollowId),
    Unfollow,
    Resume,
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
    untold: BTreeMap<ChannelKey, Untold>,
    statements: VecDeque<Told>,
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
            statements: VecDeque::new(),
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
            let of = self.hub.channels_of(index);
            let rooms: Vec<ChannelKey> = of
                .map(|(key, _)| key)
                .filter(|key| is_room(key))
                .cloned()
                .collect();
            for key in rooms {
                let gone = Told::Exit(key, id_of(connection), Some(GRACE));
                self.statements.push_back(gone);
            }
            self.connections[index.0 as usize] = None;
            for unfollowed in self.hub.remove(index) {
                self.unfollow(Some(unfollowed));
            }
        }
    }

    /// A client wants a channel.
    pub fn subscribe(
        &mut self,
        connection: Connection,
        key: ChannelKey,
        cursor: Option<Position>,
        trace: &mut Trace,
    ) {
        let Some(index) = self.index(connection) else {
            return;
        };
        let wish = Wish {
            cursor,
            positions: true,
            ..Wish::default()
        };
        match self.hub.subscribe(index, &key, wish) {
            Subscribed::First(follow) => {
                self.untold.insert(key, Untold::Follow(follow));
            }
            Subscribed::Resuming => {
                self.untold.entry(key).or_insert(Untold::Resume);
            }
            Subscribed::Live(position) => trace.add(Fact::Attached {
                connection,
                channel: channel_of(&key),
                position,
            }),
            Subscribed::Pending | Subscribed::Entering | Subscribed::Already(_) => {}
        }
    }

    /// A client wants to be a member of a channel.
    pub fn enter(&mut self, connection: Connection, key: ChannelKey, user: User) {
        let Some(index) = self.index(connection) else {
            return;
        };
        let wish = Wish {
            enters: true,
            ..Wish::default()
        };
        match self.hub.subscribe(index, &key, wish) {
            Subscribed::First(follow) => {
                self.untold.insert(key.clone(), Untold::Follow(follow));
            }
            Subscribed::Already(_) => return,
            _ => {}
        }
        let user = presence::User {
            id: user.to_string().into(),
            info: None,
        };
        let connection = id_of(connection);
        let member = Member { connection, user };
        self.statements.push_back(Told::Enter(key, index, member));
    }

    fn welcome(
        &mut self,
        key: &ChannelKey,
        (index, id): (ConnectionIndex, ConnectionId),
        position: Position,
        users: &Users,
        trace: &mut Trace,
    ) {
        let Some(Some(connection)) = self.connections.get(index.0 as usize).copied() else {
            return;
        };
        if id_of(connection) != id {
            return;
        }
        let fanout = &self.fanout;
        let sweeps = |channel| fanout.is_busy(channel);
        let Some(welcomed) = self.hub.welcome(index, key, position, sweeps) else {
            return;
        };
        if !welcomed.is_live && !self.fanout.is_busy(welcomed.channel) {
            self.untold.entry(key.clone()).or_insert(Untold::Resume);
        }
        let users = users.iter().map(|user| 1 << user_of(&user.id));
        trace.add(Fact::Entered {
            connection,
            channel: channel_of(key),
            users: users.fold(0, |all, user: trace::Users| all | user),
        });
    }

    /// A client wants a channel no more.
    pub fn unsubscribe(&mut self, connection: Connection, key: &ChannelKey) {
        if let Some(index) = self.index(connection) {
            if is_room(key) && self.hub.has(index, key) {
                let gone = Told::Exit(key.clone(), id_of(connection), None);
                self.statements.push_back(gone);
            }
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
                Some(Mail::Resumed {
                    key,
                    cursor,
                    resumption,
                }) => self.resumed(&key, cursor, &resumption, trace),
                Some(Mail::Welcome {
                    key,
                    index,
                    connection,
                    position,
                    users,
                }) => self.welcome(&key, (index, connection), position, &users, trace),
                Some(Mail::Broadcast(broadcast)) => {
                    self.tell_waiting(&broadcast, trace);
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
        while let Some((key, untold)) = self.untold.pop_first() {
            let cursor = self.hub.index(&key).and_then(|index| self.hub.ask(index));
            return Some(match (untold, cursor) {
                (Untold::Follow(follow), cursor) => Told::Follow(key, follow, cursor),
                (Untold::Unfollow, _) => Told::Unfollow(key),
                (Untold::Resume, Some(cursor)) => Told::Resume(key, cursor),
                (Untold::Resume, None) => continue,
            });
        }
        self.statements.pop_front()
    }

    fn tell_waiting(&self, broadcast: &Broadcast, trace: &mut Trace) {
        let Content::Members { .. } = &broadcast.content else {
            return;
        };
        let Some(channel) = self.hub.index(&broadcast.key) else {
            return;
        };
        for recipient in self.hub.told_and_waiting(channel) {
            let index = recipient.connection;
            if let Some(Some(connection)) = self.connections.get(index.0 as usize).copied() {
                tell_members(broadcast, connection, trace);
            }
        }
    }

    fn resumed(
        &mut self,
        key: &ChannelKey,
        cursor: Position,
        resumption: &Resumption,
        trace: &mut Trace,
    ) {
        let fanout = &self.fanout;
        let sweeps = |channel| fanout.is_busy(channel);
        let Some(Return { back, given, ask }) = self.hub.resumed(key, cursor, resumption, sweeps)
        else {
            return;
        };
        if ask {
            self.untold.entry(key.clone()).or_insert(Untold::Resume);
        }
        let channel = channel_of(key);
        for one in back {
            let index = one.recipient.connection.0 as usize;
            let Some(Some(connection)) = self.connections.get(index).copied() else {
                continue;
            };
            let attached = |position| Fact::Attached {
                connection,
                channel,
                position,
            };
            match &given {
                Given::Publications(publications) => {
                    if !one.told {
                        trace.add(attached(one.cursor));
                    }
                    let missed = publications.iter();
                    for publication in missed.filter(|p| p.offset > one.cursor.offset) {
                        let epoch = cursor.epoch;
                        let publication = Arc::clone(publication);
                        let broadcast = Broadcast::publication(key.clone(), epoch, publication);
                        deliver(&broadcast, connection, trace);
                    }
                }
                Given::Gap(gap) => {
                    trace.add(Fact::Gap {
                        connection,
                        channel,
                        gap: *gap,
                    });
                    if !one.told {
                        trace.add(attached(gap.latest));
                    }
                }
            }
        }
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
                deliver(broadcast, connection, trace);
            }
        }
        let unfollowed = self.fanout.done(&slice, &mut self.hub);
        if slice.last
            && unfollowed.is_none()
            && self.hub.waits(slice.channel)
            && let Some(key) = self.hub.key(slice.channel).cloned()
        {
            self.untold.entry(key).or_insert(Untold::Resume);
        }
        self.unfollow(unfollowed);
    }

    fn subscriber(
        &self,
        channel: gateway::core::hub::ChannelIndex,
        slot: usize,
    ) -> Option<Connection> {
        let index = self.hub.subscriber(channel, slot)?;
        *self.connections.get(index.connection.0 as usize)?
    }

    fn unfollow(&mut self, unfollowed: Option<Unfollowed>) {
        if let Some(Unfollowed { channel, key }) = unfollowed {
            self.fanout.forget(channel);
            self.untold.insert(key, Untold::Unfollow);
        }
    }
}

/// Whether clients are members of a channel.
fn is_room(key: &ChannelKey) -> bool {
    key.channel.kind() == ChannelKind::Presence
}

/// The name of a connection in the cluster.
fn id_of(connection: Connection) -> ConnectionId {
    ConnectionId {
        gateway: 1,
        number: u64::from(connection),
    }
}

/// Which user this is: its id says so.
fn user_of(id: &str) -> User {
    id.parse().expect("our users are numbers")
}

/// Writes down what a client gets.
fn deliver(broadcast: &Broadcast, connection: Connection, trace: &mut Trace) {
    let channel = channel_of(&broadcast.key);
    match &broadcast.content {
        Content::Publication(_) if broadcast.is_silent() => {}
        Content::Publication(publication) => trace.add(match publication.change() {
            None => Fact::Delivered {
                connection,
                channel,
                position: broadcast.position(),
                order: order_of(publication),
            },
            Some(change @ Change::Came { .. }) => Fact::Came {
                connection,
                channel,
                user: user_of(change.user()),
            },
            Some(change @ Change::Went { .. }) => Fact::Went {
                connection,
                channel,
                user: user_of(change.user()),
            },
        }),
        Content::Gap(gap) if !is_room(&broadcast.key) => trace.add(Fact::Gap {
            connection,
            channel,
            gap: *gap,
        }),
        Content::Gap(_) | Content::Count(_) => {}
        Content::Members { .. } => tell_members(broadcast, connection, trace),
    }
}

fn tell_members(broadcast: &Broadcast, connection: Connection, trace: &mut Trace) {
    let Content::Members { came, went } = &broadcast.content else {
        return;
    };
    let channel = channel_of(&broadcast.key);
    for user in went {
        trace.add(Fact::Went {
            connection,
            channel,
            user: user_of(user),
        });
    }
    for user in came {
        trace.add(Fact::Came {
            connection,
            channel,
            user: user_of(&user.id),
        });
    }
}
