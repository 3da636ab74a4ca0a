use proptest::prelude::*;
use proto::position::GapReason;
use proto::shard::Fence;
use proto::time::UnixTime;

use super::*;

const W: WorkerId = WorkerId(3);
const EPOCH: Epoch = Epoch(7);

fn publication(offset: u64) -> Arc<Publication> {
    Arc::new(Publication {
        offset: Offset(offset),
        event: "e".into(),
        data: "d".into(),
        exclude: None,
        accepted_at: UnixTime(0),
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
    }
}

#[expect(clippy::reversed_empty_ranges, reason = "nothing")]
const NOTHING: std::ops::RangeInclusive<u64> = 1..=0;

/// Attached at `head`, followed by one worker.
fn attached(head: u64) -> Attachment {
    let mut attachment = Attachment::default();
    let mut steps = Vec::new();
    assert_eq!(attachment.follow(W, FollowId(1), &mut steps), Ask::Join);
    attachment.set_asked(1);
    assert_eq!(
        attachment.joined(joined(head, NOTHING), &mut steps),
        Ask::No
    );
    assert_eq!(
        steps,
        [Step::Attached {
            worker: W,
            follow: FollowId(1),
            position: at(head)
        }]
    );
    attachment
}

fn receive(attachment: &mut Attachment, offset: u64) -> (Vec<u64>, Ask) {
    let mut steps = Vec::new();
    let ask = attachment.receive(EPOCH, publication(offset), &mut steps);
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
    assert_eq!(attachment.joined(joined(8, 6..=8), &mut steps), Ask::No);
    assert_eq!(delivered(&steps), [6, 7, 8, 9]);
}

#[test]
fn what_overtakes_the_first_answer_is_delivered_after_it() {
    let mut attachment = Attachment::default();
    let mut steps = Vec::new();
    let _ = attachment.follow(W, FollowId(1), &mut steps);
    attachment.set_asked(1);
    assert_eq!(receive(&mut attachment, 6), (vec![], Ask::No));
    assert_eq!(receive(&mut attachment, 5), (vec![], Ask::No));
    let _ = attachment.joined(joined(5, NOTHING), &mut steps);
    assert_eq!(attachment.position(), Some(at(6)));
    // 6 went by before the worker was told: it is attached after it.
    assert_eq!(
        steps,
        [Step::Attached {
            worker: W,
            follow: FollowId(1),
            position: at(6)
        }]
    );
}

#[test]
fn an_answer_that_ends_before_the_head_is_asked_for_the_rest() {
    let mut attachment = attached(0);
    let _ = attachment.detach();
    attachment.set_asked(2);
    let mut steps = Vec::new();
    assert_eq!(attachment.joined(joined(9, 1..=4), &mut steps), Ask::Join);
    assert_eq!(delivered(&steps), [1, 2, 3, 4]);
    attachment.set_asked(3);
    steps.clear();
    assert_eq!(attachment.joined(joined(9, 5..=9), &mut steps), Ask::No);
    assert_eq!(delivered(&steps), [5, 6, 7, 8, 9]);
}

#[test]
fn a_new_epoch_is_a_gap_and_then_goes_on() {
    let mut attachment = attached(5);
    let other = Epoch(8);
    let mut steps = Vec::new();
    assert_eq!(
        attachment.receive(other, publication(2), &mut steps),
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
    };
    assert_eq!(attachment.joined(answer, &mut steps), Ask::No);
    assert_eq!(
        steps[0],
        Step::Gap {
            workers: Workers::only(W),
            gap
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
    let _ = attachment.joined(joined(6, 6..=6), &mut steps);
    assert_eq!(delivered(&steps), [6]);
}

#[test]
fn a_second_worker_is_told_at_once_and_a_repeated_follow_again() {
    let mut attachment = attached(5);
    let mut steps = Vec::new();
    let other = WorkerId(0);
    assert_eq!(attachment.follow(other, FollowId(2), &mut steps), Ask::No);
    assert_eq!(attachment.follow(W, FollowId(3), &mut steps), Ask::No);
    assert_eq!(attachment.followers(), 2);
    assert_eq!(
        steps,
        [
            Step::Attached {
                worker: other,
                follow: FollowId(2),
                position: at(5)
            },
            Step::Attached {
                worker: W,
                follow: FollowId(3),
                position: at(5)
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

/// What the link does to the next publication.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Arrives,
    Lost,
    Twice,
    LinkGapFound,
}

proptest! {
    /// Whatever the link loses or repeats, and however late answers come, the
    /// worker gets every publication once and in order, once the owner answers.
    #[test]
    fn every_publication_once_and_in_order(
        fates in prop::collection::vec(
            prop_oneof![Just(Fate::Arrives), Just(Fate::Lost), Just(Fate::Twice), Just(Fate::LinkGapFound)],
            1..60,
        ),
        answer_after in 1_usize..6,
    ) {
        let mut attachment = attached(0);
        let mut steps = Vec::new();
        let mut head = 0;
        let mut asked: Option<(usize, u64)> = None;
        let mut version = 1;
        let end = fates.len();
        for (time, fate) in fates.into_iter().chain([Fate::LinkGapFound; 12]).enumerate() {
            let mut ask = Ask::No;
            if time < end {
                head += 1;
                let times = match fate { Fate::Arrives | Fate::LinkGapFound => 1, Fate::Lost => 0, Fate::Twice => 2 };
                for _ in 0..times {
                    if attachment.receive(EPOCH, publication(head), &mut steps) == Ask::Join {
                        ask = Ask::Join;
                    }
                }
            }
            if matches!(fate, Fate::LinkGapFound) && attachment.refresh() == Ask::Join {
                ask = Ask::Join;
            }
            if ask == Ask::Join && asked.is_none() {
                version += 1;
                attachment.set_asked(version);
                asked = Some((time, attachment.position().unwrap().offset.0));
            }
            if let Some((since, have)) = asked && time >= since + answer_after {
                asked = None;
                let ask = attachment.joined(joined(head, have + 1..=head), &mut steps);
                prop_assert_eq!(ask, Ask::No, "the answer covers everything");
            }
        }
        prop_assert_eq!(delivered(&steps), (1..=head).collect::<Vec<_>>());
    }
}
