use super::*;
use proto::shard::{Fence, ShardId};

pub(crate) fn founding(shards: u16, expect: u16) -> Founding {
    Founding {
        uuid: ClusterUuid(7),
        sharding: Sharding {
            seed: 1,
            count: shards,
        },
        expect,
    }
}

pub(crate) fn registration(name: &str, start: u64) -> Registration {
    Registration {
        raft_id: name.bytes().map(u64::from).sum(),
        name: name.parse().unwrap(),
        start,
        address: format!("{name}:1"),
        zone: String::new(),
        witness: false,
        kept: Vec::new(),
    }
}

pub(crate) fn node(name: &str, incarnation: u64) -> NodeRef {
    NodeRef {
        id: name.parse().unwrap(),
        incarnation: Incarnation(incarnation),
    }
}

fn assignment(shard: u16, owner: NodeRef, under: Option<u64>) -> Command {
    Command::Assign(vec![Assignment {
        shard: ShardId(shard),
        owner,
        under: under.map(Fence),
        version: None,
        how: How::Afresh,
    }])
}

#[test]
fn an_incarnation_is_the_index_of_its_registration_and_a_repeat_is_the_same() {
    let mut cluster = Cluster::default();
    let register = |start| Command::Register(registration("a", start));
    let is = |index| Outcome::Registered(Incarnation(index));
    assert_eq!(cluster.apply(5, register(1)), is(5));
    assert_eq!(cluster.apply(6, register(1)), is(5));
    assert_eq!(cluster.apply(9, register(2)), is(9));
}

#[test]
fn a_name_belongs_to_one_data_directory_until_it_is_forgotten() {
    let mut cluster = Cluster::default();
    cluster.apply(1, Command::Register(registration("a", 1)));
    let stranger = Registration {
        raft_id: 99,
        ..registration("a", 2)
    };
    let register = Command::Register(stranger);
    assert!(matches!(
        cluster.apply(2, register.clone()),
        Outcome::Refused(_)
    ));
    cluster.apply(3, Command::Forget(registration("a", 1).raft_id));
    assert_eq!(
        cluster.apply(4, register),
        Outcome::Registered(Incarnation(4))
    );
}

#[test]
fn a_node_hears_that_its_life_is_over() {
    let mut cluster = Cluster::default();
    let raft_id = registration("a", 1).raft_id;
    cluster.apply(2, Command::Register(registration("a", 1)));
    assert_eq!(cluster.check_life(raft_id, &node("a", 2)), Ok(()));
    // A copy of the registration that arrives late, after another process.
    cluster.apply(3, Command::Register(registration("a", 2)));
    let why = cluster.check_life(raft_id, &node("a", 2)).unwrap_err();
    assert!(why.contains("replaced"), "{why}");
    cluster.apply(4, Command::Forget(raft_id));
    let why = cluster.check_life(raft_id, &node("a", 3)).unwrap_err();
    assert!(why.contains("no member"), "{why}");
    let stranger = Registration {
        raft_id: 99,
        ..registration("a", 3)
    };
    cluster.apply(5, Command::Register(stranger));
    let why = cluster.check_life(raft_id, &node("a", 3)).unwrap_err();
    assert!(why.contains("taken"), "{why}");
}

#[test]
fn a_cluster_is_founded_once() {
    let mut cluster = Cluster::default();
    assert_eq!(
        cluster.apply(1, Command::Found(founding(4, 1))),
        Outcome::Done
    );
    let other = Founding {
        uuid: ClusterUuid(8),
        ..founding(4, 1)
    };
    assert!(matches!(
        cluster.apply(2, Command::Found(other)),
        Outcome::Refused(_)
    ));
    assert_eq!(cluster.map().unwrap().cluster, ClusterUuid(7));
}

#[test]
fn a_row_changes_only_under_the_fence_it_was_decided_under() {
    let mut cluster = Cluster::default();
    cluster.apply(1, Command::Found(founding(1, 1)));
    cluster.apply(2, Command::Register(registration("a", 1)));
    cluster.apply(3, Command::Register(registration("b", 1)));
    cluster.apply(4, assignment(0, node("a", 2), None));
    cluster.apply(5, assignment(0, node("b", 3), None));
    let map = cluster.map().unwrap();
    assert_eq!(map.owner(ShardId(0)), Some((&node("a", 2), Fence(4))));
    assert_eq!(map.version, 4, "the late decision changed nothing");
    cluster.apply(6, assignment(0, node("b", 3), Some(4)));
    let map = cluster.map().unwrap();
    assert_eq!(map.owner(ShardId(0)), Some((&node("b", 3), Fence(6))));
    assert_eq!(map.version, 6);
}

#[test]
fn a_life_that_has_ended_gets_no_shards() {
    let mut cluster = Cluster::default();
    cluster.apply(1, Command::Found(founding(1, 1)));
    cluster.apply(2, Command::Register(registration("a", 1)));
    cluster.apply(3, Command::Register(registration("a", 2)));
    cluster.apply(4, assignment(0, node("a", 2), None));
    assert_eq!(cluster.rows(), [None]);
    cluster.apply(5, assignment(7, node("a", 3), None));
    assert_eq!(cluster.rows(), [None], "there is no shard 7");
}

#[test]
fn the_map_has_rows_when_every_shard_has_an_owner() {
    let mut cluster = Cluster::default();
    assert_eq!(cluster.map(), None);
    cluster.apply(1, Command::Found(founding(2, 1)));
    cluster.apply(2, Command::Register(registration("a", 1)));
    cluster.apply(3, assignment(0, node("a", 2), None));
    let map = cluster.map().unwrap();
    assert_eq!((map.version, map.rows.len()), (0, 0));
    cluster.apply(4, assignment(1, node("a", 2), None));
    let map = cluster.map().unwrap();
    assert!(map.is_sound());
    assert_eq!(map.nodes, [node("a", 2)]);
}

/// A cluster with a shard of `a`'s second life; `b` (3) and `c` (4) stand by in
/// sync since entry 11. `w` (5) is a witness.
fn replicated() -> Cluster {
    let mut cluster = Cluster::default();
    cluster.apply(1, Command::Found(founding(2, 1)));
    for (at, name) in ["a", "b", "c", "w"].into_iter().enumerate() {
        let registration = Registration {
            witness: name == "w",
            ..registration(name, 1)
        };
        cluster.apply(at as u64 + 2, Command::Register(registration));
    }
    cluster.apply(10, assignment(0, node("a", 2), None));
    let set = replicas(10, &[("b", 3, Replica::InSync), ("c", 4, Replica::InSync)]);
    cluster.apply(11, set);
    assert_eq!(row(&cluster).version, 11);
    cluster
}

fn row(cluster: &Cluster) -> &Row {
    cluster.rows()[0].as_ref().unwrap()
}

fn standby((name, incarnation, state): (&str, u64, Replica)) -> Standby {
    let node = node(name, incarnation);
    Standby { node, state }
}

/// `a` says who stands by for shard 0.
fn replicas(version: u64, standbys: &[(&str, u64, Replica)]) -> Command {
    Command::Replicas(vec![ReplicaSet {
        shard: ShardId(0),
        owner: node("a", 2),
        fence: Fence(10),
        version,
        standbys: standbys.iter().copied().map(standby).collect(),
    }])
}

fn assign(owner: NodeRef, under: u64, version: Option<u64>, how: How) -> Command {
    Command::Assign(vec![Assignment {
        shard: ShardId(0),
        owner,
        under: Some(Fence(under)),
        version,
        how,
    }])
}

#[test]
fn who_stands_by_changes_the_row_but_not_the_map() {
    let cluster = replicated();
    assert_eq!(row(&cluster).fence, Fence(10));
    let in_sync: Vec<_> = row(&cluster).in_sync().cloned().collect();
    assert_eq!(in_sync, [node("b", 3), node("c", 4)]);
    assert_eq!((cluster.map_version, cluster.rows_version()), (10, 11));
}

#[test]
fn only_the_owner_under_its_fence_and_version_says_who_stands_by() {
    let before = replicated();
    let set = |owner, fence, version| {
        Command::Replicas(vec![ReplicaSet {
            shard: ShardId(0),
            owner,
            fence: Fence(fence),
            version,
            standbys: Vec::new(),
        }])
    };
    for command in [
        set(node("a", 2), 10, 10),
        set(node("a", 2), 9, 11),
        set(node("b", 3), 10, 11),
    ] {
        let mut cluster = before.clone();
        assert_eq!(cluster.apply(12, command), Outcome::Done);
        assert_eq!(cluster, before);
    }
    let mut cluster = before;
    cluster.apply(12, set(node("a", 2), 10, 11));
    assert_eq!(row(&cluster).standbys, []);
}

#[test]
fn who_cannot_stand_by_is_refused() {
    let before = replicated();
    let filling = |name, incarnation| (name, incarnation, Replica::Filling);
    for standbys in [
        &[filling("a", 2)][..],
        &[filling("b", 3), filling("b", 3)],
        &[filling("b", 4)],
        &[filling("w", 5)],
        &[filling("x", 6)],
        &[filling("b", 3), filling("c", 4), filling("a", 2)],
    ] {
        let mut cluster = before.clone();
        cluster.apply(12, replicas(11, standbys));
        assert_eq!(cluster, before, "{standbys:?}");
    }
}

#[test]
fn a_standby_in_sync_is_promoted_and_may_keep_another() {
    let before = replicated();
    let promote = |keep| How::Promote { keep };
    let mut cluster = before.clone();
    cluster.apply(12, assign(node("b", 3), 10, Some(11), promote(None)));
    let mut after = Row {
        owner: node("b", 3),
        fence: Fence(12),
        version: 12,
        standbys: Vec::new(),
        earlier: vec![node("a", 2)],
        promoted: true,
        claimed: None,
    };
    assert_eq!(row(&cluster), &after);
    assert_eq!((cluster.map_version, cluster.rows_version()), (12, 12));
    let mut cluster = before.clone();
    let keep = promote(Some(node("c", 4)));
    cluster.apply(12, assign(node("b", 3), 10, Some(11), keep));
    after.standbys = vec![standby(("c", 4, Replica::InSync))];
    assert_eq!(row(&cluster), &after);
    for (owner, version, keep) in [
        (node("b", 3), 10, None),
        (node("a", 2), 11, None),
        (node("b", 3), 11, Some(node("b", 3))),
        (node("b", 3), 11, Some(node("a", 2))),
    ] {
        let mut cluster = before.clone();
        let command = assign(owner, 10, Some(version), promote(keep));
        cluster.apply(12, command);
        assert_eq!(cluster, before);
    }
}

#[test]
fn one_that_is_filling_is_not_promoted() {
    let mut cluster = replicated();
    cluster.apply(12, replicas(11, &[("b", 3, Replica::Filling)]));
    let before = cluster.clone();
    let promote = How::Promote { keep: None };
    cluster.apply(13, assign(node("b", 3), 10, None, promote));
    assert_eq!(cluster, before);
}

#[test]
fn earlier_owners_are_remembered_until_an_owner_speaks_for_itself() {
    let mut cluster = replicated();
    let promote = How::Promote { keep: None };
    cluster.apply(12, assign(node("b", 3), 10, None, promote));
    cluster.apply(13, assign(node("c", 4), 12, None, How::Afresh));
    assert_eq!(row(&cluster).earlier, [node("a", 2), node("b", 3)]);
    assert!(!row(&cluster).promoted);
    let first = ReplicaSet {
        shard: ShardId(0),
        owner: node("c", 4),
        fence: Fence(13),
        version: 13,
        standbys: Vec::new(),
    };
    cluster.apply(14, Command::Replicas(vec![first]));
    assert_eq!(row(&cluster).earlier, []);
    assert_eq!(
        (row(&cluster).fence, row(&cluster).version),
        (Fence(13), 14)
    );
}

#[test]
fn however_often_a_node_starts_its_rows_stay_small() {
    let mut cluster = replicated();
    for at in 0..20 {
        let index = 20 + 2 * at;
        cluster.apply(index, Command::Register(registration("a", index)));
        let under = row(&cluster).fence.0;
        let back = assign(node("a", index), under, None, How::Afresh);
        cluster.apply(index + 1, back);
    }
    assert_eq!(row(&cluster).owner, node("a", 58));
    assert_eq!(row(&cluster).earlier, [node("a", 56)]);
}

#[test]
fn only_a_later_start_from_the_same_directory_proves_that_a_life_has_ended() {
    let mut cluster = replicated();
    assert!(!cluster.has_ended(&node("a", 2)));
    cluster.apply(20, Command::Register(registration("a", 2)));
    cluster.apply(21, Command::Register(registration("a", 3)));
    assert!(cluster.has_ended(&node("a", 2)) && cluster.has_ended(&node("a", 20)));
    assert!(!cluster.has_ended(&node("a", 21)));
    cluster.apply(22, Command::Forget(registration("a", 1).raft_id));
    assert!(!cluster.has_ended(&node("a", 2)));
    let stranger = Registration {
        raft_id: 99,
        ..registration("a", 9)
    };
    cluster.apply(23, Command::Register(stranger));
    assert!(!cluster.has_ended(&node("a", 21)), "it may go on elsewhere");
}

/// `a` starts again, with what it had under a fence.
fn back(start: u64, fence: u64) -> Command {
    Command::Register(Registration {
        kept: vec![(Fence(fence), vec![ShardId(0), ShardId(1), ShardId(9)])],
        ..registration("a", start)
    })
}

#[test]
fn a_node_that_is_back_has_again_what_it_kept() {
    let mut cluster = replicated();
    cluster.apply(20, back(2, 10));
    let expected = Row {
        owner: node("a", 20),
        fence: Fence(20),
        version: 20,
        standbys: Vec::new(),
        earlier: vec![node("a", 2)],
        promoted: true,
        claimed: Some(Fence(10)),
    };
    assert_eq!(*row(&cluster), expected);
    assert_eq!(
        (cluster.map().unwrap().version, &cluster.rows()[1]),
        (0, &None)
    );
    assert_eq!(cluster.members()[&expected.owner.id].registration.kept, []);
    // An answer was lost.
    cluster.apply(21, back(2, 10));
    assert_eq!(*row(&cluster), expected);
    // It ended before it had used it. It does not know the other fence then.
    cluster.apply(22, back(3, 10));
    assert_eq!(row(&cluster).owner, node("a", 22));
    assert_eq!(row(&cluster).claimed, Some(Fence(10)));
    // Once an owner has said something, there is more than was kept.
    let set = ReplicaSet {
        shard: ShardId(0),
        owner: node("a", 22),
        fence: Fence(22),
        version: 22,
        standbys: Vec::new(),
    };
    cluster.apply(23, Command::Replicas(vec![set]));
    let said = row(&cluster).clone();
    cluster.apply(24, back(4, 10));
    assert_eq!(*row(&cluster), said);
}

#[test]
fn what_was_kept_is_void_when_another_has_owned_the_shard() {
    let mut cluster = replicated();
    let how = How::Promote { keep: None };
    cluster.apply(12, assign(node("b", 3), 10, None, how));
    let taken = row(&cluster).clone();
    cluster.apply(20, back(2, 10));
    assert_eq!(*row(&cluster), taken);
    // Not even if it says the fence of the other, or has it again.
    cluster.apply(21, back(3, 12));
    assert_eq!(*row(&cluster), taken);
    cluster.apply(22, assign(node("a", 21), 12, None, How::Afresh));
    let again = row(&cluster).clone();
    cluster.apply(23, back(4, 10));
    assert_eq!(*row(&cluster), again);
}

fn gateway(id: &str, incarnation: u64) -> GatewayRef {
    GatewayRef {
        id: id.parse().unwrap(),
        incarnation: Incarnation(incarnation),
    }
}

#[test]
fn gateways_are_declared_gone_together_and_once() {
    let mut cluster = Cluster::default();
    let both = || vec![gateway("g", 3), gateway("h", 1)];
    let declare = |cluster: &mut Cluster, index| {
        assert_eq!(
            cluster.apply(index, Command::GatewaysGone(both())),
            Outcome::Done
        );
        Arc::clone(cluster.gone())
    };
    let gone = declare(&mut cluster, 5);
    assert!(both().iter().all(|gateway| gone.contains(gateway)));
    let again = declare(&mut cluster, 6);
    assert!(Arc::ptr_eq(&gone, &again), "who watches sees no news");
}

/// Rows were pairs once, and an assignment had three fields.
#[test]
fn what_older_versions_wrote_is_read() {
    let member = "96 cc61 a161 01 a3613a31 a0 c2";
    let old = format!(
        "94 93 c41000000000000000000000000000000007 92 01 02 01 \
         81 a161 92 {member} 02 92 92 92 a161 02 04 c0 04"
    );
    let cluster: Cluster = rmp_serde::from_slice(&bytes(&old)).unwrap();
    let mut same = Cluster::default();
    same.apply(1, Command::Found(founding(2, 1)));
    same.apply(2, Command::Register(registration("a", 1)));
    same.apply(4, assignment(0, node("a", 2), None));
    same.members
        .values_mut()
        .for_each(|member| member.first = None);
    assert_eq!(cluster, same);
    assert_eq!((row(&cluster).version, cluster.rows_version()), (4, 4));
    let again: Cluster = rmp_serde::from_slice(&rmp_serde::to_vec(&cluster).unwrap()).unwrap();
    assert_eq!(again, cluster);

    let old = bytes("81 a6 61737369676e 91 93 07 92 a161 02 c0");
    let command: Command = rmp_serde::from_slice(&old).unwrap();
    assert_eq!(command, assignment(7, node("a", 2), None));
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<char> = hex.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}
