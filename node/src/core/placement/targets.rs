//! Who should have which shard: its owner, and who stands by.
//!
//! Every owner asks for its own shards, the leader for all, and they get answers
//! that fit together, for they compute all of it from what is agreed. What is
//! recorded stays where it may: fewest moves. What gossip has given up is only
//! not chosen anew. What it suspects is chosen like any other: some may suspect for
//! minutes a node that lives and has not heard of it, and owner and leader, who then
//! wanted different things, would never come to an end.
//!
//! A shard **moves** when its owner drains or the bus has left it, or to the node that owns least, while
//! another owns two more. Its owner then gets two standbys: the one to which it
//! moves and the one that stays. When both are agreed to be in sync the leader
//! makes the first the owner: [`moves`]. So a shard that moves is never held in
//! fewer than two processes, and while anything is not protected for another
//! reason nothing moves to spread the load. At most [`MOVES_MAX`] move at a time.
//!
//! Another zone comes first, even where it leaves fewer nodes to spread over, and
//! even if that means another standby than there is: a
//! zone that fails takes everything in it at once, a node that takes over more
//! than its share is only busier. Within that, the standbys of one node's shards
//! are spread over all nodes, which are at least [`SPREAD`] if there are so many,
//! and among equals the least loaded is taken. A node that comes back stands by for
//! nothing: when nothing moves any more, standbys of shards are replaced until it
//! has nearly as many as the others.

use std::collections::{BTreeMap, BTreeSet};

use proto::id::NodeRef;
use proto::shard::ShardId;

use super::{owner, shards};
use crate::core::cluster::{Assignment, Cluster, How, RaftId, Row};
use crate::core::detection::Out;

/// Over how many nodes the standbys of one node's shards are spread at least,
/// if its zone leaves so many and it has so many shards.
pub const SPREAD: usize = 8;
/// Shards that move at a time, in the whole cluster.
pub const MOVES_MAX: usize = 64;
/// The part of a node's shards by which one may stand by for more of them than
/// another does: what replacing a standby costs has to be worth it.
const UNEVEN: usize = 8;

/// What should become of each shard; those are left out with which nothing can
/// be done.
pub type Targets = BTreeMap<ShardId, Target>;

/// Who should have a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// To whom it moves.
    pub owner: Option<NodeRef>,
    /// Who stands by, now or when it has moved. `None`: nobody can.
    pub standby: Option<NodeRef>,
}

impl Target {
    /// Who should stand by for the present owner.
    pub fn standbys(&self) -> impl Iterator<Item = &NodeRef> {
        self.owner.iter().chain(&self.standby)
    }
}

/// Who should have each shard that has a living owner, as far as anybody can.
/// `given_up` are nodes that gossip has given up.
pub fn targets(cluster: &Cluster, given_up: &BTreeSet<RaftId>) -> Targets {
    let mut choice = Choice::new(cluster, given_up);
    let mut targets = Targets::new();
    for (shard, row) in owned(cluster) {
        let standby = recorded(cluster, &choice, row).cloned();
        if let Some(node) = &standby {
            choice.count(&row.owner, node);
        }
        let target = Target {
            owner: None,
            standby,
        };
        targets.insert(shard, target);
    }
    let mut room = MOVES_MAX;
    for (shard, row) in owned(cluster) {
        let Some(target) = targets.get_mut(&shard) else {
            continue;
        };
        if cluster.gives_away(&row.owner) {
            if room > 0 {
                empty(row, target, &mut choice);
                room -= usize::from(target.owner.is_some());
            }
        } else if target
            .standby
            .as_ref()
            .is_none_or(|node| !choice.are_apart(node, &row.owner))
        {
            let best = choice.best(&[&row.owner]);
            let is_better = |best: &NodeRef| choice.are_apart(best, &row.owner);
            let best = best.filter(|best| target.standby.is_none() || is_better(best));
            if let Some(node) = best {
                choice.count(&row.owner, &node);
                target.standby = Some(node);
            }
        }
        // Better than nobody.
        if target.standby.is_none() && target.owner.is_none() {
            target.standby = row.in_sync().find(|node| cluster.may_hold(node)).cloned();
        }
    }
    let is_calm = owned(cluster).all(|(shard, row)| {
        let standby = targets
            .get(&shard)
            .and_then(|target| target.standby.as_ref());
        !cluster.gives_away(&row.owner) && standby.is_none_or(|standby| row.is_in_sync(standby))
    });
    if is_calm {
        spread(cluster, &mut choice, &mut targets);
        if targets.values().all(|target| target.owner.is_none()) {
            scatter(cluster, &mut choice, &mut targets);
        }
    }
    targets
}

/// Which shards can be given to the owners to which they move: they and those
/// who stay have everything, and nobody who has to do with it is out. Their owners
/// serve already, and have said so: only the last owner releases a shard, so for
/// the leases of those before it the next one would have to wait.
pub fn moves(cluster: &Cluster, targets: &Targets, out: &Out) -> Vec<Assignment> {
    let ready = |(shard, target): (&ShardId, &Target)| {
        let row = cluster.rows().get(usize::from(shard.0))?.as_ref()?;
        let owner = target.owner.clone()?;
        let has_all = |node: &NodeRef| row.is_in_sync(node) && !out.has(node);
        let serves = row.earlier.is_empty() && !out.has(&row.owner);
        let is_ready = serves && target.standbys().all(has_all);
        is_ready.then(|| Assignment {
            shard: *shard,
            owner,
            under: Some(row.fence),
            version: Some(row.version),
            how: How::Promote {
                keep: target.standby.clone(),
            },
        })
    };
    targets.iter().filter_map(ready).collect()
}

/// How many shards a node has, as owner or standby, that others could have
/// instead.
pub fn remaining(cluster: &Cluster, given_up: &BTreeSet<RaftId>, node: &NodeRef) -> usize {
    let choice = Choice::new(cluster, given_up);
    let others = choice.load.keys().filter(|other| other.id != node.id);
    let others = others.count();
    let could_go = |row: &&Row| {
        let stands_by = || row.standbys.iter().any(|standby| standby.node == *node);
        (row.owner == *node && others >= 1) || (others >= 2 && stands_by())
    };
    cluster.rows().iter().flatten().filter(could_go).count()
}

/// How many shards are not where they should be.
pub fn unsettled(cluster: &Cluster, targets: &Targets) -> usize {
    let members = cluster.members().values();
    let can_drain = members
        .filter(|m| !m.gives_away())
        .any(|m| owner(m).is_some());
    let differs = |(shard, row): &(ShardId, &Row)| {
        let drains = can_drain && cluster.gives_away(&row.owner);
        drains
            || targets.get(shard).is_none_or(|target| {
                let has_all = target.standbys().all(|node| row.is_in_sync(node));
                let has_more = row.standbys.len() > target.standbys().count();
                target.owner.is_some() || !has_all || has_more
            })
    };
    owned(cluster).filter(differs).count()
}

/// Shards whose owner lives: nothing else can be done in peace.
fn owned(cluster: &Cluster) -> impl Iterator<Item = (ShardId, &Row)> {
    let owned = shards(cluster).filter_map(|(shard, row)| Some((shard, row?)));
    owned.filter(|(_, row)| cluster.may_hold(&row.owner))
}

/// The standby that a shard has already and keeps: of two, one in another zone, or
/// the newer one, which came to replace the other. A shard that its owner gives away
/// goes to the older one.
fn recorded<'a>(cluster: &Cluster, choice: &Choice<'_>, row: &'a Row) -> Option<&'a NodeRef> {
    let standbys = row.standbys.iter().map(|standby| &standby.node);
    let able = standbys.filter(|node| {
        node.id != row.owner.id && cluster.may_hold(node) && !cluster.gives_away(node)
    });
    let is_near = |node: &&NodeRef| !choice.are_apart(node, &row.owner);
    if cluster.gives_away(&row.owner) {
        able.min_by_key(is_near)
    } else {
        able.rev().min_by_key(is_near)
    }
}

/// A shard whose owner drains goes to its standby, which has everything already,
/// and another stands by.
fn empty(row: &Row, target: &mut Target, choice: &mut Choice<'_>) {
    let to = target.standby.take();
    let Some(to) = to.or_else(|| choice.best(&[&row.owner])) else {
        return;
    };
    let stays = row.in_sync().find(|node| **node != to && choice.can(node));
    target.standby = stays.cloned().or_else(|| choice.best(&[&to, &row.owner]));
    if let Some(node) = &target.standby {
        choice.count(&to, node);
    }
    target.owner = Some(to);
}

/// Chooses shards to move from those who own most to those who own least. One
/// that would stand by for itself moves only if a third can take that over.
fn spread(cluster: &Cluster, choice: &mut Choice<'_>, targets: &mut Targets) {
    let mut owns = choice.none();
    for (_, row) in owned(cluster) {
        if let Some(owns) = owns.get_mut(&row.owner) {
            *owns += 1;
        }
    }
    let mut waiting = BTreeMap::new();
    for _ in 0..MOVES_MAX {
        let most = owns.iter().max_by_key(|(_, owns)| **owns);
        let least = owns.iter().min_by_key(|(_, owns)| **owns);
        let Some(((from, many), (to, few))) = most.zip(least) else {
            return;
        };
        if *many < few + 2 {
            return;
        }
        let (from, to) = (from.clone(), to.clone());
        let waiting = waiting
            .entry((from.clone(), to.clone()))
            .or_insert_with(|| candidates(cluster, choice, &from, &to));
        let next = waiting.find(|(shard, _)| {
            let target = targets.get(shard);
            target.is_none_or(|target| target.owner.is_none())
        });
        let Some((shard, row)) = next else {
            return;
        };
        let Some(standby) = staying(choice, row, &to) else {
            return;
        };
        *owns.entry(from).or_default() -= 1;
        *owns.entry(to.clone()).or_default() += 1;
        let target = Target {
            owner: Some(to),
            standby: Some(standby),
        };
        targets.insert(shard, target);
    }
}

/// Chooses shards that get another standby, so that those of one node's shards are
/// spread over all. Shards in their order, so that those whose next standby is
/// being filled are chosen again until it has everything.
fn scatter(cluster: &Cluster, choice: &mut Choice<'_>, targets: &mut Targets) {
    let mut owns = choice.none();
    for (_, row) in owned(cluster) {
        *owns.entry(row.owner.clone()).or_default() += 1;
    }
    let mut best_for: BTreeMap<&NodeRef, Option<NodeRef>> = BTreeMap::new();
    let mut room = MOVES_MAX;
    for (shard, row) in owned(cluster) {
        let target = targets.get_mut(&shard);
        let Some(standby) = target.and_then(|target| target.standby.as_mut()) else {
            continue;
        };
        let owner = &row.owner;
        let best = best_for.entry(owner);
        let Some(best) = best.or_insert_with(|| choice.best(&[owner])) else {
            continue;
        };
        let is_as_far = choice.are_apart(best, owner) == choice.are_apart(standby, owner);
        let uneven = (owns[owner] / UNEVEN).max(2);
        if is_as_far && choice.pairs(owner, standby) >= choice.pairs(owner, best) + uneven {
            choice.discount(owner, standby);
            choice.count(owner, best);
            standby.clone_from(best);
            best_for.clear();
            room -= 1;
            if room == 0 {
                return;
            }
        }
    }
}

/// Shards of one node that could move to another: those first that are on their
/// way, then those that need one new standby only.
fn candidates<'a>(
    cluster: &'a Cluster,
    choice: &Choice<'_>,
    from: &NodeRef,
    to: &NodeRef,
) -> std::vec::IntoIter<(ShardId, &'a Row)> {
    let of = owned(cluster).filter(|(_, row)| row.owner == *from);
    let mut candidates: Vec<_> = of.collect();
    candidates.sort_by_cached_key(|(shard, row)| {
        let stays = row.in_sync().any(|node| node != to && choice.can(node));
        (!(row.is_in_sync(to) && stays), !stays, shard.0)
    });
    candidates.into_iter()
}

/// Who stands by when a shard has moved: who does already.
fn staying(choice: &Choice<'_>, row: &Row, to: &NodeRef) -> Option<NodeRef> {
    let mut stays = row.in_sync().filter(|node| *node != to && choice.can(node));
    let stays = stays.next().cloned();
    stays.or_else(|| choice.best(&[to, &row.owner]))
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
        let able = members.filter(|member| {
            !member.gives_away() && !given_up.contains(&member.registration.raft_id)
        });
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

    /// Nothing, of everybody who can be chosen.
    fn none(&self) -> BTreeMap<NodeRef, usize> {
        self.load.keys().map(|node| (node.clone(), 0)).collect()
    }

    fn can(&self, node: &NodeRef) -> bool {
        self.load.contains_key(node)
    }

    fn count(&mut self, owner: &NodeRef, standby: &NodeRef) {
        if let Some(load) = self.load.get_mut(standby) {
            *load += 1;
        }
        let pair = (owner.clone(), standby.clone());
        *self.pairs.entry(pair).or_default() += 1;
    }

    fn discount(&mut self, owner: &NodeRef, standby: &NodeRef) {
        if let Some(load) = self.load.get_mut(standby) {
            *load -= 1;
        }
        let pair = (owner.clone(), standby.clone());
        if let Some(pairs) = self.pairs.get_mut(&pair) {
            *pairs -= 1;
        }
    }

    /// For how many shards of one node another stands by.
    fn pairs(&self, owner: &NodeRef, standby: &NodeRef) -> usize {
        let pair = (owner.clone(), standby.clone());
        self.pairs.get(&pair).copied().unwrap_or(0)
    }

    /// Who should stand by for the first of these; it is none of them.
    fn best(&self, beside: &[&NodeRef]) -> Option<NodeRef> {
        let owner = *beside.first()?;
        let is_other = |node: &NodeRef| beside.iter().all(|beside| beside.id != node.id);
        let others = self.load.iter().filter(|(node, _)| is_other(node));
        let best = others.min_by_key(|(node, load)| {
            let pairs = self.pairs(owner, node);
            (!self.are_apart(node, owner), pairs, **load)
        });
        best.map(|(node, _)| node.clone())
    }

    /// Whether two nodes are in different zones.
    fn are_apart(&self, one: &NodeRef, other: &NodeRef) -> bool {
        self.zone(one) != self.zone(other)
    }

    fn zone(&self, node: &NodeRef) -> Option<&'a str> {
        let member = self.cluster.members().get(&node.id);
        member.map(|member| member.registration.zone.as_str())
    }
}
