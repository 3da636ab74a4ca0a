//! A gateway and a node on a bus that loses messages, with real clients: the
//! loss stays between the two.

#![expect(
    clippy::disallowed_methods,
    reason = "shell: tests start tasks and read the clock"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use cluster_tests::client::{EventStream, Pusher, get, post_event_to, post_event_with};
use cluster_tests::disturbed::{Disturb, answer_instead, disturbed, obedient};
use cluster_tests::eventually;
use cluster_tests::in_process::{Pair, begin_gateway, start_node};
use futures_util::future::try_join_all;
use prometheus::Registry;
use proto::bus::{Bus, BusHandle, Error, MemoryBus};
use proto::channel::ChannelKey;
use proto::codec;
use proto::inspection::{Answer, Question};
use proto::message::{Message, Reply, Request, Since};
use proto::subject::Subject;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::watch;

/// Loses some messages of every kind, by a fixed sequence of random numbers.
#[derive(Debug)]
struct LossyBus {
    random: AtomicU64,
    lost: AtomicU64,
    percent: u64,
}

impl Disturb for LossyBus {
    fn publish(&self, bus: &MemoryBus, subject: &Subject, payload: Bytes) -> Result<(), Error> {
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
        bus.publish(subject, payload)
    }
}

const CHANNELS: usize = 5;
const SUBSCRIBERS: usize = 8;
const ROUNDS: usize = 20;
const AT_ONCE: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loss_between_gateway_and_node_is_invisible_to_clients() -> Result<()> {
    let bus = Arc::new(LossyBus {
        random: AtomicU64::new(1),
        lost: AtomicU64::new(0),
        percent: 10,
    });
    let pair = Pair::start(&disturbed(&bus)).await?;
    let address = pair.address.clone();
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
    assert!(pair.counted("dunlin_link_gaps_total") > 0.0);
    assert!(pair.counted("dunlin_link_repaired_total") > 0.0);
    assert_eq!(pair.counted("dunlin_gaps_announced_total"), 0.0);
    pair.stop.send(true)?;
    pair.gateway.join().await?;
    pair.node.join().await?;
    Ok(())
}

/// What the node still holds comes by repair, though repairs are lost as well:
/// no owner is asked for what a channel has missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_links_lose_is_repaired_and_no_channel_asks_by_position() -> Result<()> {
    let bus = Arc::new(Holey::default());
    let pair = Pair::start(&disturbed(&bus)).await?;
    let address = pair.address.clone();
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = Pusher::connect_to(&address).await?;
        for channel in 0..CHANNELS {
            client.subscribe(&format!("c{channel}")).await?;
        }
        clients.push(client);
    }
    bus.holes.store(true, Ordering::Relaxed);
    let mut sent: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for n in 0..500 {
        let (channel, data) = (format!("c{}", n % CHANNELS), n.to_string());
        let event = json!({ "name": "e", "channel": channel, "data": data });
        assert_eq!(post_event_to(&address, &event).await?.status, 200);
        sent.entry(channel).or_default().push(data);
    }
    for client in &mut clients {
        assert_eq!(received(client, 500).await?, sent);
    }
    for name in ["gaps", "repaired"] {
        let name = format!("dunlin_link_{name}_total");
        assert!(pair.counted(&name) > 20.0, "{name}: {bus:?}");
    }
    assert_eq!(pair.counted("dunlin_link_fallbacks_total"), 0.0);
    assert_eq!(bus.asked.load(Ordering::Relaxed), 0, "{bus:?}");
    pair.stop.send(true)?;
    Ok(())
}

/// More is lost than the node holds: the rest is asked for by position, and
/// nothing is missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_left_the_ring_is_asked_for_by_position() -> Result<()> {
    let bus = Arc::new(Holey::default());
    let pair = Pair::start(&disturbed(&bus)).await?;
    let address = pair.address.clone();
    let mut client = Pusher::connect_to(&address).await?;
    // So much in each of them that history holds it and the ring does not hold
    // it all.
    let data = "x".repeat(90_000);
    let channels = proto::link::LINK_BYTES_MAX / data.len() + 20;
    for n in 0..channels {
        client.subscribe(&format!("c{n}")).await?;
    }
    bus.deaf.store(true, Ordering::Relaxed);
    let mut sent: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for n in 0..channels {
        let channel = format!("c{n}");
        let event = json!({ "name": "e", "channel": channel, "data": data });
        assert_eq!(post_event_to(&address, &event).await?.status, 200);
        sent.insert(channel, vec![data.clone()]);
    }
    bus.deaf.store(false, Ordering::Relaxed);
    let got = received(&mut client, channels).await?;
    assert!(got == sent, "all of them");
    assert!(pair.counted("dunlin_link_fallbacks_total") > 0.0);
    assert!(bus.asked.load(Ordering::Relaxed) > 0, "{bus:?}");
    eventually("the rest is repaired", async || {
        (pair.counted("dunlin_link_repaired_total") > 0.0).then_some(())
    })
    .await;
    assert_eq!(pair.counted("dunlin_gaps_announced_total"), 0.0);
    pair.stop.send(true)?;
    Ok(())
}

/// Reads so many publications, by channel.
async fn received(client: &mut Pusher, count: usize) -> Result<BTreeMap<String, Vec<String>>> {
    let mut got: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for _ in 0..count {
        let frame = client.frame().await?;
        let text = |name: &str| {
            let text = frame[name].as_str().map(str::to_owned);
            text.with_context(|| format!("{frame}"))
        };
        assert_eq!(text("event")?, "e");
        got.entry(text("channel")?).or_default().push(text("data")?);
    }
    Ok(got)
}

/// Loses pieces of links in a fixed order, and what would repair them, but never
/// all that was tried.
#[derive(Debug, Default)]
struct Holey {
    holes: AtomicBool,
    /// Loses all batches.
    deaf: AtomicBool,
    batches: AtomicU64,
    repairs: AtomicU64,
    requests: AtomicU64,
    /// Joins that ask for what came after a position.
    asked: AtomicU64,
}

impl Holey {
    /// Whether this one is lost: every `nth` of its kind.
    fn loses(&self, counter: &AtomicU64, nth: u64) -> bool {
        let count = counter.fetch_add(1, Ordering::Relaxed);
        self.holes.load(Ordering::Relaxed) && count % nth == nth - 1
    }
}

impl Disturb for Holey {
    fn publish(&self, bus: &MemoryBus, subject: &Subject, payload: Bytes) -> Result<(), Error> {
        let lost = match codec::decode(&payload) {
            Ok(Message::Batch(_)) => {
                self.loses(&self.batches, 5) || self.deaf.load(Ordering::Relaxed)
            }
            Ok(Message::Repair(_)) => self.loses(&self.repairs, 3),
            Ok(Message::Requests(requests)) => {
                let asks = |it: &&Request| matches!(it, Request::Join(j) if j.since != Since::Now);
                let asked = requests.requests.iter().filter(asks).count();
                self.asked.fetch_add(asked as u64, Ordering::Relaxed);
                let repairs = |it: &Request| matches!(it, Request::Repair(_));
                requests.requests.iter().any(repairs) && self.loses(&self.requests, 3)
            }
            _ => false,
        };
        if lost {
            return Ok(());
        }
        bus.publish(subject, payload)
    }
}

/// It needs nothing but the bus to start. Who comes before a node is there is refused,
/// and not kept waiting: what it asked for would be done when it has long given up.
#[tokio::test]
async fn a_gateway_waits_for_the_first_node_and_refuses_clients_until_then() -> Result<()> {
    let bus: BusHandle = Arc::new(MemoryBus::default());
    let (stop, shutdown) = watch::channel(false);
    let mut gateway = begin_gateway(&bus, "g", &Registry::new(), shutdown.clone()).await?;
    let address = gateway.address.to_string();
    let early = TcpStream::connect(&address).await;
    let refused = early.expect_err("it does not serve yet").kind();
    assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
    let answer = gateway.inspector.ask(Question::Nodes).await;
    assert!(matches!(answer, Answer::Unavailable(_)), "{answer:?}");
    assert!(!*gateway.ready.borrow());
    let node = start_node(&bus, shutdown).await?;
    gateway.ready.wait_for(|ready| *ready).await?;
    Pusher::connect_to(&address).await?.subscribe("c").await?;
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
    let gateway = begin_gateway(&bus, "g", &Registry::new(), shutdown).await?;
    stop.send(true)?;
    gateway.join().await?;
    Ok(())
}

/// A bus that loses everything: publishers are told, subscribers stay pending.
#[tokio::test]
async fn a_node_that_cannot_be_reached_is_a_clear_answer() -> Result<()> {
    let bus = Arc::new(Switch {
        off: AtomicU64::new(0),
    });
    let pair = Pair::start(&disturbed(&bus)).await?;
    let address = pair.address.clone();
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
        lies: AtomicU64::new(0),
    });
    let pair = Pair::start(&disturbed(&bus)).await?;
    let address = pair.address.clone();
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
    assert!(pair.counted("dunlin_interest_restated_total") >= 2.0);
    pair.stop.send(true)?;
    Ok(())
}

/// Keeps the first join and the first leave to itself after it was told to lie,
/// and answers in the node's name.
#[derive(Debug)]
struct Liar {
    /// 0: honest; 1: both are to come; 2: one has come; 3: both have.
    lies: AtomicU64,
}

impl Liar {
    /// What the node would have said, if this is a request to be lied about.
    fn lie(&self, request: &Request) -> Option<Reply> {
        let reply = match request {
            Request::Join(join) if join.key.channel.as_str() != "lied-to" => None,
            request => obedient(request),
        }?;
        let lies = |lies: u64| (1..3).contains(&lies).then_some(lies + 1);
        let told = self
            .lies
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, lies);
        told.is_ok().then_some(reply)
    }
}

impl Disturb for Liar {
    fn publish(&self, bus: &MemoryBus, subject: &Subject, payload: Bytes) -> Result<(), Error> {
        answer_instead(bus, subject, payload, |request| self.lie(request))
    }
}

/// Keeps to itself what it is told to.
#[derive(Debug)]
struct Thief {
    /// Publishes into the channel `away`, so many more.
    publishes: AtomicU64,
    /// Answers to publishes, while this is not zero.
    answers: AtomicU64,
}

impl Thief {
    fn new() -> Arc<Self> {
        Arc::new(Self {
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

impl Disturb for Thief {
    fn publish(&self, bus: &MemoryBus, subject: &Subject, payload: Bytes) -> Result<(), Error> {
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
        bus.publish(subject, rest)
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
    let pair = Pair::start(&disturbed(&bus)).await?;
    let address = pair.address.clone();
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
    let pair = Pair::start(&disturbed(&bus)).await?;
    let address = pair.address.clone();
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
    off: AtomicU64,
}

impl Disturb for Switch {
    fn publish(&self, bus: &MemoryBus, subject: &Subject, payload: Bytes) -> Result<(), Error> {
        if self.off.load(Ordering::Relaxed) > 0 {
            return Ok(());
        }
        bus.publish(subject, payload)
    }
}
