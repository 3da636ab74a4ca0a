//! The subscribers: many connections in one thread. Prints how they were opened
//! when all are subscribed; then answers each line on stdin by one of its own.

use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use futures_util::{SinkExt, StreamExt, stream};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::frames::{Frames, channel, published_ns};
use super::process::{check_file_limit, now_ns};
use crate::cli::{ServerArguments, Target};
use crate::client::CONNECT_TIMEOUT;
use crate::exit::{Exit, Failure};

/// Connections that are being opened at the same time.
const OPENING: usize = 128;
/// How long one may take to be subscribed.
const PATIENCE: Duration = Duration::from_secs(20);
const READ_BYTES: usize = 64 * 1_024;
/// How often one is tried.
const ATTEMPTS: u32 = 5;
/// How long it waits after the first failure; longer after each.
const RETRY_AFTER: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[arg(long)]
    run: String,
    #[arg(long)]
    channels: u32,
    #[arg(long)]
    count: usize,
    #[arg(long)]
    stalled: bool,
    #[command(flatten)]
    server: ServerArguments,
}

/// The network, `127.0.x.0/24`, that stalled ones connect from.
pub(super) const STALLED_NETWORK: u8 = 2;
const NETWORK: u8 = 1;
/// Connections from one address; there are some 28,000 ports for each.
const PER_ADDRESS: usize = 1_000;
/// Bytes that the kernel keeps for one that does not read.
const STALLED_RECEIVE_BUFFER: u32 = 4_096;

/// What the subscribers have received, all together.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Received {
    pub(super) deliveries: u64,
    /// Connections that the server or the network has ended.
    pub(super) lost: u64,
    /// When the last one came, on the shared clock.
    pub(super) last_ns: u64,
    pub(super) p50_us: u64,
    pub(super) p90_us: u64,
    pub(super) p99_us: u64,
    pub(super) p999_us: u64,
    pub(super) max_us: u64,
}

/// How connections were opened.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Opened {
    /// Until the last one was subscribed.
    pub(super) seconds: f64,
    /// Attempts that failed and were repeated.
    pub(super) retried: u64,
}

struct Tally {
    received: Received,
    /// Microseconds.
    latencies: Histogram<u64>,
    buffer: Vec<u8>,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    check_file_limit(options.count).map_err(|problem| Exit::Usage.because(problem))?;
    let target = options.server.target()?;
    let runtime = crate::cli::runtime()?;
    let local = tokio::task::LocalSet::new();
    local
        .block_on(&runtime, serve(options, &target))
        .map_err(|error| Exit::Unavailable.with(error))
}

async fn serve(options: &Options, target: &Target) -> anyhow::Result<()> {
    let latencies =
        Histogram::new_with_bounds(1, 60_000_000, 3).context("a histogram of a minute")?;
    let tally = Rc::new(RefCell::new(Tally {
        received: Received::default(),
        latencies,
        buffer: vec![0; READ_BYTES],
    }));
    let mut readers = JoinSet::new();
    let opened = open_all(options, target, &tally, &mut readers).await?;
    println!("{}", serde_json::to_string(&opened)?);
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await.context("could not read stdin")? {
        let answer = match line.as_str() {
            "count" => tally.borrow().received.deliveries.to_string(),
            "reset" => {
                tally.borrow_mut().reset();
                "done".to_owned()
            }
            "drop" => {
                readers.shutdown().await;
                "done".to_owned()
            }
            "open" => {
                let opened = open_all(options, target, &tally, &mut readers).await?;
                serde_json::to_string(&opened)?
            }
            _ => serde_json::to_string(&tally.borrow().report())?,
        };
        println!("{answer}");
    }
    Ok(())
}

/// Opens all connections, and begins to read each.
async fn open_all(
    options: &Options,
    target: &Target,
    tally: &Rc<RefCell<Tally>>,
    readers: &mut JoinSet<()>,
) -> anyhow::Result<Opened> {
    let began = now_ns();
    let address = target.url.address().await?;
    let retried = Cell::new(0);
    let mut opening = stream::iter(0..options.count)
        .map(|number| {
            let channel = channel(&options.run, number as u32 % options.channels);
            open_at_last(
                channel,
                target,
                address,
                source(options, address, number),
                &retried,
            )
        })
        .buffer_unordered(OPENING);
    while let Some(stream) = opening.next().await {
        let stream = stream?;
        let tally = Rc::clone(tally);
        if options.stalled {
            readers.spawn_local(async move {
                // Kept, and never read.
                let _stream = stream;
                std::future::pending().await
            });
        } else {
            readers.spawn_local(receive(stream, tally));
        }
    }
    Ok(Opened {
        seconds: (now_ns() - began) as f64 / 1e9,
        retried: retried.get(),
    })
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy)]
struct Source {
    /// `None`: the kernel chooses.
    address: Option<SocketAddr>,
    stalled: bool,
}

/// Addresses of this machine take turns, so that there are ports for all.
fn source(options: &Options, server: SocketAddr, number: usize) -> Source {
    let network = if options.stalled {
        STALLED_NETWORK
    } else {
        NETWORK
    };
    let last = 1 + (number / PER_ADDRESS % 250) as u8;
    let address = SocketAddr::from((Ipv4Addr::new(127, 0, network, last), 0));
    Source {
        address: (server.is_ipv4() && server.ip().is_loopback()).then_some(address),
        stalled: options.stalled,
    }
}

/// Tries until it is subscribed, a few times: a server that is full may say so.
async fn open_at_last(
    channel: String,
    target: &Target,
    server: SocketAddr,
    source: Source,
    retried: &Cell<u64>,
) -> anyhow::Result<TcpStream> {
    for attempt in 1..ATTEMPTS {
        match open(&channel, target, server, source).await {
            Ok(stream) => return Ok(stream),
            Err(_) => {
                retried.set(retried.get() + 1);
                tokio::time::sleep(RETRY_AFTER * attempt).await;
            }
        }
    }
    open(&channel, target, server, source).await
}

async fn connect(server: SocketAddr, source: Source) -> anyhow::Result<TcpStream> {
    let socket = match server {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if source.stalled {
        socket.set_recv_buffer_size(STALLED_RECEIVE_BUFFER)?;
    }
    if let Some(address) = source.address {
        socket.bind(address)?;
    }
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(server)).await;
    let stream = connected.map_err(|_| anyhow!("no answer from {server}"))??;
    stream.set_nodelay(true)?;
    // Closed by reset: nothing of a run stays behind that the next one would miss.
    stream.set_zero_linger()?;
    Ok(stream)
}

/// Connects and subscribes, by the library; from then on only frames come, and
/// the socket is read as cheaply as can be, to leave the machine to the server.
async fn open(
    channel: &str,
    target: &Target,
    server: SocketAddr,
    source: Source,
) -> anyhow::Result<TcpStream> {
    let Target { url, app } = target;
    let stream = connect(server, source).await?;
    let url = url.websocket(&format!("/app/{}?protocol=7&client=dunlin-bench", app.key));
    // Small: it must not read beyond the acknowledgement into a buffer that is
    // dropped.
    let config = WebSocketConfig::default()
        .read_buffer_size(1_024)
        .write_buffer_size(0);
    let opening = async {
        let (mut socket, _) =
            tokio_tungstenite::client_async_with_config(url, stream, Some(config)).await?;
        let data = json!({ "channel": channel });
        let subscribe = json!({ "event": "pusher:subscribe", "data": data });
        socket
            .send(Message::Text(Utf8Bytes::from(subscribe.to_string())))
            .await?;
        loop {
            let Message::Text(text) = socket
                .next()
                .await
                .context("the server closed a connection")??
            else {
                continue;
            };
            let frame: Value = serde_json::from_str(&text)?;
            match frame["event"].as_str() {
                Some("pusher_internal:subscription_succeeded") => return Ok(socket.into_inner()),
                Some("pusher:connection_established") => {}
                _ => bail!("the server did not subscribe a connection: {frame}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, opening).await.map_err(|_| {
        anyhow!(
            "a connection was not subscribed within {} s",
            PATIENCE.as_secs()
        )
    })?
}

async fn receive(stream: TcpStream, tally: Rc<RefCell<Tally>>) {
    let mut frames = Frames::default();
    while stream.readable().await.is_ok() {
        if tally.borrow_mut().read(&stream, &mut frames).is_err() {
            break;
        }
    }
    tally.borrow_mut().received.lost += 1;
}

impl Tally {
    fn read(&mut self, stream: &TcpStream, frames: &mut Frames) -> Result<(), ()> {
        let Self {
            received,
            latencies,
            buffer,
        } = self;
        let count = match stream.try_read(buffer) {
            Ok(0) => return Err(()),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(_) => return Err(()),
        };
        let now = now_ns();
        let result = frames.feed(&buffer[..count], |payload| {
            if let Some(published) = published_ns(payload) {
                received.deliveries += 1;
                received.last_ns = now;
                latencies.saturating_record(now.saturating_sub(published) / 1_000);
            }
        });
        result.map_err(|_| ())
    }

    fn reset(&mut self) {
        self.received.deliveries = 0;
        self.latencies.reset();
    }

    fn report(&self) -> Received {
        let at = |quantile| self.latencies.value_at_quantile(quantile);
        Received {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: self.latencies.max(),
            ..self.received.clone()
        }
    }
}
