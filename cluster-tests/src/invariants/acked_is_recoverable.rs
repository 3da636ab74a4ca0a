//! What was acknowledged comes to everyone who is attached, or is announced as
//! a gap: when everything has healed, no subscription stands before it. Without
//! this a publication that was lost, and after which nothing comes, would go
//! unnoticed for ever.

use std::collections::HashMap;

use proto::position::Position;

use super::{Verdict, broken};
use crate::sim::trace::{Answer, Channel, Connection, Fact, Order, Trace};

/// Where a subscription stands, and since which entry.
type Standing = HashMap<(Connection, Channel), (Position, usize)>;

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    let mut placed: HashMap<Order, (Channel, usize)> = HashMap::new();
    let mut acknowledged: HashMap<(Channel, Position), (Order, usize)> = HashMap::new();
    let mut standing = Standing::new();
    for (entry, fact) in trace.facts() {
        match fact {
            Fact::Published { channel, order, .. } => {
                placed.insert(*order, (*channel, entry));
            }
            Fact::Answered {
                order,
                answer: Answer::Accepted(position),
            } => {
                if let Some((channel, at)) = placed.get(order) {
                    acknowledged.insert((*channel, *position), (*order, *at));
                }
            }
            Fact::Settled => return settled(entry, &acknowledged, &standing),
            _ => stand(entry, fact, &mut standing),
        }
    }
    Ok(())
}

fn stand(entry: usize, fact: &Fact, standing: &mut Standing) {
    match fact {
        Fact::Attached {
            connection,
            channel,
            position,
        }
        | Fact::Delivered {
            connection,
            channel,
            position,
            ..
        } => {
            standing.insert((*connection, *channel), (*position, entry));
        }
        Fact::Gap {
            connection,
            channel,
            gap,
        } => {
            standing.insert((*connection, *channel), (gap.latest, entry));
        }
        Fact::Unsubscribed {
            connection,
            channel,
        } => {
            standing.remove(&(*connection, *channel));
        }
        Fact::Closed { connection } => standing.retain(|(of, _), _| of != connection),
        _ => {}
    }
}

fn settled(
    entry: usize,
    acknowledged: &HashMap<(Channel, Position), (Order, usize)>,
    standing: &Standing,
) -> Verdict {
    for ((channel, position), (order, placed_at)) in acknowledged {
        for ((connection, of), (at, since)) in standing {
            // In another epoch an offset says nothing; but what was placed
            // after the subscription last moved cannot have been covered.
            let missed = if at.epoch == position.epoch {
                at.offset < position.offset
            } else {
                placed_at > since
            };
            if of == channel && missed {
                return broken(
                    entry,
                    format!(
                        "order {order} was acknowledged at {position} of channel {channel}, and connection {connection} is still at {at}"
                    ),
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::testing::{
        accepted, asked, attached, delivered, gap, published, subscribed,
    };

    #[test]
    fn an_acknowledged_publication_that_never_comes_is_noticed() {
        let begin = [
            subscribed(),
            attached(1, 0),
            asked(1),
            published(1, 1, 1),
            accepted(1, 1, 1),
        ];
        let then = |facts: Vec<Fact>| {
            let settled = [Fact::Settled];
            check(&Trace::of(begin.into_iter().chain(facts).chain(settled)))
        };
        assert_eq!(then(vec![delivered(1, 1, 1)]), Ok(()));
        assert_eq!(then(vec![gap(1, 1)]), Ok(()));
        assert_eq!(then(vec![gap(2, 0)]), Ok(()));
        assert_eq!(then(vec![]).unwrap_err().entry, 5);
        let gone = Fact::Closed { connection: 1 };
        assert_eq!(then(vec![gone]), Ok(()));
    }

    #[test]
    fn what_was_never_acknowledged_may_be_missing() {
        let facts = [
            subscribed(),
            attached(1, 0),
            asked(1),
            published(1, 1, 1),
            Fact::Settled,
        ];
        assert_eq!(check(&Trace::of(facts)), Ok(()));
    }
}
