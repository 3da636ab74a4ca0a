//! Nodes that come, go and come back; maps that arrive in pieces; strangers.

use proto::position::{Gap, GapReason};

use super::*;

/// A node in a later life.
fn reborn(id: &str, incarnation: u64) -> NodeRef {
    NodeRef {
        incarnation: Incarnation(incarnation),
        ..node(id)
    }
}

fn not_owner(owner: NodeRef, fence: u64) -> Refusal {
    Refusal::NotOwner {
        owner,
        fence: Fence(fence),
    }
}

/// A change that gives all shards to one node.
fn update(since: u64, version: u64, owner: &str) -> MapUpdate {
    MapUpdate {
        since,
        ..map(version, owner, version).since(0)
    }
}

fn pushed(update: MapUpdate) -> Input {
    Input::Message(Message::Map(update))
}

fn asks_for_map(effects: &[Effect]) -> bool {
    requests(effects)
        .iter()
        .any(|(_, request)| matches!(request, Request::Map { .. }))
}

#[test]
fn a_node_that_restarts_gets_everything_anew_under_its_new_fence() {
    let mut bench = Bench::new();
    bench.attach("c", 4);
    bench.attach("d", 2);
    let entry = bench.entry("c", FENCE, 5);
    assert_eq!(delivered(bench.batch("a", 1, &[entry])), [5]);
    bench.tell(0, publish(10));
    bench.tell(0, publish(11));
    let back = reborn("a", 2);
    // The first that is heard of it is its answer to a publish that was resent.
    let shard = bench.edge.sharding.shard_of(&key("c"));
    let refusal = Reply::Published {
        shard,
        sequence: 1,
        result: Err(not_owner(back.clone(), 9)),
    };
    let effects = bench.reply_of(600, back.clone(), 9, refusal);
    let sent: Vec<_> = requests(effects)
        .into_iter()
        .map(|(node, request)| match request {
            Request::Publish(publish) => (node, publish.place.sequence, publish.place.fence),
            Request::Join(join) => (node, delivered_up_to(join), join.fence),
            Request::Map { since } => (node, *since, Fence(0)),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        sent,
        [
            ("a", 1, Fence(9)),
            ("a", 2, Fence(9)),
            ("a", 5, Fence(9)),
            ("a", 1, Fence(0))
        ],
        "the publishes with their sequences, the join with its position, and the map is old"
    );
    let join = match requests(&bench.effects)[2] {
        (_, Request::Join(join)) => join.clone(),
        ref other => panic!("{other:?}"),
    };
    // The past is gone, and that is said.
    let latest = Position {
        epoch: Epoch(77),
        offset: Offset(0),
    };
    let gap = Gap {
        reason: GapReason::NewEpoch,
        earliest: Offset(1),
        latest,
    };
    let answer = Reply::Joined {
        version: join.version,
        result: Ok(Joined {
            fence: Fence(9),
            position: latest,
            missed: Missed::Gap(gap),
            cached: None,
        }),
    };
    let effects = bench.reply_of(610, back.clone(), 9, answer);
    assert!(
        matches!(effects, [Effect::Step { step: Step::Gap { gap: said, .. }, .. }] if *said == gap),
        "{effects:?}"
    );
    // Its link begins anew, at its first entry.
    let mut entry = bench.entry("c", Fence(9), 1);
    entry.epoch = Epoch(77);
    let batch = |from: NodeRef, first, entry: &Entry| {
        Input::Message(Message::Batch(Batch {
            from,
            to: me().incarnation,
            first,
            entries: vec![codec::encode_entry(entry)],
        }))
    };
    assert_eq!(delivered(bench.tell(620, batch(back, 1, &entry))), [1]);
    // What its earlier life had still on the way does not count, under
    // whatever fence.
    entry.publication = Arc::new(Publication {
        offset: Offset(2),
        ..(*entry.publication).clone()
    });
    assert_eq!(bench.tell(630, batch(node("a"), 2, &entry)), []);
}

/// The floor rises with whatever the owner says, an answered publish as well.
#[test]
fn after_an_answer_under_the_new_fence_the_old_owner_is_not_believed() {
    let mut bench = Bench::new();
    bench.tell(0, publish(10));
    bench.tell(0, publish(11));
    bench.tell(0, pushed(update(1, 2, "b")));
    let effects = bench.reply(10, "b", accepted(1, Fence(2)));
    assert!(matches!(effects, [Effect::Answer((Ticket(10), Ok(_)))]));
    assert_eq!(bench.reply(20, "a", accepted(2, FENCE)), []);
    let effects = bench.reply(30, "b", accepted(2, Fence(2)));
    assert!(matches!(effects, [Effect::Answer((Ticket(11), Ok(_)))]));
}

#[test]
fn a_life_that_is_over_is_not_listened_to() {
    let mut bench = Bench::new();
    let join = bench.follow(0, "c");
    bench.beat(0, reborn("a", 2), 1);
    assert_eq!(bench.reply(10, "a", joined(join.version, FENCE, 4)), []);
    assert_eq!(bench.beat(10, node("a"), 7), [], "nor believed");
    assert!(asks_for_map(bench.beat(10, reborn("a", 2), 7)));
}

#[test]
fn a_stale_map_is_repaired_within_the_deadline_of_a_request() {
    let mut bench = Bench::new();
    bench.tell(0, publish(10));
    let shard = bench.edge.sharding.shard_of(&key("c"));
    // Two nodes in a row have an older map than the next.
    for (at, from, owner, fence) in [(5, "a", "b", 2), (10, "b", "c", 3)] {
        let refusal = Reply::Published {
            shard,
            sequence: 1,
            result: Err(not_owner(node(owner), fence)),
        };
        let effects = bench.reply(at, from, refusal);
        assert!(
            matches!(requests(effects)[..], [(to, Request::Publish(_))] if to == owner),
            "{effects:?}"
        );
    }
    let effects = bench.reply(15, "c", accepted(1, Fence(3)));
    assert!(matches!(effects, [Effect::Answer((Ticket(10), Ok(_)))]));
}

#[test]
fn a_pushed_map_routes() {
    let mut bench = Bench::new();
    bench.attach("c", 4);
    let effects = bench.tell(0, pushed(update(1, 2, "b")));
    assert!(matches!(requests(effects)[..], [("b", Request::Join(_))]));
    assert_eq!(bench.edge.map_version(), 2);
    assert_eq!(bench.tell(0, pushed(update(1, 2, "c"))), [], "known");
    assert_eq!(bench.tell(0, pushed(update(0, 1, "c"))), [], "older");
}

#[test]
fn a_pushed_map_behind_a_hole_is_not_applied_but_asked_for() {
    let mut bench = Bench::new();
    bench.beat(0, node("b"), 1);
    let effects = bench.tell(10, pushed(update(4, 5, "b")));
    assert_eq!(requests(effects), [("b", &Request::Map { since: 1 })]);
    assert_eq!(bench.edge.map_version(), 1);
    assert_eq!(bench.tell(20, pushed(update(5, 6, "b"))), [], "once");
    // The delta fits, and the pushed one after it, too.
    bench.reply(
        30,
        "b",
        Reply::Map {
            update: update(1, 6, "b"),
            namespaces: Namespaces::default(),
        },
    );
    assert_eq!(bench.edge.map_version(), 6);
    bench.tell(40, pushed(update(6, 7, "c")));
    assert_eq!(bench.edge.map_version(), 7);
}

#[test]
fn a_hole_with_nobody_to_ask_is_closed_at_the_next_beat() {
    let mut bench = Bench::new();
    assert_eq!(bench.tell(0, pushed(update(4, 5, "b"))), []);
    assert!(asks_for_map(bench.beat(100, node("b"), 5)));
}

#[test]
fn a_reply_under_a_newer_map_fetches_it() {
    let mut bench = Bench::new();
    let left = || Reply::Left {
        version: 1,
        result: Ok(()),
    };
    assert_eq!(bench.reply_of(0, node("b"), 1, left()), []);
    let effects = bench.reply_of(0, node("b"), 3, left());
    assert_eq!(requests(effects), [("b", &Request::Map { since: 1 })]);
    assert_eq!(
        bench.reply_of(999, node("b"), 3, left()),
        [],
        "rate limited"
    );
    assert!(asks_for_map(bench.reply_of(1_000, node("b"), 3, left())));
}

#[test]
fn a_map_that_makes_no_sense_is_not_applied() {
    let mut bench = Bench::new();
    let mut strange = update(1, 2, "b");
    strange.rows[5].1.owner = 7;
    assert_eq!(bench.tell(0, pushed(strange)), [Effect::Malformed]);
    assert_eq!(bench.edge.map_version(), 1);
}

#[test]
fn another_cluster_and_another_sharding_are_refused_and_said_now_and_then() {
    let mut bench = Bench::new();
    bench.attach("c", 4);
    let cluster = ClusterUuid(99);
    let beat = || {
        Input::Message(Message::NodeBeat(NodeBeat {
            from: node("x"),
            cluster,
            map_version: 50,
            namespaces: 0,
        }))
    };
    let x = || Some(node("x").id);
    let stranger = |from, cluster, log| [Effect::Stranger { from, cluster, log }];
    assert_eq!(bench.tell(0, beat()), stranger(x(), cluster, true));
    let mut other = update(0, 60, "x");
    other.cluster = cluster;
    assert_eq!(
        bench.tell(9_999, pushed(other.clone())),
        stranger(None, cluster, false),
        "said already"
    );
    assert_eq!(
        bench.tell(10_000, pushed(other)),
        stranger(None, cluster, true)
    );
    let mut resharded = update(0, 60, "x");
    resharded.sharding.seed = 99;
    let reply = Reply::Map {
        update: resharded,
        namespaces: Namespaces::default(),
    };
    assert_eq!(
        bench.reply(20_000, "b", reply),
        stranger(Some(node("b").id), ClusterUuid(1), true)
    );
    assert_eq!(bench.edge.map_version(), 1);
    // A reply does not say where it comes from, but the beats of its sender did.
    let newer = Incarnation(9);
    assert_eq!(bench.reply(20_001, "x", Reply::Gone { newer }), []);
    // And who is of our cluster by its beats does not stop to be.
    bench.beat(20_002, node("x"), 1);
    bench.tell(20_003, beat());
    assert_eq!(
        bench.reply(20_004, "x", Reply::Gone { newer }),
        [Effect::Superseded { newer }]
    );
}

#[test]
fn a_stranger_with_the_name_of_our_node_does_not_silence_it() {
    let mut bench = Bench::new();
    let join = bench.follow(0, "c");
    // Heard before its beat said whose it is.
    let stranger = reborn("a", 100);
    let left = Reply::Left {
        version: 7,
        result: Ok(()),
    };
    bench.reply_of(0, stranger.clone(), 1, left);
    let beat = NodeBeat {
        from: stranger,
        cluster: ClusterUuid(99),
        map_version: 1,
        namespaces: 0,
    };
    bench.tell(10, Input::Message(Message::NodeBeat(beat)));
    let effects = bench.reply(20, "a", joined(join.version, FENCE, 4));
    assert!(matches!(effects, [Effect::Step { .. }]), "{effects:?}");
}

#[test]
fn namespaces_are_kept_and_named_in_beats() {
    let mut bench = Bench::new();
    let namespaces = Namespaces::new(vec![proto::namespace::Namespace {
        slow: Default::default(),
        pattern: "chat-*".into(),
        app: None,
        history: Default::default(),
        standby: Default::default(),
    }]);
    let digest = namespaces.digest();
    let beat = |bench: &mut Bench, at| {
        let beat = NodeBeat {
            from: node("a"),
            cluster: ClusterUuid(1),
            map_version: 1,
            namespaces: digest,
        };
        asks_for_map(bench.tell(at, Input::Message(Message::NodeBeat(beat))))
    };
    assert!(beat(&mut bench, 0), "they differ from ours");
    assert!(!beat(&mut bench, 9_999), "asked not long ago");
    assert!(beat(&mut bench, 10_000));
    let reply = Reply::Map {
        update: update(1, 1, "a"),
        namespaces: namespaces.clone(),
    };
    bench.reply(10_010, "a", reply);
    assert!(!beat(&mut bench, 30_000));
    bench.tell(30_000, Input::Tick);
    assert_eq!(bench.beats.last().unwrap().namespaces, digest);
    assert_eq!(bench.edge.namespaces(), &namespaces);
}
