//! What comes in: new connections, bytes, commands.

use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::channel::{ChannelKey, ChannelName};
use proto::error::ErrorCode;
use proto::id::ConnectionId;
use proto::time::UnixTime;
use rustix::net::sockopt;
use tokio::net::TcpStream;

use super::socket::{self, EventStream, Socket, Wire};
use super::state::{CLIENT_CLOSED, CLIENT_GONE, State, index};
use super::{Client, Takeover};
use crate::OutboxLimits;
use crate::app::App;
use crate::core::connection::{Connection, Effect, Held, Publish, not_published};
use crate::core::limits::Limiter;
use crate::core::outbox::Outbox;
use crate::core::uplink::Order;
use crate::core::wheel::Second;
use crate::core::workers::WORKERS_MAX;
use crate::mesh;
use crate::protocol::{Close, CloseCode, Command, Frame, Recover, pusher};
use crate::websocket::Event;

/// How much longer the kernel waits for a client than this server does: who reads
/// too slowly is to be told so.
const USER_TIMEOUT_MARGIN: Duration = Duration::from_secs(10);

impl State {
    /// Registers a connection and queues what it is told first. `None`: it is
    /// gone already.
    pub(super) fn open(
        &mut self,
        takeover: Takeover,
    ) -> io::Result<Option<(usize, Rc<TcpStream>, Bytes)>> {
        let Takeover {
            stream,
            head,
            leftover,
            client,
            since,
            under_way,
        } = takeover;
        // Of a connection with TLS it is the end of a local pair that fills up first.
        let bytes = self.config.outbox.send_buffer_bytes;
        sockopt::set_socket_send_buffer_size(&stream, bytes)?;
        let stream = Rc::new(TcpStream::from_std(stream)?);
        let websocket = || Wire::WebSocket(Box::default());
        let (wire, seat, refusal, head) = match client {
            Client::WebSocket(seat) => (websocket(), seat, None, Some(head)),
            Client::Refused(seat, close) => (websocket(), seat, Some(close), Some(head)),
            Client::EventStream {
                seat,
                channels,
                cursor,
                envelope,
                valid_for,
            } => {
                let head = Some(head);
                let stream = EventStream {
                    head,
                    unattached: channels.len(),
                    channels: channels.into(),
                    cursor: cursor.into(),
                    envelope,
                    expires_at: valid_for.map(|valid| self.now + valid),
                };
                (Wire::EventStream(Box::new(stream)), seat, None, None)
            }
        };
        let app = seat.app().cloned();
        let key = self.sockets.insert(Socket {
            stream: Rc::clone(&stream),
            outbox: Outbox::default(),
            wire,
            client: None,
            dirty: false,
            reader: None,
            writer: None,
            closing_since: None,
            opened_at: self.now,
            written_at: self.now,
            looked_at: Second::NEVER,
            counted: 0,
            is_behind: false,
            pending_since: None,
            _seat: seat,
            _under_way: under_way,
        });
        if let Some(head) = head.filter(|head| !head.is_empty()) {
            self.put(key, head);
        }
        if let Some(close) = refusal {
            self.refuse(key, close);
        } else if let Some(app) = app {
            self.admit(key, app);
        }
        self.look_again(key);
        self.metrics
            .handshake_duration
            .observe(since.elapsed().as_secs_f64());
        Ok(Some((key, stream, leftover)))
    }

    fn admit(&mut self, key: usize, app: Arc<App>) {
        self.accepted += 1;
        // Numbers of different workers never meet.
        let number = self.accepted * WORKERS_MAX as u64 + u64::from(self.id.0);
        let id = ConnectionId {
            gateway: self.gateway_half,
            number,
        };
        let socket = &mut self.sockets[key];
        let kind = socket.kind();
        let traffic = self.metrics.traffic(&app.id);
        let traffic = traffic.map(|kinds| kinds[socket.wire.number()].clone());
        if let Some(traffic) = &traffic {
            traffic.clients.inc();
        }
        self.metrics.connects.with_label_values(&[kind, "ok"]).inc();
        let limits = &self.config.limits.connection;
        let connection = Connection::new(id, Arc::clone(&app), limits, self.now);
        socket.client = Some(socket::Client {
            connection,
            traffic,
            watching: None,
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
                let wanted = stream.channels.iter().cloned();
                let wanted: Vec<_> = wanted.zip(stream.cursor.iter().copied()).collect();
                for (channel, cursor) in wanted {
                    let app = app.id.clone();
                    let recover = cursor.map_or(Recover::No, Recover::From);
                    self.subscribe(key, ChannelKey { app, channel }, recover);
                }
            }
        }
    }

    pub(super) fn read(&mut self, key: usize, buffer: &mut [u8]) -> bool {
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
    pub(super) fn input(&mut self, key: usize, bytes: &[u8]) {
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
                if close.code == CloseCode::TooLarge {
                    self.metrics.count_limited(Limiter::MessageSize, 1);
                }
                self.refuse(key, close);
            }
        }
    }

    fn text(&mut self, key: usize, text: &str) {
        let mut effects = std::mem::take(&mut self.effects);
        let limits = self.config.limits.connection;
        let Some(client) = self
            .sockets
            .get_mut(key)
            .and_then(|socket| socket.client.as_mut())
        else {
            return;
        };
        if client.connection.admit(self.now, &limits, &mut effects) {
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
            let (hub, app) = (&self.hub, &client.connection.app().id.clone());
            let has = |channel: &ChannelName| {
                hub.has(
                    index(key),
                    &ChannelKey {
                        app: app.clone(),
                        channel: channel.clone(),
                    },
                )
            };
            let held = Held {
                count: hub.subscriptions_of(index(key)),
                has: &has,
            };
            client
                .connection
                .handle(command, self.now, &limits, &held, &mut effects);
        }
        for effect in effects.drain(..) {
            self.perform(key, effect);
        }
        self.effects = effects;
    }

    pub(super) fn perform(&mut self, key: usize, effect: Effect) {
        match effect {
            Effect::Send(frame) => {
                if matches!(frame, Frame::SubscriptionRefused { .. }) {
                    self.metrics.subscribes_refused.inc();
                }
                self.send(key, &frame);
            }
            Effect::Subscribe(channel, recover) => {
                if let Some(key_of) = self.key_of(key, channel) {
                    self.subscribe(key, key_of, recover);
                }
            }
            Effect::Enter(channel, recover, user) => {
                if let Some(key_of) = self.key_of(key, channel) {
                    self.enter(key, key_of, recover, user);
                }
            }
            Effect::Unsubscribe(channel) => {
                let Some(channel) = self.key_of(key, channel) else {
                    return;
                };
                if self.hub.has(index(key), &channel) {
                    self.exit(key, &channel, None);
                }
                self.note_subscriber(key, &channel);
                let before = self.hub.subscriptions();
                let unfollowed = self.hub.unsubscribe(index(key), &channel);
                self.metrics
                    .unsubscribes_client
                    .inc_by((before - self.hub.subscriptions()) as u64);
                self.unfollow(unfollowed);
            }
            Effect::Publish(publish) => {
                if let Some(key_of) = self.key_of(key, publish.channel.clone()) {
                    self.publish(key, key_of, publish);
                }
            }
            Effect::AuthFailed(reason) => self
                .metrics
                .auth_failures
                .with_label_values(&[reason])
                .inc(),
            Effect::Limited(limiter) => self.metrics.count_limited(limiter, 1),
            Effect::Close(close) => self.refuse(key, close),
        }
    }
}

impl State {
    /// Publishes an event of a client; the others get it.
    fn publish(&mut self, socket: usize, key: ChannelKey, publish: Publish) {
        let Publish {
            event, data, by, ..
        } = publish;
        let Some(client) = self.sockets.get(socket).and_then(|it| it.client.as_ref()) else {
            return;
        };
        let connection = client.connection.id();
        let order = Order {
            key,
            event: Arc::clone(&event),
            data,
            exclude: Some(connection),
            accepted_at: UnixTime::now(),
            idempotency: None,
            by,
        };
        let sender = mesh::Sender {
            worker: self.id,
            socket,
            connection,
            event: Arc::clone(&event),
        };
        let asker = mesh::Asker::Client(sender);
        if !self.mesh.try_tell(mesh::Mail::Publish { order, asker }) {
            self.send(socket, &not_published(&event, ErrorCode::Overloaded));
        }
    }

    /// What a client wanted to publish was not, or perhaps not.
    pub(super) fn not_published(&mut self, sender: &mesh::Sender, code: ErrorCode) {
        let socket = self.sockets.get(sender.socket);
        let client = socket.and_then(|socket| socket.client.as_ref());
        if client.is_some_and(|client| client.connection.id() == sender.connection) {
            self.send(sender.socket, &not_published(&sender.event, code));
        }
    }
}

/// How long whatever is behind a worker's socket waits for a client: longer than the
/// worker, which tells it why it is closed.
pub(crate) fn patience(limits: &OutboxLimits) -> Duration {
    limits.age_max + USER_TIMEOUT_MARGIN
}

/// Makes a client's socket as deliveries need it.
pub(crate) fn tune(stream: impl AsFd, limits: &OutboxLimits) -> io::Result<()> {
    // Deliveries are written whole: waiting for more would only delay them.
    sockopt::set_tcp_nodelay(&stream, true)?;
    // Else the kernel would keep megabytes for a client before anybody noticed that
    // it does not read.
    sockopt::set_socket_send_buffer_size(&stream, limits.send_buffer_bytes)?;
    // Who does not answer what was sent is gone, though nothing has said so.
    let patience = patience(limits).as_millis();
    sockopt::set_tcp_user_timeout(&stream, u32::try_from(patience).unwrap_or(u32::MAX))?;
    Ok(())
}

fn op(command: &Command) -> &'static str {
    match command {
        Command::Subscribe { .. } => "subscribe",
        Command::Unsubscribe { .. } => "unsubscribe",
        Command::SignIn { .. } => "signin",
        Command::Ping => "ping",
        Command::Pong => "pong",
        Command::Publish(_) => "client_event",
        Command::Unsupported { .. } => "unsupported",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener, TcpStream as TcpStdStream};

    #[test]
    fn the_kernel_keeps_little_for_a_client_and_not_for_ever() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let stream = TcpStdStream::connect(listener.local_addr().unwrap()).unwrap();
        let limits = OutboxLimits::default();
        tune(&stream, &limits).unwrap();
        assert!(stream.nodelay().unwrap());
        // Linux says twice what it was told: the other half is for its own needs.
        let bytes = sockopt::socket_send_buffer_size(&stream).unwrap();
        let told = limits.send_buffer_bytes;
        assert!((told..=2 * told).contains(&bytes), "{bytes}");
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 30_000);
    }
}
