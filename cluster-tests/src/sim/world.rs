//! The world: processes, the network between them, clients before them, and one
//! queue of events in virtual time. Single-threaded, and the same for the same
//! seed to the last bit.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque, btree_map};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use node::core::cluster::{Command, Founding, Outcome, Registration};
use node::core::formation::{Succession, succession};
use node::core::gossip::{self, News, Rumour};
use node::core::placement;
use proto::channel::ChannelKey;
use proto::id::{ClusterUuid, GatewayRef, Incarnation};
use proto::namespace::Namespaces;
use proto::shard::{ShardId, Sharding};
use proto::subject::Address;
use proto::time::Timestamp;

use super::Options;
use super::agreement::Agreement;
use super::clock::{Clock, Moment};
use super::faults::{Fault, Plan, Profile};
use super::gateway::{self, Gateway, Wish};
use super::network::{Network, SUBJECTS, Subject, Way, Weather};
use super::node::{self as nodes, EGRESS, Node};
use super::random::Random;
use super::trace::{Channel, Connection, Fact, Order, Process, Trace};
use super::workload::{self, CHANNELS, Client, Move, Place};

/// When the last fault ends.
pub const FAULTS_END: Moment = Moment::ms(46_000);
/// How long healing may take, once every process runs.
pub const HEALING: Duration = Duration::from_secs(10);
/// How long a probe may take.
const PROBING: Duration = Duration::from_secs(1);
/// How long the processes may take to run again: a node that has lost its disk
/// waits for gossip, and everyone for a leader.
const RUNNING: Duration = Duration::from_secs(15);
/// How often what nobody tells is looked at.
const SAMPLE: Duration = Duration::from_millis(250);
/// Steps of a world that goes round in circles.
const STEPS_MAX: u64 = 3_000_000;
/// Messages that a subscription holds, as in the bus.
const SUBSCRIPTION: usize = 65_536;

/// Something that will happen.
#[derive(Debug)]
enum Event {
    Tick(usize, u32, Ticker),
    Arrive {
        to: usize,
        subject: Subject,
        bus: u32,
        bytes: Bytes,
    },
    Datagram {
        to: usize,
        life: u32,
        bytes: Bytes,
    },
    Start(usize),
    Stand(usize),
    Work(usize, u32, u8),
    Register(usize, u32),
    CatchUp(usize),
    Commit(Box<Proposal>),
    Election,
    StopBelieving(u8),
    Client(usize),
    Publish,
    Begin(usize),
    End(usize),
    Sample,
    Heal,
    Settle,
    Finish,
}

/// What recurs in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ticker {
    Links,
    NodeBeat,
    Ingress,
    Workers,
    Gossip,
    Tell,
    Membership,
    Mesh,
}

/// Once a node is registered.
const NODE_TICKERS: [Ticker; 6] = [
    Ticker::Links,
    Ticker::NodeBeat,
    Ticker::Ingress,
    Ticker::Workers,
    Ticker::Gossip,
    Ticker::Tell,
];

impl Ticker {
    fn period(self) -> Duration {
        Duration::from_millis(match self {
            Self::Links => 25,
            Self::NodeBeat | Self::Ingress => 500,
            Self::Workers | Self::Tell => 1_000,
            Self::Gossip | Self::Mesh => 20,
            Self::Membership => 100,
        })
    }
}

#[derive(Debug)]
struct Proposal {
    by: usize,
    life: u32,
    command: Command,
}

#[derive(Debug)]
struct Scheduled {
    at: Moment,
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// The place of a process: what is left of it when it ends.
#[derive(Debug)]
struct Slot {
    process: Process,
    /// Counts its lives; what was meant for an earlier one is dropped.
    life: u32,
    clock: Clock,
    program: Program,
    pause: Option<Pause>,
    /// Workers of a gateway that will have their turn.
    woken: [bool; gateway::WORKERS],
    /// The most that has waited, by queue.
    most: [usize; 3],
    /// Of a node: its data directory, how much of the log it has applied, and
    /// whether it applies more.
    raft_id: u64,
    applied: usize,
    lags: bool,
}

#[derive(Debug)]
enum Program {
    Down,
    /// A node that is not registered yet; under which entry it will be.
    Starting {
        start: u64,
        registered: Option<u64>,
    },
    Node(Box<Node>),
    Gateway(Box<Gateway>),
}

/// What has come to a process while it stands still.
#[derive(Debug, Default)]
struct Pause {
    unread: [VecDeque<Bytes>; SUBJECTS],
    datagrams: VecDeque<Bytes>,
    wishes: VecDeque<Wish>,
    missed: Vec<Ticker>,
}

/// See the [module](self).
#[derive(Debug)]
pub struct World {
    options: Options,
    random: Random,
    now: Moment,
    step: u64,
    scheduled: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    network: Network,
    agreement: Agreement,
    /// Nodes, then gateways.
    slots: Vec<Slot>,
    plan: Plan,
    /// Which windows of the plan are open.
    open: Vec<bool>,
    clients: Vec<Client>,
    connections: Connection,
    orders: Order,
    /// Milliseconds between publishes, on average.
    publish_every_ms: u64,
    event_name: Arc<str>,
    channels: Vec<ChannelKey>,
    shards: Vec<ShardId>,
    namespaces: Arc<Namespaces>,
    founding: Founding,
    /// By gateway and channel: whether it and the owner say different things.
    differs: Vec<bool>,
    subscription_bound: usize,
    healing: Option<Moment>,
    is_whole: bool,
    is_over: bool,
    /// What happened.
    pub trace: Trace,
    node_out: nodes::Outgoing,
    gateway_out: gateway::Outgoing,
}

impl World {
    /// The world of a seed, in which nothing has happened yet.
    pub fn new(seed: u64, options: &Options) -> Self {
        let mut random = Random::new(seed);
        let mut of_plan = random.fork();
        let of_network = random.fork();
        let plan = Plan::draw(&mut of_plan, FAULTS_END, options.nodes, options.gateways);
        let sharding = Sharding {
            seed: random.draw(),
            count: *random.pick(&[8, 12, 16]),
        };
        let nodes = (0..options.nodes).map(Process::Node);
        let processes = nodes.chain((0..options.gateways).map(Process::Gateway));
        let slots: Vec<Slot> = processes
            .map(|process| Slot {
                process,
                life: 0,
                clock: Clock::new(&mut random),
                program: Program::Down,
                pause: None,
                woken: [false; gateway::WORKERS],
                most: [0; 3],
                raft_id: random.draw() | 1,
                applied: 0,
                lags: false,
            })
            .collect();
        let channels = workload::channels();
        let count = random.between(4, 9);
        let clients: Vec<Client> = (0..count).map(|_| Client::new(&mut random)).collect();
        let mut world = Self {
            options: options.clone(),
            now: Moment(0),
            step: 0,
            scheduled: 0,
            queue: BinaryHeap::new(),
            network: Network::new(
                of_network,
                usize::from(options.nodes),
                usize::from(options.gateways),
                FAULTS_END,
            ),
            agreement: Agreement::new(usize::from(options.nodes)),
            open: vec![false; plan.windows.len()],
            plan,
            connections: 0,
            orders: 0,
            publish_every_ms: random.between(20, 120),
            event_name: "e".into(),
            shards: channels.iter().map(|key| sharding.shard_of(key)).collect(),
            namespaces: Arc::new(workload::namespaces()),
            founding: Founding {
                uuid: ClusterUuid(u128::from(random.draw())),
                sharding,
                expect: u16::from(options.nodes),
            },
            differs: vec![false; usize::from(options.gateways) * usize::from(CHANNELS)],
            subscription_bound: SUBSCRIPTION,
            healing: None,
            is_whole: false,
            is_over: false,
            trace: Trace::default(),
            node_out: nodes::Outgoing::default(),
            gateway_out: gateway::Outgoing::default(),
            channels,
            clients,
            slots,
            random,
        };
        world.begin();
        world
    }

    /// Runs to the end, or until this step.
    pub fn run(&mut self, until: u64) {
        while !self.is_over && self.step < until.min(STEPS_MAX) {
            let Some(Reverse(next)) = self.queue.pop() else {
                return;
            };
            self.now = next.at;
            self.step += 1;
            self.trace.set_now(self.now, self.step);
            self.happen(next.event);
        }
    }

    /// Which kinds of fault it has.
    pub fn profile(&self) -> Profile {
        self.plan.profile
    }

    /// What every process is up to, for people.
    pub fn states(&self) -> Vec<String> {
        let state = |slot: &Slot| {
            let what = match &slot.program {
                Program::Down => "down".into(),
                Program::Starting { .. } => "not registered yet".into(),
                Program::Node(node) => node.state(),
                Program::Gateway(gateway) => gateway.state(),
            };
            let mut line = format!("{}: {what}", slot.process);
            if slot.pause.is_some() {
                line.push_str(", stands still");
            }
            if let Process::Node(number) = slot.process {
                line.push_str(&format!(
                    ", applied {} of {}",
                    slot.applied,
                    self.agreement.length()
                ));
                if self.agreement.believes[usize::from(number)] {
                    line.push_str(", believes to lead");
                }
            }
            line
        };
        self.slots.iter().map(state).collect()
    }

    fn begin(&mut self) {
        for slot in 0..self.slots.len() {
            let at = self.soon(0, 200_000);
            self.schedule(at, Event::Start(slot));
        }
        for client in 0..self.clients.len() {
            let at = self.soon(0, 2_000_000);
            self.schedule(at, Event::Client(client));
        }
        for (number, window) in self.plan.windows.clone().into_iter().enumerate() {
            self.schedule(window.from, Event::Begin(number));
            self.schedule(window.to, Event::End(number));
        }
        self.schedule(Moment(0), Event::Election);
        self.schedule(Moment::ms(1_000), Event::Publish);
        self.schedule(Moment::ms(1_000), Event::Sample);
        self.schedule(FAULTS_END + Duration::from_micros(1), Event::Heal);
    }

    fn schedule(&mut self, at: Moment, event: Event) {
        self.scheduled += 1;
        self.queue.push(Reverse(Scheduled {
            at: at.max(self.now),
            order: self.scheduled,
            event,
        }));
    }

    /// Some time between so many microseconds from now.
    fn soon(&mut self, from: u64, to: u64) -> Moment {
        Moment(self.now.0 + self.random.between(from, to))
    }

    fn timestamp(&self, slot: usize) -> Timestamp {
        self.slots[slot].clock.timestamp(self.now)
    }

    fn nodes(&self) -> usize {
        usize::from(self.options.nodes)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick(slot, life, ticker) => self.tick(slot, life, ticker),
            Event::Arrive {
                to,
                subject,
                bus,
                bytes,
            } => {
                if self.network.enters(self.slots[to].process, bus) {
                    self.arrive(to, subject, bytes);
                }
            }
            Event::Datagram { to, life, bytes } => self.datagram(to, life, bytes),
            Event::Start(slot) => self.start(slot),
            Event::Stand(window) => {
                let fault = self.plan.windows[window].fault;
                if let (true, Fault::Pause { process, .. }) = (self.open[window], fault) {
                    self.pause(self.network.index(process));
                }
            }
            Event::Work(slot, life, worker) => self.work(slot, life, worker),
            Event::Register(slot, life) => self.register(slot, life),
            Event::CatchUp(slot) => self.catch_up(slot),
            Event::Commit(proposal) => self.commit(*proposal),
            Event::Election => self.elect(),
            Event::StopBelieving(node) => self.stop_believing(node),
            Event::Client(client) => self.client(client),
            Event::Publish => self.publish(),
            Event::Begin(window) => self.fault(window, true),
            Event::End(window) => self.fault(window, false),
            Event::Sample => self.sample(),
            Event::Heal => {
                self.healing = Some(self.now);
                self.trace.add(Fact::Healing);
            }
            Event::Settle => self.settle(),
            Event::Finish => {
                self.trace.add(Fact::End);
                self.is_over = true;
            }
        }
    }

    // Processes.

    fn start(&mut self, at: usize) {
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
    fn end(&mut self, at: usize) {
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

    fn drop_clients(&mut self, gateway: u8, ended: &Program) {
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
    fn end_by_itself(&mut self, at: usize) {
        self.end(at);
        let soon = self.soon(300_000, 1_500_000);
        self.schedule(soon, Event::Start(at));
    }

    fn pause(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        if slot.pause.is_none() && !matches!(slot.program, Program::Down) {
            slot.pause = Some(Pause::default());
        }
    }

    /// From now on what a process decides is not performed.
    fn hold(&mut self, at: usize) {
        match &mut self.slots[at].program {
            Program::Node(node) => node.stall(EGRESS, true),
            Program::Gateway(gateway) => gateway.hold(true, &mut self.gateway_out),
            Program::Down | Program::Starting { .. } => {}
        }
    }

    fn resume(&mut self, at: usize, life: u32) {
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
        for bytes in pause.datagrams {
            self.datagram(at, life, bytes);
        }
        if !first {
            self.perform_held(at);
        }
        self.schedule(self.now, Event::CatchUp(at));
    }

    /// Performs what was decided before a process stood still.
    fn perform_held(&mut self, at: usize) {
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

    fn tick(&mut self, at: usize, life: u32, ticker: Ticker) {
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
                Ticker::Links => node.tick_links(now, out),
                Ticker::NodeBeat => node.beat(out),
                Ticker::Ingress => node.tick_ingress(now, &mut self.trace, out),
                Ticker::Workers => node.tick_workers(now, &mut self.trace, out),
                Ticker::Gossip => node.gossip(now, gossip::Input::Tick, out),
                Ticker::Tell => node.gossip(now, gossip::Input::Tell, out),
                Ticker::Membership => {}
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
                if ticker == Ticker::Membership {
                    self.catch_up(at);
                    self.lead(at);
                }
            }
        }
    }

    // Messages.

    fn arrive(&mut self, at: usize, subject: Subject, bytes: Bytes) {
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

    fn datagram(&mut self, at: usize, life: u32, bytes: Bytes) {
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

    fn perform_node(&mut self, at: usize) {
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
    }

    fn perform_gateway(&mut self, at: usize) {
        let mut messages = std::mem::take(&mut self.gateway_out.messages);
        for (to, bytes) in messages.drain(..) {
            self.send(at, &to, bytes);
        }
        self.gateway_out.messages = messages;
        for (order, answer) in self.gateway_out.answers.drain(..) {
            self.trace.add(Fact::Answered { order, answer });
        }
        let woken = std::mem::take(&mut self.gateway_out.woken);
        for worker in woken.iter() {
            self.wake(at, worker.0);
        }
        if std::mem::take(&mut self.gateway_out.found) {
            let slot = &self.slots[at];
            if let Program::Gateway(gateway) = &slot.program
                && let Some(me) = gateway.me()
            {
                self.trace.add(Fact::Started {
                    process: slot.process,
                    incarnation: me.incarnation.0,
                });
            }
        }
        if std::mem::take(&mut self.gateway_out.superseded) {
            self.end_by_itself(at);
        }
    }

    fn send(&mut self, from: usize, to: &Address, bytes: Bytes) {
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

    fn wake(&mut self, at: usize, worker: u8) {
        let slot = &mut self.slots[at];
        if !std::mem::replace(&mut slot.woken[usize::from(worker)], true) {
            let life = slot.life;
            let soon = self.soon(10, 400);
            self.schedule(soon, Event::Work(at, life, worker));
        }
    }

    fn work(&mut self, at: usize, life: u32, worker: u8) {
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

    // Agreement.

    /// Whether a node has a majority: it is there, and hears enough others.
    fn has_majority(&self, at: usize) -> bool {
        let lives = |at: usize| {
            let slot = &self.slots[at];
            !matches!(slot.program, Program::Down) && slot.pause.is_none()
        };
        let heard = |other: &usize| lives(*other) && self.network.connected(at as u8, *other as u8);
        lives(at) && (0..self.nodes()).filter(heard).count() > self.nodes() / 2
    }

    fn elect(&mut self) {
        let at = self.soon(80_000, 250_000);
        self.schedule(at, Event::Election);
        if let Some(leader) = self.agreement.leader {
            if self.has_majority(usize::from(leader)) && !self.agreement.suspended {
                return;
            }
            self.agreement.leader = None;
            let at = self.soon(0, 3_000_000);
            self.schedule(at, Event::StopBelieving(leader));
        }
        if self.agreement.suspended {
            return;
        }
        let able: Vec<usize> = (0..self.nodes())
            .filter(|at| self.has_majority(*at))
            .collect();
        if !able.is_empty() {
            let leader = *self.random.pick(&able);
            self.agreement.leader = Some(leader as u8);
            self.agreement.believes[leader] = true;
        }
    }

    fn stop_believing(&mut self, node: u8) {
        if self.slots[usize::from(node)].pause.is_some() {
            let later = self.soon(100_000, 500_000);
            self.schedule(later, Event::StopBelieving(node));
            return;
        }
        let agreement = &mut self.agreement;
        let keeps = agreement.leader == Some(node) || agreement.stubborn[usize::from(node)];
        agreement.believes[usize::from(node)] = keeps;
    }

    /// What a leader does, and whoever believes to be one.
    fn lead(&mut self, at: usize) {
        let slot = &self.slots[at];
        let busy = self.agreement.proposing[at];
        if !self.agreement.believes[at] || busy || matches!(slot.program, Program::Down) {
            return;
        }
        let cluster = &self.agreement.state(slot.applied).cluster;
        let command = match cluster.founding() {
            None => Command::Found(self.founding.clone()),
            Some(_) => {
                let plan = placement::plan(cluster);
                if plan.is_empty() {
                    return;
                }
                Command::Assign(plan)
            }
        };
        self.agreement.proposing[at] = true;
        let life = slot.life;
        let at_most = *self.random.pick(&[5_000, 20_000, 300_000]);
        let soon = self.soon(500, at_most);
        let proposal = Proposal {
            by: at,
            life,
            command,
        };
        self.schedule(soon, Event::Commit(Box::new(proposal)));
    }

    fn commit(&mut self, proposal: Proposal) {
        let Proposal { by, life, command } = proposal;
        if self.slots[by].life != life {
            return;
        }
        self.agreement.proposing[by] = false;
        if self.has_majority(by) && !self.agreement.suspended {
            self.decide(command);
        }
    }

    fn decide(&mut self, command: Command) -> Outcome {
        let outcome = self.agreement.decide(command);
        for node in 0..self.nodes() {
            let soon = self.soon(500, 30_000);
            self.schedule(soon, Event::CatchUp(node));
        }
        outcome
    }

    /// A node that has started says so to the leader, until it is registered.
    fn register(&mut self, at: usize, life: u32) {
        let slot = &self.slots[at];
        let Program::Starting { start, registered } = &slot.program else {
            return;
        };
        if slot.life != life || registered.is_some() {
            return;
        }
        let (start, paused) = (*start, slot.pause.is_some());
        let again = self.soon(40_000, 90_000);
        self.schedule(again, Event::Register(at, life));
        let leader = self.agreement.leader.map(usize::from);
        let Some(leader) = leader.filter(|leader| self.has_majority(*leader)) else {
            return;
        };
        if paused || self.agreement.suspended {
            return;
        }
        if !self.network.connected(leader as u8, at as u8) {
            return;
        }
        let cluster = Arc::clone(&self.agreement.state(self.slots[leader].applied).cluster);
        if cluster.founding().is_none() {
            return;
        }
        let raft_id = self.slots[at].raft_id;
        let name = self.slots[at].process.to_string();
        let name: proto::id::NodeId = name.parse().expect("a valid id");
        let known = cluster.members().get(&name);
        if let Some(known) = known.filter(|known| known.registration.raft_id != raft_id) {
            let known = known.registration.raft_id;
            let is_seen = match &self.slots[leader].program {
                Program::Node(leader) => leader.rumours.get(&known).is_some_and(Rumour::is_seen),
                _ => false,
            };
            // At the address of the one that was there, this one answers.
            if succession(known, Some(raft_id), is_seen) == Succession::Takes {
                self.decide(Command::Forget(known));
            }
            return;
        }
        let outcome = self.decide(Command::Register(Registration {
            raft_id,
            name,
            start,
            address: String::new(),
            zone: String::new(),
            witness: false,
        }));
        // The answer may be lost; then it is registered, and asks again.
        let lost = self.random.chance(100);
        if let Outcome::Registered(incarnation) = outcome
            && !lost
            && let Program::Starting { registered, .. } = &mut self.slots[at].program
        {
            *registered = Some(incarnation.0);
        }
    }

    /// A node applies what is agreed, if it can hear of it.
    fn catch_up(&mut self, at: usize) {
        if at >= self.nodes() || self.slots[at].lags || !self.has_majority(at) {
            return;
        }
        let now = self.timestamp(at);
        let last = self.agreement.length();
        let slot = &mut self.slots[at];
        slot.applied = last;
        let state = self.agreement.state(last);
        let leads = self.agreement.believes[at];
        match &mut slot.program {
            Program::Node(node) => {
                if state.cluster.check_life(slot.raft_id, &node.me).is_err() {
                    self.end_by_itself(at);
                    return;
                }
                let (trace, out) = (&mut self.trace, &mut self.node_out);
                node.follow(now, &state.cluster, &state.map, leads, trace, out);
                self.perform_node(at);
            }
            Program::Starting {
                registered: Some(registered),
                ..
            } if *registered <= last as u64 => {
                let incarnation = *registered;
                self.begin_node(at, incarnation);
            }
            Program::Starting { .. } | Program::Down | Program::Gateway(_) => {}
        }
    }

    fn begin_node(&mut self, at: usize, incarnation: u64) {
        let seed = self.random.draw();
        let slot = &mut self.slots[at];
        let state = self.agreement.state(slot.applied);
        let news = News {
            raft_id: slot.raft_id,
            incarnation: Incarnation(incarnation),
            edition: 0,
            name: slot.process.to_string().parse().expect("a valid id"),
            address: String::new(),
            zone: String::new(),
            version: String::new(),
            shards: 0,
        };
        self.trace.add(Fact::Started {
            process: slot.process,
            incarnation,
        });
        let node = Node::new(
            nodes::Start {
                number: at as u8,
                news,
                namespaces: Arc::clone(&self.namespaces),
                mistake: self.options.mistake,
                seed,
            },
            &state.cluster,
            Arc::clone(&state.map),
            &mut self.trace,
        );
        slot.program = Program::Node(Box::new(node));
        let life = slot.life;
        for ticker in NODE_TICKERS {
            self.schedule(self.now, Event::Tick(at, life, ticker));
        }
    }

    // Clients and publishers.

    fn wish(&mut self, at: usize, wish: Wish) {
        let now = self.timestamp(at);
        let slot = &mut self.slots[at];
        if let Some(pause) = &mut slot.pause {
            pause.wishes.push_back(wish);
            return;
        }
        let Program::Gateway(gateway) = &mut slot.program else {
            return;
        };
        if let Wish::Publish(order, publish) = &wish
            && gateway.serves()
        {
            self.trace.add(Fact::Asked {
                order: *order,
                gateway: gateway.number,
                channel: workload::channel_of(&publish.key),
                probe: self.is_whole,
            });
        }
        gateway.wish(now, wish, &mut self.trace, &mut self.gateway_out);
        self.perform_gateway(at);
    }

    /// A gateway that takes clients.
    fn open_gateway(&mut self) -> Option<usize> {
        let serves = |at: &usize| match &self.slots[*at].program {
            Program::Gateway(gateway) => gateway.serves(),
            _ => false,
        };
        let all: Vec<usize> = (self.nodes()..self.slots.len()).filter(serves).collect();
        (!all.is_empty()).then(|| *self.random.pick(&all))
    }

    fn client(&mut self, number: usize) {
        let Some(place) = self.clients[number].place else {
            let Some(at) = self.open_gateway() else {
                let at = self.soon(50_000, 300_000);
                self.schedule(at, Event::Client(number));
                return;
            };
            self.connect(number, at);
            return;
        };
        if self.healing.is_some() {
            return;
        }
        let at = self.nodes() + usize::from(place.gateway);
        let Place {
            worker, connection, ..
        } = place;
        let mut next = self.soon(300_000, 6_000_000);
        match self.clients[number].draw(&mut self.random) {
            Move::Subscribe(channel) => {
                if let btree_map::Entry::Vacant(new) = self.clients[number].wants.entry(channel) {
                    new.insert(None);
                    let key = self.channels[usize::from(channel)].clone();
                    self.wish(at, Wish::Subscribe(worker, connection, key, None));
                }
            }
            Move::Unsubscribe(channel) => {
                self.clients[number].wants.remove(&channel);
                let key = self.channels[usize::from(channel)].clone();
                self.wish(at, Wish::Unsubscribe(worker, connection, key));
            }
            Move::Leave(away) => {
                self.forget_place(number);
                self.wish(at, Wish::Close(worker, connection));
                next = self.now + away;
            }
            Move::Stay => {}
        }
        self.schedule(next, Event::Client(number));
    }

    /// A client loses its connection, and perhaps the last thing on it.
    fn forget_place(&mut self, number: usize) {
        let lost = self.random.chance(200);
        let client = &mut self.clients[number];
        let Some(place) = client.place.take() else {
            return;
        };
        for (channel, cursor) in &mut client.wants {
            if let Some([latest, before]) = self.trace.cursors(place.connection, *channel) {
                *cursor = Some(if lost { before } else { latest });
            }
        }
    }

    fn connect(&mut self, number: usize, at: usize) {
        self.connections += 1;
        let connection = self.connections;
        let worker = self.random.below(gateway::WORKERS as u64) as u8;
        self.clients[number].place = Some(Place {
            gateway: (at - self.nodes()) as u8,
            worker,
            connection,
        });
        self.wish(at, Wish::Connect(worker, connection));
        for (channel, cursor) in self.clients[number].wants.clone() {
            let key = self.channels[usize::from(channel)].clone();
            let cursor = cursor.filter(|_| self.clients[number].resumes);
            self.wish(at, Wish::Subscribe(worker, connection, key, cursor));
        }
        let next = self.soon(300_000, 6_000_000);
        self.schedule(next, Event::Client(number));
    }

    fn publish(&mut self) {
        if self.healing.is_some() {
            return;
        }
        let next = self.soon(0, 2_000 * self.publish_every_ms);
        self.schedule(next, Event::Publish);
        let channel = workload::published_channel(&mut self.random);
        // Now and then many at once.
        let count = if self.random.chance(10) {
            self.random.between(5, 40)
        } else {
            1
        };
        let Some(at) = self.open_gateway() else {
            return;
        };
        for _ in 0..count {
            self.publish_to(channel, at);
        }
    }

    fn publish_to(&mut self, channel: Channel, at: usize) {
        self.orders += 1;
        let accepted_at = self.slots[at].clock.wall(self.now);
        let key = &self.channels[usize::from(channel)];
        let publish = workload::publish(key, self.orders, &self.event_name, accepted_at);
        self.wish(at, Wish::Publish(self.orders, publish));
    }

    // Faults.

    fn is_crashed(&self, at: usize) -> bool {
        let process = self.slots[at].process;
        self.open_faults()
            .any(|fault| matches!(fault, Fault::Crash { process: of, .. } if of == process))
    }

    fn open_faults(&self) -> impl Iterator<Item = Fault> {
        let windows = self.plan.windows.iter().zip(&self.open);
        windows
            .filter(|(_, open)| **open)
            .map(|(window, _)| window.fault)
    }

    fn fault(&mut self, window: usize, begins: bool) {
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
                    }
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
                } else if begins {
                    self.pause(at);
                } else {
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
    fn change_weather(&mut self) {
        let mut weather = Weather::default();
        let nodes = self.options.nodes;
        self.network.lines.fill_with(Default::default);
        self.network.peer_loss = 0;
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
                Fault::NoLeader => suspended = true,
                Fault::SecondLeader(node) => stubborn[usize::from(node)] = true,
                Fault::PeerCut(..)
                | Fault::Crash { .. }
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
                agreement.believes[node] = true;
            } else if before && !stubborn {
                agreement.believes[node] = agreement.leader == Some(node as u8);
            }
        }
    }

    fn stall(&mut self, at: usize, task: usize, stands: bool) {
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

    // What nobody tells.

    fn sample(&mut self) {
        let next = self.now + SAMPLE;
        self.schedule(next, Event::Sample);
        for gateway in 0..self.options.gateways {
            for channel in 0..CHANNELS {
                self.compare(gateway, channel);
            }
        }
        self.look_for_ghosts();
        self.measure_queues();
        if let Some(healing) = self.healing {
            self.see_whether_whole(healing);
        }
    }

    /// Whether a gateway wants a channel, and whether its owner knows.
    fn compare(&mut self, gateway: u8, channel: Channel) {
        let key = &self.channels[usize::from(channel)];
        let shard = self.shards[usize::from(channel)];
        let at = self.nodes() + usize::from(gateway);
        let Program::Gateway(program) = &self.slots[at].program else {
            return;
        };
        let wanted = program.wants(key);
        let knows = || {
            let me = program.me()?;
            let (owner, _) = self.agreement.last().map.owner(shard)?;
            let number: usize = owner.id.as_str()[1..].parse().ok()?;
            let Program::Node(node) = &self.slots[number].program else {
                return None;
            };
            if node.me != *owner {
                return None;
            }
            let state = node.describe(shard, key)?;
            let mut followers = state.iter().flat_map(|state| &state.followers);
            Some(followers.any(|(follower, _)| follower == me))
        };
        // An owner that cannot be asked disagrees with everyone who wants
        // something of it.
        let now = match knows() {
            Some(knows) => knows != wanted,
            None => wanted,
        };
        let nth = usize::from(gateway) * usize::from(CHANNELS) + usize::from(channel);
        if std::mem::replace(&mut self.differs[nth], now) != now {
            self.trace.add(if now {
                Fact::Differs {
                    gateway,
                    channel,
                    wanted,
                }
            } else {
                Fact::Agrees { gateway, channel }
            });
        }
    }

    fn look_for_ghosts(&mut self) {
        for at in 0..self.nodes() {
            let Program::Node(node) = &self.slots[at].program else {
                continue;
            };
            let lives = node.gateways(self.slots[at].clock.timestamp(self.now));
            for (channel, key) in (0..).zip(&self.channels) {
                let shard = self.shards[usize::from(channel)];
                let Some(Some(state)) = node.describe(shard, key) else {
                    continue;
                };
                for (follower, _) in state.followers {
                    let later = |life: &GatewayRef| {
                        life.id == follower.id && life.incarnation > follower.incarnation
                    };
                    if lives.iter().any(later) {
                        let gateway = follower.id.as_str()[1..].parse().unwrap_or(u8::MAX);
                        self.trace.add(Fact::Ghost {
                            node: at as u8,
                            gateway,
                            channel,
                        });
                    }
                }
            }
        }
    }

    fn measure_queues(&mut self) {
        for slot in &mut self.slots {
            let process = slot.process;
            let unread = slot.pause.iter().flat_map(|pause| &pause.unread);
            let unread = unread.map(VecDeque::len).max().unwrap_or(0);
            let mut queues = vec![("a subscription", unread, SUBSCRIPTION)];
            match &slot.program {
                Program::Node(node) => {
                    let own = node.queues();
                    queues.extend(own.map(|(queue, length)| (queue, length, nodes::MAILBOX)));
                }
                Program::Gateway(gateway) => {
                    let length = gateway.waiting();
                    queues.push(("the mailbox of a worker", length, super::worker::MAILBOX));
                }
                Program::Down | Program::Starting { .. } => {}
            }
            for (most, (queue, length, bound)) in slot.most.iter_mut().zip(queues) {
                // Not every new length is worth a fact.
                if length > bound || length > 2 * *most + 16 {
                    *most = length;
                    self.trace.add(Fact::Queued {
                        process,
                        queue,
                        length,
                        bound,
                    });
                }
            }
        }
    }

    fn see_whether_whole(&mut self, healing: Moment) {
        let runs = |slot: &Slot| match &slot.program {
            Program::Node(_) => true,
            Program::Gateway(gateway) => gateway.serves(),
            Program::Down | Program::Starting { .. } => false,
        };
        let connected = self.clients.iter().all(|client| client.place.is_some());
        if !self.is_whole && connected && self.slots.iter().all(runs) {
            self.is_whole = true;
            self.trace.add(Fact::Whole);
            self.schedule(self.now + HEALING, Event::Settle);
        } else if !self.is_whole && self.now.since(healing) > RUNNING {
            self.schedule(self.now, Event::Finish);
        }
    }

    fn settle(&mut self) {
        self.trace.add(Fact::Settled);
        for channel in 0..CHANNELS {
            if let Some(at) = self.open_gateway() {
                self.publish_to(channel, at);
            }
        }
        self.schedule(self.now + PROBING, Event::Finish);
    }
}

/// In the order of their numbers.
const SUBJECT_BY_NUMBER: [Subject; SUBJECTS] = [
    Subject::Requests,
    Subject::GatewayBeats,
    Subject::NodeBeats,
    Subject::Inbox,
    Subject::Links,
    Subject::Maps,
];
