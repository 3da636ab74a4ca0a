//! `dunlin bench flood`: as many deliveries as can be, none of them lost.
//!
//! At most a window of publications is under way: published, and not delivered to
//! every follower. So the server is always busy and never asked for the
//! impossible, and whatever does not arrive was lost by it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use futures_util::future::try_join_all;

use super::crowd::{Crowd, Followers};
use super::floor::{self, Rounds};
use super::frames::{self, channel};
use super::pace::{self, Progress};
use super::process::{Usage, check_file_limit, now_ns};
use super::report::Report;
use super::setup::{ServerOptions, Setup, progress};
use crate::exit::{Exit, Failure};

/// Requests at the same time.
const LANES: usize = 8;
/// How often the followers are asked what they have.
const ASK_EVERY: Duration = Duration::from_millis(2);
/// How long to wait for deliveries when none come.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Followers of one channel.
    #[arg(long, default_value_t = 2_000)]
    subscribers: usize,
    /// Publications that are under way: not delivered to everybody yet.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    window: u64,
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

pub(super) fn run(options: &Options) -> Result<Report, Failure> {
    let usage = |problem| Exit::Usage.because(problem);
    check_file_limit(options.subscribers).map_err(usage)?;
    if options.subscribers == 0 {
        return Err(Exit::Usage.because("--subscribers is at least 1"));
    }
    let setup = options.server.setup()?;
    measure(options, setup).map_err(|error| Exit::Unavailable.with(error))
}

/// What is looked at while it goes on.
struct Watched {
    received: AtomicU64,
    rss_bytes_max: AtomicU64,
}

fn measure(options: &Options, setup: Setup) -> anyhow::Result<Report> {
    let run = now_ns().to_string();
    let followers = Followers {
        run: &run,
        channels: 1,
        count: options.subscribers,
        stalled: false,
    };
    let mut crowd = Crowd::start(&setup, followers)?;
    let idle = setup.usage()?;
    let bar = progress("flood", u64::from(options.seconds));
    let published = Progress::default();
    let watched = Watched {
        received: AtomicU64::new(0),
        rss_bytes_max: AtomicU64::new(0),
    };
    let (began, began_ns) = (Instant::now(), now_ns());
    let ends = began + Duration::from_secs(options.seconds.into());
    let followers = options.subscribers as u64;
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let watching = scope.spawn(|| watch(&mut crowd, &setup, &published, followers, &watched));
        let publishing = async {
            let room = || {
                let complete = watched.received.load(Ordering::Relaxed) / followers;
                published.published() < complete + options.window
            };
            let lane = async || -> anyhow::Result<()> {
                let mut connection = setup.server.connect().await?;
                let channel = channel(&run, 0);
                while Instant::now() < ends && !watching.is_finished() {
                    if room() {
                        let publishing =
                            published.publish(&setup, &mut connection, &channel, options.size);
                        publishing.await?;
                    } else {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    bar.set_position(began.elapsed().as_secs());
                }
                Ok(())
            };
            try_join_all((0..LANES).map(|_| lane())).await.map(drop)
        };
        let ended = pace::block_on(publishing);
        published.stop();
        let watched = watching.join();
        ended?;
        watched.map_err(|_| anyhow::anyhow!("a bug: the watching thread panicked"))?
    })?;
    bar.finish_and_clear();
    let expected = published.published() * followers;
    let received = crowd.wait_for(expected)?;
    let loaded = setup.usage()?;
    drop(crowd);
    drop(setup);

    let floor = if options.no_floor {
        None
    } else {
        let bar = progress("floor", 1);
        let rounds = Rounds {
            sockets: options.subscribers,
            groups: 1,
            size: frames::frame_bytes(&channel(&run, 0), options.size),
            rounds: 200,
            interval: Duration::ZERO,
        };
        let floor = floor::measure(rounds, |_| ())?;
        bar.finish_and_clear();
        Some(floor)
    };

    let mut report = Report::new("flood");
    report.count("subscribers", "subscribers", followers);
    report.count("window", "publications under way", options.window);
    report.value("size_bytes", options.size);
    report.value("seconds", options.seconds);
    report.count("publications", "publications", published.published());
    report.count("refused", "  not taken", published.refused());
    report.deliveries(&received, expected);
    let elapsed_s = received.last_ns.saturating_sub(began_ns) as f64 / 1e9;
    let per_s = received.deliveries as f64 / elapsed_s.max(1e-9);
    report.per_s("deliveries_per_s", "deliveries/s", per_s);
    report.latencies(&received);
    report.cpu(idle, loaded, received.deliveries);
    report.floor(floor);
    if let Some(floor) = floor {
        let per_s = floor.sends as f64 / floor.elapsed_s.max(1e-9);
        let label = "floor: bare send(2) per second";
        report.per_s("floor_sends_per_s", label, per_s);
    }
    let most = watched.rss_bytes_max.load(Ordering::Relaxed) as f64;
    let grown = idle.map(|idle| (most - idle.rss_bytes as f64).max(0.0));
    report.bytes(
        "server_rss_bytes_grown",
        "server RSS, growth at most",
        grown,
    );
    report.count("connections_lost", "connections lost", received.lost);
    Ok(report)
}

/// Keeps an eye on what has arrived and on the server's memory, until publishing
/// has ended, or nothing comes any more.
fn watch(
    crowd: &mut Crowd,
    setup: &Setup,
    published: &Progress,
    followers: u64,
    watched: &Watched,
) -> anyhow::Result<()> {
    let mut came = Instant::now();
    let mut sampled = Instant::now();
    loop {
        let count = crowd.count()?;
        let before = watched.received.swap(count, Ordering::Relaxed);
        let waits = published.published() * followers > count;
        if count > before || !waits {
            came = Instant::now();
        }
        if published.enough.load(Ordering::Relaxed) || came.elapsed() > PATIENCE {
            return Ok(());
        }
        if sampled.elapsed() >= Duration::from_millis(100) {
            sampled = Instant::now();
            let rss = |usage: Usage| usage.rss_bytes;
            let rss = Usage::of_all(&setup.pids())?.map_or(0, rss);
            watched.rss_bytes_max.fetch_max(rss, Ordering::Relaxed);
        }
        std::thread::sleep(ASK_EVERY);
    }
}
