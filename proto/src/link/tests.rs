use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::id::{Incarnation, NodeRef};
use crate::message::{Batch, Span};
use crate::time::Timestamp;

fn sender() -> Sender {
    let from = NodeRef {
        id: "n".parse().unwrap(),
        incarnation: Incarnation(1),
    };
    Sender::new(from, Incarnation(9), Timestamp(0))
}

fn sealed(sender: &mut Sender, now: u64, entries: &[usize]) -> Vec<Batch> {
    for len in entries {
        sender.push(Bytes::from(vec![0; *len]));
    }
    let mut batches = Vec::new();
    sender.seal(Timestamp(now), |batch| batches.push(batch));
    batches
}

fn repeated(sender: &mut Sender, room: usize) -> Vec<Batch> {
    let mut batches = Vec::new();
    sender.repeat(room, |batch| batches.push(batch));
    batches
}

fn span(first: u64, count: u64) -> Span {
    Span { first, count }
}

/// A batch of so many entries.
fn batch(first: u64, count: usize) -> Batch {
    let mut batch = sealed(&mut sender(), 0, &vec![1; count]).remove(0);
    batch.first = first;
    batch
}

/// What of a batch is new, as numbers, and how many before it were missed.
fn take(receiver: &mut Receiver, now: u64, batch: &Batch) -> (Vec<u64>, u64) {
    let mut fresh = Vec::new();
    let receipt = receiver.receive(Timestamp(now), batch, &mut fresh);
    assert_eq!(receipt.lost, []);
    let numbers = fresh.into_iter().flatten();
    let numbers = numbers.map(|index| batch.first + index as u64).collect();
    (numbers, receipt.missed)
}

fn asked(receiver: &mut Receiver, now: u64) -> Vec<Span> {
    let due = receiver.due(Timestamp(now));
    assert_eq!(due.lost, []);
    due.ask
}

#[test]
fn a_lost_batch_is_found_at_the_next_batch() {
    let mut sender = sender();
    let mut receiver = Receiver::default();
    let first = sealed(&mut sender, 0, &[1, 1]).remove(0);
    let _lost = sealed(&mut sender, 1, &[1, 1, 1]);
    let third = sealed(&mut sender, 2, &[1]).remove(0);
    assert_eq!(take(&mut receiver, 0, &first), (vec![1, 2], 0));
    assert_eq!(take(&mut receiver, 2, &third), (vec![6], 3));
    assert_eq!(take(&mut receiver, 2, &third), (vec![], 0), "old");
    assert_eq!(take(&mut receiver, 2, &first), (vec![], 0), "old");
    assert_eq!(asked(&mut receiver, 2), [span(3, 3)]);
}

#[test]
fn a_lost_last_batch_is_found_at_the_tail_beat() {
    let mut sender = sender();
    let mut receiver = Receiver::default();
    let _lost = sealed(&mut sender, 0, &[1]);
    assert_eq!(sender.beat(Timestamp(49)), None);
    let beat = sender.beat(Timestamp(50)).unwrap();
    assert_eq!(take(&mut receiver, 50, &beat), (vec![], 1));
    let beat = sender.beat(Timestamp(250)).unwrap();
    assert_eq!(take(&mut receiver, 250, &beat), (vec![], 0));
}

#[test]
fn beats_slow_down_after_the_last_batch_and_start_again_with_the_next() {
    let mut sender = sender();
    sealed(&mut sender, 0, &[1]);
    let beats: Vec<u64> = (0..4_000)
        .filter(|t| sender.beat(Timestamp(*t)).is_some())
        .collect();
    assert_eq!(beats, [50, 250, 1_250, 2_250, 3_250]);
    sealed(&mut sender, 4_000, &[1]);
    assert!(sender.beat(Timestamp(4_050)).is_some());
}

#[test]
fn batches_stay_below_the_limit_of_the_bus() {
    let mut sender = sender();
    let batches = sealed(&mut sender, 0, &[300_000, 300_000, 100, 600_000, 100]);
    let counts: Vec<usize> = batches.iter().map(|b| b.entries.len()).collect();
    assert_eq!(counts, [1, 2, 1, 1]);
    let firsts: Vec<u64> = batches.iter().map(|b| b.first).collect();
    assert_eq!(firsts, [1, 2, 4, 5]);
    assert_eq!(sender.want(&[span(1, 5)]), None);
    let again = repeated(&mut sender, usize::MAX);
    assert_eq!(again, batches, "nor do repairs pass it");
}

#[test]
fn what_is_repaired_is_new_once_whatever_it_comes_with() {
    let mut receiver = Receiver::default();
    take(&mut receiver, 0, &batch(1, 2));
    assert_eq!(take(&mut receiver, 0, &batch(6, 1)), (vec![6], 3));
    assert_eq!(take(&mut receiver, 0, &batch(9, 1)), (vec![9], 2));
    // Over both holes, what lies between, and beyond.
    assert_eq!(take(&mut receiver, 0, &batch(4, 1)), (vec![4], 0));
    let all = take(&mut receiver, 0, &batch(1, 10));
    assert_eq!(all, (vec![3, 5, 7, 8, 10], 0));
    assert_eq!(receiver.lowest_missing(), None);
    assert_eq!(take(&mut receiver, 0, &batch(1, 10)), (vec![], 0));
}

#[test]
fn a_hole_is_asked_for_four_times_and_then_given_up() {
    let mut receiver = Receiver::default();
    take(&mut receiver, 0, &batch(4, 1));
    let asks: Vec<u64> = (0..800)
        .filter(|now| !asked(&mut receiver, *now).is_empty())
        .collect();
    assert_eq!(asks, [0, 200, 400, 600]);
    let due = receiver.due(Timestamp(800));
    assert_eq!((due.ask, due.lost), (vec![], vec![span(1, 3)]));
    assert_eq!(receiver.lowest_missing(), None);
    // It comes after all: too late, for it has been made good otherwise.
    assert_eq!(take(&mut receiver, 900, &batch(1, 3)), (vec![], 0));
}

/// The sender paces what it repeats, and more may be missing than it repeats
/// within a second.
#[test]
fn a_repair_that_goes_on_is_waited_for_but_not_for_ever() {
    let mut receiver = Receiver::default();
    take(&mut receiver, 0, &batch(1_000, 1));
    let mut lost_at = None;
    for now in (0..20_000).step_by(100) {
        let due = receiver.due(Timestamp(now));
        if !due.lost.is_empty() {
            lost_at = Some(now);
            break;
        }
        take(&mut receiver, now, &batch(1 + now / 100, 1));
    }
    assert_eq!(lost_at, Some(5_000));
}

#[test]
fn what_the_sender_no_longer_holds_is_given_up_and_nothing_else() {
    let mut receiver = Receiver::default();
    take(&mut receiver, 0, &batch(4, 1));
    take(&mut receiver, 0, &batch(9, 1));
    assert_eq!(receiver.unrepairable(0), []);
    assert_eq!(receiver.unrepairable(6), [span(1, 3), span(5, 1)]);
    assert_eq!(asked(&mut receiver, 0), [span(6, 3)]);
    assert_eq!(receiver.unrepairable(u64::MAX), [span(6, 3)]);
    assert_eq!(take(&mut receiver, 0, &batch(10, 1)), (vec![10], 0));
}

#[test]
fn holes_are_bounded_and_the_oldest_is_given_up() {
    let mut receiver = Receiver::default();
    let mut lost = Vec::new();
    for hole in 0..HOLES_MAX as u64 + 2 {
        let mut fresh = Vec::new();
        let receipt = receiver.receive(Timestamp(0), &batch(hole * 2 + 2, 1), &mut fresh);
        lost.extend(receipt.lost);
    }
    assert_eq!(lost, [span(1, 1), span(3, 1)]);
    assert_eq!(asked(&mut receiver, 0).len(), HOLES_MAX);
}

#[test]
fn repairs_are_paced_and_what_is_asked_for_twice_is_sent_once() {
    let mut sender = sender();
    sealed(&mut sender, 0, &[1_000; 10]);
    assert_eq!(sender.want(&[span(2, 3), span(8, 2)]), None);
    assert_eq!(sender.want(&[span(3, 4)]), None);
    let numbers = |batches: Vec<Batch>| -> Vec<(u64, usize)> {
        let number = |batch: &Batch| (batch.first, batch.entries.len());
        batches.iter().map(number).collect()
    };
    assert_eq!(numbers(repeated(&mut sender, 0)), []);
    assert_eq!(numbers(repeated(&mut sender, 2_500)), [(2, 2), (4, 1)]);
    assert!(sender.is_wanted());
    assert_eq!(numbers(repeated(&mut sender, usize::MAX)), [(5, 2), (8, 2)]);
    assert!(!sender.is_wanted());
    assert_eq!(numbers(repeated(&mut sender, usize::MAX)), []);
}

#[test]
fn requests_that_make_no_sense_are_harmless() {
    let mut sender = sender();
    sealed(&mut sender, 0, &[1; 4]);
    let (max, none) = (u64::MAX, None);
    let absurd = [
        (span(max, max), none),
        (span(max, 1), none),
        (span(5, max), none),
        (span(1, 0), none),
        (span(0, 0), none),
        (span(0, 1), Some(1)),
    ];
    for (span, answer) in absurd {
        assert_eq!(sender.want(&[span]), answer, "{span:?}");
        assert!(!sender.is_wanted(), "{span:?}");
    }
    assert_eq!(sender.want(&[span(0, max)]), Some(1));
    let again = repeated(&mut sender, usize::MAX);
    assert_eq!(
        (again.len(), again[0].first, again[0].entries.len()),
        (1, 1, 4)
    );
    // Many at once: what is over the bound is dropped, and not gone over.
    sealed(&mut sender, 0, &[1; 2_000]);
    let many: Vec<Span> = (0..2_000).map(|n| span(n * 2 + 1, 1)).collect();
    sender.want(&many);
    sender.want(&many[600..]);
    assert_eq!(repeated(&mut sender, usize::MAX).len(), 256);
}

#[test]
fn the_ring_is_bounded_in_entries_bytes_and_age() {
    let mut sender = sender();
    for _ in 0..LINK_ENTRIES_MAX + 10 {
        sender.push(Bytes::from_static(b"x"));
    }
    sender.seal(Timestamp(0), |_| {});
    assert_eq!(sender.want(&[span(10, 1)]), Some(11), "entries");
    assert_eq!(sender.want(&[span(11, 1)]), None);
    assert_eq!(repeated(&mut sender, usize::MAX).len(), 1);
    let big = Bytes::from(vec![0; 400_000]);
    for _ in 0..LINK_BYTES_MAX / 400_000 + 1 {
        sender.push(big.clone());
    }
    sender.seal(Timestamp(1_000), |_| {});
    assert!(sender.kept_bytes() <= LINK_BYTES_MAX, "bytes");
    assert!(sender.kept_bytes() > LINK_BYTES_MAX - 400_200);
    sender.expire(Timestamp(10_999));
    assert!(sender.kept_bytes() > 0);
    sender.expire(Timestamp(11_000));
    assert_eq!(sender.kept_bytes(), 0, "age");
    let next = sender.next();
    assert_eq!(sender.want(&[span(1, u64::MAX)]), Some(next));
    assert!(!sender.is_wanted());
}

#[test]
fn what_has_left_the_ring_while_it_waited_is_passed_over() {
    let mut sender = sender();
    sealed(&mut sender, 0, &[100; 4]);
    sealed(&mut sender, 5_000, &[100; 4]);
    assert_eq!(sender.want(&[span(1, 2), span(4, 2)]), None);
    sender.expire(Timestamp(10_000));
    let again = repeated(&mut sender, usize::MAX);
    assert_eq!(
        (again.len(), again[0].first, again[0].entries.len()),
        (1, 5, 1)
    );
    sender.want(&[span(6, 1)]);
    sender.shrink_to(0);
    assert_eq!(repeated(&mut sender, usize::MAX), []);
    assert!(!sender.is_wanted());
}

/// What is on its way.
#[derive(Debug, Clone)]
enum Flying {
    Batch(Batch),
    Ask(Vec<Span>),
    Unrepairable(u64),
}

/// A sender and a receiver on a bus that does what it likes.
struct World {
    now: u64,
    sender: Sender,
    receiver: Receiver,
    flying: Vec<Flying>,
    /// How often each number was handed over.
    handed: BTreeMap<u64, u32>,
    lost: Vec<Span>,
}

#[derive(Debug, Clone)]
enum Op {
    Send(Vec<usize>),
    Beat,
    /// Both sides do what is due, and so much is repeated.
    Tick(usize),
    Wait(u64),
    /// Any message arrives, and stays on its way.
    Arrive(prop::sample::Index),
    Lose(prop::sample::Index),
    Shrink(usize),
}

impl World {
    fn new() -> Self {
        Self {
            now: 0,
            sender: sender(),
            receiver: Receiver::default(),
            flying: Vec::new(),
            handed: BTreeMap::new(),
            lost: Vec::new(),
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Send(sizes) => {
                for size in sizes {
                    let mut entry = self.sender.next().to_be_bytes().to_vec();
                    entry.resize(8 + size, 0);
                    self.sender.push(entry.into());
                }
                let flying = &mut self.flying;
                let fly = |batch| flying.push(Flying::Batch(batch));
                self.sender.seal(Timestamp(self.now), fly);
            }
            Op::Beat => {
                let beat = self.sender.beat(Timestamp(self.now));
                self.flying.extend(beat.map(Flying::Batch));
            }
            Op::Tick(room) => self.tick(room),
            Op::Wait(millis) => self.now += millis,
            Op::Arrive(index) if !self.flying.is_empty() => {
                let message = index.get(&self.flying).clone();
                self.arrive(message);
            }
            Op::Lose(index) if !self.flying.is_empty() => {
                self.flying.remove(index.index(self.flying.len()));
            }
            Op::Arrive(_) | Op::Lose(_) => {}
            Op::Shrink(bytes) => self.sender.shrink_to(bytes),
        }
    }

    fn tick(&mut self, room: usize) {
        let due = self.receiver.due(Timestamp(self.now));
        assert!(due.ask.len() <= HOLES_MAX);
        self.lost.extend(due.lost);
        if !due.ask.is_empty() {
            self.flying.push(Flying::Ask(due.ask));
        }
        self.sender.expire(Timestamp(self.now));
        let flying = &mut self.flying;
        self.sender
            .repeat(room, |batch| flying.push(Flying::Batch(batch)));
    }

    fn arrive(&mut self, message: Flying) {
        match message {
            Flying::Batch(batch) => {
                let mut fresh = Vec::new();
                let now = Timestamp(self.now);
                let receipt = self.receiver.receive(now, &batch, &mut fresh);
                self.lost.extend(receipt.lost);
                for index in fresh.into_iter().flatten() {
                    let number = batch.first + index as u64;
                    assert_eq!(batch.entries[index][..8], number.to_be_bytes());
                    *self.handed.entry(number).or_default() += 1;
                }
            }
            Flying::Ask(spans) => {
                let answer = self.sender.want(&spans).map(Flying::Unrepairable);
                self.flying.extend(answer);
            }
            Flying::Unrepairable(below) => self.lost.extend(self.receiver.unrepairable(below)),
        }
    }

    /// From now on nothing is lost and everything arrives in order.
    fn heal(&mut self) {
        for _ in 0..200 {
            self.now += 50;
            self.run(Op::Beat);
            self.tick(usize::MAX);
            for message in std::mem::take(&mut self.flying) {
                self.arrive(message);
            }
        }
    }
}

fn op() -> impl Strategy<Value = Op> {
    let any = any::<prop::sample::Index>;
    prop_oneof![
        4 => prop::collection::vec(0..2_000_usize, 1..6).prop_map(Op::Send),
        1 => Just(Op::Beat),
        3 => (0..10_000_usize).prop_map(Op::Tick),
        3 => (0..400_u64).prop_map(Op::Wait),
        4 => any().prop_map(Op::Arrive),
        5 => any().prop_map(Op::Lose),
        1 => (0..20_000_usize).prop_map(Op::Shrink),
    ]
}

proptest! {
    /// Whatever the bus loses, doubles and reorders, of batches and of repairs.
    #[test]
    fn every_entry_is_handed_over_once_or_given_up(ops in prop::collection::vec(op(), 0..200)) {
        let mut world = World::new();
        for op in ops {
            world.run(op);
        }
        world.heal();
        for span in world.lost {
            for number in span.first..span.end() {
                *world.handed.entry(number).or_default() += 1;
            }
        }
        let all: BTreeMap<u64, u32> = (1..world.sender.next()).map(|n| (n, 1)).collect();
        prop_assert_eq!(world.handed, all);
        prop_assert_eq!(world.receiver.lowest_missing(), None);
    }

    /// A short outage of the bus, within what the ring holds, costs nothing.
    #[test]
    fn what_the_ring_holds_is_never_given_up(
        lost in prop::collection::vec(any::<bool>(), 1..300),
    ) {
        let mut world = World::new();
        for lose in lost {
            world.now += 5;
            world.run(Op::Send(vec![100]));
            let messages = std::mem::take(&mut world.flying);
            if !lose {
                messages.into_iter().for_each(|message| world.arrive(message));
            }
        }
        world.heal();
        prop_assert_eq!(world.lost, []);
        prop_assert_eq!(world.handed.len() as u64, world.sender.next() - 1);
    }

    /// Any numbers may come.
    #[test]
    fn a_receiver_takes_any_batches(
        batches in prop::collection::vec((prop_oneof![0..50_u64, u64::MAX - 50..=u64::MAX], 0..8_usize), 0..60),
        below in any::<u64>(),
    ) {
        let mut receiver = Receiver::default();
        for (first, count) in batches {
            let mut fresh = Vec::new();
            let mut some = batch(1, count.max(1));
            some.first = first;
            some.entries.truncate(count);
            receiver.receive(Timestamp(0), &some, &mut fresh);
            prop_assert!(fresh.iter().all(|range| range.end <= count));
            receiver.due(Timestamp(0));
        }
        receiver.unrepairable(below);
        receiver.due(Timestamp(10_000));
        prop_assert_eq!(receiver.lowest_missing(), None);
    }
}
