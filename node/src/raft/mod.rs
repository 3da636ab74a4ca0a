//! Shell: agreement, by `openraft`. The only folder that names it: the rest
//! proposes [`Command`]s and watches the [`Cluster`] that comes of them.

mod log;
mod network;
pub(crate) mod recover;
mod state;
pub(crate) mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{ClientWriteError, RaftError};
use openraft::{Config, Raft, ServerState, SnapshotPolicy};
use proto::id::ClusterUuid;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::addresses::Addresses;
use crate::core::cluster::{Cluster, Command, Outcome, RaftId};
use crate::metrics::RaftMetrics;
use crate::peers::Peers;
use log::Log;
use network::{Network, Rpc};
use state::State;
use store::{Store, StoreError};

openraft::declare_raft_types!(
    pub(super) Types:
        D = Command,
        R = Outcome,
        NodeId = RaftId,
        Node = Peer,
);

type Entry = openraft::Entry<Types>;

/// How often the leader says that it is there, in ms.
const HEARTBEAT_MS: u64 = 50;
/// Silence after which a voter wants to lead itself, in ms: drawn once per
/// start between these.
const ELECTION_MS: (u64, u64) = (150, 300);
/// Silence of a majority after which a leader can decide nothing, in ms.
const QUORUM_SILENCE_MS: u64 = 1_000;
/// Decisions after which a snapshot replaces the log.
const SNAPSHOT_AFTER: u64 = 1_000;

/// Entries of the log that are read to be sent together.
const ENTRIES_MAX: u64 = 64;
/// How long it may take until agreement that ends has said why.
const SAYS_WHY: Duration = Duration::from_secs(1);
/// How long a snapshot may take, in ms.
const SNAPSHOT_MS: u64 = 5_000;

/// What Raft knows of a node besides its id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) address: String,
}

/// What a node can see of the agreement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Who leads, as far as this node knows. It itself only while a majority
    /// answers.
    pub(crate) leader: Option<RaftId>,
    /// Whether this node does.
    pub(crate) leads: bool,
    pub(crate) term: u64,
    pub(crate) voters: BTreeSet<RaftId>,
    /// Who is to vote, if a change of voters was begun and not ended: until it
    /// is, it takes a majority of both the earlier and the later voters.
    pub(crate) unfinished: Option<BTreeSet<RaftId>>,
    /// Voters and learners.
    pub(crate) members: BTreeSet<RaftId>,
    /// On the leader: who has nearly all of the log.
    pub(crate) keep_up: BTreeSet<RaftId>,
    pub(crate) last_log: u64,
    pub(crate) applied: u64,
    /// Agreement has ended on this node; why. It cannot go on.
    pub(crate) failure: Option<String>,
}

/// Why a proposal was not decided.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProposeError {
    /// Another node leads; which, if that is known.
    #[error("this node does not lead")]
    NotLeader(Option<RaftId>),
    /// It may or may not be decided yet.
    #[error("{0}")]
    Failed(String),
}

/// The agreement, seen from this node. Clones are the same.
#[derive(Clone)]
pub(crate) struct Consensus {
    raft: Raft<Types>,
    me: RaftId,
    cluster: watch::Receiver<Arc<Cluster>>,
    muted: Arc<AtomicBool>,
    metrics: RaftMetrics,
}

impl Consensus {
    /// Goes on with what is in the store.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn start(
        me: RaftId,
        cluster: ClusterUuid,
        store: Store,
        peers: Peers,
        addresses: Addresses,
        metrics: RaftMetrics,
    ) -> Result<Self, StoreError> {
        let config = Config {
            cluster_name: cluster.to_string(),
            heartbeat_interval: HEARTBEAT_MS,
            election_timeout_min: ELECTION_MS.0,
            election_timeout_max: ELECTION_MS.1,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_AFTER),
            max_in_snapshot_log_to_keep: SNAPSHOT_AFTER / 2,
            max_payload_entries: ENTRIES_MAX,
            install_snapshot_timeout: SNAPSHOT_MS,
            ..Config::default()
        };
        let config = config.validate().expect("the constants are valid");
        let (shown, watched) = watch::channel(Arc::default());
        let state = State::open(store.clone(), shown, metrics.clone())?;
        let network = Network {
            peers,
            addresses,
            cluster,
        };
        let failed = |error: openraft::error::Fatal<RaftId>| StoreError::Io {
            file: format!("{store:?}"),
            problem: error.to_string(),
        };
        let log = Log {
            store: store.clone(),
            me,
            metrics: metrics.clone(),
        };
        let raft = Raft::new(me, Arc::new(config), network, log, state)
            .await
            .map_err(failed)?;
        Ok(Self {
            raft,
            me,
            cluster: watched,
            muted: Arc::default(),
            metrics,
        })
    }

    /// Begins a cluster of these nodes. Once only, on one node.
    pub(crate) async fn initialize(&self, members: BTreeMap<RaftId, Peer>) -> Result<(), String> {
        if self.is_initialized().await {
            return Ok(());
        }
        let begun = self.raft.initialize(members).await;
        begun.map_err(|error| error.to_string())
    }

    /// Whether there is anything in the log.
    pub(crate) async fn is_initialized(&self) -> bool {
        self.raft.is_initialized().await.unwrap_or(false)
    }

    /// What has been decided, as far as this node has heard.
    pub(crate) fn cluster(&self) -> watch::Receiver<Arc<Cluster>> {
        self.cluster.clone()
    }

    /// What this node can see now.
    pub(crate) fn standing(&self) -> Standing {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let last = metrics.last_log_index.unwrap_or(0);
        let near = |index: u64| index + 10 >= last;
        let replication = metrics.replication.iter().flatten();
        let leads = metrics.state == ServerState::Leader;
        // A leader stays one in its own eyes, even after a restart, until it
        // hears of another.
        let acked = metrics.millis_since_quorum_ack;
        let in_vain = leads && acked.is_none_or(|ago| ago >= QUORUM_SILENCE_MS);
        Standing {
            leader: metrics.current_leader.filter(|_| !in_vain),
            leads,
            term: metrics.current_term,
            voters: membership.voter_ids().collect(),
            unfinished: match &membership.get_joint_config()[..] {
                [_, .., goal] => Some(goal.clone()),
                _ => None,
            },
            members: membership.nodes().map(|(id, _)| *id).collect(),
            keep_up: replication
                .filter(|(_, matched)| matched.is_some_and(|log| near(log.index)))
                .map(|(id, _)| *id)
                .chain([self.me])
                .collect(),
            last_log: last,
            applied: metrics.last_applied.map_or(0, |log| log.index),
            failure: metrics
                .running_state
                .as_ref()
                .err()
                .map(ToString::to_string),
        }
    }

    /// Why agreement has ended on this node: it has, or is about to say so.
    pub(crate) async fn why_ended(&self) -> String {
        let mut metrics = self.raft.metrics();
        let ended = metrics.wait_for(|metrics| metrics.running_state.is_err());
        let why = match tokio::time::timeout(SAYS_WHY, ended).await {
            Ok(Ok(metrics)) => metrics
                .running_state
                .as_ref()
                .err()
                .map(ToString::to_string),
            _ => None,
        };
        why.unwrap_or_else(|| "agreement has ended".into())
    }

    /// Where a node was when it was let in.
    pub(crate) fn address_of(&self, node: RaftId) -> Option<String> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        membership.get_node(&node).map(|peer| peer.address.clone())
    }

    /// Where all nodes were when they were let in or registered.
    pub(crate) fn addresses(&self) -> BTreeSet<String> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let let_in = metrics.membership_config.membership().nodes();
        let cluster = self.cluster.borrow();
        let registered = cluster.members().values();
        let_in
            .map(|(_, peer)| peer.address.clone())
            .chain(registered.map(|member| member.registration.address.clone()))
            .collect()
    }

    /// Says nothing more as the leader, if this node is one, so that another is
    /// elected; or speaks again.
    pub(crate) fn mute(&self, muted: bool) {
        if self.muted.swap(muted, Ordering::Relaxed) == muted {
            return;
        }
        self.raft.runtime_config().heartbeat(!muted);
        if muted {
            tracing::warn!(
                "this node leads and does not hear a majority of the voters; it lets another lead"
            );
        }
    }

    /// Whether it says nothing as the leader.
    pub(crate) fn is_muted(&self) -> bool {
        self.muted.load(Ordering::Relaxed)
    }

    /// Returns when somebody else leads than now, as far as this node knows, or
    /// nobody, or in another term. What was asked of the leader of now may be lost.
    pub(crate) fn another_leads(&self) -> impl Future<Output = ()> + use<> {
        let mut metrics = self.raft.metrics();
        let now = {
            let metrics = metrics.borrow();
            (metrics.current_term, metrics.current_leader)
        };
        async move {
            let changed = metrics
                .wait_for(|metrics| (metrics.current_term, metrics.current_leader) != now)
                .await
                .is_ok();
            if !changed {
                // Agreement has ended, and says so elsewhere.
                std::future::pending().await
            }
        }
    }

    /// Decides a command, if this node leads. Returns when it is applied here.
    pub(crate) async fn propose(&self, command: Command) -> Result<Outcome, ProposeError> {
        if self.is_muted() {
            self.metrics.failed.inc();
            return Err(ProposeError::Failed(
                "the leader does not hear a majority of the voters".into(),
            ));
        }
        let timer = self.metrics.proposal_duration.start_timer();
        match self.raft.client_write(command).await {
            Ok(written) => {
                timer.observe_duration();
                self.metrics.decided.inc();
                Ok(written.data)
            }
            Err(error) => {
                timer.stop_and_discard();
                let error = propose_error(&error);
                let counter = match &error {
                    ProposeError::NotLeader(_) => &self.metrics.not_leader,
                    ProposeError::Failed(_) => &self.metrics.failed,
                };
                counter.inc();
                Err(error)
            }
        }
    }

    /// The last entry of which a majority knew when it confirmed, after this was
    /// called, that this node leads. All up to it is applied here. `None`: it
    /// does not lead.
    pub(crate) async fn read_index(&self) -> Option<u64> {
        if self.is_muted() {
            return None;
        }
        let read = self.raft.ensure_linearizable().await.ok()?;
        Some(read.map_or(0, |log| log.index))
    }

    /// Lets a node listen, if this node leads.
    pub(crate) async fn add(&self, node: RaftId, peer: Peer) -> Result<(), ProposeError> {
        match self.raft.add_learner(node, peer, false).await {
            Ok(_) => Ok(()),
            Err(error) => Err(propose_error(&error)),
        }
    }

    /// Makes exactly these vote; who voted before listens from then on.
    pub(crate) async fn set_voters(&self, voters: BTreeSet<RaftId>) -> Result<(), ProposeError> {
        match self.raft.change_membership(voters, true).await {
            Ok(_) => Ok(()),
            Err(error) => Err(propose_error(&error)),
        }
    }

    /// Strikes a node that does not vote.
    pub(crate) async fn strike(&self, node: RaftId) -> Result<(), ProposeError> {
        let change = openraft::ChangeMembers::RemoveNodes([node].into());
        match self.raft.change_membership(change, true).await {
            Ok(_) => Ok(()),
            Err(error) => Err(propose_error(&error)),
        }
    }

    /// Takes a message from another node's [`Consensus`].
    pub(crate) async fn receive(&self, rpc: &[u8]) -> Result<Bytes, String> {
        let rpc: Rpc = rmp_serde::from_slice(rpc).map_err(|error| error.to_string())?;
        let encoded = match rpc {
            Rpc::Append(rpc) => rmp_serde::to_vec(&self.raft.append_entries(rpc).await),
            Rpc::Vote(rpc) => rmp_serde::to_vec(&self.raft.vote(rpc).await),
            Rpc::Snapshot(rpc) => rmp_serde::to_vec(&self.raft.install_snapshot(rpc).await),
        };
        encoded.map(Into::into).map_err(|error| error.to_string())
    }

    /// Ends it.
    pub(crate) async fn shutdown(&self) {
        // Its task has ended either way.
        let _ = self.raft.shutdown().await;
    }
}

fn propose_error(error: &RaftError<RaftId, ClientWriteError<RaftId, Peer>>) -> ProposeError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            ProposeError::NotLeader(forward.leader_id)
        }
        other => ProposeError::Failed(other.to_string()),
    }
}
