//! A shard begins anew only when nobody is there who has all of it: what was
//! acknowledged survives the loss of its owner. A standby that is agreed to have
//! everything is never passed over, and a channel goes on in its epoch unless it
//! was agreed that its shard begins anew, or the channel is not replicated.

use std::collections::{BTreeMap, BTreeSet};

use proto::position::Epoch;

use super::{Verdict, broken};
use crate::sim::trace::{Channel, Fact, Trace};
use crate::sim::workload::is_alone;

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    let mut afresh: BTreeSet<(u16, u64)> = BTreeSet::new();
    let mut latest: BTreeMap<Channel, (Epoch, u64)> = BTreeMap::new();
    for (entry, fact) in trace.facts() {
        match fact {
            Fact::Forsaken { shard, standby } => {
                return broken(
                    entry,
                    format!("shard {shard} begins anew, though n{standby} has all of it"),
                );
            }
            Fact::Afresh { shard, fence } => {
                afresh.insert((*shard, *fence));
            }
            Fact::Published {
                fence,
                channel,
                position,
                ..
            } => {
                let before = latest.insert(*channel, (position.epoch, *fence));
                let shard = trace.shards.get(usize::from(*channel)).copied();
                let shard = shard.unwrap_or_default();
                if let Some((epoch, earlier)) = before
                    && !is_alone(*channel)
                    && epoch != position.epoch
                    && earlier < *fence
                    && afresh
                        .range((shard, earlier + 1)..=(shard, *fence))
                        .next()
                        .is_none()
                {
                    return broken(
                        entry,
                        format!(
                            "channel {channel} has lost epoch {epoch}, and its owner did not begin anew"
                        ),
                    );
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::testing::published;

    #[test]
    fn a_standby_that_is_passed_over_is_noticed() {
        let facts = [Fact::Forsaken {
            shard: 1,
            standby: 2,
        }];
        assert_eq!(check(&Trace::of(facts)).unwrap_err().entry, 0);
        assert_eq!(check(&Trace::of([])), Ok(()));
    }

    #[test]
    fn an_epoch_that_is_lost_is_noticed() {
        let under = |epoch, under: u64| {
            let mut fact = published(epoch, 1, 1);
            if let Fact::Published { fence, .. } = &mut fact {
                *fence = under;
            }
            fact
        };
        let anew = Fact::Afresh { shard: 0, fence: 4 };
        let good = [under(1, 3), anew, under(2, 4), under(2, 5)];
        assert_eq!(check(&Trace::of(good)), Ok(()));
        let lost = [under(1, 3), under(2, 4)];
        assert_eq!(check(&Trace::of(lost)).unwrap_err().entry, 1);
    }
}
