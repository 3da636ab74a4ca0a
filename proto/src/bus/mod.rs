//! The bus: how processes of a cluster reach each other.
//!
//! A bus may lose any message and says so only in its counters; it keeps the
//! order of what one publisher sends to one subject. [`crate::link`] and the
//! offsets of channels make up for the loss. `docs/adr/0001` says why, and
//! `docs/adr/0008` why there is no `request` here. [`NatsBus`] is for clusters,
//! [`MemoryBus`] for a single process.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::codec::PAYLOAD_BYTES_MAX;
use crate::subject::Subject;

#[expect(clippy::disallowed_methods, reason = "shell: paces a flood")]
pub mod conformance;
mod memory;
#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "shell: owns the connection to NATS"
)]
mod nats;
mod queue;

pub use memory::MemoryBus;
pub use nats::{ConnectError, NatsBus, NatsOptions};
pub use queue::Subscription;

/// A bus that a process was given.
pub type BusHandle = Arc<dyn Bus>;

/// What can be asked of a bus.
pub trait Bus: Send + Sync + std::fmt::Debug + 'static {
    /// Hands a message over. Never waits: a delivery loop calls this.
    ///
    /// # Errors
    /// [`Error::TooLarge`] and [`Error::Closed`]; the message was not sent.
    /// `Ok` promises nothing about its arrival.
    fn publish(&self, subject: &Subject, payload: Bytes) -> Result<(), Error>;

    /// Receives what is published to a subject, from before anything that this
    /// process publishes after this has returned: who asks after subscribing
    /// gets the answer. Other processes may publish a little before it counts.
    fn subscribe(&self, subject: Subject) -> BoxFuture<'_, Result<Subscription, Error>>;

    /// Which bus it is, as metrics name it: `memory`, `nats`.
    fn name(&self) -> &'static str;

    /// What has happened so far, for metrics.
    fn stats(&self) -> Stats;
}

/// Why a bus did not take a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The payload is over [`PAYLOAD_BYTES_MAX`].
    #[error("a payload of {0} bytes is over the bus's limit of {PAYLOAD_BYTES_MAX}")]
    TooLarge(usize),
    /// The bus has been shut down.
    #[error("the bus is closed")]
    Closed,
}

/// Counters of a bus.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Present subscriptions.
    pub subscriptions: u64,
    /// Messages dropped because a subscriber was too slow; under a flood over
    /// NATS, at least so many.
    pub dropped: u64,
    /// Messages that did not leave: the bus was away, or too much waited.
    pub unsent: u64,
    /// Whether the bus can be reached.
    pub connected: bool,
    /// How often it was reached again after it had been away.
    pub reconnects: u64,
}
