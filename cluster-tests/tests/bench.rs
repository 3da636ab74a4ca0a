//! Each scenario of `dunlin bench`, small, against a server that runs: every
//! delivery is accounted for.

use anyhow::{Context, Result};
use cluster_tests::client::metric;
use cluster_tests::process::{Dev, run};
use serde_json::Value;

/// Runs a scenario; what it printed for programs.
async fn bench(server: &Dev, scenario: &str, arguments: &[&str]) -> Result<Value> {
    let (url, pid) = (server.url(), server.pid().to_string());
    let to = ["bench", scenario, "--url", &url, "--pid", &pid];
    let ended = run(to.iter().chain(arguments)).await?;
    assert!(ended.status.success(), "{ended:?}");
    let report: Value = serde_json::from_str(&ended.stdout)?;
    assert_eq!(report["bench"], scenario);
    Ok(report)
}

fn number(report: &Value, pointer: &str) -> Result<f64> {
    let value = report.pointer(pointer).and_then(Value::as_f64);
    value.with_context(|| format!("{pointer} in {report}"))
}

#[tokio::test]
async fn many_channels_with_few_followers() -> Result<()> {
    let server = Dev::start().await?;
    let small = [
        "--channels",
        "5",
        "--followers",
        "3",
        "--rate",
        "100",
        "--seconds",
        "1",
    ];
    let report = bench(&server, "many", &small).await?;
    assert_eq!(number(&report, "/deliveries")?, 300.0);
    assert_eq!(number(&report, "/connections_lost")?, 0.0);
    assert!(number(&report, "/latency_us/p50")? > 0.0);
    Ok(())
}

#[tokio::test]
async fn a_flood_arrives_whole() -> Result<()> {
    let server = Dev::start().await?;
    let small = [
        "--subscribers",
        "50",
        "--window",
        "8",
        "--seconds",
        "1",
        "--no-floor",
    ];
    let report = bench(&server, "flood", &small).await?;
    let publications = number(&report, "/publications")?;
    assert!(publications > 8.0, "more than one window: {report}");
    assert_eq!(number(&report, "/deliveries")?, 50.0 * publications);
    let counted = metric(&server, "dunlin_deliveries_total", &["ok"]).await?;
    assert_eq!(counted, 50.0 * publications);
    Ok(())
}

#[tokio::test]
async fn small_channels_beside_a_large_one() -> Result<()> {
    let server = Dev::start().await?;
    let small = [
        "--crowd",
        "100",
        "--crowd-rate",
        "5",
        "--channels",
        "10",
        "--rate",
        "50",
        "--seconds",
        "2",
    ];
    let report = bench(&server, "victim", &small).await?;
    assert_eq!(number(&report, "/deliveries")?, 100.0);
    assert_eq!(number(&report, "/crowd_deliveries")?, 1_000.0);
    assert!(number(&report, "/alone_us/p99")? > 0.0);
    assert_eq!(number(&report, "/connections_lost")?, 0.0);
    Ok(())
}

#[tokio::test]
async fn connections_that_do_nothing() -> Result<()> {
    let server = Dev::start().await?;
    let small = ["--connections", "200", "--channels", "20", "--wait", "1"];
    let report = bench(&server, "idle", &small).await?;
    assert!(number(&report, "/server_rss_bytes_idle")? > 0.0, "{report}");
    let labels = ["type=\"websocket\"", "result=\"ok\""];
    let opened = metric(&server, "dunlin_connects_total", &labels).await?;
    assert_eq!(opened, 200.0);
    Ok(())
}

#[tokio::test]
async fn connections_that_are_dropped_and_opened_again() -> Result<()> {
    let server = Dev::start().await?;
    let small = ["--connections", "200", "--channels", "20", "--times", "2"];
    let report = bench(&server, "storm", &small).await?;
    let labels = ["type=\"websocket\"", "result=\"ok\""];
    let opened = metric(&server, "dunlin_connects_total", &labels).await?;
    assert_eq!(
        opened,
        3.0 * 200.0 + 50.0,
        "three times, and those who stay"
    );
    assert_eq!(
        number(&report, "/deliveries")?,
        number(&report, "/deliveries_expected")?
    );
    assert_eq!(
        number(&report, "/connections_lost")?,
        0.0,
        "of those who stay"
    );
    assert!(number(&report, "/subscribed_per_s")? > 0.0);
    Ok(())
}

#[tokio::test]
async fn followers_that_do_not_read() -> Result<()> {
    let impatient = ["--outbox-age-max-s", "1", "--send-buffer-bytes", "8192"];
    let server = Dev::start_with(impatient).await?;
    let small = [
        "--subscribers",
        "20",
        "--stalled",
        "5",
        "--rate",
        "100",
        "--size",
        "4096",
        "--pairs",
        "1",
        "--patience",
        "20",
    ];
    let report = bench(&server, "slow", &small).await?;
    assert_eq!(number(&report, "/left")?, 0.0, "{report}");
    assert_eq!(number(&report, "/missing")?, 0.0, "{report}");
    assert_eq!(number(&report, "/connections_lost")?, 0.0);
    let disconnected = metric(&server, "dunlin_slow_consumers_total", &["disconnected"]).await?;
    assert_eq!(disconnected, 5.0);
    Ok(())
}

#[tokio::test]
async fn two_runs_are_set_side_by_side() -> Result<()> {
    let file =
        |name: &str| std::env::temp_dir().join(format!("{name}-{}.json", std::process::id()));
    let (a, b) = (file("bench-a"), file("bench-b"));
    std::fs::write(
        &a,
        "{\"bench\":\"many\",\"cpu\":10}\n{\"bench\":\"many\",\"cpu\":20}\n",
    )?;
    std::fs::write(&b, "{\"bench\":\"many\",\"cpu\":30}\n")?;
    let compare = |b: &std::path::Path| {
        let paths = [&a, b].map(|path: &std::path::Path| path.to_string_lossy().into_owned());
        let [a, b] = paths;
        run(["bench".to_owned(), "--compare".into(), a, b])
    };
    let ended = compare(&b).await?;
    assert!(ended.status.success(), "{ended:?}");
    let row = ended.stdout.lines().find(|line| line.contains("cpu"));
    let row: Vec<&str> = row.context("a row")?.split_whitespace().collect();
    assert_eq!(row, ["cpu", "15.00", "30.00", "2.00"]);
    std::fs::write(&b, "nonsense")?;
    let ended = compare(&b).await?;
    assert_eq!(ended.status.code(), Some(65), "{ended:?}");
    assert!(
        ended.stderr.contains("not what a run has printed"),
        "{ended:?}"
    );
    std::fs::remove_file(a)?;
    std::fs::remove_file(b)?;
    Ok(())
}
