//! What a link has carried of late, to be sent again.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use crate::time::Timestamp;

/// Entries that one link keeps at most.
pub const LINK_ENTRIES_MAX: usize = 65_536;
/// Bytes that one link keeps at most.
pub const LINK_BYTES_MAX: usize = 16 * 1_024 * 1_024;
/// How long an entry is kept at most. A receiver asks within a second of having
/// missed it; after a longer cut positions are cheaper than all that was said.
pub const AGE_MAX: Duration = Duration::from_secs(10);

/// What an entry costs besides its bytes: its place in the ring, and what the
/// memory that it shares with other links has around it.
const ENTRY_OVERHEAD: usize = 128;

/// The last entries of a link. They share their memory with the rings of other
/// links that carry the same publication; each ring counts it as if it were its
/// own, so what they say together is never too little.
#[derive(Debug)]
pub(super) struct Ring {
    kept: VecDeque<Kept>,
    /// The number behind the last one.
    end: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Kept {
    entry: Bytes,
    at: Timestamp,
}

impl Kept {
    fn cost(&self) -> usize {
        self.entry.len() + ENTRY_OVERHEAD
    }
}

impl Ring {
    /// A ring whose first entry will have this number.
    pub(super) fn new(next: u64) -> Self {
        Self {
            kept: VecDeque::new(),
            end: next,
            bytes: 0,
        }
    }

    /// The lowest number that is held; with none, the next one.
    pub(super) fn start(&self) -> u64 {
        self.end - self.kept.len() as u64
    }

    /// The number behind the last one.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps the next entry. What is over a bound goes, the oldest first.
    pub(super) fn push(&mut self, now: Timestamp, entry: Bytes) {
        let kept = Kept { entry, at: now };
        self.bytes += kept.cost();
        self.kept.push_back(kept);
        self.end += 1;
        while self.bytes > LINK_BYTES_MAX || self.kept.len() > LINK_ENTRIES_MAX {
            self.drop_oldest();
        }
        self.expire(now);
    }

    pub(super) fn get(&self, number: u64) -> Option<&Bytes> {
        let index = usize::try_from(number.checked_sub(self.start())?).ok()?;
        self.kept.get(index).map(|kept| &kept.entry)
    }

    /// Forgets what is too old; a link that has been quiet holds no memory.
    pub(super) fn expire(&mut self, now: Timestamp) {
        let old = |kept: &Kept| now.since(kept.at) >= AGE_MAX;
        while self.kept.front().is_some_and(old) {
            self.drop_oldest();
        }
        if self.kept.is_empty() {
            self.kept = VecDeque::new();
        }
    }

    /// Forgets the oldest until at most so many bytes are left.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        while self.bytes > bytes {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(kept) = self.kept.pop_front() {
            self.bytes -= kept.cost();
        }
    }
}
