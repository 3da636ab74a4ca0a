//! The cluster node: owns shards of channels.
//!
//! `core` decides; the modules marked as shells act: `ingress` takes requests
//! from the bus to the workers, `worker` drives the shards, `egress` sends
//! replies and links. [`start`] puts them together.

mod addresses;
pub mod core;
#[expect(clippy::disallowed_methods, reason = "shell: owns the clock of gossip")]
mod gossip;
mod metrics;
#[expect(clippy::disallowed_methods, reason = "shell: connects and answers")]
mod peers;
mod raft;

#[expect(
    clippy::disallowed_methods,
    reason = "shell: owns the clock of links and beats"
)]
mod egress;
mod ingress;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: waits for other nodes, mints ids"
)]
mod membership;
#[expect(clippy::disallowed_methods, reason = "shell: owns the clock of shards")]
mod worker;

use std::sync::Arc;

use proto::bus::BusHandle;
use proto::namespace::Namespaces;
use proto::shard::ShardMap;
use proto::subject::{Address, ClusterName, Subject};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

pub use membership::{Membership, MembershipConfig, MembershipError};
pub use metrics::{ClusterMetrics, Metrics};
pub use peers::tls::TlsError;
use proto::id::NodeRef;
pub use raft::store::StoreError;

/// What a node is told before it starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster's name on the bus.
    pub cluster: ClusterName,
    /// This node, in this life.
    pub node: NodeRef,
    /// Who owns what.
    pub map: ShardMap,
    /// What channels keep.
    pub namespaces: Namespaces,
    /// Tasks that share the shards; shard n is served by worker n modulo this.
    pub workers: usize,
}

/// What a node's mesh side follows of the cluster.
#[derive(Debug, Clone)]
pub struct View {
    /// Who owns what; version 0 and no rows until the cluster has a map.
    pub map: watch::Receiver<Arc<ShardMap>>,
    /// Members, for those who look inside.
    pub members: watch::Receiver<Arc<Vec<proto::message::NodeInfo>>>,
    /// Whether this node leads: the leader pushes map changes to gateways.
    pub leads: watch::Receiver<bool>,
}

/// Why a node stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not listen on the bus.
    #[error("node {node} could not subscribe to {subject} on the bus: {error}")]
    Subscribe {
        /// The node.
        node: proto::id::NodeId,
        /// What it wanted to hear.
        subject: Subject,
        /// What the bus said.
        error: proto::bus::Error,
    },
    /// One of its tasks panicked: a bug. Its shards are not served any more, so
    /// the node ends.
    #[error("a task of the node panicked: {0}")]
    Panicked(tokio::task::JoinError),
}

/// A node that is running.
#[derive(Debug)]
pub struct Node {
    tasks: JoinSet<()>,
}

/// Starts a node. It serves until `shutdown` turns true.
///
/// # Errors
/// [`Error::Subscribe`].
pub async fn start(
    config: Config,
    bus: BusHandle,
    metrics: Arc<Metrics>,
    shutdown: watch::Receiver<bool>,
) -> Result<Node, Error> {
    let subject = Subject {
        cluster: config.cluster.clone(),
        address: Address::Node(config.node.id.clone()),
    };
    let subscription = bus
        .subscribe(subject.clone())
        .await
        .map_err(|error| Error::Subscribe {
            node: config.node.id.clone(),
            subject,
            error,
        })?;
    let config = Arc::new(config);
    let mut tasks = JoinSet::new();
    let (out, effects) = mpsc::channel(egress::MAILBOX);
    tasks.spawn(egress::run(
        Arc::clone(&config),
        bus,
        effects,
        Arc::clone(&metrics),
        shutdown.clone(),
    ));
    let mailboxes = (0..config.workers.max(1))
        .map(|index| {
            let (mailbox, requests) = mpsc::channel(worker::MAILBOX);
            let worker = worker::Worker::new(&config, index, Arc::clone(&metrics));
            tasks.spawn(worker.run(requests, out.clone(), shutdown.clone()));
            mailbox
        })
        .collect();
    tasks.spawn(ingress::run(
        Arc::clone(&config),
        subscription,
        mailboxes,
        out,
        metrics,
        shutdown,
    ));
    tracing::info!(node = %config.node.id, shards = config.map.rows.len(), "node serves");
    Ok(Node { tasks })
}

impl Node {
    /// Returns when all tasks have ended after a shutdown, or at the first
    /// panic.
    ///
    /// # Errors
    /// [`Error::Panicked`].
    pub async fn join(mut self) -> Result<(), Error> {
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(Error::Panicked)?;
        }
        Ok(())
    }
}
