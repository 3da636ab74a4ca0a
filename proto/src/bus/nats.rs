//! The bus over NATS. The only file that names its client library.
//!
//! What it adds to the library is that nobody ever waits. A publish into a full
//! or absent bus returns at once; the message is gone and counted, as if it had
//! been lost on the way. The library by itself would keep the first messages
//! and then make the publisher wait until the server is back.
//!
//! ```text
//!   publish ──▶ commands, bounded in number and bytes ──▶ connection ──▶ server
//!                  │ full, or away: dropped, Stats::unsent
//!   Subscription ◀── its queue ◀── pump ◀── the library's queue ◀── connection
//!                      │ full: the newest dropped, Stats::dropped
//! ```
//!
//! - **Connecting** goes on in the background for as long as it takes. Only the
//!   servers that were named are tried, since those that a server makes known
//!   may be out of reach or without TLS.
//! - **After a reconnect** the library repeats all subscriptions, and nothing
//!   else is done. What was published meanwhile is missed. Links number their
//!   batches and find that out with the next batch or beat
//!   ([`crate::link`]); what they cannot repair, positions do.
//! - **What waited** when the connection broke, at most the bounds below, is
//!   sent when there is a new one, so messages can be late. Whatever acts on
//!   one checks the fence or incarnation in it.
//! - **A connection that hangs** is given up after three seconds without any
//!   word from the server.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::future::ready;
use std::hash::BuildHasher;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::rustls::RootCertStore;
use async_nats::rustls::pki_types::CertificateDer;
use async_nats::rustls::pki_types::pem::PemObject;
use async_nats::{
    Client, ClientError, ConnectOptions, Event, PublishErrorKind, ServerAddr, ServerError,
    Statistics, SubscribeError, Subscriber,
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::task::coop::unconstrained;

use self::report::Reporter;
use self::servers::{Identity, Servers};
use super::queue::{self, Fed, Feed, Subscription};
use super::{Bus, Error, Stats};
use crate::codec::PAYLOAD_BYTES_MAX;
use crate::subject::Subject;

mod report;
mod servers;

/// Most commands, which are mostly messages, that wait for the connection. A
/// delivery loop may publish this often before the connection gets a turn.
const WAITING_COMMANDS_MAX: usize = 16_384;
/// Most bytes that wait for the connection.
const WAITING_BYTES_MAX: usize = 64 * 1_024 * 1_024;
/// Most messages between the connection and a pump, which empties this at once
/// into the queue of the subscription.
const PUMP_MESSAGES_MAX: usize = 65_536;
/// How often a silent server is asked whether it is there; it is given up when
/// the third question is due and two are unanswered.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for one server to take us in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Shortest and longest pause before a server is tried, in milliseconds. Short,
/// because a cluster is deaf meanwhile; random, because all its processes lose
/// a server at the same moment.
const RECONNECT_MS: (u64, u64) = (50, 250);

/// How to reach NATS.
#[derive(Clone)]
pub struct NatsOptions {
    /// `nats://` or `tls://` URLs with commas between them. One may hold
    /// `user:password@` or `token@`, which then serves for all of them. If one
    /// is `tls://`, all connections are by TLS.
    pub servers: String,
    /// A `.creds` file, for servers that know their users by JWT.
    pub credentials: Option<PathBuf>,
    /// Root certificates, PEM, that count instead of the system's. Connections
    /// are by TLS then.
    pub ca: Option<PathBuf>,
    /// What the server shows as this client's name.
    pub name: String,
}

/// Why no bus can be made of these options. A server that is away is no reason.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The list of servers cannot be read.
    #[error(transparent)]
    Servers(#[from] servers::Error),
    /// Both a URL and a credentials file say who we are.
    #[error(
        "the NATS servers' URLs have a user, and there is a credentials file too: leave out one of them"
    )]
    TwoIdentities,
    /// A file cannot be read.
    #[error("cannot read the {what} {path}: {source}")]
    File {
        /// What it is for.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The credentials file is something else. What it holds is never shown.
    #[error(
        "{0} is not a NATS credentials file: it must hold a user JWT and a user's NKEY seed, as `nsc generate creds` writes them"
    )]
    NotCredentials(PathBuf),
    /// The CA file is something else.
    #[error("{path} holds no root certificates ({reason}): it must hold them in PEM format")]
    NotCertificates {
        /// Which file.
        path: PathBuf,
        /// What was found in it.
        reason: String,
    },
}

/// A bus over NATS; the connection closes when it and its subscriptions are
/// dropped.
pub struct NatsBus {
    client: Client,
    statistics: Arc<Statistics>,
    counters: Arc<Counters>,
    reporter: Arc<Reporter>,
    pumps: Mutex<Vec<Pump>>,
    /// Where the connection and the pumps run.
    runtime: Handle,
}

#[derive(Debug, Default)]
struct Counters {
    waiting_bytes: AtomicUsize,
    dropped: AtomicU64,
    unsent: AtomicU64,
}

/// The task that serves a subscription.
#[derive(Debug)]
struct Pump {
    /// Strong in the task alone, so that the subscription ends with it.
    feed: Weak<Feed>,
    task: AbortHandle,
}

/// A payload that is counted as long as the client library holds it.
struct Waiting {
    payload: Bytes,
    counters: Arc<Counters>,
}

impl NatsBus {
    /// A bus that connects in the background, for as long as it takes. Must be
    /// called inside the runtime on which it is to run.
    ///
    /// # Errors
    /// When the options cannot be right, whatever the servers do.
    pub async fn connect(options: NatsOptions) -> Result<Arc<Self>, ConnectError> {
        let servers: Servers = options.servers.parse()?;
        let reporter = Arc::new(Reporter::new(servers.to_string()));
        let counters = Arc::new(Counters::default());
        let addresses = addresses(&servers)?;
        let client = ConnectOptions::new()
            .name(&options.name)
            .retry_on_initial_connect()
            .max_reconnects(None)
            .ignore_discovered_servers()
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .client_capacity(WAITING_COMMANDS_MAX)
            .subscription_capacity(PUMP_MESSAGES_MAX)
            .require_tls(options.ca.is_some() || servers.addresses.iter().any(|it| it.tls))
            .reconnect_delay_callback(pauses());
        let client = authenticated(client, servers.identity, options.credentials.as_deref())?;
        let client = trusting(client, options.ca)?;
        let client = reporting(client, &reporter, &counters)
            .connect(addresses)
            .await
            // Only for addresses that it cannot read, which we have read.
            .map_err(|_| servers::Error::Empty)?;
        Ok(Arc::new(Self {
            statistics: client.statistics(),
            client,
            counters,
            reporter,
            pumps: Mutex::default(),
            runtime: Handle::current(),
        }))
    }

    fn unsent(&self) {
        self.counters.unsent.fetch_add(1, Ordering::Relaxed);
    }

    /// The pumps of present subscriptions.
    fn pumps(&self) -> MutexGuard<'_, Vec<Pump>> {
        let mut pumps = self.pumps.lock().unwrap_or_else(PoisonError::into_inner);
        pumps.retain(|pump| pump.feed.upgrade().is_some_and(|feed| !feed.is_gone()));
        pumps
    }
}

impl Bus for NatsBus {
    fn publish(&self, subject: &Subject, payload: Bytes) -> Result<(), Error> {
        let bytes = payload.len();
        if bytes > PAYLOAD_BYTES_MAX {
            return Err(Error::TooLarge(bytes));
        }
        if self.client.connection_state() != State::Connected {
            self.unsent();
            return Ok(());
        }
        let waiting = Waiting::new(payload, &self.counters);
        if self.counters.waiting_bytes.load(Ordering::Relaxed) > WAITING_BYTES_MAX {
            self.unsent();
            return Ok(());
        }
        let publish = self
            .client
            .publish(subject.to_string(), Bytes::from_owner(waiting));
        // Unconstrained, or a task that has used up its turn would find a bus
        // full that is not.
        match unconstrained(publish).now_or_never() {
            Some(Ok(())) => Ok(()),
            None => {
                self.unsent();
                Ok(())
            }
            Some(Err(error)) if error.kind() == PublishErrorKind::Send => Err(Error::Closed),
            Some(Err(_)) => {
                self.unsent();
                self.reporter.too_large(bytes, self.client.max_payload());
                Ok(())
            }
        }
    }

    fn subscribe(&self, subject: Subject) -> BoxFuture<'_, Result<Subscription, Error>> {
        let (feed, subscription) = queue::queue();
        let client = self.client.clone();
        let mut subscribing: Subscribing =
            Box::pin(async move { client.subscribe(subject.to_string()).await });
        // Tried now, so that it gets in line before all that is published
        // later. If there is no room, it keeps its place and the pump waits.
        let subscribing = match unconstrained(&mut subscribing).now_or_never() {
            Some(Ok(subscriber)) => Box::pin(ready(Ok(subscriber))),
            Some(Err(_)) => return Box::pin(ready(Err(Error::Closed))),
            None => subscribing,
        };
        let feed = Arc::new(feed);
        let pump = Pump {
            feed: Arc::downgrade(&feed),
            task: self
                .runtime
                .spawn(pump(subscribing, feed, Arc::clone(&self.counters)))
                .abort_handle(),
        };
        self.pumps().push(pump);
        Box::pin(ready(Ok(subscription)))
    }

    fn name(&self) -> &'static str {
        "nats"
    }

    fn stats(&self) -> Stats {
        let connects = self.statistics.connects.load(Ordering::Relaxed);
        Stats {
            subscriptions: self.pumps().len() as u64,
            dropped: self.counters.dropped.load(Ordering::Relaxed),
            unsent: self.counters.unsent.load(Ordering::Relaxed),
            connected: self.client.connection_state() == State::Connected,
            reconnects: connects.saturating_sub(1),
        }
    }
}

type Subscribing = BoxFuture<'static, Result<Subscriber, SubscribeError>>;

/// Takes messages to the queue of a subscription, until that is dropped.
async fn pump(subscribing: Subscribing, feed: Arc<Feed>, counters: Arc<Counters>) {
    let mut subscriber = tokio::select! {
        subscriber = subscribing => match subscriber {
            Ok(subscriber) => subscriber,
            Err(_) => return,
        },
        () = feed.gone() => return,
    };
    loop {
        let message = tokio::select! {
            biased;
            message = subscriber.next() => message,
            () = feed.gone() => return,
        };
        let Some(message) = message else { return };
        if feed.feed(message.payload, &counters.dropped) == Fed::Gone {
            return;
        }
    }
}

/// Pauses before a server is tried: none before the very first, then random.
fn pauses() -> impl Fn(usize) -> Duration + Send + Sync + 'static {
    let first = AtomicBool::new(true);
    move |_| {
        if first.swap(false, Ordering::Relaxed) {
            return Duration::ZERO;
        }
        let (least, most) = RECONNECT_MS;
        // The standard library's one source of randomness, and no secret.
        let random = RandomState::new().hash_one(());
        Duration::from_millis(least + random % (most - least + 1))
    }
}

fn addresses(servers: &Servers) -> Result<Vec<ServerAddr>, servers::Error> {
    let address = |(index, address): (usize, &servers::Address)| {
        let invalid = |_| servers::Error::Invalid {
            number: index + 1,
            shown: format!(" ({address})"),
            problem: "cannot be read",
        };
        address.to_string().parse().map_err(invalid)
    };
    servers.addresses.iter().enumerate().map(address).collect()
}

/// The library does not look for users in URLs, so they are told here.
fn authenticated(
    client: ConnectOptions,
    identity: Option<Identity>,
    credentials: Option<&Path>,
) -> Result<ConnectOptions, ConnectError> {
    match (identity, credentials) {
        (None, None) => Ok(client),
        (Some(Identity::Token(token)), None) => Ok(client.token(token)),
        (Some(Identity::User { name, password }), None) => {
            Ok(client.user_and_password(name, password))
        }
        (None, Some(path)) => {
            let text = read("NATS credentials file", path)?;
            let text = String::from_utf8(text)
                .map_err(|_| ConnectError::NotCredentials(path.to_owned()))?;
            // What is wrong with it could show a part of it.
            client
                .credentials(&text)
                .map_err(|_| ConnectError::NotCredentials(path.to_owned()))
        }
        (Some(_), Some(_)) => Err(ConnectError::TwoIdentities),
    }
}

/// Checks the root certificates. The library reads them again for every
/// connection, so that they can be renewed.
fn trusting(client: ConnectOptions, ca: Option<PathBuf>) -> Result<ConnectOptions, ConnectError> {
    let Some(path) = ca else { return Ok(client) };
    let pem = read("NATS CA file", &path)?;
    let mut roots = RootCertStore::empty();
    let mut problem = None;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        match certificate {
            Ok(certificate) => problem = roots.add(certificate).err().map(|it| it.to_string()),
            Err(error) => problem = Some(error.to_string()),
        }
        if problem.is_some() {
            break;
        }
    }
    if roots.is_empty() && problem.is_none() {
        problem = Some("no PEM certificate in it".to_owned());
    }
    match problem {
        Some(reason) => Err(ConnectError::NotCertificates { path, reason }),
        None => Ok(client.add_root_certificates(path)),
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, ConnectError> {
    std::fs::read(path).map_err(|source| ConnectError::File {
        what,
        path: path.to_owned(),
        source,
    })
}

fn reporting(
    client: ConnectOptions,
    reporter: &Arc<Reporter>,
    counters: &Arc<Counters>,
) -> ConnectOptions {
    let (events, tries) = (Arc::clone(reporter), Arc::clone(reporter));
    let counters = Arc::clone(counters);
    client
        .event_callback(move |event| {
            report(&events, &counters, event);
            ready(())
        })
        // Called before each round over the servers, with what happened in the
        // last one. Choosing a server is left to the library.
        .reconnect_to_server_callback(move |servers, _| {
            tries.tries(servers.into_iter().filter_map(|server| {
                let address = format!("{}:{}", server.addr.host(), server.addr.port());
                Some((address, server.last_error?))
            }));
            ready(None)
        })
}

fn report(reporter: &Reporter, counters: &Counters, event: Event) {
    match event {
        Event::Connected => reporter.connected(),
        Event::Disconnected => reporter.disconnected(),
        Event::LameDuckMode => reporter.leaving(),
        Event::SlowConsumer(_) => {
            // A lower bound: under a flood the library forgets some events.
            counters.dropped.fetch_add(1, Ordering::Relaxed);
            reporter.slow_consumer();
        }
        Event::ServerError(ServerError::Other(text)) => reporter.refused(&text),
        Event::ServerError(error) => reporter.refused(&error.to_string()),
        Event::ClientError(ClientError::Other(kind)) => reporter.failure(kind),
        Event::ClientError(error) => reporter.failure(error.to_string()),
        Event::Draining | Event::Closed => {}
    }
}

impl Drop for NatsBus {
    fn drop(&mut self) {
        for pump in self.pumps().iter() {
            pump.task.abort();
        }
    }
}

impl Waiting {
    fn new(payload: Bytes, counters: &Arc<Counters>) -> Self {
        counters
            .waiting_bytes
            .fetch_add(payload.len(), Ordering::Relaxed);
        Self {
            payload,
            counters: Arc::clone(counters),
        }
    }
}

impl AsRef<[u8]> for Waiting {
    fn as_ref(&self) -> &[u8] {
        &self.payload
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.counters
            .waiting_bytes
            .fetch_sub(self.payload.len(), Ordering::Relaxed);
    }
}

impl fmt::Debug for NatsBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsBus")
            .field("servers", &self.reporter.servers())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for NatsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers = match self.servers.parse::<Servers>() {
            Ok(servers) => servers.to_string(),
            Err(_) => "not readable".to_owned(),
        };
        f.debug_struct("NatsOptions")
            .field("servers", &servers)
            .field("credentials", &self.credentials)
            .field("ca", &self.ca)
            .field("name", &self.name)
            .finish()
    }
}

#[cfg(test)]
mod tests;
