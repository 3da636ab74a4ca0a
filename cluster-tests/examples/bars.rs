//! Holds a server to the bars of delivery (docs/performance.md), with the load of
//! `dunlin bench`: `cargo run --release -p cluster-tests --example bars`, `… --
//! --cluster` for the same load through three nodes and two gateways, and the names
//! of scenarios to run only these. What each run has printed is kept for `dunlin
//! bench --compare`.
//!
//! With `--pairs 5` and an earlier version in `OLDER_BINARY` (`scripts/older COMMIT`
//! prints one) the servers of both run in turn, so many times each under the load of
//! this version, and the medians are compared: a figure may be worse by 5 percent, or
//! by as much as two runs of one binary differ.

use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use cluster_tests::cluster::Cluster;
use cluster_tests::process::{Dev, binary, command_of, older_binary};
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
    /// Further ones where two servers have it in turn, so that it is repeated anyway.
    in_turns: &'static [&'static str],
    bars: &'static [Bar],
    in_cluster: &'static [Bar],
}

const SCENARIOS: [Scenario; 7] = [
    Scenario {
        name: "fanout",
        arguments: &["--subscribers", "10000", "--rate", "5", "--seconds", "20"],
        in_turns: &[],
        bars: &[Most("/server_to_floor", 1.2)],
        in_cluster: &[],
    },
    Scenario {
        name: "flood",
        arguments: &[],
        in_turns: &[],
        bars: &[
            Least("/deliveries_per_s", 500_000.0),
            Most("/server_rss_bytes_grown", 64.0 * 1_048_576.0),
        ],
        in_cluster: &[],
    },
    Scenario {
        name: "victim",
        arguments: &[],
        in_turns: &[],
        bars: &[
            Most("/latency_us/p99", 5_000.0),
            Most("/latency_us/p999", 25_000.0),
        ],
        in_cluster: &[],
    },
    Scenario {
        name: "many",
        arguments: &[],
        in_turns: &[],
        bars: &[MostByFloor("/server_cpu_us_per_delivery", 15.0)],
        in_cluster: &[MostByFloor("/server_cpu_us_per_delivery", 30.0)],
    },
    Scenario {
        name: "idle",
        arguments: &[],
        in_turns: &[],
        bars: &[
            Most("/server_rss_bytes_per_connection", 4_096.0),
            Least("/given_back_percent", 80.0),
        ],
        in_cluster: &[],
    },
    Scenario {
        name: "storm",
        arguments: &[],
        in_turns: &[],
        bars: &[
            Least("/subscribed_per_s", 6_000.0),
            Least("/again_to_first", 0.9),
        ],
        in_cluster: &[],
    },
    Scenario {
        name: "slow",
        arguments: &[],
        in_turns: &["--pairs", "1"],
        bars: &[
            Most("/p99_ratio", 1.2),
            Most("/left", 0.0),
            Most("/rss_bytes_above", 500.0 * OUTBOX_BYTES),
        ],
        in_cluster: &[],
    },
];

/// By how much a median may be worse than an earlier version's.
const WORSE_MOST: f64 = 1.05;

/// The server that is measured, if it is not one of the benchmark's own.
struct Measured {
    _cluster: Option<Cluster>,
    _dev: Option<Dev>,
    arguments: Vec<String>,
}

async fn start_dev(binary: &Path) -> Result<Measured> {
    let arguments = ["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let dev = Dev::start_command(command_of(binary, arguments)).await?;
    let arguments = ["--url", &dev.url(), "--pid", &dev.pid().to_string()];
    let arguments = arguments.map(str::to_owned).to_vec();
    Ok(Measured {
        _cluster: None,
        _dev: Some(dev),
        arguments,
    })
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
        _cluster: Some(cluster),
        _dev: None,
        arguments,
    })
}

fn run(scenario: &Scenario, measured: Option<&Measured>, more: &[&str]) -> Result<Value> {
    let mut command = Command::new(binary());
    command
        .args(["bench", scenario.name])
        .args(scenario.arguments)
        .args(more);
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

fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = figures.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let middle = (sorted.len() - 1) as f64 / 2.0;
    let (below, above) = (middle.floor() as usize, middle.ceil() as usize);
    f64::midpoint(sorted[below], sorted[above])
}

/// By which factor two figures differ.
fn factor(one: f64, other: f64) -> f64 {
    if one == other {
        return 1.0;
    }
    one.max(other) / one.min(other).max(f64::MIN_POSITIVE)
}

/// A scenario with the servers of two binaries in turn. Its rows, and whether the newer
/// one is as good.
async fn alternate(
    scenario: &Scenario,
    binaries: [&Path; 2],
    pairs: usize,
) -> Result<(Vec<String>, bool)> {
    let mut reports = [Vec::new(), Vec::new()];
    for pair in 0..pairs {
        // Neither has always the same neighbour before it.
        for which in [pair % 2, (pair + 1) % 2] {
            let dev = start_dev(binaries[which]).await?;
            let report = run(scenario, Some(&dev), scenario.in_turns)?;
            ensure!(is_whole(&report), "something was lost: {report}");
            reports[which].push(report);
        }
    }
    let mut rows = Vec::new();
    let mut all_hold = true;
    for bar in scenario.bars {
        let mut figures = [Vec::new(), Vec::new()];
        let mut name = String::new();
        for (figures, reports) in figures.iter_mut().zip(&reports) {
            for report in reports {
                let (figure, _, measured, _) = judge(report, bar)?;
                let floor = report["floor_cpu_us_per_send"].as_f64();
                let by = matches!(bar, MostByFloor(..)).then_some(floor).flatten();
                // Less than nothing more is nothing more, and no factor of it.
                figures.push((measured / by.unwrap_or(1.0)).max(0.0));
                name = figure;
            }
        }
        let differ = figures.iter().flat_map(|all| all.windows(2));
        let differ = median(differ.map(|two| factor(two[0], two[1])));
        let [older, newer] = figures.map(median);
        let worse = match bar {
            _ if older == newer => 1.0,
            Least(..) => older / newer,
            Most(..) | MostByFloor(..) => newer / older,
        };
        let holds = worse <= WORSE_MOST.max(differ);
        all_hold &= holds;
        let verdict = if holds { "holds" } else { "WORSE" };
        rows.push(format!(
            "{:8} {name:32} {older:>14.2} {newer:>14.2}  x{worse:.3} (runs differ by x{differ:.3})  {verdict}",
            scenario.name
        ));
    }
    Ok((rows, all_hold))
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
    let count_at = arguments.iter().position(|argument| argument == "--pairs");
    let count_at = count_at.map(|at| at + 1);
    let pairs = match count_at {
        Some(at) => {
            let pairs = arguments.get(at).context("--pairs wants a number")?;
            let pairs: usize = pairs.parse().context("--pairs wants a number")?;
            ensure!(pairs > 1, "two pairs at least say how much runs differ");
            Some(pairs)
        }
        None => None,
    };
    let named = arguments.iter().enumerate();
    let named = named.filter(|(at, it)| Some(*at) != count_at && !it.starts_with("--"));
    let named: Vec<&String> = named.map(|(_, name)| name).collect();
    let known = |name: &&String| SCENARIOS.iter().any(|scenario| scenario.name == **name);
    ensure!(
        named.iter().all(known),
        "scenarios are fanout, flood, victim, many, idle, storm, slow"
    );
    let wanted =
        |scenario: &&Scenario| named.is_empty() || named.iter().any(|name| *name == scenario.name);
    let scenarios = SCENARIOS.iter().filter(wanted);
    if let Some(pairs) = pairs {
        let older = older_binary().context("OLDER_BINARY names no binary")?;
        let mut all_hold = true;
        println!("scenario figure: older, newer, by how much that is worse");
        for scenario in scenarios {
            let (rows, hold) = alternate(scenario, [&older, binary()], pairs).await?;
            println!("{}", rows.join("\n"));
            all_hold &= hold;
        }
        return Ok(exit_code(all_hold));
    }
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
    for scenario in scenarios {
        eprintln!("\n{}", scenario.name);
        let report = run(scenario, measured.as_ref(), &[])?;
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
    Ok(exit_code(all_hold))
}

fn exit_code(all_hold: bool) -> ExitCode {
    if all_hold {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
