//! What people who look inside ask of nodes, and what they are told.

use serde::{Deserialize, Serialize};

use crate::channel::ChannelKey;
use crate::id::{GatewayId, GatewayRef, Incarnation, NodeId, NodeRef};
use crate::position::{Offset, Position};
use crate::shard::{Fence, MapUpdate, ShardId};
use crate::time::UnixTime;

/// What a person who looks inside can ask.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Who is a member of the cluster. Any node knows.
    Nodes,
    /// Which gateways are heard of. Any node knows.
    Gateways,
    /// Who owns what. Any node knows.
    Shards,
    /// Who stands by for what, and what is to move. Any node knows.
    Standbys,
    /// What has happened to nodes and shards. Any node knows what it has seen.
    Events,
    /// One channel. Its owner knows.
    Channel {
        /// The channel.
        key: ChannelKey,
    },
    /// One shard. Its owner knows.
    Shard {
        /// The shard.
        shard: ShardId,
    },
}

/// An answer to a [`Question`], as it travels; what scripts see of it is made of
/// this by the admin address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Members, by name.
    Nodes(Vec<NodeInfo>),
    /// Gateways, by name.
    Gateways(Vec<GatewayInfo>),
    /// The whole map.
    Shards(MapUpdate),
    /// By shard number; those that are missing have nobody.
    Standbys(Vec<StandbyInfo>),
    /// The last first.
    Events(Vec<EventInfo>),
    /// The channel.
    Channel(ChannelInfo),
    /// The shard.
    Shard(ShardInfo),
    /// Somebody else knows.
    NotOwner {
        /// Who, as far as this node knows.
        owner: NodeRef,
    },
    /// Nobody can tell now; why.
    Unavailable(String),
}

/// One member of the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its name.
    pub name: NodeId,
    /// Its present life; `None` until it has registered.
    pub incarnation: Option<Incarnation>,
    /// Where other nodes reach it.
    pub address: String,
    /// Where it stands.
    pub zone: String,
    /// Votes, owns nothing.
    pub witness: bool,
    /// `leader`, `voter` or `learner`; with `, drains` or `, off the bus` if it gives
    /// away all that it has.
    pub role: String,
    /// `alive`, `suspect` or `down`, as gossip sees it: advice.
    pub gossip: String,
    /// Shards that it owns.
    pub shards: u32,
    /// The version of the program, as gossip tells it.
    pub version: String,
}

/// Who stands by for a shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StandbyInfo {
    /// Which one.
    pub shard: ShardId,
    /// Under its owner with this fence.
    pub fence: Fence,
    /// The nodes that have all of it.
    pub in_sync: Vec<NodeId>,
    /// Who is to own it, if that is another node.
    pub moves_to: Option<NodeId>,
}

/// Something that has happened to a node or to shards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventInfo {
    /// When the node that tells it saw it.
    pub at: UnixTime,
    /// The last entry of the log that had changed rows then.
    pub version: u64,
    /// What it was.
    pub kind: EventKind,
    /// Whom it was taken from, or who it is.
    pub from: Option<NodeRef>,
    /// Who has it now.
    pub to: Option<NodeRef>,
    /// How many shards.
    pub shards: u32,
}

/// What can happen to nodes and shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A node has started, in a new life.
    Started,
    /// A node is to give away all that it has.
    Drains,
    /// A node does not hear itself on the bus, and gives away all that it has.
    OffBus,
    /// It hears itself again.
    OnBus,
    /// A node is no member any more.
    Struck,
    /// Shards have got their first owner.
    Assigned,
    /// Shards have moved as planned.
    Moved,
    /// Standbys have become owners, for nothing was heard of the owner.
    FailedOver,
    /// Shards begin anew: nobody had what was in them.
    BeganAnew,
    /// A node has again what it kept when it stopped.
    CameBack,
}

impl EventKind {
    /// As metrics and scripts know it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Drains => "drains",
            Self::OffBus => "off_bus",
            Self::OnBus => "on_bus",
            Self::Struck => "struck",
            Self::Assigned => "assigned",
            Self::Moved => "moved",
            Self::FailedOver => "failed_over",
            Self::BeganAnew => "began_anew",
            Self::CameBack => "came_back",
        }
    }
}

/// One gateway, as a node hears it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GatewayInfo {
    /// Its name.
    pub name: GatewayId,
    /// Its present life.
    pub incarnation: Incarnation,
    /// Milliseconds since it was heard of.
    pub heard_ms: u64,
    /// The version of its map.
    pub map_version: u64,
    /// Its clients.
    pub connections: u32,
}

/// One channel, as its owner knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChannelInfo {
    /// The channel.
    pub key: ChannelKey,
    /// Its shard.
    pub shard: ShardId,
    /// Who answers.
    pub owner: NodeRef,
    /// Since when.
    pub fence: Fence,
    /// `None`: the channel has no state; nobody follows it and nothing is kept.
    pub state: Option<ChannelState>,
}

/// The state of a channel at its owner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChannelState {
    /// Where it stands.
    pub position: Position,
    /// The lowest offset that can still be had.
    pub earliest: Offset,
    /// Publications that are kept.
    pub kept: u32,
    /// Which gateways follow it, with how many subscribers, as they last said.
    pub followers: Vec<(GatewayRef, u32)>,
    /// Whether it is not replicated: the owner alone has it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_alone: bool,
}

/// One shard, as its owner knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardInfo {
    /// The shard.
    pub shard: ShardId,
    /// Who answers.
    pub owner: NodeRef,
    /// Since when.
    pub fence: Fence,
    /// What the owner does now.
    pub state: ShardState,
    /// For what something waits, for people.
    pub waits_for: Option<String>,
    /// For how long nothing has gone on though something waits, in milliseconds.
    pub waits_ms: u64,
    /// Answers and publications that wait for standbys, or for leases.
    pub held: u32,
    /// Channels with state.
    pub channels: u32,
    /// Pairs of gateway and channel.
    pub interest: u32,
    /// For how much longer the owner's lease from the leader lasts. `None`: it is
    /// alone, and needs none.
    pub node_lease_ms: Option<u64>,
    /// Whoever is sent what changes.
    pub standbys: Vec<ReplicaInfo>,
}

/// What an owner does with a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShardState {
    /// It is the owner, and does not serve yet.
    Begins,
    /// It answers.
    Serves,
    /// It lacks a lease; whoever asks waits.
    Waits,
}

impl ShardState {
    /// As scripts know it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Begins => "begins",
            Self::Serves => "serves",
            Self::Waits => "waits",
        }
    }
}

/// A standby, as the owner knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaInfo {
    /// Which node.
    pub node: NodeRef,
    /// How far it is.
    pub state: ReplicaState,
    /// Changes that it has not confirmed.
    pub lag_records: u64,
    /// If there are any: for how long it has confirmed nothing that was sent since.
    /// `None`: it has not confirmed anything yet.
    pub lag_ms: Option<u64>,
    /// For how much longer the lease lasts that the owner has from it; 0 without.
    pub lease_ms: u64,
}

/// How far a standby is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// It is being sent what there is.
    Filling,
    /// It has everything, and the owner waits for it; that is not agreed yet.
    Counting,
    /// It may be made the owner.
    InSync,
    /// It is to be none any more, and is until that is agreed.
    Retiring,
    /// The same, because it is silent.
    Leaving,
}

impl ReplicaState {
    /// As scripts know it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Filling => "filling",
            Self::Counting => "counting",
            Self::InSync => "in_sync",
            Self::Retiring => "retiring",
            Self::Leaving => "leaving",
        }
    }
}
