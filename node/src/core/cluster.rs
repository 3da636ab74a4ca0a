//! What all nodes agree on, and how committed commands change it.
//!
//! [`Cluster::apply`] is called on every node with the same commands at the
//! same log indexes, so it may depend on nothing else. An index is also what
//! orders things: the index of a registration is the node's incarnation, the
//! index at which a shard got its owner is its fence, and the index of the last
//! such entry is the version of the map.

use std::collections::BTreeMap;

use proto::id::{ClusterUuid, Incarnation, NodeId, NodeRef};
use proto::shard::{Fence, Row, ShardId, ShardMap, Sharding};
use serde::{Deserialize, Serialize};

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
}

/// The replicated state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    founding: Option<Founding>,
    members: BTreeMap<NodeId, Member>,
    /// By shard number.
    rows: Vec<Option<(NodeRef, Fence)>>,
    map_version: u64,
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

    /// Each shard's owner and fence, by shard number.
    pub fn rows(&self) -> &[Option<(NodeRef, Fence)>] {
        &self.rows
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
        for (owner, fence) in rows {
            let number = *numbers.entry(owner.clone()).or_insert_with(|| {
                map.nodes.push(owner);
                map.nodes.len() - 1
            });
            map.rows.push(Row {
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

    fn register(&mut self, index: u64, registration: Registration) -> Outcome {
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
        }
        let incarnation = Incarnation(index);
        let name = registration.name.clone();
        self.members.insert(
            name,
            Member {
                registration,
                incarnation,
            },
        );
        Outcome::Registered(incarnation)
    }

    fn assign(&mut self, index: u64, assignments: Vec<Assignment>) -> Outcome {
        let mut changed = false;
        for Assignment {
            shard,
            owner,
            under,
        } in assignments
        {
            let Some(row) = self.rows.get_mut(usize::from(shard.0)) else {
                continue;
            };
            let is_alive = self
                .members
                .get(&owner.id)
                .is_some_and(|member| member.incarnation == owner.incarnation);
            // Decided under a state that has passed: the leader decides again.
            if is_alive && row.as_ref().map(|(_, fence)| *fence) == under {
                *row = Some((owner, Fence(index)));
                changed = true;
            }
        }
        if changed {
            self.map_version = index;
        }
        Outcome::Done
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn founding(shards: u16, expect: u16) -> Founding {
        Founding {
            uuid: ClusterUuid(7),
            sharding: Sharding {
                seed: 1,
                count: shards,
            },
            expect,
        }
    }

    pub(crate) fn registration(name: &str, start: u64) -> Registration {
        Registration {
            raft_id: name.bytes().map(u64::from).sum(),
            name: name.parse().unwrap(),
            start,
            address: format!("{name}:1"),
            zone: String::new(),
            witness: false,
        }
    }

    pub(crate) fn node(name: &str, incarnation: u64) -> NodeRef {
        NodeRef {
            id: name.parse().unwrap(),
            incarnation: Incarnation(incarnation),
        }
    }

    fn assignment(shard: u16, owner: NodeRef, under: Option<u64>) -> Command {
        Command::Assign(vec![Assignment {
            shard: ShardId(shard),
            owner,
            under: under.map(Fence),
        }])
    }

    #[test]
    fn an_incarnation_is_the_index_of_its_registration_and_a_repeat_is_the_same() {
        let mut cluster = Cluster::default();
        let register = |start| Command::Register(registration("a", start));
        let is = |index| Outcome::Registered(Incarnation(index));
        assert_eq!(cluster.apply(5, register(1)), is(5));
        assert_eq!(cluster.apply(6, register(1)), is(5));
        assert_eq!(cluster.apply(9, register(2)), is(9));
    }

    #[test]
    fn a_name_belongs_to_one_data_directory_until_it_is_forgotten() {
        let mut cluster = Cluster::default();
        cluster.apply(1, Command::Register(registration("a", 1)));
        let stranger = Registration {
            raft_id: 99,
            ..registration("a", 2)
        };
        let register = Command::Register(stranger);
        assert!(matches!(
            cluster.apply(2, register.clone()),
            Outcome::Refused(_)
        ));
        cluster.apply(3, Command::Forget(registration("a", 1).raft_id));
        assert_eq!(
            cluster.apply(4, register),
            Outcome::Registered(Incarnation(4))
        );
    }

    #[test]
    fn a_node_hears_that_its_life_is_over() {
        let mut cluster = Cluster::default();
        let raft_id = registration("a", 1).raft_id;
        cluster.apply(2, Command::Register(registration("a", 1)));
        assert_eq!(cluster.check_life(raft_id, &node("a", 2)), Ok(()));
        // A copy of the registration that arrives late, after another process.
        cluster.apply(3, Command::Register(registration("a", 2)));
        let why = cluster.check_life(raft_id, &node("a", 2)).unwrap_err();
        assert!(why.contains("replaced"), "{why}");
        cluster.apply(4, Command::Forget(raft_id));
        let why = cluster.check_life(raft_id, &node("a", 3)).unwrap_err();
        assert!(why.contains("no member"), "{why}");
        let stranger = Registration {
            raft_id: 99,
            ..registration("a", 3)
        };
        cluster.apply(5, Command::Register(stranger));
        let why = cluster.check_life(raft_id, &node("a", 3)).unwrap_err();
        assert!(why.contains("taken"), "{why}");
    }

    #[test]
    fn a_cluster_is_founded_once() {
        let mut cluster = Cluster::default();
        assert_eq!(
            cluster.apply(1, Command::Found(founding(4, 1))),
            Outcome::Done
        );
        let other = Founding {
            uuid: ClusterUuid(8),
            ..founding(4, 1)
        };
        assert!(matches!(
            cluster.apply(2, Command::Found(other)),
            Outcome::Refused(_)
        ));
        assert_eq!(cluster.map().unwrap().cluster, ClusterUuid(7));
    }

    #[test]
    fn a_row_changes_only_under_the_fence_it_was_decided_under() {
        let mut cluster = Cluster::default();
        cluster.apply(1, Command::Found(founding(1, 1)));
        cluster.apply(2, Command::Register(registration("a", 1)));
        cluster.apply(3, Command::Register(registration("b", 1)));
        cluster.apply(4, assignment(0, node("a", 2), None));
        cluster.apply(5, assignment(0, node("b", 3), None));
        let map = cluster.map().unwrap();
        assert_eq!(map.owner(ShardId(0)), Some((&node("a", 2), Fence(4))));
        assert_eq!(map.version, 4, "the late decision changed nothing");
        cluster.apply(6, assignment(0, node("b", 3), Some(4)));
        let map = cluster.map().unwrap();
        assert_eq!(map.owner(ShardId(0)), Some((&node("b", 3), Fence(6))));
        assert_eq!(map.version, 6);
    }

    #[test]
    fn a_life_that_has_ended_gets_no_shards() {
        let mut cluster = Cluster::default();
        cluster.apply(1, Command::Found(founding(1, 1)));
        cluster.apply(2, Command::Register(registration("a", 1)));
        cluster.apply(3, Command::Register(registration("a", 2)));
        cluster.apply(4, assignment(0, node("a", 2), None));
        assert_eq!(cluster.rows(), [None]);
        cluster.apply(5, assignment(7, node("a", 3), None));
        assert_eq!(cluster.rows(), [None], "there is no shard 7");
    }

    #[test]
    fn the_map_has_rows_when_every_shard_has_an_owner() {
        let mut cluster = Cluster::default();
        assert_eq!(cluster.map(), None);
        cluster.apply(1, Command::Found(founding(2, 1)));
        cluster.apply(2, Command::Register(registration("a", 1)));
        cluster.apply(3, assignment(0, node("a", 2), None));
        let map = cluster.map().unwrap();
        assert_eq!((map.version, map.rows.len()), (0, 0));
        cluster.apply(4, assignment(1, node("a", 2), None));
        let map = cluster.map().unwrap();
        assert!(map.is_sound());
        assert_eq!(map.nodes, [node("a", 2)]);
    }
}
