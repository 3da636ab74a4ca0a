//! An owner that knows of a later life of a gateway, or that it was declared gone,
//! keeps nothing of what it wanted.

use super::{Verdict, broken};
use crate::sim::trace::{Fact, Trace};

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    for (entry, fact) in trace.facts() {
        if let Fact::Ghost { .. } = fact {
            return broken(entry, fact.to_string());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ghost_is_noticed() {
        let ghost = Fact::Ghost {
            node: 0,
            gateway: 1,
            channel: 2,
        };
        assert_eq!(check(&Trace::of([Fact::Healing])), Ok(()));
        let haunted = Trace::of([Fact::Healing, ghost]);
        assert_eq!(check(&haunted).unwrap_err().entry, 1);
    }
}
