//! Shell: sends what [`Outbound`] says. One task, so that each gateway has one
//! link with one sequence. Batching is natural: what comes while the last round
//! is being sent goes out together in the next. Nothing here waits for a
//! recipient or for the bus: a publish into a bus that is full or away returns
//! at once, and what it lost the link finds and repairs.

use std::sync::Arc;
use std::time::Duration;

use proto::bus::BusHandle;
use proto::subject::Subject;
use proto::time::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::core::outbound::{Kind, Outbound, Parcel, TICK};
use crate::core::shard::Effect;
use crate::metrics::Metrics;
use crate::replicator::{Duty, FromShard};
use crate::{Config, View};

/// Rounds of effects that may wait; then workers wait.
pub(crate) const MAILBOX: usize = 1_024;
/// Rounds of effects that are sent together at most.
const ROUND: usize = 256;
/// How often the node says that it is there.
const BEAT: Duration = Duration::from_millis(500);

/// From whom it hears, and whom it tells besides the bus.
pub(crate) struct Ears {
    pub(crate) mailbox: mpsc::Receiver<Vec<Effect>>,
    /// `None`: the node is alone.
    pub(crate) to_standbys: Option<mpsc::Sender<Vec<FromShard>>>,
}

/// Runs until shutdown.
pub(crate) async fn run(
    config: Arc<Config>,
    leads: watch::Receiver<bool>,
    mut duty: watch::Receiver<Duty>,
    bus: BusHandle,
    mut ears: Ears,
    metrics: Arc<Metrics>,
    mut shutdown: watch::Receiver<bool>,
) {
    let Duty { agreed, leases, .. } = duty.borrow_and_update().clone();
    let map = Arc::clone(&agreed.map);
    metrics.map_version.set(map.version as i64);
    let mut outbound = Outbound::new(config.node.clone(), config.namespaces.digest(), map);
    outbound.lease(leases);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round = Vec::with_capacity(ROUND);
    let mut parcels = Vec::new();
    loop {
        tokio::select! {
            biased;
            _ = shutdown.wait_for(|stop| *stop) => return,
            () = View::changed(&mut duty) => {
                let Duty { agreed, leases, .. } = duty.borrow_and_update().clone();
                outbound.lease(leases);
                outbound.lose(Arc::clone(&agreed.gone));
                let map = Arc::clone(&agreed.map);
                metrics.map_version.set(map.version as i64);
                parcels.extend(outbound.follow(map, *leads.borrow()));
            }
            _ = beat.tick() => parcels.extend(outbound.beat()),
            _ = tick.tick() => outbound.tick(Timestamp::now(), &mut parcels),
            count = ears.mailbox.recv_many(&mut round, ROUND) => {
                if count == 0 {
                    return;
                }
                outbound.send(Timestamp::now(), round.drain(..).flatten(), &mut parcels);
            }
        }
        for parcel in parcels.drain(..) {
            publish(&config, &bus, &metrics, parcel);
        }
        let released = outbound.released();
        let released = released.map(|(to, part)| FromShard::Replicate { to, part });
        let released: Vec<FromShard> = released.collect();
        if let Some(to) = &ears.to_standbys
            && !released.is_empty()
            && to.send(released).await.is_err()
        {
            return;
        }
    }
}

fn publish(config: &Config, bus: &BusHandle, metrics: &Metrics, parcel: Parcel) {
    match parcel.kind {
        Kind::Batch => metrics.bus.batches.inc(),
        Kind::Repair => metrics.bus.repairs.inc(),
        Kind::Replies => metrics.bus.replies.inc(),
        Kind::Beat => metrics.bus.beats.inc(),
        Kind::Map => metrics.bus.maps.inc(),
    }
    let subject = Subject {
        cluster: config.cluster.clone(),
        address: parcel.to,
    };
    if let Err(error) = bus.publish(&subject, parcel.bytes) {
        metrics.bus.refused.inc();
        tracing::warn!(node = %config.node.id, %subject, %error, "the bus did not take a message");
    }
}
