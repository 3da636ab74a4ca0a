//! While a standby that is agreed to have everything is there, no shard begins
//! anew: what was acknowledged survives the loss of its owner.

use super::{Verdict, broken};
use crate::sim::trace::{Fact, Trace};

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    for (entry, fact) in trace.facts() {
        if let Fact::Forsaken { shard, standby } = fact {
            return broken(
                entry,
                format!("shard {shard} begins anew, though n{standby} has all of it"),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_that_is_passed_over_is_noticed() {
        let facts = [Fact::Forsaken {
            shard: 1,
            standby: 2,
        }];
        assert_eq!(check(&Trace::of(facts)).unwrap_err().entry, 0);
        assert_eq!(check(&Trace::of([])), Ok(()));
    }
}
