//! A cluster of real processes on a real nats-server: what it does while
//! nothing fails.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use cluster_tests::client::{Pusher, metric_at, publish};
use cluster_tests::cluster::Cluster;
use cluster_tests::nats::{self, NatsServer};
use cluster_tests::traffic::{END, Follower, Publisher, Received};
use cluster_tests::{bus_messages, eventually};
use futures_util::future::try_join_all;
use serde_json::json;

/// The bars of docs/guarantees.md.
const ONE_BY_ONE: usize = 10_000;
const ROUNDS: usize = 500;
const AT_ONCE: usize = 10;

/// A WebSocket and an event stream at every gateway.
async fn followers(cluster: &Cluster, channels: &[String]) -> Result<Vec<Follower>> {
    let mut followers = Vec::new();
    for gateway in cluster.gateways.values() {
        followers.push(Follower::by_socket(&gateway.clients, channels).await?);
        followers.push(Follower::by_stream(&gateway.clients, channels).await?);
    }
    Ok(followers)
}

async fn received(followers: Vec<Follower>) -> Result<Vec<Received>> {
    try_join_all(followers.into_iter().map(Follower::received)).await
}

async fn publishers(cluster: &Cluster, per_gateway: usize) -> Result<Vec<Publisher>> {
    let mut publishers = Vec::new();
    for _ in 0..per_gateway {
        for gateway in cluster.gateways.values() {
            publishers.push(Publisher::connect(&gateway.clients).await?);
        }
    }
    Ok(publishers)
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}-{n}")).collect()
}

#[tokio::test]
async fn a_publication_reaches_clients_of_every_gateway() -> Result<()> {
    let cluster = Cluster::start().await?;
    let mut clients = Vec::new();
    for gateway in cluster.gateways.values() {
        let mut client = Pusher::connect(gateway).await?;
        client.subscribe("room").await?;
        clients.push(client);
    }
    for (number, gateway) in cluster.gateways.values().enumerate() {
        publish(gateway, "room", "e", &format!("{number}")).await?;
    }
    for client in &mut clients {
        for number in 0..2 {
            assert_eq!(client.frame().await?["data"], format!("{number}"));
        }
    }
    let nodes = Cluster::inspect(&cluster.gateway("g1").admin, "nodes").await?;
    assert_eq!(nodes["nodes"].as_array().context("a list")?.len(), 3);
    Ok(())
}

/// One after the other, by two gateways in turn: each has been acknowledged
/// before the next is sent, so there is only one right order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_publications_arrive_everywhere_once_and_in_order() -> Result<()> {
    let cluster = Cluster::start().await?;
    let channels = names("line", 7);
    let followers = followers(&cluster, &channels).await?;
    let mut publishers = publishers(&cluster, 1).await?;
    let mut expected = Received::new();
    let count = publishers.len();
    for number in 0..ONE_BY_ONE {
        // Every channel gets some by every gateway.
        let channel = &channels[number % channels.len()];
        let data = number.to_string();
        publishers[number % count].publish(channel, &data).await?;
        expected.entry(channel.clone()).or_default().push(data);
    }
    for channel in &channels {
        publishers[0].publish(channel, END).await?;
    }
    for got in received(followers).await? {
        assert!(got == expected, "{}", difference(&got, &expected));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_publications_have_one_order_at_all_gateways() -> Result<()> {
    let cluster = Cluster::start().await?;
    let channels = names("busy", 2);
    let followers = followers(&cluster, &channels).await?;
    let mut publishers = publishers(&cluster, AT_ONCE / 2).await?;
    assert_eq!(publishers.len(), AT_ONCE);
    for round in 0..ROUNDS {
        let all = publishers.iter_mut().enumerate().map(|(n, publisher)| {
            let (channel, data) = (&channels[n / 2 % 2], format!("{round}.{n}"));
            async move { publisher.publish(channel, &data).await }
        });
        try_join_all(all).await?;
    }
    for channel in &channels {
        publishers[0].publish(channel, END).await?;
    }
    let orders = received(followers).await?;
    let mut all = BTreeSet::new();
    for (channel, order) in &orders[0] {
        for other in &orders {
            assert!(other[channel] == *order, "{channel}: one order everywhere");
        }
        // A round begins when the one before it has been acknowledged.
        let rounds = order.iter().filter_map(|data| data.split('.').next());
        let rounds: Vec<u32> = rounds.map(str::parse).collect::<Result<_, _>>()?;
        assert!(rounds.is_sorted(), "{channel}: {rounds:?}");
        for data in order {
            assert!(all.insert(data), "{data} came twice");
        }
    }
    assert_eq!(all.len(), ROUNDS * AT_ONCE, "nothing lost");
    Ok(())
}

/// Where two records differ first.
fn difference(got: &Received, expected: &Received) -> String {
    for (channel, wanted) in expected {
        let got = got.get(channel).map_or(&[][..], Vec::as_slice);
        let same = got.iter().zip(wanted).take_while(|(a, b)| a == b).count();
        if got != wanted {
            return format!(
                "{channel}: {} of {}, they differ at {same}: {:?} instead of {:?}",
                got.len(),
                wanted.len(),
                got.get(same),
                wanted.get(same)
            );
        }
    }
    "a channel that nobody published to".to_owned()
}

#[tokio::test]
async fn only_those_who_are_concerned_hear_of_a_publication() -> Result<()> {
    const COUNT: usize = 20;
    let cluster = Cluster::start().await?;
    // Until then the map is told of now and then.
    cluster.protected().await;
    let channels = names("heard", 1);
    let follower = Follower::by_socket(&cluster.gateway("g1").clients, &channels).await?;
    let owner_of = async |channel: &str| -> Result<String> {
        let found = Cluster::inspect_channel(&cluster.node("n1").admin, channel).await?;
        Ok(found["owner"]["id"]
            .as_str()
            .context("an owner")?
            .to_owned())
    };
    let mut by_first = Publisher::connect(&cluster.gateway("g1").clients).await?;
    let mut by_second = Publisher::connect(&cluster.gateway("g2").clients).await?;
    let before = bus_messages::at_rest(&cluster).await;

    // Followed at the gateway that it is published by; the other hears nothing.
    for number in 0..COUNT - 1 {
        by_first.publish(&channels[0], &number.to_string()).await?;
    }
    by_first.publish(&channels[0], END).await?;
    assert_eq!(follower.received().await?[&channels[0]].len(), COUNT - 1);
    let count = COUNT as f64;
    let owner = owner_of(&channels[0]).await?;
    let mut expected: BTreeMap<String, f64> = BTreeMap::new();
    for what in [
        "g1 published request".to_owned(),
        format!("{owner} received request"),
        format!("{owner} published reply"),
        "g1 received reply".to_owned(),
        format!("{owner} published batch"),
        "g1 received batch".to_owned(),
    ] {
        expected.insert(what, count);
    }
    let mut seen = bus_messages::since(&cluster, &before).await;
    // The follower is gone; its gateway may leave the channel meanwhile, which is not
    // answered.
    let left = seen["g1 published request"] - count;
    assert!((0.0..=1.0).contains(&left), "{seen:?}");
    for (what, number) in &mut seen {
        if what.contains("request") {
            *number -= left;
        }
    }
    assert_eq!(seen, expected);

    // Followed nowhere: a request and a reply each.
    eventually("the channel is left", async || {
        let found = Cluster::inspect_channel(&cluster.node("n1").admin, &channels[0]).await;
        let followers = found.ok()?["state"]["followers"].as_array().cloned();
        followers.is_none_or(|all| all.is_empty()).then_some(())
    })
    .await;
    let owner = owner_of("nobody").await?;
    let before = bus_messages::at_rest(&cluster).await;
    for number in 0..COUNT {
        by_second.publish("nobody", &number.to_string()).await?;
    }
    let expected: BTreeMap<String, f64> = [
        "g2 published request".to_owned(),
        format!("{owner} received request"),
        format!("{owner} published reply"),
        "g2 received reply".to_owned(),
    ]
    .map(|what| (what, count))
    .into();
    assert_eq!(bus_messages::since(&cluster, &before).await, expected);
    Ok(())
}

/// What nats-server says of the subscriptions of each connection.
async fn subscriptions(cluster: &Cluster) -> Result<BTreeMap<String, Vec<String>>> {
    let connections = cluster.nats.connections().await?;
    let subjects = |connection: &serde_json::Value| -> Vec<String> {
        let list = connection["subscriptions_list"].as_array();
        let mut list: Vec<String> = list
            .into_iter()
            .flatten()
            .map(|subject| subject.as_str().unwrap_or_default().to_owned())
            .collect();
        list.sort();
        list
    };
    Ok(connections
        .iter()
        .map(|connection| {
            let name = connection["name"].as_str().unwrap_or_default();
            (name.to_owned(), subjects(connection))
        })
        .collect())
}

#[tokio::test]
async fn two_thousand_channels_take_no_more_subscriptions_than_ten() -> Result<()> {
    let nats = NatsServer::start_with("http: \"127.0.0.1:-1\"").await?;
    let cluster = Cluster::start_on(nats).await?;
    let mut clients = Vec::new();
    let mut counted = Vec::new();
    for (prefix, count) in [("few", 10), ("many", 1_990)] {
        let channels = names(prefix, count);
        for half in channels.chunks(channels.len().div_ceil(4)) {
            for gateway in cluster.gateways.values() {
                clients.push(Follower::by_socket(&gateway.clients, half).await?);
            }
        }
        counted.push(subscriptions(&cluster).await?);
        for (name, admin) in cluster.admins() {
            let own = metric_at(admin, "dunlin_bus_subscriptions", &[]).await?;
            assert!((1.0..=5.0).contains(&own), "{name}: {own}");
        }
    }
    assert_eq!(counted[0], counted[1]);
    assert_eq!(counted[0].len(), 5, "{counted:?}");
    for (name, subjects) in &counted[0] {
        assert!((1..=5).contains(&subjects.len()), "{name}: {subjects:?}");
    }
    Ok(())
}

#[cfg(debug_assertions)]
#[tokio::test]
async fn wall_clocks_an_hour_off_harm_only_what_is_signed_there() -> Result<()> {
    let mut cluster = Cluster::empty(&["n1", "n2", "n3"]).await?;
    for (name, offset_s) in [("n1", 0), ("n2", -3_600), ("n3", 3_600)] {
        let command = cluster.node_command(name, &[]).await?;
        let command = cluster_tests::cluster::with_wrong_clock(command, offset_s);
        cluster.add_node_by(name, command).await?;
    }
    cluster.add_gateway("g1", &[]).await?;
    let command =
        cluster_tests::cluster::with_wrong_clock(cluster.gateway_command("g2", &[]), -3_600);
    cluster.add_gateway_by("g2", command).await?;
    cluster.ready().await;

    let channels = names("clock", 12);
    let followers = followers(&cluster, &channels).await?;
    let mut right = Publisher::connect(&cluster.gateway("g1").clients).await?;
    for channel in &channels {
        right.publish(channel, "by a right clock").await?;
    }
    let wrong = &cluster.gateway("g2").clients;
    let refused = Publisher::connect(wrong)
        .await?
        .try_publish(&channels[0], "x")
        .await?;
    let refused = (refused.status, refused.code());
    assert_eq!(refused, (401, "stale_timestamp".to_owned()));
    let mut wrong = Publisher::connect(wrong).await?;
    wrong.clock_offset_s = -3_600;
    for channel in &channels {
        wrong.publish(channel, "by the gateway's clock").await?;
        wrong.publish(channel, END).await?;
    }
    for got in received(followers).await? {
        for channel in &channels {
            assert_eq!(got[channel], ["by a right clock", "by the gateway's clock"]);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_cluster_works_on_the_oldest_supported_nats_server() -> Result<()> {
    let Some(binary) = nats::floor() else {
        return Ok(());
    };
    let mut cluster = Cluster::start_on(NatsServer::start_binary(&binary, "").await?).await?;
    let channels = names("old", 10);
    for restarted in [false, true] {
        if restarted {
            cluster.nats.restart().await?;
            cluster.ready().await;
        }
        let followers = followers(&cluster, &channels).await?;
        let mut publishers = publishers(&cluster, 1).await?;
        for channel in &channels {
            for (number, publisher) in publishers.iter_mut().enumerate() {
                publisher.publish(channel, &number.to_string()).await?;
            }
            publishers[0].publish(channel, END).await?;
        }
        for got in received(followers).await? {
            assert!(got.values().all(|data| data == &["0", "1"]), "{got:?}");
        }
    }
    Ok(())
}

/// What tells a person that a cluster is whole.
#[tokio::test]
async fn every_process_tells_the_same_of_the_cluster() -> Result<()> {
    let cluster = Cluster::start().await?;
    let seen = async |what: &str, keys: &[&str]| -> Result<BTreeSet<String>> {
        let mut answers = BTreeSet::new();
        for admin in cluster.admins().values() {
            let all = Cluster::inspect(admin, what).await?;
            let list = all[what].as_array().context("a list")?;
            let rows = list
                .iter()
                .map(|one| json!(keys.iter().map(|key| &one[*key]).collect::<Vec<_>>()));
            answers.insert(
                rows.map(|row| row.to_string())
                    .collect::<Vec<_>>()
                    .join(" "),
            );
        }
        Ok(answers)
    };
    let shards = seen("shards", &["shard", "owner", "fence"]).await?;
    assert_eq!(shards.len(), 1, "one map");
    let nodes = seen("nodes", &["name", "incarnation", "shards"]).await?;
    assert_eq!(nodes.len(), 1, "{nodes:?}");
    for gateway in ["g1", "g2"] {
        eventually("every node has heard of every gateway", async || {
            let rows = seen("gateways", &["name"]).await.ok()?;
            (rows.len() == 1 && rows.first()?.contains(gateway)).then_some(())
        })
        .await;
    }
    Ok(())
}
