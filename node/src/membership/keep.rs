//! What a node keeps when it stops, and has again when it starts.

use std::sync::PoisonError;

use tokio::task::spawn_blocking;

use super::Membership;
use super::host::{Host, random};
use crate::checkpoint::{self, Checkpoint, Writer};
use crate::core::checkpoint::ShardCheckpoint;

/// The checkpoint that was used last.
const USED: &str = "checkpoint-used";

impl Membership {
    /// What this node kept when it stopped by itself, to be used now, and by
    /// nobody after. Until then a node that ends has it again.
    pub fn take_checkpoint(&self) -> Checkpoint {
        let checkpoint = self.checkpoint.lock();
        let checkpoint = std::mem::take(&mut *checkpoint.unwrap_or_else(PoisonError::into_inner));
        if checkpoint.shards.is_empty() {
            return checkpoint;
        }
        if let Err(why) = self.host.store.put(USED, &checkpoint.nonce) {
            tracing::error!(%why, "what it kept when it stopped cannot be marked as used, so it is not; channels begin anew, and their followers are told so");
            return Checkpoint::default();
        }
        checkpoint::remove(&self.host.config.data);
        checkpoint
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
        let writing = spawn_blocking(move || checkpoint::write(&data, by, random(), shards));
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
        Ok(Some(checkpoint)) if is_used(host, checkpoint.nonce) => {
            tracing::warn!("what it kept when it stopped has been used before; it is of no use");
            checkpoint::remove(&host.config.data);
            Checkpoint::default()
        }
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

/// Whether it was. What cannot be read counts as used.
fn is_used(host: &Host, nonce: u64) -> bool {
    let used = host.store.get::<u64>(USED);
    used.map_or(true, |used| used == Some(nonce))
}

fn writer(host: &Host) -> Option<Writer> {
    Some(Writer {
        cluster: host.member_of()?,
        node: host.config.name.clone(),
    })
}
