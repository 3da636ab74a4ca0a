//! Which connection gets which channel, and what the mesh is told of it.

use proto::channel::{ChannelKey, ChannelName};
use proto::position::Position;

use super::socket::Wire;
use super::state::{State, index};
use crate::core::attachment::FollowId;
use crate::core::hub::{Subscribed, Unfollowed};
use crate::mesh;
use crate::protocol::{Frame, sse};

impl State {
    pub(super) fn key_of(&self, key: usize, channel: ChannelName) -> Option<ChannelKey> {
        let client = self.sockets.get(key)?.client.as_ref()?;
        Some(ChannelKey {
            app: client.connection.app().id.clone(),
            channel,
        })
    }

    pub(super) fn subscribe(&mut self, key: usize, channel: ChannelKey) {
        match self.hub.subscribe(index(key), &channel) {
            Subscribed::First(follow) => {
                self.metrics.subscribes_ok.inc();
                self.untold.insert(channel, Some(follow));
            }
            Subscribed::Pending => self.metrics.subscribes_ok.inc(),
            Subscribed::Live(position) => {
                self.metrics.subscribes_ok.inc();
                self.acknowledge(key, &channel.channel, position);
            }
            // A repeated subscribe repeats the acknowledgement, once there is one.
            Subscribed::Already(Some(position)) => {
                self.acknowledge(key, &channel.channel, position)
            }
            Subscribed::Already(None) => {}
        }
    }

    pub(super) fn attached(&mut self, key: &ChannelKey, follow: FollowId, position: Position) {
        let Some(channel) = self.hub.attached(key, follow, position) else {
            return;
        };
        let end = self.hub.begin_sweep(channel);
        for slot in 0..end {
            if let Some(connection) = self.hub.subscriber(channel, slot) {
                self.acknowledge(connection.0 as usize, &key.channel, position);
            }
        }
        let unfollowed = self.hub.end_sweep(channel);
        self.unfollow(unfollowed);
    }

    /// Tells a client that a channel's publications come from now on.
    pub(super) fn acknowledge(&mut self, key: usize, channel: &ChannelName, position: Position) {
        let Some(socket) = self.sockets.get_mut(key) else {
            return;
        };
        match &mut socket.wire {
            Wire::WebSocket(_) => self.send(
                key,
                &Frame::Subscribed {
                    channel: channel.clone(),
                },
            ),
            Wire::EventStream(stream) => {
                stream.set(channel, position);
                // An `id` without data: whoever loses the connection before the
                // first publication knows where it stood.
                if stream.cursor.iter().all(Option::is_some) {
                    let block = sse::tail(&stream.cursor).into();
                    socket.begin();
                    self.put(key, block);
                }
            }
        }
    }

    pub(super) fn unfollow(&mut self, unfollowed: Option<Unfollowed>) {
        if let Some(Unfollowed { channel, key }) = unfollowed {
            self.fanout.forget(channel);
            self.untold.insert(key, None);
        }
    }

    /// Tells the mesh what it has not been told. `false`: it had no room.
    pub(super) fn tell_mesh(&mut self) -> bool {
        let worker = self.id;
        while let Some((key, follow)) = self.untold.pop_first() {
            let mail = match follow {
                Some(follow) => mesh::Mail::Follow {
                    worker,
                    follow,
                    key: key.clone(),
                },
                None => mesh::Mail::Unfollow {
                    worker,
                    key: key.clone(),
                },
            };
            if !self.mesh.try_tell(mail) {
                self.untold.insert(key, follow);
                return false;
            }
        }
        true
    }
}
