//! `dunlin bench victim`: small channels beside a large one. The followers of the
//! small ones read in a process of their own: what the large crowd's reader takes
//! is not their latency.

use clap::Args;

use super::crowd::{Crowd, Followers};
use super::pace::{self, Pace, Progress};
use super::process::{check_file_limit, now_ns};
use super::report::Report;
use super::setup::{ServerOptions, Setup, progress};
use crate::exit::{Exit, Failure};

#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Followers of the large channel.
    #[arg(long, default_value_t = 10_000)]
    crowd: usize,
    /// Publications per second into the large channel.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    crowd_rate: u32,
    /// Small channels, of one follower each.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    channels: u32,
    /// Publications per second into the small ones together.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Bytes of each publication's data.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(19..=400_000))]
    size: u32,
    /// Seconds of publishing.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    #[command(flatten)]
    server: ServerOptions,
}

pub(super) fn run(options: &Options) -> Result<Report, Failure> {
    let connections = options.crowd.max(options.channels as usize);
    check_file_limit(connections).map_err(|problem| Exit::Usage.because(problem))?;
    let setup = options.server.setup()?;
    measure(options, &setup).map_err(|error| Exit::Unavailable.with(error))
}

fn measure(options: &Options, setup: &Setup) -> anyhow::Result<Report> {
    let (large, small) = (format!("{}-l", now_ns()), format!("{}-s", now_ns()));
    let bar = progress("connect", 1);
    let mut crowd = Crowd::start(
        setup,
        Followers {
            run: &large,
            channels: 1,
            count: options.crowd,
            stalled: false,
        },
    )?;
    let mut victims = Crowd::start(
        setup,
        Followers {
            run: &small,
            channels: options.channels,
            count: options.channels as usize,
            stalled: false,
        },
    )?;
    bar.finish_and_clear();

    // Alone first: what the machine and the tool are good for.
    let bar = progress("alone", u64::from(options.rate) * 5);
    let pace = |per_s: u32, seconds: u32| Pace {
        run: &small,
        channels: options.channels,
        per_s,
        size: options.size,
        most: u64::from(per_s) * u64::from(seconds),
    };
    let published = Progress::default();
    let alone = pace::publish(setup, pace(options.rate, 5), &published, |done| {
        bar.set_position(done)
    });
    pace::block_on(alone)?;
    let alone = victims.wait_for(published.published())?;
    victims.reset()?;
    bar.finish_and_clear();

    let small_pace = pace(options.rate, options.seconds);
    let large_pace = Pace {
        run: &large,
        channels: 1,
        ..pace(options.crowd_rate, options.seconds)
    };
    let bar = progress("publish", small_pace.most);
    let (to_small, to_large) = (Progress::default(), Progress::default());
    let idle = setup.usage()?;
    pace::block_on(async {
        let small = pace::publish(setup, small_pace, &to_small, |done| bar.set_position(done));
        let large = pace::publish(setup, large_pace, &to_large, |_| ());
        tokio::try_join!(small, large)
    })?;
    let expected = to_small.published();
    let crowd_expected = to_large.published() * options.crowd as u64;
    let received = victims.wait_for(expected)?;
    let crowd_received = crowd.wait_for(crowd_expected)?;
    let loaded = setup.usage()?;
    bar.finish_and_clear();

    let mut report = Report::new("victim");
    report.count("channels", "small channels", options.channels.into());
    report.count("rate", "  publications/s", options.rate.into());
    report.count(
        "crowd",
        "followers of the large channel",
        options.crowd as u64,
    );
    report.count("crowd_rate", "  publications/s", options.crowd_rate.into());
    report.value("size_bytes", options.size);
    report.value("seconds", options.seconds);
    report.count(
        "refused",
        "not taken",
        to_small.refused() + to_large.refused(),
    );
    report.deliveries(&received, expected);
    report.latencies(&received);
    report.latency("alone_us.p99", "without the large one: p99", alone.p99_us);
    report.latency("alone_us.p999", "  p99.9", alone.p999_us);
    report.value("crowd_deliveries", crowd_received.deliveries);
    report.value("crowd_deliveries_expected", crowd_expected);
    let complete = format!("{} of {crowd_expected}", crowd_received.deliveries);
    report.note("deliveries of the large channel", complete);
    report.latency(
        "crowd_latency_us.p50",
        "  latency p50",
        crowd_received.p50_us,
    );
    report.latency(
        "crowd_latency_us.p99",
        "  latency p99",
        crowd_received.p99_us,
    );
    report.cpu(
        idle,
        loaded,
        received.deliveries + crowd_received.deliveries,
    );
    let lost = received.lost + crowd_received.lost;
    report.count("connections_lost", "connections lost", lost);
    Ok(report)
}
