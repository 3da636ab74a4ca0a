//! What was found, for people and for programs. Pure.

use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::ledger::Findings;
use crate::exit::{Exit, Failure};

/// What is counted beside the ledger.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts {
    /// Connections that clients broke on purpose.
    pub(super) reconnects: u64,
    /// Connections that broke by themselves.
    pub(super) disconnects: u64,
    /// Tries of a publication after the first.
    pub(super) publish_retries: u64,
    /// What last did not work, in words.
    pub(super) last_failure: Option<String>,
}

/// One run.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) gateways: usize,
    pub(super) channels: u16,
    pub(super) published_for: Duration,
    pub(super) settled_for: Duration,
    pub(super) counts: Counts,
    pub(super) findings: Findings,
    /// Microseconds.
    pub(super) delays: Histogram<u64>,
    /// Clients that had no connection at the end.
    pub(super) unreachable: Vec<String>,
}

impl Report {
    /// How the command ends.
    pub(super) fn verdict(&self) -> Result<(), Failure> {
        let breaches = self.findings.breaches();
        if breaches > 0 {
            let text = format!("{breaches} times a promise did not hold");
            return Err(Exit::Broken.because(text));
        }
        let last = self.counts.last_failure.as_deref().unwrap_or("no reason");
        if let Some(client) = self.unreachable.first() {
            let count = self.unreachable.len();
            return Err(Exit::Unavailable.because(format!(
                "{count} clients had no connection at the end, such as {client}; what they missed is not judged: {last}"
            )));
        }
        if self.findings.accepted == 0 {
            return Err(Exit::Unavailable.because(format!(
                "nothing was published, so nothing is shown: {last}"
            )));
        }
        Ok(())
    }

    fn is_kept(&self) -> bool {
        self.verdict().is_ok()
    }

    fn delay_ms(&self, quantile: f64) -> f64 {
        self.delays.value_at_quantile(quantile) as f64 / 1e3
    }

    pub(super) fn json(&self) -> Value {
        let found = &self.findings;
        json!({
            "ok": self.is_kept(),
            "gateways": self.gateways,
            "channels": self.channels,
            "published_for_s": self.published_for.as_secs_f64(),
            "settled_for_s": self.settled_for.as_secs_f64(),
            "accepted": found.accepted,
            "refused": found.refused,
            "unknown": found.unknown,
            "publish_retries": self.counts.publish_retries,
            "deliveries": found.deliveries,
            "reconnects": self.counts.reconnects,
            "disconnects": self.counts.disconnects,
            "unreachable": self.unreachable,
            "lost": found.lost,
            "duplicated": found.duplicated,
            "reordered": found.reordered,
            "silent_gaps": found.silent_gaps,
            "stale_answers": found.stale_answers,
            "contradictions": found.contradictions,
            "gaps": found.gaps,
            "missed_in_gaps": found.missed_in_gaps,
            "repeated_in_new_epoch": found.repeated_in_new_epoch,
            "delay_ms": {
                "p50": self.delay_ms(0.5),
                "p99": self.delay_ms(0.99),
                "max": self.delays.max() as f64 / 1e3,
            },
            "examples": found.examples,
            "last_failure": self.counts.last_failure,
        })
    }

    pub(super) fn table(&self) -> String {
        let found = &self.findings;
        let gaps = found.gaps.values().sum::<u64>();
        let reasons: Vec<String> = found
            .gaps
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        let reasons = match reasons.as_slice() {
            [] => String::new(),
            _ => format!(" ({}; {} missed)", reasons.join(", "), found.missed_in_gaps),
        };
        let rows = [
            (
                "published",
                format!(
                    "{} acknowledged, {} refused, {} unknown, in {:.1} s",
                    found.accepted,
                    found.refused,
                    found.unknown,
                    self.published_for.as_secs_f64()
                ),
            ),
            (
                "publications tried again",
                self.counts.publish_retries.to_string(),
            ),
            ("deliveries", found.deliveries.to_string()),
            (
                "reconnects",
                format!(
                    "{} by the clients, {} by the server",
                    self.counts.reconnects, self.counts.disconnects
                ),
            ),
            (
                "delay",
                format!(
                    "p50 {:.2} ms, p99 {:.2} ms, longest {:.2} ms",
                    self.delay_ms(0.5),
                    self.delay_ms(0.99),
                    self.delays.max() as f64 / 1e3
                ),
            ),
            ("announced gaps", format!("{gaps}{reasons}")),
            (
                "repeated in a new epoch",
                found.repeated_in_new_epoch.to_string(),
            ),
            ("lost", found.lost.to_string()),
            ("duplicated", found.duplicated.to_string()),
            ("reordered", found.reordered.to_string()),
            ("silent gaps", found.silent_gaps.to_string()),
            ("stale answers", found.stale_answers.to_string()),
            ("contradictions", found.contradictions.to_string()),
        ];
        let mut table = String::new();
        for (name, value) in rows {
            let _ = writeln!(table, "{name:26} {value}");
        }
        for example in &found.examples {
            let _ = writeln!(table, "  {}", crate::cli::printable(example));
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(change: impl FnOnce(&mut Report)) -> Report {
        let mut report = Report {
            gateways: 2,
            channels: 3,
            published_for: Duration::from_secs(1),
            settled_for: Duration::from_secs(1),
            counts: Counts::default(),
            findings: Findings {
                accepted: 1,
                ..Findings::default()
            },
            delays: Histogram::new(3).unwrap(),
            unreachable: Vec::new(),
        };
        change(&mut report);
        report
    }

    #[test]
    fn every_breach_ends_the_command_with_its_code() {
        assert!(report(|_| {}).verdict().is_ok());
        let breaches: [fn(&mut Findings) -> &mut u64; 6] = [
            |f| &mut f.lost,
            |f| &mut f.duplicated,
            |f| &mut f.reordered,
            |f| &mut f.silent_gaps,
            |f| &mut f.stale_answers,
            |f| &mut f.contradictions,
        ];
        for breach in breaches {
            let report = report(|report| *breach(&mut report.findings) = 1);
            assert_eq!(report.verdict().unwrap_err().exit, Exit::Broken);
            assert_eq!(report.json()["ok"], false);
        }
        // What was announced, or is nobody's knowledge, is none.
        let fine = report(|report| {
            report.findings.gaps.insert("epoch".into(), 1);
            report.findings.unknown = 1;
            report.findings.repeated_in_new_epoch = 1;
        });
        assert!(fine.verdict().is_ok());
        assert!(fine.table().contains("1 (1 epoch; 0 missed)"));
    }

    #[test]
    fn what_shows_nothing_is_no_success() {
        let silent = report(|report| report.findings.accepted = 0);
        assert_eq!(silent.verdict().unwrap_err().exit, Exit::Unavailable);
        let alone = report(|report| report.unreachable.push("c".into()));
        assert_eq!(alone.verdict().unwrap_err().exit, Exit::Unavailable);
    }
}
