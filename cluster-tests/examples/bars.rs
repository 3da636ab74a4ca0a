//! Holds a server to the bars of delivery (docs/performance.md), with the load of
//! `dunlin bench`: `cargo run --release -p cluster-tests --example bars`, `… --
//! --cluster` for the same load through three nodes and two gateways, and the names
//! of scenarios to run only these. What each run has printed is kept for `dunlin
//! bench --compare`.

use std::io::Write;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use cluster_tests::cluster::Cluster;
use cluster_tests::process::binary;
use serde_json::Value;

/// What is demanded of a figure.
enum Bar {
    Most(&'static str, f64),
    Least(&'static str, f64),
    /// At most so much where a bare `send(2)` takes 5.4 us, as on the machine that
    /// the bars were set on; elsewhere as many times the floor.
    MostByFloor(&'static str, f64),
}

use Bar::{Least, Most, MostByFloor};

/// What a bare `send(2)` took where the bars were set, in microseconds.
const FLOOR_US: f64 = 5.4;
/// What may wait for one client, and the kernel's part of it.
const OUTBOX_BYTES: f64 = (1_024 + 64) as f64 * 1_024.0;

struct Scenario {
    name: &'static str,
    arguments: &'static [&'static str],
    bars: &'static [Bar],
    in_cluster: &'static [Bar],
}

const SCENARIOS: [Scenario; 7] = [
    Scenario {
        name: "fanout",
        arguments: &["--subscribers", "10000", "--rate", "5", "--seconds", "20"],
        bars: &[Most("/server_to_floor", 1.2)],
        in_cluster: &[],
    },
    Scenario {
        name: "flood",
        arguments: &[],
        bars: &[
            Least("/deliveries_per_s", 500_000.0),
            Most("/server_rss_bytes_grown", 64.0 * 1_048_576.0),
        ],
        in_cluster: &[],
    },
    Scenario {
        name: "victim",
        arguments: &[],
        bars: &[
            Most("/latency_us/p99", 5_000.0),
            Most("/latency_us/p999", 25_000.0),
        ],
        in_cluster: &[],
    },
    Scenario {
        name: "many",
        arguments: &[],
        bars: &[MostByFloor("/server_cpu_us_per_delivery", 15.0)],
        in_cluster: &[MostByFloor("/server_cpu_us_per_delivery", 30.0)],
    },
    Scenario {
        name: "idle",
        arguments: &[],
        bars: &[
            Most("/server_rss_bytes_per_connection", 4_096.0),
            Least("/given_back_percent", 80.0),
        ],
        in_cluster: &[],
    },
    Scenario {
        name: "storm",
        arguments: &[],
        bars: &[
            Least("/subscribed_per_s", 6_000.0),
            Least("/again_to_first", 0.9),
        ],
        in_cluster: &[],
    },
    Scenario {
        name: "slow",
        arguments: &[],
        bars: &[
            Most("/p99_ratio", 1.2),
            Most("/left", 0.0),
            Most("/rss_bytes_above", 500.0 * OUTBOX_BYTES),
        ],
        in_cluster: &[],
    },
];

/// The server that is measured, if it is not one of the benchmark's own.
struct Measured {
    _cluster: Cluster,
    arguments: Vec<String>,
}

async fn start_cluster() -> Result<Measured> {
    let cluster = Cluster::start().await?;
    cluster.protected().await;
    let (from, to) = (cluster.gateway("g1"), cluster.gateway("g2"));
    let gateways = cluster.gateways.values().map(|gateway| gateway.pid());
    let nodes = cluster.nodes.values().map(|node| node.pid());
    let pids = gateways.chain(nodes).chain(cluster.nats.pid());
    let pids: Vec<String> = pids.map(|pid| pid.to_string()).collect();
    let arguments = [
        "--url",
        &from.url(),
        "--subscribe-url",
        &to.url(),
        "--pid",
        &pids.join(","),
    ];
    let arguments = arguments.map(str::to_owned).to_vec();
    Ok(Measured {
        _cluster: cluster,
        arguments,
    })
}

fn run(scenario: &Scenario, measured: Option<&Measured>) -> Result<Value> {
    let mut command = Command::new(binary());
    command
        .args(["bench", scenario.name])
        .args(scenario.arguments);
    if let Some(measured) = measured {
        command.args(&measured.arguments);
    }
    // Its table and its progress are for whoever watches.
    let ended = command.stderr(Stdio::inherit()).output()?;
    ensure!(
        ended.status.success(),
        "{} ended with {}",
        scenario.name,
        ended.status
    );
    let text = String::from_utf8(ended.stdout)?;
    let mut report: Value = serde_json::from_str(&text).context("the report")?;
    let per_s = |name: &str| report[name].as_f64();
    let ratio = per_s("subscribed_per_s").zip(per_s("first_subscribed_per_s"));
    if let Some((again, first)) = ratio {
        report["again_to_first"] = (again / first).into();
    }
    Ok(report)
}

/// Figure, bar, what was measured, and whether it holds.
fn judge(report: &Value, bar: &Bar) -> Result<(String, String, f64, bool)> {
    let figure = |pointer: &str| {
        let figure = report.pointer(pointer).and_then(Value::as_f64);
        figure.with_context(|| format!("{pointer} was not measured: {report}"))
    };
    let (pointer, shown, measured, holds) = match bar {
        Most(pointer, most) => {
            let measured = figure(pointer)?;
            (
                pointer,
                format!("<= {most:.2}"),
                measured,
                measured <= *most,
            )
        }
        Least(pointer, least) => {
            let measured = figure(pointer)?;
            (
                pointer,
                format!(">= {least:.2}"),
                measured,
                measured >= *least,
            )
        }
        MostByFloor(pointer, most) => {
            let measured = figure(pointer)?;
            let most = most / FLOOR_US * figure("/floor_cpu_us_per_send")?;
            (pointer, format!("<= {most:.2}"), measured, measured <= most)
        }
    };
    let name = pointer.trim_start_matches('/').replace('/', ".");
    Ok((name, shown, measured, holds))
}

/// What no scenario may do, whatever its figures are.
fn is_whole(report: &Value) -> bool {
    let lost = report["connections_lost"].as_u64().unwrap_or_default();
    lost == 0 && report["deliveries"] == report["deliveries_expected"]
}

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let in_cluster = arguments.iter().any(|argument| argument == "--cluster");
    let named: Vec<&String> = arguments.iter().filter(|a| !a.starts_with("--")).collect();
    let known = |name: &&String| SCENARIOS.iter().any(|scenario| scenario.name == **name);
    ensure!(
        named.iter().all(known),
        "scenarios are fanout, flood, victim, many, idle, storm, slow"
    );
    let measured = if in_cluster {
        Some(start_cluster().await?)
    } else {
        None
    };
    let file = if in_cluster {
        "target/bars-cluster.json"
    } else {
        "target/bars.json"
    };
    let mut kept = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)?;
    let mut rows = Vec::new();
    let mut all_hold = true;
    for scenario in &SCENARIOS {
        let wanted = named.is_empty() || named.iter().any(|name| *name == scenario.name);
        if !wanted {
            continue;
        }
        eprintln!("\n{}", scenario.name);
        let report = run(scenario, measured.as_ref())?;
        writeln!(kept, "{report}")?;
        let whole = is_whole(&report);
        all_hold &= whole;
        rows.push(format!(
            "{:8} nothing lost: {}",
            scenario.name,
            if whole { "yes" } else { "NO" }
        ));
        let bars = if in_cluster {
            scenario.in_cluster
        } else {
            scenario.bars
        };
        for bar in bars {
            let (figure, shown, measured, holds) = judge(&report, bar)?;
            all_hold &= holds;
            let verdict = if holds { "holds" } else { "MISSED" };
            rows.push(format!(
                "{:8} {figure:32} {shown:>16} {measured:>14.2}  {verdict}",
                scenario.name
            ));
        }
    }
    println!("{}", rows.join("\n"));
    println!("The reports are in {file}.");
    Ok(if all_hold {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
