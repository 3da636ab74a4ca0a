//! Links: one direction between two processes over a bus that may lose
//! messages. Batches are numbered per pair of incarnations, so the receiver
//! sees a hole at the next batch, or at the next *tail beat*: an empty batch
//! that only says how far the sequence has come.
//!
//! ```text
//!   Sender                                          Receiver
//!     │── batch 1..4 ───────────────────────────────▶│ next = 4
//!     │── batch 4..9 ──────── lost                   │
//!     │── batch 9..10 ──────────────────────────────▶│ hole 4..9; 9 is handed over
//!     │◀──────────────────────────── repair? 4..9 ───│ again after 200 ms, 3 times
//!   ring: 6..10                                      │
//!     │── unrepairable below 6 ─────────────────────▶│ 4 and 5 are given up
//!     │── repair 6..9, paced ───────────────────────▶│ handed over, late
//! ```
//!
//! A link finds loss and mends what it can; it does not hold anything back.
//! What it carries is guarded end to end by offsets, so an entry may be handed
//! over whenever it comes. What is given up, the gateway makes good by asking
//! for channels by their positions.

mod receiver;
mod ring;
mod sender;

pub use receiver::{Due, HOLES_MAX, Receipt, Receiver};
pub use ring::{AGE_MAX, LINK_BYTES_MAX, LINK_ENTRIES_MAX};
pub use sender::Sender;

#[cfg(test)]
mod tests;
