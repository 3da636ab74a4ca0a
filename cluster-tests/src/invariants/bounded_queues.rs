//! Every queue has a bound, and nothing is ever over it.

use super::{Verdict, broken};
use crate::sim::trace::{Fact, Trace};

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    for (entry, fact) in trace.facts() {
        if let Fact::Queued { length, bound, .. } = fact
            && length > bound
        {
            return broken(entry, fact.to_string());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::trace::Process;

    #[test]
    fn a_queue_over_its_bound_is_noticed() {
        let queued = |length| Fact::Queued {
            process: Process::Node(0),
            queue: "a mailbox",
            length,
            bound: 10,
        };
        assert_eq!(check(&Trace::of([queued(10)])), Ok(()));
        assert_eq!(check(&Trace::of([queued(11)])).unwrap_err().entry, 0);
    }
}
