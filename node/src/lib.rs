//! The cluster node: owns shards of channels.
//!
//! `core` decides; the modules marked as shells act: `ingress` takes what comes
//! from the bus to the workers, `worker` drives the shards, `egress` sends
//! replies and links. [`start`] puts them together; a [`View`] of the cluster
//! tells them what to serve.
//!
//! The other half is a node's place in the cluster, [`Membership`]: `membership`
//! joins, registers and leads, over `raft`, `peers` and `gossip`, as
//! `core::{cluster, formation, placement, gossip}` decide.

mod addresses;
mod agreement;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: owns the clock of signs of life"
)]
mod beats;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: reads the wall clock and files"
)]
mod checkpoint;
pub mod core;
#[expect(clippy::disallowed_methods, reason = "shell: owns the clock of gossip")]
mod gossip;
mod metrics;
#[expect(clippy::disallowed_methods, reason = "shell: connects and answers")]
mod peers;
mod raft;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: owns the clock of leases and replicas"
)]
mod replicator;
mod view;

#[expect(
    clippy::disallowed_methods,
    reason = "shell: owns the clock of links and beats"
)]
mod egress;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: owns the clock of gateways and neighbours"
)]
mod ingress;
mod inspect;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: waits for other nodes, mints ids"
)]
mod membership;
#[expect(clippy::disallowed_methods, reason = "shell: owns the clock of shards")]
mod worker;

use std::sync::Arc;
use std::time::Duration;

use proto::bus::BusHandle;
use proto::id::{Incarnation, NodeId, NodeRef};
use proto::namespace::Namespaces;
use proto::shard::ShardMap;
use proto::subject::{Address, ClusterName, Subject};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::beats::{Beats, Turned};
use crate::core::agreed::Agreed;
use crate::core::checkpoint::ShardCheckpoint;
use crate::core::gateways::Silence;
use crate::core::shards::Part;
use crate::replicator::{Duty, FromShard, Replicator};
pub use agreement::Agreement;
pub use checkpoint::Checkpoint;
pub use inspect::Inspector;
pub use membership::{
    Membership, MembershipConfig, MembershipError, NotDecided, Recovery, RecoveryError,
};
pub use metrics::{ClusterMetrics, Metrics};
pub use peers::tls::TlsError;
pub use raft::store::StoreError;
pub use view::View;

/// What a node is told before it starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster's name on the bus.
    pub cluster: ClusterName,
    /// This node, in this life.
    pub node: NodeRef,
    /// What channels keep.
    pub namespaces: Namespaces,
    /// Tasks that share the shards; shard n is served by worker n modulo this.
    pub workers: usize,
}

/// Why a node stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not listen on the bus.
    #[error("node {node} could not subscribe to {subject} on the bus: {error}")]
    Subscribe {
        /// The node.
        node: NodeId,
        /// What it wanted to hear.
        subject: Subject,
        /// What the bus said.
        error: proto::bus::Error,
    },
    /// A later life of this node has been heard of. Its shards are served there.
    #[error(
        "another process has started as node {node}, so this one has been replaced (its incarnation is {})",
        newer.0
    )]
    Superseded {
        /// The node.
        node: NodeId,
        /// The other one's.
        newer: Incarnation,
    },
    /// The system does not give it what it needs.
    #[error("node {node} could not begin to beat: {problem}; raise the limit of threads")]
    Thread {
        /// The node.
        node: NodeId,
        /// What the system said.
        problem: String,
    },
    /// One of its tasks panicked: a bug. Its shards are not served any more, so
    /// the node ends.
    #[error("a task of the node panicked: {0}")]
    Panicked(tokio::task::JoinError),
}

/// A node that is running.
#[derive(Debug)]
pub struct Node {
    /// Tells what it knows.
    pub inspector: Inspector,
    /// Those who own its shards.
    pub workers: Workers,
    tasks: JoinSet<Result<(), Error>>,
}

/// How long a task may take to say what it had: far longer than the largest takes
/// to be copied.
const REST: Duration = Duration::from_secs(10);

/// How the tasks that own shards are told to stop.
#[derive(Debug, Clone)]
pub struct Workers {
    mailboxes: Vec<mpsc::Sender<worker::Mail>>,
    to_standbys: Option<mpsc::Sender<Vec<FromShard>>>,
    leaves: watch::Sender<bool>,
}

impl Workers {
    /// Says that the node leaves, so that it is given nothing more, and has them
    /// serve nothing any more. What they served until then, or were about to, for
    /// [`Membership::keep`].
    pub async fn rest(&self) -> Vec<ShardCheckpoint> {
        self.leaves.send_replace(true);
        let mut kept = Vec::new();
        let mut lost = 0;
        // First: what it has let begin gets to the workers before this does.
        if let Some(to_standbys) = &self.to_standbys {
            let ask = |answer| vec![FromShard::Rest(answer)];
            match rested(to_standbys, ask).await {
                Some(coming) => kept.extend(coming),
                None => lost += 1,
            }
        }
        for mailbox in &self.mailboxes {
            match rested(mailbox, worker::Mail::Rest).await {
                Some(served) => kept.extend(served),
                None => lost += 1,
            }
        }
        if lost > 0 {
            tracing::error!(
                tasks = lost,
                "tasks have ended before, or stand still: what they had is not kept"
            );
        }
        kept
    }
}

/// What a task had that is told to rest; `None`: it does not say.
async fn rested<T>(
    mailbox: &mpsc::Sender<T>,
    ask: impl FnOnce(oneshot::Sender<Vec<ShardCheckpoint>>) -> T,
) -> Option<Vec<ShardCheckpoint>> {
    let (answer, answered) = oneshot::channel();
    let asking = async {
        mailbox.send(ask(answer)).await.ok()?;
        answered.await.ok()
    };
    tokio::time::timeout(REST, asking).await.ok()?
}

/// Starts a node. It serves what the view says that it owns, until `shutdown`
/// turns true. What it kept when it stopped the last time counts for shards that
/// it was given back for that.
///
/// # Errors
/// [`Error::Subscribe`].
pub async fn start(
    config: Config,
    view: View,
    checkpoint: Checkpoint,
    bus: BusHandle,
    metrics: Arc<Metrics>,
    shutdown: watch::Receiver<bool>,
) -> Result<Node, Error> {
    let (asks, questions) = mpsc::channel(inspect::MAILBOX);
    let ears = ingress::Ears {
        requests: subscribe(&config, &bus, Address::Node(config.node.id.clone())).await?,
        gateway_beats: subscribe(&config, &bus, Address::GatewayBeats).await?,
        node_beats: subscribe(&config, &bus, Address::NodeBeats).await?,
        questions,
    };
    let config = Arc::new(config);
    let namespaces = Arc::new(config.namespaces.clone());
    let mut tasks = JoinSet::new();
    let (out, effects) = mpsc::channel(egress::MAILBOX);
    let of = config.workers.max(1);
    let (pairs, news): (Vec<_>, Vec<_>) = (0..of).map(|_| mpsc::unbounded_channel()).unzip();
    let turned: Vec<Turned> = (0..of).map(|_| Turned::default()).collect();
    let (leaves, has_left) = watch::channel(false);
    let (silence, silences) = watch::channel(None);
    let silence = view.agreement.is_some().then_some(silence);
    let (to_standbys, duty) = if let Some(agreement) = &view.agreement {
        let (replicator, duty) = Replicator::new(
            config.node.clone(),
            Arc::clone(&namespaces),
            agreement.clone(),
            checkpoint,
            pairs,
            Arc::clone(&metrics),
        );
        let (to_standbys, mail) = mpsc::channel(replicator::MAILBOX);
        tasks.spawn(without_failure(replicator.run(mail, shutdown.clone())));
        let beats = Beats {
            me: config.node.clone(),
            agreement: agreement.clone(),
            workers: turned.clone(),
            duty: duty.clone(),
        };
        let beating = beats
            .spawn(shutdown.clone(), has_left)
            .map_err(|error| Error::Thread {
                node: config.node.id.clone(),
                problem: error.to_string(),
            })?;
        let (me, agreement) = (config.node.clone(), agreement.clone());
        tasks.spawn(without_failure(report(
            me,
            agreement,
            silences,
            shutdown.clone(),
        )));
        // The node has not ended before it has said so.
        tasks.spawn_blocking(move || {
            // It panics only by a bug, and then the others see that it is silent.
            let _ = beating.join();
            Ok(())
        });
        (Some(to_standbys), duty)
    } else {
        let mut map = view.map.clone();
        let first = Arc::clone(&map.borrow_and_update());
        let (alone, duty) = watch::channel(Duty::alone(Agreed::alone(first)));
        tasks.spawn(without_failure(follow_map(map, alone, shutdown.clone())));
        (None, duty)
    };
    let mut mailboxes = Vec::new();
    for ((index, turned), news) in turned.into_iter().enumerate().zip(news) {
        let (mailbox, mail) = mpsc::channel(worker::MAILBOX);
        mailboxes.push(mailbox);
        let (duty, namespaces) = (duty.clone(), Arc::clone(&namespaces));
        let part = Part { index, of };
        let worker = worker::Worker::new(&config, part, namespaces, duty, Arc::clone(&metrics));
        let ears = worker::Ears { mail, news, turned };
        let mouths = worker::Mouths {
            out: out.clone(),
            to_standbys: to_standbys.clone(),
        };
        let running = worker.run(ears, mouths, shutdown.clone());
        tasks.spawn(without_failure(running));
    }
    let sending = egress::run(
        Arc::clone(&config),
        view.leads.clone(),
        duty,
        bus,
        egress::Ears {
            mailbox: effects,
            to_standbys: to_standbys.clone(),
        },
        Arc::clone(&metrics),
        shutdown.clone(),
    );
    tasks.spawn(without_failure(sending));
    let node = config.node.id.clone();
    let workers = Workers {
        mailboxes: mailboxes.clone(),
        to_standbys,
        leaves,
    };
    let ingress = ingress::Ingress::new(config, namespaces, view, mailboxes, out, silence, metrics);
    tasks.spawn(ingress.run(ears, shutdown));
    tracing::info!(%node, "node serves what the map gives it");
    let inspector = Inspector::new(asks);
    Ok(Node {
        inspector,
        workers,
        tasks,
    })
}

/// What a node without standbys has to do: what the map says.
async fn follow_map(
    mut map: watch::Receiver<Arc<ShardMap>>,
    duty: watch::Sender<Duty>,
    mut shutdown: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => return,
            () = View::changed(&mut map) => {
                let map = Arc::clone(&map.borrow_and_update());
                duty.send_replace(Duty::alone(Agreed::alone(map)));
            }
        }
    }
}

/// Tells the leader which gateways this node does not hear.
async fn report(
    me: NodeRef,
    agreement: Agreement,
    mut silences: watch::Receiver<Option<Silence>>,
    mut shutdown: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => return,
            () = View::changed(&mut silences) => {}
        }
        let silence = silences.borrow_and_update().clone();
        if let Some(silence) = silence {
            agreement.report(me.clone(), silence).await;
        }
    }
}

async fn without_failure(task: impl Future<Output = ()>) -> Result<(), Error> {
    task.await;
    Ok(())
}

async fn subscribe(
    config: &Config,
    bus: &BusHandle,
    address: Address,
) -> Result<proto::bus::Subscription, Error> {
    let cluster = config.cluster.clone();
    let subject = Subject { cluster, address };
    let subscribed = bus.subscribe(subject.clone()).await;
    subscribed.map_err(|error| Error::Subscribe {
        node: config.node.id.clone(),
        subject,
        error,
    })
}

impl Node {
    /// Returns when all tasks have ended after a shutdown, or at the first
    /// failure; then nothing of it runs any more.
    ///
    /// # Errors
    /// [`Error::Superseded`], [`Error::Panicked`].
    pub async fn join(mut self) -> Result<(), Error> {
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(Error::Panicked)??;
        }
        Ok(())
    }
}
