//! What a node counts of each shard that it owns.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};
use proto::message::Fanout;
use proto::shard::ShardId;

use super::summary::{ShardSummaries, ShardSummary};

/// The families that have a series for each shard. A shard is in all of them or
/// in none whenever they are collected: whoever joins two families by shard
/// misses nothing. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct ShardFamilies {
    publications: IntCounterVec,
    fanout_messages: IntCounterVec,
    deliveries: IntCounterVec,
    fanout_share: ShardSummaries,
    fanout_seconds: ShardSummaries,
    bytes: IntCounterVec,
    channels: IntGaugeVec,
    interest: IntGaugeVec,
    idempotency_keys: IntGaugeVec,
    /// Held while shards come and go, and while they are collected.
    one_moment: Arc<Mutex<()>>,
}

/// One shard's handles.
#[derive(Debug)]
pub struct ShardMetrics {
    /// Publications.
    pub publications: IntCounter,
    /// Link messages: publications times interested gateways.
    pub fanout_messages: IntCounter,
    deliveries: IntCounter,
    fanout_share: ShardSummary,
    fanout_seconds: ShardSummary,
    /// Bytes of event data.
    pub bytes: IntCounter,
    /// Channels with state.
    pub channels: IntGauge,
    /// (gateway, channel) pairs.
    pub interest: IntGauge,
    /// Idempotency keys that are remembered.
    pub idempotency_keys: IntGauge,
}

impl ShardMetrics {
    /// This has become of its publications, besides what was counted before.
    pub fn spread(&self, fanout: Fanout) {
        self.deliveries.inc_by(fanout.deliveries);
        self.fanout_share.add(fanout.spreads, fanout.share_ppm);
        self.fanout_seconds.add(fanout.spreads, fanout.busy_us);
    }
}

impl ShardFamilies {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let counters =
            |name: &str, help: &str| IntCounterVec::new(Opts::new(name, help), &["shard"]);
        let gauges = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["shard"]);
        Ok(Self {
            publications: counters(
                "dunlin_shard_publications_total",
                "Publications of a shard. Exported by its owner alone.",
            )?,
            fanout_messages: counters(
                "dunlin_shard_fanout_messages_total",
                "Link messages of a shard: publications times interested gateways.",
            )?,
            deliveries: counters(
                "dunlin_shard_deliveries_total",
                "Publications of a shard times connections that they were written to or queued for, as gateways report it while this node owns the shard: some seconds late. Without what clients were given that had come back.",
            )?,
            fanout_share: ShardSummaries::new(
                "dunlin_shard_fanout_share_ratio",
                "Fraction of its connections that a gateway's worker had to send a publication of the shard to, of all publications and workers that had any.",
            )?,
            fanout_seconds: ShardSummaries::new(
                "dunlin_shard_fanout_seconds",
                "How long a gateway's worker was busy with sending a publication of the shard to its connections, of all publications and workers that had any.",
            )?,
            bytes: counters(
                "dunlin_shard_bytes_total",
                "Bytes of event data published in a shard.",
            )?,
            channels: gauges(
                "dunlin_shard_channels",
                "Channels of a shard that have state.",
            )?,
            interest: gauges(
                "dunlin_shard_interest",
                "Pairs of gateway and channel in a shard that get publications.",
            )?,
            idempotency_keys: gauges(
                "dunlin_shard_idempotency_keys",
                "Idempotency keys of a shard that are remembered.",
            )?,
            one_moment: Arc::default(),
        })
    }

    /// The handles of a shard that is exported from now on.
    pub(super) fn add(&self, shard: ShardId) -> ShardMetrics {
        let _held = self.moment();
        let label = shard.to_string();
        let label = [label.as_str()];
        ShardMetrics {
            publications: self.publications.with_label_values(&label),
            fanout_messages: self.fanout_messages.with_label_values(&label),
            deliveries: self.deliveries.with_label_values(&label),
            fanout_share: self.fanout_share.of(shard),
            fanout_seconds: self.fanout_seconds.of(shard),
            bytes: self.bytes.with_label_values(&label),
            channels: self.channels.with_label_values(&label),
            interest: self.interest.with_label_values(&label),
            idempotency_keys: self.idempotency_keys.with_label_values(&label),
        }
    }

    /// The shard is exported no longer.
    pub(super) fn remove(&self, shard: ShardId) {
        let _held = self.moment();
        let label = shard.to_string();
        let label = [label.as_str()];
        let counters = [
            &self.publications,
            &self.fanout_messages,
            &self.deliveries,
            &self.bytes,
        ];
        for counter in counters {
            // Not there: it was never served.
            let _ = counter.remove_label_values(&label);
        }
        for gauge in [&self.channels, &self.interest, &self.idempotency_keys] {
            let _ = gauge.remove_label_values(&label);
        }
        self.fanout_share.remove(shard);
        self.fanout_seconds.remove(shard);
    }

    fn moment(&self) -> std::sync::MutexGuard<'_, ()> {
        self.one_moment
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn families(&self) -> [&dyn Collector; 9] {
        [
            &self.publications,
            &self.fanout_messages,
            &self.deliveries,
            &self.fanout_share,
            &self.fanout_seconds,
            &self.bytes,
            &self.channels,
            &self.interest,
            &self.idempotency_keys,
        ]
    }
}

impl Collector for ShardFamilies {
    fn desc(&self) -> Vec<&Desc> {
        self.families()
            .iter()
            .flat_map(|each| each.desc())
            .collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let _held = self.moment();
        let families = self.families();
        families.iter().flat_map(|each| each.collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn shards_of(family: &MetricFamily) -> Vec<&str> {
        let metrics = family.get_metric().iter();
        let mut shards: Vec<_> = metrics.map(|one| one.get_label()[0].value()).collect();
        shards.sort_unstable();
        shards
    }

    #[test]
    fn a_shard_is_in_all_families_or_in_none() {
        let families = ShardFamilies::new().unwrap();
        let ends = AtomicBool::new(false);
        let (mut last, mut changes) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ends.load(Ordering::Relaxed) {
                    for shard in 0..20 {
                        families.add(ShardId(shard));
                    }
                    for shard in 0..20 {
                        families.remove(ShardId(shard));
                    }
                }
            });
            for _ in 0..1_000_000 {
                let collected = families.collect();
                let shards = shards_of(&collected[0]);
                let differs = collected.iter().find(|one| shards_of(one) != shards);
                if let Some(differs) = differs {
                    ends.store(true, Ordering::Relaxed);
                    panic!("{shards:?}, and {:?}", shards_of(differs));
                }
                changes += usize::from(shards.len() != last);
                last = shards.len();
                if changes == 100 {
                    break;
                }
            }
            ends.store(true, Ordering::Relaxed);
        });
        assert_eq!(changes, 100, "collected while they come and go");
    }
}
