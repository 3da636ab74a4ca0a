//! What a gateway decides, without IO, clock or randomness. Two machines, for
//! the two things that a gateway has one and many of:
//!
//! ```text
//!  publish (API) ───┐                         ┌──▶ requests to owners (bus)
//!  replies, batches,├─▶ Edge::handle ─Effect──┼──▶ answers to publishers
//!  beats (bus) ─────┤    ├ Uplink     1/shard └──▶ Attached, Deliver, Gap
//!  follow, unfollow ┘    └ Attachment 1/channel          │  to workers
//!        ▲                                               ▼
//!        └───────────── worker (one per core): Hub, Fanout, Outbox, Connection
//!                          ▲                               │
//!                 client commands                    frames to clients
//! ```
//!
//! The **edge** is what is per gateway: it knows owners, numbers publishes,
//! joins channels and puts their publications in order. A **worker** is what is
//! per core: it owns connections and spreads publications over them. Between
//! them, a worker follows a channel when its first subscriber comes and
//! unfollows it after the last. Before any of this, **discovery** asks nodes for
//! the first map.

pub mod address;
pub mod admission;
pub mod attachment;
pub mod auth;
pub mod budget;
pub mod client_event;
pub mod connection;
pub mod discovery;
pub mod edge;
pub mod fanout;
pub mod hub;
pub mod idempotency;
pub mod leaving;
pub mod limits;
pub mod outbox;
pub mod requests;
pub mod signing;
pub mod token;
pub mod uplink;
pub mod watchlist;
pub mod wheel;
pub mod workers;
