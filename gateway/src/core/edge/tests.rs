use std::sync::Arc;

use bytes::Bytes;
use proto::codec;
use proto::error::ErrorCode;
use proto::id::ClusterUuid;
use proto::message::{
    Batch, Entry, Join, Joined, Missed, NodeBeat, Published, Refusal, Replies, Reply, RestateEnd,
    Since,
};
use proto::namespace::Namespaces;
use proto::position::{Epoch, Offset, Position};
use proto::publication::Publication;
use proto::shard::ShardMap;
use proto::time::UnixTime;

use super::*;

mod asking;
mod cluster;
mod counting;
mod links;
mod living;
mod members;
mod owners;
mod restating;
mod subscribers;

const FENCE: Fence = Fence(1);
const W: WorkerId = WorkerId(0);

fn node(id: &str) -> NodeRef {
    NodeRef {
        id: id.parse().unwrap(),
        incarnation: Incarnation(1),
    }
}

fn map(version: u64, owner: &str, fence: u64) -> ShardMap {
    let mut map = ShardMap::standalone(ClusterUuid(1), 0, node(owner));
    map.version = version;
    for row in &mut map.rows {
        row.fence = Fence(fence);
    }
    map
}

fn whole(map: &ShardMap) -> Reply {
    Reply::Map {
        update: map.since(0),
        namespaces: Namespaces::default(),
    }
}

fn me() -> GatewayRef {
    GatewayRef {
        id: "g".parse().unwrap(),
        incarnation: Incarnation(5),
    }
}

/// An edge and what it did last, beats and what it says of silent nodes apart.
struct Bench {
    edge: Edge,
    effects: Vec<Effect>,
    beats: Vec<GatewayBeat>,
    silences: Vec<(NodeId, bool)>,
}

impl Bench {
    fn new() -> Self {
        Self {
            edge: Edge::new(me(), &map(1, "a", FENCE.0).since(0), Namespaces::default()),
            effects: Vec::new(),
            beats: Vec::new(),
            silences: Vec::new(),
        }
    }

    fn tell(&mut self, at: u64, input: Input) -> &[Effect] {
        self.effects.clear();
        let mut effects = Vec::new();
        self.edge.handle(Timestamp(at), input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Beat(beat) => self.beats.push(beat),
                Effect::Silence { node, silent } => self.silences.push((node, silent)),
                effect => self.effects.push(effect),
            }
        }
        &self.effects
    }

    fn reply(&mut self, at: u64, from: &str, reply: Reply) -> &[Effect] {
        self.reply_of(at, node(from), 1, reply)
    }

    fn reply_of(&mut self, at: u64, from: NodeRef, map_version: u64, reply: Reply) -> &[Effect] {
        let replies = Replies {
            from,
            to: me().incarnation,
            map_version,
            replies: vec![reply],
        };
        self.tell(at, Input::Message(Message::Replies(replies)))
    }

    /// A beat of a node of this cluster.
    fn beat(&mut self, at: u64, from: NodeRef, map_version: u64) -> &[Effect] {
        let beat = NodeBeat {
            from,
            cluster: ClusterUuid(1),
            map_version,
            namespaces: Namespaces::default().digest(),
        };
        self.tell(at, Input::Message(Message::NodeBeat(beat)))
    }

    fn follow(&mut self, at: u64, channel: &str) -> Join {
        let effects = self.tell(
            at,
            Input::Follow {
                worker: W,
                follow: FollowId(1),
                key: key(channel),
                cursor: None,
            },
        );
        join(effects)
    }

    /// Follows and is attached at `offset`.
    fn attach(&mut self, channel: &str, offset: u64) {
        let version = self.follow(0, channel).version;
        self.reply(0, "a", joined(version, FENCE, offset));
    }

    fn batch(&mut self, from: &str, first: u64, entries: &[Entry]) -> &[Effect] {
        let batch = Batch {
            from: node(from),
            to: me().incarnation,
            first,
            entries: entries.iter().map(codec::encode_entry).collect(),
        };
        self.tell(0, Input::Message(Message::Batch(batch)))
    }

    fn entry(&self, channel: &str, fence: Fence, offset: u64) -> Entry {
        Entry {
            shard: self.edge.sharding.shard_of(&key(channel)),
            fence,
            key: key(channel),
            epoch: EPOCH,
            publication: Arc::new(Publication {
                offset: Offset(offset),
                event: "e".into(),
                data: "d".into(),
                exclude: None,
                accepted_at: UnixTime(0),
                mark: None,
            }),
        }
    }
}

const EPOCH: Epoch = Epoch(9);

fn key(channel: &str) -> ChannelKey {
    ChannelKey {
        app: "app".parse().unwrap(),
        channel: channel.parse().unwrap(),
    }
}

fn at(offset: u64) -> Position {
    Position {
        epoch: EPOCH,
        offset: Offset(offset),
    }
}

fn joined(version: u64, fence: Fence, offset: u64) -> Reply {
    let joined = Joined {
        fence,
        position: at(offset),
        missed: Missed::Publications(vec![]),
        cached: None,
    };
    Reply::Joined {
        version,
        result: Ok(joined),
    }
}

fn join(effects: &[Effect]) -> Join {
    match effects {
        [
            Effect::Request {
                request: Request::Join(join),
                ..
            },
        ] => join.clone(),
        other => panic!("one join expected, got {other:?}"),
    }
}

/// Where a gateway stood that asked.
fn delivered_up_to(join: &Join) -> u64 {
    match join.since {
        Since::Delivered(position) => position.offset.0,
        other => panic!("a position expected, got {other:?}"),
    }
}

fn requests(effects: &[Effect]) -> Vec<(&str, &Request)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Request { node, request } => Some((node.as_str(), request)),
            _ => None,
        })
        .collect()
}

fn delivered(effects: &[Effect]) -> Vec<u64> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Step {
                step: Step::Deliver { publication, .. },
                ..
            } => Some(publication.offset.0),
            _ => None,
        })
        .collect()
}

fn publish(ticket: u64) -> Input {
    Input::Publish {
        ticket: Ticket(ticket),
        order: Order {
            key: key("c"),
            event: "e".into(),
            data: "d".into(),
            exclude: None,
            accepted_at: UnixTime(0),
            idempotency: None,
            by: None,
        },
    }
}

fn accepted(sequence: u64, fence: Fence) -> Reply {
    Reply::Published {
        shard: map(1, "a", 1).sharding.shard_of(&key("c")),
        sequence,
        result: Ok(Published::Accepted {
            fence,
            position: at(1),
            copies: 1,
        }),
    }
}

#[test]
fn a_follow_joins_and_the_answer_attaches() {
    let mut bench = Bench::new();
    let join = bench.follow(0, "c");
    assert_eq!((join.version, join.since, join.count), (1, Since::Now, 1));
    let effects = bench.reply(0, "a", joined(1, FENCE, 4));
    assert!(matches!(
        effects,
        [Effect::Step { step: Step::Attached { position, .. }, .. }] if *position == at(4)
    ));
    let entry = bench.entry("c", FENCE, 5);
    assert_eq!(delivered(bench.batch("a", 1, &[entry])), [5]);
}

#[test]
fn a_join_without_an_answer_is_sent_again_with_the_same_version() {
    let mut bench = Bench::new();
    bench.follow(0, "c");
    assert_eq!(bench.tell(999, Input::Tick), []);
    assert_eq!(join(bench.tell(1_000, Input::Tick)).version, 1);
    bench.reply(1_000, "a", joined(1, FENCE, 0));
    assert_eq!(bench.tell(5_000, Input::Tick), []);
}

#[test]
fn an_answer_to_another_join_changes_nothing() {
    let mut bench = Bench::new();
    bench.follow(0, "c");
    assert_eq!(bench.reply(0, "a", joined(7, FENCE, 0)), []);
}

#[test]
fn a_channel_without_followers_is_left_after_a_while_and_once() {
    let mut bench = Bench::new();
    bench.attach("c", 0);
    bench.tell(
        0,
        Input::Unfollow {
            worker: W,
            key: key("c"),
        },
    );
    assert_eq!(bench.tell(4_999, Input::Tick), []);
    let leave = |effects: &[Effect]| match requests(effects)[..] {
        [(_, Request::Leave(leave))] => leave.version,
        ref other => panic!("one leave expected, got {other:?}"),
    };
    assert_eq!(leave(bench.tell(5_000, Input::Tick)), 2);
    assert_eq!(bench.edge.channels(), 0);
    // Once: if it is lost, the digests say so.
    let ticks = (5_500..90_000).step_by(500);
    let later = ticks.map(|at| requests(bench.tell(at, Input::Tick)).len());
    assert_eq!(later.sum::<usize>(), 0);
}

#[test]
fn who_comes_back_while_it_lingers_is_attached_at_once() {
    let mut bench = Bench::new();
    bench.attach("c", 4);
    bench.tell(
        0,
        Input::Unfollow {
            worker: W,
            key: key("c"),
        },
    );
    let entry = bench.entry("c", FENCE, 5);
    assert_eq!(delivered(bench.batch("a", 1, &[entry])), [0; 0]);
    let effects = bench.tell(
        4_000,
        Input::Follow {
            worker: W,
            follow: FollowId(2),
            key: key("c"),
            cursor: None,
        },
    );
    assert!(
        matches!(effects, [Effect::Step { step: Step::Attached { position, .. }, .. }] if *position == at(5))
    );
    assert_eq!(bench.tell(5_000, Input::Tick), []);
    assert_eq!(bench.edge.channels(), 1);
}

/// The map was here before it was there.
#[test]
fn another_process_with_this_id_ends_this_one() {
    let mut bench = Bench::new();
    let newer = Incarnation(6);
    assert_eq!(
        bench.reply(0, "a", Reply::Gone { newer }),
        [Effect::Superseded { newer }]
    );
    let newer = me().incarnation;
    assert_eq!(
        bench.reply(0, "a", Reply::Gone { newer }),
        [Effect::Malformed],
        "not by itself"
    );
}

#[test]
fn what_is_for_an_earlier_life_is_dropped() {
    let mut bench = Bench::new();
    let replies = Replies {
        from: node("a"),
        to: Incarnation(4),
        map_version: 1,
        replies: vec![Reply::Gone {
            newer: Incarnation(9),
        }],
    };
    assert_eq!(bench.tell(0, Input::Message(Message::Replies(replies))), []);
    let batch = Batch {
        from: node("a"),
        to: Incarnation(4),
        first: 50,
        entries: vec![],
    };
    assert_eq!(bench.tell(0, Input::Message(Message::Batch(batch))), []);
}

#[test]
fn a_damaged_entry_is_counted_and_the_rest_delivered() {
    let mut bench = Bench::new();
    bench.attach("c", 4);
    let good = codec::encode_entry(&bench.entry("c", FENCE, 5));
    let batch = Batch {
        from: node("a"),
        to: me().incarnation,
        first: 1,
        entries: vec![Bytes::from_static(b"\x01junk"), good],
    };
    let effects = bench.tell(0, Input::Message(Message::Batch(batch)));
    assert_eq!(effects[0], Effect::Malformed);
    assert_eq!(delivered(effects), [5]);
}

#[test]
fn a_publish_nobody_answers_ends_as_unknown() {
    let mut bench = Bench::new();
    bench.tell(0, publish(10));
    let mut answer = None;
    for time in (0..=6_000).step_by(20) {
        for effect in bench.tell(time, Input::Tick) {
            if let Effect::Answer((ticket, result)) = effect {
                assert_eq!(answer.replace((time, *ticket, *result)), None, "told once");
            }
        }
    }
    assert_eq!(
        answer,
        Some((5_000, Ticket(10), Err(ErrorCode::UnknownOutcome)))
    );
}
