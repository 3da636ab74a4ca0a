use proptest::prelude::*;
use proto::position::GapReason;
use proto::shard::Fence;
use proto::time::UnixTime;

use super::*;

const W: WorkerId = WorkerId(3);
const EPOCH: Epoch = Epoch(7);
const NOW: Timestamp = Timestamp(5_000_000);

fn publication(offset: u64) -> Arc<Publication> {
    Arc::new(Publication {
        offset: Offset(offset),
        event: "e".into(),
        data: "d".into(),
        exclude: None,
        accepted_at: UnixTime(0),
        mark: None,
    })
}

fn at(offset: u64) -> Position {
    Position {
        epoch: EPOCH,
        offset: Offset(offset),
    }
}

fn joined(head: u64, missed: std::ops::RangeInclusive<u64>) -> Joined {
    Joined {
        fence: Fence(1),
        position: at(head),
        missed: Missed::Publications(missed.map(publication).collect()),
        cached: None,
    }
}

#[expect(clippy::reversed_empty_ranges, reason = "nothing")]
const NOTHING: std::ops::RangeInclusive<u64> = 1..=0;

/// Attached at `head`, followed by one worker.
fn attached(head: u64) -> Attachment {
    let mut attachment = Attachment::default();
    let mut steps = Vec::new();
    assert_eq!(
        attachment.follow(W, FollowId(1), None, &mut steps),
        Ask::Join
    );
    attachment.set_asked(1);
    assert_eq!(
        attachment.joined(NOW, joined(head, NOTHING), &mut steps),
        Ask::No
    );
    assert_eq!(
        steps,
        [Step::Attached {
            worker: W,
            follow: FollowId(1),
            position: at(head),
            kept: None
        }]
    );
    attachment
}

fn receive(attachment: &mut Attachment, offset: u64) -> (Vec<u64>, Ask) {
    let mut steps = Vec::new();
    let ask = attachment.receive(NOW, EPOCH, publication(offset), &mut steps);
    (delivered(&steps), ask)
}

fn delivered(steps: &[Step]) -> Vec<u64> {
    steps
        .iter()
        .filter_map(|step| match step {
            Step::Deliver { publication, .. } => Some(publication.offset.0),
            _ => None,
        })
        .collect()
}

#[test]
fn the_next_is_delivered_and_what_was_here_is_not() {
    let mut attachment = attached(5);
    assert_eq!(receive(&mut attachment, 5), (vec![], Ask::No));
    assert_eq!(receive(&mut attachment, 6), (vec![6], Ask::No));
    assert_eq!(receive(&mut attachment, 6), (vec![], Ask::No));
}

#[test]
fn one_that_is_ahead_waits_and_the_owner_is_asked_once() {
    let mut attachment = attached(5);
    assert_eq!(receive(&mut attachment, 8), (vec![], Ask::Join));
    attachment.set_asked(2);
    assert_eq!(receive(&mut attachment, 9), (vec![], Ask::No));
    let mut steps = Vec::new();
    assert_eq!(
        attachment.joined(NOW, joined(8, 6..=8), &mut steps),
        Ask::No
    );
    assert_eq!(delivered(&steps), [6, 7, 8, 9]);
}

#[test]
fn what_overtakes_the_first_answer_is_delivered_after_it() {
    let mut attachment = Attachment::default();
    let mut steps = Vec::new();
    let _ = attachment.follow(W, FollowId(1), None, &mut steps);
    attachment.set_asked(1);
    assert_eq!(receive(&mut attachment, 6), (vec![], Ask::No));
    assert_eq!(receive(&mut attachment, 5), (vec![], Ask::No));
    let _ = attachment.joined(NOW, joined(5, NOTHING), &mut steps);
    assert_eq!(attachment.position(), Some(at(6)));
    // 6 went by before the worker was told: it is attached after it.
    steps.retain(|step| !matches!(step, Step::Kept { .. }));
    assert_eq!(
        steps,
        [Step::Attached {
            worker: W,
            follow: FollowId(1),
            position: at(6),
            kept: None
        }]
    );
}

#[test]
fn an_answer_that_ends_before_the_head_is_asked_for_the_rest() {
    let mut attachment = attached(0);
    let _ = attachment.detach();
    attachment.set_asked(2);
    let mut steps = Vec::new();
    assert_eq!(
        attachment.joined(NOW, joined(9, 1..=4), &mut steps),
        Ask::Join
    );
    assert_eq!(delivered(&steps), [1, 2, 3, 4]);
    attachment.set_asked(3);
    steps.clear();
    assert_eq!(
        attachment.joined(NOW, joined(9, 5..=9), &mut steps),
        Ask::No
    );
    assert_eq!(delivered(&steps), [5, 6, 7, 8, 9]);
}

#[test]
fn a_new_epoch_is_a_gap_and_then_goes_on() {
    let mut attachment = attached(5);
    let other = Epoch(8);
    let mut steps = Vec::new();
    assert_eq!(
        attachment.receive(NOW, other, publication(2), &mut steps),
        Ask::Join
    );
    attachment.set_asked(2);
    let latest = Position {
        epoch: other,
        offset: Offset(1),
    };
    let gap = Gap {
        reason: GapReason::NewEpoch,
        earliest: Offset(1),
        latest,
    };
    let answer = Joined {
        fence: Fence(2),
        position: latest,
        missed: Missed::Gap(gap),
        cached: None,
    };
    assert_eq!(attachment.joined(NOW, answer, &mut steps), Ask::No);
    assert_eq!(
        steps[0],
        Step::Gap {
            workers: Workers::only(W),
            gap,
            kept: None
        }
    );
    assert_eq!(delivered(&steps), [2]);
}

#[test]
fn nothing_is_delivered_while_unattached() {
    let mut attachment = attached(5);
    assert_eq!(attachment.detach(), Ask::Join);
    attachment.set_asked(2);
    assert_eq!(receive(&mut attachment, 6), (vec![], Ask::No));
    let mut steps = Vec::new();
    let _ = attachment.joined(NOW, joined(6, 6..=6), &mut steps);
    assert_eq!(delivered(&steps), [6]);
}

#[test]
fn a_second_worker_is_told_at_once_and_a_repeated_follow_again() {
    let mut attachment = attached(5);
    let mut steps = Vec::new();
    let other = WorkerId(0);
    assert_eq!(
        attachment.follow(other, FollowId(2), None, &mut steps),
        Ask::No
    );
    assert_eq!(attachment.follow(W, FollowId(3), None, &mut steps), Ask::No);
    assert_eq!(attachment.subscribers(), 2);
    assert_eq!(
        steps,
        [
            Step::Attached {
                worker: other,
                follow: FollowId(2),
                position: at(5),
                kept: None
            },
            Step::Attached {
                worker: W,
                follow: FollowId(3),
                position: at(5),
                kept: None
            },
        ]
    );
}

#[test]
fn without_followers_the_position_still_moves() {
    let mut attachment = attached(5);
    attachment.unfollow(W);
    assert_eq!(receive(&mut attachment, 6), (vec![], Ask::No));
    assert_eq!(attachment.position(), Some(at(6)));
}

#[test]
fn a_loss_that_is_found_while_an_answer_is_on_its_way_is_asked_about_after_it() {
    let mut attachment = attached(5);
    assert_eq!(attachment.refresh(), Ask::Join);
    attachment.set_asked(2);
    // The owner answers; then 6 is published and lost, and the hole is found.
    assert_eq!(attachment.refresh(), Ask::No);
    let mut steps = Vec::new();
    assert_eq!(
        attachment.joined(NOW, joined(5, NOTHING), &mut steps),
        Ask::Join
    );
    attachment.set_asked(3);
    assert_eq!(
        attachment.joined(NOW, joined(6, 6..=6), &mut steps),
        Ask::No
    );
    assert_eq!(delivered(&steps), [6]);
}

#[test]
fn what_found_no_room_to_wait_is_asked_for_again() {
    let mut attachment = attached(5);
    let large = |offset| {
        let mut publication = (*publication(offset)).clone();
        publication.data = "x".repeat(HELD_BYTES_MAX / 4).into();
        Arc::new(publication)
    };
    let mut steps = Vec::new();
    assert_eq!(
        attachment.receive(NOW, EPOCH, large(7), &mut steps),
        Ask::Join
    );
    attachment.set_asked(2);
    for offset in 8..=20 {
        assert_eq!(
            attachment.receive(NOW, EPOCH, large(offset), &mut steps),
            Ask::No
        );
    }
    assert_eq!(
        attachment.joined(NOW, joined(7, 6..=7), &mut steps),
        Ask::Join
    );
    assert!(delivered(&steps).len() < 15, "not all had room");
    attachment.set_asked(3);
    let have = attachment.position().unwrap().offset.0;
    assert_eq!(
        attachment.joined(NOW, joined(20, have + 1..=20), &mut steps),
        Ask::No
    );
    assert_eq!(delivered(&steps), (6..=20).collect::<Vec<_>>());
}

#[test]
fn a_gap_that_the_link_has_closed_meanwhile_is_none() {
    let gap = |earliest, latest| Joined {
        fence: Fence(1),
        position: at(latest),
        missed: Missed::Gap(Gap {
            reason: GapReason::Expired,
            earliest: Offset(earliest),
            latest: at(latest),
        }),
        cached: None,
    };
    let mut attachment = attached(5);
    assert_eq!(attachment.refresh(), Ask::Join);
    attachment.set_asked(2);
    for offset in 6..=9 {
        assert_eq!(receive(&mut attachment, offset).0, [offset]);
    }
    let mut steps = Vec::new();
    assert_eq!(attachment.joined(NOW, gap(9, 8), &mut steps), Ask::No);
    assert_eq!(steps, [], "nothing is missing and nothing comes twice");
    assert_eq!(attachment.position(), Some(at(9)));
    // Not closed, but what can be had begins where we stand: asked again.
    assert_eq!(attachment.refresh(), Ask::Join);
    attachment.set_asked(3);
    assert_eq!(receive(&mut attachment, 10).0, [10]);
    assert_eq!(attachment.joined(NOW, gap(11, 12), &mut steps), Ask::Join);
    assert_eq!(steps, []);
    attachment.set_asked(4);
    assert_eq!(attachment.joined(NOW, gap(12, 12), &mut steps), Ask::No);
    assert!(matches!(steps[..], [Step::Gap { .. }]), "now it is one");
}

/// What clients that came back are given, as `(worker, cursor, offsets)`; a
/// part has a plus, a gap its reason.
fn resumed(steps: &[Step]) -> Vec<(u8, u64, String)> {
    let list = |publications: &[Arc<Publication>]| {
        let offsets = publications.iter().map(|p| p.offset.0.to_string());
        offsets.collect::<Vec<_>>().join(" ")
    };
    let resumed = steps.iter().filter_map(|step| match step {
        Step::Resumed {
            worker,
            cursor,
            resumption,
        } => {
            let given = match resumption {
                Resumption::Whole(publications) => list(publications),
                Resumption::Part(publications) => format!("{}+", list(publications)),
                Resumption::Gap(gap) => gap.reason.as_str().to_owned(),
            };
            Some((worker.0, cursor.offset.0, given))
        }
        _ => None,
    });
    resumed.collect()
}

fn resume(attachment: &mut Attachment, worker: u8, offset: u64) -> (Vec<(u8, u64, String)>, Ask) {
    let mut steps = Vec::new();
    let ask = attachment.resume(WorkerId(worker), at(offset), &mut steps);
    (resumed(&steps), ask)
}

/// Attached at 9, with 8 and 9 in the window, followed by workers 3 and 4.
fn with_a_window() -> Attachment {
    let mut attachment = attached(7);
    let mut steps = Vec::new();
    let _ = attachment.follow(WorkerId(4), FollowId(1), None, &mut steps);
    for offset in [8, 9] {
        assert_eq!(receive(&mut attachment, offset).0, [offset]);
    }
    attachment
}

#[test]
fn the_window_answers_as_far_as_it_reaches() {
    let mut attachment = with_a_window();
    assert_eq!(
        resume(&mut attachment, 3, 9),
        (vec![(3, 9, "".into())], Ask::No)
    );
    assert_eq!(
        resume(&mut attachment, 3, 7),
        (vec![(3, 7, "8 9".into())], Ask::No)
    );
    assert_eq!(resume(&mut attachment, 3, 6), (vec![], Ask::Join));
    attachment.release(Offset(8));
    assert_eq!(resume(&mut attachment, 4, 7), (vec![], Ask::Join));
    assert_eq!(
        resume(&mut attachment, 4, 8),
        (vec![(4, 8, "9".into())], Ask::Join)
    );
}

#[test]
fn who_does_not_follow_is_not_answered() {
    let mut attachment = with_a_window();
    assert_eq!(resume(&mut attachment, 5, 8), (vec![], Ask::No));
}

/// Another owner may have gone on, or begun anew.
#[test]
fn the_window_does_not_answer_while_unattached() {
    let mut attachment = with_a_window();
    assert_eq!(attachment.detach(), Ask::Join);
    assert_eq!(resume(&mut attachment, 3, 8), (vec![], Ask::Join));
    attachment.set_asked(2);
    assert_eq!(
        attachment.asked_since(),
        Since::Cursor(at(8)),
        "covers both"
    );
    let mut steps = Vec::new();
    assert_eq!(
        attachment.joined(NOW, joined(11, 9..=11), &mut steps),
        Ask::No
    );
    assert_eq!(delivered(&steps), [10, 11]);
    assert_eq!(resumed(&steps), [(3, 8, "9 10 11".into())]);
}

#[test]
fn one_join_answers_all_that_wait_and_reaches_back_to_the_lowest() {
    let mut attachment = with_a_window();
    assert_eq!(resume(&mut attachment, 3, 5), (vec![], Ask::Join));
    assert_eq!(resume(&mut attachment, 4, 2), (vec![], Ask::Join));
    attachment.set_asked(2);
    assert_eq!(attachment.asked_since(), Since::Cursor(at(2)));
    assert_eq!(
        resume(&mut attachment, 3, 4),
        (vec![], Ask::No),
        "one at a time"
    );
    let mut steps = Vec::new();
    assert_eq!(
        attachment.joined(NOW, joined(9, 3..=9), &mut steps),
        Ask::No
    );
    let given = [(4, 2, "3 4 5 6 7 8 9".into()), (3, 4, "5 6 7 8 9".into())];
    assert_eq!(resumed(&steps), given);
    assert_eq!(delivered(&steps), [0; 0], "nobody else gets it again");
}

/// The join that is on its way was sent before it came, for a higher one.
#[test]
fn who_comes_with_a_lower_cursor_meanwhile_is_asked_for_next() {
    let mut attachment = with_a_window();
    assert_eq!(resume(&mut attachment, 3, 5).1, Ask::Join);
    attachment.set_asked(2);
    assert_eq!(resume(&mut attachment, 4, 2).1, Ask::No);
    let mut steps = Vec::new();
    assert_eq!(
        attachment.asked_since(),
        Since::Cursor(at(5)),
        "sent again as it was"
    );
    assert_eq!(
        attachment.joined(NOW, joined(9, 6..=9), &mut steps),
        Ask::Join
    );
    assert_eq!(resumed(&steps), [(3, 5, "6 7 8 9".into())]);
    attachment.set_asked(3);
    assert_eq!(attachment.asked_since(), Since::Cursor(at(2)));
}

#[test]
fn an_answer_in_parts_is_given_in_parts() {
    let mut attachment = with_a_window();
    assert_eq!(resume(&mut attachment, 3, 2).1, Ask::Join);
    attachment.set_asked(2);
    let mut steps = Vec::new();
    assert_eq!(
        attachment.joined(NOW, joined(9, 3..=5), &mut steps),
        Ask::Join
    );
    assert_eq!(resumed(&steps), [(3, 2, "3 4 5+".into())]);
    attachment.set_asked(3);
    assert_eq!(attachment.asked_since(), Since::Cursor(at(5)));
    steps.clear();
    assert_eq!(
        attachment.joined(NOW, joined(9, 6..=7), &mut steps),
        Ask::No
    );
    assert_eq!(
        resumed(&steps),
        [(3, 5, "6 7 8 9".into())],
        "the window has the rest"
    );
}

/// It has seen elsewhere what has not come here yet: it must not get it twice.
#[test]
fn who_is_ahead_of_this_gateway_waits_until_it_has_caught_up() {
    let mut attachment = with_a_window();
    assert_eq!(resume(&mut attachment, 3, 11), (vec![], Ask::Join));
    attachment.set_asked(2);
    let mut steps = Vec::new();
    assert_eq!(receive(&mut attachment, 10).0, [10]);
    assert_eq!(
        attachment.joined(NOW, joined(12, 12..=12), &mut steps),
        Ask::Join
    );
    assert_eq!(resumed(&steps), []);
    attachment.set_asked(3);
    assert_eq!(attachment.asked_since(), Since::Delivered(at(10)));
    assert_eq!(
        attachment.joined(NOW, joined(12, 11..=12), &mut steps),
        Ask::No
    );
    assert_eq!(resumed(&steps), [(3, 11, "12".into())]);
}

#[test]
fn a_gap_is_for_those_whom_it_concerns_and_others_are_asked_for_again() {
    let gap = |reason, earliest| Joined {
        fence: Fence(1),
        position: at(9),
        missed: Missed::Gap(Gap {
            reason,
            earliest: Offset(earliest),
            latest: at(9),
        }),
        cached: None,
    };
    let mut attachment = with_a_window();
    assert_eq!(resume(&mut attachment, 3, 1).1, Ask::Join);
    assert_eq!(resume(&mut attachment, 4, 5).1, Ask::Join);
    attachment.set_asked(2);
    let mut steps = Vec::new();
    let answer = gap(GapReason::Expired, 5);
    assert_eq!(attachment.joined(NOW, answer, &mut steps), Ask::Join);
    assert_eq!(resumed(&steps), [(3, 1, "expired".into())]);
    attachment.set_asked(3);
    assert_eq!(attachment.asked_since(), Since::Cursor(at(5)));
    steps.clear();
    assert_eq!(
        attachment.joined(NOW, joined(9, 5..=9), &mut steps),
        Ask::No
    );
    assert_eq!(
        resumed(&steps),
        [(4, 5, "6 7 8 9".into())],
        "given along: 5"
    );
    // A client of a life of the channel that is over.
    let stale = Position {
        epoch: Epoch(1),
        offset: Offset(3),
    };
    assert_eq!(attachment.resume(W, stale, &mut steps), Ask::Join);
    attachment.set_asked(4);
    steps.clear();
    let answer = gap(GapReason::NewEpoch, 5);
    assert_eq!(attachment.joined(NOW, answer, &mut steps), Ask::No);
    assert_eq!(resumed(&steps), [(3, 3, "epoch".into())]);
    assert!(!steps.iter().any(|step| matches!(step, Step::Gap { .. })));
}

/// One question was for both, so one answer must do: asking for the client
/// again would be answered in the same way for ever.
#[test]
fn a_life_that_is_over_ends_for_a_client_that_came_back_and_for_all_others() {
    let mut attachment = with_a_window();
    assert_eq!(attachment.detach(), Ask::Join);
    assert_eq!(resume(&mut attachment, 3, 5).1, Ask::Join);
    attachment.set_asked(2);
    assert_eq!(attachment.asked_since(), Since::Cursor(at(5)));
    let latest = Position {
        epoch: Epoch(8),
        offset: Offset(2),
    };
    let answer = Joined {
        fence: Fence(2),
        position: latest,
        missed: Missed::Gap(Gap {
            reason: GapReason::NewEpoch,
            earliest: Offset(1),
            latest,
        }),
        cached: None,
    };
    let mut steps = Vec::new();
    assert_eq!(attachment.joined(NOW, answer, &mut steps), Ask::No);
    let told = steps.iter().any(|step| matches!(step, Step::Gap { .. }));
    assert!(told, "those who have followed all the time");
    assert_eq!(resumed(&steps), [(3, 5, "epoch".into())]);
    assert_eq!(attachment.position(), Some(latest));
}

#[test]
fn who_comes_back_first_has_its_cursor_in_the_first_join_and_fills_the_window() {
    let mut attachment = Attachment::default();
    let mut steps = Vec::new();
    let ask = attachment.follow(W, FollowId(1), Some(at(4)), &mut steps);
    assert_eq!(ask, Ask::Join);
    attachment.set_asked(1);
    assert_eq!(attachment.asked_since(), Since::Cursor(at(4)));
    // The owner gives some along.
    assert_eq!(
        attachment.joined(NOW, joined(7, 3..=7), &mut steps),
        Ask::No
    );
    assert!(matches!(
        steps[..],
        [.., Step::Attached { position, .. }, Step::Resumed { .. }] if position == at(7)
    ));
    assert_eq!(resumed(&steps), [(3, 4, "5 6 7".into())]);
    let behind = resume(&mut attachment, 3, 2);
    assert_eq!(behind, (vec![(3, 2, "3 4 5 6 7".into())], Ask::No));
}

/// What the link does to the next publication.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Arrives,
    Lost,
    Twice,
}

/// One moment: perhaps a publication, perhaps a hole found in the link.
#[derive(Debug, Clone, Copy)]
struct Moment {
    publication: Option<Fate>,
    link_gap: bool,
    /// A client comes back that has missed so many.
    comes_back: Option<u64>,
}

fn moment() -> impl Strategy<Value = Moment> {
    let fate = prop_oneof![3 => Just(Fate::Arrives), 1 => Just(Fate::Lost), 1 => Just(Fate::Twice)];
    (
        prop::option::weighted(0.7, fate),
        prop::bool::weighted(0.15),
        prop::option::weighted(0.3, 0_u64..8),
    )
        .prop_map(|(publication, link_gap, comes_back)| Moment {
            publication,
            link_gap,
            comes_back,
        })
}

/// An owner that keeps the last `kept` publications.
fn answer(head: u64, since: Since, kept: u64) -> Joined {
    let (Since::Delivered(have) | Since::Cursor(have)) = since else {
        panic!("it has a position");
    };
    let have = have.offset.0;
    let earliest = head.saturating_sub(kept) + 1;
    if have + 1 >= earliest {
        return joined(head, have + 1..=head);
    }
    let gap = Gap {
        reason: GapReason::Expired,
        earliest: Offset(earliest),
        latest: at(head),
    };
    Joined {
        fence: Fence(1),
        position: at(head),
        missed: Missed::Gap(gap),
        cached: None,
    }
}

/// Whether a cursor has been answered since so many steps were taken.
fn answered(steps: &[Step], (asked, since): (Position, usize)) -> bool {
    let is_answer = |step: &Step| matches!(step, Step::Resumed { cursor, .. } if *cursor == asked);
    steps[since..].iter().any(is_answer)
}

proptest! {
    /// Whatever the link loses or repeats, and however old answers are when
    /// they come: the worker gets every publication once and in order, or is
    /// told of a gap where some are missing. A loss is found by the link once,
    /// some time after it.
    #[test]
    fn every_publication_once_and_in_order(
        moments in prop::collection::vec(moment(), 1..80),
        delay in 0_usize..6,
        kept in prop_oneof![Just(0_u64), Just(3), Just(1_000)],
    ) {
        let mut attachment = attached(0);
        let mut steps = Vec::new();
        let mut asked: Option<(Position, usize)> = None;
        let (mut head, mut version, mut undetected) = (0, 1, false);
        // When it arrives, and what the owner said when it was asked.
        let mut on_its_way: Option<(usize, Joined)> = None;
        let quiet = Moment { publication: None, link_gap: false, comes_back: None };
        let last = Moment { publication: None, link_gap: true, comes_back: None };
        for (time, moment) in moments.into_iter().chain([last]).chain([quiet; 40]).enumerate() {
            let mut asks = Vec::new();
            if let Some(fate) = moment.publication {
                head += 1;
                let times = match fate { Fate::Arrives => 1, Fate::Lost => 0, Fate::Twice => 2 };
                undetected |= times == 0;
                for _ in 0..times {
                    asks.push(attachment.receive(NOW, EPOCH, publication(head), &mut steps));
                }
            }
            if moment.link_gap && undetected {
                undetected = false;
                asks.push(attachment.refresh());
            }
            // One worker, so one question at a time; and it may be ahead of us.
            if let Some(missed) = moment.comes_back
                && asked.is_none_or(|asked| answered(&steps, asked))
            {
                let cursor = at(head.saturating_sub(missed));
                asked = Some((cursor, steps.len()));
                asks.push(attachment.resume(W, cursor, &mut steps));
            }
            if let Some((_, reply)) = on_its_way.take_if(|(due, _)| *due <= time) {
                asks.push(attachment.joined(NOW, reply, &mut steps));
            }
            if asks.contains(&Ask::Join) {
                prop_assert!(on_its_way.is_none(), "one at a time");
                version += 1;
                attachment.set_asked(version);
                on_its_way = Some((time + 1 + delay, answer(head, attachment.asked_since(), kept)));
            }
        }
        prop_assert!(asked.is_none_or(|asked| answered(&steps, asked)), "everybody is answered");
        let mut expected = 1;
        for step in &steps {
            match step {
                Step::Deliver { publication, .. } => {
                    prop_assert_eq!(publication.offset.0, expected, "in order, once, nothing left out in silence");
                    expected += 1;
                }
                Step::Gap { gap, .. } => {
                    prop_assert!(gap.latest.offset.0 >= expected, "a gap is one");
                    expected = gap.latest.offset.0 + 1;
                }
                Step::Attached { .. } | Step::Kept { .. } => {}
                Step::Welcome { .. } | Step::Refused { .. } | Step::Members { .. } => {
                    prop_assert!(false, "nobody is a member");
                }
                Step::Count { .. } => {
                    prop_assert!(false, "nobody is counted");
                }
                Step::Resumed { cursor, resumption: Resumption::Whole(given), .. } => {
                    let given: Vec<u64> = given.iter().map(|p| p.offset.0).collect();
                    let missed: Vec<u64> = (cursor.offset.0 + 1..expected).collect();
                    prop_assert_eq!(given, missed, "exactly what it missed, up to where it goes on");
                }
                Step::Resumed { resumption: Resumption::Part(_), .. } => prop_assert!(false, "no answer was too long"),
                Step::Resumed { resumption: Resumption::Gap(_), .. } => prop_assert!(kept < 1_000),
            }
        }
        prop_assert_eq!(expected, head + 1, "it has come to the end");
        if kept == 1_000 {
            let announced = steps.iter().any(|step| matches!(step, Step::Gap { .. }));
            prop_assert!(!announced, "history reaches far enough");
        }
    }
}
