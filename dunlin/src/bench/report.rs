//! What was measured, for people and for programs. Pure.

use std::fmt::Write;

use serde_json::{Value, json};

use super::floor::Floor;
use super::process::Usage;
use super::subscribers::Received;

/// One run of `bench fanout`.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) subscribers: u64,
    pub(super) channels: u32,
    pub(super) rate: u32,
    pub(super) size: u64,
    pub(super) seconds: u32,
    pub(super) expected: u64,
    pub(super) elapsed_s: f64,
    pub(super) received: Received,
    /// The server without connections, with idle ones, and after publishing.
    /// `None`: its process is not known.
    pub(super) before: Option<Usage>,
    pub(super) idle: Option<Usage>,
    pub(super) loaded: Option<Usage>,
    pub(super) floor: Option<Floor>,
}

impl Report {
    fn deliveries_per_s(&self) -> f64 {
        if self.elapsed_s > 0.0 {
            self.received.deliveries as f64 / self.elapsed_s
        } else {
            0.0
        }
    }

    fn cpu_us_per_delivery(&self) -> Option<f64> {
        let cpu = self.loaded?.cpu_since(&self.idle?);
        (self.received.deliveries > 0).then(|| cpu * 1e6 / self.received.deliveries as f64)
    }

    fn user_us_per_delivery(&self) -> Option<f64> {
        let user = self.loaded?.user_s - self.idle?.user_s;
        (self.received.deliveries > 0).then(|| user * 1e6 / self.received.deliveries as f64)
    }

    fn rss_per_connection(&self) -> Option<f64> {
        let grown = self.idle?.rss_bytes as f64 - self.before?.rss_bytes as f64;
        Some(grown / self.subscribers as f64)
    }

    fn floor_us_per_send(&self) -> Option<f64> {
        /// CPU time is counted in hundredths of a second.
        const MEASURABLE_S: f64 = 0.1;
        let floor = self.floor?;
        (floor.cpu_s >= MEASURABLE_S).then(|| floor.cpu_s * 1e6 / floor.sends as f64)
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "bench": "fanout",
            "subscribers": self.subscribers,
            "channels": self.channels,
            "rate": self.rate,
            "size_bytes": self.size,
            "seconds": self.seconds,
            "deliveries": self.received.deliveries,
            "deliveries_expected": self.expected,
            "connections_lost": self.received.lost,
            "deliveries_per_s": self.deliveries_per_s(),
            "latency_us": {
                "p50": self.received.p50_us,
                "p90": self.received.p90_us,
                "p99": self.received.p99_us,
                "max": self.received.max_us,
            },
            "server_cpu_us_per_delivery": self.cpu_us_per_delivery(),
            "server_user_us_per_delivery": self.user_us_per_delivery(),
            "server_rss_bytes_per_connection": self.rss_per_connection(),
            "floor_cpu_us_per_send": self.floor_us_per_send(),
        })
    }

    pub(super) fn table(&self) -> String {
        let number = |value: Option<f64>, unit: &str| {
            value.map_or_else(|| "-".to_owned(), |v| format!("{v:.2} {unit}"))
        };
        let ms = |us: u64| format!("{:.2} ms", us as f64 / 1e3);
        let complete = format!("{} of {}", self.received.deliveries, self.expected);
        let ratio = self
            .cpu_us_per_delivery()
            .zip(self.floor_us_per_send())
            .map(|(server, floor)| server / floor);
        let rows = [
            ("subscribers", self.subscribers.to_string()),
            ("channels", self.channels.to_string()),
            (
                "publications",
                format!("{}/s of {} B for {} s", self.rate, self.size, self.seconds),
            ),
            ("deliveries", complete),
            ("deliveries/s", format!("{:.0}", self.deliveries_per_s())),
            ("latency p50", ms(self.received.p50_us)),
            ("latency p90", ms(self.received.p90_us)),
            ("latency p99", ms(self.received.p99_us)),
            ("latency max", ms(self.received.max_us)),
            (
                "server CPU per delivery",
                number(self.cpu_us_per_delivery(), "us"),
            ),
            (
                "  of which in user space",
                number(self.user_us_per_delivery(), "us"),
            ),
            (
                "floor: CPU per bare send(2)",
                number(self.floor_us_per_send(), "us"),
            ),
            ("server / floor", number(ratio, "")),
            (
                "server RSS per idle connection",
                number(self.rss_per_connection().map(|b| b / 1_024.0), "KiB"),
            ),
            ("connections lost", self.received.lost.to_string()),
        ];
        let mut table = String::new();
        for (name, value) in rows {
            let _ = writeln!(table, "{name:32} {}", value.trim_end());
        }
        table
    }
}
