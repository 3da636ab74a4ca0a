//! Messages: from what a process wants sent to where it is heard.

use std::time::Duration;

use bytes::Bytes;
use node::core::gossip;
use proto::subject::Address;

use super::{Event, Program, World};
use crate::sim::network::{Subject, Way};
use crate::sim::trace::Fact;

impl World {
    pub(super) fn arrive(&mut self, at: usize, subject: Subject, bytes: Bytes) {
        let now = self.timestamp(at);
        let slot = &mut self.slots[at];
        if let Some(pause) = &mut slot.pause {
            let unread = &mut pause.unread[subject as usize];
            if unread.len() < self.subscription_bound {
                unread.push_back(bytes);
            }
            return;
        }
        match &mut slot.program {
            Program::Node(node) => {
                let out = &mut self.node_out;
                let heard = node.hear(now, &bytes, &mut self.trace, out);
                self.perform_node(at);
                if heard.is_err() {
                    self.end_by_itself(at);
                }
            }
            Program::Gateway(gateway) => {
                gateway.hear(now, subject, bytes, &mut self.gateway_out);
                self.perform_gateway(at);
            }
            // Nobody listens.
            Program::Down | Program::Starting { .. } => {}
        }
    }

    pub(super) fn datagram(&mut self, at: usize, life: u32, bytes: Bytes) {
        let now = self.timestamp(at);
        let slot = &mut self.slots[at];
        if slot.life != life {
            return;
        }
        if let Some(pause) = &mut slot.pause {
            pause.datagrams.push_back(bytes);
        } else if let Program::Node(node) = &mut slot.program {
            let input = gossip::Input::Datagram(&bytes);
            node.gossip(now, input, &mut self.node_out);
            self.perform_node(at);
        }
    }

    pub(super) fn perform_node(&mut self, at: usize) {
        let mut parcels = std::mem::take(&mut self.node_out.parcels);
        let mut datagrams = std::mem::take(&mut self.node_out.datagrams);
        for parcel in parcels.drain(..) {
            self.send(at, &parcel.to, parcel.bytes);
        }
        for (to, bytes) in datagrams.drain(..) {
            let nodes = &self.slots[..self.nodes()];
            let Some(to) = nodes.iter().position(|slot| slot.raft_id == to) else {
                continue;
            };
            if let Some(arrival) = self.network.datagram(self.now, at as u8, to as u8) {
                let life = self.slots[to].life;
                self.schedule(arrival, Event::Datagram { to, life, bytes });
            }
        }
        (self.node_out.parcels, self.node_out.datagrams) = (parcels, datagrams);
        self.perform_ways(at);
    }

    pub(super) fn perform_gateway(&mut self, at: usize) {
        let mut messages = std::mem::take(&mut self.gateway_out.messages);
        for (to, bytes) in messages.drain(..) {
            self.send(at, &to, bytes);
        }
        self.gateway_out.messages = messages;
        let mut answers = std::mem::take(&mut self.gateway_out.answers);
        for (asked, answer) in answers.drain(..) {
            self.answered(asked.order, asked.first, answer);
        }
        self.gateway_out.answers = answers;
        let woken = std::mem::take(&mut self.gateway_out.woken);
        for worker in woken.iter() {
            self.wake(at, worker.0);
        }
        let begins = std::mem::take(&mut self.gateway_out.found);
        let goes_on = std::mem::take(&mut self.gateway_out.reborn);
        if begins || goes_on {
            let slot = &self.slots[at];
            if let Program::Gateway(gateway) = &slot.program
                && let Some(me) = gateway.me()
            {
                let number = at - self.nodes();
                self.lives_since[number] = self.now;
                let incarnation = me.incarnation.0;
                self.trace.add(if begins {
                    Fact::Started {
                        process: slot.process,
                        incarnation,
                    }
                } else {
                    Fact::Reborn {
                        gateway: number as u8,
                        incarnation,
                    }
                });
            }
        }
        if std::mem::take(&mut self.gateway_out.superseded) {
            self.end_by_itself(at);
        }
    }

    pub(super) fn send(&mut self, from: usize, to: &Address, bytes: Bytes) {
        let from = self.slots[from].process;
        if !self.network.leaves(from) {
            return;
        }
        let nodes = self.nodes();
        let one = |id: &str, base: usize| {
            let number: usize = id[1..].parse().expect("our ids are a letter and a number");
            base + number..base + number + 1
        };
        let all = self.slots.len();
        let (subject, first, second) = match to {
            // A planted mistake talks to somebody who does not exist.
            Address::Gateway(id) | Address::Inbox(id) if !id.as_str().starts_with('g') => return,
            Address::Node(id) => (Subject::Requests, one(id.as_str(), 0), 0..0),
            Address::Gateway(id) => (Subject::Links, one(id.as_str(), nodes), 0..0),
            Address::Inbox(id) => (Subject::Inbox, one(id.as_str(), nodes), 0..0),
            Address::NodeBeats => (Subject::NodeBeats, 0..nodes, nodes..all),
            Address::GatewayBeats => (Subject::GatewayBeats, 0..nodes, 0..0),
            Address::Map => (Subject::Maps, nodes..all, 0..0),
        };
        let bus = self.network.bus_life;
        for at in first.chain(second) {
            let to = self.slots[at].process;
            let way = Way { from, to, subject };
            for arrival in self.network.arrivals(self.now, way).into_iter().flatten() {
                let bytes = bytes.clone();
                self.schedule(
                    arrival,
                    Event::Arrive {
                        to: at,
                        subject,
                        bus,
                        bytes,
                    },
                );
            }
        }
    }

    pub(super) fn wake(&mut self, at: usize, worker: u8) {
        let slot = &mut self.slots[at];
        if !std::mem::replace(&mut slot.woken[usize::from(worker)], true) {
            let life = slot.life;
            let soon = self.soon(10, 400);
            self.schedule(soon, Event::Work(at, life, worker));
        }
    }

    pub(super) fn work(&mut self, at: usize, life: u32, worker: u8) {
        let now = self.timestamp(at);
        let slot = &mut self.slots[at];
        if slot.life != life {
            return;
        }
        if slot.pause.is_some() {
            // When the process goes on.
            let later = self.now + Duration::from_millis(5);
            self.schedule(later, Event::Work(at, life, worker));
            return;
        }
        slot.woken[usize::from(worker)] = false;
        let slices = self.random.between(1, 4) as usize;
        let Program::Gateway(gateway) = &mut slot.program else {
            return;
        };
        let out = &mut self.gateway_out;
        let more = gateway.work(now, worker, slices, &mut self.trace, out);
        self.perform_gateway(at);
        if more && self.slots[at].life == life {
            self.wake(at, worker);
        }
    }
}
