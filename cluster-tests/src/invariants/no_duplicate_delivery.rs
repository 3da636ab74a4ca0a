//! Nothing comes twice on a connection, nor anything that was before it.

use std::collections::HashMap;

use proto::position::{Epoch, Offset};

use super::{Verdict, broken};
use crate::sim::trace::{Channel, Connection, Fact, Trace};

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    let mut latest: HashMap<(Connection, Channel, Epoch), Offset> = HashMap::new();
    for (entry, fact) in trace.facts() {
        let Fact::Delivered {
            connection,
            channel,
            position,
            ..
        } = fact
        else {
            continue;
        };
        let key = (*connection, *channel, position.epoch);
        let before = latest.insert(key, position.offset);
        if let Some(before) = before.filter(|before| *before >= position.offset) {
            return broken(
                entry,
                format!("connection {connection} gets {position} after {before}"),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::testing::delivered;

    #[test]
    fn a_repetition_is_noticed() {
        let good = [delivered(1, 1, 1), delivered(1, 2, 2), delivered(2, 1, 3)];
        assert_eq!(check(&Trace::of(good)), Ok(()));
        let twice = [delivered(1, 1, 1), delivered(1, 2, 2), delivered(1, 1, 1)];
        assert_eq!(check(&Trace::of(twice)).unwrap_err().entry, 2);
    }
}
