//! A cluster that grows while it is used.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: tests start processes and wait for them"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use cluster_tests::client::metric_at;
use cluster_tests::cluster::Cluster;
use cluster_tests::traffic::{END, Follower, Publisher, Received};
use cluster_tests::{SETTLES, eventually, eventually_within};

/// Publishes by all gateways in turn until it is told to stop. What it has
/// published, in the only right order.
async fn publish_until(
    gateways: Vec<String>,
    channels: Vec<String>,
    stop: Arc<AtomicBool>,
) -> Result<Received> {
    let mut publishers = Vec::new();
    for gateway in &gateways {
        publishers.push(Publisher::connect(gateway).await?);
    }
    let mut published = Received::new();
    let (count, mut number) = (publishers.len(), 0);
    while !stop.load(Ordering::Relaxed) {
        let channel = &channels[number % channels.len()];
        let data = number.to_string();
        publishers[number % count].publish(channel, &data).await?;
        published.entry(channel.clone()).or_default().push(data);
        number += 1;
    }
    Ok(published)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_and_gateways_are_added_while_publishing_goes_on() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let channels: Vec<String> = (0..7).map(|n| format!("growing-{n}")).collect();
    let mut from_the_start = Vec::new();
    for gateway in cluster.gateways.values() {
        from_the_start.push(Follower::by_socket(&gateway.clients, &channels).await?);
        from_the_start.push(Follower::by_stream(&gateway.clients, &channels).await?);
    }
    let old = |name: &str| cluster.gateway(name).clients.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let publishing = publish_until(
        vec![old("g1"), old("g2")],
        channels.clone(),
        Arc::clone(&stop),
    );
    let publishing = tokio::spawn(publishing);

    let mut later = Vec::new();
    for (node, gateway) in [("n4", "g3"), ("n5", "g4")] {
        cluster.add_node(node, &[]).await?;
        cluster.add_gateway(gateway, &[]).await?;
        cluster.ready().await;
        let gateway = &cluster.gateway(gateway).clients;
        later.push(Follower::by_socket(gateway, &channels).await?);
        later.push(Follower::by_stream(gateway, &channels).await?);
    }
    eventually("all nodes vote", async || {
        let nodes = Cluster::inspect(&cluster.node("n5").admin, "nodes").await;
        let nodes = nodes.ok()?["nodes"].as_array()?.clone();
        let votes = nodes.iter().filter(|node| node["role"] != "learner");
        (votes.count() == 5).then_some(())
    })
    .await;
    for name in ["n1", "n2", "n3", "n4", "n5"] {
        let gateway = &cluster.gateway("g4").admin;
        let admin = &cluster.node(name).admin;
        eventually_within(SETTLES, &format!("{name} owns its share"), async || {
            let node = Cluster::inspect_one(gateway, "nodes", name).await.ok()?;
            let held = node["shards"].as_u64()?;
            let served = metric_at(admin, "dunlin_shards_owned", &[]).await.ok()?;
            ((204..=205).contains(&held) && served == held as f64).then_some(())
        })
        .await;
    }
    cluster.protected().await;
    stop.store(true, Ordering::Relaxed);
    let mut expected = publishing.await??;

    // The new gateways publish as well as any.
    for name in ["g3", "g4"] {
        let mut publisher = Publisher::connect(&cluster.gateway(name).clients).await?;
        for channel in &channels {
            publisher.publish(channel, name).await?;
            let published = expected.entry(channel.clone()).or_default();
            published.push(name.to_owned());
        }
    }
    let mut publisher = Publisher::connect(&cluster.gateway("g3").clients).await?;
    for channel in &channels {
        publisher.publish(channel, END).await?;
    }
    for follower in from_the_start {
        assert!(follower.received().await? == expected, "all of it");
    }
    for follower in later {
        for (channel, got) in follower.received().await? {
            assert!(expected[&channel].ends_with(&got), "all since it came");
            assert!(got.len() > 2, "{channel}: it came while publishing went on");
        }
    }
    Ok(())
}
