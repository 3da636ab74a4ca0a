//! What all nodes agree on, and how committed commands change it.
//!
//! [`Cluster::apply`] is called on every node with the same commands at the
//! same log indexes, so it may depend on nothing else. An index is also what
//! orders things: the index of a registration is the node's incarnation, the
//! index at which a shard got its owner is its fence, and the index of the last
//! such entry is the version of the map. What there is of a shard, and how
//! entries change it, is in `rows`.

mod rows;

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::id::{ClusterUuid, GatewayRef, Incarnation, NodeId, NodeRef};
use proto::shard::{self, ShardMap, Sharding};
use serde::{Deserialize, Serialize};

use super::checkpoint::Claims;
use super::gone::Gone;
pub use rows::{Assignment, How, Replica, ReplicaSet, Row, STANDBYS_MAX, Standby};

/// Names a data directory: minted when the directory is first used. Raft knows
/// nodes by it, so a node that lost its disk is another one to Raft.
pub type RaftId = u64;

/// What can be decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// The first decision of every cluster.
    Found(Founding),
    /// A node has started.
    Register(Registration),
    /// Shards get owners.
    Assign(Vec<Assignment>),
    /// A node is no member any more. Its shards stay with its name until a
    /// node of that name registers.
    Forget(RaftId),
    /// Owners say who stands by for their shards.
    Replicas(Vec<ReplicaSet>),
    /// These lives of gateways are over, whatever else they may say.
    GatewaysGone(Vec<GatewayRef>),
    /// This life of a node is to give away all that it has.
    Drain(NodeRef),
    /// This life of a node does not hear itself on the bus, or does again.
    Bus {
        /// Which one.
        node: NodeRef,
        /// Whether it does.
        hears: bool,
    },
    /// This life of a node, which has nothing any more, is no member.
    Remove(NodeRef),
}

/// What a cluster is born with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founding {
    /// Tells this cluster from all others.
    pub uuid: ClusterUuid,
    /// How channels fall into shards, for good.
    pub sharding: Sharding,
    /// Nodes that must have registered before shards are given out, so that
    /// they are given out evenly.
    pub expect: u16,
}

/// What a node says of itself when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Its data directory.
    pub raft_id: RaftId,
    /// Its name.
    pub name: NodeId,
    /// Random, one per start of the process: a registration that is repeated
    /// because its answer was lost is the same one.
    pub start: u64,
    /// Where other nodes reach it: `HOST:PORT`.
    pub address: String,
    /// Where it stands.
    pub zone: String,
    /// Votes, owns nothing.
    pub witness: bool,
    /// Shards that it kept when it stopped. They come back to it with what is in
    /// them, if nobody has owned them since.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Claims,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was applied, or had been before.
    Done,
    /// The node is registered in this life.
    Registered(Incarnation),
    /// It changed nothing; why.
    Refused(String),
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// What it said of itself.
    pub registration: Registration,
    /// Its present life.
    pub incarnation: Incarnation,
    /// The first life that this data directory had under this name; `None`:
    /// registered by a version that did not write it.
    #[serde(default)]
    pub first: Option<Incarnation>,
    /// Whether it is to give away all that it has.
    #[serde(default)]
    pub drains: bool,
    /// Whether it does not hear itself on the bus.
    #[serde(default)]
    pub off_bus: bool,
}

impl Member {
    /// Whether it is to have nothing: it is to end, or gateways do not reach it.
    pub fn gives_away(&self) -> bool {
        self.drains || self.off_bus
    }
}

/// The replicated state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    founding: Option<Founding>,
    members: BTreeMap<NodeId, Member>,
    /// By shard number.
    rows: Vec<Option<Row>>,
    map_version: u64,
    /// The last entry that changed who stands by.
    #[serde(default)]
    replicas_version: u64,
    #[serde(default)]
    gone: Arc<Gone>,
}

impl Cluster {
    /// Applies a committed command. The only way the state changes.
    pub fn apply(&mut self, index: u64, command: Command) -> Outcome {
        match command {
            Command::Found(founding) => self.found(founding),
            Command::Register(registration) => self.register(index, registration),
            Command::Assign(assignments) => self.assign(index, assignments),
            Command::Forget(raft_id) => {
                self.members
                    .retain(|_, member| member.registration.raft_id != raft_id);
                Outcome::Done
            }
            Command::Replicas(sets) => self.replicate(index, sets),
            Command::GatewaysGone(gateways) => self.lose(index, gateways),
            Command::Drain(node) => self.with_member(&node, |member| member.drains = true),
            Command::Bus { node, hears } => {
                self.with_member(&node, |member| member.off_bus = !hears)
            }
            Command::Remove(node) => self.remove(&node),
        }
    }

    /// What the cluster was born with; `None` before its first decision.
    pub fn founding(&self) -> Option<&Founding> {
        self.founding.as_ref()
    }

    /// The members, by name.
    pub fn members(&self) -> &BTreeMap<NodeId, Member> {
        &self.members
    }

    /// Whether a node still is the member that it has registered as. `Err`: who
    /// has taken its place, or that nobody has.
    pub fn check_life(&self, raft_id: RaftId, node: &NodeRef) -> Result<(), String> {
        let name = &node.id;
        match self.members.get(name) {
            None => Err(format!("node {name} is no member of the cluster any more")),
            Some(Member { registration, .. }) if registration.raft_id != raft_id => Err(format!(
                "the place of node {name} has been taken by the node at {}, which has another data directory",
                registration.address
            )),
            Some(member) if member.incarnation > node.incarnation => Err(format!(
                "node {name} has registered again, so this process has been replaced (its incarnation is {})",
                member.incarnation.0
            )),
            Some(_) => Ok(()),
        }
    }

    /// Whether this is the present life of a member.
    pub fn is_living(&self, node: &NodeRef) -> bool {
        let member = self.members.get(&node.id);
        member.is_some_and(|member| member.incarnation == node.incarnation)
    }

    /// Whether this is the present life of a member that is no witness.
    pub fn may_hold(&self, node: &NodeRef) -> bool {
        let member = self.members.get(&node.id);
        self.is_living(node) && member.is_some_and(|member| !member.registration.witness)
    }

    /// Whether this life of a node is to have nothing.
    pub fn gives_away(&self, node: &NodeRef) -> bool {
        let member = self.members.get(&node.id);
        self.is_living(node) && member.is_some_and(Member::gives_away)
    }

    /// Whether a process has ended for certain: a later one has registered from
    /// the same data directory, which only one process can have open. A node of
    /// the same name with another directory says nothing of it.
    pub fn has_ended(&self, node: &NodeRef) -> bool {
        self.members.get(&node.id).is_some_and(|member| {
            let first = member.first.unwrap_or(member.incarnation);
            (first..member.incarnation).contains(&node.incarnation)
        })
    }

    /// The gateways that were declared gone, as far as is remembered. The same
    /// piece of memory until there are more.
    pub fn gone(&self) -> &Arc<Gone> {
        &self.gone
    }

    /// Who has each shard, by shard number. `None`: nobody has had it.
    pub fn rows(&self) -> &[Option<Row>] {
        &self.rows
    }

    /// The last entry that changed anything of the rows. The map has a version
    /// of its own, for it changes only with owners.
    pub fn rows_version(&self) -> u64 {
        self.map_version.max(self.replicas_version)
    }

    /// The map as gateways and nodes route by it. `None` before the cluster is
    /// founded; without rows until every shard has an owner.
    pub fn map(&self) -> Option<ShardMap> {
        let Founding { uuid, sharding, .. } = *self.founding.as_ref()?;
        let mut map = ShardMap::unassigned(uuid, sharding);
        let Some(rows) = self.rows.iter().cloned().collect::<Option<Vec<_>>>() else {
            return Some(map);
        };
        let mut numbers = BTreeMap::new();
        for Row { owner, fence, .. } in rows {
            let number = *numbers.entry(owner.clone()).or_insert_with(|| {
                map.nodes.push(owner);
                map.nodes.len() - 1
            });
            map.rows.push(shard::Row {
                // There are fewer nodes than rows, and those are counted in 16 bits.
                owner: number as u16,
                fence,
            });
        }
        map.version = self.map_version;
        Some(map)
    }

    fn found(&mut self, founding: Founding) -> Outcome {
        match &self.founding {
            // The founder did not hear the answer, or a new leader asked again.
            Some(known) if known.uuid == founding.uuid => Outcome::Done,
            Some(known) => Outcome::Refused(format!("the cluster is {} already", known.uuid)),
            None => {
                self.rows = vec![None; usize::from(founding.sharding.count)];
                self.founding = Some(founding);
                Outcome::Done
            }
        }
    }

    fn register(&mut self, index: u64, mut registration: Registration) -> Outcome {
        let kept = std::mem::take(&mut registration.kept);
        let incarnation = Incarnation(index);
        let mut first = incarnation;
        if let Some(known) = self.members.get_mut(&registration.name) {
            if known.registration.raft_id != registration.raft_id {
                return Outcome::Refused(format!(
                    "the name {} belongs to the node at {}, which has another data directory",
                    registration.name, known.registration.address
                ));
            }
            if known.registration.start == registration.start {
                known.registration = registration;
                return Outcome::Registered(known.incarnation);
            }
            first = known.first.unwrap_or(known.incarnation);
        }
        let name = registration.name.clone();
        let owner = NodeRef {
            id: name.clone(),
            incarnation,
        };
        self.members.insert(
            name,
            Member {
                registration,
                incarnation,
                first: Some(first),
                drains: false,
                off_bus: false,
            },
        );
        self.give_back(index, &owner, kept);
        Outcome::Registered(incarnation)
    }

    /// A node that has stopped by itself has its shards again.
    fn give_back(&mut self, index: u64, owner: &NodeRef, kept: Claims) {
        for (fence, shards) in kept {
            for shard in shards {
                let at = usize::from(shard.0);
                let row = self.rows.get(at).and_then(Option::as_ref);
                if let Some(row) =
                    row.and_then(|row| rows::given_back(self, row, owner, fence, index))
                {
                    self.rows[at] = Some(row);
                    self.map_version = index;
                }
            }
        }
    }

    fn assign(&mut self, index: u64, assignments: Vec<Assignment>) -> Outcome {
        for assignment in assignments {
            let at = usize::from(assignment.shard.0);
            let Some(row) = self.rows.get(at) else {
                continue;
            };
            // Decided under a state that has passed: the leader decides again.
            if let Some(row) = rows::assigned(self, row.as_ref(), assignment, index) {
                self.rows[at] = Some(row);
                self.map_version = index;
            }
        }
        Outcome::Done
    }

    fn replicate(&mut self, index: u64, sets: Vec<ReplicaSet>) -> Outcome {
        for set in sets {
            let at = usize::from(set.shard.0);
            let Some(Some(row)) = self.rows.get(at) else {
                continue;
            };
            // As above, but it is the owner that decides again.
            if let Some(row) = rows::replicated(self, row, set, index) {
                self.rows[at] = Some(row);
                self.replicas_version = index;
            }
        }
        Outcome::Done
    }

    fn with_member(&mut self, node: &NodeRef, change: impl FnOnce(&mut Member)) -> Outcome {
        let member = self.members.get_mut(&node.id);
        let Some(member) = member.filter(|member| member.incarnation == node.incarnation) else {
            return Outcome::Refused(format!(
                "node {} is no member, or has been restarted since",
                node.id
            ));
        };
        change(member);
        Outcome::Done
    }

    fn remove(&mut self, node: &NodeRef) -> Outcome {
        if !self.is_living(node) {
            return Outcome::Refused(format!(
                "node {} is no member, or has been restarted since",
                node.id
            ));
        }
        let rows = || self.rows.iter().flatten();
        let owned = rows().filter(|row| row.owner == *node).count();
        let held = rows().filter(|row| row.standbys.iter().any(|s| s.node == *node));
        let held = held.count();
        if owned > 0 || held > 0 {
            return Outcome::Refused(format!(
                "node {} owns {owned} shards and stands by for {held}: drain it first, or, if nobody else can have them, stop it; others take over from it soon",
                node.id
            ));
        }
        self.members.remove(&node.id);
        Outcome::Done
    }

    fn lose(&mut self, index: u64, gateways: Vec<GatewayRef>) -> Outcome {
        let is_new = |gateway: &GatewayRef| !self.gone.contains(gateway);
        let new: Vec<GatewayRef> = gateways.into_iter().filter(is_new).collect();
        if !new.is_empty() {
            let gone = Arc::make_mut(&mut self.gone);
            new.into_iter()
                .for_each(|gateway| gone.declare(index, gateway));
        }
        Outcome::Done
    }
}

#[cfg(test)]
pub(crate) mod tests;
