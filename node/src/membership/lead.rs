//! What the leader does: decides what `core::placement` plans.

use std::sync::Arc;

use proto::id::NodeRef;
use proto::shard::{SHARDS_DEFAULT, Sharding};
use proto::time::Timestamp;

use super::host::{Host, random};
use crate::core::cluster::{Cluster, Command, Founding};
use crate::core::placement::{self, Electorate, Plan, Seen, Targets, Unregistered};
use crate::raft::{Consensus, ProposeError, Standing};

/// The duties of whoever leads.
pub(super) struct Leader {
    host: Arc<Host>,
    /// Said already: two nodes and no witness.
    warned: bool,
    unregistered: Unregistered,
    /// Leases are withheld until this entry is applied.
    withheld_until: Option<u64>,
}

impl Leader {
    pub(super) fn new(host: Arc<Host>) -> Self {
        Self {
            host,
            warned: false,
            unregistered: Unregistered::default(),
            withheld_until: None,
        }
    }

    /// Looks at what is agreed and has the next thing decided.
    pub(super) async fn lead(
        &mut self,
        consensus: &Consensus,
        cluster: &Cluster,
        targets: &Targets,
        standing: &Standing,
    ) {
        let result = if cluster.founding().is_none() {
            self.found(consensus, standing).await
        } else {
            self.assign(consensus, cluster, targets, standing).await
        };
        // Somebody else leads now, or will.
        if let Err(error) = result {
            tracing::debug!(%error, "a decision was not made");
        }
        self.warn(cluster, standing);
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
        targets: &Targets,
        standing: &Standing,
    ) -> Result<(), ProposeError> {
        if let Some(voters) = &standing.unfinished {
            tracing::info!(voters = voters.len(), "finishing a change of who votes");
            return consensus.set_voters(voters.clone()).await;
        }
        self.give_out(consensus, cluster, standing).await?;
        self.bury(consensus, cluster).await?;
        self.judge_buses(consensus, cluster).await?;
        self.move_shards(consensus, cluster, targets, standing)
            .await?;
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

    /// Shards of the dead, and those that nobody has had.
    async fn give_out(
        &mut self,
        consensus: &Consensus,
        cluster: &Cluster,
        standing: &Standing,
    ) -> Result<(), ProposeError> {
        let (now, term) = (Timestamp::now(), standing.term);
        self.grant_again(consensus, term);
        let out = self.host.out(cluster, standing);
        let plan = self.host.leases.in_term(term, |table| {
            let lapsed = |node: &NodeRef, told| table.lapsed_unless_told(now, node, told);
            let plan = placement::plan(
                cluster,
                &Seen {
                    out,
                    lapsed: &lapsed,
                },
            );
            table.stop_granting(&plan.withhold);
            plan
        });
        if plan.is_empty() {
            return Ok(());
        }
        if !plan.withhold.is_empty() {
            self.withheld_until = Some(u64::MAX);
        }
        let proposed = self.propose_plan(consensus, plan, term).await;
        if self.withheld_until.is_some() {
            // It may still be decided as long as it is not behind us.
            self.withheld_until = Some(consensus.standing().last_log);
            self.grant_again(consensus, term);
        }
        proposed
    }

    /// Gateways that a majority of the nodes does not hear.
    async fn bury(&self, consensus: &Consensus, cluster: &Cluster) -> Result<(), ProposeError> {
        let gone = self.host.gone(cluster);
        if gone.is_empty() {
            return Ok(());
        }
        for gateway in &gone {
            let (id, incarnation) = (&gateway.id, gateway.incarnation.0);
            tracing::warn!(gateway = %id, incarnation, "most nodes have not heard of this gateway for 2 s: it is declared gone, with all that it wanted; if it lives, it takes a new life");
        }
        consensus
            .propose(Command::GatewaysGone(gone))
            .await
            .map(drop)
    }

    /// Nodes that the bus has left, or has come back to.
    async fn judge_buses(
        &self,
        consensus: &Consensus,
        cluster: &Cluster,
    ) -> Result<(), ProposeError> {
        for (node, hears) in self.host.buses(cluster) {
            if hears {
                tracing::info!(node = %node.id, "the node hears itself on the bus again, and takes its share");
            } else {
                tracing::warn!(node = %node.id, "the node lives, but does not hear itself on the bus, and most others do: it gives away its shards until it does");
            }
            consensus.propose(Command::Bus { node, hears }).await?;
        }
        Ok(())
    }

    /// Shards that have got where they should be.
    async fn move_shards(
        &self,
        consensus: &Consensus,
        cluster: &Cluster,
        targets: &Targets,
        standing: &Standing,
    ) -> Result<(), ProposeError> {
        let out = self.host.out(cluster, standing);
        let moves = placement::moves(cluster, targets, &out);
        if moves.is_empty() {
            return Ok(());
        }
        tracing::info!(
            shards = moves.len(),
            "shards move to other owners, as planned"
        );
        consensus.propose(Command::Assign(moves)).await.map(drop)
    }

    async fn propose_plan(
        &self,
        consensus: &Consensus,
        plan: Plan,
        term: u64,
    ) -> Result<(), ProposeError> {
        let Plan {
            promotions, afresh, ..
        } = plan;
        if !promotions.is_empty() {
            tracing::info!(
                shards = promotions.len(),
                "standbys become owners of shards whose owner is dead, or unreachable"
            );
            consensus.propose(Command::Assign(promotions)).await?;
        }
        // What rests on leases that have run out is decided in the term in which
        // it was planned, or never: a later leader may have granted others.
        let standing = consensus.standing();
        let is_same = standing.leads && standing.term == term;
        if !afresh.is_empty() && is_same {
            tracing::info!(shards = afresh.len(), "giving shards to new owners");
            consensus.propose(Command::Assign(afresh)).await?;
        }
        Ok(())
    }

    /// Whoever was not given leases gets them again, once what was proposed is
    /// decided or can never be.
    fn grant_again(&mut self, consensus: &Consensus, term: u64) {
        if let Some(until) = self.withheld_until
            && consensus.standing().applied >= until
        {
            self.withheld_until = None;
            self.host.leases.in_term(term, |table| {
                let withheld = table.withheld().clone();
                table.grant_again(&withheld);
            });
        }
    }

    fn warn(&mut self, cluster: &Cluster, standing: &Standing) {
        // A third that votes is a founder that has not registered yet.
        let two = cluster.members().len() == 2 && standing.voters.len() < 3;
        if two && !self.warned {
            tracing::warn!(
                "two nodes without a witness: if either fails, nothing can be decided until it is back; start a third with --witness"
            );
        }
        self.warned = two;
    }
}
