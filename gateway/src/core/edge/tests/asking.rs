//! Questions of a person who looks inside.

use proto::inspection::{Answer, Question};

use super::*;

fn channel() -> Question {
    Question::Channel { key: key("c") }
}

impl Bench {
    fn ask(&mut self, at: u64, ticket: u64, question: Question) -> &[Effect] {
        let ticket = Ticket(ticket);
        self.tell(at, Input::Ask { ticket, question })
    }

    fn inspected(&mut self, at: u64, from: &str, id: u64, answer: Answer) -> &[Effect] {
        self.reply(at, from, Reply::Inspected { id, answer })
    }
}

fn told(ticket: u64, answer: Answer) -> Effect {
    let ticket = Ticket(ticket);
    Effect::Told { ticket, answer }
}

fn is_unavailable(effects: &[Effect]) -> bool {
    matches!(
        effects,
        [Effect::Told {
            answer: Answer::Unavailable(_),
            ..
        }]
    )
}

#[test]
fn the_owner_is_asked_about_a_channel_and_the_one_that_it_names_once() {
    let mut bench = Bench::new();
    let question = channel();
    let request = Request::Inspect { id: 1, question };
    assert_eq!(requests(bench.ask(0, 1, channel())), [("a", &request)]);
    let elsewhere = || Answer::NotOwner { owner: node("b") };
    let effects = bench.inspected(10, "a", 1, elsewhere());
    assert_eq!(requests(effects), [("b", &request)]);
    assert!(is_unavailable(bench.inspected(20, "b", 1, elsewhere())));
    assert_eq!(bench.inspected(30, "b", 1, elsewhere()), [], "told already");
}

#[test]
fn any_node_that_was_heard_lately_is_asked_the_rest() {
    let mut bench = Bench::new();
    // Before the first beat: an owner in the map.
    let question = Question::Nodes;
    assert_eq!(
        requests(bench.ask(0, 1, Question::Nodes)),
        [("a", &Request::Inspect { id: 1, question })]
    );
    bench.beat(0, node("z"), 1);
    bench.beat(1_000, node("b"), 1);
    let effects = bench.ask(2_500, 2, Question::Nodes);
    let question = Question::Nodes;
    assert_eq!(
        requests(effects),
        [("b", &Request::Inspect { id: 2, question })]
    );
    let answer = || Answer::Nodes(vec![]);
    assert_eq!(
        bench.inspected(2_600, "b", 2, answer()),
        [told(2, answer())]
    );
    assert!(is_unavailable(bench.ask(9_000, 3, Question::Shards)));
}

#[test]
fn who_gets_no_answer_is_told_after_2_s() {
    let mut bench = Bench::new();
    bench.ask(0, 1, channel());
    assert_eq!(bench.tell(1_999, Input::Tick), []);
    assert!(is_unavailable(bench.tell(2_000, Input::Tick)));
    assert_eq!(
        bench.inspected(2_001, "a", 1, Answer::Nodes(vec![])),
        [],
        "too late"
    );
}

#[test]
fn open_questions_are_bounded() {
    let mut bench = Bench::new();
    for ticket in 0..64 {
        assert_eq!(requests(bench.ask(0, ticket, channel())).len(), 1);
    }
    assert!(is_unavailable(bench.ask(0, 64, channel())));
    bench.inspected(0, "a", 0, Answer::Nodes(vec![]));
    assert_eq!(requests(bench.ask(0, 65, channel())).len(), 1);
}
