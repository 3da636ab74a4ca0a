//! The last node of a cluster, or the only one, is told to end and starts again:
//! an upgrade, and no gap. And the last resort, when the others never will.

use anyhow::{Context, Result};
use cluster_tests::client::{EventStream, Pusher};
use cluster_tests::cluster::Cluster;
use cluster_tests::eventually;
use cluster_tests::nats::NatsServer;
use cluster_tests::process::run;
use cluster_tests::traffic::Publisher;
use cluster_tests::verify::{Load, Verify, is_soak};
use serde_json::{Value, json};

/// A cluster of one node, with two gateways.
async fn alone() -> Result<Cluster> {
    let mut cluster = Cluster::on(NatsServer::start().await?, &["n1"]).await?;
    cluster.add_node("n1", &[]).await?;
    cluster.add_gateway("g1", &[]).await?;
    cluster.add_gateway("g2", &[]).await?;
    cluster.ready().await;
    Ok(cluster)
}

async fn stop(cluster: &mut Cluster, name: &str) -> Result<()> {
    let mut node = cluster.nodes.remove(name).context("it runs")?;
    anyhow::ensure!(node.terminate().await?.success(), "{}", node.log());
    Ok(())
}

#[tokio::test]
async fn a_node_that_is_alone_is_restarted_under_load_without_a_gap() -> Result<()> {
    let mut cluster = alone().await?;
    let verify = Verify::start(&cluster, Load::of_this_run(), &[]).await?;
    for _ in 0..if is_soak() { 10 } else { 2 } {
        stop(&mut cluster, "n1").await?;
        cluster.add_node("n1", &[]).await?;
        cluster.ready().await;
    }
    let verdict = verify.judge().await?;
    println!("the only node restarted: {:#}", verdict.report);
    verdict.is_kept();
    verdict.has_no_gaps();
    Ok(())
}

/// Whoever follows a channel at either gateway.
struct Followers {
    socket: Pusher,
    stream: EventStream,
    publisher: Publisher,
}

impl Followers {
    async fn of(cluster: &Cluster) -> Result<Self> {
        let g1 = &cluster.gateway("g1").clients;
        let mut socket = Pusher::connect_to(g1).await?;
        socket.subscribe("room").await?;
        let g2 = &cluster.gateway("g2").clients;
        let mut stream = EventStream::open_at(g2, "channel=room", "").await?;
        assert!(stream.block().await?.starts_with("id: "), "attached");
        let publisher = Publisher::connect(g1).await?;
        Ok(Self {
            socket,
            stream,
            publisher,
        })
    }

    /// The next that they hear is this.
    async fn hear_next(&mut self, data: &str) -> Result<()> {
        self.publisher.publish("room", data).await?;
        assert_eq!(self.socket.frame().await?["data"], data);
        let block = self.stream.block().await?;
        assert!(block.contains(&format!("data: {data}")), "{block}");
        Ok(())
    }
}

#[tokio::test]
async fn what_was_kept_is_used_once() -> Result<()> {
    let mut cluster = alone().await?;
    let mut followers = Followers::of(&cluster).await?;
    followers.hear_next("first").await?;
    stop(&mut cluster, "n1").await?;
    let kept = cluster.data("n1").join("checkpoint");
    let copy = std::fs::read(&kept).context("it has kept its shards")?;
    cluster.add_node("n1", &[]).await?;
    cluster.ready().await;
    followers.hear_next("second").await?;
    assert!(!kept.exists(), "it has been used");
    // Not again, though somebody puts it back: "second" is not in it.
    cluster.kill_node("n1").await?;
    std::fs::write(&kept, copy)?;
    cluster.add_node("n1", &[]).await?;
    cluster.ready().await;
    let told: Value = followers.socket.frame().await?;
    assert_eq!(told["event"], "dunlin:gap", "{told}");
    let told: Value = serde_json::from_str(told["data"].as_str().context("a text")?)?;
    assert_eq!(told["reason"], json!("epoch"));
    let block = followers.stream.block().await?;
    assert!(block.contains("event: gap"), "{block}");
    followers.hear_next("third").await
}

#[tokio::test]
async fn all_nodes_are_stopped_one_after_another_and_the_last_has_kept_everything() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.protected().await;
    let mut followers = Followers::of(&cluster).await?;
    followers.hear_next("before").await?;
    for name in ["n1", "n2", "n3"] {
        stop(&mut cluster, name).await?;
    }
    for name in ["n1", "n2", "n3"] {
        cluster.add_node(name, &[]).await?;
    }
    cluster.ready().await;
    followers.hear_next("after").await
}

/// The next that somebody hears who follows one channel.
async fn hears(stream: &mut EventStream, text: &str) -> Result<()> {
    let block = stream.block().await?;
    assert!(block.contains(text), "{text}: {block}");
    Ok(())
}

#[tokio::test]
async fn a_majority_that_is_lost_for_good_is_gone_on_without() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.protected().await;
    let kept = cluster.channels_of("n1", 1).await?.remove(0);
    let lost = cluster.channels_of("n2", 1).await?.remove(0);
    let clients = cluster.gateway("g1").clients.clone();
    let follow = async |channel: &str| {
        let mut stream = EventStream::open_at(&clients, &format!("channel={channel}"), "").await?;
        hears(&mut stream, "id: ").await?;
        anyhow::Ok(stream)
    };
    let (mut of_kept, mut of_lost) = (follow(&kept).await?, follow(&lost).await?);
    let mut publisher = Publisher::connect(&clients).await?;
    publisher.publish(&kept, "before").await?;
    hears(&mut of_kept, "data: before").await?;
    publisher.publish(&lost, "before").await?;
    hears(&mut of_lost, "data: before").await?;

    for name in ["n2", "n3"] {
        cluster.kill_node(name).await?;
        std::fs::remove_dir_all(cluster.data(name))?;
    }
    stop(&mut cluster, "n1").await?;
    let data = cluster.data("n1");
    let data = data.to_str().context("a path")?;
    let looked = run(["nodes", "recover", "--data", data]).await?;
    assert_eq!(looked.status.code(), Some(64), "{looked:?}");
    for text in ["node n1 of cluster", "lost: n2", "lost: n3"] {
        assert!(looked.stdout.contains(text), "{looked:?}");
    }
    assert!(looked.stderr.contains("nothing has been changed"));
    let forced = run(["nodes", "recover", "--data", data, "--force"]).await?;
    assert!(forced.status.success(), "{forced:?}");
    let again = run(["nodes", "recover", "--data", data, "--force"]).await?;
    assert!(again.stdout.contains("decides alone already"), "{again:?}");

    cluster.add_node("n1", &[]).await?;
    cluster.ready().await;
    publisher.publish(&kept, "after").await?;
    hears(&mut of_kept, "data: after").await?;
    hears(&mut of_lost, "event: gap").await?;
    publisher.publish(&lost, "after").await?;
    hears(&mut of_lost, "data: after").await?;

    // Others come with empty directories, and one does not come back.
    cluster.add_node("n2", &[]).await?;
    cluster.ready().await;
    let at = cluster.node("n1").admin.clone();
    eventually("n3 is struck", async || {
        let removed = run(["nodes", "remove", "n3", "--admin", &at]).await.ok()?;
        removed.status.success().then_some(())
    })
    .await;
    cluster.protected().await;
    publisher.publish(&kept, "protected").await?;
    hears(&mut of_kept, "data: protected").await
}
