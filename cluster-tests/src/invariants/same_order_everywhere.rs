//! Everyone sees one order: what a client gets at a position, and what its
//! publisher was told is there, is what the owner put there. And what one
//! gateway was given for a channel is in it in the order in which it was given;
//! unless it was given more than once.

use std::collections::{HashMap, HashSet};

use proto::position::{Epoch, Position};

use super::{Verdict, broken};
use crate::sim::trace::{Answer, Channel, Fact, Order, Trace};

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    let mut placed: HashMap<Position, (Channel, Order)> = HashMap::new();
    let mut gateways: HashMap<Order, u8> = HashMap::new();
    let mut first: HashMap<Order, Order> = HashMap::new();
    let mut repeated: HashSet<Order> = HashSet::new();
    let mut latest: HashMap<(Epoch, u8), Order> = HashMap::new();
    for (entry, fact) in trace.facts() {
        match fact {
            // Perhaps before the original, which waits in a process that stands
            // still.
            Fact::Asked {
                order,
                gateway,
                repeats: Some(original),
                ..
            } => {
                first.insert(*order, *original);
                repeated.insert(*original);
                gateways.entry(*original).or_insert(*gateway);
            }
            Fact::Asked { order, gateway, .. } => {
                gateways.insert(*order, *gateway);
            }
            Fact::Published {
                channel,
                position,
                order,
                ..
            } => {
                placed.entry(*position).or_insert((*channel, *order));
                let Some(gateway) = gateways.get(order) else {
                    return broken(entry, format!("nobody has asked for order {order}"));
                };
                if repeated.contains(order) {
                    continue;
                }
                let before = latest.insert((position.epoch, *gateway), *order);
                if let Some(before) = before.filter(|before| before > order) {
                    return broken(
                        entry,
                        format!("g{gateway} was given order {order} before {before}"),
                    );
                }
            }
            Fact::Delivered {
                channel,
                position,
                order,
                ..
            } if placed.get(position) != Some(&(*channel, *order)) => {
                return broken(
                    entry,
                    format!(
                        "at {position} the owner put {:?} (channel, order)",
                        placed.get(position)
                    ),
                );
            }
            Fact::Answered {
                order,
                answer: Answer::Accepted(position),
            } if placed.get(position).map(|(_, order)| order)
                != Some(first.get(order).unwrap_or(order)) =>
            {
                return broken(entry, format!("order {order} is not at {position}"));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::testing::{accepted, asked, asked_again, delivered, published};

    #[test]
    fn a_client_that_gets_something_else_is_noticed() {
        let begin = [asked(1), asked(2), published(1, 1, 1), published(1, 2, 2)];
        let then = |fact| Trace::of(begin.into_iter().chain([fact]));
        assert_eq!(check(&then(delivered(1, 1, 1))), Ok(()));
        assert_eq!(check(&then(delivered(1, 1, 2))).unwrap_err().entry, 4);
        assert_eq!(check(&then(delivered(1, 3, 3))).unwrap_err().entry, 4);
        assert_eq!(check(&then(accepted(2, 1, 2))), Ok(()));
        assert_eq!(check(&then(accepted(2, 1, 1))).unwrap_err().entry, 4);
    }

    #[test]
    fn one_that_overtakes_another_is_noticed() {
        let facts = [asked(1), asked(2), published(1, 1, 2), published(1, 2, 1)];
        assert_eq!(check(&Trace::of(facts)).unwrap_err().entry, 3);
    }

    #[test]
    fn one_that_was_given_again_is_where_the_first_is() {
        let facts = [
            asked(1),
            asked(2),
            asked_again(3, 1),
            published(1, 1, 2),
            published(1, 2, 1),
        ];
        let then = |offset| Trace::of(facts.into_iter().chain([accepted(3, 1, offset)]));
        assert_eq!(check(&then(2)), Ok(()));
        assert_eq!(check(&then(1)).unwrap_err().entry, 5);
    }

    #[test]
    fn a_publication_that_nobody_asked_for_is_noticed() {
        let facts = [published(1, 1, 1)];
        assert_eq!(check(&Trace::of(facts)).unwrap_err().entry, 0);
    }
}
