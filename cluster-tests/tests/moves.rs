//! Shards move as planned, under load: nodes are restarted one after another,
//! drained, and added. Nothing fails, and nobody waits for long. `make soak` sets
//! `SOAK`, for the load and the counts of the bars.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: tests start processes and wait for them"
)]

use std::time::Duration;

use anyhow::{Context, Result};
use cluster_tests::client::metric_at;
use cluster_tests::cluster::Cluster;
use cluster_tests::probes::Probes;
use cluster_tests::process::run;
use cluster_tests::verify::{Load, Verify, is_soak};
use cluster_tests::{SETTLES, eventually, eventually_within};
use serde_json::Value;
use tokio::sync::Mutex;

/// What a move may add to a publication. The bar is 250 ms, of which `make soak`
/// speaks; this is for machines that are busy.
fn delay_max() -> Duration {
    Duration::from_millis(if is_soak() { 250 } else { 3_000 })
}

/// A machine with two cores has enough with one cluster.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Channels of each node that are probed.
const PROBED: usize = 4;

/// How many shards a node owns, as another process knows it.
async fn owned(admin: &str, node: &str) -> Option<u64> {
    let node = Cluster::inspect_one(admin, "nodes", node).await.ok()?;
    node["shards"].as_u64()
}

/// Waits until every node owns its share.
async fn spread(cluster: &Cluster) {
    let share = 1_024 / cluster.nodes.len() as u64;
    let admin = &cluster.gateway("g1").admin;
    eventually_within(SETTLES, "every node owns its share", async || {
        for name in cluster.nodes.keys() {
            if owned(admin, name).await? < share {
                return None;
            }
        }
        Some(())
    })
    .await;
}

async fn probes(cluster: &Cluster) -> Result<Probes> {
    let mut channels = Vec::new();
    for node in cluster.nodes.keys() {
        channels.extend(cluster.channels_of(node, PROBED).await?);
    }
    let (g1, g2) = (cluster.gateway("g1"), cluster.gateway("g2"));
    Probes::start(&g1.clients, &g2.clients, channels).await
}

/// Says which shards waited for leases, for nobody released them: the reason, where
/// somebody has waited for long.
fn tell_waits(cluster: &Cluster, after: &str) {
    for (name, node) in &cluster.nodes {
        let log = node.log();
        for line in log.lines().filter(|line| line.contains("takes over")) {
            println!("{name}, when {after} was restarted: {line}");
        }
    }
}

/// Every probe was answered, and how long the slowest took.
async fn judge(what: &str, probes: Probes) -> Result<()> {
    let took = probes.end().await?;
    let at = |permille: usize| took[(took.len() - 1) * permille / 1_000].heard;
    println!(
        "{what}: {} publications took {:?} (p50), {:?} (p99), {:?} (longest)",
        took.len(),
        at(500),
        at(990),
        at(1_000)
    );
    for slow in took.iter().rev().take(8) {
        println!("  {slow:?}");
    }
    assert!(at(1_000) <= delay_max(), "for too long");
    Ok(())
}

/// With `OLDER_BINARY` each is of an earlier version until it is restarted, and the
/// gateways stay so.
#[tokio::test]
async fn nodes_are_restarted_one_after_another_and_nobody_notices() -> Result<()> {
    let _alone = ALONE.lock().await;
    let mut cluster = Cluster::start_older().await?;
    cluster.protected().await;
    let verify = Verify::start(&cluster, Load::of_this_run(), &[]).await?;
    let probes = probes(&cluster).await?;
    for _ in 0..if is_soak() { 5 } else { 1 } {
        for name in ["n1", "n2", "n3"] {
            let mut node = cluster.nodes.remove(name).context("it runs")?;
            let ended = node.terminate().await;
            let status = ended.with_context(|| node.log())?;
            assert!(status.success(), "{status}: {}", node.log());
            let log = node.log();
            assert!(log.contains("nothing left that others could have"), "{log}");
            cluster.add_node(name, &[]).await?;
            cluster.ready().await;
            spread(&cluster).await;
            cluster.protected().await;
            tell_waits(&cluster, name);
        }
    }
    judge("restarted one after another", probes).await?;
    let verdict = verify.judge().await?;
    println!("{:#}", verdict.report);
    verdict.is_kept();
    verdict.has_no_gaps();
    let retried = &verdict.report["publish_retries"];
    assert_eq!(retried.as_u64(), Some(0), "no publish has failed");
    Ok(())
}

#[tokio::test]
async fn a_leader_that_was_drained_is_killed_and_no_channel_waits() -> Result<()> {
    let _alone = ALONE.lock().await;
    let mut cluster = Cluster::start().await?;
    cluster.protected().await;
    let admin = cluster.gateway("g1").admin.clone();
    let nodes = Cluster::inspect(&admin, "nodes").await?;
    let leads = |node: &&Value| node["role"] == "leader";
    let leader = nodes["nodes"]
        .as_array()
        .context("a list")?
        .iter()
        .find(leads);
    let leader = leader.context("a leader")?["name"]
        .as_str()
        .context("a name")?
        .to_owned();
    let probes = probes(&cluster).await?;

    let at = cluster.node(&leader).admin.clone();
    let drained = run(["nodes", "drain", &leader, "--admin", &at]).await?;
    assert!(drained.status.success(), "{drained:?}");
    assert!(drained.stdout.contains("owns 0 shards"), "{drained:?}");
    let known = Cluster::inspect_one(&admin, "nodes", &leader).await?;
    assert_eq!(known["role"], "leader, drains");
    judge("drained", probes).await?;

    // It stands by for nothing either.
    cluster.protected().await;
    let mut channels = Vec::new();
    for node in cluster.nodes.keys().filter(|name| **name != leader) {
        channels.extend(cluster.channels_of(node, PROBED).await?);
    }
    let (g1, g2) = (cluster.gateway("g1"), cluster.gateway("g2"));
    let probes = Probes::start(&g1.clients, &g2.clients, channels).await?;
    cluster.kill_node(&leader).await?;
    eventually("there is another leader", async || {
        for node in cluster.nodes.values() {
            let leads = metric_at(&node.admin, "dunlin_raft_is_leader", &[])
                .await
                .ok()?;
            if leads > 0.0 {
                return Some(());
            }
        }
        None
    })
    .await;
    // Longer than all leases.
    tokio::time::sleep(Duration::from_secs(4)).await;
    judge("a leader killed that owned nothing", probes).await?;

    cluster.add_node(&leader, &[]).await?;
    cluster.ready().await;
    spread(&cluster).await;
    Ok(())
}
