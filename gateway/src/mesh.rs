//! Shell: the gateway's side of the mesh. One task drives [`Edge`]: it takes
//! what comes from the bus, from publishers and from workers, and performs what
//! the edge decides. Batching is natural: what came while the last round was
//! performed is one round. Before it has a map to route by it is a [`Seeker`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use proto::bus::{BusHandle, Subscription};
use proto::channel::ChannelKey;
use proto::codec;
use proto::error::ErrorCode;
use proto::id::{ClusterUuid, ConnectionId, GatewayRef, NodeId};
use proto::inspection::{Answer, Question};
use proto::message::{Fanout, GatewayBeat, Message, Request, Requests, Told, What};
use proto::position::Position;
use proto::presence::Member;
use proto::shard::{Fence, ShardId};
use proto::subject::{Address, ClusterName, Subject};
use proto::time::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::broadcast::{Broadcast, Keeps};
use crate::core::attachment::{FollowId, Place, Step};
use crate::core::edge::{ASK_PATIENCE, Edge, Effect, Input};
use crate::core::requests::batches;
use crate::core::uplink::{Accepted, DEADLINE, Order, Ticket};
use crate::core::workers::{WorkerId, Workers};
use crate::door::Door;
use crate::metrics::Metrics;
use crate::worker;
use crate::{Config, Error};

mod seeker;

pub(crate) use seeker::Seeker;

/// Publishes and follows that may wait; more publishes are refused, and workers
/// try their follows again.
const MAILBOX: usize = 8_192;
/// Inputs of one round at most.
const ROUND: usize = 256;
/// How often time passes for the edge.
const TICK: Duration = Duration::from_millis(20);

/// Who wants to know what became of a publish.
#[derive(Debug)]
pub(crate) enum Asker {
    Backend(oneshot::Sender<Result<Accepted, ErrorCode>>),
    /// Only if it was not published.
    Client(Sender),
}

/// A client that has published an event.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    pub(crate) worker: WorkerId,
    pub(crate) socket: usize,
    /// Another may have its place by then.
    pub(crate) connection: ConnectionId,
    pub(crate) event: Arc<str>,
}

/// What publishers and workers tell the mesh.
#[derive(Debug)]
pub(crate) enum Mail {
    Publish {
        order: Order,
        asker: Asker,
    },
    Follow {
        worker: WorkerId,
        follow: FollowId,
        key: ChannelKey,
        /// Clients have come back: the lowest of their cursors.
        cursor: Option<Position>,
    },
    /// Clients have come back to a channel that is followed.
    Resume {
        worker: WorkerId,
        key: ChannelKey,
        cursor: Position,
    },
    Unfollow {
        worker: WorkerId,
        key: ChannelKey,
    },
    /// A client is a member of a channel that its worker follows.
    Enter {
        place: Place,
        key: ChannelKey,
        member: Member,
        users_max: Option<u32>,
        /// It has come back: where it stood.
        cursor: Option<Position>,
    },
    /// A client is to be told whether the user of a channel is online.
    Watch {
        place: Place,
        key: ChannelKey,
        connection: ConnectionId,
    },
    /// It is so no longer, perhaps after a while.
    Exit {
        key: ChannelKey,
        connection: ConnectionId,
        grace: Option<Duration>,
    },
    /// A worker has so many subscribers of these channels.
    Counts(WorkerId, Vec<(ChannelKey, u32)>),
    /// Publications have been spread over connections.
    Spread(Vec<(ShardId, Fence, Fanout)>),
    Query {
        shard: Option<ShardId>,
        what: What,
        answer: oneshot::Sender<Result<Told, ErrorCode>>,
    },
    Ask {
        question: Question,
        answer: oneshot::Sender<Answer>,
    },
}

/// How publishers and workers reach the mesh.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    mailbox: mpsc::Sender<Mail>,
    /// How many shards the cluster has; 0: that is not known yet.
    shards: u16,
}

impl Handle {
    /// How many shards the cluster has.
    pub(crate) fn shards(&self) -> u16 {
        self.shards
    }

    /// Publishes. Answers within [`DEADLINE`] and a little.
    pub(crate) async fn publish(&self, order: Order) -> Result<Accepted, ErrorCode> {
        let (answer, answered) = oneshot::channel();
        self.mailbox
            .try_send(Mail::Publish {
                order,
                asker: Asker::Backend(answer),
            })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => ErrorCode::Overloaded,
                mpsc::error::TrySendError::Closed(_) => ErrorCode::Unavailable,
            })?;
        // The edge answers by its own deadline; this one is for its death.
        match tokio::time::timeout(DEADLINE + Duration::from_secs(1), answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(ErrorCode::UnknownOutcome),
        }
    }

    /// Asks the owner of a channel, or of a shard. Answers within [`DEADLINE`] and a
    /// little.
    pub(crate) async fn query(
        &self,
        shard: Option<ShardId>,
        what: What,
    ) -> Result<Told, ErrorCode> {
        let (answer, answered) = oneshot::channel();
        let mail = Mail::Query {
            shard,
            what,
            answer,
        };
        self.mailbox.try_send(mail).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ErrorCode::Overloaded,
            mpsc::error::TrySendError::Closed(_) => ErrorCode::Unavailable,
        })?;
        match tokio::time::timeout(DEADLINE + Duration::from_secs(1), answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(ErrorCode::Unavailable),
        }
    }

    /// Asks a node. Answers within [`ASK_PATIENCE`] and a little.
    pub(crate) async fn ask(&self, question: Question) -> Answer {
        let unavailable = |why: &str| Answer::Unavailable(why.into());
        let (answer, answered) = oneshot::channel();
        match self.mailbox.try_send(Mail::Ask { question, answer }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                return unavailable("the gateway is overloaded; ask again later");
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                return unavailable("the gateway is shutting down");
            }
        }
        match tokio::time::timeout(ASK_PATIENCE + Duration::from_secs(1), answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => unavailable("the gateway is shutting down"),
            Err(_) => unavailable("the gateway did not come to it in time"),
        }
    }

    /// Tells of a worker's interest. `false`: try again later.
    pub(crate) fn try_tell(&self, mail: Mail) -> bool {
        self.mailbox.try_send(mail).is_ok()
    }

    /// The same, and gives back what could not be told.
    pub(crate) fn tell(&self, mail: Mail) -> Result<(), Box<Mail>> {
        match self.mailbox.try_send(mail) {
            Ok(()) => Ok(()),
            Err(
                mpsc::error::TrySendError::Full(mail) | mpsc::error::TrySendError::Closed(mail),
            ) => Err(Box::new(mail)),
        }
    }
}

/// Everything that the mesh hears.
struct Ears {
    links: Subscription,
    inbox: Subscription,
    beats: Subscription,
    maps: Subscription,
    mailbox: mpsc::Receiver<Mail>,
}

/// How the mesh speaks on the bus.
struct Output {
    cluster: ClusterName,
    bus: BusHandle,
    metrics: Arc<Metrics>,
}

/// The running mesh.
pub(crate) struct Mesh {
    config: Arc<Config>,
    door: Door,
    output: Output,
    ears: Ears,
    handle: Handle,
    edge: Edge,
    askers: HashMap<Ticket, Asker>,
    asked: HashMap<Ticket, oneshot::Sender<Answer>>,
    queries: HashMap<Ticket, oneshot::Sender<Result<Told, ErrorCode>>>,
    tickets: u64,
}

impl Mesh {
    fn new(config: Arc<Config>, output: Output, ears: Ears, handle: Handle, edge: Edge) -> Self {
        let door = Door::new(config.limits.admission.clone(), &config.apps);
        Self {
            config,
            door,
            output,
            ears,
            handle: Handle {
                shards: edge.shards(),
                ..handle
            },
            edge,
            askers: HashMap::new(),
            asked: HashMap::new(),
            queries: HashMap::new(),
            tickets: 0,
        }
    }

    /// The configuration with this gateway's incarnation as it turned out.
    pub(crate) fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config)
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Where clients come in.
    pub(crate) fn door(&self) -> Door {
        self.door.clone()
    }

    /// Runs until shutdown.
    pub(crate) async fn run(
        mut self,
        workers: Vec<mpsc::Sender<worker::Mail>>,
        mut shutdown: watch::Receiver<bool>,
    ) -> Result<(), Error> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut mail = Vec::with_capacity(ROUND);
        let mut effects = Vec::new();
        loop {
            // Not biased: whoever publishes here must not starve behind what
            // others publish.
            tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
                _ = tick.tick() => {
                    self.edge.handle(Timestamp::now(), Input::Tick, &mut effects);
                    let silent = self.edge.silent_nodes();
                    self.output.metrics.nodes_silent.set(silent as i64);
                }
                Some(bytes) = self.ears.inbox.next() => self.hear(bytes, Source::Inbox, &mut effects),
                Some(bytes) = self.ears.links.next() => self.hear(bytes, Source::Links, &mut effects),
                Some(bytes) = self.ears.beats.next() => self.hear(bytes, Source::Beats, &mut effects),
                Some(bytes) = self.ears.maps.next() => self.hear(bytes, Source::Maps, &mut effects),
                count = self.ears.mailbox.recv_many(&mut mail, ROUND) => {
                    if count == 0 {
                        return Ok(());
                    }
                    self.take(mail.drain(..), &mut effects);
                }
            }
            self.perform(&mut effects, &workers).await?;
        }
    }

    /// Takes a message, and what has come behind it.
    fn hear(&mut self, first: bytes::Bytes, source: Source, effects: &mut Vec<Effect>) {
        let now = Timestamp::now();
        let mut next = Some(first);
        let mut room = ROUND;
        while let Some(bytes) = next {
            self.hear_one(now, &bytes, &source, effects);
            room -= 1;
            next = match source {
                _ if room == 0 => None,
                Source::Inbox => self.ears.inbox.try_next(),
                Source::Links => self.ears.links.try_next(),
                Source::Beats => self.ears.beats.try_next(),
                Source::Maps => self.ears.maps.try_next(),
            };
        }
    }

    fn hear_one(
        &mut self,
        now: Timestamp,
        bytes: &[u8],
        source: &Source,
        effects: &mut Vec<Effect>,
    ) {
        match codec::decode(bytes) {
            Ok(message) => {
                self.output.metrics.count_received(&message);
                self.edge.handle(now, Input::Message(message), effects);
            }
            Err(error) => {
                self.output.metrics.bus_malformed.inc();
                tracing::warn!(gateway = %self.config.gateway.id, ?source, %error, "dropped a message from the bus");
            }
        }
    }

    fn take(&mut self, mail: impl Iterator<Item = Mail>, effects: &mut Vec<Effect>) {
        let now = Timestamp::now();
        for mail in mail {
            let input = match mail {
                Mail::Publish { order, asker } => {
                    self.tickets += 1;
                    let ticket = Ticket(self.tickets);
                    self.askers.insert(ticket, asker);
                    Input::Publish { ticket, order }
                }
                Mail::Follow {
                    worker,
                    follow,
                    key,
                    cursor,
                } => Input::Follow {
                    worker,
                    follow,
                    key,
                    cursor,
                },
                Mail::Resume {
                    worker,
                    key,
                    cursor,
                } => Input::Resume {
                    worker,
                    key,
                    cursor,
                },
                Mail::Unfollow { worker, key } => Input::Unfollow { worker, key },
                Mail::Enter {
                    place,
                    key,
                    member,
                    users_max,
                    cursor,
                } => Input::Enter {
                    place,
                    key,
                    member,
                    users_max,
                    cursor,
                },
                Mail::Watch {
                    place,
                    key,
                    connection,
                } => Input::Watch {
                    place,
                    key,
                    connection,
                },
                Mail::Exit {
                    key,
                    connection,
                    grace,
                } => Input::Exit {
                    key,
                    connection,
                    grace,
                },
                Mail::Counts(worker, all) => {
                    for (key, count) in all {
                        let input = Input::Count { worker, key, count };
                        self.edge.handle(now, input, effects);
                    }
                    continue;
                }
                Mail::Spread(all) => {
                    for (shard, fence, fanout) in all {
                        let input = Input::Spread {
                            shard,
                            fence,
                            fanout,
                        };
                        self.edge.handle(now, input, effects);
                    }
                    continue;
                }
                Mail::Query {
                    shard,
                    what,
                    answer,
                } => {
                    self.tickets += 1;
                    let ticket = Ticket(self.tickets);
                    self.queries.insert(ticket, answer);
                    Input::Query {
                        ticket,
                        shard,
                        what,
                    }
                }
                Mail::Ask { question, answer } => {
                    self.tickets += 1;
                    let ticket = Ticket(self.tickets);
                    self.asked.insert(ticket, answer);
                    Input::Ask { ticket, question }
                }
            };
            self.edge.handle(now, input, effects);
        }
    }

    async fn perform(
        &mut self,
        effects: &mut Vec<Effect>,
        workers: &[mpsc::Sender<worker::Mail>],
    ) -> Result<(), Error> {
        let mut requests: BTreeMap<NodeId, Vec<Request>> = BTreeMap::new();
        for effect in effects.drain(..) {
            match effect {
                Effect::Request { node, request } => {
                    if matches!(request, Request::RestateEnd(_)) {
                        self.output.metrics.interest_restated.inc();
                    }
                    requests.entry(node).or_default().push(request);
                }
                Effect::Answer((ticket, result)) => {
                    if let Some(asker) = self.askers.remove(&ticket) {
                        answer(asker, result, workers);
                    }
                }
                Effect::Queried { ticket, result } => {
                    if let Some(asker) = self.queries.remove(&ticket) {
                        let _ = asker.send(result);
                    }
                }
                Effect::Told { ticket, answer } => {
                    if let Some(asker) = self.asked.remove(&ticket) {
                        let _ = asker.send(answer);
                    }
                }
                Effect::Beat(beat) => self.beat(beat),
                Effect::Counts(counts) => {
                    self.output.metrics.bus_gateway_beats.inc();
                    self.output
                        .publish(Address::GatewayBeats, &Message::GatewayCounts(counts));
                }
                Effect::Step { key, step } => self.tell_workers(key, step, workers).await,
                Effect::LinkGap { node, missed } => {
                    self.output.metrics.link_gaps.inc();
                    tracing::debug!(%node, missed, "the link has a hole; asking for a repair");
                }
                Effect::LinkRepaired { entries } => {
                    self.output.metrics.link_repaired.inc_by(entries);
                }
                Effect::LinkFallback { node, lost } => {
                    self.output.metrics.link_fallbacks.inc();
                    tracing::warn!(%node, lost, "what the link has lost cannot be repaired; asking for the channels it may concern");
                }
                Effect::Silence { node, silent } => {
                    if silent {
                        tracing::warn!(%node, "the node is silent: neither batch nor beat for 2 s");
                    } else {
                        tracing::info!(%node, "the node is heard again");
                    }
                }
                Effect::Stranger { from, cluster, log } => {
                    self.output.metrics.stranger_nodes.inc();
                    if log {
                        self.complain(from, cluster);
                    }
                }
                Effect::Malformed => self.output.metrics.bus_malformed.inc(),
                Effect::Reborn { incarnation } => {
                    requests.clear();
                    self.output.metrics.lives_begun.inc();
                    tracing::warn!(gateway = %self.config.gateway.id, incarnation = incarnation.0, "the nodes had not heard of this gateway for so long that they declared it gone; it goes on under a new incarnation, and joins its channels anew. Publishes that were on their way are answered unknown_outcome");
                }
                Effect::Superseded { newer } => {
                    let id = self.config.gateway.id.clone();
                    tracing::debug!(gateway = %id, newer = newer.0, "there is a later life that is not ours");
                    return Err(Error::Superseded(id));
                }
            }
        }
        for (node, requests) in requests {
            self.send(&node, requests);
        }
        Ok(())
    }

    /// A worker whose mailbox is full makes this wait; the bus's queue then
    /// fills and drops, and the hole in the link is found and filled.
    async fn tell_workers(
        &self,
        key: ChannelKey,
        step: Step,
        workers: &[mpsc::Sender<worker::Mail>],
    ) {
        let (to, mail) = match step {
            Step::Attached {
                worker,
                follow,
                position,
                kept,
            } => (
                Workers::only(worker),
                worker::Mail::Attached {
                    kept: kept.map(|kept| Broadcast::kept(key.clone(), kept)),
                    key,
                    follow,
                    position,
                },
            ),
            Step::Resumed {
                worker,
                cursor,
                resumption,
            } => (
                Workers::only(worker),
                worker::Mail::Resumed {
                    key,
                    cursor,
                    resumption,
                },
            ),
            Step::Welcome {
                place,
                connection,
                position,
                users,
                kept,
                missed,
            } => (
                Workers::only(place.worker),
                worker::Mail::Welcome {
                    kept: kept.map(|kept| Broadcast::kept(key.clone(), kept)),
                    key,
                    index: place.index,
                    connection,
                    position,
                    users,
                    missed,
                },
            ),
            Step::Refused {
                place,
                connection,
                code,
            } => (
                Workers::only(place.worker),
                worker::Mail::Refused {
                    key,
                    index: place.index,
                    connection,
                    code,
                },
            ),
            Step::Members {
                workers,
                position,
                came,
                went,
            } => {
                let broadcast = Broadcast::members(key, position, came, went);
                (workers, worker::Mail::Broadcast(Arc::new(broadcast)))
            }
            Step::Count {
                workers,
                position,
                count,
            } => {
                let broadcast = Broadcast::count(key, position, count);
                (workers, worker::Mail::Broadcast(Arc::new(broadcast)))
            }
            // For the edge.
            Step::Kept { .. } => return,
            Step::Deliver {
                workers,
                epoch,
                publication,
            } => {
                let (shard, fence) = self.edge.place_of(&key);
                let keeps = if key.channel.is_cache() && publication.is_cached() {
                    Keeps::Itself(Timestamp::now())
                } else {
                    Keeps::AsBefore
                };
                let broadcast = Broadcast::publication(key, epoch, publication);
                let broadcast = broadcast.from(shard, fence).keeping(keeps);
                (workers, worker::Mail::Broadcast(Arc::new(broadcast)))
            }
            Step::Gap { workers, gap, kept } => {
                self.output
                    .metrics
                    .gaps_announced
                    .with_label_values(&[gap.reason.as_str()])
                    .inc();
                let kept = kept.map(|kept| Broadcast::kept(key.clone(), kept));
                let broadcast = Broadcast::gap(key, gap).keeping(Keeps::Other(kept));
                (workers, worker::Mail::Broadcast(Arc::new(broadcast)))
            }
        };
        for worker in to.iter() {
            if let Some(mailbox) = workers.get(usize::from(worker.0)) {
                // A worker that has ended is noticed by its own watcher.
                let _ = mailbox.send(mail.clone()).await;
            }
        }
    }

    fn send(&self, node: &NodeId, requests: Vec<Request>) {
        let map_version = self.edge.map_version();
        for batch in batches(requests) {
            self.output
                .request(self.edge.me(), map_version, node, batch);
        }
    }

    fn beat(&self, mut beat: GatewayBeat) {
        beat.connections = u32::try_from(self.door.connections()).unwrap_or(u32::MAX);
        self.output.metrics.bus_gateway_beats.inc();
        self.output
            .publish(Address::GatewayBeats, &Message::GatewayBeat(beat));
    }

    fn complain(&self, from: Option<NodeId>, cluster: ClusterUuid) {
        let node = from.as_ref().map(NodeId::as_str);
        let ours = self.edge.cluster();
        if cluster == ours {
            tracing::error!(node, cluster = %ours, "a map of this cluster has other shards than ours; it is ignored. Shards never change: was the cluster formed twice?");
        } else {
            tracing::error!(node, %cluster, %ours, "a node of another cluster uses our cluster's name on this bus; it is ignored. Give one of the clusters another name");
        }
    }
}

impl Output {
    fn request(&self, from: &GatewayRef, map_version: u64, node: &NodeId, requests: Vec<Request>) {
        let message = Message::Requests(Requests {
            from: from.clone(),
            map_version,
            requests,
        });
        self.metrics.bus_requests.inc();
        self.publish(Address::Node(node.clone()), &message);
    }

    fn publish(&self, address: Address, message: &Message) {
        let subject = Subject {
            cluster: self.cluster.clone(),
            address,
        };
        if let Err(error) = self.bus.publish(&subject, codec::encode(message)) {
            self.metrics.bus_refused.inc();
            tracing::warn!(%subject, %error, "the bus did not take a message");
        }
    }
}

/// Which subscription a message came by.
#[derive(Debug)]
enum Source {
    Inbox,
    Links,
    Beats,
    Maps,
}

/// Whoever has gone does not hear it.
fn answer(
    asker: Asker,
    result: Result<Accepted, ErrorCode>,
    workers: &[mpsc::Sender<worker::Mail>],
) {
    match (asker, result) {
        (Asker::Backend(answer), result) => {
            let _ = answer.send(result);
        }
        (Asker::Client(_), Ok(_)) => {}
        (Asker::Client(sender), Err(code)) => {
            tracing::debug!(connection = %sender.connection, event = %sender.event, code = code.as_str(), "an event of a client was not published");
            if let Some(worker) = workers.get(usize::from(sender.worker.0)) {
                let _ = worker.try_send(worker::Mail::NotPublished { sender, code });
            }
        }
    }
}
