//! Nodes that the bus has left: they live, and do not hear themselves on it. The
//! other nodes reach them, but no gateway does, so they give away what they have,
//! as if they drained, until they have heard themselves for a while.
//!
//! Only as long as a majority of the members hears itself: when the bus is away
//! for everybody, nothing is gained by moving anything.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::id::{Incarnation, NodeId, NodeRef};
use proto::time::Timestamp;

use super::judge::REPORT_LASTS;
use crate::core::cluster::Cluster;

/// For how long a node must have said so. When the bus leaves everybody, all
/// nodes say so within less.
const LOST: Duration = Duration::from_secs(1);
/// After how long it is trusted again.
const WELL: Duration = Duration::from_secs(5);

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Buses {
    lost: BTreeMap<NodeId, Lost>,
    /// Since when those have said nothing that are off the bus, as is agreed.
    well_since: BTreeMap<NodeRef, Timestamp>,
}

#[derive(Debug)]
struct Lost {
    incarnation: Incarnation,
    since: Timestamp,
    at: Timestamp,
}

impl Lost {
    fn lasts(&self, now: Timestamp) -> bool {
        now.since(self.at) <= REPORT_LASTS
    }
}

impl Buses {
    /// A node has said whether it hears itself.
    pub fn report(&mut self, now: Timestamp, from: &NodeRef, hears_echo: bool) {
        if hears_echo {
            self.lost.remove(&from.id);
            return;
        }
        let fresh = Lost {
            incarnation: from.incarnation,
            since: now,
            at: now,
        };
        match self.lost.get_mut(&from.id) {
            Some(lost) if lost.incarnation == from.incarnation && lost.lasts(now) => lost.at = now,
            Some(lost) if lost.incarnation > from.incarnation => {}
            _ => {
                self.lost.insert(from.id.clone(), fresh);
            }
        }
    }

    /// What is to be agreed: who does not hear itself, and who does again.
    pub fn changes(&mut self, now: Timestamp, cluster: &Cluster) -> Vec<(NodeRef, bool)> {
        let members = cluster.members();
        self.lost.retain(|id, lost| {
            let member = members.get(id);
            lost.lasts(now) && member.is_some_and(|m| m.incarnation <= lost.incarnation)
        });
        let hear = members.len() - self.lost.len();
        if hear < members.len() / 2 + 1 {
            self.well_since.clear();
            // It counts from when most of the others hear themselves again: they do
            // not all come back at once.
            for lost in self.lost.values_mut() {
                lost.since = now;
            }
            return Vec::new();
        }
        let mut well_since = BTreeMap::new();
        let mut changes = Vec::new();
        for (id, member) in members {
            let node = NodeRef {
                id: id.clone(),
                incarnation: member.incarnation,
            };
            let lost = self.lost.get(id);
            let has_lost = lost.is_some_and(|lost| now.since(lost.since) >= LOST);
            if has_lost && !member.off_bus {
                changes.push((node, false));
            } else if member.off_bus && lost.is_none() {
                let since = self.well_since.get(&node).copied().unwrap_or(now);
                well_since.insert(node.clone(), since);
                if now.since(since) >= WELL {
                    changes.push((node, true));
                }
            }
        }
        self.well_since = well_since;
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cluster::Command;
    use crate::core::cluster::tests::{node, registration};

    /// `a` (2), `b` (3) and `c` (4).
    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        for (index, name) in (2..).zip(["a", "b", "c"]) {
            cluster.apply(index, Command::Register(registration(name, 1)));
        }
        cluster
    }

    /// What these say every 250 ms, from one time to another.
    fn lose(buses: &mut Buses, from: u64, to: u64, nodes: &[NodeRef]) {
        for at in (from..=to).step_by(250) {
            for node in nodes {
                buses.report(Timestamp(at), node, false);
            }
        }
    }

    fn bus(node: NodeRef, hears: bool) -> Command {
        Command::Bus { node, hears }
    }

    #[test]
    fn who_has_lost_the_bus_for_a_second_gives_away_what_it_has() {
        let (mut cluster, mut buses) = (cluster(), Buses::default());
        lose(&mut buses, 0, 750, &[node("b", 3)]);
        assert_eq!(buses.changes(Timestamp(999), &cluster), []);
        lose(&mut buses, 1_000, 1_000, &[node("b", 3)]);
        let off = (node("b", 3), false);
        assert_eq!(buses.changes(Timestamp(1_000), &cluster), [off]);
        cluster.apply(9, bus(node("b", 3), false));
        assert!(cluster.gives_away(&node("b", 3)));
        assert_eq!(buses.changes(Timestamp(1_001), &cluster), [], "once");
    }

    #[test]
    fn who_hears_itself_again_is_trusted_after_a_while() {
        let (mut cluster, mut buses) = (cluster(), Buses::default());
        cluster.apply(9, bus(node("b", 3), false));
        let mut changes = |at| buses.changes(Timestamp(at), &cluster);
        assert_eq!(changes(0), []);
        assert_eq!(changes(4_999), []);
        assert_eq!(changes(5_000), [(node("b", 3), true)]);
        let mut buses = Buses::default();
        buses.changes(Timestamp(0), &cluster);
        lose(&mut buses, 3_000, 3_000, &[node("b", 3)]);
        buses.changes(Timestamp(3_000), &cluster);
        buses.report(Timestamp(3_250), &node("b", 3), true);
        buses.changes(Timestamp(3_250), &cluster);
        assert_eq!(buses.changes(Timestamp(8_249), &cluster), []);
        let back = (node("b", 3), true);
        assert_eq!(buses.changes(Timestamp(8_250), &cluster), [back]);
        cluster.apply(10, bus(node("b", 3), true));
        assert!(!cluster.gives_away(&node("b", 3)));
    }

    #[test]
    fn when_the_bus_has_left_the_most_nothing_moves() {
        let (mut cluster, mut buses) = (cluster(), Buses::default());
        lose(&mut buses, 0, 2_000, &[node("b", 3), node("a", 2)]);
        assert_eq!(buses.changes(Timestamp(2_000), &cluster), []);
        // And nobody who was off it is trusted for what is not said then.
        cluster.apply(9, bus(node("c", 4), false));
        lose(&mut buses, 2_250, 9_000, &[node("b", 3), node("a", 2)]);
        for at in (2_000..=9_000).step_by(50) {
            assert_eq!(buses.changes(Timestamp(at), &cluster), []);
        }
    }

    #[test]
    fn who_comes_back_to_the_bus_a_little_later_than_others_has_not_lost_it() {
        let (cluster, mut buses) = (cluster(), Buses::default());
        let all = [node("a", 2), node("b", 3), node("c", 4)];
        for at in (0..=8_000).step_by(250) {
            lose(&mut buses, at, at, &all);
            assert_eq!(buses.changes(Timestamp(at), &cluster), []);
        }
        for back in &all[..2] {
            buses.report(Timestamp(8_250), back, true);
        }
        lose(&mut buses, 8_250, 8_750, &all[2..]);
        assert_eq!(buses.changes(Timestamp(8_999), &cluster), []);
        // But then it has.
        lose(&mut buses, 9_000, 9_000, &all[2..]);
        let off = (node("c", 4), false);
        assert_eq!(buses.changes(Timestamp(9_000), &cluster), [off]);
    }

    #[test]
    fn another_life_has_not_lost_anything_yet() {
        let (mut cluster, mut buses) = (cluster(), Buses::default());
        lose(&mut buses, 0, 2_000, &[node("b", 3)]);
        cluster.apply(9, Command::Register(registration("b", 2)));
        assert_eq!(buses.changes(Timestamp(2_000), &cluster), []);
        lose(&mut buses, 2_250, 2_250, &[node("b", 9)]);
        assert_eq!(buses.changes(Timestamp(2_250), &cluster), []);
        // What the one before said comes late.
        lose(&mut buses, 2_500, 3_250, &[node("b", 9), node("b", 3)]);
        let off = (node("b", 9), false);
        assert_eq!(buses.changes(Timestamp(3_250), &cluster), [off]);
    }
}
