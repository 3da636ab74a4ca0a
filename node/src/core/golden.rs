//! What other versions have written and say: the bytes of everything that is kept
//! on a disk or goes from node to node. Whoever changes one of these changes what
//! a cluster of two versions says to itself, and what is read after an upgrade.

use std::fmt::{Debug, Write};
use std::sync::Arc;

use expect_test::{Expect, expect};
use proto::channel::ChannelKey;
use proto::id::{ClusterUuid, ConnectionId, GatewayRef, Incarnation, NodeRef};
use proto::message::{Cached, Digest, Idempotency, Published, Refusal};
use proto::position::{Epoch, Offset, Position};
use proto::presence::{Change, Mark, User};
use proto::publication::Publication;
use proto::shard::{Fence, ShardId, Sharding};
use proto::time::UnixTime;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::checkpoint::ShardCheckpoint;
use super::cluster::{
    Assignment, Cluster, Command, Founding, How, RaftId, Registration, Replica, ReplicaSet, Standby,
};
use super::lease::Grant;
use super::pairs::{Batch, Confirmation, Echo, Part};
use super::record::{
    Begin, ChannelPiece, Held, KeyPiece, Performed, PresencePiece, Record, RosterPiece,
    TombstonePiece, UserPiece,
};
use super::wire;

/// A value is written like this, and read from it.
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T, golden: &Expect) {
    let bytes = wire::encode(value);
    let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    golden.assert_eq(&hex);
    let golden: Vec<u8> = (0..golden.data().len() / 2)
        .map(|at| u8::from_str_radix(&golden.data()[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    assert_eq!(&wire::decode::<T>(&golden).unwrap(), value);
}

fn node(id: &str, incarnation: u64) -> NodeRef {
    NodeRef {
        id: id.parse().unwrap(),
        incarnation: Incarnation(incarnation),
    }
}

fn gateway() -> GatewayRef {
    GatewayRef {
        id: "g1".parse().unwrap(),
        incarnation: Incarnation(77),
    }
}

fn registration(id: RaftId, name: &str) -> Registration {
    Registration {
        raft_id: id,
        name: name.parse().unwrap(),
        start: 5,
        address: format!("{name}:7580"),
        zone: "east".into(),
        witness: false,
        kept: Vec::new(),
    }
}

/// One of each, as a small cluster decides them.
fn commands() -> Vec<Command> {
    let shard = ShardId(0);
    let owner = |how, name, fence: Option<u64>| Assignment {
        shard,
        owner: node(name, if name == "n1" { 2 } else { 3 }),
        under: fence.map(Fence),
        version: None,
        how,
    };
    let in_sync = vec![Standby {
        node: node("n2", 3),
        state: Replica::InSync,
    }];
    vec![
        Command::Found(Founding {
            uuid: ClusterUuid(0x1234),
            sharding: Sharding { seed: 9, count: 2 },
            expect: 2,
        }),
        Command::Register(registration(11, "n1")),
        Command::Register(Registration {
            kept: vec![(Fence(1), vec![ShardId(1)])],
            ..registration(12, "n2")
        }),
        Command::Register(registration(13, "n3")),
        Command::Register(Registration {
            witness: true,
            ..registration(14, "w")
        }),
        Command::Assign(vec![owner(How::Afresh, "n1", None)]),
        Command::Replicas(vec![ReplicaSet {
            shard,
            owner: node("n1", 2),
            fence: Fence(6),
            version: 6,
            standbys: in_sync,
        }]),
        Command::Assign(vec![owner(How::Promote { keep: None }, "n2", Some(6))]),
        Command::Drain(node("n1", 2)),
        Command::Bus {
            node: node("n2", 3),
            hears: false,
        },
        Command::GatewaysGone(vec![gateway()]),
        Command::Remove(node("n3", 4)),
        Command::Forget(14),
    ]
}

#[test]
fn the_log_and_its_snapshot() {
    check(
        &commands(),
        &expect![
            "019d81a5666f756e6493c410000000000000000000000000000012349209020281a87265676973746572960ba26e3105a76e313a37353830a465617374c281a87265676973746572970ca26e3205a76e323a37353830a465617374c2919201910181a87265676973746572960da26e3305a76e333a37353830a465617374c281a87265676973746572960ea17705a6773a37353830a465617374c381a661737369676e91950092a26e3102c0c0a661667265736881a87265706c6963617391950092a26e31020606919292a26e3203a7696e5f73796e6381a661737369676e91950092a26e320306c081a770726f6d6f746591c081a5647261696e92a26e310281a36275739292a26e3203c281ad67617465776179735f676f6e659192a267314d81a672656d6f766592a26e330481a6666f726765740e"
        ],
    );
    let mut cluster = Cluster::default();
    for (index, command) in (1..).zip(commands()) {
        cluster.apply(index, command);
    }
    assert_eq!(cluster.members().len(), 2, "all of them count");
    let row = cluster.rows()[0].as_ref().unwrap();
    assert_eq!((&row.owner, row.fence), (&node("n2", 3), Fence(8)));
    check(
        &cluster,
        &expect![
            "019693c410000000000000000000000000000012349209020282a26e3195960ba26e3105a76e313a37353830a465617374c20202c3c2a26e3295960ca26e3205a76e323a37353830a465617374c20303c2c3929692a26e32030808909192a26e3102c3c0080781a26731924d0b"
        ],
    );
}

fn key() -> ChannelKey {
    ChannelKey {
        app: "app".parse().unwrap(),
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

const KEY: Idempotency = Idempotency {
    key: Digest(6),
    body: Digest(7),
};

/// One of each.
fn records() -> Vec<Record> {
    let accepted = Ok(Published::Accepted {
        fence: Fence(8),
        position: position(),
        copies: 1,
    });
    let close = |result, idempotency| Record::Close {
        from: gateway(),
        sequence: 4,
        low_mark: 2,
        result,
        idempotency,
    };
    let stone = |is_alone| TombstonePiece {
        age_ms: 3,
        name: 99,
        position: position(),
        is_alone,
    };
    let piece = |is_alone| {
        Record::Channel(Box::new(ChannelPiece {
            key: key(),
            position: position(),
            forgetful: false,
            past: vec![(1_500, publication())],
            retired: 0,
            held: 1,
            is_alone,
        }))
    };
    let held = Held {
        node: node("n2", 3),
        fence: Fence(8),
        fill: 1,
        number: 40,
    };
    vec![
        Record::Begin(Begin {
            forgetful: true,
            tables: vec![(gateway(), 5, vec![accepted.clone(), Ok(Published::Skipped)])],
        }),
        Record::Keys(vec![KeyPiece {
            age_ms: 2,
            key: KEY.key,
            body: KEY.body,
            position: position(),
            copies: 2,
        }]),
        Record::Tombstones(vec![stone(false), stone(true)]),
        piece(false),
        piece(true),
        Record::Whole,
        Record::Create {
            key: key(),
            position: position(),
            forgetful: true,
        },
        Record::Publish(Box::new(Performed {
            from: gateway(),
            sequence: 3,
            low_mark: 2,
            key: key(),
            epoch: position().epoch,
            publication: publication(),
            idempotency: Some(KEY),
        })),
        close(Err(Refusal::Overloaded), None),
        close(accepted, Some(KEY)),
        Record::Evict {
            key: key(),
            position: position(),
        },
        Record::Forget { key: key() },
        Record::Release(vec![held.clone()]),
        Record::Attach(held),
    ]
}

#[test]
fn what_owners_and_standbys_say_to_each_other() {
    let batch = Batch {
        from: node("n1", 2),
        to: node("n2", 3),
        sent_at: 123_456,
        parts: vec![Part {
            shard: ShardId(1),
            fence: Fence(8),
            fill: 2,
            first: 30,
            records: records().into_iter().map(Arc::new).collect(),
        }],
    };
    check(
        &batch,
        &expect![
            "019492a26e310292a26e3203ce0001e24091950108021e9e81a5626567696e92c3919392a267314d059281a24f6b81a86163636570746564930892cf1122334455667788050181a24f6ba7736b697070656481a46b657973919502c41000000000000000000000000000000006c4100000000000000000000000000000000792cf1122334455667788050281aa746f6d6273746f6e65739293036392cf11223344556677880594036392cf112233445566778805c381a76368616e6e656c9692a3617070a4726f6f6d92cf112233445566778805c29192cd05dc9505a76d657373616765a568656c6c6f920c22ce000f4240000181a76368616e6e656c9792a3617070a4726f6f6d92cf112233445566778805c29192cd05dc9505a76d657373616765a568656c6c6f920c22ce000f42400001c3a577686f6c6581a66372656174659392a3617070a4726f6f6d92cf112233445566778805c381a77075626c6973689792a267314d030292a3617070a4726f6f6dcf11223344556677889505a76d657373616765a568656c6c6f920c22ce000f424092c41000000000000000000000000000000006c4100000000000000000000000000000000781a5636c6f73659492a267314d040281a3457272aa6f7665726c6f6164656481a5636c6f73659592a267314d040281a24f6b81a86163636570746564930892cf1122334455667788050192c41000000000000000000000000000000006c4100000000000000000000000000000000781a565766963749292a3617070a4726f6f6d92cf11223344556677880581a6666f726765749192a3617070a4726f6f6d81a772656c65617365919492a26e320308012881a66174746163689492a26e3203080128"
        ],
    );
    let echo = Echo {
        from: node("n2", 3),
        to: node("n1", 2),
        sent_at: 123_456,
        refused: vec![(ShardId(0), Fence(9))],
        confirmed: vec![Confirmation {
            shard: ShardId(1),
            fence: Fence(8),
            fill: 2,
            number: 43,
        }],
        lost: vec![(ShardId(1), Fence(7))],
    };
    check(
        &echo,
        &expect!["019692a26e320392a26e3102ce0001e2409192000991940108022b91920107"],
    );
    let grant = Grant {
        node: node("n1", 2),
        renewal: 12,
        applied: 8,
    };
    check(&grant, &expect!["019392a26e31020c08"]);
}

#[test]
fn what_the_last_node_keeps() {
    let kept = ShardCheckpoint {
        shard: ShardId(1),
        fence: Fence(8),
        waits: true,
        records: records(),
    };
    check(
        &kept,
        &expect![
            "01940108c39e81a5626567696e92c3919392a267314d059281a24f6b81a86163636570746564930892cf1122334455667788050181a24f6ba7736b697070656481a46b657973919502c41000000000000000000000000000000006c4100000000000000000000000000000000792cf1122334455667788050281aa746f6d6273746f6e65739293036392cf11223344556677880594036392cf112233445566778805c381a76368616e6e656c9692a3617070a4726f6f6d92cf112233445566778805c29192cd05dc9505a76d657373616765a568656c6c6f920c22ce000f4240000181a76368616e6e656c9792a3617070a4726f6f6d92cf112233445566778805c29192cd05dc9505a76d657373616765a568656c6c6f920c22ce000f42400001c3a577686f6c6581a66372656174659392a3617070a4726f6f6d92cf112233445566778805c381a77075626c6973689792a267314d030292a3617070a4726f6f6dcf11223344556677889505a76d657373616765a568656c6c6f920c22ce000f424092c41000000000000000000000000000000006c4100000000000000000000000000000000781a5636c6f73659492a267314d040281a3457272aa6f7665726c6f6164656481a5636c6f73659592a267314d040281a24f6b81a86163636570746564930892cf1122334455667788050192c41000000000000000000000000000000006c4100000000000000000000000000000000781a565766963749292a3617070a4726f6f6d92cf11223344556677880581a6666f726765749192a3617070a4726f6f6d81a772656c65617365919492a26e320308012881a66174746163689492a26e3203080128"
        ],
    );
}

#[test]
fn what_standbys_are_told_of_caches() {
    let cached = Cached {
        age_ms: 1_000,
        publication: publication(),
    };
    let kept = ShardCheckpoint {
        shard: ShardId(1),
        fence: Fence(8),
        waits: true,
        records: vec![Record::Cached { key: key(), cached }],
    };
    check(
        &kept,
        &expect![
            "01940108c39181a66361636865649292a3617070a4726f6f6d92cd03e89505a76d657373616765a568656c6c6f920c22ce000f4240"
        ],
    );
}

#[test]
fn what_standbys_are_told_of_members() {
    let connection = ConnectionId {
        gateway: 12,
        number: 34,
    };
    let user = User {
        id: "u".into(),
        info: Some("{}".into()),
    };
    let went = Change::Went {
        connection,
        user: "u".into(),
        is_last: true,
    };
    let records = vec![
        Record::Presence(Box::new(PresencePiece {
            channel: ChannelPiece {
                key: key(),
                position: position(),
                forgetful: false,
                past: Vec::new(),
                retired: 0,
                held: 0,
                is_alone: false,
            },
            roster: RosterPiece {
                gateways: vec![gateway()],
                users: vec![UserPiece {
                    user,
                    connections: vec![(connection, 0)],
                }],
            },
        })),
        Record::Append {
            key: key(),
            epoch: position().epoch,
            publication: Arc::new(Publication {
                mark: Some(Box::new(Mark::Change(went))),
                ..publication().blank()
            }),
        },
        Record::Confirm {
            key: key(),
            connection,
            gateway: gateway(),
        },
    ];
    let kept = ShardCheckpoint {
        shard: ShardId(1),
        fence: Fence(8),
        waits: true,
        records,
    };
    check(
        &kept,
        &expect![
            "01940108c39381a870726573656e6365929692a3617070a4726f6f6d92cf112233445566778805c2900000929192a267314d919292a175a27b7d9192920c220081a6617070656e649392a3617070a4726f6f6dcf11223344556677889605a0a0c0ce000f424081a66368616e676581a477656e7493920c22a175c381a7636f6e6669726d9392a3617070a4726f6f6d920c2292a267314d"
        ],
    );
}
