//! Whoever asks an owner where a channel stands is not told less than what is
//! there: not by an owner that has been replaced, and not by one that has taken
//! over and lacks something.

use std::collections::HashMap;

use proto::position::{Epoch, Offset};

use super::{Verdict, broken};
use crate::sim::trace::{Fact, Trace};

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    let mut heads: HashMap<Epoch, Offset> = HashMap::new();
    for (entry, fact) in trace.facts() {
        match fact {
            Fact::Published { position, .. } => {
                let head = heads.entry(position.epoch).or_insert(position.offset);
                *head = position.offset.max(*head);
            }
            Fact::Told { node, position, .. } => {
                let head = heads.get(&position.epoch).copied();
                if head.is_some_and(|head| position.offset < head) {
                    return broken(
                        entry,
                        format!("n{node} says {position} when more is there: {head:?}"),
                    );
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::testing::{at, published};

    #[test]
    fn an_answer_that_is_behind_is_noticed() {
        let told = |epoch, offset| Fact::Told {
            node: 1,
            fence: 2,
            position: at(epoch, offset),
        };
        let begin = [published(1, 1, 1), published(1, 2, 2)];
        let then = |fact| check(&Trace::of(begin.into_iter().chain([fact])));
        assert_eq!(then(told(1, 2)), Ok(()));
        assert_eq!(then(told(2, 0)), Ok(()), "another epoch");
        assert_eq!(then(told(1, 1)).unwrap_err().entry, 2);
    }
}
