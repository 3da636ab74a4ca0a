//! What the other nodes say of themselves: whether they have the same
//! namespaces, are of the same cluster, and whether one of them is a later life
//! of this one.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::id::{ClusterUuid, Incarnation, NodeId, NodeRef};
use proto::message::NodeBeat;
use proto::time::Timestamp;

use super::pace::Pace;

/// Nodes that are kept in mind at most; a cluster has far fewer.
const NEIGHBOURS_MAX: usize = 1_024;
/// How long a node is kept in mind after its last beat: a few beats may be lost.
const PRESENT: Duration = Duration::from_secs(3);
/// How often the log speaks of namespaces that differ, for each node.
const WARN: Duration = Duration::from_secs(30);
/// How often the log speaks of strangers.
const COMPLAIN: Duration = Duration::from_secs(10);

/// See the [module](self).
#[derive(Debug)]
pub struct Neighbours {
    me: NodeRef,
    namespaces: u64,
    present: BTreeMap<NodeId, Neighbour>,
    complaint: Pace,
}

#[derive(Debug)]
struct Neighbour {
    incarnation: Incarnation,
    heard_at: Timestamp,
    differs: bool,
    warned_at: Option<Timestamp>,
}

/// What to make of a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Nothing.
    Fine,
    /// It was our own: the bus carries what we send.
    Echo,
    /// The node has other namespaces, and it is time to say so in the log.
    NamespacesDiffer,
    /// A node of another cluster that has our name. Nothing of what it says
    /// counts.
    Stranger {
        /// Whether it is time to say so in the log.
        log: bool,
    },
    /// A later life of this node: this one has been replaced.
    Superseded {
        /// The later one.
        newer: Incarnation,
    },
}

impl Neighbours {
    /// A node that has heard of no other, and the digest of its namespaces.
    pub fn new(me: NodeRef, namespaces: u64) -> Self {
        Self {
            me,
            namespaces,
            present: BTreeMap::new(),
            complaint: Pace::new(COMPLAIN),
        }
    }

    /// A node has beaten.
    pub fn beat(&mut self, now: Timestamp, ours: ClusterUuid, beat: &NodeBeat) -> Heard {
        let NodeRef { id, incarnation } = &beat.from;
        if beat.cluster != ours {
            let log = self.complaint.allows(now);
            return Heard::Stranger { log };
        }
        if *id == self.me.id {
            return match incarnation.cmp(&self.me.incarnation) {
                std::cmp::Ordering::Less => Heard::Fine,
                std::cmp::Ordering::Equal => Heard::Echo,
                std::cmp::Ordering::Greater => Heard::Superseded {
                    newer: *incarnation,
                },
            };
        }
        self.neighbour(now, beat)
    }

    /// How many nodes have other namespaces now.
    pub fn differing(&mut self, now: Timestamp) -> usize {
        self.present
            .retain(|_, neighbour| now.since(neighbour.heard_at) < WARN.max(PRESENT));
        let present = |n: &&Neighbour| now.since(n.heard_at) < PRESENT;
        let present = self.present.values().filter(present);
        present.filter(|neighbour| neighbour.differs).count()
    }

    fn neighbour(&mut self, now: Timestamp, beat: &NodeBeat) -> Heard {
        let NodeRef { id, incarnation } = &beat.from;
        if !self.present.contains_key(id) && self.present.len() >= NEIGHBOURS_MAX {
            return Heard::Fine;
        }
        let neighbour = self.present.entry(id.clone()).or_insert(Neighbour {
            incarnation: *incarnation,
            heard_at: now,
            differs: false,
            warned_at: None,
        });
        if *incarnation < neighbour.incarnation {
            return Heard::Fine;
        }
        neighbour.incarnation = *incarnation;
        neighbour.heard_at = now;
        neighbour.differs = beat.namespaces != self.namespaces;
        let warned = neighbour.warned_at.is_some_and(|at| now.since(at) < WARN);
        if !neighbour.differs || warned {
            return Heard::Fine;
        }
        neighbour.warned_at = Some(now);
        Heard::NamespacesDiffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: ClusterUuid = ClusterUuid(1);

    fn beat(id: &str, incarnation: u64, namespaces: u64) -> NodeBeat {
        NodeBeat {
            from: NodeRef {
                id: id.parse().unwrap(),
                incarnation: Incarnation(incarnation),
            },
            cluster: OURS,
            map_version: 1,
            namespaces,
        }
    }

    fn neighbours() -> Neighbours {
        Neighbours::new(beat("me", 5, 0).from, 77)
    }

    #[test]
    fn other_namespaces_are_warned_of_now_and_then_and_counted_while_present() {
        let mut neighbours = neighbours();
        let mut hear = |at, id: &str, namespaces| {
            let heard = neighbours.beat(Timestamp(at), OURS, &beat(id, 1, namespaces));
            (heard, neighbours.differing(Timestamp(at)))
        };
        assert_eq!(hear(0, "a", 77), (Heard::Fine, 0));
        assert_eq!(hear(1, "b", 78), (Heard::NamespacesDiffer, 1));
        assert_eq!(hear(2, "c", 79), (Heard::NamespacesDiffer, 2));
        assert_eq!(hear(3, "c", 77), (Heard::Fine, 1), "it was corrected");
        assert_eq!(hear(2_000, "b", 78), (Heard::Fine, 1));
        assert_eq!(hear(5_000, "a", 77), (Heard::Fine, 0), "b is not heard of");
        assert_eq!(hear(30_000, "b", 78), (Heard::Fine, 1), "warned of at 1");
        assert_eq!(hear(30_001, "b", 78), (Heard::NamespacesDiffer, 1));
    }

    #[test]
    fn a_beat_of_an_earlier_life_says_nothing() {
        let mut neighbours = neighbours();
        let mut hear = |incarnation, namespaces| {
            neighbours.beat(Timestamp(0), OURS, &beat("a", incarnation, namespaces))
        };
        assert_eq!(hear(2, 77), Heard::Fine);
        assert_eq!(hear(1, 78), Heard::Fine);
        assert_eq!(neighbours.differing(Timestamp(0)), 0);
    }

    #[test]
    fn a_later_life_of_this_node_replaces_it_and_an_earlier_one_does_not() {
        let mut neighbours = neighbours();
        let mut hear =
            |incarnation| neighbours.beat(Timestamp(0), OURS, &beat("me", incarnation, 77));
        assert_eq!(hear(4), Heard::Fine);
        assert_eq!(hear(5), Heard::Echo);
        let newer = Incarnation(6);
        assert_eq!(hear(6), Heard::Superseded { newer });
    }

    #[test]
    fn a_stranger_changes_nothing_whatever_its_name_is() {
        let mut neighbours = neighbours();
        let mut hear = |at, id: &str| {
            let stranger = NodeBeat {
                cluster: ClusterUuid(2),
                ..beat(id, 9, 78)
            };
            neighbours.beat(Timestamp(at), OURS, &stranger)
        };
        assert_eq!(hear(0, "me"), Heard::Stranger { log: true });
        assert_eq!(hear(9_999, "a"), Heard::Stranger { log: false });
        assert_eq!(hear(10_000, "a"), Heard::Stranger { log: true });
        assert_eq!(neighbours.differing(Timestamp(10_000)), 0);
    }
}
