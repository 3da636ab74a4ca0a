//! Nobody acts as the owner of a shard any more once another one has, under a
//! higher fence.

use std::collections::HashMap;

use super::{Verdict, broken};
use crate::sim::trace::{Channel, Fact, Trace};

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    let mut floors: HashMap<Channel, u64> = HashMap::new();
    for (entry, fact) in trace.facts() {
        let Fact::Published { fence, channel, .. } = fact else {
            continue;
        };
        let floor = floors.entry(*channel).or_insert(*fence);
        if fence < floor {
            return broken(
                entry,
                format!("fence {fence} acts in channel {channel} after fence {floor}"),
            );
        }
        *floor = *fence;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::testing::published;

    #[test]
    fn an_earlier_owner_that_acts_is_noticed() {
        let under = |epoch, under: u64| {
            let mut fact = published(epoch, 1, 1);
            if let Fact::Published { fence, .. } = &mut fact {
                *fence = under;
            }
            fact
        };
        let good = [under(1, 3), under(2, 3), under(3, 4)];
        assert_eq!(check(&Trace::of(good)), Ok(()));
        let late = [under(1, 3), under(3, 4), under(1, 3)];
        assert_eq!(check(&Trace::of(late)).unwrap_err().entry, 2);
    }
}
