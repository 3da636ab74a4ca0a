//! The clients that follow: they write down what they get, break their
//! connections at random, and resume where they were, at any gateway.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use futures_util::SinkExt;
use gateway::core::auth::channel_signature;
use proto::channel::{ChannelKind, ChannelName};
use proto::id::ConnectionId;
use proto::position::Position;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::ledger::Reader;
use super::random::Random;
use super::wire::{self, Frame, What};
use super::{Run, Tasks};
use crate::cli::subscribe::event_stream::Parser;
use crate::follow::{End, Never, message, next_bytes, next_frame, open_socket, opened};

/// Channels of one event stream: a cursor of several positions, and not so long
/// that it is most of what is sent. The first stream of each client has one
/// channel, which servers write in another way.
const STREAM_CHANNELS: usize = 16;
/// Between attempts to connect: doubled each time, up to the last.
const BACKOFF: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];
/// How long a client is away that breaks its connection, on average.
const AWAY: Duration = Duration::from_millis(200);
/// A client that hears nothing pings this often.
const PING: Duration = Duration::from_secs(20);
/// An event stream says something at least this often.
const SILENCE: Duration = Duration::from_secs(60);

/// Starts all clients.
pub(super) fn start(run: &Rc<Run>) -> Tasks {
    let mut tasks = Tasks::new();
    let all: Vec<usize> = (0..run.channels.len()).collect();
    let (first, rest) = all.split_at(1);
    for gateway in 0..run.options.urls.len() {
        for number in 0..run.options.sockets {
            add(
                run,
                &mut tasks,
                gateway,
                &format!("socket {number}"),
                &all,
                true,
            );
        }
        for number in 0..run.options.streams {
            let parts = std::iter::once(first).chain(rest.chunks(STREAM_CHANNELS));
            for (part, channels) in parts.enumerate() {
                let name = format!("stream {number}.{part}");
                add(run, &mut tasks, gateway, &name, channels, false);
            }
        }
    }
    tasks
}

fn add(
    run: &Rc<Run>,
    tasks: &mut Tasks,
    gateway: usize,
    name: &str,
    channels: &[usize],
    is_socket: bool,
) {
    // In the order of their names, as a stream's cursor has them.
    let mut channels = channels.to_vec();
    channels.sort_by(|a, b| run.channels[*a].cmp(&run.channels[*b]));
    let name = format!("{name} of gateway {gateway}");
    let (id, readers) = run.ledger.borrow_mut().add_client(name, &channels);
    let names = channels.iter().map(|at| run.channels[*at].clone());
    let client = Follower {
        run: Rc::clone(run),
        id,
        gateway,
        is_socket,
        names: names.collect(),
        cursors: vec![None; channels.len()],
        channels,
        readers,
        random: Random::new(run.options.seed, id as u64),
        was_live: false,
    };
    tasks.spawn_local(client.keep());
}

struct Follower {
    run: Rc<Run>,
    id: usize,
    /// Which of the gateways it is at.
    gateway: usize,
    is_socket: bool,
    /// Numbers and names, and the ledger's readers, of its channels; all in the
    /// same order.
    channels: Vec<usize>,
    names: Vec<String>,
    readers: Vec<Reader>,
    /// Where it would resume: the last that the server has told it.
    cursors: Vec<Option<Position>>,
    random: Random,
    /// The connection has worked.
    was_live: bool,
}

impl Follower {
    async fn keep(mut self) {
        let mut wait = BACKOFF[0];
        loop {
            self.was_live = false;
            let ended = self.until_it_ends().await;
            self.run.ledger.borrow_mut().connected(self.id, false);
            let gateways = self.run.options.urls.len();
            match ended {
                None => {
                    self.run.count(|counts| counts.reconnects += 1);
                    wait = BACKOFF[0];
                    self.gateway = self.random.below(gateways);
                    let away = self.random.until(AWAY);
                    tokio::time::sleep(away).await;
                }
                Some(End::Refused(error)) => {
                    self.run.fail(error);
                    return;
                }
                Some(End::Lost(error)) => {
                    if self.was_live {
                        wait = BACKOFF[0];
                    }
                    self.run.count(|counts| {
                        counts.disconnects += u64::from(self.was_live);
                        counts.last_failure = Some(format!("{error:#}"));
                    });
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(BACKOFF[1]);
                    self.gateway = (self.gateway + 1) % gateways;
                }
            }
        }
    }

    /// Until the connection ends; `None`: by our own doing.
    async fn until_it_ends(&mut self) -> Option<End> {
        let run = Rc::clone(&self.run);
        let every = run.options.reconnect_every;
        let is_kept = every.is_zero();
        let until = Instant::now() + self.random.until(every);
        let session = async {
            if self.is_socket {
                self.socket().await
            } else {
                self.stream().await
            }
        };
        tokio::pin!(session);
        let mut is_kept = is_kept;
        loop {
            tokio::select! {
                ended = &mut session => {
                    return match ended {
                        Ok(never) => match never {},
                        Err(end) => Some(end),
                    };
                }
                () = tokio::time::sleep_until(until), if !is_kept => {
                    if !run.quiet.get() {
                        return None;
                    }
                    is_kept = true;
                }
            }
        }
    }

    fn is_connected(&mut self) {
        self.was_live = true;
        self.run.ledger.borrow_mut().connected(self.id, true);
    }

    fn position_of(&self, channel: &str) -> Result<usize, End> {
        let at = self.names.iter().position(|name| name == channel);
        at.ok_or_else(|| {
            End::Refused(anyhow!(
                "the server sent something of {channel:?}, which was not asked for"
            ))
        })
    }

    fn got(&mut self, at: usize, position: Position, data: &str) {
        let number = wire::number(self.run.id, self.channels[at], data);
        let now = self.run.now();
        self.cursors[at] = Some(position);
        let mut ledger = self.run.ledger.borrow_mut();
        ledger.got(self.readers[at], position, number, now);
    }

    fn stated(&mut self, at: usize, position: Position, is_attached: bool) {
        let now = self.run.now();
        self.cursors[at] = Some(position);
        let mut ledger = self.run.ledger.borrow_mut();
        if is_attached {
            ledger.attached(self.readers[at], position, now);
        } else {
            ledger.stated(self.readers[at], position);
        }
    }

    fn gap(&mut self, gap: &wire::Gap) -> Result<(), End> {
        let at = self.position_of(&gap.channel)?;
        let now = self.run.now();
        self.cursors[at] = Some(gap.latest);
        let mut ledger = self.run.ledger.borrow_mut();
        ledger.gap(self.readers[at], &gap.reason, gap.latest, now);
        Ok(())
    }

    async fn stream(&mut self) -> Result<Never, End> {
        let run = Rc::clone(&self.run);
        let server = &run.options.urls[self.gateway];
        let mut connection = server.connect().await?;
        let mut query = form_urlencoded::Serializer::new(String::new());
        for name in &self.names {
            query.append_pair("channel", name);
        }
        if self.names.len() > 1 {
            query.append_pair("envelope", "true");
        }
        let resumes = self.cursors.iter().any(Option::is_some);
        let cursor = wire::cursor_text(&self.cursors);
        // There are two ways to say it.
        let by_header = self.random.below(2) == 0;
        if resumes && !by_header {
            query.append_pair("last_event_id", &cursor);
        }
        let path = format!("/app/{}/sse?{}", run.app.key, query.finish());
        let response = if resumes && by_header {
            connection.resume(&path, &cursor).await?
        } else {
            connection.get(&path).await?
        };
        let mut response = opened(server, response).await?;
        self.is_connected();
        let mut attached = vec![false; self.names.len()];
        let mut parser = Parser::default();
        loop {
            let bytes = next_bytes(&mut response, SILENCE).await?;
            for block in parser.feed(&bytes) {
                let step = wire::block(&block, &self.names).map_err(|e| End::Refused(e.into()))?;
                self.step(&step, &mut attached)?;
            }
        }
    }

    /// What a block says: of one channel that there is something, of all where
    /// they stand.
    fn step(&mut self, step: &wire::Step, attached: &mut [bool]) -> Result<(), End> {
        let mut delivered = None;
        match &step.what {
            What::Nothing => {}
            What::Gap(gap) => self.gap(gap)?,
            What::Publication { channel, data } => {
                let at = self.position_of(channel)?;
                let cursor = step.cursor.as_ref();
                let position = cursor.and_then(|cursor| cursor[at]);
                let position = position
                    .with_context(|| format!("a publication of {channel} came without position"))
                    .map_err(End::Refused)?;
                self.got(at, position, data);
                attached[at] = true;
                delivered = Some(at);
            }
        }
        for (at, position) in step.cursor.iter().flatten().enumerate() {
            if let Some(position) = position
                && delivered != Some(at)
            {
                let is_new = !std::mem::replace(&mut attached[at], true);
                // Only what changes says something: each block has them all.
                if is_new || self.cursors[at] != Some(*position) {
                    self.stated(at, *position, is_new);
                }
            }
        }
        Ok(())
    }

    async fn socket(&mut self) -> Result<Never, End> {
        let run = Rc::clone(&self.run);
        let server = &run.options.urls[self.gateway];
        let mut socket = open_socket(server, &run.app.key).await?;
        loop {
            let json = next_frame(&mut socket, PING).await?;
            let frame = wire::frame(&json).map_err(|error| End::Refused(error.into()))?;
            match frame {
                Frame::Established => {
                    self.is_connected();
                    let socket_id = socket_id(&json)?;
                    for at in 0..self.names.len() {
                        let subscribe = self.subscribe(at, socket_id)?;
                        socket.feed(message(&subscribe)).await?;
                    }
                    socket.flush().await?;
                }
                Frame::Ping => {
                    let pong = json!({ "event": "pusher:pong", "data": {} });
                    socket.send(message(&pong)).await?;
                }
                Frame::Refused(why) => {
                    return Err(End::Refused(anyhow!(
                        "{server} refused a subscription: {why}"
                    )));
                }
                Frame::Attached { channel, position } => {
                    let at = self.position_of(&channel)?;
                    self.stated(at, known(position)?, true);
                }
                Frame::Publication {
                    channel,
                    position,
                    data,
                } => {
                    let at = self.position_of(&channel)?;
                    self.got(at, known(position)?, &data);
                }
                Frame::Moved { channel, position } => {
                    let at = self.position_of(&channel)?;
                    self.stated(at, position, false);
                }
                Frame::Gap(gap) => self.gap(&gap)?,
                Frame::Other => {}
            }
        }
    }

    /// The request to follow a channel, from where it was.
    fn subscribe(&self, at: usize, socket_id: ConnectionId) -> anyhow::Result<Value> {
        let recover = match self.cursors[at] {
            Some(Position { epoch, offset }) => {
                json!({ "epoch": epoch.to_string(), "offset": offset.0 })
            }
            None => Value::Bool(true),
        };
        let channel: ChannelName = self.names[at].parse()?;
        let mut data = json!({ "channel": channel.as_str(), "recover": recover });
        if channel.kind() != ChannelKind::Public {
            let app = &self.run.app;
            let signature = channel_signature(&app.secret, socket_id, &channel, None);
            data["auth"] = format!("{}:{signature}", app.key).into();
        }
        Ok(json!({ "event": "pusher:subscribe", "data": data }))
    }
}

/// A server that resumes says where its clients stand.
fn known(position: Option<Position>) -> Result<Position, End> {
    let why = "the server does not say at which positions its WebSocket clients are: it cannot \
               resume them; --sockets 0 leaves them out";
    position.context(why).map_err(End::Refused)
}

fn socket_id(json: &str) -> anyhow::Result<ConnectionId> {
    let frame: Value = serde_json::from_str(json)?;
    let data: Value = serde_json::from_str(frame["data"].as_str().unwrap_or_default())?;
    let id = data["socket_id"].as_str().unwrap_or_default();
    id.parse().context("the server sent no socket_id")
}
