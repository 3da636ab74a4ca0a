//! What was acknowledged comes to everyone who is attached, or is announced as
//! a gap: when everything has healed, no subscription stands before it. Without
//! this a publication that was lost, and after which nothing comes, would go
//! unnoticed for ever. And a gap is announced only for what has left history:
//! announcing a gap whenever something is missing would keep the first promise
//! and be of no use.

use std::collections::HashMap;

use proto::position::{Gap, GapReason, Position};

use super::{Verdict, broken};
use crate::sim::clock::Moment;
use crate::sim::trace::{Answer, Channel, Connection, Fact, Order, Trace};
use crate::sim::workload::kept_by_all;

/// The clock of an owner may be fast by so many in a hundred, and no more.
const CLOCKS_PERCENT: u32 = 3;

/// Where a subscription stands, and since which entry.
type Standing = HashMap<(Connection, Channel), (Position, usize)>;

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    let mut placed: HashMap<Order, (Channel, usize)> = HashMap::new();
    let mut first: HashMap<Order, Order> = HashMap::new();
    let mut acknowledged: HashMap<(Channel, Position), (Order, usize)> = HashMap::new();
    let mut standing = Standing::new();
    let mut placed_at: HashMap<Position, Moment> = HashMap::new();
    for (entry, fact) in trace.facts() {
        match fact {
            Fact::Published {
                channel,
                order,
                position,
                ..
            } => {
                placed.insert(*order, (*channel, entry));
                placed_at.insert(*position, trace.entries[entry].at);
            }
            Fact::Asked {
                order,
                repeats: Some(repeated),
                ..
            } => {
                first.insert(*order, *repeated);
            }
            Fact::Answered {
                order,
                answer: Answer::Accepted(position),
            } => {
                if let Some((channel, at)) = placed.get(first.get(order).unwrap_or(order)) {
                    acknowledged.insert((*channel, *position), (*order, *at));
                }
            }
            Fact::Settled => return settled(entry, &acknowledged, &standing),
            Fact::Gap {
                connection,
                channel,
                gap,
            } => {
                let now = trace.entries[entry].at;
                let before = standing.get(&(*connection, *channel));
                let needless = before.is_some_and(|(at, _)| {
                    let missed = Position {
                        epoch: at.epoch,
                        offset: at.offset.next(),
                    };
                    is_kept(*channel, *at, gap, placed_at.get(&missed), now)
                });
                if needless {
                    return broken(entry, "the gap is of what the owner still has");
                }
                stand(entry, fact, &mut standing);
            }
            _ => stand(entry, fact, &mut standing),
        }
    }
    Ok(())
}

/// Whether the owner still has what comes after `at`, of which a gap says that
/// it has left history.
fn is_kept(
    channel: Channel,
    at: Position,
    gap: &Gap,
    missed_at: Option<&Moment>,
    now: Moment,
) -> bool {
    if gap.reason != GapReason::Expired || gap.latest.epoch != at.epoch {
        return false;
    }
    let limits = kept_by_all(channel);
    let missed = gap.latest.offset.0.saturating_sub(at.offset.0);
    let is_young = missed_at
        .is_some_and(|missed_at| now.since(*missed_at) < limits.age * (100 - CLOCKS_PERCENT) / 100);
    missed <= u64::from(limits.publications) && is_young
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
        assert_eq!(then(vec![gap(2, 0)]), Ok(()));
        assert_eq!(then(vec![]).unwrap_err().entry, 5);
        let gone = Fact::Closed { connection: 1 };
        assert_eq!(then(vec![gone]), Ok(()));
    }

    #[test]
    fn a_gap_of_what_the_owner_still_has_is_noticed() {
        let begin = [subscribed(), attached(1, 0)];
        let many = |count: u32| {
            let published = (1..=count).map(|n| published(1, u64::from(n), n));
            let gap = [gap(1, u64::from(count)), Fact::Settled];
            check(&Trace::of(begin.into_iter().chain(published).chain(gap)))
        };
        let limit = kept_by_all(0).publications;
        assert_eq!(many(limit + 1), Ok(()));
        assert_eq!(many(limit).unwrap_err().entry, limit as usize + 2);
        let aged = [
            (0, subscribed()),
            (1, attached(1, 0)),
            (2, published(1, 1, 1)),
            (400_000, gap(1, 1)),
        ];
        assert_eq!(check(&Trace::timed(aged)), Ok(()));
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
