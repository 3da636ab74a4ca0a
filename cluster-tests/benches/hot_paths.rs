//! What the pure parts of the path of a publication cost, in time and in
//! allocations: `cargo bench -p cluster-tests`. A delivery to one more
//! connection must allocate nothing; the kernel's share is in `dunlin bench`.

use std::hint::black_box;
use std::sync::Arc;

use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher};
use gateway::broadcast::Broadcast;
use gateway::core::fanout::Fanout;
use gateway::core::hub::{ConnectionIndex, Hub, Subscribed, Wish};
use gateway::core::workers::WorkerId;
use gateway::core::{attachment, edge};
use node::core::interest::Interest;
use node::core::outbound::Outbound;
use node::core::shard::{Effect, Input, Shard, Tenure};
use proto::channel::ChannelKey;
use proto::codec;
use proto::id::{ClusterUuid, GatewayRef, Incarnation, NodeRef};
use proto::message::{
    Batch, Entry, Join, Joined, Message, Missed, Publish, Replies, Reply, Request, Sequenced, Since,
};
use proto::namespace::Namespaces;
use proto::position::{Epoch, Offset, Position};
use proto::publication::Publication;
use proto::shard::{Fence, ShardId, ShardMap};
use proto::time::{Timestamp, UnixTime};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

fn key() -> ChannelKey {
    ChannelKey {
        app: "app-id".parse().expect("valid"),
        channel: "room".parse().expect("valid"),
    }
}

fn publication(offset: u64) -> Arc<Publication> {
    Arc::new(Publication {
        offset: Offset(offset),
        event: "message".into(),
        data: "x".repeat(128).into(),
        exclude: None,
        accepted_at: UnixTime(0),
        mark: None,
    })
}

/// One publication over all subscribers of a channel, in slices, up to the
/// bytes that would be written.
#[divan::bench(args = [100, 10_000])]
fn sweep(bencher: Bencher<'_, '_>, subscribers: u32) {
    let mut hub = Hub::default();
    for connection in 0..subscribers {
        if let Subscribed::First(follow) =
            hub.subscribe(ConnectionIndex(connection), &key(), Wish::default())
        {
            hub.attached(
                &key(),
                follow,
                Position {
                    epoch: Epoch(1),
                    offset: Offset(0),
                },
            );
        }
    }
    let mut fanout = Fanout::default();
    bencher
        .counter(ItemsCount::new(subscribers))
        .bench_local(|| {
            let channel = hub.live(&key()).expect("it has subscribers");
            let broadcast = Arc::new(Broadcast::publication(key(), Epoch(1), publication(1)));
            fanout.push(channel, broadcast, hub.audience(channel));
            let mut bytes = 0;
            while let Some(slice) = fanout.next(&mut hub) {
                for slot in slice.slots.clone() {
                    if hub.subscriber(slice.channel, slot).is_some() {
                        bytes += slice
                            .broadcasts
                            .iter()
                            .map(|b| b.websocket().len())
                            .sum::<usize>();
                    }
                }
                fanout.done(&slice, &mut hub);
            }
            black_box(bytes)
        });
}

/// A publish at its owner: offset, history, result table, effects.
#[divan::bench]
fn publish_at_owner(bencher: Bencher<'_, '_>) {
    let tenure = Tenure {
        shard: ShardId(0),
        fence: Fence(1),
        owner: NodeRef {
            id: "n".parse().expect("valid"),
            incarnation: Incarnation(1),
        },
        cluster: ClusterUuid(1),
    };
    let gateway = GatewayRef {
        id: "g".parse().expect("valid"),
        incarnation: Incarnation(1),
    };
    let mut shard = Shard::new(tenure, Arc::new(Namespaces::default()));
    let mut effects = Vec::new();
    let join = Join {
        shard: ShardId(0),
        fence: Fence(1),
        key: key(),
        count: 1,
        since: Since::Now,
        version: 1,
        is_counted: false,
    };
    let input = Input::Request {
        from: gateway.clone(),
        request: Request::Join(join),
    };
    shard.handle(Timestamp(0), input, &mut effects);
    let mut sequence = 0;
    bencher.counter(ItemsCount::new(1_u32)).bench_local(|| {
        sequence += 1;
        let place = Sequenced {
            shard: ShardId(0),
            fence: Fence(1),
            sequence,
            low_mark: sequence,
        };
        let publish = Publish {
            place,
            key: key(),
            event: "message".into(),
            data: "x".repeat(128).into(),
            exclude: None,
            accepted_at: UnixTime(0),
            idempotency: None,
            by: None,
        };
        effects.clear();
        let input = Input::Request {
            from: gateway.clone(),
            request: Request::Publish(publish),
        };
        shard.handle(Timestamp(0), input, &mut effects);
        effects.len()
    });
}

fn entry() -> Entry {
    Entry {
        shard: ShardId(9),
        fence: Fence(4),
        key: key(),
        epoch: Epoch(1),
        publication: publication(1),
    }
}

/// Once per publication, however many gateways follow.
#[divan::bench]
fn encode_entry(bencher: Bencher<'_, '_>) {
    let entry = entry();
    bencher.bench(|| codec::encode_entry(black_box(&entry)));
}

/// Once per publication and gateway.
#[divan::bench]
fn decode_entry(bencher: Bencher<'_, '_>) {
    let bytes = codec::encode_entry(&entry());
    bencher.bench(|| codec::decode_entry(black_box(&bytes)));
}

/// A publication into the links of so many gateways, up to the messages that
/// are published; one for each link.
#[divan::bench(args = [1, 16])]
fn hand_to_links(bencher: Bencher<'_, '_>, gateways: u64) {
    let me = NodeRef {
        id: "n".parse().expect("valid"),
        incarnation: Incarnation(1),
    };
    let map = ShardMap::standalone(ClusterUuid(1), 0, me.clone());
    let mut outbound = Outbound::new(me, 0, Arc::new(map));
    let mut interest = Interest::default();
    for number in 0..gateways {
        let gateway = GatewayRef {
            id: format!("g{number}").parse().expect("valid"),
            incarnation: Incarnation(1),
        };
        interest.set(Timestamp(0), &gateway, 1, 1);
    }
    let deliver = Effect::Deliver {
        to: interest.recipients(),
        entry: entry(),
    };
    let mut now = 0;
    let mut parcels = Vec::new();
    bencher.counter(ItemsCount::new(gateways)).bench_local(|| {
        now += 1;
        parcels.clear();
        outbound.send(Timestamp(now), [deliver.clone()].into_iter(), &mut parcels);
        parcels.len()
    });
}

/// A batch of ten entries at the gateway: from the link to the workers.
#[divan::bench]
fn take_from_link(bencher: Bencher<'_, '_>) {
    let node = NodeRef {
        id: "n".parse().expect("valid"),
        incarnation: Incarnation(1),
    };
    let me = GatewayRef {
        id: "g".parse().expect("valid"),
        incarnation: Incarnation(1),
    };
    let map = ShardMap::standalone(ClusterUuid(1), 0, node.clone());
    let mut edge = edge::Edge::new(me.clone(), &map.since(0), Namespaces::default());
    let mut effects = Vec::new();
    let follow = edge::Input::Follow {
        worker: WorkerId(0),
        follow: attachment::FollowId(1),
        key: key(),
        cursor: None,
    };
    edge.handle(Timestamp(0), follow, &mut effects);
    let attached = Joined {
        fence: Fence(1),
        position: Position {
            epoch: Epoch(1),
            offset: Offset(0),
        },
        missed: Missed::Publications(Vec::new()),
        cached: None,
    };
    let replies = Replies {
        from: node.clone(),
        to: me.incarnation,
        map_version: map.version,
        replies: vec![Reply::Joined {
            version: 1,
            result: Ok(attached),
        }],
    };
    let replies = edge::Input::Message(Message::Replies(replies));
    edge.handle(Timestamp(0), replies, &mut effects);
    let mut next = 1;
    bencher
        .counter(ItemsCount::new(10_u32))
        .with_inputs(|| {
            let entry = |offset| {
                codec::encode_entry(&Entry {
                    shard: map.sharding.shard_of(&key()),
                    fence: Fence(1),
                    key: key(),
                    epoch: Epoch(1),
                    publication: publication(offset),
                })
            };
            let batch = Batch {
                from: node.clone(),
                to: me.incarnation,
                first: next,
                entries: (next..next + 10).map(entry).collect(),
            };
            next += 10;
            edge::Input::Message(Message::Batch(batch))
        })
        .bench_local_values(|input| {
            effects.clear();
            edge.handle(Timestamp(0), input, &mut effects);
            assert_eq!(effects.len(), 10, "all are delivered");
        });
}
