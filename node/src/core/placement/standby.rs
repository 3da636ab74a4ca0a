//! Who should stand by for which shard.
//!
//! Every owner asks for its own shards, and all get answers that fit together,
//! for they compute all of it from what is agreed. A standby that is recorded
//! stays: only its owner drops it. What gossip has given up is only not chosen
//! anew.
//!
//! Another zone comes first, even where it leaves fewer nodes to spread over: a
//! zone that fails takes everything in it at once, a node that takes over more
//! than its share is only busier. Within that, the standbys of one node's shards
//! are spread over all nodes, which are at least [`SPREAD`] if there are so many,
//! and among equals the least loaded is taken.

use std::collections::{BTreeMap, BTreeSet};

use proto::id::NodeRef;
use proto::shard::ShardId;

use super::{owner, shards};
use crate::core::cluster::{Cluster, RaftId, Row};

/// Over how many nodes the standbys of one node's shards are spread at least,
/// if its zone leaves so many and it has so many shards.
pub const SPREAD: usize = 8;

/// Who should stand by for a shard. `None`: nobody can. `given_up` are nodes
/// that gossip has given up, or that the owner has just dropped.
pub fn standby_for(
    cluster: &Cluster,
    shard: ShardId,
    given_up: &BTreeSet<RaftId>,
) -> Option<NodeRef> {
    standbys(cluster, given_up).remove(&shard)
}

/// Who should stand by for each shard that has an owner, as far as anybody can:
/// [`standby_for`] of all at the cost of one.
pub fn standbys(cluster: &Cluster, given_up: &BTreeSet<RaftId>) -> BTreeMap<ShardId, NodeRef> {
    let mut choice = Choice::new(cluster, given_up);
    let mut chosen = BTreeMap::new();
    let owned = || shards(cluster).filter_map(|(shard, row)| Some((shard, row?)));
    for (shard, row) in owned() {
        if let Some(node) = recorded(cluster, row) {
            choice.count(&row.owner, node);
            chosen.insert(shard, node.clone());
        }
    }
    for (shard, row) in owned() {
        if chosen.contains_key(&shard) || !cluster.may_hold(&row.owner) {
            continue;
        }
        if let Some(node) = choice.best(&row.owner) {
            choice.count(&row.owner, &node);
            chosen.insert(shard, node);
        }
    }
    chosen
}

/// The standby that a shard has already, if it still can be one.
fn recorded<'a>(cluster: &Cluster, row: &'a Row) -> Option<&'a NodeRef> {
    let standbys = row.standbys.iter().map(|standby| &standby.node);
    let mut able = standbys.filter(|node| node.id != row.owner.id && cluster.may_hold(node));
    able.next()
}

struct Choice<'a> {
    cluster: &'a Cluster,
    /// Who can be chosen, and how many shards it owns or stands by for.
    load: BTreeMap<NodeRef, usize>,
    /// By owner and standby.
    pairs: BTreeMap<(NodeRef, NodeRef), usize>,
}

impl<'a> Choice<'a> {
    fn new(cluster: &'a Cluster, given_up: &BTreeSet<RaftId>) -> Self {
        let members = cluster.members().values();
        let able = members.filter(|member| !given_up.contains(&member.registration.raft_id));
        let mut load: BTreeMap<NodeRef, usize> =
            able.filter_map(owner).map(|node| (node, 0)).collect();
        for row in cluster.rows().iter().flatten() {
            if let Some(load) = load.get_mut(&row.owner) {
                *load += 1;
            }
        }
        Self {
            cluster,
            load,
            pairs: BTreeMap::new(),
        }
    }

    fn count(&mut self, owner: &NodeRef, standby: &NodeRef) {
        if let Some(load) = self.load.get_mut(standby) {
            *load += 1;
        }
        let pair = (owner.clone(), standby.clone());
        *self.pairs.entry(pair).or_default() += 1;
    }

    fn best(&self, owner: &NodeRef) -> Option<NodeRef> {
        let zone = self.zone(owner);
        let others = self.load.iter().filter(|(node, _)| node.id != owner.id);
        let best = others.min_by_key(|(node, load)| {
            let pair = (owner.clone(), (*node).clone());
            let pairs = self.pairs.get(&pair).copied().unwrap_or(0);
            (self.zone(node) == zone, pairs, **load)
        });
        best.map(|(node, _)| node.clone())
    }

    fn zone(&self, node: &NodeRef) -> Option<&'a str> {
        let member = self.cluster.members().get(&node.id);
        member.map(|member| member.registration.zone.as_str())
    }
}
