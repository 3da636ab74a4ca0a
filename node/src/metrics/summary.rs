//! Summaries per shard: how many there were, and their sum, and nothing else. A
//! histogram would have a series per bucket for each shard.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType, Summary};
use proto::shard::ShardId;

/// A family of them. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct ShardSummaries {
    name: String,
    help: String,
    desc: Desc,
    by_shard: Arc<Mutex<BTreeMap<ShardId, ShardSummary>>>,
}

/// One shard's. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct ShardSummary(Arc<Cell>);

#[derive(Debug, Default)]
struct Cell {
    count: AtomicU64,
    /// In millionths.
    sum: AtomicU64,
}

impl ShardSummary {
    /// So many more, and their sum in millionths.
    pub(super) fn add(&self, count: u64, millionths: u64) {
        self.0.count.fetch_add(count, Ordering::Relaxed);
        self.0.sum.fetch_add(millionths, Ordering::Relaxed);
    }
}

impl ShardSummaries {
    pub(super) fn new(name: &str, help: &str) -> Result<Self, prometheus::Error> {
        let labels = vec!["shard".to_owned()];
        Ok(Self {
            name: name.into(),
            help: help.into(),
            desc: Desc::new(name.into(), help.into(), labels, HashMap::new())?,
            by_shard: Arc::default(),
        })
    }

    pub(super) fn of(&self, shard: ShardId) -> ShardSummary {
        self.shards().entry(shard).or_default().clone()
    }

    pub(super) fn remove(&self, shard: ShardId) {
        self.shards().remove(&shard);
    }

    fn shards(&self) -> std::sync::MutexGuard<'_, BTreeMap<ShardId, ShardSummary>> {
        self.by_shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for ShardSummaries {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let shards = self.shards();
        let metrics = shards.iter().map(|(shard, summary)| {
            let mut label = LabelPair::default();
            label.set_name("shard".into());
            label.set_value(shard.to_string());
            let mut shown = Summary::default();
            shown.set_sample_count(summary.0.count.load(Ordering::Relaxed));
            shown.set_sample_sum(summary.0.sum.load(Ordering::Relaxed) as f64 / 1e6);
            let mut metric = Metric::from_label(vec![label]);
            metric.set_summary(shown);
            metric
        });
        let mut family = MetricFamily::default();
        family.set_name(self.name.clone());
        family.set_help(self.help.clone());
        family.set_field_type(MetricType::SUMMARY);
        family.set_metric(metrics.collect());
        vec![family]
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Registry, TextEncoder};

    use super::*;

    #[test]
    fn a_shard_has_a_sum_and_a_count_until_it_goes() {
        let registry = Registry::new();
        let family = ShardSummaries::new("x_seconds", "Help.").unwrap();
        registry.register(Box::new(family.clone())).unwrap();
        let page = || {
            let families = registry.gather();
            TextEncoder::new().encode_to_string(&families).unwrap()
        };
        let summary = family.of(ShardId(7));
        family.of(ShardId(8));
        summary.add(2, 1_500_000);
        summary.add(1, 500_000);
        let shown = page();
        assert!(shown.contains("# TYPE x_seconds summary"), "{shown}");
        assert!(shown.contains("x_seconds_sum{shard=\"7\"} 2\n"), "{shown}");
        assert!(
            shown.contains("x_seconds_count{shard=\"7\"} 3\n"),
            "{shown}"
        );
        family.remove(ShardId(7));
        let shown = page();
        assert!(!shown.contains("shard=\"7\"") && shown.contains("shard=\"8\""));
    }
}
