//! `dunlin bench publish`: how long acknowledgements take, and what they cost.
//! Publishes over HTTP, or over the bus as a gateway does.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use gateway::app::Apps;
use gateway::core::leaving::Pace;
use gateway::core::uplink::Order;
use gateway::{Limits, OutboxLimits, Publisher};
use hdrhistogram::Histogram;
use hyper::StatusCode;
use proto::bus::BusHandle;
use proto::channel::{ChannelKey, ChannelName};
use proto::id::{AppId, GatewayRef, Incarnation};
use proto::namespace::Namespaces;
use proto::subject::ClusterName;
use proto::time::UnixTime;
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};

use super::process::{Processes, check_file_limit, now_ns};
use super::{frames, setup};
use crate::cli::{AppArgument, AppText};
use crate::client::{Connection, Server, code, problem};
use crate::config::{self, BusServers, InvalidServers};
use crate::exit::{Exit, Failure};

mod report;

use report::Report;

/// How long to look for a node.
const PATIENCE: Duration = Duration::from_secs(20);
/// A gateway takes no more than these into one request.
const BATCH_MAX: i64 = 100;

#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Channels, which are published into in turn.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    channels: u32,
    /// Requests that are under way at the same time. With 1 each waits for the one before.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    in_flight: u32,
    /// Channels that one request publishes into; over HTTP only.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=BATCH_MAX), conflicts_with = "bus")]
    batch: u32,
    /// Bytes of each publication's data.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(19..=100_000))]
    size: u32,
    /// Seconds of publishing.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// The gateway to measure, over HTTP; without this and --bus, a `dunlin dev` is started for it.
    #[arg(long, conflicts_with = "bus")]
    url: Option<Server>,
    /// The NATS servers of a cluster, with commas between them, to publish as a gateway of its own.
    #[arg(long, value_name = "URL", value_parser = BusServers::or_why_not)]
    bus: Option<Result<BusServers, InvalidServers>>,
    /// The cluster's name on the bus.
    #[arg(long, value_name = "NAME", default_value = "dunlin", requires = "bus")]
    cluster: ClusterName,
    /// Credentials for the bus (a NATS .creds file).
    #[arg(long, value_name = "FILE", requires = "bus")]
    bus_creds: Option<PathBuf>,
    /// Certificate authorities for the bus (PEM), instead of the system's.
    #[arg(long, value_name = "FILE", requires = "bus")]
    bus_ca: Option<PathBuf>,
    /// Process ids, with commas between them, of the servers that are on this machine: for the CPU
    /// of each.
    #[arg(long, value_delimiter = ',')]
    pid: Vec<u32>,
    /// The app to act as.
    #[arg(
        long,
        value_name = "ID:KEY:SECRET",
        default_value = "app-id:app-key:app-secret",
        hide_env_values = true
    )]
    app: AppText,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    if options.batch > options.channels {
        return Err(Exit::Usage.because("--batch is at most --channels"));
    }
    check_file_limit(options.in_flight as usize).map_err(|problem| Exit::Usage.because(problem))?;
    let app = options.app.parse()?;
    let bus = options.bus.clone().transpose();
    let bus = bus.map_err(|invalid| Exit::Usage.because(format!("--bus: {invalid}")))?;
    let unavailable = |error: anyhow::Error| Exit::Unavailable.with(error);
    let measuring = async {
        match bus {
            Some(servers) => {
                let bus = config::Bus {
                    cluster: options.cluster.clone(),
                    bus: servers,
                    bus_creds: options.bus_creds.clone(),
                    bus_ca: options.bus_ca.clone(),
                };
                // Process ids are alike in containers.
                let name = format!("bench-{:x}", now_ns());
                let connected = crate::gateway::connect(&bus, name.clone()).await?;
                let measured = over_bus(options, &app, &name, &bus, connected).await;
                measured.map_err(unavailable)
            }
            None => over_http(options, &app).await.map_err(unavailable),
        }
    };
    let runtime = crate::cli::runtime()?;
    let report = LocalSet::new().block_on(&runtime, measuring)?;
    eprint!("{}", report.table());
    println!("{}", report.json());
    Ok(())
}

async fn over_http(options: &Options, app: &AppArgument) -> anyhow::Result<Report> {
    let own_server = match &options.url {
        None => Some(setup::start_server()?),
        Some(_) => None,
    };
    let (server, pids) = match (&own_server, &options.url) {
        (Some((helper, server)), _) => (server, vec![helper.pid()]),
        (None, url) => (url.as_ref().context("a server")?, options.pid.clone()),
    };
    let mut publishers = Vec::new();
    for _ in 0..options.in_flight {
        publishers.push(Way::Http {
            connection: server.connect().await?,
            app: app.clone(),
        });
    }
    measure(options, "http", &pids, publishers).await
}

async fn over_bus(
    options: &Options,
    app: &AppArgument,
    name: &str,
    bus: &config::Bus,
    connected: BusHandle,
) -> anyhow::Result<Report> {
    let (stop, shutdown) = watch::channel(false);
    let joining = join(name, bus, connected, shutdown);
    let publisher = tokio::time::timeout(PATIENCE, joining)
        .await
        .map_err(|_| {
            let (secs, cluster) = (PATIENCE.as_secs(), &bus.cluster);
            anyhow!("no node of cluster {cluster} was found on the bus at {} within {secs} s; is the cluster's name right?", bus.bus)
        })??;
    let publisher = Rc::new(publisher);
    let app: AppId = app.id.parse().context("--app: its id")?;
    let way = || Way::Bus {
        publisher: Rc::clone(&publisher),
        app: app.clone(),
    };
    let ways = (0..options.in_flight).map(|_| way()).collect();
    let report = measure(options, "bus", &options.pid, ways).await;
    let _ = stop.send(true);
    if let Ok(publisher) = Rc::try_unwrap(publisher) {
        publisher.ended().await?;
    }
    report
}

async fn join(
    name: &str,
    config: &config::Bus,
    bus: BusHandle,
    shutdown: watch::Receiver<bool>,
) -> anyhow::Result<Publisher> {
    let apps = Arc::new(Apps::new([]));
    let metrics = gateway::Metrics::register(&prometheus::Registry::new(), bus.name(), &apps)?;
    let config = gateway::Config {
        cluster: config.cluster.clone(),
        gateway: GatewayRef {
            id: name.parse()?,
            incarnation: Incarnation(UnixTime::now().0),
        },
        // It has no clients.
        listen: ([127, 0, 0, 1], 0).into(),
        apps,
        workers: 0,
        activity_timeout: Duration::ZERO,
        tls: None,
        limits: Limits::default(),
        outbox: OutboxLimits::default(),
        namespaces: Namespaces::default(),
        leaving: Pace::AT_ONCE,
        playground: false,
    };
    let publisher = Publisher::join(config, bus, Arc::new(metrics), shutdown).await?;
    publisher.context("the shutdown came first")
}

/// How one publication after the other goes.
enum Way {
    Http {
        connection: Connection,
        app: AppArgument,
    },
    Bus {
        publisher: Rc<Publisher>,
        app: AppId,
    },
}

/// What became of a request.
enum Outcome {
    /// Acknowledged. Over the bus it is known in how many processes.
    Acked(Option<u8>),
    /// The code that says why not.
    Refused(&'static str),
}

impl Way {
    async fn publish(
        &mut self,
        channels: &[ChannelName],
        data: &Arc<str>,
    ) -> anyhow::Result<Outcome> {
        match self {
            Self::Http { connection, app } => {
                let channels: Vec<&str> = channels.iter().map(ChannelName::as_str).collect();
                let body =
                    serde_json::json!({ "name": "b", "channels": channels, "data": &**data });
                let (status, text) = connection.post_event(app, &body, None).await?;
                match code(&text) {
                    _ if status == StatusCode::OK => Ok(Outcome::Acked(None)),
                    Some(code) if status.is_server_error() => Ok(Outcome::Refused(code.as_str())),
                    // It will not be better the next time.
                    _ => bail!("the gateway refuses: {}", problem(status, &text)),
                }
            }
            Self::Bus { publisher, app } => {
                let channel = channels.first().context("a channel")?;
                let order = Order {
                    key: ChannelKey {
                        app: app.clone(),
                        channel: channel.clone(),
                    },
                    event: "b".into(),
                    data: Arc::clone(data),
                    exclude: None,
                    accepted_at: UnixTime::now(),
                    idempotency: None,
                    by: None,
                };
                match publisher.publish(order).await {
                    Ok(accepted) => Ok(Outcome::Acked(Some(accepted.copies))),
                    Err(code) => {
                        // Some refusals do not wait for anything.
                        tokio::task::yield_now().await;
                        Ok(Outcome::Refused(code.as_str()))
                    }
                }
            }
        }
    }
}

/// What all publishers have come to.
#[derive(Debug)]
struct Tally {
    acks: u64,
    copies: BTreeMap<u8, u64>,
    refused: BTreeMap<&'static str, u64>,
    /// Microseconds.
    latencies: Histogram<u64>,
}

impl Tally {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            acks: 0,
            copies: BTreeMap::new(),
            refused: BTreeMap::new(),
            latencies: Histogram::new_with_bounds(1, 60_000_000, 3).context("a histogram")?,
        })
    }

    fn count(&mut self, outcome: &Outcome, publications: u64, took_ns: u64) {
        match outcome {
            Outcome::Acked(copies) => {
                self.acks += publications;
                self.latencies.saturating_record(took_ns / 1_000);
                if let Some(copies) = copies {
                    *self.copies.entry(*copies).or_default() += publications;
                }
            }
            Outcome::Refused(code) => *self.refused.entry(code).or_default() += publications,
        }
    }
}

/// What the publishers share.
struct Work {
    channels: Vec<ChannelName>,
    data: Arc<str>,
    batch: usize,
    /// The channel that is next.
    next: usize,
    /// Channels that are to be published into before it ends; else it ends in
    /// time.
    left: Option<usize>,
    ends_ns: u64,
    tally: Tally,
}

impl Work {
    /// The channels of the next request.
    fn take(&mut self) -> Option<Vec<ChannelName>> {
        let count = match &mut self.left {
            Some(left) => {
                let count = self.batch.min(*left);
                *left -= count;
                count
            }
            None if now_ns() < self.ends_ns => self.batch,
            None => 0,
        };
        let start = self.next;
        self.next = (start + count) % self.channels.len();
        let in_turn = self.channels.iter().cycle().skip(start).take(count);
        (count > 0).then(|| in_turn.cloned().collect())
    }
}

async fn measure(
    options: &Options,
    via: &'static str,
    pids: &[u32],
    mut ways: Vec<Way>,
) -> anyhow::Result<Report> {
    let run = now_ns();
    let channels = (0..options.channels).map(|number| format!("bench-{run}-{number}").parse());
    let work = Rc::new(RefCell::new(Work {
        channels: channels.collect::<Result<_, _>>()?,
        data: frames::data(run, options.size as usize).into(),
        batch: options.batch as usize,
        next: 0,
        left: Some(options.channels as usize),
        ends_ns: 0,
        tally: Tally::new()?,
    }));
    // Channels begin with their first publication; that is not measured.
    ways = all(&work, ways).await?;
    let before = Processes::of(pids)?;
    let began = now_ns();
    {
        let mut work = work.borrow_mut();
        work.left = None;
        work.ends_ns = began + u64::from(options.seconds) * 1_000_000_000;
        work.tally = Tally::new()?;
    }
    all(&work, ways).await?;
    let elapsed_s = (now_ns() - began) as f64 / 1e9;
    let cpu_s = before.cpu_until_now()?;
    let tally = std::mem::replace(&mut work.borrow_mut().tally, Tally::new()?);
    if tally.acks == 0 {
        bail!("nothing was acknowledged: {:?}", tally.refused);
    }
    Ok(Report {
        via,
        channels: options.channels,
        in_flight: options.in_flight,
        batch: options.batch,
        size: options.size,
        elapsed_s,
        tally,
        cpu_s,
    })
}

/// Works until there is nothing to do any more.
async fn all(work: &Rc<RefCell<Work>>, ways: Vec<Way>) -> anyhow::Result<Vec<Way>> {
    let mut publishers = JoinSet::new();
    for mut way in ways {
        let work = Rc::clone(work);
        let data = Arc::clone(&work.borrow().data);
        publishers.spawn_local(async move {
            loop {
                let next = work.borrow_mut().take();
                let Some(channels) = next else {
                    return anyhow::Ok(way);
                };
                let began = now_ns();
                let outcome = way.publish(&channels, &data).await?;
                let took = now_ns() - began;
                let tally = &mut work.borrow_mut().tally;
                tally.count(&outcome, channels.len() as u64, took);
            }
        });
    }
    let mut ways = Vec::new();
    while let Some(ended) = publishers.join_next().await {
        ways.push(ended??);
    }
    Ok(ways)
}
