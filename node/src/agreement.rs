//! What a node's cluster agrees, for those in it who own shards and stand by.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proto::id::{NodeId, NodeRef};
use proto::shard::ShardId;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::core::agreed::Agreed;
use crate::core::cluster::{Cluster, Command, RaftId, ReplicaSet};
use crate::core::detection::Cause;
use crate::core::gateways::Silence;
use crate::core::lease::{Grant, NODE_LEASE};
use crate::core::placement::Targets;
use crate::membership::Host;
use crate::peers::ways::Way;
use crate::peers::wire::Beat;

/// How long a proposal is waited for while nobody else leads: to make it again
/// only makes a leader slower that is slow. What comes of it shows in what is
/// agreed.
const PROPOSE: Duration = Duration::from_secs(3);

/// What is agreed, as far as this node has heard. Replaced whole.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) agreed: Arc<Agreed>,
    /// The last entry of the log that it has applied.
    pub(crate) applied: u64,
    pub(crate) voters: BTreeSet<RaftId>,
    /// Nodes that gossip has given up.
    pub(crate) given_up: BTreeSet<RaftId>,
    /// Who should have each shard.
    pub(crate) targets: Arc<Targets>,
}

/// A node's way to its cluster. Clones are the same.
#[derive(Debug, Clone)]
pub struct Agreement {
    pub(crate) known: watch::Receiver<Known>,
    pub(crate) host: Arc<Host>,
}

impl Agreement {
    /// Asks the leader for a lease, counted from before this is called.
    pub(crate) async fn renew(&self, me: NodeRef, renewal: u64) -> Option<Grant> {
        timeout(NODE_LEASE, self.host.renew(me, renewal))
            .await
            .ok()?
    }

    /// Has it agreed who stands by.
    pub(crate) async fn propose(&self, sets: Vec<ReplicaSet>) {
        let Some(consensus) = self.host.consensus() else {
            return;
        };
        let another_leads = consensus.another_leads();
        let proposing = self.host.propose(&consensus, Command::Replicas(sets));
        let why = tokio::select! {
            proposed = timeout(PROPOSE, proposing) => match proposed {
                Ok(Ok(_)) => return,
                Ok(Err(why)) => why,
                Err(_) => format!("not within {PROPOSE:?}"),
            },
            () = another_leads => "another node leads now".into(),
        };
        // The owner proposes again what it does not see agreed.
        tracing::debug!(%why, "it was not decided who stands by");
    }

    /// Tells the leader which gateways this node does not hear. What is lost on the
    /// way is said again, as long as it holds.
    pub(crate) async fn report(&self, me: NodeRef, silence: Silence) {
        if self.host.report(me, silence).await.is_none() {
            tracing::debug!("the leader was not told who is silent");
        }
    }

    /// Makes a way to a node.
    ///
    /// # Errors
    /// Why not, for people.
    pub(crate) async fn open(&self, to: &NodeRef) -> Result<Way, String> {
        self.host.open(to).await
    }

    /// Ways that owners make to this node, from now on.
    pub(crate) fn welcome(&self, ways: mpsc::Sender<(NodeId, Way)>) {
        self.host.welcome_with(ways);
    }

    /// Why the owner before the present one of a shard does not have it any more.
    pub(crate) fn cause(&self, shard: ShardId) -> Cause {
        let cluster = Arc::clone(&self.known.borrow().cluster);
        let row = cluster.rows().get(usize::from(shard.0));
        let earlier = row.and_then(|row| row.as_ref()?.earlier.last());
        earlier.map_or(Cause::Silence, |node| self.host.cause(&cluster, node))
    }

    /// Whether the owner before the present one of a shard gives away all that it
    /// has.
    pub(crate) fn is_drained(&self, shard: ShardId) -> bool {
        let cluster = Arc::clone(&self.known.borrow().cluster);
        let row = cluster.rows().get(usize::from(shard.0));
        let earlier = row.and_then(|row| row.as_ref()?.earlier.last());
        earlier.is_some_and(|node| cluster.gives_away(node))
    }

    /// Sends a sign of life to all who vote. Called on a runtime.
    pub(crate) fn beat(&self, beat: Beat) {
        let (cluster, voters) = {
            let known = self.known.borrow();
            (Arc::clone(&known.cluster), known.voters.clone())
        };
        self.host.beat(&cluster, &voters, beat);
    }
}
