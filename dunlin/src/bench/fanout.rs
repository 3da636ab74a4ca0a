//! `dunlin bench fanout` and `many`: channels and followers, through one gateway
//! or from one to another.

use std::time::Duration;

use clap::Args;

use super::crowd::{Crowd, Followers};
use super::floor::{self, Rounds};
use super::frames::{self, channel};
use super::pace::{self, Pace, Progress};
use super::process::{check_file_limit, now_ns};
use super::report::Report;
use super::setup::{ServerOptions, progress};
use crate::exit::{Exit, Failure};

/// How long connections rest before memory is read.
const REST: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Subscribers, of all channels together.
    #[arg(long, default_value_t = 1_000)]
    subscribers: usize,
    /// Channels: each subscriber follows one, and they are published into in turn.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    channels: u32,
    /// Publications per second, into all channels together.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ManyOptions {
    /// Channels: each subscriber follows one, and they are published into in turn.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    channels: u32,
    /// Subscribers of each.
    #[arg(long, default_value_t = 10)]
    followers: usize,
    /// Publications per second, into all channels together.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Clone, Args)]
struct Common {
    /// Bytes of each publication's data.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(19..=400_000))]
    size: u32,
    /// Seconds of publishing.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    #[command(flatten)]
    server: ServerOptions,
    /// Do not measure the floor.
    #[arg(long)]
    no_floor: bool,
}

struct Load<'a> {
    bench: &'static str,
    subscribers: usize,
    channels: u32,
    rate: u32,
    common: &'a Common,
}

pub(super) fn run(options: &Options) -> Result<Report, Failure> {
    if options.subscribers == 0 {
        return Err(Exit::Usage.because("--subscribers is at least 1"));
    }
    if !options
        .subscribers
        .is_multiple_of(options.channels as usize)
    {
        return Err(Exit::Usage.because("--subscribers is a multiple of --channels"));
    }
    start(&Load {
        bench: "fanout",
        subscribers: options.subscribers,
        channels: options.channels,
        rate: options.rate,
        common: &options.common,
    })
}

pub(super) fn run_many(options: &ManyOptions) -> Result<Report, Failure> {
    if options.followers == 0 {
        return Err(Exit::Usage.because("--followers is at least 1"));
    }
    start(&Load {
        bench: "many",
        subscribers: options.followers * options.channels as usize,
        channels: options.channels,
        rate: options.rate,
        common: &options.common,
    })
}

fn start(load: &Load<'_>) -> Result<Report, Failure> {
    check_file_limit(load.subscribers).map_err(|problem| Exit::Usage.because(problem))?;
    measure(load)
}

fn measure(load: &Load<'_>) -> Result<Report, Failure> {
    let setup = load.common.server.setup()?;
    let measuring = || -> anyhow::Result<Report> {
        let common = load.common;
        let run = now_ns().to_string();
        let publications = u64::from(load.rate) * u64::from(common.seconds);

        let bar = progress("connect", 1);
        let before = setup.usage()?;
        let followers = Followers {
            run: &run,
            channels: load.channels,
            count: load.subscribers,
            stalled: false,
        };
        let mut crowd = Crowd::start(&setup, followers)?;
        std::thread::sleep(REST);
        let idle = setup.usage()?;
        bar.finish_and_clear();

        let bar = progress("publish", publications);
        let pace = Pace {
            run: &run,
            channels: load.channels,
            per_s: load.rate,
            size: common.size,
            most: publications,
        };
        let published = Progress::default();
        let began_ns = now_ns();
        pace::block_on(pace::publish(&setup, pace, &published, |done| {
            bar.set_position(done)
        }))?;
        let each = load.subscribers as u64 / u64::from(load.channels);
        let expected = published.published() * each;
        let received = crowd.wait_for(expected)?;
        let loaded = setup.usage()?;
        bar.finish_and_clear();
        drop(crowd);
        drop(setup);

        let floor = if common.no_floor {
            None
        } else {
            let bar = progress("floor", publications);
            let rounds = Rounds {
                sockets: load.subscribers,
                groups: load.channels as usize,
                size: frames::frame_bytes(&channel(&run, 0), common.size),
                rounds: publications,
                interval: Duration::from_secs(1) / load.rate,
            };
            let floor = floor::measure(rounds, |done| bar.set_position(done))?;
            bar.finish_and_clear();
            Some(floor)
        };

        let mut report = Report::new(load.bench);
        report.count("subscribers", "subscribers", load.subscribers as u64);
        report.count("channels", "channels", load.channels.into());
        report.value("rate", load.rate);
        report.value("size_bytes", common.size);
        report.value("seconds", common.seconds);
        let (rate, size, seconds) = (load.rate, common.size, common.seconds);
        report.note(
            "publications",
            format!("{rate}/s of {size} B for {seconds} s"),
        );
        report.count("refused", "  not taken", published.refused());
        report.deliveries(&received, expected);
        let elapsed_s = received.last_ns.saturating_sub(began_ns) as f64 / 1e9;
        let per_s = if elapsed_s > 0.0 {
            received.deliveries as f64 / elapsed_s
        } else {
            0.0
        };
        report.per_s("deliveries_per_s", "deliveries/s", per_s);
        report.latencies(&received);
        report.cpu(idle, loaded, received.deliveries);
        report.floor(floor);
        let grown = before.zip(idle).map(|(before, idle)| {
            (idle.rss_bytes as f64 - before.rss_bytes as f64) / load.subscribers as f64
        });
        let label = "server RSS per idle connection";
        report.bytes("server_rss_bytes_per_connection", label, grown);
        report.count("connections_lost", "connections lost", received.lost);
        Ok(report)
    };
    measuring().map_err(|error| Exit::Unavailable.with(error))
}
