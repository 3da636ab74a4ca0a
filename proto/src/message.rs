//! Everything that travels between gateways and nodes.
//!
//! A gateway sends [`Requests`] to a node and gets [`Replies`], each matched by
//! what it is about: a publish by (shard, sequence), a join or leave by its
//! interest version. So a batch of requests is no unit: one that waits does not
//! hold back the answers of the others, and a repeated request is answered like
//! the first. Publications come by the link, as entries of a [`Batch`].

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::channel::ChannelKey;
use crate::id::{ConnectionId, GatewayRef, Incarnation, NodeRef};
use crate::position::{Epoch, Gap, Position};
use crate::publication::Publication;
use crate::shard::{Fence, ShardId, ShardMap};
use crate::time::UnixTime;

/// One message on the bus.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// Gateway to node.
    Requests(Requests),
    /// Node to the inbox of a gateway.
    Replies(Replies),
    /// Node to gateway: a piece of the link.
    Batch(Batch),
    /// Node to everyone.
    NodeBeat(NodeBeat),
}

/// What a gateway asks of one node, collected while the last batch was sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Requests {
    /// Who asks, and where replies and link batches go.
    pub from: GatewayRef,
    /// The version of the sender's map; zero without one.
    pub map_version: u64,
    /// The requests, in order per shard.
    pub requests: Vec<Request>,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Publish into a channel.
    Publish(Publish),
    /// A publish that will not come any more; leaves no hole in the sequence.
    Skip(Sequenced),
    /// Follow a channel.
    Join(Join),
    /// Follow it no longer.
    Leave(Leave),
    /// Send the map.
    Map,
}

/// The place of a publish in its gateway's sequence for one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequenced {
    /// The shard, as the gateway computed it.
    pub shard: ShardId,
    /// The fence under which the gateway believes the owner to be.
    pub fence: Fence,
    /// Counts this gateway incarnation's publishes to this shard.
    pub sequence: u64,
    /// The lowest sequence that is still unanswered: results below it may be
    /// forgotten.
    pub low_mark: u64,
}

/// A publish request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Publish {
    /// Its place in the sequence.
    pub place: Sequenced,
    /// The channel.
    pub key: ChannelKey,
    /// The event's name.
    pub event: Arc<str>,
    /// The payload.
    pub data: Arc<str>,
    /// The connection that does not get it.
    pub exclude: Option<ConnectionId>,
    /// When the gateway accepted it.
    pub accepted_at: UnixTime,
}

/// Registers interest and asks for what was missed, as one atomic message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Join {
    /// The shard, as the gateway computed it.
    pub shard: ShardId,
    /// The fence under which the gateway believes the owner to be.
    pub fence: Fence,
    /// The channel.
    pub key: ChannelKey,
    /// Subscribers at this gateway.
    pub count: u32,
    /// Up to where the gateway has the channel; `None`: from now on.
    pub have: Option<Position>,
    /// From one counter per gateway incarnation; higher wins.
    pub version: u64,
}

/// Removes interest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Leave {
    /// The shard, as the gateway computed it.
    pub shard: ShardId,
    /// The fence under which the gateway believes the owner to be.
    pub fence: Fence,
    /// The channel.
    pub key: ChannelKey,
    /// As in [`Join::version`].
    pub version: u64,
}

/// Answers, collected like requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replies {
    /// Who answers.
    pub from: NodeRef,
    /// The incarnation that asked.
    pub to: Incarnation,
    /// The version of the sender's map.
    pub map_version: u64,
    /// The answers.
    pub replies: Vec<Reply>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To a publish or skip.
    Published {
        /// The shard it was for.
        shard: ShardId,
        /// Which publish.
        sequence: u64,
        /// The answer.
        result: PublishResult,
    },
    /// To a join.
    Joined {
        /// Which join.
        version: u64,
        /// The answer.
        result: JoinResult,
    },
    /// To a leave.
    Left {
        /// Which leave.
        version: u64,
        /// The answer.
        result: Result<(), Refusal>,
    },
    /// To a request for the map.
    Map(ShardMap),
    /// To anything of an incarnation that a higher one has voided.
    Gone {
        /// The higher one.
        newer: Incarnation,
    },
}

/// What became of a publish.
pub type PublishResult = Result<Published, Refusal>;

/// What became of a join.
pub type JoinResult = Result<Joined, Refusal>;

/// A publish that was taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Published {
    /// It is in the channel.
    Accepted {
        /// The owner's fence.
        fence: Fence,
        /// Where it stands.
        position: Position,
        /// In how many processes it is held.
        copies: u8,
    },
    /// The place in the sequence is closed without a publication.
    Skipped,
}

/// A join that was taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Joined {
    /// The owner's fence.
    pub fence: Fence,
    /// Where the channel stands; everything after comes by the link.
    pub position: Position,
    /// What the gateway had missed.
    pub missed: Missed,
}

/// What lay between the gateway's position and the answer's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// These. Empty when it missed nothing or asked from now on. If they end
    /// before [`Joined::position`], the gateway asks again from there.
    Publications(Vec<Arc<Publication>>),
    /// They cannot be given.
    Gap(Gap),
}

/// Why an owner, or a node that is none, took nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Somebody else serves the shard, as far as this node knows.
    NotOwner {
        /// Who.
        owner: NodeRef,
        /// Since when.
        fence: Fence,
    },
    /// The sequence has a hole before this publish; send again from here.
    OutOfSequence {
        /// The lowest sequence that has not come.
        expected: u64,
    },
    /// The result of this sequence was below an earlier low mark and is gone.
    Forgotten,
    /// A bound of the shard is reached.
    Overloaded,
}

/// A piece of a link: entries `first`, `first + 1`, … A batch without entries
/// is a tail beat: everything below `first` has been sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// The sending node.
    pub from: NodeRef,
    /// The gateway incarnation it is for.
    pub to: Incarnation,
    /// The number of the first entry.
    pub first: u64,
    /// Encoded [`Entry`]s.
    pub entries: Vec<Bytes>,
}

/// One publication on its way to a gateway. Encoded once and shared by the
/// links of all gateways that follow the channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The channel's shard.
    pub shard: ShardId,
    /// The owner's fence.
    pub fence: Fence,
    /// The channel.
    pub key: ChannelKey,
    /// The channel's epoch.
    pub epoch: Epoch,
    /// The publication.
    pub publication: Arc<Publication>,
}

/// Says that a node is there, and how new its map is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeBeat {
    /// The node.
    pub from: NodeRef,
    /// The version of its map.
    pub map_version: u64,
}
