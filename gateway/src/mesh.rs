//! Shell: the gateway's side of the mesh. One task drives [`Edge`]: it takes
//! what comes from the bus, from publishers and from workers, and performs what
//! the edge decides. Batching is natural: what came while the last round was
//! performed is one round.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use proto::bus::{BusHandle, Subscription};
use proto::channel::ChannelKey;
use proto::codec;
use proto::error::ErrorCode;
use proto::id::NodeId;
use proto::message::{Message, Reply, Request, Requests};
use proto::shard::ShardMap;
use proto::subject::{Address, Subject};
use proto::time::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::broadcast::Broadcast;
use crate::core::attachment::{FollowId, Step};
use crate::core::edge::{Edge, Effect, Input};
use crate::core::requests::batches;
use crate::core::uplink::{Accepted, DEADLINE, Order, Ticket};
use crate::core::workers::{WorkerId, Workers};
use crate::metrics::Metrics;
use crate::worker;
use crate::{Config, Error};

/// Publishes and follows that may wait; more publishes are refused, and workers
/// try their follows again.
const MAILBOX: usize = 8_192;
/// Inputs of one round at most.
const ROUND: usize = 256;
/// How often time passes for the edge.
const TICK: Duration = Duration::from_millis(20);
/// How long a node has to answer with its map before another is asked.
const MAP_PATIENCE: Duration = Duration::from_secs(1);
/// How often a gateway that finds no node says so.
const COMPLAIN: Duration = Duration::from_secs(5);

type AnswerSender = oneshot::Sender<Result<Accepted, ErrorCode>>;

/// What publishers and workers tell the mesh.
#[derive(Debug)]
pub(crate) enum Mail {
    Publish {
        order: Order,
        answer: AnswerSender,
    },
    Follow {
        worker: WorkerId,
        follow: FollowId,
        key: ChannelKey,
    },
    Unfollow {
        worker: WorkerId,
        key: ChannelKey,
    },
}

/// How publishers and workers reach the mesh.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    mailbox: mpsc::Sender<Mail>,
}

impl Handle {
    /// Publishes. Answers within [`DEADLINE`] and a little.
    pub(crate) async fn publish(&self, order: Order) -> Result<Accepted, ErrorCode> {
        let (answer, answered) = oneshot::channel();
        self.mailbox
            .try_send(Mail::Publish { order, answer })
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

    /// Tells of a worker's interest. `false`: try again later.
    pub(crate) fn try_tell(&self, mail: Mail) -> bool {
        self.mailbox.try_send(mail).is_ok()
    }
}

pub(crate) struct Mesh {
    config: Arc<Config>,
    bus: BusHandle,
    metrics: Arc<Metrics>,
    edge: Edge,
    links: Subscription,
    inbox: Subscription,
    beats: Subscription,
    handle: Handle,
    mailbox: mpsc::Receiver<Mail>,
    answers: HashMap<Ticket, AnswerSender>,
    tickets: u64,
}

impl Mesh {
    /// Subscribes, waits for a node and learns the map from it.
    pub(crate) async fn connect(
        config: Arc<Config>,
        bus: BusHandle,
        metrics: Arc<Metrics>,
        shutdown: watch::Receiver<bool>,
    ) -> Result<Self, Error> {
        let subscribe = async |address: Address| {
            let subject = Subject {
                cluster: config.cluster.clone(),
                address,
            };
            let subscribed = bus.subscribe(subject.clone()).await;
            subscribed.map_err(|error| Error::Subscribe { subject, error })
        };
        let id = &config.gateway.id;
        let links = subscribe(Address::Gateway(id.clone())).await?;
        let mut inbox = subscribe(Address::Inbox(id.clone())).await?;
        let mut beats = subscribe(Address::NodeBeats).await?;
        let map = {
            let mut stop = shutdown;
            tokio::select! {
                map = find_map(&config, &bus, &metrics, &mut beats, &mut inbox) => map,
                _ = stop.wait_for(|stop| *stop) => return Err(Error::Stopped),
            }
        };
        let (sender, mailbox) = mpsc::channel(MAILBOX);
        Ok(Self {
            edge: Edge::new(config.gateway.clone(), &map),
            handle: Handle { mailbox: sender },
            answers: HashMap::new(),
            tickets: 0,
            config,
            bus,
            metrics,
            links,
            inbox,
            beats,
            mailbox,
        })
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
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
                _ = tick.tick() => self.edge.handle(Timestamp::now(), Input::Tick, &mut effects),
                Some(bytes) = self.inbox.next() => self.hear(bytes, Source::Inbox, &mut effects),
                Some(bytes) = self.links.next() => self.hear(bytes, Source::Links, &mut effects),
                Some(bytes) = self.beats.next() => self.hear(bytes, Source::Beats, &mut effects),
                count = self.mailbox.recv_many(&mut mail, ROUND) => {
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
                Source::Inbox => self.inbox.try_next(),
                Source::Links => self.links.try_next(),
                Source::Beats => self.beats.try_next(),
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
                match &message {
                    Message::Replies(_) => self.metrics.bus_replies.inc(),
                    // A batch without entries is a tail beat.
                    Message::Batch(batch) if !batch.entries.is_empty() => {
                        self.metrics.bus_batches.inc()
                    }
                    _ => self.metrics.bus_beats.inc(),
                }
                self.edge.handle(now, Input::Message(message), effects);
            }
            Err(error) => {
                self.metrics.bus_malformed.inc();
                tracing::warn!(gateway = %self.config.gateway.id, ?source, %error, "dropped a message from the bus");
            }
        }
    }

    fn take(&mut self, mail: impl Iterator<Item = Mail>, effects: &mut Vec<Effect>) {
        let now = Timestamp::now();
        for mail in mail {
            let input = match mail {
                Mail::Publish { order, answer } => {
                    self.tickets += 1;
                    let ticket = Ticket(self.tickets);
                    self.answers.insert(ticket, answer);
                    Input::Publish { ticket, order }
                }
                Mail::Follow {
                    worker,
                    follow,
                    key,
                } => Input::Follow {
                    worker,
                    follow,
                    key,
                },
                Mail::Unfollow { worker, key } => Input::Unfollow { worker, key },
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
                    requests.entry(node).or_default().push(request)
                }
                Effect::Answer((ticket, result)) => {
                    // A publisher that has gone does not hear it.
                    if let Some(answer) = self.answers.remove(&ticket) {
                        let _ = answer.send(result);
                    }
                }
                Effect::Step { key, step } => self.tell_workers(key, step, workers).await,
                Effect::LinkGap { node, missed } => {
                    self.metrics.link_gaps.inc();
                    tracing::warn!(%node, missed, "the link has a hole; asking for the channels it may concern");
                }
                Effect::Malformed => self.metrics.bus_malformed.inc(),
                Effect::Superseded { newer } => {
                    let id = self.config.gateway.id.clone();
                    return Err(Error::Superseded { id, newer });
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
            } => (
                Workers::only(worker),
                worker::Mail::Attached {
                    key,
                    follow,
                    position,
                },
            ),
            Step::Deliver {
                workers,
                epoch,
                publication,
            } => {
                let broadcast = Broadcast::publication(key, epoch, publication);
                (workers, worker::Mail::Broadcast(Arc::new(broadcast)))
            }
            Step::Gap { workers, gap } => {
                self.metrics
                    .gaps_announced
                    .with_label_values(&[gap.reason.as_str()])
                    .inc();
                (
                    workers,
                    worker::Mail::Broadcast(Arc::new(Broadcast::gap(key, gap))),
                )
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
            publish(
                &self.config,
                &self.bus,
                &self.metrics,
                node,
                map_version,
                batch,
            );
        }
    }
}

/// Which subscription a message came by.
#[derive(Debug)]
enum Source {
    Inbox,
    Links,
    Beats,
}

fn publish(
    config: &Config,
    bus: &BusHandle,
    metrics: &Metrics,
    node: &NodeId,
    map_version: u64,
    requests: Vec<Request>,
) {
    let subject = Subject {
        cluster: config.cluster.clone(),
        address: Address::Node(node.clone()),
    };
    let message = Message::Requests(Requests {
        from: config.gateway.clone(),
        map_version,
        requests,
    });
    metrics.bus_requests.inc();
    if let Err(error) = bus.publish(&subject, codec::encode(&message)) {
        metrics.bus_refused.inc();
        tracing::warn!(%subject, %error, "the bus did not take a request");
    }
}

/// Waits for a node's beat and asks it for the map, until one answers.
async fn find_map(
    config: &Config,
    bus: &BusHandle,
    metrics: &Metrics,
    beats: &mut Subscription,
    inbox: &mut Subscription,
) -> ShardMap {
    loop {
        let Ok(Some(bytes)) = tokio::time::timeout(COMPLAIN, beats.next()).await else {
            tracing::warn!(cluster = %config.cluster, "no node heard of on the bus; waiting for one");
            continue;
        };
        let Ok(Message::NodeBeat(beat)) = codec::decode(&bytes) else {
            continue;
        };
        publish(
            config,
            bus,
            metrics,
            &beat.from.id,
            0,
            vec![Request::Map { since: 0 }],
        );
        match tokio::time::timeout(MAP_PATIENCE, next_map(config, inbox)).await {
            Ok(Some(map)) => return map,
            Ok(None) => {
                tracing::warn!(node = %beat.from.id, "the node's map makes no sense; asking again")
            }
            Err(_) => {
                tracing::warn!(node = %beat.from.id, "the node did not send its map; asking again")
            }
        }
    }
}

async fn next_map(config: &Config, inbox: &mut Subscription) -> Option<ShardMap> {
    loop {
        let Some(bytes) = inbox.next().await else {
            std::future::pending().await
        };
        let Ok(Message::Replies(replies)) = codec::decode(&bytes) else {
            continue;
        };
        if replies.to != config.gateway.incarnation {
            continue;
        }
        for reply in replies.replies {
            if let Reply::Map { update, .. } = reply {
                return update.is_sound().then(|| ShardMap {
                    cluster: update.cluster,
                    version: update.version,
                    sharding: update.sharding,
                    nodes: update.nodes,
                    rows: update.rows.into_iter().map(|(_, row)| row).collect(),
                });
            }
        }
    }
}
