//! When which connection is to be looked after: a timing wheel (Varghese and Lauck,
//! "Hashed and Hierarchical Timing Wheels", 1987), one turn of it. A connection is
//! looked at when something may be due, and not every second; it costs eight bytes
//! here, and no timer of its own.
//!
//! Nobody is taken out. Who is to be looked at earlier is put in once more, and who
//! goes leaves an entry behind: whoever is asked for says when it is due, and
//! entries that say otherwise count for nothing.

use std::time::Duration;

use proto::time::Timestamp;

/// Slots of a turn; what is due later is looked at in between.
const SLOTS: u64 = 256;

/// A second, counted from the same moment as [`Timestamp`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Second(u64);

impl Second {
    /// Not at all.
    pub const NEVER: Self = Self(u64::MAX);
}

/// See the [module](self).
#[derive(Debug)]
pub struct Wheel {
    slots: Vec<Vec<u32>>,
    /// The second whose slot is emptied now, and all before it are.
    at: u64,
}

impl Wheel {
    /// A wheel without entries.
    pub fn new(now: Timestamp) -> Self {
        Self {
            slots: vec![Vec::new(); SLOTS as usize],
            at: now.0 / 1_000,
        }
    }

    /// Puts a connection in. Returns when it is looked at: not before `after` has
    /// passed, unless that is longer than a turn.
    pub fn put(&mut self, now: Timestamp, after: Duration, connection: u32) -> Second {
        let second = self.second(now, after);
        self.slots[(second.0 % SLOTS) as usize].push(connection);
        second
    }

    fn second(&self, now: Timestamp, after: Duration) -> Second {
        let due = (now + after).0.div_ceil(1_000);
        Second(due.clamp(self.at + 1, self.at + SLOTS - 1))
    }

    /// Whether that is earlier than somebody is looked at already.
    pub fn is_before(&self, now: Timestamp, after: Duration, than: Second) -> bool {
        self.second(now, after) < than
    }

    /// The next that is due. To be called until it gives none.
    pub fn due(&mut self, now: Timestamp) -> Option<(u32, Second)> {
        loop {
            let slot = &mut self.slots[(self.at % SLOTS) as usize];
            if let Some(connection) = slot.pop() {
                return Some((connection, Second(self.at)));
            }
            if self.at >= now.0 / 1_000 {
                return None;
            }
            // What a crowd needed is given back.
            *slot = Vec::new();
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: u64 = 5_000_000;

    #[test]
    fn what_is_far_away_is_looked_at_once_a_turn() {
        let mut wheel = Wheel::new(Timestamp(START));
        let hour = Duration::from_secs(3_600);
        let second = wheel.put(Timestamp(START), hour, 7);
        let turn = Timestamp(START + (SLOTS - 1) * 1_000);
        assert_eq!(wheel.due(Timestamp(turn.0 - 1)), None);
        assert_eq!(wheel.due(turn), Some((7, second)));
        assert_eq!(wheel.due(turn), None);
    }

    proptest! {
        /// Whatever the pace at which it is asked, each entry comes once, not
        /// before it is due and no more than a second after.
        #[test]
        fn each_comes_in_its_second(
            steps in prop::collection::vec((0_u64..4_000, 0_u64..200_000), 1..200),
        ) {
            let mut wheel = Wheel::new(Timestamp(START));
            let mut now = Timestamp(START);
            let mut awaited: Vec<Timestamp> = Vec::new();
            let ask = |wheel: &mut Wheel, now: Timestamp, awaited: &mut Vec<Timestamp>| {
                let mut seen = Vec::new();
                while let Some((connection, _)) = wheel.due(now) {
                    seen.push(connection as usize);
                }
                for at in seen {
                    assert!(awaited[at] <= now, "{} is early at {}", awaited[at].0, now.0);
                    awaited[at] = Timestamp(u64::MAX);
                }
                let late = |due: &&Timestamp| due.0 != u64::MAX && due.0 + 1_000 <= now.0;
                assert_eq!(awaited.iter().find(late), None, "at {}", now.0);
            };
            for (pause, after) in steps {
                wheel.put(now, Duration::from_millis(after), awaited.len() as u32);
                awaited.push(now + Duration::from_millis(after));
                now = now + Duration::from_millis(pause);
                ask(&mut wheel, now, &mut awaited);
            }
            now = now + Duration::from_secs(SLOTS);
            ask(&mut wheel, now, &mut awaited);
            prop_assert!(awaited.iter().all(|due| due.0 == u64::MAX));
        }
    }
}
