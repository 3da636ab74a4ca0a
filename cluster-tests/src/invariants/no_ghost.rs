//! Nobody stays in a roster who has gone: when everything must have healed, no member
//! believes that somebody is there who is not.

use super::rooms::Rooms;
use super::{Verdict, broken};
use crate::sim::trace::{Fact, Trace};

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    let mut rooms = Rooms::default();
    for (entry, fact) in trace.facts() {
        if *fact == Fact::Settled {
            for ((channel, connection), member) in &rooms.members {
                let ghosts = member.view.unwrap_or_default() & !rooms.users(*channel);
                if ghosts != 0 {
                    let what = format!(
                        "to connection {connection} users {ghosts:#b} are still in channel {channel}"
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
    use crate::invariants::testing::{entered, enters, exits, went};

    #[test]
    fn a_ghost_is_noticed() {
        let facts = [enters(1, 0), enters(2, 1), entered(1, 0b11), exits(2)];
        let with = |told: &[Fact]| {
            let facts = facts.iter().chain(told).copied();
            check(&Trace::of(facts.chain([Fact::Settled])))
        };
        assert_eq!(with(&[went(1, 1)]), Ok(()));
        assert_eq!(with(&[]).unwrap_err().entry, 4);
    }
}
