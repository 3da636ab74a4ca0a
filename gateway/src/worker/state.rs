//! A worker's connections and channels, and what is done with them. Everything
//! here runs on the worker's thread and nothing waits.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::channel::{ChannelKey, ChannelName};
use proto::id::ConnectionId;
use proto::position::Position;
use proto::time::{Timestamp, UnixTime};
use slab::Slab;
use tokio::net::TcpStream;

use super::socket::{self, EventStream, Socket, Wire, Write};
use super::{Client, Mail, Takeover};
use crate::Config;
use crate::app::Admitted;
use crate::broadcast::{Broadcast, Content};
use crate::core::attachment::FollowId;
use crate::core::connection::{Connection, Effect};
use crate::core::fanout::{Fanout, Slice};
use crate::core::hub::{ConnectionIndex, Hub, Subscribed, Unfollowed};
use crate::core::workers::WorkerId;
use crate::mesh;
use crate::metrics::Metrics;
use crate::protocol::{Close, CloseCode, Command, Frame, pusher, sse};
use crate::websocket::{Event, text_frame};

/// Bytes that one read takes; one buffer for all connections.
const READ_BYTES: usize = 16 * 1_024;
/// How long a closed connection may take to read what waits for it.
const CLOSE_PATIENCE: Duration = Duration::from_secs(3);
/// How long the head of an event stream waits for its channels. Intermediaries
/// and browsers give up on an answer that does not begin.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);
/// After how long without a write an event stream gets a comment.
const KEEP_ALIVE: Duration = Duration::from_secs(25);
/// Connections that get publications before others may go.
const ROUND_VISITS: usize = 512;
/// Connections looked after before others may go.
const TICK_SLICE: usize = 1_024;

/// A worker. Its tasks share it; none keeps it across a wait.
pub(super) struct Worker {
    state: RefCell<State>,
    /// One for all connections.
    read_buffer: RefCell<Box<[u8]>>,
}

struct State {
    id: WorkerId,
    config: Arc<Config>,
    mesh: mesh::Handle,
    metrics: Arc<Metrics>,
    /// The first half of all connection ids.
    gateway_half: u64,
    accepted: u64,
    hub: Hub,
    fanout: Fanout,
    sockets: Slab<Socket>,
    /// Connections with something to write, at the end of the slice.
    dirty: Vec<usize>,
    /// What the mesh has not been told yet: the channel's following, or that
    /// it has none. The latest counts, so this is bounded by the channels.
    untold: BTreeMap<ChannelKey, Option<FollowId>>,
    effects: Vec<Effect>,
    now: Timestamp,
    /// Subscriptions and channels that the gauges know of.
    reported: (i64, i64),
}

/// Why a connection has ended, as metrics name it.
const CLIENT_CLOSED: &str = "client_closed";
const CLIENT_GONE: &str = "client_gone";
const SHUTDOWN: &str = "shutdown";

impl Worker {
    pub(super) fn new(
        id: WorkerId,
        config: Arc<Config>,
        mesh: mesh::Handle,
        metrics: Arc<Metrics>,
    ) -> Self {
        let state = State {
            gateway_half: ConnectionId::gateway_half(&config.gateway),
            id,
            config,
            mesh,
            metrics,
            accepted: 0,
            hub: Hub::default(),
            fanout: Fanout::default(),
            sockets: Slab::new(),
            dirty: Vec::new(),
            untold: BTreeMap::new(),
            effects: Vec::new(),
            now: Timestamp::now(),
            reported: (0, 0),
        };
        Self {
            state: RefCell::new(state),
            read_buffer: RefCell::new(vec![0; READ_BYTES].into()),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.state.borrow().fanout.is_full()
    }

    pub(super) fn has_work(&self) -> bool {
        !self.state.borrow().fanout.is_idle()
    }

    pub(super) fn owes_follows(&self) -> bool {
        !self.state.borrow().untold.is_empty()
    }

    /// Takes a connection over and begins to read it.
    pub(super) fn accept(self: &Rc<Self>, takeover: Takeover) {
        let opened = {
            let mut state = self.state.borrow_mut();
            state.now = Timestamp::now();
            state.open(takeover)
        };
        match opened {
            Ok(Some((key, stream, leftover))) => {
                let reader =
                    tokio::task::spawn_local(read(Rc::clone(self), key, Rc::clone(&stream)));
                if let Some(socket) = self.state.borrow_mut().sockets.get_mut(key) {
                    socket.reader = Some(reader.abort_handle());
                }
                if !leftover.is_empty() {
                    self.state.borrow_mut().input(key, &leftover);
                }
                self.arm_writers();
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "could not take a connection over"),
        }
    }

    pub(super) fn take(&self, mail: Mail) {
        let mut state = self.state.borrow_mut();
        match mail {
            Mail::Attached {
                key,
                follow,
                position,
            } => state.attached(&key, follow, position),
            Mail::Broadcast(broadcast) => {
                if let Some(channel) = state.hub.live(&broadcast.key) {
                    let audience = state.hub.audience(channel);
                    state.fanout.push(channel, broadcast, audience);
                }
            }
        }
    }

    /// Does some of the fanning out. Whether it did anything.
    pub(super) fn fan_out(self: &Rc<Self>) -> bool {
        let worked = self.state.borrow_mut().fan_out();
        self.arm_writers();
        worked
    }

    /// Tells the mesh what channels are followed, as far as it has room.
    pub(super) fn tell_mesh(&self) {
        self.state.borrow_mut().tell_mesh();
    }

    /// Looks after connections: pings, keep-alives, those that do not close.
    pub(super) async fn tick(self: &Rc<Self>) {
        let mut next = 0;
        loop {
            let end = {
                let mut state = self.state.borrow_mut();
                state.now = Timestamp::now();
                state.look_after(next..next + TICK_SLICE);
                state.sockets.capacity()
            };
            self.arm_writers();
            next += TICK_SLICE;
            if next >= end {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Closes all connections, telling their clients to connect again.
    pub(super) fn say_goodbye(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        let keys: Vec<usize> = state.sockets.iter().map(|(key, _)| key).collect();
        let message = "the server is shutting down; connect again".to_owned();
        for key in keys {
            state.end(
                key,
                Close {
                    code: CloseCode::GoingAway,
                    message: message.clone(),
                },
                SHUTDOWN,
            );
        }
        drop(state);
        self.arm_writers();
    }

    /// Waits until no connection is left.
    pub(super) async fn all_gone(&self) {
        while !self.state.borrow().sockets.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Input is there. Whether to go on reading.
    fn on_readable(self: &Rc<Self>, key: usize) -> bool {
        let alive = {
            let mut state = self.state.borrow_mut();
            state.now = Timestamp::now();
            state.read(key, &mut self.read_buffer.borrow_mut())
        };
        self.tell_mesh();
        self.arm_writers();
        alive
    }

    /// Reading a connection has panicked; it is dropped.
    fn crashed(&self, key: usize) {
        let mut state = self.state.borrow_mut();
        state.metrics.connection_panics.inc();
        tracing::error!(
            "a bug: reading a connection panicked, and it was closed; please report it"
        );
        state.forget(key, "panic");
    }

    /// There is room in the socket. Whether to go on waiting for more.
    fn on_writable(&self, key: usize) -> bool {
        let mut state = self.state.borrow_mut();
        let Some(socket) = state.sockets.get_mut(key) else {
            return false;
        };
        match socket.flush() {
            Write::Blocked => true,
            Write::Done => {
                socket.writer = None;
                state.finish_if_closed(key);
                false
            }
            Write::Gone => {
                // Not aborted: this is the task that asks.
                socket.writer = None;
                state.forget(key, CLIENT_GONE);
                false
            }
        }
    }

    /// Writes to all that have something to be written; those whose sockets
    /// are full get a task that waits for room.
    fn arm_writers(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        while let Some(key) = state.dirty.pop() {
            if let Some(stream) = state.flush(key) {
                let writer = tokio::task::spawn_local(write(Rc::clone(self), key, stream));
                if let Some(socket) = state.sockets.get_mut(key) {
                    socket.writer = Some(writer.abort_handle());
                }
            }
        }
    }
}

async fn read(worker: Rc<Worker>, key: usize, stream: Rc<TcpStream>) {
    while stream.readable().await.is_ok() {
        // A panic is a bug, and it may cost the connection whose bytes
        // brought it out, but no other one.
        let reading = AssertUnwindSafe(|| worker.on_readable(key));
        match catch_unwind(reading) {
            Ok(true) => {}
            Ok(false) => return,
            Err(_) => return worker.crashed(key),
        }
    }
}

async fn write(worker: Rc<Worker>, key: usize, stream: Rc<TcpStream>) {
    while stream.writable().await.is_ok() && worker.on_writable(key) {}
}

impl State {
    // ---- opening ----------------------------------------------------------

    /// Registers a connection and queues what it is told first. `None`: it is
    /// gone already.
    fn open(&mut self, takeover: Takeover) -> io::Result<Option<(usize, Rc<TcpStream>, Bytes)>> {
        let Takeover {
            stream,
            head,
            leftover,
            client,
        } = takeover;
        // Deliveries are written whole: waiting for more would only delay them.
        stream.set_nodelay(true)?;
        let stream = Rc::new(TcpStream::from_std(stream)?);
        let (wire, admitted, refusal, head) = match client {
            Client::WebSocket(Ok(admitted)) => (
                Wire::WebSocket(Box::default()),
                Some(admitted),
                None,
                Some(head),
            ),
            Client::WebSocket(Err(close)) => (
                Wire::WebSocket(Box::default()),
                None,
                Some(close),
                Some(head),
            ),
            Client::EventStream {
                admitted,
                channels,
                envelope,
            } => {
                let cursor = vec![None; channels.len()].into();
                let head = Some(head);
                let stream = EventStream {
                    head,
                    channels: channels.into(),
                    cursor,
                    envelope,
                };
                (Wire::EventStream(stream), Some(admitted), None, None)
            }
        };
        let key = self.sockets.insert(Socket {
            stream: Rc::clone(&stream),
            outbox: crate::core::outbox::Outbox::default(),
            wire,
            client: None,
            dirty: false,
            reader: None,
            writer: None,
            closing_since: None,
            opened_at: self.now,
            written_at: self.now,
        });
        if let Some(head) = head {
            self.put(key, head);
        }
        if let Some(close) = refusal {
            self.metrics
                .connects
                .with_label_values(&["websocket", "refused"])
                .inc();
            self.refuse(key, close);
        } else if let Some(admitted) = admitted {
            self.admit(key, admitted);
        }
        Ok(Some((key, stream, leftover)))
    }

    fn admit(&mut self, key: usize, admitted: Admitted) {
        self.accepted += 1;
        // Numbers of different workers never meet.
        let number =
            self.accepted * crate::core::workers::WORKERS_MAX as u64 + u64::from(self.id.0);
        let id = ConnectionId {
            gateway: self.gateway_half,
            number,
        };
        let app = Arc::clone(admitted.app());
        let socket = &mut self.sockets[key];
        let kind = socket.kind();
        let traffic = self.metrics.traffic(kind, &app.id);
        traffic.clients.inc();
        self.metrics.connects.with_label_values(&[kind, "ok"]).inc();
        let connection = Connection::new(id, Arc::clone(&app), self.now);
        socket.client = Some(socket::Client {
            connection,
            traffic,
            _admitted: admitted,
        });
        match &socket.wire {
            Wire::WebSocket(_) => {
                let activity_timeout_secs = self.config.activity_timeout.as_secs();
                self.send(
                    key,
                    &Frame::Established {
                        connection: id,
                        activity_timeout_secs,
                    },
                );
            }
            Wire::EventStream(stream) => {
                for channel in stream.channels.clone() {
                    self.subscribe(
                        key,
                        ChannelKey {
                            app: app.id.clone(),
                            channel,
                        },
                    );
                }
            }
        }
    }

    // ---- reading ----------------------------------------------------------

    fn read(&mut self, key: usize, buffer: &mut [u8]) -> bool {
        let Some(socket) = self.sockets.get(key) else {
            return false;
        };
        match socket.stream.try_read(buffer) {
            Ok(count @ 1..) => {
                self.input(key, &buffer[..count]);
                self.sockets.contains(key)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
            Ok(0) | Err(_) => {
                self.forget(key, CLIENT_GONE);
                false
            }
        }
    }

    /// Bytes have come from a client.
    fn input(&mut self, key: usize, bytes: &[u8]) {
        let now = self.now;
        let Some(socket) = self.sockets.get_mut(key) else {
            return;
        };
        if let Some(client) = &mut socket.client {
            client.connection.heard(now);
        }
        // An event stream's client has nothing more to say.
        let Wire::WebSocket(websocket) = &mut socket.wire else {
            return;
        };
        let (mut events, mut output) = (Vec::new(), Vec::new());
        let result = websocket.feed(bytes, &mut output, |event| events.push(event));
        let closing = socket.closing_since.is_some();
        if !output.is_empty() {
            self.put(key, output.into());
        }
        for event in events {
            match event {
                Event::Closed => {
                    self.answered_close(key);
                    return;
                }
                _ if closing => {}
                Event::Text(text) => self.text(key, &text),
                Event::Binary => {
                    self.metrics
                        .websocket_errors
                        .with_label_values(&["unsupported_frame"])
                        .inc();
                    let message =
                        "binary frames are not part of the protocol; send text".to_owned();
                    self.refuse(
                        key,
                        Close {
                            code: CloseCode::Unsupported,
                            message,
                        },
                    );
                    return;
                }
            }
        }
        if let Err(close) = result {
            if closing {
                // It talks on after its end: no further answer.
                self.forget(key, CLIENT_CLOSED);
            } else {
                self.metrics
                    .websocket_errors
                    .with_label_values(&[close.code.reason()])
                    .inc();
                self.refuse(key, close);
            }
        }
    }

    fn text(&mut self, key: usize, text: &str) {
        let command = pusher::decode(text);
        match &command {
            Ok(command) => self
                .metrics
                .messages_received
                .with_label_values(&["websocket", op(command)])
                .inc(),
            Err(_) => self
                .metrics
                .websocket_errors
                .with_label_values(&["malformed"])
                .inc(),
        }
        let subscriptions = self.hub.subscriptions_of(index(key));
        let mut effects = std::mem::take(&mut self.effects);
        if let Some(client) = self
            .sockets
            .get_mut(key)
            .and_then(|socket| socket.client.as_mut())
        {
            client
                .connection
                .handle(self.now, command, subscriptions, &mut effects);
        }
        for effect in effects.drain(..) {
            self.perform(key, effect);
        }
        self.effects = effects;
    }

    fn perform(&mut self, key: usize, effect: Effect) {
        match effect {
            Effect::Send(frame) => {
                if matches!(frame, Frame::SubscriptionRefused { .. }) {
                    self.metrics.subscribes_refused.inc();
                }
                self.send(key, &frame);
            }
            Effect::Subscribe(channel) => {
                if let Some(key_of) = self.key_of(key, channel) {
                    self.subscribe(key, key_of);
                }
            }
            Effect::Unsubscribe(channel) => {
                let Some(channel) = self.key_of(key, channel) else {
                    return;
                };
                let before = self.hub.subscriptions();
                let unfollowed = self.hub.unsubscribe(index(key), &channel);
                self.metrics
                    .unsubscribes_client
                    .inc_by((before - self.hub.subscriptions()) as u64);
                self.unfollow(unfollowed);
            }
            Effect::AuthFailed(reason) => self
                .metrics
                .auth_failures
                .with_label_values(&[reason])
                .inc(),
            Effect::RateLimited => self.metrics.rate_limited_messages.inc(),
            Effect::Close(close) => self.refuse(key, close),
        }
    }

    // ---- channels ---------------------------------------------------------

    fn key_of(&self, key: usize, channel: ChannelName) -> Option<ChannelKey> {
        let client = self.sockets.get(key)?.client.as_ref()?;
        Some(ChannelKey {
            app: client.connection.app().id.clone(),
            channel,
        })
    }

    fn subscribe(&mut self, key: usize, channel: ChannelKey) {
        match self.hub.subscribe(index(key), &channel) {
            Subscribed::First(follow) => {
                self.metrics.subscribes_ok.inc();
                self.untold.insert(channel, Some(follow));
            }
            Subscribed::Pending => self.metrics.subscribes_ok.inc(),
            Subscribed::Live(position) => {
                self.metrics.subscribes_ok.inc();
                self.acknowledge(key, &channel.channel, position);
            }
            // A repeated subscribe repeats the acknowledgement, once there is one.
            Subscribed::Already(Some(position)) => {
                self.acknowledge(key, &channel.channel, position)
            }
            Subscribed::Already(None) => {}
        }
    }

    fn attached(&mut self, key: &ChannelKey, follow: FollowId, position: Position) {
        let Some(channel) = self.hub.attached(key, follow, position) else {
            return;
        };
        let end = self.hub.begin_sweep(channel);
        for slot in 0..end {
            if let Some(connection) = self.hub.subscriber(channel, slot) {
                self.acknowledge(connection.0 as usize, &key.channel, position);
            }
        }
        let unfollowed = self.hub.end_sweep(channel);
        self.unfollow(unfollowed);
    }

    /// Tells a client that a channel's publications come from now on.
    fn acknowledge(&mut self, key: usize, channel: &ChannelName, position: Position) {
        let Some(socket) = self.sockets.get_mut(key) else {
            return;
        };
        match &mut socket.wire {
            Wire::WebSocket(_) => self.send(
                key,
                &Frame::Subscribed {
                    channel: channel.clone(),
                },
            ),
            Wire::EventStream(stream) => {
                stream.set(channel, position);
                // An `id` without data: whoever loses the connection before the
                // first publication knows where it stood.
                if stream.cursor.iter().all(Option::is_some) {
                    let block = sse::tail(&stream.cursor).into();
                    self.put(key, block);
                }
            }
        }
    }

    fn unfollow(&mut self, unfollowed: Option<Unfollowed>) {
        if let Some(Unfollowed { channel, key }) = unfollowed {
            self.fanout.forget(channel);
            self.untold.insert(key, None);
        }
    }

    fn tell_mesh(&mut self) {
        let worker = self.id;
        while let Some((key, follow)) = self.untold.pop_first() {
            let mail = match follow {
                Some(follow) => mesh::Mail::Follow {
                    worker,
                    follow,
                    key: key.clone(),
                },
                None => mesh::Mail::Unfollow {
                    worker,
                    key: key.clone(),
                },
            };
            if !self.mesh.try_tell(mail) {
                self.untold.insert(key, follow);
                return;
            }
        }
    }

    // ---- fanning out ------------------------------------------------------

    fn fan_out(&mut self) -> bool {
        let direct = self.fanout.is_single();
        let mut room = ROUND_VISITS;
        while room > 0 {
            let Some(slice) = self.fanout.next(&mut self.hub) else {
                break;
            };
            self.spread(&slice, direct && slice.last);
            if slice.last {
                self.observe(&slice);
            }
            room = room.saturating_sub(slice.slots.len().max(1));
            let unfollowed = self.fanout.done(&slice, &mut self.hub);
            self.unfollow(unfollowed);
        }
        if room == 0 {
            self.metrics.fanout_yields.inc();
        }
        room < ROUND_VISITS
    }

    /// Sends the publications of a slice to its connections. `direct`: there
    /// is nothing to gather, so each is written at once.
    fn spread(&mut self, slice: &Slice, direct: bool) {
        let mut counts = Counts::default();
        for slot in slice.slots.clone() {
            if let Some(connection) = self.hub.subscriber(slice.channel, slot) {
                self.deliver(
                    connection.0 as usize,
                    &slice.broadcasts,
                    direct,
                    &mut counts,
                );
            }
        }
        self.metrics.fanout_batches.inc();
        self.metrics.deliveries_ok.inc_by(counts.delivered);
        self.metrics.writes_skipped_closing.inc_by(counts.closing);
        self.metrics.deliveries_client_gone.inc_by(counts.gone);
        if let Some(app) = self.hub.key(slice.channel).map(|key| key.app.clone()) {
            for (kind, sent) in crate::metrics::TYPES.iter().zip(counts.sent) {
                if sent.messages > 0 {
                    let traffic = self.metrics.traffic(kind, &app);
                    traffic.sent.inc_by(sent.messages);
                    traffic.sent_bytes.inc_by(sent.bytes);
                }
            }
        }
    }

    fn deliver(
        &mut self,
        key: usize,
        broadcasts: &[Arc<Broadcast>],
        direct: bool,
        counts: &mut Counts,
    ) {
        let Some(socket) = self.sockets.get_mut(key) else {
            return;
        };
        if socket.closing_since.is_some() {
            counts.closing += 1;
            return;
        }
        let Some(client) = &socket.client else { return };
        let id = client.connection.id();
        for broadcast in broadcasts {
            if let Content::Publication(publication) = &broadcast.content
                && publication.exclude == Some(id)
            {
                continue;
            }
            let (sent, written) = match &mut socket.wire {
                Wire::WebSocket(_) => (
                    &mut counts.sent[0],
                    socket.offer(broadcast.websocket(), direct),
                ),
                Wire::EventStream(stream) => {
                    stream.set(&broadcast.key.channel, broadcast.position());
                    let written = if stream.channels.len() == 1 && !stream.envelope {
                        socket.offer(broadcast.event_stream(), direct)
                    } else {
                        let body = if stream.envelope {
                            broadcast.envelope()
                        } else {
                            broadcast.body()
                        };
                        let tail = sse::tail(&stream.cursor).into();
                        socket.outbox.push(body.clone());
                        socket.outbox.push(tail);
                        Offered::Queued(body.len())
                    };
                    (&mut counts.sent[1], written)
                }
            };
            match written {
                Offered::Written(bytes) | Offered::Queued(bytes) => {
                    counts.delivered += 1;
                    sent.messages += 1;
                    sent.bytes += bytes as u64;
                }
                Offered::Gone => {
                    counts.gone += 1;
                    self.forget(key, CLIENT_GONE);
                    return;
                }
            }
        }
        socket.written_at = self.now;
        if !socket.outbox.is_empty() {
            self.mark_dirty(key);
        }
    }

    /// What a finished sweep tells about the worker.
    fn observe(&self, slice: &Slice) {
        let recipients = slice.slots.end as f64;
        let all = self.sockets.len().max(1) as f64;
        let now = UnixTime::now();
        for broadcast in &*slice.broadcasts {
            let Content::Publication(publication) = &broadcast.content else {
                continue;
            };
            self.metrics.fanout_recipients.observe(recipients);
            self.metrics
                .fanout_share
                .observe((recipients / all).min(1.0));
            let micros = now.0.saturating_sub(publication.accepted_at.0);
            self.metrics.e2e_latency.observe(micros as f64 / 1e6);
        }
    }

    // ---- writing ----------------------------------------------------------

    /// Sends a frame to a WebSocket client.
    fn send(&mut self, key: usize, frame: &Frame) {
        self.put(key, text_frame(&pusher::encode(frame)));
    }

    /// Queues bytes that are for one connection alone.
    fn put(&mut self, key: usize, bytes: Bytes) {
        if let Some(socket) = self.sockets.get_mut(key) {
            socket.begin();
            socket.outbox.push(bytes);
            socket.written_at = self.now;
            self.mark_dirty(key);
        }
    }

    fn mark_dirty(&mut self, key: usize) {
        if let Some(socket) = self.sockets.get_mut(key)
            && !socket.dirty
        {
            socket.dirty = true;
            self.dirty.push(key);
        }
    }

    /// Writes what waits for a connection. `Some`: its socket is full and
    /// nobody waits for room yet.
    fn flush(&mut self, key: usize) -> Option<Rc<TcpStream>> {
        let socket = self.sockets.get_mut(key)?;
        socket.dirty = false;
        // A writer task waits for room already; trying would find none.
        let written = if socket.writer.is_some() {
            Write::Blocked
        } else {
            socket.flush()
        };
        match written {
            Write::Done => {
                self.finish_if_closed(key);
                None
            }
            Write::Gone => {
                self.forget(key, CLIENT_GONE);
                None
            }
            Write::Blocked => {
                self.check_bound(key);
                let socket = self.sockets.get(key)?;
                (socket.writer.is_none() && !socket.outbox.is_empty())
                    .then(|| Rc::clone(&socket.stream))
            }
        }
    }

    /// The slow-consumer policy: what waits is dropped, the client told so and
    /// disconnected.
    fn check_bound(&mut self, key: usize) {
        let max = self.config.outbox_bytes_max;
        let Some(socket) = self.sockets.get_mut(key) else {
            return;
        };
        if socket.outbox.bytes() <= max || socket.closing_since.is_some() {
            return;
        }
        let waiting = socket.outbox.bytes();
        socket.outbox.drop_unsent();
        self.metrics.slow_consumers.inc();
        self.metrics.deliveries_slow.inc();
        let message = format!("reading too slowly: {waiting} bytes were waiting, {max} may");
        self.refuse(
            key,
            Close {
                code: CloseCode::OverCapacity,
                message,
            },
        );
    }

    // ---- closing ----------------------------------------------------------

    /// Ends a connection for a reason that its client is told.
    fn refuse(&mut self, key: usize, close: Close) {
        let reason = close.code.reason();
        self.end(key, close, reason);
    }

    /// Tells a client that its connection ends, and why; nothing else follows.
    /// It is kept until the client has taken that, for a while.
    fn end(&mut self, key: usize, close: Close, reason: &'static str) {
        let now = self.now;
        let Some(socket) = self.sockets.get_mut(key) else {
            return;
        };
        if socket.closing_since.is_some() {
            return;
        }
        let mut output = Vec::new();
        if let Wire::WebSocket(websocket) = &mut socket.wire {
            let code = Some(close.code.number());
            let error = Frame::Error {
                code,
                message: close.message.clone(),
            };
            output.extend_from_slice(&text_frame(&pusher::encode(&error)));
            websocket.close(&close, &mut output);
        }
        socket.closing_since = Some(now);
        self.leave(key, reason);
        if !output.is_empty() {
            self.put(key, output.into());
        }
        self.mark_dirty(key);
    }

    /// The client has answered our close, or has closed by itself.
    fn answered_close(&mut self, key: usize) {
        let now = self.now;
        let Some(socket) = self.sockets.get_mut(key) else {
            return;
        };
        if socket.closing_since.is_some() {
            self.forget(key, CLIENT_CLOSED);
        } else {
            // Our answer is in the outbox; when it is written, that was all.
            socket.closing_since = Some(now);
            self.leave(key, CLIENT_CLOSED);
            self.mark_dirty(key);
        }
    }

    /// All is written. A connection that is closing has its end announced, and
    /// is gone at once if there is nothing to wait for.
    fn finish_if_closed(&mut self, key: usize) {
        let Some(socket) = self.sockets.get(key) else {
            return;
        };
        if socket.closing_since.is_none() {
            return;
        }
        match &socket.wire {
            Wire::WebSocket(websocket) if websocket.awaits_close() => {}
            _ => self.forget(key, CLIENT_CLOSED),
        }
    }

    /// Takes a connection out of its channels and out of the count of clients.
    fn leave(&mut self, key: usize, reason: &'static str) {
        let before = self.hub.subscriptions();
        for unfollowed in self.hub.remove(index(key)) {
            self.unfollow(Some(unfollowed));
        }
        self.metrics
            .unsubscribes_disconnect
            .inc_by((before - self.hub.subscriptions()) as u64);
        let Some(socket) = self.sockets.get_mut(key) else {
            return;
        };
        let lasted = self.now.since(socket.opened_at);
        let kind = socket.kind();
        if let Some(client) = socket.client.take() {
            client.traffic.clients.dec();
            self.metrics
                .disconnects
                .with_label_values(&[kind, reason])
                .inc();
            self.metrics
                .connection_duration
                .observe(lasted.as_secs_f64());
        }
    }

    /// Drops a connection. Its socket is closed.
    fn forget(&mut self, key: usize, reason: &'static str) {
        if self.sockets.contains(key) {
            self.leave(key, reason);
            self.sockets.remove(key);
        }
    }

    // ---- time -------------------------------------------------------------

    fn look_after(&mut self, keys: std::ops::Range<usize>) {
        let now = self.now;
        if keys.start == 0 {
            self.metrics_tick();
        }
        for key in keys {
            let Some(socket) = self.sockets.get_mut(key) else {
                continue;
            };
            socket.outbox.shrink();
            if socket
                .closing_since
                .is_some_and(|since| now.since(since) >= CLOSE_PATIENCE)
            {
                self.forget(key, CLIENT_GONE);
                continue;
            }
            let Some(client) = &mut socket.client else {
                continue;
            };
            match &socket.wire {
                Wire::EventStream(stream) => {
                    let pending =
                        stream.head.is_some() && now.since(socket.opened_at) >= HEAD_PATIENCE;
                    if pending || now.since(socket.written_at) >= KEEP_ALIVE {
                        self.put(key, Bytes::from_static(sse::KEEP_ALIVE.as_bytes()));
                    }
                }
                Wire::WebSocket(_) => {
                    if let Some(effect) = client.connection.tick(now, self.config.activity_timeout)
                    {
                        self.perform(key, effect);
                    }
                }
            }
        }
    }

    /// Gauges that several workers share are kept as differences.
    fn metrics_tick(&mut self) {
        let subscriptions = self.hub.subscriptions() as i64;
        let channels = self.hub.channels() as i64;
        self.metrics
            .subscriptions
            .add(subscriptions - self.reported.0);
        self.metrics.active_channels.add(channels - self.reported.1);
        self.reported = (subscriptions, channels);
    }
}

/// What became of offering a frame to a socket.
enum Offered {
    Written(usize),
    Queued(usize),
    Gone,
}

impl Socket {
    fn offer(&mut self, frame: &Bytes, direct: bool) -> Offered {
        if direct && self.writer.is_none() {
            return match self.write_now(frame) {
                Write::Done => Offered::Written(frame.len()),
                Write::Blocked => Offered::Queued(frame.len()),
                Write::Gone => Offered::Gone,
            };
        }
        self.outbox.push(frame.clone());
        Offered::Queued(frame.len())
    }
}

impl EventStream {
    fn set(&mut self, channel: &ChannelName, position: Position) {
        if let Ok(at) = self.channels.binary_search(channel) {
            self.cursor[at] = Some(position);
        }
    }
}

/// What one slice has done, to be counted once.
#[derive(Default)]
struct Counts {
    delivered: u64,
    closing: u64,
    gone: u64,
    /// By kind of connection, in the order of the metrics' labels.
    sent: [Sent; 2],
}

#[derive(Default)]
struct Sent {
    messages: u64,
    bytes: u64,
}

fn index(key: usize) -> ConnectionIndex {
    ConnectionIndex(u32::try_from(key).expect("far fewer connections than that"))
}

fn op(command: &Command) -> &'static str {
    match command {
        Command::Subscribe { .. } => "subscribe",
        Command::Unsubscribe { .. } => "unsubscribe",
        Command::Ping => "ping",
        Command::Pong => "pong",
        Command::Unsupported { .. } => "unsupported",
    }
}
