//! How often something may be said.

use std::time::Duration;

use proto::time::Timestamp;

/// Lets one through, then none for a while.
#[derive(Debug)]
pub struct Pace {
    every: Duration,
    last: Option<Timestamp>,
}

impl Pace {
    /// At most one in this time.
    pub fn new(every: Duration) -> Self {
        Self { every, last: None }
    }

    /// Whether it may be said now; then not again for a while.
    pub fn allows(&mut self, now: Timestamp) -> bool {
        let allowed = self.last.is_none_or(|last| now.since(last) >= self.every);
        if allowed {
            self.last = Some(now);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_then_none_for_a_while() {
        let mut pace = Pace::new(Duration::from_secs(10));
        let allowed = [5, 6, 15_004, 15_005, 15_006].map(|at| pace.allows(Timestamp(at)));
        assert_eq!(allowed, [true, false, true, false, false]);
    }
}
