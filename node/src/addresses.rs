//! Where nodes can be reached: what they said last, by their Raft id.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::core::cluster::RaftId;

/// Shared by everything that calls other nodes. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Addresses(Arc<Mutex<BTreeMap<RaftId, String>>>);

impl Addresses {
    /// Where a node is.
    pub(crate) fn get(&self, node: RaftId) -> Option<String> {
        let addresses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.get(&node).cloned()
    }

    /// A node has said where it is.
    pub(crate) fn set(&self, node: RaftId, address: &str) {
        let mut addresses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if addresses.get(&node).is_none_or(|known| known != address) {
            addresses.insert(node, address.to_owned());
        }
    }

    /// Where a node was when it registered; what it has said since counts more.
    pub(crate) fn set_default(&self, node: RaftId, address: &str) {
        let mut addresses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.entry(node).or_insert_with(|| address.to_owned());
    }
}
