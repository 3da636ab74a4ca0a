//! What gateways and nodes say to each other, and the bus it travels on.
//!
//! Every **channel** is a name inside an **app**. A fixed hash puts it into one
//! of a fixed number of **shards** ([`shard`]), and every shard has one
//! **owner**, a node. The owner gives each **publication** its **position**
//! ([`position`]): an offset, contiguous within an epoch. A gateway that has a
//! follower of a channel tells the owner so with a `Join` ([`message`]); from
//! then on everything published there reaches the gateway over a **link**
//! ([`link`]), a numbered sequence of batches on a **bus** ([`bus`]) that may
//! lose any of them. Offsets, not the link, are the guard: offset n+1 of a
//! channel is delivered only after n.
//!
//! Everything here except [`bus`] is pure: no clock, no randomness, no IO.
#![warn(missing_docs)]

pub mod bus;
pub mod channel;
pub mod codec;
pub mod error;
pub mod id;
pub mod inspection;
pub mod link;
pub mod message;
pub mod namespace;
pub mod position;
pub mod presence;
pub mod publication;
pub mod recent;
pub mod shard;
pub mod subject;
pub mod time;
