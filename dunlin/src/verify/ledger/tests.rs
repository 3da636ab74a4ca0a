//! The judge judged: for every verdict a made-up trace that deserves it, and
//! traces that deserve none.

use super::*;

const SECOND: Nanos = 1_000_000_000;

fn at(epoch: u64, offset: u64) -> Position {
    Position {
        epoch: Epoch(epoch),
        offset: Offset(offset),
    }
}

/// Some clients in one channel, all attached at its beginning, and a clock.
struct Trace {
    ledger: Ledger,
    clients: Vec<usize>,
    readers: Vec<Reader>,
    now: Nanos,
}

impl Trace {
    fn new(clients: usize) -> Self {
        let mut ledger = Ledger::new(["c".to_owned(), "other".to_owned()]);
        let mut trace = Self {
            clients: Vec::new(),
            readers: Vec::new(),
            now: 0,
            ledger: Ledger::new([]),
        };
        for number in 0..clients {
            let (client, readers) = ledger.add_client(format!("client {number}"), &[0]);
            ledger.connected(client, true);
            assert!(!ledger.all_attached());
            ledger.attached(readers[0], at(1, 0), 0);
            trace.clients.push(client);
            trace.readers.extend(readers);
        }
        assert!(ledger.all_attached());
        trace.ledger = ledger;
        trace
    }

    fn tick(&mut self) -> Nanos {
        self.now += SECOND;
        self.now
    }

    fn sent(&mut self) -> Number {
        let now = self.tick();
        self.ledger.sent(0, now)
    }

    fn answered(&mut self, number: Number, outcome: Outcome) {
        let now = self.tick();
        self.ledger.answered(number, outcome, now);
    }

    fn accepted(&mut self) -> Number {
        let number = self.sent();
        self.answered(number, Outcome::Accepted);
        number
    }

    fn got(&mut self, client: usize, position: Position, number: Number) {
        let now = self.tick();
        self.ledger
            .got(self.readers[client], position, Some(number), now);
    }

    fn all_got(&mut self, position: Position, number: Number) {
        for client in 0..self.readers.len() {
            self.got(client, position, number);
        }
    }

    /// The usual: acknowledged, and with everybody.
    fn publish(&mut self, position: Position) -> Number {
        let number = self.accepted();
        self.all_got(position, number);
        number
    }

    fn attached(&mut self, client: usize, position: Position) {
        let now = self.tick();
        self.ledger.attached(self.readers[client], position, now);
    }

    fn gap(&mut self, client: usize, reason: &str, latest: Position) {
        let now = self.tick();
        self.ledger.gap(self.readers[client], reason, latest, now);
    }

    fn complete(&mut self) -> bool {
        self.ledger.compact();
        self.ledger.is_complete()
    }

    fn finish(self) -> Findings {
        self.ledger.finish().0
    }

    /// There is nothing to complain about.
    fn clean(mut self) -> Findings {
        assert!(self.complete());
        let found = self.finish();
        assert_eq!(found.breaches(), 0, "{found:?}");
        found
    }
}

#[test]
fn what_everybody_got_in_order_is_clean_and_forgotten() {
    let mut trace = Trace::new(3);
    for offset in 1..=100 {
        trace.publish(at(1, offset));
    }
    assert_eq!(trace.ledger.open(), 100);
    trace.ledger.compact();
    assert_eq!(trace.ledger.open(), 0);
    assert!(trace.ledger.channels[0].lives[0].log.is_empty());
    let found = trace.clean();
    assert_eq!((found.accepted, found.deliveries), (100, 300));
}

#[test]
fn what_somebody_still_needs_is_kept() {
    let mut trace = Trace::new(2);
    let first = trace.accepted();
    trace.got(0, at(1, 1), first);
    assert!(!trace.complete());
    assert_eq!(trace.ledger.open(), 1);
    trace.got(1, at(1, 1), first);
    assert!(trace.complete());
    assert_eq!(trace.ledger.open(), 0);
    // What is delivered and not answered is kept, too, for its answer.
    let second = trace.sent();
    trace.all_got(at(1, 2), second);
    assert!(!trace.complete());
    assert_eq!(trace.ledger.open(), 1);
    trace.answered(second, Outcome::Accepted);
    trace.clean();
}

#[test]
fn what_nobody_got_is_lost_for_each() {
    let mut trace = Trace::new(2);
    trace.accepted();
    assert!(!trace.complete());
    assert_eq!(trace.finish().lost, 2);
}

#[test]
fn what_one_did_not_get_in_the_end_is_lost() {
    let mut trace = Trace::new(2);
    trace.publish(at(1, 1));
    let last = trace.accepted();
    trace.got(0, at(1, 2), last);
    assert!(!trace.complete());
    let found = trace.finish();
    assert_eq!((found.lost, found.silent_gaps), (1, 0), "{found:?}");
    assert!(found.examples[0].contains("client 1"), "{found:?}");
}

#[test]
fn what_is_left_out_without_a_word_is_a_silent_gap_and_lost() {
    let mut trace = Trace::new(2);
    let (one, two, three) = (trace.accepted(), trace.accepted(), trace.accepted());
    for (offset, number) in [(1, one), (2, two), (3, three)] {
        trace.got(0, at(1, offset), number);
    }
    trace.got(1, at(1, 3), three);
    let found = trace.finish();
    assert_eq!((found.lost, found.silent_gaps), (2, 1), "{found:?}");
    assert_eq!(found.breaches(), 3);
}

/// As with a server that does not resume: who comes back begins where the
/// channel is now.
#[test]
fn a_server_that_does_not_resume_is_caught() {
    let mut trace = Trace::new(2);
    let client = trace.clients[1];
    trace.publish(at(1, 1));
    trace.ledger.connected(client, false);
    for offset in 2..=4 {
        let number = trace.accepted();
        trace.got(0, at(1, offset), number);
    }
    trace.ledger.connected(client, true);
    trace.attached(1, at(1, 4));
    trace.publish(at(1, 5));
    let found = trace.finish();
    assert_eq!((found.lost, found.silent_gaps), (3, 1), "{found:?}");
}

#[test]
fn who_resumes_gets_what_it_missed() {
    let mut trace = Trace::new(2);
    let client = trace.clients[1];
    trace.publish(at(1, 1));
    trace.ledger.connected(client, false);
    let missed: Vec<_> = (2..=4).map(|_| trace.accepted()).collect();
    for (offset, number) in (2..).zip(&missed) {
        trace.got(0, at(1, offset), *number);
    }
    trace.ledger.connected(client, true);
    trace.attached(1, at(1, 1));
    for (offset, number) in (2..).zip(&missed) {
        trace.got(1, at(1, offset), *number);
    }
    trace.clean();
}

#[test]
fn what_comes_again_is_duplicated() {
    let mut trace = Trace::new(2);
    let first = trace.publish(at(1, 1));
    trace.publish(at(1, 2));
    trace.got(1, at(1, 1), first);
    // Also when it is forgotten already.
    trace.ledger.compact();
    trace.got(0, at(1, 1), first);
    let found = trace.finish();
    assert_eq!(found.duplicated, 2, "{found:?}");
    assert_eq!(found.breaches(), 2, "{found:?}");
}

#[test]
fn a_number_at_two_positions_is_duplicated() {
    let mut trace = Trace::new(2);
    let first = trace.publish(at(1, 1));
    trace.all_got(at(1, 2), first);
    assert_eq!(trace.ledger.findings().duplicated, 1, "once, not for each");
    // Also when the first is forgotten already.
    trace.ledger.compact();
    trace.all_got(at(1, 3), first);
    let found = trace.finish();
    assert_eq!((found.duplicated, found.breaches()), (2, 2), "{found:?}");
}

#[test]
fn an_unknown_publication_may_appear_once_or_not() {
    let mut trace = Trace::new(2);
    let never = trace.sent();
    trace.answered(never, Outcome::Unknown);
    let late = trace.sent();
    trace.answered(late, Outcome::Unknown);
    trace.publish(at(1, 1));
    trace.all_got(at(1, 2), late);
    assert!(trace.complete());
    trace.all_got(at(1, 3), late);
    let found = trace.finish();
    assert_eq!((found.unknown, found.lost), (2, 0));
    assert_eq!((found.duplicated, found.breaches()), (1, 1), "{found:?}");
}

#[test]
fn an_unknown_publication_that_one_client_got_is_owed_to_all() {
    let mut trace = Trace::new(2);
    let number = trace.sent();
    trace.answered(number, Outcome::Unknown);
    trace.got(0, at(1, 1), number);
    assert!(!trace.complete());
    assert_eq!(trace.finish().lost, 1);
}

#[test]
fn what_was_refused_must_not_appear() {
    for refused_first in [true, false] {
        let mut trace = Trace::new(2);
        let number = trace.sent();
        if refused_first {
            trace.answered(number, Outcome::Refused);
        }
        trace.all_got(at(1, 1), number);
        if !refused_first {
            trace.answered(number, Outcome::Refused);
        }
        let found = trace.finish();
        assert_eq!(
            (found.contradictions, found.breaches()),
            (1, 1),
            "{found:?}"
        );
    }
}

#[test]
fn what_comes_after_later_ones_is_reordered_and_not_lost() {
    let mut trace = Trace::new(2);
    let numbers: Vec<_> = (0..4).map(|_| trace.accepted()).collect();
    for (offset, number) in (1..).zip(&numbers) {
        trace.got(0, at(1, offset), *number);
    }
    for offset in [1, 4, 3, 2] {
        trace.got(1, at(1, offset), numbers[offset as usize - 1]);
    }
    // And again: that is another breach.
    trace.got(1, at(1, 2), numbers[1]);
    let found = trace.finish();
    assert_eq!((found.reordered, found.duplicated), (2, 1), "{found:?}");
    assert_eq!(found.breaches(), 3, "{found:?}");
}

#[test]
fn what_was_acknowledged_first_comes_first() {
    let mut trace = Trace::new(2);
    let first = trace.accepted();
    let second = trace.accepted();
    trace.all_got(at(1, 1), second);
    trace.all_got(at(1, 2), first);
    trace.ledger.compact();
    let found = trace.finish();
    assert_eq!((found.reordered, found.breaches()), (1, 1), "{found:?}");
}

#[test]
fn what_was_under_way_together_has_any_order() {
    let mut trace = Trace::new(2);
    let (first, second) = (trace.sent(), trace.sent());
    trace.answered(first, Outcome::Accepted);
    trace.answered(second, Outcome::Accepted);
    trace.all_got(at(1, 1), second);
    trace.all_got(at(1, 2), first);
    trace.clean();
}

#[test]
fn two_clients_must_get_the_same_at_a_position() {
    let mut trace = Trace::new(2);
    let (one, two) = (trace.sent(), trace.sent());
    trace.got(0, at(1, 1), one);
    trace.got(1, at(1, 1), two);
    let found = trace.finish();
    assert_eq!(found.contradictions, 1, "{found:?}");
}

#[test]
fn what_belongs_elsewhere_is_a_contradiction() {
    let mut trace = Trace::new(1);
    let elsewhere = trace.ledger.sent(1, 0);
    trace.all_got(at(1, 1), elsewhere);
    // A number that was never given out.
    trace.all_got(at(1, 2), 1_000);
    assert_eq!(trace.finish().contradictions, 2);
}

#[test]
fn others_may_publish_too() {
    let mut trace = Trace::new(2);
    trace.publish(at(1, 1));
    for client in 0..2 {
        let now = trace.tick();
        trace.ledger.got(trace.readers[client], at(1, 2), None, now);
    }
    trace.publish(at(1, 3));
    trace.clean();
}

#[test]
fn an_announced_gap_is_counted_and_no_breach() {
    // The announcement may come before the acknowledgement or after it.
    for acknowledged_first in [true, false] {
        let mut trace = Trace::new(2);
        trace.publish(at(1, 1));
        for offset in 2..=4 {
            let number = trace.accepted();
            trace.got(0, at(1, offset), number);
        }
        if acknowledged_first {
            trace.attached(1, at(1, 4));
        }
        trace.gap(1, "expired", at(1, 4));
        if !acknowledged_first {
            trace.attached(1, at(1, 4));
        }
        trace.publish(at(1, 5));
        let found = trace.clean();
        assert_eq!(found.gaps["expired"], 1);
        assert_eq!(found.missed_in_gaps, 3);
    }
}

/// Nobody ever saw what was in it, but everybody was told.
#[test]
fn a_new_epoch_that_is_announced_is_no_breach() {
    for acknowledged_first in [true, false] {
        let mut trace = Trace::new(2);
        trace.publish(at(1, 1));
        trace.accepted();
        assert!(!trace.complete());
        for client in 0..2 {
            if acknowledged_first {
                trace.attached(client, at(2, 3));
            }
            trace.gap(client, "epoch", at(2, 3));
        }
        trace.publish(at(2, 4));
        let found = trace.clean();
        assert_eq!(found.gaps["epoch"], 2);
    }
}

#[test]
fn a_new_epoch_without_a_word_is_a_silent_gap() {
    let mut trace = Trace::new(1);
    trace.publish(at(1, 1));
    trace.publish(at(2, 1));
    let found = trace.finish();
    assert_eq!((found.silent_gaps, found.breaches()), (1, 1), "{found:?}");
}

#[test]
fn who_stays_behind_in_an_old_epoch_has_lost_something() {
    let mut trace = Trace::new(2);
    trace.publish(at(1, 1));
    trace.gap(0, "epoch", at(2, 0));
    let number = trace.accepted();
    trace.got(0, at(2, 1), number);
    assert!(!trace.complete());
    let found = trace.finish();
    assert_eq!((found.lost, found.breaches()), (1, 1), "{found:?}");
}

#[test]
fn a_repetition_in_a_new_epoch_is_told_apart() {
    let mut trace = Trace::new(2);
    let number = trace.sent();
    trace.all_got(at(1, 1), number);
    for client in 0..2 {
        trace.gap(client, "epoch", at(2, 0));
    }
    trace.all_got(at(2, 1), number);
    trace.answered(number, Outcome::Accepted);
    let found = trace.clean();
    assert_eq!(found.repeated_in_new_epoch, 1);
}

#[test]
fn positions_that_go_back_are_stale() {
    let mut trace = Trace::new(1);
    for offset in 1..=3 {
        trace.publish(at(1, offset));
    }
    trace.attached(0, at(1, 2));
    trace.ledger.stated(trace.readers[0], at(1, 1));
    trace.gap(0, "ahead", at(1, 2));
    let found = trace.finish();
    assert_eq!((found.stale_answers, found.breaches()), (3, 3), "{found:?}");
}

#[test]
fn an_epoch_that_was_left_is_stale() {
    let mut trace = Trace::new(1);
    let first = trace.publish(at(1, 1));
    trace.gap(0, "epoch", at(2, 0));
    trace.ledger.compact();
    trace.attached(0, at(1, 1));
    trace.gap(0, "epoch", at(1, 1));
    let found = trace.ledger.findings();
    assert_eq!(found.stale_answers, 2, "{found:?}");
    // What comes from there comes again.
    trace.got(0, at(1, 1), first);
    let found = trace.finish();
    assert_eq!((found.duplicated, found.breaches()), (1, 3), "{found:?}");
}

#[test]
fn nothing_is_expected_of_a_server_that_cannot_be_reached() {
    let mut trace = Trace::new(2);
    let client = trace.clients[1];
    trace.ledger.connected(client, false);
    let number = trace.accepted();
    trace.got(0, at(1, 1), number);
    assert!(!trace.complete(), "it is waited for");
    assert_eq!(trace.ledger.unreachable(), ["client 1"]);
    assert_eq!(trace.finish().breaches(), 0);
}

#[test]
fn the_delay_counts_from_the_answer_or_the_return() {
    let mut trace = Trace::new(2);
    let number = trace.accepted();
    trace.got(0, at(1, 1), number);
    trace.now += 10 * SECOND;
    trace.attached(1, at(1, 0));
    trace.got(1, at(1, 1), number);
    let max = trace.ledger.delays.max();
    assert!((900_000..1_100_000).contains(&max), "{max}");
    // Before the answer nothing is late.
    let early = trace.sent();
    trace.now += 10 * SECOND;
    trace.all_got(at(1, 2), early);
    assert_eq!(trace.ledger.delays.max(), max);
}

#[test]
fn examples_and_memories_are_bounded() {
    let mut trace = Trace::new(1);
    for step in 1..=500 {
        let number = trace.accepted();
        trace.got(0, at(1, 2 * step), number);
    }
    assert_eq!(trace.ledger.channels[0].readers[0].holes.len(), HOLES_MAX);
    for epoch in 2..200 {
        trace.gap(0, "epoch", at(epoch, 0));
        trace.ledger.compact();
    }
    assert_eq!(trace.ledger.channels[0].readers[0].left.len(), LEFT_MAX);
    assert_eq!(trace.ledger.channels[0].lives.len(), 1);
    let found = trace.finish();
    assert_eq!((found.silent_gaps, found.lost), (500, 500));
    assert_eq!(found.examples.len(), EXAMPLES_MAX);
}

/// A model of a server that keeps its promises, and clients that come and go in
/// any order: there is never a complaint, and never one missing when the model
/// breaks a promise once.
#[test]
fn a_server_that_keeps_its_promises_is_never_blamed() {
    for seed in 0..200 {
        let found = run_model(seed, None);
        assert_eq!(found.breaches(), 0, "seed {seed}: {found:?}");
        for mistake in [Mistake::Skip, Mistake::Repeat, Mistake::Swap] {
            let found = run_model(seed, Some(mistake));
            assert!(found.breaches() > 0, "seed {seed}, {mistake:?}: {found:?}");
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mistake {
    /// One delivery is left out.
    Skip,
    /// One delivery is made twice.
    Repeat,
    /// Two deliveries change places.
    Swap,
}

fn run_model(seed: u64, mistake: Option<Mistake>) -> Findings {
    use super::super::random::Random;

    const CLIENTS: usize = 3;
    const PUBLICATIONS: usize = 40;
    let mut random = Random::new(seed, 0);
    let mut trace = Trace::new(CLIENTS);
    let mut log: Vec<Number> = Vec::new();
    let mut unanswered: Vec<(Number, Outcome)> = Vec::new();
    let mut cursors = [0; CLIENTS];
    let mut connected = [true; CLIENTS];
    let (mut sent, mut mistake) = (0, mistake);
    let due = random.below(PUBLICATIONS / 2);
    loop {
        let over = sent == PUBLICATIONS && unanswered.is_empty();
        if over && cursors.iter().all(|cursor| *cursor == log.len()) {
            break;
        }
        let client = random.below(CLIENTS);
        match random.below(8) {
            0 | 1 if sent < PUBLICATIONS => {
                sent += 1;
                let number = trace.sent();
                let outcome = match random.below(10) {
                    0 => Outcome::Refused,
                    1 => Outcome::Unknown,
                    _ => Outcome::Accepted,
                };
                // Half of what is unknown was taken.
                if outcome == Outcome::Accepted
                    || outcome == Outcome::Unknown && random.below(2) == 0
                {
                    log.push(number);
                }
                unanswered.push((number, outcome));
            }
            2 | 3 if !unanswered.is_empty() => {
                let (number, outcome) = unanswered.remove(random.below(unanswered.len()));
                trace.answered(number, outcome);
            }
            4 if !over => {
                connected[client] = !connected[client];
                let is = connected[client];
                trace.ledger.connected(trace.clients[client], is);
                if is {
                    trace.attached(client, at(1, cursors[client] as u64));
                }
            }
            5 => trace.ledger.compact(),
            _ if cursors[client] < log.len() => {
                if !connected[client] {
                    connected[client] = true;
                    trace.ledger.connected(trace.clients[client], true);
                    trace.attached(client, at(1, cursors[client] as u64));
                }
                let next = cursors[client];
                let deliver = |trace: &mut Trace, index: usize| {
                    trace.got(client, at(1, index as u64 + 1), log[index]);
                };
                let now = mistake.take_if(|mistake| {
                    next >= due && (*mistake != Mistake::Swap || next + 1 < log.len())
                });
                match now {
                    None => deliver(&mut trace, next),
                    Some(Mistake::Skip) => {}
                    Some(Mistake::Repeat) => {
                        deliver(&mut trace, next);
                        deliver(&mut trace, next);
                    }
                    Some(Mistake::Swap) => {
                        deliver(&mut trace, next + 1);
                        deliver(&mut trace, next);
                        cursors[client] += 1;
                    }
                }
                cursors[client] += 1;
            }
            _ => {}
        }
    }
    if mistake == Some(Mistake::Swap) {
        // The chance never came.
        trace.ledger.findings.reordered += 1;
    }
    assert!(mistake.is_none_or(|mistake| mistake == Mistake::Swap));
    trace.finish()
}
