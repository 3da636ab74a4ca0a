//! A node: its cores, driven as `node/src/{ingress,worker,egress,gossip}.rs`
//! drive them, task by task. A task that stands still lets its mail pile up.

mod ingress;
mod standing_by;

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::sync::Arc;

use bytes::Bytes;
use node::core::agreed::Agreed;
use node::core::checkpoint::ShardCheckpoint;
use node::core::cluster::Cluster;
use node::core::detection::Beats;
use node::core::detection::bus::Buses;
use node::core::detection::judge::Judge;
use node::core::gateways::Gateways;
use node::core::gossip::{self, Gossip, News, Rumours};
use node::core::lease::{LeaseTable, NodeLease};
use node::core::neighbours::Neighbours;
use node::core::outbound::{Outbound, Parcel};
use node::core::pairs::Pairs;
use node::core::replicas::Replicas;
use node::core::replication::Leases;
use node::core::shard::{Around, Effect, Proposal};
use node::core::shards::{Input, Part, Shards};
use proto::channel::ChannelKey;
use proto::codec;
use proto::id::{GatewayRef, NodeRef};
use proto::inspection::{Answer, ChannelState};
use proto::message::{Message, Reply};
use proto::namespace::Namespaces;
use proto::position::Position;
use proto::shard::{ShardId, ShardMap};
use proto::time::Timestamp;

use super::agreement::State;
use super::mistakes::{AtNode, Mistake};
use super::trace::{Fact, Trace};
use super::workload::{channel_of, order_of};

/// Tasks that drive shards.
const WORKERS: usize = 2;
/// The task that sends.
pub const EGRESS: usize = WORKERS;
/// Tasks that can stand still.
pub const TASKS: usize = WORKERS + 1;
/// Batches that may wait for a task, as in the shells.
pub const MAILBOX: usize = 1_024;
/// Rounds of effects that are sent together at most.
const ROUND: usize = 256;

/// One life of a node, once it is registered.
#[derive(Debug)]
pub struct Node {
    /// Its number.
    pub number: u8,
    /// Its name, and this life.
    pub me: NodeRef,
    namespaces: Arc<Namespaces>,
    /// The map as the node's mesh side sees it.
    pub map: Arc<ShardMap>,
    gateways: Gateways,
    /// Which of them the workers know of.
    around: Arc<Around>,
    neighbours: Neighbours,
    workers: Vec<Worker>,
    outbound: Outbound,
    pairs: Pairs,
    /// As last told to those who go by them.
    leases: Arc<Leases>,
    replicas: Replicas,
    /// When other nodes were last heard of, for when this one leads.
    pub beats: Beats,
    /// What nodes have said of gateways, for the same.
    pub judge: Judge,
    /// What they have said of themselves.
    pub buses: Buses,
    lease: NodeLease,
    renewed_at: Option<Timestamp>,
    /// Whose leases may last, while this one leads.
    pub table: LeaseTable,
    /// How much of what is agreed it has applied.
    applied: u64,
    agreed: Arc<Agreed>,
    /// Workers have not heard of it yet, nor of leases since then: those come
    /// together, and what has come to this node comes another way.
    workers_lag: bool,
    /// What waits for the egress.
    effects: VecDeque<Vec<Effect>>,
    egress_stands: bool,
    /// The map that the egress has not taken yet, and whether the node led.
    news_of_map: Option<bool>,
    /// What nodes tell each other of each other.
    pub gossip: Gossip,
    gossip_effects: Vec<gossip::Effect>,
    /// What this node has heard of the others.
    pub rumours: Rumours,
    mistake: AtNode,
    buffer: Vec<Effect>,
}

#[derive(Debug)]
struct Worker {
    shards: Shards,
    mail: VecDeque<Vec<Input>>,
    stands: bool,
    /// What is agreed, and it has not taken yet.
    agreed: Option<Arc<Agreed>>,
}

/// What a node is told before it starts.
#[derive(Debug)]
pub struct Start {
    /// Its number.
    pub number: u8,
    /// What it says of itself to other nodes.
    pub news: News,
    /// What channels keep.
    pub namespaces: Arc<Namespaces>,
    /// What it does wrong.
    pub mistake: Option<Mistake>,
    /// For choices that should differ between nodes.
    pub seed: u64,
    /// The time.
    pub now: Timestamp,
    /// What it kept when it stopped, and when that was.
    pub checkpoint: Option<(Timestamp, Vec<ShardCheckpoint>)>,
}

/// Why a node ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superseded;

/// What a node wants sent.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// To the bus.
    pub parcels: Vec<Parcel>,
    /// To other nodes, by their Raft ids.
    pub datagrams: Vec<(u64, Bytes)>,
    /// To standbys, on the ways to them.
    pub batches: Vec<(NodeRef, Bytes)>,
    /// To owners, on the ways that they have made.
    pub echoes: Vec<(NodeRef, Bytes)>,
    /// To be agreed.
    pub proposals: Vec<Proposal>,
}

impl Node {
    /// A node that is registered and has heard of nobody.
    pub fn new(start: Start, state: &State, trace: &mut Trace) -> Self {
        let Start {
            number,
            news,
            namespaces,
            mistake,
            seed,
            now,
            checkpoint,
        } = start;
        let State {
            cluster,
            map,
            agreed,
        } = state;
        let map = Arc::clone(map);
        let me = NodeRef {
            id: news.name.clone(),
            incarnation: news.incarnation,
        };
        let leases = Arc::new(Leases {
            node: Timestamp(0),
            pairs: BTreeMap::new(),
        });
        let worker = |index| {
            let part = Part { index, of: WORKERS };
            let shards = Shards::new(
                me.clone(),
                part,
                Arc::clone(&namespaces),
                Arc::clone(agreed),
                Arc::clone(&leases),
            );
            Worker {
                shards,
                mail: VecDeque::new(),
                stands: false,
                agreed: Some(Arc::clone(agreed)),
            }
        };
        let mut node = Self {
            number,
            gateways: Gateways::default(),
            around: Arc::default(),
            neighbours: Neighbours::new(me.clone(), namespaces.digest()),
            workers: (0..WORKERS).map(worker).collect(),
            leases,
            outbound: Outbound::new(me.clone(), namespaces.digest(), Arc::clone(&map)),
            pairs: Pairs::new(me.clone()),
            beats: Beats::default(),
            judge: Judge::default(),
            buses: Buses::default(),
            lease: NodeLease::default(),
            renewed_at: None,
            table: LeaseTable::default(),
            applied: 0,
            replicas: Replicas::new(me.clone(), Arc::clone(&namespaces), Arc::clone(agreed)),
            agreed: Arc::clone(agreed),
            workers_lag: false,
            effects: VecDeque::new(),
            egress_stands: false,
            news_of_map: None,
            gossip: Gossip::new(news, members(cluster), seed),
            gossip_effects: Vec::new(),
            rumours: Rumours::new(),
            mistake: AtNode::new(mistake),
            buffer: Vec::new(),
            me,
            namespaces,
            map,
        };
        // As the shell does: before anything else, and nothing to be sent yet.
        for worker in 0..WORKERS {
            node.work(Timestamp(0), worker, trace, &mut Outgoing::default());
        }
        node.effects.clear();
        node.gateways.lose(&node.agreed.gone);
        if let Some((at, kept)) = checkpoint {
            node.replicas.restore(now, now.since(at), kept);
        }
        let mut effects = Vec::new();
        node.replicas
            .follow(now, Arc::clone(&node.agreed), &mut effects);
        node.obey_replicas(now, effects, trace, &mut Outgoing::default());
        node
    }

    /// Serves nothing any more, and says what it served.
    pub fn rest(&mut self, now: Timestamp) -> Vec<ShardCheckpoint> {
        let mut kept = self.replicas.rest(now);
        // One that stands still answers nothing.
        let workers = self.workers.iter_mut().filter(|worker| !worker.stands);
        kept.extend(workers.flat_map(|worker| worker.shards.rest(now, &mut Vec::new())));
        kept
    }

    /// Another map is agreed, or who leads has changed meanwhile.
    pub fn follow(
        &mut self,
        now: Timestamp,
        state: &State,
        applied: usize,
        leads: bool,
        trace: &mut Trace,
        out: &mut Outgoing,
    ) {
        let State {
            cluster,
            map,
            agreed,
        } = state;
        self.applied = applied as u64;
        self.gossip(now, gossip::Input::Members(members(cluster)), out);
        let living = cluster.members().iter().map(|(id, member)| NodeRef {
            id: id.clone(),
            incarnation: member.incarnation,
        });
        let mut effects = Vec::new();
        self.pairs.members(&living.collect(), &mut effects);
        self.obey_pairs(effects, out);
        if !Arc::ptr_eq(agreed, &self.agreed) {
            self.workers_lag = self.applied.is_multiple_of(2);
        }
        self.tell_leases();
        if Arc::ptr_eq(agreed, &self.agreed) {
            return;
        }
        self.agreed = Arc::clone(agreed);
        self.gateways.lose(&agreed.gone);
        if !Arc::ptr_eq(map, &self.map) {
            self.map = Arc::clone(map);
            self.news_of_map = Some(leads);
        }
        let mut effects = Vec::new();
        let told = self.mistake.agreed(&self.me, agreed);
        self.replicas.follow(now, told, &mut effects);
        if self.mistake.is(Mistake::NoWait) {
            self.replicas.begin(Timestamp(u64::MAX), &mut effects);
        }
        self.obey_replicas(now, effects, trace, out);
        if !self.workers_lag {
            self.tell_workers();
        }
        self.run(now, trace, out);
    }

    fn tell_workers(&mut self) {
        self.workers_lag = false;
        for worker in &mut self.workers {
            worker.agreed = Some(Arc::clone(&self.agreed));
        }
        self.tell_leases();
    }

    /// A message has come from the bus.
    pub fn hear(
        &mut self,
        now: Timestamp,
        bytes: &[u8],
        trace: &mut Trace,
        out: &mut Outgoing,
    ) -> Result<(), Superseded> {
        match codec::decode(bytes) {
            Ok(Message::Requests(requests)) => self.requests(now, requests),
            Ok(Message::GatewayBeat(beat)) => self.gateway_beat(now, beat),
            Ok(Message::NodeBeat(beat)) => self.node_beat(now, &beat)?,
            other => panic!("no process sends this to a node: {other:?}"),
        }
        self.run(now, trace, out);
        Ok(())
    }

    /// A second has passed for the shard workers.
    pub fn tick_workers(&mut self, now: Timestamp, trace: &mut Trace, out: &mut Outgoing) {
        for worker in &mut self.workers {
            worker.mail.push_back(vec![Input::Tick]);
        }
        self.replicas.tick(now);
        self.run(now, trace, out);
        let workers = &self.workers;
        self.mistake.evicted(|key| {
            let all = workers.iter().map(|worker| worker.shards.describe(key));
            let mut here = all.filter_map(|answer| match answer {
                Answer::Channel(info) => Some(info.state.is_none()),
                _ => None,
            });
            here.next() == Some(true)
        });
    }

    /// Time for tail beats.
    pub fn tick_links(&mut self, now: Timestamp, trace: &mut Trace, out: &mut Outgoing) {
        if !self.egress_stands {
            self.outbound.tick(now, &mut out.parcels);
            self.check(out);
        }
        if self.workers_lag {
            self.tell_workers();
            self.run(now, trace, out);
        }
    }

    /// Time to say that the node is there.
    pub fn beat(&mut self, out: &mut Outgoing) {
        if !self.egress_stands {
            out.parcels.extend(self.outbound.beat());
        }
    }

    /// Gossip is told something.
    pub fn gossip(&mut self, now: Timestamp, input: gossip::Input<'_>, out: &mut Outgoing) {
        let mut effects = mem::take(&mut self.gossip_effects);
        self.gossip.handle(now, input, &mut effects);
        for effect in effects.drain(..) {
            match effect {
                gossip::Effect::Send { to, bytes } => out.datagrams.push((to, bytes)),
                gossip::Effect::Rumours(rumours) => self.rumours = rumours,
                gossip::Effect::Address { .. }
                | gossip::Effect::Noticed(_)
                | gossip::Effect::Failed(_) => {}
            }
        }
        self.gossip_effects = effects;
    }

    /// A task stands still from now on, or goes on.
    pub fn stall(&mut self, task: usize, stands: bool) {
        match self.workers.get_mut(task) {
            Some(worker) => worker.stands = stands,
            None => self.egress_stands = stands,
        }
    }

    /// Lets every task do what it has to do.
    pub fn run(&mut self, now: Timestamp, trace: &mut Trace, out: &mut Outgoing) {
        for worker in 0..WORKERS {
            self.work(now, worker, trace, out);
        }
        let mut effects = Vec::new();
        self.pairs.flush(now, &mut effects);
        self.obey_pairs(effects, out);
        if self.egress_stands {
            return;
        }
        self.outbound.lease(Arc::clone(&self.leases));
        self.outbound.lose(Arc::clone(&self.agreed.gone));
        if let Some(leads) = self.news_of_map.take() {
            let map = Arc::clone(&self.map);
            out.parcels.extend(self.outbound.follow(map, leads));
        }
        while !self.effects.is_empty() {
            let round = self.effects.len().min(ROUND);
            let effects = self.effects.drain(..round).flatten();
            self.outbound.send(now, effects, &mut out.parcels);
        }
        for (to, part) in self.outbound.released() {
            self.pairs.push(now, to, part);
        }
        let mut effects = Vec::new();
        self.pairs.flush(now, &mut effects);
        self.obey_pairs(effects, out);
        self.check(out);
    }

    /// What an owner here knows of a channel; `None`: the node does not serve
    /// it, or has not said everything that it knows.
    pub fn describe(&self, shard: ShardId, key: &ChannelKey) -> Option<Option<ChannelState>> {
        let worker = &self.workers[usize::from(shard.0) % WORKERS];
        if worker.stands || worker.agreed.is_some() || self.workers_lag {
            return None;
        }
        match worker.shards.describe(key) {
            Answer::Channel(info) => Some(info.state),
            _ => None,
        }
    }

    /// Which lives of gateways the node goes by.
    pub fn gateways(&self, now: Timestamp) -> Vec<GatewayRef> {
        let known = self.gateways.describe(now).into_iter();
        let life = |known: proto::inspection::GatewayInfo| GatewayRef {
            id: known.name,
            incarnation: known.incarnation,
        };
        known.map(life).collect()
    }

    /// Whether it is agreed, as far as the node has heard, that a gateway is gone.
    pub fn is_gone(&self, gateway: &GatewayRef) -> bool {
        self.agreed.gone.contains(gateway)
    }

    /// How much waits, for each queue.
    pub fn queues(&self) -> [(&'static str, usize); 2] {
        let mail = self.workers.iter().map(|worker| worker.mail.len()).max();
        [
            ("the mailbox of a shard worker", mail.unwrap_or(0)),
            ("the mailbox of the egress", self.effects.len()),
        ]
    }

    /// One line for people.
    pub fn state(&self) -> String {
        let served = self
            .workers
            .iter()
            .flat_map(|worker| worker.shards.served());
        let served: Vec<String> = served
            .map(|(id, shard)| {
                let replication = shard.replication();
                let standbys: Vec<String> = replication
                    .standbys()
                    .map(|(node, counts)| format!("{}{}", node.id, if counts { "" } else { "?" }))
                    .collect();
                let held = match replication.held() {
                    0 => String::new(),
                    held => format!("!{held}"),
                };
                format!("{id}@{}{held}({})", shard.fence(), standbys.join(" "))
            })
            .collect();
        format!(
            "incarnation {}, lease until {:?}, map {}, serves {}",
            self.me.incarnation.0,
            self.lease.until(self.applied).map(|until| until.0),
            self.map.version,
            served.join(" ")
        )
    }

    fn check(&self, out: &mut Outgoing) {
        out.parcels.retain(|parcel| self.mistake.sends(parcel));
    }

    /// A shard worker does what it has to do: the map first.
    fn work(&mut self, now: Timestamp, at: usize, trace: &mut Trace, out: &mut Outgoing) {
        let worker = &mut self.workers[at];
        if worker.stands {
            return;
        }
        let mut effects = mem::take(&mut self.buffer);
        if let Some(agreed) = worker.agreed.take() {
            let agreed = self.mistake.known(&self.me, agreed, &worker.shards);
            let input = Input::Agreed(agreed);
            worker.shards.handle(now, input, &mut effects);
        }
        loop {
            if !effects.is_empty() {
                let mut round = Vec::new();
                for effect in effects.drain(..) {
                    let Some(mut effect) = self.perform_beside(now, effect, trace, out) else {
                        continue;
                    };
                    if self.tells(&mut effect, trace) {
                        round.push(effect);
                    }
                }
                if !round.is_empty() {
                    self.effects.push_back(round);
                }
            }
            let worker = &mut self.workers[at];
            let Some(inputs) = worker.mail.pop_front() else {
                break;
            };
            for input in inputs {
                worker.shards.handle(now, input, &mut effects);
            }
        }
        self.buffer = effects;
    }

    /// Writes down what an effect says, and whether it is to be sent.
    fn tells(&mut self, effect: &mut Effect, trace: &mut Trace) -> bool {
        let node = self.number;
        self.mistake.effect(effect);
        match effect {
            Effect::Deliver { entry, .. } => {
                let position = Position {
                    epoch: entry.epoch,
                    offset: entry.publication.offset,
                };
                let is_message = entry.publication.change().is_none();
                if is_message && !trace.is_inherited(&position) {
                    trace.add(Fact::Published {
                        node,
                        fence: entry.fence.0,
                        channel: channel_of(&entry.key),
                        position,
                        order: order_of(&entry.publication),
                    });
                }
                true
            }
            Effect::Reply {
                reply: Reply::Joined {
                    result: Ok(joined), ..
                },
                ..
            } => {
                trace.add(Fact::Told {
                    node,
                    fence: joined.fence.0,
                    position: joined.position,
                });
                true
            }
            Effect::Under(leased) => {
                leased
                    .effects
                    .retain_mut(|effect| self.tells(effect, trace));
                true
            }
            Effect::Reply { .. }
            | Effect::Acknowledge { .. }
            | Effect::Forget(_)
            | Effect::Repair { .. }
            | Effect::Release { .. } => true,
            Effect::Replicate { .. } | Effect::Propose(_) => false,
            Effect::Started(shard) | Effect::Stopped(shard) => {
                trace.add(Fact::Serves {
                    node,
                    shard: shard.0,
                    begins: matches!(effect, Effect::Started(_)),
                });
                true
            }
            Effect::Healed
            | Effect::Converged(_)
            | Effect::Repeated
            | Effect::KeyRefused { .. } => false,
            // Every process here has a map of this cluster.
            Effect::Unroutable => panic!("n{node} was asked for a shard that does not exist"),
        }
    }
}

fn members(cluster: &Cluster) -> gossip::Members {
    let members = cluster.members().values();
    members
        .map(|member| (member.registration.raft_id, member.incarnation))
        .collect()
}
