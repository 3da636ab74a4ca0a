//! A subscriber gets everything after the position that it was told, one after
//! another. Whatever it does not get was announced as a gap, and it goes on
//! where the announcement said.

use std::collections::HashMap;

use proto::position::Position;

use super::{Verdict, broken};
use crate::sim::trace::{Channel, Connection, Fact, Trace};

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    // Where each subscription stands; `None`: it has not been told.
    let mut subscriptions: HashMap<(Connection, Channel), Option<Position>> = HashMap::new();
    for (entry, fact) in trace.facts() {
        match fact {
            Fact::Subscribed {
                connection,
                channel,
            } => {
                subscriptions.entry((*connection, *channel)).or_insert(None);
            }
            Fact::Unsubscribed {
                connection,
                channel,
            } => {
                subscriptions.remove(&(*connection, *channel));
            }
            Fact::Attached {
                connection,
                channel,
                position,
            } => match subscriptions.get_mut(&(*connection, *channel)) {
                Some(at) => *at = Some(*position),
                None => return broken(entry, "it is told of a channel that it does not want"),
            },
            Fact::Delivered {
                connection,
                channel,
                position,
                ..
            } => match subscriptions.get_mut(&(*connection, *channel)) {
                Some(Some(at))
                    if (at.epoch, at.offset.next()) == (position.epoch, position.offset) =>
                {
                    *at = *position;
                }
                at => {
                    return broken(
                        entry,
                        format!(
                            "connection {connection} gets {position} of channel {channel} when it is at {at:?}"
                        ),
                    );
                }
            },
            Fact::Gap {
                connection,
                channel,
                gap,
            } => match subscriptions.get_mut(&(*connection, *channel)) {
                Some(Some(at))
                    if at.epoch != gap.latest.epoch || at.offset <= gap.latest.offset =>
                {
                    *at = gap.latest;
                }
                at => {
                    return broken(
                        entry,
                        format!("connection {connection} is told of a gap when it is at {at:?}"),
                    );
                }
            },
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::testing::{attached, delivered, gap, subscribed};

    fn broken_at(facts: impl IntoIterator<Item = Fact>) -> Option<usize> {
        check(&Trace::of(facts)).err().map(|broken| broken.entry)
    }

    #[test]
    fn a_hole_is_noticed_unless_it_was_announced() {
        let begin = [subscribed(), attached(1, 4), delivered(1, 5, 5)];
        let then = |facts: Vec<Fact>| broken_at(begin.into_iter().chain(facts));
        assert_eq!(then(vec![delivered(1, 6, 6)]), None);
        assert_eq!(then(vec![delivered(1, 7, 7)]), Some(3));
        assert_eq!(then(vec![gap(1, 6), delivered(1, 7, 7)]), None);
        assert_eq!(then(vec![gap(1, 6), delivered(1, 8, 8)]), Some(4));
        assert_eq!(then(vec![delivered(2, 1, 7)]), Some(3));
        assert_eq!(then(vec![gap(2, 0), delivered(2, 1, 7)]), None);
        assert_eq!(then(vec![gap(1, 3)]), Some(3), "it goes back");
    }

    #[test]
    fn whoever_was_not_told_where_it_stands_gets_nothing() {
        assert_eq!(broken_at([subscribed(), delivered(1, 1, 1)]), Some(1));
        assert_eq!(broken_at([delivered(1, 1, 1)]), Some(0));
        let gone = Fact::Unsubscribed {
            connection: 1,
            channel: 0,
        };
        let facts = [subscribed(), attached(1, 0), gone, delivered(1, 1, 1)];
        assert_eq!(broken_at(facts), Some(3));
    }
}
