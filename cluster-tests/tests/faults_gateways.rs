//! Real gateways that die, stand still and come back: when the cluster declares
//! them gone, and what they do about it when they live.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: gateways stand still for some time"
)]

use std::time::Duration;

use anyhow::{Context, Result};
use cluster_tests::client::{get, metric_at};
use cluster_tests::cluster::Cluster;
use cluster_tests::eventually;
use cluster_tests::traffic::{END, Follower, Publisher};
use rustix::process::Signal;
use tokio::time::Instant;

/// Longer than a gateway may be silent, and shorter than a publish may take.
const STANDS: Duration = Duration::from_secs(4);
/// Within which a dead gateway's interest has gone: two seconds of silence, a
/// report and a decision, on a machine that does other things as well.
const BURIED: Duration = Duration::from_secs(5);

/// What all series of a metric are together, on all nodes.
async fn at_nodes(cluster: &Cluster, name: &str) -> Result<f64> {
    let mut sum = 0.0;
    for node in cluster.nodes.values() {
        let page = get(&node.admin, "/metrics").await?.body;
        let series = page.lines().filter(|line| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            rest.starts_with([' ', '{'])
        });
        for line in series {
            let value = line.rsplit(' ').next().context("a value")?;
            sum += value.parse::<f64>()?;
        }
    }
    Ok(sum)
}

/// How often nodes have heard that a gateway is gone: every node of every one.
async fn gone(cluster: &Cluster) -> Result<f64> {
    at_nodes(cluster, "dunlin_gateways_gone_total").await
}

/// Pairs of gateway and channel that owners know of.
async fn interest(cluster: &Cluster) -> Result<f64> {
    at_nodes(cluster, "dunlin_shard_interest").await
}

#[tokio::test]
async fn a_gateway_that_is_killed_is_declared_gone_with_all_that_it_wanted() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let channels: Vec<String> = (0..40).map(|n| format!("room-{n}")).collect();
    let _here = Follower::by_stream(&cluster.gateway("g1").clients, &channels[..1]).await?;
    let _there = Follower::by_stream(&cluster.gateway("g2").clients, &channels).await?;
    eventually("owners know who wants what", async || {
        (interest(&cluster).await.ok()? == 41.0).then_some(())
    })
    .await;
    cluster.kill_gateway("g2").await?;
    let killed = Instant::now();
    eventually("every node hears that it is gone", async || {
        (gone(&cluster).await.ok()? == 3.0).then_some(())
    })
    .await;
    let buried = killed.elapsed();
    println!("declared gone after {buried:?}");
    assert!(buried < BURIED, "{buried:?}");
    eventually("owners know of the other gateway only", async || {
        (interest(&cluster).await.ok()? == 1.0).then_some(())
    })
    .await;
    // One that comes back in its place is another life, and is heard.
    cluster.add_gateway("g2", &[]).await?;
    cluster.ready().await;
    let back = Follower::by_stream(&cluster.gateway("g2").clients, &channels[..1]).await?;
    let mut publisher = Publisher::connect(&cluster.gateway("g1").clients).await?;
    publisher.publish(&channels[0], "hello").await?;
    publisher.publish(&channels[0], END).await?;
    assert_eq!(
        back.received().await?,
        [(channels[0].clone(), vec!["hello".to_owned()])].into()
    );
    assert_eq!(gone(&cluster).await?, 3.0, "nobody else");
    Ok(())
}

/// It lives after all: its clients stay, and are given everything once.
#[tokio::test]
async fn a_gateway_that_stood_still_goes_on_in_another_life() -> Result<()> {
    let cluster = Cluster::start().await?;
    let gateway = cluster.gateway("g2");
    let channels: Vec<String> = (0..8).map(|n| format!("room-{n}")).collect();
    let following = Follower::by_stream(&gateway.clients, &channels).await?;
    let mut here = Publisher::connect(&gateway.clients).await?;
    let mut there = Publisher::connect(&cluster.gateway("g1").clients).await?;
    let mut sent: Vec<String> = Vec::new();
    let mut numbers = 0..;
    let mut send = async |publisher: &mut Publisher, count: usize| {
        for number in numbers.by_ref().take(count) {
            let data = number.to_string();
            for channel in &channels {
                publisher.publish(channel, &data).await?;
            }
            sent.push(data);
        }
        anyhow::Ok(())
    };
    send(&mut here, 5).await?;
    gateway.signal(Signal::STOP)?;
    let stopped = Instant::now();
    eventually("the other nodes declare it gone", async || {
        (gone(&cluster).await.ok()? == 3.0).then_some(())
    })
    .await;
    // Nobody sends it this any more.
    send(&mut there, 5).await?;
    tokio::time::sleep_until(stopped + STANDS).await;
    gateway.signal(Signal::CONT)?;
    eventually("it has begun another life", async || {
        let lives = metric_at(&gateway.admin, "dunlin_declared_gone_total", &[]);
        (lives.await.ok()? == 1.0).then_some(())
    })
    .await;
    send(&mut here, 5).await?;
    send(&mut there, 5).await?;
    for channel in &channels {
        there.publish(channel, END).await?;
    }
    let all = channels
        .iter()
        .map(|channel| (channel.clone(), sent.clone()));
    assert_eq!(following.received().await?, all.collect());
    assert_eq!(gone(&cluster).await?, 3.0, "once");
    Ok(())
}

/// Everybody is silent then, and everybody comes back.
#[tokio::test]
async fn nobody_is_declared_gone_because_the_bus_was_away() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.nats.kill();
    tokio::time::sleep(STANDS).await;
    cluster.nats.restart().await?;
    eventually("both gateways publish again", async || {
        for gateway in cluster.gateways.values() {
            let mut publisher = Publisher::connect(&gateway.clients).await.ok()?;
            publisher.publish("room", "hello").await.ok()?;
        }
        Some(())
    })
    .await;
    // As long as it takes from silence to a decision, and two seconds more.
    tokio::time::sleep(BURIED + Duration::from_secs(2)).await;
    assert_eq!(gone(&cluster).await?, 0.0);
    // Nor does a node give anything away: it would help nobody.
    assert_eq!(at_nodes(&cluster, "dunlin_shard_moves_total").await?, 0.0);
    for gateway in cluster.gateways.values() {
        let lives = metric_at(&gateway.admin, "dunlin_declared_gone_total", &[]).await?;
        assert_eq!(lives, 0.0);
    }
    Ok(())
}
