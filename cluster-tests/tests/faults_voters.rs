//! What a cluster survives as a whole: a voter that cannot write any more, two
//! of five nodes at once, and with a witness one of two. `dunlin verify` loads
//! and judges, as in `faults_nodes.rs`. `make soak` sets `SOAK`, for the load and
//! the counts of the bars.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: faults last for some time"
)]

use std::time::Duration;

use anyhow::{Context, Result};
use cluster_tests::cluster::{Cluster, is_ready};
use cluster_tests::disk::SmallDisk;
use cluster_tests::nats::NatsServer;
use cluster_tests::probes::Probes;
use cluster_tests::process::run;
use cluster_tests::traffic::Publisher;
use cluster_tests::verify::{Load, Verdict, Verify, is_soak, times};
use cluster_tests::{eventually, skipped};
use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::Mutex;

/// Far more than a node needs at first.
const DISK_BYTES: u64 = 32 * 1_024 * 1_024;
/// How a process ends that cannot read or write.
const IO: i32 = 74;
/// Longer than all leases.
const LEASES: Duration = Duration::from_secs(4);
/// Channels of each node that are probed.
const PROBED: usize = 4;

/// A machine with two cores has enough with one cluster.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn judged(what: &str, verify: Verify) -> Result<Verdict> {
    let verdict = verify.judge().await?;
    println!("{what}: {:#}", verdict.report);
    verdict.is_kept();
    Ok(verdict)
}

/// What has happened, as a node tells it; the oldest is forgotten.
struct Events(Vec<Value>);

impl Events {
    async fn of(admin: &str) -> Result<Self> {
        let mut events = Cluster::inspect(admin, "events").await?;
        let events = events["events"].as_array_mut().context("a list")?;
        Ok(Self(std::mem::take(events)))
    }

    fn versions(&self) -> impl Iterator<Item = u64> {
        self.0.iter().filter_map(|event| event["version"].as_u64())
    }

    /// How many shards something has happened to since a version of the map.
    fn since(&self, version: u64, kind: &str) -> u64 {
        let events = self.0.iter().zip(self.versions());
        let new = events.filter(|(event, at)| *at > version && event["kind"] == kind);
        new.filter_map(|(event, _)| event["shards"].as_u64()).sum()
    }
}

/// Three nodes, of which `n2` has a small disk.
async fn with_a_small_disk() -> Result<Option<(Cluster, SmallDisk)>> {
    let mut cluster = Cluster::on(NatsServer::start().await?, &["n1", "n2", "n3"]).await?;
    let Some(disk) = SmallDisk::mount(&cluster.data("n2"), DISK_BYTES).await? else {
        return Ok(None);
    };
    for name in ["n1", "n3"] {
        cluster.add_node(name, &[]).await?;
    }
    add_n2(&mut cluster, &disk).await?;
    for name in ["g1", "g2"] {
        cluster.add_gateway(name, &[]).await?;
    }
    cluster.ready().await;
    cluster.protected().await;
    Ok(Some((cluster, disk)))
}

async fn add_n2(cluster: &mut Cluster, disk: &SmallDisk) -> Result<()> {
    let command = cluster.node_command("n2", &[]).await?;
    let command = disk.within(&command)?;
    cluster.add_node_by("n2", command).await
}

/// Has much decided, until the node has ended that cannot write it down: another
/// one gives away its shards, and takes its share again.
async fn decide_until_it_ends(cluster: &mut Cluster) -> Result<()> {
    for _ in 0..20 {
        let at = cluster.node("n1").admin.clone();
        // It may end in the middle of this, and what it leads with it.
        let _ = run(["nodes", "drain", "n3", "--admin", &at]).await?;
        let mut node = cluster.nodes.remove("n3").context("it runs")?;
        node.terminate().await?;
        cluster.add_node("n3", &[]).await?;
        eventually("it is back", async || {
            is_ready(&cluster.node("n3").admin).await
        })
        .await;
        if cluster.node("n2").log().contains("shutting down") {
            return Ok(());
        }
    }
    anyhow::bail!("it goes on with a full disk: {}", cluster.node("n2").log())
}

#[tokio::test]
async fn a_voter_whose_disk_is_full_ends_and_says_so_and_the_others_go_on() -> Result<()> {
    let _alone = ALONE.lock().await;
    let Some((mut cluster, disk)) = with_a_small_disk().await? else {
        skipped("a full disk: this machine lets tests mount nothing");
        return Ok(());
    };
    let verify = Verify::start(&cluster, Load::of_this_run(), &[]).await?;
    for _ in 0..times(1, 5) {
        disk.fill()?;
        decide_until_it_ends(&mut cluster).await?;
        let mut node = cluster.nodes.remove("n2").context("it ran")?;
        let (status, log) = (node.ended().await?, node.log());
        assert_eq!(status.code(), Some(IO), "{log}");
        assert!(log.contains("No space left on device"), "{log}");
        assert!(log.contains("dunlin.redb"), "{log}");
        assert!(!log.contains("panicked"), "{log}");
        // The others have a majority, and all that it had.
        cluster.ready().await;
        cluster.protected().await;

        disk.clear()?;
        add_n2(&mut cluster, &disk).await?;
        cluster.ready().await;
        cluster.protected().await;
        let back = Cluster::inspect_one(&cluster.node("n1").admin, "nodes", "n2").await?;
        assert_ne!(back["role"], "learner", "its vote was kept: {back}");
    }
    judged("a full disk", verify).await?.has_no_gaps();
    Ok(())
}

/// The names of the nodes that a shard is in.
fn holders(shard: &Value) -> Result<Vec<&str>> {
    let standbys = shard["standbys"].as_array().context("known")?.iter();
    let owner = shard["owner"]["id"].as_str();
    let standbys = standbys.map(Value::as_str);
    standbys
        .chain([owner])
        .map(|name| name.context("a name"))
        .collect()
}

#[tokio::test]
async fn two_of_five_nodes_die_at_once() -> Result<()> {
    let _alone = ALONE.lock().await;
    let names = ["n1", "n2", "n3", "n4", "n5"];
    let mut cluster = Cluster::on(NatsServer::start().await?, &names).await?;
    for name in names {
        cluster.add_node(name, &[]).await?;
    }
    for name in ["g1", "g2"] {
        cluster.add_gateway(name, &[]).await?;
    }
    cluster.ready().await;
    cluster.protected().await;
    let verify = Verify::start(&cluster, Load::of_this_run(), &[]).await?;
    for turn in 0..times(1, 10) {
        let leader = cluster.leader().await?;
        let others = names.into_iter().filter(|name| *name != leader);
        let mut pair: Vec<&str> = others.skip(turn % 3).take(2).collect();
        if turn.is_multiple_of(2) {
            pair[1] = &leader;
        }
        let survivor = names.iter().find(|name| !pair.contains(name));
        let survivor = *survivor.context("three live")?;
        let admin = cluster.node(survivor).admin.clone();
        let map = Cluster::inspect(&admin, "shards").await?;
        let (mut lost, mut owned) = (0, 0);
        for shard in map["shards"].as_array().context("a list")? {
            let holders = holders(shard)?;
            let are_in = |name: &&str| pair.contains(name);
            lost += u64::from(holders.iter().all(are_in));
            owned += u64::from(holders.last().is_some_and(are_in));
        }
        let before = Events::of(&admin).await?.versions().max().unwrap_or(0);
        for name in &pair {
            cluster.node(name).signal(Signal::KILL)?;
        }
        for name in &pair {
            cluster.kill_node(name).await?;
        }
        // Before it is looked at who stands by: the others have to notice first.
        eventually("all that the two had is served", async || {
            let events = Events::of(&admin).await.ok()?;
            let anew = events.since(before, "began_anew");
            let went_on = events.since(before, "failed_over");
            (anew >= lost && went_on >= owned - lost).then_some(())
        })
        .await;
        cluster.protected().await;
        println!("{pair:?} killed: {lost} of their {owned} shards were in these two alone");
        let events = Events::of(&admin).await?;
        let anew = events.since(before, "began_anew");
        assert_eq!(anew, lost, "what nobody has begins anew, and nothing else");
        // If one was noticed a beat before the other, that one has been given what was in
        // these two alone, for that long.
        let went_on = events.since(before, "failed_over");
        assert!((owned - lost..=owned).contains(&went_on), "{went_on}");
        for name in &pair {
            cluster.add_node(name, &[]).await?;
        }
        cluster.ready().await;
        cluster.protected().await;
    }
    let verdict = judged("two of five killed", verify).await?;
    // Whoever followed what was lost was told so, and of nothing else.
    let gaps = verdict.report["gaps"].as_object().context("gaps")?;
    assert!(gaps.keys().all(|reason| reason == "epoch"), "{gaps:?}");
    Ok(())
}

/// What a harm may add to a publication of channels that it does not concern.
/// The bar is 250 ms, of which `make soak` speaks; this is for machines that are
/// busy.
fn delay_max() -> Duration {
    Duration::from_millis(if is_soak() { 250 } else { 3_000 })
}

#[tokio::test]
async fn two_nodes_and_a_witness_survive_each_of_them() -> Result<()> {
    let _alone = ALONE.lock().await;
    // The first by name founds the cluster, and leads it.
    let mut cluster = Cluster::on(NatsServer::start().await?, &["a", "n1", "n2"]).await?;
    cluster.add_node("a", &["--witness"]).await?;
    for name in ["n1", "n2"] {
        cluster.add_node(name, &[]).await?;
    }
    for name in ["g1", "g2"] {
        cluster.add_gateway(name, &[]).await?;
    }
    cluster.ready().await;
    cluster.protected().await;
    // If not this time: whoever leads instead is started again.
    for _ in 0..20 {
        let leader = cluster.leader().await?;
        if leader == "a" {
            break;
        }
        cluster.kill_node(&leader).await?;
        cluster.add_node(&leader, &[]).await?;
        cluster.ready().await;
        cluster.protected().await;
    }
    assert_eq!(cluster.leader().await?, "a", "a witness can lead");

    let mut channels = Vec::new();
    for name in ["n1", "n2"] {
        channels.extend(cluster.channels_of(name, PROBED).await?);
    }
    let (g1, g2) = (
        cluster.gateway("g1").clients.clone(),
        cluster.gateway("g2").clients.clone(),
    );
    let probes = Probes::start(&g1, &g2, channels).await?;
    let verify = Verify::start(&cluster, Load::of_this_run(), &[]).await?;
    cluster.kill_node("a").await?;
    eventually("another one leads", async || cluster.leader().await.ok()).await;
    tokio::time::sleep(LEASES).await;
    let took = probes.end().await?;
    let longest = took.last().context("something was published")?;
    println!("a witness killed that led: the slowest was {longest:?}");
    assert!(longest.heard <= delay_max(), "{longest:?}");
    cluster.add_node("a", &["--witness"]).await?;
    cluster.ready().await;
    cluster.protected().await;

    for turn in 0..times(2, 10) {
        let (name, other) = [("n1", "n2"), ("n2", "n1")][turn % 2];
        cluster.kill_node(name).await?;
        // With the witness it has a majority, and is the owner of everything.
        let admin = cluster.node(other).admin.clone();
        eventually("the other one serves all", async || {
            let node = Cluster::inspect_one(&admin, "nodes", other).await.ok()?;
            (node["shards"].as_u64() == Some(1_024)).then_some(())
        })
        .await;
        let channel = format!("without-{name}-{turn}");
        let mut publisher = Publisher::connect(&g1).await?;
        publisher.publish(&channel, "goes on").await?;
        cluster.add_node(name, &[]).await?;
        cluster.ready().await;
        cluster.protected().await;
    }
    judged("one of two nodes with a witness killed", verify)
        .await?
        .has_no_gaps();
    Ok(())
}
