//! What clients and backends may, and that whoever asks for more harms nobody else.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use cluster_tests::client::{
    Answer, EventStream, KEY, Pusher, get, metric, post_event, publish, request,
};
use cluster_tests::eventually;
use cluster_tests::process::Dev;
use futures_util::future::try_join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

async fn limited(server: &Dev, limiter: &str) -> Result<f64> {
    let label = format!("limiter=\"{limiter}\"");
    metric(server, "dunlin_rate_limit_triggered_total", &[&label]).await
}

fn retry_after(answer: &Answer) -> Result<u64> {
    let line = |line: &str| Some(line.strip_prefix("retry-after: ")?.parse());
    let found = answer.head.lines().find_map(line);
    Ok(found.with_context(|| format!("Retry-After: {}", answer.head))??)
}

/// Asks for an event stream from one of the addresses of this machine; the status.
async fn connect_from(server: &Dev, from: u8, headers: &str) -> Result<(u16, TcpStream)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, from), 0)))?;
    let mut stream = socket.connect(server.clients.parse()?).await?;
    let request = format!("GET /app/{KEY}/sse?channel=news HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    let status = std::str::from_utf8(&head[9..])?;
    Ok((status.parse()?, stream))
}

/// A client that gets what others get.
struct Bystander {
    client: Pusher,
    published: u32,
}

impl Bystander {
    async fn join(server: &Dev) -> Result<Self> {
        let mut client = Pusher::connect(server).await?;
        client.subscribe("news").await?;
        Ok(Self {
            client,
            published: 0,
        })
    }

    /// One publication is acknowledged, and arrives as the next frame.
    async fn is_served(&mut self, server: &Dev) -> Result<()> {
        self.published += 1;
        let data = self.published.to_string();
        publish(server, "news", "e", &data).await?;
        let frame = self.client.frame().await?;
        if frame["data"] != data {
            bail!("{data} expected: {frame}");
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_client_that_subscribes_to_thousands_of_channels_is_stopped() -> Result<()> {
    let server = Dev::start().await?;
    let mut bystander = Bystander::join(&server).await?;
    let mut greedy = Pusher::connect(&server).await?;
    let subscribe = |channel: &str| {
        let data = json!({ "channel": channel });
        json!({ "event": "pusher:subscribe", "data": data })
    };
    let mut refused = 0;
    for number in 0..1_900 {
        greedy.send(&subscribe(&format!("c{number}"))).await?;
        if number % 100 == 0 {
            bystander.is_served(&server).await?;
        }
    }
    for _ in 0..1_900 {
        let frame = greedy.frame().await?;
        if frame["event"] == "pusher:subscription_error" {
            assert_eq!(frame["data"]["type"], "LimitReached", "{frame}");
            refused += 1;
        }
    }
    assert_eq!(refused, 900);
    eventually(
        "there are its thousand channels, and the bystander's",
        async || {
            let active = metric(&server, "dunlin_active_channels", &[]).await.ok()?;
            (active == 1_001.0).then_some(())
        },
    )
    .await;
    let counted = limited(&server, "subscribe").await? + limited(&server, "subscriptions").await?;
    assert_eq!(counted, 900.0);
    bystander.is_served(&server).await
}

#[tokio::test]
async fn a_client_that_connects_and_disconnects_in_a_loop_is_stopped() -> Result<()> {
    let limits = "[limits]\nconnects_per_ip_per_s = 1\n";
    let server = Dev::start_configured(limits, &["--trusted-proxies", "none"]).await?;
    let mut bystander = Bystander::join(&server).await?;
    let mut refused = 0;
    for number in 0..300 {
        let (status, stream) = connect_from(&server, 9, "").await?;
        drop(stream);
        match status {
            200 => {}
            429 => refused += 1,
            other => bail!("status {other}"),
        }
        if number % 50 == 0 {
            bystander.is_served(&server).await?;
        }
    }
    // Ten at once, and then as many as seconds have passed: the machine's pace is
    // not the test's matter.
    assert!((200..=290).contains(&refused), "{refused}");
    assert_eq!(limited(&server, "connect_ip").await?, f64::from(refused));
    let labels = ["type=\"eventsource\"", "result=\"rate_limited\""];
    let counted = metric(&server, "dunlin_connects_total", &labels).await?;
    assert_eq!(counted, f64::from(refused));
    // Nor does it get further by naming what does not exist.
    for path in ["/app/nobody?protocol=7", "/nowhere"] {
        let mut said = Vec::new();
        // Seconds may have passed, each of which lets one more in.
        while !said.iter().any(|said: &String| said.contains("429")) {
            assert!(said.len() < 20, "{path}: {said:?}");
            let opened = Pusher::open_from(&server, Ipv4Addr::new(127, 0, 0, 9), path).await;
            said.push(match opened {
                Ok(_) => "let in".to_owned(),
                Err(error) => format!("{error:#}"),
            });
        }
    }
    // It is told when to come again; others come as they like.
    assert_eq!(connect_from(&server, 10, "").await?.0, 200);
    for _ in 0..20 {
        let path = format!("/app/{KEY}/sse?channel=news");
        let answer = get(&server.clients, &path);
        // The stream of one that is let in has no end.
        let Ok(answer) = tokio::time::timeout(std::time::Duration::from_millis(100), answer).await
        else {
            continue;
        };
        let answer = answer?;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (429, "rate_limited")
        );
        assert_eq!(retry_after(&answer)?, 1);
        return bystander.is_served(&server).await;
    }
    bail!("never refused");
}

#[tokio::test]
async fn a_full_server_says_so_and_serves_those_it_has() -> Result<()> {
    let server = Dev::start_configured("[limits]\nconnections_max = 2\n", &[]).await?;
    let mut bystander = Bystander::join(&server).await?;
    let mut stream = EventStream::open(&server, "channel=news", "").await?;
    stream.block().await?;
    for _ in 0..3 {
        let mut refused = Pusher::open(&server, &format!("/app/{KEY}?protocol=7")).await?;
        let frame = refused.frame().await?;
        assert_eq!(frame["data"]["code"], 4100, "{frame}");
        assert_eq!(refused.closed().await?, 4100);
    }
    let path = format!("/app/{KEY}/sse?channel=news");
    let mut waits = std::collections::HashSet::new();
    for _ in 0..5 {
        let answer = get(&server.clients, &path).await?;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (503, "over_capacity")
        );
        waits.insert(retry_after(&answer)?);
    }
    assert_eq!(waits.len(), 5, "they do not come back together: {waits:?}");
    assert_eq!(limited(&server, "connections").await?, 8.0);
    bystander.is_served(&server).await?;
    assert!(stream.block().await?.contains("data: 1\n"));
    drop(stream);
    let again = eventually("there is room again", async || {
        Pusher::connect(&server).await.ok()
    });
    again.await;
    bystander.is_served(&server).await
}

#[tokio::test]
async fn clients_behind_a_proxy_are_told_apart() -> Result<()> {
    let limits = "[limits]\nconnections_per_ip_max = 2\n";
    let server =
        Dev::start_configured(limits, &["--trusted-proxies", "127.0.0.9,10.0.0.0/8"]).await?;
    let one = "x-forwarded-for: 9.9.9.9, 5.6.7.8, 10.1.1.1\r\n";
    let mut held = Vec::new();
    for _ in 0..2 {
        let (status, stream) = connect_from(&server, 9, one).await?;
        assert_eq!(status, 200);
        held.push(stream);
    }
    assert_eq!(connect_from(&server, 9, one).await?.0, 429);
    let other = "x-forwarded-for: 5.6.7.9\r\n";
    assert_eq!(connect_from(&server, 9, other).await?.0, 200);
    // Whoever is no proxy cannot pass for others.
    for _ in 0..2 {
        let (status, stream) = connect_from(&server, 8, other).await?;
        assert_eq!(status, 200);
        held.push(stream);
    }
    assert_eq!(
        connect_from(&server, 8, "x-forwarded-for: 1.1.1.1\r\n")
            .await?
            .0,
        429
    );
    assert_eq!(limited(&server, "connections").await?, 2.0);
    Ok(())
}

#[tokio::test]
async fn backends_are_told_to_slow_down() -> Result<()> {
    let app = "id = \"app-id\"\nkey = \"app-key\"\nsecret = \"app-secret\"\n";
    for (limit, limiter) in [
        ("api_requests_per_s", "api"),
        ("publishes_per_s", "publish"),
    ] {
        let server = Dev::start_configured(&format!("[[apps]]\n{app}{limit} = 1\n"), &[]).await?;
        let mut follower = Pusher::connect(&server).await?;
        follower.subscribe("news").await?;
        let mut taken = 0;
        let refusal = loop {
            let event = json!({ "name": "e", "channel": "news", "data": taken.to_string() });
            let answer = post_event(&server, &event).await?;
            match answer.status {
                200 => taken += 1,
                _ => break answer,
            }
            assert!(taken < 100, "never refused");
        };
        assert!(taken >= 2, "{taken}");
        assert_eq!(
            (refusal.status, refusal.code().as_str()),
            (429, "rate_limited")
        );
        assert_eq!(retry_after(&refusal)?, 1);
        assert_eq!(limited(&server, limiter).await?, 1.0);
        eventually("another one is taken", async || {
            let event = json!({ "name": "e", "channel": "news", "data": "last" });
            let answer = post_event(&server, &event).await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await;
        // Nothing of what was refused has been published.
        for expected in 0..taken {
            assert_eq!(follower.frame().await?["data"], expected.to_string());
        }
        assert_eq!(follower.frame().await?["data"], "last");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_too_large_is_counted() -> Result<()> {
    let server = Dev::start().await?;
    let mut client = Pusher::connect(&server).await?;
    client.send_text(&"x".repeat(70_000)).await?;
    client.frame().await?;
    assert_eq!(client.closed().await?, 1009);
    let body = "x".repeat(900_000);
    let answer = request(&server.clients, "POST", "/apps/app-id/events", "", &body).await?;
    assert_eq!(answer.status, 401, "who asks is settled first");
    let event = json!({ "name": "e", "channel": "news", "data": "x".repeat(200_000) });
    assert_eq!(post_event(&server, &event).await?.status, 413);
    assert_eq!(limited(&server, "message_size").await?, 2.0);
    Ok(())
}

/// However little room there is at a time, who comes and says what it wants is let
/// in, and nobody is sent away for the sake of others.
#[tokio::test]
async fn a_crowd_that_comes_at_once_is_let_in() -> Result<()> {
    // Room for 64 connections that have not said yet what they want.
    let server = Dev::start_with_files(1_024).await?;
    let crowd = (0..500).map(|_| connect_from(&server, 1, ""));
    let crowd = try_join_all(crowd).await?;
    assert!(crowd.iter().all(|(status, _)| *status == 200));
    assert_eq!(limited(&server, "connections").await?, 0.0);
    Ok(())
}

/// Connections that never say what they want hold none of the files that clients
/// need, and keep nobody out.
#[tokio::test]
async fn clients_that_say_nothing_keep_nobody_out() -> Result<()> {
    // Room for 64 connections that have not said yet what they want.
    let server = Dev::start_with_files(1_024).await?;
    let mut bystander = Bystander::join(&server).await?;
    let mut silent = Vec::new();
    for number in 0..300 {
        let mut stream = TcpStream::connect(&server.clients).await?;
        if number % 2 == 0 {
            stream
                .write_all(b"GET /app/app-key/sse?channel=x HT")
                .await?;
        }
        silent.push(stream);
        if number % 100 == 0 {
            bystander.is_served(&server).await?;
        }
    }
    bystander.is_served(&server).await?;
    let mut late = Bystander::join(&server).await?;
    late.is_served(&server).await?;
    // There is room for 64 of them.
    assert!(limited(&server, "connections").await? >= 200.0);
    Ok(())
}
