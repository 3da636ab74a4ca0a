//! Everything that was acknowledged arrives: once, in order, the same order
//! everywhere.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: tests start tasks and read the clock"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use cluster_tests::client::{EventStream, Pusher, post_event, publish};
use cluster_tests::process::{Dev, Tool, command, run_command};
use futures_util::future::try_join_all;
use serde_json::json;
use tokio::io::AsyncWriteExt;

/// Rounds and sizes of the bars; `make soak` repeats them.
const LINES: u32 = 10_000;
const ROUNDS: u32 = 500;
const AT_ONCE: u32 = 10;
const SUBSCRIBERS: usize = 50;

#[tokio::test]
async fn from_start_to_the_first_message_in_under_a_second() -> Result<()> {
    // Built, if need be, before the time is taken.
    cluster_tests::process::binary();
    let began = Instant::now();
    let server = Dev::start().await?;
    let mut client = Pusher::connect(&server).await?;
    client.subscribe("first").await?;
    publish(&server, "first", "e", "hello").await?;
    assert_eq!(client.frame().await?["data"], "hello");
    let took = began.elapsed();
    assert!(took.as_secs_f64() < 1.0, "it took {took:?}");
    Ok(())
}

#[tokio::test]
async fn ten_thousand_lines_through_pub_and_sub() -> Result<()> {
    let server = Dev::start().await?;
    let mut public = Tool::subscribe(&server, &["lines"]).await?;
    let mut publisher = Tool::start(["pub", "lines", "--url", &server.url()])?;
    let mut input = publisher.input.take().context("stdin is piped")?;
    let writing = tokio::spawn(async move {
        for line in 0..LINES {
            input.write_all(format!("line {line}\n").as_bytes()).await?;
        }
        anyhow::Ok(())
    });
    for line in 0..LINES {
        assert_eq!(public.line().await?, format!("line {line}"));
    }
    writing.await??;
    let ended = publisher.end().await?;
    assert!(ended.status.success(), "{ended:?}");
    Ok(())
}

/// Half of the subscribers by WebSocket, half by SSE: one order for all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_publications_have_one_order() -> Result<()> {
    let server = Dev::start().await?;
    let mut sockets = Vec::new();
    let mut streams = Vec::new();
    for number in 0..SUBSCRIBERS {
        if number % 2 == 0 {
            let mut socket = Pusher::connect(&server).await?;
            socket.subscribe("busy").await?;
            sockets.push(socket);
        } else {
            let mut stream = EventStream::open(&server, "channel=busy", "").await?;
            assert!(stream.block().await?.starts_with("id: "), "attached");
            streams.push(stream);
        }
    }
    let total = ROUNDS * AT_ONCE;
    let from_sockets = sockets.into_iter().map(|mut socket| {
        tokio::spawn(async move {
            let mut got = Vec::new();
            for _ in 0..total {
                got.push(
                    socket.frame().await?["data"]
                        .as_str()
                        .context("data")?
                        .to_owned(),
                );
            }
            anyhow::Ok(got)
        })
    });
    let from_streams = streams.into_iter().map(|mut stream| {
        tokio::spawn(async move {
            let mut got = Vec::new();
            for _ in 0..total {
                let block = stream.block().await?;
                let data = block
                    .lines()
                    .find_map(|line| line.strip_prefix("data: "))
                    .context("data")?;
                got.push(data.to_owned());
            }
            anyhow::Ok(got)
        })
    });
    let receiving: Vec<_> = from_sockets.chain(from_streams).collect();
    for round in 0..ROUNDS {
        let all = (0..AT_ONCE).map(|n| {
            let data = format!("{round}.{n}");
            let server = &server;
            async move { publish(server, "busy", "e", &data).await }
        });
        try_join_all(all).await?;
    }
    let mut orders = Vec::new();
    for received in receiving {
        orders.push(received.await??);
    }
    for order in &orders[1..] {
        assert_eq!(order, &orders[0], "the same order at every subscriber");
    }
    let mut times: BTreeMap<&str, u32> = BTreeMap::new();
    for data in &orders[0] {
        *times.entry(data).or_default() += 1;
    }
    assert_eq!(times.len() as u32, total, "nothing lost");
    assert!(times.values().all(|n| *n == 1), "nothing twice");
    // A round begins when the one before it has been acknowledged.
    let rounds: Vec<u32> = orders[0]
        .iter()
        .filter_map(|data| data.split('.').next()?.parse().ok())
        .collect();
    assert!(
        rounds.is_sorted(),
        "what was acknowledged comes before what was published later"
    );
    Ok(())
}

#[tokio::test]
async fn the_publisher_can_be_left_out() -> Result<()> {
    let server = Dev::start().await?;
    let mut publisher = Pusher::connect(&server).await?;
    let mut other = Pusher::connect(&server).await?;
    publisher.subscribe("room").await?;
    other.subscribe("room").await?;
    let event =
        json!({ "name": "e", "channel": "room", "data": "1", "socket_id": publisher.socket_id });
    assert_eq!(post_event(&server, &event).await?.status, 200);
    publish(&server, "room", "e", "2").await?;
    assert_eq!(other.frame().await?["data"], "1");
    assert_eq!(other.frame().await?["data"], "2");
    assert_eq!(publisher.frame().await?["data"], "2");
    Ok(())
}

#[tokio::test]
async fn one_event_into_several_channels() -> Result<()> {
    let server = Dev::start().await?;
    let mut client = Pusher::connect(&server).await?;
    let channels: Vec<String> = (0..10).map(|n| format!("many-{n}")).collect();
    for channel in &channels {
        client.subscribe(channel).await?;
    }
    let event = json!({ "name": "e", "channels": channels, "data": "d" });
    assert_eq!(post_event(&server, &event).await?.status, 200);
    let mut got = Vec::new();
    for _ in &channels {
        got.push(
            client.frame().await?["channel"]
                .as_str()
                .context("a channel")?
                .to_owned(),
        );
    }
    got.sort();
    assert_eq!(got, channels);
    Ok(())
}

#[tokio::test]
async fn a_repeated_subscribe_repeats_the_acknowledgement_and_not_the_delivery() -> Result<()> {
    let server = Dev::start().await?;
    let mut client = Pusher::connect(&server).await?;
    client.subscribe("twice").await?;
    client.subscribe("twice").await?;
    publish(&server, "twice", "e", "1").await?;
    publish(&server, "twice", "e", "2").await?;
    assert_eq!(client.frame().await?["data"], "1");
    assert_eq!(client.frame().await?["data"], "2");
    client
        .send(&json!({ "event": "pusher:unsubscribe", "data": { "channel": "twice" } }))
        .await?;
    client.subscribe("marker").await?;
    publish(&server, "twice", "e", "3").await?;
    publish(&server, "marker", "e", "4").await?;
    assert_eq!(client.frame().await?["data"], "4");
    Ok(())
}

#[tokio::test]
async fn a_stream_of_several_channels_has_a_cursor_of_all() -> Result<()> {
    let server = Dev::start().await?;
    let mut stream = EventStream::open(&server, "channel=b&channel=a&envelope=true", "").await?;
    let cursor = stream.block().await?;
    let positions: Vec<&str> = cursor
        .strip_prefix("id: ")
        .context("an id alone")?
        .split(',')
        .collect();
    assert!(
        positions.iter().all(|position| position.ends_with("-0")),
        "{cursor}"
    );
    publish(&server, "b", "news", "x\ny").await?;
    let block = stream.block().await?;
    let lines: Vec<&str> = block.lines().collect();
    let message: serde_json::Value =
        serde_json::from_str(lines[0].strip_prefix("data: ").context("data")?)?;
    assert_eq!(
        message,
        json!({ "event": "news", "channel": "b", "data": "x\ny" })
    );
    // In the order of the channels' names: a has moved not, b by one.
    assert!(
        lines[1].starts_with(&format!("id: {},", positions[0])) && lines[1].ends_with("-1"),
        "{block}"
    );
    Ok(())
}

/// A stream of a busy channel and one that is not attached yet: the answer
/// begins with its head, whatever comes first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_begins_with_its_head() -> Result<()> {
    let server = Arc::new(Dev::start_with(["--workers", "1"]).await?);
    let mut first = Pusher::connect(&server).await?;
    first.subscribe("busy").await?;
    let publisher = tokio::spawn({
        let server = Arc::clone(&server);
        async move { while publish(&server, "busy", "e", "x").await.is_ok() {} }
    });
    for n in 0..200 {
        let mut stream =
            EventStream::open(&server, &format!("channel=busy&channel=idle{n}"), "").await?;
        assert!(stream.head.starts_with("http/1.1 200"), "{}", stream.head);
        loop {
            let block = stream.block().await?;
            assert!(!block.contains("HTTP/"), "{block}");
            // Attached to both.
            if !block.ends_with(",-") {
                break;
            }
        }
    }
    publisher.abort();
    Ok(())
}

/// A page that is not there yet gets the next message, not the one before.
#[tokio::test]
async fn a_subscriber_gets_what_comes_after_its_acknowledgement() -> Result<()> {
    let server = Dev::start().await?;
    let ended = run_command(command(["pub", "late", "--url", &server.url()]), "before\n").await?;
    assert!(ended.status.success(), "{ended:?}");
    let mut client = Pusher::connect(&server).await?;
    client.subscribe("late").await?;
    publish(&server, "late", "e", "after").await?;
    assert_eq!(client.frame().await?["data"], "after");
    Ok(())
}
