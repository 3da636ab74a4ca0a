//! Settings of nodes as the others see them: namespaces that differ, where a
//! node says that it can be reached, and its zone.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use cluster_tests::client::{EventStream, metric_at, post_event};
use cluster_tests::cluster::Cluster;
use cluster_tests::eventually;
use cluster_tests::nats::Folder;
use cluster_tests::process::{command, run, run_command};
use serde_json::json;

const WARNING: &str = "DIFFERENT NAMESPACES";

async fn differing(cluster: &Cluster, node: &str, count: f64) {
    let admin = &cluster.node(node).admin;
    eventually(&format!("{node} knows {count} that differ"), async || {
        let known = metric_at(admin, "dunlin_namespaces_differ", &[]).await;
        (known.ok()? == count).then_some(())
    })
    .await;
}

/// Waits until a node has warned of these nodes, and of no other.
async fn warns_of(cluster: &Cluster, node: &str, others: &[&str]) {
    eventually(&format!("{node} warns of {others:?}"), async || {
        let log = cluster.node(node).log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(WARNING)).collect();
        let is_of = |name: &str| lines.iter().any(|l| l.contains(&format!("node={name}")));
        let all = ["n1", "n2", "n3"].into_iter();
        (all.filter(|name| is_of(name)).collect::<Vec<_>>() == others).then_some(())
    })
    .await;
}

#[tokio::test]
async fn nodes_whose_namespaces_differ_warn_of_each_other() -> Result<()> {
    let folder = Folder::new()?;
    let file = |name: &str, kept: u32| {
        let text = format!("[[namespaces]]\nmatch = \"chat-*\"\nhistory_publications = {kept}\n");
        folder.file(name, &text)
    };
    let (same, other) = (file("same.toml", 5)?, file("other.toml", 6)?);
    let mut cluster = Cluster::empty(&["n1", "n2", "n3"]).await?;
    for (name, file) in [("n1", &same), ("n2", &same), ("n3", &other)] {
        let path = Path::to_str(file).context("a path")?;
        cluster.add_node(name, &["--config", path]).await?;
    }
    cluster.ready().await;
    differing(&cluster, "n3", 2.0).await;
    for name in ["n1", "n2"] {
        differing(&cluster, name, 1.0).await;
        warns_of(&cluster, name, &["n3"]).await;
    }
    warns_of(&cluster, "n3", &["n1", "n2"]).await;

    cluster.kill_node("n3").await?;
    for name in ["n1", "n2"] {
        differing(&cluster, name, 0.0).await;
    }
    Ok(())
}

/// The status of a publish, what it was refused for, and in how many processes it
/// is.
async fn published(cluster: &Cluster, channel: &str) -> Result<(u16, String, Option<String>)> {
    let event = json!({ "name": "e", "channel": channel, "data": "x" });
    let answer = post_event(cluster.gateway("g1"), &event).await?;
    let copies = |line: &str| line.strip_prefix("dunlin-copies: ").map(str::to_owned);
    let copies = answer.head.lines().find_map(copies);
    Ok((answer.status, answer.code(), copies))
}

#[tokio::test]
async fn a_namespace_that_requires_a_standby_refuses_without_one() -> Result<()> {
    let folder = Folder::new()?;
    let text = "[[namespaces]]\nmatch = \"pay-*\"\nstandby = \"require\"\n";
    let file = folder.file("careful.toml", text)?;
    let options = ["--config", Path::to_str(&file).context("a path")?];
    let mut cluster = Cluster::empty(&["n1", "n2", "w"]).await?;
    cluster.add_node("n1", &options).await?;
    cluster.add_node("n2", &options).await?;
    cluster
        .add_node("w", &["--witness", options[0], options[1]])
        .await?;
    cluster.add_gateway("g1", &[]).await?;
    cluster.ready().await;
    cluster.protected().await;
    let in_two = (200, String::new(), Some("2".to_owned()));
    assert_eq!(published(&cluster, "pay-1").await?, in_two);
    assert_eq!(published(&cluster, "chat-1").await?, in_two);

    cluster.kill_node("n2").await?;
    eventually("nobody stands by", async || {
        let said = published(&cluster, "pay-1").await.ok()?;
        (said == (503, "no_standby".into(), None)).then_some(())
    })
    .await;
    let in_one = (200, String::new(), Some("1".to_owned()));
    assert_eq!(published(&cluster, "chat-1").await?, in_one);

    cluster.add_node("n2", &options).await?;
    cluster.protected().await;
    assert_eq!(published(&cluster, "pay-1").await?, in_two);
    Ok(())
}

/// Channels that begin so and belong to a node.
async fn channel_of(cluster: &Cluster, kind: &str, node: &str) -> Result<String> {
    let admin = &cluster.gateway("g1").admin;
    for number in 0..1_000 {
        let name = format!("{kind}-{number}");
        let channel = Cluster::inspect_channel(admin, &name).await?;
        if channel["owner"]["id"] == node {
            return Ok(name);
        }
    }
    bail!("{node} owns no channel that begins with {kind}")
}

/// What comes next on a stream: a publication or a gap, without its id.
async fn next(stream: &mut EventStream) -> Result<String> {
    let block = stream.block().await?;
    let lines = block.lines().filter(|line| !line.starts_with("id: "));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

#[tokio::test]
async fn what_the_owner_alone_is_to_have_moves_with_its_shard_and_dies_with_its_owner() -> Result<()>
{
    let folder = Folder::new()?;
    let text = "[[namespaces]]\nmatch = \"cursor-*\"\nack = \"owner\"\n";
    let file = folder.file("cursors.toml", text)?;
    let options = ["--config", Path::to_str(&file).context("a path")?];
    let mut cluster = Cluster::empty(&["n1", "n2", "n3"]).await?;
    for name in ["n1", "n2", "n3"] {
        cluster.add_node(name, &options).await?;
    }
    cluster.add_gateway("g1", &[]).await?;
    cluster.ready().await;
    cluster.protected().await;
    let cursor = channel_of(&cluster, "cursor", "n2").await?;
    let room = channel_of(&cluster, "room", "n2").await?;
    let clients = cluster.gateway("g1").clients.clone();
    let open = async |channel: &str| {
        let mut stream = EventStream::open_at(&clients, &format!("channel={channel}"), "").await?;
        assert!(stream.block().await?.starts_with("id: "), "attached");
        anyhow::Ok(stream)
    };
    let (mut follows_cursor, mut follows_room) = (open(&cursor).await?, open(&room).await?);
    let accepted = |copies: &str| (200, String::new(), Some(copies.to_owned()));
    let came = "event: e\ndata: x";
    for _ in 0..5 {
        assert_eq!(published(&cluster, &cursor).await?, accepted("1"));
        assert_eq!(published(&cluster, &room).await?, accepted("2"));
        assert_eq!(next(&mut follows_cursor).await?, came);
        assert_eq!(next(&mut follows_room).await?, came);
    }

    let at = &cluster.node("n2").admin;
    let drained = run(["nodes", "drain", "n2", "--admin", at]).await?;
    assert!(drained.status.success(), "{drained:?}");
    for _ in 0..5 {
        assert_eq!(published(&cluster, &cursor).await?, accepted("1"));
        assert_eq!(next(&mut follows_cursor).await?, came, "it goes on");
    }
    let shown = Cluster::inspect_channel(&cluster.gateway("g1").admin, &cursor).await?;
    assert_eq!(shown["state"]["ack"], "owner");
    assert_eq!(shown["state"]["offset"], 10);

    let owner = shown["owner"]["id"].as_str().context("an owner")?;
    cluster.kill_node(owner).await?;
    // Perhaps before the gateway has joined: it comes behind the gap.
    assert_eq!(published(&cluster, &cursor).await?, accepted("1"));
    let gap = next(&mut follows_cursor).await?;
    assert!(gap.starts_with("event: gap\n"), "{gap}");
    assert!(gap.contains("\"reason\":\"epoch\""), "{gap}");
    assert_eq!(next(&mut follows_cursor).await?, came);
    assert_eq!(published(&cluster, &room).await?.0, 200);
    assert_eq!(next(&mut follows_room).await?, came, "no gap");
    Ok(())
}

#[tokio::test]
async fn a_node_is_shown_with_its_zone_and_where_it_says_it_is() -> Result<()> {
    let mut cluster = Cluster::empty(&["n1"]).await?;
    cluster.add_node("n1", &[]).await?;
    let mut joining = cluster.node_command("n2", &[]).await?;
    let mut options = joining.as_std().get_args().skip_while(|a| *a != "--quic");
    let quic = options.nth(1).and_then(|a| a.to_str()).context("--quic")?;
    let advertised = format!("localhost:{}", quic.parse::<SocketAddr>()?.port());
    joining.args(["--zone", "east", "--quic-advertise", &advertised]);
    cluster.add_node_by("n2", joining).await?;
    cluster.ready().await;
    for name in ["n1", "n2"] {
        let admin = &cluster.node(name).admin;
        eventually(&format!("{name} shows it"), async || {
            let shown = Cluster::inspect_one(admin, "nodes", "n2").await.ok()?;
            (shown["address"] == advertised.as_str() && shown["zone"] == "east").then_some(())
        })
        .await;
        let mut asking = command(["inspect", "nodes"]);
        asking.env("DUNLIN_ADMIN_URL", admin);
        let table = run_command(asking, "").await?.stdout;
        let mut rows = table.lines();
        let of_n2 = rows.find(|row| row.starts_with("n2 ")).context("a row")?;
        assert!(of_n2.contains(&advertised), "{table}");
        assert!(of_n2.contains("east"), "{table}");
    }
    Ok(())
}
