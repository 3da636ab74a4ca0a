//! Which nodes are heard: each in its latest life only.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::id::{Incarnation, NodeId, NodeRef};
use proto::link::Receiver;
use proto::time::Timestamp;

/// A node that was silent for so long is not asked.
const SILENT: Duration = Duration::from_secs(2);
/// Nodes that are remembered at most; the one silent for longest is forgotten.
const NODES_MAX: usize = 1_024;
/// Nodes of other clusters that are remembered at most.
const STRANGERS_MAX: usize = 64;
/// How often it is said that another cluster is heard.
const COMPLAIN: Duration = Duration::from_secs(10);

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Nodes {
    heard: BTreeMap<NodeId, Heard>,
    /// Nodes whose beats name another cluster. Replies do not say which one
    /// they come from.
    strangers: BTreeMap<NodeRef, Timestamp>,
    complained_at: Option<Timestamp>,
}

#[derive(Debug)]
struct Heard {
    incarnation: Incarnation,
    /// A beat has named our cluster.
    ours: bool,
    at: Timestamp,
    link: Receiver,
}

impl Nodes {
    /// A message of this node has come. Its link, which begins anew with each
    /// life; `None`: the message is of a life that is over, or of another
    /// cluster, and does not count.
    pub(super) fn hear(&mut self, now: Timestamp, from: &NodeRef) -> Option<&mut Receiver> {
        if self.strangers.contains_key(from) {
            return None;
        }
        if !self.heard.contains_key(&from.id) {
            self.make_room();
        }
        let fresh = || Heard {
            incarnation: from.incarnation,
            ours: false,
            at: now,
            link: Receiver::default(),
        };
        let node = self.heard.entry(from.id.clone()).or_insert_with(fresh);
        if from.incarnation < node.incarnation {
            return None;
        }
        if from.incarnation > node.incarnation {
            *node = fresh();
        }
        node.at = now;
        Some(&mut node.link)
    }

    /// A beat that names our cluster.
    pub(super) fn hear_ours(&mut self, now: Timestamp, from: &NodeRef) -> bool {
        self.strangers.remove(from);
        let counts = self.hear(now, from).is_some();
        if counts && let Some(node) = self.heard.get_mut(&from.id) {
            node.ours = true;
        }
        counts
    }

    /// A beat or map that names another cluster. Two clusters may call a node
    /// the same, so one whose beat has named ours stays ours; otherwise what was
    /// heard of it is forgotten.
    pub(super) fn hear_stranger(&mut self, now: Timestamp, from: &NodeRef) {
        let same = |heard: &&Heard| heard.incarnation == from.incarnation;
        match self.heard.get(&from.id).filter(same) {
            Some(heard) if heard.ours => return,
            Some(_) => {
                self.heard.remove(&from.id);
            }
            None => {}
        }
        if self.strangers.len() >= STRANGERS_MAX {
            let oldest = self.strangers.iter().min_by_key(|(_, at)| **at);
            if let Some(oldest) = oldest.map(|(node, _)| node.clone()) {
                self.strangers.remove(&oldest);
            }
        }
        self.strangers.insert(from.clone(), now);
    }

    /// Whether it is time to say that another cluster is heard.
    pub(super) fn complains(&mut self, now: Timestamp) -> bool {
        let due = self
            .complained_at
            .is_none_or(|at| now.since(at) >= COMPLAIN);
        if due {
            self.complained_at = Some(now);
        }
        due
    }

    /// Whether none has been heard yet.
    pub(super) fn is_empty(&self) -> bool {
        self.heard.is_empty()
    }

    /// Some node that is there: the one that was heard last.
    pub(super) fn any(&self, now: Timestamp) -> Option<&NodeId> {
        self.heard
            .iter()
            .filter(|(_, node)| now.since(node.at) < SILENT)
            .max_by_key(|(_, node)| node.at)
            .map(|(id, _)| id)
    }

    fn make_room(&mut self) {
        if self.heard.len() < NODES_MAX {
            return;
        }
        let oldest = self.heard.iter().min_by_key(|(_, node)| node.at);
        if let Some(oldest) = oldest.map(|(id, _)| id.clone()) {
            self.heard.remove(&oldest);
        }
    }
}
