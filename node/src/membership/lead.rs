//! What the leader does: decides what `core::placement` plans.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::shard::{SHARDS_DEFAULT, Sharding};

use super::host::{Host, random};
use crate::core::cluster::{Cluster, Command, Founding, RaftId};
use crate::core::placement;
use crate::raft::{Consensus, ProposeError, Standing};

/// How long a node that was let in may take to register.
const REGISTER: Duration = Duration::from_secs(60);

/// The duties of whoever leads.
pub(super) struct Leader {
    host: Arc<Host>,
    /// Said already: two nodes and no witness.
    warned: bool,
    /// Let in, but not registered, and since when.
    strangers: BTreeMap<RaftId, Instant>,
}

impl Leader {
    pub(super) fn new(host: Arc<Host>) -> Self {
        Self {
            host,
            warned: false,
            strangers: BTreeMap::new(),
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
        let plan = placement::plan(cluster);
        if !plan.is_empty() {
            tracing::info!(shards = plan.len(), "giving shards to their owners");
            consensus.propose(Command::Assign(plan)).await?;
        }
        if let Some(stranger) = self.stranger(cluster, standing, Instant::now()) {
            tracing::warn!(
                stranger,
                "a node was let in and has not registered; it is struck until it comes back"
            );
            consensus.strike(stranger).await?;
        }
        let registered = cluster.members().values();
        let members: BTreeSet<RaftId> = registered
            .map(|member| member.registration.raft_id)
            .filter(|raft_id| standing.members.contains(raft_id))
            .collect();
        // While the founders have not all registered, they vote nevertheless.
        let expected = cluster.founding().map_or(0, |founding| founding.expect);
        if members.len() < usize::from(expected) {
            return Ok(());
        }
        // What keeps up may have died since, without anything to fall behind.
        let rumours = Arc::clone(&self.host.rumours.borrow());
        let is_down = |id: &RaftId| rumours.get(id).is_some_and(|r| r.state == "down");
        let keep_up = standing.keep_up.iter().filter(|id| !is_down(id));
        let keep_up = keep_up.copied().collect();
        if let Some(voters) = placement::voters(&standing.voters, &members, &keep_up) {
            tracing::info!(voters = voters.len(), "changing who votes");
            consensus.set_voters(voters).await?;
        }
        Ok(())
    }

    /// A node that was let in long ago and has not registered: it has lost its
    /// directory again, or another of its name was faster. Each would be called
    /// for ever.
    fn stranger(&mut self, cluster: &Cluster, standing: &Standing, now: Instant) -> Option<RaftId> {
        let registered = cluster.members().values();
        let registered: BTreeSet<RaftId> = registered.map(|m| m.registration.raft_id).collect();
        let is_one = |id: &RaftId| !registered.contains(id) && !standing.voters.contains(id);
        let strangers: BTreeSet<RaftId> = standing.members.iter().copied().filter(is_one).collect();
        self.strangers.retain(|id, _| strangers.contains(id));
        for id in strangers {
            self.strangers.entry(id).or_insert(now);
        }
        let mut overdue = self.strangers.iter();
        overdue
            .find(|(_, since)| now.saturating_duration_since(**since) >= REGISTER)
            .map(|(id, _)| *id)
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
