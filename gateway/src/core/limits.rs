//! How often something may be done: token buckets.

use proto::time::Timestamp;

/// So many at once, and then so many per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// At once, after a rest.
    pub burst: u32,
    /// In the long run.
    pub per_s: u32,
}

/// What is left of a rate. Counts thousandths, so that a millisecond matters.
#[derive(Debug)]
pub struct Bucket {
    left: u32,
    at: Timestamp,
}

const ONE: u32 = 1_000;

impl Bucket {
    /// Nothing has been taken yet.
    pub fn full(rate: Rate, now: Timestamp) -> Self {
        Self {
            left: rate.burst * ONE,
            at: now,
        }
    }

    /// Takes one, if one is left.
    pub fn take(&mut self, rate: Rate, now: Timestamp) -> bool {
        let gained = now.since(self.at).as_millis() as u64 * u64::from(rate.per_s);
        let full = u64::from(rate.burst * ONE);
        self.left = (u64::from(self.left) + gained).min(full) as u32;
        self.at = now;
        let enough = self.left >= ONE;
        if enough {
            self.left -= ONE;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// In no stretch of time is more taken than the burst and what the
        /// time gave; and an eager taker gets all of that.
        #[test]
        fn the_rate_holds(
            burst in 1_u32..50, per_s in 1_u32..500,
            waits in prop::collection::vec(0_u64..200, 1..200),
        ) {
            let rate = Rate { burst, per_s };
            let mut bucket = Bucket::full(rate, Timestamp(0));
            let (mut now, mut taken) = (0, 0_u64);
            for wait in waits {
                now += wait;
                while bucket.take(rate, Timestamp(now)) {
                    taken += 1;
                }
                let most = u64::from(burst) + now * u64::from(per_s) / 1_000;
                prop_assert!(taken <= most, "{taken} of {most}");
            }
        }
    }

    #[test]
    fn a_rest_fills_the_bucket_and_no_more() {
        let rate = Rate { burst: 3, per_s: 1 };
        let mut bucket = Bucket::full(rate, Timestamp(0));
        let mut takes = |at| (0..10).filter(|_| bucket.take(rate, Timestamp(at))).count();
        assert_eq!(takes(0), 3);
        assert_eq!(takes(999), 0);
        assert_eq!(takes(1_000), 1);
        assert_eq!(takes(1_000_000), 3);
    }
}
