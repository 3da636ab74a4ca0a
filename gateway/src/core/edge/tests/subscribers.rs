//! How many subscribers a gateway has, as its joins say.

use super::*;

const OTHER: WorkerId = WorkerId(1);

impl Bench {
    fn count(&mut self, worker: WorkerId, count: u32) {
        let key = key("c");
        self.tell(0, Input::Count { worker, key, count });
    }

    /// Until its next beat: what the joins say that it sends meanwhile, each answered.
    fn stated(&mut self, from: u64) -> Vec<(u32, bool)> {
        let mut stated = Vec::new();
        self.beat(from, node("a"), 1);
        for at in (from..=from + 520).step_by(20) {
            let joins = self.tell(at, Input::Tick).iter();
            let joins = joins.filter_map(|effect| match effect {
                Effect::Request {
                    request: Request::Join(join),
                    ..
                } => Some(join.clone()),
                _ => None,
            });
            for join in joins.collect::<Vec<Join>>() {
                stated.push((join.count, join.is_counted));
                self.reply(at, "a", joined(join.version, FENCE, 0));
            }
        }
        stated
    }
}

/// Followed by two workers; the node knows what is new.
fn followed() -> Bench {
    let mut bench = Bench::new();
    bench.beat(0, node("a"), 1);
    bench.tell(20, Input::Tick);
    bench.reply(20, "a", Reply::Greeted { map_version: 1 });
    bench.tell(40, Input::Tick);
    followed_by_two(bench)
}

fn followed_by_two(mut bench: Bench) -> Bench {
    bench.attach("c", 0);
    let input = Input::Follow {
        worker: OTHER,
        follow: FollowId(2),
        key: key("c"),
        cursor: None,
    };
    bench.tell(0, input);
    bench
}

#[test]
fn what_is_not_counted_is_joined_once() {
    let mut bench = followed();
    assert_eq!(bench.stated(1_000), []);
}

#[test]
fn a_number_that_has_changed_is_said_with_the_next_beat() {
    let mut bench = followed();
    bench.count(W, 2);
    bench.count(OTHER, 3);
    assert_eq!(bench.stated(1_000), [(5, true)]);
    assert_eq!(bench.stated(2_000), []);
    bench.count(W, 1);
    bench.count(W, 2);
    assert_eq!(bench.stated(3_000), [], "it is as before");
}

#[test]
fn a_worker_whose_last_subscriber_has_gone_counts_no_more() {
    let mut bench = followed();
    bench.count(W, 1);
    bench.count(OTHER, 1);
    assert_eq!(bench.stated(1_000), [(2, true)]);
    let (worker, key) = (OTHER, key("c"));
    bench.tell(2_000, Input::Unfollow { worker, key });
    assert_eq!(bench.stated(2_000), [(1, true)]);
}

/// A node that does not know that subscribers are counted could not read the join.
#[test]
fn numbers_are_not_said_before_all_nodes_know_what_they_are() {
    let mut bench = Bench::new();
    bench.beat(0, node("a"), 1);
    let mut bench = followed_by_two(bench);
    bench.count(W, 2);
    assert_eq!(bench.stated(1_000), []);
    bench.reply(1_600, "a", Reply::Greeted { map_version: 1 });
    assert_eq!(bench.stated(1_620), [(2, true)]);
    // One more node.
    bench.beat(2_200, node("b"), 1);
    bench.tell(2_220, Input::Tick);
    bench.count(W, 3);
    assert_eq!(bench.stated(2_300), []);
    bench.reply(2_900, "b", Reply::Greeted { map_version: 1 });
    assert_eq!(bench.stated(2_920), [(3, true)]);
}

#[test]
fn workers_are_told_the_sum_once_and_who_comes_later_at_once() {
    let mut bench = followed();
    bench.count(W, 1);
    let subscribers = |count| {
        Reply::Subscribers(proto::message::Subscribers {
            shard: ShardId(0),
            fence: FENCE,
            key: key("c"),
            count,
        })
    };
    let counts = |effects: &[Effect]| -> Vec<u32> {
        let count = |effect: &Effect| match effect {
            Effect::Step {
                step: Step::Count { count, .. },
                ..
            } => Some(*count),
            _ => None,
        };
        effects.iter().filter_map(count).collect()
    };
    assert_eq!(counts(bench.reply(10, "a", subscribers(7))), [7]);
    assert_eq!(counts(bench.reply(20, "a", subscribers(7))), [0; 0]);
    let input = Input::Follow {
        worker: WorkerId(2),
        follow: FollowId(3),
        key: key("c"),
        cursor: None,
    };
    assert_eq!(counts(bench.tell(30, input)), [7]);
}
