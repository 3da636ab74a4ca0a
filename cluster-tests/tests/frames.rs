//! Whatever clients send, in whatever order: nothing panics, no subscription stays, and
//! nobody is present who has gone. The frames are drawn from a seed that a failure names;
//! `SEEDS=n` tries more of them.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: what is asked is signed with the time"
)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::client::{Pusher, get, metric, signed_query};
use cluster_tests::process::Dev;
use cluster_tests::sim::random::Random;
use cluster_tests::{eventually, eventually_within};
use futures_util::{SinkExt, StreamExt};
use gateway::app::Secret;
use gateway::core::auth::{channel_signature, user_signature};
use proto::time::UnixTime;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

const APP: &str = r#"
[[apps]]
id = "app-id"
key = "app-key"
secret = "app-secret"
client_events = true
subscription_count = true
"#;
const SECRET: &str = "app-secret";
/// Clients of one seed, and frames of each.
const CLIENTS: usize = 8;
const FRAMES: u64 = 60;

const CHANNELS: [&str; 12] = [
    "room",
    "cache-room",
    "private-room",
    "private-cache-room",
    "private-encrypted-room",
    "presence-room",
    "presence-cache-room",
    "#server-to-user-ann",
    "#server-to-user-",
    "no room",
    "",
    "presence-",
];
const USERS: [&str; 3] = ["ann", "bob", "eve"];
/// What is no frame, or nearly one.
const TEXTS: [&str; 12] = [
    "",
    "{",
    "null",
    "[]",
    "\"pusher:ping\"",
    "{\"event\":null}",
    "{\"event\":7,\"data\":{}}",
    "{\"event\":\"pusher:subscribe\"}",
    "{\"event\":\"pusher:subscribe\",\"data\":\"{\"}",
    "{\"event\":\"pusher:subscribe\",\"data\":{\"channel\":[]}}",
    "{\"event\":\"pusher_internal:member_added\",\"channel\":\"presence-room\",\"data\":\"{}\"}",
    "{\"event\":\"dunlin:terminate\",\"channel\":\"#server-to-user-ann\",\"data\":\"\"}",
];

/// A frame of a client with this id: mostly one that makes sense.
fn frame(random: &mut Random, id: &str) -> String {
    let secret = Secret::new(SECRET);
    let channel = *random.pick(&CHANNELS);
    let user = *random.pick(&USERS);
    let is_right = !random.chance(200);
    match random.below(10) {
        0..4 => {
            let channel_data = channel
                .starts_with("presence-")
                .then(|| json!({"user_id": user, "user_info": random.below(9)}).to_string());
            let signature = match (id.parse(), channel.parse()) {
                (Ok(id), Ok(channel)) if is_right => {
                    channel_signature(&secret, id, &channel, channel_data.as_deref())
                }
                _ => "00".into(),
            };
            let recover = match random.below(8) {
                0 => json!(true),
                1 => json!({"epoch": "0000000000000001", "offset": random.below(9)}),
                2 => json!("x"),
                _ => Value::Null,
            };
            json!({"event": "pusher:subscribe", "data": {
                "channel": channel, "auth": format!("app-key:{signature}"),
                "channel_data": channel_data, "recover": recover,
            }})
            .to_string()
        }
        4 | 5 => json!({"event": "pusher:unsubscribe", "data": {"channel": channel}}).to_string(),
        6 => {
            let watchlist = match random.below(3) {
                0 => json!(USERS),
                1 => json!("ann"),
                _ => Value::Null,
            };
            let user_data = json!({"id": user, "watchlist": watchlist}).to_string();
            let signature = match id.parse() {
                Ok(id) if is_right => user_signature(&secret, id, &user_data),
                _ => "00".into(),
            };
            json!({"event": "pusher:signin", "data": {
                "auth": format!("app-key:{signature}"), "user_data": user_data,
            }})
            .to_string()
        }
        7 => {
            let event = random.pick(&["client-x", "client-", "pusher:pong", "x"]);
            json!({"event": event, "channel": channel, "data": {"n": random.below(9)}}).to_string()
        }
        8 => json!({"event": "pusher:ping", "data": {}}).to_string(),
        _ => (*random.pick(&TEXTS)).to_owned(),
    }
}

/// A client that sends frames, takes what comes, and goes in one of three ways.
async fn misbehave(server: &Dev, mut random: Random) -> Result<()> {
    let client = Pusher::connect(server).await?;
    let id = client.socket_id.clone();
    let mut socket = client.into_socket();
    for _ in 0..random.between(1, FRAMES) {
        let message = match random.below(100) {
            0 => Message::Binary(vec![1, 2, 3].into()),
            1 => Message::Ping(vec![7].into()),
            _ => Message::text(frame(&mut random, &id)),
        };
        // It may have been closed: then that was its end.
        if socket.send(message).await.is_err() {
            return Ok(());
        }
        if random.chance(300) {
            let _ = timeout(Duration::from_millis(2), socket.next()).await;
        }
    }
    match random.below(3) {
        0 => drop(socket),
        1 => {
            let _ = socket.close(None).await;
        }
        _ => {
            // Half a frame, and gone.
            use tokio::io::AsyncWriteExt;
            let stream = socket.get_mut();
            let _ = stream.write_all(&[0x81, 0xfe, 0x10]).await;
        }
    }
    Ok(())
}

/// What a backend is told, signed.
async fn ask(server: &Dev, path: &str) -> Result<Value> {
    let query = signed_query("GET", path, "", SECRET, UnixTime::now());
    let answer = get(&server.clients, &format!("{path}?{query}")).await?;
    ensure!(answer.status == 200, "{path}: {}", answer.body);
    Ok(answer.json())
}

async fn nothing_is_left(server: &Dev, seed: u64) -> Result<()> {
    // A lost member leaves after a second, and a channel that nobody follows after five.
    eventually_within(
        Duration::from_secs(15),
        &format!("seed {seed}: nobody is present"),
        async || {
            for channel in ["presence-room", "presence-cache-room"] {
                let path = format!("/apps/app-id/channels/{channel}/users");
                let users = ask(server, &path).await.ok()?;
                if users["users"] != json!([]) {
                    return None;
                }
            }
            Some(())
        },
    )
    .await;
    eventually(&format!("seed {seed}: nothing is subscribed"), async || {
        let gauge = async |name| metric(server, name, &[]).await;
        let subscriptions = gauge("dunlin_subscriptions").await.ok()?;
        let clients = metric(server, "dunlin_connected_clients", &["websocket"])
            .await
            .ok()?;
        (subscriptions == 0.0 && clients == 0.0).then_some(())
    })
    .await;
    let panics = metric(server, "dunlin_errors_total", &["panic", "connection"]).await?;
    ensure!(panics == 0.0, "seed {seed}: a connection panicked");
    Ok(())
}

#[tokio::test]
async fn whatever_clients_send_nothing_panics_and_nothing_is_left() -> Result<()> {
    let seeds = match std::env::var_os("SEEDS") {
        Some(seeds) => seeds
            .to_str()
            .and_then(|seeds| seeds.parse().ok())
            .context("SEEDS is a number")?,
        None => 12,
    };
    let server = Dev::start_configured(APP, &[]).await?;
    for seed in 0..seeds {
        let mut random = Random::new(seed);
        let clients = (0..CLIENTS).map(|_| misbehave(&server, random.fork()));
        let clients = futures_util::future::join_all(clients).await;
        for client in clients {
            client.with_context(|| format!("seed {seed}"))?;
        }
        if seed % 4 == 3 || seed + 1 == seeds {
            nothing_is_left(&server, seed).await?;
        }
    }
    // And it goes on as if nothing had been.
    let mut client = Pusher::connect(&server).await?;
    client.subscribe("room").await?;
    Ok(())
}
