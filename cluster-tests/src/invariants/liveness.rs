//! Once no fault is left and every process runs, everything works again within
//! 10 s: whoever subscribed is attached, whoever published was answered, every shard
//! is where it should be, and a publication into any channel is acknowledged and
//! reaches everyone there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Verdict, broken};
use crate::sim::trace::{Answer, Channel, Connection, Fact, Order, Process, Trace};

#[derive(Default)]
struct Reading {
    /// Whether each subscription was told where it stands.
    subscriptions: BTreeMap<(Connection, Channel), bool>,
    /// Orders that wait for an answer, and at which gateway.
    open: HashMap<Order, u8>,
    /// Who has still to get which probe.
    awaited: BTreeSet<(Connection, Channel, Order)>,
    whole: bool,
    settled: bool,
    ended: bool,
}

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    let mut reading = Reading::default();
    for (entry, fact) in trace.facts() {
        reading.read(entry, fact)?;
    }
    if reading.ended {
        Ok(())
    } else {
        broken(trace.entries.len(), "it goes on for ever")
    }
}

impl Reading {
    fn read(&mut self, entry: usize, fact: &Fact) -> Verdict {
        match fact {
            Fact::Subscribed {
                connection,
                channel,
                ..
            } => {
                self.subscriptions.insert((*connection, *channel), false);
            }
            Fact::Attached {
                connection,
                channel,
                ..
            } => {
                self.subscriptions.insert((*connection, *channel), true);
            }
            Fact::Unsubscribed {
                connection,
                channel,
            } => {
                self.subscriptions.remove(&(*connection, *channel));
            }
            Fact::Closed { connection } => {
                self.subscriptions.retain(|(of, _), _| of != connection);
            }
            Fact::Ended {
                process: Process::Gateway(ended),
            } => self.open.retain(|_, gateway| gateway != ended),
            Fact::Asked {
                order,
                gateway,
                channel,
                ..
            } => {
                self.open.insert(*order, *gateway);
                if self.settled {
                    let here = self.subscriptions.keys().filter(|(_, of)| of == channel);
                    let awaited = here.map(|(connection, _)| (*connection, *channel, *order));
                    self.awaited.extend(awaited);
                }
            }
            Fact::Answered { order, answer } => {
                self.open.remove(order);
                if let (true, Answer::Failed(code)) = (self.settled, answer) {
                    return broken(entry, format!("a probe fails: {code}"));
                }
            }
            Fact::Delivered {
                connection,
                channel,
                order,
                ..
            } if self.settled => {
                self.awaited.remove(&(*connection, *channel, *order));
            }
            Fact::Whole => self.whole = true,
            Fact::Unsettled(shards) => {
                return broken(
                    entry,
                    format!("{shards} shards are not where they should be"),
                );
            }
            Fact::Settled => {
                self.settled = true;
                self.has_settled(entry)?;
            }
            Fact::End => {
                self.ended = true;
                self.has_ended(entry)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn has_settled(&self, entry: usize) -> Verdict {
        let told = |(_, told): &(_, &bool)| !**told;
        if let Some(((connection, channel), _)) = self.subscriptions.iter().find(told) {
            return broken(
                entry,
                format!("connection {connection} still waits for channel {channel}"),
            );
        }
        if let Some((order, gateway)) = self.open.iter().min() {
            return broken(entry, format!("g{gateway} has not answered order {order}"));
        }
        Ok(())
    }

    fn has_ended(&self, entry: usize) -> Verdict {
        if !self.whole {
            return broken(
                entry,
                "some process does not run again, or some client finds none",
            );
        }
        if let Some((order, gateway)) = self.open.iter().min() {
            return broken(entry, format!("g{gateway} has not answered probe {order}"));
        }
        if let Some((connection, channel, order)) = self.awaited.first() {
            return broken(
                entry,
                format!("connection {connection} has not got probe {order} of channel {channel}"),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::testing::{accepted, asked, attached, broken_at, delivered, subscribed};

    #[test]
    fn whoever_is_not_served_again_is_noticed() {
        let all = [
            subscribed(),
            attached(1, 0),
            Fact::Whole,
            Fact::Settled,
            asked(1),
            accepted(1, 1, 1),
            delivered(1, 1, 1),
            Fact::End,
        ];
        assert_eq!(broken_at(check, all), None);
        // Without each of these something is wrong, and that shows there.
        for (missing, shows) in [(1, 2), (2, 6), (5, 6), (6, 6), (7, 7)] {
            let mut facts = all.to_vec();
            facts.remove(missing);
            assert_eq!(
                broken_at(check, facts),
                Some(shows),
                "without {}",
                all[missing]
            );
        }
    }

    #[test]
    fn a_shard_that_never_gets_where_it_should_be_is_noticed() {
        let facts = [Fact::Whole, Fact::Unsettled(1), Fact::Settled, Fact::End];
        assert_eq!(broken_at(check, facts), Some(1));
    }

    #[test]
    fn an_order_may_die_with_its_gateway_and_no_otherwise() {
        let ended = Fact::Ended {
            process: Process::Gateway(0),
        };
        let end = [Fact::Whole, Fact::Settled, Fact::End];
        assert_eq!(
            broken_at(check, [asked(1), ended].into_iter().chain(end)),
            None
        );
        assert_eq!(broken_at(check, [asked(1)].into_iter().chain(end)), Some(2));
    }

    #[test]
    fn a_probe_that_fails_is_noticed() {
        let failed = Fact::Answered {
            order: 1,
            answer: Answer::Failed(proto::error::ErrorCode::Unavailable),
        };
        let facts = [Fact::Whole, Fact::Settled, asked(1), failed, Fact::End];
        assert_eq!(broken_at(check, facts), Some(3));
    }
}
