//! How often something may be done: token buckets. And the names of all limits
//! that a client can meet.

use std::time::Duration;

use proto::time::Timestamp;

/// So many at once, and then so many per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// At once, after a rest. At least one.
    pub burst: u32,
    /// In the long run. At least one.
    pub per_s: u32,
}

/// What was over a limit, as metrics name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limiter {
    /// Connections: of the gateway, of an app, or of an address.
    Connections,
    /// New connections from an address.
    ConnectIp,
    /// New connections of an app.
    ConnectApp,
    /// How often a connection subscribes.
    Subscribe,
    /// Channels of a connection.
    Subscriptions,
    /// Messages of a connection.
    Messages,
    /// Events that a client publishes.
    ClientEvents,
    /// Publications of an app.
    Publish,
    /// API requests of an app.
    Api,
    /// Bytes of a message or request.
    MessageSize,
}

impl Limiter {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Connections,
        Self::ConnectIp,
        Self::ConnectApp,
        Self::Subscribe,
        Self::Subscriptions,
        Self::Messages,
        Self::ClientEvents,
        Self::Publish,
        Self::Api,
        Self::MessageSize,
    ];

    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::ConnectIp => "connect_ip",
            Self::ConnectApp => "connect_app",
            Self::Subscribe => "subscribe",
            Self::Subscriptions => "subscriptions",
            Self::Messages => "messages",
            Self::ClientEvents => "client_events",
            Self::Publish => "publish",
            Self::Api => "api",
            Self::MessageSize => "message_size",
        }
    }
}

/// What is left of a rate. Counts thousandths, so that a millisecond matters.
#[derive(Debug)]
pub struct Bucket {
    /// Less than nothing: owed.
    left: i64,
    at: Timestamp,
}

const ONE: i64 = 1_000;

impl Bucket {
    /// Nothing has been taken yet.
    pub fn full(rate: Rate, now: Timestamp) -> Self {
        Self {
            left: i64::from(rate.burst) * ONE,
            at: now,
        }
    }

    /// Takes one, if one is left.
    pub fn take(&mut self, rate: Rate, now: Timestamp) -> bool {
        self.take_many(1, rate, now)
    }

    /// Takes so many, if at least one is left. What was not there is owed: nothing
    /// is ever too large, and the rate holds in the long run.
    pub fn take_many(&mut self, count: u32, rate: Rate, now: Timestamp) -> bool {
        self.left = self.left_at(rate, now);
        self.at = now;
        let enough = self.left >= ONE;
        if enough {
            self.left -= i64::from(count) * ONE;
        }
        enough
    }

    /// Whether it is as if nothing had ever been taken.
    pub fn is_full(&self, rate: Rate, now: Timestamp) -> bool {
        self.left_at(rate, now) == i64::from(rate.burst) * ONE
    }

    /// How long it takes, from when it was last asked, until one is left.
    pub fn wait(&self, rate: Rate) -> Duration {
        let lacking = (ONE - self.left).max(0) as u64;
        Duration::from_millis(lacking.div_ceil(u64::from(rate.per_s.max(1))))
    }

    fn left_at(&self, rate: Rate, now: Timestamp) -> i64 {
        let waited = now.since(self.at).as_millis();
        let gained = i64::try_from(waited.saturating_mul(rate.per_s.into())).unwrap_or(i64::MAX);
        let full = i64::from(rate.burst) * ONE;
        self.left.saturating_add(gained).min(full)
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

        /// After the time that it says, there is one; and not before.
        #[test]
        fn whoever_waits_as_long_as_is_said_is_served(
            burst in 1_u32..50, per_s in 1_u32..500,
            counts in prop::collection::vec(1_u32..300, 1..20),
        ) {
            let rate = Rate { burst, per_s };
            let mut bucket = Bucket::full(rate, Timestamp(0));
            let mut now = Timestamp(0);
            for count in counts {
                while bucket.take_many(count, rate, now) {}
                let wait = bucket.wait(rate);
                prop_assert!(wait > Duration::ZERO);
                prop_assert!(!bucket.take(rate, now + (wait - Duration::from_millis(1))));
                now = now + wait;
                prop_assert!(bucket.take_many(count, rate, now));
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
        assert!(!bucket.is_full(rate, Timestamp(1_000_000)));
        assert!(bucket.is_full(rate, Timestamp(1_003_000)));
    }

    #[test]
    fn what_is_taken_beyond_is_owed() {
        let rate = Rate {
            burst: 5,
            per_s: 10,
        };
        let mut bucket = Bucket::full(rate, Timestamp(0));
        assert!(bucket.take_many(25, rate, Timestamp(0)), "never too large");
        assert!(!bucket.take(rate, Timestamp(0)));
        assert_eq!(bucket.wait(rate), Duration::from_millis(2_100));
        assert!(bucket.take(rate, Timestamp(2_100)));
    }
}
