//! A channel's past: a ring bounded by count, age and bytes, whichever is first.
//!
//! What has left it by these limits stays for a moment longer if the shard's
//! repair log still has it: gateways that have lost it on the way can be given
//! it, clients cannot. Both are one ring, since the one is the end of the other.

use std::collections::VecDeque;
use std::sync::Arc;

use proto::namespace::HistoryLimits;
use proto::position::Offset;
use proto::publication::Publication;
use proto::time::Timestamp;

/// Publications before the one that a client asks for, which it is given along:
/// others that come back may stand a little behind it, and need not ask.
const ALONG: usize = 32;
/// Their bytes at most.
const ALONG_BYTES_MAX: usize = 32 * 1_024;

/// The latest publications of one epoch, contiguous up to the channel's head.
#[derive(Debug, Default)]
pub struct History {
    ring: VecDeque<(Timestamp, Arc<Publication>)>,
    /// Of those that are not retired.
    bytes: usize,
    /// How many at the front are there for repair alone.
    retired: u32,
    /// How many at the back the repair log has.
    held: u32,
}

/// For whom the past is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// A gateway that has lost something: it gets whatever is there.
    Gateway,
    /// A client that has come back: it gets what the namespace keeps.
    Client,
}

/// What history has to say about a position.
#[derive(Debug, PartialEq, Eq)]
pub enum Past {
    /// Everything after it, or as much as fits into one answer.
    Publications(Vec<Arc<Publication>>),
    /// The publication after it has left.
    Expired,
}

impl History {
    /// Adds the next publication and lets go of what is over the limits. The
    /// repair log has it too, until [`History::release`].
    pub fn append(
        &mut self,
        now: Timestamp,
        publication: Arc<Publication>,
        limits: &HistoryLimits,
    ) {
        self.bytes += publication.bytes();
        self.ring.push_back((now, publication));
        self.held += 1;
        while self.len() > limits.publications as usize || self.bytes > limits.bytes as usize {
            self.retire();
        }
        self.expire(now, limits);
    }

    /// Everything that is there, each with its age, the oldest first; how many
    /// of them are for repair alone, and how many the repair log has.
    pub fn piece(&self, now: Timestamp) -> (Vec<(u64, Arc<Publication>)>, u32, u32) {
        let aged = |(at, publication): &(Timestamp, Arc<Publication>)| {
            (now.since(*at).as_millis() as u64, Arc::clone(publication))
        };
        let ring = self.ring.iter().map(aged).collect();
        (ring, self.retired, self.held)
    }

    /// What [`Self::piece`] was taken of.
    pub fn of(now: Timestamp, ring: Vec<(u64, Arc<Publication>)>, retired: u32, held: u32) -> Self {
        let retired = retired.min(ring.len() as u32);
        let held = held.min(ring.len() as u32);
        let kept = ring.iter().skip(retired as usize);
        let bytes = kept.map(|(_, publication)| publication.bytes()).sum();
        let at = |age: u64| Timestamp(now.0.saturating_sub(age));
        Self {
            ring: ring.into_iter().map(|(age, p)| (at(age), p)).collect(),
            bytes,
            retired,
            held,
        }
    }

    /// Lets go of what is too old.
    pub fn expire(&mut self, now: Timestamp, limits: &HistoryLimits) {
        while self
            .ring
            .get(self.retired as usize)
            .is_some_and(|(at, _)| *at + limits.age <= now)
        {
            self.retire();
        }
        self.trim();
    }

    /// The repair log lets go of the oldest one that it has.
    pub fn release(&mut self) {
        self.held = self.held.saturating_sub(1);
        self.trim();
    }

    /// When the oldest publication will be too old.
    pub fn expires_at(&self, limits: &HistoryLimits) -> Option<Timestamp> {
        self.ring
            .get(self.retired as usize)
            .map(|(at, _)| *at + limits.age)
    }

    /// What came after `after`, given that the channel stands at `head` and
    /// `after` is not beyond it. Ends early when the answer would be over
    /// `bytes_max`, but holds at least one publication. For a client it may
    /// begin a little earlier.
    pub fn since(&self, after: Offset, head: Offset, audience: Audience, bytes_max: usize) -> Past {
        if after == head {
            return Past::Publications(Vec::new());
        }
        let first = self.begin(audience);
        let earliest = self.first(head, audience);
        if after.next() < earliest {
            return Past::Expired;
        }
        let at = first + (after.next().0 - earliest.0) as usize;
        let along = match audience {
            Audience::Gateway => 0,
            Audience::Client => self.along(first, at),
        };
        let mut bytes = 0;
        let wanted = self.ring.range(at..).map(|(_, publication)| publication);
        let wanted = wanted.take_while(|publication| {
            let first = bytes == 0;
            bytes += publication.bytes();
            first || bytes <= bytes_max
        });
        let along = self.ring.range(at - along..at);
        let along = along.map(|(_, publication)| publication);
        Past::Publications(along.chain(wanted).cloned().collect())
    }

    /// How many before the one at `at` a client is given along.
    fn along(&self, first: usize, at: usize) -> usize {
        let mut bytes = 0;
        let before = self.ring.range(first..at).rev().take(ALONG);
        before
            .take_while(|(_, publication)| {
                bytes += publication.bytes();
                bytes <= ALONG_BYTES_MAX
            })
            .count()
    }

    /// The earliest publication that clients can have; the next one of the
    /// channel when there is none.
    pub fn earliest(&self, head: Offset) -> Offset {
        self.first(head, Audience::Client)
    }

    /// The earliest that these can have.
    pub fn first(&self, head: Offset, audience: Audience) -> Offset {
        self.ring
            .get(self.begin(audience))
            .map_or(head.next(), |(_, publication)| publication.offset)
    }

    fn begin(&self, audience: Audience) -> usize {
        match audience {
            Audience::Gateway => 0,
            Audience::Client => self.retired as usize,
        }
    }

    /// How many are kept for clients.
    pub fn len(&self) -> usize {
        self.ring.len() - self.retired as usize
    }

    /// Whether nothing is kept, not even for repair.
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// The oldest one leaves the history.
    fn retire(&mut self) {
        if let Some((_, publication)) = self.ring.get(self.retired as usize) {
            self.bytes -= publication.bytes();
            self.retired += 1;
        }
    }

    /// Drops what neither the history nor the repair log has.
    fn trim(&mut self) {
        while self.retired > 0 && self.ring.len() > self.held as usize {
            self.ring.pop_front();
            self.retired -= 1;
        }
        // A channel that has gone quiet keeps no room.
        if self.ring.is_empty() {
            self.ring = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::time::UnixTime;
    use std::time::Duration;

    fn publication(offset: u64, len: usize) -> Arc<Publication> {
        Arc::new(Publication {
            offset: Offset(offset),
            event: "e".into(),
            data: "x".repeat(len).into(),
            exclude: None,
            accepted_at: UnixTime(0),
            mark: None,
        })
    }

    fn offsets(past: &Past) -> Option<Vec<u64>> {
        match past {
            Past::Publications(all) => Some(all.iter().map(|p| p.offset.0).collect()),
            Past::Expired => None,
        }
    }

    fn since(history: &History, after: u64, head: u64, audience: Audience) -> Option<Vec<u64>> {
        offsets(&history.since(Offset(after), Offset(head), audience, usize::MAX))
    }

    #[test]
    fn an_answer_ends_early_but_never_empty() {
        let mut history = History::default();
        let limits = HistoryLimits {
            bytes: u32::MAX,
            ..HistoryLimits::default()
        };
        for offset in 1..=3 {
            history.append(Timestamp(0), publication(offset, 1_000), &limits);
        }
        let since = |max| offsets(&history.since(Offset(0), Offset(3), Audience::Gateway, max));
        assert_eq!(since(1), Some(vec![1]));
        assert_eq!(since(2_500), Some(vec![1, 2]));
        assert_eq!(since(usize::MAX), Some(vec![1, 2, 3]));
    }

    #[test]
    fn a_client_is_given_some_along_and_a_gateway_is_not() {
        let mut history = History::default();
        for offset in 1..=100 {
            history.append(
                Timestamp(0),
                publication(offset, 1),
                &HistoryLimits::default(),
            );
        }
        let first = |after, audience| since(&history, after, 100, audience).unwrap()[0];
        assert_eq!(first(90, Audience::Gateway), 91);
        assert_eq!(first(90, Audience::Client), 91 - ALONG as u64);
        assert_eq!(first(3, Audience::Client), 1);
        assert_eq!(since(&history, 100, 100, Audience::Client), Some(vec![]));
    }

    #[test]
    fn without_history_a_gateway_is_repaired_and_a_client_has_a_gap() {
        let mut history = History::default();
        let limits = HistoryLimits {
            publications: 0,
            ..HistoryLimits::default()
        };
        history.append(Timestamp(0), publication(1, 1), &limits);
        history.append(Timestamp(0), publication(2, 1), &limits);
        assert_eq!(since(&history, 0, 2, Audience::Client), None);
        assert_eq!(since(&history, 2, 2, Audience::Client), Some(vec![]));
        assert_eq!(since(&history, 0, 2, Audience::Gateway), Some(vec![1, 2]));
        assert_eq!((history.len(), history.is_empty()), (0, false));
        history.release();
        assert_eq!(since(&history, 0, 2, Audience::Gateway), None);
        assert_eq!(since(&history, 1, 2, Audience::Gateway), Some(vec![2]));
        history.release();
        assert!(history.is_empty());
    }

    #[test]
    fn what_the_history_keeps_stays_when_the_repair_log_lets_go_of_it() {
        let mut history = History::default();
        history.append(Timestamp(0), publication(1, 1), &HistoryLimits::default());
        history.release();
        assert_eq!(since(&history, 0, 1, Audience::Client), Some(vec![1]));
    }

    proptest! {
        /// Whatever was published, forgotten and released, an answer is either
        /// complete and contiguous or says that it is not; and nobody is given
        /// what is not theirs.
        #[test]
        fn since_is_contiguous_or_expired(
            steps in prop::collection::vec((0_u64..400, 0_usize..200, 0_u64..4), 1..80),
            publications in 0_u32..20, age_ms in 1_u64..2_000, bytes in 1_u32..4_000,
            after in 0_u64..80,
        ) {
            let limits = HistoryLimits { publications, age: Duration::from_millis(age_ms), bytes };
            let mut history = History::default();
            let mut now = 0;
            let mut head = 0;
            let mut released = 0;
            for (wait, len, release) in steps {
                now += wait;
                head += 1;
                history.append(Timestamp(now), publication(head, len), &limits);
                for _ in 0..release.min(head - released) {
                    released += 1;
                    history.release();
                }
                prop_assert!(history.len() <= publications as usize);
                prop_assert!(history.bytes <= bytes as usize);
                let kept = history.ring.iter().skip(history.retired as usize);
                prop_assert_eq!(history.bytes, kept.map(|(_, p)| p.bytes()).sum::<usize>());
                let front = history.ring.front().map(|(_, p)| p.offset.0);
                prop_assert!(history.retired == 0 || front > Some(released));
                prop_assert!(history.expires_at(&limits).is_none_or(|at| at > Timestamp(now)));
            }
            let after = after.min(head);
            let repaired = since(&history, after, head, Audience::Gateway);
            let want: Vec<u64> = (after + 1..=head).collect();
            // The repair log has it all, or the history does.
            prop_assert!(repaired.is_some() || after < released);
            if let Some(got) = repaired {
                prop_assert_eq!(&got, &want);
            }
            if let Some(got) = since(&history, after, head, Audience::Client) {
                prop_assert!(got.ends_with(&want));
                prop_assert!(got.is_sorted() && got.len() <= want.len() + ALONG);
                prop_assert!(got.first().is_none_or(|first| *first >= history.earliest(Offset(head)).0));
            } else {
                prop_assert!(after + 1 < history.earliest(Offset(head)).0);
            }
        }
    }
}
