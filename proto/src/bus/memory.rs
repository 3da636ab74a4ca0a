//! The bus inside one process, for `dunlin dev` and tests. It loses what any
//! bus loses: messages to nobody, and what a slow subscriber has no room for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::queue::{self, Fed, Feed, Subscription};
use super::{Bus, Error, Stats};
use crate::codec::PAYLOAD_BYTES_MAX;
use crate::subject::Subject;

/// A bus in memory. Clones are the same bus.
#[derive(Debug, Clone, Default)]
pub struct MemoryBus {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    feeds: RwLock<HashMap<Subject, Vec<Feed>>>,
    dropped: AtomicU64,
}

impl Bus for MemoryBus {
    fn publish(&self, subject: &Subject, payload: Bytes) -> Result<(), Error> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Error::TooLarge(payload.len()));
        }
        let mut gone = false;
        {
            let feeds = self
                .inner
                .feeds
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            for feed in feeds.get(subject).into_iter().flatten() {
                gone |= feed.feed(payload.clone(), &self.inner.dropped) == Fed::Gone;
            }
        }
        if gone {
            self.prune();
        }
        Ok(())
    }

    fn subscribe(&self, subject: Subject) -> BoxFuture<'_, Result<Subscription, Error>> {
        let (feed, subscription) = queue::queue();
        let mut feeds = self
            .inner
            .feeds
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        feeds.entry(subject).or_default().push(feed);
        drop(feeds);
        Box::pin(std::future::ready(Ok(subscription)))
    }

    fn name(&self) -> &'static str {
        "memory"
    }

    fn stats(&self) -> Stats {
        self.prune();
        let feeds = self
            .inner
            .feeds
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        Stats {
            subscriptions: feeds.values().map(|feeds| feeds.len() as u64).sum(),
            dropped: self.inner.dropped.load(Ordering::Relaxed),
            unsent: 0,
            connected: true,
            reconnects: 0,
        }
    }
}

impl MemoryBus {
    /// Forgets subscriptions whose reader is gone.
    fn prune(&self) {
        let mut feeds = self
            .inner
            .feeds
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        feeds.retain(|_, feeds| {
            feeds.retain(|feed| !feed.is_gone());
            !feeds.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::conformance;

    #[tokio::test]
    async fn conforms() {
        conformance::check(|| async { Arc::new(MemoryBus::default()) as super::super::BusHandle })
            .await;
    }
}
