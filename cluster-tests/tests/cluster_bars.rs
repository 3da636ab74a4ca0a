//! How soon a cluster is there, and how long a publication takes through it. In
//! a debug build, or beside other tests, the figures mean little and only their
//! making is tested; `make soak` holds a release build to the bars.

use std::time::Duration;

use anyhow::{Context, Result};
use cluster_tests::client::metric_at;
use cluster_tests::cluster::Cluster;
use cluster_tests::nats::NatsServer;
use cluster_tests::process::run;

/// From the first process to everything owned and ready.
#[tokio::test]
async fn a_cold_cluster_is_ready_soon() -> Result<()> {
    let mut cluster = Cluster::on(NatsServer::start().await?, &["n1", "n2", "n3"]).await?;
    let began = tokio::time::Instant::now();
    cluster.add_all().await?;
    cluster.ready().await;
    for gateway in cluster.gateways.values() {
        let shards = Cluster::inspect(&gateway.admin, "shards").await?;
        let owned = shards["shards"].as_array().context("a list")?;
        assert_eq!(owned.len(), 1_024);
    }
    let took = began.elapsed();
    println!("three nodes and two gateways, cold: {took:?}");
    assert!(
        cfg!(debug_assertions) || took <= Duration::from_secs(5),
        "{took:?}"
    );
    Ok(())
}

/// In at one gateway, out at the other, by the benchmark.
#[tokio::test]
async fn the_benchmark_measures_from_one_gateway_to_another() -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.protected().await;
    let (from, to) = (cluster.gateway("g1").url(), cluster.gateway("g2").url());
    let mut pids = vec![cluster.gateway("g1").pid(), cluster.gateway("g2").pid()];
    pids.extend(cluster.nodes.values().map(|node| node.pid()));
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    let pids = pids.join(",");
    let ended = run([
        "bench",
        "fanout",
        "--url",
        &from,
        "--subscribe-url",
        &to,
        "--channels",
        "10",
        "--subscribers",
        "20",
        "--rate",
        "200",
        "--seconds",
        "2",
        "--pid",
        &pids,
    ])
    .await?;
    assert!(ended.status.success(), "{ended:?}");
    let report: serde_json::Value = serde_json::from_str(&ended.stdout)?;
    // Each publication reaches the two subscribers of its channel.
    assert_eq!(report["deliveries"], 2 * 400, "{report}");
    assert_eq!(report["connections_lost"], 0, "{report}");
    let at = |name: &str| report["latency_us"][name].as_u64().context("a latency");
    let (p50, p99) = (at("p50")?, at("p99")?);
    println!("across gateways: p50 {p50} us, p99 {p99} us");
    assert!(p50 > 0 && p50 <= p99, "{report}");
    assert!(
        cfg!(debug_assertions) || (p50 <= 1_000 && p99 <= 4_000),
        "{report}"
    );
    Ok(())
}

/// Acknowledgements that owners have given with two copies.
async fn acks_of(cluster: &Cluster) -> Result<f64> {
    let mut acks = 0.0;
    for node in cluster.nodes.values() {
        let own = metric_at(&node.admin, "dunlin_acks_total", &["copies=\"2\""]);
        // It is not there before the first.
        acks += own.await.unwrap_or_default();
    }
    Ok(acks)
}

/// How long acknowledgements take that come from two processes, and how many
/// there are in a second; each is accounted for by an owner.
#[tokio::test]
async fn the_benchmark_publishes_over_http_and_as_a_gateway() -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.protected().await;
    let (gateway, bus) = (cluster.gateway("g1").url(), cluster.nats.url());
    let nodes = cluster.nodes.values().map(|node| node.pid().to_string());
    let pids: Vec<String> = nodes.collect();
    let seconds = if cfg!(debug_assertions) { "1" } else { "10" };
    let mut reports = Vec::new();
    for how in [
        ["--bus", &bus, "--in-flight", "1"],
        ["--bus", &bus, "--in-flight", "512"],
        ["--url", &gateway, "--in-flight", "1"],
        ["--url", &gateway, "--in-flight", "64"],
        ["--url", &gateway, "--batch", "10"],
    ] {
        let before = acks_of(&cluster).await?;
        let pids = pids.join(",");
        let what = ["bench", "publish", "--seconds", seconds, "--pid", &pids];
        let ended = run(what.iter().chain(&how)).await?;
        assert!(ended.status.success(), "{ended:?}");
        println!("{how:?}\n{}", ended.stderr);
        let report: serde_json::Value = serde_json::from_str(&ended.stdout)?;
        let acks = report["acks"].as_u64().context("acks")?;
        assert_eq!(report["refused"], serde_json::json!({}), "{report}");
        // And the first into each channel, which are not measured.
        let counted = acks_of(&cluster).await? - before;
        assert_eq!(counted, (acks + 1_000) as f64, "{report}");
        if how[0] == "--bus" {
            let both = serde_json::json!({ "2": acks });
            assert_eq!(report["acks_by_copies"], both, "{report}");
        }
        let cpu = report["cpu"].as_array().context("a list")?;
        assert_eq!(cpu.len(), 4, "three nodes and the load: {report}");
        reports.push(report);
    }
    let (sequential, pipelined) = (&reports[0], &reports[1]);
    let latency = |name: &str| sequential["latency_us"][name].as_u64().context("a latency");
    let (p50, p99) = (latency("p50")?, latency("p99")?);
    let rate = pipelined["acks_per_s"].as_f64().context("a rate")?;
    println!("one after the other: p50 {p50} us, p99 {p99} us; together {rate:.0}/s");
    assert!(p50 > 0 && p50 <= p99, "{sequential}");
    assert!(
        cfg!(debug_assertions) || (p50 <= 1_000 && p99 <= 5_000),
        "{sequential}"
    );
    assert!(cfg!(debug_assertions) || rate >= 25_000.0, "{pipelined}");
    Ok(())
}
