use super::*;
use crate::core::interest::Interest;
use crate::core::lease::PairLease;
use crate::core::shard::Leased;
use proto::channel::ChannelKey;
use proto::id::ClusterUuid;
use proto::message::{Batch, Entry, Joined, Missed, Span};
use proto::position::{Epoch, Offset, Position};
use proto::publication::Publication;
use proto::shard::{Fence, ShardId};
use proto::time::UnixTime;

fn gateway(incarnation: u64) -> GatewayRef {
    GatewayRef {
        id: "g".parse().unwrap(),
        incarnation: Incarnation(incarnation),
    }
}

fn node() -> NodeRef {
    NodeRef {
        id: "n".parse().unwrap(),
        incarnation: Incarnation(1),
    }
}

fn map() -> ShardMap {
    ShardMap::standalone(ClusterUuid(4), 0, node())
}

fn outbound() -> Outbound {
    Outbound::new(node(), 77, Arc::new(map()))
}

fn publication(len: usize) -> Arc<Publication> {
    Arc::new(Publication {
        offset: Offset(1),
        event: "e".into(),
        data: "x".repeat(len).into(),
        exclude: None,
        accepted_at: UnixTime(0),
        mark: None,
    })
}

fn deliver(incarnation: u64) -> Effect {
    let key = ChannelKey {
        app: "a".parse().unwrap(),
        channel: "c".parse().unwrap(),
    };
    let mut interest = Interest::default();
    interest.set(Timestamp(0), &gateway(incarnation), 1, 1);
    Effect::Deliver {
        to: interest.recipients(),
        entry: Entry {
            shard: ShardId(0),
            fence: Fence(1),
            key,
            epoch: Epoch(1),
            publication: publication(1),
        },
    }
}

fn joined(incarnation: u64, len: usize) -> Effect {
    let position = Position {
        epoch: Epoch(1),
        offset: Offset(1),
    };
    let missed = Missed::Publications(vec![publication(len)]);
    let reply = Reply::Joined {
        version: 1,
        result: Ok(Joined {
            fence: Fence(1),
            position,
            missed,
            cached: None,
        }),
    };
    Effect::Reply {
        to: gateway(incarnation),
        reply,
    }
}

fn sent(outbound: &mut Outbound, effects: Vec<Effect>) -> Vec<Parcel> {
    let mut parcels = Vec::new();
    outbound.send(Timestamp(0), effects.into_iter(), &mut parcels);
    parcels
}

fn first_of(parcel: &Parcel) -> (u64, usize) {
    match codec::decode(&parcel.bytes).unwrap() {
        Message::Batch(Batch { to, entries, .. }) => (to.0, entries.len()),
        Message::Replies(Replies { to, replies, .. }) => (to.0, replies.len()),
        other => panic!("neither batch nor replies: {other:?}"),
    }
}

#[test]
fn the_leader_tells_all_gateways_what_has_changed_in_the_map() {
    let mut outbound = outbound();
    let mut next = map();
    next.version = 5;
    next.rows[3].fence = Fence(5);
    let parcel = outbound.follow(Arc::new(next.clone()), true).unwrap();
    assert_eq!((parcel.to, parcel.kind), (Address::Map, Kind::Map));
    let told = codec::decode(&parcel.bytes).unwrap();
    assert_eq!(told, Message::Map(next.since(1)));
    assert_eq!(next.since(1).rows.len(), 1);
    assert_eq!(outbound.follow(Arc::new(next.clone()), true), None);
    next.version = 6;
    assert_eq!(outbound.follow(Arc::new(next.clone()), false), None);
    // The next change is told from what the others have been told.
    next.version = 7;
    next.rows[4].fence = Fence(7);
    let parcel = outbound.follow(Arc::new(next.clone()), true).unwrap();
    let told = codec::decode(&parcel.bytes).unwrap();
    assert_eq!(told, Message::Map(next.since(6)));
}

#[test]
fn beats_and_replies_go_by_the_present_map_and_without_one_there_is_no_beat() {
    let nothing = ShardMap::unassigned(ClusterUuid(0), map().sharding);
    let mut outbound = Outbound::new(node(), 77, Arc::new(nothing));
    assert_eq!(outbound.beat(), None);
    let next = ShardMap {
        version: 9,
        ..map()
    };
    outbound.follow(Arc::new(next), false);
    let beat = NodeBeat {
        from: node(),
        cluster: ClusterUuid(4),
        map_version: 9,
        namespaces: 77,
    };
    let sent_beat = codec::decode(&outbound.beat().unwrap().bytes).unwrap();
    assert_eq!(sent_beat, Message::NodeBeat(beat));
    let parcels = sent(&mut outbound, vec![joined(1, 1)]);
    let Message::Replies(replies) = codec::decode(&parcels[0].bytes).unwrap() else {
        panic!("replies")
    };
    assert_eq!(replies.map_version, 9);
}

#[test]
fn who_knows_more_than_we_do_gets_the_whole_map() {
    assert_eq!(update(&map(), 9), Some(map().since(0)));
    assert_eq!(update(&map(), 1).unwrap().rows, []);
    let nothing = ShardMap::unassigned(ClusterUuid(0), map().sharding);
    assert_eq!(update(&nothing, 0), None);
}

#[test]
fn a_gateway_that_counts_as_gone_has_no_link_any_more() {
    let mut outbound = outbound();
    let beats = |outbound: &mut Outbound| {
        let mut parcels = Vec::new();
        outbound.tail_beats(Timestamp(10_000), &mut parcels);
        parcels.len()
    };
    sent(&mut outbound, vec![deliver(2)]);
    sent(&mut outbound, vec![Effect::Forget(gateway(1))]);
    assert_eq!(beats(&mut outbound), 1, "it lives on");
    sent(&mut outbound, vec![Effect::Forget(gateway(2))]);
    assert_eq!(beats(&mut outbound), 0);
}

#[test]
fn a_gateway_that_was_declared_gone_gets_no_link_and_is_answered_all_the_same() {
    let mut outbound = outbound();
    sent(&mut outbound, vec![deliver(1)]);
    let mut gone = Gone::default();
    gone.declare(1, gateway(1));
    outbound.lose(Arc::new(gone));
    assert_eq!(outbound.kept_bytes(), 0);
    assert_eq!(sent(&mut outbound, vec![deliver(1)]), []);
    let through = Incarnation(1);
    let reply = Reply::DeclaredGone { through };
    let effect = Effect::Reply {
        to: gateway(1),
        reply: reply.clone(),
    };
    let parcels = sent(&mut outbound, vec![effect]);
    let [Message::Replies(replies)] = &messages(&parcels)[..] else {
        panic!("one answer: {parcels:?}");
    };
    assert_eq!((replies.to, &replies.replies), (through, &vec![reply]));
    assert_ne!(sent(&mut outbound, vec![deliver(2)]), []);
}

/// It was only cut off: it has counted, and goes on counting.
#[test]
fn a_gateway_that_comes_back_in_the_same_life_takes_what_comes_for_new() {
    let mut outbound = outbound();
    let mut receiver = link::Receiver::default();
    // How many entries are new.
    let mut receive = |parcels: Vec<Parcel>| -> usize {
        let [Message::Batch(batch)] = &messages(&parcels)[..] else {
            panic!("not one batch: {parcels:?}");
        };
        let mut fresh = Vec::new();
        let receipt = receiver.receive(Timestamp(0), batch, &mut fresh);
        assert_eq!(receipt, link::Receipt::default());
        fresh.into_iter().flatten().count()
    };
    assert_eq!(
        receive(sent(&mut outbound, vec![deliver(1), deliver(1)])),
        2
    );
    // What was on its way when it was forgotten still goes out.
    let effects = vec![deliver(1), Effect::Forget(gateway(1))];
    assert_eq!(receive(sent(&mut outbound, effects)), 1);
    assert_eq!(receive(sent(&mut outbound, vec![deliver(1)])), 1);
    // Another life of it begins anew.
    sent(&mut outbound, vec![Effect::Forget(gateway(1))]);
    let parcels = sent(&mut outbound, vec![deliver(2)]);
    let Message::Batch(batch) = codec::decode(&parcels[0].bytes).unwrap() else {
        panic!("a batch")
    };
    assert_eq!(batch.first, 1);
}

/// A publication for these gateways, of so many bytes.
fn deliver_to<'a>(gateways: impl IntoIterator<Item = &'a GatewayRef>, len: usize) -> Effect {
    let mut interest = Interest::default();
    for gateway in gateways {
        interest.set(Timestamp(0), gateway, 1, 1);
    }
    match deliver(1) {
        Effect::Deliver { entry, .. } => Effect::Deliver {
            to: interest.recipients(),
            entry: Entry {
                publication: publication(len),
                ..entry
            },
        },
        other => other,
    }
}

fn named(id: &str) -> GatewayRef {
    GatewayRef {
        id: id.parse().unwrap(),
        incarnation: Incarnation(1),
    }
}

fn repair(to: &GatewayRef, first: u64, count: u64) -> Effect {
    Effect::Repair {
        to: to.clone(),
        repair: Repair {
            node: Incarnation(1),
            spans: vec![Span { first, count }],
        },
    }
}

fn messages(parcels: &[Parcel]) -> Vec<Message> {
    let message = |parcel: &Parcel| codec::decode(&parcel.bytes).unwrap();
    parcels.iter().map(message).collect()
}

/// What is sent again to whom: numbers.
fn repairs(parcels: &[Parcel]) -> Vec<(String, u64, usize)> {
    let repairs = parcels.iter().filter(|parcel| parcel.kind == Kind::Repair);
    repairs
        .map(
            |parcel| match (&parcel.to, codec::decode(&parcel.bytes).unwrap()) {
                (Address::Gateway(id), Message::Repair(batch)) => {
                    (id.to_string(), batch.first, batch.entries.len())
                }
                other => panic!("not a repair: {other:?}"),
            },
        )
        .collect()
}

fn tick(outbound: &mut Outbound, at: u64) -> Vec<Parcel> {
    let mut parcels = Vec::new();
    outbound.tick(Timestamp(at), &mut parcels);
    parcels
}

fn unrepairable(parcels: &[Parcel]) -> Vec<Reply> {
    let of = |message: Message| match message {
        Message::Replies(replies) => replies.replies,
        _ => Vec::new(),
    };
    messages(parcels).into_iter().flat_map(of).collect()
}

#[test]
fn what_was_missed_is_sent_again_at_once_with_its_numbers() {
    let mut outbound = outbound();
    let before = sent(&mut outbound, (0..4).map(|_| deliver(1)).collect());
    let parcels = sent(&mut outbound, vec![repair(&gateway(1), 2, 2), deliver(1)]);
    assert_eq!(parcels[0].kind, Kind::Batch, "what is new goes first");
    assert_eq!(repairs(&parcels), [("g".into(), 2, 2)]);
    assert_eq!(parcels.len(), 2, "nothing is said besides");
    let (before, again) = (messages(&before), messages(&parcels[1..]));
    let ([Message::Batch(before)], [Message::Repair(again)]) = (&before[..], &again[..]) else {
        panic!("{before:?} {again:?}");
    };
    assert_eq!(before.entries[1..3], again.entries);
    assert_eq!(repairs(&tick(&mut outbound, 25)), [], "once");
}

#[test]
fn what_is_held_no_longer_is_said() {
    let mut outbound = outbound();
    sent(&mut outbound, vec![deliver(1), deliver(1)]);
    tick(&mut outbound, 10_000);
    sent(&mut outbound, vec![deliver(1)]);
    let parcels = sent(&mut outbound, vec![repair(&gateway(1), 1, 3)]);
    assert_eq!(unrepairable(&parcels), [Reply::Unrepairable { below: 3 }]);
    assert_eq!(repairs(&parcels), [("g".into(), 3, 1)]);
}

#[test]
fn requests_for_repair_that_lead_nowhere_are_harmless() {
    let mut outbound = outbound();
    sent(&mut outbound, vec![deliver(2)]);
    // Of another life of this node.
    let mut other = repair(&gateway(2), 1, 1);
    if let Effect::Repair { repair, .. } = &mut other {
        repair.node = Incarnation(7);
    }
    assert_eq!(sent(&mut outbound, vec![other]), []);
    // Of other lives of the gateway, and of one that nobody knows.
    for (id, incarnation) in [("g", 1), ("g", 3), ("unknown", 2)] {
        let to = GatewayRef {
            incarnation: Incarnation(incarnation),
            ..named(id)
        };
        let parcels = sent(&mut outbound, vec![repair(&to, 1, 1)]);
        let nothing = Reply::Unrepairable { below: u64::MAX };
        assert_eq!(unrepairable(&parcels), [nothing]);
        assert_eq!((parcels.len(), outbound.peers.len()), (1, 1));
    }
    // Absurd spans.
    for (first, count) in [(u64::MAX, u64::MAX), (2, u64::MAX), (1, 0)] {
        let parcels = sent(&mut outbound, vec![repair(&gateway(2), first, count)]);
        assert_eq!(parcels, [], "{first} {count}");
    }
    assert_eq!(outbound.turns.len(), 0);
}

#[test]
fn repairs_are_paced_by_link_and_by_node_and_gateways_take_turns() {
    let mut outbound = outbound();
    let gateways: Vec<GatewayRef> = (0..20).map(|n| named(&format!("g{n:02}"))).collect();
    let entry = 64 * 1_024;
    let all = (0..8).map(|_| deliver_to(&gateways, entry)).collect();
    sent(&mut outbound, all);
    let effects = gateways.iter().map(|g| repair(g, 1, 8)).collect();
    let mut rounds = vec![sent(&mut outbound, effects)];
    let all = 8 * gateways.len();
    let mut count = repairs(&rounds[0]).iter().map(|r| r.2).sum::<usize>();
    while count < all {
        let parcels = tick(&mut outbound, 25);
        count += repairs(&parcels).iter().map(|r| r.2).sum::<usize>();
        rounds.push(parcels);
        assert!(rounds.len() < 50);
    }
    assert_eq!(count, all);
    for parcels in &rounds {
        let bytes: usize = parcels.iter().map(|p| p.bytes.len()).sum();
        // With one entry over the bound.
        assert!(bytes <= REPAIR_BYTES + 3 * entry, "{bytes}");
        for gateway in &gateways {
            let to = |p: &&Parcel| p.to == Address::Gateway(gateway.id.clone());
            let bytes: usize = parcels.iter().filter(to).map(|p| p.bytes.len()).sum();
            assert!(bytes <= LINK_REPAIR_BYTES + 2 * entry, "{bytes}");
        }
    }
    // Nobody gets its second piece before all others got their first.
    let order: Vec<String> = rounds
        .iter()
        .flat_map(|p| repairs(p))
        .map(|r| r.0)
        .collect();
    let firsts: BTreeMap<&String, usize> = order
        .iter()
        .enumerate()
        .rev()
        .map(|(at, id)| (id, at))
        .collect();
    assert!(
        firsts.values().all(|at| *at < 2 * gateways.len()),
        "{order:?}"
    );
}

/// The gateway that is sent most pays for it with its own past.
#[test]
fn all_rings_together_are_bounded_and_the_largest_lets_go_first() {
    let mut outbound = outbound();
    let quiet = named("quiet");
    sent(&mut outbound, vec![deliver_to([&quiet], 1_000)]);
    let busy: Vec<GatewayRef> = (0..12).map(|n| named(&format!("busy{n}"))).collect();
    for _ in 0..40 {
        sent(&mut outbound, vec![deliver_to(&busy, 400_000)]);
        assert!(outbound.kept_bytes() <= KEPT_BYTES_MAX);
    }
    assert!(outbound.kept_bytes() > KEPT_BYTES_MAX - 12 * 400_000);
    let parcels = sent(&mut outbound, vec![repair(&quiet, 1, 1)]);
    assert_eq!(repairs(&parcels), [("quiet".into(), 1, 1)]);
    let parcels = sent(&mut outbound, vec![repair(&busy[0], 1, 1)]);
    assert_eq!(repairs(&parcels), []);
    assert_eq!(unrepairable(&parcels).len(), 1);
}

#[test]
fn a_link_that_has_ended_holds_nothing() {
    let mut outbound = outbound();
    sent(&mut outbound, vec![deliver(1), Effect::Forget(gateway(1))]);
    assert_eq!(outbound.kept_bytes(), 0);
    sent(&mut outbound, vec![deliver(1), deliver(1), deliver(2)]);
    let parcels = sent(&mut outbound, vec![repair(&gateway(2), 1, 9)]);
    assert_eq!(repairs(&parcels), [("g".into(), 1, 1)], "of this life");
}

#[test]
fn links_go_before_replies_and_together() {
    let parcels = sent(&mut outbound(), vec![joined(1, 1), deliver(1), deliver(1)]);
    let kinds: Vec<_> = parcels
        .iter()
        .map(|parcel| (parcel.kind, first_of(parcel)))
        .collect();
    assert_eq!(kinds, [(Kind::Batch, (1, 2)), (Kind::Replies, (1, 1))]);
}

#[test]
fn a_new_life_begins_a_new_link_and_the_old_one_gets_nothing_more() {
    let mut outbound = outbound();
    sent(&mut outbound, vec![deliver(1), deliver(1)]);
    let parcels = sent(&mut outbound, vec![deliver(2), deliver(1)]);
    assert_eq!(parcels.len(), 1);
    assert_eq!(first_of(&parcels[0]), (2, 1));
    let Message::Batch(batch) = codec::decode(&parcels[0].bytes).unwrap() else {
        panic!("a batch")
    };
    assert_eq!(batch.first, 1, "counted anew");
    // But it is answered.
    let parcels = sent(&mut outbound, vec![joined(1, 1)]);
    assert_eq!(first_of(&parcels[0]), (1, 1));
}

#[test]
fn replies_that_are_too_many_for_one_message_go_in_several() {
    let parcels = sent(
        &mut outbound(),
        (0..5).map(|_| joined(1, 200_000)).collect(),
    );
    assert!(parcels.len() >= 3);
    assert!(
        parcels
            .iter()
            .all(|parcel| parcel.bytes.len() <= PAYLOAD_BYTES_MAX)
    );
    assert_eq!(
        parcels
            .iter()
            .map(|parcel| first_of(parcel).1)
            .sum::<usize>(),
        5
    );
}

fn standby() -> NodeRef {
    NodeRef {
        id: "standby".parse().unwrap(),
        incarnation: Incarnation(2),
    }
}

/// The leases of this node and of its standby, from a batch that was sent then.
fn leases(sent_at: u64) -> Arc<Leases> {
    let mut pair = PairLease::new(Timestamp(sent_at));
    pair.echo(Timestamp(sent_at), Timestamp(sent_at));
    Arc::new(Leases {
        node: Timestamp(u64::MAX),
        pairs: [(standby(), pair)].into(),
    })
}

fn leased(effects: Vec<Effect>) -> Effect {
    Effect::Under(Leased {
        shard: ShardId(0),
        fence: Fence(1),
        standbys: [standby()].into(),
        effects,
    })
}

fn send_at(outbound: &mut Outbound, now: u64, effects: Vec<Effect>) -> Vec<Kind> {
    let mut parcels = Vec::new();
    outbound.send(Timestamp(now), effects.into_iter(), &mut parcels);
    parcels.into_iter().map(|parcel| parcel.kind).collect()
}

#[test]
fn what_is_late_for_its_lease_waits_and_holds_back_nothing_else() {
    let mut outbound = outbound();
    outbound.lease(leases(0));
    let in_time = send_at(&mut outbound, 299, vec![leased(vec![deliver(1)])]);
    assert_eq!(in_time, [Kind::Batch]);
    // The process stood still between the decision and this.
    let effects = vec![leased(vec![deliver(1)]), joined(1, 1)];
    assert_eq!(send_at(&mut outbound, 300, effects), [Kind::Replies]);
    outbound.lease(leases(400));
    let mut parcels = Vec::new();
    outbound.tick(Timestamp(425), &mut parcels);
    assert_eq!(parcels[0].kind, Kind::Batch, "the lease holds again");
    parcels.clear();
    outbound.tick(Timestamp(450), &mut parcels);
    assert!(parcels.iter().all(|parcel| parcel.kind != Kind::Batch));
}

#[test]
fn what_is_late_comes_before_what_was_decided_after_it() {
    let mut outbound = outbound();
    outbound.lease(leases(0));
    assert_eq!(
        send_at(&mut outbound, 300, vec![leased(vec![joined(1, 1)])]),
        []
    );
    outbound.lease(leases(400));
    let mut parcels = Vec::new();
    let next = [leased(vec![joined(1, 2)])];
    outbound.send(Timestamp(400), next.into_iter(), &mut parcels);
    let Ok(Message::Replies(replies)) = codec::decode(&parcels[0].bytes) else {
        panic!("{parcels:?}");
    };
    let lengths = replies.replies.iter().map(|reply| match reply {
        Reply::Joined {
            result:
                Ok(Joined {
                    missed: Missed::Publications(missed),
                    ..
                }),
            ..
        } => missed[0].data.len(),
        other => panic!("{other:?}"),
    });
    assert_eq!(lengths.collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn what_is_late_is_never_performed_once_the_shard_is_somebody_elses() {
    for stops in [false, true] {
        let mut outbound = outbound();
        outbound.lease(leases(0));
        assert_eq!(
            send_at(&mut outbound, 300, vec![leased(vec![deliver(1)])]),
            []
        );
        if stops {
            send_at(&mut outbound, 300, vec![Effect::Stopped(ShardId(0))]);
        } else {
            let mut next = map();
            next.version = 2;
            next.rows[0].fence = Fence(2);
            outbound.follow(Arc::new(next), false);
        }
        // A lease that was granted by who knew that already.
        outbound.lease(leases(400));
        let mut parcels = Vec::new();
        outbound.tick(Timestamp(400), &mut parcels);
        assert_eq!(parcels, []);
        if !stops {
            let late = vec![leased(vec![deliver(1)])];
            assert_eq!(send_at(&mut outbound, 400, late), []);
        }
    }
}
