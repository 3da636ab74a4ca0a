//! What was just delivered in one channel, for clients that come back.

use std::collections::VecDeque;
use std::sync::Arc;

use proto::position::Offset;
use proto::publication::Publication;

/// Publications of one channel at most. Their age, and the bytes of all
/// channels together, are bounded by whoever has the windows.
const COUNT_MAX: usize = 256;

/// The latest publications of one epoch, contiguous up to where the channel
/// stands here.
#[derive(Debug, Default)]
pub(super) struct Window {
    ring: VecDeque<Arc<Publication>>,
}

impl Window {
    /// The next one.
    pub(super) fn push(&mut self, publication: Arc<Publication>) {
        if self.ring.len() == COUNT_MAX {
            self.ring.pop_front();
        }
        self.ring.push_back(publication);
    }

    /// Lets go of everything up to and with this offset.
    pub(super) fn release(&mut self, offset: Offset) {
        while self
            .ring
            .pop_front_if(|publication| publication.offset <= offset)
            .is_some()
        {}
        if self.ring.is_empty() {
            self.ring = VecDeque::new();
        }
    }

    /// What is here does not lead to where the channel stands any more.
    pub(super) fn clear(&mut self) {
        self.ring = VecDeque::new();
    }

    /// Everything after `after`, up to `head`, where the channel stands.
    /// `None`: it does not reach back so far.
    pub(super) fn since(&self, after: Offset, head: Offset) -> Option<Vec<Arc<Publication>>> {
        if after == head {
            return Some(Vec::new());
        }
        let first = self.ring.front()?.offset;
        let skip = after.next().0.checked_sub(first.0)?;
        Some(self.ring.iter().skip(skip as usize).cloned().collect())
    }
}
