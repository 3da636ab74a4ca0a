//! Clients that are members of channels: what the mesh is told of them, and what they
//! are told.

use std::sync::Arc;
use std::time::Duration;

use proto::channel::{ChannelKey, ChannelKind};
use proto::error::ErrorCode;
use proto::id::ConnectionId;
use proto::message::Missed;
use proto::position::{Gap, GapReason, Position};
use proto::presence::{Member, User, Users};

use super::channels::Untold;
use super::state::{State, index};
use crate::broadcast::{Broadcast, Content};
use crate::core::attachment::Place;
use crate::core::connection::not_entered;
use crate::core::hub::{ConnectionIndex, Recipient, Returned, Subscribed, Welcomed, Wish};
use crate::mesh;
use crate::protocol::{Frame, Recover};

/// Whether clients are members of such a channel: they are in it as somebody.
fn has_members(key: &ChannelKey) -> bool {
    matches!(
        key.channel.kind(),
        ChannelKind::Presence | ChannelKind::User
    )
}

/// How long a client that has gone without a word may take to come back.
const GRACE: Duration = Duration::from_secs(1);

impl State {
    /// A client wants to be a member of a channel.
    pub(super) fn enter(&mut self, key: usize, channel: ChannelKey, recover: Recover, user: User) {
        let client = self.sockets.get(key).and_then(|it| it.client.as_ref());
        let Some(client) = client else {
            return;
        };
        let connection = client.connection.id();
        let users_max = client.connection.app().bounds.users_max;
        let cursor = match recover {
            Recover::From(cursor) => Some(cursor),
            Recover::No | Recover::OptIn => None,
        };
        let wish = Wish {
            cursor,
            positions: recover != Recover::No,
            enters: true,
            watches: false,
        };
        self.note_subscriber(key, &channel);
        match self.hub.subscribe(index(key), &channel, wish) {
            Subscribed::First(follow) => {
                self.untold.insert(channel.clone(), Untold::Follow(follow));
            }
            Subscribed::Already(_) => return,
            Subscribed::Entering
            | Subscribed::Pending
            | Subscribed::Live(_)
            | Subscribed::Resuming => {}
        }
        self.metrics.subscribes_ok.inc();
        self.set_pending(key);
        let place = Place {
            worker: self.id,
            index: index(key),
        };
        self.statements.push_back(mesh::Mail::Enter {
            place,
            key: channel,
            member: Member { connection, user },
            users_max,
            cursor,
        });
    }

    /// A client is a member no longer, unless it is one of another kind of channel.
    pub(super) fn exit(&mut self, key: usize, channel: &ChannelKey, grace: Option<Duration>) {
        if !has_members(channel) {
            return;
        }
        if let Some(connection) = self.connection_id(key) {
            self.statements.push_back(mesh::Mail::Exit {
                key: channel.clone(),
                connection,
                grace,
            });
        }
    }

    /// A client has gone without a word.
    pub(super) fn exit_all(&mut self, key: usize) {
        let of = self.hub.channels_of(index(key));
        let entered = of.filter(|(key, watches)| has_members(key) && !watches);
        let entered: Vec<ChannelKey> = entered.map(|(key, _)| key.clone()).collect();
        for channel in entered {
            self.exit(key, &channel, Some(GRACE));
        }
    }

    /// A client is a member, and is told who else is.
    pub(super) fn welcome_member(
        &mut self,
        key: &ChannelKey,
        (index, connection): (ConnectionIndex, ConnectionId),
        (position, missed): (Position, Option<Missed>),
        users: Arc<Users>,
        kept: Option<Arc<Broadcast>>,
    ) {
        let socket = index.0 as usize;
        if self.connection_id(socket) != Some(connection) {
            return;
        }
        let fanout = &self.fanout;
        let sweeps = |channel| fanout.is_busy(channel);
        let Some(Welcomed {
            channel,
            recipient,
            cursor,
            is_live,
        }) = self.hub.welcome(index, key, position, sweeps)
        else {
            return;
        };
        if !is_live && !self.fanout.is_busy(channel) {
            self.untold.entry(key.clone()).or_insert(Untold::Resume);
        }
        if recipient.watches {
            let user = key.channel.user().unwrap_or_default();
            self.tell_watcher(socket, user, users.contains(user));
            return self.set_pending(socket);
        }
        let client = self.sockets[socket].client.as_mut();
        let signed_in = client.and_then(|it| it.connection.signed_in(&key.channel));
        if let Some((frame, watches)) = signed_in {
            self.send(socket, &frame);
            self.watch(socket, &key.channel, &watches);
            return self.set_pending(socket);
        }
        let missed = missed.map(|missed| self.if_there_is_room(socket, missed, position, &users));
        let recovered = missed
            .as_ref()
            .map(|it| matches!(it, Missed::Publications(_)));
        // What it missed comes behind the list: its cursor goes on from where it stood.
        let stands = if recovered == Some(true) {
            cursor
        } else {
            position
        };
        let frame = Frame::Entered {
            channel: key.channel.clone(),
            position: recipient.positions.then_some(stands),
            recovered,
            users,
        };
        self.send(socket, &frame);
        let one = Returned {
            recipient,
            cursor,
            told: true,
        };
        match missed {
            Some(Missed::Publications(publications)) => {
                self.give(key, cursor, vec![one], publications);
                if recipient.positions && cursor != position {
                    let channel = key.channel.clone();
                    self.send(socket, &Frame::Moved { channel, position });
                }
            }
            Some(Missed::Gap(gap)) => self.tell_gap(key, vec![one], gap),
            None => {}
        }
        self.tell_kept(socket, key, kept);
        self.set_pending(socket);
    }

    /// A member takes at once all that it missed, behind the list, or none of it: what it
    /// was told of the others is of where the channel stands now.
    fn if_there_is_room(
        &self,
        socket: usize,
        missed: Missed,
        position: Position,
        users: &Users,
    ) -> Missed {
        let Missed::Publications(publications) = &missed else {
            return missed;
        };
        let bytes = publications.iter().map(|it| it.bytes());
        // An id is in the list twice.
        let listed = |user: User| 2 * user.id.len() + user.info.map_or(0, |info| info.len());
        let bytes: usize = bytes.chain(users.iter().map(listed)).sum();
        let waits = self.sockets[socket].outbox.bytes();
        // Text in JSON in text: at most twice as long, but for what hardly anybody sends.
        if waits + 2 * bytes <= self.config.outbox.bytes_max / 2 {
            return missed;
        }
        Missed::Gap(Gap {
            reason: GapReason::Expired,
            earliest: position.offset.next(),
            latest: position,
        })
    }

    /// A client is not let in.
    pub(super) fn refuse_member(
        &mut self,
        key: &ChannelKey,
        (index, connection): (ConnectionIndex, ConnectionId),
        code: ErrorCode,
    ) {
        let socket = index.0 as usize;
        if self.connection_id(socket) != Some(connection) || !self.hub.has(index, key) {
            return;
        }
        let unfollowed = self.hub.unsubscribe(index, key);
        self.unfollow(unfollowed);
        if let Some(client) = self.sockets[socket].client.as_mut() {
            client.connection.leave(&key.channel);
        }
        self.metrics.subscribes_refused.inc();
        self.send(socket, &not_entered(&key.channel, code));
    }

    /// Members that wait for what they missed are told at once who has come and gone:
    /// no publication will tell them.
    pub(super) fn tell_waiting_members(&mut self, broadcast: &Arc<Broadcast>) {
        if !matches!(broadcast.content, Content::Members { .. }) {
            return;
        }
        let Some(channel) = self.hub.index(&broadcast.key) else {
            return;
        };
        for Recipient {
            connection,
            watches,
            ..
        } in self.hub.told_and_waiting(channel)
        {
            let socket = connection.0 as usize;
            if watches {
                self.deliver_news(socket, std::slice::from_ref(broadcast));
            } else if !broadcast.is_silent() {
                self.put(socket, broadcast.websocket().clone());
            }
        }
    }

    /// A subscription of this connection may be waiting from now on.
    pub(super) fn set_pending(&mut self, key: usize) {
        if let Some(socket) = self.sockets.get_mut(key) {
            socket.pending_since = Some(self.now);
            self.look_again(key);
        }
    }

    fn connection_id(&self, key: usize) -> Option<ConnectionId> {
        let client = self.sockets.get(key)?.client.as_ref()?;
        Some(client.connection.id())
    }
}
