//! What a gateway has once: who owns what, what it has asked of whom, and how
//! far it has come in every channel that any of its clients follows.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use proto::channel::ChannelKey;
use proto::codec;
use proto::id::{GatewayRef, Incarnation, NodeId, NodeRef};
use proto::link::{self, Receipt};
use proto::message::{
    Batch, Entry, Join, JoinResult, Leave, Message, NodeBeat, PublishResult, Published, Refusal,
    Replies, Reply, Request,
};
use proto::shard::{Fence, ShardId, ShardMap, Sharding};
use proto::time::{Timers, Timestamp};

use super::attachment::{Ask, Attachment, FollowId, Step};
use super::uplink::{Answer, Order, Ticket, Uplink};
use super::workers::WorkerId;

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
            // Requests are for nodes.
            Input::Message(Message::Requests(_)) => effects.push(Effect::Malformed),
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

    // ---- publishing -------------------------------------------------------

    fn publish(&mut self, now: Timestamp, ticket: Ticket, order: Order, effects: &mut Vec<Effect>) {
        let shard = self.shard_of(&order.key);
        match shard.uplink.push(now, ticket, order) {
            Ok(()) => {
                shard.send(now, effects);
                let id = shard.id;
                self.busy.insert(id);
            }
            Err(code) => effects.push(Effect::Answer((ticket, Err(code)))),
        }
    }

    fn published(
        &mut self,
        now: Timestamp,
        shard: ShardId,
        sequence: u64,
        result: PublishResult,
        effects: &mut Vec<Effect>,
    ) {
        let Some(shard) = self.shards.get_mut(usize::from(shard.0)) else {
            return;
        };
        match &result {
            Ok(Published::Accepted { fence, .. }) if *fence < shard.floor => return,
            Err(Refusal::OutOfSequence { expected }) => {
                let Shard {
                    uplink,
                    owner,
                    fence,
                    ..
                } = shard;
                uplink.fill_hole(now, *fence, *expected, to(&owner.id, effects));
                return;
            }
            _ => {}
        }
        if let Some(answer) = shard.uplink.answered(sequence, result) {
            effects.push(Effect::Answer(answer));
        }
        shard.send(now, effects);
    }

    // ---- following --------------------------------------------------------

    fn follow(
        &mut self,
        now: Timestamp,
        worker: WorkerId,
        follow: FollowId,
        key: &ChannelKey,
        effects: &mut Vec<Effect>,
    ) {
        let id = self.sharding.shard_of(key);
        let ask = self.step(
            id,
            key,
            effects,
            |attachment, steps| attachment.follow(worker, follow, steps),
            true,
        );
        self.ask(now, id, key, ask, effects);
    }

    fn unfollow(&mut self, now: Timestamp, worker: WorkerId, key: &ChannelKey) {
        let shard = self.shard_of(key);
        let id = shard.id;
        let Some(attachment) = shard.channels.get_mut(key) else {
            return;
        };
        attachment.unfollow(worker);
        if !attachment.is_followed() {
            let leave_at = now + LINGER;
            attachment.leave_at = Some(leave_at);
            self.timers.set(leave_at, Timer::Linger(id, key.clone()));
        }
    }

    fn joined(
        &mut self,
        now: Timestamp,
        version: u64,
        result: JoinResult,
        effects: &mut Vec<Effect>,
    ) {
        match result {
            Ok(joined) => {
                let Some((id, _)) = self.joins.get(&version) else {
                    return;
                };
                let id = *id;
                let fence = joined.fence;
                if fence < self.shard(id).floor {
                    return;
                }
                // Before the answer counts: a new owner detaches its channels,
                // and this join was one that it answered.
                let Some((_, key)) = self.joins.remove(&version) else {
                    return;
                };
                self.heard_from_owner(now, id, fence, Some(&key), effects);
                let mine = |a: &Attachment| a.asked() == Some(version);
                if !self.shard(id).channels.get(&key).is_some_and(mine) {
                    return;
                }
                let ask = self.step(id, &key, effects, |a, steps| a.joined(joined, steps), false);
                self.ask(now, id, &key, ask, effects);
            }
            Err(Refusal::NotOwner { owner, fence }) => {
                if let Some((id, _)) = self.joins.get(&version) {
                    self.reroute(now, *id, owner, fence, effects);
                }
            }
            // The timer asks again.
            Err(_) => {}
        }
    }

    fn left(
        &mut self,
        now: Timestamp,
        version: u64,
        result: Result<(), Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        match result {
            Ok(()) => {
                self.leaves.remove(&version);
            }
            Err(Refusal::NotOwner { owner, fence }) => {
                if let Some((id, _)) = self.leaves.get(&version) {
                    self.reroute(now, *id, owner, fence, effects);
                }
            }
            Err(_) => {}
        }
    }

    /// Sends a join if one is needed.
    fn ask(
        &mut self,
        now: Timestamp,
        id: ShardId,
        key: &ChannelKey,
        ask: Ask,
        effects: &mut Vec<Effect>,
    ) {
        if ask == Ask::No {
            return;
        }
        self.version += 1;
        let version = self.version;
        if let Some(attachment) = self.shard(id).channels.get_mut(key) {
            attachment.set_asked(version);
            self.joins.insert(version, (id, key.clone()));
            self.send_join(now, version, effects);
        }
    }

    /// Sends a join, for the first time or again, and sees to it that it is
    /// sent again if no answer comes.
    fn send_join(&mut self, now: Timestamp, version: u64, effects: &mut Vec<Effect>) {
        let Some((id, key)) = self.joins.get(&version) else {
            return;
        };
        let shard = &self.shards[usize::from(id.0)];
        let Some(attachment) = shard
            .channels
            .get(key)
            .filter(|a| a.asked() == Some(version))
        else {
            self.joins.remove(&version);
            return;
        };
        let join = Join {
            shard: *id,
            fence: shard.fence,
            key: key.clone(),
            count: attachment.followers(),
            have: attachment.position(),
            version,
        };
        effects.push(Effect::Request {
            node: shard.owner.id.clone(),
            request: Request::Join(join),
        });
        self.timers.set(now + RETRY, Timer::Join(version));
    }

    fn send_leave(&mut self, now: Timestamp, version: u64, effects: &mut Vec<Effect>) {
        let Some((id, key)) = self.leaves.get(&version) else {
            return;
        };
        let shard = &self.shards[usize::from(id.0)];
        let leave = Leave {
            shard: *id,
            fence: shard.fence,
            key: key.clone(),
            version,
        };
        effects.push(Effect::Request {
            node: shard.owner.id.clone(),
            request: Request::Leave(leave),
        });
        self.timers.set(now + RETRY, Timer::Leave(version));
    }

    fn leave_if_unfollowed(
        &mut self,
        now: Timestamp,
        id: ShardId,
        key: ChannelKey,
        effects: &mut Vec<Effect>,
    ) {
        let channels = &mut self.shard(id).channels;
        let due = |a: &Attachment| !a.is_followed() && a.leave_at.is_some_and(|at| at <= now);
        if !channels.get(&key).is_some_and(due) {
            return;
        }
        channels.remove(&key);
        self.version += 1;
        let version = self.version;
        self.leaves.insert(version, (id, key));
        self.send_leave(now, version, effects);
    }

    /// Changes an attachment and passes on what that did. A channel that is not
    /// followed is created if asked for, and otherwise left alone.
    fn step(
        &mut self,
        id: ShardId,
        key: &ChannelKey,
        effects: &mut Vec<Effect>,
        change: impl FnOnce(&mut Attachment, &mut Vec<Step>) -> Ask,
        create: bool,
    ) -> Ask {
        let channels = &mut self.shards[usize::from(id.0)].channels;
        if create && !channels.contains_key(key) {
            channels.insert(key.clone(), Attachment::default());
        }
        let Some(attachment) = channels.get_mut(key) else {
            return Ask::No;
        };
        let ask = change(attachment, &mut self.steps);
        effects.extend(self.steps.drain(..).map(|step| Effect::Step {
            key: key.clone(),
            step,
        }));
        ask
    }

    // ---- links ------------------------------------------------------------

    fn batch(&mut self, now: Timestamp, batch: &Batch, effects: &mut Vec<Effect>) {
        if batch.to != self.me.incarnation {
            return;
        }
        let fresh = || Link {
            incarnation: batch.from.incarnation,
            receiver: link::Receiver::default(),
        };
        let link = self
            .links
            .entry(batch.from.id.clone())
            .or_insert_with(fresh);
        if batch.from.incarnation < link.incarnation {
            return;
        }
        if batch.from.incarnation > link.incarnation {
            *link = fresh();
        }
        match link.receiver.receive(batch) {
            Receipt::InOrder => {}
            Receipt::Old => return,
            Receipt::Gap(missed) => {
                effects.push(Effect::LinkGap {
                    node: batch.from.id.clone(),
                    missed,
                });
                self.refresh_all_of(&batch.from.id);
            }
        }
        for bytes in &batch.entries {
            match codec::decode_entry(bytes) {
                Ok(entry) => self.receive(now, entry, effects),
                Err(_) => effects.push(Effect::Malformed),
            }
        }
    }

    fn receive(&mut self, now: Timestamp, entry: Entry, effects: &mut Vec<Effect>) {
        let Entry {
            shard: id,
            fence,
            key,
            epoch,
            publication,
        } = entry;
        if self
            .shards
            .get(usize::from(id.0))
            .is_none_or(|shard| fence < shard.floor)
        {
            return;
        }
        self.heard_from_owner(now, id, fence, None, effects);
        let ask = self.step(
            id,
            &key,
            effects,
            |a, steps| a.receive(epoch, publication, steps),
            false,
        );
        self.ask(now, id, &key, ask, effects);
    }

    /// A link has lost something: any channel of that node may have missed it.
    fn refresh_all_of(&mut self, node: &NodeId) {
        let mut keys: Vec<(ShardId, ChannelKey)> = self
            .shards
            .iter()
            .filter(|shard| shard.owner.id == *node)
            .flat_map(|shard| shard.channels.keys().map(|key| (shard.id, key.clone())))
            .collect();
        // In a fixed order; what waits already keeps its place, so that holes
        // that come again and again do not keep anyone from its turn.
        keys.sort_unstable();
        for key in keys {
            if self.refreshing.insert(key.clone()) {
                self.refresh.push_back(key);
            }
        }
    }

    // ---- owners -----------------------------------------------------------

    /// A message from the owner under this fence. A higher fence than ever
    /// before means a new owner: what it says must be joined to what we have.
    fn heard_from_owner(
        &mut self,
        now: Timestamp,
        id: ShardId,
        fence: Fence,
        except: Option<&ChannelKey>,
        effects: &mut Vec<Effect>,
    ) {
        let shard = self.shard(id);
        if fence <= shard.floor {
            return;
        }
        // The first message from the owner that the map named changes nothing.
        let first = shard.floor == Fence(0) && fence == shard.fence;
        shard.floor = fence;
        if !first {
            self.rejoin_all(now, id, except, effects);
        }
    }

    /// Somebody says who serves a shard.
    fn reroute(
        &mut self,
        now: Timestamp,
        id: ShardId,
        owner: NodeRef,
        fence: Fence,
        effects: &mut Vec<Effect>,
    ) {
        let shard = self.shard(id);
        if fence <= shard.fence {
            return;
        }
        (shard.owner, shard.fence) = (owner, fence);
        let Shard {
            uplink,
            owner,
            fence,
            ..
        } = shard;
        uplink.resend(now, *fence, to(&owner.id, effects));
        let leaves: BTreeSet<u64> = self
            .leaves
            .iter()
            .filter(|(_, (of, _))| *of == id)
            .map(|(version, _)| *version)
            .collect();
        for version in leaves {
            self.send_leave(now, version, effects);
        }
        self.rejoin_all(now, id, None, effects);
    }

    fn rejoin_all(
        &mut self,
        now: Timestamp,
        id: ShardId,
        except: Option<&ChannelKey>,
        effects: &mut Vec<Effect>,
    ) {
        let mut keys: Vec<ChannelKey> = self.shard(id).channels.keys().cloned().collect();
        keys.sort_unstable();
        for key in keys.iter().filter(|key| Some(*key) != except) {
            let ask = self.step(id, key, effects, |attachment, _| attachment.detach(), false);
            self.ask(now, id, key, ask, effects);
        }
    }

    fn node_beat(&mut self, now: Timestamp, beat: &NodeBeat, effects: &mut Vec<Effect>) {
        let asked = self
            .map_asked_at
            .is_some_and(|at| now.since(at) < MAP_RETRY);
        if beat.map_version > self.map_version && !asked {
            self.map_asked_at = Some(now);
            effects.push(Effect::Request {
                node: beat.from.id.clone(),
                request: Request::Map,
            });
        }
    }

    fn map(&mut self, now: Timestamp, map: &ShardMap, effects: &mut Vec<Effect>) {
        if map.version <= self.map_version {
            return;
        }
        if !map.is_sound() || map.sharding != self.sharding {
            effects.push(Effect::Malformed);
            return;
        }
        self.map_version = map.version;
        for number in 0..map.sharding.count {
            if let Some((owner, fence)) = map.owner(ShardId(number)) {
                self.reroute(now, ShardId(number), owner.clone(), fence, effects);
            }
        }
    }

    fn replies(&mut self, now: Timestamp, replies: Replies, effects: &mut Vec<Effect>) {
        if replies.to != self.me.incarnation {
            return;
        }
        for reply in replies.replies {
            match reply {
                Reply::Published {
                    shard,
                    sequence,
                    result,
                } => {
                    if let Err(Refusal::NotOwner { owner, fence }) = result {
                        if usize::from(shard.0) < self.shards.len() {
                            self.reroute(now, shard, owner, fence, effects);
                        }
                    } else {
                        self.published(now, shard, sequence, result, effects);
                    }
                }
                Reply::Joined { version, result } => self.joined(now, version, result, effects),
                Reply::Left { version, result } => self.left(now, version, result, effects),
                Reply::Map(map) => self.map(now, &map, effects),
                Reply::Gone { newer } => effects.push(Effect::Superseded { newer }),
            }
        }
    }

    // ---- time -------------------------------------------------------------

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
            let ask = self.step(
                id,
                &key,
                effects,
                |attachment, _| attachment.refresh(),
                false,
            );
            self.ask(now, id, &key, ask, effects);
        }
    }

    fn tick_uplinks(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let mut answers = Vec::new();
        let shards = &mut self.shards;
        self.busy.retain(|id| {
            let Shard {
                uplink,
                owner,
                fence,
                ..
            } = &mut shards[usize::from(id.0)];
            uplink.tick(now, *fence, &mut answers, to(&owner.id, effects));
            !uplink.is_idle()
        });
        effects.extend(answers.into_iter().map(Effect::Answer));
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
