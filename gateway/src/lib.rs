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
mod connect;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: owns the clock of the edge"
)]
mod mesh;
mod playground;
mod problem;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: accepts, waits and spawns"
)]
mod server;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: owns sockets, their tasks and their clock"
)]
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::bus::BusHandle;
use proto::id::{GatewayRef, Incarnation};
use proto::subject::{ClusterName, Subject};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

pub use metrics::Metrics;

/// What a gateway is told before it starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster's name on the bus.
    pub cluster: ClusterName,
    /// This gateway, in this life.
    pub gateway: GatewayRef,
    /// Where clients and backends connect.
    pub listen: SocketAddr,
    /// Whom it serves.
    pub apps: Arc<app::Apps>,
    /// Threads that own connections; one per core is best.
    pub workers: usize,
    /// Silence after which a client is pinged.
    pub activity_timeout: Duration,
    /// Bytes that may wait for one client; one that is further behind is
    /// disconnected.
    pub outbox_bytes_max: usize,
    /// Serves the page at `/` and `POST /dev/publish`.
    pub playground: bool,
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
    #[error(
        "another process has become gateway {id} (incarnation {newer:?}); give each gateway an id of its own"
    )]
    Superseded {
        /// The id.
        id: proto::id::GatewayId,
        /// The other one's.
        newer: Incarnation,
    },
    /// The shutdown came before a node had been heard of.
    #[error("stopped while waiting for a node on the bus")]
    Stopped,
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
    /// Workers and server.
    tasks: JoinSet<Result<(), Error>>,
    /// Ends after them, so that what they have under way is answered.
    mesh: JoinHandle<Result<(), Error>>,
    stop_mesh: watch::Sender<bool>,
}

/// Starts a gateway: listens, finds a node, learns the map, serves. It serves
/// until `shutdown` turns true.
///
/// # Errors
/// All but [`Error::Superseded`] and [`Error::Panicked`].
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
    let config = Arc::new(config);
    // First, so that a wrong address is said before anything is waited for.
    let listener = server::bind(config.listen)?;
    let (stop_mesh, mesh_shutdown) = watch::channel(false);
    let mesh = mesh::Mesh::connect(
        Arc::clone(&config),
        bus,
        Arc::clone(&metrics),
        shutdown.clone(),
    )
    .await?;
    let mut tasks = JoinSet::new();
    let mut workers = Vec::new();
    for number in 0..config.workers.clamp(1, core::workers::WORKERS_MAX) {
        let (handle, ended) = worker::spawn(
            core::workers::WorkerId(number as u8),
            Arc::clone(&config),
            mesh.handle(),
            Arc::clone(&metrics),
            shutdown.clone(),
        )
        .map_err(Error::Thread)?;
        workers.push(handle);
        tasks.spawn(async move {
            // A worker that panics drops the sender without a word.
            ended.await.map_err(|_| Error::WorkerPanicked)
        });
    }
    let address = listener.local_addr().unwrap_or(config.listen);
    let routes = server::routes(Arc::clone(&config), mesh.handle(), Arc::clone(&metrics));
    let mailboxes = workers.iter().map(worker::Handle::mailbox).collect();
    let mesh = tokio::spawn(mesh.run(mailboxes, mesh_shutdown));
    tasks.spawn(server::run(listener, routes, workers, metrics, shutdown));
    tracing::info!(gateway = %config.gateway.id, %address, "gateway serves");
    Ok(Gateway {
        address,
        tasks,
        mesh,
        stop_mesh,
    })
}

impl Gateway {
    /// Returns when all has ended after a shutdown, or at the first failure.
    ///
    /// # Errors
    /// [`Error::Superseded`] and [`Error::Panicked`].
    pub async fn join(mut self) -> Result<(), Error> {
        loop {
            tokio::select! {
                ended = &mut self.mesh => return ended.map_err(Error::Panicked)?,
                ended = self.tasks.join_next() => match ended {
                    Some(ended) => ended.map_err(Error::Panicked)??,
                    None => break,
                },
            }
        }
        let _ = self.stop_mesh.send(true);
        self.mesh.await.map_err(Error::Panicked)?
    }
}
