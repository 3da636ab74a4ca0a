//! What may wait to be written to all connections of a worker together. Beyond
//! that, those for whom most waits are disconnected: see
//! [outbox](super::outbox) for what bounds each alone.

/// See the [module](self).
#[derive(Debug)]
pub struct Budget {
    max: usize,
    waiting: usize,
    /// Too much waits, and there was nobody to be disconnected for it: what waits
    /// is for those who are already. Looking for others costs something.
    is_in_vain: bool,
}

impl Budget {
    /// Nothing waits, and so many bytes may.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            waiting: 0,
            is_in_vain: false,
        }
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// For a connection another number of bytes waits now than was counted.
    pub fn recount(&mut self, counted: &mut usize, bytes: usize) {
        self.waiting = self.waiting + bytes - std::mem::replace(counted, bytes);
    }

    /// Whether somebody is to be disconnected.
    pub fn is_exceeded(&self) -> bool {
        self.waiting > self.max && !self.is_in_vain
    }

    /// Some time has passed: looks for somebody again.
    pub fn look_again(&mut self) {
        self.is_in_vain = false;
    }

    /// Who is to be disconnected of these connections, so that some room is left:
    /// for each its bytes, and which one it is.
    pub fn relieve<K: Ord>(&mut self, slow: impl Iterator<Item = (usize, K)>) -> Vec<(usize, K)> {
        let mut excess = self.waiting.saturating_sub(self.max - self.max / 8);
        let mut slow: Vec<(usize, K)> = slow.collect();
        slow.sort_unstable();
        let goes = |(bytes, _): &(usize, K)| {
            let goes = excess > 0;
            excess = excess.saturating_sub(*bytes);
            goes
        };
        let go: Vec<_> = slow.into_iter().rev().take_while(goes).collect();
        self.is_in_vain = go.is_empty();
        go
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_for_whom_most_waits_go_until_there_is_room() {
        let mut budget = Budget::new(800);
        let mut counted = [0; 4];
        for (counted, bytes) in counted.iter_mut().zip([100, 400, 300, 0]) {
            budget.recount(counted, bytes);
        }
        assert_eq!((budget.waiting(), budget.is_exceeded()), (800, false));
        budget.recount(&mut counted[3], 50);
        assert!(budget.is_exceeded());
        let slow = || counted.iter().copied().zip(0..);
        assert_eq!(budget.relieve(slow()), [(400, 1)], "700 may stay");
        let little = || slow().filter(|(bytes, _)| *bytes <= 100);
        assert_eq!(budget.relieve(little()), [(100, 0), (50, 3)]);
        budget.recount(&mut counted[1], 10);
        assert_eq!((budget.waiting(), budget.is_exceeded()), (460, false));
    }

    #[test]
    fn nobody_is_looked_for_again_and_again() {
        let mut budget = Budget::new(800);
        budget.recount(&mut 0, 900);
        assert!(budget.is_exceeded());
        assert_eq!(budget.relieve::<u8>(std::iter::empty()), []);
        assert!(!budget.is_exceeded(), "all are being disconnected");
        budget.look_again();
        assert!(budget.is_exceeded());
    }
}
