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

use crate::channel::{ChannelKey, ChannelName};
use crate::id::{AppId, ClusterUuid, ConnectionId, GatewayRef, Incarnation, NodeRef};
use crate::inspection::{Answer, Question};
use crate::namespace::Namespaces;
use crate::position::{Epoch, Gap, Position};
use crate::presence::{Member, RosterPage};
use crate::publication::Publication;
use crate::shard::{Fence, MapUpdate, ShardId};
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
    /// Node to gateway: a piece of the link once more, because it was asked for.
    /// Its entries have the numbers that they had.
    Repair(Batch),
    /// Node to everyone.
    NodeBeat(NodeBeat),
    /// Gateway to all nodes.
    GatewayBeat(GatewayBeat),
    /// Gateway to all nodes, with its beats.
    GatewayCounts(GatewayCounts),
    /// Node to all gateways: the shard map has changed.
    Map(MapUpdate),
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
    /// All interest of this gateway in a shard has been stated anew.
    RestateEnd(RestateEnd),
    /// Send what has changed in the map since this version; zero asks for all.
    Map {
        /// The version that the gateway has.
        since: u64,
    },
    /// Tell something for a person who looks inside.
    Inspect {
        /// Comes back with the answer.
        id: u64,
        /// What.
        question: Question,
    },
    /// Send a part of the link again.
    Repair(Repair),
    /// A member has come into a channel, or is there.
    Enter(Enter),
    /// A member has gone from a channel.
    Exit(Exit),
    /// All members of this gateway in a shard have been stated.
    Stated(Stated),
    /// Tell something that the owner of a shard knows.
    Query(Query),
    /// Say whether you know of presence: of [`Request::Enter`] and what follows here.
    /// Stands alone in its message, for who does not know takes nothing of that.
    Greet(Greet),
}

impl Request {
    /// Under which fence the gateway believes the owner to be whom it asks.
    pub fn fence(&self) -> Option<Fence> {
        match self {
            Self::Publish(publish) => Some(publish.place.fence),
            Self::Skip(place) => Some(place.fence),
            Self::Join(join) => Some(join.fence),
            Self::Leave(leave) => Some(leave.fence),
            Self::RestateEnd(end) => Some(end.fence),
            Self::Enter(enter) => Some(enter.place.fence),
            Self::Exit(exit) => Some(exit.place.fence),
            Self::Stated(stated) => Some(stated.place.fence),
            Self::Query(query) => Some(query.fence),
            Self::Map { .. } | Self::Inspect { .. } | Self::Repair(_) | Self::Greet(_) => None,
        }
    }
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
    /// The publisher's idempotency key, if it gave one.
    pub idempotency: Option<Idempotency>,
    /// The user who publishes, if it is a member of the channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Arc<str>>,
}

/// A publish that its publisher may repeat, in a new place of a sequence or
/// through another gateway. Digests: what publishers choose is long, and the
/// owner only compares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// Of app, channel and the publisher's key.
    pub key: Digest,
    /// Of the publisher's whole request: the same key with another one is a
    /// mistake.
    pub body: Digest,
}

/// The first 16 bytes of a SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Digest(pub u128);

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
    /// What else is wanted, besides all that comes from now on.
    pub since: Since,
    /// From one counter per gateway incarnation; higher wins.
    pub version: u64,
    /// Whether the gateway is to be told how many subscribers there are, with
    /// [`Reply::Subscribers`]: then `count` is of connections, and kept up to date.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_counted: bool,
}

/// From where a join wants a channel's publications.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Since {
    /// From now on.
    Now,
    /// From behind what the gateway has delivered: it has lost something on the
    /// way. Comes from the history or from the repair log.
    Delivered(Position),
    /// From where a client stood that has come back. Comes from the history
    /// alone. The answer may begin a little earlier, for others that come back.
    Cursor(Position),
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
    /// No answer is wanted: if this is lost, the digests in beats say so. Gateways that
    /// do not say this repeat a leave until it is answered.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_unanswered: bool,
}

/// Ends a restatement: whatever this gateway wanted in the shard under a lower
/// version than `since` it wants no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestateEnd {
    /// The shard.
    pub shard: ShardId,
    /// The fence under which the gateway believes the owner to be.
    pub fence: Fence,
    /// Every channel that the gateway follows was joined anew with this
    /// interest version or a higher one.
    pub since: u64,
}

/// A member that is in a channel. It takes a place in the sequence of publishes: what
/// a gateway says of its members and what they publish stays in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Enter {
    /// Its place in the sequence.
    pub place: Sequenced,
    /// The channel.
    pub key: ChannelKey,
    /// Who.
    pub member: Member,
    /// Users that may be present, if that is less than
    /// [`USERS_MAX`](crate::presence::USERS_MAX).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users_max: Option<u32>,
}

/// A member that is in a channel no longer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// Its place in the sequence.
    pub place: Sequenced,
    /// The channel.
    pub key: ChannelKey,
    /// Which connection.
    pub connection: ConnectionId,
}

/// Ends a restatement of members: those of this gateway in the shard that the owner
/// under this fence has not been told of are there no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stated {
    /// Its place in the sequence.
    pub place: Sequenced,
    /// To which owner the members were stated. When it is repeated to a later one,
    /// that one has not heard of all of them.
    pub to: Fence,
}

/// Says besides of which shards this gateway has never stated a member in its life.
/// Their owners, as far as the map of the message's version knows them, need not wait
/// for [`Stated`]: whoever comes later is told to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greet {
    /// Of all but these.
    pub except: Vec<ShardId>,
}

/// A question to the owner of a shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Query {
    /// Comes back with the answer.
    pub id: u64,
    /// The shard, as the gateway computed it.
    pub shard: ShardId,
    /// The fence under which the gateway believes the owner to be.
    pub fence: Fence,
    /// What is asked.
    pub what: What,
}

/// What an owner may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Who is present in a channel.
    Roster {
        /// The channel.
        key: ChannelKey,
        /// Only users behind this one.
        after: Option<Arc<str>>,
    },
    /// How many there are in a channel.
    Channel {
        /// The channel.
        key: ChannelKey,
    },
    /// What a cache channel keeps.
    Cached {
        /// The channel.
        key: ChannelKey,
    },
    /// Which channels of the shard are occupied.
    Channels {
        /// Of this app.
        app: AppId,
        /// Their names begin so.
        prefix: Arc<str>,
        /// Only names behind this one.
        after: Option<ChannelName>,
    },
}

impl What {
    /// The channel that is asked about, if it is one.
    pub fn key(&self) -> Option<&ChannelKey> {
        match self {
            Self::Roster { key, .. } | Self::Channel { key } | Self::Cached { key } => Some(key),
            Self::Channels { .. } => None,
        }
    }
}

/// What an owner answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// To [`What::Roster`].
    Roster(RosterPage),
    /// To [`What::Channel`].
    Channel(Attendance),
    /// To [`What::Cached`].
    Cached {
        /// The owner's fence.
        fence: Fence,
        /// The publication, if there is one.
        cached: Option<Cached>,
    },
    /// To [`What::Channels`].
    Channels(ChannelsPage),
}

/// Channels of a shard in which somebody is, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelsPage {
    /// The owner's fence.
    pub fence: Fence,
    /// Each with how many users are present.
    pub channels: Vec<(ChannelName, u32)>,
    /// Whether there are more behind the last one.
    pub more: bool,
    /// Whether the owner knows all who are there.
    pub complete: bool,
    /// Of each channel: connections, where they are counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subscribers: Vec<u32>,
}

/// What a cache channel keeps for those who come: the last publication of a backend,
/// for [`CACHE_AGE`](crate::channel::CACHE_AGE).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cached {
    /// How long ago it was published, in milliseconds: clocks are each machine's own.
    pub age_ms: u64,
    /// It.
    pub publication: Arc<Publication>,
}

/// How many there are in a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attendance {
    /// The owner's fence.
    pub fence: Fence,
    /// Whether anybody follows it, or did a moment ago.
    pub is_followed: bool,
    /// Users that are present.
    pub users: u32,
    /// Whether the owner knows all who are there.
    pub complete: bool,
    /// Connections, where they are counted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub subscribers: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_false(word: &bool) -> bool {
    !word
}

impl Told {
    /// Under which fence the owner has answered.
    pub fn fence(&self) -> Fence {
        match self {
            Self::Roster(page) => page.fence,
            Self::Channel(attendance) => attendance.fence,
            Self::Cached { fence, .. } => *fence,
            Self::Channels(page) => page.fence,
        }
    }
}

/// Asks for what has not come by a link. It is answered with
/// [`Message::Repair`], and with [`Reply::Unrepairable`] for what the node no
/// longer holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// The life of the node whose link it is: another one counts anew.
    pub node: Incarnation,
    /// What is missing.
    pub spans: Vec<Span>,
}

/// Entries of a link, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The first of them.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl Span {
    /// The number behind the last of them.
    pub fn end(&self) -> u64 {
        self.first.saturating_add(self.count)
    }
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
    /// To a leave, unless that wants none.
    Left {
        /// Which leave.
        version: u64,
        /// The answer.
        result: Result<(), Refusal>,
    },
    /// To a request for the map.
    Map {
        /// What has changed.
        update: MapUpdate,
        /// What channels keep.
        namespaces: Namespaces,
    },
    /// Unasked: the owner knows something else of this gateway's interest in a
    /// shard than its beats say, so the gateway is to join all its channels
    /// there anew and then to send [`Request::RestateEnd`].
    Restate {
        /// The shard.
        shard: ShardId,
        /// The owner's fence.
        fence: Fence,
    },
    /// To [`Request::Inspect`].
    Inspected {
        /// The question's.
        id: u64,
        /// The answer.
        answer: Answer,
    },
    /// To anything of an incarnation that a higher one has voided.
    Gone {
        /// The higher one.
        newer: Incarnation,
    },
    /// To anything of an incarnation that the cluster has declared gone: nothing
    /// of what it has asked is done any more, and all that it wanted is forgotten.
    /// The gateway takes a higher one.
    DeclaredGone {
        /// This one is gone, and all below it.
        through: Incarnation,
    },
    /// To [`Request::Greet`]: the node knows of presence.
    Greeted {
        /// The version of the map that the question came with.
        map_version: u64,
    },
    /// Unasked, to those who are counted: how many subscribers a channel has.
    Subscribers(Subscribers),
    /// To a query.
    Queried {
        /// Which query.
        id: u64,
        /// The answer.
        result: Result<Told, Refusal>,
    },
    /// To a [`Request::Repair`] that asks for more of the link than is held.
    Unrepairable {
        /// The lowest number that is held. If there is no link, this is above
        /// all numbers.
        below: u64,
    },
}

/// How many subscribers a channel has at all gateways, a moment ago.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribers {
    /// The shard.
    pub shard: ShardId,
    /// The owner's fence.
    pub fence: Fence,
    /// The channel.
    pub key: ChannelKey,
    /// Connections.
    pub count: u32,
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
    /// What the channel keeps for those who come, if it is a cache channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached: Option<Cached>,
}

/// What lay between the gateway's position and the answer's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// These, without holes. Empty when it missed nothing or asked from now on.
    /// If they end before [`Joined::position`], the gateway asks again from
    /// there.
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
    /// The idempotency key has been used for another request.
    IdempotencyMismatch,
    /// The shard remembers as many idempotency keys as it may.
    IdempotencyFull,
    /// Nobody stands by for the owner, and the channel's namespace requires
    /// somebody. It is not in the channel.
    NoStandby,
    /// The same, but it was taken before that: it is in the channel, and in one
    /// process only.
    Unprotected,
    /// As many users are present in the channel as may be.
    RosterFull,
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

/// Says that a node is there, and what it goes by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeBeat {
    /// The node.
    pub from: NodeRef,
    /// Its cluster.
    pub cluster: ClusterUuid,
    /// The version of its map.
    pub map_version: u64,
    /// [`Namespaces::digest`] of its configuration.
    pub namespaces: u64,
}

/// Says that a gateway is there, and what it wants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GatewayBeat {
    /// The gateway.
    pub from: GatewayRef,
    /// Its cluster.
    pub cluster: ClusterUuid,
    /// The version of its map.
    pub map_version: u64,
    /// [`Namespaces::digest`] of what it was given.
    pub namespaces: u64,
    /// Clients.
    pub connections: u32,
    /// What it wants in some shards; other shards follow in the next beats.
    pub interest: Vec<ShardInterest>,
}

/// What a gateway wants in a shard, as short as can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardInterest {
    /// The shard.
    pub shard: ShardId,
    /// The channels that the gateway follows there.
    pub digest: InterestDigest,
}

/// What a gateway has done with what it got of some shards; other shards follow
/// with the next beats. A message of its own, for a beat is understood as a whole
/// or not at all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GatewayCounts {
    /// The gateway.
    pub from: GatewayRef,
    /// Its cluster.
    pub cluster: ClusterUuid,
    /// What it counts of some shards.
    pub counts: Vec<ShardCounts>,
}

/// What a gateway counts of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardCounts {
    /// The shard.
    pub shard: ShardId,
    /// The fence under which all of it came.
    pub fence: Fence,
    /// All of it until now: one that is lost on the way is made up for by the
    /// next.
    pub fanout: Fanout,
}

/// What became of publications at a gateway's connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fanout {
    /// Publications times connections: written or queued.
    pub deliveries: u64,
    /// Publications times workers that had connections for them.
    pub spreads: u64,
    /// Of which fraction of a worker's connections each of these was for, in
    /// millionths, summed up.
    pub share_ppm: u64,
    /// Microseconds that workers spent with them.
    pub busy_us: u64,
}

impl Fanout {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            deliveries: self.deliveries.saturating_add(other.deliveries),
            spreads: self.spreads.saturating_add(other.spreads),
            share_ppm: self.share_ppm.saturating_add(other.share_ppm),
            busy_us: self.busy_us.saturating_add(other.busy_us),
        }
    }

    /// What has been added since an earlier count.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            deliveries: self.deliveries.saturating_sub(earlier.deliveries),
            spreads: self.spreads.saturating_sub(earlier.spreads),
            share_ppm: self.share_ppm.saturating_sub(earlier.share_ppm),
            busy_us: self.busy_us.saturating_sub(earlier.busy_us),
        }
    }
}

/// A set of channels: how many, and the exclusive or of their hashes. Kept up
/// to date one channel at a time, by both sides alike.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterestDigest {
    /// How many.
    pub count: u32,
    /// The exclusive or of [`ChannelKey::fingerprint`].
    pub hash: u64,
}

impl InterestDigest {
    /// A channel has come into the set.
    pub fn insert(&mut self, key: &ChannelKey) {
        self.count += 1;
        self.hash ^= key.fingerprint();
    }

    /// A channel has gone from the set.
    pub fn remove(&mut self, key: &ChannelKey) {
        self.count = self.count.saturating_sub(1);
        self.hash ^= key.fingerprint();
    }
}
