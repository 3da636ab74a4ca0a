//! Channels that are not replicated.

use super::*;

/// Publishes at the next owner, under fence 9. Its answer, and whether it hands
/// something to the links.
fn publish_at(
    next: &mut Shard,
    two: &Two,
    (sequence, channel): (u64, u8),
    idempotency: Option<Idempotency>,
) -> (Reply, bool) {
    let place = two.place(9, sequence);
    let request = publish(place, key(channel), "again", idempotency);
    let from = gateway();
    let mut effects = Vec::new();
    next.handle(two.now, Input::Request { from, request }, &mut effects);
    let delivers = |effect: &Effect| matches!(effect, Effect::Deliver { .. });
    let is_delivered = effects.iter().any(delivers);
    let reply = effects.into_iter().find_map(|effect| match effect {
        Effect::Reply { reply, .. } | Effect::Acknowledge { reply, .. } => Some(reply),
        _ => None,
    });
    (reply.expect("it is answered"), is_delivered)
}

const KEYED: Option<Idempotency> = Some(Idempotency {
    key: Digest(7),
    body: Digest(8),
});

fn position(reply: &Reply) -> Position {
    match reply {
        Reply::Published {
            result: Ok(Published::Accepted { position, .. }),
            ..
        } => *position,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_owner_alone_is_to_have_waits_for_nobody_and_is_gone_with_it() {
    let mut two = Two::new();
    two.recruit();
    two.settle();
    two.publish(ALONE, KEYED);
    two.publish(ALONE, None);
    let replies = two.replies();
    assert_eq!(copies(&replies), [1, 1], "at once, and in one process");
    two.settle();
    assert!(two.owner.describe(&key(ALONE)).unwrap().is_alone);

    let mut next = two.promote();
    assert_eq!(next.describe(&key(ALONE)), None);
    // What was done is not done again in its place, and nobody says that it is
    // there. With its key it may be asked for again.
    let (again, is_delivered) = publish_at(&mut next, &two, (1, ALONE), KEYED);
    assert_eq!(
        (refusals(vec![again]), is_delivered),
        (vec![Refusal::Forgotten], false)
    );
    let (again, is_delivered) = publish_at(&mut next, &two, (3, ALONE), KEYED);
    assert_ne!(position(&again).epoch, position(&replies[0]).epoch);
    assert!(is_delivered);
    let (repeated, is_delivered) = publish_at(&mut next, &two, (4, ALONE), KEYED);
    assert_eq!(
        (position(&repeated), is_delivered),
        (position(&again), false)
    );
    // And whoever follows the channel is told that it begins anew.
    let join = Request::Join(Join {
        shard: SHARD,
        fence: Fence(9),
        key: key(ALONE),
        count: 1,
        since: Since::Delivered(position(&replies[1])),
        version: 1,
        is_counted: false,
    });
    let mut effects = Vec::new();
    let from = gateway();
    let request = Input::Request {
        from,
        request: join,
    };
    next.handle(two.now, request, &mut effects);
    let [
        Effect::Reply {
            reply: Reply::Joined {
                result: Ok(joined), ..
            },
            ..
        },
    ] = &effects[..]
    else {
        panic!("{effects:?}");
    };
    assert_ne!(joined.position.epoch, position(&replies[1]).epoch);
    let gap =
        |missed: &Missed| matches!(missed, Missed::Gap(gap) if gap.reason == GapReason::NewEpoch);
    assert!(gap(&joined.missed), "{joined:?}");
}

/// Else the gateway would hear of the second, and have to send the first again
/// to an owner that waits for the second in between.
#[test]
fn what_waits_for_nobody_waits_for_what_was_before_it() {
    let mut two = Two::new();
    two.recruit();
    two.settle();
    two.publish(1, None);
    two.publish(ALONE, None);
    two.publish(ALONE, None);
    assert_eq!(two.performed, []);
    two.carry();
    two.carry_back();
    assert_eq!(copies(&two.replies()), [2, 1, 1]);
}

#[test]
fn a_channel_begins_anew_when_its_namespace_says_something_else_of_copies() {
    for with_state in [true, false] {
        let mut two = Two::new();
        two.publish(1, None);
        two.publish(ALONE, None);
        if !with_state {
            // Only where they stood is known.
            two.pass(400_000);
            two.tell(Input::Tick);
            two.pass(2_000);
            two.tell(Input::Tick);
            assert_eq!(two.owner.channels(), 0);
        }
        let before = two.replies();
        // It is given back with the settings changed: each channel has those of
        // the other.
        let rule = |channel: &str, standby| Namespace {
            slow: Default::default(),
            pattern: channel.into(),
            app: None,
            history: HistoryLimits::default(),
            standby,
        };
        let rules = vec![
            rule(&format!("c{ALONE}"), Standby::Prefer),
            rule("c*", Standby::None),
        ];
        let mut next = Shard::new(
            Tenure {
                fence: Fence(9),
                ..two.owner.tenure.clone()
            },
            Arc::new(Namespaces::new(rules)),
        );
        let mut standby = Shard::new(two.owner.tenure.clone(), namespaces());
        for record in two.owner.checkpoint(two.now) {
            next.replay(two.now, record.clone());
            standby.replay(two.now, record);
        }
        let tenure = next.tenure.clone();
        let stays = Held {
            node: node("b"),
            fence: Fence(1),
            fill: 1,
            number: 1,
        };
        next.succeed(two.now, tenure, Some(stays));
        for (sequence, channel, known) in [(3, 1, 0), (4, ALONE, 1)] {
            publish_at(&mut next, &two, (sequence, channel), None);
            let now = next.channels[&key(channel)].position();
            assert_ne!(now.epoch, position(&before[known]).epoch);
            assert_eq!(now.offset, Offset(1));
        }
        // Nor has a standby that stays the old epochs.
        let mut effects = Vec::new();
        next.replication.replicate((SHARD, Fence(9)), &mut effects);
        for effect in effects {
            if let Effect::Replicate { part, .. } = effect {
                for record in part.records {
                    standby.replay(two.now, Arc::unwrap_or_clone(record));
                }
            }
        }
        assert_eq!(standby.describe(&key(1)), None);
        assert_eq!(standby.tombstones.lift(&key(1)), None);
        let now = next.channels[&key(ALONE)].position();
        let known = standby.channels[&key(ALONE)].position();
        assert_eq!(known, now);
    }
}

#[test]
fn a_move_takes_along_where_channels_stand_and_what_gateways_may_have_lost() {
    let mut two = Two::new();
    two.publish(ALONE, KEYED);
    two.pass(8_000);
    two.publish(ALONE, None);
    two.pass(4_000);
    two.tell(Input::Tick);
    let before = two.owner.describe(&key(ALONE)).unwrap();
    assert_eq!((before.position.offset, before.kept), (Offset(2), 2));
    let (now, tenure) = (two.now, two.owner.tenure.clone());
    let alone = two.owner.alone(now);
    let [Record::Channel(piece)] = &alone[..] else {
        panic!("{alone:?}");
    };
    assert_eq!(piece.past.len(), 1, "the first is older than ten seconds");
    let mut next = Shard::new(tenure, namespaces());
    for record in alone {
        next.replay(now, record);
    }
    let after = next.describe(&key(ALONE)).unwrap();
    assert_eq!((after.position, after.kept), (before.position, 1));
    let at = |offset| {
        Since::Delivered(Position {
            offset: Offset(offset),
            ..before.position
        })
    };
    let given = |offset| match next.since(&key(ALONE), at(offset)).unwrap().1 {
        Missed::Publications(all) => Some(all.len()),
        Missed::Gap(_) => None,
    };
    assert_eq!((given(0), given(1), given(2)), (None, Some(1), Some(0)));
}
