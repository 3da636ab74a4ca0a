//! The shards of one worker: they come and go with the map.
//!
//! A shard is served under exactly one fence. When the map names another owner,
//! another life of this node, or a higher fence, the shard's state goes, and
//! what is served after that has new epochs. Whoever asks for a shard that is
//! not served here is told who serves it, by the same map; if that is this node,
//! the request waits until the shard has come, and if whoever asks knows a later
//! map, until that has.

mod describing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::channel::ChannelKey;
use proto::id::{GatewayId, GatewayRef, NodeRef};
use proto::inspection::{Answer, ChannelInfo, Question};
use proto::message::{Greet, Reply, Request, ShardInterest};
use proto::namespace::Namespaces;
use proto::shard::{Fence, ShardId};
use proto::time::Timestamp;

use super::agreed::Agreed;
use super::checkpoint::ShardCheckpoint;
use super::gone::Gone;
use super::handoff::{self, Handoff};
use super::pairs;
use super::placement::Targets;
use super::replicas::Succession;
use super::replication::Leases;
use super::routing::{Elsewhere, elsewhere};
use super::shard::{self, Around, Effect, Shard, Tenure};

/// What may wait in one shard for standbys and leases; then requests are not
/// heard, and come again.
const HELD_MAX: usize = 65_536;

/// Requests that may wait for one shard that is to come; more are not heard, and
/// come again. As many as one gateway has unanswered.
const WAITING_MAX: usize = 1_024;
/// For how long one waits at most: then its gateway has given it up.
const WAITS: Duration = Duration::from_secs(5);

/// What a worker is told.
#[derive(Debug)]
pub enum Input {
    /// Who owns what, from now on.
    Agreed(Arc<Agreed>),
    /// A shard has come to this node with its state.
    Begin(Box<Succession>),
    /// Until when this node may act as an owner.
    Leases(Arc<Leases>),
    /// These nodes should stand by for a shard.
    Want {
        /// The shard.
        shard: ShardId,
        /// The nodes.
        standbys: Vec<NodeRef>,
    },
    /// What has come of the ways to standbys.
    Pair(pairs::Effect),
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
    /// These gateways are there, as this node hears.
    Around(Arc<Around>),
    /// A gateway has no members in most shards.
    Vacant(Arc<Vacant>),
    /// Time has passed.
    Tick,
}

/// A gateway has never stated a member in its life, but in some shards. That holds for
/// those who owned the others when it knew this version of the map: whoever comes later
/// is told to them.
#[derive(Debug)]
pub struct Vacant {
    /// Which gateway.
    pub gateway: GatewayRef,
    /// What it knew of owners.
    pub map_version: u64,
    /// In all shards but these.
    pub except: Vec<ShardId>,
}

impl Vacant {
    /// What a gateway says with a greeting, and what it is answered.
    pub fn greeted(from: &GatewayRef, map_version: u64, greet: &Greet) -> (Arc<Self>, Effect) {
        let vacant = Arc::new(Self {
            gateway: from.clone(),
            map_version,
            except: greet.except.clone(),
        });
        let to = from.clone();
        let reply = Reply::Greeted { map_version };
        (vacant, Effect::Reply { to, reply })
    }

    fn concerns(&self, shard: &Shard, id: ShardId) -> bool {
        shard.fence().0 <= self.map_version && !self.except.contains(&id)
    }
}

/// What an owner needs to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// Of the cluster's leader.
    Node,
    /// Of a standby.
    Pair,
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
    agreed: Arc<Agreed>,
    leases: Arc<Leases>,
    around: Arc<Around>,
    /// What gateways have last said of shards in which they have no members: for those
    /// that are to come.
    vacant: BTreeMap<GatewayId, Arc<Vacant>>,
    served: BTreeMap<ShardId, Shard>,
    /// Shards that another node is to serve, or will be.
    leaving: BTreeMap<ShardId, Handoff>,
    /// What waits for shards that are to come, in order.
    waiting: BTreeMap<ShardId, Vec<Waiting>>,
    /// Nothing is served any more.
    rests: bool,
}

/// A request that waits.
#[derive(Debug)]
struct Waiting {
    since: Timestamp,
    from: GatewayRef,
    request: Request,
}

impl Shards {
    /// A worker that serves nothing until it is told a map.
    pub fn new(
        me: NodeRef,
        part: Part,
        namespaces: Arc<Namespaces>,
        agreed: Arc<Agreed>,
        leases: Arc<Leases>,
    ) -> Self {
        Self {
            me,
            part,
            namespaces,
            agreed,
            leases,
            around: Arc::default(),
            vacant: BTreeMap::new(),
            served: BTreeMap::new(),
            leaving: BTreeMap::new(),
            waiting: BTreeMap::new(),
            rests: false,
        }
    }

    /// Applies one input. The only way the shards change.
    pub fn handle(&mut self, now: Timestamp, input: Input, effects: &mut Vec<Effect>) {
        if self.rests {
            return;
        }
        match input {
            Input::Agreed(agreed) => self.follow(now, agreed, effects),
            Input::Begin(succession) => self.begin(now, *succession, effects),
            Input::Leases(leases) => {
                self.leases = leases;
                let is_any_silent = self.leases.is_any_silent(now);
                let waits = |shard: &&mut Shard| is_any_silent || !shard.replication().is_settled();
                for shard in self.served.values_mut().filter(waits) {
                    shard.gate(now, &self.leases, effects.len(), effects);
                }
                // Sooner than the next tick: nobody is to be there for longer.
                for shard in self.served.values_mut() {
                    shard.converge(now, effects);
                    if shard.has_leaving(now) {
                        let first = effects.len();
                        shard.handle(now, shard::Input::Tick, effects);
                        shard.gate(now, &self.leases, first, effects);
                    }
                }
            }
            Input::Want { shard, standbys } => {
                self.one(now, shard, shard::Input::Want(standbys), effects);
            }
            Input::Pair(news) => self.pair(now, news, effects),
            Input::Request {
                from,
                shard,
                request,
            } => {
                let since = now;
                let asked = Waiting {
                    since,
                    from,
                    request,
                };
                self.request(now, shard, asked, effects);
            }
            Input::Beat { from, .. } if self.agreed.gone.contains(&from) => {}
            Input::Beat { from, interest } => {
                let digest = interest.digest;
                let input = shard::Input::Beat { from, digest };
                self.one(now, interest.shard, input, effects);
            }
            Input::Vacant(vacant) => self.vacate(now, vacant, effects),
            Input::Met(gateway) => {
                self.waiting.retain(|_, waiting| {
                    // Nobody is there for what its earlier life asked.
                    waiting.retain(|Waiting { from, .. }| {
                        from.id != gateway.id || from.incarnation >= gateway.incarnation
                    });
                    !waiting.is_empty()
                });
                self.all(now, || shard::Input::Met(gateway.clone()), effects);
            }
            Input::Forget(gateway) => {
                self.vacant.remove(&gateway.id);
                self.all(now, || shard::Input::Forget(gateway.clone()), effects);
                // Behind what this worker has still sent it: the last worker
                // to say so ends the link.
                effects.push(Effect::Forget(gateway));
            }
            Input::Around(around) => {
                self.around = around;
                let around = Arc::clone(&self.around);
                self.all(now, || shard::Input::Around(Arc::clone(&around)), effects);
            }
            Input::Tick => {
                self.all(now, || shard::Input::Tick, effects);
                self.hand_over(now, || handoff::Input::Tick, effects);
                self.waiting.retain(|_, waiting| {
                    waiting.retain(|asked| now.since(asked.since) < WAITS);
                    !waiting.is_empty()
                });
            }
        }
    }

    /// Serves nothing any more, and returns what was served. What is asked from
    /// now on is not answered, nor is what was held: it comes again, and what it
    /// has changed is in the state.
    pub fn rest(&mut self, now: Timestamp, effects: &mut Vec<Effect>) -> Vec<ShardCheckpoint> {
        self.rests = true;
        let served = std::mem::take(&mut self.served).into_iter();
        let kept = served.map(|(id, shard)| {
            effects.push(Effect::Stopped(id));
            ShardCheckpoint {
                shard: id,
                fence: shard.fence(),
                waits: false,
                records: shard.checkpoint(now),
            }
        });
        kept.collect()
    }

    /// The shards that are served, for metrics.
    pub fn served(&self) -> impl Iterator<Item = (ShardId, &Shard)> {
        self.served.iter().map(|(id, shard)| (*id, shard))
    }

    /// Under which fence a shard is served; `None`: it is not served here.
    pub fn fence(&self, shard: ShardId) -> Option<Fence> {
        self.served.get(&shard).map(Shard::fence)
    }

    /// The shards whose standbys are not those that they should have, and who
    /// that is; those first for which nobody stands by.
    pub fn differing<'a>(
        &'a self,
        targets: &'a Targets,
    ) -> impl Iterator<Item = (ShardId, Vec<NodeRef>)> + 'a {
        let differing = self.served.iter().filter_map(|(id, shard)| {
            let target = targets.get(id)?;
            let known = shard.replication().standbys();
            let is_wanted = |node: &NodeRef| target.standbys().any(|wanted| wanted == node);
            let are_wanted = known.filter(|(node, _)| is_wanted(node)).count();
            let are_all = are_wanted == shard.replication().standbys().count();
            let is_settled = are_all && are_wanted == target.standbys().count();
            (!is_settled).then_some((*id, shard, target))
        });
        let (bare, rest): (Vec<_>, Vec<_>) =
            differing.partition(|(_, shard, _)| !shard.replication().is_replicated());
        let all = bare.into_iter().chain(rest);
        all.map(|(id, _, target)| (id, target.standbys().cloned().collect()))
    }

    /// The shards of which this node may act as the owner now, and under which
    /// fence.
    pub fn acting(&self, now: Timestamp) -> impl Iterator<Item = (ShardId, Fence)> {
        let acts = move |shard: &Shard| shard.replication().acts(now, &self.leases);
        let served = self.served.iter();
        let acting = served.filter(move |(_, shard)| acts(shard));
        acting.map(|(id, shard)| (*id, shard.fence()))
    }

    /// For want of which lease this node may not act as the owner of something
    /// that it serves.
    pub fn lacks(&self, now: Timestamp) -> Option<Lease> {
        if self.served.is_empty() {
            return None;
        }
        if now >= self.leases.node {
            return Some(Lease::Node);
        }
        // Rarely is any of them to be looked for.
        let mut pairs = self.leases.pairs.values();
        let are_all_held = pairs.all(|pair| pair.holds(now));
        let mut served = self.served.values();
        let waits = |shard: &Shard| !shard.replication().acts(now, &self.leases);
        (!are_all_held && served.any(waits)).then_some(Lease::Pair)
    }

    /// What people ask of one channel or shard. `None`: that is not asked here.
    fn inspect(&self, now: Timestamp, question: &Question) -> Option<Answer> {
        match question {
            Question::Channel { key } => Some(self.describe(key)),
            Question::Shard { shard } => Some(self.describe_shard(now, *shard)),
            _ => None,
        }
    }

    /// One channel, for those who look inside.
    pub fn describe(&self, key: &ChannelKey) -> Answer {
        let map = &self.agreed.map;
        if map.rows.is_empty() {
            return Answer::Unavailable("this node has no shard map yet".into());
        }
        let shard = map.sharding.shard_of(key);
        match (self.served.get(&shard), map.owner(shard)) {
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
            let first = effects.len();
            shard.handle(now, input(), effects);
            shard.gate(now, &self.leases, first, effects);
        }
    }

    fn one(&mut self, now: Timestamp, id: ShardId, input: shard::Input, effects: &mut Vec<Effect>) {
        if let Some(shard) = self.served.get_mut(&id) {
            let first = effects.len();
            shard.handle(now, input, effects);
            shard.gate(now, &self.leases, first, effects);
        }
    }

    fn pair(&mut self, now: Timestamp, news: pairs::Effect, effects: &mut Vec<Effect>) {
        let is_of = |served: &BTreeMap<ShardId, Shard>, id, fence| {
            let shard: Option<&Shard> = served.get(id);
            shard.is_some_and(|shard| shard.fence() == fence)
        };
        match news {
            pairs::Effect::Confirmed(from, confirmed) => {
                let pairs::Confirmation {
                    shard,
                    fence,
                    fill,
                    number,
                } = confirmed;
                if is_of(&self.served, &shard, fence) {
                    let input = shard::Input::Confirmed { from, fill, number };
                    self.one(now, shard, input, effects);
                } else if let Some(handoff) = self.leaving.get_mut(&shard)
                    && handoff.fence() == fence
                {
                    let input = handoff::Input::Confirmed { from, fill, number };
                    handoff.handle(now, input, effects);
                }
            }
            pairs::Effect::Lost(from, shard, fence) => {
                if is_of(&self.served, &shard, fence) {
                    self.one(now, shard, shard::Input::Lost(from), effects);
                }
            }
            pairs::Effect::Refused(from, shard, fence) => {
                let served = self.served.get(&shard);
                if served.is_some_and(|served| served.fence() < fence) {
                    self.stop(now, shard, effects);
                }
                if let Some(handoff) = self.leaving.get_mut(&shard)
                    && handoff.fence() < fence
                {
                    handoff.handle(now, handoff::Input::Refused(from), effects);
                }
            }
            pairs::Effect::Reopened(node) => {
                self.all(now, || shard::Input::Reopened(node.clone()), effects);
                self.hand_over(now, || handoff::Input::Reopened(node.clone()), effects);
            }
            pairs::Effect::Ended(node) => {
                self.all(now, || shard::Input::Lost(node.clone()), effects);
            }
            pairs::Effect::Send(_) => {}
        }
    }

    /// This node serves a shard no longer.
    fn stop(&mut self, now: Timestamp, id: ShardId, effects: &mut Vec<Effect>) {
        let Some(shard) = self.served.remove(&id) else {
            return;
        };
        effects.push(Effect::Stopped(id));
        let place = (id, shard.fence());
        let handoff = Handoff::stop(now, place, shard.stop(now));
        self.leaving.extend(handoff.map(|handoff| (id, handoff)));
    }

    fn hand_over(
        &mut self,
        now: Timestamp,
        input: impl Fn() -> handoff::Input,
        effects: &mut Vec<Effect>,
    ) {
        for handoff in self.leaving.values_mut() {
            handoff.handle(now, input(), effects);
        }
        self.leaving.retain(|_, handoff| !handoff.is_done());
    }

    fn begin(&mut self, now: Timestamp, succession: Succession, effects: &mut Vec<Effect>) {
        let Succession { tenure, shard, .. } = succession;
        let id = tenure.shard;
        let is_known = |known: Fence| known >= tenure.fence;
        let known = self.agreed.map.owner(id);
        let is_over = known.is_some_and(|(owner, fence)| {
            fence > tenure.fence || (fence == tenure.fence && *owner != self.me)
        });
        if is_over || self.served.get(&id).is_some_and(|s| is_known(s.fence())) {
            return;
        }
        let shard = shard.unwrap_or_else(|| {
            let mut shard = Shard::new(tenure.clone(), Arc::clone(&self.namespaces));
            shard.succeed(now, tenure, None);
            shard
        });
        if self.served.insert(id, shard).is_none() {
            effects.push(Effect::Started(id));
        }
        // What its last owner knew, perhaps from before they were.
        let gone = Arc::clone(&self.agreed.gone);
        self.one(now, id, shard::Input::Gone(gone), effects);
        self.listen(now, id, effects);
        self.tell_agreed(now, id, effects);
        for asked in self.waiting.remove(&id).unwrap_or_default() {
            self.request(now, id, asked, effects);
        }
    }

    /// A shard that is served from now on hears of members, and of who has none.
    fn listen(&mut self, now: Timestamp, id: ShardId, effects: &mut Vec<Effect>) {
        let Some(shard) = self.served.get_mut(&id) else {
            return;
        };
        shard.listen(now, Arc::clone(&self.around));
        let vacant = self.vacant.values().filter(|it| it.concerns(shard, id));
        let vacant: Vec<GatewayRef> = vacant.map(|it| it.gateway.clone()).collect();
        for gateway in vacant {
            self.one(now, id, shard::Input::Vacant(gateway), effects);
        }
    }

    /// A gateway says in which shards it has no members.
    fn vacate(&mut self, now: Timestamp, vacant: Arc<Vacant>, effects: &mut Vec<Effect>) {
        if self.agreed.gone.contains(&vacant.gateway) {
            return;
        }
        let known = self.vacant.get(&vacant.gateway.id);
        let order = |it: &Vacant| (it.gateway.incarnation, it.map_version);
        if known.is_none_or(|known| order(known) <= order(&vacant)) {
            let id = vacant.gateway.id.clone();
            self.vacant.insert(id, Arc::clone(&vacant));
        }
        let served = self.served.iter();
        let concerned = served.filter(|(id, shard)| vacant.concerns(shard, **id));
        let concerned: Vec<ShardId> = concerned.map(|(id, _)| *id).collect();
        for id in concerned {
            let gateway = vacant.gateway.clone();
            self.one(now, id, shard::Input::Vacant(gateway), effects);
        }
    }

    /// More gateways are gone than before.
    fn lose(&mut self, now: Timestamp, before: &Arc<Gone>, effects: &mut Vec<Effect>) {
        let gone = Arc::clone(&self.agreed.gone);
        if !Arc::ptr_eq(&gone, before) {
            self.vacant.retain(|_, it| !gone.contains(&it.gateway));
            self.all(now, || shard::Input::Gone(Arc::clone(&gone)), effects);
        }
    }

    fn tell_agreed(&mut self, now: Timestamp, id: ShardId, effects: &mut Vec<Effect>) {
        let agreed = Arc::clone(&self.agreed);
        let fence = self.served.get(&id).map(Shard::fence);
        if let Some(replicas) = agreed.replicas(id)
            && agreed.fence_of(id, &self.me) == fence
        {
            let row = replicas.row.clone();
            self.one(now, id, shard::Input::Agreed(row), effects);
        }
    }

    fn request(&mut self, now: Timestamp, id: ShardId, asked: Waiting, effects: &mut Vec<Effect>) {
        let Waiting {
            since,
            from,
            request,
        } = asked;
        if let Some(through) = self.agreed.gone.through(&from) {
            // Its publish table has gone, so what it asks again would be done again.
            let reply = Reply::DeclaredGone { through };
            effects.push(Effect::Reply { to: from, reply });
        } else if let Request::Inspect { id, question } = &request {
            let (id, answer) = (*id, self.inspect(now, question));
            let reply = answer.map(|answer| Reply::Inspected { id, answer });
            effects.extend(reply.map(|reply| Effect::Reply { to: from, reply }));
        } else if let Some(shard) = self.served.get_mut(&id) {
            // Whoever asks will ask again, when less is waiting.
            if shard.replication().held() < HELD_MAX {
                let first = effects.len();
                shard.handle(now, shard::Input::Request { from, request }, effects);
                shard.gate(now, &self.leases, first, effects);
            }
        } else if self.agreed.fence_of(id, &self.me).is_some() || self.is_ahead(id, &request) {
            // It is to come, or has gone and who has it now is to be heard of.
            let waiting = self.waiting.entry(id).or_default();
            if waiting.len() < WAITING_MAX {
                waiting.push(Waiting {
                    since,
                    from,
                    request,
                });
            }
        } else {
            effects.extend(match elsewhere(&self.agreed.map, id, &request) {
                Elsewhere::Answer(reply) => Some(Effect::Reply { to: from, reply }),
                Elsewhere::Nothing => None,
                Elsewhere::Unroutable => Some(Effect::Unroutable),
            });
        }
    }

    /// Whether who asks knows of a later owner of a shard, which this node may be.
    fn is_ahead(&self, id: ShardId, request: &Request) -> bool {
        let known = self.agreed.map.owner(id).map(|(_, fence)| fence);
        known.is_some_and(|known| request.fence().is_some_and(|fence| fence > known))
    }

    fn follow(&mut self, now: Timestamp, agreed: Arc<Agreed>, effects: &mut Vec<Effect>) {
        let before = std::mem::replace(&mut self.agreed, agreed);
        self.lose(now, &before.gone, effects);
        let map = Arc::clone(&self.agreed.map);
        // What was begun under a fence that the map does not have yet stays.
        let is_over = |id: &ShardId, shard: &Shard| match map.owner(*id) {
            Some((owner, fence)) if *owner == self.me => shard.fence() < fence,
            Some((_, fence)) => shard.fence() <= fence,
            None => true,
        };
        let served = self.served.iter();
        let ended: Vec<ShardId> = served
            .filter(|(id, shard)| is_over(id, shard))
            .map(|(id, _)| *id)
            .collect();
        for id in ended {
            self.stop(now, id, effects);
        }
        for (id, handoff) in &mut self.leaving {
            if let Some((owner, fence)) = map.owner(*id)
                && fence > handoff.fence()
            {
                handoff.handle(now, handoff::Input::Agreed(owner.clone()), effects);
            }
        }
        self.leaving.retain(|_, handoff| !handoff.is_done());
        let mine = (0..map.rows.len() as u16)
            .skip(self.part.index)
            .step_by(self.part.of.max(1))
            .map(ShardId);
        for id in mine {
            let Some(fence) = self.agreed.fence_of(id, &self.me) else {
                continue;
            };
            let comes = self.agreed.replicas(id).is_some_and(|r| r.promoted);
            if !self.served.contains_key(&id) && !comes {
                let tenure = Tenure {
                    shard: id,
                    fence,
                    owner: self.me.clone(),
                    cluster: map.cluster,
                };
                let shard = Shard::new(tenure, Arc::clone(&self.namespaces));
                self.served.insert(id, shard);
                self.listen(now, id, effects);
                effects.push(Effect::Started(id));
            }
            self.tell_agreed(now, id, effects);
        }
        // What waited for a shard that is served here now, or elsewhere.
        let is_known = |id: &ShardId| {
            self.served.contains_key(id) || self.agreed.fence_of(*id, &self.me).is_none()
        };
        let known = self.waiting.extract_if(.., |id, _| is_known(id));
        let known: Vec<_> = known.collect();
        for (id, waiting) in known {
            for asked in waiting {
                self.request(now, id, asked, effects);
            }
        }
    }
}

#[cfg(test)]
mod tests;
