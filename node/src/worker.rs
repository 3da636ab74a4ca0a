//! Shell: a task that owns some of the node's shards and drives them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use proto::channel::ChannelKey;
use proto::id::{AppId, GatewayRef};
use proto::inspection::Answer;
use proto::message::{Published, Reply, ShardCounts};
use proto::namespace::Namespaces;
use proto::shard::ShardId;
use proto::time::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::beats::Turned;
use crate::core::checkpoint::ShardCheckpoint;
use crate::core::reports::Reports;
use crate::core::shard::Effect;
use crate::core::shards::{Input, Lease, Part, Shards};
use crate::metrics::{Metrics, ShardMetrics};
use crate::replicator::{Duty, FromShard};
use crate::{Config, View};

/// Batches that may wait for a worker; then ingress waits.
pub(crate) const MAILBOX: usize = 1_024;
/// How often time passes for shards that hear nothing.
const TICK: Duration = Duration::from_secs(1);
/// How often a worker looks at what waits for a lease, or for an earlier owner's
/// to end; and for how long it may stand still unnoticed, at least.
const TURN: Duration = Duration::from_millis(20);
/// How often it looks who should stand by.
const RECRUIT: Duration = Duration::from_millis(250);
/// After how long it is said that a shard waits, and for what.
const STANDS_STILL: Duration = Duration::from_secs(1);
/// For how many ticks a shard may lack the standby that it should have before that
/// is said.
const LACKS_STANDBY: u32 = 10;
/// Shards that it tells at a time: each new standby is sent the whole shard.
const RECRUITS_MAX: usize = 64;

/// What a worker is told or asked.
#[derive(Debug)]
pub(crate) enum Mail {
    /// In order.
    Inputs(Vec<Input>),
    /// A gateway says what became of publications.
    Counts(GatewayRef, Vec<ShardCounts>),
    /// Tell about a channel.
    Describe(ChannelKey, oneshot::Sender<Answer>),
    /// Tell about a shard.
    DescribeShard(ShardId, oneshot::Sender<Answer>),
    /// Serve nothing any more, say what was served, and end.
    Rest(oneshot::Sender<Vec<ShardCheckpoint>>),
}

/// All that a worker hears by.
pub(crate) struct Ears {
    pub(crate) mail: mpsc::Receiver<Mail>,
    /// What comes of what it has sent to standbys.
    pub(crate) news: mpsc::UnboundedReceiver<Input>,
    pub(crate) turned: Turned,
}

/// All whom it tells.
pub(crate) struct Mouths {
    pub(crate) out: mpsc::Sender<Vec<Effect>>,
    /// `None`: the node is alone.
    pub(crate) to_standbys: Option<mpsc::Sender<Vec<FromShard>>>,
}

pub(crate) struct Worker {
    shards: Shards,
    duty: watch::Receiver<Duty>,
    known: Duty,
    /// Of this round.
    to_standbys: Vec<FromShard>,
    metrics: Arc<Metrics>,
    by_shard: BTreeMap<ShardId, ShardMetrics>,
    /// Members that the gauges know of, by app.
    members: HashMap<AppId, i64>,
    reports: Reports,
    /// When it looked at leases last.
    looked_at: Timestamp,
    /// For how many ticks shards have lacked a standby.
    lacking: BTreeMap<ShardId, u32>,
}

impl Worker {
    pub(crate) fn new(
        config: &Config,
        part: Part,
        namespaces: Arc<Namespaces>,
        mut duty: watch::Receiver<Duty>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let known = duty.borrow_and_update().clone();
        let agreed = Arc::clone(&known.agreed);
        let shards = Shards::new(
            config.node.clone(),
            part,
            namespaces,
            Arc::clone(&agreed),
            Arc::clone(&known.leases),
        );
        let mut worker = Self {
            shards,
            duty,
            known,
            to_standbys: Vec::new(),
            metrics,
            by_shard: BTreeMap::new(),
            members: HashMap::new(),
            reports: Reports::default(),
            looked_at: Timestamp::now(),
            lacking: BTreeMap::new(),
        };
        worker.handle([Input::Agreed(agreed)]);
        worker
    }

    /// Runs until shutdown or until the node ends.
    pub(crate) async fn run(
        mut self,
        ears: Ears,
        mouths: Mouths,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut turn = tokio::time::interval(TURN);
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut recruit = tokio::time::interval(RECRUIT);
        recruit.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let Ears {
            mut mail,
            mut news,
            turned,
        } = ears;
        let answer = loop {
            turned.turn(Timestamp::now());
            let effects = tokio::select! {
                biased;
                _ = shutdown.wait_for(|stop| *stop) => return,
                // Before the mail: what has been taken away is not served.
                () = View::changed(&mut self.duty) => self.follow(),
                // And a worker that is always busy ticks, too.
                _ = tick.tick() => self.tick(),
                _ = turn.tick() => self.look_at_leases(),
                _ = recruit.tick() => self.recruit(),
                Some(input) = news.recv() => {
                    let mut inputs = vec![input];
                    while let Ok(more) = news.try_recv() {
                        inputs.push(more);
                    }
                    self.handle(inputs)
                }
                mail = mail.recv() => match mail {
                    Some(Mail::Inputs(inputs)) => self.handle(inputs),
                    Some(Mail::Counts(from, counts)) => {
                        self.take_counts(&from, &counts);
                        continue;
                    }
                    Some(Mail::Describe(key, answer)) => {
                        // Whoever asked may have gone.
                        let _ = answer.send(self.shards.describe(&key));
                        continue;
                    }
                    Some(Mail::DescribeShard(shard, answer)) => {
                        let now = Timestamp::now();
                        let _ = answer.send(self.shards.describe_shard(now, shard));
                        continue;
                    }
                    Some(Mail::Rest(answer)) => break answer,
                    None => return,
                },
            };
            // First: what is held waits for them.
            if let Some(to) = &mouths.to_standbys
                && !self.to_standbys.is_empty()
            {
                let all = std::mem::take(&mut self.to_standbys);
                if to.send(all).await.is_err() {
                    return;
                }
            }
            if !effects.is_empty() && mouths.out.send(effects).await.is_err() {
                return;
            }
        };
        let mut effects = Vec::new();
        let kept = self.shards.rest(Timestamp::now(), &mut effects);
        effects.retain_mut(|effect| self.count(effect));
        // The node ends, and so does whoever does not hear it.
        let _ = mouths.out.send(effects).await;
        let _ = answer.send(kept);
    }

    fn follow(&mut self) -> Vec<Effect> {
        let duty = self.duty.borrow_and_update().clone();
        let before = std::mem::replace(&mut self.known, duty);
        let agreed = Arc::clone(&self.known.agreed);
        if !Arc::ptr_eq(&agreed.gone, &before.agreed.gone) {
            let gone = agreed.gone.since(&before.agreed.gone);
            gone.for_each(|gateway| self.reports.forget(&gateway));
        }
        let news = (!Arc::ptr_eq(&agreed, &before.agreed)).then_some(Input::Agreed(agreed));
        let leases = Input::Leases(Arc::clone(&self.known.leases));
        self.handle(news.into_iter().chain([leases]))
    }

    /// Time alone ends what is waited for, and shows who is silent.
    fn look_at_leases(&mut self) -> Vec<Effect> {
        let now = Timestamp::now();
        let since = now.since(self.looked_at).as_secs_f64();
        self.looked_at = now;
        match self.shards.lacks(now) {
            Some(Lease::Node) => self.metrics.paused.node.inc_by(since),
            Some(Lease::Pair) => self.metrics.paused.pair.inc_by(since),
            None => {}
        }
        self.handle([Input::Leases(Arc::clone(&self.known.leases))])
    }

    /// Tells shards who should stand by, where that is somebody else; those first
    /// for which nobody does.
    fn recruit(&mut self) -> Vec<Effect> {
        let differing = self.shards.differing(&self.known.targets);
        let wants = differing.map(|(shard, standbys)| Input::Want { shard, standbys });
        let wants: Vec<Input> = wants.take(RECRUITS_MAX).collect();
        if wants.is_empty() {
            return Vec::new();
        }
        self.handle(wants)
    }

    fn tick(&mut self) -> Vec<Effect> {
        let effects = self.handle([Input::Tick]);
        self.complain();
        self.look_for_standbys();
        for (id, shard) in self.shards.served() {
            if let Some(metrics) = self.by_shard.get(&id) {
                metrics.channels.set(shard.channels() as i64);
                metrics.interest.set(shard.interest() as i64);
                metrics
                    .idempotency_keys
                    .set(shard.idempotency_keys() as i64);
            }
        }
        self.count_members();
        effects
    }

    /// Several workers share the gauges, so each adds what has changed with it.
    fn count_members(&mut self) {
        let mut members: HashMap<AppId, i64> = HashMap::new();
        for (app, count) in self.shards.served().flat_map(|(_, shard)| shard.members()) {
            match members.get_mut(app) {
                Some(known) => *known += count as i64,
                None => drop(members.insert(app.clone(), count as i64)),
            }
        }
        let gauges = &self.metrics.presence_members;
        for (app, before) in &self.members {
            let now = members.get(app).copied().unwrap_or_default();
            gauges.with_label_values(&[app.as_str()]).add(now - before);
        }
        for (app, count) in &members {
            if !self.members.contains_key(app) {
                gauges.with_label_values(&[app.as_str()]).add(*count);
            }
        }
        self.members = members;
    }

    /// Counts what a gateway says became of what this worker has sent. Of what an
    /// earlier owner has sent that one counts.
    fn take_counts(&mut self, from: &GatewayRef, counts: &[ShardCounts]) {
        for count in counts {
            let shard = count.shard;
            if self.shards.fence(shard) == Some(count.fence)
                && let Some(metrics) = self.by_shard.get(&shard)
            {
                metrics.spread(self.reports.take(shard, from, count.fanout));
            }
        }
    }

    /// Says how it stands with shards that have lacked a standby for long, once.
    fn look_for_standbys(&mut self) {
        let targets = &self.known.targets;
        let lacking = &mut self.lacking;
        let mut said = None;
        let (mut all, before) = (BTreeMap::new(), std::mem::take(lacking));
        for (id, shard) in self.shards.served() {
            let is_wanted = targets
                .get(&id)
                .is_some_and(|target| target.standby.is_some());
            let mut standbys = shard.replication().standbys();
            if is_wanted && !standbys.any(|(_, counts)| counts) {
                let ticks = before.get(&id).copied().unwrap_or_default() + 1;
                all.insert(id, ticks);
                if ticks == LACKS_STANDBY {
                    said.get_or_insert_with(|| (id, shard.replication().progress()));
                }
            }
        }
        *lacking = all;
        if let Some((shard, standbys)) = said {
            let shards = self.lacking.len();
            tracing::warn!(
                shards,
                "shards have lacked a standby for {LACKS_STANDBY} s; of shard {shard} the standbys are: {standbys}"
            );
        }
    }

    /// Says why shards stand still, if any has for some time.
    fn complain(&self) {
        let now = Timestamp::now();
        let leases = &self.known.leases;
        let mut reasons: BTreeMap<String, u32> = BTreeMap::new();
        for (_, shard) in self.shards.served() {
            let replication = shard.replication();
            if replication.stands_still(now) >= STANDS_STILL
                && let Some(reason) = replication.waits_for(now, leases)
            {
                *reasons.entry(reason).or_default() += 1;
            }
        }
        for (reason, shards) in &reasons {
            tracing::warn!(shards, "what is asked of shards waits for {reason}");
        }
    }

    /// Returns what is to be sent.
    fn handle(&mut self, inputs: impl IntoIterator<Item = Input>) -> Vec<Effect> {
        let now = Timestamp::now();
        let mut effects = Vec::new();
        for input in inputs {
            self.shards.handle(now, input, &mut effects);
        }
        let for_standbys =
            |effect: &mut Effect| matches!(effect, Effect::Replicate { .. } | Effect::Propose(_));
        for effect in effects.extract_if(.., for_standbys) {
            match effect {
                Effect::Replicate { to, part } => {
                    self.to_standbys.push(FromShard::Replicate { to, part });
                }
                Effect::Propose(proposal) => self.to_standbys.push(FromShard::Propose(proposal)),
                _ => {}
            }
        }
        effects.retain_mut(|effect| self.count(effect));
        effects
    }

    /// Counts an effect, and says whether there is more to it.
    fn count(&mut self, effect: &mut Effect) -> bool {
        match effect {
            Effect::Deliver { to, entry } => {
                if let Some(metrics) = self.by_shard.get(&entry.shard) {
                    metrics.publications.inc();
                    metrics.fanout_messages.inc_by(to.iter().count() as u64);
                    metrics.bytes.inc_by(entry.publication.data.len() as u64);
                }
                true
            }
            Effect::Reply { reply, .. } | Effect::Acknowledge { reply, .. } => {
                if let Reply::Published {
                    result: Ok(Published::Accepted { copies, .. }),
                    ..
                } = reply
                {
                    let acks = &self.metrics.acks;
                    let counter = if *copies > 1 {
                        &acks.replicated
                    } else {
                        &acks.alone
                    };
                    counter.inc();
                }
                true
            }
            Effect::Repair { .. }
            | Effect::Replicate { .. }
            | Effect::Propose(_)
            | Effect::Release { .. } => true,
            Effect::Forget(gateway) => {
                self.reports.forget(gateway);
                true
            }
            Effect::Under(leased) => {
                leased.effects.retain_mut(|effect| self.count(effect));
                true
            }
            Effect::Healed => {
                self.metrics.interest_healed.inc();
                false
            }
            Effect::Converged(took) => {
                let took = took.as_secs_f64();
                self.metrics.presence_convergence.observe(took);
                false
            }
            Effect::Repeated => {
                self.metrics.publishes_repeated.inc();
                false
            }
            Effect::KeyRefused { full } => {
                let counter = if *full {
                    &self.metrics.idempotency_full
                } else {
                    &self.metrics.idempotency_mismatch
                };
                counter.inc();
                false
            }
            Effect::Started(shard) => {
                self.by_shard.insert(*shard, self.metrics.shard(*shard));
                self.metrics.shards_owned.inc();
                false
            }
            Effect::Stopped(shard) => {
                self.by_shard.remove(shard);
                self.metrics.remove_shard(*shard);
                self.reports.drop_shard(*shard);
                self.metrics.shards_owned.dec();
                // What is late for it is performed no more.
                true
            }
            Effect::Unroutable => {
                self.metrics.malformed.inc();
                false
            }
        }
    }
}
