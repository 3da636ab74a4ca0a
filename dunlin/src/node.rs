//! `dunlin node`: a member of the cluster. It finds the others first, and
//! serves shards once it is registered.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use node::core::checkpoint::ShardCheckpoint;
use node::{Membership, MembershipConfig, MembershipError, NotDecided};
use prometheus::Registry;
use proto::bus::BusHandle;
use proto::id::{NodeId, NodeRef};
use proto::inspection::{Answer, Question};
use serde_json::json;
use tokio::sync::{mpsc, watch};

use crate::admin::tokens::Tokens;
use crate::admin::{Admin, Inspect, Nodes, Readiness};
use crate::cli::server::NodeOptions;
use crate::config::{self, Node};
use crate::exit::{Exit, Failure};
use crate::gateway::connect;
use crate::process::{self, Signals, telling};
use crate::telemetry::Exporter;

pub(crate) fn run(options: &NodeOptions) -> Result<(), Failure> {
    let config = Node::resolve(options)?;
    let threads = config::workers(0);
    process::run(&config.server.clone(), threads, |tokens| {
        serve(config, tokens)
    })
}

async fn serve(config: Node, tokens: Option<Arc<Tokens>>) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let (stop, shutdown) = watch::channel(false);
    let (stop_membership, membership_shutdown) = watch::channel(false);
    let bug = |error: prometheus::Error| Exit::Software.with(error);
    let bus = connect(&config.bus, format!("node {}", config.name)).await?;
    let registry = Registry::new();
    let metrics = Arc::new(node::Metrics::register(&registry, bus.name()).map_err(bug)?);
    let cluster_metrics = Arc::new(node::ClusterMetrics::register(&registry).map_err(bug)?);
    let exporter = Arc::new(Exporter::new(vec![registry], Arc::clone(&bus)).map_err(bug)?);
    let (admin_listener, admin_address) = process::bind_admin(config.server.admin).await?;
    let membership = Membership::open(
        membership_config(&config),
        cluster_metrics,
        membership_shutdown,
    );
    let membership = Arc::new(membership.map_err(failed)?);
    process::greet(&format!(
        "Dunlin {}: node {} of cluster {}.\n\n  quic      {}\n  admin     http://{admin_address}\n",
        env!("CARGO_PKG_VERSION"),
        config.name,
        config.bus.cluster,
        membership.address,
    ));
    let inside = Inside {
        membership: Arc::clone(&membership),
        node: Arc::default(),
        drains: Arc::default(),
    };
    let admin = Admin {
        tokens,
        exporter,
        ready: readiness(&inside, Arc::clone(&bus), shutdown.clone()),
        status: json!({
            "version": env!("CARGO_PKG_VERSION"),
            "commit": env!("DUNLIN_COMMIT"),
            "mode": "node",
            "name": config.name.as_str(),
            "cluster_name": config.bus.cluster.as_str(),
            "bus": config.bus.bus.to_string(),
            "quic": membership.address,
        }),
        inspector: Arc::new(inside.clone()),
        nodes: Some(Arc::new(inside.clone())),
        leave: None,
    };
    let admin = tokio::spawn(admin.run(admin_listener, shutdown.clone()));
    let lived = tokio::select! {
        () = signals.next() => Ok(None),
        registered = membership.registered() => registered.map(Some),
    };
    let (ended, mut first_ended) = mpsc::channel::<()>(1);
    let mut running = None;
    let lived = match lived {
        Ok(None) => Ok(true),
        Err(error) => Err(failed(error)),
        Ok(Some(me)) => {
            let node_config = node::Config {
                cluster: config.bus.cluster.clone(),
                node: me.clone(),
                namespaces: config.namespaces(),
                workers: config::workers(config.workers),
            };
            let view = membership.view.clone();
            let kept = membership.take_checkpoint();
            match node::start(node_config, view, kept, bus, metrics, shutdown).await {
                Err(error) => Err(Exit::Unavailable.with(error)),
                Ok(node) => {
                    inside.serve(node.inspector.clone());
                    let workers = node.workers.clone();
                    running = Some(tokio::spawn(telling(node.join(), ended)));
                    let lived = tokio::select! {
                        by_signal = signals.or_first_end(&mut first_ended) => Ok(by_signal),
                        error = membership.failed() => Err(failed(error)),
                    };
                    if matches!(lived, Ok(true)) {
                        inside
                            .drain(&me, config.drain_timeout(), &mut signals)
                            .await;
                        tokio::select! {
                            () = async { inside.keep(workers.rest().await).await } => {}
                            () = signals.next() => tracing::error!(
                                "told to end again: shards that nobody else has are not kept"
                            ),
                        }
                    }
                    lived
                }
            }
        }
    };
    tracing::info!("shutting down");
    let _ = stop.send(true);
    let by_signal = lived.as_ref().is_ok_and(|by_signal| *by_signal);
    let rest = async {
        let ended = match running {
            Some(node) => node.await,
            None => Ok(Ok(())),
        };
        // Last: the others should hear of the end when it is the end.
        let _ = stop_membership.send(true);
        let _ = admin.await;
        membership.ended().await;
        lived?;
        let ended = ended.map_err(|error| Exit::Software.with(error))?;
        ended.map_err(|error| match error {
            node::Error::Panicked(_) => Exit::Software.with(error),
            _ => Exit::Unavailable.with(error),
        })
    };
    signals.end(by_signal, rest).await
}

fn membership_config(config: &Node) -> MembershipConfig {
    MembershipConfig {
        cluster: config.bus.cluster.clone(),
        name: config.name.clone(),
        data: config.data.clone(),
        quic: config.quic,
        advertise: config.quic_advertise.as_ref().map(ToString::to_string),
        join: config.join.iter().map(ToString::to_string).collect(),
        bootstrap_expect: config.bootstrap_expect.map(u16::from),
        zone: config.zone.clone(),
        witness: config.witness,
        certs: config.certs.clone(),
        version: env!("CARGO_PKG_VERSION"),
    }
}

/// Who knows what is inside a node: it itself, and for other nodes' channels
/// their owners.
#[derive(Clone)]
struct Inside {
    membership: Arc<Membership>,
    /// Once it serves.
    node: Arc<OnceLock<node::Inspector>>,
    /// Once it was told to end.
    drains: Arc<AtomicBool>,
}

impl Inside {
    /// The node serves: it can be asked, by other nodes too.
    fn serve(&self, inspector: node::Inspector) {
        let _ = self.node.set(inspector.clone());
        self.membership.answer_with(move |question| {
            let inspector = inspector.clone();
            Box::pin(async move { inspector.ask(question).await })
        });
    }

    /// What nobody else has, the node has again when it starts.
    async fn keep(&self, shards: Vec<ShardCheckpoint>) {
        if let Err(why) = self.membership.keep(shards).await {
            tracing::error!(%why, "shards that nobody else has are not kept: their channels begin anew, and their followers are told so");
        }
    }

    /// The node was told to end. What it has goes to others first, unless that
    /// takes too long, or it is told so again.
    async fn drain(&self, me: &NodeRef, patience: Duration, signals: &mut Signals) {
        self.drains.store(true, Ordering::Relaxed);
        if patience.is_zero() {
            return;
        }
        tokio::select! {
            drained = tokio::time::timeout(patience, self.membership.drain(me)) => match drained {
                Ok(()) => tracing::info!("this node has nothing left that others could have"),
                Err(_) => tracing::warn!(
                    seconds = patience.as_secs(),
                    "not all shards have gone to other nodes in time; they are taken over now"
                ),
            },
            () = signals.next() => tracing::warn!("told to end again; shards that are left are taken over"),
            // Then there is nothing to wait for.
            _ = self.membership.failed() => {}
        }
    }
}

impl Nodes for Inside {
    fn drain(&self, name: NodeId) -> BoxFuture<'_, Result<NodeRef, NotDecided>> {
        Box::pin(async move { self.membership.drain_member(&name).await })
    }

    fn remove(&self, name: NodeId) -> BoxFuture<'_, Result<NodeRef, NotDecided>> {
        Box::pin(async move { self.membership.remove_member(&name).await })
    }
}

impl Inspect for Inside {
    fn ask(&self, question: Question) -> BoxFuture<'_, Answer> {
        Box::pin(async move {
            let Some(node) = self.node.get() else {
                let why = self.membership.readiness().err();
                return Answer::Unavailable(why.unwrap_or_else(|| "it has just begun".into()));
            };
            match node.ask(question.clone()).await {
                Answer::NotOwner { owner } => self.membership.ask(&owner.id, question).await,
                answer => answer,
            }
        })
    }
}

/// A node is ready when it has the bus, knows a leader and serves.
fn readiness(inside: &Inside, bus: BusHandle, shutdown: watch::Receiver<bool>) -> Readiness {
    let inside = inside.clone();
    Arc::new(move || {
        if *shutdown.borrow() {
            return Err("shutting down".into());
        }
        if !bus.stats().connected {
            return Err("the bus is away".into());
        }
        inside.membership.readiness()?;
        if inside.drains.load(Ordering::Relaxed) {
            return Err("it gives its shards to other nodes, and ends".into());
        }
        match inside.node.get() {
            Some(_) => Ok(()),
            None => Err("it has just registered".into()),
        }
    })
}

/// Why a node ended, and the exit code for it.
fn failed(error: MembershipError) -> Failure {
    let exit = match error {
        MembershipError::Listen { .. } | MembershipError::Store(_) | MembershipError::Failed(_) => {
            Exit::Io
        }
        MembershipError::Tls(_)
        | MembershipError::OtherNode { .. }
        | MembershipError::Refused(_) => Exit::Config,
    };
    exit.with(error)
}
