//! What became of publishes with an idempotency key, for as long as their
//! publishers may repeat them.
//!
//! A publisher that got no answer sends its request again: as a new publish, in
//! another place of a sequence, maybe through another gateway. The publish table
//! cannot know it; the key does. Only publications are remembered: what was
//! refused may be tried again with the same key.
//!
//! A key is never forgotten before its time. When there is no room, further
//! publishes with a key are refused, and publishers can wait or do without.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use proto::message::{Digest, Idempotency};
use proto::position::Position;
use proto::time::Timestamp;

use super::record::KeyPiece;

/// How long a key is remembered.
pub const KEPT: Duration = Duration::from_secs(120);
/// Bytes of one shard's keys at most.
pub const BYTES_MAX: usize = 32 * 1_024 * 1_024;
/// Bytes of one key at most, with the free room in tables that grow by doubling.
const ENTRY_BYTES: usize = 256;
/// Keys of one shard at most: 1,092 a second.
pub const KEYS_MAX: usize = BYTES_MAX / ENTRY_BYTES;

/// See the [module](self).
#[derive(Debug)]
pub struct Keys {
    known: HashMap<Digest, Remembered>,
    /// The same in the order in which they came, which is that in which they go.
    order: VecDeque<(Timestamp, Digest)>,
    max: usize,
}

#[derive(Debug)]
struct Remembered {
    body: Digest,
    first: Publication,
}

/// What the first publish led to. Without the fence: whoever repeats it is
/// answered under the present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publication {
    /// Where it stands.
    pub position: Position,
    /// Whether that is a channel that is not replicated.
    pub is_alone: bool,
}

/// What to do with a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Perform it, then [`Keys::remember`] what it led to.
    New,
    /// It has been performed: this was the result.
    Repeat(Publication),
    /// Refuse it: the key was used for another request.
    Mismatch,
    /// Refuse it: it could not be remembered.
    Full,
}

impl Default for Keys {
    fn default() -> Self {
        Self::with_room_for(KEYS_MAX)
    }
}

impl Keys {
    fn with_room_for(max: usize) -> Self {
        Self {
            known: HashMap::new(),
            order: VecDeque::new(),
            max,
        }
    }

    /// Decides on a publish.
    pub fn admit(&mut self, now: Timestamp, publish: &Idempotency) -> Admission {
        // Room that time has made is not to wait for the next tick.
        self.expire(now);
        match self.known.get(&publish.key) {
            Some(known) if known.body == publish.body => Admission::Repeat(known.first),
            Some(_) => Admission::Mismatch,
            None if self.known.len() >= self.max => Admission::Full,
            None => Admission::New,
        }
    }

    /// Keeps what a publish has led to. The first counts.
    pub fn remember(&mut self, now: Timestamp, publish: &Idempotency, first: Publication) {
        if let Entry::Vacant(free) = self.known.entry(publish.key) {
            let body = publish.body;
            free.insert(Remembered { body, first });
            self.order.push_back((now, publish.key));
        }
    }

    /// Keeps what an owner says that a publish has led to, whatever was known.
    pub fn replace(&mut self, now: Timestamp, publish: &Idempotency, now_known: Publication) {
        if self.known.contains_key(&publish.key) {
            self.known.remove(&publish.key);
            self.order.retain(|(_, key)| *key != publish.key);
        }
        self.remember(now, publish, now_known);
    }

    /// Where publications stand in channels that are not replicated.
    pub fn alone(&self) -> impl Iterator<Item = &Position> {
        let known = self.known.values().map(|known| &known.first);
        known
            .filter(|first| first.is_alone)
            .map(|first| &first.position)
    }

    /// Forgets the keys of some publications before their time.
    pub fn forget(&mut self, goes: impl Fn(&Publication) -> bool) {
        let known = &mut self.known;
        self.order.retain(|(_, key)| {
            let stays = known.get(key).is_some_and(|known| !goes(&known.first));
            if !stays {
                known.remove(key);
            }
            stays
        });
    }

    /// Everything that is remembered, the oldest first.
    pub fn pieces(&self, now: Timestamp) -> impl Iterator<Item = KeyPiece> {
        self.order.iter().filter_map(move |(at, key)| {
            let known = self.known.get(key)?;
            Some(KeyPiece {
                age_ms: now.since(*at).as_millis() as u64,
                key: *key,
                body: known.body,
                position: known.first.position,
                copies: if known.first.is_alone { 1 } else { 2 },
            })
        })
    }

    /// Remembers what another process remembered.
    pub fn restore(&mut self, now: Timestamp, piece: &KeyPiece) {
        if let Entry::Vacant(free) = self.known.entry(piece.key) {
            free.insert(Remembered {
                body: piece.body,
                first: Publication {
                    position: piece.position,
                    is_alone: piece.copies < 2,
                },
            });
            let at = Timestamp(now.0.saturating_sub(piece.age_ms));
            self.order.push_back((at, piece.key));
        }
    }

    /// Forgets what is older than [`KEPT`].
    pub fn expire(&mut self, now: Timestamp) {
        let is_due = |(at, _): &mut (Timestamp, Digest)| now.since(*at) >= KEPT;
        while let Some((_, key)) = self.order.pop_front_if(is_due) {
            self.known.remove(&key);
        }
        // A burst is not to hold its room for ever.
        if self.known.is_empty() && self.known.capacity() > 0 {
            *self = Self::with_room_for(self.max);
        }
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::position::{Epoch, Offset};

    fn publish(key: u128, body: u128) -> Idempotency {
        Idempotency {
            key: Digest(key),
            body: Digest(body),
        }
    }

    fn publication(offset: u64) -> Publication {
        Publication {
            position: Position {
                epoch: Epoch(1),
                offset: Offset(offset),
            },
            is_alone: false,
        }
    }

    #[test]
    fn a_repeat_gets_the_first_result_and_another_body_none() {
        let mut keys = Keys::default();
        let now = Timestamp(0);
        assert_eq!(keys.admit(now, &publish(1, 1)), Admission::New);
        // It was refused for another reason: nothing is remembered.
        assert_eq!(keys.admit(now, &publish(1, 2)), Admission::New);
        keys.remember(now, &publish(1, 2), publication(5));
        assert_eq!(
            keys.admit(now, &publish(1, 2)),
            Admission::Repeat(publication(5))
        );
        assert_eq!(keys.admit(now, &publish(1, 1)), Admission::Mismatch);
        assert_eq!(keys.admit(now, &publish(2, 1)), Admission::New);
    }

    #[test]
    fn a_key_is_free_again_after_its_time_and_a_repeat_does_not_prolong_it() {
        let mut keys = Keys::default();
        let end = KEPT.as_millis() as u64;
        keys.remember(Timestamp(0), &publish(1, 1), publication(1));
        let repeat = Admission::Repeat(publication(1));
        assert_eq!(keys.admit(Timestamp(end - 1), &publish(1, 1)), repeat);
        assert_eq!(keys.admit(Timestamp(end), &publish(1, 2)), Admission::New);
        assert!(keys.is_empty());
    }

    #[test]
    fn what_cannot_be_remembered_is_refused_and_nothing_is_forgotten_early() {
        let mut keys = Keys::with_room_for(2);
        keys.remember(Timestamp(0), &publish(1, 1), publication(1));
        keys.remember(Timestamp(10), &publish(2, 1), publication(2));
        let end = KEPT.as_millis() as u64;
        for at in [10, end - 1] {
            let now = Timestamp(at);
            assert_eq!(keys.admit(now, &publish(3, 1)), Admission::Full);
            assert_eq!(keys.admit(now, &publish(2, 2)), Admission::Mismatch);
            assert_eq!(
                keys.admit(now, &publish(1, 1)),
                Admission::Repeat(publication(1))
            );
        }
        assert_eq!(keys.admit(Timestamp(end), &publish(3, 1)), Admission::New);
    }

    /// What an entry takes when the tables have just doubled.
    #[test]
    fn an_entry_takes_no_more_than_it_is_counted_as() {
        // hashbrown fills a table by 7/8 and then doubles it; a control byte
        // each. So does a queue, without the eighth.
        let in_table = (size_of::<(Digest, Remembered)>() + 1) * 16 / 7;
        let in_queue = size_of::<(Timestamp, Digest)>() * 2;
        assert!(in_table + in_queue <= ENTRY_BYTES, "{in_table} {in_queue}");
    }

    #[test]
    fn a_key_that_is_forgotten_or_replaced_counts_from_when_it_is_used_again() {
        let mut keys = Keys::default();
        for (at, key) in [(0, 1), (1_000, 2)] {
            keys.remember(Timestamp(at), &publish(key, key), publication(at));
        }
        keys.forget(|first| first.position.offset == Offset(0));
        assert_eq!(keys.admit(Timestamp(2_000), &publish(1, 1)), Admission::New);
        for key in [1, 2] {
            keys.replace(Timestamp(60_000), &publish(key, key), publication(9));
        }
        assert_eq!(keys.len(), 2);
        let later = Timestamp(1_000 + KEPT.as_millis() as u64);
        let repeat = Admission::Repeat(publication(9));
        assert_eq!(keys.admit(later, &publish(1, 1)), repeat);
        assert_eq!(keys.admit(later, &publish(2, 2)), repeat);
        keys.expire(Timestamp(60_000) + KEPT);
        assert!(keys.is_empty() && keys.order.is_empty());
    }

    proptest! {
        /// As a plain list would do it.
        #[test]
        fn each_key_leads_to_one_publication_in_its_time(
            steps in prop::collection::vec((0_u64..60_000, 0_u128..4, 0_u128..2), 0..60),
        ) {
            let mut keys = Keys::with_room_for(3);
            let mut model: Vec<(Timestamp, Idempotency, Publication)> = Vec::new();
            let mut now = Timestamp(0);
            for (number, (later, key, body)) in (1..).zip(steps) {
                now = now + Duration::from_millis(later);
                model.retain(|(at, _, _)| now.since(*at) < KEPT);
                let asked = publish(key, body);
                let known = model.iter().find(|(_, known, _)| known.key == asked.key);
                let expected = match known {
                    Some((_, known, first)) if known.body == asked.body => Admission::Repeat(*first),
                    Some(_) => Admission::Mismatch,
                    None if model.len() == 3 => Admission::Full,
                    None => Admission::New,
                };
                let admission = keys.admit(now, &asked);
                prop_assert_eq!(admission, expected);
                if admission == Admission::New {
                    keys.remember(now, &asked, publication(number));
                    model.push((now, asked, publication(number)));
                }
                prop_assert_eq!(keys.len(), model.len());
            }
        }
    }
}
