//! A part of the machine that only a test and what it starts see: namespaces of
//! Linux, kept by a process. They go with this value.

use std::ffi::OsStr;
use std::process::Stdio;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::PATIENCE;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Namespace {
    holder: Child,
    kind: &'static str,
    is_root: bool,
    /// What its script has kept in `$said`.
    pub(crate) said: String,
}

impl Namespace {
    /// Makes one, `--mount` or `--net`, and runs a script in it, with an argument
    /// as `$0`. `None`: the script failed, or tests may make none here.
    ///
    /// # Errors
    /// When nothing is said in time.
    pub(crate) async fn make(
        kind: &'static str,
        script: &str,
        argument: impl AsRef<OsStr>,
    ) -> Result<Option<Self>> {
        let is_root = rustix::process::getuid().is_root();
        let mut command = Command::new("unshare");
        if !is_root {
            command.args(["--user", "--map-root-user"]);
        }
        let script = format!("{script} && echo \"made $said\" && exec sleep infinity");
        command.args([kind, "sh", "-c", &script]).arg(argument);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let Ok(mut holder) = command.kill_on_drop(true).spawn() else {
            return Ok(None);
        };
        let stdout = holder.stdout.take().context("stdout is piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let said = timeout(PATIENCE, lines.next_line()).await;
        let made = said.context("neither made nor refused")??;
        Ok(made.map(|line| Self {
            holder,
            kind,
            is_root,
            said: line.trim_start_matches("made").trim().to_owned(),
        }))
    }

    /// The same command, run inside.
    ///
    /// # Errors
    /// When it has gone.
    pub(crate) fn within(&self, command: &Command) -> Result<Command> {
        Ok(self.within_that_of(self.pid()?, command))
    }

    /// The same in the namespace of a process that its script has started.
    pub(crate) fn within_that_of(&self, pid: u32, command: &Command) -> Command {
        let command = command.as_std();
        let mut inside = Command::new("nsenter");
        if !self.is_root {
            inside.args(["--user", "--preserve-credentials"]);
        }
        inside.args([self.kind, "--target", &pid.to_string(), "--"]);
        inside
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }

    /// Of the process that keeps it.
    ///
    /// # Errors
    /// When it has gone.
    pub(crate) fn pid(&self) -> Result<u32> {
        self.holder.id().context("the namespace has gone")
    }
}
