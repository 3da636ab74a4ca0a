//! Shards: fixed slices of all channels, each with one owner.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::channel::ChannelKey;
use crate::id::{ClusterUuid, NodeRef};

/// Shards of a cluster unless it was bootstrapped with another number.
pub const SHARDS_DEFAULT: u16 = 1_024;

/// One slice of all channels.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId(pub u16);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How channels fall into shards. Minted when the cluster is formed and never
/// changed: shards move between nodes, channels never move between shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sharding {
    /// Keeps an outsider from choosing names that fall into one shard.
    pub seed: u64,
    /// How many shards there are.
    pub count: u16,
}

impl Sharding {
    /// The shard of a channel: `xxh3_64_with_seed(len(app) ‖ app ‖ channel) % count`,
    /// the length as 4 bytes, little endian, so that no two (app, channel)
    /// pairs share their bytes.
    pub fn shard_of(&self, key: &ChannelKey) -> ShardId {
        let app = key.app.as_str().as_bytes();
        let mut hash = xxhash_rust::xxh3::Xxh3::with_seed(self.seed);
        hash.update(&(app.len() as u32).to_le_bytes());
        hash.update(app);
        hash.update(key.channel.as_str().as_bytes());
        ShardId((hash.digest() % u64::from(self.count)) as u16)
    }
}

/// The log index at which a shard got its present owner. It changes only with
/// the owner; everything under a lower one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fence(pub u64);

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One shard's row of the map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Who serves the shard, as an index into [`ShardMap::nodes`].
    pub owner: u16,
    /// Since when.
    pub fence: Fence,
}

/// Who owns what. It only routes: whether a node may serve is the node's own
/// question, and a reply under a higher fence overrules the map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardMap {
    /// The cluster it is the map of.
    pub cluster: ClusterUuid,
    /// Higher is newer.
    pub version: u64,
    /// How channels fall into shards.
    pub sharding: Sharding,
    /// The nodes that rows refer to.
    pub nodes: Vec<NodeRef>,
    /// One row per shard, by shard number.
    pub rows: Vec<Row>,
}

impl ShardMap {
    /// A map in which one node owns everything.
    pub fn standalone(cluster: ClusterUuid, seed: u64, node: NodeRef) -> Self {
        let sharding = Sharding {
            seed,
            count: SHARDS_DEFAULT,
        };
        let row = Row {
            owner: 0,
            fence: Fence(1),
        };
        Self {
            cluster,
            version: 1,
            sharding,
            nodes: vec![node],
            rows: vec![row; usize::from(sharding.count)],
        }
    }

    /// Who owns a shard, and since when. `None` for a shard outside the map.
    pub fn owner(&self, shard: ShardId) -> Option<(&NodeRef, Fence)> {
        let row = self.rows.get(usize::from(shard.0))?;
        Some((self.nodes.get(usize::from(row.owner))?, row.fence))
    }

    /// What a map has in which nothing is owned yet: the first state of every
    /// cluster, and of a node that has not heard of any.
    pub fn unassigned(cluster: ClusterUuid, sharding: Sharding) -> Self {
        Self {
            cluster,
            version: 0,
            sharding,
            nodes: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// What has changed since a version: the rows with a higher fence, for a
    /// row's fence is the version at which it got its owner. Since zero:
    /// everything.
    pub fn since(&self, version: u64) -> MapUpdate {
        let changed = |row: &&(ShardId, Row)| row.1.fence.0 > version;
        let all = self.rows.iter().enumerate();
        let all = all.map(|(number, row)| (ShardId(number as u16), row.clone()));
        MapUpdate {
            cluster: self.cluster,
            sharding: self.sharding,
            since: version,
            version: self.version,
            nodes: self.nodes.clone(),
            rows: all.filter(|row| changed(&row)).collect(),
        }
    }

    /// Whether every channel has a row, and every row an owner.
    pub fn is_sound(&self) -> bool {
        self.sharding.count > 0
            && self.rows.len() == usize::from(self.sharding.count)
            && self
                .rows
                .iter()
                .all(|row| usize::from(row.owner) < self.nodes.len())
    }
}

/// A change of the map on its way to those who route by it. Applied to a map of
/// version `since` or any later one it gives version `version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapUpdate {
    /// The cluster it is the map of.
    pub cluster: ClusterUuid,
    /// How channels fall into shards.
    pub sharding: Sharding,
    /// Rows that changed after this version are here. Zero: all rows.
    pub since: u64,
    /// The version that this leads to.
    pub version: u64,
    /// The nodes that rows refer to.
    pub nodes: Vec<NodeRef>,
    /// The rows that have changed.
    pub rows: Vec<(ShardId, Row)>,
}

impl MapUpdate {
    /// The owner that a row of this update names.
    pub fn owner(&self, row: &Row) -> Option<&NodeRef> {
        self.nodes.get(usize::from(row.owner))
    }

    /// Whether an update that came from outside makes sense: each row is of a
    /// shard that exists and names a node, and one since zero has all rows in
    /// order.
    pub fn is_sound(&self) -> bool {
        let count = usize::from(self.sharding.count);
        let row_is_sound = |(shard, row): &(ShardId, Row)| {
            usize::from(shard.0) < count && self.owner(row).is_some()
        };
        let whole = self.rows.len() == count
            && self
                .rows
                .iter()
                .enumerate()
                .all(|(number, (shard, _))| usize::from(shard.0) == number);
        count > 0 && self.rows.iter().all(row_is_sound) && (self.since > 0 || whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Incarnation;

    fn key(app: &str, channel: &str) -> ChannelKey {
        ChannelKey {
            app: app.parse().unwrap(),
            channel: channel.parse().unwrap(),
        }
    }

    /// The numbers are part of every data directory and every map: a change
    /// here is a change of the wire and of the disk.
    #[test]
    fn shard_of_is_pinned() {
        let sharding = Sharding {
            seed: 42,
            count: 1_024,
        };
        let shards = [
            ("app-id", "logs"),
            ("app-id", "private-room"),
            ("ap", "p-idlogs"),
        ]
        .map(|(app, channel)| sharding.shard_of(&key(app, channel)).0);
        assert_eq!(shards, [965, 452, 268]);
    }

    #[test]
    fn app_and_channel_do_not_run_into_each_other() {
        let sharding = Sharding {
            seed: 0,
            count: u16::MAX,
        };
        assert_ne!(
            sharding.shard_of(&key("ab", "c")),
            sharding.shard_of(&key("a", "bc"))
        );
    }

    #[test]
    fn shards_are_even() {
        let sharding = Sharding { seed: 7, count: 64 };
        let mut counts = [0_u32; 64];
        for i in 0..64_000 {
            counts[usize::from(sharding.shard_of(&key("app", &format!("room-{i}"))).0)] += 1;
        }
        assert!(
            counts.iter().all(|n| (800..1_200).contains(n)),
            "{counts:?}"
        );
    }

    #[test]
    fn an_update_holds_the_rows_that_changed_after_its_version() {
        let node = NodeRef {
            id: "n".parse().unwrap(),
            incarnation: Incarnation(1),
        };
        let mut map = ShardMap::standalone(ClusterUuid(1), 0, node);
        map.rows[3].fence = Fence(9);
        map.version = 9;
        let whole = map.since(0);
        assert!(whole.is_sound());
        assert_eq!(whole.rows.len(), 1_024);
        let update = map.since(1);
        assert!(update.is_sound());
        assert_eq!(update.rows, [(ShardId(3), map.rows[3].clone())]);
        assert_eq!(update.owner(&update.rows[0].1), map.nodes.first());
        let hole = MapUpdate { since: 0, ..update };
        assert!(!hole.is_sound(), "a whole map has all rows");
    }

    #[test]
    fn a_map_with_a_row_of_an_unknown_node_is_not_sound() {
        let node = NodeRef {
            id: "n".parse().unwrap(),
            incarnation: Incarnation(1),
        };
        let mut map = ShardMap::standalone(ClusterUuid(1), 0, node);
        assert!(map.is_sound());
        map.rows[3].owner = 1;
        assert!(!map.is_sound());
        assert_eq!(map.owner(ShardId(3)), None);
        assert_eq!(map.owner(ShardId(1_024)), None);
    }
}
