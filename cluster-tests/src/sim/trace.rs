//! What happened in a world, as facts that invariants judge. Compact, without
//! texts: a run has tens of thousands, and nearly all runs are thrown away.

use std::collections::{HashMap, HashSet};
use std::fmt;

use proto::error::ErrorCode;
use proto::position::{Epoch, Gap, Offset, Position};

use super::clock::Moment;
use super::faults::Fault;

/// A process of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Process {
    /// A node, by number.
    Node(u8),
    /// A gateway, by number.
    Gateway(u8),
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(number) => write!(f, "n{number}"),
            Self::Gateway(number) => write!(f, "g{number}"),
        }
    }
}

/// A channel of the world, by number.
pub type Channel = u8;
/// A user, by number; there are fewer than 64.
pub type User = u8;
/// Users, a bit for each.
pub type Users = u64;
/// A connection: one for each time that a client connects.
pub type Connection = u32;
/// A publish, as its publisher asked for it. Its number is its payload.
pub type Order = u32;

/// What became of a publish, as far as its publisher was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is in the channel.
    Accepted(Position),
    /// It is not, or nobody knows.
    Failed(ErrorCode),
}

/// The fence of what nobody was told of before it was inherited. The first that
/// there is is higher.
pub const UNKNOWN: u64 = 0;

/// One thing that happened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fact {
    /// A process runs: a node is registered, a gateway has its map.
    Started {
        /// Which one.
        process: Process,
        /// Its incarnation.
        incarnation: u64,
    },
    /// A process has ended, by itself or not.
    Ended {
        /// Which one.
        process: Process,
    },
    /// A node begins to serve a shard, or ends to.
    Serves {
        /// Which node.
        node: u8,
        /// Which shard.
        shard: u16,
        /// Whether it begins.
        begins: bool,
    },
    /// A gateway that was declared gone goes on in another life.
    Reborn {
        /// Which one.
        gateway: u8,
        /// Its incarnation.
        incarnation: u64,
    },
    /// It is agreed that a life of a gateway is over.
    Gone {
        /// Which one.
        gateway: u8,
        /// Which life of it.
        incarnation: u64,
        /// Whether it had been there all the time, and nothing but the bus had been
        /// away.
        needlessly: bool,
    },
    /// An owner has put a publication into a channel.
    Published {
        /// Which node.
        node: u8,
        /// Under which fence.
        fence: u64,
        /// The channel.
        channel: Channel,
        /// Where it stands.
        position: Position,
        /// Which publish it was.
        order: Order,
    },
    /// It is agreed that a shard begins anew, if the entry applies.
    Afresh {
        /// Which shard.
        shard: u16,
        /// Under which fence.
        fence: u64,
    },
    /// It is agreed that a shard begins anew, though a standby that runs has
    /// all of it.
    Forsaken {
        /// Which shard.
        shard: u16,
        /// The standby.
        standby: u8,
    },
    /// Two nodes could act as the owner of one shard at this moment.
    TwoOwners {
        /// Which shard.
        shard: u16,
        /// The nodes.
        nodes: [u8; 2],
    },
    /// An owner has told a gateway where a channel stands.
    Told {
        /// Which node.
        node: u8,
        /// Under which fence.
        fence: u64,
        /// Where.
        position: Position,
    },
    /// A publisher asks a gateway.
    Asked {
        /// For this.
        order: Order,
        /// Which gateway.
        gateway: u8,
        /// Into which channel.
        channel: Channel,
        /// After the faults, to see whether it works again.
        probe: bool,
        /// Which order it is the repetition of, with the same idempotency key.
        repeats: Option<Order>,
    },
    /// A publisher was answered. One whose gateway has ended never is.
    Answered {
        /// On this.
        order: Order,
        /// How.
        answer: Answer,
    },
    /// A client has a connection.
    Connected {
        /// Its name.
        connection: Connection,
        /// To which gateway.
        gateway: u8,
    },
    /// A connection has ended.
    Closed {
        /// Which one.
        connection: Connection,
    },
    /// A client asks for a channel.
    Subscribed {
        /// On which connection.
        connection: Connection,
        /// For which one.
        channel: Channel,
        /// Where it stood when it was last here.
        cursor: Option<Position>,
    },
    /// It does not want it any more.
    Unsubscribed {
        /// On which connection.
        connection: Connection,
        /// Which one.
        channel: Channel,
    },
    /// A client was told that everything after this position comes.
    Attached {
        /// On which connection.
        connection: Connection,
        /// Of which channel.
        channel: Channel,
        /// After this.
        position: Position,
    },
    /// A client got a publication.
    Delivered {
        /// On which connection.
        connection: Connection,
        /// Of which channel.
        channel: Channel,
        /// Where it stands.
        position: Position,
        /// Which publish it was.
        order: Order,
    },
    /// A client was told of a gap.
    Gap {
        /// On which connection.
        connection: Connection,
        /// In which channel.
        channel: Channel,
        /// Which one.
        gap: Gap,
    },
    /// A client wants to be a member of a channel.
    Enters {
        /// On which connection.
        connection: Connection,
        /// Of which one.
        channel: Channel,
        /// As whom.
        user: User,
    },
    /// It wants to be one no longer.
    Exits {
        /// On which connection.
        connection: Connection,
        /// Of which one.
        channel: Channel,
    },
    /// A client was told that it is a member, and who else is.
    Entered {
        /// On which connection.
        connection: Connection,
        /// Of which channel.
        channel: Channel,
        /// Who is there.
        users: Users,
    },
    /// A member was told that a user has come.
    Came {
        /// On which connection.
        connection: Connection,
        /// Into which channel.
        channel: Channel,
        /// Who.
        user: User,
    },
    /// A member was told that a user has gone.
    Went {
        /// On which connection.
        connection: Connection,
        /// From which channel.
        channel: Channel,
        /// Who.
        user: User,
    },
    /// A gateway wants a channel and its owner does not know that, or the
    /// other way round.
    Differs {
        /// Which gateway.
        gateway: u8,
        /// Which channel.
        channel: Channel,
        /// Whether the gateway wants it.
        wanted: bool,
    },
    /// Both say the same again, or one of them has gone.
    Agrees {
        /// Which gateway.
        gateway: u8,
        /// Which channel.
        channel: Channel,
    },
    /// An owner that knows of a later life of a gateway keeps the interest of
    /// an earlier one.
    Ghost {
        /// Which node.
        node: u8,
        /// Which gateway.
        gateway: u8,
        /// In which channel.
        channel: Channel,
    },
    /// A queue was never so long.
    Queued {
        /// Whose.
        process: Process,
        /// Which one.
        queue: &'static str,
        /// How much waits.
        length: usize,
        /// How much may.
        bound: usize,
    },
    /// A fault begins.
    Begins(Fault),
    /// It ends.
    Ends(Fault),
    /// No fault is left.
    Healing,
    /// And every process runs. From here on all promises of healing count.
    Whole,
    /// So many shards are not where they should be, nor were all of them at any time
    /// since every process runs.
    Unsettled(usize),
    /// Everything must have healed. Then come the probes.
    Settled,
    /// The last one.
    End,
}

/// A fact, and when.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    /// When.
    pub at: Moment,
    /// In which step of the world.
    pub step: u64,
    /// What.
    pub fact: Fact,
}

/// Everything that happened, in order.
#[derive(Debug, Default)]
pub struct Trace {
    /// The entries.
    pub entries: Vec<Entry>,
    /// Of each channel.
    pub shards: Vec<u16>,
    /// What clients remember: where they stand, and where they stood before.
    cursors: HashMap<(Connection, Channel), [Position; 2]>,
    /// How far the publications of each epoch have come.
    heads: HashMap<Epoch, (Offset, u64)>,
    /// What an owner told nobody, and the next one has: under which fence.
    inherited: HashSet<Position>,
    now: Moment,
    step: u64,
}

impl Trace {
    /// What is added from now on happens now.
    pub fn set_now(&mut self, now: Moment, step: u64) {
        (self.now, self.step) = (now, step);
    }

    /// Where the client of a connection stands in a channel, and where it stood
    /// before: what is written to a client may not reach it any more.
    pub fn cursors(&self, connection: Connection, channel: Channel) -> Option<[Position; 2]> {
        self.cursors.get(&(connection, channel)).copied()
    }

    /// The last publication of an epoch that anybody was told of, and under which
    /// fence.
    pub fn head(&self, epoch: Epoch) -> (Offset, u64) {
        let known = self.heads.get(&epoch);
        known.copied().unwrap_or((Offset::ZERO, UNKNOWN))
    }

    /// To which channel an epoch belongs, if anybody was told of it.
    pub fn channel_of(&self, epoch: Epoch) -> Option<Channel> {
        self.facts().find_map(|(_, fact)| match fact {
            Fact::Published {
                channel, position, ..
            } if position.epoch == epoch => Some(*channel),
            _ => None,
        })
    }

    /// A new owner has something that the one before it told nobody yet. That
    /// one may still do so, while its lease lasts.
    pub fn inherit(&mut self, fact: Fact) {
        if let Fact::Published { position, .. } = &fact {
            self.inherited.insert(*position);
        }
        self.add(fact);
    }

    /// Whether it is known already that this is there.
    pub fn is_inherited(&self, position: &Position) -> bool {
        self.inherited.contains(position)
    }

    fn remember(&mut self, fact: &Fact) {
        if let Fact::Published {
            position, fence, ..
        } = fact
        {
            let head = (position.offset, *fence);
            self.heads.insert(position.epoch, head);
        }
        if let Fact::Told {
            position, fence, ..
        } = fact
            && let Some(head) = self.heads.get_mut(&position.epoch)
        {
            head.1 = head.1.max(*fence);
        }
        let (connection, channel, position) = match fact {
            Fact::Attached {
                connection,
                channel,
                position,
            }
            | Fact::Delivered {
                connection,
                channel,
                position,
                ..
            } => (*connection, *channel, *position),
            Fact::Gap {
                connection,
                channel,
                gap,
            } => (*connection, *channel, gap.latest),
            _ => return,
        };
        let cursors = self.cursors.entry((connection, channel));
        let cursors = cursors.or_insert([position; 2]);
        *cursors = [position, cursors[0]];
    }

    /// Adds a fact.
    pub fn add(&mut self, fact: Fact) {
        self.remember(&fact);
        self.entries.push(Entry {
            at: self.now,
            step: self.step,
            fact,
        });
    }

    /// The facts with their places.
    pub fn facts(&self) -> impl Iterator<Item = (usize, &Fact)> {
        let facts = self.entries.iter().map(|entry| &entry.fact);
        facts.enumerate()
    }

    /// A trace that somebody made up: a fact every millisecond.
    pub fn of(facts: impl IntoIterator<Item = Fact>) -> Self {
        let mut trace = Self::default();
        for (step, fact) in (1..).zip(facts) {
            trace.set_now(Moment::ms(step), step);
            trace.add(fact);
        }
        trace
    }

    /// The same with times, in milliseconds.
    pub fn timed(facts: impl IntoIterator<Item = (u64, Fact)>) -> Self {
        let mut trace = Self::default();
        for (step, (at, fact)) in (1..).zip(facts) {
            trace.set_now(Moment::ms(at), step);
            trace.add(fact);
        }
        trace
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (secs, micros) = (self.at.0 / 1_000_000, self.at.0 % 1_000_000);
        write!(f, "{secs:>3}.{micros:06} #{:<7} {}", self.step, self.fact)
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started {
                process,
                incarnation,
            } => write!(f, "{process} runs as incarnation {incarnation}"),
            Self::Ended { process } => write!(f, "{process} has ended"),
            Self::Serves {
                node,
                shard,
                begins,
            } => {
                let what = if *begins {
                    "serves"
                } else {
                    "serves no longer"
                };
                write!(f, "n{node} {what} shard {shard}")
            }
            Self::Reborn {
                gateway,
                incarnation,
            } => write!(f, "g{gateway} goes on as incarnation {incarnation}"),
            Self::Gone {
                gateway,
                incarnation,
                needlessly,
            } => {
                let why = if *needlessly { " for nothing" } else { "" };
                write!(
                    f,
                    "g{gateway}, incarnation {incarnation}, is declared gone{why}"
                )
            }
            Self::Published {
                node,
                fence,
                channel,
                position,
                order,
            } => write!(
                f,
                "n{node} puts order {order} into channel {channel} at {position}, fence {fence}"
            ),
            Self::TwoOwners { shard, nodes } => {
                write!(
                    f,
                    "n{} and n{} both act for shard {shard}",
                    nodes[0], nodes[1]
                )
            }
            Self::Told {
                node,
                fence,
                position,
            } => write!(
                f,
                "n{node} says that it stands at {position}, fence {fence}"
            ),
            Self::Afresh { shard, fence } => {
                write!(f, "shard {shard} begins anew under fence {fence}")
            }
            Self::Forsaken { shard, standby } => {
                write!(f, "shard {shard} begins anew without n{standby}")
            }
            Self::Asked {
                order,
                gateway,
                channel,
                probe,
                repeats,
            } => {
                let what = if *probe { "probe" } else { "order" };
                write!(f, "g{gateway} takes {what} {order} for channel {channel}")?;
                match repeats {
                    Some(first) => write!(f, ", order {first} again"),
                    None => Ok(()),
                }
            }
            Self::Answered { order, answer } => match answer {
                Answer::Accepted(position) => write!(f, "order {order} is accepted at {position}"),
                Answer::Failed(code) => write!(f, "order {order} fails: {code}"),
            },
            Self::Connected {
                connection,
                gateway,
            } => write!(f, "connection {connection} begins at g{gateway}"),
            Self::Closed { connection } => write!(f, "connection {connection} ends"),
            Self::Subscribed {
                connection,
                channel,
                cursor: None,
            } => write!(f, "connection {connection} wants channel {channel}"),
            Self::Subscribed {
                connection,
                channel,
                cursor: Some(cursor),
            } => write!(
                f,
                "connection {connection} wants channel {channel} after {cursor}"
            ),
            Self::Unsubscribed {
                connection,
                channel,
            } => write!(f, "connection {connection} wants channel {channel} no more"),
            Self::Attached {
                connection,
                channel,
                position,
            } => write!(
                f,
                "connection {connection} has channel {channel} from {position}"
            ),
            Self::Delivered {
                connection,
                channel,
                position,
                order,
            } => write!(
                f,
                "connection {connection} gets order {order} of channel {channel} at {position}"
            ),
            Self::Gap {
                connection,
                channel,
                gap,
            } => write!(
                f,
                "connection {connection} is told of a gap in channel {channel}: {}, earliest {}, on after {}",
                gap.reason.as_str(),
                gap.earliest,
                gap.latest
            ),
            Self::Enters {
                connection,
                channel,
                user,
            } => write!(
                f,
                "connection {connection} of user {user} enters channel {channel}"
            ),
            Self::Exits {
                connection,
                channel,
            } => write!(f, "connection {connection} exits channel {channel}"),
            Self::Entered {
                connection,
                channel,
                users,
            } => write!(
                f,
                "connection {connection} is in channel {channel} with users {users:#b}"
            ),
            Self::Came {
                connection,
                channel,
                user,
            } => write!(
                f,
                "connection {connection} is told that user {user} has come into channel {channel}"
            ),
            Self::Went {
                connection,
                channel,
                user,
            } => write!(
                f,
                "connection {connection} is told that user {user} has gone from channel {channel}"
            ),
            Self::Differs {
                gateway,
                channel,
                wanted,
            } => {
                let what = if *wanted { "wants" } else { "does not want" };
                write!(
                    f,
                    "g{gateway} {what} channel {channel}, and its owner knows otherwise"
                )
            }
            Self::Agrees { gateway, channel } => {
                write!(f, "g{gateway} and the owner of channel {channel} agree")
            }
            Self::Ghost {
                node,
                gateway,
                channel,
            } => write!(
                f,
                "n{node} keeps interest of an earlier life of g{gateway} in channel {channel}"
            ),
            Self::Queued {
                process,
                queue,
                length,
                bound,
            } => write!(f, "{process}: {length} in {queue}, of {bound} at most"),
            Self::Begins(fault) => write!(f, "--- {fault}"),
            Self::Ends(fault) => write!(f, "--- over: {fault}"),
            Self::Healing => f.write_str("=== no fault is left"),
            Self::Whole => f.write_str("=== every process runs"),
            Self::Unsettled(shards) => {
                write!(f, "{shards} shards are not where they should be")
            }
            Self::Settled => f.write_str("=== everything must have healed"),
            Self::End => f.write_str("=== the end"),
        }
    }
}
