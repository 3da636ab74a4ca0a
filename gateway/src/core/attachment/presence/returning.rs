//! A member that has come back is given what it missed of the channel with the word
//! that it is in: of one position with the roster, so none of it tells of members.

use std::sync::Arc;

use proto::message::Missed;
use proto::position::{Epoch, Gap, Position};
use proto::publication::Publication;

use crate::core::attachment::resuming::concerns;
use crate::core::attachment::window::Window;

/// What is known of what one has missed.
#[derive(Debug)]
pub(super) struct Returning {
    /// Up to where it has come, or is known.
    cursor: Position,
    known: Vec<Arc<Publication>>,
    gap: Option<Gap>,
}

impl Returning {
    pub(super) fn from(cursor: Position) -> Self {
        Self {
            cursor,
            known: Vec::new(),
            gap: None,
        }
    }

    /// From where the owner is to be asked for more.
    pub(super) fn cursor(&self) -> Position {
        self.cursor
    }

    /// All that it has missed up to where the channel stands; `None`: the owner is to be
    /// asked.
    pub(super) fn missed(&self, window: &Window, position: Position) -> Option<Missed> {
        if let Some(gap) = self.gap {
            let latest = position;
            return Some(Missed::Gap(Gap { latest, ..gap }));
        }
        let Position { epoch, offset } = self.cursor;
        if epoch != position.epoch || offset > position.offset {
            return None;
        }
        let rest = window.since(offset, position.offset)?;
        let all = self.known.iter().chain(&rest);
        let all = all.filter(|publication| tells_no_member(publication));
        Some(Missed::Publications(all.cloned().collect()))
    }

    /// The owner has no more than this.
    pub(super) fn take_gap(&mut self, asked: Position, gap: &Gap) {
        if concerns(gap, asked, self.cursor) {
            self.known = Vec::new();
            self.gap = Some(*gap);
        }
    }

    /// The owner has given these, which have been delivered here.
    pub(super) fn take(&mut self, epoch: Epoch, publications: &[Arc<Publication>]) {
        let (Some(first), Some(last)) = (publications.first(), publications.last()) else {
            return;
        };
        let cursor = self.cursor;
        if cursor.epoch == epoch && cursor.offset.next() >= first.offset {
            let new = publications.partition_point(|it| it.offset <= cursor.offset);
            self.known.extend_from_slice(&publications[new..]);
            self.cursor.offset = cursor.offset.max(last.offset);
        }
    }
}

fn tells_no_member(publication: &Publication) -> bool {
    publication.change().is_none() && !publication.is_blank()
}
