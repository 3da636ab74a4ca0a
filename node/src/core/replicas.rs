//! What a node holds of shards that others own, and when it owns them itself.
//!
//! A standby applies the records of its owner in order and echoes each batch.
//! The echo is a promise: until [`may_serve_from`] says so, nothing that the owner
//! owned then is served here. So when it is agreed that the standby is the owner
//! now, it first refuses the earlier fence (no echo goes out any more without
//! saying so) and then waits until no earlier owner can have a lease of it, or
//! until the owner before it says that it has stopped ([`Record::Release`]). What
//! still comes from that owner meanwhile is applied, too: nobody has seen anything
//! of it, and all who stay have the same.
//!
//! A replica goes when its shard has another owner under a higher fence and this
//! node is not agreed to be in sync with that one, and for no other reason: who
//! is agreed to be in sync may be made the owner at any time. One that stays is
//! of the earlier owner until the new one says what it goes on with
//! ([`Record::Attach`]); if that is something else, the replica is of no use.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::id::NodeRef;
use proto::namespace::Namespaces;
use proto::shard::{Fence, ShardId};
use proto::time::Timestamp;

use super::agreed::Agreed;
use super::checkpoint::ShardCheckpoint;
use super::lease::may_serve_from;
use super::pairs::{Batch, Confirmation, Echo, Part};
use super::record::{Held, Record};
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
    /// Whether the owner before it said that it has stopped.
    pub is_released: bool,
    /// How long it took since this node knew that it is the owner.
    pub after: Duration,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Replicas {
    me: NodeRef,
    namespaces: Arc<Namespaces>,
    agreed: Arc<Agreed>,
    replicas: BTreeMap<ShardId, Replica>,
    /// Shards that this node owns, and does not serve yet.
    coming: BTreeMap<ShardId, Coming>,
    /// Shards that came to this node or have begun, under which fence.
    begun: BTreeMap<ShardId, Fence>,
    /// Nothing begins any more.
    rests: bool,
    owners: BTreeMap<NodeRef, Owner>,
}

#[derive(Debug)]
struct Replica {
    owner: NodeRef,
    fence: Fence,
    fill: u64,
    /// It has everything up to this number.
    received: u64,
    /// The owner has stopped; who else has everything.
    released: Option<Vec<Held>>,
    /// Before that it does not begin.
    waits_until: Option<Timestamp>,
    shard: Shard,
}

/// A shard that this node is to serve.
#[derive(Debug)]
struct Coming {
    fence: Fence,
    /// Who may act as its owner still, and until when. What is echoed later says
    /// first that it is the owner no more.
    earlier: Vec<(NodeRef, Timestamp)>,
    /// Who stands by already.
    in_sync: Vec<NodeRef>,
    since: Timestamp,
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
            coming: BTreeMap::new(),
            begun: BTreeMap::new(),
            rests: false,
            owners: BTreeMap::new(),
        }
    }

    /// What this node kept when it stopped by itself, a while ago. It counts for
    /// shards that are given back to it for that, and for nothing else.
    pub fn restore(&mut self, now: Timestamp, ago: Duration, kept: Vec<ShardCheckpoint>) {
        let then = Timestamp(now.0.saturating_sub(ago.as_millis() as u64));
        for checkpoint in kept {
            let ShardCheckpoint {
                shard: id,
                fence,
                waits,
                records,
            } = checkpoint;
            let tenure = Tenure {
                shard: id,
                fence,
                owner: self.me.clone(),
                cluster: self.agreed.map.cluster,
            };
            let mut shard = Shard::new(tenure, Arc::clone(&self.namespaces));
            for record in records {
                shard.replay(then, record);
            }
            let mut replica = Replica::new(self.me.clone(), fence, 0, shard);
            // Whatever an earlier life of this node has promised was before now.
            replica.waits_until = waits.then(|| may_serve_from(now));
            self.replicas.insert(id, replica);
        }
    }

    /// Begins nothing any more, and returns what was still to begin.
    pub fn rest(&mut self, now: Timestamp) -> Vec<ShardCheckpoint> {
        self.rests = true;
        let coming = std::mem::take(&mut self.coming).into_iter();
        let kept = coming.filter_map(|(id, coming)| {
            let replica = self.replicas.remove(&id)?;
            Some(ShardCheckpoint {
                shard: id,
                fence: coming.fence,
                waits: true,
                records: replica.shard.checkpoint(now),
            })
        });
        kept.collect()
    }

    /// Something else is agreed.
    pub fn follow(&mut self, now: Timestamp, agreed: Arc<Agreed>, effects: &mut Vec<Effect>) {
        self.agreed = agreed;
        if self.rests {
            return;
        }
        let agreed = Arc::clone(&self.agreed);
        for (number, replicas) in agreed.shards.iter().enumerate() {
            let id = ShardId(number as u16);
            let Some((owner, fence)) = agreed.map.owner(id) else {
                continue;
            };
            if *owner != self.me {
                self.coming.remove(&id);
                let stays = agreed.stands_by(id, &self.me);
                let is_over = |replica: &mut Replica| replica.fence < fence && !stays;
                self.replicas
                    .extract_if(id..=id, |_, replica| is_over(replica))
                    .for_each(drop);
            } else if !replicas.promoted {
                self.replicas.remove(&id);
            } else if self.begun.get(&id).is_none_or(|begun| *begun < fence) {
                self.begun.insert(id, fence);
                let until = |owner: &NodeRef| {
                    let echoed = self.owners.get(owner)?.echoed?;
                    Some((owner.clone(), may_serve_from(echoed)))
                };
                let kept = self.replicas.get(&id);
                let own = kept.and_then(|kept| Some((self.me.clone(), kept.waits_until?)));
                let earlier = replicas.earlier.iter().filter_map(until);
                let coming = Coming {
                    fence,
                    earlier: earlier.chain(own).collect(),
                    in_sync: replicas.row.in_sync.clone(),
                    since: now,
                };
                self.coming.insert(id, coming);
            }
        }
        self.begin(now, effects);
    }

    /// Begins to serve what no earlier owner can serve any more. To be called
    /// often: time alone brings it.
    pub fn begin(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let coming: Vec<ShardId> = self.coming.keys().copied().collect();
        for id in coming {
            self.begin_one(now, id, effects);
        }
    }

    fn begin_one(&mut self, now: Timestamp, id: ShardId, effects: &mut Vec<Effect>) {
        let Some(coming) = self.coming.get(&id) else {
            return;
        };
        let replica = self.replicas.get(&id);
        let released = replica.and_then(|replica| Some((replica, replica.released.as_ref()?)));
        let is_released = released.is_some();
        let by = released.map(|(replica, _)| &replica.owner);
        let mut others = coming.earlier.iter().filter(|(owner, _)| Some(owner) != by);
        if others.any(|(_, until)| now < *until) {
            return;
        }
        let held = released.into_iter().flat_map(|(_, held)| held);
        let mut stay = held.filter(|held| coming.in_sync.contains(&held.node));
        let stays = stay.next().cloned();
        let tenure = Tenure {
            shard: id,
            fence: coming.fence,
            owner: self.me.clone(),
            cluster: self.agreed.map.cluster,
        };
        let after = now.since(coming.since);
        self.coming.remove(&id);
        let shard = self.replicas.remove(&id).map(|replica| {
            let mut shard = replica.shard;
            shard.succeed(now, tenure.clone(), stays);
            shard
        });
        effects.push(Effect::Begin(Box::new(Succession {
            tenure,
            shard,
            is_released,
            after,
        })));
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
        let shards: Vec<ShardId> = batch.parts.iter().map(|part| part.shard).collect();
        for part in batch.parts {
            self.part(now, &batch.from, part, &mut echo);
        }
        self.owners.entry(batch.from).or_default().echoed = Some(now);
        effects.push(Effect::Echo(echo));
        for shard in shards {
            self.begin_one(now, shard, effects);
        }
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
                let stays = other != &self.me && self.agreed.stands_by(shard, &self.me);
                (other != owner && fence.0 > told && !stays).then_some((shard, fence))
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
        let known = self.replicas.get_mut(&shard);
        let floor = self.agreed.map.owner(shard).map(|(_, floor)| floor);
        // A replica of an earlier owner is kept by who is the owner now, or
        // stays. It takes what that one has still sent.
        let is_kept = known.as_ref().is_some_and(|known| known.fence == fence);
        if let Some(floor) = floor.filter(|floor| fence < *floor && !is_kept) {
            echo.refused.push((shard, floor));
            return;
        }
        if known.as_ref().is_some_and(|known| known.fence > fence) {
            return;
        }
        let tenure = || Tenure {
            shard,
            fence,
            owner: from.clone(),
            cluster: self.agreed.map.cluster,
        };
        let is_new = known
            .as_ref()
            .is_none_or(|known| (known.fence, known.fill) < (fence, fill));
        if is_new {
            let head = records.first().filter(|_| first == 1);
            match (head.map(|record| &**record), known) {
                (Some(Record::Begin(_)), _) => {
                    let shard_state = Shard::new(tenure(), Arc::clone(&self.namespaces));
                    let replica = Replica::new(from.clone(), fence, fill, shard_state);
                    self.replicas.insert(shard, replica);
                }
                (Some(Record::Attach(held)), Some(known)) if known.holds(held) => {
                    known.owner = from.clone();
                    (known.fence, known.fill, known.received) = (fence, fill, 0);
                    known.released = None;
                    known.shard.attach(tenure());
                }
                _ => {
                    echo.lost.push((shard, fence));
                    return;
                }
            }
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
                if let Record::Release(held) = &record {
                    replica.released = Some(held.clone());
                }
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

impl Replica {
    fn new(owner: NodeRef, fence: Fence, fill: u64, shard: Shard) -> Self {
        Self {
            owner,
            fence,
            fill,
            received: 0,
            released: None,
            waits_until: None,
            shard,
        }
    }

    /// Whether it is exactly this.
    fn holds(&self, held: &Held) -> bool {
        (self.fence, self.fill, self.received) == (held.fence, held.fill, held.number)
    }
}
