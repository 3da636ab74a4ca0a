//! Sets of workers.

use std::fmt;

/// Workers of a gateway at most: their sets are the bits of a word.
pub const WORKERS_MAX: usize = 64;

/// One worker of a gateway, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u8);

/// A set of workers.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Workers(u64);

impl Workers {
    /// Only this one.
    pub fn only(worker: WorkerId) -> Self {
        let mut workers = Self::default();
        workers.insert(worker);
        workers
    }

    /// Adds one.
    pub fn insert(&mut self, worker: WorkerId) {
        assert!(
            usize::from(worker.0) < WORKERS_MAX,
            "worker {} is outside the set",
            worker.0
        );
        self.0 |= 1 << worker.0;
    }

    /// Removes one.
    pub fn remove(&mut self, worker: WorkerId) {
        self.0 &= !(1 << worker.0);
    }

    /// Whether it is in.
    pub fn contains(self, worker: WorkerId) -> bool {
        self.0 & (1 << worker.0) != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many.
    pub fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = WorkerId> {
        (0..WORKERS_MAX as u8)
            .map(WorkerId)
            .filter(move |worker| self.contains(*worker))
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.iter().map(|worker| worker.0))
            .finish()
    }
}
