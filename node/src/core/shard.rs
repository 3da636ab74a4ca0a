//! One shard: the only place where its channels change. What gateways follow is
//! in `following`, what they publish in `publishing`.
//!
//! Its **repair log** is the last ten seconds of publications of all its
//! channels, whatever their namespaces keep: the publications are in the
//! channels' rings, and the log says when they may go. A gateway that has lost
//! something on the bus can be given it; clients never see it.
//!
//! Each change is a [`Record`] for the standbys, and what the shard decides
//! waits in [`Replication`] until they have confirmed everything that it rests
//! on. A standby has a shard too, and changes it by [`Shard::replay`] alone.

mod counting;
mod following;
mod presence;
mod publishing;
mod replaying;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use proto::channel::ChannelKey;
use proto::id::{ClusterUuid, GatewayId, GatewayRef, NodeRef};
use proto::inspection::ChannelState;
use proto::message::{
    Entry, InterestDigest, Missed, PublishResult, Published, Refusal, Repair, Reply, Request,
    Sequenced, Since,
};
use proto::namespace::{Namespaces, Standby};
use proto::position::{Epoch, Position};
use proto::recent::Recent;
use proto::shard::{Fence, ShardId};
use proto::time::{Timers, Timestamp};

use super::accord::Accord;
use super::caches::Caches;
use super::channel::Channel;
use super::gone::Gone;
use super::idempotency::Keys;
use super::interest::Recipients;
use super::pairs::Part;
use super::publish_table::PublishTable;
use super::record::Record;
use super::replication::{Leases, Replication, Row};
use super::roster::Roster;
use super::tombstones::{Stood, Tombstones};

use counting::Counting;
pub use presence::Around;
use presence::Presence;

/// Channels of one shard at most; more are refused. With 1,024 shards this is
/// 67 million in a cluster.
const CHANNELS_MAX: usize = 65_536;
/// Publish tables of gateways that are silent at most; the oldest goes first.
const SILENT_MAX: usize = 256;
/// How soon a channel is looked at again at the earliest.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// How long the repair log has a publication. Longer than the bus is away when
/// it restarts, and than a gap in a link takes to be noticed.
const REPAIR_AGE: Duration = Duration::from_secs(10);
/// Bytes of one shard's repair log at most; then it reaches back less far.
const REPAIR_BYTES_MAX: usize = 4 * 1_024 * 1_024;

/// What a shard is told.
#[derive(Debug)]
pub enum Input {
    /// A gateway asks for something.
    Request {
        /// Which one.
        from: GatewayRef,
        /// For what.
        request: Request,
    },
    /// A gateway says what it wants here.
    Beat {
        /// Which one.
        from: GatewayRef,
        /// The channels that it follows.
        digest: InterestDigest,
    },
    /// A gateway begins a new life.
    Met(GatewayRef),
    /// A gateway has not been heard of for so long that it counts as gone.
    Forget(GatewayRef),
    /// These gateways are gone, as is agreed: nothing of them is to be left.
    Gone(Arc<Gone>),
    /// These gateways are there, as this node hears.
    Around(Arc<Around>),
    /// A gateway has no members here.
    Vacant(GatewayRef),
    /// What is agreed of its replicas.
    Agreed(Row),
    /// These nodes should be its standbys.
    Want(Vec<NodeRef>),
    /// A standby has everything that it was sent, up to this number.
    Confirmed {
        /// Which one.
        from: NodeRef,
        /// Of which recruitment.
        fill: u64,
        /// The number.
        number: u64,
    },
    /// The way to a standby was made anew: what was on the old one may be lost.
    Reopened(NodeRef),
    /// A standby has lost what it was sent: go on without it.
    Lost(NodeRef),
    /// Time has passed.
    Tick,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Hand a publication to the links of these gateways. Comes once for every
    /// publication, also when nobody listens.
    Deliver {
        /// Shared by all publications until interest changes.
        to: Recipients,
        /// The publication.
        entry: Entry,
    },
    /// Answer a gateway.
    Reply {
        /// Which one.
        to: GatewayRef,
        /// The answer.
        reply: Reply,
    },
    /// Answer a gateway that a publication was accepted, and in how many processes
    /// it is by then: one, unless [`Shard::gate`] knows of more and makes this a
    /// reply.
    Acknowledge {
        /// Which one.
        to: GatewayRef,
        /// The answer.
        reply: Reply,
        /// Whether one process is enough.
        may_be_alone: bool,
    },
    /// Let go of the link to a gateway that counts as gone.
    Forget(GatewayRef),
    /// Send a gateway again what its link has lost.
    Repair {
        /// Which one.
        to: GatewayRef,
        /// What it asks for.
        repair: Repair,
    },
    /// Send a standby what has changed.
    Replicate {
        /// Which one.
        to: NodeRef,
        /// The changes.
        part: Part,
    },
    /// Have it agreed who has all of a shard, besides its owner.
    Propose(Proposal),
    /// Let a standby that is the owner now begin: behind everything that this
    /// node has decided as the owner.
    Release {
        /// Which one.
        to: NodeRef,
        /// That it may.
        part: Part,
    },
    /// Perform these, in this order, but only while the leases hold. Comes
    /// without any when other leases are needed than before.
    Under(Leased),
    /// Count: a restatement has ended a difference.
    Healed,
    /// Count: the owner of members knows all who are there, so long after it began.
    Converged(Duration),
    /// Count: a publish was repeated with its idempotency key, and got the first
    /// result.
    Repeated,
    /// Count: a publish was refused because of its idempotency key, which was
    /// used for another request or (`full`) could not be remembered.
    KeyRefused {
        /// There was no room.
        full: bool,
    },
    /// Count: this node serves a shard from now on.
    Started(ShardId),
    /// Count: it serves it no longer.
    Stopped(ShardId),
    /// Count: a request of a shard that does not exist. Its sender has no map
    /// of this cluster.
    Unroutable,
}

/// What an owner has decided, and may do only as long as it is the owner.
#[derive(Debug, Clone, PartialEq)]
pub struct Leased {
    /// The shard.
    pub shard: ShardId,
    /// Under which this node owns it.
    pub fence: Fence,
    /// Those who must let it, besides the leader.
    pub standbys: Arc<[NodeRef]>,
    /// What is to be done.
    pub effects: Vec<Effect>,
}

/// Which standbys an owner wants to be known as in sync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// The shard.
    pub shard: ShardId,
    /// Only while this is its fence,
    pub fence: Fence,
    /// and nothing about its replicas has changed since.
    pub version: u64,
    /// The standbys.
    pub in_sync: Vec<NodeRef>,
}

/// What a shard needs to know to serve.
#[derive(Debug, Clone)]
pub struct Tenure {
    /// The shard.
    pub shard: ShardId,
    /// Since when this node owns it.
    pub fence: Fence,
    /// This node.
    pub owner: NodeRef,
    /// The cluster, for epochs.
    pub cluster: ClusterUuid,
}

/// The state of one shard at its owner, under one fence.
#[derive(Debug)]
pub struct Shard {
    tenure: Tenure,
    namespaces: Arc<Namespaces>,
    channels: HashMap<ChannelKey, Channel>,
    /// Of channels in which somebody is present.
    rosters: BTreeMap<ChannelKey, Roster>,
    /// What cache channels keep.
    caches: Caches,
    presence: Presence,
    counting: Counting,
    /// Where channels stood that have no state any more.
    tombstones: Tombstones,
    repair: Recent<ChannelKey>,
    gateways: HashMap<GatewayId, Gateway>,
    /// How far gateways had come that have been forgotten since. What they had
    /// in flight may have waited at the bus all the time.
    silent: VecDeque<(GatewayRef, PublishTable)>,
    keys: Keys,
    /// Channel states created so far, for epochs.
    created: u64,
    /// (gateway, channel) pairs that get publications.
    interest: usize,
    timers: Timers<ChannelKey>,
    replication: Replication,
}

/// One gateway, in its present life.
#[derive(Debug)]
struct Gateway {
    /// What all rows of this gateway share.
    me: GatewayRef,
    publishes: Option<PublishTable>,
    /// Whether it wants what we know that it wants.
    accord: Accord,
    /// What it said of any channel under a lower version than this holds no
    /// longer: it has restated since. So a join that was overtaken by the
    /// restatement cannot bring back what the restatement removed.
    restated: u64,
    /// Whether it has stated its members to this owner.
    stated: bool,
}

impl Gateway {
    fn new(me: GatewayRef) -> Self {
        Self {
            me,
            publishes: None,
            accord: Accord::default(),
            restated: 0,
            stated: false,
        }
    }
}

impl Shard {
    /// A shard without channels.
    pub fn new(tenure: Tenure, namespaces: Arc<Namespaces>) -> Self {
        Self {
            tenure,
            namespaces,
            channels: HashMap::new(),
            rosters: BTreeMap::new(),
            caches: Caches::default(),
            presence: Presence::default(),
            counting: Counting::default(),
            tombstones: Tombstones::default(),
            repair: Recent::new(REPAIR_BYTES_MAX, REPAIR_AGE),
            gateways: HashMap::new(),
            silent: VecDeque::new(),
            keys: Keys::default(),
            created: 0,
            interest: 0,
            timers: Timers::default(),
            replication: Replication::default(),
        }
    }

    /// Applies one input. The only way a shard changes.
    pub fn handle(&mut self, now: Timestamp, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Request { from, request } => self.answer(now, &from, request, effects),
            Input::Beat { from, digest } => self.beat(now, &from, digest, effects),
            Input::Met(gateway) => self.met(now, &gateway),
            Input::Forget(gateway) => self.forget(now, &gateway, effects),
            Input::Gone(gone) => self.lose(now, &gone),
            Input::Around(around) => self.look_around(around),
            Input::Vacant(gateway) => self.vacate(now, &gateway),
            Input::Agreed(row) => self.replication.agreed(row),
            Input::Want(wanted) => {
                let wanted: Vec<&NodeRef> = wanted.iter().collect();
                for node in self.replication.want(&wanted) {
                    self.recruit(now, node.clone());
                }
            }
            Input::Confirmed { from, fill, number } => {
                self.replication.confirmed(&from, fill, number);
                self.fill(now);
            }
            Input::Reopened(node) => self.replication.reopened(&node),
            Input::Lost(node) => self.replication.leave_out(&node),
            Input::Tick => {
                self.expire(now);
                self.expire_members(now, effects);
                self.tell_counts(now, effects);
            }
        }
    }

    /// Takes what was decided since `first` out of the effects, and gives what
    /// may be performed now: what all standbys have confirmed, while the leases
    /// hold. To be called after inputs, and whenever leases have changed.
    pub fn gate(
        &mut self,
        now: Timestamp,
        leases: &Leases,
        first: usize,
        effects: &mut Vec<Effect>,
    ) {
        let Tenure { shard, fence, .. } = self.tenure;
        self.replication
            .gate(now, (shard, fence), leases, first, effects);
    }

    /// Its standbys, for those who look inside.
    pub fn replication(&self) -> &Replication {
        &self.replication
    }

    /// Its owner has stopped; what is left is what its standbys have yet to
    /// confirm, and what the next owner needs that they do not have.
    pub fn stop(self, now: Timestamp) -> (Replication, Vec<Record>) {
        let taken = self.alone(now);
        (self.replication, taken)
    }

    /// The fence under which it is served.
    pub fn fence(&self) -> Fence {
        self.tenure.fence
    }

    /// How many channels have state here.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// How many (gateway, channel) pairs get publications.
    pub fn interest(&self) -> usize {
        self.interest
    }

    /// How many idempotency keys are remembered.
    pub fn idempotency_keys(&self) -> usize {
        self.keys.len()
    }

    /// One channel, for those who look inside. `None`: it has no state.
    pub fn describe(&self, key: &ChannelKey) -> Option<ChannelState> {
        self.channels.get(key).map(Channel::describe)
    }

    /// A channel's past, for those who look inside. `None`: it has no state.
    pub fn since(&self, key: &ChannelKey, since: Since) -> Option<(Position, Missed)> {
        Some(self.channels.get(key)?.since(since))
    }

    fn answer(
        &mut self,
        now: Timestamp,
        from: &GatewayRef,
        request: Request,
        effects: &mut Vec<Effect>,
    ) {
        if let Err(newer) = self.meet(now, from) {
            effects.push(Effect::Reply {
                to: from.clone(),
                reply: Reply::Gone { newer },
            });
            return;
        }
        // What became of a skip is for a channel that it does not name.
        let mut standby = Standby::Prefer;
        let reply = match request {
            Request::Publish(publish) => {
                let place = publish.place;
                standby = self.namespaces.standby(&publish.key);
                let result = self.sequenced(from, place, |shard, done| {
                    shard.publish_once(now, publish, standby, done, effects)
                });
                published(place, result)
            }
            Request::Skip(place) => {
                let result = self.sequenced(from, place, |_, _| Ok(Published::Skipped));
                published(place, result)
            }
            Request::Enter(enter) => {
                let place = enter.place;
                let result = self.sequenced(from, place, |shard, done| {
                    shard.enter(now, from, enter, done, effects)
                });
                published(place, result)
            }
            Request::Exit(exit) => {
                let place = exit.place;
                let result = self.sequenced(from, place, |shard, done| {
                    shard.exit(now, exit, done, effects)
                });
                published(place, result)
            }
            Request::Stated(stated) => {
                let place = stated.place;
                let result = self.sequenced(from, place, |shard, _| {
                    shard.end_statement(now, from, stated, effects)
                });
                published(place, result)
            }
            Request::Query(query) => self.query(now, &query),
            Request::Join(join) => {
                let version = join.version;
                match self.join(now, from, join, effects) {
                    Some(result) => Reply::Joined { version, result },
                    None => return,
                }
            }
            Request::Leave(leave) => {
                let result = self.leave(now, from, &leave, effects);
                if leave.is_unanswered {
                    return;
                }
                let version = leave.version;
                Reply::Left { version, result }
            }
            Request::RestateEnd(end) => return self.restated(now, from, end, effects),
            // Answered before they come to a shard.
            Request::Map { .. }
            | Request::Inspect { .. }
            | Request::Repair(_)
            | Request::Greet(_) => {
                return;
            }
        };
        let to = from.clone();
        let is_accepted = matches!(&reply, Reply::Published { result: Ok(_), .. });
        effects.push(if standby != Standby::None && is_accepted {
            let may_be_alone = standby != Standby::Require;
            Effect::Acknowledge {
                to,
                reply,
                may_be_alone,
            }
        } else {
            Effect::Reply { to, reply }
        });
    }

    /// A gateway that has been met.
    fn gateway(&mut self, met: &GatewayRef) -> &mut Gateway {
        self.gateways.get_mut(&met.id).expect("meet() has noted it")
    }

    /// A request under another fence was meant for another owner.
    fn check_fence(&self, fence: Fence) -> Result<(), Refusal> {
        if fence == self.tenure.fence {
            return Ok(());
        }
        Err(Refusal::NotOwner {
            owner: self.tenure.owner.clone(),
            fence: self.tenure.fence,
        })
    }

    /// The repair log lets go of what is too old or too much.
    fn release_repaired(&mut self, now: Timestamp) {
        let clock = self.replication.clock(now);
        while let Some((key, _)) = self.repair.pop_due(clock) {
            if let Some(channel) = self.channels.get_mut(&key) {
                channel.release();
                if channel.is_idle() && !self.rosters.contains_key(&key) {
                    self.set_check(now, &key);
                }
            }
        }
    }

    /// The channel's state, created if need be.
    fn channel(
        &mut self,
        key: &ChannelKey,
    ) -> Result<(&proto::namespace::HistoryLimits, &mut Channel), Refusal> {
        let limits = self.namespaces.history(key);
        if !self.channels.contains_key(key) {
            if self.channels.len() >= CHANNELS_MAX {
                return Err(Refusal::Overloaded);
            }
            let Tenure {
                shard,
                fence,
                cluster,
                ..
            } = self.tenure;
            let is_alone = self.namespaces.standby(key) == Standby::None;
            let stood = self.tombstones.lift(key);
            let mut channel = match stood {
                Some(stood) if stood.is_alone == is_alone => Channel::resumed(stood.position),
                _ => {
                    let epoch = Epoch::mint(cluster, shard, fence, self.created);
                    self.created += 1;
                    Channel::new(epoch, self.tombstones.is_forgetful())
                }
            };
            channel.is_alone = is_alone;
            if !is_alone {
                self.replication.log(|| Record::Create {
                    key: key.clone(),
                    position: channel.position(),
                    forgetful: channel.is_forgetful(),
                });
            } else if stood.is_some_and(|stood| !stood.is_alone) {
                self.replication.log(|| Record::Forget { key: key.clone() });
            }
            self.channels.insert(key.clone(), channel);
        }
        let channel = self.channels.get_mut(key).expect("it was just put there");
        Ok((limits, channel))
    }

    fn set_check(&mut self, now: Timestamp, key: &ChannelKey) {
        let limits = self.namespaces.history(key);
        let Some(channel) = self
            .channels
            .get_mut(key)
            .filter(|channel| !channel.check_is_set)
        else {
            return;
        };
        // An idle channel (no history, nobody listens) is looked at soon, too.
        let due = channel
            .check_at(limits)
            .into_iter()
            .chain(self.caches.expires_at(key))
            .min();
        let due = due.or((channel.is_idle() && !self.rosters.contains_key(key)).then_some(now));
        if let Some(due) = due {
            channel.check_is_set = true;
            self.timers.set(due.max(now + CHECK_EVERY), key.clone());
        }
    }

    fn expire(&mut self, now: Timestamp) {
        self.tombstones.expire(now);
        self.release_repaired(now);
        self.keys.expire(now);
        while let Some(key) = self.timers.pop_due(now) {
            let limits = self.namespaces.history(&key);
            let Some(channel) = self.channels.get_mut(&key) else {
                continue;
            };
            channel.check_is_set = false;
            channel.expire(self.replication.clock(now), limits);
            self.caches.expire(now, &key);
            let is_kept = self.rosters.contains_key(&key) || self.caches.contains(&key);
            if channel.is_idle() && !is_kept {
                let position = channel.position();
                let is_alone = channel.is_alone;
                let stood = Stood { position, is_alone };
                self.tombstones.lay(now, &key, stood);
                self.channels.remove(&key);
                if !is_alone {
                    self.replication.log(|| Record::Evict { key, position });
                }
            } else {
                self.set_check(now, &key);
            }
        }
        self.shrink();
    }

    /// Gives back what many channels needed that have gone: there are many shards.
    fn shrink(&mut self) {
        if self.channels.len() * 4 < self.channels.capacity() {
            self.channels.shrink_to(self.channels.len() * 2);
        }
        self.timers.shrink();
    }
}

/// The answer to what had a place in a gateway's sequence.
fn published(place: Sequenced, result: PublishResult) -> Reply {
    Reply::Published {
        shard: place.shard,
        sequence: place.sequence,
        result,
    }
}

#[cfg(test)]
mod tests;
