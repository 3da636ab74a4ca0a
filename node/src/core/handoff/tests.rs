//! Three nodes: the owner `a`, `b` to which its shard moves, and `c`, which stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proto::channel::ChannelKey;
use proto::id::{ClusterUuid, GatewayRef, Incarnation, NodeRef};
use proto::inspection::{Answer, ChannelState};
use proto::message::{Publish, Published, Reply, Request, Sequenced};
use proto::namespace::{HistoryLimits, Namespace, Namespaces, Standby};
use proto::shard::{Fence, Row as MapRow, ShardId, ShardMap, Sharding};
use proto::time::{Timestamp, UnixTime};

use crate::core::agreed::{Agreed, Replicas as AgreedReplicas};
use crate::core::lease::PAIR_LEASE_AT_STANDBY;
use crate::core::pairs::{self, Pairs};
use crate::core::replicas::{self, Replicas};
use crate::core::replication::{Leases, Row};
use crate::core::shard::Effect;
use crate::core::shards::{Input, Part, Shards};

const SHARD: ShardId = ShardId(0);

fn node(id: &str) -> NodeRef {
    NodeRef {
        id: id.parse().unwrap(),
        incarnation: Incarnation(1),
    }
}

fn gateway() -> GatewayRef {
    GatewayRef {
        id: "g".parse().unwrap(),
        incarnation: Incarnation(1),
    }
}

fn key() -> ChannelKey {
    named("c")
}

fn named(channel: &str) -> ChannelKey {
    ChannelKey {
        app: "app".parse().unwrap(),
        channel: channel.parse().unwrap(),
    }
}

fn agreed(owner: &str, fence: u64) -> Agreed {
    let sharding = Sharding { seed: 1, count: 1 };
    let mut map = ShardMap::unassigned(ClusterUuid(1), sharding);
    map.version = fence;
    map.nodes = vec![node(owner)];
    map.rows = vec![MapRow {
        owner: 0,
        fence: Fence(fence),
    }];
    let row = Row {
        version: fence,
        ..Row::default()
    };
    Agreed {
        map: Arc::new(map),
        shards: vec![AgreedReplicas {
            row,
            ..AgreedReplicas::default()
        }],
        gone: Arc::default(),
    }
}

struct Node {
    shards: Shards,
    pairs: Pairs,
    replicas: Replicas,
}

/// All of it on one clock.
struct Three {
    now: Timestamp,
    agreed: Agreed,
    nodes: BTreeMap<&'static str, Node>,
    /// Of whom nobody hears.
    silent: BTreeSet<&'static str>,
    /// What each has told gateways.
    told: Vec<(&'static str, Reply)>,
    /// Parts that went to each.
    sent: Vec<(String, pairs::Part)>,
    sequence: u64,
}

fn name_of(node: &NodeRef) -> &'static str {
    ["a", "b", "c"]
        .into_iter()
        .find(|name| node.id.as_str() == *name)
        .expect("one of three")
}

impl Three {
    /// `a` owns the shard, the others stand by and have everything.
    fn new() -> Self {
        let agreed = agreed("a", 1);
        let namespaces = Arc::new(Namespaces::new(vec![Namespace {
            slow: Default::default(),
            pattern: "alone".into(),
            app: None,
            history: HistoryLimits::default(),
            standby: Standby::None,
        }]));
        let whole = Arc::new(agreed.clone());
        let of = |name: &'static str| {
            let part = Part { index: 0, of: 1 };
            let leases = Arc::new(Leases::unlimited());
            let shards = Shards::new(
                node(name),
                part,
                Arc::clone(&namespaces),
                Arc::clone(&whole),
                leases,
            );
            let pairs = Pairs::new(node(name));
            let replicas = Replicas::new(node(name), Arc::clone(&namespaces), Arc::clone(&whole));
            let node = Node {
                shards,
                pairs,
                replicas,
            };
            (name, node)
        };
        let mut three = Self {
            now: Timestamp(1_000),
            agreed,
            nodes: ["a", "b", "c"].map(of).into(),
            silent: BTreeSet::new(),
            told: Vec::new(),
            sent: Vec::new(),
            sequence: 0,
        };
        for name in ["a", "b", "c"] {
            three.hear(name);
        }
        let standbys = vec![node("b"), node("c")];
        let shard = SHARD;
        three.tell("a", Input::Want { shard, standbys });
        three.pass(50);
        three.pass(50);
        assert_eq!(three.agreed.shards[0].row.in_sync, [node("b"), node("c")]);
        assert_eq!(three.publish("a", 1), 3);
        three.sent.clear();
        three
    }

    /// A node hears of what is agreed.
    fn hear(&mut self, name: &'static str) {
        let agreed = Arc::new(self.agreed.clone());
        let mut effects = Vec::new();
        let node = self.nodes.get_mut(name).unwrap();
        node.replicas
            .follow(self.now, Arc::clone(&agreed), &mut effects);
        self.obey_replicas(name, effects);
        self.tell(name, Input::Agreed(agreed));
    }

    fn tell(&mut self, name: &'static str, input: Input) {
        let mut effects = Vec::new();
        let node = self.nodes.get_mut(name).unwrap();
        let leases = Leases {
            node: Timestamp(u64::MAX),
            pairs: node.pairs.leases(),
        };
        node.shards.handle(self.now, input, &mut effects);
        let leases = Input::Leases(Arc::new(leases));
        node.shards.handle(self.now, leases, &mut effects);
        self.obey(name, effects);
    }

    fn obey(&mut self, name: &'static str, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Replicate { to, part } | Effect::Release { to, part } => {
                    self.push(name, &to, part);
                }
                Effect::Propose(proposal) => {
                    let row = &mut self.agreed.shards[0].row;
                    if proposal.version == row.version {
                        row.version += 1;
                        row.in_sync = proposal.in_sync;
                        row.has_earlier = false;
                        for other in ["a", "b", "c"] {
                            self.hear(other);
                        }
                    }
                }
                Effect::Under(leased) => self.obey(name, leased.effects),
                Effect::Reply { reply, .. } => self.told.push((name, reply)),
                _ => {}
            }
        }
    }

    fn push(&mut self, from: &'static str, to: &NodeRef, part: pairs::Part) {
        self.sent.push((to.id.to_string(), part.clone()));
        let other = name_of(to);
        let is_new = self.nodes[from].pairs.standbys().all(|known| known != to);
        let mut effects = Vec::new();
        let node = self.nodes.get_mut(from).unwrap();
        node.pairs.push(self.now, to.clone(), part);
        if is_new {
            node.pairs.opened(self.now, to, &mut effects);
            let owner = self::node(from);
            self.nodes.get_mut(other).unwrap().replicas.opened(&owner);
        }
        self.obey_pairs(from, effects);
        self.flush(from);
    }

    fn flush(&mut self, name: &'static str) {
        let mut effects = Vec::new();
        let node = self.nodes.get_mut(name).unwrap();
        node.pairs.flush(self.now, &mut effects);
        self.obey_pairs(name, effects);
    }

    fn obey_pairs(&mut self, name: &'static str, effects: Vec<pairs::Effect>) {
        for effect in effects {
            match effect {
                pairs::Effect::Send(batch) => {
                    let to = name_of(&batch.to);
                    if self.silent.contains(name) || self.silent.contains(to) {
                        continue;
                    }
                    let mut effects = Vec::new();
                    let other = self.nodes.get_mut(to).unwrap();
                    other.replicas.batch(self.now, batch, &mut effects);
                    self.obey_replicas(to, effects);
                }
                effect => self.tell(name, Input::Pair(effect)),
            }
        }
    }

    fn obey_replicas(&mut self, name: &'static str, effects: Vec<replicas::Effect>) {
        for effect in effects {
            match effect {
                replicas::Effect::Echo(echo) => {
                    let owner = name_of(&echo.to);
                    let mut effects = Vec::new();
                    let node = self.nodes.get_mut(owner).unwrap();
                    node.pairs.echo(self.now, echo, &mut effects);
                    self.obey_pairs(owner, effects);
                }
                replicas::Effect::Begin(succession) => {
                    self.tell(name, Input::Begin(succession));
                }
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        self.now = self.now + Duration::from_millis(ms);
        for name in ["a", "b", "c"] {
            let mut effects = Vec::new();
            let node = self.nodes.get_mut(name).unwrap();
            node.pairs.tick(self.now, &mut effects);
            self.obey_pairs(name, effects);
            let mut effects = Vec::new();
            let node = self.nodes.get_mut(name).unwrap();
            node.replicas.begin(self.now, &mut effects);
            self.obey_replicas(name, effects);
            self.tell(name, Input::Tick);
        }
    }

    /// It is agreed that the shard moves to `b`, and `c` stays.
    fn move_to_b(&mut self) {
        self.agreed = agreed("b", 9);
        let replicas = &mut self.agreed.shards[0];
        replicas.promoted = true;
        replicas.earlier = vec![node("a")];
        replicas.row.in_sync = vec![node("c")];
        replicas.row.has_earlier = true;
    }

    fn ask(&mut self, name: &'static str, fence: u64) {
        self.ask_of(name, fence, key());
    }

    fn ask_of(&mut self, name: &'static str, fence: u64, key: ChannelKey) {
        self.sequence += 1;
        let place = Sequenced {
            shard: SHARD,
            fence: Fence(fence),
            sequence: self.sequence,
            low_mark: 1,
        };
        let request = Request::Publish(Publish {
            place,
            key,
            event: "e".into(),
            data: self.sequence.to_string().into(),
            exclude: None,
            accepted_at: UnixTime(0),
            idempotency: None,
            by: None,
        });
        let (from, shard) = (gateway(), SHARD);
        self.tell(
            name,
            Input::Request {
                from,
                shard,
                request,
            },
        );
    }

    /// In how many processes what was answered last is.
    fn copies(&self, name: &str) -> u8 {
        match self.told.last() {
            Some((
                by,
                Reply::Published {
                    result: Ok(Published::Accepted { copies, .. }),
                    ..
                },
            )) if *by == name => *copies,
            other => panic!("{other:?}"),
        }
    }

    fn publish(&mut self, name: &'static str, fence: u64) -> u8 {
        self.ask(name, fence);
        self.copies(name)
    }

    fn acts(&self, name: &str) -> bool {
        self.nodes[name].shards.acting(self.now).next().is_some()
    }

    fn head(&self, name: &str) -> u64 {
        self.state(name, &key()).position.offset.0
    }

    fn state(&self, name: &str, key: &ChannelKey) -> ChannelState {
        match self.nodes[name].shards.describe(key) {
            Answer::Channel(info) => info.state.expect("it has state"),
            other => panic!("{other:?}"),
        }
    }

    /// Whether somebody was sent the whole state.
    fn was_filled(&self) -> bool {
        let begins = |part: &pairs::Part| {
            let mut records = part.records.iter();
            records.any(|record| matches!(**record, crate::core::record::Record::Begin(_)))
        };
        self.sent.iter().any(|(_, part)| begins(part))
    }
}

#[test]
fn the_next_owner_begins_at_once_and_the_other_standby_stays() {
    let mut three = Three::new();
    three.move_to_b();
    for name in ["c", "b"] {
        three.hear(name);
    }
    assert!(!three.acts("b"), "a may still act, as far as b knows");
    // It hears of it by what b refuses.
    three.ask("a", 1);
    assert!(!three.acts("a"));
    assert!(three.acts("b"), "without any time having passed");
    three.hear("a");
    assert_eq!(three.publish("b", 9), 2);
    assert!(!three.was_filled());
    assert_eq!(three.agreed.shards[0].row.in_sync, [node("c")]);
}

#[test]
fn what_the_earlier_owner_has_still_sent_is_had_by_all_who_stay() {
    let mut three = Three::new();
    three.ask("a", 1);
    let before = three.told.len();
    three.move_to_b();
    three.hear("b");
    three.hear("c");
    // `a` has heard of nothing yet. Nobody is told of this.
    three.ask("a", 1);
    assert_eq!(three.told.len(), before);
    three.hear("a");
    assert_eq!(three.head("b"), 3);
    assert_eq!(three.publish("b", 9), 2);
    assert!(!three.was_filled(), "c has the third, too");
    // Its gateway sends it again, and it is done already.
    three.sequence = 2;
    assert_eq!(three.publish("b", 9), 2);
    assert_eq!(three.head("b"), 4);
}

#[test]
fn what_the_owner_alone_has_goes_along_to_the_next_one_and_to_nobody_else() {
    let mut three = Three::new();
    let alone = named("alone");
    for _ in 0..300 {
        three.ask_of("a", 1, alone.clone());
        assert_eq!(three.copies("a"), 1);
    }
    let before = three.state("a", &alone);
    assert_eq!((before.position.offset.0, before.kept), (300, 256));
    three.move_to_b();
    three.hear("b");
    three.hear("c");
    three.hear("a");
    assert_eq!(three.state("b", &alone), before, "it goes on there");
    three.ask_of("b", 9, alone.clone());
    let after = three.state("b", &alone);
    assert_eq!(after.position.epoch, before.position.epoch);
    assert_eq!(after.position.offset.0, 301);
    // The last one that went to `a` is known here.
    three.sequence = 300;
    three.ask_of("b", 9, alone.clone());
    assert_eq!(three.copies("b"), 1);
    assert_eq!(three.state("b", &alone), after);
    three.sequence += 1;
    // `c` is the owner next, and nobody has moved anything to it.
    three.silent.insert("b");
    three.agreed = agreed("c", 12);
    let replicas = &mut three.agreed.shards[0];
    replicas.promoted = true;
    replicas.earlier = vec![node("b")];
    three.hear("c");
    three.pass(PAIR_LEASE_AT_STANDBY.as_millis() as u64);
    assert_eq!(three.head("c"), three.head("b"), "all the rest is there");
    three.ask_of("c", 12, alone.clone());
    let anew = three.state("c", &alone);
    assert_ne!(anew.position.epoch, before.position.epoch);
    assert_eq!(anew.position.offset.0, 1);
}

#[test]
fn without_word_from_the_earlier_owner_all_leases_are_waited_for() {
    let mut three = Three::new();
    three.silent.insert("a");
    three.move_to_b();
    three.hear("b");
    three.hear("c");
    // What is asked meanwhile is answered later.
    three.ask("b", 9);
    let wait = PAIR_LEASE_AT_STANDBY.as_millis() as u64;
    three.pass(wait - 1);
    assert!(!three.acts("b"));
    three.pass(1);
    assert!(three.acts("b"));
    assert_eq!(three.copies("b"), 1, "whether c has as much nobody can say");
    assert_eq!(three.agreed.shards[0].row.in_sync, []);
    let (shard, standbys) = (SHARD, vec![node("c")]);
    three.tell("b", Input::Want { shard, standbys });
    three.pass(50);
    three.pass(50);
    assert_eq!(three.publish("b", 9), 2);
    assert!(three.was_filled());
}

#[test]
fn a_standby_that_stays_and_has_something_else_is_let_go_of() {
    let mut three = Three::new();
    three.move_to_b();
    three.hear("b");
    three.hear("c");
    three.hear("a");
    assert!(three.acts("b"));
    three.sent.clear();
    // Somebody who claims to go on with what c does not have.
    let held = crate::core::record::Held {
        node: node("c"),
        fence: Fence(9),
        fill: 1,
        number: 77,
    };
    let part = pairs::Part {
        shard: SHARD,
        fence: Fence(12),
        fill: 1,
        first: 1,
        records: vec![Arc::new(crate::core::record::Record::Attach(held))],
    };
    let batch = pairs::Batch {
        from: node("b"),
        to: node("c"),
        sent_at: 1,
        parts: vec![part],
    };
    let mut effects = Vec::new();
    let c = three.nodes.get_mut("c").unwrap();
    c.replicas.batch(three.now, batch, &mut effects);
    let [replicas::Effect::Echo(echo)] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(echo.lost, [(SHARD, Fence(12))]);
    assert!(echo.confirmed.is_empty());
}

#[test]
fn an_owner_that_stops_for_good_hands_over_nothing_after_a_second() {
    let mut three = Three::new();
    three.silent.insert("c");
    three.ask("a", 1);
    three.move_to_b();
    three.hear("a");
    three.hear("b");
    assert!(!three.acts("b"), "c has not confirmed all");
    three.pass(1_000);
    three.silent.clear();
    three.pass(50);
    three.pass(50);
    let released = |part: &pairs::Part| {
        let mut records = part.records.iter();
        records.any(|record| matches!(**record, crate::core::record::Record::Release(_)))
    };
    assert!(!three.sent.iter().any(|(_, part)| released(part)));
    assert!(three.acts("b"), "it has waited");
}

#[test]
fn what_waited_for_a_shard_is_answered_when_that_begins_anew_here() {
    let mut three = Three::new();
    // Somebody else is the owner, and who that is has not been heard of.
    let refused = pairs::Effect::Refused(node("b"), SHARD, Fence(9));
    three.tell("a", Input::Pair(refused));
    let before = three.told.len();
    three.ask("a", 1);
    assert_eq!(three.told.len(), before, "it waits");
    three.agreed = agreed("a", 12);
    three.hear("a");
    let expected = Reply::Published {
        shard: SHARD,
        sequence: three.sequence,
        result: Err(proto::message::Refusal::NotOwner {
            owner: node("a"),
            fence: Fence(12),
        }),
    };
    assert_eq!(three.told[before..], [("a", expected)]);
}

#[test]
fn what_waits_for_a_shard_is_bounded_and_told_who_has_it() {
    let mut three = Three::new();
    let refused = pairs::Effect::Refused(node("b"), SHARD, Fence(9));
    three.tell("a", Input::Pair(refused));
    let before = three.told.len();
    for _ in 0..2_000 {
        three.ask("a", 1);
    }
    three.agreed = agreed("b", 9);
    three.hear("a");
    let told = &three.told[before..];
    assert_eq!(told.len(), 1_024, "the rest comes again");
    let names_b = |(by, reply): &(&str, Reply)| {
        let by_a = *by == "a";
        by_a && matches!(reply, Reply::Published { result: Err(refusal), .. }
            if *refusal == proto::message::Refusal::NotOwner { owner: node("b"), fence: Fence(9) })
    };
    assert!(told.iter().all(names_b));
}
