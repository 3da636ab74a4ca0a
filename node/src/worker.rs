//! Shell: a task that owns some of the node's shards and drives them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::channel::ChannelKey;
use proto::message::Answer;
use proto::namespace::Namespaces;
use proto::shard::{ShardId, ShardMap};
use proto::time::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::core::agreed::Agreed;
use crate::core::replication::Leases;
use crate::core::shard::Effect;
use crate::core::shards::{Input, Part, Shards};
use crate::metrics::{Metrics, ShardMetrics};
use crate::{Config, View};

/// Batches that may wait for a worker; then ingress waits.
pub(crate) const MAILBOX: usize = 1_024;
/// How often time passes for shards that hear nothing.
const TICK: Duration = Duration::from_secs(1);

/// What a worker is told or asked.
#[derive(Debug)]
pub(crate) enum Mail {
    /// In order.
    Inputs(Vec<Input>),
    /// Tell about a channel.
    Describe(ChannelKey, oneshot::Sender<Answer>),
}

pub(crate) struct Worker {
    shards: Shards,
    map: watch::Receiver<Arc<ShardMap>>,
    metrics: Arc<Metrics>,
    by_shard: BTreeMap<ShardId, ShardMetrics>,
}

impl Worker {
    pub(crate) fn new(
        config: &Config,
        part: Part,
        namespaces: Arc<Namespaces>,
        mut map: watch::Receiver<Arc<ShardMap>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let first = Arc::clone(&map.borrow_and_update());
        let agreed = Arc::new(Agreed::alone(first));
        let shards = Shards::new(
            config.node.clone(),
            part,
            namespaces,
            Arc::clone(&agreed),
            Arc::new(Leases::unlimited()),
        );
        let mut worker = Self {
            shards,
            map,
            metrics,
            by_shard: BTreeMap::new(),
        };
        worker.handle([Input::Agreed(agreed)]);
        worker
    }

    /// Runs until shutdown or until the node ends.
    pub(crate) async fn run(
        mut self,
        mut mailbox: mpsc::Receiver<Mail>,
        out: mpsc::Sender<Vec<Effect>>,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let effects = tokio::select! {
                biased;
                _ = shutdown.wait_for(|stop| *stop) => return,
                // Before the mail: what has been taken away is not served.
                () = View::map_changed(&mut self.map) => self.follow(),
                // And a worker that is always busy ticks, too.
                _ = tick.tick() => self.tick(),
                mail = mailbox.recv() => match mail {
                    Some(Mail::Inputs(inputs)) => self.handle(inputs),
                    Some(Mail::Describe(key, answer)) => {
                        // Whoever asked may have gone.
                        let _ = answer.send(self.shards.describe(&key));
                        continue;
                    }
                    None => return,
                },
            };
            if !effects.is_empty() && out.send(effects).await.is_err() {
                return;
            }
        }
    }

    fn follow(&mut self) -> Vec<Effect> {
        let map = Arc::clone(&self.map.borrow_and_update());
        self.handle([Input::Agreed(Arc::new(Agreed::alone(map)))])
    }

    fn tick(&mut self) -> Vec<Effect> {
        let effects = self.handle([Input::Tick]);
        for (id, shard) in self.shards.served() {
            if let Some(metrics) = self.by_shard.get(&id) {
                metrics.channels.set(shard.channels() as i64);
                metrics.interest.set(shard.interest() as i64);
                metrics
                    .idempotency_keys
                    .set(shard.idempotency_keys() as i64);
            }
        }
        effects
    }

    /// Returns what is to be sent.
    fn handle(&mut self, inputs: impl IntoIterator<Item = Input>) -> Vec<Effect> {
        let now = Timestamp::now();
        let mut effects = Vec::new();
        for input in inputs {
            self.shards.handle(now, input, &mut effects);
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
            Effect::Reply { .. } | Effect::Forget(_) | Effect::Repair { .. } => true,
            Effect::Under(leased) => {
                leased.effects.retain_mut(|effect| self.count(effect));
                true
            }
            Effect::Replicate { .. } | Effect::Propose(_) => false,
            Effect::Healed => {
                self.metrics.interest_healed.inc();
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
