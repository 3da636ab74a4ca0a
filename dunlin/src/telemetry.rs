//! Logs, and the metrics that belong to no component; the exporter that puts
//! all of them together.

mod lag;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use proto::bus::{BusHandle, Stats};
use tracing_subscriber::EnvFilter;

use crate::cli::LogFormat;

/// What is logged unless `RUST_LOG` says otherwise. The libraries say in other
/// words what our own shells say of them.
const DEFAULT_FILTER: &str = "info,async_nats=off,openraft=off,quinn=error,quinn_proto=error";

/// Logs go to stderr: stdout is for what a person or program asked for.
/// `RUST_LOG` chooses what is logged. Two libraries are silent unless named: that
/// of NATS complains at every attempt to connect, and the bus says the same
/// once; that of Raft calls it an error that a node is not there yet.
pub(crate) fn init(format: LogFormat) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A second call, in tests, changes nothing.
    let _ = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

/// All registries of a process as one page.
pub(crate) struct Exporter {
    registries: Vec<Registry>,
    bus: BusHandle,
    bus_subscriptions: IntGauge,
    bus_connected: IntGauge,
    bus_dropped: IntCounter,
    bus_unsent: IntCounter,
    bus_reconnects: IntCounter,
    scrape_duration: Histogram,
    /// What the counters of the bus stand at; scrapes take turns.
    known: Mutex<Stats>,
    lag: Mutex<lag::Percentiles>,
}

/// A registry whose metrics all say which component they are of, for processes
/// that are more than one.
pub(crate) fn registry_of(role: &str) -> Result<Registry, prometheus::Error> {
    Registry::new_custom(None, Some([("role".to_owned(), role.to_owned())].into()))
}

impl Exporter {
    /// Adds what belongs to the process to the components' registries.
    pub(crate) fn new(
        mut registries: Vec<Registry>,
        bus: BusHandle,
    ) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let build = IntGaugeVec::new(
            Opts::new("dunlin_build_info", "Which build this is; always 1."),
            &["version", "commit", "protocol"],
        )?;
        let wire = proto::codec::WIRE_VERSION.to_string();
        build
            .with_label_values(&[env!("CARGO_PKG_VERSION"), env!("DUNLIN_COMMIT"), &wire])
            .set(1);
        registry.register(Box::new(build))?;
        let subscriptions = IntGaugeVec::new(
            Opts::new("dunlin_bus_subscriptions", "Subscriptions at the bus."),
            &["bus"],
        )?;
        let connected = IntGaugeVec::new(
            Opts::new(
                "dunlin_bus_connected",
                "Whether the bus can be reached: 1, or 0 while it is away.",
            ),
            &["bus"],
        )?;
        let counter = |name: &str, help: &str| IntCounterVec::new(Opts::new(name, help), &["bus"]);
        let dropped = counter(
            "dunlin_bus_dropped_total",
            "Messages that the bus dropped because a subscriber of this process was too slow.",
        )?;
        let unsent = counter(
            "dunlin_bus_unsent_total",
            "Messages that did not leave this process because the bus was away or too much waited for it.",
        )?;
        let reconnects = counter(
            "dunlin_bus_reconnects_total",
            "How often the bus was reached again after it had been away.",
        )?;
        let scrape_duration = Histogram::with_opts(
            HistogramOpts::new(
                "dunlin_metrics_scrape_duration_seconds",
                "How long it took to put this page together.",
            )
            .buckets(vec![0.001, 0.005, 0.025, 0.1, 0.5]),
        )?;
        for collector in [
            Box::new(subscriptions.clone()) as Box<dyn Collector>,
            Box::new(connected.clone()),
            Box::new(dropped.clone()),
            Box::new(unsent.clone()),
            Box::new(reconnects.clone()),
            Box::new(scrape_duration.clone()),
        ] {
            registry.register(collector)?;
        }
        lag::watch(&registry)?;
        registries.push(registry);
        Ok(Self {
            registries,
            bus_subscriptions: subscriptions.with_label_values(&[bus.name()]),
            bus_connected: connected.with_label_values(&[bus.name()]),
            bus_dropped: dropped.with_label_values(&[bus.name()]),
            bus_unsent: unsent.with_label_values(&[bus.name()]),
            bus_reconnects: reconnects.with_label_values(&[bus.name()]),
            bus,
            scrape_duration,
            known: Mutex::default(),
            lag: Mutex::default(),
        })
    }

    /// The page of `/metrics`.
    pub(crate) fn text(&self) -> String {
        let began = Instant::now();
        let mut text = Vec::new();
        // Encoding into memory fails only for families without metrics, which
        // `families` leaves out.
        let _ = TextEncoder::new().encode(&self.families(), &mut text);
        self.scrape_duration.observe(began.elapsed().as_secs_f64());
        String::from_utf8(text).unwrap_or_default()
    }

    /// All families. Where components have one of the same name, its metrics
    /// stand together, told apart by their labels.
    pub(crate) fn families(&self) -> Vec<MetricFamily> {
        self.observe_bus();
        let mut families: BTreeMap<String, MetricFamily> = BTreeMap::new();
        for family in self.registries.iter().flat_map(Registry::gather) {
            match families.get_mut(family.name()) {
                Some(known) => known
                    .mut_metric()
                    .extend(family.get_metric().iter().cloned()),
                None => {
                    families.insert(family.name().to_owned(), family);
                }
            }
        }
        if let Some(lag) = families.get(lag::NAME) {
            let mut percentiles = self.lag.lock().unwrap_or_else(PoisonError::into_inner);
            let percentiles = percentiles.families(lag);
            let named = percentiles.into_iter().map(|it| (it.name().to_owned(), it));
            families.extend(named);
        }
        families
            .into_values()
            .filter(|family| !family.get_metric().is_empty())
            .collect()
    }

    fn observe_bus(&self) {
        let stats = self.bus.stats();
        self.bus_subscriptions.set(stats.subscriptions as i64);
        self.bus_connected.set(i64::from(stats.connected));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for (counter, now, before) in [
            (&self.bus_dropped, stats.dropped, known.dropped),
            (&self.bus_unsent, stats.unsent, known.unsent),
            (&self.bus_reconnects, stats.reconnects, known.reconnects),
        ] {
            counter.inc_by(now.saturating_sub(before));
        }
        *known = stats;
    }
}
