//! How long something took, each time that it was done.

use std::fmt;
use std::time::Duration;

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Durations(Vec<Duration>);

impl Durations {
    /// It was done once more.
    pub fn push(&mut self, took: Duration) {
        let place = self.0.partition_point(|known| *known <= took);
        self.0.insert(place, took);
    }

    /// How many times it was done.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// What `of` per cent of the times were not longer than.
    ///
    /// # Panics
    /// When it was never done.
    pub fn percentile(&self, of: usize) -> Duration {
        self.0[(self.0.len() - 1) * of / 100]
    }
}

impl Extend<Duration> for Durations {
    fn extend<T: IntoIterator<Item = Duration>>(&mut self, all: T) {
        for took in all {
            self.push(took);
        }
    }
}

impl fmt::Display for Durations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("never");
        }
        let [half, most, all] = [50, 99, 100].map(|of| self.percentile(of));
        let count = self.0.len();
        write!(
            f,
            "{count} times, {half:?} (p50), {most:?} (p99), {all:?} (longest)"
        )
    }
}
