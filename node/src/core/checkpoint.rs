//! What a node keeps of its shards when it stops by itself and nobody could have
//! them: their state, as a standby would be sent it.
//!
//! It is used once, and only if nobody has owned the shard since. The node says
//! with its registration which shards it has kept, and under which fences it had
//! them; where that is still the fence of the row, the same entry gives the shard
//! back, under a new fence and with its epochs. A fence is never given twice, so
//! a checkpoint that is older than anything another owner did fits no row.

use std::collections::BTreeMap;

use proto::shard::{Fence, ShardId};
use serde::{Deserialize, Serialize};

use super::record::Record;

/// The whole state of one shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardCheckpoint {
    /// Which one.
    pub shard: ShardId,
    /// Under which this node had it.
    pub fence: Fence,
    /// It was not served yet, for an earlier owner had a lease of this node.
    pub waits: bool,
    /// From [`Record::Begin`] to [`Record::Whole`].
    pub records: Vec<Record>,
}

/// Shards of which a node has a checkpoint, by the fence under which it had them:
/// many shards share one.
pub type Claims = Vec<(Fence, Vec<ShardId>)>;

/// What a node may claim that has these.
pub fn claims(kept: &[ShardCheckpoint]) -> Claims {
    let mut claims: BTreeMap<Fence, Vec<ShardId>> = BTreeMap::new();
    for checkpoint in kept {
        let shards = claims.entry(checkpoint.fence).or_default();
        shards.push(checkpoint.shard);
    }
    claims.into_iter().collect()
}
