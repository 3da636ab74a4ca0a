//! Virtual time, and the clocks of processes, which do not agree on it.

use std::time::Duration;

use proto::time::{Timestamp, UnixTime};

use super::random::Random;

/// Virtual time since the world began, in microseconds. No process sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

impl Moment {
    /// So many milliseconds after the beginning.
    pub const fn ms(ms: u64) -> Self {
        Self(ms * 1_000)
    }

    /// How long ago `earlier` was; zero when it is not in the past.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0 + duration.as_micros() as u64)
    }
}

/// The most by which the rate of a clock differs from true time.
const RATE_PPM_MAX: u64 = 10_000;
/// What the wall clocks show at the beginning, in microseconds since 1970.
const BEGINNING: u64 = 1_800_000_000_000_000;

/// The clocks of one process: both run at one rate, a little wrong, and began
/// at different times.
#[derive(Debug, Clone)]
pub struct Clock {
    /// Parts per million by which it is too fast, and `RATE_PPM_MAX`.
    rate: u64,
    booted_ms: u64,
    /// Behind true time by so much.
    behind: u64,
}

impl Clock {
    /// A clock that is wrong in its own way.
    pub fn new(random: &mut Random) -> Self {
        Self {
            rate: random.below(2 * RATE_PPM_MAX + 1),
            booted_ms: random.below(30 * 24 * 3_600_000),
            behind: random.below(2_000_000),
        }
    }

    /// What the boot-time clock shows.
    pub fn timestamp(&self, now: Moment) -> Timestamp {
        Timestamp(self.booted_ms + self.local(now.0) / 1_000)
    }

    /// What the wall clock shows.
    pub fn wall(&self, now: Moment) -> UnixTime {
        UnixTime(BEGINNING + self.local(now.0) - self.behind)
    }

    /// When this much time will have passed by this clock.
    pub fn after(&self, now: Moment, duration: Duration) -> Moment {
        let micros = duration.as_micros() as u64 * 1_000_000;
        Moment(now.0 + micros / (1_000_000 - RATE_PPM_MAX + self.rate))
    }

    /// The wall clock is set back.
    pub fn set_back(&mut self, by: Duration) {
        self.behind += by.as_micros() as u64;
    }

    fn local(&self, micros: u64) -> u64 {
        // In 128 bits: an hour of virtual time would overflow 64.
        let rate = u128::from(1_000_000 - RATE_PPM_MAX + self.rate);
        (u128::from(micros) * rate / 1_000_000) as u64
    }
}
