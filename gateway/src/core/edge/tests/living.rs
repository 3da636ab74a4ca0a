//! A gateway that was declared gone, and goes on.

use super::*;
use crate::core::uplink::{Accepted, Order};

impl Bench {
    fn declare_gone(&mut self, at: u64, from: &str, through: u64) -> &[Effect] {
        let through = Incarnation(through);
        self.reply(at, from, Reply::DeclaredGone { through })
    }

    /// An answer to a life of this gateway.
    fn answer(&mut self, at: u64, to: u64, reply: Reply) -> &[Effect] {
        let replies = Replies {
            from: node("a"),
            to: Incarnation(to),
            map_version: 1,
            replies: vec![reply],
        };
        self.tell(at, Input::Message(Message::Replies(replies)))
    }

    fn publish(&mut self, at: u64, ticket: u64) -> &[Effect] {
        let order = Order {
            key: key("c"),
            event: "e".into(),
            data: "d".into(),
            exclude: None,
            accepted_at: UnixTime(0),
            idempotency: None,
            by: None,
        };
        let ticket = Ticket(ticket);
        self.tell(at, Input::Publish { ticket, order })
    }

    fn accept(&mut self, to: u64, sequence: u64) -> &[Effect] {
        let shard = self.edge.sharding.shard_of(&key("c"));
        let reply = Reply::Published {
            shard,
            sequence,
            result: Ok(Published::Accepted {
                fence: FENCE,
                position: at(9),
                copies: 2,
            }),
        };
        self.answer(0, to, reply)
    }
}

const NEXT: u64 = 6;

fn reborn() -> Effect {
    Effect::Reborn {
        incarnation: Incarnation(NEXT),
    }
}

#[test]
fn it_takes_the_next_incarnation_once_and_says_so_at_once() {
    let mut bench = Bench::new();
    assert_eq!(bench.declare_gone(0, "a", 4), [], "a life before this one");
    assert_eq!(bench.declare_gone(0, "a", 5), [reborn()]);
    assert_eq!(
        bench.declare_gone(0, "b", 5),
        [],
        "for the life before, and known"
    );
    bench.tell(1, Input::Tick);
    assert_eq!(bench.beats.last().unwrap().from.incarnation.0, NEXT);
    assert_eq!(bench.edge.me().incarnation.0, NEXT);
    let last = Reply::DeclaredGone {
        through: Incarnation(u64::MAX),
    };
    assert_eq!(bench.answer(2, NEXT, last), [Effect::Malformed]);
}

#[test]
fn what_was_on_its_way_is_unknown_and_is_never_sent_again() {
    let mut bench = Bench::new();
    bench.publish(0, 1);
    let unknown = Effect::Answer((Ticket(1), Err(ErrorCode::UnknownOutcome)));
    assert_eq!(bench.declare_gone(0, "a", 5), [reborn(), unknown]);
    for at in (0..10_000).step_by(20) {
        let effects = bench.tell(at, Input::Tick);
        let sent = |(_, request): &(&str, &Request)| {
            matches!(request, Request::Publish(_) | Request::Skip(_))
        };
        assert!(!requests(effects).iter().any(sent), "at {at}: {effects:?}");
    }
    assert_eq!(bench.accept(5, 1), [], "too late");
    // The new life has a sequence of its own.
    let effects = bench.publish(0, 2);
    let [(_, Request::Publish(publish))] = requests(effects)[..] else {
        panic!("one publish: {effects:?}");
    };
    assert_eq!((publish.place.sequence, publish.place.low_mark), (1, 1));
    let accepted = Accepted {
        position: at(9),
        copies: 2,
    };
    let answer = Effect::Answer((Ticket(2), Ok(accepted)));
    assert_eq!(bench.accept(NEXT, 1), [answer]);
}

#[test]
fn every_channel_is_joined_anew_from_where_it_had_come_to() {
    let mut bench = Bench::new();
    bench.attach("c", 7);
    bench.attach("d", 3);
    bench.declare_gone(0, "a", 5);
    let effects = bench.tell(20, Input::Tick);
    let mut joins: Vec<(&str, u64)> = Vec::new();
    for (_, request) in requests(effects) {
        let Request::Join(join) = request else {
            panic!("only joins: {request:?}");
        };
        joins.push((join.key.channel.as_str(), delivered_up_to(join)));
    }
    joins.sort_unstable();
    assert_eq!(joins, [("c", 7), ("d", 3)]);
}

#[test]
fn nodes_count_anew_what_they_send_to_the_new_life() {
    let mut bench = Bench::new();
    bench.attach("c", 0);
    for offset in 1..=3 {
        let entry = bench.entry("c", FENCE, offset);
        assert_ne!(bench.batch("a", offset, &[entry]), []);
    }
    bench.declare_gone(0, "a", 5);
    let entry = bench.entry("c", FENCE, 4);
    let batch = |to| {
        Input::Message(Message::Batch(Batch {
            from: node("a"),
            to: Incarnation(to),
            first: 1,
            entries: vec![codec::encode_entry(&entry)],
        }))
    };
    assert_eq!(bench.tell(0, batch(5)), [], "to the life before");
    let effects = bench.tell(0, batch(NEXT));
    assert!(
        matches!(effects, [Effect::Step { .. }]),
        "number 1 is new, and no hole: {effects:?}"
    );
}
