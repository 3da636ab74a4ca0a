//! `dunlin bench idle`: what connections take that do nothing, and what is given
//! back when they close.

use std::time::{Duration, Instant};

use clap::Args;

use super::crowd::{Crowd, Followers};
use super::process::{check_file_limit, now_ns};
use super::report::Report;
use super::setup::{ServerOptions, Setup, progress};
use crate::exit::{Exit, Failure};

/// How long connections rest before memory is read.
const REST: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Connections, with one subscription each.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// Channels that they follow.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    channels: u32,
    /// Seconds that the server has to give back memory after they have closed.
    #[arg(long, default_value_t = 60)]
    wait: u32,
    #[command(flatten)]
    server: ServerOptions,
}

pub(super) fn run(options: &Options) -> Result<Report, Failure> {
    check_file_limit(options.connections).map_err(|problem| Exit::Usage.because(problem))?;
    if options.connections == 0 {
        return Err(Exit::Usage.because("--connections is at least 1"));
    }
    let setup = options.server.setup()?;
    measure(options, &setup).map_err(|error| Exit::Unavailable.with(error))
}

fn measure(options: &Options, setup: &Setup) -> anyhow::Result<Report> {
    let rss = || anyhow::Ok(setup.usage()?.map(|usage| usage.rss_bytes as f64));
    let before = rss()?;
    let bar = progress("connect", 1);
    let run = now_ns().to_string();
    let crowd = Crowd::start(
        setup,
        Followers {
            run: &run,
            channels: options.channels,
            count: options.connections,
            stalled: false,
        },
    )?;
    std::thread::sleep(REST);
    let idle = rss()?;
    drop(crowd);
    bar.finish_and_clear();
    let bar = progress("wait", options.wait.into());
    let closed = Instant::now();
    for second in 1..=u64::from(options.wait) {
        let due = closed + Duration::from_secs(second);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        bar.set_position(second);
    }
    let after = rss()?;
    bar.finish_and_clear();

    let grown = before.zip(idle).map(|(before, idle)| idle - before);
    let given_back = idle.zip(after).map(|(idle, after)| idle - after);
    let mut report = Report::new("idle");
    report.count("connections", "connections", options.connections as u64);
    report.count("channels", "channels", options.channels.into());
    report.value("wait_s", options.wait);
    report.bytes("server_rss_bytes_before", "server RSS before", before);
    report.bytes("server_rss_bytes_idle", "server RSS with all of them", idle);
    report.bytes(
        "server_rss_bytes_after",
        "server RSS after they closed",
        after,
    );
    let each = grown.map(|grown| grown / options.connections as f64);
    let label = "server RSS per idle connection";
    report.bytes("server_rss_bytes_per_connection", label, each);
    let percent = given_back
        .zip(grown)
        .map(|(back, grown)| 100.0 * back / grown);
    report.figure("given_back_percent", "of which given back", percent, "%");
    Ok(report)
}
