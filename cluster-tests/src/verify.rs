//! Has `dunlin verify` load a cluster and judge it, while a test does harm.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr};
use tokio::time::timeout;

use crate::PATIENCE;
use crate::cluster::{APP, Cluster};
use crate::process::command;

/// Longer than any test publishes: the test says when it is enough.
const LONG: &str = "1h";
/// How long verify may wait for stragglers, and how long for verify.
const SETTLE: Duration = Duration::from_secs(40);
const ENDS: Duration = Duration::from_secs(100);

/// How much is published, into how many channels.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Publications per second.
    pub rate: u32,
    /// Channels.
    pub channels: u32,
    /// Bytes of data.
    pub size: u32,
}

impl Load {
    /// That of the bars in `make soak`, which sets `SOAK`; else one that a busy
    /// machine can take.
    pub fn of_this_run() -> Self {
        let (rate, channels) = if is_soak() { (2_000, 500) } else { (200, 40) };
        Self {
            rate,
            channels,
            size: 128,
        }
    }
}

/// Whether this is `make soak`.
pub fn is_soak() -> bool {
    std::env::var_os("SOAK").is_some()
}

/// How often something is done: a few times, or in `make soak` as often as its bar says.
pub fn times(few: usize, many: usize) -> usize {
    if is_soak() { many } else { few }
}

/// A `dunlin verify` that runs.
#[derive(Debug)]
pub struct Verify {
    child: Child,
    notes: Lines<BufReader<ChildStderr>>,
}

impl Verify {
    /// Starts one against all gateways of a cluster, with further arguments.
    /// Returns when it publishes.
    ///
    /// # Errors
    /// When it does not come so far.
    pub async fn start(cluster: &Cluster, load: Load, arguments: &[&str]) -> Result<Self> {
        let urls: Vec<String> = cluster.gateways.values().map(|dev| dev.url()).collect();
        let mut command = command(["verify", "--json", "--app", APP]);
        command
            .args(["--url", &urls.join(","), "--duration", LONG])
            .args(["--settle", &format!("{}s", SETTLE.as_secs())])
            .args(["--rate", &load.rate.to_string()])
            .args(["--channels", &load.channels.to_string()])
            .args(["--size", &load.size.to_string()])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let stderr = child.stderr.take().context("stderr is piped")?;
        let mut verify = Self {
            child,
            notes: BufReader::new(stderr).lines(),
        };
        let mut notes = Vec::new();
        // It gives up by itself when clients cannot be attached.
        while let Some(note) = timeout(ENDS, verify.notes.next_line()).await?? {
            if note.contains("publishing") {
                return Ok(verify);
            }
            notes.push(note);
        }
        bail!("verify did not begin: {notes:?}")
    }

    /// Has it stop publishing, wait for what is under way, and judge.
    ///
    /// # Errors
    /// When it does not end in time, or has nothing to judge.
    pub async fn judge(mut self) -> Result<Verdict> {
        let pid = i32::try_from(self.child.id().context("it has ended before")?)?;
        kill_process(Pid::from_raw(pid).context("a pid")?, Signal::INT)?;
        let output = timeout(ENDS, self.child.wait_with_output())
            .await
            .context("verify does not end")??;
        let mut notes = Vec::new();
        while let Ok(Ok(Some(note))) = timeout(PATIENCE, self.notes.next_line()).await {
            notes.push(note);
        }
        let report = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("no report: {notes:?}"))?;
        Ok(Verdict {
            report,
            code: output.status.code(),
        })
    }
}

/// What verify found.
#[derive(Debug)]
pub struct Verdict {
    /// All of it.
    pub report: Value,
    /// Its exit code.
    pub code: Option<i32>,
}

impl Verdict {
    /// A figure of the report.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn figure(&self, name: &str) -> u64 {
        let figure = self.report[name].as_u64();
        figure.unwrap_or_else(|| panic!("no figure {name}: {:#}", self.report))
    }

    /// Nothing was lost, doubled, reordered or hidden, and enough was tried.
    ///
    /// # Panics
    /// When that is not so.
    pub fn is_kept(&self) {
        let breaches = [
            "lost",
            "duplicated",
            "reordered",
            "silent_gaps",
            "stale_answers",
            "contradictions",
        ];
        let kept = breaches.iter().all(|name| self.figure(name) == 0);
        assert!(
            kept && self.code == Some(0),
            "{:?}: {:#}",
            self.code,
            self.report
        );
    }

    /// Nobody was told of a gap either.
    ///
    /// # Panics
    /// When somebody was.
    pub fn has_no_gaps(&self) {
        let gaps = self.report["gaps"].as_object();
        assert!(
            gaps.is_some_and(|gaps| gaps.is_empty()),
            "{:#}",
            self.report
        );
    }
}
