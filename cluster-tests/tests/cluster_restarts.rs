//! A cluster whose processes are killed and come back.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: tests start processes and wait for them"
)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cluster_tests::client::{EventStream, Pusher, get, metric_at, post_event_to};
use cluster_tests::cluster::{Cluster, with_wrong_clock};
use cluster_tests::traffic::Publisher;
use cluster_tests::{SETTLES, eventually, eventually_within};
use serde_json::{Value, json};

/// Within which a publish is answered, whatever has happened: its deadline of
/// 5 s, and what a busy machine adds.
const ANSWERED: Duration = Duration::from_secs(8);

/// The fences of a node's shards.
async fn fences(admin: &str, node: &str) -> Result<BTreeMap<u64, u64>> {
    let map = Cluster::inspect(admin, "shards").await?;
    let rows = map["shards"].as_array().context("a list")?;
    let own = rows.iter().filter(|row| row["owner"]["id"] == node);
    own.map(|row| {
        let number = row["shard"].as_u64().context("a number")?;
        Ok((number, row["fence"].as_u64().context("a fence")?))
    })
    .collect()
}

fn incarnation(of: &Value) -> u64 {
    of["incarnation"].as_u64().unwrap_or_default()
}

/// The data of a `dunlin:gap`.
fn gap(frame: &Value) -> Result<Value> {
    anyhow::ensure!(frame["event"] == "dunlin:gap", "no gap: {frame}");
    let data = frame["data"].as_str().context("a text")?;
    Ok(serde_json::from_str(data)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shards_of_a_killed_node_go_on_at_others() -> Result<()> {
    a_node_comes_back(true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shards_of_a_node_that_was_told_to_end_go_on_at_others() -> Result<()> {
    a_node_comes_back(false).await
}

async fn a_node_comes_back(killed: bool) -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.protected().await;
    let [followed, wished] = &cluster.channels_of("n2", 2).await?[..] else {
        unreachable!("two were asked for");
    };
    let unharmed = &cluster.channels_of("n3", 1).await?[0];
    let (first, second) = (cluster.gateway("g1"), cluster.gateway("g2"));
    let (first_admin, g1) = (first.admin.clone(), first.clients.clone());
    let g2 = second.clients.clone();
    let mut socket = Pusher::connect_to(&g1).await?;
    socket.subscribe(followed).await?;
    let mut unharmed_socket = Pusher::connect_to(&g2).await?;
    unharmed_socket.subscribe(unharmed).await?;
    let query = format!("channel={followed}");
    let mut stream = EventStream::open_at(&g2, &query, "").await?;
    assert!(stream.block().await?.starts_with("id: "), "attached");
    let mut publisher = Publisher::connect(&g1).await?;
    publisher.publish(followed, "before").await?;
    assert_eq!(socket.frame().await?["data"], "before");
    assert!(stream.block().await?.contains("data: before"));
    let life = incarnation(&Cluster::inspect_one(&first_admin, "nodes", "n2").await?);
    let had = fences(&first_admin, "n2").await?;
    assert!(had.len() >= 341, "{}", had.len());

    let mut node = cluster.nodes.remove("n2").context("it runs")?;
    if killed {
        node.kill().await?;
    } else {
        assert!(node.terminate().await?.success(), "{}", node.log());
    }

    // What others own is unharmed, while what it owned is answered by its
    // standbys.
    let began = Instant::now();
    let (mut at_dead, mut at_others) = (
        Publisher::connect(&g2).await?,
        Publisher::connect(&g2).await?,
    );
    let waiting = tokio::spawn({
        let channel = followed.clone();
        async move { at_dead.try_publish(&channel, "meanwhile").await }
    });
    let mut wishing = Pusher::connect_to(&g1).await?;
    wishing
        .send(&json!({ "event": "pusher:subscribe", "data": { "channel": wished } }))
        .await?;
    let mut published = 0;
    while !waiting.is_finished() {
        let data = published.to_string();
        let sent = Instant::now();
        at_others.publish(unharmed, &data).await?;
        assert!(sent.elapsed() < Duration::from_secs(2), "no delay");
        assert_eq!(unharmed_socket.frame().await?["data"], data);
        published += 1;
    }
    let answer = waiting.await??;
    assert!(began.elapsed() < ANSWERED, "{:?}", began.elapsed());
    assert_eq!(answer.status, 200, "{answer:?}");
    // Nobody hears of a gap.
    assert_eq!(socket.frame().await?["data"], "meanwhile");
    assert!(stream.block().await?.contains("data: meanwhile"));
    let frame = wishing.frame().await?;
    assert_eq!(
        (&frame["event"], &frame["channel"]),
        (
            &json!("pusher_internal:subscription_succeeded"),
            &json!(wished)
        )
    );

    cluster.add_node("n2", &[]).await?;
    cluster.ready().await;
    let now = incarnation(&Cluster::inspect_one(&first_admin, "nodes", "n2").await?);
    assert!(now > life, "{now} after {life}");
    eventually_within(SETTLES, "it takes its share again", async || {
        let own = fences(&first_admin, "n2").await.ok()?;
        (own.len() >= 341).then_some(())
    })
    .await;
    for node in ["n1", "n2", "n3"] {
        for (shard, fence) in fences(&first_admin, node).await? {
            assert!(
                had.get(&shard).is_none_or(|had| fence > *had),
                "shard {shard}: {fence}"
            );
        }
    }
    let events = Cluster::inspect(&cluster.node("n1").admin, "events").await?;
    let events = events["events"].as_array().context("a list")?;
    let how = if killed { "failed_over" } else { "moved" };
    let of = json!({ "id": "n2", "incarnation": life });
    let taken = events
        .iter()
        .filter(|event| event["kind"] == how && event["from"] == of);
    let taken: u64 = taken.filter_map(|event| event["shards"].as_u64()).sum();
    assert_eq!(taken, had.len() as u64, "{events:?}");
    let of = json!({ "id": "n2", "incarnation": now });
    let is_start = |event: &&Value| event["kind"] == "started" && event["to"] == of;
    assert_eq!(events.iter().filter(is_start).count(), 1, "{events:?}");
    for channel in [followed, wished] {
        publisher.publish(channel, "after").await?;
    }
    assert_eq!(socket.frame().await?["data"], "after");
    assert!(stream.block().await?.contains("data: after"));
    assert_eq!(wishing.frame().await?["data"], "after", "and no gap");
    Ok(())
}

/// What was in memory is gone with all who had it, and whoever followed it is
/// told.
#[tokio::test]
async fn all_nodes_are_killed_and_clients_hear_of_the_gap() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let g1 = cluster.gateway("g1").clients.clone();
    let g2 = cluster.gateway("g2").clients.clone();
    let mut socket = Pusher::connect_to(&g1).await?;
    socket.subscribe("room").await?;
    let mut stream = EventStream::open_at(&g2, "channel=room", "").await?;
    assert!(stream.block().await?.starts_with("id: "), "attached");
    let mut publisher = Publisher::connect(&g1).await?;
    publisher.publish("room", "before").await?;
    assert_eq!(socket.frame().await?["data"], "before");
    assert!(stream.block().await?.contains("data: before"));
    let names: Vec<String> = cluster.nodes.keys().cloned().collect();
    for name in &names {
        cluster.kill_node(name).await?;
    }
    for name in &names {
        cluster.add_node(name, &[]).await?;
    }
    cluster.ready().await;
    let told = gap(&socket.frame().await?)?;
    assert_eq!(
        (&told["channel"], &told["reason"]),
        (&json!("room"), &json!("epoch"))
    );
    let block = stream.block().await?;
    assert!(
        block.contains("event: gap") && block.contains("room"),
        "{block}"
    );
    publisher.publish("room", "after").await?;
    assert_eq!(socket.frame().await?["data"], "after");
    assert!(stream.block().await?.contains("data: after"));
    Ok(())
}

#[tokio::test]
async fn a_killed_gateway_comes_back_as_another_life_of_it() -> Result<()> {
    a_gateway_comes_back(0).await
}

/// The clock by which it would be named is behind that of its earlier life.
#[cfg(debug_assertions)]
#[tokio::test]
async fn a_gateway_comes_back_with_its_clock_set_back() -> Result<()> {
    a_gateway_comes_back(-3_600).await
}

async fn a_gateway_comes_back(clock_offset_s: i64) -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let mut gone = Pusher::connect(cluster.gateway("g1")).await?;
    let mut stays = Pusher::connect(cluster.gateway("g2")).await?;
    for channel in ["room", "other"] {
        gone.subscribe(channel).await?;
        stays.subscribe(channel).await?;
    }
    let admins: Vec<String> = cluster.nodes.values().map(|n| n.admin.clone()).collect();
    let followers = async |channel: &str| -> Result<Vec<Value>> {
        let found = Cluster::inspect_channel(&admins[0], channel).await?;
        let followers = found["state"]["followers"].as_array();
        Ok(followers.context("a list")?.clone())
    };
    assert_eq!(followers("room").await?.len(), 2);
    let life = incarnation(&Cluster::inspect_one(&admins[0], "gateways", "g1").await?);

    let mut gateway = cluster.gateways.remove("g1").context("it runs")?;
    gateway.kill().await?;
    let command = with_wrong_clock(cluster.gateway_command("g1", &[]), clock_offset_s);
    cluster.add_gateway_by("g1", command).await?;
    cluster.ready().await;
    for admin in &admins {
        eventually("its new life is known", async || {
            let known = Cluster::inspect_one(admin, "gateways", "g1").await.ok()?;
            (incarnation(&known) > life).then_some(())
        })
        .await;
        for channel in ["room", "other"] {
            let left = followers(channel).await?;
            assert!(
                left.len() == 1 && left[0]["gateway"]["id"] == "g2",
                "what the earlier life wanted is gone: {left:?}"
            );
        }
    }

    let mut publisher = Publisher::connect(&cluster.gateway("g1").clients).await?;
    publisher.clock_offset_s = clock_offset_s;
    let mut back = Pusher::connect(cluster.gateway("g1")).await?;
    back.subscribe("room").await?;
    for number in 0..20 {
        let data = number.to_string();
        publisher.publish("room", &data).await?;
        for client in [&mut back, &mut stays] {
            assert_eq!(client.frame().await?["data"], data);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_second_gateway_of_the_same_name_ends_the_first() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let mut first = cluster.gateways.remove("g1").context("it runs")?;
    cluster.add_gateway("g1", &[]).await?;
    let status = first.ended().await?;
    // Whoever is restarted with this code would end the other one, and so on.
    assert_eq!(status.code(), Some(78), "{status}");
    let log = first.log();
    assert!(
        log.contains("another process has become gateway g1")
            && log.contains("give each its own --name"),
        "{log}"
    );
    cluster.ready().await;
    let mut client = Pusher::connect(cluster.gateway("g2")).await?;
    client.subscribe("room").await?;
    let mut publisher = Publisher::connect(&cluster.gateway("g1").clients).await?;
    publisher.publish("room", "1").await?;
    assert_eq!(client.frame().await?["data"], "1");
    Ok(())
}

/// Alive, so that nobody restarts it, and not ready, so that nobody counts on
/// it: whether it has led before or not.
#[tokio::test]
async fn a_node_without_a_majority_lives_and_says_why_it_is_not_ready() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    for survivor_leads in [true, false] {
        let admin = cluster.node("n1").admin.clone();
        let leader = eventually("there is a leader", async || {
            let nodes = Cluster::inspect(&admin, "nodes").await.ok()?;
            let leads = |node: &&Value| node["role"] == "leader";
            let leader = nodes["nodes"].as_array()?.iter().find(leads)?;
            Some(leader["name"].as_str()?.to_owned())
        })
        .await;
        let names: Vec<String> = cluster.nodes.keys().cloned().collect();
        let survivor = names
            .iter()
            .find(|name| (**name == leader) == survivor_leads);
        let survivor = survivor.context("a survivor")?;
        for name in names.iter().filter(|name| *name != survivor) {
            cluster.kill_node(name).await?;
        }
        let admin = &cluster.node(survivor).admin;
        let why = eventually("it is not ready", async || {
            let ready = get(admin, "/readyz").await.ok()?;
            (ready.status == 503).then_some(ready.body)
        })
        .await;
        assert!(
            why.contains("a majority of the voters cannot be reached"),
            "{why}"
        );
        assert_eq!(get(admin, "/livez").await?.status, 200);
        for name in names.iter().filter(|name| *name != survivor) {
            cluster.add_node(name, &[]).await?;
        }
        cluster.ready().await;
    }
    Ok(())
}

/// Nobody tells it of nodes that had died before: it has to find that out, or it
/// would wait for them to stand by.
#[tokio::test]
async fn a_node_that_starts_after_another_died_does_not_count_on_it() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.protected().await;
    cluster.kill_node("n2").await?;
    cluster.protected().await;
    for name in ["n3", "n1"] {
        cluster.kill_node(name).await?;
        cluster.add_node(name, &[]).await?;
        cluster.ready().await;
        cluster.protected().await;
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_served_without_a_majority_and_all_goes_on_when_it_is_back() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.protected().await;
    let channel = cluster.channels_of("n1", 1).await?.remove(0);
    let (g1, g2) = (
        cluster.gateway("g1").clients.clone(),
        cluster.gateway("g2").clients.clone(),
    );
    let mut stream = EventStream::open_at(&g2, &format!("channel={channel}"), "").await?;
    assert!(stream.block().await?.starts_with("id: "), "attached");
    let mut publisher = Publisher::connect(&g1).await?;
    publisher.publish(&channel, "before").await?;
    assert!(stream.block().await?.contains("data: before"));

    for name in ["n2", "n3"] {
        cluster.kill_node(name).await?;
    }
    let admin = cluster.node("n1").admin.clone();
    eventually("its lease has run out", async || {
        let name = "dunlin_owner_paused_seconds_total";
        let paused = metric_at(&admin, name, &["lease=\"node\""]).await;
        paused.ok().filter(|seconds| *seconds > 0.0)
    })
    .await;
    let event = json!({ "name": "e", "channel": channel, "data": "meanwhile" });
    let answer = post_event_to(&g1, &event).await?;
    assert_eq!(answer.status, 503, "{answer:?}");

    for name in ["n2", "n3"] {
        cluster.add_node(name, &[]).await?;
    }
    cluster.ready().await;
    eventually("publishing works", async || {
        let mut publisher = Publisher::connect(&g1).await.ok()?;
        publisher.publish(&channel, "after").await.ok()
    })
    .await;
    // It goes on where it stood: perhaps with what nobody was told of in time.
    let mut heard = stream.block().await?;
    if heard.contains("data: meanwhile") {
        heard = stream.block().await?;
    }
    assert!(heard.contains("data: after"), "{heard}");
    Ok(())
}
