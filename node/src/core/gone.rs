//! Gateways whose life was declared over. What the cluster has agreed of that
//! counts, and nothing else does: no node acts on its own count of silence.

use std::collections::BTreeMap;

use proto::id::{GatewayId, GatewayRef, Incarnation};
use serde::{Deserialize, Serialize};

/// Gateways that are remembered at most. When there are more, the one that was
/// declared gone first is forgotten.
pub const GONE_MAX: usize = 4_096;

/// See the [module](self).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Gone(BTreeMap<GatewayId, Ended>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Ended {
    /// This life of it, and all earlier ones.
    incarnation: Incarnation,
    /// The entry that said so.
    index: u64,
}

impl Gone {
    /// The entry of this index declares a life over, and all before it.
    pub fn declare(&mut self, index: u64, gateway: GatewayRef) {
        if self.contains(&gateway) {
            return;
        }
        let incarnation = gateway.incarnation;
        self.0.insert(gateway.id, Ended { incarnation, index });
        while self.0.len() > GONE_MAX {
            let oldest = self.0.iter().min_by_key(|(_, ended)| ended.index);
            let Some(id) = oldest.map(|(id, _)| id.clone()) else {
                return;
            };
            self.0.remove(&id);
        }
    }

    /// Whether this life is over.
    pub fn contains(&self, gateway: &GatewayRef) -> bool {
        self.through(gateway).is_some()
    }

    /// The last life of a gateway that is over, if this one is.
    pub fn through(&self, gateway: &GatewayRef) -> Option<Incarnation> {
        let last = self.0.get(&gateway.id)?.incarnation;
        (gateway.incarnation <= last).then_some(last)
    }

    /// The last life of each that is over, and is not in `before`.
    pub fn since(&self, before: &Self) -> impl Iterator<Item = GatewayRef> {
        let last = self.0.iter().map(|(id, ended)| GatewayRef {
            id: id.clone(),
            incarnation: ended.incarnation,
        });
        last.filter(|gateway| !before.contains(gateway))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(id: &str, incarnation: u64) -> GatewayRef {
        GatewayRef {
            id: id.parse().unwrap(),
            incarnation: Incarnation(incarnation),
        }
    }

    #[test]
    fn a_life_that_is_over_and_all_before_it_stay_so() {
        let mut gone = Gone::default();
        gone.declare(5, gateway("g", 3));
        let before = gone.clone();
        gone.declare(6, gateway("g", 2));
        assert_eq!(gone, before);
        let through = |incarnation| gone.through(&gateway("g", incarnation));
        let last = Some(Incarnation(3));
        assert_eq!([2, 3, 4].map(through), [last, last, None]);
        assert!(!gone.contains(&gateway("h", 1)));
    }

    #[test]
    fn those_that_were_not_over_before_are_news() {
        let mut gone = Gone::default();
        gone.declare(5, gateway("g", 3));
        gone.declare(5, gateway("h", 1));
        let before = gone.clone();
        gone.declare(6, gateway("g", 4));
        let news: Vec<_> = gone.since(&before).collect();
        assert_eq!(news, [gateway("g", 4)]);
        assert_eq!(gone.since(&Gone::default()).count(), 2);
    }

    #[test]
    fn what_was_declared_first_is_forgotten_first() {
        let mut gone = Gone::default();
        let id = |at: u64| format!("g{at}");
        for at in 0..=GONE_MAX as u64 {
            gone.declare(10 + at, gateway(&id(at), 1));
        }
        assert_eq!(gone.0.len(), GONE_MAX);
        assert!(!gone.contains(&gateway(&id(0), 1)));
        assert!(gone.contains(&gateway(&id(1), 1)));
    }
}
