//! Holes in links, repairs, and nodes that fall silent.

use proto::message::{Repair, Span};

use super::*;

impl Bench {
    /// A piece of the link from `a`.
    fn piece(&mut self, at: u64, first: u64, entries: &[Entry]) -> &[Effect] {
        let batch = batch(first, entries);
        self.tell(at, Input::Message(Message::Batch(batch)))
    }

    /// A piece of it that is sent again.
    fn repair(&mut self, at: u64, first: u64, entries: &[Entry]) -> &[Effect] {
        let batch = batch(first, entries);
        self.tell(at, Input::Message(Message::Repair(batch)))
    }

    /// Ticks from then to then; what it asked for and when.
    fn asked(&mut self, from: u64, until: u64) -> Vec<(u64, Request)> {
        let mut all = Vec::new();
        for at in (from..until).step_by(20) {
            let effects = self.tell(at, Input::Tick);
            all.extend(requests(effects).into_iter().map(|(_, r)| (at, r.clone())));
        }
        all
    }
}

fn batch(first: u64, entries: &[Entry]) -> Batch {
    Batch {
        from: node("a"),
        to: me().incarnation,
        first,
        entries: entries.iter().map(codec::encode_entry).collect(),
    }
}

fn gap(missed: u64) -> Effect {
    Effect::LinkGap {
        node: "a".parse().unwrap(),
        missed,
    }
}

fn fallback(lost: u64) -> Effect {
    Effect::LinkFallback {
        node: "a".parse().unwrap(),
        lost,
    }
}

fn ask(first: u64, count: u64) -> Request {
    Request::Repair(Repair {
        node: Incarnation(1),
        spans: vec![Span { first, count }],
    })
}

fn to_a(request: Request) -> Effect {
    Effect::Request {
        node: "a".parse().unwrap(),
        request,
    }
}

/// Channels that are joined, and with which position.
fn joins(requests: &[(u64, Request)]) -> Vec<(String, Since)> {
    let mut joins: Vec<_> = requests
        .iter()
        .filter_map(|(_, request)| match request {
            Request::Join(join) => Some((join.key.channel.to_string(), join.since)),
            _ => None,
        })
        .collect();
    joins.sort_by(|a, b| a.0.cmp(&b.0));
    joins
}

#[test]
fn a_gap_of_the_link_is_asked_for_at_once_and_no_channel_asks() {
    let mut bench = Bench::new();
    bench.attach("c", 4);
    let effects = bench.piece(0, 3, &[]);
    assert_eq!(effects, [gap(2), to_a(ask(1, 2))]);
    let (five, six) = (bench.entry("c", FENCE, 5), bench.entry("c", FENCE, 6));
    let effects = bench.repair(50, 1, &[five, six]);
    assert_eq!(effects[0], Effect::LinkRepaired { entries: 2 });
    assert_eq!(delivered(effects), [5, 6]);
    assert_eq!(bench.asked(60, 8_000), []);
}

#[test]
fn a_gap_of_the_link_does_not_hold_back_what_is_contiguous() {
    let mut bench = Bench::new();
    bench.attach("c", 4);
    let entry = bench.entry("c", FENCE, 5);
    assert_eq!(delivered(bench.piece(0, 3, &[entry])), [5]);
}

#[test]
fn what_came_too_early_waits_for_the_repair_and_is_delivered_in_order() {
    let mut bench = Bench::new();
    bench.attach("c", 4);
    let entries: Vec<Entry> = (5..9).map(|n| bench.entry("c", FENCE, n)).collect();
    let effects = bench.piece(0, 2, &entries[1..3]);
    assert_eq!(effects, [gap(1), to_a(ask(1, 1))], "no join");
    assert_eq!(delivered(bench.repair(30, 1, &entries[..1])), [5, 6, 7]);
    assert_eq!(delivered(bench.piece(40, 4, &entries[3..])), [8]);
    assert_eq!(bench.asked(40, 8_000), []);
}

#[test]
fn late_and_repeated_pieces_are_delivered_once() {
    let mut bench = Bench::new();
    bench.attach("c", 4);
    let entries: Vec<Entry> = (5..8).map(|n| bench.entry("c", FENCE, n)).collect();
    bench.piece(0, 3, &entries[2..]);
    // It was only late.
    let effects = bench.piece(10, 1, &entries[..2]);
    assert_eq!(delivered(effects), [5, 6, 7]);
    assert!(!effects.contains(&Effect::LinkRepaired { entries: 2 }));
    assert_eq!(bench.repair(20, 1, &entries), []);
    assert_eq!(bench.piece(20, 1, &entries), []);
}

#[test]
fn a_repair_that_does_not_come_is_asked_for_again_and_then_positions_are() {
    let mut bench = Bench::new();
    bench.attach("c", 4);
    bench.attach("d", 2);
    let early = bench.entry("c", FENCE, 6);
    bench.piece(0, 3, &[early]);
    let asked = bench.asked(20, 800);
    assert_eq!(asked, [200, 400, 600].map(|at| (at, ask(1, 2))));
    assert_eq!(bench.tell(800, Input::Tick)[0], fallback(2));
    let asked: Vec<(u64, Request)> = requests(&bench.effects)
        .into_iter()
        .map(|(_, request)| (800, request.clone()))
        .collect();
    let have = [
        ("c".into(), Since::Delivered(at(4))),
        ("d".into(), Since::Delivered(at(2))),
    ];
    assert_eq!(joins(&asked), have);
    // Too late.
    let five = bench.entry("c", FENCE, 5);
    assert_eq!(bench.repair(900, 1, &[five]), []);
}

#[test]
fn what_the_node_holds_no_longer_is_asked_for_by_position_and_the_rest_repaired() {
    let mut bench = Bench::new();
    bench.attach("c", 4);
    bench.piece(0, 5, &[]);
    let effects = bench.reply(10, "a", Reply::Unrepairable { below: 3 });
    assert_eq!(effects, [fallback(2)]);
    let asked = bench.asked(20, 40);
    assert_eq!(joins(&asked), [("c".into(), Since::Delivered(at(4)))]);
    assert_eq!(bench.tell(200, Input::Tick), [to_a(ask(3, 2))]);
    // Said again, it changes nothing.
    let again = Reply::Unrepairable { below: 3 };
    assert_eq!(bench.reply(210, "a", again), []);
    // Nor does it of a node that was never heard.
    let stranger = Reply::Unrepairable { below: u64::MAX };
    assert_eq!(bench.reply(210, "z", stranger), []);
}

/// The link is whole again and the channel is not: its owner is asked.
#[test]
fn a_jump_that_the_repair_does_not_explain_is_asked_for() {
    let mut bench = Bench::new();
    bench.attach("c", 4);
    let (early, other) = (bench.entry("c", FENCE, 7), bench.entry("d", FENCE, 1));
    bench.piece(0, 2, &[early]);
    bench.repair(30, 1, &[other]);
    let asked = bench.asked(40, 80);
    assert_eq!(joins(&asked), [("c".into(), Since::Delivered(at(4)))]);
    // Without a hole in the link it is asked for at once.
    let early = bench.entry("c", FENCE, 9);
    let mut bench = Bench::new();
    bench.attach("c", 4);
    let asked = join(bench.piece(0, 1, &[early]));
    assert_eq!(asked.since, Since::Delivered(at(4)));
}

/// There is always another hole; but nobody waits for ever.
#[test]
fn a_channel_waits_for_repairs_for_some_seconds_at_most() {
    let mut bench = Bench::new();
    bench.attach("c", 4);
    let early = bench.entry("c", FENCE, 7);
    let mut next = 2;
    let mut asked_at = None;
    for now in (0..20_000_u64).step_by(20) {
        let asked = bench.asked(now, now + 20);
        if !joins(&asked).is_empty() {
            asked_at = Some(now);
            break;
        }
        if now % 100 == 0 {
            // One entry is lost before each, and comes by repair a little later.
            bench.piece(now, next, std::slice::from_ref(&early));
            let other = bench.entry("d", FENCE, 1);
            if next >= 4 {
                bench.repair(now, next - 3, &[other]);
            }
            next += 2;
        }
    }
    let asked_at = asked_at.expect("it is asked for");
    assert!((4_900..=5_100).contains(&asked_at), "{asked_at}");
}

/// What was missing is of a life that is over; its channels must not wait.
#[test]
fn a_node_that_restarts_leaves_no_channel_waiting() {
    let mut bench = Bench::new();
    bench.attach("c", 4);
    let early = bench.entry("c", FENCE, 7);
    bench.piece(0, 2, &[early]);
    let reborn = NodeRef {
        incarnation: Incarnation(2),
        ..node("a")
    };
    bench.beat(10, reborn, 1);
    let asked = bench.asked(20, 2_000);
    assert!(!joins(&asked).is_empty());
    assert!(asked.iter().all(|(_, r)| !matches!(r, Request::Repair(_))));
}

#[test]
fn a_silent_node_is_noticed_once_and_so_is_its_return_with_its_gap() {
    let mut bench = Bench::new();
    let said = |bench: &mut Bench| -> Vec<bool> {
        let said = std::mem::take(&mut bench.silences);
        said.into_iter().map(|(_, silent)| silent).collect()
    };
    bench.beat(0, node("a"), 1);
    // Replies do not count: they come by another way.
    let left = Reply::Left {
        version: 9,
        result: Ok(()),
    };
    bench.reply(1_500, "a", left);
    bench.tell(1_999, Input::Tick);
    assert!(said(&mut bench).is_empty());
    bench.tell(2_000, Input::Tick);
    assert_eq!(
        (said(&mut bench), bench.edge.silent_nodes()),
        (vec![true], 1)
    );
    bench.asked(2_020, 30_000);
    assert!(said(&mut bench).is_empty(), "once");
    // Its first beat of the link shows what was missed.
    let effects = bench.piece(30_000, 4, &[]);
    assert_eq!(effects, [gap(3), to_a(ask(1, 3))]);
    assert_eq!(
        (said(&mut bench), bench.edge.silent_nodes()),
        (vec![false], 0)
    );
    bench.reply(30_010, "a", Reply::Unrepairable { below: 4 });
    bench.tell(32_000, Input::Tick);
    bench.beat(32_010, node("a"), 1);
    bench.beat(32_500, node("a"), 1);
    assert_eq!(said(&mut bench), [true, false]);
}

#[test]
fn a_silent_node_is_forgotten_when_it_owns_nothing() {
    let mut bench = Bench::new();
    bench.beat(0, node("a"), 1);
    bench.beat(0, node("b"), 1);
    bench.asked(0, 10_000);
    assert_eq!(bench.edge.silent_nodes(), 2);
    bench.asked(59_900, 60_100);
    assert_eq!(bench.edge.silent_nodes(), 1, "the owner stays");
    bench.asked(119_900, 130_000);
    assert_eq!(bench.edge.silent_nodes(), 1);
}
