//! The edge: terminates WebSocket and SSE, takes publications over HTTP.
//!
//! `core` and `protocol` decide; the modules marked as shells act. [`start`]
//! puts them together: `server` accepts and answers HTTP, and hands WebSocket
//! and SSE connections to a `worker`, one per core, which owns them from then
//! on; `mesh` talks to the nodes.

pub mod app;
pub mod broadcast;
pub mod core;
mod metrics;
pub mod protocol;
pub mod websocket;

#[expect(
    clippy::disallowed_methods,
    reason = "shell: stamps and checks requests by the wall clock"
)]
mod api;
mod bridge;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: whether a token has expired is by the wall clock"
)]
mod connect;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: stamps who comes and asks by the clock"
)]
mod door;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: starts a thread that reads the clock"
)]
mod lag;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: owns the clock of the edge"
)]
mod mesh;
mod playground;
mod probes;
mod problem;
mod publisher;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: accepts, waits and spawns"
)]
mod server;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: shakes hands, waits and spawns"
)]
pub mod tls;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: owns sockets, their tasks and their clock"
)]
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use proto::bus::BusHandle;
use proto::id::GatewayRef;
use proto::inspection::{Answer, Question};
use proto::namespace::Namespaces;
use proto::subject::{ClusterName, Subject};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

pub use metrics::Metrics;
pub use publisher::Publisher;

/// What a gateway is told before it starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster's name on the bus.
    pub cluster: ClusterName,
    /// This gateway, in this life.
    pub gateway: GatewayRef,
    /// Where clients and backends connect.
    pub listen: SocketAddr,
    /// Encrypts what goes between it and clients and backends. `None`: a proxy in front does.
    pub tls: Option<tls::Files>,
    /// Whom it serves.
    pub apps: Arc<app::Apps>,
    /// Threads that own connections; one per core is best.
    pub workers: usize,
    /// Silence after which a client is pinged.
    pub activity_timeout: Duration,
    /// What clients and backends may.
    pub limits: Limits,
    /// What may wait to be written.
    pub outbox: OutboxLimits,
    /// What becomes of clients that read too slowly, by channel.
    pub namespaces: Namespaces,
    /// How clients are sent away at the end.
    pub leaving: core::leaving::Pace,
    /// Serves the page at `/` and `POST /dev/publish`.
    pub playground: bool,
}

/// What clients and backends may, besides what their apps say.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Who may come in.
    pub admission: core::admission::Limits,
    /// Whose word is taken for where a client comes from.
    pub trusted_proxies: Vec<IpNet>,
    /// Connections at most that are no client's: of backends, and of clients that
    /// have not said yet what they want.
    pub requests_max: usize,
    /// What one connection may.
    pub connection: core::connection::Limits,
}

impl Default for Limits {
    /// For a gateway whose clients are not told apart by address.
    fn default() -> Self {
        Self {
            admission: core::admission::Limits {
                connections_max: usize::MAX,
                files_max: usize::MAX,
                refusals_max: 1_024,
                of_address: None,
            },
            trusted_proxies: Vec::new(),
            requests_max: 4_096,
            connection: core::connection::Limits::default(),
        }
    }
}

/// What may wait to be written, before slow clients are acted upon.
#[derive(Debug, Clone)]
pub struct OutboxLimits {
    /// Bytes for one client; one that is further behind is disconnected.
    pub bytes_max: usize,
    /// How long anything may wait; likewise.
    pub age_max: Duration,
    /// Bytes for all clients of this gateway; beyond, the slowest are disconnected.
    pub total_bytes_max: usize,
    /// Bytes that the kernel keeps for one client.
    pub send_buffer_bytes: usize,
}

impl Default for OutboxLimits {
    fn default() -> Self {
        Self {
            bytes_max: 1_024 * 1_024,
            age_max: Duration::from_secs(20),
            total_bytes_max: 256 * 1_024 * 1_024,
            send_buffer_bytes: 64 * 1_024,
        }
    }
}

/// Why a gateway did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, or not this machine's.
    #[error("could not listen on {address}: {error}; choose another address with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// Its certificate cannot be used.
    #[error("the certificate for clients cannot be used; see --tls-cert and --tls-key")]
    Tls(#[from] tls::Error),
    /// It could not listen on the bus.
    #[error("could not subscribe to {subject} on the bus: {error}")]
    Subscribe {
        /// What it wanted to hear.
        subject: Subject,
        /// What the bus said.
        error: proto::bus::Error,
    },
    /// A worker's thread could not be started.
    #[error("could not start a worker thread: {0}")]
    Thread(std::io::Error),
    /// Another process has the same id and started later.
    #[error("another process has become gateway {0}, after this one; give each its own --name")]
    Superseded(proto::id::GatewayId),
    /// A worker's thread panicked: a bug. Its connections are gone, so the
    /// gateway ends.
    #[error("a worker thread panicked; please report it")]
    WorkerPanicked,
    /// One of its tasks panicked: a bug.
    #[error("a task of the gateway panicked: {0}")]
    Panicked(tokio::task::JoinError),
}

/// A gateway that is running.
#[derive(Debug)]
pub struct Gateway {
    /// Where it listens: the port is known now, also if it was to be any.
    pub address: SocketAddr,
    /// True while it has the map and serves; clients that come before are refused.
    pub ready: watch::Receiver<bool>,
    /// Asks nodes what they know.
    pub inspector: Inspector,
    task: JoinHandle<Result<(), Error>>,
}

/// Asks nodes what they know, for a person who looks inside.
#[derive(Debug, Clone)]
pub struct Inspector {
    mesh: mesh::Handle,
}

impl Inspector {
    /// Asks whoever knows: the owner of a channel, or any node. Answers within
    /// a few seconds; [`Answer::Unavailable`] says why nobody can tell.
    pub async fn ask(&self, question: Question) -> Answer {
        self.mesh.ask(question).await
    }
}

/// Starts a gateway: takes its address and subscribes. It looks for a node by itself
/// and serves as soon as it has learnt the map, until `shutdown` turns true. Then it
/// takes no new clients, and sends those it has away at their pace.
///
/// # Errors
/// [`Error::Listen`] and [`Error::Subscribe`].
#[expect(
    clippy::disallowed_methods,
    reason = "shell: starts the tasks of the gateway"
)]
pub async fn start(
    config: Config,
    bus: BusHandle,
    metrics: Arc<Metrics>,
    shutdown: watch::Receiver<bool>,
) -> Result<Gateway, Error> {
    // First, so that a wrong address is said before anything is waited for.
    let bound = server::Bound::new(config.listen)?;
    let address = bound.address;
    let tls = config.tls.clone().map(tls::Tls::load).transpose()?;
    let seeker = mesh::Seeker::subscribe(config, bus, Arc::clone(&metrics)).await?;
    let (ready, is_ready) = watch::channel(false);
    let inspector = Inspector {
        mesh: seeker.handle(),
    };
    let task = tokio::spawn(async move {
        let served = match seeker.find(shutdown.clone()).await {
            Some(mesh) => serve(mesh, (bound, tls), metrics, &ready, shutdown).await,
            None => Ok(()),
        };
        ready.send_replace(false);
        served
    });
    Ok(Gateway {
        address,
        ready: is_ready,
        inspector,
        task,
    })
}

/// Serves until shutdown, or until the first failure.
#[expect(
    clippy::disallowed_methods,
    reason = "shell: starts the tasks of the gateway"
)]
async fn serve(
    mesh: mesh::Mesh,
    (bound, tls): (server::Bound, Option<tls::Tls>),
    metrics: Arc<Metrics>,
    ready: &watch::Sender<bool>,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), Error> {
    let listener = bound.listen()?;
    let config = mesh.config();
    let draining = metrics.draining.clone();
    let mut tasks = JoinSet::new();
    let mut workers = Vec::new();
    let mut probed = Vec::new();
    for number in 0..config.workers.clamp(1, core::workers::WORKERS_MAX) {
        let (handle, ended) = worker::spawn(
            core::workers::WorkerId(number as u8),
            Arc::clone(&config),
            mesh.handle(),
            Arc::clone(&metrics),
            shutdown.clone(),
        )
        .map_err(Error::Thread)?;
        let lag = metrics.runtime_lag_worker.clone();
        probed.push(lag::Probed::new(handle.runtime(), lag));
        workers.push(handle);
        tasks.spawn(async move {
            // A worker that panics drops the sender without a word.
            ended.await.map_err(|_| Error::WorkerPanicked)
        });
    }
    let _probe = lag::start(probed).map_err(Error::Thread)?;
    let context = server::Context {
        config: Arc::clone(&config),
        mesh: mesh.handle(),
        door: mesh.door(),
        metrics: Arc::clone(&metrics),
    };
    let routes = server::routes(context);
    let mailboxes = workers.iter().map(worker::Handle::mailbox).collect();
    // It ends after the others, so that what they have under way is answered.
    let (stop_mesh, mesh_shutdown) = watch::channel(false);
    let mut mesh = tokio::spawn(mesh.run(mailboxes, mesh_shutdown));
    if let Some(tls) = tls.clone() {
        let fresh = tls.keep_fresh(metrics.certificate_reloads(), shutdown.clone());
        tasks.spawn(async move {
            fresh.await;
            Ok(())
        });
    }
    let serving = server::Serving {
        routes,
        workers,
        tls,
        config: Arc::clone(&config),
        metrics,
    };
    tasks.spawn(server::run(listener, serving, shutdown.clone()));
    tracing::info!(gateway = %config.gateway.id, incarnation = config.gateway.incarnation.0, "gateway serves");
    ready.send_replace(true);
    loop {
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop), if *ready.borrow() => {
                ready.send_replace(false);
                draining.set(1);
            }
            ended = &mut mesh => return ended.map_err(Error::Panicked)?,
            ended = tasks.join_next() => match ended {
                Some(ended) => ended.map_err(Error::Panicked)??,
                None => break,
            },
        }
    }
    let _ = stop_mesh.send(true);
    mesh.await.map_err(Error::Panicked)?
}

impl Gateway {
    /// Returns when all has ended after a shutdown, or at the first failure.
    ///
    /// # Errors
    /// All but [`Error::Listen`] and [`Error::Subscribe`].
    pub async fn join(self) -> Result<(), Error> {
        self.task.await.map_err(Error::Panicked)?
    }
}
