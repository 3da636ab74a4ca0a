//! What goes wrong, and when: drawn from the seed before the world begins.

use std::fmt;

use super::clock::Moment;
use super::random::Random;
use super::trace::Process;

/// Where things may go wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// The bus loses so many in a thousand messages.
    Loss(u32),
    /// It delivers so many in a thousand twice.
    Duplicates(u32),
    /// So many in a thousand are overtaken, late by up to so many milliseconds.
    Reordering(u32, u64),
    /// Everything is late by up to so many milliseconds, in order.
    Delay(u64),
    /// So many in a thousand come again, more than half a minute later.
    Stragglers(u32),
    /// Subscriptions hold this many messages at most; the newest is dropped.
    ShortQueues(usize),
    /// The bus restarts: what is on its way is gone.
    BusAway,
    /// The bus does not hear a process (out), or is not heard by it (in).
    BusCut {
        /// Which process.
        process: Process,
        /// What it sends.
        out: bool,
        /// What comes to it.
        into: bool,
    },
    /// So many in a thousand are lost between a process and the bus.
    LineLoss(Process, u32),
    /// Every leave that a gateway sends is lost, and nothing else is.
    LeavesLost(u8),
    /// So many in a thousand datagrams between nodes are lost.
    PeerLoss(u32),
    /// Nothing goes from one node to another.
    PeerCut(u8, u8),
    /// A process is killed, and started again at the end of this.
    Crash {
        /// Which one.
        process: Process,
        /// Whether its disk survives.
        keeps_disk: bool,
        /// By how many milliseconds its wall clock has been set back then.
        clock_back_ms: u64,
    },
    /// A node is to give away all that it has, and is restarted at the end of
    /// this, done or not.
    Drain(u8),
    /// A node stops by itself, with what it has, and is started again at the end
    /// of this.
    Stop(u8),
    /// A process stands still, and then finds everything that has come.
    Pause {
        /// Which one.
        process: Process,
        /// It has decided things just before, and performs them afterwards.
        decided: bool,
    },
    /// One task of a node stands still: its shard workers from 0, or `EGRESS`.
    Stall(u8, usize),
    /// A node applies nothing of what is agreed.
    Lag(u8),
    /// A node applies nothing of what is agreed, and its datagrams are lost; what
    /// it says to its standbys is not.
    Muffled(u8),
    /// A node hears no datagrams of others, nor that they want leases; what is
    /// agreed it hears.
    Deaf(u8),
    /// Nobody leads.
    NoLeader,
    /// A node believes that it leads, whoever else does.
    SecondLeader(u8),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loss(permille) => write!(f, "the bus loses {permille}/1000"),
            Self::Duplicates(permille) => write!(f, "the bus doubles {permille}/1000"),
            Self::Reordering(permille, ms) => {
                write!(f, "the bus reorders {permille}/1000 by up to {ms} ms")
            }
            Self::Delay(ms) => write!(f, "the bus delays by up to {ms} ms"),
            Self::Stragglers(permille) => write!(f, "{permille}/1000 come again much later"),
            Self::ShortQueues(bound) => write!(f, "subscriptions hold {bound}"),
            Self::BusAway => f.write_str("the bus is away"),
            Self::BusCut { process, out, into } => {
                let what = match (out, into) {
                    (true, false) => "out",
                    (false, true) => "in",
                    _ => "both ways",
                };
                write!(f, "{process} is cut off from the bus, {what}")
            }
            Self::LineLoss(process, permille) => {
                write!(f, "{permille}/1000 are lost between {process} and the bus")
            }
            Self::LeavesLost(gateway) => write!(f, "the leaves of g{gateway} are lost"),
            Self::PeerLoss(permille) => write!(f, "nodes lose {permille}/1000 between them"),
            Self::PeerCut(from, to) => write!(f, "n{to} does not hear n{from}"),
            Self::Crash {
                process,
                keeps_disk,
                clock_back_ms,
            } => {
                let disk = if *keeps_disk {
                    ""
                } else {
                    " and loses its disk"
                };
                write!(
                    f,
                    "{process} is killed{disk}, clock back by {clock_back_ms} ms"
                )
            }
            Self::Drain(node) => write!(f, "n{node} is drained, and then restarted"),
            Self::Stop(node) => write!(f, "n{node} stops, and keeps what it has"),
            Self::Pause { process, decided } => {
                let when = if *decided { ", having decided" } else { "" };
                write!(f, "{process} stands still{when}")
            }
            Self::Stall(node, task) => write!(f, "task {task} of n{node} stands still"),
            Self::Lag(node) => write!(f, "n{node} applies nothing"),
            Self::Deaf(node) => write!(f, "n{node} does not hear the others"),
            Self::Muffled(node) => write!(f, "n{node} is heard by its standbys alone"),
            Self::NoLeader => f.write_str("nobody leads"),
            Self::SecondLeader(node) => write!(f, "n{node} believes that it leads"),
        }
    }
}

/// A fault, and from when to when.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// It begins then.
    pub from: Moment,
    /// It ends then.
    pub to: Moment,
    /// What it is.
    pub fault: Fault,
}

/// Which kinds of fault a seed has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// None.
    Calm,
    /// The bus loses, doubles, reorders and delays.
    Lossy,
    /// The bus restarts.
    Restarts,
    /// Processes are killed.
    Crashes,
    /// Processes are cut off.
    Partitions,
    /// Processes stand still.
    Pauses,
    /// Interest is torn on purpose.
    Torn,
    /// All of these.
    Everything,
}

/// The profiles of seeds, each as often as it stands here.
const PROFILES: [Profile; 12] = [
    Profile::Calm,
    Profile::Lossy,
    Profile::Lossy,
    Profile::Restarts,
    Profile::Crashes,
    Profile::Crashes,
    Profile::Partitions,
    Profile::Pauses,
    Profile::Torn,
    Profile::Everything,
    Profile::Everything,
    Profile::Everything,
];

/// What goes wrong in one world.
#[derive(Debug)]
pub struct Plan {
    /// Which kinds.
    pub profile: Profile,
    /// In no order.
    pub windows: Vec<Window>,
}

/// When the first fault begins at the earliest: the cluster is formed by then.
const FIRST: Moment = Moment::ms(3_000);
/// A node that comes back without its disk waits until gossip has given up its
/// earlier self. That is no healing of the mesh, so it happens early enough.
const DISK_LOST_BEFORE_END_MS: u64 = 14_000;

/// Draws faults.
struct Drawing<'a> {
    random: &'a mut Random,
    until: Moment,
    nodes: u8,
    gateways: u8,
    windows: Vec<Window>,
}

impl Plan {
    /// Draws a plan for a world whose faults end at `until`.
    pub fn draw(random: &mut Random, until: Moment, nodes: u8, gateways: u8) -> Self {
        let profile = *random.pick(&PROFILES);
        let mut drawing = Drawing {
            random,
            until,
            nodes,
            gateways,
            windows: Vec::new(),
        };
        match profile {
            Profile::Calm => {}
            Profile::Lossy => {
                drawing.several(4, 14, Drawing::of_the_bus);
                drawing.several(0, 1, Drawing::last_moments);
            }
            Profile::Restarts => {
                drawing.several(2, 6, Drawing::restart);
                drawing.several(0, 3, Drawing::of_the_bus);
            }
            Profile::Crashes => {
                drawing.several(2, 7, Drawing::crash);
                drawing.several(0, 3, Drawing::of_agreement);
            }
            Profile::Partitions => {
                drawing.several(2, 8, Drawing::partition);
                drawing.several(0, 3, Drawing::of_agreement);
            }
            Profile::Pauses => {
                drawing.several(3, 10, Drawing::pause);
                drawing.several(0, 2, Drawing::of_agreement);
            }
            Profile::Torn => {
                drawing.several(1, 3, Drawing::tear);
                drawing.several(0, 1, Drawing::last_moments);
                drawing.several(0, 3, Drawing::of_the_bus);
            }
            Profile::Everything => {
                drawing.several(1, 6, Drawing::of_the_bus);
                drawing.several(0, 2, Drawing::restart);
                drawing.several(0, 4, Drawing::crash);
                drawing.several(0, 4, Drawing::partition);
                drawing.several(0, 4, Drawing::pause);
                drawing.several(0, 3, Drawing::of_agreement);
                drawing.several(0, 1, Drawing::tear);
                drawing.several(0, 1, Drawing::last_moments);
            }
        }
        Self {
            profile,
            windows: drawing.windows,
        }
    }
}

impl Drawing<'_> {
    fn several(&mut self, from: u64, to: u64, draw: fn(&mut Self)) {
        for _ in 0..self.random.between(from, to + 1) {
            draw(self);
        }
    }

    /// A fault of `from..to` milliseconds, somewhere.
    fn window(&mut self, from: u64, to: u64, fault: Fault) {
        let length = self.random.between(from, to) * 1_000;
        let latest = self.until.0.saturating_sub(length).max(FIRST.0 + 1);
        let begin = self.random.between(FIRST.0, latest);
        self.windows.push(Window {
            from: Moment(begin),
            to: Moment((begin + length).min(self.until.0)),
            fault,
        });
    }

    fn node(&mut self) -> u8 {
        self.random.below(u64::from(self.nodes)) as u8
    }

    fn gateway(&mut self) -> u8 {
        self.random.below(u64::from(self.gateways)) as u8
    }

    fn process(&mut self) -> Process {
        if self.random.chance(500) {
            Process::Node(self.node())
        } else {
            Process::Gateway(self.gateway())
        }
    }

    fn of_the_bus(&mut self) {
        let strength = *self.random.pick(&[5, 20, 50, 100, 300]);
        match self.random.below(8) {
            0 => self.window(2_000, 20_000, Fault::Loss(strength)),
            // A burst: everything, for a moment.
            1 => self.window(20, 300, Fault::Loss(1_000)),
            2 => self.window(2_000, 20_000, Fault::Duplicates(strength)),
            3 => {
                let ms = *self.random.pick(&[5, 50, 500, 4_000, 8_000]);
                self.window(2_000, 20_000, Fault::Reordering(strength, ms));
            }
            4 => {
                let ms = *self.random.pick(&[10, 200, 2_000]);
                self.window(2_000, 20_000, Fault::Delay(ms));
            }
            5 => self.window(3_000, 15_000, Fault::Stragglers(strength)),
            6 => {
                let bound = self.random.between(1, 64) as usize;
                self.window(5_000, 30_000, Fault::ShortQueues(bound));
            }
            _ => {
                let process = self.process();
                self.window(1_000, 15_000, Fault::LineLoss(process, strength));
            }
        }
    }

    /// Much is lost of the last that is published: nothing comes after it that
    /// would tell.
    fn last_moments(&mut self) {
        let length = self.random.between(100, 2_000) * 1_000;
        self.windows.push(Window {
            from: Moment(self.until.0 - length),
            to: self.until,
            fault: Fault::Loss(*self.random.pick(&[100, 300, 500])),
        });
    }

    fn restart(&mut self) {
        self.window(50, 4_000, Fault::BusAway);
    }

    fn crash(&mut self) {
        if self.random.chance(200) {
            let node = self.node();
            return self.window(500, 8_000, Fault::Drain(node));
        }
        if self.random.chance(200) {
            let node = self.node();
            return self.window(20, 3_000, Fault::Stop(node));
        }
        let process = self.process();
        let keeps_disk = matches!(process, Process::Gateway(_)) || self.random.chance(750);
        let clock_back_ms = match self.random.chance(300) {
            true => self.random.below(120_000),
            false => 0,
        };
        let fault = Fault::Crash {
            process,
            keeps_disk,
            clock_back_ms,
        };
        let until = self.until;
        if !keeps_disk {
            self.until = Moment(until.0 - DISK_LOST_BEFORE_END_MS * 1_000);
        }
        self.window(20, 6_000, fault);
        self.until = until;
    }

    fn partition(&mut self) {
        if self.random.chance(600) {
            let process = self.process();
            let (out, into) = *self
                .random
                .pick(&[(true, true), (true, false), (false, true)]);
            self.window(100, 12_000, Fault::BusCut { process, out, into });
        } else if self.random.chance(700) {
            let (from, to) = (self.node(), self.node());
            self.window(100, 12_000, Fault::PeerCut(from, to));
            // Then both give it up.
            if self.random.chance(300)
                && let Some(window) = self.windows.last_mut()
            {
                let fault = Fault::PeerCut(to, from);
                let from = Moment((window.from.0 + 3_000_000).min(window.to.0));
                let window = Window {
                    from,
                    fault,
                    ..*window
                };
                self.windows.push(window);
            }
        } else {
            let permille = *self.random.pick(&[50, 300, 1_000]);
            self.window(500, 12_000, Fault::PeerLoss(permille));
        }
    }

    fn pause(&mut self) {
        if self.random.chance(300) {
            let (node, task) = (self.node(), self.random.index(super::node::TASKS));
            self.window(20, 3_000, Fault::Stall(node, task));
            return;
        }
        let process = self.process();
        let decided = self.random.chance(400);
        // Some end just when others have taken over, some only after every lease.
        let lengths = [
            (10, 100),
            (10, 1_000),
            (700, 1_300),
            (10, 8_000),
            (3_500, 7_000),
        ];
        let (shortest, longest) = *self.random.pick(&lengths);
        self.window(shortest, longest, Fault::Pause { process, decided });
    }

    fn of_agreement(&mut self) {
        if self.random.chance(500) {
            let node = self.node();
            // It may have been the leader, and not know better.
            let believes = self.random.chance(700);
            let shortest = if believes { 4_500 } else { 700 };
            self.window(shortest, 8_000, Fault::Muffled(node));
            if believes && let Some(window) = self.windows.last().cloned() {
                let fault = Fault::SecondLeader(node);
                self.windows.push(Window { fault, ..window });
            }
            return;
        }
        let node = self.node();
        match self.random.below(4) {
            0 => self.window(200, 8_000, Fault::Lag(node)),
            1 => self.window(200, 5_000, Fault::NoLeader),
            2 => self.window(700, 8_000, Fault::Deaf(node)),
            _ => self.window(500, 10_000, Fault::SecondLeader(node)),
        }
    }

    fn tear(&mut self) {
        if self.random.chance(700) {
            // Longer than a gateway goes on saying that it has left.
            let gateway = self.gateway();
            self.window(37_000, 43_000, Fault::LeavesLost(gateway));
        } else {
            self.window(2_000, 8_000, Fault::Stragglers(200));
        }
    }
}
