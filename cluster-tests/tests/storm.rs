//! A gateway is killed with all its clients, and they come to another one at once:
//! each gets what it missed, those who were there notice nothing, and on the bus
//! there is one question for each channel.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use cluster_tests::client::{EventStream, Pusher, metric_at};
use cluster_tests::cluster::Cluster;
use cluster_tests::traffic::Publisher;
use futures_util::future::try_join_all;
use proto::bus::{Bus, NatsBus, NatsOptions, Subscription};
use proto::codec;
use proto::message::{Message, Request, Since};
use proto::subject::{Address, Subject};

const CHANNELS: usize = 20;
const CLIENTS: usize = 25;
const PUBLICATIONS: usize = 10;

/// Hears what gateways ask a node.
async fn overhear(bus: &NatsBus, node: &str) -> Result<Subscription> {
    let address = Address::Node(node.parse()?);
    let cluster = "dunlin".parse()?;
    Ok(bus.subscribe(Subject { cluster, address }).await?)
}

/// Questions after what was missed, by channel, that a gateway has asked so far.
async fn questions(heard: &mut Subscription, gateway: &str) -> Result<BTreeMap<String, u32>> {
    let mut questions = BTreeMap::new();
    let quiet = std::time::Duration::from_millis(500);
    while let Ok(Some(bytes)) = tokio::time::timeout(quiet, heard.next()).await {
        let Message::Requests(requests) = codec::decode(&bytes)? else {
            continue;
        };
        if requests.from.id.as_str() != gateway {
            continue;
        }
        for request in requests.requests {
            if let Request::Join(join) = request
                && matches!(join.since, Since::Cursor(_))
            {
                let channel = join.key.channel.to_string();
                *questions.entry(channel).or_default() += 1;
            }
        }
    }
    Ok(questions)
}

fn data(block: &str) -> Option<String> {
    let data = block.lines().find_map(|line| line.strip_prefix("data: "));
    data.map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_killed_gateway_come_to_another_at_once() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.protected().await;
    let g1 = cluster.gateway("g1").clients.clone();
    let (g2, admin) = {
        let gateway = cluster.gateway("g2");
        (gateway.clients.clone(), gateway.admin.clone())
    };
    let mut lost = Vec::new();
    for number in 0..CHANNELS * CLIENTS {
        let channel = format!("room-{}", number % CHANNELS);
        let mut stream = EventStream::open_at(&g1, &format!("channel={channel}"), "").await?;
        let block = stream.block().await?;
        let cursor = block.lines().find_map(|line| line.strip_prefix("id: "));
        let cursor = cursor.context("an id")?.to_owned();
        lost.push((channel, cursor, stream));
    }
    let mut there = Pusher::connect_to(&g2).await?;
    there.subscribe("elsewhere").await?;
    cluster.kill_gateway("g1").await?;

    let mut publisher = Publisher::connect(&g2).await?;
    for number in 0..PUBLICATIONS {
        for channel in 0..CHANNELS {
            let channel = format!("room-{channel}");
            publisher.publish(&channel, &number.to_string()).await?;
        }
    }
    let bus = NatsBus::connect(NatsOptions {
        servers: cluster.nats.url(),
        credentials: None,
        ca: None,
        name: "a test".into(),
    });
    let bus = bus.await?;
    let mut heard = Vec::new();
    for node in cluster.nodes.keys() {
        heard.push(overhear(&bus, node).await?);
    }
    // Beside the storm, for those who are there.
    let noise = async {
        for number in 0..100 {
            publisher.publish("elsewhere", &number.to_string()).await?;
        }
        anyhow::Ok(())
    };
    let resumed = lost.into_iter().map(|(channel, cursor, _lost)| {
        let g2 = &g2;
        async move {
            let query = format!("channel={channel}");
            let header = format!("last-event-id: {cursor}\r\n");
            let mut stream = EventStream::open_at(g2, &query, &header).await?;
            let mut got = Vec::new();
            while got.len() < PUBLICATIONS {
                let block = stream.block().await?;
                ensure!(!block.contains("event: gap"), "{block}");
                got.extend(data(&block));
            }
            let expected: Vec<String> = (0..PUBLICATIONS).map(|n| n.to_string()).collect();
            ensure!(got == expected, "{got:?}");
            Ok(stream)
        }
    });
    let (published, streams) = tokio::join!(noise, try_join_all(resumed));
    published?;
    let mut streams = streams?;
    for number in 0..100 {
        assert_eq!(there.frame().await?["data"], number.to_string());
    }
    let mut asked = BTreeMap::new();
    for heard in &mut heard {
        asked.append(&mut questions(heard, "g2").await?);
    }
    assert_eq!(asked.len(), CHANNELS, "{asked:?}");
    // A second one for whoever came while the first was under way and was further
    // behind would be fair; nobody was.
    assert!(asked.values().all(|count| *count == 1), "{asked:?}");
    let recovered = metric_at(&admin, "dunlin_recoveries_total", &["recovered"]).await?;
    assert_eq!(recovered, (CHANNELS * CLIENTS) as f64);
    // And they go on with everybody else.
    publisher.publish("room-0", "last").await?;
    let block = streams.swap_remove(0).block().await?;
    assert_eq!(data(&block).as_deref(), Some("last"), "{block}");
    Ok(())
}
