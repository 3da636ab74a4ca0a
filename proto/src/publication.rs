//! One message in a channel.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::ConnectionId;
use crate::position::Offset;
use crate::time::UnixTime;

/// Longest event name, in bytes.
pub const EVENT_BYTES_MAX: usize = 200;

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
}

impl Publication {
    /// What it counts against byte bounds.
    pub fn bytes(&self) -> usize {
        /// The struct, its two shared texts' headers and its place in a ring.
        const OVERHEAD: usize = 128;
        self.event.len() + self.data.len() + OVERHEAD
    }
}
