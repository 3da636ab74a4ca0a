//! Where nodes can be reached: what they said last, by their Raft id. Members
//! of the cluster are always known; of others, which may call themselves
//! anything, those that were heard last.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::core::cluster::RaftId;

/// Nodes that are no members, of which this is known: those that found the
/// cluster, or have not registered yet. When there are more, the one that was
/// silent for longest is forgotten.
const OTHERS_MAX: usize = 256;

/// Shared by everything that calls other nodes. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Addresses(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    members: BTreeMap<RaftId, String>,
    /// By when they were heard.
    others: VecDeque<(RaftId, String)>,
}

impl Addresses {
    /// Where a node is.
    pub(crate) fn get(&self, node: RaftId) -> Option<String> {
        let known = self.known();
        let other = || known.others.iter().find(|(id, _)| *id == node);
        let member = known.members.get(&node);
        member.or_else(|| other().map(|(_, at)| at)).cloned()
    }

    /// A node has said where it is.
    pub(crate) fn set(&self, node: RaftId, address: &str) {
        let mut known = self.known();
        match known.members.get_mut(&node) {
            Some(member) if member == address => {}
            Some(member) => address.clone_into(member),
            None => known.hear(node, address.to_owned()),
        }
    }

    /// Who the members are, and where they were when they registered; what they
    /// have said since counts more.
    pub(crate) fn set_members<'a>(&self, members: impl Iterator<Item = (RaftId, &'a str)>) {
        let mut known = self.known();
        let mut before = std::mem::take(&mut known.members);
        for (node, registered) in members {
            let said = before.remove(&node).or_else(|| known.forget(node));
            let address = said.unwrap_or_else(|| registered.to_owned());
            known.members.insert(node, address);
        }
        for (node, address) in before {
            known.hear(node, address);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn hear(&mut self, other: RaftId, address: String) {
        if self.forget(other).is_none() && self.others.len() >= OTHERS_MAX {
            self.others.pop_front();
        }
        self.others.push_back((other, address));
    }

    fn forget(&mut self, other: RaftId) -> Option<String> {
        let at = self.others.iter().position(|(id, _)| *id == other)?;
        self.others.remove(at).map(|(_, address)| address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_said_counts_more_than_where_it_registered() {
        let addresses = Addresses::default();
        addresses.set(1, "moved");
        addresses.set_members([(1, "old"), (2, "there")].into_iter());
        assert_eq!(addresses.get(1).as_deref(), Some("moved"));
        assert_eq!(addresses.get(2).as_deref(), Some("there"));
        addresses.set(2, "moved as well");
        addresses.set_members([(2, "there")].into_iter());
        assert_eq!(addresses.get(2).as_deref(), Some("moved as well"));
        assert_eq!(addresses.get(1).as_deref(), Some("moved"), "not at once");
        assert_eq!(addresses.get(3), None);
    }

    #[test]
    fn of_others_the_last_heard_are_known_and_members_are_always() {
        let addresses = Addresses::default();
        addresses.set_members([(1, "member")].into_iter());
        let first = 2;
        let end = first + OTHERS_MAX as RaftId;
        for other in first..end {
            addresses.set(other, "other");
        }
        addresses.set(first, "again");
        addresses.set(end, "one more");
        assert_eq!(addresses.get(1).as_deref(), Some("member"));
        assert_eq!(addresses.get(first).as_deref(), Some("again"));
        assert_eq!(addresses.get(first + 1), None);
        assert_eq!(addresses.get(end).as_deref(), Some("one more"));
        assert_eq!(addresses.known().others.len(), OTHERS_MAX);
    }
}
