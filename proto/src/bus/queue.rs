//! The queue of one subscription: bounded in messages and in bytes. When it is
//! full the newest message is dropped and counted, as NATS does it: whoever
//! reads too slowly loses, and finds out by sequence numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

/// Most messages that wait in one subscription.
const MESSAGES_MAX: usize = 65_536;
/// Most bytes that wait in one subscription.
const BYTES_MAX: usize = 64 * 1_024 * 1_024;

/// The receiving end.
#[derive(Debug)]
pub struct Subscription {
    receiver: mpsc::Receiver<Bytes>,
    queued_bytes: Arc<AtomicUsize>,
}

/// The sending end.
#[derive(Debug)]
pub(super) struct Feed {
    sender: mpsc::Sender<Bytes>,
    queued_bytes: Arc<AtomicUsize>,
}

/// Whether a message got into the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fed {
    Queued,
    Dropped,
    /// The subscription is gone.
    Gone,
}

pub(super) fn queue() -> (Feed, Subscription) {
    let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
    let queued_bytes = Arc::new(AtomicUsize::new(0));
    let feed = Feed {
        sender,
        queued_bytes: Arc::clone(&queued_bytes),
    };
    (
        feed,
        Subscription {
            receiver,
            queued_bytes,
        },
    )
}

impl Feed {
    pub(super) fn is_gone(&self) -> bool {
        self.sender.is_closed()
    }

    /// Waits until the subscription is gone.
    pub(super) async fn gone(&self) {
        self.sender.closed().await;
    }

    pub(super) fn feed(&self, payload: Bytes, dropped: &AtomicU64) -> Fed {
        let bytes = payload.len();
        if self.queued_bytes.load(Ordering::Relaxed) + bytes > BYTES_MAX {
            dropped.fetch_add(1, Ordering::Relaxed);
            return Fed::Dropped;
        }
        // Added before sending, so that the reader never subtracts first.
        self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        match self.sender.try_send(payload) {
            Ok(()) => Fed::Queued,
            Err(error) => {
                self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
                if matches!(error, mpsc::error::TrySendError::Closed(_)) {
                    return Fed::Gone;
                }
                dropped.fetch_add(1, Ordering::Relaxed);
                Fed::Dropped
            }
        }
    }
}

impl Subscription {
    /// The next message; `None` when the bus is closed. Safe to cancel.
    pub async fn next(&mut self) -> Option<Bytes> {
        let payload = self.receiver.recv().await?;
        self.queued_bytes
            .fetch_sub(payload.len(), Ordering::Relaxed);
        Some(payload)
    }

    /// A message that is already here.
    pub fn try_next(&mut self) -> Option<Bytes> {
        let payload = self.receiver.try_recv().ok()?;
        self.queued_bytes
            .fetch_sub(payload.len(), Ordering::Relaxed);
        Some(payload)
    }
}
