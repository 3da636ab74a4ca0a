use super::*;
use crate::core::cluster::tests::{founding, node, registration};
use crate::core::cluster::{Command, Outcome, RaftId, Registration, Replica, ReplicaSet, Standby};
use proptest::prelude::*;
use proto::id::NodeId;
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
fn nothing_begins_anew_for_a_new_node_and_a_restarted_one_gets_its_own_back() {
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

/// A leader that sees these dead, and whether leases are over.
fn plan_with(cluster: &Cluster, dead: &[NodeRef], lapsed: &dyn Fn(&NodeRef, u64) -> bool) -> Plan {
    let out = dead_ones(dead);
    plan(cluster, &Seen { out, lapsed })
}

fn dead_ones(dead: &[NodeRef]) -> Out {
    Out {
        dead: dead.iter().cloned().collect(),
        ..Out::default()
    }
}

/// Three nodes, `a` (2), `b` (3), `c` (4), with four shards each, and everybody's
/// standby as it should be.
fn replicated() -> Cluster {
    let mut cluster = cluster(12, 3, &["a", "b", "c"]);
    cluster.apply(10, Command::Assign(to_do(&cluster)));
    stand_by(&mut cluster, 11);
    cluster
}

/// Who should stand by for each shard.
fn standbys(cluster: &Cluster, given_up: &BTreeSet<RaftId>) -> BTreeMap<ShardId, NodeRef> {
    let targets = targets(cluster, given_up).into_iter();
    targets
        .filter_map(|(shard, target)| Some((shard, target.standby?)))
        .collect()
}

fn standby_for(cluster: &Cluster, shard: ShardId, given_up: &BTreeSet<RaftId>) -> Option<NodeRef> {
    standbys(cluster, given_up).remove(&shard)
}

/// Every living owner gets the standbys that it should have.
fn stand_by(cluster: &mut Cluster, index: u64) {
    let sets = standbys(cluster, &BTreeSet::new()).into_iter();
    let sets = sets.map(|(shard, node)| {
        let row = cluster.rows()[usize::from(shard.0)].clone().unwrap();
        let state = Replica::InSync;
        ReplicaSet {
            shard,
            owner: row.owner,
            fence: row.fence,
            version: row.version,
            standbys: vec![Standby { node, state }],
        }
    });
    cluster.apply(index, Command::Replicas(sets.collect()));
}

#[test]
fn the_standbys_of_a_dead_owner_are_promoted_whatever_lease_it_has() {
    let mut cluster = replicated();
    let never = |_: &NodeRef, _| false;
    let plan = plan_with(&cluster, &[node("a", 2)], &never);
    assert_eq!((plan.promotions.len(), plan.afresh.len()), (4, 0));
    assert_eq!(plan.withhold, [].into());
    cluster.apply(12, Command::Assign(plan.promotions));
    assert_eq!(counts(&cluster), [("b".into(), 6), ("c".into(), 6)].into());
    assert!(plan_with(&cluster, &[node("a", 2)], &never).is_empty());
}

#[test]
fn a_node_that_starts_anew_leaves_its_shards_to_its_standbys() {
    let mut cluster = replicated();
    cluster.apply(12, Command::Register(registration("a", 2)));
    let plan = plan(&cluster, &Seen::nothing());
    assert_eq!((plan.promotions.len(), plan.afresh.len()), (4, 0));
}

#[test]
fn without_a_living_standby_a_shard_waits_for_the_lease_of_its_owner() {
    let mut cluster = replicated();
    let dead = [node("a", 2), node("b", 3)];
    let never = |_: &NodeRef, _| false;
    let plan = plan_with(&cluster, &dead, &never);
    assert_eq!((plan.promotions.len(), plan.afresh.len()), (4, 0));
    assert!(plan.promotions.iter().all(|a| a.owner == node("c", 4)));
    cluster.apply(12, Command::Assign(plan.promotions));
    assert!(plan_with(&cluster, &dead, &never).is_empty());
    let only_a = |node: &NodeRef, _| *node == dead[0];
    let plan = plan_with(&cluster, &dead, &only_a);
    assert_eq!(plan.withhold, [node("a", 2)].into());
    cluster.apply(13, Command::Assign(plan.afresh));
    let plan = plan_with(&cluster, &dead, &|_, _| true);
    assert_eq!(plan.withhold, [node("b", 3)].into());
    cluster.apply(14, Command::Assign(plan.afresh));
    assert_eq!(counts(&cluster), [("c".into(), 12)].into());
}

/// `a`'s shards went to their standbys, which died before they spoke.
fn orphaned() -> (Cluster, [NodeRef; 2]) {
    let mut cluster = replicated();
    let (a, b) = (node("a", 2), node("b", 3));
    let plan = plan_with(&cluster, std::slice::from_ref(&a), &|_, _| false);
    cluster.apply(12, Command::Assign(plan.promotions));
    (cluster, [a, b])
}

#[test]
fn the_lease_of_an_earlier_owner_is_waited_for_too_unless_it_was_told() {
    let (cluster, [a, b]) = orphaned();
    let of_b = |node: &NodeRef, _| *node == b;
    let dead = [a.clone(), b.clone()];
    let plan = plan_with(&cluster, &dead, &of_b);
    let of_a = |a: &Assignment| a.under == Some(Fence(12));
    assert!(
        !plan.afresh.iter().any(of_a),
        "a may not know that it was replaced"
    );
    let told_a = |node: &NodeRef, told| *node == b || told <= 12;
    let plan = plan_with(&cluster, std::slice::from_ref(&b), &told_a);
    assert_eq!(plan.afresh.len(), 2);
    assert_eq!(plan.withhold, [a, b].into());
}

#[test]
fn a_life_that_has_ended_is_not_waited_for_but_one_elsewhere_is() {
    let never = |_: &NodeRef, _| false;
    let mut cluster = cluster(4, 1, &["a"]);
    cluster.apply(10, Command::Assign(to_do(&cluster)));
    cluster.apply(11, Command::Register(registration("b", 1)));
    let before = cluster.clone();
    cluster.apply(12, Command::Register(registration("a", 2)));
    let plan = plan_with(&cluster, &[], &never);
    assert!(plan.afresh.iter().all(|a| a.owner == node("a", 12)));
    assert_eq!(plan.afresh.len(), 4);

    let mut cluster = before;
    cluster.apply(12, Command::Forget(registration("a", 1).raft_id));
    let stranger = Registration {
        raft_id: 5,
        ..registration("a", 9)
    };
    cluster.apply(13, Command::Register(stranger));
    assert!(plan_with(&cluster, &[], &never).is_empty());
    let plan = plan_with(&cluster, &[], &|_, _| true);
    assert!(plan.afresh.iter().all(|a| a.owner == node("a", 13)));
}

#[test]
fn a_standby_stays_though_gossip_has_given_it_up_but_none_is_chosen_so() {
    let mut cluster = replicated();
    let shard = ShardId(0);
    let before = standby_for(&cluster, shard, &BTreeSet::new()).unwrap();
    let given_up = [registration(before.id.as_str(), 1).raft_id].into();
    assert_eq!(
        standby_for(&cluster, shard, &given_up),
        Some(before.clone())
    );
    let row = cluster.rows()[0].clone().unwrap();
    let dropped = ReplicaSet {
        shard,
        owner: row.owner,
        fence: row.fence,
        version: row.version,
        standbys: Vec::new(),
    };
    cluster.apply(12, Command::Replicas(vec![dropped]));
    let next = standby_for(&cluster, shard, &given_up).unwrap();
    assert_ne!(next, before);
}

/// Nodes in zones, all shards given out.
fn zoned(shards: u16, zones: &[u8]) -> Cluster {
    let mut cluster = cluster(shards, zones.len() as u16, &[]);
    for (at, zone) in zones.iter().enumerate() {
        let registration = Registration {
            raft_id: at as u64,
            zone: format!("zone-{zone}"),
            ..registration(&format!("n{at:02}"), 1)
        };
        cluster.apply(at as u64 + 2, Command::Register(registration));
    }
    cluster.apply(100, Command::Assign(to_do(&cluster)));
    cluster
}

fn zone<'a>(cluster: &'a Cluster, node: &NodeRef) -> &'a str {
    &cluster.members()[&node.id].registration.zone
}

proptest! {
    /// Owner and standby are never together, in another zone if there is one,
    /// and one node's standbys are spread evenly over all that can be.
    #[test]
    fn standbys_are_apart_and_spread(zones in prop::collection::vec(0_u8..3, 1..14)) {
        let mut cluster = zoned(256, &zones);
        let mut chosen = standbys(&cluster, &BTreeSet::new());
        prop_assert_eq!(chosen.len(), if zones.len() == 1 { 0 } else { 256 });
        let mut pairs: BTreeMap<NodeRef, BTreeMap<NodeRef, usize>> = BTreeMap::new();
        for (shard, standby) in &chosen {
            let owner = &cluster.rows()[usize::from(shard.0)].as_ref().unwrap().owner;
            prop_assert_ne!(owner, standby);
            *pairs.entry(owner.clone()).or_default().entry(standby.clone()).or_default() += 1;
        }
        for (owner, standbys) in &pairs {
            let others = cluster.members().len() - 1;
            let elsewhere = cluster.members().values();
            let elsewhere = elsewhere.filter(|m| m.registration.zone != zone(&cluster, owner)).count();
            let able = if elsewhere == 0 { others } else { elsewhere };
            prop_assert!(standbys.len() >= able.min(SPREAD));
            prop_assert!(standbys.values().max().unwrap() - standbys.values().min().unwrap() <= 1);
            let together = standbys.keys().any(|s| zone(&cluster, s) == zone(&cluster, owner));
            prop_assert!(!together || elsewhere == 0);
        }
        // What is recorded stays.
        stand_by(&mut cluster, 101);
        prop_assert_eq!(&standbys(&cluster, &BTreeSet::new()), &chosen);
        chosen.retain(|_, node| node.id.as_str() != "n00");
        let given_up = [0].into();
        let later = standbys(&cluster, &given_up);
        prop_assert!(chosen.iter().all(|(shard, node)| later.get(shard) == Some(node)));
    }

    /// Whoever dies: only its shards move, the plan is done after it was applied,
    /// and the load stays even enough.
    #[test]
    fn plans_move_as_little_as_they_can(
        zones in prop::collection::vec(0_u8..3, 2..10),
        which in any::<prop::sample::Index>(),
        in_sync in any::<bool>(),
    ) {
        let mut cluster = zoned(128, &zones);
        if in_sync {
            stand_by(&mut cluster, 101);
        }
        let before = cluster.clone();
        let dead = node(&format!("n{:02}", which.index(zones.len())), which.index(zones.len()) as u64 + 2);
        let dead = [dead];
        let plan = plan_with(&cluster, &dead, &|_, _| true);
        prop_assert_eq!(plan.promotions.is_empty(), !in_sync);
        for (at, entry) in plan.entries().enumerate() {
            cluster.apply(102 + at as u64, Command::Assign(entry));
        }
        prop_assert!(plan_with(&cluster, &dead, &|_, _| true).is_empty());
        for (old, new) in before.rows().iter().flatten().zip(cluster.rows().iter().flatten()) {
            prop_assert_eq!(old.owner == new.owner, old.owner != dead[0]);
        }
        let counts = counts(&cluster);
        prop_assert_eq!(counts.values().sum::<usize>(), 128);
        if !in_sync {
            prop_assert!(counts.values().max().unwrap() - counts.values().min().unwrap() <= 1);
        }
    }
}

/// Owners do what they should: they recruit, let go of whoever should not stand by
/// once another does, and say that they serve. Returns whether there was anything to do.
fn obey(cluster: &mut Cluster, index: u64) -> bool {
    let targets = targets(cluster, &BTreeSet::new());
    let sets = targets.iter().filter_map(|(shard, target)| {
        let row = cluster.rows()[usize::from(shard.0)].clone().unwrap();
        let mut standbys = row.standbys.clone();
        standbys.retain(|standby| cluster.may_hold(&standby.node));
        let wanted: Vec<&NodeRef> = target.standbys().collect();
        if standbys
            .iter()
            .any(|standby| wanted.contains(&&standby.node))
        {
            standbys.retain(|standby| wanted.contains(&&standby.node));
        } else {
            standbys.truncate(1);
        }
        for node in wanted {
            let is_new = standbys.iter().all(|standby| standby.node != *node);
            if is_new && standbys.len() < 2 {
                standbys.push(Standby {
                    node: node.clone(),
                    state: Replica::InSync,
                });
            }
        }
        let is_news = standbys != row.standbys || !row.earlier.is_empty();
        is_news.then_some(ReplicaSet {
            shard: *shard,
            owner: row.owner,
            fence: row.fence,
            version: row.version,
            standbys,
        })
    });
    let sets: Vec<ReplicaSet> = sets.collect();
    let is_busy = !sets.is_empty();
    cluster.apply(index, Command::Replicas(sets));
    is_busy
}

/// Lets owners and the leader go on until there is nothing to do. The number of
/// moves.
fn settle(cluster: &mut Cluster, from: u64) -> usize {
    let mut moved = 0;
    for index in (from..from + 1_000).step_by(2) {
        let is_busy = obey(cluster, index);
        let targets = targets(cluster, &BTreeSet::new());
        let moving = targets.values().filter(|target| target.owner.is_some());
        assert!(moving.count() <= MOVES_MAX);
        let moves = moves(cluster, &targets, &Out::default());
        if !is_busy && moves.is_empty() {
            return moved;
        }
        moved += moves.len();
        cluster.apply(index + 1, Command::Assign(moves));
    }
    panic!("it does not come to an end");
}

/// Whether every shard is held in two processes.
fn is_protected(cluster: &Cluster) -> bool {
    let mut rows = cluster.rows().iter().flatten();
    rows.all(|row| row.in_sync().next().is_some())
}

proptest! {
    #[test]
    fn a_new_node_takes_its_share_and_a_drained_one_is_left_with_nothing(
        zones in prop::collection::vec(0_u8..3, 3..8),
        which in any::<prop::sample::Index>(),
    ) {
        let mut cluster = zoned(128, &zones);
        stand_by(&mut cluster, 101);
        prop_assert_eq!(settle(&mut cluster, 3_000), 0, "all is as it should be");
        let newcomer = Registration {
            raft_id: 50,
            zone: "zone-0".into(),
            ..registration("new", 1)
        };
        cluster.apply(4_500, Command::Register(newcomer));
        let moved = settle(&mut cluster, 5_000);
        prop_assert_eq!(moved, 128 / (zones.len() + 1), "as few as it can");
        let even = |cluster: &Cluster| {
            let counts = counts(cluster);
            (counts.len(), counts.values().max().unwrap() - counts.values().min().unwrap())
        };
        prop_assert!(even(&cluster).1 <= 1);
        prop_assert!(is_protected(&cluster));

        let mut all = cluster.members().clone().into_iter();
        let (name, member) = all.nth(which.index(zones.len() + 1)).unwrap();
        let leaves = NodeRef { id: name, incarnation: member.incarnation };
        let of_it = |row: &&Row| row.owner == leaves;
        let owned = cluster.rows().iter().flatten().filter(of_it).count();
        cluster.apply(6_500, Command::Drain(leaves.clone()));
        prop_assert!(remaining(&cluster, &BTreeSet::new(), &leaves) >= owned);
        prop_assert!(settle(&mut cluster, 7_000) >= owned);
        prop_assert!(is_protected(&cluster));
        prop_assert_eq!(even(&cluster).0, zones.len());
        prop_assert!(even(&cluster).1 <= 1, "{:?} {:?}", counts(&cluster), targets(&cluster, &BTreeSet::new()).values().filter(|t| t.owner.is_some()).count());
        for row in cluster.rows().iter().flatten() {
            prop_assert!(row.owner != leaves && !row.is_in_sync(&leaves));
        }
        prop_assert_eq!(remaining(&cluster, &BTreeSet::new(), &leaves), 0);
        prop_assert_eq!(unsettled(&cluster, &targets(&cluster, &BTreeSet::new())), 0);
    }
}

#[test]
fn of_two_nodes_one_can_be_drained_and_nothing_moves_to_spread_the_load() {
    let mut cluster = cluster(8, 2, &["a", "b"]);
    cluster.apply(10, Command::Assign(to_do(&cluster)));
    assert_eq!(settle(&mut cluster, 9_000), 0);
    assert!(is_protected(&cluster));
    cluster.apply(500, Command::Drain(node("a", 2)));
    assert_eq!(settle(&mut cluster, 11_000), 4);
    assert_eq!(counts(&cluster), [("b".into(), 8)].into());
    // Nobody else can stand by.
    assert_eq!(remaining(&cluster, &BTreeSet::new(), &node("a", 2)), 0);
    cluster.apply(2_500, Command::Register(registration("a", 2)));
    assert_eq!(settle(&mut cluster, 13_000), 0);
    assert!(is_protected(&cluster));
    assert_eq!(counts(&cluster), [("b".into(), 8)].into());
}

#[test]
fn what_an_unreachable_node_has_is_taken_over_by_others_who_have_it_or_waited_for() {
    let mut cluster = replicated();
    let (a, b, c) = (node("a", 2), node("b", 3), node("c", 4));
    let plan_with = |cluster: &Cluster, dead: &[&NodeRef], unreachable: &NodeRef| {
        let out = Out {
            dead: dead.iter().copied().cloned().collect(),
            unreachable: [unreachable.clone()].into(),
        };
        let lapsed = &|_: &NodeRef, _| true;
        plan(cluster, &Seen { out, lapsed })
    };
    // All leases are over, and all the same nothing begins anew.
    let of_a = plan_with(&cluster, &[], &a);
    assert_eq!((of_a.promotions.len(), of_a.afresh.len()), (4, 0));
    cluster.apply(500, Command::Assign(of_a.promotions));
    // Two of the four that it has had are at each of the others now, and nobody
    // else has them.
    let of_b = plan_with(&cluster, &[&c], &b);
    let lost = |row: &&Row| row.owner == c && !row.is_in_sync(&a) && !row.is_in_sync(&b);
    let lost = cluster.rows().iter().flatten().filter(lost).count();
    assert_eq!(of_b.afresh.len(), lost, "of the dead one");
    assert!(of_b.promotions.iter().all(|to| to.owner == a));
    let waits = |row: &&Row| row.owner == b && !row.is_in_sync(&a);
    let waits = cluster.rows().iter().flatten().filter(waits).count();
    assert!(waits > 0 && lost > 0);
    // A standby that cannot be reached has everything, too.
    let of_both = plan_with(&replicated(), &[&a, &c], &b);
    let rows = replicated();
    let only_b = |row: &&Row| row.owner != b && row.is_in_sync(&b);
    assert!(rows.rows().iter().flatten().any(|row| only_b(&row)));
    for anew in &of_both.afresh {
        let row = rows.rows()[usize::from(anew.shard.0)].as_ref().unwrap();
        assert!(row.owner != b && !row.is_in_sync(&b));
    }
}

#[test]
fn a_node_is_removed_when_it_has_nothing_and_in_the_life_that_is_meant() {
    let mut cluster = cluster(8, 2, &["a", "b"]);
    cluster.apply(10, Command::Assign(to_do(&cluster)));
    settle(&mut cluster, 9_000);
    let refused = |outcome: Outcome, text: &str| match outcome {
        Outcome::Refused(why) => assert!(why.contains(text), "{why}"),
        other => panic!("not refused: {other:?}"),
    };
    let (a, b) = (node("a", 2), node("b", 3));
    let both = "owns 4 shards and stands by for 4";
    refused(cluster.apply(500, Command::Remove(a.clone())), both);
    cluster.apply(501, Command::Drain(a.clone()));
    settle(&mut cluster, 11_000);
    refused(
        cluster.apply(2_500, Command::Remove(b)),
        "owns 8 shards and stands by for 0",
    );
    refused(
        cluster.apply(2_501, Command::Remove(node("a", 1))),
        "restarted since",
    );
    // Nobody else can stand by: until its owner goes on without it.
    refused(
        cluster.apply(2_502, Command::Remove(a.clone())),
        "owns 0 shards and stands by for",
    );
    let rows = cluster.rows().iter().flatten().zip(0..);
    let alone = rows.map(|(row, shard)| ReplicaSet {
        shard: ShardId(shard),
        owner: row.owner.clone(),
        fence: row.fence,
        version: row.version,
        standbys: Vec::new(),
    });
    let alone = Command::Replicas(alone.collect());
    cluster.apply(2_503, alone);
    assert_eq!(
        cluster.apply(2_504, Command::Remove(a.clone())),
        Outcome::Done
    );
    assert_eq!(cluster.members().len(), 1);
    refused(cluster.apply(2_505, Command::Remove(a)), "no member");
    cluster.apply(2_506, Command::Register(registration("a", 2)));
    assert_eq!(settle(&mut cluster, 13_000), 0);
    assert!(is_protected(&cluster), "it is back and stands by");
}

/// For how many shards of each node each other one stands by.
fn pairs(cluster: &Cluster) -> BTreeMap<(NodeId, NodeId), usize> {
    let owners = || cluster.members().values().filter_map(owner);
    let none = owners().flat_map(|one| owners().map(move |other| ((one.id.clone(), other.id), 0)));
    let mut pairs: BTreeMap<_, _> = none.filter(|((one, other), _)| one != other).collect();
    for row in cluster.rows().iter().flatten() {
        for standby in row.in_sync() {
            *pairs
                .entry((row.owner.id.clone(), standby.id.clone()))
                .or_default() += 1;
        }
    }
    pairs
}

#[test]
fn after_all_have_been_restarted_everybody_stands_by_for_everybody() {
    let mut cluster = cluster(96, 3, &["a", "b", "c"]);
    cluster.apply(10, Command::Assign(to_do(&cluster)));
    stand_by(&mut cluster, 11);
    for (turn, (name, life)) in [("a", 2), ("b", 3), ("c", 4)].into_iter().enumerate() {
        let index = 10_000 * (turn as u64 + 1);
        cluster.apply(index, Command::Drain(node(name, life)));
        settle(&mut cluster, index + 1);
        cluster.apply(index + 5_000, Command::Register(registration(name, 2)));
        settle(&mut cluster, index + 5_001);
        assert!(is_protected(&cluster));
    }
    assert!(
        counts(&cluster)
            .values()
            .all(|owns| (31..=33).contains(owns))
    );
    let pairs = pairs(&cluster);
    assert!(
        pairs.values().all(|stands_by| *stands_by >= 14),
        "{pairs:?}"
    );
}

#[test]
fn a_shard_moves_on_only_once_its_owner_has_said_that_it_serves() {
    let mut cluster = replicated();
    let moving = |cluster: &Cluster| {
        let targets = targets(cluster, &BTreeSet::new());
        moves(cluster, &targets, &Out::default())
    };
    cluster.apply(500, Command::Drain(node("a", 2)));
    obey(&mut cluster, 501);
    cluster.apply(502, Command::Assign(moving(&cluster)));
    cluster.apply(503, Command::Drain(node("b", 3)));
    // `c` stands by for what has come to `b`, and would have to wait for `a`.
    let anew = |moves: Vec<Assignment>| {
        let anew = |to: &&Assignment| to.under == Some(Fence(502));
        moves.iter().filter(anew).count()
    };
    assert_eq!(anew(moving(&cluster)), 0);
    obey(&mut cluster, 504);
    assert_eq!(anew(moving(&cluster)), 2);
}

#[test]
fn nothing_moves_to_the_dead_and_only_once_they_have_all() {
    let mut cluster = replicated();
    cluster.apply(500, Command::Drain(node("a", 2)));
    let ready = |cluster: &Cluster, dead: &[NodeRef]| {
        let out = dead_ones(dead);
        moves(cluster, &targets(cluster, &BTreeSet::new()), &out).len()
    };
    assert_eq!(ready(&cluster, &[]), 0, "nobody else stands by yet");
    obey(&mut cluster, 501);
    assert_eq!(ready(&cluster, &[]), 4);
    assert_eq!(ready(&cluster, &[node("b", 3)]), 0);
    assert_eq!(
        ready(&cluster, &[node("a", 2)]),
        0,
        "that is another matter"
    );
    // A restart takes it back.
    cluster.apply(502, Command::Register(registration("a", 2)));
    assert!(!cluster.gives_away(&node("a", 502)));
    let stale = Command::Drain(node("a", 2));
    assert!(matches!(cluster.apply(503, stale), Outcome::Refused(_)));
}
