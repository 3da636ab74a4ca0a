//! What a node decides, without IO, clock or randomness.
//!
//! ```text
//!                    Request, now                    Effect
//!   bus ──▶ ingress ─────────────▶ Shard::handle ─────────────▶ egress ──▶ bus
//!              │                    │        ▲
//!              └─ routing::route    ▼        │
//!                                  Channel ──┴─ History, Interest
//!                                  PublishTable (one per gateway)
//! ```
//!
//! [`outbound::Outbound`] turns effects into messages: links, replies, beats.
//!
//! [`shard::Shard`] is the only thing that changes; each worker owns some of
//! them outright. Effects come out in the order in which they must be
//! performed: a publication is handed to the links before its publisher hears
//! of it, and the driver keeps that order.

pub mod channel;
pub mod cluster;
pub mod formation;
pub mod history;
pub mod interest;
pub mod outbound;
pub mod placement;
pub mod publish_table;
pub mod routing;
pub mod shard;
