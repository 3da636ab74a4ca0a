//! `dunlin bench storm`: all connections are dropped at once and opened again, and
//! some that stay say what they notice.

use std::time::Duration;

use clap::Args;

use super::crowd::{Crowd, Followers};
use super::pace::{self, Pace, Progress};
use super::process::{check_file_limit, now_ns};
use super::report::Report;
use super::setup::{ServerOptions, Setup, progress};
use crate::exit::{Exit, Failure};

/// How long connections rest before they are dropped.
const REST: Duration = Duration::from_secs(2);
/// Connections that stay, each with a channel of its own.
const STAYING: u32 = 50;
/// Publications per second into their channels.
const STAYING_RATE: u32 = 100;

#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Connections, with one subscription each.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// Channels that they follow.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    channels: u32,
    /// How many times they are dropped.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    times: u32,
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
    let (run, staying) = (format!("{}-g", now_ns()), format!("{}-s", now_ns()));
    let bar = progress("storm", options.times.into());
    let mut crowd = Crowd::start(
        setup,
        Followers {
            run: &run,
            channels: options.channels,
            count: options.connections,
            stalled: false,
        },
    )?;
    let mut stayed = Crowd::start(
        setup,
        Followers {
            run: &staying,
            channels: STAYING,
            count: STAYING as usize,
            stalled: false,
        },
    )?;
    let first = crowd.opened;
    let published = Progress::default();
    let idle = setup.usage()?;
    let mut again = Vec::new();
    let pace = Pace {
        run: &staying,
        channels: STAYING,
        per_s: STAYING_RATE,
        size: 128,
        most: u64::MAX,
    };
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let publishing =
            scope.spawn(|| pace::block_on(pace::publish(setup, pace, &published, |_| ())));
        let mut storms = || -> anyhow::Result<()> {
            for number in 1..=options.times {
                std::thread::sleep(REST);
                crowd.drop_all()?;
                again.push(crowd.open_all()?);
                bar.set_position(number.into());
            }
            Ok(())
        };
        let stormed = storms();
        published.stop();
        let ended = publishing.join();
        stormed?;
        ended.map_err(|_| anyhow::anyhow!("a bug: the publishing thread panicked"))?
    })?;
    let received = stayed.wait_for(published.published())?;
    let loaded = setup.usage()?;
    bar.finish_and_clear();

    again.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let median = again[again.len() / 2];
    let per_s = |seconds: f64| options.connections as f64 / seconds.max(1e-9);
    let mut report = Report::new("storm");
    report.count("connections", "connections", options.connections as u64);
    report.count("channels", "channels", options.channels.into());
    report.count(
        "times",
        "dropped and opened again, times",
        options.times.into(),
    );
    report.per_s(
        "first_subscribed_per_s",
        "subscribed/s, the first time",
        per_s(first.seconds),
    );
    report.per_s(
        "subscribed_per_s",
        "subscribed/s, again (median)",
        per_s(median.seconds),
    );
    let retried = again.iter().map(|opened| opened.retried).sum();
    report.count("retried", "attempts that were repeated", retried);
    let cpu = idle.zip(loaded).map(|(idle, loaded)| {
        let opened = options.connections as f64 * f64::from(options.times);
        loaded.cpu_since(&idle) * 1e6 / opened
    });
    let label = "server CPU per connection";
    report.figure("server_cpu_us_per_connection", label, cpu, "us");
    report.note("those who stayed", String::new());
    report.deliveries(&received, published.published());
    report.latencies(&received);
    report.count("connections_lost", "connections lost", received.lost);
    Ok(report)
}
