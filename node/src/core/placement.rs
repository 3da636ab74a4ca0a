//! Who should own what, and who should vote: pure functions of what is agreed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::id::{NodeId, NodeRef};
use proto::shard::ShardId;
use proto::time::Timestamp;

use super::cluster::{Assignment, Cluster, Member, RaftId};

/// What the leader should decide next. Empty: all is as it should be.
///
/// Shards that nobody has had are given out evenly, once as many nodes have
/// registered as were expected. A node that has started anew gets back what its
/// earlier life had. Nobody else's shards move.
pub fn plan(cluster: &Cluster) -> Vec<Assignment> {
    let Some(founding) = cluster.founding() else {
        return Vec::new();
    };
    let members = cluster.members();
    let complete = members.len() >= usize::from(founding.expect);
    let owners: Vec<NodeRef> = members.values().filter_map(owner).collect();
    let mut load: BTreeMap<&NodeRef, usize> = owners.iter().map(|owner| (owner, 0)).collect();
    for (owner, _) in cluster.rows().iter().flatten() {
        if let Some(shards) = load.get_mut(owner) {
            *shards += 1;
        }
    }
    let mut plan = Vec::new();
    for (number, row) in cluster.rows().iter().enumerate() {
        let next = match row {
            Some((owner, _)) => current(members, owner),
            None if complete => {
                load.iter_mut()
                    .min_by_key(|(_, shards)| **shards)
                    .map(|(owner, shards)| {
                        *shards += 1;
                        (*owner).clone()
                    })
            }
            None => None,
        };
        if let Some(owner) = next {
            plan.push(Assignment {
                shard: ShardId(number as u16),
                owner,
                under: row.as_ref().map(|(_, fence)| *fence),
            });
        }
    }
    plan
}

/// The life to which a shard of this one should go, if that is another.
fn current(members: &BTreeMap<NodeId, Member>, owner: &NodeRef) -> Option<NodeRef> {
    let now = self::owner(members.get(&owner.id)?)?;
    (now != *owner).then_some(now)
}

/// A member as an owner; a witness is none.
fn owner(member: &Member) -> Option<NodeRef> {
    let registration = &member.registration;
    (!registration.witness).then(|| NodeRef {
        id: registration.name.clone(),
        incarnation: member.incarnation,
    })
}

/// What the leader sees of the nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Electorate {
    /// Who votes.
    pub voting: BTreeSet<RaftId>,
    /// Who votes or listens.
    pub present: BTreeSet<RaftId>,
    /// Who has nearly all that was decided.
    pub keep_up: BTreeSet<RaftId>,
    /// Whom gossip has given up: what kept up may have died since, without
    /// anything to fall behind.
    pub given_up: BTreeSet<RaftId>,
}

/// Who should vote from now on. `None`: leave it as it is. While the founders
/// have not all registered they vote nevertheless.
pub fn voters(cluster: &Cluster, seen: &Electorate) -> Option<BTreeSet<RaftId>> {
    let founding = cluster.founding()?;
    let registered = cluster.members().values();
    let registered: BTreeSet<RaftId> = registered.map(|m| m.registration.raft_id).collect();
    let members: BTreeSet<RaftId> = registered.intersection(&seen.present).copied().collect();
    if members.len() < usize::from(founding.expect) {
        return None;
    }
    let keep_up = seen.keep_up.difference(&seen.given_up).copied().collect();
    choose(&seen.voting, &members, &keep_up)
}

/// With three members three vote, with five or more five; an even number of
/// voters would survive no more deaths than one fewer.
fn choose(
    voting: &BTreeSet<RaftId>,
    members: &BTreeSet<RaftId>,
    keep_up: &BTreeSet<RaftId>,
) -> Option<BTreeSet<RaftId>> {
    let present: BTreeSet<RaftId> = voting.intersection(members).copied().collect();
    let wanted = match members.len() {
        0..=2 => present.len().max(1),
        3..=4 => 3,
        _ => 5,
    };
    let mut next = present;
    // Those who vote already stay: each change of voters is a risk of its own.
    for candidate in keep_up.intersection(members) {
        if next.len() >= wanted {
            break;
        }
        next.insert(*candidate);
    }
    // Two of two, or four of four, would be worse than what is there.
    let better = next.len() % 2 == 1 || next.len() < voting.len();
    (next != *voting && better && !next.is_empty()).then_some(next)
}

/// How long a node that was let in may take to register.
const REGISTER: Duration = Duration::from_secs(60);

/// Nodes that were let in and have not registered, and since when. One that has
/// lost its directory again, or whose name another has taken meanwhile, would be
/// called for ever.
#[derive(Debug, Default)]
pub struct Unregistered(BTreeMap<RaftId, Timestamp>);

impl Unregistered {
    /// One that has had its time. `listening` are the nodes that do not vote.
    pub fn overdue(
        &mut self,
        cluster: &Cluster,
        listening: &BTreeSet<RaftId>,
        now: Timestamp,
    ) -> Option<RaftId> {
        let registered = cluster.members().values();
        let registered: BTreeSet<RaftId> = registered.map(|m| m.registration.raft_id).collect();
        let unregistered: BTreeSet<RaftId> = listening.difference(&registered).copied().collect();
        self.0.retain(|id, _| unregistered.contains(id));
        for id in unregistered {
            self.0.entry(id).or_insert(now);
        }
        let mut all = self.0.iter();
        all.find(|(_, since)| **since + REGISTER <= now)
            .map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cluster::tests::{founding, node, registration};
    use crate::core::cluster::{Command, Registration};
    use proto::shard::Fence;

    fn cluster(shards: u16, expect: u16, names: &[&str]) -> Cluster {
        let mut cluster = Cluster::default();
        cluster.apply(1, Command::Found(founding(shards, expect)));
        for (at, name) in names.iter().enumerate() {
            cluster.apply(at as u64 + 2, Command::Register(registration(name, 1)));
        }
        cluster
    }

    fn counts(cluster: &Cluster) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (owner, _) in cluster.rows().iter().flatten() {
            *counts.entry(owner.id.to_string()).or_default() += 1;
        }
        counts
    }

    #[test]
    fn shards_are_given_out_evenly_when_all_expected_nodes_are_there() {
        let mut cluster = cluster(1_024, 3, &["a", "b"]);
        assert_eq!(plan(&cluster), []);
        cluster.apply(9, Command::Register(registration("c", 1)));
        let assignments = plan(&cluster);
        cluster.apply(10, Command::Assign(assignments));
        let counts: Vec<usize> = counts(&cluster).into_values().collect();
        assert_eq!(counts, [342, 341, 341]);
        assert_eq!(plan(&cluster), [], "and then there is nothing to do");
    }

    #[test]
    fn a_witness_counts_as_expected_but_owns_nothing() {
        let mut cluster = cluster(8, 3, &["a", "b"]);
        let witness = Registration {
            witness: true,
            ..registration("w", 1)
        };
        cluster.apply(9, Command::Register(witness));
        cluster.apply(10, Command::Assign(plan(&cluster)));
        assert_eq!(counts(&cluster), [("a".into(), 4), ("b".into(), 4)].into());
    }

    #[test]
    fn a_new_node_gets_nothing_and_a_restarted_one_gets_its_own_back() {
        let mut cluster = cluster(8, 2, &["a", "b"]);
        cluster.apply(10, Command::Assign(plan(&cluster)));
        cluster.apply(11, Command::Register(registration("c", 1)));
        assert_eq!(plan(&cluster), []);
        cluster.apply(12, Command::Register(registration("a", 2)));
        let assignments = plan(&cluster);
        assert_eq!(assignments.len(), 4);
        assert!(assignments.iter().all(|assignment| {
            assignment.owner == node("a", 12) && assignment.under == Some(Fence(10))
        }));
        cluster.apply(13, Command::Assign(assignments));
        assert_eq!(plan(&cluster), []);
        let of_b = cluster.rows().iter().flatten();
        assert_eq!(of_b.filter(|(_, fence)| *fence == Fence(10)).count(), 4);
    }

    #[test]
    fn what_belonged_to_a_forgotten_name_waits_for_it() {
        let mut cluster = cluster(2, 1, &["a"]);
        cluster.apply(3, Command::Assign(plan(&cluster)));
        cluster.apply(4, Command::Forget(registration("a", 1).raft_id));
        assert_eq!(plan(&cluster), []);
        let back = Registration {
            raft_id: 5,
            ..registration("a", 9)
        };
        cluster.apply(5, Command::Register(back));
        assert_eq!(plan(&cluster).len(), 2);
    }

    #[test]
    fn whoever_was_let_in_and_never_registers_is_struck() {
        let mut unregistered = Unregistered::default();
        let mut cluster = cluster(1, 1, &["a"]);
        let (late, lost) = (registration("b", 1).raft_id, 7);
        let listening = [late, lost].into();
        let now = Timestamp(0);
        assert_eq!(unregistered.overdue(&cluster, &listening, now), None);
        cluster.apply(9, Command::Register(registration("b", 1)));
        let soon = now + REGISTER / 2;
        assert_eq!(unregistered.overdue(&cluster, &listening, soon), None);
        let then = now + REGISTER;
        assert_eq!(unregistered.overdue(&cluster, &listening, then), Some(lost));
        assert_eq!(unregistered.overdue(&cluster, &[late].into(), then), None);
    }

    fn set(ids: &[RaftId]) -> BTreeSet<RaftId> {
        ids.iter().copied().collect()
    }

    #[test]
    fn three_vote_then_five_and_never_an_even_number() {
        for (voting, members, keep_up, next) in [
            (&[1][..], &[1, 2][..], &[1, 2][..], None),
            (&[1], &[1, 2, 3], &[1, 2], None),
            (&[1], &[1, 2, 3], &[1, 2, 3], Some(&[1, 2, 3][..])),
            (&[1, 2, 3], &[1, 2, 3, 4], &[1, 2, 3, 4], None),
            (&[1, 2, 3], &[1, 2, 3, 4, 5], &[1, 2, 3, 4], None),
            (
                &[1, 2, 3],
                &[1, 2, 3, 4, 5],
                &[1, 2, 3, 4, 5],
                Some(&[1, 2, 3, 4, 5]),
            ),
            (&[1, 2, 3], &[1, 2, 4], &[1, 2, 4], Some(&[1, 2, 4])),
            (
                &[1, 2, 3, 4, 5],
                &[1, 2, 3, 4, 5, 6],
                &[1, 2, 3, 4, 5, 6],
                None,
            ),
        ] {
            assert_eq!(
                choose(&set(voting), &set(members), &set(keep_up)),
                next.map(set),
                "{voting:?} {members:?} {keep_up:?}"
            );
        }
    }

    #[test]
    fn who_is_not_registered_or_was_given_up_is_not_made_to_vote() {
        let id = |name: &str| registration(name, 1).raft_id;
        let (a, b, c) = (id("a"), id("b"), id("c"));
        let seen = Electorate {
            voting: set(&[a]),
            present: set(&[a, b, c]),
            keep_up: set(&[a, b, c]),
            given_up: set(&[]),
        };
        let three = cluster(8, 1, &["a", "b", "c"]);
        assert_eq!(voters(&three, &seen), Some(set(&[a, b, c])));
        let given_up = Electorate {
            given_up: set(&[c]),
            ..seen.clone()
        };
        assert_eq!(voters(&three, &given_up), None);
        assert_eq!(voters(&cluster(8, 1, &["a", "b"]), &seen), None);
        // Founders that have not registered yet still vote.
        let founded = Electorate {
            voting: set(&[a, b, c]),
            ..seen
        };
        assert_eq!(voters(&cluster(8, 3, &["a", "b"]), &founded), None);
        assert_eq!(voters(&Cluster::default(), &founded), None);
    }
}
