//! A disk that can be full: a small file system in memory, in a mount namespace
//! of its own. Nobody else sees it, and it goes with this value.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use tokio::process::Command;

use crate::namespace::Namespace;

/// Bytes that are written at a time to fill it: a page, so that nothing is left.
const PAGE: [u8; 4_096] = [b'x'; 4_096];

/// See the [module](self).
#[derive(Debug)]
pub struct SmallDisk {
    namespace: Namespace,
    at: PathBuf,
}

impl SmallDisk {
    /// A disk of this size, mounted at a folder that is made. `None`: tests may
    /// not mount anything here.
    ///
    /// # Errors
    /// When the folder cannot be made, or nothing is said in time.
    pub async fn mount(at: &Path, bytes: u64) -> Result<Option<Self>> {
        std::fs::create_dir_all(at)?;
        let script = format!("mount -t tmpfs -o size={bytes},mode=700 tmpfs \"$0\"");
        let made = Namespace::make("--mount", &script, at).await?;
        let at = at.to_owned();
        Ok(made.map(|namespace| Self { namespace, at }))
    }

    /// The same command, run by somebody who sees the disk.
    ///
    /// # Errors
    /// When the disk has gone.
    pub fn within(&self, command: &Command) -> Result<Command> {
        self.namespace.within(command)
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
        let root = PathBuf::from(format!("/proc/{}/root", self.namespace.pid()?));
        let below = self.at.strip_prefix("/")?;
        Ok(root.join(below).join("filler"))
    }
}
