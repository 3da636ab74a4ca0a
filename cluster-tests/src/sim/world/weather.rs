//! Faults begin and end.

use std::time::Duration;

use node::core::cluster::Command;

use super::{Event, Program, SUBSCRIPTION, World};
use crate::sim::faults::Fault;
use crate::sim::network::Weather;
use crate::sim::trace::{Fact, Process};

impl World {
    pub(super) fn is_crashed(&self, at: usize) -> bool {
        let process = self.slots[at].process;
        self.open_faults().any(|fault| match fault {
            Fault::Crash { process: of, .. } => of == process,
            Fault::Stop(node) => Process::Node(node) == process,
            _ => false,
        })
    }

    pub(super) fn open_faults(&self) -> impl Iterator<Item = Fault> {
        let windows = self.plan.windows.iter().zip(&self.open);
        windows
            .filter(|(_, open)| **open)
            .map(|(window, _)| window.fault)
    }

    pub(super) fn fault(&mut self, window: usize, begins: bool) {
        self.open[window] = begins;
        let fault = self.plan.windows[window].fault;
        self.trace.add(if begins {
            Fact::Begins(fault)
        } else {
            Fact::Ends(fault)
        });
        match fault {
            Fault::Crash {
                process,
                keeps_disk,
                clock_back_ms,
            } => {
                let at = self.network.index(process);
                if begins {
                    self.end(at);
                    let slot = &mut self.slots[at];
                    slot.clock.set_back(Duration::from_millis(clock_back_ms));
                    if !keeps_disk {
                        slot.raft_id = self.random.draw() | 1;
                        slot.applied = 0;
                        slot.checkpoint = None;
                    }
                } else {
                    self.start(at);
                }
            }
            Fault::Drain(node) => {
                let at = usize::from(node);
                if !begins {
                    self.rest(at);
                    self.end_by_itself(at);
                } else if let Program::Node(node) = &self.slots[at].program
                    && self.agreement.leader.is_some()
                {
                    let drain = Command::Drain(node.me.clone());
                    self.decide(drain);
                }
            }
            Fault::Stop(node) => {
                let at = usize::from(node);
                if begins {
                    self.rest(at);
                    self.end(at);
                } else {
                    self.start(at);
                }
            }
            Fault::Pause { process, decided } => {
                let at = self.network.index(process);
                let life = self.slots[at].life;
                if begins && decided {
                    self.hold(at);
                    // In between it goes on deciding.
                    let later = self.soon(1_000, 60_000);
                    self.schedule(later, Event::Stand(window));
                } else if begins && at < self.nodes() && self.random.chance(500) {
                    // What its standbys answer finds it standing still.
                    self.slots[at].stands_after_beat = true;
                } else if begins {
                    self.pause(at);
                } else {
                    self.slots[at].stands_after_beat = false;
                    self.resume(at, life);
                    self.perform_held(at);
                }
            }
            Fault::Stall(node, task) => self.stall(usize::from(node), task, begins),
            Fault::BusAway => {
                let away = self.open_faults().any(|fault| fault == Fault::BusAway);
                self.network.bus_is_up = !away;
                self.network.bus_life += u32::from(begins);
            }
            _ => self.change_weather(),
        }
    }

    /// Everything that is a sum of the faults that are open.
    pub(super) fn change_weather(&mut self) {
        let mut weather = Weather::default();
        let nodes = self.options.nodes;
        self.network.lines.fill_with(Default::default);
        self.network.peer_loss = 0;
        self.network.muffled.fill(false);
        self.network.deaf.fill(false);
        self.subscription_bound = SUBSCRIPTION;
        for from in 0..nodes {
            for to in 0..nodes {
                self.network.cut(from, to, false);
            }
        }
        let mut lags = vec![false; self.nodes()];
        let mut leaves_lost = vec![false; usize::from(self.options.gateways)];
        let mut stubborn = vec![false; self.nodes()];
        let mut suspended = false;
        let open: Vec<Fault> = self.open_faults().collect();
        for fault in open {
            match fault {
                Fault::Loss(permille) => weather.loss = weather.loss.max(permille),
                Fault::Duplicates(permille) => {
                    weather.duplicates = weather.duplicates.max(permille);
                }
                Fault::Reordering(permille, ms) => {
                    weather.reordered = weather.reordered.max(permille);
                    weather.reordered_ms = weather.reordered_ms.max(ms);
                }
                Fault::Delay(ms) => weather.delay_ms = weather.delay_ms.max(ms),
                Fault::Stragglers(permille) => {
                    weather.stragglers = weather.stragglers.max(permille);
                }
                Fault::ShortQueues(bound) => {
                    self.subscription_bound = self.subscription_bound.min(bound);
                }
                Fault::BusCut { process, out, into } => {
                    let line = self.network.index(process);
                    let line = &mut self.network.lines[line];
                    line.cut_out |= out;
                    line.cut_in |= into;
                }
                Fault::LineLoss(process, permille) => {
                    let line = self.network.index(process);
                    let line = &mut self.network.lines[line];
                    line.loss = line.loss.max(permille);
                }
                Fault::LeavesLost(gateway) => leaves_lost[usize::from(gateway)] = true,
                Fault::PeerLoss(permille) => {
                    self.network.peer_loss = self.network.peer_loss.max(permille);
                }
                Fault::PeerCut(from, to) if from != to => self.network.cut(from, to, true),
                Fault::Lag(node) => lags[usize::from(node)] = true,
                Fault::Muffled(node) => {
                    lags[usize::from(node)] = true;
                    self.network.muffled[usize::from(node)] = true;
                }
                Fault::Deaf(node) => self.network.deaf[usize::from(node)] = true,
                Fault::NoLeader => suspended = true,
                Fault::SecondLeader(node) => stubborn[usize::from(node)] = true,
                Fault::PeerCut(..)
                | Fault::Crash { .. }
                | Fault::Drain(_)
                | Fault::Stop(_)
                | Fault::Pause { .. }
                | Fault::Stall(..)
                | Fault::BusAway => {}
            }
        }
        self.network.weather = weather;
        self.agreement.suspended = suspended;
        for (node, lags) in lags.into_iter().enumerate() {
            self.slots[node].lags = lags;
        }
        for (gateway, lost) in leaves_lost.into_iter().enumerate() {
            let at = self.nodes() + gateway;
            if let Program::Gateway(gateway) = &mut self.slots[at].program {
                gateway.leaves_lost = lost;
            }
        }
        for (node, stubborn) in stubborn.into_iter().enumerate() {
            let agreement = &mut self.agreement;
            let before = std::mem::replace(&mut agreement.stubborn[node], stubborn);
            let lives = !matches!(self.slots[node].program, Program::Down);
            if stubborn && lives {
                if !std::mem::replace(&mut agreement.believes[node], true) {
                    self.elected(node);
                }
            } else if before && !stubborn {
                agreement.believes[node] = agreement.leader == Some(node as u8);
            }
        }
    }

    pub(super) fn stall(&mut self, at: usize, task: usize, stands: bool) {
        let now = self.timestamp(at);
        let paused = self.slots[at].pause.is_some();
        if let Program::Node(node) = &mut self.slots[at].program {
            node.stall(task, stands);
            if !paused {
                node.run(now, &mut self.trace, &mut self.node_out);
                self.perform_node(at);
            }
        }
    }
}
