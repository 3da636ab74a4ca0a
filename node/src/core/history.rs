//! A channel's past: a ring bounded by count, age and bytes, whichever is first.

use std::collections::VecDeque;
use std::sync::Arc;

use proto::namespace::HistoryLimits;
use proto::position::Offset;
use proto::publication::Publication;
use proto::time::Timestamp;

/// The latest publications of one epoch, contiguous up to the channel's head.
#[derive(Debug, Default)]
pub struct History {
    ring: VecDeque<(Timestamp, Arc<Publication>)>,
    bytes: usize,
}

/// What history has to say about a position.
#[derive(Debug, PartialEq, Eq)]
pub enum Since {
    /// Everything after it, or as much as fits into one answer.
    Publications(Vec<Arc<Publication>>),
    /// The publication after it has left; the earliest that is still here.
    Expired(Offset),
}

impl History {
    /// Adds the next publication and lets go of what is over the limits.
    pub fn append(
        &mut self,
        now: Timestamp,
        publication: Arc<Publication>,
        limits: &HistoryLimits,
    ) {
        if limits.publications == 0 {
            return;
        }
        self.bytes += publication.bytes();
        self.ring.push_back((now, publication));
        while self.ring.len() > limits.publications as usize || self.bytes > limits.bytes as usize {
            self.pop();
        }
        self.expire(now, limits);
    }

    /// Lets go of what is too old.
    pub fn expire(&mut self, now: Timestamp, limits: &HistoryLimits) {
        while self
            .ring
            .front()
            .is_some_and(|(at, _)| *at + limits.age <= now)
        {
            self.pop();
        }
    }

    /// When the oldest publication will be too old.
    pub fn expires_at(&self, limits: &HistoryLimits) -> Option<Timestamp> {
        self.ring.front().map(|(at, _)| *at + limits.age)
    }

    /// What came after `after`, given that the channel stands at `head` and
    /// `after` is not beyond it. Ends early when the answer would be over
    /// `bytes_max`, but holds at least one publication.
    pub fn since(&self, after: Offset, head: Offset, bytes_max: usize) -> Since {
        if after == head {
            return Since::Publications(Vec::new());
        }
        let earliest = self.earliest(head);
        if after.next() < earliest {
            return Since::Expired(earliest);
        }
        let skip = (after.next().0 - earliest.0) as usize;
        let mut bytes = 0;
        let publications = self
            .ring
            .iter()
            .skip(skip)
            .map(|(_, publication)| publication)
            .take_while(|publication| {
                let first = bytes == 0;
                bytes += publication.bytes();
                first || bytes <= bytes_max
            })
            .cloned()
            .collect();
        Since::Publications(publications)
    }

    /// The earliest publication that is still here; the next one of the channel
    /// when there is none.
    pub fn earliest(&self, head: Offset) -> Offset {
        self.ring
            .front()
            .map_or(head.next(), |(_, publication)| publication.offset)
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.ring.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    fn pop(&mut self) {
        if let Some((_, publication)) = self.ring.pop_front() {
            self.bytes -= publication.bytes();
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
        })
    }

    fn offsets(since: &Since) -> Option<Vec<u64>> {
        match since {
            Since::Publications(all) => Some(all.iter().map(|p| p.offset.0).collect()),
            Since::Expired(_) => None,
        }
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
        let since = |max| offsets(&history.since(Offset(0), Offset(3), max));
        assert_eq!(since(1), Some(vec![1]));
        assert_eq!(since(2_500), Some(vec![1, 2]));
        assert_eq!(since(usize::MAX), Some(vec![1, 2, 3]));
    }

    #[test]
    fn no_history_means_that_every_absence_is_a_gap() {
        let mut history = History::default();
        let limits = HistoryLimits {
            publications: 0,
            ..HistoryLimits::default()
        };
        history.append(Timestamp(0), publication(1, 1), &limits);
        assert_eq!(
            history.since(Offset(0), Offset(1), 1_000),
            Since::Expired(Offset(2))
        );
        assert_eq!(
            history.since(Offset(1), Offset(1), 1_000),
            Since::Publications(vec![])
        );
    }

    proptest! {
        /// Whatever was published and forgotten, an answer is either complete
        /// and contiguous or says that it is not.
        #[test]
        fn since_is_contiguous_or_expired(
            steps in prop::collection::vec((0_u64..400, 0_usize..200), 1..80),
            publications in 0_u32..20, age_ms in 1_u64..2_000, bytes in 1_u32..4_000,
            after in 0_u64..80,
        ) {
            let limits = HistoryLimits { publications, age: Duration::from_millis(age_ms), bytes };
            let mut history = History::default();
            let mut now = 0;
            let mut head = 0;
            for (wait, len) in steps {
                now += wait;
                head += 1;
                history.append(Timestamp(now), publication(head, len), &limits);
                prop_assert!(history.ring.len() <= publications as usize);
                prop_assert!(history.bytes <= bytes as usize);
                prop_assert_eq!(history.bytes, history.ring.iter().map(|(_, p)| p.bytes()).sum::<usize>());
                prop_assert!(history.expires_at(&limits).is_none_or(|at| at > Timestamp(now)));
            }
            let after = after.min(head);
            match history.since(Offset(after), Offset(head), usize::MAX) {
                Since::Publications(all) => {
                    let got: Vec<u64> = all.iter().map(|p| p.offset.0).collect();
                    let want: Vec<u64> = (after + 1..=head).collect();
                    prop_assert_eq!(got, want);
                }
                Since::Expired(earliest) => {
                    prop_assert!(earliest.0 > after + 1 && earliest.0 <= head + 1);
                }
            }
        }
    }
}
