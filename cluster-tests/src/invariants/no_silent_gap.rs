//! A subscriber gets everything after the position that it was told, one after
//! another. Whatever it does not get was announced as a gap, and it goes on
//! where the announcement said. Who comes back with a position goes on there, or
//! is told of the gap first.

use std::collections::HashMap;

use proto::position::Position;

use super::{Verdict, broken};
use crate::sim::trace::{Channel, Connection, Fact, Trace};

/// Where a subscription stands.
#[derive(Debug, Clone, Copy)]
enum Standing {
    /// It has not been told; where it stood when it was last here.
    Waits(Option<Position>),
    /// It has everything up to there.
    At(Position),
}

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    let mut subscriptions: HashMap<(Connection, Channel), Standing> = HashMap::new();
    for (entry, fact) in trace.facts() {
        match fact {
            Fact::Subscribed {
                connection,
                channel,
                cursor,
            } => {
                let waits = Standing::Waits(*cursor);
                subscriptions
                    .entry((*connection, *channel))
                    .or_insert(waits);
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
                Some(Standing::Waits(Some(cursor))) if cursor != position => {
                    return broken(
                        entry,
                        format!(
                            "connection {connection} comes back to channel {channel} with {cursor} and goes on at {position}"
                        ),
                    );
                }
                Some(Standing::At(at)) if at != position => {
                    return broken(entry, format!("it is told {position} when it is at {at}"));
                }
                Some(standing) => *standing = Standing::At(*position),
                None => return broken(entry, "it is told of a channel that it does not want"),
            },
            Fact::Delivered {
                connection,
                channel,
                position,
                ..
            } => match subscriptions.get_mut(&(*connection, *channel)) {
                Some(Standing::At(at))
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
                Some(Standing::At(at))
                    if at.epoch != gap.latest.epoch || at.offset <= gap.latest.offset =>
                {
                    *at = gap.latest;
                }
                Some(standing @ Standing::Waits(Some(_))) => *standing = Standing::At(gap.latest),
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
    use crate::invariants::testing::{at, attached, broken_at, delivered, gap, subscribed};

    #[test]
    fn a_hole_is_noticed_unless_it_was_announced() {
        let begin = [subscribed(), attached(1, 4), delivered(1, 5, 5)];
        let then = |facts: Vec<Fact>| broken_at(check, begin.into_iter().chain(facts));
        assert_eq!(then(vec![delivered(1, 6, 6)]), None);
        assert_eq!(then(vec![delivered(1, 7, 7)]), Some(3));
        assert_eq!(then(vec![gap(1, 6), delivered(1, 7, 7)]), None);
        assert_eq!(then(vec![gap(1, 6), delivered(1, 8, 8)]), Some(4));
        assert_eq!(then(vec![delivered(2, 1, 7)]), Some(3));
        assert_eq!(then(vec![gap(2, 0), delivered(2, 1, 7)]), None);
        assert_eq!(then(vec![gap(1, 3)]), Some(3), "it goes back");
    }

    #[test]
    fn who_comes_back_goes_on_where_it_stood_or_is_told() {
        let back = Fact::Subscribed {
            connection: 1,
            channel: 0,
            cursor: Some(at(1, 4)),
        };
        assert_eq!(
            broken_at(check, [back, attached(1, 4), delivered(1, 5, 5)]),
            None
        );
        assert_eq!(broken_at(check, [back, attached(1, 6)]), Some(1));
        assert_eq!(broken_at(check, [back, gap(1, 6), attached(1, 6)]), None);
        assert_eq!(broken_at(check, [back, gap(1, 6), attached(1, 7)]), Some(2));
        assert_eq!(broken_at(check, [back, delivered(1, 5, 5)]), Some(1));
    }

    #[test]
    fn whoever_was_not_told_where_it_stands_gets_nothing() {
        assert_eq!(
            broken_at(check, [subscribed(), delivered(1, 1, 1)]),
            Some(1)
        );
        assert_eq!(broken_at(check, [delivered(1, 1, 1)]), Some(0));
        let gone = Fact::Unsubscribed {
            connection: 1,
            channel: 0,
        };
        let facts = [subscribed(), attached(1, 0), gone, delivered(1, 1, 1)];
        assert_eq!(broken_at(check, facts), Some(3));
    }
}
