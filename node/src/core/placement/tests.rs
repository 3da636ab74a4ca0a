use super::*;
use crate::core::cluster::tests::{founding, node, registration};
use crate::core::cluster::{Command, Registration};
use proto::shard::Fence;

pub(super) fn cluster(shards: u16, expect: u16, names: &[&str]) -> Cluster {
    let mut cluster = Cluster::default();
    cluster.apply(1, Command::Found(founding(shards, expect)));
    for (at, name) in names.iter().enumerate() {
        cluster.apply(at as u64 + 2, Command::Register(registration(name, 1)));
    }
    cluster
}

/// What there is to do while nobody beats or has a lease.
fn to_do(cluster: &Cluster) -> Vec<Assignment> {
    let plan = plan(cluster, &Seen::nothing());
    assert_eq!(plan.promotions, []);
    plan.afresh
}

fn counts(cluster: &Cluster) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for row in cluster.rows().iter().flatten() {
        *counts.entry(row.owner.id.to_string()).or_default() += 1;
    }
    counts
}

#[test]
fn shards_are_given_out_evenly_when_all_expected_nodes_are_there() {
    let mut cluster = cluster(1_024, 3, &["a", "b"]);
    assert_eq!(to_do(&cluster), []);
    cluster.apply(9, Command::Register(registration("c", 1)));
    let assignments = to_do(&cluster);
    cluster.apply(10, Command::Assign(assignments));
    let counts: Vec<usize> = counts(&cluster).into_values().collect();
    assert_eq!(counts, [342, 341, 341]);
    assert_eq!(to_do(&cluster), [], "and then there is nothing to do");
}

#[test]
fn a_witness_counts_as_expected_but_owns_nothing() {
    let mut cluster = cluster(8, 3, &["a", "b"]);
    let witness = Registration {
        witness: true,
        ..registration("w", 1)
    };
    cluster.apply(9, Command::Register(witness));
    cluster.apply(10, Command::Assign(to_do(&cluster)));
    assert_eq!(counts(&cluster), [("a".into(), 4), ("b".into(), 4)].into());
}

#[test]
fn a_new_node_gets_nothing_and_a_restarted_one_gets_its_own_back() {
    let mut cluster = cluster(8, 2, &["a", "b"]);
    cluster.apply(10, Command::Assign(to_do(&cluster)));
    cluster.apply(11, Command::Register(registration("c", 1)));
    assert_eq!(to_do(&cluster), []);
    cluster.apply(12, Command::Register(registration("a", 2)));
    let assignments = to_do(&cluster);
    assert_eq!(assignments.len(), 4);
    assert!(assignments.iter().all(|assignment| {
        assignment.owner == node("a", 12) && assignment.under == Some(Fence(10))
    }));
    cluster.apply(13, Command::Assign(assignments));
    assert_eq!(to_do(&cluster), []);
    let of_b = cluster.rows().iter().flatten();
    assert_eq!(of_b.filter(|row| row.fence == Fence(10)).count(), 4);
}

#[test]
fn what_belonged_to_a_forgotten_name_waits_for_it() {
    let mut cluster = cluster(2, 1, &["a"]);
    cluster.apply(3, Command::Assign(to_do(&cluster)));
    cluster.apply(4, Command::Forget(registration("a", 1).raft_id));
    assert_eq!(to_do(&cluster), []);
    let back = Registration {
        raft_id: 5,
        ..registration("a", 9)
    };
    cluster.apply(5, Command::Register(back));
    assert_eq!(to_do(&cluster).len(), 2);
}
