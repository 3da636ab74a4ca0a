//! Mistakes about who owns a shard, who has all of it, and what goes out when.

use std::collections::BTreeMap;
use std::sync::Arc;

use node::core::agreed::Agreed;
use node::core::interest::Interest;
use node::core::lease::PairLease;
use node::core::pairs::{Batch, Part};
use node::core::record::{Performed, Record};
use node::core::replicas::Succession;
use node::core::replication::Leases;
use node::core::shard::{Effect, Proposal};
use node::core::shards::Shards;
use proto::channel::ChannelKey;
use proto::id::NodeRef;
use proto::inspection::Answer;
use proto::message::{Entry, Published, Request, Since};
use proto::position::Position;
use proto::shard::{Fence, ShardId};
use proto::time::Timestamp;

use super::{AtNode, Mistake};
use crate::sim::trace::Trace;
use crate::sim::workload;

impl AtNode {
    /// Changes what a shard worker hears of what is agreed.
    pub fn known(&self, me: &NodeRef, agreed: Arc<Agreed>, shards: &Shards) -> Arc<Agreed> {
        match self.mistake {
            Some(Mistake::OwnershipKept) => own_as_before(me, agreed),
            Some(Mistake::FillingPromoted) => without_the_filling(me, agreed, shards),
            _ => agreed,
        }
    }

    /// What is proposed as soon as a standby is sent the first record.
    pub fn recruited(&self, agreed: &Agreed, to: &NodeRef, part: &Part) -> Option<Proposal> {
        let begins = matches!(part.records.first().map(|r| &**r), Some(Record::Begin(_)));
        if !self.is(Mistake::FillingPromoted) || part.first != 1 || !begins {
            return None;
        }
        let row = &agreed.replicas(part.shard)?.row;
        let others = row.in_sync.iter().filter(|node| *node != to);
        Some(Proposal {
            shard: part.shard,
            fence: part.fence,
            version: row.version,
            in_sync: others.chain([to]).cloned().collect(),
        })
    }

    /// What is handed to the links as soon as it is sent to a standby.
    pub fn fanned_out(&self, now: Timestamp, part: &Part, shards: &Shards) -> Vec<Effect> {
        if !self.is(Mistake::FannedOutEarly) {
            return Vec::new();
        }
        let records = part.records.iter();
        let deliver = |record: &Arc<Record>| match &**record {
            Record::Publish(performed) => deliver(now, part, performed, shards),
            _ => None,
        };
        records.filter_map(deliver).collect()
    }

    /// Changes the leases that an owner goes by.
    pub fn leases(&self, me: &NodeRef, agreed: &Agreed, leases: &mut Leases) {
        if !self.is(Mistake::PairByMap) {
            return;
        }
        for (node, lease) in &mut leases.pairs {
            let counts = |shard: &u16| {
                let shard = ShardId(*shard);
                agreed.fence_of(shard, me).is_some() && agreed.stands_by(shard, node)
            };
            if !(0..agreed.shards.len() as u16).any(|shard| counts(&shard)) {
                *lease = PairLease::new(Timestamp(0));
                lease.echo(FOR_EVER, FOR_EVER);
            }
        }
    }
}

/// Mistakes about channels that are not replicated.
impl AtNode {
    pub(super) fn note_mentioned(&mut self, batch: &Batch) {
        let records = batch.parts.iter().flat_map(|part| &part.records);
        for record in records {
            if let Record::Close {
                result: Ok(Published::Accepted { position, .. }),
                ..
            } = &**record
            {
                self.mentioned.insert(position.epoch, *position);
            }
        }
    }

    /// Changes what a standby begins with.
    pub fn begin(&self, now: Timestamp, succession: &mut Succession, trace: &Trace) {
        let Some(shard) = &mut succession.shard else {
            return;
        };
        if !self.is(Mistake::AloneGoesOn) || succession.is_released {
            return;
        }
        for (channel, key) in (0..).zip(workload::channels()) {
            let is_in = |position: &&Position| trace.channel_of(position.epoch) == Some(channel);
            let known = self.mentioned.values().filter(is_in);
            let is_here = trace.shards[usize::from(channel)] == succession.tenure.shard.0;
            let last = known.max_by_key(|position| trace.head(position.epoch).1);
            if let Some(position) = last.filter(|_| is_here && workload::is_alone(channel)) {
                shard.replay(
                    now,
                    Record::Create {
                        key,
                        position: *position,
                        forgetful: false,
                    },
                );
            }
        }
    }
}

/// Later than any world ends.
const FOR_EVER: Timestamp = Timestamp(u64::MAX / 2);

/// What an earlier life of this node owned, it owns still.
fn own_as_before(me: &NodeRef, agreed: Arc<Agreed>) -> Arc<Agreed> {
    let is_mine = |node: &NodeRef| node.id == me.id && node.incarnation < me.incarnation;
    if !agreed.map.nodes.iter().any(is_mine) {
        return agreed;
    }
    let mut told = Agreed::clone(&agreed);
    for (number, replicas) in (0..).zip(&mut told.shards) {
        if agreed
            .map
            .owner(ShardId(number))
            .is_some_and(|(owner, _)| is_mine(owner))
        {
            *replicas = Default::default();
        }
    }
    let map = Arc::make_mut(&mut told.map);
    for node in map.nodes.iter_mut().filter(|node| is_mine(node)) {
        *node = me.clone();
    }
    Arc::new(told)
}

/// Who is being filled counts for nothing at the owner, whatever is agreed.
fn without_the_filling(me: &NodeRef, agreed: Arc<Agreed>, shards: &Shards) -> Arc<Agreed> {
    let mut told = Agreed::clone(&agreed);
    for (id, shard) in shards.served() {
        if agreed.fence_of(id, me) == Some(shard.fence())
            && let Some(replicas) = told.shards.get_mut(usize::from(id.0))
        {
            let counts = |node: &NodeRef| shard.replication().counts(node);
            replicas.row.in_sync.retain(counts);
        }
    }
    Arc::new(told)
}

fn deliver(now: Timestamp, part: &Part, performed: &Performed, shards: &Shards) -> Option<Effect> {
    let Answer::Channel(info) = shards.describe(&performed.key) else {
        return None;
    };
    let mut interest = Interest::default();
    for (gateway, count) in info.state?.followers {
        interest.set(now, &gateway, count, 1);
    }
    Some(Effect::Deliver {
        to: interest.recipients(),
        entry: Entry {
            shard: part.shard,
            fence: part.fence,
            key: performed.key.clone(),
            epoch: performed.epoch,
            publication: Arc::clone(&performed.publication),
        },
    })
}

/// Under which fence a gateway has joined each channel first: for
/// [`Mistake::RestatedFromNow`].
#[derive(Debug, Default)]
pub struct FirstJoins(BTreeMap<ChannelKey, Fence>);

impl FirstJoins {
    /// Changes what a gateway asks.
    pub fn ask(&mut self, mistake: Option<Mistake>, request: &mut Request) {
        if mistake != Some(Mistake::RestatedFromNow) {
            return;
        }
        match request {
            Request::Join(join) => {
                let first = *self.0.entry(join.key.clone()).or_insert(join.fence);
                if join.fence > first && matches!(join.since, Since::Delivered(_)) {
                    join.since = Since::Now;
                }
            }
            Request::Leave(leave) => {
                self.0.remove(&leave.key);
            }
            _ => {}
        }
    }
}
