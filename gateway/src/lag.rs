//! Shell: how long a new task waits until its runtime begins with it. That is what
//! anything new experiences there, a publication or a client's message: a thread of
//! its own puts a task in now and then, which says how long it has waited. At most
//! one waits in each runtime, so one that stands still is not flooded, and is
//! measured by the one that waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use prometheus::Histogram;
use tokio::runtime::Handle;

/// How often a runtime is probed.
const EVERY: Duration = Duration::from_millis(20);

/// Probes until it is dropped.
#[derive(Debug)]
pub(crate) struct Probe {
    _stop: mpsc::Sender<()>,
}

/// A runtime, and where its lag is counted.
#[derive(Debug)]
pub(crate) struct Probed {
    runtime: Handle,
    lag: Histogram,
    waits: Arc<AtomicBool>,
}

impl Probed {
    pub(crate) fn new(runtime: Handle, lag: Histogram) -> Self {
        Self {
            runtime,
            lag,
            waits: Arc::default(),
        }
    }

    fn probe(&self) {
        let since = Instant::now();
        if self.waits.swap(true, Ordering::Relaxed) {
            return;
        }
        let (lag, waits) = (self.lag.clone(), Arc::clone(&self.waits));
        self.runtime.spawn(async move {
            lag.observe(since.elapsed().as_secs_f64());
            waits.store(false, Ordering::Relaxed);
        });
    }
}

/// Begins to probe these.
///
/// # Errors
/// When there can be no further thread.
pub(crate) fn start(runtimes: Vec<Probed>) -> Result<Probe, std::io::Error> {
    let (stop, is_stopped) = mpsc::channel();
    std::thread::Builder::new()
        .name("lag-probe".into())
        .spawn(move || {
            while is_stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                runtimes.iter().for_each(Probed::probe);
            }
        })?;
    Ok(Probe { _stop: stop })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::HistogramOpts;

    #[test]
    fn a_runtime_that_stands_still_is_seen() {
        let buckets = HistogramOpts::new("lag", "of a test").buckets(vec![0.05, 1_000.0]);
        let lag = Histogram::with_opts(buckets).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let probed = Probed::new(runtime.handle().clone(), lag.clone());
        let waits = Arc::clone(&probed.waits);
        let _probe = start(vec![probed]).unwrap();
        let (_nobody, says) = mpsc::channel::<()>();
        runtime.block_on(async {
            // Nothing else is begun with meanwhile.
            while !waits.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            let still = says.recv_timeout(Duration::from_millis(120));
            assert_eq!(still, Err(RecvTimeoutError::Timeout));
            while lag.get_sample_count() == 0 {
                tokio::task::yield_now().await;
            }
        });
        assert!(lag.get_sample_sum() >= 0.12, "{}", lag.get_sample_sum());
    }
}
