//! Clients that are told who is online.

use std::sync::Arc;

use proto::channel::ChannelName;

use super::channels::Untold;
use super::state::{State, index};
use crate::broadcast::Broadcast;
use crate::core::attachment::Place;
use crate::core::hub::{Subscribed, Wish};
use crate::core::watchlist::Watching;
use crate::mesh;
use crate::protocol::Frame;

impl State {
    /// A client has signed in that watches these users.
    pub(super) fn watch(&mut self, key: usize, own: &ChannelName, users: &[Arc<str>]) {
        let Some(client) = self.sockets.get_mut(key).and_then(|it| it.client.as_mut()) else {
            return;
        };
        let connection = client.connection.id();
        client.watching = Some(Box::new(Watching::new(users.iter().cloned())));
        let place = Place {
            worker: self.id,
            index: index(key),
        };
        for user in users {
            let Ok(channel) = ChannelName::of_user(user) else {
                continue;
            };
            if channel == *own {
                // It is, for as long as it can be told.
                self.tell_watcher(key, user, true);
                continue;
            }
            let Some(of_user) = self.key_of(key, channel) else {
                return;
            };
            let wish = Wish {
                enters: true,
                watches: true,
                ..Wish::default()
            };
            match self.hub.subscribe(index(key), &of_user, wish) {
                Subscribed::First(follow) => {
                    self.untold.insert(of_user.clone(), Untold::Follow(follow));
                }
                Subscribed::Already(_) => continue,
                Subscribed::Entering
                | Subscribed::Pending
                | Subscribed::Live(_)
                | Subscribed::Resuming => {}
            }
            self.statements.push_back(mesh::Mail::Watch {
                place,
                key: of_user,
                connection,
            });
        }
        self.set_pending(key);
    }

    /// Whether a user is online whom a client watches: from now on it is told what changes.
    pub(super) fn tell_watcher(&mut self, key: usize, user: &str, is_online: bool) {
        let client = self.sockets.get_mut(key).and_then(|it| it.client.as_mut());
        let watching = client.and_then(|it| it.watching.as_mut());
        if let Some(news) = watching.and_then(|it| it.set(user, is_online)) {
            self.send(key, &Frame::Watched(news));
        }
    }

    /// A user whom a client watches has come or gone.
    pub(super) fn deliver_news(&mut self, key: usize, broadcasts: &[Arc<Broadcast>]) {
        for broadcast in broadcasts {
            let client = self.sockets.get(key).and_then(|it| it.client.as_ref());
            let (Some(client), Some(is_online)) = (client, broadcast.is_online()) else {
                continue;
            };
            if client.watching.as_ref().is_some_and(|it| it.is_waiting()) {
                let user = broadcast.key.channel.user().unwrap_or_default();
                self.tell_watcher(key, user, is_online);
            } else {
                self.put(key, broadcast.websocket().clone());
            }
        }
    }
}
