//! Many seeds, on all cores.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Options, run};

/// What a sweep found.
#[derive(Debug)]
pub struct Sweep {
    /// Seeds that were run.
    pub seeds: u64,
    /// How long that took.
    pub took: Duration,
    /// What went wrong, in the order of seeds: a seed and its report.
    pub failures: Vec<(u64, String)>,
}

/// Runs seeds until one fails, or all of them if `all` is set.
pub fn sweep(first: u64, count: u64, options: &Options, all: bool) -> Sweep {
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let failures = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    if nth >= count {
                        return;
                    }
                    let seed = first + nth;
                    if let Err(report) = guarded(seed, options) {
                        stop.store(!all, Ordering::Relaxed);
                        let mut failures = failures.lock().expect("no thread panics with it");
                        failures.push((seed, report));
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().expect("no thread panicked with it");
    failures.sort();
    Sweep {
        seeds: next.into_inner().min(count),
        took: began.elapsed(),
        failures,
    }
}

/// Runs a seed. A panic in a core is a failure like any other.
fn guarded(seed: u64, options: &Options) -> Result<(), String> {
    match catch_unwind(AssertUnwindSafe(|| run(seed, options))) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(failure)) => Err(failure.to_string()),
        Err(panic) => Err(format!(
            "seed {seed} panics: {}\nagain: make reproduce SEED={seed}",
            message(&*panic)
        )),
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let owned = || panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(owned).unwrap_or("without a word")
}

impl Sweep {
    /// Seeds per second.
    pub fn rate(&self) -> f64 {
        self.seeds as f64 / self.took.as_secs_f64().max(1e-9)
    }
}
