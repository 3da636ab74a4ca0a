//! One shard: the only place where its channels change.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proto::channel::ChannelKey;
use proto::id::{ClusterUuid, GatewayId, GatewayRef, Incarnation, NodeRef};
use proto::message::{
    Entry, Join, Joined, Leave, Publish, PublishResult, Published, Refusal, Reply, Request,
    Sequenced,
};
use proto::namespace::Namespaces;
use proto::position::Epoch;
use proto::shard::{Fence, ShardId};
use proto::time::{Timers, Timestamp};

use super::channel::Channel;
use super::interest::Change;
use super::publish_table::{Admission, PublishTable};

/// Channels of one shard at most; more are refused. With 1,024 shards this is
/// 67 million in a cluster.
const CHANNELS_MAX: usize = 65_536;
/// How soon a channel is looked at again at the earliest.
const CHECK_EVERY: Duration = Duration::from_secs(1);

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
        to: Arc<[GatewayRef]>,
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
    gateways: HashMap<GatewayId, Gateway>,
    /// Channel states created so far, for epochs.
    created: u64,
    /// (gateway, channel) pairs that get publications.
    interest: usize,
    timers: Timers<ChannelKey>,
}

#[derive(Debug)]
struct Gateway {
    incarnation: Incarnation,
    publishes: Option<PublishTable>,
}

impl Shard {
    /// A shard without channels.
    pub fn new(tenure: Tenure, namespaces: Arc<Namespaces>) -> Self {
        Self {
            tenure,
            namespaces,
            channels: HashMap::new(),
            gateways: HashMap::new(),
            created: 0,
            interest: 0,
            timers: Timers::default(),
        }
    }

    /// Applies one input. The only way a shard changes.
    pub fn handle(&mut self, now: Timestamp, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Request { from, request } => self.answer(now, &from, request, effects),
            Input::Tick => self.expire(now),
        }
    }

    /// How many channels have state here.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// How many (gateway, channel) pairs get publications.
    pub fn interest(&self) -> usize {
        self.interest
    }

    fn answer(
        &mut self,
        now: Timestamp,
        from: &GatewayRef,
        request: Request,
        effects: &mut Vec<Effect>,
    ) {
        if let Err(newer) = self.meet(from) {
            effects.push(Effect::Reply {
                to: from.clone(),
                reply: Reply::Gone { newer },
            });
            return;
        }
        let reply = match request {
            Request::Publish(publish) => {
                let place = publish.place;
                let result =
                    self.sequenced(from, place, |shard| shard.publish(now, publish, effects));
                Reply::Published {
                    shard: place.shard,
                    sequence: place.sequence,
                    result,
                }
            }
            Request::Skip(place) => {
                let result = self.sequenced(from, place, |_| Ok(Published::Skipped));
                Reply::Published {
                    shard: place.shard,
                    sequence: place.sequence,
                    result,
                }
            }
            Request::Join(join) => {
                let version = join.version;
                match self.join(now, from, join) {
                    Some(result) => Reply::Joined { version, result },
                    None => return,
                }
            }
            Request::Leave(leave) => Reply::Left {
                version: leave.version,
                result: self.leave(now, from, &leave),
            },
            // The node answers it before it comes to a shard.
            Request::Map { .. } | Request::Inspect { .. } | Request::RestateEnd(_) => return,
        };
        effects.push(Effect::Reply {
            to: from.clone(),
            reply,
        });
    }

    /// Takes note of a gateway's incarnation. A higher one voids the lower one
    /// at once, a lower one is told so.
    fn meet(&mut self, from: &GatewayRef) -> Result<(), Incarnation> {
        let known = self
            .gateways
            .entry(from.id.clone())
            .or_insert_with(|| Gateway {
                incarnation: from.incarnation,
                publishes: None,
            });
        if from.incarnation < known.incarnation {
            return Err(known.incarnation);
        }
        if from.incarnation > known.incarnation {
            *known = Gateway {
                incarnation: from.incarnation,
                publishes: None,
            };
            for channel in self.channels.values_mut() {
                self.interest -= channel.interest.recipients().len();
                channel.interest.void(&from.id, from.incarnation);
                self.interest += channel.interest.recipients().len();
            }
        }
        Ok(())
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

    /// Performs a publish exactly once, in its place of the gateway's sequence.
    fn sequenced(
        &mut self,
        from: &GatewayRef,
        place: Sequenced,
        perform: impl FnOnce(&mut Self) -> PublishResult,
    ) -> PublishResult {
        self.check_fence(place.fence)?;
        let low_mark = place.low_mark.min(place.sequence);
        match self.table(from, low_mark).admit(place.sequence, low_mark) {
            Admission::Next => {
                let result = perform(self);
                self.table(from, low_mark).record(result.clone());
                result
            }
            Admission::Repeat(result) => result,
            Admission::OutOfSequence { expected } => Err(Refusal::OutOfSequence { expected }),
            Admission::Forgotten => Err(Refusal::Forgotten),
        }
    }

    fn table(&mut self, from: &GatewayRef, low_mark: u64) -> &mut PublishTable {
        self.gateways
            .get_mut(&from.id)
            .expect("meet() has noted it")
            .publishes
            .get_or_insert_with(|| PublishTable::starting_at(low_mark))
    }

    /// One step both hands the publication to the links and gives the result
    /// that acknowledges it. With a standby, its confirmation comes in between.
    fn publish(
        &mut self,
        now: Timestamp,
        publish: Publish,
        effects: &mut Vec<Effect>,
    ) -> PublishResult {
        let Tenure { shard, fence, .. } = self.tenure;
        let key = publish.key.clone();
        let (limits, channel) = self.channel(&key)?;
        let publication = channel.publish(now, publish, limits);
        let position = channel.position();
        effects.push(Effect::Deliver {
            to: Arc::clone(channel.interest.recipients()),
            entry: Entry {
                shard,
                fence,
                key: key.clone(),
                epoch: position.epoch,
                publication,
            },
        });
        self.set_check(now, &key);
        Ok(Published::Accepted {
            fence,
            position,
            copies: 1,
        })
    }

    /// `None`: a newer join or leave of this gateway has come before, and its
    /// answer is the one that counts.
    fn join(
        &mut self,
        now: Timestamp,
        from: &GatewayRef,
        join: Join,
    ) -> Option<Result<Joined, Refusal>> {
        if let Err(refusal) = self.check_fence(join.fence) {
            return Some(Err(refusal));
        }
        let fence = self.tenure.fence;
        // A join says that somebody is there, so it counts for at least one.
        let change = match self.set_interest(now, from, &join.key, join.count.max(1), join.version)
        {
            Ok(change) => change,
            Err(refusal) => return Some(Err(refusal)),
        };
        if change == Change::Stale {
            return None;
        }
        let (position, missed) = self.channels.get(&join.key)?.since(join.have);
        Some(Ok(Joined {
            fence,
            position,
            missed,
        }))
    }

    /// A channel without state gets one: a join that is still on its way
    /// carries a lower version, which the tombstone must meet.
    fn leave(&mut self, now: Timestamp, from: &GatewayRef, leave: &Leave) -> Result<(), Refusal> {
        self.check_fence(leave.fence)?;
        self.set_interest(now, from, &leave.key, 0, leave.version)?;
        self.set_check(now, &leave.key);
        Ok(())
    }

    fn set_interest(
        &mut self,
        now: Timestamp,
        from: &GatewayRef,
        key: &ChannelKey,
        count: u32,
        version: u64,
    ) -> Result<Change, Refusal> {
        let (_, channel) = self.channel(key)?;
        let before = channel.interest.recipients().len();
        let change = channel.interest.set(now, from, count, version);
        let after = channel.interest.recipients().len();
        self.interest = self.interest - before + after;
        Ok(change)
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
            let epoch = Epoch::mint(cluster, shard, fence, self.created);
            self.created += 1;
            self.channels.insert(key.clone(), Channel::new(epoch));
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
            .or(channel.is_idle().then_some(now));
        if let Some(due) = due {
            channel.check_is_set = true;
            self.timers.set(due.max(now + CHECK_EVERY), key.clone());
        }
    }

    fn expire(&mut self, now: Timestamp) {
        while let Some(key) = self.timers.pop_due(now) {
            let limits = self.namespaces.history(&key);
            let Some(channel) = self.channels.get_mut(&key) else {
                continue;
            };
            channel.check_is_set = false;
            channel.expire(now, limits);
            if channel.is_idle() {
                self.channels.remove(&key);
            } else {
                self.set_check(now, &key);
            }
        }
    }
}

#[cfg(test)]
mod tests;
