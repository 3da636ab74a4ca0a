//! Nobody acts as the owner of a shard any more once another one has, under a
//! higher fence: neither puts something into a channel nor says where it stands.
//! And at no moment could two nodes do so, whether they are asked or not.

use std::collections::HashMap;

use proto::position::Epoch;

use super::{Verdict, broken};
use crate::sim::trace::{Channel, Fact, Trace, UNKNOWN};

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    let mut channels: HashMap<Epoch, Channel> = HashMap::new();
    let mut floors: HashMap<Channel, u64> = HashMap::new();
    for (entry, fact) in trace.facts() {
        let (channel, fence) = match fact {
            Fact::Published {
                fence,
                channel,
                position,
                ..
            } => {
                channels.insert(position.epoch, *channel);
                // Inherited, of an epoch that nobody was told of before.
                if *fence == UNKNOWN {
                    continue;
                }
                (*channel, *fence)
            }
            Fact::Told {
                fence, position, ..
            } => match channels.get(&position.epoch) {
                Some(channel) => (*channel, *fence),
                // Nothing has ever been published there.
                None => continue,
            },
            Fact::TwoOwners { shard, nodes } => {
                return broken(
                    entry,
                    format!(
                        "n{} and n{} could both act for shard {shard}",
                        nodes[0], nodes[1]
                    ),
                );
            }
            _ => continue,
        };
        let floor = floors.entry(channel).or_insert(fence);
        if fence < *floor {
            return broken(
                entry,
                format!("fence {fence} acts in channel {channel} after fence {floor}"),
            );
        }
        *floor = fence;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::testing::{at, published};

    fn under(epoch: u64, fence: u64) -> Fact {
        let mut fact = published(epoch, 1, 1);
        if let Fact::Published { fence: is, .. } = &mut fact {
            *is = fence;
        }
        fact
    }

    #[test]
    fn an_earlier_owner_that_publishes_is_noticed() {
        let good = [under(1, 3), under(2, 3), under(3, 4)];
        assert_eq!(check(&Trace::of(good)), Ok(()));
        let late = [under(1, 3), under(3, 4), under(1, 3)];
        assert_eq!(check(&Trace::of(late)).unwrap_err().entry, 2);
    }

    #[test]
    fn two_that_could_act_are_noticed() {
        let two = Fact::TwoOwners {
            shard: 1,
            nodes: [0, 1],
        };
        assert_eq!(check(&Trace::of([two])).unwrap_err().entry, 0);
    }

    #[test]
    fn an_earlier_owner_that_answers_is_noticed() {
        let told = |fence| Fact::Told {
            node: 1,
            fence,
            position: at(1, 1),
        };
        let good = [under(1, 3), told(3), told(4)];
        assert_eq!(check(&Trace::of(good)), Ok(()));
        let late = [under(1, 3), told(4), told(3)];
        assert_eq!(check(&Trace::of(late)).unwrap_err().entry, 2);
    }
}
