//! Beats with digests, and restatements of interest.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proto::message::{InterestDigest, ShardInterest};

use super::*;

impl Bench {
    fn unfollow(&mut self, at: u64, channel: &str) {
        let key = key(channel);
        self.tell(at, Input::Unfollow { worker: W, key });
    }

    /// All joins and ends that one tick sends.
    fn tick(&mut self, at: u64) -> (Vec<Join>, Vec<RestateEnd>) {
        sorted(self.tell(at, Input::Tick))
    }

    fn restate(&mut self, at: u64, from: &str, shard: ShardId, fence: u64) -> Vec<RestateEnd> {
        let fence = Fence(fence);
        sorted(self.reply(at, from, Reply::Restate { shard, fence })).1
    }

    /// The names of `count` channels that share a shard with "c".
    fn neighbours(&self, count: usize) -> Vec<String> {
        let shard = self.edge.sharding.shard_of(&key("c"));
        (0..)
            .map(|number| format!("n{number}"))
            .filter(|name| self.edge.sharding.shard_of(&key(name)) == shard)
            .take(count)
            .collect()
    }

    fn shard(&self) -> ShardId {
        self.edge.sharding.shard_of(&key("c"))
    }
}

fn sorted(effects: &[Effect]) -> (Vec<Join>, Vec<RestateEnd>) {
    let (mut joins, mut ends) = (Vec::new(), Vec::new());
    for (_, request) in requests(effects) {
        match request {
            Request::Join(join) => {
                assert!(ends.is_empty(), "the end comes last");
                joins.push(join.clone());
            }
            Request::RestateEnd(end) => ends.push(*end),
            _ => {}
        }
    }
    (joins, ends)
}

fn end(shard: ShardId, since: u64) -> RestateEnd {
    RestateEnd {
        shard,
        fence: FENCE,
        since,
    }
}

#[test]
fn eight_beats_tell_of_every_shard_once() {
    let mut bench = Bench::new();
    bench.follow(0, "c");
    for at in (0..4_000).step_by(20) {
        bench.tell(at, Input::Tick);
    }
    assert_eq!(bench.beats.len(), 8, "one each 500 ms");
    let mut interest: Vec<ShardInterest> = Vec::new();
    for beat in &bench.beats {
        assert_eq!((&beat.from, beat.cluster), (&me(), ClusterUuid(1)));
        assert_eq!(beat.map_version, 1);
        assert_eq!(beat.interest.len(), 128);
        interest.extend(&beat.interest);
    }
    let shards: BTreeSet<ShardId> = interest.iter().map(|entry| entry.shard).collect();
    assert_eq!(shards.len(), 1_024, "those without channels as well");
    let mut digest = InterestDigest::default();
    digest.insert(&key("c"));
    let followed: Vec<_> = interest
        .into_iter()
        .filter(|entry| entry.digest != InterestDigest::default())
        .collect();
    let shard = bench.shard();
    assert_eq!(followed, [ShardInterest { shard, digest }]);
}

#[test]
fn a_restatement_joins_all_channels_of_the_shard_anew_and_then_ends() {
    let mut bench = Bench::new();
    let names = bench.neighbours(2);
    bench.attach(&names[0], 4);
    bench.attach(&names[1], 2);
    // In another shard, as long as the hash does not change.
    bench.attach("elsewhere", 1);
    assert_ne!(
        bench.edge.sharding.shard_of(&key("elsewhere")),
        bench.shard()
    );
    let shard = bench.shard();
    assert_eq!(bench.restate(0, "a", shard, 1), [], "not before the joins");
    let (joins, ends) = bench.tick(20);
    assert_eq!(ends, []);
    let mut stated: Vec<_> = joins
        .iter()
        .map(|join| (join.key.channel.to_string(), delivered_up_to(join)))
        .collect();
    stated.sort();
    let mut expected = vec![(names[0].clone(), 4), (names[1].clone(), 2)];
    expected.sort();
    assert_eq!(stated, expected);
    let versions: Vec<u64> = joins.iter().map(|join| join.version).collect();
    assert_eq!(versions, [4, 5], "above every earlier one");
    assert_eq!(
        bench.restate(30, "a", shard, 1),
        [],
        "one restatement at a time"
    );
    assert_eq!(bench.tick(40), (vec![], vec![]));
    assert_eq!(sorted(bench.reply(50, "a", joined(4, FENCE, 4))).1, []);
    assert_eq!(
        sorted(bench.reply(60, "a", joined(5, FENCE, 2))).1,
        [end(shard, 4)]
    );
    // If the end is lost the owner asks again, and gets all again.
    assert_eq!(bench.restate(600, "a", shard, 1), []);
    assert_eq!(bench.tick(620).0.len(), 2);
}

#[test]
fn a_join_on_its_way_does_not_count_for_the_restatement() {
    let mut bench = Bench::new();
    let earlier = bench.follow(0, "c").version;
    let shard = bench.shard();
    bench.restate(0, "a", shard, 1);
    assert_eq!(sorted(bench.reply(5, "a", joined(earlier, FENCE, 4))).1, []);
    let version = bench.tick(20).0[0].version;
    assert!(version > earlier);
    assert_eq!(
        sorted(bench.reply(30, "a", joined(version, FENCE, 4))).1,
        [end(shard, version)]
    );
}

#[test]
fn a_restatement_with_a_join_on_its_way_states_it_anew() {
    let mut bench = Bench::new();
    let earlier = bench.follow(0, "c").version;
    bench.restate(0, "a", bench.shard(), 1);
    let version = bench.tick(20).0[0].version;
    assert_eq!(bench.reply(30, "a", joined(earlier, FENCE, 4)), []);
    let effects = bench.reply(30, "a", joined(version, FENCE, 4));
    assert!(
        matches!(
            effects[0],
            Effect::Step {
                step: Step::Attached { .. },
                ..
            }
        ),
        "{effects:?}"
    );
}

#[test]
fn a_shard_without_channels_is_restated_at_once() {
    let mut bench = Bench::new();
    bench.follow(0, "c");
    let other = ShardId((bench.shard().0 + 1) % 1_024);
    assert_eq!(bench.restate(0, "a", other, 1), [end(other, 2)]);
}

#[test]
fn a_channel_that_is_left_meanwhile_does_not_hold_the_end_up() {
    let mut bench = Bench::new();
    bench.attach("c", 4);
    bench.unfollow(0, "c");
    let shard = bench.shard();
    assert_eq!(bench.restate(4_990, "a", shard, 1), []);
    let (joins, ends) = bench.tick(5_000);
    assert_eq!((joins.len(), ends), (0, vec![end(shard, 2)]));
}

#[test]
fn a_channel_without_room_at_the_owner_does_not_hold_the_end_up() {
    let mut bench = Bench::new();
    bench.attach("c", 4);
    let shard = bench.shard();
    bench.restate(0, "a", shard, 1);
    let joins = bench.tick(20).0;
    let refused = Reply::Joined {
        version: joins[0].version,
        result: Err(Refusal::Overloaded),
    };
    assert_eq!(sorted(bench.reply(30, "a", refused)).1, [end(shard, 2)]);
}

#[test]
fn joins_of_a_restatement_are_paced() {
    let mut bench = Bench::new();
    let names = bench.neighbours(REFRESH_PER_TICK + 10);
    for name in &names {
        bench.attach(name, 1);
    }
    bench.restate(0, "a", bench.shard(), 1);
    let (first, _) = bench.tick(20);
    assert_eq!(first.len(), REFRESH_PER_TICK);
    let (rest, _) = bench.tick(40);
    assert_eq!(rest.len(), 10);
    let mut ends = Vec::new();
    for join in first.iter().chain(&rest) {
        assert_eq!(ends, [], "after the last answer");
        ends = sorted(bench.reply(50, "a", joined(join.version, FENCE, 1))).1;
    }
    assert_eq!(ends, [end(bench.shard(), first[0].version)]);
}

#[test]
fn an_owner_under_another_fence_gets_no_restatement() {
    let mut bench = Bench::new();
    bench.attach("c", 4);
    let shard = bench.shard();
    bench.restate(0, "b", shard, 2);
    bench.restate(0, "z", shard, 0);
    assert_eq!(bench.tick(20), (vec![], vec![]));
    let nowhere = Reply::Restate {
        shard: ShardId(1_024),
        fence: FENCE,
    };
    assert_eq!(bench.reply(0, "a", nowhere), [Effect::Malformed]);
}

/// A new owner gets every join by the change of the map, and asks at once: both
/// are one restatement.
#[test]
fn a_new_owner_is_not_told_twice() {
    let mut bench = Bench::new();
    let names = bench.neighbours(2);
    bench.attach(&names[0], 4);
    bench.attach(&names[1], 2);
    let shard = bench.shard();
    let (joins, _) = sorted(bench.tell(0, Input::Message(Message::Map(map(2, "b", 2).since(0)))));
    let versions: Vec<u64> = joins.iter().map(|join| join.version).collect();
    assert_eq!(versions, [3, 4]);
    bench.reply(10, "b", joined(3, Fence(2), 4));
    assert_eq!(bench.restate(20, "b", shard, 2), []);
    assert_eq!(bench.tick(40), (vec![], vec![]), "all is on its way");
    let since_3 = RestateEnd {
        fence: Fence(2),
        ..end(shard, 3)
    };
    let effects = bench.reply(50, "b", joined(4, Fence(2), 2));
    assert_eq!(sorted(effects).1, [since_3]);
    // If that was not enough, everything is joined.
    bench.restate(60, "b", shard, 2);
    assert_eq!(bench.tick(80).0.len(), 2);
}

#[test]
fn a_change_of_owners_ends_a_restatement() {
    let mut bench = Bench::new();
    bench.attach("c", 4);
    bench.restate(0, "a", bench.shard(), 1);
    let effects = bench.tell(0, Input::Message(Message::Map(map(2, "b", 2).since(0))));
    let version = join(effects).version;
    assert_eq!(bench.tick(20), (vec![], vec![]), "joined already");
    let effects = bench.reply(30, "b", joined(version, Fence(2), 4));
    assert_eq!(requests(effects), [], "the new owner has not asked");
}

proptest! {
    /// Whatever happens, what beats say is what is followed or lingers.
    #[test]
    fn digests_stay_true(steps in prop::collection::vec((0_u8..4, 0_usize..6, 0_u64..3_000), 1..80)) {
        let names = ["a", "b", "c", "d", "e", "f"];
        let mut bench = Bench::new();
        let mut now = 0;
        for (what, which, wait) in steps {
            now += wait;
            let (worker, key) = (WorkerId(u8::from(what == 1)), key(names[which]));
            let input = match what {
                0 | 1 => Input::Follow { worker, follow: FollowId(now), key, cursor: None },
                2 => Input::Unfollow { worker, key },
                _ => Input::Tick,
            };
            bench.tell(now, input);
            for shard in &bench.edge.shards {
                let mut digest = InterestDigest::default();
                shard.channels.keys().for_each(|key| digest.insert(key));
                prop_assert_eq!(shard.digest, digest);
            }
        }
        now += 10_000;
        for name in names {
            for worker in [WorkerId(0), WorkerId(1)] {
                bench.tell(now, Input::Unfollow { worker, key: key(name) });
            }
        }
        bench.tell(now + 5_000, Input::Tick);
        prop_assert!(bench.edge.shards.iter().all(|shard| shard.digest == InterestDigest::default()));
    }
}
