//! One message in a channel.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::ConnectionId;
use crate::position::Offset;
use crate::presence::{Change, Mark};
use crate::time::UnixTime;

/// Longest event name, in bytes.
pub const EVENT_BYTES_MAX: usize = 200;

/// The event that ends all connections of a user, in its channel. Nobody can publish
/// it from outside: names that begin with `dunlin:` are the server's own.
pub const TERMINATE: &str = "dunlin:terminate";

/// One message, in its place. Shared as it is between history, links and the
/// publisher's reply; nothing changes it after the owner gave it its offset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    /// Its place within the channel's epoch.
    pub offset: Offset,
    /// The event's name.
    pub event: Arc<str>,
    /// The payload, byte for byte as its publisher gave it.
    pub data: Arc<str>,
    /// The connection that does not get it: the publisher's own.
    pub exclude: Option<ConnectionId>,
    /// When a gateway accepted it, for latency figures.
    pub accepted_at: UnixTime,
    /// What it has to do with presence, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Box<Mark>>,
}

impl Publication {
    /// The change of a roster, if it is no message but that.
    pub fn change(&self) -> Option<&Change> {
        match self.mark.as_deref() {
            Some(Mark::Change(change)) => Some(change),
            Some(Mark::By(_)) | None => None,
        }
    }

    /// The user who has published it, if that is known.
    pub fn by(&self) -> Option<&Arc<str>> {
        match self.mark.as_deref() {
            Some(Mark::By(user)) => Some(user),
            Some(Mark::Change(_)) | None => None,
        }
    }

    /// Whether there is nothing to be told: it only takes a place. Every message has
    /// an event.
    pub fn is_blank(&self) -> bool {
        self.event.is_empty() && self.change().is_none()
    }

    /// Whether it ends the connections that it comes to: see [`TERMINATE`].
    pub fn is_end(&self) -> bool {
        &*self.event == TERMINATE
    }

    /// Whether a cache channel keeps it for those who come: what a backend has
    /// published, and not what clients tell each other.
    pub fn is_cached(&self) -> bool {
        !self.event.is_empty() && !self.event.starts_with("client-")
    }

    /// The same, if it is a change, as one of users.
    #[must_use]
    pub fn of_users(&self) -> Self {
        let mut all = self.clone();
        if let Some(Mark::Change(change)) = all.mark.as_deref_mut() {
            match change {
                Change::Came { is_first, .. } => *is_first = true,
                Change::Went { is_last, .. } => *is_last = true,
            }
        }
        all
    }

    /// The same place, with nothing to be told.
    #[must_use]
    pub fn blank(&self) -> Self {
        Self {
            offset: self.offset,
            event: Arc::default(),
            data: Arc::default(),
            exclude: None,
            accepted_at: self.accepted_at,
            mark: None,
        }
    }

    /// What it counts against byte bounds.
    pub fn bytes(&self) -> usize {
        /// The struct, its two shared texts' headers and its place in a ring.
        const OVERHEAD: usize = 128;
        let mark = self.mark.as_ref().map_or(0, |mark| mark.bytes());
        self.event.len() + self.data.len() + mark + OVERHEAD
    }
}
