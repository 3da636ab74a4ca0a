//! A node's standbys, the shards for which it stands by, and its leases.

use std::sync::Arc;

use node::core::agreed::Agreed;
use node::core::cluster::Cluster;
use node::core::lease::{Grant, RENEW_PACE};
use node::core::pairs::{self, Part};
use node::core::placement::Targets;
use node::core::replicas::{self, Succession};
use node::core::replication::Leases;
use node::core::shard::{Effect, Proposal};
use node::core::shards::Input;
use node::core::wire;
use proto::id::NodeRef;
use proto::message::{Missed, Since};
use proto::position::Position;
use proto::shard::ShardId;
use proto::time::Timestamp;

use super::{Node, Outgoing, WORKERS};
use crate::sim::mistakes::Mistake;
use crate::sim::trace::{Fact, Trace};
use crate::sim::workload::{self, order_of};

impl Node {
    /// Time for a beat to standbys, and for leases.
    pub fn tick_pairs(&mut self, now: Timestamp, trace: &mut Trace, out: &mut Outgoing) {
        let mut effects = Vec::new();
        self.pairs.tick(now, &mut effects);
        self.obey_pairs(effects, out);
        let mut effects = Vec::new();
        self.replicas.begin(now, &mut effects);
        self.obey_replicas(now, effects, trace, out);
        self.tell_leases();
        self.run(now, trace, out);
    }

    /// Time to look who is there, and to ask for a lease: the number of the
    /// renewal.
    pub fn tick_membership(&mut self, now: Timestamp, cluster: &Cluster) -> Option<u64> {
        self.beats.observe(now, cluster);
        self.table.tidy(now, cluster);
        let is_soon = self.renewed_at.is_some_and(|at| now.since(at) < RENEW_PACE);
        if is_soon {
            return None;
        }
        self.renewed_at = Some(now);
        Some(self.lease.renew(now))
    }

    /// The leader has granted a renewal.
    pub fn granted(
        &mut self,
        now: Timestamp,
        grant: &Grant,
        trace: &mut Trace,
        out: &mut Outgoing,
    ) {
        self.lease.granted(grant.renewal, grant.applied);
        self.tell_leases();
        self.run(now, trace, out);
    }

    /// What this node may do as an owner.
    fn leases(&self) -> Leases {
        let mut leases = Leases {
            node: self.lease.until(self.applied).unwrap_or(Timestamp(0)),
            pairs: self.pairs.leases(),
        };
        self.mistake.leases(&self.me, &self.agreed, &mut leases);
        leases
    }

    /// Whether the leader lets this node serve.
    pub fn has_lease(&self, now: Timestamp) -> bool {
        now < self.leases().node
    }

    /// To whom there should be a way.
    pub fn standbys(&self) -> Vec<NodeRef> {
        self.pairs.standbys().cloned().collect()
    }

    /// There is a way to a standby.
    pub fn opened(&mut self, now: Timestamp, to: &NodeRef, trace: &mut Trace, out: &mut Outgoing) {
        let mut effects = Vec::new();
        self.pairs.opened(now, to, &mut effects);
        self.obey_pairs(effects, out);
        self.tell_leases();
        self.run(now, trace, out);
    }

    /// A way to a standby has broken.
    pub fn closed(&mut self, to: &NodeRef) {
        self.pairs.closed(to);
    }

    /// An owner has made a way to this node.
    pub fn welcomed(&mut self, from: &NodeRef) {
        self.replicas.opened(from);
    }

    /// Something has come from an owner.
    pub fn hear_batch(
        &mut self,
        now: Timestamp,
        bytes: &[u8],
        trace: &mut Trace,
        out: &mut Outgoing,
    ) {
        let mut batch = wire::decode(bytes).expect("nodes of one version understand each other");
        self.mistake.batch(&mut batch);
        let mut effects = Vec::new();
        self.replicas.batch(now, batch, &mut effects);
        self.obey_replicas(now, effects, trace, out);
    }

    /// Something has come from a standby.
    pub fn hear_echo(
        &mut self,
        now: Timestamp,
        bytes: &[u8],
        trace: &mut Trace,
        out: &mut Outgoing,
    ) {
        let mut echo = wire::decode(bytes).expect("nodes of one version understand each other");
        self.mistake.echo(now, &mut echo);
        let mut effects = Vec::new();
        self.pairs.echo(now, echo, &mut effects);
        self.obey_pairs(effects, out);
        self.tell_leases();
        self.run(now, trace, out);
    }

    /// These nodes should stand by for a shard of this one.
    pub fn want(&mut self, shard: ShardId, standbys: Vec<NodeRef>) {
        let worker = &mut self.workers[usize::from(shard.0) % WORKERS];
        worker.mail.push_back(vec![Input::Want { shard, standbys }]);
    }

    /// The shards of which it could act as the owner now.
    pub fn acting(&self, now: Timestamp) -> impl Iterator<Item = ShardId> {
        let awake = self.workers.iter();
        let awake = awake.filter(|worker| !worker.stands && worker.agreed.is_none());
        let acting = awake.flat_map(move |worker| worker.shards.acting(now));
        acting.map(|(shard, _)| shard)
    }

    /// Shards that are served here and should have other standbys: these.
    pub fn differing(&self, targets: &Targets) -> Vec<(ShardId, Vec<NodeRef>)> {
        let workers = self.workers.iter();
        workers
            .flat_map(|worker| worker.shards.differing(targets))
            .collect()
    }

    pub(super) fn tell_leases(&mut self) {
        self.leases = Arc::new(self.leases());
        if self.workers_lag {
            return;
        }
        for worker in &mut self.workers {
            let leases = Arc::clone(&self.leases);
            worker.mail.push_back(vec![Input::Leases(leases)]);
        }
    }

    pub(super) fn obey_pairs(&mut self, effects: Vec<pairs::Effect>, out: &mut Outgoing) {
        for effect in effects {
            let shard = match &effect {
                pairs::Effect::Send(batch) => {
                    out.batches
                        .push((batch.to.clone(), wire::encode(batch).into()));
                    continue;
                }
                pairs::Effect::Confirmed(_, confirmed) => confirmed.shard,
                pairs::Effect::Refused(_, shard, _) | pairs::Effect::Lost(_, shard, _) => *shard,
                pairs::Effect::Reopened(_) | pairs::Effect::Ended(_) => {
                    for worker in &mut self.workers {
                        worker.mail.push_back(vec![Input::Pair(effect.clone())]);
                    }
                    continue;
                }
            };
            let worker = &mut self.workers[usize::from(shard.0) % WORKERS];
            worker.mail.push_back(vec![Input::Pair(effect)]);
        }
    }

    pub(super) fn obey_replicas(
        &mut self,
        now: Timestamp,
        effects: Vec<replicas::Effect>,
        trace: &mut Trace,
        out: &mut Outgoing,
    ) {
        for effect in effects {
            match effect {
                replicas::Effect::Echo(mut echo) => {
                    self.mistake.refuse(&mut echo);
                    out.echoes
                        .push((echo.to.clone(), wire::encode(&echo).into()));
                }
                replicas::Effect::Begin(mut succession) => {
                    self.mistake.begin(now, &mut succession, trace);
                    inherit(self.number, &succession, trace);
                    let shard = succession.tenure.shard;
                    let worker = &mut self.workers[usize::from(shard.0) % WORKERS];
                    worker.mail.push_back(vec![Input::Begin(succession)]);
                }
            }
        }
    }

    /// Takes for agreed what is only proposed, by mistake.
    fn haste(&mut self, proposal: &Proposal) {
        let shard = proposal.shard;
        let worker = &mut self.workers[usize::from(shard.0) % WORKERS];
        if self.mistake.is(Mistake::DroppedAlone) {
            let mut agreed = Agreed::clone(&self.agreed);
            if let Some(replicas) = agreed.shards.get_mut(usize::from(shard.0))
                && !replicas.row.in_sync.is_empty()
                && replicas.row.version == proposal.version
            {
                replicas.row.version += 1;
                replicas.row.in_sync = proposal.in_sync.clone();
                worker.mail.push_back(vec![Input::Agreed(Arc::new(agreed))]);
            }
        }
    }

    /// Delivers what is not confirmed, by mistake.
    fn fan_out(&mut self, now: Timestamp, part: &Part, trace: &mut Trace) {
        let shards = &self.workers[usize::from(part.shard.0) % WORKERS].shards;
        let effects = self.mistake.fanned_out(now, part, shards);
        for effect in &effects {
            let Effect::Deliver { entry, .. } = effect else {
                continue;
            };
            let position = Position {
                epoch: entry.epoch,
                offset: entry.publication.offset,
            };
            let is_message = entry.publication.change().is_none();
            if is_message && !trace.is_inherited(&position) {
                trace.inherit(Fact::Published {
                    node: self.number,
                    fence: entry.fence.0,
                    channel: workload::channel_of(&entry.key),
                    position,
                    order: order_of(&entry.publication),
                });
            }
        }
        self.effects.push_back(effects);
    }

    /// Performs what is not for the egress.
    pub(super) fn perform_beside(
        &mut self,
        now: Timestamp,
        effect: Effect,
        trace: &mut Trace,
        out: &mut Outgoing,
    ) -> Option<Effect> {
        match effect {
            Effect::Replicate { to, part } => {
                let proposal = self.mistake.recruited(&self.agreed, &to, &part);
                out.proposals.extend(proposal);
                self.fan_out(now, &part, trace);
                if self.mistake.is(Mistake::Unconfirmed) {
                    let confirmed = pairs::Confirmation {
                        shard: part.shard,
                        fence: part.fence,
                        fill: part.fill,
                        number: part.first + part.records.len() as u64 - 1,
                    };
                    let confirmed = pairs::Effect::Confirmed(to.clone(), confirmed);
                    let worker = &mut self.workers[usize::from(part.shard.0) % WORKERS];
                    worker.mail.push_back(vec![Input::Pair(confirmed)]);
                }
                self.pairs.push(now, to, part);
                None
            }
            Effect::Propose(proposal) => {
                self.haste(&proposal);
                out.proposals.push(proposal);
                None
            }
            effect => Some(effect),
        }
    }
}

/// Writes down what a new owner has that the one before it told nobody.
fn inherit(node: u8, succession: &Succession, trace: &mut Trace) {
    let Some(shard) = &succession.shard else {
        return;
    };
    for (channel, key) in (0..).zip(workload::channels()) {
        let Some(state) = shard.describe(&key) else {
            continue;
        };
        let (offset, fence) = trace.head(state.position.epoch);
        let known = Position {
            offset,
            ..state.position
        };
        let Some((_, Missed::Publications(rest))) = shard.since(&key, Since::Delivered(known))
        else {
            continue;
        };
        let messages = rest.into_iter().filter(|p| p.change().is_none());
        for publication in messages {
            trace.inherit(Fact::Published {
                node,
                fence,
                channel,
                position: Position {
                    offset: publication.offset,
                    ..known
                },
                order: order_of(&publication),
            });
        }
    }
}
