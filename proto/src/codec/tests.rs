use std::sync::Arc;

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;
use crate::channel::ChannelKey;
use crate::id::{ClusterUuid, ConnectionId, GatewayRef, Incarnation, NodeRef};
use crate::inspection::*;
use crate::message::*;
use crate::namespace::{HistoryLimits, Namespace, Namespaces, Standby};
use crate::position::{Epoch, Gap, GapReason, Offset, Position};
use crate::presence::{Change, Mark, Member, RosterPage, User};
use crate::publication::Publication;
use crate::shard::{Fence, MapUpdate, Row, ShardId, Sharding};
use crate::time::UnixTime;

fn gateway() -> GatewayRef {
    GatewayRef {
        id: "gw-1".parse().unwrap(),
        incarnation: Incarnation(7),
    }
}

fn node() -> NodeRef {
    NodeRef {
        id: "node-1".parse().unwrap(),
        incarnation: Incarnation(3),
    }
}

fn key() -> ChannelKey {
    ChannelKey {
        app: "app-id".parse().unwrap(),
        channel: "room".parse().unwrap(),
    }
}

fn position() -> Position {
    Position {
        epoch: Epoch(0x1122_3344_5566_7788),
        offset: Offset(5),
    }
}

fn publication() -> Arc<Publication> {
    Arc::new(Publication {
        offset: Offset(5),
        event: "message".into(),
        data: "hello".into(),
        exclude: Some(ConnectionId {
            gateway: 12,
            number: 34,
        }),
        accepted_at: UnixTime(1_000_000),
        mark: None,
    })
}

fn requests(request: Request) -> Message {
    Message::Requests(Requests {
        from: gateway(),
        map_version: 2,
        requests: vec![request],
    })
}

fn replies(reply: Reply) -> Message {
    Message::Replies(Replies {
        from: node(),
        to: Incarnation(7),
        map_version: 2,
        replies: vec![reply],
    })
}

fn place() -> Sequenced {
    Sequenced {
        shard: ShardId(9),
        fence: Fence(4),
        sequence: 11,
        low_mark: 10,
    }
}

/// The bytes are what processes of this version understand. A change here is a
/// change of the wire version.
fn check(message: &Message, golden: Expect) {
    let bytes = encode(message);
    golden.assert_eq(&hex::encode(&bytes));
    assert_eq!(&decode(&bytes).unwrap(), message);
}

#[test]
fn golden_publish() {
    check(
        &requests(Request::Publish(Publish {
            place: place(),
            key: key(),
            event: "message".into(),
            data: "hello".into(),
            exclude: None,
            accepted_at: UnixTime(1_000_000),
            idempotency: None,
            by: None,
        })),
        expect![
            "0181a872657175657374739392a467772d3107029181a77075626c697368979409040b0a92a66170702d6964a4726f6f6da76d657373616765a568656c6c6fc0ce000f4240c0"
        ],
    );
}

#[test]
fn golden_publish_with_a_key() {
    check(
        &requests(Request::Publish(Publish {
            place: place(),
            key: key(),
            event: "message".into(),
            data: "hello".into(),
            exclude: None,
            accepted_at: UnixTime(1_000_000),
            idempotency: Some(Idempotency {
                key: Digest(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
                body: Digest(7),
            }),
            by: None,
        })),
        expect![
            "0181a872657175657374739392a467772d3107029181a77075626c697368979409040b0a92a66170702d6964a4726f6f6da76d657373616765a568656c6c6fc0ce000f424092c4100123456789abcdef0123456789abcdefc41000000000000000000000000000000007"
        ],
    );
}

#[test]
fn golden_skip() {
    check(
        &requests(Request::Skip(place())),
        expect!["0181a872657175657374739392a467772d3107029181a4736b69709409040b0a"],
    );
}

#[test]
fn golden_join() {
    check(
        &requests(Request::Join(Join {
            shard: ShardId(9),
            fence: Fence(4),
            key: key(),
            count: 3,
            since: Since::Delivered(position()),
            version: 21,
            is_counted: false,
        })),
        expect![
            "0181a872657175657374739392a467772d3107029181a46a6f696e96090492a66170702d6964a4726f6f6d0381a964656c69766572656492cf11223344556677880515"
        ],
    );
    check(
        &requests(Request::Join(Join {
            shard: ShardId(9),
            fence: Fence(4),
            key: key(),
            count: 3,
            since: Since::Now,
            version: 21,
            is_counted: true,
        })),
        expect![
            "0181a872657175657374739392a467772d3107029181a46a6f696e97090492a66170702d6964a4726f6f6d03a36e6f7715c3"
        ],
    );
}

#[test]
fn golden_subscribers() {
    let subscribers = Subscribers {
        shard: ShardId(9),
        fence: Fence(4),
        key: key(),
        count: 3,
    };
    check(
        &replies(Reply::Subscribers(subscribers)),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181ab737562736372696265727394090492a66170702d6964a4726f6f6d03"
        ],
    );
}

#[test]
fn golden_leave() {
    check(
        &requests(Request::Leave(Leave {
            shard: ShardId(9),
            fence: Fence(4),
            key: key(),
            version: 22,
            is_unanswered: false,
        })),
        expect![
            "0181a872657175657374739392a467772d3107029181a56c6561766594090492a66170702d6964a4726f6f6d16"
        ],
    );
}

#[test]
fn golden_leave_without_an_answer() {
    check(
        &requests(Request::Leave(Leave {
            shard: ShardId(9),
            fence: Fence(4),
            key: key(),
            version: 22,
            is_unanswered: true,
        })),
        expect![
            "0181a872657175657374739392a467772d3107029181a56c6561766595090492a66170702d6964a4726f6f6d16c3"
        ],
    );
}

#[test]
fn golden_map_request() {
    check(
        &requests(Request::Map { since: 4 }),
        expect!["0181a872657175657374739392a467772d3107029181a36d61709104"],
    );
}

#[test]
fn golden_published() {
    let published = |result| {
        replies(Reply::Published {
            shard: ShardId(9),
            sequence: 11,
            result,
        })
    };
    check(
        &published(Ok(Published::Accepted {
            fence: Fence(4),
            position: position(),
            copies: 1,
        })),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a97075626c697368656493090b81a24f6b81a86163636570746564930492cf11223344556677880501"
        ],
    );
    check(
        &published(Ok(Published::Skipped)),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a97075626c697368656493090b81a24f6ba7736b6970706564"
        ],
    );
    check(
        &published(Err(Refusal::NotOwner {
            owner: node(),
            fence: Fence(5),
        })),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a97075626c697368656493090b81a345727281a96e6f745f6f776e65729292a66e6f64652d310305"
        ],
    );
    check(
        &published(Err(Refusal::OutOfSequence { expected: 8 })),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a97075626c697368656493090b81a345727281af6f75745f6f665f73657175656e63659108"
        ],
    );
    check(
        &published(Err(Refusal::Forgotten)),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a97075626c697368656493090b81a3457272a9666f72676f7474656e"
        ],
    );
    check(
        &published(Err(Refusal::Overloaded)),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a97075626c697368656493090b81a3457272aa6f7665726c6f61646564"
        ],
    );
    check(
        &published(Err(Refusal::IdempotencyMismatch)),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a97075626c697368656493090b81a3457272b46964656d706f74656e63795f6d69736d61746368"
        ],
    );
    check(
        &published(Err(Refusal::IdempotencyFull)),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a97075626c697368656493090b81a3457272b06964656d706f74656e63795f66756c6c"
        ],
    );
    check(
        &published(Err(Refusal::NoStandby)),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a97075626c697368656493090b81a3457272aa6e6f5f7374616e646279"
        ],
    );
    check(
        &published(Err(Refusal::Unprotected)),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a97075626c697368656493090b81a3457272ab756e70726f746563746564"
        ],
    );
}

#[test]
fn golden_joined() {
    let joined = |missed| {
        replies(Reply::Joined {
            version: 21,
            result: Ok(Joined {
                fence: Fence(4),
                position: position(),
                missed,
                cached: None,
            }),
        })
    };
    check(
        &joined(Missed::Publications(vec![publication()])),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a66a6f696e6564921581a24f6b930492cf11223344556677880581ac7075626c69636174696f6e73919505a76d657373616765a568656c6c6f920c22ce000f4240"
        ],
    );
    check(
        &joined(Missed::Gap(Gap {
            reason: GapReason::Expired,
            earliest: Offset(3),
            latest: position(),
        })),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a66a6f696e6564921581a24f6b930492cf11223344556677880581a367617093a7657870697265640392cf112233445566778805"
        ],
    );
}

#[test]
fn golden_left() {
    check(
        &replies(Reply::Left {
            version: 22,
            result: Ok(()),
        }),
        expect!["0181a77265706c6965739492a66e6f64652d310307029181a46c656674921681a24f6bc0"],
    );
}

#[test]
fn golden_gone() {
    check(
        &replies(Reply::Gone {
            newer: Incarnation(8),
        }),
        expect!["0181a77265706c6965739492a66e6f64652d310307029181a4676f6e659108"],
    );
}

#[test]
fn golden_declared_gone() {
    check(
        &replies(Reply::DeclaredGone {
            through: Incarnation(7),
        }),
        expect!["0181a77265706c6965739492a66e6f64652d310307029181ad6465636c617265645f676f6e659107"],
    );
}

fn map_update() -> MapUpdate {
    let row = Row {
        owner: 0,
        fence: Fence(4),
    };
    MapUpdate {
        cluster: ClusterUuid(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
        sharding: Sharding { seed: 42, count: 2 },
        since: 0,
        version: 4,
        nodes: vec![node()],
        rows: vec![(ShardId(0), row.clone()), (ShardId(1), row)],
    }
}

#[test]
fn golden_map() {
    let namespaces = Namespaces::new(vec![Namespace {
        slow: Default::default(),
        pattern: "chat-*".into(),
        app: None,
        history: HistoryLimits::default(),
        standby: Standby::Prefer,
    }]);
    check(
        &replies(Reply::Map {
            update: map_update(),
            namespaces,
        }),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a36d61709296c4100123456789abcdef0123456789abcdef922a0200049192a66e6f64652d31039292009200049201920004929193a6636861742d2ac093cd010092cd012c00ce0004000093cd010092cd012c00ce00040000"
        ],
    );
    let namespaces = Namespaces::new(vec![Namespace {
        slow: Default::default(),
        pattern: "pay-*".into(),
        app: None,
        history: HistoryLimits::default(),
        standby: Standby::Require,
    }]);
    check(
        &replies(Reply::Map {
            update: map_update(),
            namespaces,
        }),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a36d61709296c4100123456789abcdef0123456789abcdef922a0200049192a66e6f64652d31039292009200049201920004929194a57061792d2ac093cd010092cd012c00ce00040000a77265717569726593cd010092cd012c00ce00040000"
        ],
    );
    check(
        &Message::Map(map_update()),
        expect![
            "0181a36d617096c4100123456789abcdef0123456789abcdef922a0200049192a66e6f64652d31039292009200049201920004"
        ],
    );
}

#[test]
fn golden_restatement() {
    check(
        &replies(Reply::Restate {
            shard: ShardId(9),
            fence: Fence(4),
        }),
        expect!["0181a77265706c6965739492a66e6f64652d310307029181a772657374617465920904"],
    );
    check(
        &requests(Request::RestateEnd(RestateEnd {
            shard: ShardId(9),
            fence: Fence(4),
            since: 33,
        })),
        expect!["0181a872657175657374739392a467772d3107029181ab726573746174655f656e6493090421"],
    );
}

#[test]
fn golden_repair() {
    let span = Span {
        first: 300,
        count: 2,
    };
    check(
        &requests(Request::Repair(Repair {
            node: Incarnation(3),
            spans: vec![span],
        })),
        expect!["0181a872657175657374739392a467772d3107029181a672657061697292039192cd012c02"],
    );
    check(
        &replies(Reply::Unrepairable { below: 301 }),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181ac756e72657061697261626c6591cd012d"
        ],
    );
    check(
        &Message::Repair(Batch {
            from: node(),
            to: Incarnation(7),
            first: 301,
            entries: vec![Bytes::from_static(b"\x01\x02")],
        }),
        expect!["0181a67265706169729492a66e6f64652d310307cd012d91c4020102"],
    );
}

#[test]
fn golden_inspection() {
    let ask = |question| requests(Request::Inspect { id: 5, question });
    let tell = |answer| replies(Reply::Inspected { id: 5, answer });
    check(
        &ask(Question::Nodes),
        expect!["0181a872657175657374739392a467772d3107029181a7696e73706563749205a56e6f646573"],
    );
    check(
        &ask(Question::Gateways),
        expect![
            "0181a872657175657374739392a467772d3107029181a7696e73706563749205a86761746577617973"
        ],
    );
    check(
        &ask(Question::Shards),
        expect!["0181a872657175657374739392a467772d3107029181a7696e73706563749205a6736861726473"],
    );
    check(
        &ask(Question::Channel { key: key() }),
        expect![
            "0181a872657175657374739392a467772d3107029181a7696e7370656374920581a76368616e6e656c9192a66170702d6964a4726f6f6d"
        ],
    );
    let member = NodeInfo {
        name: node().id,
        incarnation: Some(Incarnation(3)),
        address: "127.0.0.1:7601".into(),
        zone: "a".into(),
        witness: false,
        role: "voter".into(),
        gossip: "alive".into(),
        shards: 2,
        version: "0.1.0".into(),
    };
    check(
        &tell(Answer::Nodes(vec![member])),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a9696e73706563746564920581a56e6f6465739199a66e6f64652d3103ae3132372e302e302e313a37363031a161c2a5766f746572a5616c69766502a5302e312e30"
        ],
    );
    let heard = GatewayInfo {
        name: gateway().id,
        incarnation: Incarnation(7),
        heard_ms: 20,
        map_version: 4,
        connections: 12,
    };
    check(
        &tell(Answer::Gateways(vec![heard])),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a9696e73706563746564920581a867617465776179739195a467772d310714040c"
        ],
    );
    check(
        &tell(Answer::Shards(map_update())),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a9696e73706563746564920581a673686172647396c4100123456789abcdef0123456789abcdef922a0200049192a66e6f64652d31039292009200049201920004"
        ],
    );
    let channel = ChannelInfo {
        key: key(),
        shard: ShardId(9),
        owner: node(),
        fence: Fence(4),
        state: Some(ChannelState {
            position: position(),
            earliest: Offset(1),
            kept: 5,
            followers: vec![(gateway(), 2)],
            is_alone: false,
        }),
    };
    check(
        &tell(Answer::Channel(channel)),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a9696e73706563746564920581a76368616e6e656c9592a66170702d6964a4726f6f6d0992a66e6f64652d3103049492cf1122334455667788050105919292a467772d310702"
        ],
    );
    check(
        &ask(Question::Shard { shard: ShardId(9) }),
        expect![
            "0181a872657175657374739392a467772d3107029181a7696e7370656374920581a573686172649109"
        ],
    );
    let shard = ShardInfo {
        shard: ShardId(9),
        owner: node(),
        fence: Fence(4),
        state: ShardState::Waits,
        waits_for: Some("why".into()),
        waits_ms: 300,
        held: 2,
        channels: 5,
        interest: 6,
        node_lease_ms: Some(2_500),
        standbys: vec![ReplicaInfo {
            node: node(),
            state: ReplicaState::InSync,
            lag_records: 3,
            lag_ms: Some(40),
            lease_ms: 260,
        }],
    };
    check(
        &tell(Answer::Shard(shard)),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a9696e73706563746564920581a573686172649b0992a66e6f64652d310304a57761697473a3776879cd012c020506cd09c4919592a66e6f64652d3103a7696e5f73796e630328cd0104"
        ],
    );
    check(
        &tell(Answer::NotOwner { owner: node() }),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a9696e73706563746564920581a96e6f745f6f776e65729192a66e6f64652d3103"
        ],
    );
    check(
        &tell(Answer::Unavailable("why".into())),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a9696e73706563746564920581ab756e617661696c61626c65a3776879"
        ],
    );
}

fn member() -> Member {
    Member {
        connection: ConnectionId {
            gateway: 12,
            number: 34,
        },
        user: User {
            id: "u".into(),
            info: Some("{}".into()),
        },
    }
}

fn query(what: What) -> Message {
    requests(Request::Query(Query {
        id: 5,
        shard: ShardId(9),
        fence: Fence(4),
        what,
    }))
}

fn queried(told: Told) -> Message {
    replies(Reply::Queried {
        id: 5,
        result: Ok(told),
    })
}

#[test]
fn golden_presence() {
    let connection = member().connection;
    check(
        &requests(Request::Enter(Enter {
            place: place(),
            key: key(),
            member: member(),
            users_max: None,
        })),
        expect![
            "0181a872657175657374739392a467772d3107029181a5656e746572939409040b0a92a66170702d6964a4726f6f6d92920c2292a175a27b7d"
        ],
    );
    check(
        &requests(Request::Exit(Exit {
            place: place(),
            key: key(),
            connection,
        })),
        expect![
            "0181a872657175657374739392a467772d3107029181a465786974939409040b0a92a66170702d6964a4726f6f6d920c22"
        ],
    );
    check(
        &requests(Request::Stated(Stated {
            place: place(),
            to: Fence(4),
        })),
        expect!["0181a872657175657374739392a467772d3107029181a6737461746564929409040b0a04"],
    );
    check(
        &requests(Request::Greet(Greet {
            except: vec![ShardId(9)],
        })),
        expect!["0181a872657175657374739392a467772d3107029181a56772656574919109"],
    );
    check(
        &replies(Reply::Greeted { map_version: 2 }),
        expect!["0181a77265706c6965739492a66e6f64652d310307029181a7677265657465649102"],
    );
    check(
        &replies(Reply::Published {
            shard: ShardId(9),
            sequence: 11,
            result: Err(Refusal::RosterFull),
        }),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a97075626c697368656493090b81a3457272ab726f737465725f66756c6c"
        ],
    );
}

#[test]
fn golden_queries() {
    check(
        &query(What::Roster {
            key: key(),
            after: Some("u".into()),
        }),
        expect![
            "0181a872657175657374739392a467772d3107029181a571756572799405090481a6726f737465729292a66170702d6964a4726f6f6da175"
        ],
    );
    check(
        &query(What::Channel { key: key() }),
        expect![
            "0181a872657175657374739392a467772d3107029181a571756572799405090481a76368616e6e656c9192a66170702d6964a4726f6f6d"
        ],
    );
    check(
        &queried(Told::Roster(RosterPage {
            fence: Fence(4),
            position: Some(position()),
            users: vec![member().user],
            count: 1,
            more: false,
            complete: true,
        })),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a771756572696564920581a24f6b81a6726f73746572960492cf1122334455667788059192a175a27b7d01c2c3"
        ],
    );
    check(
        &queried(Told::Channel(Attendance {
            fence: Fence(4),
            is_followed: true,
            users: 2,
            complete: false,
            subscribers: 0,
        })),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a771756572696564920581a24f6b81a76368616e6e656c9404c302c2"
        ],
    );
}

#[test]
fn golden_caches_and_lists() {
    let cached = || {
        Some(Cached {
            age_ms: 1_000,
            publication: publication(),
        })
    };
    check(
        &query(What::Cached { key: key() }),
        expect![
            "0181a872657175657374739392a467772d3107029181a571756572799405090481a66361636865649192a66170702d6964a4726f6f6d"
        ],
    );
    let told = Told::Cached {
        fence: Fence(4),
        cached: cached(),
    };
    check(
        &queried(told),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a771756572696564920581a24f6b81a6636163686564920492cd03e89505a76d657373616765a568656c6c6f920c22ce000f4240"
        ],
    );
    let joined = Reply::Joined {
        version: 21,
        result: Ok(Joined {
            fence: Fence(4),
            position: position(),
            missed: Missed::Publications(Vec::new()),
            cached: cached(),
        }),
    };
    check(
        &replies(joined),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a66a6f696e6564921581a24f6b940492cf11223344556677880581ac7075626c69636174696f6e739092cd03e89505a76d657373616765a568656c6c6f920c22ce000f4240"
        ],
    );
    let channels = What::Channels {
        app: key().app,
        prefix: "pre".into(),
        after: Some(key().channel),
    };
    check(
        &query(channels),
        expect![
            "0181a872657175657374739392a467772d3107029181a571756572799405090481a86368616e6e656c7393a66170702d6964a3707265a4726f6f6d"
        ],
    );
    let page = ChannelsPage {
        fence: Fence(4),
        channels: vec![(key().channel, 2)],
        more: true,
        complete: false,
        subscribers: vec![],
    };
    check(
        &queried(Told::Channels(page.clone())),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a771756572696564920581a24f6b81a86368616e6e656c7394049192a4726f6f6d02c3c2"
        ],
    );
    let counted = ChannelsPage {
        subscribers: vec![7],
        ..page
    };
    check(
        &queried(Told::Channels(counted)),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a771756572696564920581a24f6b81a86368616e6e656c7395049192a4726f6f6d02c3c29107"
        ],
    );
}

#[test]
fn golden_marks() {
    let marked = |mark| {
        let mark = Some(Box::new(mark));
        let publication = Arc::new(Publication {
            mark,
            ..(*publication()).clone()
        });
        replies(Reply::Joined {
            version: 21,
            result: Ok(Joined {
                fence: Fence(4),
                position: position(),
                missed: Missed::Publications(vec![publication]),
                cached: None,
            }),
        })
    };
    check(
        &marked(Mark::By("u".into())),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a66a6f696e6564921581a24f6b930492cf11223344556677880581ac7075626c69636174696f6e73919605a76d657373616765a568656c6c6f920c22ce000f424081a26279a175"
        ],
    );
    let came = Change::Came {
        member: member(),
        is_first: true,
    };
    check(
        &marked(Mark::Change(came)),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a66a6f696e6564921581a24f6b930492cf11223344556677880581ac7075626c69636174696f6e73919605a76d657373616765a568656c6c6f920c22ce000f424081a66368616e676581a463616d659292920c2292a175a27b7dc3"
        ],
    );
    let went = Change::Went {
        connection: member().connection,
        user: "u".into(),
        is_last: true,
    };
    check(
        &marked(Mark::Change(went)),
        expect![
            "0181a77265706c6965739492a66e6f64652d310307029181a66a6f696e6564921581a24f6b930492cf11223344556677880581ac7075626c69636174696f6e73919605a76d657373616765a568656c6c6f920c22ce000f424081a66368616e676581a477656e7493920c22a175c3"
        ],
    );
}

#[test]
fn golden_batch() {
    let entry = Entry {
        shard: ShardId(9),
        fence: Fence(4),
        key: key(),
        epoch: Epoch(0x1122_3344_5566_7788),
        publication: publication(),
    };
    let bytes = encode_entry(&entry);
    expect!["0195090492a66170702d6964a4726f6f6dcf11223344556677889505a76d657373616765a568656c6c6f920c22ce000f4240"].assert_eq(&hex::encode(&bytes));
    assert_eq!(decode_entry(&bytes).unwrap(), entry);
    check(
        &Message::Batch(Batch {
            from: node(),
            to: Incarnation(7),
            first: 100,
            entries: vec![bytes],
        }),
        expect![
            "0181a562617463689492a66e6f64652d3103076491c4320195090492a66170702d6964a4726f6f6dcf11223344556677889505a76d657373616765a568656c6c6f920c22ce000f4240"
        ],
    );
}

#[test]
fn golden_beats() {
    check(
        &Message::NodeBeat(NodeBeat {
            from: node(),
            cluster: ClusterUuid(1),
            map_version: 2,
            namespaces: 6,
        }),
        expect![
            "0181a96e6f64655f626561749492a66e6f64652d3103c410000000000000000000000000000000010206"
        ],
    );
    let mut digest = InterestDigest::default();
    digest.insert(&key());
    check(
        &Message::GatewayBeat(GatewayBeat {
            from: gateway(),
            cluster: ClusterUuid(1),
            map_version: 2,
            namespaces: 6,
            connections: 12,
            interest: vec![ShardInterest {
                shard: ShardId(9),
                digest,
            }],
        }),
        expect![
            "0181ac676174657761795f626561749692a467772d3107c4100000000000000000000000000000000102060c9192099201cff8efa16b69f38f3f"
        ],
    );
    check(
        &Message::GatewayCounts(GatewayCounts {
            from: gateway(),
            cluster: ClusterUuid(1),
            counts: vec![ShardCounts {
                shard: ShardId(9),
                fence: Fence(4),
                fanout: Fanout {
                    deliveries: 300,
                    spreads: 4,
                    share_ppm: 500_000,
                    busy_us: 1_234,
                },
            }],
        }),
        expect![
            "0181ae676174657761795f636f756e74739392a467772d3107c410000000000000000000000000000000019193090494cd012c04ce0007a120cd04d2"
        ],
    );
}

#[test]
fn what_is_not_ours_is_refused_with_a_reason() {
    assert!(matches!(decode(b""), Err(Error::Empty)));
    assert!(matches!(decode(b"\x02\x00"), Err(Error::Version(2))));
    assert!(matches!(decode(b"\x01\xc1"), Err(Error::Malformed(_))));
    let mut bytes = encode(&requests(Request::Map { since: 4 })).to_vec();
    bytes.push(0);
    assert!(matches!(decode(&bytes), Err(Error::Trailing(1))));
}

#[test]
fn ids_and_names_are_checked_when_they_arrive() {
    let bytes = encode(&requests(Request::Leave(Leave {
        shard: ShardId(9),
        fence: Fence(4),
        key: key(),
        version: 22,
        is_unanswered: true,
    })));
    let forged = replace(&bytes, b"room", b"ro m");
    assert!(matches!(decode(&forged), Err(Error::Malformed(_))));
    let forged = replace(&bytes, b"gw-1", b"gw.1");
    assert!(matches!(decode(&forged), Err(Error::Malformed(_))));
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes
        .windows(from.len())
        .position(|w| w == from)
        .expect("the text is there");
    let mut bytes = bytes.to_vec();
    bytes[at..at + from.len()].copy_from_slice(to);
    bytes
}

fn any_publication() -> impl Strategy<Value = Arc<Publication>> {
    (
        any::<u64>(),
        ".{0,40}",
        ".{0,300}",
        any::<Option<(u64, u64)>>(),
        any::<u64>(),
    )
        .prop_map(|(offset, event, data, exclude, at)| {
            Arc::new(Publication {
                offset: Offset(offset),
                event: event.into(),
                data: data.into(),
                exclude: exclude.map(|(gateway, number)| ConnectionId { gateway, number }),
                accepted_at: UnixTime(at),
                mark: None,
            })
        })
}

proptest! {
    #[test]
    fn entries_round_trip(
        shard: u16, fence: u64, epoch: u64,
        channel in "[A-Za-z0-9_=@,.;-]{1,200}",
        app in "[A-Za-z0-9_-]{1,64}",
        publication in any_publication(),
    ) {
        let entry = Entry {
            shard: ShardId(shard),
            fence: Fence(fence),
            key: ChannelKey { app: app.parse().unwrap(), channel: channel.parse().unwrap() },
            epoch: Epoch(epoch),
            publication,
        };
        prop_assert_eq!(decode_entry(&encode_entry(&entry)).unwrap(), entry);
    }

    #[test]
    fn joined_round_trips(version: u64, epoch: u64, offset: u64, missed in prop::collection::vec(any_publication(), 0..20)) {
        let message = replies(Reply::Joined {
            version,
            result: Ok(Joined {
                fence: Fence(version),
                position: Position { epoch: Epoch(epoch), offset: Offset(offset) },
                missed: Missed::Publications(missed), cached: None }),
        });
        prop_assert_eq!(decode(&encode(&message)).unwrap(), message);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = decode(&bytes);
        let _ = decode_entry(&bytes);
    }

    /// Random bytes rarely get past the first field; damaged messages do.
    #[test]
    fn damaged_messages_never_panic(at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
        let message = replies(Reply::Joined {
            version: 1,
            result: Ok(Joined { fence: Fence(1), position: position(), missed: Missed::Publications(vec![publication()]), cached: None }),
        });
        let mut bytes = encode(&message).to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = decode(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        let _ = decode(&bytes);
    }
}
