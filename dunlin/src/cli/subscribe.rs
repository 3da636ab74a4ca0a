//! `dunlin sub`: prints what arrives. Public channels come by SSE, private ones
//! over WebSocket, signed with the app's secret. Connects again by itself, and
//! goes on where it stood: what was published meanwhile comes, or is announced
//! as lost.

use std::collections::BTreeMap;
use std::io::{BufWriter, ErrorKind, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use futures_util::SinkExt;
use gateway::core::auth::channel_signature;
use proto::channel::{ChannelKind, ChannelName};
use proto::position::Position;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{ServerArguments, Target, printable};
use crate::exit::{Exit, Failure};
use crate::follow::{End, Never, message, next_bytes, next_frame, open_socket, opened};
use event_stream::Parser;

pub(crate) mod event_stream;

/// Channels of one event stream at most.
const STREAM_CHANNELS: usize = gateway::protocol::sse::CHANNELS_MAX;
/// Between attempts to connect: doubled each time, up to the last.
const BACKOFF: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(5)];
/// A server says something at least this often; more silence is a dead
/// connection.
const SILENCE: Duration = Duration::from_secs(90);
/// Messages that wait to be printed; then reading waits.
const PRINT_QUEUE: usize = 4_096;
/// A client that hears nothing pings this often.
const PING: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The channels.
    #[arg(required = true)]
    channels: Vec<ChannelName>,
    /// Print whole messages as JSON: channel, event, data.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArguments,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let target = options.server.target()?;
    let runtime = super::runtime()?;
    runtime.block_on(subscribe(options, &target))
}

/// What a connection reports.
enum Report {
    /// A message, as JSON.
    Message(Value),
    /// Publications were lost: channel and reason, as JSON.
    Gap(Value),
    /// For the person at the terminal.
    Note(String),
}

async fn subscribe(options: &Options, target: &Target) -> Result<(), Failure> {
    let (reports, mut printing) = mpsc::channel(PRINT_QUEUE);
    let (private, public): (Vec<_>, Vec<_>) = options
        .channels
        .iter()
        .cloned()
        .partition(|channel| channel.kind() != ChannelKind::Public);
    let mut connections = tokio::task::JoinSet::new();
    for channels in public.chunks(STREAM_CHANNELS) {
        let source = Source::Stream(Stream {
            path: stream_path(&target.app.key, channels),
            last_event_id: None,
        });
        connections.spawn(keep(source, target.clone(), reports.clone()));
    }
    if !private.is_empty() {
        let source = Source::Socket(Socket {
            channels: private,
            positions: BTreeMap::new(),
        });
        connections.spawn(keep(source, target.clone(), reports.clone()));
    }
    drop(reports);
    let terminal = std::io::stdout().is_terminal();
    let mut output = Output {
        terminal,
        out: BufWriter::new(std::io::stdout()),
        json: options.json,
    };
    loop {
        tokio::select! {
            Some(report) = printing.recv() => {
                let printed = output.print(&report).and_then(|()| if printing.is_empty() { output.out.flush() } else { Ok(()) });
                match printed {
                    Ok(()) => {}
                    // Whoever reads has seen enough, as `head` does.
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                    Err(error) => return Err(Exit::Io.because(format!("could not write to stdout: {error}"))),
                }
            }
            Some(ended) = connections.join_next() => {
                let refused = ended.map_err(|error| Exit::Software.with(error))?;
                return Err(Exit::Unavailable.with(refused));
            }
        }
    }
}

struct Output {
    /// Somebody's: what is printed must not command it.
    terminal: bool,
    out: BufWriter<std::io::Stdout>,
    json: bool,
}

impl Output {
    fn print(&mut self, report: &Report) -> std::io::Result<()> {
        match report {
            Report::Message(message) | Report::Gap(message) if self.json => {
                writeln!(self.out, "{message}")
            }
            Report::Message(message) => {
                let data = &message["data"];
                match data.as_str() {
                    Some(text) if self.terminal => writeln!(self.out, "{}", printable(text)),
                    Some(text) => writeln!(self.out, "{text}"),
                    None => writeln!(self.out, "{data}"),
                }
            }
            Report::Gap(gap) => {
                eprintln!("dunlin: messages were lost: {gap}");
                Ok(())
            }
            Report::Note(note) => {
                eprintln!("dunlin: {note}");
                Ok(())
            }
        }
    }
}

/// How channels come.
enum Source {
    Stream(Stream),
    Socket(Socket),
}

/// Public channels, as an event stream.
struct Stream {
    path: String,
    /// How far it has come.
    last_event_id: Option<String>,
}

/// Private channels, over WebSocket.
struct Socket {
    channels: Vec<ChannelName>,
    /// How far each has come, as the server says it.
    positions: BTreeMap<String, Value>,
}

/// Stays connected until the server refuses; why it did.
async fn keep(mut source: Source, server: Target, reports: mpsc::Sender<Report>) -> anyhow::Error {
    let mut wait = BACKOFF[0];
    loop {
        let mut was_live = false;
        let ended = match &mut source {
            Source::Stream(stream) => stream.follow(&server, &reports, &mut was_live).await,
            Source::Socket(socket) => socket.follow(&server, &reports, &mut was_live).await,
        };
        match ended {
            Ok(never) => match never {},
            Err(End::Refused(error)) => return error,
            Err(End::Lost(error)) => {
                if was_live {
                    wait = BACKOFF[0];
                }
                let note = format!("{error:#}; trying again in {} ms", wait.as_millis());
                if reports.send(Report::Note(note)).await.is_err() {
                    return error;
                }
                super::wait(wait).await;
                wait = (wait * 2).min(BACKOFF[1]);
            }
        }
    }
}

fn stream_path(key: &str, channels: &[ChannelName]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::from("envelope=true"));
    for channel in channels {
        query.append_pair("channel", channel.as_str());
    }
    format!("/app/{key}/sse?{}", query.finish())
}

impl Stream {
    async fn follow(
        &mut self,
        server: &Target,
        reports: &mpsc::Sender<Report>,
        was_live: &mut bool,
    ) -> Result<Never, End> {
        let mut connection = server.url.connect().await?;
        let path = match &self.last_event_id {
            Some(id) => format!("{}&last_event_id={id}", self.path),
            None => self.path.clone(),
        };
        let response = connection.get(&path).await?;
        let mut response = opened(&server.url, response).await?;
        let mut parser = Parser::default();
        loop {
            let bytes = next_bytes(&mut response, SILENCE).await?;
            for block in parser.feed(&bytes) {
                // The first block is an `id` alone: the stream has begun.
                if !std::mem::replace(was_live, true) {
                    reports
                        .send(Report::Note(format!("subscribed at {}", server.url)))
                        .await?;
                }
                let (id, data) = (block.id, block.data);
                let Some(data) = data else {
                    self.last_event_id = id.or(self.last_event_id.take());
                    continue;
                };
                let value: Value =
                    serde_json::from_str(&data).context("the server sent what is not JSON")?;
                let report = if block.event.as_deref() == Some("gap") {
                    Report::Gap(
                        json!({ "channel": value["channel"], "event": "gap", "data": value }),
                    )
                } else {
                    Report::Message(value)
                };
                reports.send(report).await?;
                // Not before it was passed on.
                self.last_event_id = id.or(self.last_event_id.take());
            }
        }
    }
}

impl Socket {
    async fn follow(
        &mut self,
        server: &Target,
        reports: &mpsc::Sender<Report>,
        was_live: &mut bool,
    ) -> Result<Never, End> {
        let app = &server.app;
        let mut socket = open_socket(&server.url, &app.key).await?;
        let mut pending = self.channels.len();
        loop {
            let frame = next_frame(&mut socket, PING).await?;
            let mut frame: Value =
                serde_json::from_str(&frame).context("the server sent what is not JSON")?;
            match frame["event"].as_str().unwrap_or_default() {
                "pusher:connection_established" => {
                    let data: Value =
                        serde_json::from_str(frame["data"].as_str().unwrap_or_default())?;
                    let id = data["socket_id"]
                        .as_str()
                        .unwrap_or_default()
                        .parse()
                        .context("the server sent no socket_id")?;
                    for channel in &self.channels {
                        let signature = channel_signature(&app.secret, id, channel, None);
                        let auth = format!("{}:{signature}", app.key);
                        let position = self.positions.get(channel.as_str());
                        let recover = position.unwrap_or(&Value::Bool(true));
                        let data = json!({ "channel": channel.as_str(), "auth": auth, "recover": recover });
                        socket
                            .send(message(
                                &json!({ "event": "pusher:subscribe", "data": data }),
                            ))
                            .await?;
                    }
                }
                "pusher_internal:subscription_succeeded" => {
                    let data: Value =
                        serde_json::from_str(frame["data"].as_str().unwrap_or_default())?;
                    self.stands_at(&frame["channel"], &data["position"]);
                    pending = pending.saturating_sub(1);
                    if pending == 0 && !std::mem::replace(was_live, true) {
                        reports
                            .send(Report::Note(format!("subscribed at {}", server.url)))
                            .await?;
                    }
                }
                "pusher:subscription_error" => {
                    let why = frame["data"]["error"]
                        .as_str()
                        .unwrap_or("no reason given")
                        .to_owned();
                    return Err(End::Refused(anyhow!(
                        "{} refused the subscription: {why}",
                        server.url
                    )));
                }
                "pusher:error" => {
                    let message = frame["data"]["message"]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned();
                    reports
                        .send(Report::Note(format!("the server says: {message}")))
                        .await?;
                }
                "pusher:ping" => {
                    socket
                        .send(message(&json!({ "event": "pusher:pong", "data": {} })))
                        .await?
                }
                "dunlin:gap" => {
                    let data: Value =
                        serde_json::from_str(frame["data"].as_str().unwrap_or_default())?;
                    let gap = json!({ "channel": data["channel"], "event": "gap", "data": data });
                    reports.send(Report::Gap(gap)).await?;
                    let latest = data["latest"].as_str().unwrap_or_default();
                    if let Ok(Position { epoch, offset }) = latest.parse() {
                        let position = json!({ "epoch": epoch.to_string(), "offset": offset.0 });
                        self.stands_at(&data["channel"], &position);
                    }
                }
                "pusher:pong" => {}
                _ => {
                    let (channel, position) = (frame["channel"].clone(), frame["position"].clone());
                    if let Some(frame) = frame.as_object_mut() {
                        frame.remove("position");
                    }
                    reports.send(Report::Message(frame)).await?;
                    // Not before it was passed on.
                    self.stands_at(&channel, &position);
                }
            }
        }
    }

    fn stands_at(&mut self, channel: &Value, position: &Value) {
        if let (Some(channel), true) = (channel.as_str(), position.is_object()) {
            self.positions.insert(channel.to_owned(), position.clone());
        }
    }
}
