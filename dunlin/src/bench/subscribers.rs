//! The subscribers: many connections in one thread. Prints `ready` when all are
//! subscribed; then, for each line on stdin, what they have received.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use futures_util::{SinkExt, StreamExt, TryStreamExt, stream};
use hdrhistogram::Histogram;
use proto::channel::ChannelName;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::frames::{Frames, published_ns};
use super::process::{check_file_limit, now_ns};
use crate::cli::{ServerArguments, Target};
use crate::exit::{Exit, Failure};

/// Connections that are being opened at the same time.
const OPENING: usize = 128;
/// How long one may take to be subscribed.
const PATIENCE: Duration = Duration::from_secs(20);
const READ_BYTES: usize = 64 * 1_024;

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[arg(long, value_delimiter = ',', required = true)]
    channels: Vec<ChannelName>,
    #[arg(long)]
    count: usize,
    #[command(flatten)]
    server: ServerArguments,
}

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
    pub(super) max_us: u64,
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
    let opened: Vec<TcpStream> =
        stream::iter((0..options.count).zip(options.channels.iter().cycle()))
            .map(|(_, channel)| open(channel, target))
            .buffer_unordered(OPENING)
            .try_collect()
            .await?;
    for stream in opened {
        tokio::task::spawn_local(receive(stream, Rc::clone(&tally)));
    }
    println!("ready");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while lines
        .next_line()
        .await
        .context("could not read stdin")?
        .is_some()
    {
        println!("{}", serde_json::to_string(&tally.borrow().report())?);
    }
    Ok(())
}

/// Connects and subscribes, by the library; from then on only frames come, and
/// the socket is read as cheaply as can be, to leave the machine to the server.
async fn open(channel: &ChannelName, target: &Target) -> anyhow::Result<TcpStream> {
    let Target { url, app } = target;
    let stream = url.open().await?;
    let url = url.websocket(&format!("/app/{}?protocol=7&client=dunlin-bench", app.key));
    // Small: it must not read beyond the acknowledgement into a buffer that is
    // dropped.
    let config = WebSocketConfig::default()
        .read_buffer_size(1_024)
        .write_buffer_size(0);
    let opening = async {
        let (mut socket, _) =
            tokio_tungstenite::client_async_with_config(url, stream, Some(config)).await?;
        let data = json!({ "channel": channel.as_str() });
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

    fn report(&self) -> Received {
        let at = |quantile| self.latencies.value_at_quantile(quantile);
        Received {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            max_us: self.latencies.max(),
            ..self.received.clone()
        }
    }
}
