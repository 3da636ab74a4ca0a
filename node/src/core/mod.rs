//! What a node decides, without IO, clock or randomness.
//!
//! ```text
//!                       Input, now                       Effect
//!   bus ──▶ ingress ──────────────▶ Shards ──▶ Shard ──────────▶ egress ──▶ bus
//!              │                      ▲          │
//!              ├─ Gateways            │          ├─ Channel ── History, Interest
//!              ├─ Neighbours         map         ├─ PublishTable (one per gateway)
//!              │                                 ├─ Keys         (idempotency)
//!              └─ route                          └─ Accord       (one per gateway)
//! ```
//!
//! [`outbound::Outbound`] turns effects into messages: links, replies, beats.
//!
//! Each worker owns some [`shards::Shards`] outright, which come and go with the
//! map; a [`shard::Shard`] is the only place where channels change. Effects come
//! out in the order in which they must be performed: a publication is handed to
//! the links before its publisher hears of it, and the driver keeps that order.
//!
//! Standbys:
//!
//! ```text
//!   owner                                              standby
//!   Shard ── Replication ──▶ Pairs ══ batches ══▶ Replicas ── Shard::replay
//!      ▲       holds back      │  ◀═══ echoes ═══     │
//!      └── confirmed, leases ──┘                      └─▶ Begin: it is the owner now
//! ```
//!
//! [`lease`] says who may serve, [`detection`] who is dead, [`placement`] what
//! the leader decides of it.

pub mod accord;
pub mod agreed;
pub mod caches;
pub mod channel;
pub mod checkpoint;
pub mod cluster;
pub mod detection;
pub mod events;
pub mod formation;
pub mod gateways;
#[cfg(test)]
mod golden;
pub mod gone;
pub mod gossip;
pub mod handoff;
pub mod history;
pub mod idempotency;
pub mod inspection;
pub mod interest;
pub mod lease;
pub mod neighbours;
pub mod outbound;
pub mod pace;
pub mod pairs;
pub mod placement;
pub mod publish_table;
pub mod record;
pub mod replicas;
pub mod replication;
pub mod reports;
pub mod roster;
pub mod routing;
pub mod shard;
pub mod shards;
pub mod tombstones;
pub mod wire;
