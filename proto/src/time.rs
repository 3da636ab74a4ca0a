//! The only two times that pure code knows. Both arrive as arguments: reading a
//! clock is for shells, and clippy holds everyone else to it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
#[cfg(debug_assertions)]
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Milliseconds on the boot-time clock: monotonic, and it runs on while the
/// machine sleeps. For leases, deadlines and timers. Never crosses a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

/// What the clock shows when the machine starts: a hundred years, so that what is
/// older than the machine's start has its place, too.
const AT_BOOT_MS: u64 = 100 * 365 * 24 * 3_600 * 1_000;

impl Timestamp {
    /// Reads `CLOCK_BOOTTIME`. For shells.
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Self(AT_BOOT_MS + now.tv_sec as u64 * 1_000 + now.tv_nsec as u64 / 1_000_000)
    }

    /// How long ago `earlier` was; zero when it is not in the past.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_millis() as u64))
    }
}

/// Microseconds since 1970 by the wall clock. For signatures, tokens and
/// latency figures; nothing that must be safe depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnixTime(pub u64);

/// By how many microseconds [`UnixTime::now`] is wrong.
#[cfg(debug_assertions)]
static OFFSET: AtomicI64 = AtomicI64::new(0);

impl UnixTime {
    /// Reads the wall clock. For shells.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
    pub fn now() -> Self {
        let since_epoch = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let micros = since_epoch.as_micros() as u64;
        #[cfg(debug_assertions)]
        let micros = micros.saturating_add_signed(OFFSET.load(Ordering::Relaxed));
        Self(micros)
    }

    /// Lets the wall clock of this process be wrong by some seconds: for tests
    /// of what differing clocks do. Only in debug builds.
    #[cfg(debug_assertions)]
    pub fn shift_clock(secs: i64) {
        OFFSET.store(secs.saturating_mul(1_000_000), Ordering::Relaxed);
    }

    /// Whole seconds since 1970.
    pub fn secs(self) -> u64 {
        self.0 / 1_000_000
    }
}

/// Timers of a pure core: what is due, and when.
///
/// A timer is never cancelled. Its owner looks at its own state when the timer
/// fires and does nothing if the reason has gone; that costs a map look-up now
/// and then and spares the book-keeping of handles. Timers due at the same
/// millisecond fire in the order in which they were set.
#[derive(Debug)]
pub struct Timers<T> {
    heap: BinaryHeap<Reverse<Entry<T>>>,
    set: u64,
}

#[derive(Debug)]
struct Entry<T> {
    due: Timestamp,
    order: u64,
    timer: T,
}

impl<T> Entry<T> {
    fn key(&self) -> (Timestamp, u64) {
        (self.due, self.order)
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
            set: 0,
        }
    }
}

impl<T> Timers<T> {
    /// Sets a timer.
    pub fn set(&mut self, due: Timestamp, timer: T) {
        self.set += 1;
        self.heap.push(Reverse(Entry {
            due,
            order: self.set,
            timer,
        }));
    }

    /// Takes the next timer that is due.
    pub fn pop_due(&mut self, now: Timestamp) -> Option<T> {
        if self.heap.peek()?.0.due > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry.timer)
    }

    /// Gives back what many timers needed that have gone.
    pub fn shrink(&mut self) {
        if self.heap.len() * 4 < self.heap.capacity() {
            self.heap.shrink_to(self.heap.len() * 2);
        }
    }

    /// How many timers are set.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether no timer is set.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_fire_in_order_of_time_then_of_setting() {
        let mut timers = Timers::default();
        timers.set(Timestamp(20), "c");
        timers.set(Timestamp(10), "a");
        timers.set(Timestamp(10), "b");
        assert_eq!(timers.pop_due(Timestamp(9)), None);
        assert_eq!(timers.pop_due(Timestamp(10)), Some("a"));
        assert_eq!(timers.pop_due(Timestamp(10)), Some("b"));
        assert_eq!(timers.pop_due(Timestamp(10)), None);
        assert_eq!(timers.pop_due(Timestamp(99)), Some("c"));
        assert!(timers.is_empty());
    }
}
