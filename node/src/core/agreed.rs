//! What is agreed, as those who own shards and stand by for them need it.

use std::sync::Arc;

use proto::id::NodeRef;
use proto::shard::{Fence, ShardId, ShardMap};

use super::cluster::{self, Cluster};
use super::gone::Gone;
use super::replication::Row;

/// The map, and what is agreed of each shard's replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// Who owns what.
    pub map: Arc<ShardMap>,
    /// By shard number; empty where nothing is replicated.
    pub shards: Vec<Replicas>,
    /// Gateways whose life is over.
    pub gone: Arc<Gone>,
}

/// What is agreed of one shard's replicas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replicas {
    /// For the owner.
    pub row: Row,
    /// Whether the owner was a standby that had everything.
    pub promoted: bool,
    /// Who may still take itself for the owner.
    pub earlier: Vec<NodeRef>,
}

impl Agreed {
    /// Of a node that is alone: nobody stands by.
    pub fn alone(map: Arc<ShardMap>) -> Self {
        Self {
            map,
            shards: Vec::new(),
            gone: Arc::default(),
        }
    }

    /// What is agreed in a cluster, whose map is this.
    pub fn of(cluster: &Cluster, map: Arc<ShardMap>) -> Self {
        let shard = |row: &Option<cluster::Row>| {
            let Some(row) = row else {
                return Replicas::default();
            };
            Replicas {
                row: Row {
                    version: row.version,
                    in_sync: row.in_sync().cloned().collect(),
                    has_earlier: !row.earlier.is_empty(),
                },
                promoted: row.promoted,
                earlier: row.earlier.clone(),
            }
        };
        Self {
            map,
            shards: cluster.rows().iter().map(shard).collect(),
            gone: Arc::clone(cluster.gone()),
        }
    }

    /// The fence under which a node is to own a shard.
    pub fn fence_of(&self, shard: ShardId, node: &NodeRef) -> Option<Fence> {
        let (owner, fence) = self.map.owner(shard)?;
        (owner == node).then_some(fence)
    }

    /// Whether a node is agreed to have all of a shard besides its owner.
    pub fn stands_by(&self, shard: ShardId, node: &NodeRef) -> bool {
        let replicas = self.replicas(shard);
        replicas.is_some_and(|replicas| replicas.row.in_sync.contains(node))
    }

    /// What is agreed of a shard's replicas.
    pub fn replicas(&self, shard: ShardId) -> Option<&Replicas> {
        self.shards.get(usize::from(shard.0))
    }
}
