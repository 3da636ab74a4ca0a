//! When everything must have healed, every client that wants to be a member is one, and
//! knows of everybody who is there.

use super::rooms::Rooms;
use super::{Verdict, broken};
use crate::sim::trace::{Fact, Trace};

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    let mut rooms = Rooms::default();
    for (entry, fact) in trace.facts() {
        if *fact == Fact::Settled {
            for ((channel, connection), member) in &rooms.members {
                let missing = rooms.users(*channel) & !member.view.unwrap_or_default();
                if missing != 0 {
                    let what = format!(
                        "connection {connection} does not know of users {missing:#b} in channel {channel}"
                    );
                    return broken(entry, what);
                }
            }
        }
        rooms.see(fact);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::testing::{came, entered, enters};

    #[test]
    fn whoever_is_not_known_of_is_noticed() {
        let facts = [enters(1, 0), entered(1, 0b1), enters(2, 1)];
        let with = |told: &[Fact]| {
            let facts = facts.iter().chain(told).copied();
            check(&Trace::of(facts.chain([Fact::Settled])))
        };
        assert_eq!(with(&[came(1, 1), entered(2, 0b11)]), Ok(()));
        assert_eq!(with(&[came(1, 1)]).unwrap_err().entry, 4, "it is not in");
        assert_eq!(with(&[entered(2, 0b11)]).unwrap_err().entry, 4);
    }
}
