mod alone;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proto::id::{ClusterUuid, Incarnation, NodeRef};
use proto::message::{
    Digest, Idempotency, Join, Missed, Publish, PublishResult, Refusal, Reply, Request, Sequenced,
    Since,
};
use proto::namespace::{HistoryLimits, Namespace, Namespaces, Standby};
use proto::position::{GapReason, Offset};
use proto::shard::{Fence, Row as MapRow, ShardId, ShardMap, Sharding};
use proto::time::UnixTime;

use super::super::{Effect, Input};
use super::*;
use crate::core::agreed::{Agreed, Replicas as AgreedReplicas};
use crate::core::checkpoint::ShardCheckpoint;
use crate::core::lease::{PAIR_LEASE_AT_STANDBY, may_serve_from};
use crate::core::pairs::{self, Pairs};
use crate::core::replicas::{self, Replicas};
use crate::core::replication::{Leases, Row};

const SHARD: ShardId = ShardId(0);

fn node(id: &str) -> NodeRef {
    NodeRef {
        id: id.parse().unwrap(),
        incarnation: Incarnation(1),
    }
}

fn gateway() -> GatewayRef {
    GatewayRef {
        id: "g".parse().unwrap(),
        incarnation: Incarnation(1),
    }
}

fn key(channel: u8) -> ChannelKey {
    ChannelKey {
        app: "app".parse().unwrap(),
        channel: format!("c{channel}").parse().unwrap(),
    }
}

fn publish(
    place: Sequenced,
    key: ChannelKey,
    data: &str,
    idempotency: Option<Idempotency>,
) -> Request {
    Request::Publish(Publish {
        place,
        key,
        event: "e".into(),
        data: data.into(),
        exclude: None,
        accepted_at: UnixTime(0),
        idempotency,
        by: None,
    })
}

/// An owner, its standby, and the way between them, on one clock.
struct Two {
    now: Timestamp,
    owner: Shard,
    pairs: Pairs,
    standby: Replicas,
    agreed: Agreed,
    /// What is on the way to the standby and back; a way that breaks loses it.
    batches: Vec<pairs::Batch>,
    echoes: Vec<pairs::Echo>,
    /// What may be performed.
    performed: Vec<Effect>,
    sequence: u64,
}

/// The channel that takes nothing without a standby.
const CAREFUL: u8 = 200;
/// The channel that no standby is to have.
const ALONE: u8 = 3;

fn namespaces() -> Arc<Namespaces> {
    let rule = |channel: u8, standby| Namespace {
        slow: Default::default(),
        pattern: format!("c{channel}"),
        app: None,
        history: HistoryLimits::default(),
        standby,
    };
    let rules = vec![rule(CAREFUL, Standby::Require), rule(ALONE, Standby::None)];
    Arc::new(Namespaces::new(rules))
}

impl Two {
    fn new() -> Self {
        let agreed = agreed(&node("a"), 1);
        let tenure = Tenure {
            shard: SHARD,
            fence: Fence(1),
            owner: node("a"),
            cluster: ClusterUuid(1),
        };
        let namespaces = namespaces();
        let row = agreed.shards[0].row.clone();
        let mut two = Self {
            now: Timestamp(1_000),
            owner: Shard::new(tenure, Arc::clone(&namespaces)),
            pairs: Pairs::new(node("a")),
            standby: Replicas::new(node("b"), namespaces, Arc::new(agreed.clone())),
            agreed,
            batches: Vec::new(),
            echoes: Vec::new(),
            performed: Vec::new(),
            sequence: 0,
        };
        two.tell(Input::Agreed(row));
        two
    }

    fn tell(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.owner.handle(self.now, input, &mut effects);
        self.gate(0, effects);
    }

    fn gate(&mut self, first: usize, mut effects: Vec<Effect>) {
        let leases = Leases {
            node: Timestamp(u64::MAX),
            pairs: self.pairs.leases(),
        };
        self.owner.gate(self.now, &leases, first, &mut effects);
        for effect in effects {
            match effect {
                Effect::Replicate { to, part } => self.pairs.push(self.now, to, part),
                Effect::Propose(proposal) => {
                    let row = &mut self.agreed.shards[0].row;
                    assert_eq!(proposal.version, row.version);
                    row.version += 1;
                    row.in_sync = proposal.in_sync;
                    row.has_earlier = false;
                    let row = row.clone();
                    self.tell(Input::Agreed(row));
                }
                Effect::Under(leased) => self.performed.extend(leased.effects),
                effect => self.performed.push(effect),
            }
        }
        let mut sent = Vec::new();
        self.pairs.flush(self.now, &mut sent);
        self.obey(sent);
    }

    fn obey(&mut self, effects: Vec<pairs::Effect>) {
        for effect in effects {
            match effect {
                pairs::Effect::Send(batch) => self.batches.push(batch),
                pairs::Effect::Confirmed(from, confirmed) => {
                    let pairs::Confirmation { fill, number, .. } = confirmed;
                    self.tell(Input::Confirmed { from, fill, number });
                }
                pairs::Effect::Lost(from, ..) => self.tell(Input::Lost(from)),
                pairs::Effect::Reopened(to) => self.tell(Input::Reopened(to)),
                pairs::Effect::Refused(..) | pairs::Effect::Ended(_) => {
                    panic!("nobody else owns it, and nobody ends")
                }
            }
        }
    }

    fn open(&mut self) {
        self.standby.opened(&node("a"));
        let mut effects = Vec::new();
        self.pairs.opened(self.now, &node("b"), &mut effects);
        self.obey(effects);
    }

    fn close(&mut self) {
        self.batches.clear();
        self.echoes.clear();
        self.pairs.closed(&node("b"));
    }

    /// A standby, on its way to have everything.
    fn recruit(&mut self) {
        self.open();
        self.tell(Input::Want(vec![node("b")]));
        self.open();
    }

    fn carry(&mut self) {
        for batch in std::mem::take(&mut self.batches) {
            let mut effects = Vec::new();
            self.standby.batch(self.now, batch, &mut effects);
            for effect in effects {
                if let replicas::Effect::Echo(echo) = effect {
                    self.echoes.push(echo);
                }
            }
        }
    }

    fn carry_back(&mut self) {
        for echo in std::mem::take(&mut self.echoes) {
            let mut effects = Vec::new();
            self.pairs.echo(self.now, echo, &mut effects);
            self.obey(effects);
        }
        self.gate(0, Vec::new());
    }

    fn pass(&mut self, ms: u64) {
        self.now = self.now + Duration::from_millis(ms);
        let mut effects = Vec::new();
        self.pairs.tick(self.now, &mut effects);
        self.obey(effects);
        self.standby.tick(self.now);
        self.gate(0, Vec::new());
    }

    /// Until both have nothing to say any more.
    fn settle(&mut self) {
        for _ in 0..20 {
            self.pass(50);
            self.carry();
            self.carry_back();
        }
    }

    fn publish(&mut self, channel: u8, idempotency: Option<Idempotency>) {
        self.sequence += 1;
        let request = publish(
            self.place(1, self.sequence),
            key(channel),
            &self.sequence.to_string(),
            idempotency,
        );
        self.ask(request);
    }

    fn place(&self, fence: u64, sequence: u64) -> Sequenced {
        Sequenced {
            shard: SHARD,
            fence: Fence(fence),
            sequence,
            low_mark: self.sequence.saturating_sub(20).max(1),
        }
    }

    fn ask(&mut self, request: Request) {
        let from = gateway();
        self.tell(Input::Request { from, request });
    }

    /// The standby is made the owner: its state.
    fn promote(&mut self) -> Shard {
        let mut agreed = agreed(&node("b"), 9);
        agreed.shards[0].promoted = true;
        agreed.shards[0].earlier = vec![node("a")];
        let mut effects = Vec::new();
        self.standby
            .follow(self.now, Arc::new(agreed), &mut effects);
        assert!(effects.is_empty(), "its promise still holds");
        let later = self.now + PAIR_LEASE_AT_STANDBY;
        self.standby.begin(later, &mut effects);
        let [replicas::Effect::Begin(succession)] = &mut effects[..] else {
            panic!("{effects:?}");
        };
        succession.shard.take().expect("it has everything")
    }

    /// The owner stops by itself, and is started again: its state.
    fn come_back(&self) -> Shard {
        let kept = ShardCheckpoint {
            shard: SHARD,
            fence: Fence(1),
            waits: false,
            records: self.owner.checkpoint(self.now),
        };
        let owner = NodeRef {
            incarnation: Incarnation(2),
            ..node("a")
        };
        let mut agreed = agreed(&owner, 9);
        agreed.shards[0].promoted = true;
        agreed.shards[0].earlier = vec![node("a")];
        let (agreed, ago) = (Arc::new(agreed), Duration::from_secs(1));
        let mut back = Replicas::new(owner, namespaces(), Arc::clone(&agreed));
        let now = self.now + ago;
        back.restore(now, ago, vec![kept]);
        let mut effects = Vec::new();
        back.follow(now, agreed, &mut effects);
        let [replicas::Effect::Begin(succession)] = &mut effects[..] else {
            panic!("{effects:?}");
        };
        succession.shard.take().expect("it has everything")
    }

    fn replies(&mut self) -> Vec<Reply> {
        let performed = std::mem::take(&mut self.performed);
        let reply = |effect| match effect {
            Effect::Reply { reply, .. } | Effect::Acknowledge { reply, .. } => Some(reply),
            _ => None,
        };
        performed.into_iter().filter_map(reply).collect()
    }
}

fn agreed(owner: &NodeRef, fence: u64) -> Agreed {
    let sharding = Sharding { seed: 1, count: 1 };
    let mut map = ShardMap::unassigned(ClusterUuid(1), sharding);
    map.version = fence;
    map.nodes = vec![owner.clone()];
    map.rows = vec![MapRow {
        owner: 0,
        fence: Fence(fence),
    }];
    Agreed {
        map: Arc::new(map),
        shards: vec![AgreedReplicas {
            row: Row {
                version: fence,
                ..Row::default()
            },
            ..AgreedReplicas::default()
        }],
        gone: Arc::default(),
    }
}

fn copies(replies: &[Reply]) -> Vec<u8> {
    let copies = |reply: &Reply| match reply {
        Reply::Published {
            result: Ok(Published::Accepted { copies, .. }),
            ..
        } => Some(*copies),
        _ => None,
    };
    replies.iter().filter_map(copies).collect()
}

#[test]
fn nothing_is_told_before_the_standby_has_it() {
    let mut two = Two::new();
    two.publish(1, None);
    assert_eq!(copies(&two.replies()), [1], "there is nobody to wait for");
    two.recruit();
    two.publish(1, None);
    assert_eq!(copies(&two.replies()), [1], "it does not count yet");
    two.settle();
    assert_eq!(two.agreed.shards[0].row.in_sync, [node("b")]);
    two.publish(1, None);
    two.ask(Request::Join(Join {
        shard: SHARD,
        fence: Fence(1),
        key: key(1),
        count: 1,
        since: Since::Now,
        version: 1,
        is_counted: false,
    }));
    assert_eq!(two.performed, []);
    two.carry();
    assert_eq!(two.performed, []);
    two.carry_back();
    let delivered = |effect: &Effect| matches!(effect, Effect::Deliver { .. });
    assert!(two.performed.iter().any(delivered));
    let replies = two.replies();
    assert_eq!(copies(&replies), [2]);
    let joined = |reply: &Reply| matches!(reply, Reply::Joined { result: Ok(joined), .. } if joined.position.offset == Offset(3));
    assert!(replies.iter().any(joined), "{replies:?}");
}

#[test]
fn an_owner_pauses_while_its_lease_has_lapsed_and_loses_nothing() {
    let mut two = Two::new();
    two.recruit();
    two.settle();
    two.publish(1, None);
    two.carry();
    // The echo is late: what it confirms may be told only under a new lease.
    two.now = two.now + Duration::from_millis(320);
    two.carry_back();
    assert_eq!(two.performed, []);
    two.settle();
    assert_eq!(copies(&two.replies()), [2]);
}

#[test]
fn an_owner_goes_on_without_a_standby_once_that_is_agreed() {
    let mut two = Two::new();
    two.recruit();
    two.settle();
    two.close();
    two.publish(1, None);
    two.pass(350);
    assert_eq!(two.performed, []);
    assert_eq!(two.agreed.shards[0].row.in_sync, [node("b")]);
    two.pass(100);
    assert_eq!(two.agreed.shards[0].row.in_sync, []);
    assert_eq!(copies(&two.replies()), [1]);
    two.recruit();
    two.settle();
    two.publish(1, None);
    two.settle();
    assert_eq!(copies(&two.replies()), [2], "and takes it back");
}

fn refusals(replies: Vec<Reply>) -> Vec<Refusal> {
    let refusal = |reply| match reply {
        Reply::Published { result, .. } => PublishResult::err(result),
        _ => None,
    };
    replies.into_iter().filter_map(refusal).collect()
}

#[test]
fn what_requires_a_standby_is_refused_without_one_and_never_acknowledged_in_one_process() {
    let mut two = Two::new();
    two.publish(CAREFUL, None);
    assert_eq!(refusals(two.replies()), [Refusal::NoStandby]);
    two.recruit();
    two.publish(CAREFUL, None);
    assert_eq!(refusals(two.replies()), [Refusal::NoStandby], "not yet");
    assert_eq!(two.owner.channels(), 0, "nothing is left of it");
    two.settle();
    two.publish(CAREFUL, None);
    two.settle();
    assert_eq!(copies(&two.replies()), [2]);

    // It is lost between the publication and its acknowledgement.
    let idempotency = Some(Idempotency {
        key: Digest(1),
        body: Digest(2),
    });
    two.close();
    two.publish(CAREFUL, idempotency);
    two.publish(1, None);
    two.pass(450);
    let delivered = |effect: &&Effect| matches!(effect, Effect::Deliver { .. });
    assert_eq!(two.performed.iter().filter(delivered).count(), 2);
    let replies = two.replies();
    assert_eq!(copies(&replies), [1], "the other channel does not mind");
    assert_eq!(refusals(replies), [Refusal::Unprotected]);
    two.publish(CAREFUL, idempotency);
    assert_eq!(refusals(two.replies()), [Refusal::Unprotected]);
    two.recruit();
    two.settle();
    two.publish(CAREFUL, idempotency);
    two.settle();
    assert_eq!(copies(&two.replies()), [2], "now it is in two");
    assert!(!two.performed.iter().any(|effect| delivered(&effect)));
}

#[test]
fn the_standby_goes_on_where_the_owner_stood() {
    let mut two = Two::new();
    let idempotency = Idempotency {
        key: Digest(7),
        body: Digest(8),
    };
    two.publish(1, Some(idempotency));
    two.recruit();
    two.settle();
    two.publish(1, None);
    two.carry();
    let replies = two.replies();
    let mut next = two.promote();
    assert_eq!(next.describe(&key(1)), two.owner.describe(&key(1)));
    let mut effects = Vec::new();
    let mut ask = |sequence, idempotency| {
        let request = publish(two.place(9, sequence), key(1), "again", idempotency);
        let from = gateway();
        next.handle(two.now, Input::Request { from, request }, &mut effects);
    };
    // Never acknowledged, and sent again under the new fence; then another
    // with the key of the first.
    ask(2, None);
    ask(3, Some(idempotency));
    let offset = |reply: &Reply| match reply {
        Reply::Published {
            result: Ok(Published::Accepted {
                position, fence, ..
            }),
            ..
        } => (position.offset.0, fence.0),
        other => panic!("{other:?}"),
    };
    assert_eq!(offset(&replies[0]), (1, 1));
    let effects: Vec<_> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Reply { reply, .. } | Effect::Acknowledge { reply, .. } => Some(offset(reply)),
            Effect::Deliver { .. } => panic!("it is in the channel already"),
            _ => None,
        })
        .collect();
    assert_eq!(effects, [(2, 9), (1, 9)]);
}

#[test]
fn what_was_still_to_begin_is_kept_and_waits_after_the_restart_too() {
    let mut two = Two::new();
    two.recruit();
    two.publish(1, None);
    two.settle();
    let mut agreed_then = agreed(&node("b"), 9);
    agreed_then.shards[0].promoted = true;
    agreed_then.shards[0].earlier = vec![node("a")];
    let mut effects = Vec::new();
    let standby = &mut two.standby;
    standby.follow(two.now, Arc::new(agreed_then), &mut effects);
    let kept = standby.rest(two.now);
    standby.begin(two.now + PAIR_LEASE_AT_STANDBY, &mut effects);
    assert!(effects.is_empty(), "it begins nothing any more");
    let [only] = &kept[..] else {
        panic!("{kept:?}");
    };
    assert_eq!(
        (only.shard, only.fence, only.waits),
        (SHARD, Fence(9), true)
    );

    let back = NodeRef {
        incarnation: Incarnation(2),
        ..node("b")
    };
    let mut agreed_now = agreed(&back, 12);
    agreed_now.shards[0].promoted = true;
    agreed_now.shards[0].earlier = vec![node("b")];
    let agreed_now = Arc::new(agreed_now);
    let namespaces = Arc::new(Namespaces::default());
    let mut replicas = Replicas::new(back, namespaces, Arc::clone(&agreed_now));
    replicas.restore(two.now, Duration::ZERO, kept);
    replicas.follow(two.now, agreed_now, &mut effects);
    let from = may_serve_from(two.now);
    replicas.begin(Timestamp(from.0 - 1), &mut effects);
    assert!(
        effects.is_empty(),
        "what it promised in its earlier life holds"
    );
    replicas.begin(from, &mut effects);
    let [replicas::Effect::Begin(succession)] = &mut effects[..] else {
        panic!("{effects:?}");
    };
    let next = succession.shard.take().expect("it has everything");
    assert_eq!(next.describe(&key(1)), two.owner.describe(&key(1)));
}

/// A gateway was restarted with its clock set back while the node was away: its
/// life is a lower one, and the only one.
#[test]
fn what_a_gateway_did_in_an_earlier_life_voids_no_later_one_after_a_restart() {
    let mut two = Two::new();
    two.publish(1, None);
    two.publish(1, None);
    let mut back = two.come_back();
    let mut answer = |from: GatewayRef, sequence| {
        let request = publish(two.place(9, sequence), key(1), "d", None);
        let mut effects = Vec::new();
        back.handle(two.now, Input::Request { from, request }, &mut effects);
        let reply = effects.into_iter().find_map(|effect| match effect {
            Effect::Reply { reply, .. } | Effect::Acknowledge { reply, .. } => Some(reply),
            _ => None,
        });
        match reply {
            Some(Reply::Published {
                result: Ok(Published::Accepted { position, .. }),
                ..
            }) => position.offset.0,
            other => panic!("{other:?}"),
        }
    };
    let lower = GatewayRef {
        incarnation: Incarnation(0),
        ..gateway()
    };
    assert_eq!(answer(lower, 1), 3);
    assert_eq!(
        answer(gateway(), 2),
        2,
        "and what is known is not done again"
    );
}

#[test]
fn a_standby_that_was_made_the_owner_says_so_before_any_echo_and_waits() {
    let mut two = Two::new();
    two.recruit();
    two.settle();
    let mut agreed = agreed(&node("b"), 9);
    agreed.shards[0].promoted = true;
    agreed.shards[0].earlier = vec![node("a")];
    let echoed = two.now;
    two.pass(50);
    let mut effects = Vec::new();
    two.standby.follow(two.now, Arc::new(agreed), &mut effects);
    let from = may_serve_from(echoed);
    two.standby.begin(Timestamp(from.0 - 1), &mut effects);
    assert!(effects.is_empty());
    two.standby.begin(from, &mut effects);
    assert!(matches!(&effects[..], [replicas::Effect::Begin(_)]));
    two.carry();
    assert_eq!(two.echoes[0].refused, [(SHARD, Fence(9))]);
}

#[derive(Debug, Clone)]
enum Move {
    Publish(u8),
    Keyed(u8, u8),
    Join(u8),
    Pass(u64),
    Carry,
    CarryBack,
    Break,
    Recruit,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        6 => (0..4_u8).prop_map(Move::Publish),
        2 => (0..4_u8, 0..6_u8).prop_map(|(channel, key)| Move::Keyed(channel, key)),
        2 => (0..8_u8).prop_map(Move::Join),
        3 => prop_oneof![Just(20_u64), Just(300), Just(20_000), Just(400_000)].prop_map(Move::Pass),
        4 => Just(Move::Carry),
        4 => Just(Move::CarryBack),
        1 => Just(Move::Break),
        1 => Just(Move::Recruit),
    ];
    prop::collection::vec(one, 0..60)
}

/// Whether another goes on where the owner stood; with or without what the owner
/// alone has.
fn is_same(next: &Shard, owner: &Shard, alone_too: bool) -> Result<(), TestCaseError> {
    let goes_on = |key: &ChannelKey| alone_too || *key != self::key(ALONE);
    let channels = owner.channels.keys().filter(|key| goes_on(key));
    prop_assert_eq!(next.channels(), channels.count());
    for channel in 0..8 {
        let key = key(channel);
        if !goes_on(&key) {
            prop_assert_eq!(next.describe(&key), None);
            continue;
        }
        let position = |shard: &Shard| shard.channels.get(&key).map(Channel::position);
        prop_assert_eq!(position(next), position(owner));
        let past = |shard: &Shard| {
            let since = shard.channels.get(&key)?.since(Since::Delivered(Position {
                offset: Offset(shard.describe(&key)?.earliest.0 - 1),
                ..position(owner)?
            }));
            match since.1 {
                Missed::Publications(all) => Some(all),
                Missed::Gap(_) => None,
            }
        };
        prop_assert_eq!(past(next), past(owner));
    }
    let tables = |shard: &Shard| {
        let known = shard.gateways.get(&gateway().id);
        let known = known.and_then(|known| known.publishes.as_ref());
        let mut silent = shard.silent.iter();
        let silent = || silent.find_map(|(life, table)| (*life == gateway()).then_some(table));
        known.or_else(silent).map(PublishTable::piece)
    };
    prop_assert_eq!(tables(next).map(|t| t.0), tables(owner).map(|t| t.0));
    let keys = |shard: &Shard| {
        let known = shard.keys.pieces(Timestamp(0));
        known.filter(|piece| alone_too || piece.copies > 1).count()
    };
    prop_assert_eq!(next.keys.len(), keys(next));
    prop_assert_eq!(keys(next), keys(owner));
    Ok(())
}

proptest! {
    /// Whatever happens on the way, a standby that counts has what was told to
    /// anybody, in the same places.
    #[test]
    fn a_standby_in_sync_has_all_that_was_told(moves in moves()) {
        let mut two = Two::new();
        two.recruit();
        let mut told = BTreeSet::new();
        for next in moves {
            match next {
                Move::Publish(channel) => two.publish(channel, None),
                Move::Keyed(channel, number) => two.publish(channel, Some(Idempotency {
                    key: Digest(u128::from(number)),
                    body: Digest(u128::from(number)),
                })),
                Move::Join(channel) => two.ask(Request::Join(Join {
                    shard: SHARD,
                    fence: Fence(1),
                    key: key(channel),
                    count: 1,
                    since: Since::Now,
                    version: 1, is_counted: false })),
                Move::Pass(ms) => {
                    two.pass(ms);
                    two.tell(Input::Tick);
                }
                Move::Carry => two.carry(),
                Move::CarryBack => two.carry_back(),
                Move::Break => {
                    two.close();
                    two.open();
                }
                Move::Recruit => two.recruit(),
            }
            for effect in std::mem::take(&mut two.performed) {
                if let Effect::Deliver { entry, .. } = effect {
                    told.insert((entry.key, entry.epoch, entry.publication.offset, entry.publication.data.clone()));
                }
            }
        }
        two.recruit();
        two.settle();
        two.recruit();
        two.settle();
        let in_sync = two.agreed.shards[0].row.in_sync.clone();
        prop_assert_eq!(in_sync, [node("b")]);
        prop_assert_eq!(two.owner.replication().held(), 0, "{:?}", two.owner.replication());
        let back = two.come_back();
        let mut next = two.promote();
        is_same(&next, &two.owner, false)?;
        is_same(&back, &two.owner, true)?;
        // What goes on here has other epochs only where nothing was before.
        let mut effects = Vec::new();
        next.handle(two.now, Input::Tick, &mut effects);
        for (key, epoch, offset, _) in told {
            if let Some(position) = next.channels.get(&key).map(Channel::position) {
                prop_assert!(position.epoch != epoch || position.offset >= offset);
            }
        }
    }
}

#[test]
fn a_channel_that_is_made_anew_while_a_standby_is_filled_is_not_filled_twice() {
    let mut two = Two::new();
    let mut standby = Shard::new(two.owner.tenure.clone(), Arc::new(Namespaces::default()));
    two.publish(1, None);
    let piece = two.owner.channels[&key(1)].piece(two.now, key(1));
    let position = piece.position;
    let create = Record::Create {
        key: key(1),
        position,
        forgetful: false,
    };
    standby.replay(two.now, create);
    standby.replay(two.now, Record::Channel(Box::new(piece)));
    // Only one of them has a past.
    assert_eq!(standby.describe(&key(1)).unwrap().kept, 0);
    assert_eq!(standby.repair.bytes(), 0);
}

#[test]
fn numbers_from_outside_count_for_nothing_and_stop_nobody() {
    let mut two = Two::new();
    two.recruit();
    two.settle();
    let part = |first, fill| pairs::Part {
        shard: SHARD,
        fence: Fence(1),
        fill,
        first,
        records: vec![Arc::new(Record::Whole), Arc::new(Record::Whole)],
    };
    let batch = pairs::Batch {
        from: node("a"),
        to: node("b"),
        sent_at: u64::MAX,
        parts: vec![part(u64::MAX, 1), part(0, 1), part(2, u64::MAX)],
    };
    let mut effects = Vec::new();
    two.standby.batch(two.now, batch, &mut effects);
    let [replicas::Effect::Echo(echo)] = &effects[..] else {
        panic!("{effects:?}");
    };
    let before = echo.confirmed.iter().map(|confirmed| confirmed.number);
    assert_eq!(before.collect::<Vec<_>>(), [2, 2], "begin and whole");
    assert_eq!(echo.lost, [(SHARD, Fence(1))]);
    // An echo of the future is none.
    let mut effects = Vec::new();
    two.pass(400);
    two.pairs.echo(two.now, echo.clone(), &mut effects);
    let lease = two.pairs.leases()[&node("b")];
    assert!(!lease.holds(two.now));
}

#[test]
fn an_owner_that_is_silent_for_long_is_forgotten() {
    let mut two = Two::new();
    two.recruit();
    two.settle();
    assert_eq!(two.standby.owners(), 1);
    two.close();
    two.pass(61_000);
    assert_eq!(two.standby.owners(), 0);
}
