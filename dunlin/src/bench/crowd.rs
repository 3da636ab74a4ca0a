//! A process with many connections that follow channels, as the scenarios see it.

use std::time::{Duration, Instant};

use anyhow::Context;

use super::process::Helper;
use super::setup::Setup;
use super::subscribers::{Opened, Received};
use crate::cli::AppArgument;

/// How long to wait for deliveries after the last publication.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked whether it has everything.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// Who follows what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Followers<'a> {
    /// Its channels are called after it.
    pub(super) run: &'a str,
    pub(super) channels: u32,
    /// Of all channels together; each follows one.
    pub(super) count: usize,
    /// They subscribe, and never read again.
    pub(super) stalled: bool,
}

/// Its connections end with it.
pub(super) struct Crowd {
    helper: Helper,
    /// How its first connections were opened.
    pub(super) opened: Opened,
}

impl Crowd {
    /// Starts one; returns when all are subscribed.
    pub(super) fn start(setup: &Setup, followers: Followers<'_>) -> anyhow::Result<Self> {
        let AppArgument { id, key, secret } = &setup.app;
        let mut arguments = [
            "bench",
            "subscribers",
            "--run",
            followers.run,
            "--channels",
            &followers.channels.to_string(),
            "--count",
            &followers.count.to_string(),
            "--url",
            &setup.subscribe_at.to_string(),
        ]
        .map(str::to_owned)
        .to_vec();
        if followers.stalled {
            arguments.push("--stalled".into());
        }
        // By the environment: arguments can be read by everyone on the machine.
        let app = ("DUNLIN_APP", format!("{id}:{key}:{}", secret.expose()));
        let mut helper = Helper::start(&arguments, [app])?;
        let opened = serde_json::from_str(&helper.line()?);
        Ok(Self {
            helper,
            opened: opened.context("the subscribers did not begin")?,
        })
    }

    fn ask(&mut self, what: &str) -> anyhow::Result<String> {
        self.helper.ask(what)?;
        self.helper.line()
    }

    /// What it has received so far.
    pub(super) fn received(&mut self) -> anyhow::Result<Received> {
        Ok(serde_json::from_str(&self.ask("report")?)?)
    }

    /// How many deliveries that were; cheap.
    pub(super) fn count(&mut self) -> anyhow::Result<u64> {
        Ok(self.ask("count")?.parse()?)
    }

    /// Forgets what it has received.
    pub(super) fn reset(&mut self) -> anyhow::Result<()> {
        self.ask("reset").map(drop)
    }

    /// Closes all its connections, by reset, at once.
    pub(super) fn drop_all(&mut self) -> anyhow::Result<()> {
        self.ask("drop").map(drop)
    }

    /// Opens them again; returns when all are subscribed.
    pub(super) fn open_all(&mut self) -> anyhow::Result<Opened> {
        Ok(serde_json::from_str(&self.ask("open")?)?)
    }

    /// Until everything has arrived, or for as long as patience lasts.
    pub(super) fn wait_for(&mut self, expected: u64) -> anyhow::Result<Received> {
        let deadline = Instant::now() + PATIENCE;
        while self.count()? < expected && Instant::now() < deadline {
            std::thread::sleep(ASK_EVERY);
        }
        self.received()
    }
}
