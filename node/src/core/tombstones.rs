//! Where channels stood that have no state any more: a few bytes each, so that
//! a client of a quiet channel that comes back after hours is told that it has
//! missed nothing, and not that all may be lost.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use proto::channel::ChannelKey;
use proto::position::{Epoch, Position};
use proto::time::Timestamp;

use super::record::TombstonePiece;

/// How long a channel without state is remembered.
const AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Channels that one shard remembers at most; the one that has been quiet for
/// longest is forgotten.
const COUNT_MAX: usize = 65_536;

/// See the [module](self). Channels go by their fingerprints: if two meet, the
/// second goes on behind the position of the first, which is as good as any.
#[derive(Debug, Default)]
pub struct Tombstones {
    stones: HashMap<u64, Tombstone>,
    /// In the order in which they were laid; some have been lifted since.
    order: VecDeque<(Timestamp, u64)>,
    forgetful: bool,
}

#[derive(Debug)]
struct Tombstone {
    stood: Stood,
    laid_at: Timestamp,
}

/// How a channel was when its state went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stood {
    /// Where it stood.
    pub position: Position,
    /// Whether it was not replicated.
    pub is_alone: bool,
}

impl Tombstones {
    /// A channel's state goes.
    pub fn lay(&mut self, now: Timestamp, key: &ChannelKey, stood: Stood) {
        let name = key.fingerprint();
        let laid_at = now;
        self.stones.insert(name, Tombstone { stood, laid_at });
        self.order.push_back((now, name));
        while self.stones.len() > COUNT_MAX {
            self.forget_first();
        }
        // Channels that come and go leave more lifted ones than others.
        if self.order.len() > 2 * self.stones.len() + 64 {
            let stones = &self.stones;
            self.order.retain(|entry| is_laid(stones, *entry));
        }
    }

    /// A channel gets state again: how it was.
    pub fn lift(&mut self, key: &ChannelKey) -> Option<Stood> {
        let stone = self.stones.remove(&key.fingerprint())?;
        Some(stone.stood)
    }

    /// Time has passed.
    pub fn expire(&mut self, now: Timestamp) {
        while self
            .order
            .front()
            .is_some_and(|(laid_at, _)| now.since(*laid_at) >= AGE_MAX)
        {
            self.forget_first();
        }
    }

    /// The epochs in which channels stood.
    pub fn epochs(&self) -> impl Iterator<Item = Epoch> {
        self.stones.values().map(|stone| stone.stood.position.epoch)
    }

    /// Whether any was forgotten: then a channel of which nothing is known may
    /// be one that was.
    pub fn is_forgetful(&self) -> bool {
        self.forgetful
    }

    /// All that are remembered, the oldest first.
    pub fn pieces(&self, now: Timestamp) -> impl Iterator<Item = TombstonePiece> {
        let laid = self.order.iter();
        laid.filter(|entry| is_laid(&self.stones, **entry))
            .filter_map(move |(at, name)| {
                let Stood { position, is_alone } = self.stones.get(name)?.stood;
                Some(TombstonePiece {
                    age_ms: now.since(*at).as_millis() as u64,
                    name: *name,
                    position,
                    is_alone,
                })
            })
    }

    /// Remembers what another process remembered.
    pub fn restore(&mut self, now: Timestamp, piece: &TombstonePiece) {
        let laid_at = Timestamp(now.0.saturating_sub(piece.age_ms));
        let stood = Stood {
            position: piece.position,
            is_alone: piece.is_alone,
        };
        self.stones.insert(piece.name, Tombstone { stood, laid_at });
        self.order.push_back((laid_at, piece.name));
    }

    /// Another process had forgotten some.
    pub fn be_forgetful(&mut self) {
        self.forgetful = true;
    }

    /// How many channels are remembered.
    pub fn len(&self) -> usize {
        self.stones.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.stones.is_empty()
    }

    /// Forgets the first in order, unless it has been lifted.
    fn forget_first(&mut self) {
        if let Some(entry) = self.order.pop_front()
            && is_laid(&self.stones, entry)
        {
            self.stones.remove(&entry.1);
            self.forgetful = true;
        }
    }
}

fn is_laid(stones: &HashMap<u64, Tombstone>, (at, name): (Timestamp, u64)) -> bool {
    stones.get(&name).is_some_and(|stone| stone.laid_at == at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::position::Offset;

    fn key(n: usize) -> ChannelKey {
        ChannelKey {
            app: "a".parse().unwrap(),
            channel: format!("c{n}").parse().unwrap(),
        }
    }

    fn at(offset: u64) -> Stood {
        let position = Position {
            epoch: Epoch(1),
            offset: Offset(offset),
        };
        let is_alone = false;
        Stood { position, is_alone }
    }

    #[test]
    fn a_channel_goes_on_where_it_stood_within_a_day() {
        let mut stones = Tombstones::default();
        stones.lay(Timestamp(0), &key(1), at(7));
        stones.lay(Timestamp(1), &key(2), at(8));
        assert_eq!(stones.lift(&key(1)), Some(at(7)));
        assert_eq!(stones.lift(&key(1)), None, "it has state now");
        let day = AGE_MAX.as_millis() as u64;
        stones.expire(Timestamp(day));
        assert!(!stones.is_forgetful(), "the first had been lifted");
        assert_eq!(stones.len(), 1);
        stones.expire(Timestamp(day + 1));
        assert!(stones.is_forgetful() && stones.is_empty());
        assert_eq!(stones.lift(&key(2)), None);
    }

    #[test]
    fn one_laid_again_counts_from_then() {
        let mut stones = Tombstones::default();
        stones.lay(Timestamp(0), &key(1), at(7));
        stones.lift(&key(1));
        stones.lay(Timestamp(1_000), &key(1), at(9));
        stones.expire(Timestamp(AGE_MAX.as_millis() as u64));
        assert_eq!(stones.lift(&key(1)), Some(at(9)));
    }

    #[test]
    fn the_one_that_is_quiet_for_longest_makes_room() {
        let mut stones = Tombstones::default();
        for n in 0..=COUNT_MAX {
            stones.lay(Timestamp(n as u64), &key(n), at(1));
        }
        assert_eq!(stones.len(), COUNT_MAX);
        assert_eq!(stones.lift(&key(0)), None);
        assert_eq!(stones.lift(&key(1)), Some(at(1)));
    }

    #[test]
    fn channels_that_come_and_go_take_no_more_room() {
        let mut stones = Tombstones::default();
        for n in 0..10_000 {
            stones.lay(Timestamp(n), &key(1), at(n));
            assert_eq!(stones.lift(&key(1)), Some(at(n)));
        }
        assert!(stones.order.len() < 100 && !stones.is_forgetful());
    }
}
