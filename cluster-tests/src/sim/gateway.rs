//! A gateway: discovery, then the edge and the workers, driven as
//! `gateway/src/mesh.rs` and its seeker drive them.

use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::sync::Arc;

use bytes::Bytes;
use gateway::broadcast::Broadcast;
use gateway::core::attachment::{Place, Step};
use gateway::core::discovery::{self, Discovery};
use gateway::core::edge::{Edge, Effect, Input};
use gateway::core::requests::batches;
use gateway::core::uplink::{self, Ticket};
use gateway::core::workers::Workers;
use proto::channel::ChannelKey;
use proto::codec;
use proto::id::{GatewayRef, NodeId};
use proto::link::Receiver;
use proto::message::{Batch, Message, Request, Requests};
use proto::position::Position;
use proto::subject::Address;
use proto::time::Timestamp;

use super::mistakes::{self, FirstJoins, Mistake, Statements, Unanswered, Windows};
use super::network::Subject;
use super::trace::{Answer, Connection, Fact, Order, Trace, User};
use super::worker::{Mail, Told, Worker};
use super::workload::CHANNELS;

/// Threads that own connections.
pub const WORKERS: usize = 2;

/// One life of a gateway.
#[derive(Debug)]
pub struct Gateway {
    /// Its number.
    pub number: u8,
    mistake: Option<Mistake>,
    stage: Stage,
    buffer: Vec<Effect>,
    /// Decided, and not performed: the process stood still in between.
    held: Vec<Effect>,
    holds: bool,
    /// A fault: what it says of channels that it leaves is lost.
    pub leaves_lost: bool,
}

#[derive(Debug)]
enum Stage {
    Seeking {
        discovery: Discovery,
        /// What has come by subscriptions that are read only later.
        unread: Vec<(Subject, Bytes)>,
    },
    Serving(Box<Serving>),
}

#[derive(Debug)]
struct Serving {
    me: GatewayRef,
    edge: Edge,
    workers: Vec<Worker>,
    tickets: u64,
    orders: HashMap<Ticket, Asked>,
    /// For [`Mistake::LinkOrder`].
    links: BTreeMap<NodeId, Receiver>,
    /// For [`Mistake::WindowUnattached`].
    windows: Windows,
    /// For [`Mistake::ResentInNextLife`].
    unanswered: Unanswered,
    /// For [`Mistake::RestatedFromNow`].
    first_joins: FirstJoins,
    /// For mistakes with members.
    statements: Statements,
}

/// What a gateway wants sent, and what else has come of an input.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// To the bus.
    pub messages: Vec<(Address, Bytes)>,
    /// To publishers.
    pub answers: Vec<(Asked, Answer)>,
    /// It has its map.
    pub found: bool,
    /// Workers that have something to do.
    pub woken: Workers,
    /// It was declared gone, and lives on under another incarnation.
    pub reborn: bool,
    /// A later life of it was heard of: it ends.
    pub superseded: bool,
}

/// What a publisher has asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// This time.
    pub order: Order,
    /// The first time.
    pub first: Order,
}

/// What clients and publishers want of a gateway.
#[derive(Debug, Clone)]
pub enum Wish {
    /// To connect to this worker.
    Connect(u8, Connection),
    /// To be gone from it.
    Close(u8, Connection),
    /// A channel.
    Subscribe(u8, Connection, ChannelKey, Option<Position>),
    /// A channel no more.
    Unsubscribe(u8, Connection, ChannelKey),
    /// To be a member of a channel.
    Enter(u8, Connection, ChannelKey, User),
    /// To publish.
    Publish(Order, uplink::Order),
}

impl Gateway {
    /// A gateway that has just started.
    pub fn new(number: u8, me: GatewayRef, now: Timestamp, mistake: Option<Mistake>) -> Self {
        Self {
            number,
            mistake,
            stage: Stage::Seeking {
                discovery: Discovery::new(me, now),
                unread: Vec::new(),
            },
            buffer: Vec::new(),
            held: Vec::new(),
            holds: false,
            leaves_lost: false,
        }
    }

    /// Whether clients can connect.
    pub fn serves(&self) -> bool {
        matches!(self.stage, Stage::Serving(_))
    }

    /// Its name and life; `None` while it looks for the map.
    pub fn me(&self) -> Option<&GatewayRef> {
        match &self.stage {
            Stage::Serving(serving) => Some(&serving.me),
            Stage::Seeking { .. } => None,
        }
    }

    /// Whether it wants a channel.
    pub fn wants(&self, key: &ChannelKey) -> bool {
        match &self.stage {
            Stage::Serving(serving) => serving.edge.follows(key),
            Stage::Seeking { .. } => false,
        }
    }

    /// A message has come from the bus.
    pub fn hear(&mut self, now: Timestamp, subject: Subject, bytes: Bytes, out: &mut Outgoing) {
        match &mut self.stage {
            Stage::Seeking { discovery, unread } => {
                if matches!(subject, Subject::Links | Subject::Maps) {
                    unread.push((subject, bytes));
                    return;
                }
                let message = decode(&bytes);
                let mut effects = Vec::new();
                discovery.handle(now, discovery::Input::Message(message), &mut effects);
                self.discover(now, effects, out);
            }
            Stage::Serving(_) => {
                let message = decode(&bytes);
                self.tell(now, Input::Message(message), out);
            }
        }
    }

    /// Time has passed for the mesh.
    pub fn tick(&mut self, now: Timestamp, out: &mut Outgoing) {
        match &mut self.stage {
            Stage::Seeking { discovery, .. } => {
                let mut effects = Vec::new();
                discovery.handle(now, discovery::Input::Tick, &mut effects);
                self.discover(now, effects, out);
            }
            Stage::Serving(_) => self.tell(now, Input::Tick, out),
        }
    }

    /// Somebody wants something.
    pub fn wish(&mut self, now: Timestamp, wish: Wish, trace: &mut Trace, out: &mut Outgoing) {
        let Stage::Serving(serving) = &mut self.stage else {
            return;
        };
        let (Wish::Connect(worker, _)
        | Wish::Close(worker, _)
        | Wish::Subscribe(worker, ..)
        | Wish::Unsubscribe(worker, ..)
        | Wish::Enter(worker, ..)) = &wish
        else {
            if let Wish::Publish(order, publish) = wish {
                serving.tickets += 1;
                let ticket = Ticket(serving.tickets);
                let first = publish.data.parse().expect("our payloads are numbers");
                serving.orders.insert(ticket, Asked { order, first });
                let order = publish;
                self.tell(now, Input::Publish { ticket, order }, out);
            }
            return;
        };
        let number = *worker;
        let worker = &mut serving.workers[usize::from(number)];
        match wish {
            Wish::Connect(_, connection) => {
                trace.add(Fact::Connected {
                    connection,
                    gateway: self.number,
                });
                worker.accept(connection);
            }
            Wish::Close(_, connection) => {
                trace.add(Fact::Closed { connection });
                worker.remove(connection);
            }
            Wish::Subscribe(_, connection, key, cursor) => {
                trace.add(Fact::Subscribed {
                    connection,
                    channel: super::workload::channel_of(&key),
                    cursor,
                });
                worker.subscribe(connection, key, cursor, trace);
            }
            Wish::Unsubscribe(_, connection, key) => {
                let channel = super::workload::channel_of(&key);
                trace.add(if channel < CHANNELS {
                    Fact::Unsubscribed {
                        connection,
                        channel,
                    }
                } else {
                    Fact::Exits {
                        connection,
                        channel,
                    }
                });
                worker.unsubscribe(connection, &key);
            }
            Wish::Enter(_, connection, key, user) => {
                trace.add(Fact::Enters {
                    connection,
                    channel: super::workload::channel_of(&key),
                    user,
                });
                worker.enter(connection, key, user);
            }
            Wish::Publish(..) => {}
        }
        out.woken.insert(worker.id);
    }

    /// A worker has time. Whether it has more to do.
    pub fn work(
        &mut self,
        now: Timestamp,
        worker: u8,
        slices: usize,
        trace: &mut Trace,
        out: &mut Outgoing,
    ) -> bool {
        let Stage::Serving(serving) = &mut self.stage else {
            return false;
        };
        let worker = &mut serving.workers[usize::from(worker)];
        let id = worker.id;
        let more = worker.run(slices, trace);
        let mut told = Vec::new();
        while let Some(next) = worker.tell() {
            told.push(next);
        }
        for next in told {
            let next = match &mut self.stage {
                Stage::Serving(serving) if self.mistake == Some(Mistake::WindowUnattached) => {
                    serving
                        .windows
                        .answer(next, &mut serving.workers[usize::from(id.0)])
                }
                _ => next,
            };
            let input = match next {
                Told::Follow(key, follow, cursor) => Input::Follow {
                    worker: id,
                    follow,
                    key,
                    cursor,
                },
                Told::Resume(key, cursor) => Input::Resume {
                    worker: id,
                    key,
                    cursor,
                },
                Told::Unfollow(key) => Input::Unfollow { worker: id, key },
                Told::Enter(key, index, member) => Input::Enter {
                    place: Place { worker: id, index },
                    key,
                    member,
                    users_max: None,
                    cursor: None,
                },
                Told::Exit(key, connection, grace) => Input::Exit {
                    key,
                    connection,
                    grace,
                },
            };
            self.tell(now, input, out);
        }
        more
    }

    /// From now on what is decided is not performed, or it is again.
    pub fn hold(&mut self, holds: bool, out: &mut Outgoing) {
        self.holds = holds;
        if !holds {
            let mut effects = mem::take(&mut self.held);
            self.perform(&mut effects, out);
        }
    }

    /// The connections that end with it.
    pub fn connections(&self) -> Vec<Connection> {
        match &self.stage {
            Stage::Serving(serving) => {
                let workers = serving.workers.iter();
                workers.flat_map(Worker::connections).collect()
            }
            Stage::Seeking { .. } => Vec::new(),
        }
    }

    /// How much waits for a worker at most.
    pub fn waiting(&self) -> usize {
        match &self.stage {
            Stage::Serving(serving) => {
                let waiting = serving.workers.iter().map(Worker::waiting);
                waiting.max().unwrap_or(0)
            }
            Stage::Seeking { .. } => 0,
        }
    }

    /// One line for people.
    pub fn state(&self) -> String {
        match &self.stage {
            Stage::Seeking { .. } => "looks for the map".into(),
            Stage::Serving(serving) => format!(
                "incarnation {}, map {}, {} channels, {} publishes unanswered",
                serving.me.incarnation.0,
                serving.edge.map_version(),
                serving.edge.channels(),
                serving.orders.len()
            ),
        }
    }

    fn discover(&mut self, now: Timestamp, effects: Vec<discovery::Effect>, out: &mut Outgoing) {
        for effect in effects {
            match effect {
                discovery::Effect::Request { node, me, request } => {
                    let message = Message::Requests(Requests {
                        from: me,
                        map_version: 0,
                        requests: vec![request],
                    });
                    out.send(Address::Node(node), &message);
                }
                discovery::Effect::Raised { .. } | discovery::Effect::Complain(_) => {}
                discovery::Effect::Malformed => panic!("a gateway was sent what makes no sense"),
                discovery::Effect::Found(found) => {
                    self.serve(now, found, out);
                    return;
                }
            }
        }
    }

    fn serve(&mut self, now: Timestamp, found: discovery::Found, out: &mut Outgoing) {
        let discovery::Found {
            me,
            map,
            namespaces,
        } = found;
        let serving = Serving {
            edge: Edge::new(me.clone(), &map, namespaces),
            me,
            workers: (0..WORKERS as u8).map(Worker::new).collect(),
            tickets: 0,
            orders: HashMap::new(),
            links: BTreeMap::new(),
            windows: Windows::default(),
            unanswered: Unanswered::default(),
            first_joins: FirstJoins::default(),
            statements: Statements::default(),
        };
        let before = mem::replace(&mut self.stage, Stage::Serving(Box::new(serving)));
        out.found = true;
        if let Stage::Seeking { unread, .. } = before {
            for (subject, bytes) in unread {
                self.hear(now, subject, bytes, out);
            }
        }
    }

    fn tell(&mut self, now: Timestamp, input: Input, out: &mut Outgoing) {
        let Stage::Serving(serving) = &mut self.stage else {
            return;
        };
        let mut effects = mem::take(&mut self.buffer);
        if let Input::Message(Message::Replies(replies)) = &input
            && replies.to == serving.me.incarnation
        {
            serving.unanswered.answered(&replies.replies);
        }
        match &input {
            Input::Message(Message::Batch(batch) | Message::Repair(batch))
                if self.mistake == Some(Mistake::LinkOrder) =>
            {
                serving.by_link_order(now, batch, &mut effects);
            }
            Input::Message(Message::Repair(batch))
                if self.mistake == Some(Mistake::RepairUnordered) =>
            {
                serving.at_once(&batch.entries, &mut effects);
            }
            _ => {}
        }
        let by_edge = effects.len();
        serving.edge.handle(now, input, &mut effects);
        if self.mistake == Some(Mistake::LinkOrder) {
            let decided = effects.split_off(by_edge);
            let is_delivery = |effect: &Effect| {
                matches!(
                    effect,
                    Effect::Step {
                        step: Step::Deliver { .. },
                        ..
                    }
                )
            };
            effects.extend(decided.into_iter().filter(|effect| !is_delivery(effect)));
        }
        self.perform(&mut effects, out);
        self.buffer = effects;
    }

    fn perform(&mut self, effects: &mut Vec<Effect>, out: &mut Outgoing) {
        if self.holds {
            self.held.append(effects);
            return;
        }
        let Stage::Serving(serving) = &mut self.stage else {
            return;
        };
        let mut requests: BTreeMap<NodeId, Vec<Request>> = BTreeMap::new();
        for effect in effects.drain(..) {
            match effect {
                Effect::Request { node, mut request } => {
                    serving.statements.ask(self.mistake, &mut request);
                    mistakes::asked(self.mistake, &mut request);
                    serving.first_joins.ask(self.mistake, &mut request);
                    let lost = self.leaves_lost && matches!(request, Request::Leave(_));
                    if !lost && mistakes::asks(self.mistake, &request) {
                        if self.mistake == Some(Mistake::ResentInNextLife) {
                            serving.unanswered.asked(&node, &request);
                        }
                        requests.entry(node).or_default().push(request);
                    }
                }
                Effect::Answer((ticket, result)) => {
                    if let Some(asked) = serving.orders.remove(&ticket) {
                        let answer = match result {
                            Ok(accepted) => Answer::Accepted(accepted.position),
                            Err(code) => Answer::Failed(code),
                        };
                        out.answers.push((asked, answer));
                    }
                }
                Effect::Beat(mut beat) => {
                    mistakes::beat(self.mistake, &mut beat);
                    out.send(Address::GatewayBeats, &Message::GatewayBeat(beat));
                }
                Effect::Step { key, step } => {
                    serving.windows.see(self.mistake, &key, &step);
                    serving.step(key, step, out);
                }
                // Nothing is spread here.
                Effect::Counts(_)
                | Effect::LinkGap { .. }
                | Effect::LinkRepaired { .. }
                | Effect::LinkFallback { .. }
                | Effect::Silence { .. }
                | Effect::Told { .. }
                | Effect::Queried { .. } => {}
                // One cluster alone uses this bus, and all speak one language.
                Effect::Stranger { .. } | Effect::Malformed => {
                    panic!("g{} was sent what makes no sense", self.number)
                }
                Effect::Reborn { incarnation } => {
                    serving.me.incarnation = incarnation;
                    out.reborn = true;
                    requests.clear();
                    for (node, request) in serving.unanswered.begin_life() {
                        requests.entry(node).or_default().push(request);
                    }
                }
                Effect::Superseded { .. } => {
                    out.superseded = true;
                    return;
                }
            }
        }
        for (node, requests) in requests {
            for batch in batches(requests) {
                let message = Message::Requests(Requests {
                    from: serving.me.clone(),
                    map_version: serving.edge.map_version(),
                    requests: batch,
                });
                out.send(Address::Node(node.clone()), &message);
            }
        }
    }
}

impl Serving {
    fn step(&mut self, key: ChannelKey, step: Step, out: &mut Outgoing) {
        let (to, mail) = match step {
            Step::Attached {
                worker,
                follow,
                position,
                ..
            } => (
                Workers::only(worker),
                Mail::Attached {
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
                (workers, Mail::Broadcast(Arc::new(broadcast)))
            }
            Step::Gap { workers, gap, .. } => {
                (workers, Mail::Broadcast(Arc::new(Broadcast::gap(key, gap))))
            }
            Step::Resumed {
                worker,
                cursor,
                resumption,
            } => (
                Workers::only(worker),
                Mail::Resumed {
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
                ..
            } => (
                Workers::only(place.worker),
                Mail::Welcome {
                    key,
                    index: place.index,
                    connection,
                    position,
                    users,
                },
            ),
            Step::Members {
                workers,
                position,
                came,
                went,
            } => {
                let broadcast = Broadcast::members(key, position, came, went);
                (workers, Mail::Broadcast(Arc::new(broadcast)))
            }
            Step::Refused { code, .. } => panic!("no room is full here: {code}"),
            Step::Count { .. } => panic!("nobody counts subscribers here"),
            // For the edge.
            Step::Kept { .. } => return,
        };
        for worker in to.iter() {
            self.workers[usize::from(worker.0)].mail(mail.clone());
            out.woken.insert(worker);
        }
    }

    /// Delivers what a batch brings, at once and whatever its offset.
    fn by_link_order(&mut self, now: Timestamp, batch: &Batch, effects: &mut Vec<Effect>) {
        if batch.to != self.me.incarnation {
            return;
        }
        let link = self.links.entry(batch.from.id.clone()).or_default();
        let mut fresh = Vec::new();
        link.receive(now, batch, &mut fresh);
        let fresh: Vec<Bytes> = fresh
            .into_iter()
            .flatten()
            .map(|index| batch.entries[index].clone())
            .collect();
        self.at_once(&fresh, effects);
    }

    /// Delivers entries whatever their offsets.
    fn at_once(&self, entries: &[Bytes], effects: &mut Vec<Effect>) {
        let mut all = Workers::default();
        for worker in &self.workers {
            all.insert(worker.id);
        }
        for bytes in entries {
            let entry = codec::decode_entry(bytes).expect("a node sent it");
            effects.push(Effect::Step {
                key: entry.key,
                step: Step::Deliver {
                    workers: all,
                    epoch: entry.epoch,
                    publication: entry.publication,
                },
            });
        }
    }
}

impl Outgoing {
    fn send(&mut self, to: Address, message: &Message) {
        self.messages.push((to, codec::encode(message)));
    }
}

fn decode(bytes: &[u8]) -> Message {
    codec::decode(bytes).expect("processes of one version understand each other")
}
