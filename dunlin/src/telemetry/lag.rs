//! How long anything new waits for its runtime: here that of the process is measured;
//! a gateway does so for the threads that own connections. Percentiles are of both.

use std::collections::HashMap;
use std::time::Duration;

use prometheus::proto::{Gauge, Metric, MetricFamily, MetricType};
use prometheus::{HistogramOpts, HistogramVec, Registry};

/// The histogram of all that is measured.
pub(super) const NAME: &str = "dunlin_runtime_lag_seconds";
/// How often the runtime is asked how long it takes to begin a task.
const INTERVAL: Duration = Duration::from_millis(20);
/// What is shown besides.
const PERCENTILES: [(u32, f64); 3] = [(50, 0.5), (90, 0.9), (99, 0.99)];

/// Measures how long a new task waits for its first turn, from a thread of its
/// own: what a message that comes now would wait. Ends with the runtime.
pub(super) fn watch(registry: &Registry) -> Result<(), prometheus::Error> {
    let lag = HistogramVec::new(
        HistogramOpts::new(
            NAME,
            "How long a new task waits until a runtime begins with it, measured every 20 ms: of the process (main), and of the threads that own connections (worker).",
        )
        .buckets(vec![
            0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
        ]),
        &["runtime"],
    )?;
    registry.register(Box::new(lag.clone()))?;
    let lag = lag.with_label_values(&["main"]);
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return Ok(());
    };
    let started = std::thread::Builder::new()
        .name("lag".into())
        .spawn(move || {
            loop {
                let began = std::time::Instant::now();
                let lag = lag.clone();
                let task = runtime.spawn(async move { lag.observe(began.elapsed().as_secs_f64()) });
                std::thread::sleep(INTERVAL);
                // Cancelled: the runtime is shutting down.
                if task.is_finished() && runtime.block_on(task).is_err() {
                    return;
                }
            }
        });
    if let Err(error) = started {
        tracing::warn!(%error, "runtime lag is not measured");
    }
    Ok(())
}

/// Percentiles of what has been measured since they were last looked at.
#[derive(Debug, Default)]
pub(super) struct Percentiles {
    of: HashMap<String, Window>,
}

#[derive(Debug, Default)]
struct Window {
    /// How many were in each bucket, or in one before it, when it began.
    before: Vec<u64>,
    /// What was shown then.
    shown: [f64; 3],
}

impl Percentiles {
    /// A gauge for each percentile and runtime. Where nothing has been measured since
    /// the last time, what was shown then.
    pub(super) fn families(&mut self, lag: &MetricFamily) -> Vec<MetricFamily> {
        let mut families = PERCENTILES.map(|(percent, _)| {
            let mut family = MetricFamily::default();
            family.set_name(format!("dunlin_runtime_lag_p{percent}_seconds"));
            family.set_help(format!("The {percent}th percentile of `{NAME}` since the last time that this page was read."));
            family.set_field_type(MetricType::GAUGE);
            family
        });
        for metric in lag.get_metric() {
            let labels = metric.get_label();
            let runtime = labels.iter().find(|label| label.name() == "runtime");
            let runtime = runtime.map(|label| label.value()).unwrap_or_default();
            let window = self.of.entry(runtime.to_owned()).or_default();
            let buckets = metric.get_histogram().get_bucket();
            let bounds: Vec<f64> = buckets.iter().map(|bucket| bucket.upper_bound()).collect();
            let mut counts: Vec<u64> = buckets.iter().map(|it| it.cumulative_count()).collect();
            // Those that no bucket takes.
            counts.push(metric.get_histogram().get_sample_count());
            let shown = window.next(&bounds, counts);
            for (family, shown) in families.iter_mut().zip(shown) {
                let mut gauge = Gauge::default();
                gauge.set_value(shown);
                let mut metric = Metric::from_label(labels.to_vec());
                metric.set_gauge(gauge);
                family.mut_metric().push(metric);
            }
        }
        families.into()
    }
}

impl Window {
    fn next(&mut self, bounds: &[f64], counts: Vec<u64>) -> [f64; 3] {
        self.before.resize(counts.len(), 0);
        let since = counts.iter().zip(&self.before);
        let since: Vec<u64> = since
            .map(|(now, before)| now.saturating_sub(*before))
            .collect();
        for (shown, (_, quantile)) in self.shown.iter_mut().zip(PERCENTILES) {
            if let Some(value) = value_at(quantile, bounds, &since) {
                *shown = value;
            }
        }
        self.before = counts;
        self.shown
    }
}

/// The value below which that part of all lies, as if those of a bucket lay evenly in
/// it; above the last bound, that. `counts` has one more than there are bounds.
fn value_at(quantile: f64, bounds: &[f64], counts: &[u64]) -> Option<f64> {
    let all = *counts.last()?;
    if all == 0 {
        return None;
    }
    let rank = quantile * all as f64;
    let bucket = counts.iter().position(|count| *count as f64 >= rank)?;
    let Some(upper) = bounds.get(bucket) else {
        return bounds.last().copied();
    };
    let (lower, below) = match bucket.checked_sub(1) {
        Some(before) => (bounds[before], counts[before]),
        None => (0.0, 0),
    };
    let part = (rank - below as f64) / (counts[bucket] - below) as f64;
    Some(lower + (upper - lower) * part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lie_evenly_in_their_buckets() {
        let bounds = [1.0, 2.0, 4.0];
        let at = |quantile, counts: [u64; 4]| value_at(quantile, &bounds, &counts);
        assert_eq!(at(0.5, [0, 0, 0, 0]), None);
        assert_eq!(at(0.5, [10, 10, 10, 10]), Some(0.5));
        assert_eq!(at(0.9, [0, 10, 10, 10]), Some(1.9));
        assert_eq!(at(0.5, [2, 4, 8, 8]), Some(2.0));
        assert_eq!(at(0.75, [2, 4, 8, 8]), Some(3.0));
        assert_eq!(at(0.99, [1, 1, 1, 2]), Some(4.0), "beyond the last bound");
    }

    #[test]
    fn a_window_is_what_came_since_the_last() {
        let mut window = Window::default();
        let bounds = [1.0, 2.0];
        assert_eq!(window.next(&bounds, vec![10, 10, 10])[0], 0.5);
        assert_eq!(window.next(&bounds, vec![10, 20, 20])[0], 1.5);
        assert_eq!(
            window.next(&bounds, vec![10, 20, 20])[0],
            1.5,
            "nothing came"
        );
    }
}
