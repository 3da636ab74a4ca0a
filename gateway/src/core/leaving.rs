//! How clients are sent away by a gateway that ends: one after the other, so that
//! those who take them in are not overrun.

use std::time::Duration;

use proto::time::Timestamp;

/// How fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Over how long they are spread.
    pub window: Duration,
    /// How many a second at most, however long that takes.
    pub per_s: u32,
}

impl Pace {
    /// All at once.
    pub const AT_ONCE: Self = Self {
        window: Duration::ZERO,
        per_s: u32::MAX,
    };

    /// How long it takes for so many clients.
    pub fn takes(self, clients: usize) -> Duration {
        if clients == 0 {
            return Duration::ZERO;
        }
        let millis = clients as u64 * 1_000 / u64::from(self.per_s.max(1));
        self.window.max(Duration::from_millis(millis))
    }
}

/// A worker's clients are leaving.
#[derive(Debug)]
pub struct Leaving {
    began: Timestamp,
    takes: Duration,
    /// How many there were.
    clients: usize,
    sent_away: usize,
}

impl Leaving {
    /// So many are to be sent away from now on, by one of so many workers.
    pub fn begin(now: Timestamp, clients: usize, pace: Pace, workers: usize) -> Self {
        Self {
            began: now,
            takes: pace.takes(clients.saturating_mul(workers)),
            clients,
            sent_away: 0,
        }
    }

    /// How many of those who are still there are to be sent away now; all, once the
    /// time is over, also such as have come since. To be called often.
    pub fn due(&mut self, now: Timestamp, there: usize) -> usize {
        let passed = now.since(self.began);
        if passed >= self.takes {
            return there;
        }
        let due = (self.clients as u128 * passed.as_nanos()).div_ceil(self.takes.as_nanos());
        let due = (due as usize).saturating_sub(self.sent_away).min(there);
        self.sent_away += due;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace {
        window: Duration::from_secs(10),
        per_s: 100,
    };

    /// How many of so many are left after each second.
    fn left(clients: usize, workers: usize, pace: Pace) -> Vec<usize> {
        let mut leaving = Leaving::begin(Timestamp(5_000), clients, pace, workers);
        let mut there = clients;
        let mut left = Vec::new();
        for now in (5_000..).step_by(20) {
            there -= leaving.due(Timestamp(now), there);
            if now % 1_000 == 0 {
                left.push(there);
            }
            if there == 0 {
                break;
            }
        }
        left
    }

    #[test]
    fn few_are_spread_over_the_window_and_many_leave_at_the_highest_pace() {
        let few = left(10, 1, PACE);
        assert_eq!(few, [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]);
        let many = left(2_000, 1, PACE);
        assert_eq!(many.len(), 21, "100 a second");
        assert!(
            many.windows(2).all(|two| two[0] - two[1] == 100),
            "{many:?}"
        );
        let one_of_four = left(500, 4, PACE);
        assert!(one_of_four.windows(2).all(|two| two[0] - two[1] == 25));
        assert_eq!(left(2_000, 1, Pace::AT_ONCE), [0]);
        assert_eq!(PACE.takes(0), Duration::ZERO);
    }

    #[test]
    fn who_leaves_by_itself_or_comes_late_changes_nothing_for_the_others() {
        let mut leaving = Leaving::begin(Timestamp(0), 100, PACE, 1);
        assert_eq!(leaving.due(Timestamp(1_000), 100), 10);
        // Half of the rest has gone.
        assert_eq!(leaving.due(Timestamp(2_000), 45), 10);
        assert_eq!(leaving.due(Timestamp(9_000), 35), 35);
        assert_eq!(leaving.due(Timestamp(9_500), 1), 1);
        assert_eq!(leaving.due(Timestamp(10_000), 3), 3, "all that are there");
    }
}
