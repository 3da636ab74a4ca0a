//! Ways from owners' nodes to standbys' nodes: ordered, and reliable until they
//! break. What is on a way when it breaks is lost, both ways.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use node::core::cluster::{Command, Replica, ReplicaSet, Standby};
use node::core::placement;
use proto::id::NodeRef;
use proto::shard::ShardId;

use super::{Event, Program, Proposal, World};
use crate::sim::clock::Moment;

/// By owner's and standby's place.
#[derive(Debug, Default)]
pub(super) struct Ways(BTreeMap<(usize, usize), Way>);

#[derive(Debug, Default)]
struct Way {
    /// Counts the times it was made.
    generation: u32,
    is_open: bool,
    /// When the last message arrives, there and back.
    arrivals: [Moment; 2],
}

/// A message on a way.
#[derive(Debug)]
pub(super) struct Passage {
    owner: usize,
    standby: usize,
    generation: u32,
    /// Whether it is an echo.
    back: bool,
    bytes: Bytes,
}

impl World {
    /// The place of a node, if it is in this life.
    pub(super) fn place_of(&self, node: &NodeRef) -> Option<usize> {
        self.slots[..self.nodes()]
            .iter()
            .position(|slot| matches!(&slot.program, Program::Node(program) if program.me == *node))
    }

    /// A node makes the ways that it needs and does not have.
    pub(super) fn make_ways(&mut self, at: usize) {
        let Program::Node(node) = &self.slots[at].program else {
            return;
        };
        let me = node.me.clone();
        for standby in node.standbys() {
            let Some(to) = self.place_of(&standby) else {
                continue;
            };
            let is_open = self.ways.0.get(&(at, to)).is_some_and(|way| way.is_open);
            let answers = self.slots[to].pause.is_none();
            if is_open || !answers || !self.network.connected(at as u8, to as u8) {
                continue;
            }
            if !self.random.chance(500) {
                continue;
            }
            let way = self.ways.0.entry((at, to)).or_default();
            way.generation += 1;
            way.is_open = true;
            if let Program::Node(other) = &mut self.slots[to].program {
                other.welcomed(&me);
            }
            let now = self.timestamp(at);
            if let Program::Node(node) = &mut self.slots[at].program {
                node.opened(now, &standby, &mut self.trace, &mut self.node_out);
            }
            self.perform_node(at);
        }
    }

    /// Sends what a node wants sent on its ways, and proposes what it proposes.
    pub(super) fn perform_ways(&mut self, at: usize) {
        let batches = std::mem::take(&mut self.node_out.batches);
        let echoes = std::mem::take(&mut self.node_out.echoes);
        let proposals = std::mem::take(&mut self.node_out.proposals);
        for (to, bytes) in batches {
            if let Some(to) = self.place_of(&to) {
                self.send_on_way((at, to), false, bytes);
            }
        }
        for (to, bytes) in echoes {
            if let Some(to) = self.place_of(&to) {
                self.send_on_way((to, at), true, bytes);
            }
        }
        if proposals.is_empty() {
            return;
        }
        let Program::Node(node) = &self.slots[at].program else {
            return;
        };
        let set = |proposal: node::core::shard::Proposal| ReplicaSet {
            shard: proposal.shard,
            owner: node.me.clone(),
            fence: proposal.fence,
            version: proposal.version,
            standbys: proposal
                .in_sync
                .into_iter()
                .map(|node| Standby {
                    node,
                    state: Replica::InSync,
                })
                .collect(),
        };
        let sets = proposals.into_iter().map(set).collect();
        let at_most = *self.random.pick(&[5_000, 20_000, 300_000]);
        let proposal = Proposal {
            by: at,
            life: self.slots[at].life,
            commands: vec![Command::Replicas(sets)],
            withheld: BTreeSet::new(),
            plan: None,
        };
        let soon = self.soon(500, at_most);
        self.schedule(soon, Event::Commit(Box::new(proposal)));
    }

    fn send_on_way(&mut self, (owner, standby): (usize, usize), back: bool, bytes: Bytes) {
        // Retransmitted, now and then.
        let latency = match self.random.chance(3) {
            true => self.random.between(1_000, 350_000),
            false => self.random.between(100, 1_000),
        };
        let connected = self.network.connected(owner as u8, standby as u8);
        let Some(way) = self.ways.0.get_mut(&(owner, standby)) else {
            return;
        };
        if !way.is_open {
            return;
        }
        let generation = way.generation;
        if !connected {
            self.break_way(owner, standby);
            return;
        }
        let last = &mut way.arrivals[usize::from(back)];
        let arrival = Moment(self.now.0 + latency).max(Moment(last.0 + 1));
        *last = arrival;
        let passage = Passage {
            owner,
            standby,
            generation,
            back,
            bytes,
        };
        self.schedule(arrival, Event::Way(passage));
    }

    fn break_way(&mut self, owner: usize, standby: usize) {
        let Some(way) = self.ways.0.get_mut(&(owner, standby)) else {
            return;
        };
        if std::mem::take(&mut way.is_open) {
            let generation = way.generation;
            // By silence, or at once.
            let at_most = *self.random.pick(&[1_000, 100_000, 3_000_000]);
            let soon = self.soon(100, at_most);
            self.schedule(soon, Event::WayBroke(owner, standby, generation));
        }
    }

    /// A process has ended, and all ways from it and to it.
    pub(super) fn break_ways(&mut self, at: usize) {
        let ways: Vec<_> = self.ways.0.keys().copied().collect();
        for (owner, standby) in ways {
            if owner == at || standby == at {
                self.break_way(owner, standby);
            }
        }
    }

    /// An owner notices that a way has broken.
    pub(super) fn way_broke(&mut self, owner: usize, standby: usize, generation: u32) {
        let way = self.ways.0.get(&(owner, standby));
        if way.is_none_or(|way| way.generation != generation || way.is_open) {
            return;
        }
        let to = match &self.slots[standby].program {
            Program::Node(node) => node.me.clone(),
            // Its next life is another node, to which there is no way yet.
            _ => return,
        };
        if let Program::Node(node) = &mut self.slots[owner].program {
            node.closed(&to);
        }
    }

    /// A message has come on a way.
    pub(super) fn passage(&mut self, passage: Passage) {
        let place = (passage.owner, passage.standby);
        let way = self.ways.0.get(&place);
        if way.is_none_or(|way| !way.is_open || way.generation != passage.generation) {
            return;
        }
        let at = if passage.back {
            passage.owner
        } else {
            passage.standby
        };
        let now = self.timestamp(at);
        let slot = &mut self.slots[at];
        if let Some(pause) = &mut slot.pause {
            pause.passages.push_back(passage);
            return;
        }
        let out = &mut self.node_out;
        if let Program::Node(node) = &mut slot.program {
            if passage.back {
                node.hear_echo(now, &passage.bytes, &mut self.trace, out);
            } else {
                node.hear_batch(now, &passage.bytes, &mut self.trace, out);
            }
            self.perform_node(at);
        }
    }

    /// Whether a shard is to have no standby in this world.
    pub(super) fn is_bare(&self, shard: ShardId) -> bool {
        let every = self.bare_every;
        every.is_some_and(|every| shard.0.is_multiple_of(every))
    }

    /// A node looks for standbys of what it owns.
    pub(super) fn recruit(&mut self, at: usize) {
        let applied = self.slots[at].applied;
        let Program::Node(node) = &self.slots[at].program else {
            return;
        };
        let cluster = &self.agreement.state(applied).cluster;
        let targets = placement::targets(cluster, &BTreeSet::new());
        let mut differing = node.differing(&targets);
        differing.retain(|(shard, _)| !self.is_bare(*shard));
        if let Program::Node(node) = &mut self.slots[at].program {
            for (shard, standbys) in differing {
                node.want(shard, standbys);
            }
        }
    }
}
