//! Shell: takes requests from the bus to the workers that own their shards.

use std::sync::Arc;

use proto::bus::Subscription;
use proto::codec;
use proto::id::GatewayRef;
use proto::message::{Message, Request, Requests};
use tokio::sync::{mpsc, watch};

use crate::core::routing::{Route, route};
use crate::core::shard::Effect;
use crate::metrics::Metrics;
use crate::{Config, worker};

/// Runs until shutdown. A full worker makes this wait; the bus's own queue then
/// fills and drops, and gateways send again what got no answer.
pub(crate) async fn run(
    config: Arc<Config>,
    mut subscription: Subscription,
    workers: Vec<mpsc::Sender<worker::Mail>>,
    out: mpsc::Sender<Vec<Effect>>,
    metrics: Arc<Metrics>,
    mut shutdown: watch::Receiver<bool>,
) {
    loop {
        let payload = tokio::select! {
            payload = subscription.next() => payload,
            _ = shutdown.wait_for(|stop| *stop) => None,
        };
        let Some(payload) = payload else { return };
        metrics.bus.requests.inc();
        let Requests { from, requests, .. } = match codec::decode(&payload) {
            Ok(Message::Requests(requests)) => requests,
            Ok(_) => {
                metrics.malformed.inc();
                continue;
            }
            Err(error) => {
                metrics.malformed.inc();
                tracing::warn!(node = %config.node.id, %error, "dropped a message on the node's subject");
                continue;
            }
        };
        if dispatch(&config, from, requests, &workers, &out, &metrics)
            .await
            .is_err()
        {
            return;
        }
    }
}

/// Sorts one batch by worker. Order is kept per worker, so per shard.
async fn dispatch(
    config: &Config,
    from: GatewayRef,
    requests: Vec<Request>,
    workers: &[mpsc::Sender<worker::Mail>],
    out: &mpsc::Sender<Vec<Effect>>,
    metrics: &Metrics,
) -> Result<(), Stopped> {
    let mut mail = vec![Vec::new(); workers.len()];
    let mut answers = Vec::new();
    for request in requests {
        match route(&config.map, &config.node, &request) {
            Route::Shard(shard) => {
                mail[usize::from(shard.0) % workers.len()].push((shard, request));
            }
            Route::Answer(reply) => answers.push(Effect::Reply {
                to: from.clone(),
                reply,
            }),
            Route::Drop => metrics.malformed.inc(),
        }
    }
    for (worker, requests) in workers.iter().zip(mail) {
        if !requests.is_empty() {
            let mail = worker::Mail {
                from: from.clone(),
                requests,
            };
            worker.send(mail).await.map_err(|_| Stopped)?;
        }
    }
    if !answers.is_empty() {
        out.send(answers).await.map_err(|_| Stopped)?;
    }
    Ok(())
}

/// The node is ending: whoever this wanted to talk to has ended.
struct Stopped;
