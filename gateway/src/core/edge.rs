//! What a gateway has once: who owns what, what it has asked of whom, and how
//! far it has come in every channel that any of its clients follows.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use proto::channel::ChannelKey;
use proto::id::{GatewayRef, Incarnation, NodeId, NodeRef};
use proto::link;
use proto::message::{Message, Request};
use proto::shard::{Fence, ShardId, ShardMap, Sharding};
use proto::time::{Timers, Timestamp};

use super::attachment::{Attachment, FollowId, Step};
use super::uplink::{Answer, Order, Ticket, Uplink};
use super::workers::WorkerId;

mod following;
mod links;
mod owners;
mod publishing;

/// How long a channel without followers stays joined: a page that is loaded
/// anew leaves and comes back.
const LINGER: Duration = Duration::from_secs(5);
/// After how long without an answer a join or leave is sent again.
const RETRY: Duration = Duration::from_secs(1);
/// After how long without an answer a newer map is asked for again.
const MAP_RETRY: Duration = Duration::from_secs(1);
/// Channels that are asked about in one tick when a link has lost something:
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
    },
    /// A worker has lost its last subscriber of a channel.
    Unfollow {
        /// Which worker.
        worker: WorkerId,
        /// The channel.
        key: ChannelKey,
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
    /// Tell workers what happened in a channel.
    Step {
        /// The channel.
        key: ChannelKey,
        /// What happened.
        step: Step,
    },
    /// Count and log: a link has lost this many entries.
    LinkGap {
        /// Whose link.
        node: NodeId,
        /// How many.
        missed: u64,
    },
    /// Count and log: bytes of an entry that made no sense.
    Malformed,
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
    map_version: u64,
    map_asked_at: Option<Timestamp>,
    sharding: Sharding,
    shards: Vec<Shard>,
    /// Shards whose uplink waits for something.
    busy: BTreeSet<ShardId>,
    links: BTreeMap<NodeId, Link>,
    /// One counter for all interest of this incarnation.
    version: u64,
    joins: HashMap<u64, (ShardId, ChannelKey)>,
    leaves: HashMap<u64, (ShardId, ChannelKey)>,
    timers: Timers<Timer>,
    /// Channels that may have missed something, to be asked about in turn.
    refresh: VecDeque<(ShardId, ChannelKey)>,
    /// The same, to be looked up.
    refreshing: HashSet<(ShardId, ChannelKey)>,
    /// Reused, so that delivering allocates nothing.
    steps: Vec<Step>,
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
    channels: HashMap<ChannelKey, Attachment>,
}

#[derive(Debug)]
struct Link {
    incarnation: Incarnation,
    receiver: link::Receiver,
}

#[derive(Debug)]
enum Timer {
    Join(u64),
    Leave(u64),
    Linger(ShardId, ChannelKey),
}

impl Edge {
    /// An edge that knows the map and follows nothing. The map must be sound.
    pub fn new(me: GatewayRef, map: &ShardMap) -> Self {
        assert!(map.is_sound(), "the caller has checked the map");
        let shards = (0..map.sharding.count)
            .map(|number| {
                let id = ShardId(number);
                let (owner, fence) = map.owner(id).expect("a sound map has a row per shard");
                Shard {
                    id,
                    owner: owner.clone(),
                    fence,
                    floor: Fence(0),
                    uplink: Uplink::new(id),
                    channels: HashMap::new(),
                }
            })
            .collect();
        Self {
            me,
            map_version: map.version,
            map_asked_at: None,
            sharding: map.sharding,
            shards,
            busy: BTreeSet::new(),
            links: BTreeMap::new(),
            version: 0,
            joins: HashMap::new(),
            leaves: HashMap::new(),
            timers: Timers::default(),
            refresh: VecDeque::new(),
            refreshing: HashSet::new(),
            steps: Vec::new(),
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
            } => self.follow(now, worker, follow, &key, effects),
            Input::Unfollow { worker, key } => self.unfollow(now, worker, &key),
            Input::Message(Message::Batch(batch)) => self.batch(now, &batch, effects),
            Input::Message(Message::Replies(replies)) => self.replies(now, replies, effects),
            Input::Message(Message::NodeBeat(beat)) => self.node_beat(now, &beat, effects),
            Input::Message(Message::Map(_)) => {}
            // For nodes.
            Input::Message(Message::Requests(_) | Message::GatewayBeat(_)) => {
                effects.push(Effect::Malformed);
            }
            Input::Tick => self.tick(now, effects),
        }
    }

    /// The version of the map in use.
    pub fn map_version(&self) -> u64 {
        self.map_version
    }

    /// Channels that are followed, or were a moment ago.
    pub fn channels(&self) -> usize {
        self.shards.iter().map(|shard| shard.channels.len()).sum()
    }

    fn tick(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Join(version) => self.send_join(now, version, effects),
                Timer::Leave(version) => self.send_leave(now, version, effects),
                Timer::Linger(id, key) => self.leave_if_unfollowed(now, id, key, effects),
            }
        }
        self.tick_uplinks(now, effects);
        for _ in 0..REFRESH_PER_TICK.min(self.refresh.len()) {
            let Some(next) = self.refresh.pop_front() else {
                break;
            };
            self.refreshing.remove(&next);
            let (id, key) = next;
            self.change(now, id, &key, effects, |attachment, _| attachment.refresh());
        }
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
