//! Shell: QUIC between nodes. Calls with one reply each, [ways] that stay open,
//! and datagrams that may be lost. One connection per direction and pair of
//! nodes, made when it is needed and made again when it broke; nobody waits for
//! longer than they said.

pub(crate) mod tls;
pub(crate) mod ways;
pub(crate) mod wire;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use proto::id::NodeId;
use quinn::{Connection, Endpoint, EndpointConfig, TokioRuntime, TransportConfig, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::core::cluster::RaftId;
use tls::Tls;
use wire::{BYTES_MAX, Call, Greeting, Hello, Refusal, Reply, decode, encode};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a node that is heard of by itself may leave an attempt to connect to
/// it unanswered: after that the attempt went to where nobody was yet.
const FRESH: Duration = Duration::from_millis(250);
/// What a way and back is thought to take before it is known: a third of how soon
/// the first datagram of a connection is sent again.
const INITIAL_RTT: Duration = Duration::from_millis(50);
/// How long a failed connection is not tried again.
const COOL_DOWN: Duration = Duration::from_millis(200);
/// Silence after which a connection is given up.
const IDLE: Duration = Duration::from_secs(3);
/// How often a silent connection is kept alive.
const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// How long the end of all connections may take.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long an answer may take: longer than anyone waits for one.
const ANSWER: Duration = Duration::from_secs(6);
/// How often the same complaint is logged.
const COMPLAIN: Duration = Duration::from_secs(10);
/// Complaints that are remembered; when there are more, all are forgotten.
const COMPLAINTS_MAX: usize = 256;
/// Calls of one peer that are answered at the same time.
const STREAMS_MAX: u32 = 256;
/// Connections that are accepted at most.
const CONNECTIONS_MAX: usize = 512;
/// Bytes of the first message at most.
const HELLO_BYTES_MAX: usize = 4_096;

/// What a node does with what others say.
pub(crate) trait Serve: Send + Sync + 'static {
    /// Who this node is now.
    fn hello(&self) -> Hello;

    /// Whether this node and another can be in one cluster. Called for both
    /// ends of every connection.
    fn meet(&self, other: &Hello) -> Result<(), Refusal>;

    /// Answers a call.
    fn serve(self: Arc<Self>, from: Hello, call: Call) -> BoxFuture<'static, Reply>;

    /// An owner has made a way to this node.
    fn welcome(&self, from: Hello, way: ways::Way);

    /// A node has sent a sign of life.
    fn heard(&self, from: &Hello, beat: &[u8]);
}

/// A datagram that has come.
#[derive(Debug)]
pub(crate) struct Datagram {
    pub(crate) from: RaftId,
    pub(crate) bytes: Bytes,
}

/// Why there is no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// The two cannot be in one cluster.
    #[error("the node at {address} and this one cannot be in one cluster: {}", refusal.reason)]
    Refused { address: String, refusal: Refusal },
    /// It cannot be reached, or did not answer.
    #[error("could not reach a node at {address}: {reason}")]
    Unreachable { address: String, reason: String },
}

/// The state of the way to one address.
#[derive(Debug, Clone)]
enum Way {
    Connecting,
    Up(Connection),
    Down(CallError),
}

/// The way to one address, and who makes it.
struct Route {
    way: watch::Receiver<Way>,
    /// The node there has connected to this one.
    heard: Arc<Notify>,
}

/// This node's end of all connections. Clones are the same.
#[derive(Clone)]
pub(crate) struct Peers {
    endpoint: Endpoint,
    node: Arc<dyn Serve>,
    ways: Arc<Mutex<HashMap<String, Route>>>,
    complaints: Arc<Mutex<Complaints>>,
}

/// What has been logged of whom: whoever tries again and again is not to fill
/// the log.
#[derive(Debug, Default)]
struct Complaints(HashMap<(IpAddr, String), Instant>);

impl Complaints {
    /// Whether to log this.
    fn is_due(&mut self, of: IpAddr, reason: &str, now: Instant) -> bool {
        let key = (of, reason.to_owned());
        let last = self.0.get(&key);
        if last.is_some_and(|at| now.saturating_duration_since(*at) < COMPLAIN) {
            return false;
        }
        if self.0.len() >= COMPLAINTS_MAX {
            self.0.clear();
        }
        self.0.insert(key, now);
        true
    }
}

/// Whether nothing better can be had now than this way.
fn is_usable(way: &watch::Receiver<Way>) -> bool {
    match &*way.borrow() {
        // Its maker holds it while it connects, and while it cools down.
        Way::Connecting | Way::Down(_) => way.has_changed().is_ok(),
        Way::Up(connection) => connection.close_reason().is_none(),
    }
}

impl Peers {
    /// Listens, and answers what comes. Must be called on a runtime.
    pub(crate) fn bind(
        address: SocketAddr,
        tls: Tls,
        reset_key: &[u8; 32],
        node: Arc<dyn Serve>,
        datagrams: mpsc::Sender<Datagram>,
    ) -> std::io::Result<Self> {
        let mut transport = TransportConfig::default();
        transport
            .max_idle_timeout(Some(IDLE.try_into().map_err(std::io::Error::other)?))
            .keep_alive_interval(Some(KEEP_ALIVE))
            .initial_rtt(INITIAL_RTT)
            .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
            .max_concurrent_uni_streams(VarInt::from_u32(0));
        let transport = Arc::new(transport);
        let Tls {
            mut client,
            mut server,
        } = tls;
        client.transport_config(Arc::clone(&transport));
        server.transport_config(transport);
        // Whoever has a connection with an earlier process at this address is
        // told at once that it has ended, and not by silence: RFC 9000, 10.3.
        let reset_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, reset_key);
        let mut endpoint = Endpoint::new(
            EndpointConfig::new(Arc::new(reset_key)),
            Some(server),
            std::net::UdpSocket::bind(address)?,
            Arc::new(TokioRuntime),
        )?;
        endpoint.set_default_client_config(client);
        let peers = Self {
            endpoint,
            node,
            ways: Arc::default(),
            complaints: Arc::default(),
        };
        tokio::spawn(peers.clone().accept(datagrams));
        Ok(peers)
    }

    /// Where this node listens.
    pub(crate) fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Ends all connections, and waits a little until the others know.
    pub(crate) async fn close(&self) {
        self.endpoint.close(VarInt::from_u32(0), b"the node ends");
        // Whoever does not answer finds out by silence.
        let _ = timeout(FAREWELL, self.endpoint.wait_idle()).await;
    }

    /// Asks the node at an address.
    pub(crate) async fn call(
        &self,
        address: &str,
        call: &Call,
        within: Duration,
    ) -> Result<Reply, CallError> {
        let unreachable = |reason: String| CallError::Unreachable {
            address: address.to_owned(),
            reason,
        };
        let asking = async {
            let connection = self.connection(address).await?;
            ask(&connection, call).await.map_err(unreachable)
        };
        match timeout(within, asking).await {
            Ok(reply) => reply,
            Err(_) => Err(unreachable(format!("no answer within {within:?}"))),
        }
    }

    /// Sends a datagram if there is a connection; makes one for the next if
    /// there is none.
    pub(crate) fn datagram(&self, address: &str, bytes: Bytes) {
        let way = self.way(address);
        if let Way::Up(connection) = &*way.borrow() {
            // Too large or not supported: our datagrams are small, and lost
            // ones are sent again by whoever needs them.
            let _ = connection.send_datagram(bytes);
        }
    }

    /// Makes a way to the node at an address.
    pub(crate) async fn open(&self, address: &str) -> Result<ways::Way, CallError> {
        let connection = self.connection(address).await?;
        let opening = async {
            let (mut send, receive) = connection.open_bi().await?;
            send.write_all(&[ways::TAG]).await?;
            Ok(ways::Way { send, receive })
        };
        // It waits while the other end lets no more streams be opened.
        let opened = timeout(CONNECT, opening).await;
        let opened = opened.unwrap_or_else(|_| Err(Failed(format!("no way within {CONNECT:?}"))));
        opened.map_err(|Failed(reason)| CallError::Unreachable {
            address: address.to_owned(),
            reason,
        })
    }

    async fn connection(&self, address: &str) -> Result<Connection, CallError> {
        let mut way = self.way(address);
        let state = way
            .wait_for(|way| !matches!(way, Way::Connecting))
            .await
            .map(|way| way.clone());
        match state {
            Ok(Way::Up(connection)) => Ok(connection),
            Ok(Way::Down(error)) => Err(error),
            Ok(Way::Connecting) | Err(_) => Err(CallError::Unreachable {
                address: address.to_owned(),
                reason: "the attempt to connect was given up".into(),
            }),
        }
    }

    /// The way to an address; one that broke is made anew.
    fn way(&self, address: &str) -> watch::Receiver<Way> {
        let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Route { way, .. }) = ways.get(address)
            && is_usable(way)
        {
            return way.clone();
        }
        // Nodes move: what led to their earlier places is let go.
        ways.retain(|_, route| is_usable(&route.way));
        let (made, way) = watch::channel(Way::Connecting);
        let heard = Arc::new(Notify::new());
        let route = Route {
            way: way.clone(),
            heard: Arc::clone(&heard),
        };
        ways.insert(address.to_owned(), route);
        tokio::spawn(self.clone().make_way(address.to_owned(), made, heard));
        way
    }

    async fn make_way(self, to: String, made: watch::Sender<Way>, heard: Arc<Notify>) {
        let is_there = async {
            sleep(FRESH).await;
            heard.notified().await;
        };
        let connected = connected(|| self.connect(&to), is_there).await;
        let connected = connected.unwrap_or_else(|| {
            Err(CallError::Unreachable {
                reason: format!("no answer within {CONNECT:?}"),
                address: to.clone(),
            })
        });
        match connected {
            Ok(connection) => {
                made.send_replace(Way::Up(connection));
            }
            Err(error) => {
                tracing::debug!(%error, "no connection to a node");
                made.send_replace(Way::Down(error));
                tokio::select! {
                    () = sleep(COOL_DOWN) => {}
                    () = heard.notified() => {}
                }
            }
        }
    }

    /// A node has connected to this one: it can be reached.
    fn hear_of(&self, address: &str) {
        let ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(route) = ways.get(address) {
            route.heard.notify_waiters();
        }
    }

    async fn connect(&self, address: &str) -> Result<Connection, CallError> {
        let unreachable = |reason: String| CallError::Unreachable {
            address: address.to_owned(),
            reason,
        };
        let refused = |refusal: Refusal| CallError::Refused {
            address: address.to_owned(),
            refusal,
        };
        let resolved = tokio::net::lookup_host(address)
            .await
            .map_err(|error| unreachable(format!("the name could not be looked up: {error}")))?;
        // `localhost` may be ::1 first, where a node on 127.0.0.1 cannot call.
        let mut reason = "the name has no address".to_owned();
        let mut connected = None;
        for to in resolved {
            match self.endpoint.connect(to, tls::ANY_NODE) {
                Err(error) => reason = error.to_string(),
                Ok(connecting) => match connecting.await {
                    Ok(connection) => {
                        connected = Some(connection);
                        break;
                    }
                    Err(error) => reason = tls::explain_handshake(&error),
                },
            }
        }
        let connection = connected.ok_or_else(|| unreachable(reason))?;
        let greet = async {
            let (mut send, mut receive) = connection.open_bi().await?;
            send.write_all(&encode(&self.node.hello())).await?;
            send.finish()?;
            Ok(receive.read_to_end(HELLO_BYTES_MAX).await?)
        };
        let bytes = greet.await.map_err(|error: Failed| {
            // Client certificates are refused after the handshake has ended
            // for the client.
            unreachable(
                connection
                    .close_reason()
                    .map_or(error.0, |reason| tls::explain_handshake(&reason)),
            )
        })?;
        match decode::<Greeting>(&bytes).map_err(|why| refused(Refusal::because(why)))? {
            Greeting::Refused(refusal) => Err(refused(refusal)),
            Greeting::Welcome(hello) => {
                check_certificate(&connection, &hello.name)
                    .map_err(|why| refused(Refusal::because(why)))?;
                self.node.meet(&hello).map_err(refused)?;
                Ok(connection)
            }
        }
    }

    async fn accept(self, datagrams: mpsc::Sender<Datagram>) {
        while let Some(incoming) = self.endpoint.accept().await {
            if self.endpoint.open_connections() > CONNECTIONS_MAX {
                incoming.refuse();
                continue;
            }
            let (peers, datagrams) = (self.clone(), datagrams.clone());
            let from = incoming.remote_address();
            tokio::spawn(async move {
                match incoming.await {
                    Ok(connection) => peers.attend(connection, datagrams).await,
                    Err(error) => {
                        let reason = tls::explain_handshake(&error);
                        if peers.is_to_complain(from, &reason) {
                            tracing::warn!(%from, %reason, "a connection from another node was not accepted");
                        }
                    }
                }
            });
        }
    }

    fn is_to_complain(&self, of: SocketAddr, reason: &str) -> bool {
        let mut complaints = self
            .complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        complaints.is_due(of.ip(), reason, Instant::now())
    }

    /// Serves one accepted connection to its end.
    async fn attend(self, connection: Connection, datagrams: mpsc::Sender<Datagram>) {
        let other = match timeout(CONNECT, self.greet(&connection)).await {
            Ok(Ok(other)) => other,
            Ok(Err(Failed(reason))) => {
                let from = connection.remote_address();
                if self.is_to_complain(from, &reason) {
                    tracing::warn!(%from, %reason, "another node was refused");
                }
                return;
            }
            Err(_) => return,
        };
        loop {
            tokio::select! {
                stream = connection.accept_bi() => {
                    let Ok((send, receive)) = stream else { return };
                    let (node, other) = (Arc::clone(&self.node), other.clone());
                    tokio::spawn(attend_stream(node, other, send, receive));
                }
                datagram = connection.read_datagram() => {
                    let Ok(bytes) = datagram else { return };
                    if let Some(beat) = bytes.strip_prefix(&wire::BEAT) {
                        self.node.heard(&other, beat);
                        continue;
                    }
                    // Full: lost, as datagrams may be.
                    let _ = datagrams.try_send(Datagram { from: other.raft_id, bytes });
                }
            }
        }
    }

    async fn greet(&self, connection: &Connection) -> Result<Hello, Failed> {
        let (mut send, mut receive) = connection.accept_bi().await?;
        let bytes = receive.read_to_end(HELLO_BYTES_MAX).await?;
        let checked = decode::<Hello>(&bytes)
            .and_then(|other| check_certificate(connection, &other.name).map(|()| other))
            .map_err(Refusal::because)
            .and_then(|other| self.node.meet(&other).map(|()| other));
        let greeting = match &checked {
            Ok(_) => Greeting::Welcome(self.node.hello()),
            Err(refusal) => Greeting::Refused(refusal.clone()),
        };
        send.write_all(&encode(&greeting)).await?;
        send.finish()?;
        match &checked {
            Ok(other) => self.hear_of(&other.address),
            // Until it has been read; then the connection is dropped.
            Err(_) => drop(send.stopped().await),
        }
        checked.map_err(|refusal| Failed(refusal.reason))
    }
}

/// Connects, and begins anew, once, when it turns out that the other end is there
/// and leaves that unanswered: what was sent before it was there is sent again too
/// late. `None`: it took too long.
async fn connected<F: Future>(
    connect: impl Fn() -> F,
    is_there: impl Future<Output = ()>,
) -> Option<F::Output> {
    tokio::select! {
        biased;
        connected = timeout(CONNECT, connect()) => connected.ok(),
        () = is_there => timeout(CONNECT, connect()).await.ok(),
    }
}

/// A stream or connection that broke, in words.
struct Failed(String);

macro_rules! failed_from {
    ($($error:ty),+) => {
        $(impl From<$error> for Failed {
            fn from(error: $error) -> Self {
                Self(error.to_string())
            }
        })+
    };
}

failed_from!(
    quinn::ConnectionError,
    quinn::WriteError,
    quinn::ClosedStream,
    quinn::ReadError,
    quinn::ReadToEndError
);

/// Reads what is left of a message of which this has come already. In order:
/// quinn 0.11 mistakes what has come twice for new when a stream is read in order
/// first and then not, as `read_to_end` does.
async fn to_the_end(
    mut message: Vec<u8>,
    receive: &mut quinn::RecvStream,
) -> Result<Vec<u8>, Failed> {
    while let Some(chunk) = receive.read_chunk(BYTES_MAX, true).await? {
        if message.len() + chunk.bytes.len() > BYTES_MAX {
            return Err(Failed(format!("more than {BYTES_MAX} bytes were sent")));
        }
        message.extend_from_slice(&chunk.bytes);
    }
    Ok(message)
}

async fn ask(connection: &Connection, call: &Call) -> Result<Reply, String> {
    let asked = async {
        let (mut send, mut receive) = connection.open_bi().await?;
        send.write_all(&encode(call)).await?;
        send.finish()?;
        Ok(receive.read_to_end(BYTES_MAX).await?)
    };
    let bytes = asked.await.map_err(|Failed(reason)| reason)?;
    decode(&bytes)
}

/// A stream is a way, if its first byte says so, or a call.
async fn attend_stream(
    node: Arc<dyn Serve>,
    from: Hello,
    send: quinn::SendStream,
    mut receive: quinn::RecvStream,
) {
    let mut first = [0];
    let Ok(Ok(read)) = timeout(ANSWER, receive.read(&mut first)).await else {
        return;
    };
    // Nothing at all is a call, too: it is told that it says nothing.
    let first = &first[..read.unwrap_or(0)];
    if first == [ways::TAG] {
        node.welcome(from, ways::Way { send, receive });
        return;
    }
    // A call that breaks off is the caller's to repeat, and one that takes too
    // long has no caller any more.
    let _ = timeout(ANSWER, answer(node, from, first, send, receive)).await;
}

async fn answer(
    node: Arc<dyn Serve>,
    from: Hello,
    first: &[u8],
    mut send: quinn::SendStream,
    mut receive: quinn::RecvStream,
) -> Result<(), Failed> {
    let bytes = to_the_end(first.to_vec(), &mut receive).await?;
    let reply = match decode(&bytes) {
        Ok(call) => node.serve(from, call).await,
        Err(reason) => Reply::Refused(reason),
    };
    send.write_all(&encode(&reply)).await?;
    send.finish()?;
    Ok(())
}

/// Whether the other end's certificate holds for the name that it gives.
fn check_certificate(connection: &Connection, name: &NodeId) -> Result<(), String> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    let own = chain.as_ref().and_then(|chain| chain.first());
    if own.is_some_and(|own| tls::holds_for(own, name)) {
        Ok(())
    } else {
        Err(format!(
            "it says that it is {name}, but its certificate is not for that name"
        ))
    }
}

#[cfg(test)]
mod tests;
