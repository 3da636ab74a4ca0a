//! What a node holds of shards that others own, and when it owns them itself.
//!
//! A standby applies the records of its owner in order and echoes each batch.
//! The echo is a promise: until [`may_serve_from`] says so, nothing that the owner owned
//! then is served here. So when it is agreed that the standby is the owner now,
//! it first refuses the earlier fence (no echo goes out any more without saying
//! so) and then waits until no earlier owner can have a lease of it.
//!
//! A replica goes when its shard has another owner under a higher fence, and for
//! no other reason: who is agreed to be in sync may be made the owner at any
//! time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::id::NodeRef;
use proto::namespace::Namespaces;
use proto::shard::{Fence, ShardId};
use proto::time::Timestamp;

use super::agreed::Agreed;
use super::lease::may_serve_from;
use super::pairs::{Batch, Confirmation, Echo, Part};
use super::record::Record;
use super::shard::{Shard, Tenure};

/// After how long without an echo an owner is forgotten: long after any lease.
const FORGET: Duration = Duration::from_secs(60);

/// What is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Answer an owner.
    Echo(Echo),
    /// Serve a shard from now on, with this state.
    Begin(Box<Succession>),
}

/// A shard that has come to this node with its state.
#[derive(Debug)]
pub struct Succession {
    /// The shard, and under which fence.
    pub tenure: Tenure,
    /// Its state. `None`: nothing is there, against what was agreed.
    pub shard: Option<Shard>,
    /// An earlier owner may act until then.
    pub serves_from: Timestamp,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Replicas {
    me: NodeRef,
    namespaces: Arc<Namespaces>,
    agreed: Arc<Agreed>,
    replicas: BTreeMap<ShardId, Replica>,
    /// Shards that were begun here, under which fence.
    begun: BTreeMap<ShardId, Fence>,
    owners: BTreeMap<NodeRef, Owner>,
}

#[derive(Debug)]
struct Replica {
    owner: NodeRef,
    fence: Fence,
    fill: u64,
    /// It has everything up to this number.
    received: u64,
    shard: Shard,
}

/// What an owner was told.
#[derive(Debug, Default)]
struct Owner {
    /// The last echo.
    echoed: Option<Timestamp>,
    /// Up to which version of the map it knows, on this way, what it does not
    /// own.
    told: u64,
}

impl Replicas {
    /// A node that holds nothing.
    pub fn new(me: NodeRef, namespaces: Arc<Namespaces>, agreed: Arc<Agreed>) -> Self {
        Self {
            me,
            namespaces,
            agreed,
            replicas: BTreeMap::new(),
            begun: BTreeMap::new(),
            owners: BTreeMap::new(),
        }
    }

    /// Something else is agreed.
    pub fn follow(&mut self, now: Timestamp, agreed: Arc<Agreed>, effects: &mut Vec<Effect>) {
        self.agreed = agreed;
        let agreed = Arc::clone(&self.agreed);
        for (number, replicas) in agreed.shards.iter().enumerate() {
            let id = ShardId(number as u16);
            let Some((owner, fence)) = agreed.map.owner(id) else {
                continue;
            };
            if *owner != self.me {
                let is_over = |replica: &mut Replica| replica.fence < fence;
                self.replicas
                    .extract_if(id..=id, |_, replica| is_over(replica))
                    .for_each(drop);
                continue;
            }
            if !replicas.promoted || self.begun.get(&id).is_some_and(|begun| *begun >= fence) {
                continue;
            }
            self.begun.insert(id, fence);
            let tenure = Tenure {
                shard: id,
                fence,
                owner: self.me.clone(),
                cluster: agreed.map.cluster,
            };
            let earlier = replicas.earlier.iter();
            let echoed = earlier.filter_map(|owner| self.owners.get(owner)?.echoed);
            let serves_from = echoed.max().map_or(now, may_serve_from);
            let replica = self.replicas.remove(&id);
            let shard = replica.map(|replica| {
                let mut shard = replica.shard;
                shard.succeed(now, tenure.clone(), serves_from);
                shard
            });
            effects.push(Effect::Begin(Box::new(Succession {
                tenure,
                shard,
                serves_from,
            })));
        }
    }

    /// An owner has made a new way to this node.
    pub fn opened(&mut self, from: &NodeRef) {
        self.owners.entry(from.clone()).or_default().told = 0;
    }

    /// An owner has sent something.
    pub fn batch(&mut self, now: Timestamp, batch: Batch, effects: &mut Vec<Effect>) {
        if batch.to != self.me {
            return;
        }
        let mut echo = Echo {
            from: self.me.clone(),
            to: batch.from.clone(),
            sent_at: batch.sent_at,
            refused: self.refusals(&batch.from),
            confirmed: Vec::new(),
            lost: Vec::new(),
        };
        for part in batch.parts {
            self.part(now, &batch.from, part, &mut echo);
        }
        self.owners.entry(batch.from).or_default().echoed = Some(now);
        effects.push(Effect::Echo(echo));
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Timestamp) {
        for replica in self.replicas.values_mut() {
            replica.shard.age(now);
        }
        // Lives of nodes end, and none of them is heard of again.
        let is_recent = |at: Timestamp| now.since(at) < FORGET;
        self.owners
            .retain(|_, owner| owner.echoed.is_some_and(is_recent));
    }

    /// What is held, and whose it is.
    pub fn held(&self) -> impl Iterator<Item = (ShardId, &NodeRef, Fence)> {
        let held = self.replicas.iter();
        held.map(|(id, replica)| (*id, &replica.owner, replica.fence))
    }

    /// How many owners are remembered.
    pub fn owners(&self) -> usize {
        self.owners.len()
    }

    /// What this owner has not been told on this way: which shards somebody
    /// else owns.
    fn refusals(&mut self, owner: &NodeRef) -> Vec<(ShardId, Fence)> {
        let map = &self.agreed.map;
        let known = self.owners.entry(owner.clone()).or_default();
        if known.told >= map.version {
            return Vec::new();
        }
        let told = std::mem::replace(&mut known.told, map.version);
        let shards = (0..map.rows.len() as u16).map(ShardId);
        shards
            .filter_map(|shard| {
                let (other, fence) = map.owner(shard)?;
                (other != owner && fence.0 > told).then_some((shard, fence))
            })
            .collect()
    }

    fn part(&mut self, now: Timestamp, from: &NodeRef, part: Part, echo: &mut Echo) {
        let Part {
            shard,
            fence,
            fill,
            first,
            records,
        } = part;
        if let Some((_, floor)) = self.agreed.map.owner(shard)
            && fence < floor
        {
            echo.refused.push((shard, floor));
            return;
        }
        let known = self.replicas.get(&shard);
        if known.is_some_and(|known| known.fence > fence) {
            return;
        }
        let is_new = known.is_none_or(|known| (known.fence, known.fill) < (fence, fill));
        let begins = first == 1 && matches!(records.first().map(|r| &**r), Some(Record::Begin(_)));
        if is_new && !begins {
            echo.lost.push((shard, fence));
            return;
        }
        if is_new {
            let tenure = Tenure {
                shard,
                fence,
                owner: from.clone(),
                cluster: self.agreed.map.cluster,
            };
            let replica = Replica {
                owner: from.clone(),
                fence,
                fill,
                received: 0,
                shard: Shard::new(tenure, Arc::clone(&self.namespaces)),
            };
            self.replicas.insert(shard, replica);
        }
        let Some(replica) = self.replicas.get_mut(&shard) else {
            return;
        };
        if (replica.fence, replica.fill) != (fence, fill) {
            return;
        }
        for (number, record) in (first..=u64::MAX).zip(records) {
            if replica.received.checked_add(1) == Some(number) {
                let record = Arc::unwrap_or_clone(record);
                replica.shard.replay(now, record);
                replica.received = number;
            }
        }
        echo.confirmed.push(Confirmation {
            shard,
            fence,
            fill,
            number: replica.received,
        });
    }
}
