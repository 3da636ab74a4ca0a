//! A disk that can be full: a small file system in memory, in a mount namespace
//! of its own. Nobody else sees it, and it goes with this value.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::PATIENCE;

/// Bytes that are written at a time to fill it: a page, so that nothing is left.
const PAGE: [u8; 4_096] = [b'x'; 4_096];

/// See the [module](self).
#[derive(Debug)]
pub struct SmallDisk {
    /// Keeps the namespace.
    holder: Child,
    at: PathBuf,
    is_root: bool,
}

impl SmallDisk {
    /// A disk of this size, mounted at a folder that is made. `None`: tests may
    /// not mount anything here.
    ///
    /// # Errors
    /// When the folder cannot be made, or nothing is said in time.
    pub async fn mount(at: &Path, bytes: u64) -> Result<Option<Self>> {
        std::fs::create_dir_all(at)?;
        let is_root = rustix::process::getuid().is_root();
        let mut command = Command::new("unshare");
        if !is_root {
            command.args(["--user", "--map-root-user"]);
        }
        let script = format!(
            "mount -t tmpfs -o size={bytes},mode=700 tmpfs \"$0\" && echo mounted && exec sleep infinity"
        );
        command.args(["--mount", "sh", "-c", &script]).arg(at);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let Ok(mut holder) = command.kill_on_drop(true).spawn() else {
            return Ok(None);
        };
        let stdout = holder.stdout.take().context("stdout is piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let said = timeout(PATIENCE, lines.next_line()).await;
        Ok(
            (said.context("neither mounted nor refused")??).map(|_| Self {
                holder,
                at: at.to_owned(),
                is_root,
            }),
        )
    }

    /// The same command, run by somebody who sees the disk.
    ///
    /// # Errors
    /// When the disk has gone.
    pub fn within(&self, command: &Command) -> Result<Command> {
        let command = command.as_std();
        let mut inside = Command::new("nsenter");
        if !self.is_root {
            inside.args(["--user", "--preserve-credentials"]);
        }
        let holder = self.pid()?.to_string();
        inside.args(["--mount", "--target", &holder, "--"]);
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
        Ok(inside)
    }

    /// Writes until nothing more can be written.
    ///
    /// # Errors
    /// When it ends for another reason.
    pub fn fill(&self) -> Result<()> {
        let mut file = File::create(self.filler()?)?;
        loop {
            match file.write_all(&PAGE) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// There is room again.
    ///
    /// # Errors
    /// When it was not filled.
    pub fn clear(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.filler()?)?)
    }

    fn filler(&self) -> Result<PathBuf> {
        let root = PathBuf::from(format!("/proc/{}/root", self.pid()?));
        let below = self.at.strip_prefix("/")?;
        Ok(root.join(below).join("filler"))
    }

    fn pid(&self) -> Result<u32> {
        self.holder.id().context("the disk has gone")
    }
}
