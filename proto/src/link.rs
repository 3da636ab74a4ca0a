//! Links: one direction between two processes over a bus that may lose
//! messages. Batches are numbered per pair of incarnations, so the receiver
//! sees a hole at the next batch, or at the next *tail beat*: an empty batch
//! that only says how far the sequence has come.
//!
//! A link finds loss; it does not hold anything back. What it carries is
//! guarded end to end by offsets, so a hole here makes the gateway ask again
//! for the channels that may be concerned and leaves all others alone.

use std::time::Duration;

use bytes::Bytes;

use crate::id::{Incarnation, NodeRef};
use crate::message::Batch;
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

/// The sending end: numbers entries and closes batches.
#[derive(Debug)]
pub struct Sender {
    from: NodeRef,
    to: Incarnation,
    next: u64,
    pending: Vec<Bytes>,
    last_at: Timestamp,
    beats: usize,
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
            next,
            pending: Vec::new(),
            last_at: now,
            beats: 0,
        }
    }

    /// The number of the next entry, behind what is pending.
    pub fn next(&self) -> u64 {
        self.next + self.pending.len() as u64
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
            let mut bytes = 0;
            let mut batch = Vec::new();
            // At least one, so that an entry over the bound still leaves.
            while let Some(entry) =
                entries.next_if(|e| batch.is_empty() || bytes + e.len() <= BATCH_BYTES_MAX)
            {
                bytes += entry.len() + 5;
                batch.push(entry);
            }
            let count = batch.len() as u64;
            send(self.batch(batch));
            self.next += count;
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
        Some(self.batch(Vec::new()))
    }

    fn batch(&self, entries: Vec<Bytes>) -> Batch {
        Batch {
            from: self.from.clone(),
            to: self.to,
            first: self.next,
            entries,
        }
    }
}

/// What a batch told about the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    /// Nothing is missing.
    InOrder,
    /// This many entries before it have not come.
    Gap(u64),
    /// It was here before.
    Old,
}

/// The receiving end: notices holes.
#[derive(Debug)]
pub struct Receiver {
    next: u64,
}

impl Default for Receiver {
    /// A link begins with entry 1: if the first batch to arrive begins later,
    /// what came before it was lost.
    fn default() -> Self {
        Self { next: 1 }
    }
}

impl Receiver {
    /// Takes note of a batch.
    pub fn receive(&mut self, batch: &Batch) -> Receipt {
        let end = batch.first.saturating_add(batch.entries.len() as u64);
        if batch.first > self.next {
            let missed = batch.first - self.next;
            self.next = end;
            return Receipt::Gap(missed);
        }
        if end < self.next || (end == self.next && !batch.entries.is_empty()) {
            return Receipt::Old;
        }
        self.next = end;
        Receipt::InOrder
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender() -> Sender {
        let from = NodeRef {
            id: "n".parse().unwrap(),
            incarnation: Incarnation(1),
        };
        Sender::new(from, Incarnation(9), Timestamp(0))
    }

    fn sealed(sender: &mut Sender, now: u64, entries: &[usize]) -> Vec<Batch> {
        for len in entries {
            sender.push(Bytes::from(vec![0; *len]));
        }
        let mut batches = Vec::new();
        sender.seal(Timestamp(now), |batch| batches.push(batch));
        batches
    }

    #[test]
    fn a_lost_batch_is_found_at_the_next_batch() {
        let mut sender = sender();
        let mut receiver = Receiver::default();
        let first = sealed(&mut sender, 0, &[1, 1]).remove(0);
        let _lost = sealed(&mut sender, 1, &[1, 1, 1]);
        let third = sealed(&mut sender, 2, &[1]).remove(0);
        assert_eq!(receiver.receive(&first), Receipt::InOrder);
        assert_eq!(receiver.receive(&third), Receipt::Gap(3));
        assert_eq!(receiver.receive(&third), Receipt::Old);
        assert_eq!(receiver.receive(&first), Receipt::Old);
    }

    #[test]
    fn a_lost_last_batch_is_found_at_the_tail_beat() {
        let mut sender = sender();
        let mut receiver = Receiver::default();
        let _lost = sealed(&mut sender, 0, &[1]);
        assert_eq!(sender.beat(Timestamp(49)), None);
        let beat = sender.beat(Timestamp(50)).unwrap();
        assert_eq!(receiver.receive(&beat), Receipt::Gap(1));
        let beat = sender.beat(Timestamp(250)).unwrap();
        assert_eq!(receiver.receive(&beat), Receipt::InOrder);
    }

    #[test]
    fn beats_slow_down_after_the_last_batch_and_start_again_with_the_next() {
        let mut sender = sender();
        sealed(&mut sender, 0, &[1]);
        let beats: Vec<u64> = (0..4_000)
            .filter(|t| sender.beat(Timestamp(*t)).is_some())
            .collect();
        assert_eq!(beats, [50, 250, 1_250, 2_250, 3_250]);
        sealed(&mut sender, 4_000, &[1]);
        assert!(sender.beat(Timestamp(4_050)).is_some());
    }

    #[test]
    fn batches_stay_below_the_limit_of_the_bus() {
        let mut sender = sender();
        let batches = sealed(&mut sender, 0, &[300_000, 300_000, 100, 600_000, 100]);
        let counts: Vec<usize> = batches.iter().map(|b| b.entries.len()).collect();
        assert_eq!(counts, [1, 2, 1, 1]);
        let firsts: Vec<u64> = batches.iter().map(|b| b.first).collect();
        assert_eq!(firsts, [1, 2, 4, 5]);
    }
}
