//! How many subscribers channels have, in apps that want to know.

use proto::channel::{ChannelKey, ChannelKind, ChannelName};

use super::state::{State, index};
use crate::broadcast::{Broadcast, Content};
use crate::mesh;
use crate::protocol::Frame;

impl State {
    /// A client has come into a channel, or goes from it.
    pub(super) fn note_subscriber(&mut self, key: usize, channel: &ChannelKey) {
        if self.is_counted(key) && channel.channel.kind() != ChannelKind::User {
            self.recount.insert(channel.clone());
        }
    }

    /// A client goes from all its channels.
    pub(super) fn note_leaver(&mut self, key: usize) {
        if self.is_counted(key) {
            let of = self.hub.channels_of(index(key));
            let of = of.map(|(channel, _)| channel);
            let of = of.filter(|it| it.channel.kind() != ChannelKind::User);
            self.recount.extend(of.cloned());
        }
    }

    /// Tells the mesh how many subscribers are here; later, if it has no room now.
    pub(super) fn tell_counts(&mut self) {
        if self.recount.is_empty() {
            return;
        }
        let hub = &self.hub;
        let count = |key: &ChannelKey| Some((key.clone(), hub.subscribers(hub.index(key)?)));
        let counts = self.recount.iter().filter_map(count).collect();
        if self.mesh.try_tell(mesh::Mail::Counts(self.id, counts)) {
            self.recount.clear();
        }
    }

    /// How many subscribers there are at all gateways, for those who come from now on.
    pub(super) fn take_count(&mut self, broadcast: &Broadcast) {
        // One that comes late is not to stay for ever.
        if let Content::Count(count) = broadcast.content
            && self.hub.index(&broadcast.key).is_some()
        {
            self.counts.insert(broadcast.key.clone(), count);
        }
    }

    /// Tells a client that has just been acknowledged how many there are, as far as that
    /// is known: it may be that it changes nothing.
    pub(super) fn tell_count(&mut self, key: usize, channel: &ChannelName) {
        if !self.is_counted(key) || self.counts.is_empty() {
            return;
        }
        let count = self.key_of(key, channel.clone());
        let count = count.and_then(|channel| self.counts.get(&channel).copied());
        if let Some(count) = count {
            let channel = channel.clone();
            self.send(key, &Frame::Count { channel, count });
        }
    }

    fn is_counted(&self, key: usize) -> bool {
        let client = self.sockets.get(key).and_then(|it| it.client.as_ref());
        client.is_some_and(|client| client.connection.app().subscription_count)
    }
}
