//! Gateways that publish into a shard, and its owner, with everything between
//! them that can go wrong: requests and replies are lost, doubled and late, and
//! the owner is replaced by one that knows nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gateway::core::uplink::{Accepted, Order, Settled, Ticket, Uplink};
use node::core::shard::{Effect, Input, Shard, Tenure};
use proptest::prelude::*;
use proto::channel::ChannelKey;
use proto::error::ErrorCode;
use proto::id::{ClusterUuid, GatewayRef, Incarnation, NodeRef};
use proto::message::{Digest, Idempotency, PublishResult, Refusal, Reply, Request};
use proto::namespace::Namespaces;
use proto::position::Position;
use proto::shard::{Fence, ShardId};
use proto::time::{Timestamp, UnixTime};

const SHARD: ShardId = ShardId(3);
const GATEWAYS: usize = 2;
/// Messages on their way at most: more would be a storm that feeds itself.
const MESSAGES_MAX: usize = 20_000;

/// Something that happens next.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// A client publishes, at this gateway.
    Publish(usize),
    /// A client that has been told of a failure or of nothing definite sends the
    /// same again, at this gateway.
    Repeat(usize),
    /// One of the messages on their way arrives, and may stay on its way.
    Arrive { which: usize, again: bool },
    /// One is lost.
    Lose(usize),
    /// Milliseconds pass.
    Pass(u64),
    /// Another owner, without memory.
    Replace,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..GATEWAYS).prop_map(Step::Publish),
        2 => (0..GATEWAYS).prop_map(Step::Repeat),
        10 => (any::<usize>(), prop::bool::weighted(0.2))
            .prop_map(|(which, again)| Step::Arrive { which, again }),
        3 => any::<usize>().prop_map(Step::Lose),
        4 => (1_u64..700).prop_map(Step::Pass),
        1 => (2_000_u64..6_000).prop_map(Step::Pass),
    ]
}

#[derive(Debug, Clone)]
enum Message {
    Request(usize, Request),
    /// From the owner under a fence.
    Reply(usize, Fence, u64, PublishResult),
}

/// What an owner has published.
#[derive(Debug, Clone, PartialEq)]
struct Done {
    fence: Fence,
    position: Position,
    gateway: usize,
    ticket: Ticket,
    wish: u64,
}

struct World {
    /// Whether clients give keys, one for each wish.
    keys: bool,
    now: Timestamp,
    fence: Fence,
    owner: Shard,
    uplinks: Vec<Uplink>,
    messages: Vec<Message>,
    /// What clients want published. They may ask for one thing several times,
    /// each time under another ticket.
    wishes: u64,
    asked: BTreeMap<Ticket, u64>,
    answers: BTreeMap<Ticket, Result<Position, ErrorCode>>,
    done: Vec<Done>,
}

fn owner(fence: Fence) -> Shard {
    let tenure = Tenure {
        shard: SHARD,
        fence,
        owner: NodeRef {
            id: "n".parse().unwrap(),
            incarnation: Incarnation(fence.0),
        },
        cluster: ClusterUuid(1),
    };
    Shard::new(tenure, Arc::new(Namespaces::default()))
}

impl World {
    fn new(keys: bool) -> Self {
        Self {
            keys,
            now: Timestamp(0),
            fence: Fence(1),
            owner: owner(Fence(1)),
            uplinks: (0..GATEWAYS).map(|_| Uplink::new(SHARD)).collect(),
            messages: Vec::new(),
            wishes: 0,
            asked: BTreeMap::new(),
            answers: BTreeMap::new(),
            done: Vec::new(),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Publish(gateway) => {
                self.wishes += 1;
                self.ask(gateway, self.wishes);
            }
            Step::Repeat(gateway) => {
                if let Some(wish) = self.open_wishes().first() {
                    self.ask(gateway, *wish);
                }
            }
            Step::Arrive { which, again } => {
                if let Some(at) = which.checked_rem(self.messages.len()) {
                    let message = if again {
                        self.messages[at].clone()
                    } else {
                        self.messages.remove(at)
                    };
                    self.arrive(message);
                }
            }
            Step::Lose(which) => {
                if let Some(at) = which.checked_rem(self.messages.len()) {
                    self.messages.remove(at);
                }
            }
            Step::Pass(ms) => self.pass(ms),
            Step::Replace => self.replace(),
        }
    }

    /// Those of whose publication nobody has been told.
    fn open_wishes(&self) -> Vec<u64> {
        let is_open = |wish: &u64| {
            let mut tickets = self.asked.iter().filter(|(_, asked)| *asked == wish);
            !tickets.any(|(ticket, _)| self.answers.get(ticket).is_some_and(Result::is_ok))
        };
        (1..=self.wishes).filter(is_open).collect()
    }

    fn ask(&mut self, gateway: usize, wish: u64) {
        let ticket = Ticket(self.asked.len() as u64);
        self.asked.insert(ticket, wish);
        let idempotency = Idempotency {
            key: Digest(u128::from(wish)),
            body: Digest(0),
        };
        let order = Order {
            key: ChannelKey {
                app: "a".parse().unwrap(),
                channel: "c".parse().unwrap(),
            },
            event: format!("{gateway}-{}", ticket.0).into(),
            data: wish.to_string().into(),
            exclude: None,
            accepted_at: UnixTime(0),
            idempotency: self.keys.then_some(idempotency),
            by: None,
        };
        let uplink = &mut self.uplinks[gateway];
        uplink.push(self.now, ticket, order).unwrap();
        uplink.send(self.now, self.fence, to(gateway, &mut self.messages));
    }

    fn arrive(&mut self, message: Message) {
        assert!(self.messages.len() < MESSAGES_MAX, "a storm");
        match message {
            Message::Request(gateway, request) => self.request(gateway, request),
            // As the edge does with what an earlier owner says.
            Message::Reply(_, fence, ..) if fence != self.fence => {}
            Message::Reply(gateway, _, sequence, result) => self.reply(gateway, sequence, result),
        }
    }

    fn request(&mut self, gateway: usize, request: Request) {
        let from = GatewayRef {
            id: format!("g{gateway}").parse().unwrap(),
            incarnation: Incarnation(1),
        };
        let mut effects = Vec::new();
        let input = Input::Request { from, request };
        self.owner.handle(self.now, input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Deliver { entry, .. } => self.publish(&entry),
                Effect::Reply { reply, .. } | Effect::Acknowledge { reply, .. } => {
                    let Reply::Published {
                        sequence, result, ..
                    } = reply
                    else {
                        panic!("{reply:?}");
                    };
                    let reply = Message::Reply(gateway, self.fence, sequence, result);
                    self.messages.push(reply);
                }
                Effect::Repeated => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn publish(&mut self, entry: &proto::message::Entry) {
        let (gateway, ticket) = entry.publication.event.split_once('-').unwrap();
        let done = Done {
            fence: self.fence,
            position: Position {
                epoch: entry.epoch,
                offset: entry.publication.offset,
            },
            gateway: gateway.parse().unwrap(),
            ticket: Ticket(ticket.parse().unwrap()),
            wish: entry.publication.data.parse().unwrap(),
        };
        for earlier in self.done.iter().filter(|done| done.fence == self.fence) {
            assert_ne!(earlier.ticket, done.ticket, "an order twice");
            assert!(!self.keys || earlier.wish != done.wish, "a wish twice");
            let in_order = earlier.gateway != done.gateway || earlier.ticket < done.ticket;
            assert!(in_order, "out of order");
        }
        self.done.push(done);
    }

    fn reply(&mut self, gateway: usize, sequence: u64, result: PublishResult) {
        let uplink = &mut self.uplinks[gateway];
        let requests = to(gateway, &mut self.messages);
        if let Err(Refusal::OutOfSequence { expected }) = result {
            uplink.fill_hole(self.now, self.fence, expected, requests);
            return;
        }
        let answer = uplink.answered(sequence, result);
        uplink.send(self.now, self.fence, requests);
        if let Some(Settled::Publish((ticket, result))) = answer {
            self.answer(ticket, result);
        }
    }

    fn answer(&mut self, ticket: Ticket, result: Result<Accepted, ErrorCode>) {
        let result = result.map(|accepted| accepted.position);
        if let Ok(position) = result {
            let wish = self.asked[&ticket];
            let is_it = |done: &Done| {
                done.position == position
                    && done.wish == wish
                    && (self.keys || done.ticket == ticket)
            };
            assert!(self.done.iter().any(is_it), "it is not there");
        }
        let before = self.answers.insert(ticket, result);
        assert_eq!(before, None, "answered twice");
    }

    fn pass(&mut self, ms: u64) {
        self.now = self.now + Duration::from_millis(ms);
        let mut answers = Vec::new();
        for (gateway, uplink) in self.uplinks.iter_mut().enumerate() {
            let requests = to(gateway, &mut self.messages);
            uplink.tick(self.now, self.fence, &mut answers, requests);
        }
        for (ticket, result) in answers {
            self.answer(ticket, result);
        }
    }

    fn replace(&mut self) {
        self.fence = Fence(self.fence.0 + 1);
        self.owner = owner(self.fence);
        for (gateway, uplink) in self.uplinks.iter_mut().enumerate() {
            uplink.resend(self.now, self.fence, to(gateway, &mut self.messages));
        }
    }

    /// No more faults: everything arrives in order, and time passes.
    fn heal(&mut self) {
        for _ in 0..500 {
            for message in std::mem::take(&mut self.messages) {
                self.arrive(message);
            }
            if self.messages.is_empty() && self.uplinks.iter().all(Uplink::is_idle) {
                return;
            }
            self.pass(20);
        }
        panic!("something waits for ever");
    }
}

fn to(gateway: usize, messages: &mut Vec<Message>) -> impl FnMut(Request) + '_ {
    move |request| messages.push(Message::Request(gateway, request))
}

/// What must hold when nothing is on its way any more.
fn check(world: &World) {
    assert_eq!(world.answers.len(), world.asked.len(), "all are answered");
    for (ticket, result) in &world.answers {
        // All other failures leave it open.
        if *result == Err(ErrorCode::Unavailable) {
            let was_done = world.done.iter().any(|done| done.ticket == *ticket);
            assert!(!was_done, "it was said that it is not published");
        }
    }
}

fn run(keys: bool, steps: Vec<Step>) -> World {
    let mut world = World::new(keys);
    for step in steps {
        world.step(step);
    }
    world.heal();
    check(&world);
    world
}

proptest! {
    /// Each order takes effect at most once, in the order of its gateway; every
    /// asker is told once, and what is said is so; in the end nothing waits.
    /// However often the owner is replaced, this holds under each.
    #[test]
    fn each_order_takes_effect_once(
        steps in prop::collection::vec(prop_oneof![19 => step(), 1 => Just(Step::Replace)], 0..200),
    ) {
        run(false, steps);
    }

    /// With a key the same holds of what a client wants, however often it asks
    /// and through whichever gateway.
    #[test]
    fn each_key_takes_effect_once(
        steps in prop::collection::vec(prop_oneof![19 => step(), 1 => Just(Step::Replace)], 0..200),
    ) {
        run(true, steps);
    }

    /// While the owner lives all askers are told of the same position, and who
    /// goes on repeating is published in the end.
    #[test]
    fn who_repeats_is_published(steps in prop::collection::vec(step(), 0..200)) {
        let mut world = run(true, steps);
        for wish in world.open_wishes() {
            world.ask(0, wish);
        }
        world.heal();
        prop_assert_eq!(world.open_wishes(), Vec::<u64>::new());
        prop_assert_eq!(world.done.len() as u64, world.wishes);
        for (ticket, wish) in &world.asked {
            let place = world.done.iter().find(|done| done.wish == *wish);
            if let Ok(position) = world.answers[ticket] {
                prop_assert_eq!(Some(position), place.map(|done| done.position));
            }
        }
    }
}
