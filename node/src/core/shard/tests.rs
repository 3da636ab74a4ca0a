use super::*;
use crate::core::idempotency;
use proto::id::Incarnation;
use proto::message::{
    Digest, Idempotency, Join, Joined, Leave, Publish, Query, RestateEnd, Sequenced, Told, What,
};
use proto::namespace::{HistoryLimits, Namespace, Standby};
use proto::position::{GapReason, Offset, Position};
use proto::time::UnixTime;

const SHARD: ShardId = ShardId(7);
const FENCE: Fence = Fence(3);

fn shard_with(history: HistoryLimits) -> Shard {
    let tenure = Tenure {
        shard: SHARD,
        fence: FENCE,
        owner: NodeRef {
            id: "n".parse().unwrap(),
            incarnation: Incarnation(1),
        },
        cluster: ClusterUuid(9),
    };
    let rule = Namespace {
        slow: Default::default(),
        pattern: "*".into(),
        app: None,
        history,
        standby: Standby::Prefer,
    };
    Shard::new(tenure, Arc::new(Namespaces::new(vec![rule])))
}

fn shard() -> Shard {
    shard_with(HistoryLimits::default())
}

fn gateway(incarnation: u64) -> GatewayRef {
    GatewayRef {
        id: "g".parse().unwrap(),
        incarnation: Incarnation(incarnation),
    }
}

fn key(channel: &str) -> ChannelKey {
    ChannelKey {
        app: "app".parse().unwrap(),
        channel: channel.parse().unwrap(),
    }
}

fn place(sequence: u64) -> Sequenced {
    Sequenced {
        shard: SHARD,
        fence: FENCE,
        sequence,
        low_mark: 1,
    }
}

fn publish(channel: &str, sequence: u64) -> Request {
    Request::Publish(Publish {
        place: place(sequence),
        key: key(channel),
        event: "e".into(),
        data: format!("{sequence}").into(),
        exclude: None,
        accepted_at: UnixTime(0),
        idempotency: None,
        by: None,
    })
}

fn join(channel: &str, version: u64, have: Option<Position>) -> Request {
    join_since(channel, version, have.map_or(Since::Now, Since::Delivered))
}

fn join_since(channel: &str, version: u64, since: Since) -> Request {
    Request::Join(Join {
        shard: SHARD,
        fence: FENCE,
        key: key(channel),
        count: 1,
        since,
        version,
        is_counted: false,
    })
}

fn leave(channel: &str, version: u64) -> Request {
    Request::Leave(Leave {
        shard: SHARD,
        fence: FENCE,
        key: key(channel),
        version,
        is_unanswered: false,
    })
}

fn ask(shard: &mut Shard, at: u64, from: GatewayRef, request: Request) -> Vec<Effect> {
    let mut effects = Vec::new();
    shard.handle(
        Timestamp(at),
        Input::Request { from, request },
        &mut effects,
    );
    effects
}

fn only_reply(effects: Vec<Effect>) -> Reply {
    match <[Effect; 1]>::try_from(effects) {
        Ok([Effect::Reply { reply, .. } | Effect::Acknowledge { reply, .. }]) => reply,
        other => panic!("one reply expected, got {other:?}"),
    }
}

fn joined(effects: Vec<Effect>) -> Joined {
    match only_reply(effects) {
        Reply::Joined {
            result: Ok(joined), ..
        } => joined,
        other => panic!("a join expected, got {other:?}"),
    }
}

fn accepted(effects: &[Effect]) -> Position {
    match effects.last() {
        Some(Effect::Acknowledge {
            reply:
                Reply::Published {
                    result: Ok(Published::Accepted { position, .. }),
                    ..
                },
            ..
        }) => *position,
        other => panic!("an acknowledgement expected, got {other:?}"),
    }
}

#[test]
fn a_publication_is_handed_to_the_links_before_it_is_acknowledged() {
    let mut shard = shard();
    ask(&mut shard, 0, gateway(1), join("c", 1, None));
    let effects = ask(&mut shard, 0, gateway(1), publish("c", 1));
    let [Effect::Deliver { to, entry }, Effect::Acknowledge { .. }] = &effects[..] else {
        panic!("deliver, then reply: {effects:?}");
    };
    assert_eq!(to.iter().collect::<Vec<_>>(), [&gateway(1)]);
    assert_eq!(
        (entry.shard, entry.fence, entry.publication.offset),
        (SHARD, FENCE, Offset(1))
    );
    assert_eq!(accepted(&effects).epoch, entry.epoch);
}

#[test]
fn nobody_is_told_of_a_channel_that_nobody_follows() {
    let mut shard = shard();
    let effects = ask(&mut shard, 0, gateway(1), publish("c", 1));
    assert!(matches!(&effects[0], Effect::Deliver { to, .. } if to.iter().next().is_none()));
}

#[test]
fn offsets_are_contiguous_per_channel() {
    let mut shard = shard();
    let channels = ["a", "b", "a", "a", "b"];
    let offsets: Vec<u64> = (1..)
        .zip(channels)
        .map(|(sequence, channel)| {
            accepted(&ask(&mut shard, 0, gateway(1), publish(channel, sequence)))
                .offset
                .0
        })
        .collect();
    assert_eq!(offsets, [1, 1, 2, 3, 2]);
}

#[test]
fn a_repeated_publish_is_answered_like_the_first_and_delivered_once() {
    let mut shard = shard();
    let first = ask(&mut shard, 0, gateway(1), publish("c", 1));
    let again = ask(&mut shard, 0, gateway(1), publish("c", 1));
    assert_eq!(again[..], first[1..]);
}

#[test]
fn a_skip_closes_its_place() {
    let mut shard = shard();
    let skipped = only_reply(ask(&mut shard, 0, gateway(1), Request::Skip(place(1))));
    assert_eq!(
        skipped,
        Reply::Published {
            shard: SHARD,
            sequence: 1,
            result: Ok(Published::Skipped)
        }
    );
    // The publish that was skipped comes after all: it stays skipped.
    let late = only_reply(ask(&mut shard, 0, gateway(1), publish("c", 1)));
    assert_eq!(late, skipped);
    assert_eq!(
        accepted(&ask(&mut shard, 0, gateway(1), publish("c", 2))).offset,
        Offset(1)
    );
}

#[test]
fn a_stale_fence_is_refused_with_the_right_one() {
    let mut shard = shard();
    let mut request = publish("c", 1);
    if let Request::Publish(publish) = &mut request {
        publish.place.fence = Fence(2);
    }
    let Reply::Published {
        result: Err(Refusal::NotOwner { owner, fence }),
        ..
    } = only_reply(ask(&mut shard, 0, gateway(1), request))
    else {
        panic!("refused");
    };
    assert_eq!((owner.id.as_str(), fence), ("n", FENCE));
    assert_eq!(shard.channels(), 0, "nothing was published");
}

#[test]
fn a_join_gets_what_was_missed_and_then_the_rest_by_the_link() {
    let mut shard = shard();
    let start = joined(ask(&mut shard, 0, gateway(1), join("c", 1, None)));
    assert_eq!(start.position.offset, Offset::ZERO);
    assert_eq!(start.missed, Missed::Publications(vec![]));
    for sequence in 1..=3 {
        ask(&mut shard, 0, gateway(1), publish("c", sequence));
    }
    let have = Position {
        offset: Offset(1),
        ..start.position
    };
    let again = joined(ask(&mut shard, 0, gateway(1), join("c", 2, Some(have))));
    let Missed::Publications(missed) = again.missed else {
        panic!("recovered")
    };
    assert_eq!(
        missed.iter().map(|p| p.offset.0).collect::<Vec<_>>(),
        [2, 3]
    );
    assert_eq!(again.position.offset, Offset(3));
}

/// The gap that a join is answered with: reason, earliest, latest.
fn gap(effects: Vec<Effect>) -> (GapReason, u64, u64) {
    match joined(effects).missed {
        Missed::Gap(gap) => (gap.reason, gap.earliest.0, gap.latest.offset.0),
        Missed::Publications(all) => panic!("a gap expected, got {all:?}"),
    }
}

fn missed(effects: Vec<Effect>) -> Vec<u64> {
    match joined(effects).missed {
        Missed::Publications(all) => all.iter().map(|p| p.offset.0).collect(),
        Missed::Gap(gap) => panic!("publications expected, got {gap:?}"),
    }
}

#[test]
fn what_cannot_be_given_is_a_gap_with_its_reason() {
    let mut shard = shard_with(HistoryLimits {
        publications: 2,
        ..HistoryLimits::default()
    });
    let start = joined(ask(&mut shard, 0, gateway(1), join("c", 1, None))).position;
    for sequence in 1..=5 {
        ask(&mut shard, 0, gateway(1), publish("c", sequence));
    }
    let mut reason = |version, cursor| {
        let join = join_since("c", version, Since::Cursor(cursor));
        gap(ask(&mut shard, 0, gateway(1), join))
    };
    assert_eq!(reason(2, start), (GapReason::Expired, 4, 5));
    let ahead = Position {
        offset: Offset(6),
        ..start
    };
    assert_eq!(reason(3, ahead), (GapReason::Ahead, 4, 5));
    let other = Position {
        epoch: Epoch(1),
        offset: Offset(5),
    };
    // Of this epoch it has seen nothing, and gets what there is.
    assert_eq!(reason(4, other), (GapReason::NewEpoch, 4, 3));
}

/// The repair log reaches back ten seconds, for gateways; clients are given
/// what the namespace keeps.
#[test]
fn a_gateway_is_given_what_left_the_history_for_ten_seconds_and_a_client_is_not() {
    let mut shard = shard_with(HistoryLimits {
        publications: 1,
        ..HistoryLimits::default()
    });
    let start = joined(ask(&mut shard, 0, gateway(1), join("c", 1, None))).position;
    for sequence in 1..=3 {
        ask(&mut shard, 0, gateway(1), publish("c", sequence));
    }
    let mut since = |at, version, since| {
        let join = join_since("c", version, since);
        ask(&mut shard, at, gateway(1), join)
    };
    let cursor = since(9_999, 2, Since::Cursor(start));
    assert_eq!(gap(cursor), (GapReason::Expired, 3, 3));
    let delivered = since(9_999, 3, Since::Delivered(start));
    assert_eq!(missed(delivered), [1, 2, 3]);
    shard.handle(Timestamp(10_000), Input::Tick, &mut Vec::new());
    let join = join_since("c", 4, Since::Delivered(start));
    let delivered = ask(&mut shard, 10_000, gateway(1), join);
    assert_eq!(gap(delivered), (GapReason::Expired, 3, 3));
}

#[test]
fn the_repair_log_reaches_back_less_far_when_it_is_full() {
    let mut shard = shard_with(HistoryLimits {
        publications: 0,
        ..HistoryLimits::default()
    });
    let start = joined(ask(&mut shard, 0, gateway(1), join("c", 1, None))).position;
    let large = 100 * 1_024;
    let published = 2 * REPAIR_BYTES_MAX / large;
    for sequence in 1..=published as u64 {
        let mut request = publish("c", sequence);
        if let Request::Publish(publish) = &mut request {
            publish.data = "x".repeat(large).into();
            publish.place.low_mark = sequence;
        }
        ask(&mut shard, 0, gateway(1), request);
    }
    assert!(shard.repair.bytes() <= REPAIR_BYTES_MAX);
    let last = |behind| Position {
        offset: Offset(published as u64 - behind),
        ..start
    };
    let mut since = |version, position| {
        let join = join_since("c", version, Since::Delivered(position));
        joined(ask(&mut shard, 0, gateway(1), join)).missed
    };
    assert!(matches!(since(2, start), Missed::Gap(_)));
    assert!(matches!(since(3, last(3)), Missed::Publications(all) if all.len() == 3));
}

#[test]
fn a_large_answer_comes_in_parts_that_the_gateway_asks_for() {
    let limits = HistoryLimits {
        publications: 10,
        bytes: 10_000_000,
        ..HistoryLimits::default()
    };
    let mut shard = shard_with(limits);
    let start = joined(ask(&mut shard, 0, gateway(1), join("c", 1, None))).position;
    for sequence in 1..=3 {
        let mut request = publish("c", sequence);
        if let Request::Publish(publish) = &mut request {
            publish.data = "x".repeat(300_000).into();
        }
        ask(&mut shard, 0, gateway(1), request);
    }
    let mut offsets = Vec::new();
    let mut have = start;
    for version in 2..=4 {
        let part = joined(ask(
            &mut shard,
            0,
            gateway(1),
            join("c", version, Some(have)),
        ));
        assert_eq!(
            part.position.offset,
            Offset(3),
            "the gateway sees that there is more"
        );
        let Missed::Publications(missed) = part.missed else {
            panic!("recovered")
        };
        have.offset = missed.last().expect("at least one").offset;
        offsets.extend(missed.iter().map(|p| p.offset.0));
    }
    assert_eq!(offsets, [1, 2, 3]);
}

#[test]
fn a_late_join_after_a_leave_is_not_answered() {
    let mut shard = shard();
    ask(&mut shard, 0, gateway(1), join("c", 1, None));
    let left = only_reply(ask(&mut shard, 0, gateway(1), leave("c", 2)));
    assert_eq!(
        left,
        Reply::Left {
            version: 2,
            result: Ok(())
        }
    );
    assert_eq!(ask(&mut shard, 0, gateway(1), join("c", 1, None)), []);
    assert_eq!(shard.interest(), 0);
}

#[test]
fn a_leave_that_wants_no_answer_gets_none() {
    let mut shard = shard();
    ask(&mut shard, 0, gateway(1), join("c", 1, None));
    let Request::Leave(mut silent) = leave("c", 2) else {
        panic!("a leave");
    };
    silent.is_unanswered = true;
    let silent = Request::Leave(silent);
    assert_eq!(ask(&mut shard, 0, gateway(1), silent), []);
    assert_eq!(shard.interest(), 0);
}

#[test]
fn a_leave_that_overtakes_its_join_wins() {
    let mut shard = shard();
    ask(&mut shard, 0, gateway(1), leave("c", 2));
    assert_eq!(ask(&mut shard, 0, gateway(1), join("c", 1, None)), []);
    assert_eq!(shard.interest(), 0);
}

#[test]
fn a_new_gateway_incarnation_voids_the_old_one_everywhere() {
    let mut shard = shard();
    ask(&mut shard, 0, gateway(1), join("a", 1, None));
    ask(&mut shard, 0, gateway(1), join("b", 2, None));
    ask(&mut shard, 0, gateway(1), publish("a", 1));
    ask(&mut shard, 0, gateway(2), join("a", 1, None));
    assert_eq!(shard.interest(), 1);
    let gone = only_reply(ask(&mut shard, 0, gateway(1), join("b", 3, None)));
    assert_eq!(
        gone,
        Reply::Gone {
            newer: Incarnation(2)
        }
    );
    // Its sequences start anew.
    assert_eq!(
        accepted(&ask(&mut shard, 0, gateway(2), publish("a", 1))).offset,
        Offset(2)
    );
}

fn short_history() -> Shard {
    shard_with(HistoryLimits {
        age: Duration::from_secs(10),
        ..HistoryLimits::default()
    })
}

fn tick(shard: &mut Shard, at: u64) {
    shard.handle(Timestamp(at), Input::Tick, &mut Vec::new());
}

/// A client of a quiet channel that comes back has missed nothing, or knows
/// that it has.
#[test]
fn an_idle_channel_goes_and_comes_back_where_it_stood() {
    let mut shard = short_history();
    let first = accepted(&ask(&mut shard, 0, gateway(1), publish("c", 1)));
    let second = accepted(&ask(&mut shard, 0, gateway(1), publish("c", 2)));
    tick(&mut shard, 9_999);
    assert_eq!(shard.channels(), 1);
    tick(&mut shard, 10_000);
    tick(&mut shard, 11_000);
    assert_eq!(shard.channels(), 0);
    let resume = join_since("c", 1, Since::Cursor(second));
    let back = joined(ask(&mut shard, 12_000, gateway(1), resume));
    assert_eq!(back.position, second);
    assert_eq!(back.missed, Missed::Publications(vec![]));
    let resume = join_since("c", 2, Since::Cursor(first));
    let late = ask(&mut shard, 12_000, gateway(1), resume);
    assert_eq!(gap(late), (GapReason::Expired, 3, 2));
    let next = accepted(&ask(&mut shard, 12_000, gateway(1), publish("c", 3)));
    assert_eq!((next.epoch, next.offset), (first.epoch, Offset(3)));
}

#[test]
fn channels_that_have_gone_keep_no_memory() {
    let mut shard = short_history();
    for number in 0..500 {
        let publish = publish(&format!("c{number}"), number + 1);
        ask(&mut shard, 0, gateway(1), publish);
    }
    assert!(shard.channels.capacity() >= 500);
    tick(&mut shard, 10_000);
    tick(&mut shard, 11_000);
    assert_eq!((shard.channels(), shard.channels.capacity()), (0, 0));
}

#[test]
fn a_channel_that_was_forgotten_comes_back_under_a_new_epoch_and_says_so() {
    let mut shard = short_history();
    let before = accepted(&ask(&mut shard, 0, gateway(1), publish("c", 1)));
    tick(&mut shard, 10_000);
    tick(&mut shard, 11_000);
    assert_eq!(shard.channels(), 0);
    let next_day = 11_000 + 24 * 60 * 60 * 1_000;
    tick(&mut shard, next_day);
    let after = accepted(&ask(&mut shard, next_day, gateway(1), publish("c", 2)));
    assert_ne!(before.epoch, after.epoch);
    assert_eq!(after.offset, Offset(1));
    let resume = join_since("c", 1, Since::Cursor(before));
    let late = ask(&mut shard, next_day, gateway(1), resume);
    assert_eq!(gap(late), (GapReason::Forgotten, 1, 0));
}

#[test]
fn a_followed_channel_stays_however_quiet_it_is() {
    let mut shard = shard_with(HistoryLimits {
        age: Duration::from_secs(10),
        ..HistoryLimits::default()
    });
    ask(&mut shard, 0, gateway(1), join("c", 1, None));
    ask(&mut shard, 0, gateway(1), publish("c", 1));
    shard.handle(Timestamp(1_000_000), Input::Tick, &mut Vec::new());
    assert_eq!(shard.channels(), 1);
    ask(&mut shard, 1_000_000, gateway(1), leave("c", 2));
    shard.handle(Timestamp(1_029_000), Input::Tick, &mut Vec::new());
    assert_eq!(shard.channels(), 1, "the tombstone stays its time");
    shard.handle(Timestamp(1_040_000), Input::Tick, &mut Vec::new());
    assert_eq!(shard.channels(), 0);
}

fn restate_end(fence: Fence, since: u64) -> Request {
    Request::RestateEnd(RestateEnd {
        shard: SHARD,
        fence,
        since,
    })
}

fn digest(channels: &[&str]) -> InterestDigest {
    let mut digest = InterestDigest::default();
    for channel in channels {
        digest.insert(&key(channel));
    }
    digest
}

fn beat(shard: &mut Shard, incarnation: u64, channels: &[&str]) -> Vec<Effect> {
    let mut effects = Vec::new();
    let input = Input::Beat {
        from: gateway(incarnation),
        digest: digest(channels),
    };
    shard.handle(Timestamp(0), input, &mut effects);
    effects
}

fn restate() -> Vec<Effect> {
    let reply = Reply::Restate {
        shard: SHARD,
        fence: FENCE,
    };
    let to = gateway(1);
    vec![Effect::Reply { to, reply }]
}

#[test]
fn a_join_that_was_lost_is_found_by_two_beats_and_healed_by_a_restatement() {
    let mut shard = shard();
    ask(&mut shard, 0, gateway(1), join("a", 1, None));
    // The join of b, version 2, was lost, and so was the gateway's memory of it.
    assert_eq!(beat(&mut shard, 1, &["a", "b"]), []);
    assert_eq!(beat(&mut shard, 1, &["a", "b"]), restate());
    assert_eq!(beat(&mut shard, 1, &["a", "b"]), restate());
    assert_eq!(
        ask(&mut shard, 0, gateway(1), join("a", 3, None)).len(),
        1,
        "not yet healed"
    );
    let effects = ask(&mut shard, 0, gateway(1), join("b", 4, None));
    assert_eq!(effects[0], Effect::Healed);
    assert_eq!(
        ask(&mut shard, 0, gateway(1), restate_end(FENCE, 3)),
        [],
        "no answer"
    );
    assert_eq!(beat(&mut shard, 1, &["a", "b"]), []);
    assert_eq!(shard.interest(), 2);
}

#[test]
fn a_leave_that_was_lost_is_found_by_two_beats_and_healed_by_a_restatement() {
    let mut shard = shard();
    ask(&mut shard, 0, gateway(1), join("a", 1, None));
    ask(&mut shard, 0, gateway(1), join("b", 2, None));
    assert_eq!(beat(&mut shard, 1, &["a"]), []);
    assert_eq!(beat(&mut shard, 1, &["a"]), restate());
    ask(&mut shard, 0, gateway(1), join("a", 4, None));
    assert_eq!(
        ask(&mut shard, 0, gateway(1), restate_end(FENCE, 4)),
        [Effect::Healed]
    );
    assert_eq!(shard.interest(), 1);
    let effects = ask(&mut shard, 0, gateway(1), publish("b", 1));
    assert!(matches!(&effects[0], Effect::Deliver { to, .. } if to.iter().next().is_none()));
}

#[test]
fn a_restatement_is_not_undone_by_what_it_overtook() {
    let mut shard = shard();
    ask(&mut shard, 0, gateway(1), join("a", 10, None));
    ask(&mut shard, 0, gateway(1), restate_end(FENCE, 10));
    // Sent before the restatement, by another way: neither follows nor leaves.
    assert_eq!(ask(&mut shard, 0, gateway(1), join("b", 9, None)), []);
    assert_eq!(ask(&mut shard, 0, gateway(1), join("a", 8, None)), []);
    let left = only_reply(ask(&mut shard, 0, gateway(1), leave("a", 9)));
    assert_eq!(
        left,
        Reply::Left {
            version: 9,
            result: Ok(())
        },
        "the gateway need not repeat it"
    );
    assert_eq!(beat(&mut shard, 1, &["a"]), []);
    assert_eq!((shard.interest(), shard.channels()), (1, 1));
    // An older end of a restatement lowers nothing.
    ask(&mut shard, 0, gateway(1), restate_end(FENCE, 5));
    assert_eq!(ask(&mut shard, 0, gateway(1), join("b", 9, None)), []);
    // And what comes after it counts.
    joined(ask(&mut shard, 0, gateway(1), join("b", 11, None)));
    assert_eq!(shard.interest(), 2);
    // Another life counts its versions anew.
    joined(ask(&mut shard, 0, gateway(2), join("b", 1, None)));
    assert_eq!(shard.interest(), 1);
}

#[test]
fn a_restatement_that_was_meant_for_another_owner_changes_nothing() {
    let mut shard = shard();
    ask(&mut shard, 0, gateway(1), join("a", 1, None));
    for fence in [Fence(2), Fence(4)] {
        assert_eq!(ask(&mut shard, 0, gateway(1), restate_end(fence, 9)), []);
    }
    assert_eq!(shard.interest(), 1);
    joined(ask(&mut shard, 0, gateway(1), join("b", 2, None)));
}

#[test]
fn a_restatement_concerns_its_gateway_alone() {
    let mut shard = shard();
    let other = GatewayRef {
        id: "other".parse().unwrap(),
        incarnation: Incarnation(1),
    };
    ask(&mut shard, 0, other.clone(), join("a", 1, None));
    ask(&mut shard, 0, gateway(1), join("a", 1, None));
    ask(&mut shard, 0, gateway(1), restate_end(FENCE, 9));
    let effects = ask(&mut shard, 0, gateway(1), publish("a", 1));
    let Effect::Deliver { to, .. } = &effects[0] else {
        panic!("delivered")
    };
    assert_eq!(to.iter().collect::<Vec<_>>(), [&other]);
}

#[test]
fn a_beat_of_a_new_life_voids_the_old_one_and_one_of_an_old_life_says_nothing() {
    let mut shard = shard();
    ask(&mut shard, 0, gateway(1), join("a", 1, None));
    assert_eq!(beat(&mut shard, 2, &[]), []);
    assert_eq!(shard.interest(), 0);
    for _ in 0..3 {
        assert_eq!(beat(&mut shard, 1, &["a"]), []);
    }
    assert_eq!(beat(&mut shard, 2, &[]), []);
}

/// There may be thousands of gateways, and each beats about each shard.
#[test]
fn a_gateway_that_wants_nothing_here_leaves_no_trace() {
    let mut shard = shard();
    shard.handle(Timestamp(0), Input::Met(gateway(1)), &mut Vec::new());
    beat(&mut shard, 1, &[]);
    assert!(shard.gateways.is_empty());
}

#[test]
fn channels_that_nobody_wants_any_more_go_however_that_came_about() {
    let tick = |shard: &mut Shard| shard.handle(Timestamp(1_000), Input::Tick, &mut Vec::new());
    let ends: [fn(&mut Shard); 4] = [
        |shard| drop(ask(shard, 0, gateway(1), restate_end(FENCE, 9))),
        |shard| drop(ask(shard, 0, gateway(2), Request::Skip(place(1)))),
        |shard| shard.handle(Timestamp(0), Input::Met(gateway(2)), &mut Vec::new()),
        |shard| shard.handle(Timestamp(0), Input::Forget(gateway(1)), &mut Vec::new()),
    ];
    for end in ends {
        let mut shard = shard();
        ask(&mut shard, 0, gateway(1), join("a", 1, None));
        tick(&mut shard);
        assert_eq!(shard.channels(), 1);
        end(&mut shard);
        tick(&mut shard);
        assert_eq!((shard.channels(), shard.interest()), (0, 0));
    }
}

const FULL_KEYS: u128 = idempotency::KEYS_MAX as u128;

/// From a gateway of this number, with a key and a body.
fn keyed(
    shard: &mut Shard,
    at: u64,
    gateway: u64,
    sequence: u64,
    key: u128,
    body: u128,
) -> Vec<Effect> {
    let mut request = publish("c", sequence);
    if let Request::Publish(publish) = &mut request {
        publish.place.low_mark = sequence;
        publish.idempotency = Some(Idempotency {
            key: Digest(key),
            body: Digest(body),
        });
    }
    let from = GatewayRef {
        id: format!("g{gateway}").parse().unwrap(),
        incarnation: Incarnation(1),
    };
    ask(shard, at, from, request)
}

fn refusal(effects: &[Effect]) -> &Refusal {
    match effects.last() {
        Some(Effect::Reply {
            reply:
                Reply::Published {
                    result: Err(refusal),
                    ..
                },
            ..
        }) => refusal,
        other => panic!("a refusal expected, got {other:?}"),
    }
}

#[test]
fn a_publish_with_a_known_key_gets_the_first_result_through_whichever_gateway() {
    let mut shard = shard();
    let first = accepted(&keyed(&mut shard, 0, 1, 1, 7, 1));
    for (gateway, sequence) in [(1, 2), (2, 1)] {
        let again = keyed(&mut shard, 1, gateway, sequence, 7, 1);
        assert_eq!(again[0], Effect::Repeated);
        assert_eq!((again.len(), accepted(&again)), (2, first), "not delivered");
    }
    let other = keyed(&mut shard, 1, 2, 2, 8, 1);
    assert_eq!(accepted(&other).offset, Offset(2), "another key is another");
}

#[test]
fn a_key_with_another_body_is_refused_and_its_place_closed() {
    let mut shard = shard();
    keyed(&mut shard, 0, 1, 1, 7, 1);
    for _ in 0..2 {
        let refused = keyed(&mut shard, 0, 1, 2, 7, 2);
        assert_eq!(*refusal(&refused), Refusal::IdempotencyMismatch);
    }
    assert_eq!(
        accepted(&keyed(&mut shard, 0, 1, 3, 9, 2)).offset,
        Offset(2)
    );
}

/// The sequence comes first: a publish that was sent again is what it was, even
/// when its key has run out meanwhile.
#[test]
fn a_resend_needs_no_key() {
    let mut shard = shard();
    let first = keyed(&mut shard, 0, 1, 1, 7, 1);
    let later = 10 * 60 * 1_000;
    shard.handle(Timestamp(later), Input::Tick, &mut Vec::new());
    assert_eq!(shard.idempotency_keys(), 0);
    let again = keyed(&mut shard, later, 1, 1, 7, 1);
    assert_eq!(again[..], first[1..]);
}

#[test]
fn what_was_refused_may_be_tried_again_with_its_key() {
    let mut shard = shard();
    for number in 0..CHANNELS_MAX {
        shard.channel(&key(&format!("c{number}"))).unwrap();
    }
    let refused = keyed(&mut shard, 0, 1, 1, 7, 1);
    assert_eq!(*refusal(&refused), Refusal::Overloaded);
    let freed = shard.channels.remove(&key("c0"));
    assert!(freed.is_some());
    assert_eq!(
        accepted(&keyed(&mut shard, 0, 1, 2, 7, 1)).offset,
        Offset(1)
    );
}

#[test]
fn a_full_table_refuses_keys_and_nothing_else() {
    let mut shard = shard();
    let position = Position {
        epoch: Epoch(1),
        offset: Offset(1),
    };
    for key in 0..FULL_KEYS {
        let known = Idempotency {
            key: Digest(key),
            body: Digest(0),
        };
        let first = idempotency::Publication {
            position,
            is_alone: false,
        };
        shard.keys.remember(Timestamp(0), &known, first);
    }
    let refused = keyed(&mut shard, 0, 1, 1, FULL_KEYS, 0);
    assert_eq!(refused[0], Effect::KeyRefused { full: true });
    assert_eq!(*refusal(&refused), Refusal::IdempotencyFull);
    assert_eq!(
        accepted(&keyed(&mut shard, 0, 1, 2, 3, 0)),
        position,
        "known"
    );
    let unkeyed = ask(&mut shard, 0, gateway(1), publish("c", 1));
    assert_eq!(accepted(&unkeyed).offset, Offset(1));
    // The refusal was the place's result; a new try comes in a new place.
    let later = 120_000;
    assert_eq!(
        accepted(&keyed(&mut shard, later, 1, 3, FULL_KEYS, 0)).offset,
        Offset(2)
    );
}

#[test]
fn a_skip_that_meets_a_performed_publish_gets_its_result() {
    let mut shard = shard();
    let first = ask(&mut shard, 0, gateway(1), publish("c", 1));
    let skipped = ask(&mut shard, 0, gateway(1), Request::Skip(place(1)));
    assert_eq!(skipped[..], first[1..]);
}

#[test]
fn a_gateway_that_is_unknown_here_begins_at_its_low_mark() {
    let mut shard = shard();
    let mut sixth = publish("c", 6);
    if let Request::Publish(publish) = &mut sixth {
        publish.place.low_mark = 5;
    }
    let hole = ask(&mut shard, 0, gateway(1), sixth.clone());
    assert_eq!(*refusal(&hole), Refusal::OutOfSequence { expected: 5 });
    let fifth = Request::Skip(Sequenced {
        low_mark: 5,
        ..place(5)
    });
    ask(&mut shard, 0, gateway(1), fifth);
    assert_eq!(
        accepted(&ask(&mut shard, 0, gateway(1), sixth)).offset,
        Offset(1)
    );
}

/// What a gateway had in flight may wait at the bus for longer than we remember
/// a gateway that is silent.
#[test]
fn a_gateway_that_was_forgotten_cannot_publish_the_same_again() {
    let mut shard = shard();
    let first = ask(&mut shard, 0, gateway(1), publish("c", 1));
    shard.handle(
        Timestamp(60_000),
        Input::Forget(gateway(1)),
        &mut Vec::new(),
    );
    let again = ask(&mut shard, 60_000, gateway(1), publish("c", 1));
    assert_eq!(*refusal(&again), Refusal::Forgotten);
    let next = accepted(&ask(&mut shard, 60_000, gateway(1), publish("c", 2)));
    assert_eq!(
        (next.epoch, next.offset),
        (accepted(&first).epoch, Offset(2))
    );
    // Another life counts from one.
    shard.handle(
        Timestamp(60_000),
        Input::Forget(gateway(1)),
        &mut Vec::new(),
    );
    let other = ask(&mut shard, 60_000, gateway(2), publish("c", 1));
    assert_eq!(accepted(&other).offset, Offset(3));
}

/// The last publication of a backend outlives the history, goes where the channel goes,
/// and ends after half an hour; what clients publish takes nobody's place.
#[test]
fn a_cache_channel_keeps_its_last_publication_for_half_an_hour() {
    let mut owner = shard();
    let cached = |shard: &mut Shard, at: u64, version: u64| {
        let joined = joined(ask(shard, at, gateway(1), join("cache-x", version, None)));
        ask(shard, at, gateway(1), leave("cache-x", version + 1));
        let cached = joined.cached?;
        Some((cached.publication.offset.0, cached.age_ms))
    };
    assert_eq!(cached(&mut owner, 0, 1), None);
    let mut by_client = publish("cache-x", 3);
    if let Request::Publish(publish) = &mut by_client {
        publish.event = "client-e".into();
    }
    ask(&mut owner, 0, gateway(1), publish("cache-x", 1));
    ask(&mut owner, 0, gateway(1), publish("cache-x", 2));
    ask(&mut owner, 0, gateway(1), by_client);
    assert_eq!(cached(&mut owner, 1_000, 3), Some((2, 1_000)));
    ask(&mut owner, 1_000, gateway(1), publish("other", 4));
    let other = joined(ask(&mut owner, 1_000, gateway(1), join("other", 5, None)));
    assert_eq!(other.cached, None);

    let (half, over) = (900_000, 1_800_000);
    owner.handle(Timestamp(half), Input::Tick, &mut Vec::new());
    assert_eq!(owner.describe(&key("cache-x")).unwrap().kept, 0);
    let mut next = shard();
    for record in owner.checkpoint(Timestamp(half)) {
        next.replay(Timestamp(half), record);
    }
    for shard in [&mut owner, &mut next] {
        assert_eq!(cached(shard, over - 1, 7), Some((2, over - 1)));
        shard.handle(Timestamp(over), Input::Tick, &mut Vec::new());
        assert_eq!(cached(shard, over, 9), None);
    }
}

#[test]
fn occupied_channels_are_told_by_name_page_by_page() {
    let mut owner = shard();
    let names = |shard: &mut Shard, prefix: &str, after: Option<&str>| {
        let query = Request::Query(Query {
            id: 1,
            shard: SHARD,
            fence: FENCE,
            what: What::Channels {
                app: key("c").app,
                prefix: prefix.into(),
                after: after.map(|after| after.parse().unwrap()),
            },
        });
        match only_reply(ask(shard, 0, gateway(1), query)) {
            Reply::Queried {
                result: Ok(Told::Channels(page)),
                ..
            } => {
                let names = page.channels.into_iter().map(|(name, _)| name.to_string());
                (names.collect::<Vec<_>>(), page.more)
            }
            other => panic!("a page expected, got {other:?}"),
        }
    };
    ask(&mut owner, 0, gateway(1), publish("a-nobody", 1));
    for (version, name) in (1..).zip(["b-2", "a-1", "b-1"]) {
        ask(&mut owner, 0, gateway(1), join(name, version, None));
    }
    let told = |names: &[&str], more| (names.iter().map(|it| (*it).into()).collect(), more);
    assert_eq!(
        names(&mut owner, "", None),
        told(&["a-1", "b-1", "b-2"], false)
    );
    assert_eq!(names(&mut owner, "b-", None), told(&["b-1", "b-2"], false));
    assert_eq!(names(&mut owner, "", Some("b-1")), told(&["b-2"], false));
    for number in 0..1_500 {
        let name = format!("many-{number:04}");
        ask(&mut owner, 0, gateway(1), join(&name, 10 + number, None));
    }
    let (first, more) = names(&mut owner, "many-", None);
    assert_eq!((first.len(), more), (1_000, true));
    let (rest, more) = names(&mut owner, "many-", first.last().map(String::as_str));
    assert_eq!((rest.len(), more), (500, false));
    assert_eq!(rest[0], "many-1000");
}
