//! An owner gives offsets without holes: within an epoch the first publication
//! has offset 1 and each next one the next offset, whichever owner gives it. An
//! epoch belongs to one channel, and an owner that goes on with it has a higher
//! fence than the one before.

use std::collections::HashMap;

use proto::position::{Epoch, Offset};

use super::{Verdict, broken};
use crate::sim::trace::{Channel, Fact, Trace};

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    let mut epochs: HashMap<Epoch, (Channel, u64, Offset)> = HashMap::new();
    for (entry, fact) in trace.facts() {
        let Fact::Published {
            fence,
            channel,
            position,
            ..
        } = fact
        else {
            continue;
        };
        let epoch = epochs
            .entry(position.epoch)
            .or_insert((*channel, *fence, Offset::ZERO));
        if epoch.0 != *channel || epoch.1 > *fence {
            return broken(
                entry,
                format!(
                    "epoch {} is of another channel or a later owner",
                    position.epoch
                ),
            );
        }
        if position.offset != epoch.2.next() {
            return broken(
                entry,
                format!(
                    "offset {} of channel {channel} comes after {}",
                    position.offset, epoch.2
                ),
            );
        }
        (epoch.1, epoch.2) = (*fence, position.offset);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::testing::published;

    #[test]
    fn holes_and_repetitions_are_noticed() {
        let good = [published(1, 1, 1), published(1, 2, 2), published(2, 1, 3)];
        assert_eq!(check(&Trace::of(good)), Ok(()));
        let hole = [published(1, 1, 1), published(1, 3, 2)];
        assert_eq!(check(&Trace::of(hole)).unwrap_err().entry, 1);
        let again = [published(1, 1, 1), published(1, 1, 2)];
        assert_eq!(check(&Trace::of(again)).unwrap_err().entry, 1);
        let not_the_first = [published(1, 2, 1)];
        assert_eq!(check(&Trace::of(not_the_first)).unwrap_err().entry, 0);
    }

    #[test]
    fn an_epoch_of_two_channels_is_noticed() {
        let mut other = published(1, 2, 2);
        if let Fact::Published { channel, .. } = &mut other {
            *channel = 1;
        }
        let shared = Trace::of([published(1, 1, 1), other]);
        assert_eq!(check(&shared).unwrap_err().entry, 1);
    }
}
