//! What was measured, for people and for programs. Pure.

use std::fmt::Write;

use serde_json::{Value, json};

use super::Tally;
use crate::bench::process::Cpu;

/// One run of `bench publish`.
#[derive(Debug)]
pub(super) struct Report {
    /// `http` or `bus`.
    pub(super) via: &'static str,
    pub(super) channels: u32,
    pub(super) in_flight: u32,
    pub(super) batch: u32,
    pub(super) size: u32,
    pub(super) elapsed_s: f64,
    pub(super) tally: Tally,
    /// What each process has used, this one among them.
    pub(super) cpu_s: Vec<Cpu>,
}

impl Report {
    fn acks_per_s(&self) -> f64 {
        self.tally.acks as f64 / self.elapsed_s
    }

    fn us_per_ack(&self, cpu: &Cpu) -> f64 {
        cpu.seconds * 1e6 / self.tally.acks as f64
    }

    pub(super) fn json(&self) -> Value {
        let at = |quantile| self.tally.latencies.value_at_quantile(quantile);
        let cpu = self.cpu_s.iter().map(|cpu| {
            json!({
                "pid": cpu.pid,
                "process": cpu.process,
                "us_per_ack": self.us_per_ack(cpu),
            })
        });
        json!({
            "bench": "publish",
            "via": self.via,
            "channels": self.channels,
            "in_flight": self.in_flight,
            "batch": self.batch,
            "size_bytes": self.size,
            "seconds": self.elapsed_s,
            "acks": self.tally.acks,
            "acks_per_s": self.acks_per_s(),
            "acks_by_copies": self.tally.copies,
            "refused": self.tally.refused,
            "latency_us": {
                "p50": at(0.5),
                "p90": at(0.9),
                "p99": at(0.99),
                "max": self.tally.latencies.max(),
            },
            "cpu": cpu.collect::<Vec<_>>(),
        })
    }

    pub(super) fn table(&self) -> String {
        let ms = |quantile| {
            let us = self.tally.latencies.value_at_quantile(quantile);
            format!("{:.2} ms", us as f64 / 1e3)
        };
        let mut rows = vec![
            ("published over".to_owned(), self.via.to_owned()),
            ("channels".into(), self.channels.to_string()),
            ("requests in flight".into(), self.in_flight.to_string()),
            ("publications per request".into(), self.batch.to_string()),
            ("bytes of data".into(), self.size.to_string()),
            ("acknowledged".into(), self.tally.acks.to_string()),
            ("acknowledged/s".into(), format!("{:.0}", self.acks_per_s())),
            ("latency p50".into(), ms(0.5)),
            ("latency p90".into(), ms(0.9)),
            ("latency p99".into(), ms(0.99)),
            ("latency max".into(), ms(1.0)),
        ];
        for (copies, acks) in &self.tally.copies {
            rows.push((format!("  with {copies} copies"), acks.to_string()));
        }
        for (code, publications) in &self.tally.refused {
            rows.push((format!("refused: {code}"), publications.to_string()));
        }
        for cpu in &self.cpu_s {
            let name = format!("CPU per ack: {} ({})", cpu.process, cpu.pid);
            rows.push((name, format!("{:.2} us", self.us_per_ack(cpu))));
        }
        let mut table = String::new();
        for (name, value) in rows {
            let _ = writeln!(table, "{name:32} {value}");
        }
        table
    }
}
