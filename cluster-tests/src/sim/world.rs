//! The world: processes, the network between them, clients before them, and one
//! queue of events in virtual time. Single-threaded, and the same for the same
//! seed to the last bit.

mod agreeing;
mod clients;
mod judging;
mod leases;
mod messages;
mod processes;
mod samples;
mod timing;
mod ways;
mod weather;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use node::core::checkpoint::ShardCheckpoint;
use node::core::cluster::{Command, Founding};
use node::core::detection::Word;
use node::core::gateways::Silence;
use node::core::lease::Grant;
use proto::channel::ChannelKey;
use proto::id::{ClusterUuid, NodeRef};
use proto::namespace::Namespaces;
use proto::shard::{ShardId, Sharding};
use proto::time::Timestamp;

use super::Options;
use super::agreement::Agreement;
use super::clock::{Clock, Moment};
use super::faults::{Fault, Plan, Profile};
use super::gateway;
use super::gateway::{Gateway, Wish};
use super::mistakes::Mistake;
use super::network::{Network, SUBJECTS, Subject};
use super::node as nodes;
use super::node::Node;
use super::random::Random;
use super::trace::{Channel, Connection, Fact, Order, Process, Trace};
use super::workload;
use super::workload::{CHANNELS, Client};
use timing::Timing;
use ways::{Passage, Ways};

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
/// Shards at most.
const SHARDS_MAX: u16 = 16;

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
    Way(Passage),
    Beat(usize, u32, NodeRef, Word),
    /// What a node hears of gateways comes to one who believes to lead.
    Report(usize, u32, NodeRef, Silence),
    Renewal(usize, u32, NodeRef, u64),
    Round(usize, u32, u64),
    Grant(Grant),
    WayBroke(usize, usize, u32),
    Datagram {
        to: usize,
        life: u32,
        bytes: Bytes,
    },
    Start(usize),
    /// A process ends, in this life, and is started again.
    Die(usize, u32),
    /// The same, but it is there again at once.
    Blink(usize, u32),
    /// A process that stands still goes on, in this life.
    Wake(usize, u32),
    Stand(usize),
    Work(usize, u32, u8),
    Register(usize, u32),
    CatchUp(usize),
    Commit(Box<Proposal>),
    Election,
    StopBelieving(u8),
    Client(usize),
    Member(usize),
    Publish,
    Again(Order),
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
    /// A node says who is silent.
    Report,
    Workers,
    Gossip,
    Tell,
    Pairs,
    Membership,
    Mesh,
}

/// Once a node is registered.
const NODE_TICKERS: [Ticker; 8] = [
    Ticker::Report,
    Ticker::Pairs,
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
            Self::Report => 250,
            Self::NodeBeat | Self::Ingress => 500,
            Self::Workers | Self::Tell => 1_000,
            Self::Pairs => 50,
            Self::Gossip | Self::Mesh => 20,
            Self::Membership => 100,
        })
    }
}

#[derive(Debug)]
struct Proposal {
    by: usize,
    life: u32,
    commands: Vec<Command>,
    /// Who gets no lease until it is decided.
    withheld: BTreeSet<NodeRef>,
    /// A plan of a leader, in this term; it makes no other meanwhile.
    plan: Option<u64>,
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
    /// Until then it hears of nothing that is agreed.
    deaf_until: Moment,
    /// It stands still when it has sent its next beats to its standbys.
    stands_after_beat: bool,
    /// What it kept when it stopped by itself, and when that was.
    checkpoint: Option<(Timestamp, Vec<ShardCheckpoint>)>,
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
    passages: VecDeque<Passage>,
    wishes: VecDeque<Wish>,
    missed: Vec<Ticker>,
}

/// See the [module](self).
#[derive(Debug)]
pub struct World {
    options: Options,
    random: Random,
    /// Who enters and exits which room.
    of_rooms: Random,
    now: Moment,
    step: u64,
    scheduled: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    network: Network,
    agreement: Agreement,
    /// From node to node.
    ways: Ways,
    /// Nodes, then gateways.
    slots: Vec<Slot>,
    plan: Plan,
    /// Which windows of the plan are open.
    open: Vec<bool>,
    clients: Vec<Client>,
    connections: Connection,
    orders: Order,
    /// What publishers may ask again, with their keys: into which channel, and
    /// how often.
    keyed: BTreeMap<Order, (Channel, u8)>,
    /// Milliseconds between publishes, on average.
    publish_every_ms: u64,
    event_name: Arc<str>,
    channels: Vec<ChannelKey>,
    shards: Vec<ShardId>,
    namespaces: Arc<Namespaces>,
    founding: Founding,
    /// By gateway and channel: whether it and the owner say different things.
    differs: Vec<bool>,
    /// In so many of a thousand moves the next owner dies at once.
    moves_kill: u32,
    timing: Timing,
    /// Every so many shards one has no standby.
    bare_every: Option<u16>,
    subscription_bound: usize,
    /// By gateway: since when it lives its present life.
    lives_since: Vec<Moment>,
    healing: Option<Moment>,
    is_whole: bool,
    /// Every shard was where it should be, once.
    is_placed: bool,
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
        let profile = plan.profile;
        let sharding = Sharding {
            seed: random.draw(),
            count: *random.pick(&[8, 12, SHARDS_MAX]),
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
                deaf_until: Moment(0),
                stands_after_beat: false,
                checkpoint: None,
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
            ways: Ways::default(),
            open: vec![false; plan.windows.len()],
            plan,
            connections: 0,
            orders: 0,
            keyed: BTreeMap::new(),
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
            moves_kill: match profile {
                Profile::Crashes | Profile::Everything => *random.pick(&[0, 50, 300]),
                _ => 0,
            },
            timing: Timing::draw(&mut random, profile),
            bare_every: random.chance(500).then_some(2),
            subscription_bound: SUBSCRIPTION,
            lives_since: vec![Moment(0); usize::from(options.gateways)],
            healing: None,
            is_whole: false,
            is_placed: false,
            is_over: false,
            trace: Trace::default(),
            node_out: nodes::Outgoing::default(),
            gateway_out: gateway::Outgoing::default(),
            channels,
            clients,
            slots,
            of_rooms: Random::new(!seed),
            random,
        };
        world.trace.shards = world.shards.iter().map(|shard| shard.0).collect();
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
            let mistake = self.options.mistake;
            if !mistake.is_some_and(Mistake::spoils_rooms) {
                let at = Moment(self.of_rooms.between(500_000, 4_000_000));
                self.schedule(at, Event::Member(client));
            }
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
            Event::Way(passage) => self.passage(passage),
            Event::Beat(to, life, from, word) => self.beat(to, life, &from, word),
            Event::Report(to, life, from, silence) => self.reported(to, life, from, silence),
            Event::Renewal(to, life, from, number) => self.renewal(to, life, from, number),
            Event::Round(at, life, read_index) => self.round_ended(at, life, read_index),
            Event::Grant(grant) => self.grant(&grant),
            Event::WayBroke(from, to, generation) => self.way_broke(from, to, generation),
            Event::Datagram { to, life, bytes } => self.datagram(to, life, bytes),
            Event::Start(slot) => self.start(slot),
            Event::Die(slot, life) => {
                if self.slots[slot].life == life {
                    self.end_by_itself(slot);
                }
            }
            Event::Blink(slot, life) => self.blink(slot, life),
            Event::Wake(slot, life) => self.go_on(slot, life),
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
            Event::Member(client) => self.member(client),
            Event::Publish => self.publish(),
            Event::Again(first) => self.publish_again(first),
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
