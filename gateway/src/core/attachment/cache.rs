//! What a cache channel keeps for those who come: the last publication of a backend.
//!
//! The owner says it with the answer to the first join; from then on it is folded from
//! what is delivered, so it is of one position, like everything else here.

use std::sync::Arc;

use proto::message::Cached;
use proto::position::{Epoch, Position};
use proto::publication::Publication;
use proto::time::Timestamp;

use super::Attachment;

/// A publication that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Since when, by this gateway's clock.
    pub since: Timestamp,
    /// Of which epoch it is.
    pub epoch: Epoch,
    /// It.
    pub publication: Arc<Publication>,
}

impl Kept {
    /// What the owner says.
    pub(super) fn of(now: Timestamp, epoch: Epoch, cached: Cached) -> Self {
        Self {
            since: Timestamp(now.0.saturating_sub(cached.age_ms)),
            epoch,
            publication: cached.publication,
        }
    }

    /// Whether it was published when the channel stood there.
    pub(super) fn is_of(&self, position: Position) -> bool {
        self.epoch == position.epoch && self.publication.offset <= position.offset
    }
}

impl Attachment {
    /// A publication is delivered.
    pub(super) fn keep_for_newcomers(
        &mut self,
        now: Timestamp,
        epoch: Epoch,
        publication: &Arc<Publication>,
    ) {
        if self.is_cache && publication.is_cached() {
            self.kept = Some(Kept {
                since: now,
                epoch,
                publication: Arc::clone(publication),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::message::{Joined, Missed};
    use proto::position::{Gap, GapReason, Offset};
    use proto::shard::Fence;
    use proto::time::UnixTime;

    use super::*;
    use crate::core::attachment::{FollowId, Step};
    use crate::core::workers::WorkerId;

    const EPOCH: Epoch = Epoch(1);
    const NOW: Timestamp = Timestamp(5_000_000);

    fn publication(offset: u64, event: &str) -> Arc<Publication> {
        Arc::new(Publication {
            offset: Offset(offset),
            event: event.into(),
            data: "d".into(),
            exclude: None,
            accepted_at: UnixTime(0),
            mark: None,
        })
    }

    fn joined(epoch: Epoch, head: u64, missed: Missed, cached: Option<u64>) -> Joined {
        Joined {
            fence: Fence(1),
            position: Position {
                epoch,
                offset: Offset(head),
            },
            missed,
            cached: cached.map(|offset| Cached {
                age_ms: 1_000,
                publication: publication(offset, "e"),
            }),
        }
    }

    /// Followed by one worker; what that is told is kept.
    fn attached(cached: Option<u64>) -> (Attachment, Option<u64>) {
        let mut attachment = Attachment::new(&"cache-x".parse().unwrap());
        let mut steps = Vec::new();
        let _ = attachment.follow(WorkerId(0), FollowId(1), None, &mut steps);
        attachment.set_asked(1);
        let nothing = Missed::Publications(Vec::new());
        let _ = attachment.joined(NOW, joined(EPOCH, 8, nothing, cached), &mut steps);
        (attachment, told(&steps))
    }

    fn told(steps: &[Step]) -> Option<u64> {
        let kept = steps.iter().find_map(|step| match step {
            Step::Attached { kept, .. } | Step::Gap { kept, .. } => Some(kept.clone()),
            _ => None,
        });
        let kept = kept.expect("a step that says it")?;
        Some(kept.publication.offset.0)
    }

    fn next_worker(attachment: &mut Attachment) -> Option<Kept> {
        let mut steps = Vec::new();
        let _ = attachment.follow(WorkerId(1), FollowId(2), None, &mut steps);
        match &steps[..] {
            [Step::Attached { kept, .. }] => kept.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_the_owner_keeps_is_kept_here_for_as_long() {
        assert_eq!(attached(None).1, None);
        let (mut attachment, kept) = attached(Some(5));
        assert_eq!(kept, Some(5));
        let since = next_worker(&mut attachment).unwrap().since;
        assert_eq!(since, Timestamp(NOW.0 - 1_000));
    }

    #[test]
    fn what_a_backend_publishes_takes_its_place_and_what_clients_do_does_not() {
        let (mut attachment, _) = attached(Some(5));
        let mut steps = Vec::new();
        for (offset, event) in [(9, "e"), (10, "client-e")] {
            let _ = attachment.receive(NOW, EPOCH, publication(offset, event), &mut steps);
        }
        let kept = next_worker(&mut attachment).unwrap();
        assert_eq!((kept.publication.offset, kept.since), (Offset(9), NOW));
    }

    #[test]
    fn behind_a_gap_it_is_what_was_kept_there_and_nothing_that_is_still_to_come() {
        for (cached, expected) in [(Some(2), Some(2)), (Some(4), None), (None, None)] {
            let (mut attachment, _) = attached(Some(5));
            let _ = attachment.detach();
            attachment.set_asked(2);
            let epoch = Epoch(2);
            let gap = Gap {
                reason: GapReason::NewEpoch,
                earliest: Offset(3),
                latest: Position {
                    epoch,
                    offset: Offset(2),
                },
            };
            let answer = joined(epoch, 4, Missed::Gap(gap), cached);
            let mut steps = Vec::new();
            let _ = attachment.joined(NOW, answer, &mut steps);
            assert_eq!(told(&steps), expected);
        }
    }
}
