//! What an edge says of members, and when.

use proto::message::{Enter, Greet, Request, Stated};
use proto::presence::{Member, User};

use super::*;
use crate::core::attachment::Place;
use crate::core::hub::ConnectionIndex;

fn connection(number: u64) -> ConnectionId {
    ConnectionId { gateway: 1, number }
}

fn enter(bench: &mut Bench, at: u64, number: u64) -> Vec<String> {
    let user = User {
        id: "u".into(),
        info: None,
    };
    let input = Input::Enter {
        place: Place {
            worker: W,
            index: ConnectionIndex(number as u32),
        },
        key: key("presence-a"),
        member: Member {
            connection: connection(number),
            user,
        },
        users_max: None,
        cursor: None,
    };
    said(bench.tell(at, input))
}

fn exit(bench: &mut Bench, at: u64, number: u64) -> Vec<String> {
    let input = Input::Exit {
        key: key("presence-a"),
        connection: connection(number),
        grace: None,
    };
    said(bench.tell(at, input))
}

/// What of the effects is about members: `+1@3` enters connection 1 under fence 3,
/// `-1@3` exits it, `all 3@3` has stated all to fence 3, `greet` with what is excepted.
fn said(effects: &[Effect]) -> Vec<String> {
    let requests = effects.iter().filter_map(|effect| match effect {
        Effect::Request { request, .. } => Some(request),
        _ => None,
    });
    let said = requests.filter_map(|request| match request {
        Request::Enter(Enter { place, member, .. }) => {
            Some(format!("+{}@{}", member.connection.number, place.fence.0))
        }
        Request::Exit(exit) => Some(format!(
            "-{}@{}",
            exit.connection.number, exit.place.fence.0
        )),
        Request::Stated(Stated { place, to }) => Some(format!("all {}@{}", to.0, place.fence.0)),
        Request::Greet(Greet { except }) => Some(format!("greet {}", except.len())),
        _ => None,
    });
    said.collect()
}

/// All nodes know of presence.
fn greeted() -> Bench {
    let mut bench = Bench::new();
    bench.beat(0, node("a"), 1);
    assert_eq!(said(bench.tell(20, Input::Tick)), ["greet 0"]);
    bench.reply(20, "a", Reply::Greeted { map_version: 1 });
    assert_eq!(said(bench.tell(40, Input::Tick)), [""; 0]);
    bench.attach("presence-a", 0);
    bench
}

#[test]
fn the_first_member_of_a_shard_is_said_to_be_all_and_the_next_ones_are_not() {
    let mut bench = greeted();
    assert_eq!(enter(&mut bench, 50, 1), ["+1@1", "all 1@1"]);
    assert_eq!(enter(&mut bench, 50, 2), ["+2@1"]);
    assert_eq!(exit(&mut bench, 60, 1), ["-1@1"]);
    assert_eq!(exit(&mut bench, 60, 1), [""; 0], "once");
}

/// One node may be of a version that would drop the whole message.
#[test]
fn nothing_is_said_of_members_before_all_nodes_know_of_presence() {
    let mut bench = Bench::new();
    bench.attach("presence-a", 0);
    bench.beat(0, node("a"), 1);
    bench.beat(0, node("b"), 1);
    let both = said(bench.tell(20, Input::Tick));
    assert_eq!(both, ["greet 0", "greet 0"]);
    bench.reply(20, "a", Reply::Greeted { map_version: 1 });
    assert_eq!(enter(&mut bench, 30, 1), [""; 0]);
    assert_eq!(enter(&mut bench, 30, 2), [""; 0]);
    assert_eq!(exit(&mut bench, 30, 2), [""; 0], "nobody was told of it");
    assert_eq!(said(bench.tell(270, Input::Tick)), ["greet 0"], "b again");
    bench.reply(280, "b", Reply::Greeted { map_version: 1 });
    assert_eq!(said(bench.tell(300, Input::Tick)), ["+1@1", "all 1@1"]);
}

/// What is on its way goes first, under its place, and then all that are there.
#[test]
fn a_new_owner_is_told_of_all_behind_what_was_unanswered() {
    let mut bench = greeted();
    enter(&mut bench, 50, 1);
    enter(&mut bench, 50, 2);
    exit(&mut bench, 60, 1);
    let update = map(7, "b", 7).since(0);
    let told = said(bench.tell(70, Input::Message(Message::Map(update))));
    assert_eq!(told, ["+1@7", "all 1@7", "+2@7", "-1@7", "+2@7", "all 7@7"]);
}

/// One message for any number of shards.
#[test]
fn a_new_owner_of_shards_without_members_is_greeted_until_it_answers() {
    let mut bench = greeted();
    bench.beat(50, node("b"), 1);
    bench.tell(60, Input::Tick);
    bench.reply(60, "b", Reply::Greeted { map_version: 1 });
    let update = map(7, "b", 7).since(0);
    let told = said(bench.tell(70, Input::Message(Message::Map(update))));
    assert_eq!(told, [""; 0]);
    assert_eq!(said(bench.tell(80, Input::Tick)), ["greet 0"]);
    // It answers what it was asked before.
    bench.reply(90, "b", Reply::Greeted { map_version: 1 });
    assert_eq!(said(bench.tell(400, Input::Tick)), ["greet 0"]);
    bench.reply(410, "b", Reply::Greeted { map_version: 7 });
    assert_eq!(said(bench.tell(800, Input::Tick)), [""; 0]);
}

#[test]
fn another_life_states_its_members_and_greets_for_the_rest() {
    let mut bench = greeted();
    enter(&mut bench, 50, 1);
    let through = me().incarnation;
    let told = said(bench.reply(60, "a", Reply::DeclaredGone { through }));
    assert_eq!(told, ["+1@1", "all 1@1"]);
    assert_eq!(said(bench.tell(80, Input::Tick)), ["greet 1"]);
}

#[test]
fn an_owner_that_asks_for_a_restatement_is_told_of_members_too() {
    let mut bench = greeted();
    enter(&mut bench, 50, 1);
    let shard = bench.edge.sharding.shard_of(&key("presence-a"));
    let fence = FENCE;
    let told = said(bench.reply(60, "a", Reply::Restate { shard, fence }));
    assert_eq!(told, ["+1@1", "all 1@1"]);
}

/// Its name is none to an earlier version, which would take nothing of the message.
#[test]
fn a_user_s_channel_is_asked_about_once_all_nodes_know_what_it_is() {
    let mut bench = Bench::new();
    bench.beat(0, node("a"), 1);
    let joins = |effects: &[Effect]| {
        let join = |effect: &&Effect| {
            let Effect::Request { request, .. } = effect else {
                return false;
            };
            matches!(request, Request::Join(_))
        };
        effects.iter().filter(join).count()
    };
    let follow = Input::Follow {
        worker: W,
        follow: FollowId(1),
        key: key("#server-to-user-a"),
        cursor: None,
    };
    assert_eq!(joins(bench.tell(10, follow)), 0);
    assert_eq!(joins(bench.tell(20, Input::Tick)), 0);
    bench.reply(20, "a", Reply::Greeted { map_version: 1 });
    assert_eq!(joins(bench.tell(40, Input::Tick)), 1);
    assert_eq!(joins(bench.tell(41, Input::Tick)), 0);
}

#[test]
fn what_a_backend_asks_waits_until_nodes_have_said_that_they_know_of_presence() {
    let ask = |bench: &mut Bench| {
        let input = Input::Query {
            ticket: Ticket(1),
            shard: None,
            what: What::Channel { key: key("c") },
        };
        assert_eq!(bench.tell(0, input), []);
    };
    let is_query = |effect: &Effect| {
        matches!(
            effect,
            Effect::Request {
                request: Request::Query(_),
                ..
            }
        )
    };
    let mut bench = Bench::new();
    ask(&mut bench);
    assert!(!bench.tell(120, Input::Tick).iter().any(is_query));
    bench.beat(130, node("a"), 1);
    bench.tell(140, Input::Tick);
    bench.reply(150, "a", Reply::Greeted { map_version: 1 });
    bench.tell(160, Input::Tick);
    assert!(bench.tell(240, Input::Tick).iter().any(is_query));

    let mut bench = Bench::new();
    ask(&mut bench);
    let mut answers = Vec::new();
    for at in (0..6_000).step_by(100) {
        let told = bench.tell(at, Input::Tick).iter();
        answers.extend(told.filter_map(|effect| match effect {
            Effect::Queried { result, .. } => Some(result.clone()),
            _ => None,
        }));
    }
    assert_eq!(answers, [Err(ErrorCode::Unavailable)], "not for ever");
}
