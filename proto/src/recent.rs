//! The latest publications of many channels: which of them may be let go, by
//! age and by bytes, oldest first. What they are stays with their channels;
//! this only remembers in which order they came. Owners keep their repair log
//! by it, gateways the windows of what they have delivered.

use std::collections::VecDeque;
use std::time::Duration;

use crate::position::Offset;
use crate::time::Timestamp;

/// See the [module](self). `K` names a channel and is cheap to clone.
#[derive(Debug)]
pub struct Recent<K> {
    entries: VecDeque<Entry<K>>,
    bytes: usize,
    bytes_max: usize,
    age_max: Duration,
}

#[derive(Debug)]
struct Entry<K> {
    at: Timestamp,
    key: K,
    offset: Offset,
    bytes: usize,
}

impl<K> Recent<K> {
    /// Nothing, and what may be kept: this many bytes, for this long.
    pub fn new(bytes_max: usize, age_max: Duration) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            bytes_max,
            age_max,
        }
    }

    /// A channel has kept one more publication.
    pub fn push(&mut self, now: Timestamp, key: K, offset: Offset, bytes: usize) {
        self.bytes += bytes;
        self.entries.push_back(Entry {
            at: now,
            key,
            offset,
            bytes,
        });
    }

    /// The next channel that has to let go of what it keeps, up to and with
    /// this offset.
    pub fn pop_due(&mut self, now: Timestamp) -> Option<(K, Offset)> {
        let front = self.entries.front()?;
        if self.bytes <= self.bytes_max && now.since(front.at) < self.age_max {
            return None;
        }
        let Entry {
            key, offset, bytes, ..
        } = self.entries.pop_front()?;
        self.bytes -= bytes;
        if self.entries.is_empty() {
            // One that has gone quiet keeps no room.
            self.entries = VecDeque::new();
        }
        Some((key, offset))
    }

    /// Whatever these channels keep is let go of.
    pub fn drop_all(&mut self, is_dropped: impl Fn(&K) -> bool) {
        let bytes = &mut self.bytes;
        self.entries.retain(|entry| {
            let stays = !is_dropped(&entry.key);
            if !stays {
                *bytes -= entry.bytes;
            }
            stays
        });
    }

    /// How much is kept, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(recent: &mut Recent<&'static str>, now: u64) -> Vec<(&'static str, u64)> {
        std::iter::from_fn(|| recent.pop_due(Timestamp(now)))
            .map(|(key, offset)| (key, offset.0))
            .collect()
    }

    #[test]
    fn the_oldest_goes_by_age_and_by_bytes() {
        let mut recent = Recent::new(100, Duration::from_secs(10));
        recent.push(Timestamp(0), "a", Offset(1), 40);
        recent.push(Timestamp(5_000), "b", Offset(7), 40);
        assert_eq!(due(&mut recent, 9_999), []);
        assert_eq!(due(&mut recent, 10_000), [("a", 1)]);
        recent.push(Timestamp(10_000), "a", Offset(2), 90);
        assert_eq!(due(&mut recent, 10_000), [("b", 7)], "over the bytes");
        assert_eq!(recent.bytes(), 90);
        recent.push(Timestamp(10_000), "a", Offset(3), 500);
        assert_eq!(due(&mut recent, 10_000), [("a", 2), ("a", 3)]);
        assert_eq!(recent.bytes(), 0);
    }

    #[test]
    fn what_is_dropped_takes_nothing_else_along() {
        let mut recent = Recent::new(100, Duration::from_secs(10));
        for (at, key) in [(0, "a"), (1, "b"), (2, "a"), (3, "b")] {
            recent.push(Timestamp(at), key, Offset(at), 10);
        }
        recent.drop_all(|key| *key == "a");
        assert_eq!(recent.bytes(), 20);
        assert_eq!(due(&mut recent, 20_000), [("b", 1), ("b", 3)]);
        assert_eq!(recent.bytes(), 0);
    }
}
