//! Shards that change their owner.

use super::*;

#[test]
fn a_new_owner_gets_what_is_unanswered_with_the_same_sequences() {
    let mut bench = Bench::new();
    bench.tell(0, publish(10));
    bench.tell(0, publish(11));
    let refusal = Refusal::NotOwner {
        owner: node("b"),
        fence: Fence(2),
    };
    let shard = bench.edge.sharding.shard_of(&key("c"));
    let effects = bench.reply(
        1,
        "a",
        Reply::Published {
            shard,
            sequence: 1,
            result: Err(refusal.clone()),
        },
    );
    let places: Vec<_> = requests(effects)
        .into_iter()
        .map(|(node, request)| match request {
            Request::Publish(publish) => {
                (node.to_owned(), publish.place.sequence, publish.place.fence)
            }
            other => panic!("not a publish: {other:?}"),
        })
        .collect();
    assert_eq!(
        places,
        [("b".into(), 1, Fence(2)), ("b".into(), 2, Fence(2))]
    );
    // The second refusal says nothing new.
    assert_eq!(
        bench.reply(
            1,
            "a",
            Reply::Published {
                shard,
                sequence: 2,
                result: Err(refusal)
            }
        ),
        []
    );
    let effects = bench.reply(2, "b", accepted(1, Fence(2)));
    assert!(matches!(effects, [Effect::Answer((Ticket(10), Ok(_)))]));
}

#[test]
fn below_the_floor_nothing_counts() {
    let mut bench = Bench::new();
    bench.attach("c", 4);
    bench.tell(0, publish(10));
    let newer = bench.entry("c", Fence(2), 5);
    let effects = bench.batch("b", 1, &[newer]);
    assert_eq!(
        delivered(effects),
        [0; 0],
        "unattached until the new owner has answered"
    );
    let [("b", Request::Publish(_)), ("b", Request::Join(join))] = requests(effects)[..] else {
        panic!("the new owner is told all at once: {effects:?}");
    };
    let version = join.version;
    let older = bench.entry("c", FENCE, 5);
    assert_eq!(bench.batch("a", 1, &[older]), []);
    assert_eq!(bench.reply(0, "a", joined(version, FENCE, 9)), []);
    assert_eq!(bench.reply(0, "a", accepted(1, FENCE)), []);
    let effects = bench.reply(0, "b", joined(version, Fence(2), 4));
    assert_eq!(delivered(effects), [5]);
    assert_eq!(requests(effects), [], "nothing is joined twice");
}

#[test]
fn an_owner_that_has_not_heard_of_it_is_asked_again_soon_and_not_too_often() {
    let mut bench = Bench::new();
    bench.attach("c", 4);
    bench.tell(0, publish(10));
    let shard = bench.edge.sharding.shard_of(&key("c"));
    let stale = || Refusal::NotOwner {
        owner: node("a"),
        fence: FENCE,
    };
    let mut sent = Vec::new();
    let mut asked: Vec<Request> = requests(bench.reply(0, "b", whole(&map(2, "b", 2))))
        .into_iter()
        .map(|(_, request)| request.clone())
        .collect();
    for at in (0..1_000).step_by(20) {
        for request in &asked {
            let reply = match request {
                Request::Join(join) => Reply::Joined {
                    version: join.version,
                    result: Err(stale()),
                },
                Request::Publish(publish) => Reply::Published {
                    shard,
                    sequence: publish.place.sequence,
                    result: Err(stale()),
                },
                other => panic!("{other:?}"),
            };
            sent.push((at, matches!(request, Request::Join(_))));
            assert_eq!(bench.reply(at, "b", reply), []);
        }
        asked = requests(bench.tell(at + 20, Input::Tick))
            .into_iter()
            .map(|(_, request)| request.clone())
            .collect();
    }
    let every_100_ms: Vec<u64> = (0..10).map(|n| n * 100).collect();
    for joins in [false, true] {
        let times: Vec<u64> = sent.iter().filter(|s| s.1 == joins).map(|s| s.0).collect();
        assert_eq!(times, every_100_ms, "joins: {joins}");
    }
}

#[test]
fn a_late_refusal_of_an_earlier_owner_answers_nothing() {
    let mut bench = Bench::new();
    bench.tell(0, publish(10));
    let shard = bench.edge.sharding.shard_of(&key("c"));
    bench.reply(1, "b", whole(&map(2, "b", 2)));
    let refused = || Reply::Published {
        shard,
        sequence: 1,
        result: Err(Refusal::Overloaded),
    };
    assert_eq!(bench.reply(2, "a", refused()), []);
    let effects = bench.reply(3, "b", refused());
    assert_eq!(
        effects,
        [Effect::Answer((Ticket(10), Err(ErrorCode::Overloaded)))]
    );
}

#[test]
fn a_newer_map_is_fetched_and_changes_routes() {
    let mut bench = Bench::new();
    bench.attach("c", 4);
    let effects = bench.beat(0, node("b"), 2);
    assert_eq!(requests(effects), [("b", &Request::Map { since: 1 })]);
    assert_eq!(bench.beat(10, node("b"), 2), [], "asked already");
    let effects = bench.reply(20, "b", whole(&map(2, "b", 2)));
    assert!(matches!(
        requests(effects)[..],
        [(
            "b",
            Request::Join(Join {
                fence: Fence(2),
                since: Since::Delivered(_),
                ..
            })
        )]
    ));
    let effects = bench.tell(20, publish(1));
    assert!(matches!(
        requests(effects)[..],
        [("b", Request::Publish(_))]
    ));
}
