//! Clients that publish to each other, through two gateways and three nodes.

use anyhow::{Context, Result, ensure};
use cluster_tests::client::{KEY, Pusher, metric_at, post_event_to};
use cluster_tests::cluster::Cluster;
use cluster_tests::process::Dev;
use gateway::app::Secret;
use gateway::core::auth::channel_signature;
use serde_json::{Value, json};

/// An app whose clients may, one whose clients may seldom, and one whose may not.
const APPS: &str = r#"
[[apps]]
id = "app-id"
key = "app-key"
secret = "app-secret"
client_events = true
client_events_per_s = 0

[[apps]]
id = "seldom"
key = "seldom"
secret = "app-secret"
client_events = true

[[apps]]
id = "never"
key = "never"
secret = "app-secret"
"#;

struct World {
    cluster: Cluster,
}

impl World {
    /// Two gateways of these apps.
    async fn start() -> Result<Self> {
        let mut cluster = Cluster::start().await?;
        cluster.add_gateways_of(APPS, &["c1", "c2"]).await?;
        Ok(Self { cluster })
    }

    fn gateway(&self, name: &str) -> &Dev {
        self.cluster.gateway(name)
    }

    async fn client(&self, gateway: &str, key: &str, channel: &str) -> Result<Pusher> {
        let path = format!("/app/{key}?protocol=7");
        let mut client = Pusher::open(self.gateway(gateway), &path).await?;
        let established = client.frame().await?;
        let data: Value = serde_json::from_str(established["data"].as_str().context("text")?)?;
        client.socket_id = data["socket_id"].as_str().context("an id")?.to_owned();
        follow(&mut client, key, channel, json!(null)).await?;
        Ok(client)
    }
}

async fn follow(client: &mut Pusher, key: &str, channel: &str, recover: Value) -> Result<()> {
    let (secret, id) = (Secret::new("app-secret"), client.socket_id.parse()?);
    let signature = channel_signature(&secret, id, &channel.parse()?, None);
    let auth = format!("{key}:{signature}");
    let data = json!({ "channel": channel, "auth": auth, "recover": recover });
    client
        .send(&json!({ "event": "pusher:subscribe", "data": data }))
        .await?;
    let frame = client.frame().await?;
    ensure!(
        frame["event"] == "pusher_internal:subscription_succeeded",
        "{frame}"
    );
    Ok(())
}

fn event(channel: &str, data: impl Into<Value>) -> Value {
    json!({ "event": "client-typing", "channel": channel, "data": data.into() })
}

/// What a client is told instead.
async fn rejected(client: &mut Pusher, frame: &Value) -> Result<String> {
    client.send(frame).await?;
    let told = client.frame().await?;
    ensure!(told["event"] == "pusher:error", "{told}");
    ensure!(told["data"]["code"] == 4301, "{told}");
    Ok(told["data"]["message"].as_str().context("text")?.to_owned())
}

#[tokio::test]
async fn clients_publish_to_each_other() -> Result<()> {
    let mut world = World::start().await?;
    others_get_it_once_and_in_order(&world).await?;
    its_own_events_move_a_client_on(&world).await?;
    what_may_not_be_is_refused(&world).await?;
    what_nobody_takes_is_not_lost_in_silence(&mut world).await
}

async fn others_get_it_once_and_in_order(world: &World) -> Result<()> {
    let room = "private-room";
    let mut sender = world.client("c1", KEY, room).await?;
    let mut beside = world.client("c1", KEY, room).await?;
    let mut away = world.client("c2", KEY, room).await?;
    sender.send(&event(room, json!({ "who": "a" }))).await?;
    for client in [&mut beside, &mut away] {
        let frame = client.frame().await?;
        // As every event: data is text, which clients parse.
        let expected =
            json!({ "event": "client-typing", "channel": room, "data": "{\"who\":\"a\"}" });
        assert_eq!(frame, expected);
    }
    for number in 0..500 {
        sender.send(&event(room, number.to_string())).await?;
    }
    for client in [&mut beside, &mut away] {
        for number in 0..500 {
            assert_eq!(client.frame().await?["data"], number.to_string());
        }
    }
    // It gets what backends publish, and nothing of its own before that.
    let last = json!({ "name": "last", "channel": room, "data": "" });
    let answer = post_event_to(&world.gateway("c2").clients, &last).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    for client in [&mut sender, &mut beside, &mut away] {
        assert_eq!(client.frame().await?["event"], "last");
    }
    let received = ["op=\"client_event\""];
    let admin = &world.gateway("c1").admin;
    let received = metric_at(admin, "dunlin_messages_received_total", &received).await?;
    assert_eq!(received, 501.0);
    Ok(())
}

/// A client that resumes is told where what it has published stands.
async fn its_own_events_move_a_client_on(world: &World) -> Result<()> {
    let room = "private-chat";
    let mut sender = world.client("c1", KEY, "private-other").await?;
    follow(&mut sender, KEY, room, json!(true)).await?;
    let mut other = world.client("c2", KEY, room).await?;
    sender.send(&event(room, "x")).await?;
    assert_eq!(other.frame().await?["event"], "client-typing");
    let moved = sender.frame().await?;
    assert_eq!(moved["event"], "dunlin:position", "{moved}");
    Ok(())
}

async fn what_may_not_be_is_refused(world: &World) -> Result<()> {
    let room = "private-room";
    let mut client = world.client("c1", KEY, room).await?;
    client.subscribe("public").await?;
    follow(&mut client, KEY, "private-encrypted-room", json!(null)).await?;
    for (channel, why) in [
        ("public", "private and presence"),
        ("private-encrypted-room", "encrypted"),
        ("private-elsewhere", "subscribe to it first"),
        ("no channel", "channel: "),
    ] {
        let message = rejected(&mut client, &event(channel, "x")).await?;
        assert!(message.contains(why), "{channel}: {message}");
    }
    client.send(&json!({ "event": "client-x" })).await?;
    let told = client.frame().await?;
    assert_eq!(told["data"]["message"], "client-x has no channel");

    let mut never = world.client("c1", "never", room).await?;
    let message = rejected(&mut never, &event(room, "x")).await?;
    assert!(message.contains("does not take"), "{message}");

    let mut seldom = world.client("c1", "seldom", room).await?;
    let mut other = world.client("c2", "seldom", room).await?;
    for _ in 0..20 {
        seldom.send(&event(room, "x")).await?;
    }
    let message = rejected(&mut seldom, &event(room, "one too many")).await?;
    assert!(message.contains("10 events a second"), "{message}");
    for _ in 0..20 {
        assert_eq!(other.frame().await?["data"], "x");
    }
    let limited = ["limiter=\"client_events\""];
    let admin = &world.gateway("c1").admin;
    let limited = metric_at(admin, "dunlin_rate_limit_triggered_total", &limited).await?;
    assert_eq!(limited, 1.0);
    Ok(())
}

/// While nobody can take it, its publisher is told so.
async fn what_nobody_takes_is_not_lost_in_silence(world: &mut World) -> Result<()> {
    let room = "private-room";
    let mut client = world.client("c1", KEY, room).await?;
    for node in ["n1", "n2", "n3"] {
        world.cluster.kill_node(node).await?;
    }
    let message = rejected(&mut client, &event(room, "x")).await?;
    assert!(message.starts_with("client-typing"), "{message}");
    Ok(())
}
