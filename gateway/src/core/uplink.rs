//! The publishes of one gateway to one shard: numbered, in order, sent again
//! until answered.
//!
//! A publish that was sent may be in the channel, whatever we have heard. So
//! when its time runs out its publisher is told that the outcome is unknown,
//! and its place in the sequence is sent as a skip: the owner either has it or
//! closes the place, and no later publish waits for it.
//!
//! What a gateway says of its members goes the same way, in order with what they
//! publish. It is said until it is answered: nobody else would ever say it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use proto::channel::ChannelKey;
use proto::error::ErrorCode;
use proto::id::ConnectionId;
use proto::message::{
    Enter, Exit, Idempotency, Publish, PublishResult, Published, Refusal, Request, Sequenced,
    Stated,
};
use proto::position::Position;
use proto::presence::Member;
use proto::shard::{Fence, ShardId};
use proto::time::{Timestamp, UnixTime};

/// How long a publisher waits for an answer.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// After how long without an answer everything unanswered is sent again.
const RESEND_AFTER: Duration = Duration::from_millis(500);
/// The same for an owner that has been silent so often that loss does not
/// explain it.
const RESEND_AFTER_MAX: Duration = Duration::from_secs(2);
const DEAD_AFTER: u32 = 10;
/// After how long everything is sent again to an owner that has not heard yet
/// that it is one.
const SOON: Duration = Duration::from_millis(100);
/// As many are sent again to an owner that has not answered the last time: if
/// it has come back, the rest follows its answer.
const PROBE: usize = 4;
/// What was sent within this time is not sent again for a hole that it would
/// fill: one lost batch makes the owner complain of every one after it.
const RESEND_MIN: Duration = Duration::from_millis(50);
/// Unanswered publishes at most: the owner keeps as many results.
const WINDOW: u64 = 1_024;
/// Publishes that wait for room in the window at most; more are refused.
const WAITING_MAX: usize = 8_192;

/// Names a publisher's question, so that the answer finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Something to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Where to.
    pub key: ChannelKey,
    /// The event's name.
    pub event: Arc<str>,
    /// Its data.
    pub data: Arc<str>,
    /// Who does not get it.
    pub exclude: Option<ConnectionId>,
    /// When it was accepted.
    pub accepted_at: UnixTime,
    /// Its publisher's idempotency key, if there is one.
    pub idempotency: Option<Idempotency>,
    /// The user who publishes, if it is a member of the channel.
    pub by: Option<Arc<str>>,
}

/// What a gateway says of its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// One is in a channel, in which there may be so many users.
    Enter(ChannelKey, Member, Option<u32>),
    /// One is in a channel no longer.
    Exit(ChannelKey, ConnectionId),
    /// All have been stated to the owner under this fence.
    All(Fence),
}

/// What has become of something that was sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Settled {
    /// A publisher is told.
    Publish(Answer),
    /// A member is in a channel from a position on, or is not let in.
    Entered(ChannelKey, ConnectionId, Result<Position, ErrorCode>),
    /// Nobody waits for it.
    Nothing,
}

/// A publication that the owner has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Where it stands.
    pub position: Position,
    /// In how many processes it is held.
    pub copies: u8,
}

/// What a publisher is told.
pub type Answer = (Ticket, Result<Accepted, ErrorCode>);

/// The state for one shard.
#[derive(Debug)]
pub struct Uplink {
    shard: ShardId,
    /// The next sequence.
    next: u64,
    /// Sent and not answered, by sequence; answered ones are missing.
    sent: VecDeque<Sent>,
    /// Not sent yet, so without a sequence.
    waiting: VecDeque<Waiting>,
    /// How many of both are statements.
    statements: usize,
    /// How often everything was sent again without a word from the owner.
    unheard: u32,
    /// When to send everything again, if that is known to be worth it.
    again_at: Option<Timestamp>,
}

#[derive(Debug)]
struct Sent {
    sequence: u64,
    sent_at: Timestamp,
    /// `None`: its time ran out, and it is a skip now.
    open: Option<Waiting>,
}

#[derive(Debug)]
enum Waiting {
    Publish {
        ticket: Ticket,
        deadline: Timestamp,
        order: Box<Order>,
    },
    Statement(Statement),
}

impl Waiting {
    /// Whether its time is over, and who is to be told.
    fn late(&self, now: Timestamp) -> Option<Ticket> {
        match self {
            Self::Publish {
                ticket, deadline, ..
            } => (*deadline <= now).then_some(*ticket),
            Self::Statement(_) => None,
        }
    }

    fn ticket(&self) -> Option<Ticket> {
        match self {
            Self::Publish { ticket, .. } => Some(*ticket),
            Self::Statement(_) => None,
        }
    }
}

impl Uplink {
    /// Nothing published yet.
    pub fn new(shard: ShardId) -> Self {
        Self {
            shard,
            next: 1,
            sent: VecDeque::new(),
            waiting: VecDeque::new(),
            statements: 0,
            unheard: 0,
            again_at: None,
        }
    }

    /// Whether nothing waits for anything.
    pub fn is_idle(&self) -> bool {
        self.sent.is_empty() && self.waiting.is_empty()
    }

    /// Takes a publish; it is sent in its turn. `Err`: too many wait.
    pub fn push(&mut self, now: Timestamp, ticket: Ticket, order: Order) -> Result<(), ErrorCode> {
        if self.waiting.len() >= WAITING_MAX {
            return Err(ErrorCode::Overloaded);
        }
        self.waiting.push_back(Waiting::Publish {
            ticket,
            deadline: now + DEADLINE,
            order: Box::new(order),
        });
        Ok(())
    }

    /// Takes a statement; it is sent in its turn. There are no more of them than
    /// members have come and gone.
    pub fn state(&mut self, statement: Statement) {
        self.statements += 1;
        self.waiting.push_back(Waiting::Statement(statement));
    }

    /// How many statements are unanswered.
    pub fn statements(&self) -> usize {
        self.statements
    }

    /// Sends what has room in the window.
    pub fn send(&mut self, now: Timestamp, fence: Fence, mut request: impl FnMut(Request)) {
        while self.next - self.low_mark() < WINDOW
            && let Some(open) = self.waiting.pop_front()
        {
            let sent = Sent {
                sequence: self.next,
                sent_at: now,
                open: Some(open),
            };
            self.next += 1;
            self.sent.push_back(sent);
            let low_mark = self.low_mark();
            let last = self.sent.back().expect("it was just put there");
            request(last.request(self.shard, fence, low_mark));
        }
    }

    /// Sends everything unanswered again, in order: there is a new owner.
    pub fn resend(&mut self, now: Timestamp, fence: Fence, request: impl FnMut(Request)) {
        self.unheard = 0;
        self.again_at = None;
        self.resend_from(now, fence, 0, usize::MAX, request);
    }

    /// The owner has not heard yet that it is one.
    pub fn hurry(&mut self, now: Timestamp) {
        self.unheard = 0;
        self.again_at.get_or_insert(now + SOON);
    }

    /// The owner says that everything from `expected` on must come again.
    pub fn fill_hole(
        &mut self,
        now: Timestamp,
        fence: Fence,
        expected: u64,
        request: impl FnMut(Request),
    ) {
        self.unheard = 0;
        let at = self.sent.partition_point(|sent| sent.sequence < expected);
        if self
            .sent
            .get(at)
            .is_some_and(|sent| now.since(sent.sent_at) >= RESEND_MIN)
        {
            self.resend_from(now, fence, expected, usize::MAX, request);
        }
    }

    /// Time has passed: sends again what got no answer, and gives up what has
    /// waited too long.
    pub fn tick(
        &mut self,
        now: Timestamp,
        fence: Fence,
        answers: &mut Vec<Answer>,
        request: impl FnMut(Request),
    ) {
        if self.is_any_late(now) {
            self.waiting.retain(|waiting| {
                let late = waiting.late(now);
                answers.extend(late.map(|ticket| (ticket, Err(ErrorCode::Unavailable))));
                late.is_none()
            });
        }
        for sent in &mut self.sent {
            let late = sent.open.as_ref().and_then(|open| open.late(now));
            if let Some(ticket) = late {
                sent.open = None;
                answers.push((ticket, Err(ErrorCode::UnknownOutcome)));
            }
        }
        let patience = if self.unheard < DEAD_AFTER {
            RESEND_AFTER
        } else {
            RESEND_AFTER_MAX
        };
        let sent_at = self.sent.front().map(|sent| sent.sent_at);
        if self.again_at.is_some_and(|at| at <= now) {
            self.resend(now, fence, request);
        } else if sent_at.is_some_and(|at| now.since(at) >= patience) {
            // Whoever does not answer may be dead: it is not to be buried under
            // what waits for it.
            let count = if self.unheard == 0 { usize::MAX } else { PROBE };
            self.unheard += 1;
            self.resend_from(now, fence, 0, count, request);
        }
    }

    /// This life of the gateway is over, and the next has a sequence of its own.
    /// What was sent may be in the channels: it is never sent under another name,
    /// and its publishers are told that the outcome is unknown. What waits goes on
    /// waiting; of statements nothing stays.
    pub fn begin_life(&mut self, answers: &mut Vec<Answer>) {
        let sent = self.sent.drain(..).filter_map(|sent| sent.open?.ticket());
        answers.extend(sent.map(|ticket| (ticket, Err(ErrorCode::UnknownOutcome))));
        // Members are stated anew.
        self.waiting.retain(|waiting| waiting.ticket().is_some());
        *self = Self {
            waiting: std::mem::take(&mut self.waiting),
            ..Self::new(self.shard)
        };
    }

    /// An answer has come. What becomes of what was sent, if anybody still waits.
    /// Refusals that concern the owner and not the publish leave it unanswered.
    pub fn answered(&mut self, sequence: u64, result: PublishResult) -> Option<Settled> {
        self.unheard = 0;
        let result = match result {
            Ok(Published::Accepted {
                position, copies, ..
            }) => Ok(Accepted { position, copies }),
            // The place was closed, or its result is gone: we gave up on it
            // and cannot know.
            Ok(Published::Skipped) | Err(Refusal::Forgotten) => Err(ErrorCode::UnknownOutcome),
            Err(Refusal::Overloaded) => Err(ErrorCode::Overloaded),
            Err(Refusal::IdempotencyMismatch) => Err(ErrorCode::IdempotencyMismatch),
            Err(Refusal::IdempotencyFull) => Err(ErrorCode::IdempotencyFull),
            Err(Refusal::NoStandby) => Err(ErrorCode::NoStandby),
            Err(Refusal::Unprotected) => Err(ErrorCode::Unprotected),
            Err(Refusal::RosterFull) => Err(ErrorCode::RosterFull),
            Err(Refusal::NotOwner { .. } | Refusal::OutOfSequence { .. }) => return None,
        };
        let at = self
            .sent
            .binary_search_by_key(&sequence, |sent| sent.sequence)
            .ok()?;
        Some(match self.sent.remove(at)?.open? {
            Waiting::Publish { ticket, .. } => Settled::Publish((ticket, result)),
            Waiting::Statement(statement) => {
                self.statements -= 1;
                match statement {
                    Statement::Enter(key, member, _) => {
                        let position = result.map(|accepted| accepted.position);
                        Settled::Entered(key, member.connection, position)
                    }
                    Statement::Exit(..) | Statement::All(_) => Settled::Nothing,
                }
            }
        })
    }

    /// Whether anything that waits has waited too long. What came first is looked at
    /// alone, as long as it is a publish.
    fn is_any_late(&self, now: Timestamp) -> bool {
        let is_publish = |waiting: &&Waiting| waiting.ticket().is_some();
        let first = self.waiting.iter().find(is_publish);
        first.is_some_and(|first| first.late(now).is_some())
    }

    /// The lowest sequence that is still unanswered.
    fn low_mark(&self) -> u64 {
        self.sent.front().map_or(self.next, |sent| sent.sequence)
    }

    fn resend_from(
        &mut self,
        now: Timestamp,
        fence: Fence,
        from: u64,
        count: usize,
        mut request: impl FnMut(Request),
    ) {
        let low_mark = self.low_mark();
        let wanted = self.sent.iter_mut().filter(|sent| sent.sequence >= from);
        for sent in wanted.take(count) {
            sent.sent_at = now;
            request(sent.request(self.shard, fence, low_mark));
        }
    }
}

impl Sent {
    fn request(&self, shard: ShardId, fence: Fence, low_mark: u64) -> Request {
        let place = Sequenced {
            shard,
            fence,
            sequence: self.sequence,
            low_mark,
        };
        match &self.open {
            None => Request::Skip(place),
            Some(Waiting::Statement(statement)) => statement.request(place),
            Some(Waiting::Publish { order, .. }) => Request::Publish(Publish {
                place,
                key: order.key.clone(),
                event: Arc::clone(&order.event),
                data: Arc::clone(&order.data),
                exclude: order.exclude,
                accepted_at: order.accepted_at,
                idempotency: order.idempotency,
                by: order.by.clone(),
            }),
        }
    }
}

impl Statement {
    fn request(&self, place: Sequenced) -> Request {
        match self {
            Self::Enter(key, member, users_max) => Request::Enter(Enter {
                place,
                key: key.clone(),
                member: member.clone(),
                users_max: *users_max,
            }),
            Self::Exit(key, connection) => Request::Exit(Exit {
                place,
                key: key.clone(),
                connection: *connection,
            }),
            Self::All(to) => Request::Stated(Stated { place, to: *to }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::position::{Epoch, Offset};

    const FENCE: Fence = Fence(1);

    fn order(data: &str) -> Order {
        Order {
            key: ChannelKey {
                app: "a".parse().unwrap(),
                channel: "c".parse().unwrap(),
            },
            event: "e".into(),
            data: data.into(),
            exclude: None,
            accepted_at: UnixTime(0),
            idempotency: None,
            by: None,
        }
    }

    fn uplink(publishes: u64) -> (Uplink, Vec<String>) {
        let mut uplink = Uplink::new(ShardId(0));
        for ticket in 0..publishes {
            uplink
                .push(Timestamp(0), Ticket(ticket), order("d"))
                .unwrap();
        }
        let mut requests = Vec::new();
        uplink.send(Timestamp(0), FENCE, |request| {
            requests.push(short(&request))
        });
        (uplink, requests)
    }

    /// `p3/1` is publish 3 with low mark 1, `s3/1` a skip.
    fn short(request: &Request) -> String {
        match request {
            Request::Publish(publish) => {
                format!("p{}/{}", publish.place.sequence, publish.place.low_mark)
            }
            Request::Skip(place) => format!("s{}/{}", place.sequence, place.low_mark),
            other => panic!("not a publish: {other:?}"),
        }
    }

    fn accepted() -> PublishResult {
        let position = Position {
            epoch: Epoch(1),
            offset: Offset(1),
        };
        Ok(Published::Accepted {
            fence: FENCE,
            position,
            copies: 1,
        })
    }

    fn tick(uplink: &mut Uplink, at: u64) -> (Vec<Answer>, Vec<String>) {
        let (mut answers, mut requests) = (Vec::new(), Vec::new());
        uplink.tick(Timestamp(at), FENCE, &mut answers, |request| {
            requests.push(short(&request))
        });
        (answers, requests)
    }

    #[test]
    fn sequences_count_from_one_and_the_low_mark_follows_the_answers() {
        let (mut uplink, requests) = uplink(3);
        assert_eq!(requests, ["p1/1", "p2/1", "p3/1"]);
        assert!(matches!(
            uplink.answered(2, accepted()),
            Some(Settled::Publish((Ticket(1), Ok(_))))
        ));
        assert_eq!(uplink.answered(2, accepted()), None, "answered once");
        uplink.push(Timestamp(0), Ticket(3), order("d")).unwrap();
        let mut requests = Vec::new();
        uplink.send(Timestamp(0), FENCE, |request| {
            requests.push(short(&request))
        });
        assert_eq!(requests, ["p4/1"]);
        uplink.answered(1, accepted());
        let mut requests = Vec::new();
        uplink.resend(Timestamp(0), FENCE, |request| {
            requests.push(short(&request))
        });
        assert_eq!(requests, ["p3/3", "p4/3"]);
    }

    #[test]
    fn a_new_life_keeps_what_was_not_sent_and_gives_up_the_rest() {
        let (mut uplink, requests) = uplink(WINDOW + 1);
        assert_eq!(requests.len() as u64, WINDOW);
        uplink.answered(2, accepted());
        let mut answers = Vec::new();
        uplink.begin_life(&mut answers);
        let unknown = Err(ErrorCode::UnknownOutcome);
        assert_eq!(answers.len() as u64, WINDOW - 1);
        assert_eq!(answers[..2], [(Ticket(0), unknown), (Ticket(2), unknown)]);
        let mut requests = Vec::new();
        uplink.send(Timestamp(0), FENCE, |request| {
            requests.push(short(&request))
        });
        assert_eq!(requests, ["p1/1"]);
        assert!(matches!(
            uplink.answered(1, accepted()),
            Some(Settled::Publish((Ticket(WINDOW), Ok(_))))
        ));
        assert!(uplink.is_idle());
    }

    #[test]
    fn what_gets_no_answer_is_sent_again_in_order() {
        let (mut uplink, _) = uplink(2);
        assert_eq!(tick(&mut uplink, 499).1, [""; 0]);
        assert_eq!(tick(&mut uplink, 500).1, ["p1/1", "p2/1"]);
        assert_eq!(tick(&mut uplink, 999).1, [""; 0]);
    }

    #[test]
    fn an_owner_that_says_nothing_is_not_buried() {
        let (mut uplink, _) = uplink(100);
        assert_eq!(tick(&mut uplink, 500).1.len(), 100, "once, in case of loss");
        let sent: Vec<usize> = (501..=60_000)
            .step_by(20)
            .map(|at| tick(&mut uplink, at).1.len())
            .collect();
        assert!(sent.iter().all(|count| *count <= PROBE));
        let total: usize = sent.iter().sum();
        assert!(
            (4 * 34..=4 * 38).contains(&total),
            "every 2 s, later on: {total}"
        );
        // It is back: the rest follows at once.
        uplink.answered(1, Ok(Published::Skipped));
        assert_eq!(tick(&mut uplink, 63_000).1.len(), 99);
    }

    #[test]
    fn a_publish_whose_time_ran_out_is_unknown_and_becomes_a_skip() {
        let (mut uplink, _) = uplink(2);
        uplink.answered(2, accepted());
        let (answers, requests) = tick(&mut uplink, 5_000);
        assert_eq!(answers, [(Ticket(0), Err(ErrorCode::UnknownOutcome))]);
        assert_eq!(requests, ["s1/1"]);
        assert_eq!(
            uplink.answered(1, Ok(Published::Skipped)),
            None,
            "told already"
        );
        assert!(uplink.is_idle());
    }

    #[test]
    fn a_publish_that_never_left_is_certainly_not_published() {
        let (mut uplink, requests) = uplink(WINDOW + 2);
        assert_eq!(requests.len() as u64, WINDOW);
        let (answers, _) = tick(&mut uplink, 5_000);
        let unavailable = answers
            .iter()
            .filter(|(_, result)| *result == Err(ErrorCode::Unavailable));
        assert_eq!(unavailable.count(), 2);
    }

    #[test]
    fn the_window_opens_with_the_low_mark() {
        let (mut uplink, _) = uplink(WINDOW + 1);
        let mut sent = 0;
        uplink.answered(2, accepted());
        uplink.send(Timestamp(0), FENCE, |_| sent += 1);
        assert_eq!(sent, 0, "1 is unanswered");
        uplink.answered(1, accepted());
        uplink.send(Timestamp(0), FENCE, |_| sent += 1);
        assert_eq!(sent, 1);
    }

    #[test]
    fn a_lost_batch_is_sent_again_once_however_often_the_owner_complains() {
        let (mut uplink, _) = uplink(4);
        let mut requests = Vec::new();
        for _ in 0..3 {
            uplink.fill_hole(Timestamp(60), FENCE, 2, |request| {
                requests.push(short(&request))
            });
        }
        assert_eq!(requests, ["p2/1", "p3/1", "p4/1"]);
    }

    #[test]
    fn too_many_that_wait_are_refused() {
        let (mut uplink, _) = uplink(WINDOW);
        for ticket in 0..WAITING_MAX as u64 {
            uplink
                .push(Timestamp(0), Ticket(ticket), order("d"))
                .unwrap();
        }
        assert_eq!(
            uplink.push(Timestamp(0), Ticket(0), order("d")),
            Err(ErrorCode::Overloaded)
        );
    }
}
