//! The shards of one worker: they come and go with the map.
//!
//! A shard is served under exactly one fence. When the map names another owner,
//! another life of this node, or a higher fence, the shard's state goes, and
//! what is served after that has new epochs. Whoever asks for a shard that is
//! not served here is told who serves it, by the same map.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::channel::ChannelKey;
use proto::id::{GatewayRef, NodeRef};
use proto::message::{Answer, ChannelInfo, Question, Reply, Request, ShardInterest};
use proto::namespace::Namespaces;
use proto::shard::{Fence, ShardId, ShardMap};
use proto::time::Timestamp;

use super::routing::{Elsewhere, elsewhere};
use super::shard::{self, Effect, Shard, Tenure};

/// What a worker is told.
#[derive(Debug)]
pub enum Input {
    /// Who owns what, from now on.
    Map(Arc<ShardMap>),
    /// A gateway asks something of a shard.
    Request {
        /// Which gateway.
        from: GatewayRef,
        /// Which shard.
        shard: ShardId,
        /// For what.
        request: Request,
    },
    /// A gateway says what it wants in a shard, served here or not.
    Beat {
        /// Which one.
        from: GatewayRef,
        /// What it wants.
        interest: ShardInterest,
    },
    /// A gateway begins a new life: its earlier ones are void in all shards.
    Met(GatewayRef),
    /// A gateway counts as gone.
    Forget(GatewayRef),
    /// Time has passed.
    Tick,
}

/// Which shards are a worker's, if the node owns them: every `of`-th.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// The first of them.
    pub index: usize,
    /// How many workers there are.
    pub of: usize,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Shards {
    me: NodeRef,
    part: Part,
    namespaces: Arc<Namespaces>,
    map: Arc<ShardMap>,
    served: BTreeMap<ShardId, Shard>,
}

impl Shards {
    /// A worker that serves nothing until it is told a map.
    pub fn new(me: NodeRef, part: Part, namespaces: Arc<Namespaces>, map: Arc<ShardMap>) -> Self {
        Self {
            me,
            part,
            namespaces,
            map,
            served: BTreeMap::new(),
        }
    }

    /// Applies one input. The only way the shards change.
    pub fn handle(&mut self, now: Timestamp, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Map(map) => self.follow(map, effects),
            Input::Request {
                from,
                shard,
                request,
            } => self.request(now, from, shard, request, effects),
            Input::Beat { from, interest } => {
                let digest = interest.digest;
                if let Some(shard) = self.served.get_mut(&interest.shard) {
                    shard.handle(now, shard::Input::Beat { from, digest }, effects);
                }
            }
            Input::Met(gateway) => self.all(now, || shard::Input::Met(gateway.clone()), effects),
            Input::Forget(gateway) => {
                self.all(now, || shard::Input::Forget(gateway.clone()), effects);
                // Behind what this worker has still sent it: the last worker
                // to say so ends the link.
                effects.push(Effect::Forget(gateway));
            }
            Input::Tick => self.all(now, || shard::Input::Tick, effects),
        }
    }

    /// The shards that are served, for metrics.
    pub fn served(&self) -> impl Iterator<Item = (ShardId, &Shard)> {
        self.served.iter().map(|(id, shard)| (*id, shard))
    }

    /// One channel, for those who look inside.
    pub fn describe(&self, key: &ChannelKey) -> Answer {
        if self.map.rows.is_empty() {
            return Answer::Unavailable("this node has no shard map yet".into());
        }
        let shard = self.map.sharding.shard_of(key);
        match (self.served.get(&shard), self.map.owner(shard)) {
            (Some(served), _) => Answer::Channel(ChannelInfo {
                key: key.clone(),
                shard,
                owner: self.me.clone(),
                fence: served.fence(),
                state: served.describe(key),
            }),
            (None, Some((owner, _))) if *owner != self.me => Answer::NotOwner {
                owner: owner.clone(),
            },
            (None, _) => Answer::Unavailable(format!("nobody serves shard {shard}")),
        }
    }

    fn all(&mut self, now: Timestamp, input: impl Fn() -> shard::Input, effects: &mut Vec<Effect>) {
        for shard in self.served.values_mut() {
            shard.handle(now, input(), effects);
        }
    }

    fn request(
        &mut self,
        now: Timestamp,
        from: GatewayRef,
        id: ShardId,
        request: Request,
        effects: &mut Vec<Effect>,
    ) {
        if let Request::Inspect {
            id,
            question: Question::Channel { key },
        } = &request
        {
            let (id, answer) = (*id, self.describe(key));
            let reply = Reply::Inspected { id, answer };
            effects.push(Effect::Reply { to: from, reply });
        } else if let Some(shard) = self.served.get_mut(&id) {
            shard.handle(now, shard::Input::Request { from, request }, effects);
        } else {
            effects.extend(match elsewhere(&self.map, id, &request) {
                Elsewhere::Answer(reply) => Some(Effect::Reply { to: from, reply }),
                Elsewhere::Nothing => None,
                Elsewhere::Unroutable => Some(Effect::Unroutable),
            });
        }
    }

    fn follow(&mut self, map: Arc<ShardMap>, effects: &mut Vec<Effect>) {
        self.map = map;
        let owned = |shard| {
            let (owner, fence) = self.map.owner(shard)?;
            (*owner == self.me).then_some(fence)
        };
        let ended =
            |(id, shard): (&ShardId, &Shard)| (owned(*id) != Some(shard.fence())).then_some(*id);
        let ended: Vec<ShardId> = self.served.iter().filter_map(ended).collect();
        self.served.retain(|id, _| ended.binary_search(id).is_err());
        effects.extend(ended.into_iter().map(Effect::Stopped));
        let begun: Vec<(ShardId, Fence)> = (0..self.map.rows.len() as u16)
            .skip(self.part.index)
            .step_by(self.part.of.max(1))
            .map(ShardId)
            .filter(|id| !self.served.contains_key(id))
            .filter_map(|id| Some((id, owned(id)?)))
            .collect();
        for (id, fence) in begun {
            let tenure = Tenure {
                shard: id,
                fence,
                owner: self.me.clone(),
                cluster: self.map.cluster,
            };
            let shard = Shard::new(tenure, Arc::clone(&self.namespaces));
            self.served.insert(id, shard);
            effects.push(Effect::Started(id));
        }
    }
}

#[cfg(test)]
mod tests;
