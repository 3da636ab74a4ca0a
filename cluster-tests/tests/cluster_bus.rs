//! A cluster whose nats-server is away: at the start, and later.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: tests start processes and wait for them"
)]

use std::time::Instant;

use anyhow::Result;
use cluster_tests::client::{Answer, get};
use cluster_tests::cluster::{BUS_HEALS, Cluster};
use cluster_tests::eventually;
use cluster_tests::nats::{self, NatsServer};
use cluster_tests::traffic::{END, Follower, Publisher};

async fn readiness(admin: &str) -> Option<Answer> {
    get(admin, "/readyz").await.ok()
}

/// Waits until every process says that it is not ready because of the bus.
async fn all_miss_the_bus(cluster: &Cluster) -> Result<()> {
    for (name, admin) in cluster.admins() {
        eventually(&format!("{name} misses the bus"), async || {
            let ready = readiness(admin).await?;
            (ready.status == 503 && ready.body.contains("the bus is away")).then_some(())
        })
        .await;
        assert_eq!(get(admin, "/livez").await?.status, 200, "{name} lives");
    }
    let nodes = cluster.nodes.values().map(|node| node.log());
    let gateways = cluster.gateways.values().map(|gateway| gateway.log());
    for log in nodes.chain(gateways) {
        let told = ["the bus is not reached: ", "the bus is away: "];
        assert!(told.iter().any(|words| log.contains(words)), "{log}");
    }
    Ok(())
}

/// Every gateway publishes, every gateway hears all of it.
async fn everything_works(cluster: &Cluster, prefix: &str) -> Result<()> {
    let channels: Vec<String> = (0..6).map(|n| format!("{prefix}-{n}")).collect();
    let mut followers = Vec::new();
    let mut publishers = Vec::new();
    for gateway in cluster.gateways.values() {
        followers.push(Follower::by_socket(&gateway.clients, &channels).await?);
        publishers.push(Publisher::connect(&gateway.clients).await?);
    }
    for channel in &channels {
        for (number, publisher) in publishers.iter_mut().enumerate() {
            publisher.publish(channel, &number.to_string()).await?;
        }
        publishers[0].publish(channel, END).await?;
    }
    for follower in followers {
        for (channel, got) in follower.received().await? {
            assert_eq!(got, ["0", "1"], "{channel}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_cluster_starts_without_its_bus_and_is_ready_when_that_is_there() -> Result<()> {
    let nats = NatsServer::stopped(&nats::binary()?, "")?;
    let mut cluster = Cluster::on(nats, &["n1", "n2", "n3"]).await?;
    cluster.add_all().await?;
    all_miss_the_bus(&cluster).await?;
    cluster.nats.restart().await?;
    cluster.ready().await;
    everything_works(&cluster, "at-last").await
}

/// Those who follow stay connected, and go on to hear without asking again.
#[tokio::test]
async fn a_bus_that_was_away_is_used_again_within_ten_seconds() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let channels = vec!["before".to_owned(), "between".to_owned()];
    let mut followers = Vec::new();
    for gateway in cluster.gateways.values() {
        followers.push(Follower::by_socket(&gateway.clients, &channels).await?);
        followers.push(Follower::by_stream(&gateway.clients, &channels).await?);
    }
    let mut publishers = Vec::new();
    for gateway in cluster.gateways.values() {
        publishers.push(Publisher::connect(&gateway.clients).await?);
    }
    for channel in &channels {
        publishers[0].publish(channel, "1").await?;
    }
    for round in 2..4 {
        cluster.nats.kill();
        all_miss_the_bus(&cluster).await?;
        let refused = publishers[0].try_publish("lost", "x").await?;
        assert_eq!(refused.status, 503, "{refused:?}");
        assert!(
            ["unavailable", "unknown_outcome"].contains(&refused.code().as_str()),
            "{refused:?}"
        );
        cluster.nats.restart().await?;
        let began = Instant::now();
        for (publisher, channel) in publishers.iter_mut().zip(&channels) {
            let data = round.to_string();
            while publisher.try_publish(channel, &data).await?.status != 200 {
                assert!(began.elapsed() < BUS_HEALS, "nothing is published");
            }
        }
        everything_works(&cluster, &format!("round-{round}")).await?;
        let took = began.elapsed();
        assert!(took < BUS_HEALS, "it took {took:?}");
        cluster.ready().await;
    }
    for channel in &channels {
        publishers[1].publish(channel, END).await?;
    }
    for follower in followers {
        for (channel, mut got) in follower.received().await? {
            // A try whose outcome was unknown may have got through.
            got.dedup();
            assert_eq!(got, ["1", "2", "3"], "{channel}");
        }
    }
    Ok(())
}
