//! A publish is at most once in its channel, however often it was sent, and
//! whichever owner took it. An owner that begins a new epoch has nothing of what
//! was there before, and may be given again what was never answered.

use std::collections::HashSet;

use super::{Verdict, broken};
use crate::sim::trace::{Fact, Trace};

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    let mut known = HashSet::new();
    let mut in_epochs = HashSet::new();
    for (entry, fact) in trace.facts() {
        if let Fact::Published {
            fence,
            order,
            position,
            ..
        } = fact
            && (!in_epochs.insert((position.epoch, *order)) || !known.insert((*fence, *order)))
        {
            return broken(entry, format!("order {order} is in its channel twice"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::testing::published;

    #[test]
    fn a_publish_that_is_performed_twice_is_noticed() {
        let good = [published(1, 1, 1), published(1, 2, 2)];
        assert_eq!(check(&Trace::of(good)), Ok(()));
        let twice = [published(1, 1, 1), published(1, 2, 1)];
        assert_eq!(check(&Trace::of(twice)).unwrap_err().entry, 1);
    }

    #[test]
    fn another_owner_may_be_given_it_again() {
        let again = |epoch, offset| {
            let mut again = published(epoch, offset, 1);
            if let Fact::Published { fence, .. } = &mut again {
                *fence = 2;
            }
            check(&Trace::of([published(1, 1, 1), again]))
        };
        assert_eq!(again(2, 1), Ok(()));
        assert_eq!(again(1, 2).unwrap_err().entry, 1, "the epoch goes on");
    }
}
