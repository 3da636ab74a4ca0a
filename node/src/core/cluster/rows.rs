//! What is agreed of one shard, and how entries change it.
//!
//! Every change is conditional on what it was decided under: the fence, and for
//! all but a first owner the version of the row. So of two decisions that were
//! made under the same row only the first counts.

use proto::id::NodeRef;
use proto::shard::{Fence, ShardId};
use serde::{Deserialize, Serialize};

use super::Cluster;

/// Nodes that may hold replicas of a shard: one, and a second while the shard
/// moves to it.
pub const STANDBYS_MAX: usize = 2;

/// Who has a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct Row {
    /// Serves it.
    pub owner: NodeRef,
    /// Since when.
    pub fence: Fence,
    /// The last entry that changed anything of this row.
    pub version: u64,
    /// Who has a replica of it.
    pub standbys: Vec<Standby>,
    /// Every owner before this one since the last entry that an owner proposed
    /// itself: any of them may not have heard yet that it is the owner no more.
    /// Lives that have certainly ended are left out, save the last one.
    pub earlier: Vec<NodeRef>,
    /// Whether the owner has what the one before had: it was an
    /// [`InSync`](Replica::InSync) standby, or kept a checkpoint. If not,
    /// everything in it begins anew.
    pub promoted: bool,
    /// The owner was given it back for what it kept under this fence, and no owner
    /// has said anything since: who still has that, unused, has everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claimed: Option<Fence>,
}

/// A [`Row`] as it may stand in a snapshot: older versions wrote only the first
/// two.
#[derive(Deserialize)]
struct Stored {
    owner: NodeRef,
    fence: Fence,
    #[serde(default)]
    version: u64,
    #[serde(default)]
    standbys: Vec<Standby>,
    #[serde(default)]
    earlier: Vec<NodeRef>,
    #[serde(default)]
    promoted: bool,
    #[serde(default)]
    claimed: Option<Fence>,
}

impl From<Stored> for Row {
    fn from(stored: Stored) -> Self {
        Self {
            version: stored.version.max(stored.fence.0),
            owner: stored.owner,
            fence: stored.fence,
            standbys: stored.standbys,
            earlier: stored.earlier,
            promoted: stored.promoted,
            claimed: stored.claimed,
        }
    }
}

/// A node that has a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standby {
    /// Which node.
    pub node: NodeRef,
    /// How much it has.
    pub state: Replica,
}

/// How much a standby has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Replica {
    /// Not all yet: it counts for nothing.
    Filling,
    /// All that the owner has ever acknowledged: it may be promoted.
    InSync,
}

/// One shard's new owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The shard.
    pub shard: ShardId,
    /// Who gets it.
    pub owner: NodeRef,
    /// Only if this is still its fence; `None`: only if nobody has it.
    pub under: Option<Fence>,
    /// Only if this is still the version of its row; `None`: whatever it is.
    #[serde(default)]
    pub version: Option<u64>,
    /// With what the owner begins.
    #[serde(default)]
    pub how: How,
}

/// With what a new owner begins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// With nothing. Nobody stands by.
    #[default]
    Afresh,
    /// With its replica, if it is an [`InSync`](Replica::InSync) standby.
    Promote {
        /// The other standby, if the shard moves as planned; it has to be in
        /// sync too. Else nobody stands by.
        keep: Option<NodeRef>,
    },
}

/// Who stands by for a shard, as its owner has decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaSet {
    /// The shard.
    pub shard: ShardId,
    /// Only if this is still its owner.
    pub owner: NodeRef,
    /// Only if this is still its fence.
    pub fence: Fence,
    /// Only if this is still the version of its row.
    pub version: u64,
    /// All who stand by from now on.
    pub standbys: Vec<Standby>,
}

impl Row {
    /// Whether a node has all of this shard without owning it.
    pub fn is_in_sync(&self, node: &NodeRef) -> bool {
        self.in_sync().any(|standby| standby == node)
    }

    /// The standbys that have all of this shard.
    pub fn in_sync(&self) -> impl Iterator<Item = &NodeRef> {
        let standbys = self.standbys.iter();
        standbys
            .filter(|standby| standby.state == Replica::InSync)
            .map(|standby| &standby.node)
    }
}

/// The row after an assignment; `None`: it changes nothing.
pub(super) fn assigned(
    cluster: &Cluster,
    row: Option<&Row>,
    assignment: Assignment,
    index: u64,
) -> Option<Row> {
    let Assignment {
        owner,
        under,
        version,
        how,
        ..
    } = assignment;
    let conditions_hold = row.map(|row| row.fence) == under
        && (version.is_none() || row.map(|row| row.version) == version);
    if !conditions_hold || !cluster.may_hold(&owner) {
        return None;
    }
    let (standbys, promoted) = match how {
        How::Afresh => (Vec::new(), false),
        How::Promote { keep } => (promoted(row?, &owner, keep)?, true),
    };
    let earlier = row.map_or_else(Vec::new, |row| earlier(cluster, row, &owner));
    Some(Row {
        owner,
        fence: Fence(index),
        version: index,
        standbys,
        earlier,
        promoted,
        claimed: None,
    })
}

/// The row after its owner, which had stopped by itself, is back with what it
/// kept under this fence; `None`: that is void.
pub(super) fn given_back(
    cluster: &Cluster,
    row: &Row,
    owner: &NodeRef,
    fence: Fence,
    index: u64,
) -> Option<Row> {
    let is_it = row.fence == fence || row.claimed == Some(fence);
    let is_valid = is_it && row.owner.id == owner.id && cluster.has_ended(&row.owner);
    (is_valid && cluster.may_hold(owner)).then(|| Row {
        owner: owner.clone(),
        fence: Fence(index),
        version: index,
        standbys: Vec::new(),
        earlier: earlier(cluster, row, owner),
        promoted: true,
        claimed: Some(fence),
    })
}

/// Who may take itself for the owner still, when a row gets another one.
fn earlier(cluster: &Cluster, row: &Row, owner: &NodeRef) -> Vec<NodeRef> {
    let mut earlier = row.earlier.clone();
    earlier.retain(|node| *node != row.owner && !cluster.has_ended(node));
    earlier.push(row.owner.clone());
    // Nobody has to be waited for on its own behalf.
    earlier.retain(|node| node != owner);
    earlier
}

/// Who stands by after a promotion; `None`: it is none.
fn promoted(row: &Row, owner: &NodeRef, keep: Option<NodeRef>) -> Option<Vec<Standby>> {
    if !row.is_in_sync(owner) {
        return None;
    }
    let Some(node) = keep else {
        return Some(Vec::new());
    };
    let kept = node != *owner && row.is_in_sync(&node);
    let state = Replica::InSync;
    kept.then(|| vec![Standby { node, state }])
}

/// The row after its owner has said who stands by; `None`: it changes nothing.
pub(super) fn replicated(cluster: &Cluster, row: &Row, set: ReplicaSet, index: u64) -> Option<Row> {
    let ReplicaSet {
        owner,
        fence,
        version,
        standbys,
        ..
    } = set;
    if (&owner, fence, version) != (&row.owner, row.fence, row.version) {
        return None;
    }
    let are_others = standbys.iter().enumerate().all(|(at, standby)| {
        let twice = standbys[..at].iter().any(|s| s.node.id == standby.node.id);
        !twice && standby.node.id != owner.id && cluster.may_hold(&standby.node)
    });
    (are_others && standbys.len() <= STANDBYS_MAX).then(|| Row {
        version: index,
        standbys,
        earlier: Vec::new(),
        claimed: None,
        ..row.clone()
    })
}
