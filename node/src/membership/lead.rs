//! What the leader does: decides what `core::placement` plans.

use std::sync::Arc;

use proto::shard::{SHARDS_DEFAULT, Sharding};
use proto::time::Timestamp;

use super::host::{Host, random};
use crate::core::cluster::{Cluster, Command, Founding};
use crate::core::placement::{self, Electorate, Seen, Unregistered};
use crate::raft::{Consensus, ProposeError, Standing};

/// The duties of whoever leads.
pub(super) struct Leader {
    host: Arc<Host>,
    /// Said already: two nodes and no witness.
    warned: bool,
    unregistered: Unregistered,
}

impl Leader {
    pub(super) fn new(host: Arc<Host>) -> Self {
        Self {
            host,
            warned: false,
            unregistered: Unregistered::default(),
        }
    }

    /// Looks at what is agreed and has the next thing decided.
    pub(super) async fn lead(
        &mut self,
        consensus: &Consensus,
        cluster: &Cluster,
        standing: &Standing,
    ) {
        let result = if cluster.founding().is_none() {
            self.found(consensus, standing).await
        } else {
            self.assign(consensus, cluster, standing).await
        };
        // Somebody else leads now, or will.
        if let Err(error) = result {
            tracing::debug!(%error, "a decision was not made");
        }
        self.warn(cluster);
    }

    async fn found(&self, consensus: &Consensus, standing: &Standing) -> Result<(), ProposeError> {
        let Some(uuid) = self.host.member_of() else {
            return Ok(());
        };
        let founding = Founding {
            uuid,
            sharding: Sharding {
                seed: random(),
                count: SHARDS_DEFAULT,
            },
            expect: standing.voters.len() as u16,
        };
        consensus.propose(Command::Found(founding)).await.map(drop)
    }

    async fn assign(
        &mut self,
        consensus: &Consensus,
        cluster: &Cluster,
        standing: &Standing,
    ) -> Result<(), ProposeError> {
        if let Some(voters) = &standing.unfinished {
            tracing::info!(voters = voters.len(), "finishing a change of who votes");
            return consensus.set_voters(voters.clone()).await;
        }
        let plan = placement::plan(cluster, &Seen::nothing());
        for assignments in plan.entries() {
            tracing::info!(shards = assignments.len(), "giving shards to their owners");
            consensus.propose(Command::Assign(assignments)).await?;
        }
        let listening = standing.members.difference(&standing.voters);
        let listening = listening.copied().collect();
        if let Some(late) = self
            .unregistered
            .overdue(cluster, &listening, Timestamp::now())
        {
            tracing::warn!(
                node = late,
                "a node was let in and has not registered; it is struck until it comes back"
            );
            consensus.strike(late).await?;
        }
        let rumours = Arc::clone(&self.host.rumours.borrow());
        let given_up = rumours.iter().filter(|(_, rumour)| !rumour.is_seen());
        let seen = Electorate {
            voting: standing.voters.clone(),
            present: standing.members.clone(),
            keep_up: standing.keep_up.clone(),
            given_up: given_up.map(|(id, _)| *id).collect(),
        };
        if let Some(voters) = placement::voters(cluster, &seen) {
            tracing::info!(voters = voters.len(), "changing who votes");
            consensus.set_voters(voters).await?;
        }
        Ok(())
    }

    fn warn(&mut self, cluster: &Cluster) {
        let two = cluster.members().len() == 2;
        if two && !self.warned {
            tracing::warn!(
                "two nodes without a witness: if either fails, nothing can be decided until it is back; start a third with --witness"
            );
        }
        self.warned = two;
    }
}
