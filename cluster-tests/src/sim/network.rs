//! What lies between processes: the bus, which loses, and the way from node to
//! node beside it.
//!
//! The bus keeps the order of what one process sends to one subject, as NATS
//! does, unless a fault says otherwise. It is one process itself: when it
//! restarts, everything on its way is gone.

use std::time::Duration;

use super::clock::Moment;
use super::random::Random;
use super::trace::Process;

/// What a message is, so by which subscription it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// Requests to a node.
    Requests,
    /// Beats of gateways.
    GatewayBeats,
    /// Beats of nodes.
    NodeBeats,
    /// Replies to a gateway.
    Inbox,
    /// Batches for a gateway.
    Links,
    /// Changes of the map.
    Maps,
}

/// How many subjects a process may listen to.
pub const SUBJECTS: usize = 6;

/// What the bus does to messages. All parts in a thousand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weather {
    /// Lost.
    pub loss: u32,
    /// Delivered a second time, a little later.
    pub duplicates: u32,
    /// Late, so that others overtake them.
    pub reordered: u32,
    /// By how much at most, in milliseconds.
    pub reordered_ms: u64,
    /// Everything is late by up to this, in order.
    pub delay_ms: u64,
    /// Delivered a second time, so late that nobody remembers.
    pub stragglers: u32,
}

/// How a process is connected to the bus.
#[derive(Debug, Clone, Copy, Default)]
pub struct Line {
    /// What it sends goes nowhere.
    pub cut_out: bool,
    /// Nothing comes to it.
    pub cut_in: bool,
    /// Lost besides, parts in a thousand, either way.
    pub loss: u32,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Network {
    random: Random,
    nodes: usize,
    processes: usize,
    /// What the bus does now.
    pub weather: Weather,
    /// By process: nodes, then gateways.
    pub lines: Vec<Line>,
    /// Whether the bus is there.
    pub bus_is_up: bool,
    /// Counts its lives.
    pub bus_life: u32,
    /// When the last message of each (sender, receiver, subject) arrives.
    lanes: Vec<Moment>,
    /// By (from, to): nothing goes from one node to the other.
    cuts: Vec<bool>,
    /// Of what nodes send to each other, lost: parts in a thousand.
    pub peer_loss: u32,
    /// By node: its datagrams go nowhere.
    pub muffled: Vec<bool>,
    /// By node: it hears no datagrams, nor that others want leases.
    pub deaf: Vec<bool>,
    /// No straggler comes later than this.
    stragglers_until: Moment,
}

/// A way through the bus.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// Who sends.
    pub from: Process,
    /// Who receives.
    pub to: Process,
    /// By which subscription.
    pub subject: Subject,
}

impl Network {
    /// A network without faults.
    pub fn new(random: Random, nodes: usize, gateways: usize, stragglers_until: Moment) -> Self {
        let processes = nodes + gateways;
        Self {
            random,
            nodes,
            processes,
            weather: Weather::default(),
            lines: vec![Line::default(); processes],
            bus_is_up: true,
            bus_life: 0,
            lanes: vec![Moment(0); processes * processes * SUBJECTS],
            cuts: vec![false; nodes * nodes],
            peer_loss: 0,
            muffled: vec![false; nodes],
            deaf: vec![false; nodes],
            stragglers_until,
        }
    }

    /// A process by number.
    pub fn index(&self, process: Process) -> usize {
        match process {
            Process::Node(number) => usize::from(number),
            Process::Gateway(number) => self.nodes + usize::from(number),
        }
    }

    /// Whether what a process sends now gets as far as the bus.
    pub fn leaves(&mut self, from: Process) -> bool {
        let line = self.lines[self.index(from)];
        self.bus_is_up && !line.cut_out && !self.random.chance(line.loss)
    }

    /// When a message that is on the bus arrives; never, once or twice.
    pub fn arrivals(&mut self, now: Moment, way: Way) -> [Option<Moment>; 2] {
        let Weather {
            loss,
            duplicates,
            reordered,
            reordered_ms,
            delay_ms,
            stragglers,
        } = self.weather;
        let line = self.lines[self.index(way.to)];
        let latency = Duration::from_micros(100 + self.random.below(900));
        let mut again = None;
        if stragglers > 0 && self.random.chance(stragglers) {
            let late = now + Duration::from_millis(self.random.between(31_000, 40_000));
            again = (late < self.stragglers_until).then_some(late);
        } else if duplicates > 0 && self.random.chance(duplicates) {
            again = Some(now + latency + Duration::from_millis(self.random.below(3_000)));
        }
        if self.random.chance(loss) || self.random.chance(line.loss) {
            return [None, again];
        }
        if reordered > 0 && self.random.chance(reordered) {
            let late = Duration::from_millis(self.random.below(reordered_ms.max(1)));
            return [Some(now + latency + late), again];
        }
        let delay = match delay_ms {
            0 => Duration::ZERO,
            ms => Duration::from_millis(self.random.below(ms)),
        };
        let (from, to) = (self.index(way.from), self.index(way.to));
        let lane = &mut self.lanes[(from * self.processes + to) * SUBJECTS + way.subject as usize];
        // One microsecond apart, so that the queue of events keeps them apart.
        let at = (now + latency + delay).max(Moment(lane.0 + 1));
        *lane = at;
        [Some(at), again]
    }

    /// Whether a message that arrives at a process gets in.
    pub fn enters(&self, to: Process, bus_life: u32) -> bool {
        let line = self.lines[self.index(to)];
        self.bus_is_up && self.bus_life == bus_life && !line.cut_in
    }

    /// Cuts the way from one node to another, or mends it.
    pub fn cut(&mut self, from: u8, to: u8, cut: bool) {
        self.cuts[usize::from(from) * self.nodes + usize::from(to)] = cut;
    }

    /// Whether two nodes hear each other.
    pub fn connected(&self, a: u8, b: u8) -> bool {
        let cut = |from: u8, to: u8| self.cuts[usize::from(from) * self.nodes + usize::from(to)];
        !cut(a, b) && !cut(b, a)
    }

    /// When a datagram from one node to another arrives.
    pub fn datagram(&mut self, now: Moment, from: u8, to: u8) -> Option<Moment> {
        if self.cuts[usize::from(from) * self.nodes + usize::from(to)]
            || self.muffled[usize::from(from)]
            || self.deaf[usize::from(to)]
            || self.random.chance(self.peer_loss)
        {
            return None;
        }
        Some(now + Duration::from_micros(100 + self.random.below(900)))
    }
}
