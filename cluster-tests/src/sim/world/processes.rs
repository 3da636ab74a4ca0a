//! Processes: how they start, end, stand still and go on.

use node::core::gossip;
use proto::id::{GatewayRef, Incarnation};

use super::{Event, Pause, Program, SUBJECT_BY_NUMBER, Ticker, World};
use crate::sim::gateway::Gateway;
use crate::sim::network::SUBJECTS;
use crate::sim::node::EGRESS;
use crate::sim::trace::{Fact, Process};
use crate::sim::workload::CHANNELS;

impl World {
    pub(super) fn start(&mut self, at: usize) {
        if !matches!(self.slots[at].program, Program::Down) || self.is_crashed(at) {
            return;
        }
        let start = self.random.draw();
        let now = self.timestamp(at);
        let slot = &mut self.slots[at];
        slot.life += 1;
        let life = slot.life;
        match slot.process {
            Process::Node(_) => {
                slot.program = Program::Starting {
                    start,
                    registered: None,
                };
                let soon = self.soon(1_000, 50_000);
                self.schedule(soon, Event::Register(at, life));
                self.schedule(self.now, Event::Tick(at, life, Ticker::Membership));
            }
            Process::Gateway(number) => {
                let me = GatewayRef {
                    id: slot.process.to_string().parse().expect("a valid id"),
                    incarnation: Incarnation(slot.clock.wall(self.now).0),
                };
                let gateway = Gateway::new(number, me, now, self.options.mistake);
                slot.program = Program::Gateway(Box::new(gateway));
                self.schedule(self.now, Event::Tick(at, life, Ticker::Mesh));
            }
        }
    }

    /// A process ends. Whether it is started again is its supervisor's affair.
    pub(super) fn end(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        let process = slot.process;
        if matches!(slot.program, Program::Down) {
            return;
        }
        slot.life += 1;
        slot.pause = None;
        slot.woken = Default::default();
        let ended = std::mem::replace(&mut slot.program, Program::Down);
        self.trace.add(Fact::Ended { process });
        self.break_ways(at);
        match process {
            Process::Gateway(number) => {
                self.drop_clients(number, &ended);
                let base = usize::from(number) * usize::from(CHANNELS);
                for channel in 0..CHANNELS {
                    let differs = &mut self.differs[base + usize::from(channel)];
                    if std::mem::take(differs) {
                        self.trace.add(Fact::Agrees {
                            gateway: number,
                            channel,
                        });
                    }
                }
            }
            Process::Node(number) => {
                let agreement = &mut self.agreement;
                agreement.believes[usize::from(number)] = false;
                agreement.proposing[usize::from(number)] = false;
                // One that is back before anyone has missed it leads no more.
                agreement.leader.take_if(|leader| *leader == number);
            }
        }
    }

    /// A node is about to stop by itself, and keeps what it has.
    pub(super) fn rest(&mut self, at: usize) {
        let now = self.timestamp(at);
        let slot = &mut self.slots[at];
        if slot.pause.is_none()
            && let Program::Node(node) = &mut slot.program
        {
            slot.checkpoint = Some((now, node.rest(now)));
        }
    }

    pub(super) fn drop_clients(&mut self, gateway: u8, ended: &Program) {
        if let Program::Gateway(ended) = ended {
            for connection in ended.connections() {
                self.trace.add(Fact::Closed { connection });
            }
        }
        for client in 0..self.clients.len() {
            if self.clients[client]
                .place
                .is_some_and(|p| p.gateway == gateway)
            {
                self.forget_place(client);
                let at = self.soon(20_000, 1_000_000);
                self.schedule(at, Event::Client(client));
            }
        }
    }

    /// It ends by itself, and is started again in a moment.
    pub(super) fn end_by_itself(&mut self, at: usize) {
        self.end(at);
        let soon = self.soon(300_000, 1_500_000);
        self.schedule(soon, Event::Start(at));
    }

    pub(super) fn pause(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        if slot.pause.is_none() && !matches!(slot.program, Program::Down) {
            slot.pause = Some(Pause::default());
        }
    }

    /// From now on what a process decides is not performed.
    pub(super) fn hold(&mut self, at: usize) {
        match &mut self.slots[at].program {
            Program::Node(node) => node.stall(EGRESS, true),
            Program::Gateway(gateway) => gateway.hold(true, &mut self.gateway_out),
            Program::Down | Program::Starting { .. } => {}
        }
    }

    pub(super) fn resume(&mut self, at: usize, life: u32) {
        let slot = &mut self.slots[at];
        if slot.life != life {
            return;
        }
        let Some(mut pause) = slot.pause.take() else {
            return;
        };
        // What was decided before is performed first by a gateway, and by a
        // node whenever its task comes to it.
        let first = matches!(slot.process, Process::Gateway(_)) || self.random.chance(500);
        if first {
            self.perform_held(at);
        }
        for ticker in pause.missed {
            self.schedule(self.now, Event::Tick(at, life, ticker));
        }
        // Whatever has come is read now, one subscription after another or in
        // turns: which of them first is chance.
        loop {
            let waiting: Vec<usize> = (0..SUBJECTS)
                .filter(|subject| !pause.unread[*subject].is_empty())
                .collect();
            if waiting.is_empty() && pause.wishes.is_empty() {
                break;
            }
            let turn = self
                .random
                .index(waiting.len() + usize::from(!pause.wishes.is_empty()));
            for _ in 0..self.random.between(1, 65) {
                if let Some(subject) = waiting.get(turn) {
                    let Some(bytes) = pause.unread[*subject].pop_front() else {
                        break;
                    };
                    self.arrive(at, SUBJECT_BY_NUMBER[*subject], bytes);
                } else if let Some(wish) = pause.wishes.pop_front() {
                    self.wish(at, wish);
                }
            }
        }
        for passage in pause.passages {
            self.passage(passage);
        }
        for bytes in pause.datagrams {
            self.datagram(at, life, bytes);
        }
        if !first {
            self.perform_held(at);
        }
        // Whoever leads tells it in a moment.
        let soon = self.soon(500, 150_000);
        self.slots[at].deaf_until = soon;
        self.schedule(soon, Event::CatchUp(at));
    }

    /// Performs what was decided before a process stood still.
    pub(super) fn perform_held(&mut self, at: usize) {
        let now = self.timestamp(at);
        match &mut self.slots[at].program {
            Program::Node(node) => {
                node.stall(EGRESS, false);
                node.run(now, &mut self.trace, &mut self.node_out);
                self.perform_node(at);
            }
            Program::Gateway(gateway) => {
                gateway.hold(false, &mut self.gateway_out);
                self.perform_gateway(at);
            }
            Program::Down | Program::Starting { .. } => {}
        }
    }

    pub(super) fn tick(&mut self, at: usize, life: u32, ticker: Ticker) {
        let now = self.timestamp(at);
        let slot = &mut self.slots[at];
        if slot.life != life {
            return;
        }
        if let Some(pause) = &mut slot.pause {
            pause.missed.push(ticker);
            return;
        }
        let next = slot.clock.after(self.now, ticker.period());
        let out = &mut self.node_out;
        match &mut slot.program {
            Program::Node(node) => match ticker {
                Ticker::Links => node.tick_links(now, &mut self.trace, out),
                Ticker::NodeBeat => node.beat(out),
                Ticker::Ingress => node.tick_ingress(now, &mut self.trace, out),
                Ticker::Workers => node.tick_workers(now, &mut self.trace, out),
                Ticker::Gossip => node.gossip(now, gossip::Input::Tick, out),
                Ticker::Tell => node.gossip(now, gossip::Input::Tell, out),
                Ticker::Pairs => node.tick_pairs(now, &mut self.trace, out),
                Ticker::Membership | Ticker::Report => {}
                Ticker::Mesh => unreachable!("nodes have no mesh task"),
            },
            Program::Gateway(gateway) => gateway.tick(now, &mut self.gateway_out),
            Program::Starting { .. } | Program::Down => {}
        }
        self.schedule(next, Event::Tick(at, life, ticker));
        match self.slots[at].process {
            Process::Gateway(_) => self.perform_gateway(at),
            Process::Node(_) => {
                self.perform_node(at);
                if ticker == Ticker::Pairs {
                    self.look_for_two_owners();
                    self.make_ways(at);
                    if std::mem::take(&mut self.slots[at].stands_after_beat) {
                        self.pause(at);
                    }
                }
                if ticker == Ticker::Report {
                    self.report(at);
                }
                if ticker == Ticker::Tell {
                    self.recruit(at);
                }
                if ticker == Ticker::Membership {
                    self.catch_up(at);
                    self.look_round(at);
                    self.lead(at);
                }
            }
        }
    }
}
