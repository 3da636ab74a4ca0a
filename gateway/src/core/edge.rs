//! What a gateway has once: who owns what, what it has asked of whom, and how
//! far it has come in every channel that any of its clients follows.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

use proto::channel::ChannelKey;
use proto::error::ErrorCode;
use proto::id::{ClusterUuid, ConnectionId, GatewayRef, Incarnation, NodeId, NodeRef};
use proto::inspection;
use proto::inspection::Question;
use proto::message::{
    Fanout, GatewayBeat, GatewayCounts, InterestDigest, Message, Request, Told, What,
};
use proto::namespace::Namespaces;
use proto::position::Position;
use proto::presence::Member;
use proto::recent::Recent;
use proto::shard::{Fence, MapUpdate, ShardId, Sharding};
use proto::time::{Timers, Timestamp};

use super::attachment::{Attachment, FollowId, Place, Step};
use super::uplink::{Answer, Order, Ticket, Uplink};
use super::workers::WorkerId;

mod asking;
mod beats;
mod following;
mod links;
mod living;
mod nodes;
mod owners;
mod presence;
mod publishing;
mod querying;
mod restating;

pub use asking::PATIENCE as ASK_PATIENCE;
use nodes::Nodes;
use restating::Restating;

/// How long a channel without followers stays joined: a page that is loaded
/// anew leaves and comes back.
const LINGER: Duration = Duration::from_secs(5);
/// After how long without an answer a join is sent again.
const RETRY: Duration = Duration::from_secs(1);
/// After how long a node is asked again that has not heard yet that a shard is
/// its own.
const SOON: Duration = Duration::from_millis(100);
/// After how long without an answer a newer map is asked for again.
const MAP_RETRY: Duration = Duration::from_secs(1);
/// How often nodes that have other namespaces than we are asked for theirs.
const NAMESPACES_RETRY: Duration = Duration::from_secs(10);
/// How long what was delivered is kept for clients that come back: as long as
/// those of a gateway that has died take to come to another one.
const WINDOW_AGE: Duration = Duration::from_secs(30);
/// Bytes of all that is kept so; then it reaches back less far.
const WINDOW_BYTES_MAX: usize = 64 * 1_024 * 1_024;
/// Channels that are asked about in one tick when a link has lost something for
/// good:
/// the owner of 100,000 channels is not asked about all of them at once.
const REFRESH_PER_TICK: usize = 512;

/// What the edge is told.
#[derive(Debug)]
pub enum Input {
    /// Someone publishes.
    Publish {
        /// Whom to answer.
        ticket: Ticket,
        /// What.
        order: Order,
    },
    /// A worker has its first subscriber of a channel.
    Follow {
        /// Which worker.
        worker: WorkerId,
        /// Names this following.
        follow: FollowId,
        /// The channel.
        key: ChannelKey,
        /// They have come back: the lowest of their cursors.
        cursor: Option<Position>,
    },
    /// Clients have come back to a channel that their worker follows.
    Resume {
        /// Which worker.
        worker: WorkerId,
        /// The channel.
        key: ChannelKey,
        /// The lowest of their cursors.
        cursor: Position,
    },
    /// A worker has lost its last subscriber of a channel.
    Unfollow {
        /// Which worker.
        worker: WorkerId,
        /// The channel.
        key: ChannelKey,
    },
    /// A client is a member of a channel that its worker follows.
    Enter {
        /// Where it is.
        place: Place,
        /// The channel.
        key: ChannelKey,
        /// Who it is.
        member: Member,
        /// Users that may be present, if that is less than elsewhere.
        users_max: Option<u32>,
        /// It has come back: where it stood.
        cursor: Option<Position>,
    },
    /// A client is to be told who is in a channel, without being a member.
    Watch {
        /// Where it is.
        place: Place,
        /// The channel.
        key: ChannelKey,
        /// Which one.
        connection: ConnectionId,
    },
    /// A client is a member of a channel no longer.
    Exit {
        /// The channel.
        key: ChannelKey,
        /// Which one.
        connection: ConnectionId,
        /// It has gone without a word, and may take so long to come back.
        grace: Option<Duration>,
    },
    /// A worker has so many subscribers of a channel.
    Count {
        /// Which worker.
        worker: WorkerId,
        /// The channel.
        key: ChannelKey,
        /// How many.
        count: u32,
    },
    /// A worker has spread publications over its connections.
    Spread {
        /// Of which shard they were.
        shard: ShardId,
        /// Under which fence they came.
        fence: Fence,
        /// What became of them.
        fanout: Fanout,
    },
    /// A backend asks the owner of a shard.
    Query {
        /// Whom to tell.
        ticket: Ticket,
        /// Which shard; `None`: that of the channel which is asked about.
        shard: Option<ShardId>,
        /// What is asked.
        what: What,
    },
    /// A person looks inside.
    Ask {
        /// Whom to tell.
        ticket: Ticket,
        /// What is asked.
        question: Question,
    },
    /// A message from the bus.
    Message(Message),
    /// Time has passed; comes every 20 ms or so.
    Tick,
}

/// What is to be done, in this order.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Ask a node.
    Request {
        /// Which one.
        node: NodeId,
        /// For what.
        request: Request,
    },
    /// Tell a publisher what became of it.
    Answer(Answer),
    /// Tell a backend what an owner has answered.
    Queried {
        /// Whom.
        ticket: Ticket,
        /// The answer.
        result: Result<Told, ErrorCode>,
    },
    /// Tell whoever asked.
    Told {
        /// Whom.
        ticket: Ticket,
        /// The answer.
        answer: inspection::Answer,
    },
    /// Tell all nodes that this gateway is there; the number of connections
    /// is the shell's to fill in.
    Beat(GatewayBeat),
    /// Tell all nodes what has become of what they sent.
    Counts(GatewayCounts),
    /// Tell workers what happened in a channel.
    Step {
        /// The channel.
        key: ChannelKey,
        /// What happened.
        step: Step,
    },
    /// Count: a link has lost this many entries. They are asked for again.
    LinkGap {
        /// Whose link.
        node: NodeId,
        /// How many.
        missed: u64,
    },
    /// Count: so many of them have come again.
    LinkRepaired {
        /// How many.
        entries: u64,
    },
    /// Count and log: so many of them will not come again. Channels of that
    /// node are asked for by position.
    LinkFallback {
        /// Whose link.
        node: NodeId,
        /// How many.
        lost: u64,
    },
    /// Log: neither batch nor beat has come from a node for a while, or one has
    /// come again after that.
    Silence {
        /// Which node.
        node: NodeId,
        /// Whether it is silent now.
        silent: bool,
    },
    /// Count: a beat or map of another cluster, or of one with other shards,
    /// came by our bus and was ignored.
    Stranger {
        /// From whom, if that is known.
        from: Option<NodeId>,
        /// The cluster that it names.
        cluster: ClusterUuid,
        /// Log it, too; at most once per 10 s.
        log: bool,
    },
    /// Count and log: bytes that made no sense.
    Malformed,
    /// Log and count: this gateway was declared gone, and lives on under another
    /// incarnation. What it has asked for before, and is not sent yet, goes nowhere.
    Reborn {
        /// The new one.
        incarnation: Incarnation,
    },
    /// End: another process has this gateway's id and a higher incarnation.
    Superseded {
        /// The other one's.
        newer: Incarnation,
    },
}

/// See the [module](self).
#[derive(Debug)]
pub struct Edge {
    me: GatewayRef,
    cluster: ClusterUuid,
    sharding: Sharding,
    map_version: u64,
    map_asked_at: Option<Timestamp>,
    namespaces: Namespaces,
    /// [`Namespaces::digest`] of them.
    namespaces_digest: u64,
    shards: Vec<Shard>,
    /// Shards whose uplink waits for something.
    busy: BTreeSet<ShardId>,
    nodes: Nodes,
    /// One counter for all interest of this incarnation.
    version: u64,
    joins: HashMap<u64, Joining>,
    timers: Timers<Timer>,
    /// What the windows of all channels keep.
    windows: Recent<(ShardId, ChannelKey)>,
    /// Channels that may have missed something, to be asked about in turn.
    refresh: VecDeque<(ShardId, ChannelKey)>,
    /// The same, to be looked up.
    refreshing: HashSet<(ShardId, ChannelKey)>,
    /// Shards whose interest is being stated anew.
    restating: BTreeMap<ShardId, Restating>,
    /// Whether nodes are told of members, and of what has come with that: all know it.
    states: bool,
    /// Questions to owners so far, and those that are open.
    queries: u64,
    asking: BTreeMap<u64, querying::Asking>,
    /// What nodes were asked on somebody's behalf.
    asked: BTreeMap<Ticket, asking::Asked>,
    beat_at: Timestamp,
    /// Channels whose owners are to hear with the next one of how many subscribers they
    /// have.
    recount: BTreeSet<(ShardId, ChannelKey)>,
    /// With which shard the next beat begins.
    beat_from: u16,
    /// Reused, so that delivering allocates nothing.
    steps: Vec<Step>,
    /// The same: which entries of a batch have not been here before.
    fresh: Vec<Range<usize>>,
}

#[derive(Debug)]
struct Shard {
    id: ShardId,
    /// Where requests go. It only routes.
    owner: NodeRef,
    /// Since when, as far as we have heard.
    fence: Fence,
    /// Everything under a lower fence is dropped. Rises with a message from an
    /// owner.
    floor: Fence,
    uplink: Uplink,
    /// Followed, or followed a moment ago.
    channels: HashMap<ChannelKey, Attachment>,
    /// Of `channels`.
    digest: InterestDigest,
    /// Clients that are members of channels here.
    members: BTreeMap<(ChannelKey, ConnectionId), presence::Present>,
    /// They are being stated.
    stating: Option<presence::Stating>,
    /// Something has been said of members in this life.
    has_stated: bool,
    /// What became of all that came under a fence, the highest of which anything
    /// came.
    spread: (Fence, Fanout),
    /// When all channels were last joined anew because of a new owner, and the
    /// lowest version of these joins.
    rejoined: Option<(Timestamp, u64)>,
}

/// A join on its way.
#[derive(Debug)]
struct Joining {
    shard: ShardId,
    key: ChannelKey,
    /// When it is sent again; a timer that comes earlier is of an earlier plan.
    due: Timestamp,
}

#[derive(Debug)]
enum Timer {
    Join(u64),
    Linger(ShardId, ChannelKey),
    Exit(ChannelKey, ConnectionId),
    Query(u64),
    Roster(ShardId, ChannelKey),
}

impl Edge {
    /// An edge that knows the map and follows nothing. The map must be whole
    /// and sound.
    pub fn new(me: GatewayRef, map: &MapUpdate, namespaces: Namespaces) -> Self {
        assert!(
            map.since == 0 && map.is_sound(),
            "discovery takes no other map"
        );
        let shards = map
            .rows
            .iter()
            .map(|(id, row)| Shard {
                id: *id,
                owner: map
                    .owner(row)
                    .expect("a sound map names its owners")
                    .clone(),
                fence: row.fence,
                floor: Fence(0),
                uplink: Uplink::new(*id),
                channels: HashMap::new(),
                digest: InterestDigest::default(),
                members: BTreeMap::new(),
                stating: None,
                has_stated: false,
                spread: (Fence(0), Fanout::default()),
                rejoined: None,
            })
            .collect();
        Self {
            me,
            cluster: map.cluster,
            sharding: map.sharding,
            map_version: map.version,
            map_asked_at: None,
            namespaces_digest: namespaces.digest(),
            namespaces,
            shards,
            busy: BTreeSet::new(),
            nodes: Nodes::default(),
            version: 0,
            joins: HashMap::new(),
            timers: Timers::default(),
            windows: Recent::new(WINDOW_BYTES_MAX, WINDOW_AGE),
            refresh: VecDeque::new(),
            refreshing: HashSet::new(),
            restating: BTreeMap::new(),
            states: false,
            queries: 0,
            asking: BTreeMap::new(),
            asked: BTreeMap::new(),
            beat_at: Timestamp(0),
            recount: BTreeSet::new(),
            beat_from: 0,
            steps: Vec::new(),
            fresh: Vec::new(),
        }
    }

    /// Applies one input. The only way the edge changes.
    pub fn handle(&mut self, now: Timestamp, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Publish { ticket, order } => self.publish(now, ticket, order, effects),
            Input::Follow {
                worker,
                follow,
                key,
                cursor,
            } => self.follow(now, worker, follow, &key, cursor, effects),
            Input::Resume {
                worker,
                key,
                cursor,
            } => self.resume(now, worker, &key, cursor, effects),
            Input::Unfollow { worker, key } => self.unfollow(now, worker, &key),
            Input::Enter {
                place,
                key,
                member,
                users_max,
                cursor,
            } => self.enter(now, &key, (member, users_max), (place, cursor), effects),
            Input::Watch {
                place,
                key,
                connection,
            } => self.watch(now, &key, connection, place, effects),
            Input::Exit {
                key,
                connection,
                grace: None,
            } => self.exit(now, &key, connection, effects),
            Input::Exit {
                key,
                connection,
                grace: Some(grace),
            } => self.linger(now, key, connection, grace),
            Input::Count { worker, key, count } => self.count(worker, key, count),
            Input::Spread {
                shard,
                fence,
                fanout,
            } => self.spread(shard, fence, fanout),
            Input::Query {
                ticket,
                shard,
                what,
            } => self.query(now, ticket, shard, what, effects),
            Input::Ask { ticket, question } => self.ask_node(now, ticket, question, effects),
            Input::Message(Message::Batch(batch)) => self.batch(now, &batch, false, effects),
            Input::Message(Message::Repair(batch)) => self.batch(now, &batch, true, effects),
            Input::Message(Message::Replies(replies)) => self.replies(now, replies, effects),
            Input::Message(Message::NodeBeat(beat)) => self.node_beat(now, &beat, effects),
            Input::Message(Message::Map(update)) => self.map(now, None, &update, effects),
            // For nodes.
            Input::Message(
                Message::Requests(_) | Message::GatewayBeat(_) | Message::GatewayCounts(_),
            ) => {
                effects.push(Effect::Malformed);
            }
            Input::Tick => self.tick(now, effects),
        }
    }

    /// This gateway, in its present life.
    pub fn me(&self) -> &GatewayRef {
        &self.me
    }

    /// The cluster that this gateway belongs to.
    pub fn cluster(&self) -> ClusterUuid {
        self.cluster
    }

    /// What channels keep, as a node last said.
    pub fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// In which shard a channel is, and under which fence its publications come.
    pub fn place_of(&self, key: &ChannelKey) -> (ShardId, Fence) {
        let shard = &self.shards[usize::from(self.sharding.shard_of(key).0)];
        (shard.id, shard.floor)
    }

    /// How many shards the cluster has.
    pub fn shards(&self) -> u16 {
        self.sharding.count
    }

    /// The version of the map in use.
    pub fn map_version(&self) -> u64 {
        self.map_version
    }

    /// Channels that are followed, or were a moment ago.
    pub fn channels(&self) -> usize {
        self.shards.iter().map(|shard| shard.channels.len()).sum()
    }

    /// Whether a channel is followed, or was a moment ago.
    pub fn follows(&self, key: &ChannelKey) -> bool {
        let shard = &self.shards[usize::from(self.sharding.shard_of(key).0)];
        shard.channels.contains_key(key)
    }

    fn tick(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Join(version) => self.join_again(now, version, effects),
                Timer::Linger(id, key) => self.leave_if_unfollowed(now, id, key, effects),
                Timer::Exit(key, connection) => self.exit(now, &key, connection, effects),
                Timer::Query(query) => self.query_again(now, query, effects),
                Timer::Roster(id, key) => self.ask_roster(now, id, &key, effects),
            }
        }
        self.tick_greetings(now, effects);
        self.release_windows(now);
        self.tick_uplinks(now, effects);
        self.tick_links(now, effects);
        self.tick_refresh(now, effects);
        self.tick_asked(now, effects);
        self.tick_beat(now, effects);
    }

    fn shard(&mut self, id: ShardId) -> &mut Shard {
        &mut self.shards[usize::from(id.0)]
    }

    fn shard_of(&mut self, key: &ChannelKey) -> &mut Shard {
        let id = self.sharding.shard_of(key);
        self.shard(id)
    }
}

impl Shard {
    fn send(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        self.uplink
            .send(now, self.fence, to(&self.owner.id, effects));
    }
}

fn to<'a>(node: &'a NodeId, effects: &'a mut Vec<Effect>) -> impl FnMut(Request) + 'a {
    |request| {
        effects.push(Effect::Request {
            node: node.clone(),
            request,
        })
    }
}

#[cfg(test)]
mod tests;
