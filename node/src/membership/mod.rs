//! Shell: a node's place in the cluster. Opens the data directory, listens to
//! other nodes, comes into a cluster, registers, and then follows what is
//! agreed; leads, when it is this node's turn.

mod drain;
mod host;
mod join;
mod keep;
mod lead;
mod leases;
mod recover;
mod shown;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::id::{ClusterUuid, NodeId, NodeRef};
use proto::inspection::{Answer, Question};
use proto::shard::{ShardMap, Sharding};
use proto::subject::ClusterName;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use crate::View;
use crate::agreement::{Agreement, Known};
use crate::checkpoint::Checkpoint;
use crate::core::agreed::Agreed;
use crate::core::checkpoint::{Claims, claims};
use crate::core::cluster::{Cluster, Command, Outcome, RaftId, Registration};
use crate::core::gossip::{News, Rumours};
use crate::gossip::Gossip;
use crate::metrics::ClusterMetrics;
use crate::peers::Peers;
use crate::peers::tls::{Tls, TlsError};
use crate::raft::store::{Store, StoreError};
use crate::raft::{Consensus, Standing};
pub use drain::NotDecided;
pub(crate) use host::Host;
pub use recover::{Recovery, RecoveryError};
use shown::Shown;

/// How often a node looks whether there is something to do, besides when it is
/// told.
const TICK: Duration = Duration::from_millis(50);
/// How often a node that waits says why.
const COMPLAIN: Duration = Duration::from_secs(5);
/// Datagrams of gossip that may wait; more are lost.
const DATAGRAMS: usize = 1_024;

/// What the data directory says of the node.
const IDENTITY: &str = "identity";
/// See [`reset_key`].
const RESET_KEY: &str = "reset-key";

/// What a node is told about its cluster.
#[derive(Debug, Clone)]
pub struct MembershipConfig {
    /// The cluster's name.
    pub cluster: ClusterName,
    /// The node's name.
    pub name: NodeId,
    /// Its data directory.
    pub data: PathBuf,
    /// Where it listens to other nodes.
    pub quic: SocketAddr,
    /// Where they reach it; `None`: where it listens.
    pub advertise: Option<String>,
    /// Where other nodes are: `HOST:PORT`.
    pub join: Vec<String>,
    /// Found a cluster with this many fresh nodes, if there is none to join.
    pub bootstrap_expect: Option<u16>,
    /// Where the node stands; nodes of one zone may fail together.
    pub zone: String,
    /// Votes, owns nothing.
    pub witness: bool,
    /// The directory with `ca.crt`, `NAME.crt` and `NAME.key`.
    pub certs: PathBuf,
    /// The version of the program, told to others.
    pub version: &'static str,
}

/// Why a node is in no cluster, or not any more.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MembershipError {
    /// Of the data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Of the certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The data directory is another node's.
    #[error(
        "the data directory {data} belongs to {found}, but this node was started as {wanted}: start it under its old names, or with another --data"
    )]
    OtherNode {
        /// The directory.
        data: String,
        /// Whose it is.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// The address is taken, or not this machine's.
    #[error("could not listen on {address} (UDP): {problem}; choose another address with --quic")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        problem: String,
    },
    /// The other nodes do not take it.
    #[error("{0}")]
    Refused(String),
    /// Agreement has failed on this node; it cannot vote any more.
    #[error(
        "this node cannot take part in decisions any more: {0}; it ends, so that it does not harm the others"
    )]
    Failed(String),
}

/// Kept in the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    raft_id: RaftId,
    name: NodeId,
    cluster: ClusterName,
}

/// How far a node has come.
#[derive(Debug, Clone)]
enum Phase {
    /// Not registered yet; why, if something holds it up.
    Starting(String),
    /// A member, in this life.
    Registered(NodeRef),
    Failed(MembershipError),
}

/// A node's place in the cluster.
#[derive(Debug)]
pub struct Membership {
    /// Where other nodes reach it: the port is known now.
    pub address: String,
    /// What is agreed, for the node's mesh side.
    pub view: View,
    phase: watch::Receiver<Phase>,
    has_leader: watch::Receiver<bool>,
    host: Arc<Host>,
    checkpoint: Mutex<Checkpoint>,
    ended: watch::Receiver<bool>,
}

impl Membership {
    /// Opens the data directory and listens. The rest goes on by itself:
    /// [`Self::registered`] says when the node is a member.
    ///
    /// # Errors
    /// All of [`MembershipError`] that can be known at once: a damaged data
    /// directory, certificates that cannot be used, an address that is taken.
    pub fn open(
        config: MembershipConfig,
        metrics: Arc<ClusterMetrics>,
        shutdown: watch::Receiver<bool>,
    ) -> Result<Self, MembershipError> {
        let tls = Tls::load(&config.certs, &config.name)?;
        let store = Store::open(&config.data)?;
        let identity = identity(&store, &config)?;
        let reset_key = reset_key(&store)?;
        let host = Arc::new(Host::new(config.clone(), identity, store, metrics)?);
        let (datagrams, heard) = mpsc::channel(DATAGRAMS);
        let node = Arc::clone(&host) as _;
        let peers = Peers::bind(config.quic, tls, &reset_key, node, datagrams);
        let peers = peers.map_err(|error| MembershipError::Listen {
            address: config.quic,
            problem: error.to_string(),
        })?;
        let bound = peers.local_address().unwrap_or(config.quic);
        let address = match &config.advertise {
            // Port 0 took any; the others must know which.
            Some(advertise) => match advertise.strip_suffix(":0") {
                Some(name) => format!("{name}:{}", bound.port()),
                None => advertise.clone(),
            },
            None => bound.to_string(),
        };
        host.listen(address.clone(), peers.clone());
        let nobody = ShardMap::unassigned(ClusterUuid(0), Sharding { seed: 0, count: 0 });
        let nobody = Arc::new(nobody);
        let (known, known_seen) = watch::channel(Known {
            cluster: Arc::default(),
            agreed: Arc::new(Agreed::alone(Arc::clone(&nobody))),
            applied: 0,
            voters: BTreeSet::new(),
            given_up: BTreeSet::new(),
            targets: Arc::default(),
        });
        let (map, map_seen) = watch::channel(nobody);
        let (members, members_seen) = watch::channel(Arc::default());
        let (leads, leads_seen) = watch::channel(false);
        let (events, events_seen) = watch::channel(Arc::default());
        let (has_leader, has_leader_seen) = watch::channel(false);
        let (phase, phase_seen) = watch::channel(Phase::Starting("it has just begun".into()));
        let shown = Shown {
            known,
            map,
            members,
            leads,
            events,
            has_leader,
            phase,
        };
        let (end, ended) = watch::channel(false);
        let checkpoint = keep::open(&host);
        let driver = Driver {
            claims: claims(&checkpoint.shards),
            host: Arc::clone(&host),
            peers,
            shown,
        };
        tokio::spawn(async move {
            driver.run(heard, shutdown).await;
            end.send_replace(true);
        });
        Ok(Self {
            address,
            view: View {
                map: map_seen,
                members: members_seen,
                leads: leads_seen,
                events: events_seen,
                agreement: Some(Agreement {
                    known: known_seen,
                    host: Arc::clone(&host),
                }),
            },
            phase: phase_seen,
            has_leader: has_leader_seen,
            host,
            checkpoint: Mutex::new(checkpoint),
            ended,
        })
    }

    /// Waits until the node is a member of a cluster. The life that it lives
    /// there.
    ///
    /// # Errors
    /// [`MembershipError`]: it never will be.
    pub async fn registered(&self) -> Result<NodeRef, MembershipError> {
        let mut phase = self.phase.clone();
        loop {
            match &*phase.borrow_and_update() {
                Phase::Registered(node) => return Ok(node.clone()),
                Phase::Failed(error) => return Err(error.clone()),
                Phase::Starting(_) => {}
            }
            if phase.changed().await.is_err() {
                return Err(MembershipError::Failed("it was ended".into()));
            }
        }
    }

    /// Waits until the node cannot go on.
    pub async fn failed(&self) -> MembershipError {
        let mut phase = self.phase.clone();
        loop {
            if let Phase::Failed(error) = &*phase.borrow_and_update() {
                return error.clone();
            }
            if phase.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether the node is registered and knows a leader; if not, why.
    ///
    /// # Errors
    /// A reason for people.
    pub fn readiness(&self) -> Result<(), String> {
        match &*self.phase.borrow() {
            Phase::Starting(why) => return Err(why.clone()),
            Phase::Failed(error) => return Err(error.to_string()),
            Phase::Registered(_) => {}
        }
        if *self.has_leader.borrow() {
            Ok(())
        } else {
            Err("it knows no leader: a majority of the voters cannot be reached".into())
        }
    }

    /// Who answers questions that other nodes pass on.
    pub fn answer_with(
        &self,
        answer: impl Fn(Question) -> futures_util::future::BoxFuture<'static, Answer>
        + Send
        + Sync
        + 'static,
    ) {
        self.host.answer_with(Arc::new(answer));
    }

    /// Asks another member.
    pub async fn ask(&self, node: &NodeId, question: Question) -> Answer {
        self.host.ask(node, question).await
    }

    /// Returns when everything has ended after a shutdown.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // An error means that it has ended, too.
        let _ = ended.wait_for(|ended| *ended).await;
    }
}

/// The node's identity: from its data directory, or new. A directory that no
/// cluster knows of, because a name was mistyped at first, is as good as empty.
fn identity(store: &Store, config: &MembershipConfig) -> Result<Identity, MembershipError> {
    if let Some(identity) = store.get::<Identity>(IDENTITY)? {
        let is_same = identity.name == config.name && identity.cluster == config.cluster;
        if !is_same && host::is_bound(store)? {
            return Err(MembershipError::OtherNode {
                data: config.data.display().to_string(),
                found: format!("node {} of cluster {}", identity.name, identity.cluster),
                wanted: format!("node {} of cluster {}", config.name, config.cluster),
            });
        }
        if is_same {
            return Ok(identity);
        }
    }
    let identity = Identity {
        raft_id: host::random(),
        name: config.name.clone(),
        cluster: config.cluster.clone(),
    };
    store.put(IDENTITY, &identity)?;
    Ok(identity)
}

/// With what the node signs that connections of an earlier process have ended.
fn reset_key(store: &Store) -> Result<[u8; 32], MembershipError> {
    if let Some(key) = store.get(RESET_KEY)? {
        return Ok(key);
    }
    let mut key = [0; 32];
    for part in key.chunks_mut(8) {
        part.copy_from_slice(&host::random().to_le_bytes());
    }
    store.put(RESET_KEY, &key)?;
    Ok(key)
}

/// The task that takes a node through its life.
struct Driver {
    /// What it has kept.
    claims: Claims,
    host: Arc<Host>,
    peers: Peers,
    shown: Shown,
}

impl Driver {
    async fn run(
        self,
        datagrams: mpsc::Receiver<crate::peers::Datagram>,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let mut stopped = shutdown.clone();
        let lived = tokio::select! {
            lived = self.live(datagrams, shutdown.clone()) => lived,
            _ = shutdown.wait_for(|stop| *stop) => Ok(()),
        };
        if let Err(error) = lived {
            self.shown.phase.send_replace(Phase::Failed(error));
            // Until whoever started the node has heard of it.
            let _ = stopped.wait_for(|stop| *stop).await;
        }
        if let Some(consensus) = self.host.end() {
            consensus.shutdown().await;
        }
        self.peers.close().await;
    }

    async fn live(
        &self,
        datagrams: mpsc::Receiver<crate::peers::Datagram>,
        shutdown: watch::Receiver<bool>,
    ) -> Result<(), MembershipError> {
        let consensus = join::enter(&self.host, &self.peers, |why| self.wait_for(why)).await?;
        // Beside each other: a founder has to lead before anyone can register,
        // and what it does as the leader is not to be broken off then.
        tokio::select! {
            failed = self.follow(&consensus) => Err(failed),
            failed = self.begin(&consensus, datagrams, shutdown) => Err(failed),
        }
    }

    /// Registers the node, and begins what a member does. Returns only when it
    /// cannot.
    async fn begin(
        &self,
        consensus: &Consensus,
        datagrams: mpsc::Receiver<crate::peers::Datagram>,
        shutdown: watch::Receiver<bool>,
    ) -> MembershipError {
        let node = match self.register(consensus).await {
            Ok(node) => node,
            Err(error) => return error,
        };
        tracing::info!(node = %node.id, incarnation = node.incarnation.0, "registered");
        self.spawn_gossip(datagrams, &node, shutdown);
        self.shown.phase.send_replace(Phase::Registered(node));
        std::future::pending().await
    }

    fn wait_for(&self, why: String) {
        self.shown.phase.send_if_modified(|phase| match phase {
            Phase::Starting(known) if *known == why => false,
            _ => {
                *phase = Phase::Starting(why);
                true
            }
        });
    }

    /// Tells the cluster that this node has started, until it is agreed.
    async fn register(&self, consensus: &Consensus) -> Result<NodeRef, MembershipError> {
        let registration = Registration {
            kept: self.claims.clone(),
            ..self.host.registration()
        };
        let name = registration.name.clone();
        let mut complained = tokio::time::Instant::now();
        let incarnation = loop {
            let command = Command::Register(registration.clone());
            match self.host.propose(consensus, command).await {
                Ok(Outcome::Registered(incarnation)) => break incarnation,
                Ok(Outcome::Refused(why)) => return Err(MembershipError::Refused(why)),
                Ok(Outcome::Done) => {}
                Err(why) => {
                    self.wait_for(format!("it is not registered yet: {why}"));
                    if complained.elapsed() >= COMPLAIN {
                        complained = tokio::time::Instant::now();
                        tracing::warn!(%why, "not registered yet; trying on");
                    }
                }
            }
            tokio::time::sleep(TICK / 2).await;
        };
        self.wait_for("it is registered, and has not all that was decided yet".into());
        // Shown, not only decided: from here on others ask what is shown.
        let mut known = self.shown.known.subscribe();
        let here = |known: &Known| {
            let member = known.cluster.members().get(&name);
            known.cluster.founding().is_some()
                && member.is_some_and(|member| member.incarnation >= incarnation)
        };
        if known.wait_for(here).await.is_err() {
            return Err(MembershipError::Failed("agreement has ended".into()));
        }
        Ok(NodeRef {
            id: name,
            incarnation,
        })
    }

    fn spawn_gossip(
        &self,
        datagrams: mpsc::Receiver<crate::peers::Datagram>,
        node: &NodeRef,
        shutdown: watch::Receiver<bool>,
    ) {
        let registration = self.host.registration();
        let news = News {
            raft_id: registration.raft_id,
            incarnation: node.incarnation,
            edition: 0,
            name: node.id.clone(),
            address: registration.address,
            zone: registration.zone,
            version: self.host.config.version.to_owned(),
            shards: 0,
        };
        let gossip = Gossip {
            peers: self.peers.clone(),
            addresses: self.host.addresses.clone(),
            datagrams,
            news: self.host.begin_news(news),
            members: self.host.gossip_members.subscribe(),
            rumours: self.host.rumours.clone(),
            metrics: self.host.metrics.gossiping.clone(),
            seed: host::random(),
        };
        tokio::spawn(gossip.run(shutdown));
    }

    /// Follows what is agreed, and leads when it is this node's turn. Returns
    /// only when the node cannot go on.
    async fn follow(&self, consensus: &Consensus) -> MembershipError {
        tokio::select! {
            failed = self.watch(consensus) => failed,
            // Beside the rest: without a majority a decision takes until there
            // is one again.
            never = self.lead(consensus) => match never {},
            never = self.host.leases.grant(consensus) => match never {},
            failed = join::look_for_others(&self.host, &self.peers, consensus) => failed,
        }
    }

    /// Shows what is agreed.
    async fn watch(&self, consensus: &Consensus) -> MembershipError {
        let mut cluster = consensus.cluster();
        let mut rumours = self.host.rumours.subscribe();
        let mut tick = ticks();
        let mut shown = None;
        loop {
            let standing = consensus.standing();
            if let Some(failure) = &standing.failure {
                return MembershipError::Failed(failure.clone());
            }
            let agreed = Arc::clone(&cluster.borrow_and_update());
            self.host.observe(&agreed);
            // Here, where nothing is waited for: what a deaf leader has proposed may
            // never be decided.
            consensus.mute(self.host.is_deaf(&agreed, &standing));
            let sight = Sight {
                cluster: Arc::clone(&agreed),
                standing,
                rumours: Arc::clone(&rumours.borrow_and_update()),
                is_registered: matches!(*self.shown.phase.borrow(), Phase::Registered(_)),
            };
            // Looking at every shard is not for every tick.
            if shown.as_ref() != Some(&sight) {
                self.show(&sight);
                shown = Some(sight);
            }
            if let Phase::Registered(node) = &*self.shown.phase.borrow()
                && let Err(why) = agreed.check_life(self.host.raft_id(), node)
            {
                return MembershipError::Refused(why);
            }
            tokio::select! {
                changed = cluster.changed() => {
                    if changed.is_err() {
                        return MembershipError::Failed(consensus.why_ended().await);
                    }
                }
                _ = rumours.changed() => {}
                _ = tick.tick() => {}
            }
        }
    }

    async fn lead(&self, consensus: &Consensus) -> std::convert::Infallible {
        let mut cluster = consensus.cluster();
        let mut tick = ticks();
        let mut leader = lead::Leader::new(Arc::clone(&self.host));
        loop {
            let standing = consensus.standing();
            let agreed = Arc::clone(&cluster.borrow_and_update());
            if standing.leads && !consensus.is_muted() {
                let targets = Arc::clone(&self.shown.known.borrow().targets);
                leader.lead(consensus, &agreed, &targets, &standing).await;
            }
            tokio::select! {
                Ok(()) = cluster.changed() => {}
                _ = tick.tick() => {}
            }
        }
    }

    fn show(&self, sight: &Sight) {
        let Sight {
            cluster,
            standing,
            rumours,
            ..
        } = sight;
        let members = cluster.members().values().map(|m| &m.registration);
        let members = members.map(|member| (member.raft_id, member.address.as_str()));
        self.host.addresses.set_members(members);
        self.host.tell_news(cluster);
        self.shown.show(cluster, standing, rumours);
        let targets = Arc::clone(&self.shown.known.borrow().targets);
        self.host
            .metrics
            .observe(cluster, &targets, standing, rumours);
    }
}

/// All that [`Driver::show`] goes by.
#[derive(PartialEq, Eq)]
struct Sight {
    cluster: Arc<Cluster>,
    standing: Standing,
    rumours: Arc<Rumours>,
    is_registered: bool,
}

fn ticks() -> tokio::time::Interval {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tick
}
