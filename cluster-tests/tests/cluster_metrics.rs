//! What a cluster counts, against what was done to it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use cluster_tests::client::{EventStream, Pusher, get, metric_at};
use cluster_tests::cluster::Cluster;
use cluster_tests::process::run;
use cluster_tests::traffic::Publisher;
use cluster_tests::{SETTLES, eventually, eventually_within};

/// The families that are there for each shard that a node owns.
const OF_SHARDS: [&str; 11] = [
    "dunlin_shard_publications_total",
    "dunlin_shard_fanout_messages_total",
    "dunlin_shard_deliveries_total",
    "dunlin_shard_fanout_share_ratio_sum",
    "dunlin_shard_fanout_share_ratio_count",
    "dunlin_shard_fanout_seconds_sum",
    "dunlin_shard_fanout_seconds_count",
    "dunlin_shard_bytes_total",
    "dunlin_shard_channels",
    "dunlin_shard_interest",
    "dunlin_shard_idempotency_keys",
];

/// The shards of which a node exports something, by family.
async fn exported(admin: &str) -> Result<BTreeMap<String, BTreeSet<u16>>> {
    let page = get(admin, "/metrics").await?.body;
    let mut exported: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        if let Some((family, rest)) = line.split_once('{')
            && let Some((_, rest)) = rest.split_once("shard=\"")
        {
            let shard = rest.split('"').next().context("its end")?.parse()?;
            exported.entry(family.into()).or_default().insert(shard);
        }
    }
    Ok(exported)
}

/// Waits until each shard is exported by one node, in all families, and returns
/// what each node exports.
async fn each_by_one(cluster: &Cluster) -> BTreeMap<String, BTreeSet<u16>> {
    eventually("each shard is exported by one node", async || {
        let mut by_node = BTreeMap::new();
        let mut count = 0;
        for (name, node) in &cluster.nodes {
            let families = exported(&node.admin).await.ok()?;
            let shards = families.values().next().cloned().unwrap_or_default();
            assert!(families.values().all(|other| *other == shards), "{name}");
            let names: BTreeSet<&str> = families.keys().map(String::as_str).collect();
            assert!(shards.is_empty() || names == OF_SHARDS.into(), "{names:?}");
            count += shards.len();
            by_node.insert(name.clone(), shards);
        }
        let all: BTreeSet<&u16> = by_node.values().flatten().collect();
        (count == 1_024 && all.len() == 1_024).then_some(by_node)
    })
    .await
}

/// Three clients of a channel: one at g1, two at g2.
struct Clients {
    socket: Pusher,
    streams: [EventStream; 2],
    publisher: Publisher,
    channel: String,
}

impl Clients {
    async fn of(cluster: &Cluster, channel: &str) -> Result<Self> {
        let (g1, g2) = (cluster.gateway("g1"), cluster.gateway("g2"));
        let mut socket = Pusher::connect_to(&g1.clients).await?;
        socket.subscribe(channel).await?;
        let stream = async || -> Result<EventStream> {
            let query = format!("channel={channel}");
            let mut stream = EventStream::open_at(&g2.clients, &query, "").await?;
            assert!(stream.block().await?.starts_with("id: "), "attached");
            Ok(stream)
        };
        Ok(Self {
            socket,
            streams: [stream().await?, stream().await?],
            publisher: Publisher::connect(&g1.clients).await?,
            channel: channel.into(),
        })
    }

    /// Publishes this often, and waits until all have got all of it.
    async fn get(&mut self, count: usize) -> Result<()> {
        for number in 0..count {
            let data = format!("number {number}.");
            self.publisher.publish(&self.channel, &data).await?;
            assert_eq!(self.socket.frame().await?["data"], data);
            for stream in &mut self.streams {
                assert!(stream.block().await?.contains(&data));
            }
        }
        Ok(())
    }
}

/// The owner counts so many publications of a shard, and what became of them.
async fn counted(admin: &str, shard: u64, publications: f64) -> Result<()> {
    let label = format!("shard=\"{shard}\"");
    let figure = async |name: &str| metric_at(admin, name, &[&label]).await;
    // What gateways count comes with their beats.
    eventually("all deliveries are reported", async || {
        let deliveries = figure("dunlin_shard_deliveries_total").await.ok()?;
        assert!(deliveries <= 3.0 * publications, "{deliveries}");
        (deliveries == 3.0 * publications).then_some(())
    })
    .await;
    assert_eq!(
        figure("dunlin_shard_publications_total").await?,
        publications
    );
    let messages = figure("dunlin_shard_fanout_messages_total").await?;
    assert_eq!(messages, 2.0 * publications, "one for each gateway");
    let bytes = figure("dunlin_shard_bytes_total").await?;
    assert!(bytes >= 9.0 * publications, "{bytes}");
    // One or two workers of g2 have clients, and each counts by itself.
    let spreads = figure("dunlin_shard_fanout_share_ratio_count").await?;
    assert!(
        spreads == 2.0 * publications || spreads == 3.0 * publications,
        "{spreads}"
    );
    let share = figure("dunlin_shard_fanout_share_ratio_sum").await?;
    assert!(share > 0.0 && share <= spreads, "{share} of {spreads}");
    assert_eq!(figure("dunlin_shard_fanout_seconds_count").await?, spreads);
    assert!(figure("dunlin_shard_fanout_seconds_sum").await? > 0.0);
    // Owners look at what they hold now and then.
    eventually("what the shard holds is looked at", async || {
        let channels = figure("dunlin_shard_channels").await.ok()?;
        let interest = figure("dunlin_shard_interest").await.ok()?;
        ((channels, interest) == (1.0, 2.0)).then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn owners_alone_count_a_shard_and_what_its_clients_got() -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.protected().await;
    let before = each_by_one(&cluster).await;
    let channel = &cluster.channels_of("n2", 1).await?[0];
    let admin = cluster.gateway("g1").admin.clone();
    let found = Cluster::inspect_channel(&admin, channel).await?;
    let shard = found["shard"].as_u64().context("a number")?;
    let mut clients = Clients::of(&cluster, channel).await?;
    clients.get(10).await?;
    counted(&cluster.node("n2").admin, shard, 10.0).await?;

    let at = &cluster.node("n2").admin;
    let drained = run(["nodes", "drain", "n2", "--admin", at]).await?;
    assert!(drained.status.success(), "{drained:?}");
    let after = each_by_one(&cluster).await;
    assert!(after["n2"].is_empty(), "{:?}", after["n2"]);
    assert_eq!(metric_at(at, "dunlin_shards_owned", &[]).await?, 0.0);
    let mut moves = 0.0;
    for node in cluster.nodes.values() {
        let labels = ["reason=\"drain\""];
        moves += metric_at(&node.admin, "dunlin_shard_moves_total", &labels).await?;
        let name = "dunlin_shard_handoff_duration_seconds_count";
        let moved = metric_at(&node.admin, name, &labels).await?;
        let counted = metric_at(&node.admin, "dunlin_shard_moves_total", &labels).await?;
        assert_eq!(moved, counted);
    }
    assert_eq!(moves, before["n2"].len() as f64);

    // The next owner counts what it has sent itself.
    let owner = |shards: &&BTreeSet<u16>| shards.contains(&(shard as u16));
    let next = after.iter().find(|(_, shards)| owner(shards));
    let next = cluster.node(next.context("an owner")?.0);
    clients.get(5).await?;
    counted(&next.admin, shard, 5.0).await
}

#[tokio::test]
async fn nodes_count_what_they_agree_and_what_they_gossip() -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.protected().await;
    let sum = async |name: &str, labels: &[&str]| -> Result<f64> {
        let mut sum = 0.0;
        for node in cluster.nodes.values() {
            sum += metric_at(&node.admin, name, labels).await?;
        }
        Ok(sum)
    };
    assert_eq!(sum("dunlin_raft_is_leader", &[]).await?, 1.0);
    assert_eq!(sum("dunlin_raft_voters", &[]).await?, 9.0);
    assert!(sum("dunlin_raft_proposals_total", &["result=\"ok\""]).await? > 0.0);
    assert!(sum("dunlin_raft_proposal_duration_seconds_count", &[]).await? > 0.0);
    for node in cluster.nodes.values() {
        let figure = async |name: &str| metric_at(&node.admin, name, &[]).await;
        assert!(figure("dunlin_raft_term").await? >= 1.0);
        assert!(figure("dunlin_raft_fsync_duration_seconds_count").await? > 0.0);
        for direction in ["sent", "received"] {
            let label = format!("direction=\"{direction}\"");
            let name = "dunlin_gossip_messages_total";
            assert!(metric_at(&node.admin, name, &[&label]).await? > 0.0);
        }
    }
    // All come to know the same, once nothing is to be decided.
    eventually_within(SETTLES, "all know what is decided", async || {
        let mut known = BTreeSet::new();
        for node in cluster.nodes.values() {
            for name in ["commit", "applied"] {
                let name = format!("dunlin_raft_{name}_index");
                let index = metric_at(&node.admin, &name, &[]).await.ok()?;
                known.insert(index as u64);
            }
        }
        (known.len() == 1 && known.first() > Some(&0)).then_some(())
    })
    .await;
    eventually("news of all nodes come", async || {
        for node in cluster.nodes.values() {
            let name = "dunlin_gossip_convergence_seconds";
            let age = metric_at(&node.admin, name, &[]).await.ok()?;
            if age > 3.0 {
                return None;
            }
        }
        Some(())
    })
    .await;
    Ok(())
}
