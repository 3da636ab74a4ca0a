//! A cluster whose majority is lost for good, seen from the data directory of a
//! node that is left. See [`crate::raft::recover`].

use std::path::Path;

use proto::id::NodeId;

use super::host::is_member;
use super::{IDENTITY, Identity};
use crate::raft::recover::Left;
use crate::raft::store::{Store, StoreError};

/// What is left of a cluster in one data directory.
#[derive(Debug)]
pub struct Recovery {
    /// The cluster.
    pub cluster: String,
    /// The node that is left.
    pub name: NodeId,
    /// All other members that it knows, and where they were.
    pub others: Vec<(String, String)>,
    /// Whether it decides alone already.
    pub is_alone: bool,
    /// The last entry of its log.
    pub last: u64,
    store: Store,
    left: Left,
    me: u64,
}

/// Why nothing can be recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// Of the data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing is there.
    #[error("{0} is no data directory of a node: it has no file dunlin.redb")]
    NoNode(String),
    /// It belongs to no cluster.
    #[error("the node of the data directory {0} is a member of no cluster; start it as usual")]
    NoMember(String),
}

impl Recovery {
    /// Looks into the data directory of a node that does not run. Changes nothing.
    ///
    /// # Errors
    /// [`RecoveryError`].
    pub fn open(data: &Path) -> Result<Self, RecoveryError> {
        let text = || data.display().to_string();
        if !Store::is_in(data) {
            return Err(RecoveryError::NoNode(text()));
        }
        let store = Store::open(data)?;
        let identity = store.get::<Identity>(IDENTITY)?;
        let left = Left::read(&store)?;
        let is_member = is_member(&store)?;
        let (Some(identity), Some(left), true) = (identity, left, is_member) else {
            return Err(RecoveryError::NoMember(text()));
        };
        let me = identity.raft_id;
        let name_of = |id: u64| {
            let mut members = left.cluster.members().iter();
            let member = members.find(|(_, member)| member.registration.raft_id == id);
            member.map_or_else(
                || "a node that never registered".to_owned(),
                |(name, _)| name.to_string(),
            )
        };
        let others = left.nodes.iter().filter(|(id, _)| **id != me);
        let others = others.map(|(id, peer)| (name_of(*id), peer.address.clone()));
        Ok(Self {
            cluster: identity.cluster.to_string(),
            name: identity.name,
            others: others.collect(),
            is_alone: left.voters == [me],
            last: left.last,
            store,
            left,
            me,
        })
    }

    /// Has the node decide alone from its next start on. None of the others may
    /// ever be started with its data directory again.
    ///
    /// # Errors
    /// [`RecoveryError::Store`].
    pub fn force(self) -> Result<(), RecoveryError> {
        Ok(self.left.go_on_alone(&self.store, self.me)?)
    }
}
