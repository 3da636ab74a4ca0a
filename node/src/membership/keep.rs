//! What a node keeps when it stops, and has again when it starts.

use std::sync::PoisonError;

use tokio::task::spawn_blocking;

use super::Membership;
use super::host::Host;
use crate::checkpoint::{self, Checkpoint, Writer};
use crate::core::checkpoint::ShardCheckpoint;

impl Membership {
    /// What this node kept when it stopped by itself, to be used once.
    pub fn take_checkpoint(&self) -> Checkpoint {
        let checkpoint = self.checkpoint.lock();
        std::mem::take(&mut *checkpoint.unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps shards in the data directory until the node starts again. They are
    /// served no more.
    ///
    /// # Errors
    /// Why they are not kept, for people.
    pub async fn keep(&self, shards: Vec<ShardCheckpoint>) -> Result<(), String> {
        let Some(by) = writer(&self.host).filter(|_| !shards.is_empty()) else {
            return Ok(());
        };
        let data = self.host.config.data.clone();
        let count = shards.len();
        let writing = spawn_blocking(move || checkpoint::write(&data, by, shards));
        let written = writing.await.map_err(|error| error.to_string())?;
        let bytes = written?;
        tracing::info!(shards = count, bytes, "keeps its shards for the next start");
        Ok(())
    }
}

/// What is in the data directory. What cannot be used is told and left out.
pub(super) fn open(host: &Host) -> Checkpoint {
    let by = writer(host);
    let read = by.map_or(Ok(None), |by| checkpoint::read(&host.config.data, &by));
    match read {
        Ok(Some(checkpoint)) => {
            let (shards, seconds) = (checkpoint.shards.len(), checkpoint.ago.as_secs());
            tracing::info!(shards, seconds, "has what it kept when it stopped");
            checkpoint
        }
        Ok(None) => Checkpoint::default(),
        Err(why) => {
            tracing::warn!(%why, "what it kept when it stopped is lost; channels begin anew, and their followers are told so");
            Checkpoint::default()
        }
    }
}

fn writer(host: &Host) -> Option<Writer> {
    Some(Writer {
        cluster: host.member_of()?,
        node: host.config.name.clone(),
    })
}
