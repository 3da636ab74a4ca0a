//! Clients that read more slowly than is published: what waits for them is bounded,
//! each alone and all together, in bytes and in time; and in namespaces that say so
//! they are given later what they did not take.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use cluster_tests::client::{EventStream, Pusher, metric, publish};
use cluster_tests::network::{Network, SERVER};
use cluster_tests::process::{Dev, binary, command, command_of};
use cluster_tests::{eventually, skipped};
use serde_json::Value;

/// Of a publication; what the kernel takes for a client that does not read is some
/// hundred of them.
const BYTES: usize = 2_000;

/// A namespace of which slow clients are given later what they did not take.
fn patient(history_publications: u32) -> String {
    format!(
        "[[namespaces]]\nmatch = \"*\"\nslow = \"gap\"\n\
         history_publications = {history_publications}\nhistory_bytes = 16777216\n"
    )
}

async fn publish_all(server: &Dev, numbers: std::ops::Range<u32>) -> Result<()> {
    for number in numbers {
        let data = format!("{number} {}", "x".repeat(BYTES));
        publish(server, "flood", "e", &data).await?;
    }
    Ok(())
}

fn number_in(data: &str) -> Result<u32> {
    let word = data.split(' ').next().unwrap_or_default();
    word.parse().with_context(|| format!("a number: {word:?}"))
}

async fn fell_behind(server: &Dev) -> Result<f64> {
    metric(server, "dunlin_slow_consumers_total", &["gap"]).await
}

#[tokio::test]
async fn a_slow_client_gets_everything_when_it_reads_again() -> Result<()> {
    let small = ["--outbox-bytes-max", "65536", "--send-buffer-bytes", "8192"];
    let server = Dev::start_configured(&patient(2_000), &small).await?;
    let mut socket = Pusher::connect(&server).await?;
    socket.subscribe("flood").await?;
    let mut stream = EventStream::open(&server, "channel=flood", "").await?;
    stream.block().await?;
    publish_all(&server, 0..1_000).await?;
    assert!(fell_behind(&server).await? >= 2.0, "both");
    for expected in 0..1_000 {
        let frame: Value = socket.frame().await?;
        assert_eq!(frame["event"], "e", "{frame}");
        let data = frame["data"].as_str().context("data")?;
        assert_eq!(number_in(data)?, expected);
    }
    for expected in 0..1_000 {
        let block = stream.block().await?;
        let data = block.lines().find_map(|line| line.strip_prefix("data: "));
        let Some(data) = data else {
            bail!("no data: {block}");
        };
        assert_eq!(number_in(data)?, expected);
    }
    // And they go on with everybody else.
    publish_all(&server, 1_000..1_001).await?;
    let frame = socket.frame().await?;
    assert_eq!(number_in(frame["data"].as_str().context("data")?)?, 1_000);
    let cut_off = metric(&server, "dunlin_slow_consumers_total", &["disconnected"]).await?;
    assert_eq!(cut_off, 0.0);
    Ok(())
}

#[tokio::test]
async fn what_history_has_no_more_when_a_slow_client_reads_again_is_announced() -> Result<()> {
    let small = ["--outbox-bytes-max", "65536", "--send-buffer-bytes", "8192"];
    let server = Dev::start_configured(&patient(10), &small).await?;
    let mut socket = Pusher::connect(&server).await?;
    socket.subscribe("flood").await?;
    publish_all(&server, 0..1_000).await?;
    assert!(fell_behind(&server).await? >= 1.0);
    let mut expected = 0;
    let gap = loop {
        let frame = socket.frame().await?;
        if frame["event"] != "e" {
            break frame;
        }
        assert_eq!(
            number_in(frame["data"].as_str().context("data")?)?,
            expected
        );
        expected += 1;
    };
    assert_eq!(gap["event"], "dunlin:gap", "{gap}");
    assert!(expected > 0, "what waited was not dropped");
    publish_all(&server, 1_000..1_001).await?;
    let next = socket.frame().await?;
    assert_eq!(number_in(next["data"].as_str().context("data")?)?, 1_000);
    Ok(())
}

#[tokio::test]
async fn a_client_that_takes_nothing_for_long_is_disconnected_however_little_waits() -> Result<()> {
    let server = Dev::start_configured(&patient(2_000), &["--outbox-age-max-s", "1"]).await?;
    let mut socket = Pusher::connect(&server).await?;
    socket.subscribe("flood").await?;
    publish_all(&server, 0..400).await?;
    let waits = metric(&server, "dunlin_outbox_bytes", &[]).await;
    eventually("it is disconnected", async || {
        let name = "dunlin_slow_consumers_total";
        let cut_off = metric(&server, name, &["disconnected"]).await.ok()?;
        (cut_off == 1.0).then_some(())
    })
    .await;
    assert!(waits? < 1_000_000.0, "less than may wait for one client");
    eventually("nothing waits for it", async || {
        let waits = metric(&server, "dunlin_outbox_bytes", &[]).await.ok()?;
        (waits == 0.0).then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn what_waits_for_all_clients_is_bounded_and_the_slowest_go_first() -> Result<()> {
    const TOTAL: usize = 2_000_000;
    let total = TOTAL.to_string();
    let bounded = ["--outbox-bytes-total-max", &total, "--workers", "1"];
    let server = Dev::start_configured("", &bounded).await?;
    let mut stalled = Vec::new();
    for _ in 0..30 {
        let mut client = Pusher::connect(&server).await?;
        client.subscribe("flood").await?;
        stalled.push(client);
    }
    let mut healthy = Pusher::connect(&server).await?;
    healthy.subscribe("flood").await?;
    for number in 0..400 {
        publish_all(&server, number..number + 1).await?;
        let frame = healthy.frame().await?;
        assert_eq!(number_in(frame["data"].as_str().context("data")?)?, number);
        if number % 50 == 0 {
            let waits = metric(&server, "dunlin_outbox_bytes", &[]).await?;
            assert!(waits <= TOTAL as f64, "{waits} bytes wait");
        }
    }
    let cut_off = metric(&server, "dunlin_slow_consumers_total", &["disconnected"]).await?;
    assert!(
        cut_off >= 20.0,
        "30 of them had 0.6 MB each to read: {cut_off}"
    );
    Ok(())
}

/// On the server's machine, where nothing is lost.
async fn publish_within(network: &Network, server: &Dev) -> Result<()> {
    let script = "echo x | \"$0\" pub bench-x-0 --url \"$1\"";
    let mut publish = command_of("sh".as_ref(), ["-c", script]);
    publish.arg(binary()).arg(server.url());
    let ended = network.at_server(&publish)?.output().await?;
    anyhow::ensure!(ended.status.success(), "{ended:?}");
    Ok(())
}

/// Whoever is gone without a word is not kept: what was sent to it is not
/// acknowledged, and the kernel says so.
#[tokio::test]
async fn a_client_whose_network_is_gone_is_given_up() -> Result<()> {
    let Some(network) = Network::make().await? else {
        skipped("no network namespace can be made here");
        return Ok(());
    };
    let impatient = ["--activity-timeout-s", "1", "--outbox-age-max-s", "1"];
    let listen = format!("{SERVER}:0");
    let server = ["dev", "--listen", &listen, "--admin", "127.0.0.1:0"];
    let server = command(server.iter().chain(&impatient));
    let server = Dev::start_command(network.at_server(&server)?).await?;
    let (_, port) = server.clients.rsplit_once(':').context("a port")?;
    let port = port.parse()?;
    let url = server.url();
    // A WebSocket; it ends when its stdin does.
    let client = [
        "bench",
        "subscribers",
        "--run",
        "x",
        "--channels",
        "1",
        "--count",
        "1",
    ];
    let mut client = network.at_client(&command(client.iter().chain(&["--url", &url])));
    client.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut client = client.stderr(Stdio::null()).spawn()?;
    let established =
        async |count: usize| network.established(port).ok().filter(|now| *now == count);
    eventually("it is connected", async || established(1).await).await;
    network.lose_what_the_server_sends().await?;
    publish_within(&network, &server).await?;
    // Eleven seconds until the kernel gives up; a pong would be waited for half a
    // minute.
    eventually("it is given up", async || established(0).await).await;
    client.kill().await?;
    Ok(())
}
