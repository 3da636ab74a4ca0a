//! How a node with an empty data directory comes into a cluster: it joins one
//! that exists, or founds one with others that are as fresh.
//!
//! Two clusters must never come of one set of nodes, whoever can reach whom at
//! the time. So a founder needs two things: all `expect` founding members, and
//! a **pledge** from a majority of all nodes that it knows of, members or not.
//! A node pledges to one founder at a time, and the pledge is on its disk; two
//! majorities share a node, so only one founder gets through. A founder that
//! does not gives the pledges back and waits a little.
//!
//! With `--join` lists that name the same nodes everywhere this is safe; a node
//! that nobody else's list names can only join.

use std::collections::{BTreeMap, BTreeSet};

use proto::id::{ClusterUuid, NodeId};
use serde::{Deserialize, Serialize};

use super::cluster::RaftId;

/// What a node says of itself when it is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its data directory.
    pub raft_id: RaftId,
    /// Its name.
    pub name: NodeId,
    /// Where it can be reached.
    pub address: String,
    /// The cluster that it is a member of.
    pub member_of: Option<ClusterUuid>,
    /// How many nodes it was told to found a cluster with.
    pub expect: Option<u16>,
}

/// What a node does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Ask to be let in.
    Join {
        /// Where members are; one of them may be cut off from the others.
        addresses: Vec<String>,
        /// Into which cluster.
        cluster: ClusterUuid,
    },
    /// Found a cluster of these, by name; ask all of `ask` for their pledge
    /// and go on with at least `majority` of them, all members among them.
    Found {
        /// The founding members, this node among them.
        members: Vec<Status>,
        /// All nodes that answered, this one apart.
        ask: Vec<Status>,
        /// Pledges needed, this node's own included.
        majority: usize,
    },
    /// Ask again in a while; why, for the log.
    Wait(String),
    /// This can only be mended by a person; why.
    Refuse(String),
}

/// Decides, from what the nodes at known addresses have answered.
///
/// `addresses` are those of all nodes that this one knows of, apart from its
/// own: its `--join` list and whoever has called. `heard` has the answers.
pub fn decide(
    me: &Status,
    addresses: &BTreeSet<String>,
    heard: &BTreeMap<String, Status>,
) -> Decision {
    let mut fresh: BTreeMap<RaftId, &Status> = [(me.raft_id, me)].into();
    if let Some(cluster) = heard.values().find_map(|status| status.member_of) {
        let members = heard.iter().filter(|(_, s)| s.member_of == Some(cluster));
        return Decision::Join {
            addresses: members.map(|(address, _)| address.clone()).collect(),
            cluster,
        };
    }
    for status in heard.values() {
        // A node can be known by several addresses, and be found by its own.
        fresh.insert(status.raft_id, status);
    }
    let Some(expect) = me.expect else {
        return Decision::Wait(match addresses.len() {
            0 => "it has no data yet and knows no other node: give --join ADDR,… to join a cluster, or --bootstrap-expect N to found one".into(),
            known => format!(
                "none of the {known} nodes that it knows of is a member of a cluster yet, and without --bootstrap-expect it founds none"
            ),
        });
    };
    let mut by_name: BTreeMap<&NodeId, &Status> = BTreeMap::new();
    for status in fresh.values() {
        if let Some(other) = by_name.insert(&status.name, status) {
            let why = format!(
                "two nodes are named {}, at {} and at {}: give each its own --name",
                status.name, other.address, status.address
            );
            // Others' mistakes are theirs to mend.
            return if status.name == me.name {
                Decision::Refuse(why)
            } else {
                Decision::Wait(why)
            };
        }
    }
    if let Some(other) = fresh
        .values()
        .find(|status| status.expect.is_some() && status.expect != Some(expect))
    {
        return Decision::Wait(format!(
            "{} was started with --bootstrap-expect {}, this node with {expect}: start all with the same number",
            other.name,
            other.expect.unwrap_or_default()
        ));
    }
    let known = addresses.len() + 1;
    let majority = known / 2 + 1;
    let reached = 1 + addresses.iter().filter(|a| heard.contains_key(*a)).count();
    let founders: Vec<Status> = by_name
        .values()
        .filter(|status| status.expect.is_some())
        .map(|status| (*status).clone())
        .take(usize::from(expect))
        .collect();
    if founders.len() < usize::from(expect) {
        return Decision::Wait(format!(
            "{} of the {expect} nodes that are to found the cluster have been heard of",
            founders.len()
        ));
    }
    if reached < majority {
        return Decision::Wait(format!(
            "{reached} of the {known} known nodes can be reached; it takes {majority} to found a cluster safely"
        ));
    }
    if founders[0].raft_id != me.raft_id {
        return Decision::Wait(format!("{} founds the cluster", founders[0].name));
    }
    let ask = fresh
        .values()
        .filter(|status| status.raft_id != me.raft_id)
        .map(|status| (*status).clone())
        .collect();
    Decision::Found {
        members: founders,
        ask,
        majority,
    }
}

/// To whom this node has pledged itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pledge {
    /// The cluster that is to be.
    pub cluster: ClusterUuid,
    /// Its founder.
    pub founder: RaftId,
    /// Counts the founder's attempts: what is left of an earlier one on its way
    /// must not undo a later one.
    pub attempt: u64,
}

impl Pledge {
    fn is_of_one_founder(self, other: Self) -> bool {
        (self.cluster, self.founder) == (other.cluster, other.founder)
    }
}

/// Whether a node pledges itself: it has not, or to the same founder, and not
/// for a later attempt.
pub fn may_pledge(pledged: Option<Pledge>, to: Pledge) -> bool {
    pledged.is_none_or(|pledged| pledged.is_of_one_founder(to) && pledged.attempt <= to.attempt)
}

/// Whether a node takes its pledge back when a founder has given up an attempt:
/// it was for this one, or for one before it.
pub fn may_release(pledged: Option<Pledge>, from: Pledge) -> bool {
    pledged
        .is_some_and(|pledged| pledged.is_of_one_founder(from) && pledged.attempt <= from.attempt)
}

/// What becomes of a node that comes with the name of a member and another data
/// directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Succession {
    /// The member is there: the name is taken.
    Taken,
    /// It may be there. One call can be lost, so gossip has to give it up, too.
    Wait,
    /// It is gone, and its disk perhaps with it: the other takes its place.
    Takes,
}

/// Decides who has a name, from which data directory answers at the member's
/// address and whether gossip still sees the member.
pub fn succession(member: RaftId, answers: Option<RaftId>, is_seen: bool) -> Succession {
    if answers == Some(member) {
        Succession::Taken
    } else if is_seen {
        Succession::Wait
    } else {
        Succession::Takes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UUID: ClusterUuid = ClusterUuid(1);

    fn status(number: u64, expect: Option<u16>) -> Status {
        Status {
            raft_id: number,
            name: format!("n{number}").parse().unwrap(),
            address: format!("n{number}:1"),
            member_of: None,
            expect,
        }
    }

    fn addresses(numbers: &[u64]) -> BTreeSet<String> {
        numbers.iter().map(|n| format!("n{n}:1")).collect()
    }

    fn heard(statuses: &[Status]) -> BTreeMap<String, Status> {
        let by_address = |s: &Status| (s.address.clone(), s.clone());
        statuses.iter().map(by_address).collect()
    }

    fn fresh(number: u64) -> Status {
        status(number, Some(3))
    }

    #[test]
    fn one_node_founds_alone() {
        let me = status(1, Some(1));
        let decision = decide(&me, &BTreeSet::new(), &BTreeMap::new());
        assert!(matches!(decision, Decision::Found { majority: 1, .. }));
    }

    #[test]
    fn the_lowest_name_founds_and_the_others_wait() {
        let known = addresses(&[1, 2, 3]);
        let others = |me: u64| {
            let others: Vec<Status> = (1..=3).filter(|n| *n != me).map(fresh).collect();
            decide(&fresh(me), &known, &heard(&others))
        };
        match others(1) {
            Decision::Found { members, ask, .. } => {
                assert_eq!(
                    members.iter().map(|m| m.raft_id).collect::<Vec<_>>(),
                    [1, 2, 3]
                );
                assert_eq!(ask.len(), 2);
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(others(2), Decision::Wait(why) if why.contains("n1 founds")));
    }

    #[test]
    fn whoever_meets_a_cluster_joins_it() {
        let member = Status {
            member_of: Some(UUID),
            ..fresh(3)
        };
        let decision = decide(&fresh(1), &addresses(&[2, 3]), &heard(&[fresh(2), member]));
        let join = |addresses: &[&str]| Decision::Join {
            addresses: addresses.iter().map(ToString::to_string).collect(),
            cluster: UUID,
        };
        assert_eq!(decision, join(&["n3:1"]));
        // One of them may be cut off: all are asked.
        let members = [2, 3].map(|number| Status {
            member_of: Some(UUID),
            ..fresh(number)
        });
        let decision = decide(&fresh(1), &addresses(&[2, 3]), &heard(&members));
        assert_eq!(decision, join(&["n2:1", "n3:1"]));
    }

    #[test]
    fn fewer_than_expected_wait_and_so_do_those_who_were_told_otherwise() {
        let decision = decide(&fresh(1), &addresses(&[2, 3]), &heard(&[fresh(2)]));
        assert!(matches!(decision, Decision::Wait(why) if why.contains("2 of the 3")));
        let all = heard(&[fresh(2), status(3, Some(5))]);
        let decision = decide(&fresh(1), &addresses(&[2, 3]), &all);
        assert!(matches!(decision, Decision::Wait(why) if why.contains("--bootstrap-expect 5")));
        let joiner = status(1, None);
        let decision = decide(&joiner, &addresses(&[2, 3]), &heard(&[fresh(2), fresh(3)]));
        assert!(matches!(decision, Decision::Wait(_)));
    }

    #[test]
    fn two_nodes_of_one_name_are_refused() {
        let twin = Status {
            raft_id: 9,
            ..fresh(1)
        };
        let all: BTreeMap<String, Status> = [("elsewhere:1".to_owned(), twin)].into();
        let decision = decide(&fresh(1), &addresses(&[2]), &all);
        assert!(matches!(decision, Decision::Refuse(why) if why.contains("n1")));
        // Whoever is not one of the two lives on.
        let mut all = all;
        all.insert("n1:1".into(), fresh(1));
        let decision = decide(&fresh(2), &addresses(&[1]), &all);
        assert!(matches!(decision, Decision::Wait(why) if why.contains("n1")));
    }

    #[test]
    fn a_pledge_holds_until_it_is_given_back() {
        let to = |founder, attempt| Pledge {
            cluster: UUID,
            founder,
            attempt,
        };
        assert!(may_pledge(None, to(1, 1)));
        assert!(may_pledge(Some(to(1, 1)), to(1, 1)));
        assert!(may_pledge(Some(to(1, 1)), to(1, 2)));
        assert!(!may_pledge(Some(to(1, 1)), to(2, 1)));
        assert!(may_release(Some(to(1, 2)), to(1, 2)));
        assert!(!may_release(Some(to(1, 2)), to(2, 2)));
        assert!(!may_release(None, to(1, 1)));
    }

    #[test]
    fn what_is_left_of_an_earlier_attempt_undoes_nothing() {
        let attempt = |attempt| Pledge {
            cluster: UUID,
            founder: 1,
            attempt,
        };
        // The founder counts on this node in its second attempt, and then the
        // end of its first one arrives, or its beginning.
        assert!(!may_release(Some(attempt(2)), attempt(1)));
        assert!(!may_pledge(Some(attempt(2)), attempt(1)));
        // The second's pledge was lost, and its end is heard.
        assert!(may_release(Some(attempt(1)), attempt(2)));
    }

    #[test]
    fn a_member_that_may_live_keeps_its_name() {
        for (answers, is_seen, outcome) in [
            (Some(1), true, Succession::Taken),
            // Gossip may be late.
            (Some(1), false, Succession::Taken),
            (None, true, Succession::Wait),
            (None, false, Succession::Takes),
            // It is the newcomer itself that answers there.
            (Some(2), true, Succession::Wait),
            (Some(2), false, Succession::Takes),
        ] {
            assert_eq!(
                succession(1, answers, is_seen),
                outcome,
                "{answers:?} {is_seen}"
            );
        }
    }

    proptest! {
        /// Six nodes told to found with three, each hearing whomever it hears:
        /// however the pledges fall, at most one founder gets through.
        #[test]
        fn six_nodes_never_make_two_clusters(
            hears in prop::collection::vec(prop::collection::vec(any::<bool>(), 6), 6),
            order in Just((0..6_usize).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let mut pledges: BTreeMap<u64, Pledge> = BTreeMap::new();
            let mut founded = Vec::new();
            for me in order {
                let statuses: Vec<Status> = (0..6)
                    .filter(|n| *n != me && hears[me][*n])
                    .map(|n| fresh(n as u64))
                    .collect();
                let known: Vec<u64> = (0..6).filter(|n| *n != me as u64).collect();
                let me = fresh(me as u64);
                let Decision::Found { members, ask, majority } = decide(&me, &addresses(&known), &heard(&statuses)) else {
                    continue;
                };
                let pledge = Pledge { cluster: ClusterUuid(u128::from(me.raft_id)), founder: me.raft_id, attempt: 1 };
                let mut pledged = BTreeSet::new();
                for node in ask.iter().chain([&me]) {
                    if may_pledge(pledges.get(&node.raft_id).copied(), pledge) {
                        pledges.insert(node.raft_id, pledge);
                        pledged.insert(node.raft_id);
                    }
                }
                if pledged.len() >= majority && members.iter().all(|m| pledged.contains(&m.raft_id)) {
                    founded.push(me.raft_id);
                }
                // The worst case: nobody gives a pledge back.
            }
            prop_assert!(founded.len() <= 1, "{founded:?}");
        }
    }
}
