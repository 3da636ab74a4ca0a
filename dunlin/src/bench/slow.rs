//! `dunlin bench slow`: some of the followers do not read. Runs with and without
//! them in turns, and says what the others noticed.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;

use super::crowd::{Crowd, Followers};
use super::pace::{self, Pace, Progress};
use super::process::{check_file_limit, established_from, now_ns};
use super::report::Report;
use super::setup::{ServerOptions, Setup, progress};
use super::subscribers::{Received, STALLED_NETWORK};
use crate::exit::{Exit, Failure};

/// How often the server is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Followers that read.
    #[arg(long, default_value_t = 4_500)]
    subscribers: usize,
    /// Followers that do not, with small receive buffers.
    #[arg(long, default_value_t = 500)]
    stalled: usize,
    /// Publications per second.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Bytes of each publication's data.
    #[arg(long, default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(19..=400_000))]
    size: u32,
    /// Runs with and without stalled followers.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pairs: u32,
    /// Seconds after which it is given up that the server does something about stalled followers.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..))]
    patience: u32,
    #[command(flatten)]
    server: ServerOptions,
}

/// One run.
struct Run {
    received: Received,
    expected: u64,
    seconds: f64,
    /// Stalled followers that the server has not disconnected.
    left: usize,
    rss_bytes_max: Option<u64>,
}

pub(super) fn run(options: &Options) -> Result<Report, Failure> {
    check_file_limit(options.subscribers).map_err(|problem| Exit::Usage.because(problem))?;
    if options.subscribers == 0 || options.stalled == 0 {
        return Err(Exit::Usage.because("--subscribers and --stalled are at least 1"));
    }
    let unavailable = |error: anyhow::Error| Exit::Unavailable.with(error);
    let bar = progress("pairs", options.pairs.into());
    let mut pairs = Vec::new();
    for number in 1..=options.pairs {
        // A server of our own begins anew each time: memory is to be compared.
        let with = measure(options, &options.server.setup()?, None).map_err(unavailable)?;
        let as_long = Duration::from_secs_f64(with.seconds);
        let without = measure(options, &options.server.setup()?, Some(as_long));
        pairs.push((with, without.map_err(unavailable)?));
        bar.set_position(number.into());
    }
    bar.finish_and_clear();
    Ok(report(options, &pairs))
}

/// Runs until the server has done something about every stalled follower; or, so
/// long, without any.
fn measure(options: &Options, setup: &Setup, without: Option<Duration>) -> anyhow::Result<Run> {
    let run = now_ns().to_string();
    let followers = |count, stalled| Followers {
        run: &run,
        channels: 1,
        count,
        stalled,
    };
    let mut crowd = Crowd::start(setup, followers(options.subscribers, false))?;
    let stalled = match without {
        None => Some(Crowd::start(setup, followers(options.stalled, true))?),
        Some(_) => None,
    };
    let port = setup.subscribe_at.port();
    if stalled.is_some() && established_from(STALLED_NETWORK, port)? == 0 {
        bail!(
            "the connections of stalled followers cannot be seen: the server has to be on this machine, at a loopback address of IPv4"
        );
    }
    let published = Progress::default();
    let pace = Pace {
        run: &run,
        channels: 1,
        per_s: options.rate,
        size: options.size,
        most: u64::MAX,
    };
    let began = Instant::now();
    let ends = began + without.unwrap_or(Duration::from_secs(options.patience.into()));
    let (mut left, mut rss_bytes_max) = (0, None);
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let publishing =
            scope.spawn(|| pace::block_on(pace::publish(setup, pace, &published, |_| ())));
        let mut look = || -> anyhow::Result<()> {
            while Instant::now() < ends && !publishing.is_finished() {
                std::thread::sleep(LOOK_EVERY);
                rss_bytes_max = rss_bytes_max.max(setup.usage()?.map(|usage| usage.rss_bytes));
                if stalled.is_some() {
                    left = established_from(STALLED_NETWORK, port)?;
                    if left == 0 {
                        return Ok(());
                    }
                }
            }
            Ok(())
        };
        let looked = look();
        published.stop();
        let ended = publishing.join();
        looked?;
        ended.map_err(|_| anyhow::anyhow!("a bug: the publishing thread panicked"))?
    })
    .context("publishing beside followers that do not read")?;
    let seconds = began.elapsed().as_secs_f64();
    let expected = published.published() * options.subscribers as u64;
    Ok(Run {
        received: crowd.wait_for(expected)?,
        expected,
        seconds,
        left,
        rss_bytes_max,
    })
}

fn report(options: &Options, pairs: &[(Run, Run)]) -> Report {
    let median = |figures: &mut dyn Iterator<Item = f64>| {
        let mut figures: Vec<f64> = figures.collect();
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len() / 2).copied().unwrap_or(0.0)
    };
    let p99 = |run: &Run| run.received.p99_us as f64;
    let ratio = |(with, without): &(Run, Run)| p99(with) / p99(without).max(1.0);
    let all = || pairs.iter().flat_map(|(with, without)| [with, without]);
    let mut report = Report::new("slow");
    report.count(
        "subscribers",
        "followers that read",
        options.subscribers as u64,
    );
    report.count("stalled", "followers that do not", options.stalled as u64);
    report.count("rate", "publications/s", options.rate.into());
    report.value("size_bytes", options.size);
    report.count("pairs", "pairs of runs", pairs.len() as u64);
    report.value(
        "deliveries",
        all().map(|run| run.received.deliveries).sum::<u64>(),
    );
    report.value(
        "deliveries_expected",
        all().map(|run| run.expected).sum::<u64>(),
    );
    let missing: u64 = all()
        .map(|run| run.expected.saturating_sub(run.received.deliveries))
        .sum();
    report.count("missing", "deliveries that did not arrive", missing);
    let seconds = median(&mut pairs.iter().map(|(with, _)| with.seconds));
    let label = "until all stalled were acted upon";
    report.figure("acted_upon_s", label, Some(seconds), "s");
    let left = pairs.iter().map(|(with, _)| with.left as u64).max();
    report.count("left", "  never acted upon", left.unwrap_or(0));
    let with = median(&mut pairs.iter().map(|(with, _)| p99(with)));
    let without = median(&mut pairs.iter().map(|(_, without)| p99(without)));
    report.latency(
        "p99_us.with",
        "p99 of the others, beside stalled",
        with as u64,
    );
    report.latency("p99_us.without", "  and without", without as u64);
    let label = "  ratio, median of the pairs";
    report.figure(
        "p99_ratio",
        label,
        Some(median(&mut pairs.iter().map(ratio))),
        "",
    );
    let rss = |run: &Run| run.rss_bytes_max.map(|bytes| bytes as f64);
    let more = pairs
        .iter()
        .map(|(with, without)| Some(rss(with)? - rss(without)?));
    let more: Option<Vec<f64>> = more.collect();
    let more = more.map(|more| median(&mut more.into_iter()));
    report.bytes("rss_bytes_above", "server RSS above that without", more);
    let lost = all().map(|run| run.received.lost).sum();
    report.count("connections_lost", "connections of others lost", lost);
    report
}
