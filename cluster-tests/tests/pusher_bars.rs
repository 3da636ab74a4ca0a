//! What the Pusher protocol costs in a cluster, against its bars: messages on the bus,
//! order across gateways, and channels with many members. In a debug build fewer members
//! are made and times mean nothing; `make soak` holds a release build to the bars.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: what takes how long is measured"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::client::Pusher;
use cluster_tests::cluster::Cluster;
use cluster_tests::durations::Durations;
use cluster_tests::member::Member;
use cluster_tests::traffic::{END, Follower, Publisher};
use cluster_tests::{bus_messages, eventually};
use futures_util::future::try_join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// One after the other: what one says on the bus, or how long it takes, is not to be that
/// of the others.
static ALONE: Mutex<()> = Mutex::const_new(());

/// What was published, by all processes.
fn published(counts: &BTreeMap<String, f64>) -> f64 {
    let own = counts
        .iter()
        .filter(|(what, _)| what.contains(" published "));
    own.map(|(_, count)| count).sum()
}

/// A channel in which it begins with somebody at both gateways, and one with somebody at
/// each of its own.
#[tokio::test]
async fn the_bus_hears_little_of_clients_that_come_and_go() -> Result<()> {
    let _alone = ALONE.lock().await;
    let cluster = Cluster::start().await?;
    // Until then the map is told of now and then.
    cluster.protected().await;
    let (here, there) = (
        cluster.gateway("g1").clients.clone(),
        cluster.gateway("g2").clients.clone(),
    );
    let room = "presence-room";
    let mut first = Member::join(&here, room, "first").await?;
    let mut second = Member::join(&there, room, "second").await?;
    ensure!(first.told().await? == "+second");
    let mut follower = Pusher::connect_to(&here).await?;
    follower.subscribe("followed").await?;

    // The gateway follows already: nothing is said.
    let before = bus_messages::at_rest(&cluster).await;
    let mut another = Pusher::connect_to(&here).await?;
    another.subscribe("followed").await?;
    let said = bus_messages::since(&cluster, &before).await;
    assert_eq!(said, BTreeMap::new(), "subscribing to a followed channel");

    // A request, its answer, and what the two gateways are told.
    let before = bus_messages::at_rest(&cluster).await;
    let third = Member::join(&here, room, "third").await?;
    ensure!(second.told().await? == "+third");
    let said = bus_messages::since(&cluster, &before).await;
    println!("a member joins: {said:?}");
    assert!(published(&said) <= 3.0 + 1.0, "{said:?}");
    drop(third);
    ensure!(second.told().await? == "-third");

    // 200 channels at once, of all nodes.
    let mut many = Pusher::connect_to(&here).await?;
    for number in 0..200 {
        many.subscribe(&format!("left-{number}")).await?;
    }
    let before = bus_messages::at_rest(&cluster).await;
    drop(many);
    eventually("the channels are left", async || {
        let found = Cluster::inspect_channel(&cluster.node("n1").admin, "left-199").await;
        let followers = found.ok()?["state"]["followers"].as_array().cloned();
        followers.is_none_or(|all| all.is_empty()).then_some(())
    })
    .await;
    let said = bus_messages::since(&cluster, &before).await;
    println!("200 channels are left: {said:?}");
    let nodes = cluster.nodes.len() as f64;
    let said = published(&said);
    assert!(
        0.0 < said && said <= nodes,
        "one for each node that is concerned"
    );
    Ok(())
}

/// Batches and single events in turn, through both gateways, heard at both.
#[tokio::test]
async fn batches_and_single_events_stay_in_order_across_gateways() -> Result<()> {
    let _alone = ALONE.lock().await;
    const EVENTS: usize = 10_000;
    let cluster = Cluster::start().await?;
    let channels = vec!["ordered".to_owned()];
    let mut followers = Vec::new();
    for gateway in cluster.gateways.values() {
        followers.push(Follower::by_socket(&gateway.clients, &channels).await?);
        followers.push(Follower::by_stream(&gateway.clients, &channels).await?);
    }
    let mut publishers = Vec::new();
    for gateway in cluster.gateways.values() {
        publishers.push(Publisher::connect(&gateway.clients).await?);
    }
    let all: Vec<String> = (0..EVENTS).map(|number| number.to_string()).collect();
    // 11 at a time: ten by one gateway, one by the other, and then the other way round.
    for (round, events) in all.chunks(11).enumerate() {
        let (one, other) = (round % 2, (round + 1) % 2);
        let (batch, single) = events.split_at(events.len().min(10));
        publishers[one].publish_batch("ordered", batch).await?;
        if let [single] = single {
            publishers[other].publish("ordered", single).await?;
        }
    }
    publishers[0].publish("ordered", END).await?;
    for follower in followers {
        let got = &follower.received().await?["ordered"];
        assert_eq!(got.len(), EVENTS, "nothing lost, nothing twice");
        let inversions = got.iter().zip(&all).filter(|(got, sent)| got != sent);
        assert_eq!(inversions.count(), 0);
    }
    Ok(())
}

/// Resident memory of a process, bytes.
fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.context("VmRSS")?.parse::<u64>()? * 1_024)
}

/// How often one that is left alone says something: who is silent for two minutes is asked
/// whether it is there, and closed if it does not answer.
const SPEAKS: Duration = Duration::from_secs(60);

/// Members that are told everything and look at nothing, but say now and then that they
/// are there. They have a thread of their own: whoever is measured does not wait until
/// all of them have read.
struct Crowd(mpsc::UnboundedSender<std::net::TcpStream>);

impl Crowd {
    fn gather() -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (crowd, mut come) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            runtime.block_on(async {
                let mut members = JoinSet::new();
                while let Some(socket) = come.recv().await {
                    members.spawn(stay(socket));
                }
            });
        });
        Ok(Self(crowd))
    }

    fn take(&self, member: Member) -> Result<()> {
        let socket = member.client.into_socket().into_inner();
        Ok(self.0.send(socket.into_std()?)?)
    }
}

async fn stay(socket: std::net::TcpStream) -> Result<()> {
    let mut socket = TcpStream::from_std(socket)?;
    let text = br#"{"event":"pusher:pong","data":{}}"#;
    // A text, masked with zeros (RFC 6455, section 5.2).
    let mut frame = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(text);
    let (mut reading, mut writing) = socket.split();
    let mut buffer = vec![0; 4 * 1_024];
    let read = async {
        while reading.read(&mut buffer).await? > 0 {}
        anyhow::Ok(())
    };
    let speak = async {
        loop {
            tokio::time::sleep(SPEAKS).await;
            writing.write_all(&frame).await?;
        }
    };
    tokio::select! {
        done = read => done,
        done = speak => done,
    }
}

#[tokio::test]
async fn whoever_joins_a_crowd_is_acknowledged_soon() -> Result<()> {
    let _alone = ALONE.lock().await;
    let (members, more, pause) = if cfg!(debug_assertions) {
        (300, 10, Duration::from_millis(50))
    } else {
        (9_800, 200, Duration::from_millis(500))
    };
    let cluster = Cluster::start().await?;
    cluster.protected().await;
    let gateways = ["g1", "g2"].map(|name| cluster.gateway(name).clients.clone());
    let room = "presence-crowd";
    let crowd = Crowd::gather()?;
    let one = Member::join(&gateways[0], room, "one").await?;
    crowd.take(one)?;
    let shown = Cluster::inspect_channel(&cluster.gateway("g1").admin, room).await?;
    let owner = shown["owner"]["id"]
        .as_str()
        .context("an owner")?
        .to_owned();
    let owner = cluster.node(&owner).pid();
    let before = resident(owner)?;
    let began = Instant::now();
    for group in (1..members).collect::<Vec<usize>>().chunks(25) {
        let join = |number: &usize| {
            let (gateway, user) = (&gateways[number % 2], format!("u{number}"));
            async move { Member::join(gateway, room, &user).await }
        };
        for member in try_join_all(group.iter().map(join)).await? {
            crowd.take(member)?;
        }
    }
    let each = resident(owner)?.saturating_sub(before) / members as u64;
    println!(
        "{members} members in {:?}: {each} bytes each at the owner",
        began.elapsed()
    );
    let mut took = Durations::default();
    for number in 0..more {
        tokio::time::sleep(pause).await;
        let client = Pusher::connect_to(&gateways[number % 2]).await?;
        let member = Member::enter(client, room, &format!("more{number}")).await?;
        took.push(member.waited);
        assert_eq!(member.users.len(), members + number + 1);
        crowd.take(member)?;
    }
    println!("joining a crowd: {took}");
    assert!(cfg!(debug_assertions) || took.percentile(99) <= Duration::from_millis(50));
    assert!(cfg!(debug_assertions) || each <= 400, "{each}");
    Ok(())
}
