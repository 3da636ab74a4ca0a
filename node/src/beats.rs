//! Shell: signs of life to all who vote, from a thread of its own: neither a
//! busy runtime nor a long task makes a node look dead. But when a worker stands
//! still, its shards are not served, and the node should look dead: then it
//! sends none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use proto::id::NodeRef;
use proto::time::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::agreement::Agreement;
use crate::core::detection::NODE_BEAT;
use crate::peers::wire::Beat;
use crate::replicator::Duty;

/// How soon the thread notices that the node ends.
const NOTICE: Duration = Duration::from_millis(10);
/// How often a node says that it ends: what says so may be lost.
const FAREWELLS: usize = 3;
/// How long a worker may stand still before the node does not look alive.
const STANDS_STILL: Duration = Duration::from_millis(300);

/// When a worker turned last. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turned(Arc<AtomicU64>);

impl Turned {
    /// The worker turns.
    pub(crate) fn turn(&self, now: Timestamp) {
        self.0.store(now.0, Ordering::Relaxed);
    }

    fn stands_still(&self, now: Timestamp) -> bool {
        now.since(Timestamp(self.0.load(Ordering::Relaxed))) >= STANDS_STILL
    }
}

/// All that a sign of life needs.
pub(crate) struct Beats {
    pub(crate) me: NodeRef,
    pub(crate) agreement: Agreement,
    pub(crate) workers: Vec<Turned>,
    pub(crate) duty: watch::Receiver<Duty>,
}

impl Beats {
    /// Beats until shutdown, until the node leaves, or until nobody could say so
    /// any more; then says that the node ends, so that nobody waits to see whether
    /// it is silent.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub(crate) fn spawn(
        self,
        shutdown: watch::Receiver<bool>,
        leaves: watch::Receiver<bool>,
    ) -> std::io::Result<JoinHandle<()>> {
        let runtime = Handle::current();
        let beats = std::thread::Builder::new().name("beats".into());
        beats.spawn(move || {
            let _context = runtime.enter();
            let is_told = |by: &watch::Receiver<bool>| *by.borrow() || by.has_changed().is_err();
            let ends = || is_told(&shutdown) || is_told(&leaves);
            let mut next = Instant::now();
            while !ends() {
                if Instant::now() >= next {
                    next = Instant::now() + NODE_BEAT;
                    let now = Timestamp::now();
                    if !self.workers.iter().any(|worker| worker.stands_still(now)) {
                        self.beat(false);
                    }
                }
                std::thread::sleep(NOTICE);
            }
            for _ in 0..FAREWELLS {
                self.beat(true);
                std::thread::sleep(NOTICE);
            }
        })
    }

    fn beat(&self, leaves: bool) {
        let beat = Beat {
            from: self.me.clone(),
            leaves,
            has_lease: Timestamp::now() < self.duty.borrow().leases.node,
            misses: None,
        };
        self.agreement.beat(beat);
    }
}
