//! A model of Raft: one ordered log of commands, and who believes to lead.
//!
//! What is decided, `core::cluster` says; what is planned, `core::placement`.
//! The model only says in which order decisions come, when each node hears of
//! them, and how wrong a node may be about who leads. It is harsher than Raft:
//! what a deposed leader planned may still be decided if a majority hears it,
//! so every decision must be conditional on what it was made under. One thing it
//! takes from Raft: what rests on leases that have run out is decided in the term
//! in which it was planned, or never. For a later leader has everything that may
//! still be decided before it grants anything.

use std::sync::Arc;

use node::core::agreed::Agreed;
use node::core::cluster::{Cluster, Command, Outcome};
use proto::id::ClusterUuid;
use proto::shard::{ShardMap, Sharding};

/// What is agreed after an entry of the log.
#[derive(Debug, Clone)]
pub struct State {
    /// All of it.
    pub cluster: Arc<Cluster>,
    /// The map.
    pub map: Arc<ShardMap>,
    /// The map, and who stands by.
    pub agreed: Arc<Agreed>,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Agreement {
    /// After each entry; nothing is agreed at index 0.
    states: Vec<State>,
    /// Who leads, as far as a majority is concerned.
    pub leader: Option<u8>,
    /// Counts leaders.
    pub term: u64,
    /// Who believes to lead.
    pub believes: Vec<bool>,
    /// Whether a node has something on its way to be decided.
    pub proposing: Vec<bool>,
    /// Nodes that nothing makes stop believing.
    pub stubborn: Vec<bool>,
    /// Nobody may lead now.
    pub suspended: bool,
}

/// The map of a process that has heard of none.
pub fn nobody() -> Arc<ShardMap> {
    Arc::new(ShardMap::unassigned(
        ClusterUuid(0),
        Sharding { seed: 0, count: 0 },
    ))
}

impl Agreement {
    /// Nothing is agreed.
    pub fn new(nodes: usize) -> Self {
        let state = State {
            cluster: Arc::default(),
            map: nobody(),
            agreed: Arc::new(Agreed::alone(nobody())),
        };
        Self {
            states: vec![state],
            leader: None,
            term: 0,
            believes: vec![false; nodes],
            proposing: vec![false; nodes],
            stubborn: vec![false; nodes],
            suspended: false,
        }
    }

    /// Decides something.
    pub fn decide(&mut self, command: Command) -> Outcome {
        let index = self.states.len();
        let before = self.last();
        let mut cluster = Cluster::clone(&before.cluster);
        let outcome = cluster.apply(index as u64, command);
        let map = cluster.map().map_or_else(nobody, Arc::new);
        let map = if *map == *before.map {
            Arc::clone(&before.map)
        } else {
            map
        };
        let agreed = if cluster.rows_version() == before.cluster.rows_version()
            && Arc::ptr_eq(cluster.gone(), before.cluster.gone())
            && Arc::ptr_eq(&map, &before.map)
        {
            Arc::clone(&before.agreed)
        } else {
            Arc::new(Agreed::of(&cluster, Arc::clone(&map)))
        };
        self.states.push(State {
            cluster: Arc::new(cluster),
            map,
            agreed,
        });
        outcome
    }

    /// How many entries there are.
    pub fn length(&self) -> usize {
        self.states.len() - 1
    }

    /// What is agreed after an entry.
    pub fn state(&self, index: usize) -> &State {
        &self.states[index]
    }

    /// What is agreed.
    pub fn last(&self) -> &State {
        &self.states[self.length()]
    }
}
