//! Who should own what, who should stand by, and who should vote: pure functions
//! of what is agreed, and of what the leader sees.
//!
//! An owner is **out** when a later life of its node has registered, or when the
//! leader counts it as dead or unreachable. What happens to its shards:
//!
//! - If a living node stands by in sync, it is promoted. That waits for nothing:
//!   the standby itself waits until no earlier owner can still serve.
//! - Else, if the owner or a standby in sync is unreachable, that is waited for: it
//!   lives, and has everything.
//! - Else the shard begins anew, and nobody knows when its owners stopped but
//!   they themselves. So it waits until no node lease can still last, neither
//!   that of the owner nor those of all the owners that the row remembers. Two
//!   of them are not waited for:
//!   - A life that **has ended**: a later one has registered from the same data
//!     directory. Only one process can have that open, so the earlier has ended,
//!     not only been voided, and its lease cannot be used. Of a life whose name
//!     was forgotten and taken by a node with another directory nothing is known,
//!     so its lease is waited for.
//!   - An earlier owner whose every lease that may last was granted **under the
//!     present fence or later**: it serves only by what it has applied, and in
//!     that it is the owner no more. Without this rule a shard could wait for
//!     ever for a node that is well.
//!
//!   It goes to the later life of its owner's node, if there is one: that is
//!   where it was. Else to the least loaded.
//!
//! Between the decision that all leases are over and its being applied nobody of
//! those may get a new one: [`Plan::withhold`].

mod targets;
mod voting;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use proto::id::NodeRef;
use proto::shard::ShardId;

pub use targets::{MOVES_MAX, SPREAD, Target, Targets, moves, remaining, targets, unsettled};
pub use voting::{Electorate, Unregistered, voters};

use super::cluster::{Assignment, Cluster, How, Member, Row};
use super::detection::Out;

/// What the leader sees of the owners.
pub struct Seen<'a> {
    /// Who does not serve. Lives that a later one has voided need not be among
    /// them.
    pub out: Out,
    /// Whether no lease of this life can last any more, apart from those whose
    /// holder has applied everything up to this index.
    pub lapsed: &'a dyn Fn(&NodeRef, u64) -> bool,
}

impl Seen<'static> {
    /// What a leader sees as long as nodes neither beat nor have leases: nobody
    /// is dead, and nobody serves by a lease.
    pub fn nothing() -> Self {
        Self {
            out: Out::default(),
            lapsed: &|_, _| true,
        }
    }
}

impl fmt::Debug for Seen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seen")
            .field("out", &self.out)
            .finish_non_exhaustive()
    }
}

/// What the leader should decide next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Standbys become owners: one entry, before the other.
    pub promotions: Vec<Assignment>,
    /// Shards begin anew, or for the first time: one entry.
    pub afresh: Vec<Assignment>,
    /// Lives that must get no lease from now on until the result of `afresh` is
    /// applied, or is known never to be.
    pub withhold: BTreeSet<NodeRef>,
}

impl Plan {
    /// Whether all is as it should be, or must wait.
    pub fn is_empty(&self) -> bool {
        self.promotions.is_empty() && self.afresh.is_empty()
    }

    /// The entries to propose, in this order; none is empty.
    pub fn entries(self) -> impl Iterator<Item = Vec<Assignment>> {
        let entries = [self.promotions, self.afresh];
        entries.into_iter().filter(|entry| !entry.is_empty())
    }
}

/// What the leader should decide next. No shard moves whose owner is not out.
///
/// Shards that nobody has had are given out evenly, once as many nodes have
/// registered as were expected. For the others see the [module](self).
pub fn plan(cluster: &Cluster, seen: &Seen<'_>) -> Plan {
    let Some(founding) = cluster.founding() else {
        return Plan::default();
    };
    let complete = cluster.members().len() >= usize::from(founding.expect);
    let mut load = Load::new(cluster, seen);
    let mut plan = Plan::default();
    for (shard, row) in shards(cluster) {
        match row {
            Some(row) if is_out(cluster, seen, &row.owner) => {
                replace(cluster, seen, shard, row, &mut load, &mut plan);
            }
            None if complete => {
                let assignment = load.least().map(|owner| Assignment {
                    shard,
                    owner,
                    under: None,
                    version: None,
                    how: How::Afresh,
                });
                plan.afresh.extend(assignment);
            }
            _ => {}
        }
    }
    plan
}

/// Finds a new owner for a shard whose owner is out.
fn replace(
    cluster: &Cluster,
    seen: &Seen<'_>,
    shard: ShardId,
    row: &Row,
    load: &mut Load,
    plan: &mut Plan,
) {
    let assignment = |owner, how| Assignment {
        shard,
        owner,
        under: Some(row.fence),
        version: Some(row.version),
        how,
    };
    if let Some(standby) = row.in_sync().find(|standby| load.is_there(standby)) {
        load.add(standby);
        let promote = How::Promote { keep: None };
        plan.promotions.push(assignment(standby.clone(), promote));
        return;
    }
    // Who lives has it still.
    let mut holders = row.in_sync().chain([&row.owner]);
    if holders.any(|node| seen.out.unreachable.contains(node)) {
        return;
    }
    let is_over = |node, told| cluster.has_ended(node) || (seen.lapsed)(node, told);
    let mut earlier = row.earlier.iter();
    if !is_over(&row.owner, u64::MAX) || !earlier.all(|node| is_over(node, row.fence.0)) {
        return;
    }
    let again = cluster.members().get(&row.owner.id).and_then(owner);
    let again = again.filter(|again| load.is_there(again));
    again.iter().for_each(|again| load.add(again));
    if let Some(owner) = again.or_else(|| load.least()) {
        plan.withhold.insert(row.owner.clone());
        plan.withhold.extend(row.earlier.iter().cloned());
        plan.afresh.push(assignment(owner, How::Afresh));
    }
}

/// Whether an owner's shards need another. Those of a forgotten name wait until
/// the leader counts it as dead, or until a node of that name registers.
fn is_out(cluster: &Cluster, seen: &Seen<'_>, owner: &NodeRef) -> bool {
    let now = cluster.members().get(&owner.id);
    let voided = now.is_some_and(|now| now.incarnation != owner.incarnation);
    voided || seen.out.has(owner)
}

/// How many shards each node has that may own any: it lives, as far as is known.
struct Load(BTreeMap<NodeRef, usize>);

impl Load {
    fn new(cluster: &Cluster, seen: &Seen<'_>) -> Self {
        let owners = cluster.members().values().filter_map(owner);
        let living = owners.filter(|owner| !seen.out.has(owner));
        let mut load = Self(living.map(|owner| (owner, 0)).collect());
        for row in cluster.rows().iter().flatten() {
            load.add(&row.owner);
        }
        load
    }

    fn add(&mut self, owner: &NodeRef) {
        if let Some(shards) = self.0.get_mut(owner) {
            *shards += 1;
        }
    }

    fn is_there(&self, node: &NodeRef) -> bool {
        self.0.contains_key(node)
    }

    /// The one that has least; from now on one more. One that drains is better
    /// than nobody: what is there can still be moved.
    fn least(&mut self) -> Option<NodeRef> {
        let (owner, shards) = self.0.iter_mut().min_by_key(|(_, shards)| **shards)?;
        *shards += 1;
        Some(owner.clone())
    }
}

/// All shards, each with what is agreed of it.
fn shards(cluster: &Cluster) -> impl Iterator<Item = (ShardId, Option<&Row>)> {
    let rows = cluster.rows().iter().enumerate();
    rows.map(|(number, row)| (ShardId(number as u16), row.as_ref()))
}

/// A member as an owner; a witness is none.
fn owner(member: &Member) -> Option<NodeRef> {
    let registration = &member.registration;
    (!registration.witness).then(|| NodeRef {
        id: registration.name.clone(),
        incarnation: member.incarnation,
    })
}

#[cfg(test)]
mod tests;
