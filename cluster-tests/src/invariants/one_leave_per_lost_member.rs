//! A member is told of each user that it comes once and goes once, and of nobody that
//! it has gone who was there all the time.

use super::rooms::Rooms;
use super::{Verdict, broken};
use crate::sim::trace::{Fact, Trace};

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    let mut rooms = Rooms::default();
    for (entry, fact) in trace.facts() {
        match *fact {
            Fact::Entered {
                connection,
                channel,
                users,
            } => {
                let Some(member) = rooms.members.get(&(channel, connection)) else {
                    continue;
                };
                if member.view.is_some() {
                    return broken(entry, format!("connection {connection} is let in twice"));
                }
                if users & 1 << member.user == 0 {
                    let what = format!("connection {connection} is let in without its user");
                    return broken(entry, what);
                }
            }
            Fact::Came {
                connection,
                channel,
                user,
            } => {
                let member = rooms.members.get(&(channel, connection));
                let view = member.map(|member| member.view);
                if view.is_some_and(|view| view.is_none_or(|view| view & 1 << user != 0)) {
                    let what = format!("connection {connection} is told twice of user {user}");
                    return broken(entry, what);
                }
            }
            Fact::Went {
                connection,
                channel,
                user,
            } => {
                let Some(member) = rooms.members.get(&(channel, connection)) else {
                    continue;
                };
                if member.view.is_none_or(|view| view & 1 << user == 0) {
                    let what =
                        format!("connection {connection} is told that user {user} goes twice");
                    return broken(entry, what);
                }
                let absences = rooms.absences.get(&(channel, user)).copied();
                let told = member.went.get(&user).copied().unwrap_or_default();
                // A life that was declared over is one more reason to leave.
                if told >= absences.unwrap_or_default() + rooms.gone {
                    let what = format!(
                        "connection {connection} is told that user {user} has gone, who was there all the time"
                    );
                    return broken(entry, what);
                }
            }
            _ => {}
        }
        rooms.see(fact);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::testing::{came, entered, enters, exits, went};

    fn judged(facts: &[Fact]) -> Option<usize> {
        let trace = Trace::of(facts.iter().copied());
        check(&trace).err().map(|broken| broken.entry)
    }

    #[test]
    fn whoever_comes_and_goes_is_told_of_once_each() {
        let good = [
            enters(1, 0),
            entered(1, 0b1),
            enters(2, 1),
            came(1, 1),
            exits(2),
            went(1, 1),
        ];
        assert_eq!(judged(&good), None);
        let twice = [&good[..4], &[came(1, 1)]].concat();
        assert_eq!(judged(&twice), Some(4));
        let gone_twice = [&good[..], &[went(1, 1)]].concat();
        assert_eq!(judged(&gone_twice), Some(6));
    }

    #[test]
    fn whoever_is_there_has_not_gone() {
        let early = [enters(1, 0), enters(2, 1), entered(1, 0b11), went(1, 1)];
        assert_eq!(judged(&early), Some(3));
        let over = Fact::Gone {
            gateway: 0,
            incarnation: 1,
            needlessly: false,
        };
        let declared = [&early[..3], &[over, went(1, 1)]].concat();
        assert_eq!(judged(&declared), None);
    }

    /// While a gateway is taken for gone, its user's connections elsewhere are all
    /// there are.
    #[test]
    fn a_user_goes_with_its_last_connection_that_is_not_lost() {
        let connected = |connection, gateway| Fact::Connected {
            connection,
            gateway,
        };
        let over = Fact::Gone {
            gateway: 0,
            incarnation: 1,
            needlessly: false,
        };
        let there = [
            connected(1, 0),
            enters(1, 0),
            entered(1, 0b1),
            connected(2, 1),
            enters(2, 0),
            entered(2, 0b1),
            connected(3, 1),
            enters(3, 1),
            entered(3, 0b11),
        ];
        let again = [over, went(3, 0), came(3, 0), exits(2), went(3, 0)];
        assert_eq!(judged(&[&there[..], &again].concat()), None);
        let never_lost = [went(3, 0)];
        let other = [&there[..], &[exits(2)], &never_lost].concat();
        assert_eq!(judged(&other), Some(10));
    }

    #[test]
    fn whoever_is_let_in_is_so_once_and_with_its_user() {
        assert_eq!(judged(&[enters(1, 0), entered(1, 0b10)]), Some(1));
        let twice = [enters(1, 0), entered(1, 0b1), entered(1, 0b1)];
        assert_eq!(judged(&twice), Some(2));
    }
}
