//! A gateway and a node on a bus that loses messages, with real clients: the
//! loss stays between the two.

#![expect(
    clippy::disallowed_methods,
    reason = "shell: tests start tasks and read the clock"
)]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use cluster_tests::client::{EventStream, KEY, Pusher, get, post_event_to, post_event_with};
use cluster_tests::eventually;
use futures_util::future::{BoxFuture, try_join_all};
use gateway::app::{App, Apps};
use prometheus::Registry;
use proto::bus::{Bus, BusHandle, Error, MemoryBus, Stats, Subscription};
use proto::channel::ChannelKey;
use proto::codec;
use proto::id::{ClusterUuid, GatewayRef, Incarnation, NodeRef};
use proto::message::{
    Answer, Joined, Message, Missed, NodeInfo, Question, Replies, Reply, Request,
};
use proto::namespace::Namespaces;
use proto::position::{Epoch, Offset, Position};
use proto::shard::ShardMap;
use proto::subject::{Address, Subject};
use serde_json::json;
use tokio::sync::watch;

/// Loses some messages of every kind, by a fixed sequence of random numbers.
#[derive(Debug)]
struct LossyBus {
    inner: MemoryBus,
    random: AtomicU64,
    lost: AtomicU64,
    percent: u64,
}

impl Bus for LossyBus {
    fn publish(&self, subject: &Subject, payload: Bytes) -> Result<(), Error> {
        // SplitMix64: a counter, hashed.
        let mut x = self
            .random
            .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        if (x ^ (x >> 31)) % 100 < self.percent {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        self.inner.publish(subject, payload)
    }

    fn subscribe(&self, subject: Subject) -> BoxFuture<'_, Result<Subscription, Error>> {
        self.inner.subscribe(subject)
    }

    fn name(&self) -> &'static str {
        "lossy"
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }
}

/// A gateway and a node in this process.
struct Pair {
    address: SocketAddr,
    registry: Registry,
    stop: watch::Sender<bool>,
    gateway: gateway::Gateway,
    node: node::Node,
}

/// A gateway that looks for a node.
async fn start_gateway(
    bus: &BusHandle,
    registry: &Registry,
    shutdown: watch::Receiver<bool>,
) -> Result<gateway::Gateway> {
    let apps = Arc::new(Apps::new([App::new("app-id".parse()?, KEY, "app-secret")]));
    let metrics = Arc::new(gateway::Metrics::register(registry, bus.name(), &apps)?);
    let config = gateway::Config {
        cluster: "test".parse()?,
        gateway: GatewayRef {
            id: "g".parse()?,
            incarnation: Incarnation(1),
        },
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        apps,
        workers: 2,
        activity_timeout: Duration::from_secs(120),
        outbox_bytes_max: 1_024 * 1_024,
        playground: false,
    };
    Ok(gateway::start(config, Arc::clone(bus), metrics, shutdown).await?)
}

async fn start_node(bus: &BusHandle, shutdown: watch::Receiver<bool>) -> Result<node::Node> {
    let metrics = Arc::new(node::Metrics::register(&Registry::new(), bus.name())?);
    let me = NodeRef {
        id: "n".parse()?,
        incarnation: Incarnation(1),
    };
    let config = node::Config {
        cluster: "test".parse()?,
        node: me.clone(),
        namespaces: Namespaces::default(),
        workers: 2,
    };
    let member = NodeInfo {
        name: me.id.clone(),
        incarnation: Some(me.incarnation),
        address: String::new(),
        zone: String::new(),
        witness: false,
        role: "leader".into(),
        gossip: "alive".into(),
        shards: 1_024,
        version: String::new(),
    };
    let view = node::View::fixed(ShardMap::standalone(ClusterUuid(1), 7, me), member);
    Ok(node::start(config, view, Arc::clone(bus), metrics, shutdown).await?)
}

async fn start(bus: BusHandle) -> Result<Pair> {
    let (stop, shutdown) = watch::channel(false);
    let registry = Registry::new();
    let mut gateway = start_gateway(&bus, &registry, shutdown.clone()).await?;
    let node = start_node(&bus, shutdown).await?;
    gateway.ready.wait_for(|ready| *ready).await?;
    Ok(Pair {
        address: gateway.address,
        registry,
        stop,
        gateway,
        node,
    })
}

fn counted(registry: &Registry, name: &str) -> f64 {
    let families = registry.gather();
    let family = families.iter().find(|family| family.name() == name);
    family.map_or(0.0, |family| {
        family
            .get_metric()
            .iter()
            .map(|metric| metric.get_counter().get_value())
            .sum()
    })
}

const CHANNELS: usize = 5;
const SUBSCRIBERS: usize = 8;
const ROUNDS: usize = 20;
const AT_ONCE: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loss_between_gateway_and_node_is_invisible_to_clients() -> Result<()> {
    let bus = Arc::new(LossyBus {
        inner: MemoryBus::default(),
        random: AtomicU64::new(1),
        lost: AtomicU64::new(0),
        percent: 10,
    });
    let pair = start(Arc::clone(&bus) as BusHandle).await?;
    let address = pair.address.to_string();
    let per_subscriber = ROUNDS * AT_ONCE;
    let mut receiving = Vec::new();
    for _ in 0..SUBSCRIBERS {
        let mut client = Pusher::connect_to(&address).await?;
        for channel in 0..CHANNELS {
            client.subscribe(&format!("c{channel}")).await?;
        }
        receiving.push(tokio::spawn(async move {
            let mut got: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for _ in 0..per_subscriber {
                let frame = client.frame().await?;
                let text = |name: &str| {
                    frame[name]
                        .as_str()
                        .map(str::to_owned)
                        .with_context(|| format!("{frame}"))
                };
                assert_ne!(text("event")?, "dunlin:gap", "history reaches far enough");
                got.entry(text("channel")?).or_default().push(text("data")?);
            }
            anyhow::Ok(got)
        }));
    }
    for round in 0..ROUNDS {
        let all = (0..AT_ONCE).map(|n| {
            let event = json!({ "name": "e", "channel": format!("c{}", n % CHANNELS), "data": format!("{round}.{n}") });
            let address = &address;
            async move { post_event_to(address, &event).await }
        });
        for answer in try_join_all(all).await? {
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    }
    let mut first: Option<BTreeMap<String, Vec<String>>> = None;
    for received in receiving {
        let got = received.await??;
        let first = first.get_or_insert_with(|| got.clone());
        assert_eq!(&got, first, "the same order everywhere");
    }
    let first = first.context("subscribers")?;
    let mut all: Vec<&String> = first.values().flatten().collect();
    assert_eq!(all.len(), per_subscriber);
    all.sort();
    all.dedup();
    assert_eq!(all.len(), per_subscriber, "nothing twice, so nothing lost");
    // The test is one only if something was lost on both ways.
    assert!(bus.lost.load(Ordering::Relaxed) > 50, "{bus:?}");
    assert!(counted(&pair.registry, "dunlin_link_gaps_total") > 0.0);
    assert_eq!(counted(&pair.registry, "dunlin_gaps_announced_total"), 0.0);
    pair.stop.send(true)?;
    pair.gateway.join().await?;
    pair.node.join().await?;
    Ok(())
}

/// It needs nothing but the bus to start. Who connects before a node is there is
/// served as soon as one is.
#[tokio::test]
async fn a_gateway_waits_for_the_first_node_and_its_clients_with_it() -> Result<()> {
    let bus: BusHandle = Arc::new(MemoryBus::default());
    let (stop, shutdown) = watch::channel(false);
    let mut gateway = start_gateway(&bus, &Registry::new(), shutdown.clone()).await?;
    let address = gateway.address.to_string();
    let early = tokio::spawn(async move { Pusher::connect_to(&address).await });
    let answer = gateway.inspector.ask(Question::Nodes).await;
    assert!(matches!(answer, Answer::Unavailable(_)), "{answer:?}");
    assert!(!*gateway.ready.borrow() && !early.is_finished());
    let node = start_node(&bus, shutdown).await?;
    gateway.ready.wait_for(|ready| *ready).await?;
    early.await??.subscribe("c").await?;
    stop.send(true)?;
    gateway.ready.wait_for(|ready| !*ready).await?;
    gateway.join().await?;
    node.join().await?;
    Ok(())
}

/// It may be told to stop before it has found a node.
#[tokio::test]
async fn a_gateway_that_still_waits_ends_cleanly() -> Result<()> {
    let bus: BusHandle = Arc::new(MemoryBus::default());
    let (stop, shutdown) = watch::channel(false);
    let gateway = start_gateway(&bus, &Registry::new(), shutdown).await?;
    stop.send(true)?;
    gateway.join().await?;
    Ok(())
}

/// A bus that loses everything: publishers are told, subscribers stay pending.
#[tokio::test]
async fn a_node_that_cannot_be_reached_is_a_clear_answer() -> Result<()> {
    let bus = Arc::new(Switch {
        inner: MemoryBus::default(),
        off: AtomicU64::new(0),
    });
    let pair = start(Arc::clone(&bus) as BusHandle).await?;
    let address = pair.address.to_string();
    let mut client = Pusher::connect_to(&address).await?;
    client.subscribe("before").await?;
    // The page and its way to publish are `dev`'s alone.
    for path in ["/", "/dev/app", "/dev/publish"] {
        assert_eq!(get(&address, path).await?.status, 404, "{path}");
    }
    bus.off.store(1, Ordering::Relaxed);
    let event = json!({ "name": "e", "channel": "before", "data": "d" });
    let answer = post_event_to(&address, &event).await?;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (503, "unknown_outcome")
    );
    assert_eq!(answer.json()["failed"], json!(["before"]));
    assert!(answer.head.contains("retry-after: 1"));
    client
        .send(&json!({ "event": "pusher:subscribe", "data": { "channel": "meanwhile" } }))
        .await?;
    // A stream opens all the same: intermediaries do not wait for ever.
    let mut stream = EventStream::open_at(&address, "channel=meanwhile", "").await?;
    assert!(stream.head.starts_with("http/1.1 200"), "{}", stream.head);
    bus.off.store(0, Ordering::Relaxed);
    assert!(stream.block().await?.starts_with("id: "), "attached");
    // What was pending is acknowledged, and what is published now arrives.
    assert_eq!(
        client.frame().await?["event"],
        "pusher_internal:subscription_succeeded"
    );
    let event = json!({ "name": "e", "channel": "meanwhile", "data": "after" });
    assert_eq!(post_event_to(&address, &event).await?.status, 200);
    assert_eq!(client.frame().await?["data"], "after");
    pair.stop.send(true)?;
    Ok(())
}

/// A join and a leave that the owner never got, though the gateway believes that
/// it did: what no retry mends, the digests in the beats do.
#[tokio::test]
async fn interest_heals_by_itself() -> Result<()> {
    let bus = Arc::new(Liar {
        inner: MemoryBus::default(),
        lies: AtomicU64::new(0),
    });
    let pair = start(Arc::clone(&bus) as BusHandle).await?;
    let address = pair.address.to_string();
    let mut client = Pusher::connect_to(&address).await?;
    client.subscribe("joined").await?;
    bus.lies.store(1, Ordering::Relaxed);
    client.subscribe("lied-to").await?;
    client
        .send(&json!({ "event": "pusher:unsubscribe", "data": { "channel": "joined" } }))
        .await?;
    let followers = async |channel: &str| -> Result<usize> {
        let key = ChannelKey {
            app: "app-id".parse()?,
            channel: channel.parse()?,
        };
        match pair.node.inspector.ask(Question::Channel { key }).await {
            Answer::Channel(info) => Ok(info.state.map_or(0, |state| state.followers.len())),
            other => bail!("{other:?}"),
        }
    };
    assert_eq!(
        (followers("joined").await?, followers("lied-to").await?),
        (1, 0)
    );
    // The leave is sent after the linger; after it, 10 s are the promise.
    eventually("the leave was swallowed", async || {
        (bus.lies.load(Ordering::Relaxed) >= 3).then_some(())
    })
    .await;
    let swallowed = tokio::time::Instant::now();
    eventually("interest has healed", async || {
        let now = (
            followers("joined").await.ok()?,
            followers("lied-to").await.ok()?,
        );
        (now == (0, 1)).then_some(())
    })
    .await;
    let took = swallowed.elapsed();
    assert!(took <= Duration::from_secs(10), "{took:?}");
    // The position that it was told does not exist: that is said, and then
    // publications come.
    let event = json!({ "name": "e", "channel": "lied-to", "data": "after" });
    assert_eq!(post_event_to(&address, &event).await?.status, 200);
    loop {
        let frame = client.frame().await?;
        if frame["event"] == "e" {
            assert_eq!(frame["data"], "after");
            break;
        }
        assert_eq!(frame["event"], "dunlin:gap", "{frame}");
    }
    assert!(counted(&pair.registry, "dunlin_interest_restated_total") >= 2.0);
    pair.stop.send(true)?;
    Ok(())
}

/// Keeps the first join and the first leave to itself after it was told to lie,
/// and answers in the node's name.
#[derive(Debug)]
struct Liar {
    inner: MemoryBus,
    /// 0: honest; 1: both are to come; 2: one has come; 3: both have.
    lies: AtomicU64,
}

impl Liar {
    /// What the node would have said, if this is a request to be lied about.
    fn lie(&self, request: &Request) -> Option<Reply> {
        let reply = match request {
            Request::Join(join) if join.key.channel.as_str() == "lied-to" => Reply::Joined {
                version: join.version,
                result: Ok(Joined {
                    fence: join.fence,
                    position: Position {
                        epoch: Epoch(1),
                        offset: Offset::ZERO,
                    },
                    missed: Missed::Publications(Vec::new()),
                }),
            },
            Request::Leave(leave) => Reply::Left {
                version: leave.version,
                result: Ok(()),
            },
            _ => return None,
        };
        let lies = |lies: u64| (1..3).contains(&lies).then_some(lies + 1);
        let told = self
            .lies
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, lies);
        told.is_ok().then_some(reply)
    }
}

impl Bus for Liar {
    fn publish(&self, subject: &Subject, payload: Bytes) -> Result<(), Error> {
        let Ok(Message::Requests(mut requests)) = codec::decode(&payload) else {
            return self.inner.publish(subject, payload);
        };
        let mut replies = Vec::new();
        requests.requests.retain(|request| match self.lie(request) {
            Some(reply) => {
                replies.push(reply);
                false
            }
            None => true,
        });
        let lie = Message::Replies(Replies {
            from: NodeRef {
                id: "n".parse().expect("a valid name"),
                incarnation: Incarnation(1),
            },
            to: requests.from.incarnation,
            map_version: requests.map_version,
            replies,
        });
        let inbox = Subject {
            cluster: subject.cluster.clone(),
            address: Address::Inbox(requests.from.id.clone()),
        };
        self.inner.publish(&inbox, codec::encode(&lie))?;
        let rest = codec::encode(&Message::Requests(requests));
        self.inner.publish(subject, rest)
    }

    fn subscribe(&self, subject: Subject) -> BoxFuture<'_, Result<Subscription, Error>> {
        self.inner.subscribe(subject)
    }

    fn name(&self) -> &'static str {
        "liar"
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }
}

/// Keeps to itself what it is told to.
#[derive(Debug)]
struct Thief {
    inner: MemoryBus,
    /// Publishes into the channel `away`, so many more.
    publishes: AtomicU64,
    /// Answers to publishes, while this is not zero.
    answers: AtomicU64,
}

impl Thief {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryBus::default(),
            publishes: AtomicU64::new(0),
            answers: AtomicU64::new(0),
        })
    }

    fn steals(&self, request: &Request) -> bool {
        let Request::Publish(publish) = request else {
            return false;
        };
        let less = |left: u64| left.checked_sub(1);
        publish.key.channel.as_str() == "away"
            && self
                .publishes
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
                .is_ok()
    }
}

impl Bus for Thief {
    fn publish(&self, subject: &Subject, payload: Bytes) -> Result<(), Error> {
        let rest = match codec::decode(&payload) {
            Ok(Message::Requests(mut requests)) => {
                requests.requests.retain(|request| !self.steals(request));
                codec::encode(&Message::Requests(requests))
            }
            Ok(Message::Replies(mut replies)) if self.answers.load(Ordering::Relaxed) > 0 => {
                let is_other = |reply: &Reply| !matches!(reply, Reply::Published { .. });
                replies.replies.retain(is_other);
                codec::encode(&Message::Replies(replies))
            }
            _ => payload,
        };
        self.inner.publish(subject, rest)
    }

    fn subscribe(&self, subject: Subject) -> BoxFuture<'_, Result<Subscription, Error>> {
        self.inner.subscribe(subject)
    }

    fn name(&self) -> &'static str {
        "thief"
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }
}

/// What a subscriber of these channels gets until `end` comes in all of them.
async fn until_the_end(client: &mut Pusher, channels: usize) -> Result<Vec<(String, String)>> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let (mut got, mut ended) = (Vec::new(), 0);
    while ended < channels {
        let frame = client.frame().await?;
        if frame["data"] == "end" {
            ended += 1;
        } else {
            got.push((text(&frame["channel"]), text(&frame["data"])));
        }
    }
    got.sort();
    Ok(got)
}

#[tokio::test]
async fn a_publish_into_several_channels_is_resent_only_where_it_was_lost() -> Result<()> {
    let bus = Thief::new();
    let pair = start(Arc::clone(&bus) as BusHandle).await?;
    let address = pair.address.to_string();
    let mut client = Pusher::connect_to(&address).await?;
    for channel in ["here", "away", "there"] {
        client.subscribe(channel).await?;
    }
    bus.publishes.store(3, Ordering::Relaxed);
    let channels = ["here", "away", "there"];
    for data in ["1", "end"] {
        let event = json!({ "name": "e", "channels": channels, "data": data });
        assert_eq!(post_event_to(&address, &event).await?.status, 200, "{data}");
    }
    let got = until_the_end(&mut client, 3).await?;
    assert_eq!(
        got,
        ["away", "here", "there"].map(|c| (c.into(), "1".into()))
    );
    assert_eq!(bus.publishes.load(Ordering::Relaxed), 0);
    pair.stop.send(true)?;
    Ok(())
}

/// One owner out of reach, then all of them unable to answer: the same request
/// with the same key completes what is missing and nothing else.
#[tokio::test]
async fn a_request_that_failed_in_part_is_completed_by_repeating_it_with_its_key() -> Result<()> {
    let bus = Thief::new();
    let pair = start(Arc::clone(&bus) as BusHandle).await?;
    let address = pair.address.to_string();
    let mut client = Pusher::connect_to(&address).await?;
    for channel in ["here", "away"] {
        client.subscribe(channel).await?;
    }
    let event = |data: &str| json!({ "name": "e", "channels": ["here", "away"], "data": data });
    let post = async |key: &str, data: &str| {
        let header = format!("Idempotency-Key: {key}\r\n");
        post_event_with(&address, &header, &event(data)).await
    };
    bus.publishes.store(u64::MAX, Ordering::Relaxed);
    let answer = post("one", "1").await?;
    let told = answer.json();
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (503, "unknown_outcome")
    );
    assert_eq!(
        (&told["accepted"], &told["failed"]),
        (&json!(["here"]), &json!(["away"]))
    );
    let message = told["error"].as_str().context("a text")?;
    assert!(message.contains("same Idempotency-Key"), "{message}");
    bus.publishes.store(0, Ordering::Relaxed);
    assert_eq!(post("one", "1").await?.status, 200);

    bus.answers.store(1, Ordering::Relaxed);
    let answer = post("two", "2").await?;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (503, "unknown_outcome")
    );
    assert_eq!(answer.json()["failed"], json!(["here", "away"]));
    bus.answers.store(0, Ordering::Relaxed);
    assert_eq!(post("two", "2").await?.status, 200);

    assert_eq!(post("end", "end").await?.status, 200);
    let got = until_the_end(&mut client, 2).await?;
    let expected = [("away", "1"), ("away", "2"), ("here", "1"), ("here", "2")];
    assert_eq!(got, expected.map(|(c, d)| (c.into(), d.into())));
    pair.stop.send(true)?;
    Ok(())
}

/// Loses everything while it is off.
#[derive(Debug)]
struct Switch {
    inner: MemoryBus,
    off: AtomicU64,
}

impl Bus for Switch {
    fn publish(&self, subject: &Subject, payload: Bytes) -> Result<(), Error> {
        if self.off.load(Ordering::Relaxed) > 0 {
            return Ok(());
        }
        self.inner.publish(subject, payload)
    }

    fn subscribe(&self, subject: Subject) -> BoxFuture<'_, Result<Subscription, Error>> {
        self.inner.subscribe(subject)
    }

    fn name(&self) -> &'static str {
        "switch"
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }
}
