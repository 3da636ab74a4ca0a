//! Many channels on two gateways: what they cost at the owners and at NATS.
//!
//! `CHANNELS` says how many, 10,000 unless set; `make soak` runs it with 100,000
//! in a release build. The process that connects needs as many open files as
//! there are connections.

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use cluster_tests::client::{Pusher, metric_at};
use cluster_tests::cluster::Cluster;
use cluster_tests::eventually;
use cluster_tests::process::Dev;
use futures_util::future::try_join_all;
use serde_json::json;

/// Channels that each connection follows.
const PER_CONNECTION: usize = 200;
/// The most that a channel may cost: the bar of 512 bytes at its owner, and as
/// much at its standby.
const BYTES_PER_CHANNEL_MAX: f64 = 2.0 * 512.0;
/// What does not grow with channels and would drown few of them: allocator
/// slack, buffers of the bus, stacks that were touched for the first time.
const BYTES_FIXED: f64 = 3.0 * 1_024.0 * 1_024.0;

fn channels() -> Result<usize> {
    match std::env::var_os("CHANNELS") {
        None => Ok(10_000),
        Some(text) => Ok(text.to_str().context("CHANNELS is a number")?.parse()?),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_cost_the_owners_little_and_nats_nothing() -> Result<()> {
    let count = channels()?;
    let cluster = Cluster::start().await?;
    // Ten channels first: what everything costs that is there only once.
    let mut clients = follow(&cluster, 0, 10).await?;
    let subscriptions = subscriptions(&cluster).await?;
    ensure!(
        subscriptions.iter().all(|count| *count <= 5.0),
        "{subscriptions:?}"
    );
    let before = rss(&cluster)?;
    let mut from = 10;
    while from < count {
        let until = (from + 20 * PER_CONNECTION).min(count);
        clients.extend(follow(&cluster, from, until).await?);
        from = until;
    }
    eventually("the owners count them all", async || {
        let counts = cluster.nodes.values().map(async |node| -> Result<f64> {
            let page = cluster_tests::client::get(&node.admin, "/metrics").await?;
            Ok(sum(&page.body, "dunlin_shard_interest{"))
        });
        let interest: f64 = try_join_all(counts).await.ok()?.iter().sum();
        (interest == 2.0 * count as f64).then_some(())
    })
    .await;
    let grown = rss(&cluster)?.saturating_sub(before) as f64;
    let each = grown / count as f64;
    println!(
        "{count} channels: {each:.0} bytes each at owners and standbys, {subscriptions:?} subscriptions"
    );
    ensure!(
        grown <= BYTES_FIXED + BYTES_PER_CHANNEL_MAX * count as f64,
        "{each} bytes per channel"
    );
    if count >= 100_000 {
        ensure!(each <= BYTES_PER_CHANNEL_MAX, "{each} bytes per channel");
    }
    ensure!(
        self::subscriptions(&cluster).await? == subscriptions,
        "subscriptions do not depend on channels"
    );
    drop(clients);
    Ok(())
}

/// Each of the channels followed once on each gateway.
async fn follow(cluster: &Cluster, from: usize, until: usize) -> Result<Vec<Pusher>> {
    let mut connections = Vec::new();
    for gateway in cluster.gateways.values() {
        for start in (from..until).step_by(PER_CONNECTION) {
            let mine = start..(start + PER_CONNECTION).min(until);
            connections.push(connect(gateway, mine));
        }
    }
    try_join_all(connections).await
}

async fn connect(gateway: &Dev, channels: Range<usize>) -> Result<Pusher> {
    let mut client = Pusher::connect(gateway).await?;
    for number in channels.clone() {
        let data = json!({ "channel": format!("room-{number}") });
        let subscribe = json!({ "event": "pusher:subscribe", "data": data });
        client.send(&subscribe).await?;
    }
    for _ in channels {
        let frame = client.frame().await?;
        ensure!(
            frame["event"] == "pusher_internal:subscription_succeeded",
            "{frame}"
        );
    }
    Ok(client)
}

/// Subscriptions at the bus, of every process.
async fn subscriptions(cluster: &Cluster) -> Result<Vec<f64>> {
    let nodes = cluster.nodes.values().map(|node| &node.admin);
    let gateways = cluster.gateways.values().map(|gateway| &gateway.admin);
    let counts = nodes
        .chain(gateways)
        .map(|admin| metric_at(admin, "dunlin_bus_subscriptions", &[]));
    try_join_all(counts).await
}

/// Resident memory of all nodes together.
fn rss(cluster: &Cluster) -> Result<u64> {
    let mut bytes = 0;
    for node in cluster.nodes.values() {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", node.pid()))?;
        let pages: u64 = statm
            .split_whitespace()
            .nth(1)
            .context("resident pages")?
            .parse()?;
        bytes += pages * rustix::param::page_size() as u64;
    }
    Ok(bytes)
}

fn sum(page: &str, family: &str) -> f64 {
    let lines = page.lines().filter(|line| line.starts_with(family));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}
