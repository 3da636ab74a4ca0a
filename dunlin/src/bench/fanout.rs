//! `dunlin bench fanout`: one channel or some, many subscribers, through one
//! gateway or from one to another.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use hyper::StatusCode;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::MissedTickBehavior;

use super::process::{Helper, Usage, check_file_limit, now_ns};
use super::report::Report;
use super::subscribers::Received;
use super::{floor, frames};
use crate::cli::{AppArgument, AppText};
use crate::client::{Event, Server, problem};
use crate::exit::{Exit, Failure};

/// How long connections rest before memory is read.
const REST: Duration = Duration::from_secs(1);
/// How long to wait for deliveries after the last publication.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the subscribers are asked whether they have everything.
const ASK_EVERY: Duration = Duration::from_millis(50);

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
    /// Bytes of each publication's data.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(19..=400_000))]
    size: u32,
    /// Seconds of publishing.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// The server to measure; without, a `dunlin dev` is started for it.
    #[arg(long)]
    url: Option<Server>,
    /// Where the subscribers connect, if that is another gateway of the same cluster.
    #[arg(long, requires = "url")]
    subscribe_url: Option<Server>,
    /// Process ids, with commas between them, of the servers that are on this machine: for CPU and
    /// memory, of all of them together.
    #[arg(long, requires = "url", value_delimiter = ',')]
    pid: Vec<u32>,
    /// The app to act as.
    #[arg(
        long,
        value_name = "ID:KEY:SECRET",
        default_value = "app-id:app-key:app-secret",
        hide_env_values = true
    )]
    app: AppText,
    /// Do not measure the floor. It is of one channel, and never measured with several.
    #[arg(long)]
    no_floor: bool,
}

impl Options {
    fn publications(&self) -> u64 {
        u64::from(self.rate) * u64::from(self.seconds)
    }
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    check_file_limit(options.subscribers).map_err(|problem| Exit::Usage.because(problem))?;
    if options.subscribers == 0 || options.seconds == 0 {
        return Err(Exit::Usage.because("--subscribers and --seconds are at least 1"));
    }
    if !options
        .subscribers
        .is_multiple_of(options.channels as usize)
    {
        return Err(Exit::Usage.because("--subscribers is a multiple of --channels"));
    }
    let app = options.app.parse()?;
    let report = measure(options, &app).map_err(|error| Exit::Unavailable.with(error))?;
    eprintln!("{}", report.table());
    println!("{}", report.json());
    Ok(())
}

fn measure(options: &Options, app: &AppArgument) -> anyhow::Result<Report> {
    let own_server = options.url.is_none().then(start_server).transpose()?;
    let (server, pids) = match &own_server {
        Some((helper, server)) => (server.clone(), vec![helper.pid()]),
        None => (
            options.url.clone().context("a server")?,
            options.pid.clone(),
        ),
    };
    let usage = || Usage::of_all(&pids);
    let publications = options.publications();
    let channels: Vec<String> = (0..options.channels)
        .map(|number| format!("bench-{}-{number}", now_ns()))
        .collect();

    let bar = progress("connect", 1);
    let before = usage()?;
    let subscribe_at = options.subscribe_url.as_ref().unwrap_or(&server);
    let mut subscribers = start_subscribers(options, app, subscribe_at, &channels)?;
    if subscribers.line()? != "ready" {
        bail!("the subscribers did not begin");
    }
    std::thread::sleep(REST);
    let idle = usage()?;
    bar.finish_and_clear();

    let bar = progress("publish", publications);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let began_ns = now_ns();
    runtime.block_on(publish(options, app, &server, &channels, &bar))?;
    let expected = publications * options.subscribers as u64 / u64::from(options.channels);
    let received = wait_for(&mut subscribers, expected)?;
    let loaded = usage()?;
    bar.finish_and_clear();
    drop(subscribers);
    drop(own_server);

    let floor = if options.no_floor || options.channels > 1 {
        None
    } else {
        let bar = progress("floor", publications);
        let interval = Duration::from_secs(1) / options.rate;
        let frame =
            gateway::websocket::text_frame(&event(&channels[0], options.size as usize)).len();
        let floor = floor::measure(options.subscribers, frame, publications, interval, |done| {
            bar.set_position(done)
        })?;
        bar.finish_and_clear();
        Some(floor)
    };
    Ok(Report {
        subscribers: options.subscribers as u64,
        channels: options.channels,
        rate: options.rate,
        size: u64::from(options.size),
        seconds: options.seconds,
        expected,
        elapsed_s: received.last_ns.saturating_sub(began_ns) as f64 / 1e9,
        received,
        before,
        idle,
        loaded,
        floor,
    })
}

/// A `dunlin dev` on free ports, and where it listens.
pub(super) fn start_server() -> anyhow::Result<(Helper, Server)> {
    let arguments = ["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let mut helper = Helper::start(&arguments.map(str::to_owned), [])?;
    loop {
        let line = helper
            .line()
            .context("could not start a server to measure")?;
        if let Some(url) = line
            .trim_start()
            .strip_prefix("clients")
            .and_then(|rest| rest.split_whitespace().next())
        {
            let server = url.parse().map_err(anyhow::Error::msg)?;
            return Ok((helper, server));
        }
    }
}

fn start_subscribers(
    options: &Options,
    app: &AppArgument,
    server: &Server,
    channels: &[String],
) -> anyhow::Result<Helper> {
    let AppArgument { id, key, secret } = app;
    let arguments = [
        "bench",
        "subscribers",
        "--channels",
        &channels.join(","),
        "--count",
        &options.subscribers.to_string(),
        "--url",
        &server.to_string(),
    ];
    // By the environment: arguments can be read by everyone on the machine.
    let app = ("DUNLIN_APP", format!("{id}:{key}:{}", secret.expose()));
    Helper::start(&arguments.map(str::to_owned), [app])
}

/// The JSON of one publication, to know its length.
fn event(channel: &str, size: usize) -> String {
    let data = frames::data(now_ns(), size);
    serde_json::json!({ "event": "b", "channel": channel, "data": data }).to_string()
}

/// Publishes at the rate, one after the other; what cannot keep up catches up.
async fn publish(
    options: &Options,
    app: &AppArgument,
    server: &Server,
    channels: &[String],
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let mut connection = server.connect().await?;
    let mut interval = tokio::time::interval(Duration::from_secs(1) / options.rate);
    interval.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let in_turn = channels.iter().cycle();
    for (published, channel) in (1..=options.publications()).zip(in_turn) {
        interval.tick().await;
        let data = frames::data(now_ns(), options.size as usize);
        let event = Event {
            channel,
            name: "b",
            data: &data,
            idempotency_key: None,
        };
        let (status, body) = connection.publish(app, &event).await?;
        if status != StatusCode::OK {
            bail!(
                "publication {published} was not taken: {}",
                problem(status, &body)
            );
        }
        bar.set_position(published);
    }
    Ok(())
}

/// Until everything has arrived, or for as long as patience lasts.
fn wait_for(subscribers: &mut Helper, expected: u64) -> anyhow::Result<Received> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        subscribers.ask("report")?;
        let received: Received = serde_json::from_str(&subscribers.line()?)?;
        if received.deliveries >= expected || Instant::now() >= deadline {
            return Ok(received);
        }
        std::thread::sleep(ASK_EVERY);
    }
}

fn progress(what: &str, length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length).with_message(what.to_owned());
    // The template is a constant of ours; the default is the fallback.
    let style = ProgressStyle::with_template("{msg:8} [{bar:40}] {pos}/{len} {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
