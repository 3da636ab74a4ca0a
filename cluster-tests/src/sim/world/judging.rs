//! Which gateways are silent, and what is decided of that.

use std::time::Duration;

use node::core::cluster::{Cluster, Command};
use node::core::gateways::Silence;
use proto::id::{GatewayRef, NodeRef};

use super::{Event, Program, World};
use crate::sim::faults::Fault;
use crate::sim::trace::{Fact, Process};

/// For how long before it was declared gone a gateway must have been there, and
/// heard, for that to be needless.
const BLAMELESS: Duration = Duration::from_secs(6);

impl World {
    /// A node tells whoever leads which gateways it does not hear.
    pub(super) fn report(&mut self, at: usize) {
        let now = self.timestamp(at);
        let Program::Node(node) = &mut self.slots[at].program else {
            return;
        };
        let Some(silence) = node.tick_report(now) else {
            return;
        };
        let me = node.me.clone();
        for to in 0..self.nodes() {
            let arrives = to == at || self.network.connected(at as u8, to as u8);
            if self.agreement.believes[to] && arrives {
                let at_most = *self.random.pick(&[1_000, 1_000, 1_000, 400_000]);
                let soon = self.soon(100, at_most);
                let life = self.slots[to].life;
                self.schedule(soon, Event::Report(to, life, me.clone(), silence.clone()));
            }
        }
    }

    pub(super) fn reported(&mut self, to: usize, life: u32, from: NodeRef, silence: Silence) {
        let now = self.timestamp(to);
        let slot = &mut self.slots[to];
        if slot.life != life || slot.pause.is_some() || !self.agreement.believes[to] {
            return;
        }
        if let Program::Node(node) = &mut slot.program {
            node.buses.report(now, &from, silence.hears_echo);
            node.judge.report(now, from, silence);
        }
    }

    /// Gateways that a leader takes for gone, and nodes for off the bus.
    pub(super) fn bury(&mut self, at: usize, cluster: &Cluster) -> Vec<Command> {
        let now = self.timestamp(at);
        let Program::Node(node) = &mut self.slots[at].program else {
            return Vec::new();
        };
        let changes = node.buses.changes(now, cluster).into_iter();
        let changes = changes.map(|(node, hears)| Command::Bus { node, hears });
        let mut commands: Vec<Command> = changes.collect();
        let gone = node.judge.gone(now, cluster);
        commands.extend((!gone.is_empty()).then_some(Command::GatewaysGone(gone)));
        commands
    }

    /// Writes down who is declared gone, and whether it was there all the time.
    pub(super) fn judge_burial(&mut self, command: &Command) {
        let Command::GatewaysGone(gateways) = command else {
            return;
        };
        let gone = std::sync::Arc::clone(self.agreement.last().cluster.gone());
        for gateway in gateways.iter().filter(|gateway| !gone.contains(gateway)) {
            let number = gateway.id.as_str()[1..].parse().expect("a number");
            self.trace.add(Fact::Gone {
                gateway: number,
                incarnation: gateway.incarnation.0,
                needlessly: self.is_blameless(number, gateway),
            });
        }
    }

    /// Whether nothing but the bus has kept a gateway from being heard.
    fn is_blameless(&self, number: u8, life: &GatewayRef) -> bool {
        let process = Process::Gateway(number);
        let at = self.network.index(process);
        let Program::Gateway(gateway) = &self.slots[at].program else {
            return false;
        };
        let lives = gateway.me() == Some(life);
        let since = self.lives_since[usize::from(number)];
        let from = self.now.0.saturating_sub(BLAMELESS.as_micros() as u64);
        let excuses = |fault: &Fault| match fault {
            Fault::Loss(_)
            | Fault::Reordering(..)
            | Fault::Delay(_)
            | Fault::Stragglers(_)
            | Fault::ShortQueues(_) => true,
            Fault::BusCut { process: of, .. } | Fault::LineLoss(of, _) => {
                *of == process || matches!(of, Process::Node(_))
            }
            Fault::Pause { process: of, .. } | Fault::Crash { process: of, .. } => *of == process,
            _ => false,
        };
        let mut windows = self.plan.windows.iter();
        let is_excused = windows
            .any(|window| window.from <= self.now && window.to.0 >= from && excuses(&window.fault));
        lives && since.0 < from && !is_excused
    }
}
