//! `dunlin verify`: holds a running cluster to its promises.
//!
//! Publishes through every gateway, follows through every gateway by both
//! protocols, breaks connections at random and resumes them, often at another
//! gateway; writes all of it into the [`ledger`], which judges.
//!
//! ```text
//! publishers ──► gateways ──► … ──► gateways ──► followers
//!     │ sent, answered               got, gap, attached │
//!     └───────────────────► ledger ◄────────────────────┘
//! ```

mod followers;
mod ledger;
mod publishers;
mod random;
mod report;
mod wire;

use std::cell::{Cell, RefCell};
use std::io::IsTerminal;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::{ArgAction, Args};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;

use crate::cli::{AppArgument, AppOption};
use crate::client::Server;
use crate::exit::{Exit, Failure};
use ledger::{Ledger, Nanos};
use report::{Counts, Report};

/// How long everything may take to be attached at first.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How often is looked whether something has been reached.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often what all clients have passed is forgotten.
const COMPACT_EVERY: Duration = Duration::from_millis(500);
/// After everything has come: what comes again, or late, comes now.
const LINGER: Duration = Duration::from_secs(1);
/// Publications that are not closed, at most; about a hundred bytes each. Then
/// publishers wait.
const OPEN_MAX: usize = 500_000;

#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// The gateways, with commas between them: all are published to and followed.
    #[arg(
        long = "url",
        env = "DUNLIN_URL",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:6001"
    )]
    urls: Vec<Server>,
    #[command(flatten)]
    app: AppOption,
    /// How long to publish, such as 500ms, 30s, 5m or 1h; then what is late is waited for.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    duration: Duration,
    /// Publications per second, into all channels together. A server that cannot keep up gets fewer.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Channels, published into in turn.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    channels: u16,
    /// What the channels' names begin with.
    #[arg(long, value_name = "TEXT", default_value = "verify")]
    prefix: String,
    /// WebSocket clients of each gateway; each follows all channels.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=1_000))]
    sockets: u16,
    /// SSE clients of each gateway; each follows all channels, by as many streams as that takes.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=1_000))]
    streams: u16,
    /// How often each client breaks its connection, on average, and resumes at any gateway;
    /// 0s: never.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    reconnect_every: Duration,
    /// How long to wait for what has not come when publishing is over.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    settle: Duration,
    /// Bytes of each publication's data, if it takes no more to say which one it is.
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = clap::value_parser!(u32).range(0..=400_000))]
    size: u32,
    /// Send a key with each publication, and try again with it when the outcome is unknown. Without,
    /// an unknown outcome stays unknown.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    idempotent: bool,
    /// Decides when clients reconnect, and where.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// A number and its unit; without a unit, seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number = number.parse::<u32>().ok();
    let one = match unit {
        "ms" => Some(Duration::from_millis(1)),
        "s" | "" => Some(Duration::from_secs(1)),
        "m" => Some(Duration::from_secs(60)),
        "h" => Some(Duration::from_secs(3_600)),
        _ => None,
    };
    match (number, one) {
        (Some(number), Some(one)) => Ok(one * number),
        _ => Err("expected a number and ms, s, m or h".into()),
    }
}

/// What all tasks of a run share. They run on one thread.
struct Run {
    options: Options,
    app: AppArgument,
    /// Tells this run's publications from those of others.
    id: u64,
    channels: Vec<String>,
    began: Instant,
    ledger: RefCell<Ledger>,
    counts: RefCell<Counts>,
    /// No connection is broken on purpose any more.
    quiet: Cell<bool>,
    /// No new publication is begun any more.
    ended: Cell<bool>,
    /// Why the run makes no sense, as soon as somebody knows.
    failed: RefCell<Option<anyhow::Error>>,
}

impl Run {
    fn now(&self) -> Nanos {
        self.began.elapsed().as_nanos() as Nanos
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.borrow_mut());
    }

    /// Ends the run: the server will not do what this tests.
    fn fail(&self, error: anyhow::Error) {
        self.failed.borrow_mut().get_or_insert(error);
    }

    fn check(&self) -> Result<(), Failure> {
        match self.failed.borrow_mut().take() {
            Some(error) => Err(Exit::Unavailable.with(error)),
            None => Ok(()),
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    if options.sockets == 0 && options.streams == 0 {
        return Err(Exit::Usage.because("--sockets or --streams is at least 1"));
    }
    let app = options.app.parse()?;
    let mut random = [0; 4];
    crate::process::fill_random(&mut random).map_err(|error| Exit::Io.with(error))?;
    let id = u32::from_le_bytes(random);
    let name = |number| format!("{}-{id:08x}-{number}", options.prefix);
    let channels: Vec<String> = (0..options.channels).map(name).collect();
    let invalid = channels
        .iter()
        .find(|name| name.parse::<proto::channel::ChannelName>().is_err());
    if let Some(name) = invalid {
        return Err(Exit::Usage.because(format!("--prefix: {name} is not the name of a channel")));
    }
    let run = Rc::new(Run {
        options: options.clone(),
        app,
        id: id.into(),
        ledger: RefCell::new(Ledger::new(channels.iter().cloned())),
        channels,
        began: Instant::now(),
        counts: RefCell::default(),
        quiet: Cell::new(false),
        ended: Cell::new(false),
        failed: RefCell::default(),
    });
    let runtime = crate::cli::runtime()?;
    let local = tokio::task::LocalSet::new();
    let report = local.block_on(&runtime, verify(&run))?;
    if options.json {
        println!("{}", report.json());
    } else {
        print!("{}", report.table());
    }
    report.verdict()
}

async fn verify(run: &Rc<Run>) -> Result<Report, Failure> {
    let terminal = std::io::stderr().is_terminal();
    let options = &run.options;
    let mut following = followers::start(run);
    attach(run).await?;
    if !terminal {
        eprintln!("dunlin: all clients are attached; publishing");
    }

    let bar = progress("publish", options.duration);
    let mut publishing = publishers::start(run);
    let began = Instant::now();
    tokio::select! {
        done = watch(run, &bar, options.duration) => done?,
        _ = tokio::signal::ctrl_c() => {}
    }
    run.ended.set(true);
    run.quiet.set(true);
    let published_for = began.elapsed();
    bar.finish_and_clear();

    let bar = progress("settle", options.settle);
    let settling = Instant::now();
    loop {
        watch(run, &bar, LOOK_EVERY.min(options.settle)).await?;
        while publishing.try_join_next().is_some() {}
        bar.set_position(millis(settling.elapsed()));
        // Publishers give up by themselves, within the time that they try again.
        let complete = publishing.is_empty() && run.ledger.borrow().is_complete();
        let waited = settling.elapsed() >= options.settle;
        if complete || waited && publishing.is_empty() {
            break;
        }
    }
    watch(run, &bar, LINGER).await?;
    let settled_for = settling.elapsed();
    bar.finish_and_clear();
    following.shutdown().await;

    let ledger = run.ledger.replace(Ledger::new([]));
    let unreachable = ledger
        .unreachable()
        .into_iter()
        .map(str::to_owned)
        .collect();
    let (findings, delays) = ledger.finish();
    Ok(Report {
        gateways: options.urls.len(),
        channels: options.channels,
        published_for,
        settled_for,
        counts: run.counts.take(),
        findings,
        delays,
        unreachable,
    })
}

/// Waits until every client is attached everywhere.
async fn attach(run: &Run) -> Result<(), Failure> {
    let began = Instant::now();
    let bar = ProgressBar::new_spinner().with_message("attach");
    while !run.ledger.borrow().all_attached() {
        if began.elapsed() > START_PATIENCE {
            let why = run.counts.borrow().last_failure.clone();
            let why = why.unwrap_or_else(|| "they were not answered".into());
            return Err(Exit::Unavailable.because(format!(
                "not all clients were attached within {} s: {why}",
                START_PATIENCE.as_secs()
            )));
        }
        watch(run, &bar, LOOK_EVERY).await?;
    }
    bar.finish_and_clear();
    Ok(())
}

/// Lets the run go on for some time, and keeps the ledger small.
async fn watch(run: &Run, bar: &ProgressBar, time: Duration) -> Result<(), Failure> {
    let began = Instant::now();
    let mut compacted = began;
    loop {
        run.check()?;
        let left = time.saturating_sub(began.elapsed());
        if left.is_zero() {
            run.ledger.borrow_mut().compact();
            return Ok(());
        }
        tokio::time::sleep(left.min(LOOK_EVERY)).await;
        if compacted.elapsed() >= COMPACT_EVERY {
            run.ledger.borrow_mut().compact();
            compacted = Instant::now();
        }
        if time > LOOK_EVERY {
            bar.set_position(millis(began.elapsed()));
        }
        bar.set_message(status(run));
    }
}

/// The state of the run in a few words.
fn status(run: &Run) -> String {
    let ledger = run.ledger.borrow();
    let findings = ledger.findings();
    format!(
        "{} acknowledged, {} open, {} deliveries, {} breaches",
        findings.accepted,
        ledger.open(),
        findings.deliveries,
        findings.breaches()
    )
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

fn progress(what: &str, time: Duration) -> ProgressBar {
    let bar = ProgressBar::new(millis(time)).with_prefix(what.to_owned());
    // The template is a constant of ours; the default is the fallback.
    let style = ProgressStyle::with_template("{prefix:8} [{bar:30}] {elapsed} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// Tasks of this thread.
type Tasks = JoinSet<()>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3_600)));
        for text in ["", "s", "1d", "-1s", "1.5s", "99999999999s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
