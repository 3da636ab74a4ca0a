//! The sending end of a link.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::ring::Ring;
use crate::id::{Incarnation, NodeRef};
use crate::message::{Batch, Span};
use crate::time::Timestamp;

/// When beats follow the last batch. After the last of them they repeat at its
/// interval for as long as the link exists.
const TAIL_BEATS: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(1_000),
];

/// Bytes of entries in one batch; the rest goes into the next one. Below the
/// bus's limit by the room for the batch's own fields.
const BATCH_BYTES_MAX: usize = crate::codec::PAYLOAD_BYTES_MAX - 4_096;
/// What MessagePack puts around an entry at most.
const ENTRY_FRAME_BYTES: usize = 5;
/// Spans of entries that wait to be sent again at most. What is asked for
/// besides is dropped: it is asked for again.
const WANTED_MAX: usize = 256;

/// The sending end: numbers entries, closes batches, and keeps what it has sent
/// for a while to send it again.
#[derive(Debug)]
pub struct Sender {
    from: NodeRef,
    to: Incarnation,
    pending: Vec<Bytes>,
    last_at: Timestamp,
    beats: usize,
    /// Where this ends, the next entry begins.
    ring: Ring,
    /// What is to be sent again: in order, apart from each other, none empty.
    wanted: Vec<Range<u64>>,
}

impl Sender {
    /// A link that has carried nothing yet.
    pub fn new(from: NodeRef, to: Incarnation, now: Timestamp) -> Self {
        Self::going_on(from, to, 1, now)
    }

    /// A link that goes on where an earlier one between the same two lives
    /// ended: the receiver has counted up to there.
    pub fn going_on(from: NodeRef, to: Incarnation, next: u64, now: Timestamp) -> Self {
        Self {
            from,
            to,
            pending: Vec::new(),
            last_at: now,
            beats: 0,
            ring: Ring::new(next),
            wanted: Vec::new(),
        }
    }

    /// The number of the next entry, behind what is pending.
    pub fn next(&self) -> u64 {
        self.ring.end() + self.pending.len() as u64
    }

    /// The incarnation of the receiver.
    pub fn to(&self) -> Incarnation {
        self.to
    }

    /// Puts an encoded entry behind what is pending. Bytes are shared, not
    /// copied, until the batch is encoded.
    pub fn push(&mut self, entry: Bytes) {
        self.pending.push(entry);
    }

    /// Closes what is pending into batches, each small enough for the bus.
    pub fn seal(&mut self, now: Timestamp, mut send: impl FnMut(Batch)) {
        let mut entries = std::mem::take(&mut self.pending).into_iter().peekable();
        while entries.peek().is_some() {
            let first = self.ring.end();
            let mut bytes = 0;
            let mut batch = Vec::new();
            // At least one, so that an entry over the bound still leaves.
            while let Some(entry) =
                entries.next_if(|e| batch.is_empty() || bytes + e.len() <= BATCH_BYTES_MAX)
            {
                bytes += entry.len() + ENTRY_FRAME_BYTES;
                self.ring.push(now, entry.clone());
                batch.push(entry);
            }
            send(self.batch(first, batch));
            self.last_at = now;
            self.beats = 0;
        }
    }

    /// The tail beat that is due, if one is.
    pub fn beat(&mut self, now: Timestamp) -> Option<Batch> {
        let wait = TAIL_BEATS[self.beats.min(TAIL_BEATS.len() - 1)];
        if now.since(self.last_at) < wait {
            return None;
        }
        self.beats += 1;
        self.last_at = now;
        Some(self.batch(self.ring.end(), Vec::new()))
    }

    /// The receiver has not got this. What is held of it is sent by
    /// [`repeat`](Self::repeat); `Some`: what lies below this number is held no
    /// longer.
    pub fn want(&mut self, spans: &[Span]) -> Option<u64> {
        let (start, end) = (self.ring.start(), self.ring.end());
        let mut lost = false;
        for span in spans.iter().take(WANTED_MAX) {
            lost |= span.count > 0 && span.first < start;
            let held = span.first.max(start)..span.end().min(end);
            if !held.is_empty() {
                self.add_wanted(held);
            }
        }
        lost.then_some(start)
    }

    /// Whether something is to be sent again.
    pub fn is_wanted(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Sends again what is wanted, as batches with the numbers of old, up to so
    /// many bytes and one entry more. Returns how many bytes that took.
    pub fn repeat(&mut self, room: usize, mut send: impl FnMut(Batch)) -> usize {
        let mut sent = 0;
        while sent < room {
            let Some(span) = self.wanted.first().cloned() else {
                break;
            };
            // What has left the ring since is asked for again, and refused then.
            let first = span.start.max(self.ring.start());
            let room = (room - sent).min(BATCH_BYTES_MAX);
            let mut bytes = 0;
            let mut batch = Vec::new();
            for number in first..span.end {
                match self.ring.get(number) {
                    Some(entry) if batch.is_empty() || bytes + entry.len() <= room => {
                        bytes += entry.len() + ENTRY_FRAME_BYTES;
                        batch.push(entry.clone());
                    }
                    _ => break,
                }
            }
            let next = first + batch.len() as u64;
            if batch.is_empty() || next >= span.end {
                self.wanted.remove(0);
            } else {
                self.wanted[0].start = next;
            }
            if !batch.is_empty() {
                send(self.batch(first, batch));
            }
            sent += bytes;
        }
        sent
    }

    /// What the ring costs, by its own count.
    pub fn kept_bytes(&self) -> usize {
        self.ring.bytes()
    }

    /// Forgets what is too old to be asked for.
    pub fn expire(&mut self, now: Timestamp) {
        self.ring.expire(now);
    }

    /// Forgets the oldest until the ring costs at most so many bytes.
    pub fn shrink_to(&mut self, bytes: usize) {
        self.ring.shrink_to(bytes);
    }

    /// Asked for twice is sent once, if it has not been sent yet.
    fn add_wanted(&mut self, mut span: Range<u64>) {
        let from = self.wanted.partition_point(|it| it.end < span.start);
        let to = self.wanted.partition_point(|it| it.start <= span.end);
        if from == to && self.wanted.len() >= WANTED_MAX {
            return;
        }
        if let (Some(first), Some(last)) =
            (self.wanted[from..to].first(), self.wanted[from..to].last())
        {
            span = span.start.min(first.start)..span.end.max(last.end);
        }
        self.wanted.splice(from..to, [span]);
    }

    fn batch(&self, first: u64, entries: Vec<Bytes>) -> Batch {
        Batch {
            from: self.from.clone(),
            to: self.to,
            first,
            entries,
        }
    }
}
