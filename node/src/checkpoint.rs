//! Shell: the file in which a node keeps its shards when it stops by itself.
//!
//! Frames, each with its length and its checksum (XXH3) before it: who wrote it
//! and when, pieces of shards in order, and an end. It appears whole or not at
//! all, and is used whole or not at all.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::id::{ClusterUuid, NodeId};
use proto::time::UnixTime;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::core::checkpoint::ShardCheckpoint;
use crate::core::wire;

/// Its name in the data directory.
const FILE: &str = "checkpoint";
/// About how many bytes of records one frame has.
const FRAME_BYTES: usize = 1024 * 1024;

/// The shards that a node has kept.
#[derive(Debug, Default)]
pub struct Checkpoint {
    pub(crate) shards: Vec<ShardCheckpoint>,
    /// How long ago that was, by the wall clock.
    pub(crate) ago: Duration,
    /// Tells it from all others: by this it is known whether it has been used.
    pub(crate) nonce: u64,
}

/// Whose they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Writer {
    pub(crate) cluster: ClusterUuid,
    pub(crate) node: NodeId,
}

#[derive(Debug, Serialize, Deserialize)]
enum Frame {
    Begin {
        by: Writer,
        at: UnixTime,
        nonce: u64,
    },
    /// Several of one shard follow each other.
    Piece(ShardCheckpoint),
    End {
        shards: u64,
    },
}

/// Writes what was kept, and how many bytes that are.
///
/// # Errors
/// What the system said; then there is no file.
pub(crate) fn write(
    data: &Path,
    by: Writer,
    nonce: u64,
    shards: Vec<ShardCheckpoint>,
) -> Result<u64, String> {
    let partial = data.join(format!("{FILE}.partial"));
    let written = write_to(&partial, by, nonce, shards)
        .and_then(|bytes| std::fs::rename(&partial, file(data)).map(|()| bytes))
        .and_then(|bytes| File::open(data)?.sync_all().map(|()| bytes));
    written.map_err(|error| {
        // Nothing reads it, and the next one replaces it.
        let _ = std::fs::remove_file(&partial);
        format!("could not write {}: {error}", partial.display())
    })
}

fn write_to(
    path: &Path,
    by: Writer,
    nonce: u64,
    shards: Vec<ShardCheckpoint>,
) -> std::io::Result<u64> {
    let mut out = BufWriter::new(File::create(path)?);
    let mut bytes = 0;
    let mut frame = |frame: &Frame| {
        let payload = wire::encode(frame);
        bytes += payload.len() as u64;
        out.write_all(&(payload.len() as u64).to_le_bytes())?;
        out.write_all(&xxh3_64(&payload).to_le_bytes())?;
        out.write_all(&payload)
    };
    frame(&Frame::Begin {
        by,
        at: UnixTime::now(),
        nonce,
    })?;
    let count = shards.len() as u64;
    for checkpoint in shards {
        for piece in pieces(checkpoint) {
            frame(&Frame::Piece(piece))?;
        }
    }
    frame(&Frame::End { shards: count })?;
    out.into_inner()?.sync_all()?;
    Ok(bytes)
}

/// A shard in pieces that are not too large.
fn pieces(checkpoint: ShardCheckpoint) -> Vec<ShardCheckpoint> {
    let ShardCheckpoint {
        shard,
        fence,
        waits,
        records,
    } = checkpoint;
    let piece = |records| ShardCheckpoint {
        shard,
        fence,
        waits,
        records,
    };
    let (mut pieces, mut taken, mut bytes) = (Vec::new(), Vec::new(), 0);
    for record in records {
        bytes += record.bytes();
        taken.push(record);
        if bytes >= FRAME_BYTES {
            pieces.push(piece(std::mem::take(&mut taken)));
            bytes = 0;
        }
    }
    if !taken.is_empty() {
        pieces.push(piece(taken));
    }
    pieces
}

/// What this node has kept; `None`: nothing.
///
/// # Errors
/// Why what is there cannot be used.
pub(crate) fn read(data: &Path, by: &Writer) -> Result<Option<Checkpoint>, String> {
    let path = file(data);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("could not read {}: {error}", path.display())),
    };
    let said = |why: String| format!("{} is of no use: {why}", path.display());
    let left = file.metadata().map_err(|error| said(error.to_string()))?;
    let mut frames = Frames {
        left: left.len(),
        from: BufReader::new(file),
    };
    frames.checkpoint(by).map(Some).map_err(said)
}

/// Makes sure that it is not read again.
pub(crate) fn remove(data: &Path) {
    let path = file(data);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            // It is marked as used.
            tracing::warn!(file = %path.display(), %error, "could not remove what has been used");
        }
        _ => {}
    }
}

fn file(data: &Path) -> PathBuf {
    data.join(FILE)
}

struct Frames {
    left: u64,
    from: BufReader<File>,
}

impl Frames {
    fn checkpoint(&mut self, by: &Writer) -> Result<Checkpoint, String> {
        let Frame::Begin {
            by: wrote,
            at,
            nonce,
        } = self.next()?
        else {
            return Err("it does not begin as it should".into());
        };
        if wrote != *by {
            return Err(format!(
                "node {} of cluster {} wrote it",
                wrote.node, wrote.cluster
            ));
        }
        let mut shards: Vec<ShardCheckpoint> = Vec::new();
        loop {
            match self.next()? {
                Frame::Begin { .. } => return Err("it begins twice".into()),
                Frame::Piece(piece) => match shards.last_mut() {
                    Some(last) if last.shard == piece.shard => last.records.extend(piece.records),
                    _ => shards.push(piece),
                },
                Frame::End { shards: count } if count == shards.len() as u64 => break,
                Frame::End { .. } => return Err("some of its shards are missing".into()),
            }
        }
        let ago = UnixTime::now().0.saturating_sub(at.0);
        Ok(Checkpoint {
            shards,
            ago: Duration::from_micros(ago),
            nonce,
        })
    }

    fn next(&mut self) -> Result<Frame, String> {
        let length = self.number()?;
        let checksum = self.number()?;
        let torn = || "it ends early".to_owned();
        self.left = self.left.checked_sub(length).ok_or_else(torn)?;
        let mut payload = vec![0; usize::try_from(length).map_err(|_| torn())?];
        let read = self.from.read_exact(&mut payload);
        read.map_err(|error| error.to_string())?;
        if xxh3_64(&payload) != checksum {
            return Err("it is damaged".into());
        }
        wire::decode(&payload)
    }

    fn number(&mut self) -> Result<u64, String> {
        let mut number = [0; 8];
        let left = self.left.checked_sub(8);
        self.left = left.ok_or_else(|| "it ends early".to_owned())?;
        let read = self.from.read_exact(&mut number);
        read.map_err(|error| error.to_string())?;
        Ok(u64::from_le_bytes(number))
    }
}

#[cfg(test)]
mod tests;
