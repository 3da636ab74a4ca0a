use super::*;
use proptest::prelude::*;
use proto::position::{Epoch, Gap, GapReason, Offset};
use proto::publication::Publication;
use proto::time::UnixTime;
use std::sync::Arc;

use crate::core::attachment::Resumption;
use std::collections::{BTreeMap, BTreeSet};

fn key(n: u8) -> ChannelKey {
    ChannelKey {
        app: "a".parse().unwrap(),
        channel: format!("c{n}").parse().unwrap(),
    }
}

const POSITION: Position = Position {
    epoch: Epoch(1),
    offset: Offset(1),
};

fn subscribe(hub: &mut Hub, connection: ConnectionIndex, key: &ChannelKey) -> Subscribed {
    hub.subscribe(connection, key, Wish::default())
}

fn resume(hub: &mut Hub, connection: u32, offset: u64) -> Subscribed {
    let wish = Wish {
        cursor: Some(position(offset)),
        positions: true,
        ..Wish::default()
    };
    hub.subscribe(ConnectionIndex(connection), &key(0), wish)
}

fn position(offset: u64) -> Position {
    Position {
        offset: Offset(offset),
        ..POSITION
    }
}

#[test]
fn who_comes_back_waits_apart_and_the_edge_is_asked_once_for_the_lowest() {
    let mut hub = Hub::default();
    let Subscribed::First(follow) = resume(&mut hub, 0, 7) else {
        panic!("first")
    };
    let index = hub.attached(&key(0), follow, position(9)).unwrap();
    assert_eq!(hub.ask(index), Some(position(7)));
    assert_eq!(resume(&mut hub, 1, 8), Subscribed::Resuming);
    assert_eq!(hub.ask(index), None, "8 comes with 7");
    assert_eq!(resume(&mut hub, 2, 3), Subscribed::Resuming);
    assert_eq!(hub.ask(index), Some(position(3)));
    assert_eq!(hub.audience(index), 0);
    assert_eq!(
        hub.answered(&key(0), position(7)),
        None,
        "3 was asked since"
    );
    let answered = hub.answered(&key(0), position(3));
    assert_eq!(answered, Some((index, position(9))));
    let returned = hub.returned(index, 2, |cursor| cursor.offset.0 > 5);
    let who: Vec<u32> = returned.iter().map(|r| r.recipient.connection.0).collect();
    assert_eq!(who, [0, 1]);
    for one in who {
        hub.go_live(index, ConnectionIndex(one));
    }
    assert_eq!(hub.audience(index), 2);
    assert!(hub.subscriber(index, 0).unwrap().positions);
    hub.advance(index, ConnectionIndex(2), position(5));
    assert_eq!(hub.ask(index), Some(position(5)), "one is left");
    assert!(hub.returned(index, 9, |_| true)[0].told);
}

#[test]
fn the_first_subscriber_follows_and_later_ones_are_live_once_attached() {
    let mut hub = Hub::default();
    let Subscribed::First(follow) = subscribe(&mut hub, ConnectionIndex(0), &key(0)) else {
        panic!("first")
    };
    assert_eq!(
        subscribe(&mut hub, ConnectionIndex(1), &key(0)),
        Subscribed::Pending
    );
    assert_eq!(
        subscribe(&mut hub, ConnectionIndex(1), &key(0)),
        Subscribed::Already(None)
    );
    assert_eq!(hub.live(&key(0)), None);
    assert!(hub.attached(&key(0), follow, POSITION).is_some());
    assert_eq!(hub.attached(&key(0), follow, POSITION), None, "told once");
    assert_eq!(
        subscribe(&mut hub, ConnectionIndex(2), &key(0)),
        Subscribed::Live(POSITION)
    );
    assert_eq!(
        subscribe(&mut hub, ConnectionIndex(1), &key(0)),
        Subscribed::Already(Some(POSITION))
    );
}

#[test]
fn an_answer_to_an_earlier_following_is_not_taken() {
    let mut hub = Hub::default();
    let Subscribed::First(first) = subscribe(&mut hub, ConnectionIndex(0), &key(0)) else {
        panic!("first")
    };
    assert!(hub.unsubscribe(ConnectionIndex(0), &key(0)).is_some());
    let Subscribed::First(second) = subscribe(&mut hub, ConnectionIndex(0), &key(0)) else {
        panic!("first again")
    };
    assert_eq!(hub.attached(&key(0), first, POSITION), None);
    assert!(hub.attached(&key(0), second, POSITION).is_some());
}

#[derive(Debug, Clone)]
enum Op {
    Subscribe(u8, u8),
    Resume(u8, u8),
    GoLive(u8),
    FallBehind(u8, u8),
    CatchUp(u8),
    Unsubscribe(u8, u8),
    Remove(u8),
    Shrink,
    Sweep(u8, u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0_u8..12, 0_u8..4).prop_map(|(c, k)| Op::Subscribe(c, k)),
        2 => (0_u8..12, 0_u8..4).prop_map(|(c, k)| Op::Resume(c, k)),
        2 => (0_u8..4).prop_map(Op::GoLive),
        2 => (0_u8..12, 0_u8..4).prop_map(|(c, k)| Op::FallBehind(c, k)),
        1 => (0_u8..12).prop_map(Op::CatchUp),
        2 => (0_u8..12, 0_u8..4).prop_map(|(c, k)| Op::Unsubscribe(c, k)),
        1 => (0_u8..12).prop_map(Op::Remove),
        1 => Just(Op::Shrink),
        3 => (0_u8..4, 1_u8..4).prop_map(|(k, slices)| Op::Sweep(k, slices)),
    ]
}

/// A sweep in progress: whom it must visit if they stay, and whom it has.
struct Sweep {
    channel: ChannelIndex,
    next: usize,
    end: usize,
    expected: BTreeSet<u8>,
    visited: Vec<u8>,
}

proptest! {
    /// Against the obvious model: a set of connections per channel. A sweep
    /// visits everyone who was there when it began and still is, once, and
    /// nobody who came later.
    #[test]
    fn sweeps_visit_who_was_there_once(ops in prop::collection::vec(op(), 1..200)) {
        let mut hub = Hub::default();
        let mut live: BTreeMap<u8, BTreeSet<u8>> = BTreeMap::new();
        let mut resuming: BTreeMap<u8, BTreeSet<u8>> = BTreeMap::new();
        // Of those who are resuming.
        let mut full: BTreeSet<(u8, u8)> = BTreeSet::new();
        let mut sweeps: BTreeMap<u8, Sweep> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Subscribe(c, k) => {
                    let new = !resuming.entry(k).or_default().contains(&c) && live.entry(k).or_default().insert(c);
                    let already = matches!(subscribe(&mut hub, ConnectionIndex(c.into()), &key(k)), Subscribed::Already(_));
                    prop_assert_eq!(already, !new);
                }
                Op::Resume(c, k) => {
                    let new = !live.entry(k).or_default().contains(&c) && resuming.entry(k).or_default().insert(c);
                    let wish = Wish { cursor: Some(POSITION), ..Wish::default() };
                    let already = matches!(hub.subscribe(ConnectionIndex(c.into()), &key(k), wish), Subscribed::Already(_));
                    prop_assert_eq!(already, !new);
                }
                Op::GoLive(k) => {
                    let Some(&channel) = hub.indices.get(&key(k)) else { continue };
                    let returned = hub.returned(channel, usize::MAX, |_| true);
                    for c in returned.iter().map(|r| r.recipient.connection) {
                        hub.go_live(channel, c);
                        prop_assert!(resuming.entry(k).or_default().remove(&(c.0 as u8)));
                        prop_assert!(!full.contains(&(c.0 as u8, k)));
                        live.entry(k).or_default().insert(c.0 as u8);
                    }
                    let left = resuming.get(&k).into_iter().flatten();
                    prop_assert!(left.copied().all(|c| full.contains(&(c, k))));
                }
                Op::FallBehind(c, k) => {
                    let Some(&channel) = hub.indices.get(&key(k)) else { continue };
                    hub.fall_behind(ConnectionIndex(c.into()), channel, POSITION);
                    if live.entry(k).or_default().remove(&c) || resuming.entry(k).or_default().contains(&c) {
                        resuming.entry(k).or_default().insert(c);
                        full.insert((c, k));
                    }
                    if let Some(sweep) = sweeps.get_mut(&k) {
                        sweep.expected.remove(&c);
                    }
                }
                Op::CatchUp(c) => {
                    let behind = hub.catch_up(ConnectionIndex(c.into())).len();
                    prop_assert_eq!(behind, full.iter().filter(|(of, _)| *of == c).count());
                    full.retain(|(of, _)| *of != c);
                }
                Op::Unsubscribe(c, k) => {
                    let last = hub.unsubscribe(ConnectionIndex(c.into()), &key(k)).is_some();
                    let was = live.entry(k).or_default().remove(&c) | resuming.entry(k).or_default().remove(&c);
                    full.remove(&(c, k));
                    let sweeping = sweeps.get_mut(&k).map(|s| s.expected.remove(&c)).is_some();
                    prop_assert_eq!(last, was && live[&k].is_empty() && resuming[&k].is_empty() && !sweeping);
                }
                Op::Shrink => hub.shrink(),
                Op::Remove(c) => {
                    hub.remove(ConnectionIndex(c.into()));
                    full.retain(|(of, _)| *of != c);
                    for members in resuming.values_mut() {
                        members.remove(&c);
                    }
                    for (k, members) in &mut live {
                        members.remove(&c);
                        if let Some(sweep) = sweeps.get_mut(k) {
                            sweep.expected.remove(&c);
                        }
                    }
                }
                Op::Sweep(k, slots) => {
                    let Some(&channel) = hub.indices.get(&key(k)) else { continue };
                    let sweep = sweeps.entry(k).or_insert_with(|| {
                        let end = hub.begin_sweep(channel);
                        let expected = live.get(&k).cloned().unwrap_or_default();
                        Sweep { channel, next: 0, end, expected, visited: Vec::new() }
                    });
                    for _ in 0..slots {
                        if sweep.next < sweep.end {
                            sweep.visited.extend(hub.subscriber(sweep.channel, sweep.next).map(|c| c.connection.0 as u8));
                            sweep.next += 1;
                        }
                    }
                    if sweep.next == sweep.end {
                        let sweep = sweeps.remove(&k).expect("it is there");
                        hub.end_sweep(sweep.channel);
                        let visited: BTreeSet<u8> = sweep.visited.iter().copied().collect();
                        prop_assert_eq!(visited.len(), sweep.visited.len(), "nobody twice");
                        prop_assert!(sweep.expected.is_subset(&visited), "nobody passed over");
                    }
                }
            }
            for (k, members) in &live {
                let audience = hub.indices.get(&key(*k)).map_or(0, |channel| hub.audience(*channel));
                prop_assert_eq!(audience, members.len());
            }
            for k in 0..4 {
                let waits = hub.indices.get(&key(k)).is_some_and(|channel| hub.waits(*channel));
                let mut able = resuming.get(&k).into_iter().flatten().filter(|c| !full.contains(&(**c, k)));
                prop_assert_eq!(waits, able.next().is_some());
            }
            let all = live.values().chain(resuming.values());
            prop_assert_eq!(hub.subscriptions(), all.map(BTreeSet::len).sum::<usize>());
        }
    }
}

fn publications(offsets: std::ops::RangeInclusive<u64>) -> Vec<Arc<Publication>> {
    let publication = |offset| Publication {
        offset: Offset(offset),
        event: "e".into(),
        data: "d".into(),
        exclude: None,
        accepted_at: UnixTime(0),
        mark: None,
    };
    offsets
        .map(|offset| Arc::new(publication(offset)))
        .collect()
}

/// A channel that stands at 9 here, and clients that have come back.
fn with_clients(cursors: &[u64]) -> (Hub, ChannelIndex) {
    let mut hub = Hub::default();
    let mut follow = None;
    for (client, cursor) in (0..).zip(cursors) {
        if let Subscribed::First(first) = resume(&mut hub, client, *cursor) {
            follow = Some(first);
        }
    }
    let index = hub.attached(&key(0), follow.expect("first"), position(9));
    (hub, index.expect("attached"))
}

/// Who is helped with which offsets, and whether the edge is to be asked again.
fn resumed(
    hub: &mut Hub,
    cursor: u64,
    resumption: &Resumption,
    sweeps: bool,
) -> (Vec<u32>, Vec<u64>, bool) {
    let returned = hub.resumed(&key(0), position(cursor), resumption, |_| sweeps);
    let Return { back, given, ask } = returned.expect("it was asked");
    let who = back.iter().map(|one| one.recipient.connection.0).collect();
    let what = match given {
        Given::Publications(all) => all.iter().map(|p| p.offset.0).collect(),
        Given::Gap(gap) => vec![gap.latest.offset.0],
    };
    (who, what, ask)
}

/// The edge is at 12, three publications wait here for their sweep, and one
/// client has seen the first of them elsewhere.
#[test]
fn a_client_goes_on_where_the_channel_stands_at_the_worker() {
    let (mut hub, index) = with_clients(&[7, 10]);
    assert_eq!(hub.ask(index), Some(position(7)));
    let whole = Resumption::Whole(publications(8..=12));
    let told = resumed(&mut hub, 7, &whole, true);
    assert_eq!(
        told,
        (vec![0], vec![8, 9], false),
        "the other waits for the sweep"
    );
    assert_eq!(hub.audience(index), 1);
    hub.set_position(index, position(12));
    assert!(hub.waits(index));
    assert_eq!(hub.ask(index), Some(position(10)));
    let whole = Resumption::Whole(publications(11..=12));
    assert_eq!(
        resumed(&mut hub, 10, &whole, false),
        (vec![1], vec![11, 12], false)
    );
    assert_eq!(hub.audience(index), 2);
    assert!(!hub.waits(index));
}

#[test]
fn who_is_ahead_of_the_edge_is_asked_for_again_if_nothing_waits_here() {
    let (mut hub, index) = with_clients(&[7, 10]);
    assert_eq!(hub.ask(index), Some(position(7)));
    let whole = Resumption::Whole(publications(8..=9));
    assert_eq!(
        resumed(&mut hub, 7, &whole, false),
        (vec![0], vec![8, 9], true)
    );
}

#[test]
fn a_part_is_given_and_the_rest_waited_for() {
    let (mut hub, index) = with_clients(&[2, 4]);
    assert_eq!(hub.ask(index), Some(position(2)));
    let part = Resumption::Part(publications(3..=5));
    assert_eq!(
        resumed(&mut hub, 2, &part, false),
        (vec![0, 1], vec![3, 4, 5], true)
    );
    assert_eq!(hub.audience(index), 0);
    assert_eq!(hub.ask(index), Some(position(5)));
    let returned = hub.resumed(
        &key(0),
        position(5),
        &Resumption::Whole(publications(6..=9)),
        |_| false,
    );
    assert!(
        returned
            .unwrap()
            .back
            .iter()
            .all(|one| one.told && one.cursor == position(5))
    );
    assert_eq!(hub.audience(index), 2);
}

#[test]
fn a_gap_leads_to_where_the_channel_stands_here() {
    let gap = |reason, earliest, latest| {
        Resumption::Gap(Gap {
            reason,
            earliest: Offset(earliest),
            latest,
        })
    };
    let (mut hub, index) = with_clients(&[2, 6]);
    assert_eq!(hub.ask(index), Some(position(2)));
    let expired = gap(GapReason::Expired, 5, position(11));
    assert_eq!(
        resumed(&mut hub, 2, &expired, false),
        (vec![0], vec![9], true)
    );
    // The edge has gone on to another epoch, and that waits here for its sweep.
    let (mut hub, index) = with_clients(&[2]);
    assert_eq!(hub.ask(index), Some(position(2)));
    let other = Position {
        epoch: Epoch(2),
        offset: Offset(1),
    };
    let lost = gap(GapReason::NewEpoch, 1, other);
    assert_eq!(resumed(&mut hub, 2, &lost, true), (vec![], vec![9], true));
    hub.set_position(index, other);
    assert_eq!(hub.ask(index), Some(position(2)));
    assert_eq!(
        resumed(&mut hub, 2, &lost, false),
        (vec![0], vec![1], false)
    );
}

/// It reads too slowly, and has got everything up to 7.
#[test]
fn who_falls_behind_is_asked_for_when_there_is_room_again() {
    let (mut hub, index) = with_clients(&[9, 9]);
    hub.ask(index);
    resumed(&mut hub, 9, &Resumption::Whole(Vec::new()), false);
    assert_eq!(hub.audience(index), 2);
    hub.fall_behind(ConnectionIndex(0), index, position(7));
    assert_eq!(hub.audience(index), 1, "it gets nothing more");
    assert!(!hub.waits(index), "and asks for nothing");
    assert_eq!(hub.ask(index), None);
    assert_eq!(hub.catch_up(ConnectionIndex(1)), []);
    assert_eq!(hub.catch_up(ConnectionIndex(0)), [index]);
    assert_eq!(hub.ask(index), Some(position(7)));
    let whole = Resumption::Whole(publications(8..=9));
    let returned = hub.resumed(&key(0), position(7), &whole, |_| false);
    let back = returned.expect("it was asked").back;
    assert!(back[0].told, "it is not acknowledged once more");
    assert_eq!(hub.audience(index), 2);
}

#[test]
fn a_member_gets_nothing_before_it_is_welcome_and_then_what_comes_after() {
    let mut hub = Hub::default();
    let key = key(0);
    let wish = Wish {
        enters: true,
        ..Wish::default()
    };
    let Subscribed::First(follow) = hub.subscribe(ConnectionIndex(0), &key, wish) else {
        panic!("the first");
    };
    let index = hub
        .attached(&key, follow, POSITION)
        .expect("it is followed");
    assert_eq!(
        hub.subscribe(ConnectionIndex(1), &key, wish),
        Subscribed::Entering
    );
    assert_eq!((hub.audience(index), hub.ask(index)), (0, None));
    assert!(hub.is_pending(ConnectionIndex(0)));
    assert_eq!(hub.told_and_waiting(index), []);
    // Room in its socket is nothing that it waits for.
    assert_eq!(hub.catch_up(ConnectionIndex(0)), []);
    let live = hub
        .welcome(ConnectionIndex(0), &key, POSITION, |_| false)
        .expect("it waits");
    assert!(live.is_live && !hub.is_pending(ConnectionIndex(0)));
    assert_eq!(
        hub.welcome(ConnectionIndex(0), &key, POSITION, |_| false),
        None,
        "once"
    );
    // What this one was told of waits here for its sweep.
    let ahead = Position {
        offset: POSITION.offset.next(),
        ..POSITION
    };
    let waits = hub
        .welcome(ConnectionIndex(1), &key, ahead, |_| false)
        .expect("it waits");
    assert!(!waits.is_live);
    let told = hub.told_and_waiting(index);
    let told: Vec<ConnectionIndex> = told.iter().map(|it| it.connection).collect();
    assert_eq!(told, [ConnectionIndex(1)]);
    assert_eq!(hub.ask(index), Some(ahead));
    hub.set_position(index, ahead);
    let whole = Resumption::Whole(Vec::new());
    let back = hub
        .resumed(&key, ahead, &whole, |_| false)
        .expect("it was asked for");
    assert_eq!(back.back.len(), 1);
    assert_eq!(
        (hub.audience(index), hub.told_and_waiting(index)),
        (2, vec![])
    );
    let of = hub.channels_of(ConnectionIndex(1));
    let of: Vec<&ChannelKey> = of.map(|(key, _)| key).collect();
    assert_eq!(of, [&key]);
}
