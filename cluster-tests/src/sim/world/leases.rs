//! Beats between nodes, and leases from whoever leads, or believes to.

use std::sync::Arc;

use node::core::detection::Word;
use node::core::lease::Grant;
use proto::id::NodeRef;
use proto::time::Timestamp;

use super::{Event, Program, SHARDS_MAX, World};
use crate::sim::mistakes::Mistake;
use crate::sim::trace::Fact;

impl World {
    /// A node has begun to lead.
    pub(super) fn elected(&mut self, at: usize) {
        let in_haste = self.options.mistake == Some(Mistake::NewLeaderInHaste);
        let since = if in_haste {
            Timestamp(0)
        } else {
            self.timestamp(at)
        };
        if let Program::Node(node) = &mut self.slots[at].program {
            node.table.elected(since);
        }
    }

    /// Time to say that a node is there, to see who is, and for leases.
    pub(super) fn look_round(&mut self, at: usize) {
        let now = self.timestamp(at);
        let applied = self.slots[at].applied;
        let cluster = Arc::clone(&self.agreement.state(applied).cluster);
        let Program::Node(node) = &mut self.slots[at].program else {
            return;
        };
        let me = node.me.clone();
        let word = Word {
            has_lease: node.has_lease(now),
            misses: Some(node.beats.missed(now, &cluster)),
        };
        let renewal = node.tick_membership(now, &cluster);
        let begins = self.agreement.believes[at] && node.table.begin_round(now);
        for to in 0..self.nodes() {
            let arrival = if to == at {
                Some(self.now)
            } else {
                self.network.datagram(self.now, at as u8, to as u8)
            };
            if let Some(arrival) = arrival {
                let life = self.slots[to].life;
                self.schedule(arrival, Event::Beat(to, life, me.clone(), word.clone()));
            }
        }
        if let Some(number) = renewal {
            self.renew(at, me, number);
        }
        if begins {
            let read_index = self.agreement.length() as u64;
            let soon = self.soon(500, 40_000);
            let life = self.slots[at].life;
            self.schedule(soon, Event::Round(at, life, read_index));
        }
    }

    /// Looks whether two nodes could act as the owner of one shard.
    pub(super) fn look_for_two_owners(&mut self) {
        let mut acting = [None; SHARDS_MAX as usize];
        for at in 0..self.nodes() {
            let now = self.timestamp(at);
            let slot = &self.slots[at];
            let (Program::Node(node), None) = (&slot.program, &slot.pause) else {
                continue;
            };
            for shard in node.acting(now) {
                if let Some(other) = acting[usize::from(shard.0)].replace(at as u8) {
                    self.trace.add(Fact::TwoOwners {
                        shard: shard.0,
                        nodes: [other, at as u8],
                    });
                }
            }
        }
    }

    /// A renewal goes to one who believes to lead.
    fn renew(&mut self, at: usize, me: NodeRef, number: u64) {
        let believers: Vec<usize> = (0..self.nodes())
            .filter(|node| self.agreement.believes[*node])
            .collect();
        if believers.is_empty() {
            return;
        }
        let to = *self.random.pick(&believers);
        let arrives = self.network.connected(at as u8, to as u8) && !self.network.deaf[to];
        if to != at && !arrives {
            return;
        }
        // Retransmitted, perhaps.
        let at_most = *self.random.pick(&[1_000, 1_000, 1_000, 800_000]);
        let soon = self.soon(100, at_most);
        let life = self.slots[to].life;
        self.schedule(soon, Event::Renewal(to, life, me, number));
    }

    pub(super) fn beat(&mut self, to: usize, life: u32, from: &NodeRef, word: Word) {
        let now = self.timestamp(to);
        let slot = &mut self.slots[to];
        if slot.life != life || slot.pause.is_some() {
            return;
        }
        if let Program::Node(node) = &mut slot.program {
            node.beats.beat(now, from, word);
        }
    }

    pub(super) fn renewal(&mut self, to: usize, life: u32, from: NodeRef, number: u64) {
        let now = self.timestamp(to);
        if self.slots[to].life != life {
            return;
        }
        if self.slots[to].pause.is_some() {
            let later = self.soon(100_000, 500_000);
            self.schedule(later, Event::Renewal(to, life, from, number));
            return;
        }
        if let Program::Node(node) = &mut self.slots[to].program {
            node.table.asked(now, from, number);
        }
    }

    /// The quorum round of a leader has ended: it did lead, or did not.
    pub(super) fn round_ended(&mut self, at: usize, life: u32, read_index: u64) {
        if self.slots[at].life != life {
            return;
        }
        if self.slots[at].pause.is_some() {
            let later = self.soon(10_000, 500_000);
            self.schedule(later, Event::Round(at, life, read_index));
            return;
        }
        let leads = self.agreement.leader == Some(at as u8)
            && self.has_majority(at)
            && !self.agreement.suspended;
        let applied = self.slots[at].applied as u64;
        let read_index = match self.options.mistake {
            Some(Mistake::NoRound) => Some(applied),
            _ => (leads && applied >= read_index).then_some(read_index),
        };
        let cluster = Arc::clone(&self.agreement.state(self.slots[at].applied).cluster);
        let Program::Node(node) = &mut self.slots[at].program else {
            return;
        };
        for grant in node.table.round_ended(read_index, &cluster) {
            let Some(to) = self.place_of(&grant.node) else {
                continue;
            };
            if to == at || self.network.connected(at as u8, to as u8) {
                let at_most = *self.random.pick(&[1_000, 1_000, 1_000, 800_000]);
                let soon = self.soon(100, at_most);
                self.schedule(soon, Event::Grant(grant));
            }
        }
    }

    pub(super) fn grant(&mut self, grant: &Grant) {
        let Some(at) = self.place_of(&grant.node) else {
            return;
        };
        let now = self.timestamp(at);
        if self.slots[at].pause.is_some() {
            let later = self.soon(10_000, 500_000);
            self.schedule(later, Event::Grant(grant.clone()));
            return;
        }
        if let Program::Node(node) = &mut self.slots[at].program {
            node.granted(now, grant, &mut self.trace, &mut self.node_out);
            self.perform_node(at);
        }
    }
}
