//! What waits to be written to one socket: pointers to shared bytes, bounded in
//! bytes and in age. The bounds are checked by whoever adds, and whoever looks
//! after the connection; what happens when they are passed is the slow-consumer
//! policy, so that one that reads too slowly costs memory for a moment and nobody
//! else's time.
//!
//! Age costs nothing per frame: a [mark](Outbox::mark) is put behind what waits
//! now, and what is in front of it is as old as the mark at least.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::Duration;

use bytes::Bytes;
use proto::time::Timestamp;

/// Frames that one write gathers at most.
pub const GATHER: usize = 64;

/// Room for this many frames is kept while the connection is busy.
const KEEP: usize = 16;

/// A queue of frames. The first may be partly written.
#[derive(Debug, Default)]
pub struct Outbox {
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// Whether a part of the first frame has been written.
    torn: bool,
    /// Since when so many bytes wait.
    mark: Option<(Timestamp, usize)>,
}

impl Outbox {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a frame.
    pub fn push(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    /// Adds a frame before all others; nothing may have been written yet.
    pub fn push_front(&mut self, frame: Bytes) {
        debug_assert!(!self.torn, "nothing can come before a frame that has begun");
        self.bytes += frame.len();
        self.frames.push_front(frame);
    }

    /// Adds what is left of a frame of which `written` bytes have been written.
    pub fn push_rest(&mut self, frame: &Bytes, written: usize) {
        debug_assert!(self.is_empty(), "only the first frame is ever torn");
        self.torn = written > 0;
        self.push(frame.slice(written..));
    }

    /// Puts what is next into `slices`; how many.
    pub fn gather<'a>(&'a self, slices: &mut [IoSlice<'a>; GATHER]) -> usize {
        let mut count = 0;
        for (slice, frame) in slices.iter_mut().zip(&self.frames) {
            *slice = IoSlice::new(frame);
            count += 1;
        }
        count
    }

    /// For how long the first frame waits at least, seen from here: it is to be
    /// asked again and again.
    pub fn mark(&mut self, now: Timestamp) -> Duration {
        match self.mark {
            Some((since, _)) => now.since(since),
            None => {
                self.mark = (!self.is_empty()).then_some((now, self.bytes));
                Duration::ZERO
            }
        }
    }

    /// Takes note that this many bytes have been written.
    pub fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        self.mark = self.mark.and_then(|(since, before)| {
            let left = before.saturating_sub(written);
            (left > 0).then_some((since, left))
        });
        while let Some(first) = self.frames.front_mut() {
            if written < first.len() {
                if written > 0 {
                    *first = first.slice(written..);
                    self.torn = true;
                }
                return;
            }
            written -= first.len();
            self.frames.pop_front();
            self.torn = false;
        }
    }

    /// Drops everything but the frame of which a part is on the wire already:
    /// what follows must begin where a frame begins.
    pub fn drop_unsent(&mut self) {
        self.frames.truncate(usize::from(self.torn));
        self.bytes = self.frames.iter().map(Bytes::len).sum();
        self.mark = None;
    }

    /// Gives memory back.
    pub fn shrink(&mut self) {
        if self.frames.is_empty() && self.frames.capacity() > 0 {
            self.frames = VecDeque::new();
        } else if self.frames.capacity() > KEEP && self.frames.len() * 4 < self.frames.capacity() {
            self.frames.shrink_to(KEEP);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gathered(outbox: &Outbox) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); GATHER];
        let count = outbox.gather(&mut slices);
        slices[..count]
            .iter()
            .flat_map(|slice| slice.to_vec())
            .collect()
    }

    #[test]
    fn what_is_on_the_wire_is_finished_before_anything_else() {
        let mut outbox = Outbox::default();
        outbox.push(Bytes::from_static(b"first"));
        outbox.push(Bytes::from_static(b"second"));
        outbox.advance(2);
        outbox.drop_unsent();
        outbox.push(Bytes::from_static(b"close"));
        assert_eq!(gathered(&outbox), b"rstclose");
        assert_eq!(outbox.bytes(), 8);
        outbox.advance(3);
        outbox.drop_unsent();
        assert!(outbox.is_empty(), "nothing of \"close\" had been sent");
    }

    #[test]
    fn what_waits_grows_old_until_it_is_written() {
        let mut outbox = Outbox::default();
        let age = |outbox: &mut Outbox, at| outbox.mark(Timestamp(at)).as_secs();
        assert_eq!(age(&mut outbox, 1_000), 0, "nothing waits");
        outbox.push(Bytes::from_static(b"first"));
        assert_eq!(age(&mut outbox, 2_000), 0);
        outbox.push(Bytes::from_static(b"second"));
        outbox.advance(4);
        assert_eq!(age(&mut outbox, 9_000), 7, "a byte of it still waits");
        outbox.advance(1);
        assert_eq!(
            age(&mut outbox, 10_000),
            0,
            "and what came after is not old"
        );
        assert_eq!(age(&mut outbox, 12_000), 2);
        outbox.drop_unsent();
        assert_eq!(age(&mut outbox, 13_000), 0);
    }

    proptest! {
        /// However writes are cut, the socket gets the frames as they were.
        #[test]
        fn bytes_come_out_as_they_went_in(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..100),
            cuts in prop::collection::vec(1_usize..60, 1..400),
        ) {
            let mut outbox = Outbox::default();
            for frame in &frames {
                outbox.push(Bytes::copy_from_slice(frame));
            }
            let mut wire = Vec::new();
            for cut in cuts.into_iter().cycle() {
                if outbox.is_empty() {
                    break;
                }
                let next = gathered(&outbox);
                let written = cut.min(next.len());
                wire.extend_from_slice(&next[..written]);
                outbox.advance(written);
                prop_assert_eq!(outbox.bytes(), frames.concat().len() - wire.len());
            }
            prop_assert_eq!(wire, frames.concat());
        }
    }
}
