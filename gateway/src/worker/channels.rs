//! Which connection gets which channel, and what the mesh is told of it.

use std::sync::Arc;

use proto::channel::{ChannelKey, ChannelName};
use proto::position::Position;

use super::socket::Wire;
use super::state::{State, index};
use crate::broadcast::Broadcast;
use crate::core::attachment::FollowId;
use crate::core::hub::{NOWHERE, Recipient, Subscribed, Unfollowed, Wish};
use crate::mesh;
use crate::protocol::{Frame, Recover, sse};

/// What the mesh has not been told of a channel yet. The latest counts.
#[derive(Debug, Clone, Copy)]
pub(super) enum Untold {
    /// It is followed.
    Follow(FollowId),
    /// It is followed no longer.
    Unfollow,
    /// It is followed as before, and clients have come back.
    Resume,
}

/// What a client is told with the acknowledgement of a subscription.
#[derive(Debug, Clone, Copy)]
pub(super) enum Acknowledged {
    /// Nothing more.
    Plain,
    /// Where the channel stands.
    Positioned,
    /// That, and whether what it missed comes.
    Resumed { recovered: bool },
}

impl Acknowledged {
    fn new(positions: bool) -> Self {
        if positions {
            Self::Positioned
        } else {
            Self::Plain
        }
    }
}

impl State {
    pub(super) fn key_of(&self, key: usize, channel: ChannelName) -> Option<ChannelKey> {
        let client = self.sockets.get(key)?.client.as_ref()?;
        Some(ChannelKey {
            app: client.connection.app().id.clone(),
            channel,
        })
    }

    pub(super) fn subscribe(&mut self, key: usize, channel: ChannelKey, recover: Recover) {
        let wish = Wish {
            cursor: match recover {
                Recover::From(cursor) => Some(cursor),
                Recover::No | Recover::OptIn => None,
            },
            positions: recover != Recover::No,
            ..Wish::default()
        };
        self.note_subscriber(key, &channel);
        match self.hub.subscribe(index(key), &channel, wish) {
            Subscribed::First(follow) => {
                self.metrics.subscribes_ok.inc();
                self.untold.insert(channel, Untold::Follow(follow));
                self.set_pending(key);
            }
            Subscribed::Pending => {
                self.metrics.subscribes_ok.inc();
                self.set_pending(key);
            }
            Subscribed::Resuming => {
                self.metrics.subscribes_ok.inc();
                self.untold.entry(channel).or_insert(Untold::Resume);
                self.set_pending(key);
            }
            Subscribed::Live(position) => {
                self.metrics.subscribes_ok.inc();
                self.acknowledge(
                    key,
                    &channel.channel,
                    position,
                    Acknowledged::new(wish.positions),
                );
                let kept = self.hub.kept(&channel, self.now);
                self.tell_kept(key, &channel, kept);
            }
            // A repeated subscribe repeats the acknowledgement, once there is one.
            Subscribed::Already(Some(position)) => {
                self.acknowledge(
                    key,
                    &channel.channel,
                    position,
                    Acknowledged::new(wish.positions),
                );
            }
            // Who has signed in has its user's channel, though it may stand apart.
            Subscribed::Already(None) if self.is_user_of(key, &channel.channel) => {
                let position = NOWHERE;
                self.acknowledge(key, &channel.channel, position, Acknowledged::Plain);
            }
            Subscribed::Already(None) | Subscribed::Entering => {}
        }
    }

    fn is_user_of(&self, key: usize, channel: &ChannelName) -> bool {
        let client = self.sockets.get(key).and_then(|it| it.client.as_ref());
        client.is_some_and(|client| client.connection.is_user_of(channel))
    }

    pub(super) fn attached(
        &mut self,
        key: &ChannelKey,
        follow: FollowId,
        position: Position,
        kept: Option<Arc<Broadcast>>,
    ) {
        let Some(channel) = self.hub.attached(key, follow, position) else {
            return;
        };
        self.hub.set_kept(channel, kept);
        let kept = self.hub.kept(key, self.now);
        let end = self.hub.begin_sweep(channel);
        for slot in 0..end {
            if let Some(Recipient {
                connection,
                positions,
                ..
            }) = self.hub.subscriber(channel, slot)
            {
                let kind = Acknowledged::new(positions);
                self.acknowledge(connection.0 as usize, &key.channel, position, kind);
                self.tell_kept(connection.0 as usize, key, kept.clone());
            }
        }
        let unfollowed = self.hub.end_sweep(channel);
        self.unfollow(unfollowed);
    }

    /// Tells a client that a channel's publications come from now on.
    pub(super) fn acknowledge(
        &mut self,
        key: usize,
        channel: &ChannelName,
        position: Position,
        acknowledged: Acknowledged,
    ) {
        let Some(socket) = self.sockets.get_mut(key) else {
            return;
        };
        if socket.pending_since.is_some() {
            socket.pending_since = Some(self.now);
        }
        match &mut socket.wire {
            Wire::WebSocket(_) => {
                let (position, recovered) = match acknowledged {
                    Acknowledged::Plain => (None, None),
                    Acknowledged::Positioned => (Some(position), None),
                    Acknowledged::Resumed { recovered } => (Some(position), Some(recovered)),
                };
                let (name, channel) = (channel.clone(), channel.clone());
                self.send(
                    key,
                    &Frame::Subscribed {
                        channel,
                        position,
                        recovered,
                    },
                );
                self.tell_count(key, &name);
            }
            Wire::EventStream(stream) => {
                stream.set(channel, position);
                stream.unattached = stream.unattached.saturating_sub(1);
                // An `id` without data: whoever loses the connection before the
                // first publication knows where it stood.
                if stream.unattached == 0 {
                    let block = sse::tail(&stream.cursor).into();
                    socket.begin();
                    self.put(key, block);
                }
            }
        }
    }

    /// Tells a client that has just been acknowledged what a cache channel keeps.
    pub(super) fn tell_kept(
        &mut self,
        key: usize,
        channel: &ChannelKey,
        kept: Option<Arc<Broadcast>>,
    ) {
        if !channel.channel.is_cache() {
            return;
        }
        let Some(socket) = self.sockets.get(key) else {
            return;
        };
        match (&socket.wire, kept) {
            (Wire::WebSocket(_), Some(kept)) => self.put(key, kept.websocket().clone()),
            (Wire::WebSocket(_), None) => {
                let channel = channel.channel.clone();
                self.send(key, &Frame::CacheMiss { channel });
            }
            (Wire::EventStream(stream), Some(kept)) => {
                let body = if stream.envelope {
                    kept.envelope()
                } else {
                    kept.body()
                };
                // It is before where the stream stands.
                let tail = sse::tail(&stream.cursor).into();
                let body = body.clone();
                self.put(key, body);
                self.put(key, tail);
            }
            (Wire::EventStream(_), None) => {}
        }
    }

    pub(super) fn unfollow(&mut self, unfollowed: Option<Unfollowed>) {
        if let Some(Unfollowed { channel, key }) = unfollowed {
            self.fanout.forget(channel);
            self.counts.remove(&key);
            self.untold.insert(key, Untold::Unfollow);
        }
    }

    /// Tells the mesh what it has not been told. `false`: it had no room.
    pub(super) fn tell_mesh(&mut self) -> bool {
        let worker = self.id;
        while let Some((key, untold)) = self.untold.pop_first() {
            let cursor = self.hub.index(&key).and_then(|index| self.hub.ask(index));
            let mail = match (untold, cursor) {
                (Untold::Follow(follow), cursor) => mesh::Mail::Follow {
                    worker,
                    follow,
                    key: key.clone(),
                    cursor,
                },
                (Untold::Unfollow, _) => mesh::Mail::Unfollow {
                    worker,
                    key: key.clone(),
                },
                (Untold::Resume, Some(cursor)) => mesh::Mail::Resume {
                    worker,
                    key: key.clone(),
                    cursor,
                },
                (Untold::Resume, None) => continue,
            };
            if !self.mesh.try_tell(mail) {
                if let Some(index) = self.hub.index(&key) {
                    self.hub.unask(index);
                }
                self.untold.insert(key, untold);
                return false;
            }
        }
        // Behind the channels: members are in channels that are followed.
        while let Some(statement) = self.statements.pop_front() {
            if let Err(statement) = self.mesh.tell(statement) {
                self.statements.push_front(*statement);
                return false;
            }
        }
        true
    }
}
