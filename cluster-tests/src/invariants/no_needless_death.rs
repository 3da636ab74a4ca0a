//! No gateway is declared gone because the bus was away: its clients would lose
//! nothing, but all gateways would take new lives at once, and join everything
//! anew, when there is most to do.

use super::{Verdict, broken};
use crate::sim::trace::{Fact, Trace};

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    for (entry, fact) in trace.facts() {
        if let Fact::Gone {
            needlessly: true, ..
        } = fact
        {
            return broken(entry, fact.to_string());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_needless_death_is_noticed() {
        let gone = |needlessly| Fact::Gone {
            gateway: 0,
            incarnation: 1,
            needlessly,
        };
        assert_eq!(check(&Trace::of([gone(false)])), Ok(()));
        let trace = Trace::of([gone(false), gone(true)]);
        assert_eq!(check(&trace).unwrap_err().entry, 1);
    }
}
