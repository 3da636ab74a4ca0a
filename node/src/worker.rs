//! Shell: a task that owns some of the node's shards and drives them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::id::GatewayRef;
use proto::message::Request;
use proto::shard::ShardId;
use proto::time::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::Config;
use crate::core::shard::{Effect, Input, Shard, Tenure};
use crate::metrics::{Metrics, ShardMetrics};

/// Batches that may wait for a worker; then ingress waits.
pub(crate) const MAILBOX: usize = 1_024;
/// How often time passes for shards that hear nothing.
const TICK: Duration = Duration::from_secs(1);

/// Requests of one gateway, in order.
#[derive(Debug)]
pub(crate) struct Mail {
    pub(crate) from: GatewayRef,
    pub(crate) requests: Vec<(ShardId, Request)>,
}

pub(crate) struct Worker {
    shards: BTreeMap<ShardId, (Shard, ShardMetrics)>,
}

impl Worker {
    /// The worker of every `config.workers`-th shard, beginning with `index`.
    pub(crate) fn new(config: &Config, index: usize, metrics: Arc<Metrics>) -> Self {
        let namespaces = Arc::new(config.namespaces.clone());
        let shards: BTreeMap<_, _> = (0..config.map.sharding.count)
            .skip(index)
            .step_by(config.workers.max(1))
            .map(ShardId)
            .filter_map(|shard| {
                let (owner, fence) = config.map.owner(shard)?;
                let tenure = Tenure {
                    shard,
                    fence,
                    owner: owner.clone(),
                    cluster: config.map.cluster,
                };
                (*owner == config.node).then(|| {
                    (
                        shard,
                        (
                            Shard::new(tenure, Arc::clone(&namespaces)),
                            metrics.shard(shard),
                        ),
                    )
                })
            })
            .collect();
        metrics.shards_owned.add(shards.len() as i64);
        Self { shards }
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
                // Before the mail: a worker that is always busy ticks, too.
                _ = tick.tick() => self.tick(),
                mail = mailbox.recv() => match mail {
                    Some(mail) => self.take(mail),
                    None => return,
                },
            };
            if !effects.is_empty() && out.send(effects).await.is_err() {
                return;
            }
        }
    }

    fn take(&mut self, mail: Mail) -> Vec<Effect> {
        let now = Timestamp::now();
        let mut effects = Vec::with_capacity(mail.requests.len() * 2);
        for (shard, request) in mail.requests {
            let Some((shard, metrics)) = self.shards.get_mut(&shard) else {
                continue;
            };
            let first = effects.len();
            let input = Input::Request {
                from: mail.from.clone(),
                request,
            };
            shard.handle(now, input, &mut effects);
            count(&effects[first..], metrics);
        }
        effects
    }

    fn tick(&mut self) -> Vec<Effect> {
        let now = Timestamp::now();
        let mut effects = Vec::new();
        for (shard, metrics) in self.shards.values_mut() {
            shard.handle(now, Input::Tick, &mut effects);
            metrics.channels.set(shard.channels() as i64);
            metrics.interest.set(shard.interest() as i64);
        }
        effects
    }
}

fn count(effects: &[Effect], metrics: &ShardMetrics) {
    for effect in effects {
        if let Effect::Deliver { to, entry } = effect {
            metrics.publications.inc();
            metrics.fanout_messages.inc_by(to.len() as u64);
            metrics.bytes.inc_by(entry.publication.data.len() as u64);
        }
    }
}
