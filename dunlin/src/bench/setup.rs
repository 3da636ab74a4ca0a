//! The server that is measured: one that runs, or one that is started for it.

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::process::{Helper, Usage};
use crate::cli::{AppArgument, AppText};
use crate::client::Server;
use crate::exit::{Exit, Failure};

#[derive(Debug, Clone, Args)]
pub(super) struct ServerOptions {
    /// The server to measure, any that speaks Pusher's protocol; without, a `dunlin dev` is started
    /// for it.
    #[arg(long)]
    url: Option<Server>,
    /// Where the subscribers connect, if that is another gateway of the same cluster.
    #[arg(long, requires = "url")]
    subscribe_url: Option<Server>,
    /// Process ids, with commas between them, of the servers that are on this machine: for CPU and
    /// memory, of all of them together.
    #[arg(long, requires = "url", value_delimiter = ',')]
    pid: Vec<u32>,
    /// The app to act as.
    #[arg(
        long,
        value_name = "ID:KEY:SECRET",
        default_value = "app-id:app-key:app-secret",
        hide_env_values = true
    )]
    app: AppText,
}

/// A server that runs.
pub(super) struct Setup {
    /// Where it is published.
    pub(super) server: Server,
    /// Where subscribers connect.
    pub(super) subscribe_at: Server,
    pub(super) app: AppArgument,
    pids: Vec<u32>,
    /// Ours; it ends with this.
    _own: Option<Helper>,
}

impl ServerOptions {
    pub(super) fn setup(&self) -> Result<Setup, Failure> {
        let app = self.app.parse()?;
        let Some(server) = self.url.clone() else {
            let started = start_server();
            let (own, server) = started.map_err(|error| Exit::Unavailable.with(error))?;
            return Ok(Setup {
                subscribe_at: server.clone(),
                server,
                app,
                pids: vec![own.pid()],
                _own: Some(own),
            });
        };
        Ok(Setup {
            subscribe_at: self.subscribe_url.clone().unwrap_or_else(|| server.clone()),
            server,
            app,
            pids: self.pid.clone(),
            _own: None,
        })
    }
}

impl Setup {
    /// What the server has used; `None`: its processes are not known.
    pub(super) fn usage(&self) -> anyhow::Result<Option<Usage>> {
        Usage::of_all(&self.pids)
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        self.pids.clone()
    }
}

/// A `dunlin dev` on free ports, and where it listens.
pub(super) fn start_server() -> anyhow::Result<(Helper, Server)> {
    let arguments = ["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let mut helper = Helper::start(&arguments.map(str::to_owned), [])?;
    loop {
        let line = helper
            .line()
            .context("could not start a server to measure")?;
        if let Some(url) = line
            .trim_start()
            .strip_prefix("clients")
            .and_then(|rest| rest.split_whitespace().next())
        {
            let server = url.parse().map_err(anyhow::Error::msg)?;
            return Ok((helper, server));
        }
    }
}

/// What is going on, for whoever waits.
pub(super) fn progress(what: &str, length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length).with_message(what.to_owned());
    // The template is a constant of ours; the default is the fallback.
    let style = ProgressStyle::with_template("{msg:8} [{bar:40}] {pos}/{len} {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
