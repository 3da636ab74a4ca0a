//! Everyone sees one order: what a client gets at a position, and what its
//! publisher was told is there, is what the owner put there. And what one
//! gateway was given for a channel is in it in the order in which it was given.

use std::collections::HashMap;

use proto::position::{Epoch, Position};

use super::{Verdict, broken};
use crate::sim::trace::{Answer, Channel, Fact, Order, Trace};

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    let mut placed: HashMap<Position, (Channel, Order)> = HashMap::new();
    let mut gateways: HashMap<Order, u8> = HashMap::new();
    let mut latest: HashMap<(Epoch, u8), Order> = HashMap::new();
    for (entry, fact) in trace.facts() {
        match fact {
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
            } if placed.get(position).map(|(_, order)| order) != Some(order) => {
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
    use crate::invariants::testing::{accepted, asked, delivered, published};

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
    fn a_publication_that_nobody_asked_for_is_noticed() {
        let facts = [published(1, 1, 1)];
        assert_eq!(check(&Trace::of(facts)).unwrap_err().entry, 0);
    }
}
