//! What was measured, for people and for programs. Pure.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::floor::Floor;
use super::process::Usage;
use super::subscribers::Received;

/// The figures of one run, in the order in which they are told.
#[derive(Debug)]
pub(super) struct Report {
    bench: &'static str,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    /// Its place in the JSON; a dot leads into an object. Empty: only in the table.
    key: &'static str,
    value: Value,
    label: &'static str,
    shown: String,
}

impl Report {
    pub(super) fn new(bench: &'static str) -> Self {
        Self {
            bench,
            rows: Vec::new(),
        }
    }

    /// A whole number.
    pub(super) fn count(&mut self, key: &'static str, label: &'static str, count: u64) {
        self.push(key, json!(count), label, count.to_string());
    }

    /// A figure, or that there is none.
    pub(super) fn figure(
        &mut self,
        key: &'static str,
        label: &'static str,
        figure: Option<f64>,
        unit: &str,
    ) {
        let shown = figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.2} {unit}"));
        self.push(key, json!(figure), label, shown.trim_end().to_owned());
    }

    /// So many in a second.
    pub(super) fn per_s(&mut self, key: &'static str, label: &'static str, per_s: f64) {
        self.push(key, json!(per_s), label, format!("{per_s:.0}"));
    }

    /// A duration that is kept in microseconds and told in milliseconds.
    pub(super) fn latency(&mut self, key: &'static str, label: &'static str, us: u64) {
        self.push(key, json!(us), label, format!("{:.2} ms", us as f64 / 1e3));
    }

    /// Bytes that are told in KiB, or in MiB if they are many.
    pub(super) fn bytes(&mut self, key: &'static str, label: &'static str, bytes: Option<f64>) {
        let shown = match bytes {
            None => "-".to_owned(),
            Some(bytes) if bytes.abs() < 1_048_576.0 => format!("{:.2} KiB", bytes / 1_024.0),
            Some(bytes) => format!("{:.1} MiB", bytes / 1_048_576.0),
        };
        self.push(key, json!(bytes), label, shown);
    }

    /// Something for people only.
    pub(super) fn note(&mut self, label: &'static str, text: String) {
        self.push("", Value::Null, label, text);
    }

    /// Something for programs only.
    pub(super) fn value(&mut self, key: &'static str, value: impl Into<Value>) {
        self.push(key, value.into(), "", String::new());
    }

    fn push(&mut self, key: &'static str, value: Value, label: &'static str, shown: String) {
        self.rows.push(Row {
            key,
            value,
            label,
            shown,
        });
    }

    pub(super) fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("bench".into(), self.bench.into());
        for row in self.rows.iter().filter(|row| !row.key.is_empty()) {
            match row.key.split_once('.') {
                None => {
                    object.insert(row.key.into(), row.value.clone());
                }
                Some((outer, inner)) => {
                    let inside = object.entry(outer).or_insert_with(|| json!({}));
                    inside[inner] = row.value.clone();
                }
            }
        }
        Value::Object(object)
    }

    pub(super) fn table(&self) -> String {
        let mut table = String::new();
        for row in self.rows.iter().filter(|row| !row.label.is_empty()) {
            let _ = writeln!(table, "{:36} {}", row.label, row.shown);
        }
        table
    }
}

/// What several scenarios tell.
impl Report {
    /// Of so many that should have arrived.
    pub(super) fn deliveries(&mut self, received: &Received, expected: u64) {
        self.value("deliveries", received.deliveries);
        self.value("deliveries_expected", expected);
        let complete = format!("{} of {expected}", received.deliveries);
        self.note("deliveries", complete);
    }

    pub(super) fn latencies(&mut self, received: &Received) {
        self.latency("latency_us.p50", "latency p50", received.p50_us);
        self.latency("latency_us.p90", "latency p90", received.p90_us);
        self.latency("latency_us.p99", "latency p99", received.p99_us);
        self.latency("latency_us.p999", "latency p99.9", received.p999_us);
        self.latency("latency_us.max", "latency max", received.max_us);
    }

    /// What the server used from one moment to another, for each of so many
    /// deliveries.
    pub(super) fn cpu(&mut self, from: Option<Usage>, to: Option<Usage>, deliveries: u64) {
        let each = |seconds: f64| (deliveries > 0).then(|| seconds * 1e6 / deliveries as f64);
        let both = from.zip(to);
        let cpu = both.and_then(|(from, to)| each(to.cpu_since(&from)));
        let user = both.and_then(|(from, to)| each(to.user_s - from.user_s));
        let label = "server CPU per delivery";
        self.figure("server_cpu_us_per_delivery", label, cpu, "us");
        let label = "  of which in user space";
        self.figure("server_user_us_per_delivery", label, user, "us");
    }

    /// The floor, and how far the server is above it.
    pub(super) fn floor(&mut self, floor: Option<Floor>) {
        let floor = floor.and_then(|floor| floor.us_per_send());
        let label = "floor: CPU per bare send(2)";
        self.figure("floor_cpu_us_per_send", label, floor, "us");
        let cpu = self
            .rows
            .iter()
            .find(|row| row.key == "server_cpu_us_per_delivery");
        let cpu = cpu.and_then(|row| row.value.as_f64());
        let ratio = cpu.zip(floor).map(|(server, floor)| server / floor);
        self.figure("server_to_floor", "server / floor", ratio, "");
    }
}
