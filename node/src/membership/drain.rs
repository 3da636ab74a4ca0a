//! Members that are to go: giving away all that a node has, and removing it.

use std::sync::Arc;
use std::time::Duration;

use proto::id::{NodeId, NodeRef};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::Membership;
use super::host::DECIDE;
use crate::agreement::Known;
use crate::core::cluster::{Command, Outcome};
use crate::core::placement;

/// How soon it is proposed again, when it was not decided.
const AGAIN: Duration = Duration::from_millis(200);
/// How long a node goes on after it was agreed that it has nothing any more: until
/// then the next owners may wait for it to release what it had. After that none
/// of them waits any longer.
const HAND_OVER: Duration = Duration::from_millis(500);
/// How long a node that drains waits for a leader, without which nothing moves.
const LEADERLESS: Duration = Duration::from_millis(1_500);

/// Why nothing was decided of a member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotDecided {
    /// There is no such member.
    #[error("node {0} is no member of the cluster")]
    NoMember(NodeId),
    /// It may not be.
    #[error("{0}")]
    Refused(String),
    /// It was not decided, or it is not known whether it was.
    #[error("nothing is decided of node {0}: {1}; try again")]
    Undecided(NodeId, String),
}

impl Membership {
    /// Has a member give away all that it has, from now until it is started
    /// again: the life that is meant.
    ///
    /// # Errors
    /// [`NotDecided`].
    pub async fn drain_member(&self, name: &NodeId) -> Result<NodeRef, NotDecided> {
        self.decide(name, Command::Drain).await
    }

    /// Has a node that has nothing be no member any more. If it runs it ends; if
    /// it is started again it joins again.
    ///
    /// # Errors
    /// [`NotDecided`].
    pub async fn remove_member(&self, name: &NodeId) -> Result<NodeRef, NotDecided> {
        self.decide(name, Command::Remove).await
    }

    async fn decide(
        &self,
        name: &NodeId,
        command: impl FnOnce(NodeRef) -> Command,
    ) -> Result<NodeRef, NotDecided> {
        let undecided = |why: String| NotDecided::Undecided(name.clone(), why);
        let consensus = self.host.consensus();
        let consensus =
            consensus.ok_or_else(|| undecided("this node is in no cluster yet".into()))?;
        let cluster = Arc::clone(&consensus.cluster().borrow());
        let Some(member) = cluster.members().get(name) else {
            return Err(NotDecided::NoMember(name.clone()));
        };
        let node = NodeRef {
            id: name.clone(),
            incarnation: member.incarnation,
        };
        let command = command(node.clone());
        // A leader without a majority decides nothing, and does not say so.
        let proposing = timeout(DECIDE, self.host.propose(&consensus, command)).await;
        let proposed = proposing.unwrap_or_else(|_| Err("there may be no majority".into()));
        match proposed.map_err(undecided)? {
            Outcome::Refused(why) => Err(NotDecided::Refused(why)),
            _ => Ok(node),
        }
    }

    /// Gives away all that this node has, as far as others can have it. Returns
    /// when that is done, or when there is no leader to do it.
    pub async fn drain(&self, node: &NodeRef) {
        let Some(agreement) = &self.view.agreement else {
            return;
        };
        let mut known = agreement.known.clone();
        tokio::select! {
            () = self.drain_led(node, &mut known) => {}
            () = self.is_leaderless() => {
                tracing::warn!("there is no leader, so nothing can be given away");
            }
        }
    }

    async fn drain_led(&self, node: &NodeRef, known: &mut watch::Receiver<Known>) {
        let left = |known: &Known| placement::remaining(&known.cluster, &known.given_up, node);
        let before = left(&known.borrow());
        tracing::info!(shards = before, "giving away what this node has");
        while let Err(why) = self.drain_member(&node.id).await {
            tracing::info!(%why, "it is not decided yet that this node drains");
            sleep(AGAIN).await;
        }
        // An error means that all of it ends.
        let _ = known.wait_for(|known| left(known) == 0).await;
        sleep(HAND_OVER).await;
    }

    async fn is_leaderless(&self) {
        let mut has_leader = self.has_leader.clone();
        loop {
            // An error means that all of it ends.
            let _ = has_leader.wait_for(|has| !*has).await;
            let back = has_leader.wait_for(|has| *has);
            if timeout(LEADERLESS, back).await.is_err() {
                return;
            }
        }
    }
}
