use std::sync::Arc;

use proto::id::{ClusterUuid, Incarnation, NodeRef};
use proto::message::{Join, Leave, Request, Since};
use proto::shard::{Fence, ShardId};

use super::super::{Around, Input, Tenure};
use super::*;

/// A shard, and what gateways are told.
struct World {
    now: Timestamp,
    shard: Shard,
    version: u64,
}

fn gateway(id: &str) -> GatewayRef {
    GatewayRef {
        id: id.parse().unwrap(),
        incarnation: Incarnation(1),
    }
}

fn key() -> ChannelKey {
    ChannelKey {
        app: "app".parse().unwrap(),
        channel: "c".parse().unwrap(),
    }
}

fn around() -> Arc<Around> {
    Arc::new(Around {
        hears_since: Some(Timestamp(0)),
        ..Around::default()
    })
}

impl World {
    fn new() -> Self {
        let tenure = Tenure {
            shard: ShardId(7),
            fence: Fence(1),
            owner: NodeRef {
                id: "n".parse().unwrap(),
                incarnation: Incarnation(1),
            },
            cluster: ClusterUuid(9),
        };
        let mut shard = Shard::new(tenure, Arc::default());
        shard.listen(Timestamp(0), around());
        Self {
            now: Timestamp(10_000),
            shard,
            version: 0,
        }
    }

    /// Who is told of how many.
    fn tell(&mut self, input: Input) -> Vec<String> {
        let mut effects = Vec::new();
        self.shard.handle(self.now, input, &mut effects);
        let told = |effect| match effect {
            Effect::Reply {
                to,
                reply: Reply::Subscribers(it),
            } => Some(format!("{}:{}", to.id, it.count)),
            _ => None,
        };
        effects.into_iter().filter_map(told).collect()
    }

    fn join(&mut self, from: &str, count: u32, is_counted: bool) -> Vec<String> {
        self.version += 1;
        let from = gateway(from);
        let request = Request::Join(Join {
            shard: ShardId(7),
            fence: Fence(1),
            key: key(),
            count,
            since: Since::Now,
            version: self.version,
            is_counted,
        });
        self.tell(Input::Request { from, request })
    }

    fn leave(&mut self, from: &str) -> Vec<String> {
        self.version += 1;
        let from = gateway(from);
        let request = Request::Leave(Leave {
            shard: ShardId(7),
            fence: Fence(1),
            key: key(),
            version: self.version,
            is_unanswered: true,
        });
        self.tell(Input::Request { from, request })
    }

    fn pass(&mut self, millis: u64) -> Vec<String> {
        self.now = self.now + Duration::from_millis(millis);
        self.tell(Input::Tick)
    }
}

const NOBODY: [&str; 0] = [];

#[test]
fn the_sum_is_told_to_all_who_want_it_and_once_more() {
    let mut world = World::new();
    assert_eq!(world.join("a", 2, true), ["a:2"]);
    assert_eq!(
        world.join("b", 3, true),
        ["a:5", "b:5"],
        "who comes, at once"
    );
    assert_eq!(world.join("c", 1, false), NOBODY);
    assert_eq!(
        world.pass(1_000),
        NOBODY,
        "who does not count is not asked about"
    );
    assert_eq!(world.pass(5_000), ["a:6", "b:6"]);
    assert_eq!(world.pass(5_000), ["a:6", "b:6"], "one may have been lost");
    assert_eq!(world.pass(60_000), NOBODY);
}

#[test]
fn a_count_is_told_seldom() {
    let mut world = World::new();
    assert_eq!(world.join("a", 1, true), ["a:1"]);
    assert_eq!(world.join("a", 2, true), NOBODY);
    assert_eq!(world.join("a", 3, true), NOBODY);
    assert_eq!(world.pass(500), ["a:3"]);
    world.pass(1_000);
    assert_eq!(world.join("a", 100, true), ["a:100"]);
    assert_eq!(world.join("a", 99, true), NOBODY);
    assert_eq!(world.pass(1_000), NOBODY, "a crowd is told less often");
    assert_eq!(world.pass(4_000), ["a:99"]);
}

#[test]
fn whoever_leaves_is_not_counted_and_not_told() {
    let mut world = World::new();
    world.join("a", 2, true);
    world.join("b", 3, true);
    assert_eq!(world.leave("a"), NOBODY);
    assert_eq!(world.pass(1_000), ["b:3"]);
    let gone = world.tell(Input::Forget(gateway("b")));
    assert_eq!(gone, NOBODY);
    assert_eq!(world.pass(10_000), NOBODY);
    assert!(world.shard.counting.channels.is_empty(), "nothing is left");
}

#[test]
fn a_new_owner_says_nothing_before_it_has_heard_of_all() {
    let mut world = World::new();
    world.shard.listen(world.now, around());
    assert_eq!(world.join("a", 2, true), NOBODY);
    assert_eq!(world.pass(1_000), NOBODY);
    world.join("b", 3, true);
    assert_eq!(world.pass(1_000), ["a:5", "b:5"]);
}

#[test]
fn a_gateway_that_comes_again_is_told_though_the_sum_is_as_it_was() {
    let mut world = World::new();
    world.join("a", 200, true);
    world.join("b", 3, true);
    assert_eq!(world.leave("b"), NOBODY);
    assert_eq!(world.join("b", 3, true), ["a:203", "b:203"]);
}
