//! Shell: what a node's shards tell their standbys, what it stands by for, and
//! its leases. One task, so that no echo passes a refusal that came before it.
//!
//! ```text
//!   workers ──records, proposals──▶ Replicator ◀──batches──▶ other nodes
//!      ▲  ▲                         │  Pairs     (ways)
//!      │  └───what came of them─────┤  Replicas
//!      └──────duty (watched)────────┘  NodeLease ◀── renewals ──▶ leader
//! ```
//!
//! Nothing here waits for a worker, nor for another node. What goes to a worker
//! is bounded by what it has sent; a way that takes no more is broken off, and
//! what was on it is sent again on the next.

mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proto::id::{NodeId, NodeRef};
use proto::namespace::Namespaces;
use proto::shard::ShardId;
use proto::time::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::agreement::{Agreement, Known};
use crate::checkpoint::Checkpoint;
use crate::core::agreed::Agreed;
use crate::core::checkpoint::ShardCheckpoint;
use crate::core::cluster::{Replica, ReplicaSet, Standby};
use crate::core::lease::{NodeLease, RENEW_PACE};
use crate::core::pairs::{self, Pairs, Part};
use crate::core::placement::Targets;
use crate::core::replicas::{self, Replicas};
use crate::core::replication::Leases;
use crate::core::shard::Proposal;
use crate::core::shards::Input;
use crate::core::wire;
use crate::metrics::{Begun, Metrics};
use crate::peers::ways::Way;
use ways::{Event, Frames};

/// Rounds of what workers want sent that may wait; then workers wait.
pub(crate) const MAILBOX: usize = 1_024;
/// Rounds that are taken together at most.
const ROUND: usize = 256;
/// What ways may have to say that waits; then they wait.
const EVENTS: usize = 1_024;
/// Ways that owners have made and that wait to be taken.
const WELCOMES: usize = 64;
/// How exactly beats to standbys are kept, and how soon leases are told.
const TICK: Duration = Duration::from_millis(10);
/// How often what is held for others ages.
const AGE: Duration = Duration::from_secs(1);
/// Leases that are only longer than before are told no more often than this.
const TELL_LEASES: Duration = Duration::from_millis(10);

/// What a worker does as the owner of shards.
#[derive(Debug)]
pub(crate) enum FromShard {
    /// Send a standby what has changed.
    Replicate { to: NodeRef, part: Part },
    /// Have it agreed who stands by.
    Propose(Proposal),
    /// Begin nothing any more, and say what was still to begin.
    Rest(oneshot::Sender<Vec<ShardCheckpoint>>),
}

/// What a node has to do and may do. Replaced whole: no lease is seen before
/// what it was granted for.
#[derive(Debug, Clone)]
pub(crate) struct Duty {
    pub(crate) agreed: Arc<Agreed>,
    pub(crate) leases: Arc<Leases>,
    /// Who should have each shard.
    pub(crate) targets: Arc<Targets>,
}

impl Duty {
    /// Of a node that is alone.
    pub(crate) fn alone(agreed: Agreed) -> Self {
        Self {
            agreed: Arc::new(agreed),
            leases: Arc::new(Leases::unlimited()),
            targets: Arc::default(),
        }
    }

    fn before_any_lease(known: &Known) -> Self {
        Self {
            agreed: Arc::clone(&known.agreed),
            leases: Arc::new(Leases {
                node: Timestamp(0),
                pairs: BTreeMap::new(),
            }),
            targets: Arc::clone(&known.targets),
        }
    }
}

/// A way that this node has made, or makes.
struct Outgoing {
    number: u64,
    /// Once it is made.
    frames: Option<Frames>,
}

/// The way that an owner made last.
struct Incoming {
    number: u64,
    /// Whether anything has come on it.
    begun: bool,
    frames: Frames,
}

/// See the [module](self).
pub(crate) struct Replicator {
    me: NodeRef,
    agreement: Agreement,
    pairs: Pairs,
    replicas: Replicas,
    lease: NodeLease,
    applied: u64,
    renewed_at: Option<Timestamp>,
    told_at: Timestamp,
    /// Counts ways.
    ways: u64,
    outgoing: BTreeMap<NodeRef, Outgoing>,
    incoming: BTreeMap<NodeId, Incoming>,
    proposals: BTreeMap<ShardId, Proposal>,
    is_proposing: bool,
    workers: Vec<mpsc::UnboundedSender<Input>>,
    duty: watch::Sender<Duty>,
    events: mpsc::Sender<Event>,
    heard: mpsc::Receiver<Event>,
    welcomes: mpsc::Receiver<(NodeId, Way)>,
    metrics: Arc<Metrics>,
}

impl Replicator {
    /// Not running yet; with what others watch.
    pub(crate) fn new(
        me: NodeRef,
        namespaces: Arc<Namespaces>,
        agreement: Agreement,
        checkpoint: Checkpoint,
        workers: Vec<mpsc::UnboundedSender<Input>>,
        metrics: Arc<Metrics>,
    ) -> (Self, watch::Receiver<Duty>) {
        let known = agreement.known.borrow().clone();
        let mut replicas = Replicas::new(me.clone(), namespaces, Arc::clone(&known.agreed));
        replicas.restore(Timestamp::now(), checkpoint.ago, checkpoint.shards);
        let (duty, watched) = watch::channel(Duty::before_any_lease(&known));
        let (events, heard) = mpsc::channel(EVENTS);
        let (welcome, welcomes) = mpsc::channel(WELCOMES);
        agreement.welcome(welcome);
        let replicator = Self {
            pairs: Pairs::new(me.clone()),
            replicas,
            lease: NodeLease::default(),
            applied: known.applied,
            renewed_at: None,
            told_at: Timestamp(0),
            ways: 0,
            outgoing: BTreeMap::new(),
            incoming: BTreeMap::new(),
            proposals: BTreeMap::new(),
            is_proposing: false,
            workers,
            duty,
            events,
            heard,
            welcomes,
            metrics,
            me,
            agreement,
        };
        (replicator, watched)
    }

    /// Runs until shutdown.
    pub(crate) async fn run(
        mut self,
        mut mailbox: mpsc::Receiver<Vec<FromShard>>,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let mut known = self.agreement.known.clone();
        known.mark_changed();
        // It may have been given back shards already.
        let agreed = Arc::clone(&self.duty.borrow().agreed);
        let mut effects = Vec::new();
        self.replicas.follow(Timestamp::now(), agreed, &mut effects);
        self.obey_replicas(effects);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut age = tokio::time::interval(AGE);
        age.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut mail = Vec::with_capacity(ROUND);
        let mut events = Vec::with_capacity(ROUND);
        loop {
            let mut is_due = false;
            tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => return,
                Ok(()) = known.changed() => known.mark_changed(),
                Some((from, way)) = self.welcomes.recv() => self.take(from, way),
                _ = self.heard.recv_many(&mut events, ROUND) => {}
                count = mailbox.recv_many(&mut mail, ROUND) => {
                    if count == 0 {
                        return;
                    }
                }
                _ = tick.tick() => is_due = true,
                _ = age.tick() => self.replicas.tick(Timestamp::now()),
            }
            // Before all else: what another owns now is refused with the next
            // echo.
            if known.has_changed().unwrap_or(false) {
                let known = known.borrow_and_update().clone();
                self.follow(&known);
            }
            let now = Timestamp::now();
            for event in events.drain(..) {
                self.hear(now, event);
            }
            for from_shard in mail.drain(..).flatten() {
                self.obey_shard(now, from_shard);
            }
            if is_due {
                self.tick(now);
            }
            let mut effects = Vec::new();
            self.pairs.flush(now, &mut effects);
            self.obey_pairs(effects);
            self.propose();
            self.tell(now);
        }
    }

    fn follow(&mut self, known: &Known) {
        let now = Timestamp::now();
        self.applied = known.applied;
        let living = known.cluster.members().iter().map(|(id, member)| NodeRef {
            id: id.clone(),
            incarnation: member.incarnation,
        });
        let living: BTreeSet<NodeRef> = living.collect();
        let mut effects = Vec::new();
        self.pairs.members(&living, &mut effects);
        self.obey_pairs(effects);
        self.outgoing.retain(|node, _| living.contains(node));
        let mut effects = Vec::new();
        if !Arc::ptr_eq(&known.agreed, &self.duty.borrow().agreed) {
            let agreed = Arc::clone(&known.agreed);
            self.replicas.follow(now, agreed, &mut effects);
        }
        let leases = Arc::new(self.leases());
        self.told_at = now;
        self.duty.send_replace(Duty {
            agreed: Arc::clone(&known.agreed),
            leases,
            targets: Arc::clone(&known.targets),
        });
        // Behind it: whoever begins has to know who stands by.
        self.obey_replicas(effects);
    }

    fn tick(&mut self, now: Timestamp) {
        let mut effects = Vec::new();
        self.pairs.tick(now, &mut effects);
        self.obey_pairs(effects);
        let mut effects = Vec::new();
        self.replicas.begin(now, &mut effects);
        self.obey_replicas(effects);
        self.make_ways();
        let is_soon = self.renewed_at.is_some_and(|at| now.since(at) < RENEW_PACE);
        if !is_soon {
            self.renewed_at = Some(now);
            let renewal = self.lease.renew(now);
            let (me, agreement) = (self.me.clone(), self.agreement.clone());
            let events = self.events.clone();
            tokio::spawn(async move {
                if let Some(grant) = agreement.renew(me, renewal).await {
                    // The node ends: nobody wants it any more.
                    let _ = events.send(Event::Granted(grant)).await;
                }
            });
        }
    }

    fn make_ways(&mut self) {
        for to in self.pairs.standbys() {
            if self.outgoing.contains_key(to) {
                continue;
            }
            self.ways += 1;
            let number = self.ways;
            let frames = None;
            self.outgoing
                .insert(to.clone(), Outgoing { number, frames });
            let (agreement, events) = (self.agreement.clone(), self.events.clone());
            tokio::spawn(ways::make(agreement, to.clone(), number, events));
        }
    }

    /// An owner has made a way to this node.
    fn take(&mut self, from: NodeId, way: Way) {
        self.ways += 1;
        let frames = ways::attend(way, from.clone(), self.ways, self.events.clone());
        self.incoming.insert(
            from,
            Incoming {
                number: self.ways,
                begun: false,
                frames,
            },
        );
    }

    fn hear(&mut self, now: Timestamp, event: Event) {
        match event {
            Event::Opened { to, number, frames } => {
                let Some(way) = self.outgoing.get_mut(&to).filter(|w| w.number == number) else {
                    return;
                };
                way.frames = Some(frames);
                let mut effects = Vec::new();
                self.pairs.opened(now, &to, &mut effects);
                self.obey_pairs(effects);
            }
            Event::Echo { to, number, echo } => {
                let is_present = self.outgoing.get(&to).is_some_and(|w| w.number == number);
                if is_present && echo.from == to {
                    if !echo.confirmed.is_empty() {
                        let lag = now.since(Timestamp(echo.sent_at));
                        self.metrics.replication_lag.observe(lag.as_secs_f64());
                    }
                    let mut effects = Vec::new();
                    self.pairs.echo(now, echo, &mut effects);
                    self.obey_pairs(effects);
                }
            }
            Event::Broke { to, number } => {
                if self.outgoing.get(&to).is_some_and(|w| w.number == number) {
                    self.outgoing.remove(&to);
                    self.pairs.closed(&to);
                }
            }
            Event::Batch {
                from,
                number,
                batch,
            } => {
                // An echo on a way that the owner has given up tells nobody.
                let Some(way) = self.incoming.get_mut(&from).filter(|w| w.number == number) else {
                    return;
                };
                if batch.from.id != from {
                    return;
                }
                if !std::mem::replace(&mut way.begun, true) {
                    self.replicas.opened(&batch.from);
                }
                let mut effects = Vec::new();
                self.replicas.batch(now, *batch, &mut effects);
                self.obey_replicas(effects);
            }
            Event::Left { from, number } => {
                if self.incoming.get(&from).is_some_and(|w| w.number == number) {
                    self.incoming.remove(&from);
                }
            }
            Event::Granted(grant) => {
                if grant.node == self.me {
                    self.lease.granted(grant.renewal, grant.applied);
                }
            }
            Event::Proposed => self.is_proposing = false,
        }
    }

    fn obey_shard(&mut self, now: Timestamp, from_shard: FromShard) {
        match from_shard {
            FromShard::Replicate { to, part } => self.pairs.push(now, to, part),
            FromShard::Propose(proposal) => {
                self.proposals.insert(proposal.shard, proposal);
            }
            FromShard::Rest(answer) => {
                // Whoever asked has ended, and the node with it.
                let _ = answer.send(self.replicas.rest(now));
            }
        }
    }

    fn obey_pairs(&mut self, effects: Vec<pairs::Effect>) {
        for effect in effects {
            let shard = match &effect {
                pairs::Effect::Send(batch) => {
                    let way = self.outgoing.get_mut(&batch.to);
                    let frames = way.and_then(|way| way.frames.as_ref());
                    let sent = frames.is_some_and(|f| f.try_send(wire::encode(batch)).is_ok());
                    if !sent {
                        tracing::debug!(to = %batch.to.id, "a way to a standby takes no more");
                        self.outgoing.remove(&batch.to);
                        self.pairs.closed(&batch.to);
                    }
                    continue;
                }
                pairs::Effect::Confirmed(_, confirmed) => confirmed.shard,
                pairs::Effect::Refused(_, shard, _) | pairs::Effect::Lost(_, shard, _) => *shard,
                pairs::Effect::Reopened(_) | pairs::Effect::Ended(_) => {
                    for worker in &self.workers {
                        // It has ended, and the node with it.
                        let _ = worker.send(Input::Pair(effect.clone()));
                    }
                    continue;
                }
            };
            self.tell_worker(shard, Input::Pair(effect));
        }
    }

    fn obey_replicas(&mut self, effects: Vec<replicas::Effect>) {
        let (mut taken_over, mut moved) = (0, 0);
        for effect in effects {
            match effect {
                replicas::Effect::Echo(echo) => {
                    let way = self.incoming.get(&echo.to.id);
                    let sent = way.is_some_and(|w| w.frames.try_send(wire::encode(&echo)).is_ok());
                    if !sent {
                        // It cannot be told, so it has to begin anew.
                        self.incoming.remove(&echo.to.id);
                    }
                }
                replicas::Effect::Begin(succession) => {
                    let tenure = &succession.tenure;
                    let counted = if succession.is_released {
                        &mut moved
                    } else {
                        &mut taken_over
                    };
                    *counted += 1;
                    let shard = tenure.shard;
                    let why = if !succession.is_released {
                        Begun::TakenOver(self.agreement.cause(shard))
                    } else if self.agreement.is_drained(shard) {
                        Begun::Drained
                    } else {
                        Begun::Balanced
                    };
                    self.metrics.begun(succession.after, why);
                    self.tell_worker(tenure.shard, Input::Begin(succession));
                }
            }
        }
        if taken_over > 0 {
            tracing::info!(
                shards = taken_over,
                "takes over shards for which it stood by"
            );
        }
        if moved > 0 {
            tracing::info!(shards = moved, "serves shards that have moved here");
        }
    }

    fn tell_worker(&self, shard: ShardId, input: Input) {
        let worker = &self.workers[usize::from(shard.0) % self.workers.len()];
        // It has ended, and the node with it.
        let _ = worker.send(input);
    }

    /// One proposal at a time, of all that was wanted meanwhile.
    fn propose(&mut self) {
        if self.is_proposing || self.proposals.is_empty() {
            return;
        }
        self.is_proposing = true;
        let proposals = std::mem::take(&mut self.proposals).into_values();
        let sets = proposals.map(|proposal| ReplicaSet {
            shard: proposal.shard,
            owner: self.me.clone(),
            fence: proposal.fence,
            version: proposal.version,
            standbys: proposal.in_sync.into_iter().map(in_sync).collect(),
        });
        let sets = sets.collect();
        let (agreement, events) = (self.agreement.clone(), self.events.clone());
        tokio::spawn(async move {
            agreement.propose(sets).await;
            // The node ends: nobody wants to know any more.
            let _ = events.send(Event::Proposed).await;
        });
    }

    fn leases(&self) -> Leases {
        Leases {
            node: self.lease.until(self.applied).unwrap_or(Timestamp(0)),
            pairs: self.pairs.leases(),
        }
    }

    /// Tells leases: at once if those that were told have run out, else now and
    /// then.
    fn tell(&mut self, now: Timestamp) {
        let is_soon = now.since(self.told_at) < TELL_LEASES;
        let holds = {
            let told = self.duty.borrow();
            told.leases.hold(now, told.leases.pairs.keys())
        };
        if is_soon && holds {
            return;
        }
        let leases = self.leases();
        self.told_at = now;
        self.duty.send_if_modified(|duty| {
            let changed = *duty.leases != leases;
            if changed {
                duty.leases = Arc::new(leases);
            }
            changed
        });
    }
}

fn in_sync(node: NodeRef) -> Standby {
    Standby {
        node,
        state: Replica::InSync,
    }
}
