//! The receiving end of a link.

use std::ops::Range;
use std::time::Duration;

use crate::message::{Batch, Span};
use crate::time::Timestamp;

/// Holes that are open at most. One more, and the oldest is given up.
pub const HOLES_MAX: usize = 256;
/// How long a repair is waited for until it is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How often a hole is asked for without anything coming at all.
const ASKS_MAX: u32 = 4;
/// How long a hole is asked for while other repairs do come.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a batch told about the link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Receipt {
    /// So many entries before it have not come.
    pub missed: u64,
    /// What is given up because there are too many holes.
    pub lost: Vec<Span>,
}

/// What is to be done about the holes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Due {
    /// Ask for these.
    pub ask: Vec<Span>,
    /// These are given up.
    pub lost: Vec<Span>,
}

/// The receiving end: notices holes, says when to ask for what is missing, and
/// which entries have not been here before. Each entry is either handed over
/// once or given up once; what comes after that is old.
#[derive(Debug)]
pub struct Receiver {
    next: u64,
    /// In order, apart from each other, none empty, all below `next`.
    holes: Vec<Hole>,
    /// When a part of a hole was last filled.
    filled_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy)]
struct Hole {
    first: u64,
    end: u64,
    since: Timestamp,
    /// When it is to be asked for.
    due: Timestamp,
    /// How often it was asked for while nothing came.
    asks: u32,
}

impl Hole {
    fn span(&self) -> Span {
        Span {
            first: self.first,
            count: self.end - self.first,
        }
    }

    fn is_empty(&self) -> bool {
        self.first >= self.end
    }
}

impl Default for Receiver {
    /// A link begins with entry 1: if the first batch to arrive begins later,
    /// what came before it was lost.
    fn default() -> Self {
        Self {
            next: 1,
            holes: Vec::new(),
            filled_at: None,
        }
    }
}

impl Receiver {
    /// Takes note of a batch, sent for the first time or again, and says which
    /// of its entries are new: `fresh` are their indices.
    pub fn receive(
        &mut self,
        now: Timestamp,
        batch: &Batch,
        fresh: &mut Vec<Range<usize>>,
    ) -> Receipt {
        fresh.clear();
        let (first, count) = (batch.first, batch.entries.len());
        let end = first.saturating_add(count as u64);
        let mut receipt = Receipt::default();
        if first < self.next {
            self.fill(now, first, end, fresh);
        } else {
            receipt.missed = first - self.next;
            if receipt.missed > 0 {
                self.holes.push(Hole {
                    first: self.next,
                    end: first,
                    since: now,
                    due: now,
                    asks: 0,
                });
            }
            self.next = first;
        }
        if end > self.next {
            fresh.push((self.next - first) as usize..count);
            self.next = end;
        }
        if self.holes.len() > HOLES_MAX {
            receipt.lost.push(self.holes.remove(0).span());
        }
        receipt
    }

    /// The lowest number that has not come and may still come.
    pub fn lowest_missing(&self) -> Option<u64> {
        self.holes.first().map(|hole| hole.first)
    }

    /// What is to be asked for now, and what has been asked for in vain.
    pub fn due(&mut self, now: Timestamp) -> Due {
        let mut due = Due::default();
        let filled_at = self.filled_at;
        self.holes.retain_mut(|hole| {
            if hole.due > now {
                return true;
            }
            // The sender is at it: a long repair is paced.
            if hole.asks > 0 && filled_at.is_some_and(|at| at + ASK_AGAIN >= hole.due) {
                hole.asks = 1;
            }
            if hole.asks >= ASKS_MAX || now.since(hole.since) >= PATIENCE {
                due.lost.push(hole.span());
                return false;
            }
            hole.asks += 1;
            hole.due = now + ASK_AGAIN;
            due.ask.push(hole.span());
            true
        });
        due
    }

    /// The sender holds nothing below this number. Returns what is given up.
    pub fn unrepairable(&mut self, below: u64) -> Vec<Span> {
        let mut lost = Vec::new();
        self.holes.retain_mut(|hole| {
            let gone = Hole {
                end: hole.end.min(below),
                ..*hole
            };
            if !gone.is_empty() {
                lost.push(gone.span());
                hole.first = gone.end;
            }
            !hole.is_empty()
        });
        lost
    }

    /// Entries `first..end` are here. Which of them fill a hole?
    fn fill(&mut self, now: Timestamp, first: u64, end: u64, fresh: &mut Vec<Range<usize>>) {
        let mut at = self.holes.partition_point(|hole| hole.end <= first);
        while let Some(hole) = self.holes.get(at).copied().filter(|hole| hole.first < end) {
            let before = Hole {
                end: hole.end.min(first),
                ..hole
            };
            let after = Hole {
                first: hole.first.max(end),
                ..hole
            };
            let (from, to) = (hole.first.max(first), hole.end.min(end));
            fresh.push((from - first) as usize..(to - first) as usize);
            self.filled_at = Some(now);
            let left = [before, after].into_iter().filter(|hole| !hole.is_empty());
            let left: Vec<Hole> = left.collect();
            let count = left.len();
            self.holes.splice(at..=at, left);
            at += count;
        }
    }
}
