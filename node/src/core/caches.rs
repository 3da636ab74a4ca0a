//! What cache channels keep for those who come: the last publication of a backend, for
//! half an hour, whatever the history keeps. The owner has it and the standbys add it up
//! from the same records, so no other store is needed.
//!
//! It stands beside the channels, for most are none of these and a row is small.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::channel::{CACHE_AGE, ChannelKey};
use proto::message::Cached;
use proto::publication::Publication;
use proto::time::Timestamp;

/// By channel, what is kept, and since when.
#[derive(Debug, Default)]
pub struct Caches(BTreeMap<ChannelKey, (Timestamp, Arc<Publication>)>);

impl Caches {
    /// Something is published.
    pub fn keep(&mut self, now: Timestamp, key: &ChannelKey, publication: &Arc<Publication>) {
        if key.channel.is_cache() && publication.is_cached() {
            self.0.insert(key.clone(), (now, Arc::clone(publication)));
        }
    }

    /// What another process had.
    pub fn restore(&mut self, now: Timestamp, key: ChannelKey, cached: Cached) {
        let since = Timestamp(now.0.saturating_sub(cached.age_ms));
        self.0.insert(key, (since, cached.publication));
    }

    /// What is kept of a channel.
    pub fn get(&self, now: Timestamp, key: &ChannelKey) -> Option<Cached> {
        let (since, publication) = self.0.get(key)?;
        let age = now.since(*since);
        (age < CACHE_AGE).then(|| Cached {
            age_ms: age.as_millis() as u64,
            publication: Arc::clone(publication),
        })
    }

    /// Whether there is anything, which may be too old.
    pub fn contains(&self, key: &ChannelKey) -> bool {
        self.0.contains_key(key)
    }

    /// When it will be too old.
    pub fn expires_at(&self, key: &ChannelKey) -> Option<Timestamp> {
        let (since, _) = self.0.get(key)?;
        Some(*since + CACHE_AGE)
    }

    /// Lets go of what is too old.
    pub fn expire(&mut self, now: Timestamp, key: &ChannelKey) {
        if self.expires_at(key).is_some_and(|at| at <= now) {
            self.remove(key);
        }
    }

    /// The channel is gone.
    pub fn remove(&mut self, key: &ChannelKey) {
        self.0.remove(key);
    }
}
