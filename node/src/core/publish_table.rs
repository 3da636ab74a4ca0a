//! What became of a gateway's publishes: the last contiguous sequence, and
//! every result that the gateway may still ask for again.
//!
//! A gateway repeats a publish whenever its answer stays away, so the same
//! sequence may come many times and must take effect once. The gateway's low
//! mark says which results it has seen; they are forgotten.

use std::collections::VecDeque;

use proto::message::{PublishResult, Published, Refusal};
use proto::position::Position;

/// Results kept at most; a gateway has no more publishes of a shard in flight.
pub const RESULTS_MAX: usize = 1_024;

/// One gateway incarnation's publishes to one shard.
#[derive(Debug)]
pub struct PublishTable {
    /// The lowest sequence that has not come.
    next: u64,
    /// Results of the sequences just below `next`.
    results: VecDeque<PublishResult>,
}

/// More results than places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImpossibleTable;

/// What to do with a publish.
#[derive(Debug, Clone, PartialEq)]
pub enum Admission {
    /// It is the next one: perform it, then [`PublishTable::record`] the result.
    Next,
    /// It has been performed: this was the result.
    Repeat(PublishResult),
    /// Others before it have not come; or the gateway has as many unanswered
    /// as it may, and sends this one again when it has heard of some.
    OutOfSequence {
        /// The first of them.
        expected: u64,
    },
    /// It has been performed and the gateway has seen the result.
    Forgotten,
}

impl PublishTable {
    /// A table for a gateway incarnation that has not been heard of: it starts
    /// at the gateway's low mark, below which everything has been answered.
    pub fn starting_at(low_mark: u64) -> Self {
        Self {
            next: low_mark,
            results: VecDeque::new(),
        }
    }

    /// Decides on a publish.
    pub fn admit(&mut self, sequence: u64, low_mark: u64) -> Admission {
        self.forget_below(low_mark);
        // Everything below has been answered, by an earlier owner if not here.
        self.next = self.next.max(low_mark);
        // After the last number there is no next one. Nobody comes to it by
        // counting, but the number is from outside.
        if sequence > self.next || sequence == u64::MAX {
            return Admission::OutOfSequence {
                expected: self.next,
            };
        }
        if sequence == self.next {
            let full = self.results.len() >= RESULTS_MAX;
            return if full {
                Admission::OutOfSequence {
                    expected: self.next,
                }
            } else {
                Admission::Next
            };
        }
        let back = (self.next - sequence) as usize;
        match self.results.len().checked_sub(back) {
            Some(at) => Admission::Repeat(self.results[at].clone()),
            None => Admission::Forgotten,
        }
    }

    /// Closes the next sequence with its result.
    pub fn record(&mut self, result: PublishResult) {
        self.next += 1;
        self.results.push_back(result);
    }

    /// A place was closed at the owner, in the order in which it was there.
    pub fn replay(&mut self, sequence: u64, low_mark: u64, result: PublishResult) {
        self.forget_below(low_mark);
        if sequence < self.next {
            return;
        }
        // What lies between was answered by an owner before that one.
        if sequence > self.next {
            self.results.clear();
        }
        self.next = sequence.saturating_add(1);
        self.results.push_back(result);
    }

    /// The lowest sequence that has not come, and the results just below it.
    pub fn piece(&self) -> (u64, Vec<PublishResult>) {
        (self.next, self.results.iter().cloned().collect())
    }

    /// What [`Self::piece`] was taken of. `Err`: nobody can have had that.
    pub fn of(next: u64, results: Vec<PublishResult>) -> Result<Self, ImpossibleTable> {
        if results.len() as u64 > next {
            return Err(ImpossibleTable);
        }
        Ok(Self {
            next,
            results: results.into(),
        })
    }

    /// Lets go of all results. Who asks for one is told that it is forgotten,
    /// and nothing is performed again.
    pub fn forget_results(&mut self) {
        self.results = VecDeque::new();
    }

    /// Where publications stand of which results are known.
    pub fn positions(&self) -> impl Iterator<Item = &Position> {
        self.results.iter().filter_map(|result| match result {
            Ok(Published::Accepted { position, .. }) => Some(position),
            _ => None,
        })
    }

    /// Lets go of results that say of a publication that it is where nothing is any
    /// more.
    pub fn forget_results_at(&mut self, is_lost: impl Fn(&Position) -> bool) {
        for result in &mut self.results {
            if let Ok(Published::Accepted { position, .. }) = result
                && is_lost(position)
            {
                *result = Err(Refusal::Forgotten);
            }
        }
    }

    fn forget_below(&mut self, low_mark: u64) {
        let first = self.next - self.results.len() as u64;
        let seen = low_mark
            .saturating_sub(first)
            .min(self.results.len() as u64);
        self.results.drain(..seen as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn skipped() -> PublishResult {
        Ok(Published::Skipped)
    }

    #[test]
    fn a_repeat_gets_the_first_result() {
        let mut table = PublishTable::starting_at(5);
        assert_eq!(table.admit(5, 5), Admission::Next);
        table.record(Err(Refusal::Overloaded));
        assert_eq!(
            table.admit(5, 5),
            Admission::Repeat(Err(Refusal::Overloaded))
        );
        assert_eq!(table.admit(6, 6), Admission::Next);
        table.record(skipped());
        assert_eq!(table.admit(5, 6), Admission::Forgotten);
    }

    /// What the low mark is above was answered by somebody: it will not come.
    #[test]
    fn what_has_been_answered_elsewhere_is_not_waited_for() {
        let mut table = PublishTable::starting_at(5);
        assert_eq!(table.admit(10, 5), Admission::OutOfSequence { expected: 5 });
        assert_eq!(table.admit(6, 6), Admission::Next);
        table.record(skipped());
        assert_eq!(table.admit(7, 6), Admission::Next);
    }

    #[test]
    fn a_hole_is_refused_with_where_it_begins() {
        let mut table = PublishTable::starting_at(1);
        assert_eq!(table.admit(3, 1), Admission::OutOfSequence { expected: 1 });
        assert_eq!(table.admit(1, 1), Admission::Next);
    }

    #[test]
    fn more_than_the_bound_in_flight_is_refused_until_the_low_mark_rises() {
        let mut table = PublishTable::starting_at(1);
        for sequence in 1..=RESULTS_MAX as u64 {
            assert_eq!(table.admit(sequence, 1), Admission::Next);
            table.record(skipped());
        }
        let next = RESULTS_MAX as u64 + 1;
        assert_eq!(
            table.admit(next, 1),
            Admission::OutOfSequence { expected: next }
        );
        assert_eq!(table.admit(next, 2), Admission::Next);
    }

    /// Nobody counts that far; but the number comes from outside.
    #[test]
    fn the_last_number_is_no_sequence() {
        let last = u64::MAX;
        let mut table = PublishTable::starting_at(last);
        assert_eq!(
            table.admit(last, last),
            Admission::OutOfSequence { expected: last }
        );
        let mut table = PublishTable::starting_at(1);
        assert_eq!(
            table.admit(last, last),
            Admission::OutOfSequence { expected: last }
        );
        let mut table = PublishTable::starting_at(last - 1);
        assert_eq!(table.admit(last - 1, last - 1), Admission::Next);
        table.record(skipped());
        assert_eq!(table.admit(last - 1, 1), Admission::Repeat(skipped()));
    }

    proptest! {
        /// However a gateway's publishes are repeated and shuffled, each is
        /// performed once and in order.
        #[test]
        fn each_sequence_is_performed_once_in_order(
            arrivals in prop::collection::vec((1_u64..30, 0_u64..40), 0..300),
        ) {
            let mut table = PublishTable::starting_at(1);
            let mut performed = 0;
            let mut answered = 1;
            for (sequence, low_mark) in arrivals {
                // A gateway's own publish is never below its low mark.
                let low_mark = low_mark.min(sequence);
                answered = answered.max(low_mark);
                match table.admit(sequence, low_mark) {
                    Admission::Next => {
                        prop_assert!(sequence > performed, "once, and in order");
                        prop_assert!((performed + 1..sequence).all(|skipped| skipped < answered));
                        performed = sequence;
                        table.record(skipped());
                    }
                    Admission::Repeat(_) => prop_assert!(sequence <= performed),
                    Admission::Forgotten => prop_assert!(sequence <= performed.max(answered)),
                    Admission::OutOfSequence { expected } => {
                        prop_assert!(sequence > expected);
                        prop_assert_eq!(expected, answered.max(performed + 1));
                    }
                }
            }
        }
    }
}
