use super::*;
use crate::core::agreed::Replicas;
use crate::core::lease::PairLease;
use crate::core::replication;
use proto::id::{ClusterUuid, Incarnation};
use proto::inspection::{ReplicaState, ShardState};
use proto::message::{
    InterestDigest, Join, JoinResult, Publish, Published, Refusal, RestateEnd, Sequenced, Since,
};
use proto::position::Epoch;
use proto::shard::{Row, ShardMap, Sharding};
use proto::time::UnixTime;
use std::time::Duration;

const SHARDS: u16 = 4;

fn node(id: &str, incarnation: u64) -> NodeRef {
    NodeRef {
        id: id.parse().unwrap(),
        incarnation: Incarnation(incarnation),
    }
}

fn gateway(incarnation: u64) -> GatewayRef {
    GatewayRef {
        id: "g".parse().unwrap(),
        incarnation: Incarnation(incarnation),
    }
}

fn key() -> ChannelKey {
    ChannelKey {
        app: "app".parse().unwrap(),
        channel: "room".parse().unwrap(),
    }
}

/// A map with an owner and a fence for each shard.
fn map(version: u64, rows: [(&NodeRef, u64); SHARDS as usize]) -> Arc<ShardMap> {
    let mut nodes: Vec<NodeRef> = rows.iter().map(|(owner, _)| (*owner).clone()).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let row = |(owner, fence): (&NodeRef, u64)| Row {
        owner: nodes.iter().position(|node| node == owner).unwrap() as u16,
        fence: Fence(fence),
    };
    let rows = rows.into_iter().map(row).collect();
    Arc::new(ShardMap {
        cluster: ClusterUuid(1),
        version,
        sharding: Sharding {
            seed: 7,
            count: SHARDS,
        },
        nodes,
        rows,
    })
}

fn shards(part: Part) -> Shards {
    let sharding = Sharding {
        seed: 7,
        count: SHARDS,
    };
    let nothing = Arc::new(ShardMap::unassigned(ClusterUuid(1), sharding));
    let nothing = Arc::new(Agreed::alone(nothing));
    let namespaces = Arc::new(Namespaces::default());
    Shards::new(
        node("a", 1),
        part,
        namespaces,
        nothing,
        Arc::new(Leases::unlimited()),
    )
}

fn agreed(map: &Arc<ShardMap>) -> Input {
    Input::Agreed(Arc::new(Agreed::alone(Arc::clone(map))))
}

const ALL: Part = Part { index: 0, of: 1 };

fn told(shards: &mut Shards, input: Input) -> Vec<Effect> {
    let mut effects = Vec::new();
    shards.handle(Timestamp(0), input, &mut effects);
    effects
}

fn served(shards: &Shards) -> Vec<(u16, u64)> {
    let served = shards.served();
    served.map(|(id, shard)| (id.0, shard.fence().0)).collect()
}

fn ask(shards: &mut Shards, from: GatewayRef, shard: u16, request: Request) -> Vec<Effect> {
    let shard = ShardId(shard);
    let input = Input::Request {
        from,
        shard,
        request,
    };
    told(shards, input)
}

fn join(shard: u16, fence: u64, version: u64) -> Request {
    Request::Join(Join {
        shard: ShardId(shard),
        fence: Fence(fence),
        key: key(),
        count: 1,
        since: Since::Now,
        version,
        is_counted: false,
    })
}

fn joined(effects: &[Effect]) -> &JoinResult {
    match effects {
        [
            Effect::Reply {
                reply: Reply::Joined { result, .. },
                ..
            },
        ] => result,
        other => panic!("the answer to a join expected, got {other:?}"),
    }
}

fn published(shards: &mut Shards, shard: u16, fence: u64) -> (Epoch, u64) {
    let place = Sequenced {
        shard: ShardId(shard),
        fence: Fence(fence),
        sequence: 1,
        low_mark: 1,
    };
    let publish = Publish {
        place,
        key: key(),
        event: "e".into(),
        data: "d".into(),
        exclude: None,
        accepted_at: UnixTime(0),
        idempotency: None,
        by: None,
    };
    let effects = ask(shards, gateway(1), shard, Request::Publish(publish));
    match effects.last() {
        Some(Effect::Acknowledge {
            reply:
                Reply::Published {
                    result: Ok(Published::Accepted { position, .. }),
                    ..
                },
            ..
        }) => (position.epoch, position.offset.0),
        other => panic!("an acknowledgement expected, got {other:?}"),
    }
}

#[test]
fn an_owner_lacks_the_lease_of_its_leader_when_that_is_over() {
    let me = node("a", 1);
    let mut shards = shards(ALL);
    let until = |node| Leases {
        node: Timestamp(node),
        ..Leases::unlimited()
    };
    shards.handle(
        Timestamp(0),
        Input::Leases(Arc::new(until(100))),
        &mut Vec::new(),
    );
    assert_eq!(shards.lacks(Timestamp(200)), None, "it serves nothing");
    told(&mut shards, agreed(&map(2, [(&me, 2); 4])));
    assert_eq!(shards.lacks(Timestamp(99)), None);
    assert_eq!(shards.lacks(Timestamp(100)), Some(Lease::Node));
    let mut leases = until(300);
    leases
        .pairs
        .insert(node("b", 1), PairLease::new(Timestamp(0)));
    shards.handle(
        Timestamp(0),
        Input::Leases(Arc::new(leases)),
        &mut Vec::new(),
    );
    assert_eq!(shards.lacks(Timestamp(200)), None, "it counts for nothing");
}

#[test]
fn whoever_rests_serves_nothing_any_more_whatever_the_map_says() {
    let (me, other) = (node("a", 1), node("b", 1));
    let mut shards = shards(ALL);
    told(
        &mut shards,
        agreed(&map(2, [(&me, 2), (&other, 2), (&me, 1), (&me, 2)])),
    );
    let mut effects = Vec::new();
    let kept = shards.rest(Timestamp(0), &mut effects);
    let of = |kept: &ShardCheckpoint| (kept.shard.0, kept.fence.0);
    let all: Vec<(u16, u64)> = kept.iter().map(of).collect();
    assert_eq!(all, [(0, 2), (2, 1), (3, 2)]);
    assert_eq!(effects.len(), 3);
    assert_eq!(
        crate::core::checkpoint::claims(&kept),
        [
            (Fence(1), vec![ShardId(2)]),
            (Fence(2), vec![ShardId(0), ShardId(3)])
        ]
    );
    let effects = told(
        &mut shards,
        agreed(&map(3, [(&me, 2), (&me, 3), (&me, 3), (&me, 2)])),
    );
    assert_eq!(effects, []);
    assert_eq!(ask(&mut shards, gateway(1), 0, join(0, 2, 1)), []);
    assert_eq!(served(&shards), []);
    assert_eq!(shards.rest(Timestamp(0), &mut Vec::new()), []);
}

#[test]
fn shards_start_and_stop_with_the_map() {
    let (a, b) = (node("a", 1), node("b", 1));
    let mut shards = shards(ALL);
    let first = map(1, [(&a, 1), (&b, 1), (&a, 1), (&b, 1)]);
    assert_eq!(
        told(&mut shards, agreed(&first)),
        [Effect::Started(ShardId(0)), Effect::Started(ShardId(2))]
    );
    assert_eq!(told(&mut shards, agreed(&first)), [], "nothing new");
    let second = map(5, [(&b, 5), (&a, 5), (&a, 1), (&b, 1)]);
    assert_eq!(
        told(&mut shards, agreed(&second)),
        [Effect::Stopped(ShardId(0)), Effect::Started(ShardId(1))]
    );
    assert_eq!(served(&shards), [(1, 5), (2, 1)]);
}

#[test]
fn each_worker_has_its_part() {
    let a = node("a", 1);
    let whole = map(1, [(&a, 1); SHARDS as usize]);
    let mut parts = [0, 1].map(|index| shards(Part { index, of: 2 }));
    let parts = parts.each_mut().map(|part| {
        told(part, agreed(&whole));
        served(part)
    });
    assert_eq!(parts, [[(0, 1), (2, 1)], [(1, 1), (3, 1)]]);
}

#[test]
fn a_shard_that_stays_keeps_its_state_and_a_higher_fence_ends_it() {
    let (a, b) = (node("a", 1), node("b", 1));
    let mut shards = shards(ALL);
    told(
        &mut shards,
        agreed(&map(1, [(&a, 1), (&a, 1), (&a, 1), (&a, 1)])),
    );
    let (before, _) = published(&mut shards, 0, 1);
    told(
        &mut shards,
        agreed(&map(2, [(&a, 1), (&b, 2), (&a, 1), (&a, 1)])),
    );
    assert_eq!(
        published(&mut shards, 0, 1),
        (before, 1),
        "a repeat: the table is there"
    );
    let effects = told(
        &mut shards,
        agreed(&map(3, [(&a, 3), (&b, 2), (&a, 1), (&a, 1)])),
    );
    assert_eq!(
        effects,
        [Effect::Stopped(ShardId(0)), Effect::Started(ShardId(0))]
    );
    let (after, offset) = published(&mut shards, 0, 3);
    assert_ne!(after, before);
    assert_eq!(offset, 1);
}

#[test]
fn what_is_owned_by_another_life_of_this_node_is_not_served() {
    let mut shards = shards(ALL);
    let next = node("a", 2);
    told(&mut shards, agreed(&map(1, [(&next, 1); 4])));
    assert_eq!(served(&shards), []);
    let effects = ask(&mut shards, gateway(1), 0, join(0, 1, 1));
    let refusal = Refusal::NotOwner {
        owner: next,
        fence: Fence(1),
    };
    assert_eq!(joined(&effects), &Err(refusal));
}

#[test]
fn a_request_that_comes_after_its_shard_has_gone_is_told_where_to() {
    let (a, b) = (node("a", 1), node("b", 1));
    let mut shards = shards(ALL);
    assert_eq!(
        ask(&mut shards, gateway(1), 0, join(0, 1, 1)),
        [],
        "no map, no answer"
    );
    told(&mut shards, agreed(&map(1, [(&a, 1); 4])));
    assert!(joined(&ask(&mut shards, gateway(1), 0, join(0, 1, 1))).is_ok());
    told(
        &mut shards,
        agreed(&map(9, [(&b, 9), (&a, 1), (&a, 1), (&a, 1)])),
    );
    let refusal = Refusal::NotOwner {
        owner: b,
        fence: Fence(9),
    };
    let effects = ask(&mut shards, gateway(1), 0, join(0, 1, 2));
    assert_eq!(joined(&effects), &Err(refusal));
    let end = Request::RestateEnd(RestateEnd {
        shard: ShardId(0),
        fence: Fence(1),
        since: 9,
    });
    assert_eq!(ask(&mut shards, gateway(1), 0, end), []);
    let outside = ask(&mut shards, gateway(1), SHARDS, join(SHARDS, 1, 3));
    assert_eq!(outside, [Effect::Unroutable]);
}

/// Who asks has heard of a move sooner. It would come again only much later.
#[test]
fn a_request_of_who_knows_more_waits_until_that_is_known_here() {
    let (a, b) = (node("a", 1), node("b", 1));
    let mut shards = shards(ALL);
    told(&mut shards, agreed(&map(1, [(&b, 1); 4])));
    for version in 1..=1_200 {
        assert_eq!(ask(&mut shards, gateway(1), 0, join(0, 9, version)), []);
    }
    assert_eq!(ask(&mut shards, gateway(1), 1, join(1, 12, 1)), []);
    let first = [(&a, 9), (&b, 9), (&b, 1), (&b, 1)];
    let effects = told(&mut shards, agreed(&map(9, first)));
    let joined_in = |effect: &&Effect| {
        matches!(
            effect,
            Effect::Reply { reply: Reply::Joined { result: Ok(joined), .. }, .. }
                if joined.fence == Fence(9)
        )
    };
    assert_eq!(effects.iter().filter(joined_in).count(), 1_024, "in bounds");
    // That of the other shard still waits; somebody else has it.
    let then = [(&a, 9), (&b, 12), (&b, 1), (&b, 1)];
    let effects = told(&mut shards, agreed(&map(12, then)));
    let refusal = Refusal::NotOwner {
        owner: b.clone(),
        fence: Fence(12),
    };
    assert_eq!(joined(&effects), &Err(refusal));

    // What nobody has ever heard of is forgotten.
    assert_eq!(ask(&mut shards, gateway(1), 1, join(1, 99, 2)), []);
    let mut effects = Vec::new();
    shards.handle(Timestamp(5_000), Input::Tick, &mut effects);
    let last = [(&a, 9), (&b, 99), (&b, 1), (&b, 1)];
    assert_eq!(told(&mut shards, agreed(&map(99, last))), []);
}

#[test]
fn a_new_life_of_a_gateway_voids_the_old_one_in_all_shards() {
    let a = node("a", 1);
    let mut shards = shards(ALL);
    told(&mut shards, agreed(&map(1, [(&a, 1); 4])));
    for shard in [0, 3] {
        ask(&mut shards, gateway(1), shard, join(shard, 1, 1));
    }
    let interest = |shards: &Shards| shards.served().map(|(_, s)| s.interest()).sum::<usize>();
    assert_eq!(interest(&shards), 2);
    assert_eq!(told(&mut shards, Input::Met(gateway(2))), []);
    assert_eq!(interest(&shards), 0);
    // And a gateway that counts as gone leaves nothing behind, unless it is
    // another life of it that does.
    ask(&mut shards, gateway(2), 1, join(1, 1, 1));
    told(&mut shards, Input::Forget(gateway(1)));
    assert_eq!(interest(&shards), 1);
    told(&mut shards, Input::Forget(gateway(2)));
    assert_eq!(interest(&shards), 0);
}

#[test]
fn what_waits_of_an_earlier_life_of_a_gateway_is_not_done_after_it_has_another() {
    let (a, b) = (node("a", 1), node("b", 1));
    let mut shards = shards(ALL);
    told(&mut shards, agreed(&map(1, [(&b, 1); 4])));
    assert_eq!(ask(&mut shards, gateway(1), 0, join(0, 9, 1)), [], "waits");
    assert_eq!(ask(&mut shards, gateway(2), 1, join(1, 9, 1)), [], "waits");
    told(&mut shards, Input::Met(gateway(2)));
    told(&mut shards, agreed(&map(9, [(&a, 9); 4])));
    let followed = shards.served().map(|(id, shard)| (id.0, shard.interest()));
    assert!(followed.eq([(0, 0), (1, 1), (2, 0), (3, 0)]));
}

/// What is agreed with this map, and that one life of the gateway is over.
fn bereft(map: &Arc<ShardMap>, incarnation: u64) -> Input {
    let mut gone = Gone::default();
    gone.declare(1, gateway(incarnation));
    let agreed = Agreed {
        gone: Arc::new(gone),
        ..Agreed::alone(Arc::clone(map))
    };
    Input::Agreed(Arc::new(agreed))
}

/// Its publish table has gone with it: if it were listened to, what it sends
/// again would be published again.
#[test]
fn a_gateway_that_is_gone_leaves_nothing_and_is_not_listened_to() {
    let a = node("a", 1);
    let map = map(1, [(&a, 1); 4]);
    let mut shards = shards(ALL);
    told(&mut shards, agreed(&map));
    ask(&mut shards, gateway(1), 0, join(0, 1, 1));
    let (_, offset) = published(&mut shards, 0, 1);
    assert_eq!(offset, 1);
    told(&mut shards, bereft(&map, 1));
    let interest: usize = shards.served().map(|(_, shard)| shard.interest()).sum();
    assert_eq!(interest, 0);
    let told_gone = [Effect::Reply {
        to: gateway(1),
        reply: Reply::DeclaredGone {
            through: Incarnation(1),
        },
    }];
    assert_eq!(ask(&mut shards, gateway(1), 0, join(0, 1, 2)), told_gone);
    assert!(joined(&ask(&mut shards, gateway(2), 0, join(0, 1, 3))).is_ok());
}

#[test]
fn what_waited_for_a_shard_is_not_done_if_who_asked_is_gone() {
    let (a, b) = (node("a", 1), node("b", 1));
    let mut shards = shards(ALL);
    let first = map(1, [(&b, 1); 4]);
    told(&mut shards, agreed(&first));
    let promoted = |incarnation| {
        let mut gone = Gone::default();
        gone.declare(1, gateway(incarnation));
        let replicas = Replicas {
            promoted: true,
            ..Replicas::default()
        };
        Input::Agreed(Arc::new(Agreed {
            map: map(2, [(&a, 2); 4]),
            shards: vec![replicas; 4],
            gone: Arc::new(gone),
        }))
    };
    told(&mut shards, promoted(0));
    assert_eq!(ask(&mut shards, gateway(1), 0, join(0, 2, 1)), [], "waits");
    told(&mut shards, promoted(1));
    let tenure = Tenure {
        shard: ShardId(0),
        fence: Fence(2),
        owner: a,
        cluster: ClusterUuid(1),
    };
    let succession = Succession {
        tenure,
        shard: None,
        is_released: false,
        after: Duration::ZERO,
    };
    let effects = told(&mut shards, Input::Begin(Box::new(succession)));
    let gone = |effect: &Effect| {
        matches!(
            effect,
            Effect::Reply {
                reply: Reply::DeclaredGone { .. },
                ..
            }
        )
    };
    assert_eq!(effects.iter().filter(|effect| gone(effect)).count(), 1);
}

/// A shard comes by another way than what is agreed. Who acted at once would do so
/// without a standby that may be made the owner next, and has not got it.
#[test]
fn whoever_begins_before_it_knows_who_stands_by_waits_until_it_does() {
    let (a, b, c) = (node("a", 1), node("b", 1), node("c", 1));
    for (in_sync, acts) in [(vec![], true), (vec![c], false)] {
        let mut shards = shards(ALL);
        told(&mut shards, agreed(&map(1, [(&b, 1); 4])));
        let leases = Leases {
            node: Timestamp(1_000),
            ..Leases::unlimited()
        };
        told(&mut shards, Input::Leases(Arc::new(leases)));
        let succession = Succession {
            tenure: Tenure {
                shard: ShardId(0),
                fence: Fence(2),
                owner: a.clone(),
                cluster: ClusterUuid(1),
            },
            shard: None,
            is_released: false,
            after: Duration::ZERO,
        };
        told(&mut shards, Input::Begin(Box::new(succession)));
        assert_eq!(served(&shards), [(0, 2)]);
        assert_eq!(ask(&mut shards, gateway(1), 0, join(0, 2, 1)), []);
        let row = replication::Row {
            version: 2,
            in_sync,
            ..replication::Row::default()
        };
        let replicas = Replicas {
            row,
            promoted: true,
            ..Replicas::default()
        };
        let effects = told(
            &mut shards,
            Input::Agreed(Arc::new(Agreed {
                shards: vec![replicas; 4],
                ..Agreed::alone(map(2, [(&a, 2); 4]))
            })),
        );
        let answers = effects.iter().any(|effect| match effect {
            Effect::Reply { .. } | Effect::Acknowledge { .. } => true,
            Effect::Under(leased) => !leased.effects.is_empty(),
            _ => false,
        });
        assert_eq!(answers, acts, "{effects:?}");
    }
}

#[test]
fn a_beat_of_a_shard_served_elsewhere_says_nothing() {
    let (a, b) = (node("a", 1), node("b", 1));
    let mut shards = shards(ALL);
    told(
        &mut shards,
        agreed(&map(1, [(&a, 1), (&b, 1), (&a, 1), (&a, 1)])),
    );
    let mut digest = InterestDigest::default();
    digest.insert(&key());
    let mut beat = |shard| {
        let shard = ShardId(shard);
        let interest = ShardInterest { shard, digest };
        let from = gateway(1);
        told(&mut shards, Input::Beat { from, interest })
    };
    assert_eq!([beat(1), beat(1)], [[], []]);
    assert_eq!(beat(0), []);
    let restate = Reply::Restate {
        shard: ShardId(0),
        fence: Fence(1),
    };
    let to = gateway(1);
    assert_eq!(beat(0), [Effect::Reply { to, reply: restate }]);
}

#[test]
fn a_channel_is_described_by_its_owner_and_others_say_who_that_is() {
    let (a, b) = (node("a", 1), node("b", 1));
    let mut shards = shards(ALL);
    assert!(matches!(shards.describe(&key()), Answer::Unavailable(_)));
    told(&mut shards, agreed(&map(1, [(&a, 1); 4])));
    let shard = shards.agreed.map.sharding.shard_of(&key());
    ask(&mut shards, gateway(1), shard.0, join(shard.0, 1, 1));
    published(&mut shards, shard.0, 1);
    let Answer::Channel(info) = shards.describe(&key()) else {
        panic!("its owner knows it")
    };
    assert_eq!((info.shard, info.fence, info.owner), (shard, Fence(1), a));
    let state = info.state.expect("it has a follower");
    assert_eq!(
        (state.position.offset.0, state.earliest.0, state.kept),
        (1, 1, 1)
    );
    assert_eq!(state.followers, [(gateway(1), 1)]);
    told(&mut shards, agreed(&map(2, [(&b, 2); 4])));
    let question = Question::Channel { key: key() };
    let effects = ask(
        &mut shards,
        gateway(1),
        shard.0,
        Request::Inspect { id: 5, question },
    );
    let answer = Answer::NotOwner { owner: b };
    let reply = Reply::Inspected { id: 5, answer };
    let to = gateway(1);
    assert_eq!(effects, [Effect::Reply { to, reply }]);
}

#[test]
fn a_shard_is_described_by_its_owner_with_its_standbys_and_leases() {
    let (a, b, c) = (node("a", 1), node("b", 1), node("c", 1));
    let mut shards = shards(ALL);
    let (now, id) = (Timestamp(1_000), ShardId(2));
    let told_of = |shards: &Shards| match shards.describe_shard(now, id) {
        Answer::Shard(info) => info,
        other => panic!("its owner knows it: {other:?}"),
    };
    let nobody = shards.describe_shard(now, id);
    assert!(matches!(nobody, Answer::Unavailable(_)));
    told(
        &mut shards,
        agreed(&map(1, [(&a, 1), (&a, 1), (&a, 3), (&b, 1)])),
    );
    let alone = told_of(&shards);
    assert_eq!((&alone.owner, alone.fence), (&a, Fence(3)));
    assert_eq!(alone.state, ShardState::Serves);
    assert_eq!((alone.node_lease_ms, alone.standbys), (None, vec![]));
    let elsewhere = shards.describe_shard(now, ShardId(3));
    assert_eq!(elsewhere, Answer::NotOwner { owner: b });

    // A standby is being filled, and has not answered yet.
    let standbys = vec![c.clone()];
    told(
        &mut shards,
        Input::Want {
            shard: id,
            standbys,
        },
    );
    let mut pair = PairLease::new(Timestamp(0));
    pair.echo(Timestamp(1_000), Timestamp(900));
    let leases = Leases {
        node: Timestamp(1_700),
        pairs: BTreeMap::from([(c.clone(), pair)]),
    };
    told(&mut shards, Input::Leases(Arc::new(leases)));
    let info = told_of(&shards);
    assert_eq!(
        (info.state, info.node_lease_ms),
        (ShardState::Serves, Some(700))
    );
    let [standby] = &info.standbys[..] else {
        panic!("one standby: {info:?}")
    };
    assert_eq!((&standby.node, standby.state), (&c, ReplicaState::Filling));
    assert!(standby.lag_records > 0);
    assert_eq!((standby.lag_ms, standby.lease_ms), (Some(100), 200));

    let question = Question::Shard { shard: id };
    let inspect = Request::Inspect { id: 5, question };
    let effects = ask(&mut shards, gateway(1), id.0, inspect);
    assert!(matches!(
        &effects[..],
        [Effect::Reply {
            reply: Reply::Inspected {
                id: 5,
                answer: Answer::Shard(_)
            },
            ..
        }]
    ));

    // Without a lease nothing is answered, and it says why.
    let leases = Leases {
        node: Timestamp(900),
        pairs: BTreeMap::new(),
    };
    told(&mut shards, Input::Leases(Arc::new(leases)));
    let info = told_of(&shards);
    assert_eq!(
        (info.state, info.node_lease_ms),
        (ShardState::Waits, Some(0))
    );
    assert_eq!(info.waits_for.as_deref(), Some("a lease from the leader"));
}

/// Whoever owned a shard by a map that the gateway knew need not wait for its word, also
/// if it is told before it has the shard; of a later owner the gateway has not spoken.
#[test]
fn a_gateway_without_members_is_waited_for_by_nobody_whom_it_knew() {
    let a = node("a", 1);
    let mut shards = shards(ALL);
    let vacant = |map_version, except: &[u16]| {
        Input::Vacant(Arc::new(Vacant {
            gateway: gateway(1),
            map_version,
            except: except.iter().copied().map(ShardId).collect(),
        }))
    };
    let around = Around {
        gateways: [gateway(1)].into(),
        hears_since: Some(Timestamp(0)),
    };
    told(&mut shards, Input::Around(Arc::new(around)));
    told(&mut shards, vacant(3, &[2]));
    told(
        &mut shards,
        agreed(&map(3, [(&a, 1), (&a, 3), (&a, 3), (&a, 3)])),
    );
    told(
        &mut shards,
        agreed(&map(4, [(&a, 1), (&a, 4), (&a, 3), (&a, 3)])),
    );
    let complete = |shards: &Shards| -> Vec<u16> {
        let stated = shards
            .served()
            .filter(|(_, shard)| shard.is_stated(Timestamp(5_000)));
        stated.map(|(id, _)| id.0).collect()
    };
    assert_eq!(complete(&shards), [0, 3]);
    told(&mut shards, vacant(4, &[2]));
    assert_eq!(complete(&shards), [0, 1, 3]);
    // An older word changes nothing.
    told(&mut shards, vacant(2, &[]));
    assert_eq!(complete(&shards), [0, 1, 3]);
}
