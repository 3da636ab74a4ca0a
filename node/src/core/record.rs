//! What an owner tells its standby: every change of a shard's state, in the
//! order in which the changes were made, so that whoever applies them has the
//! same state.
//!
//! A standby that is new gets the state itself, piece by piece, between the
//! records of what changes meanwhile: [`Record::Begin`], pieces,
//! [`Record::Whole`]. A record about a channel whose piece has not come yet
//! changes nothing, for the piece will say the same. Times travel as ages:
//! clocks are each machine's own.
//!
//! Interest is in no record. Gateways state it anew to a new owner.
//!
//! Of a channel that is not replicated a standby is told nothing but what its
//! publishers were told ([`Record::Close`]). What the owner alone has of such
//! channels goes to the next owner when the shard moves, right before
//! [`Record::Release`].

use std::sync::Arc;

use proto::channel::ChannelKey;
use proto::id::{ConnectionId, GatewayRef, NodeRef};
use proto::message::{Cached, Digest, Idempotency, PublishResult};
use proto::position::{Epoch, Position};
use proto::presence::User;
use proto::publication::Publication;
use proto::shard::Fence;
use serde::{Deserialize, Serialize};

/// One change of a shard's state, or a piece of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// The state of the shard comes from here on; whatever the standby had of
    /// it goes.
    Begin(Begin),
    /// Keys of publishers.
    Keys(Vec<KeyPiece>),
    /// Channels without state: where they stood.
    Tombstones(Vec<TombstonePiece>),
    /// A channel.
    Channel(Box<ChannelPiece>),
    /// A channel in which somebody is present.
    Presence(Box<PresencePiece>),
    /// What a cache channel keeps for those who come: behind the channel itself.
    Cached {
        /// The channel.
        key: ChannelKey,
        /// What it keeps.
        cached: Cached,
    },
    /// Everything has come that there was when it began.
    Whole,
    /// A channel gets state.
    Create {
        /// Which one.
        key: ChannelKey,
        /// Where it begins, or goes on.
        position: Position,
        /// Whether it may be one that was forgotten.
        forgetful: bool,
    },
    /// A publish was performed.
    Publish(Box<Performed>),
    /// A place in a gateway's sequence was closed without a publication.
    Close {
        /// Whose sequence.
        from: GatewayRef,
        /// The place.
        sequence: u64,
        /// Results below it are forgotten.
        low_mark: u64,
        /// What its gateway is told.
        result: PublishResult,
        /// Its publisher's key, if it was performed all the same: in a channel
        /// that is not replicated.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        idempotency: Option<Idempotency>,
    },
    /// The state of a channel goes; it stood there.
    Evict {
        /// Which one.
        key: ChannelKey,
        /// Where.
        position: Position,
    },
    /// A channel is not replicated any more, or has begun anew without being: what
    /// the standby has of it, or where it stood, goes.
    Forget {
        /// Which one.
        key: ChannelKey,
    },
    /// The owner itself has put something into a channel: nobody is there any more
    /// who could say that a member has gone.
    Append {
        /// Which channel.
        key: ChannelKey,
        /// Its epoch.
        epoch: Epoch,
        /// What is in the channel now.
        publication: Arc<Publication>,
    },
    /// Another gateway, or another life of it, says that a member is there.
    Confirm {
        /// In which channel.
        key: ChannelKey,
        /// Which member.
        connection: ConnectionId,
        /// Who says so.
        gateway: GatewayRef,
    },
    /// The owner has stopped, for the standby is the owner now: it has
    /// everything, and so have these.
    Release(Vec<Held>),
    /// The sender is the owner now, and goes on with what the standby has if it
    /// is this: then it need not be sent the state.
    Attach(Held),
}

/// How much of a shard a standby has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Which one.
    pub node: NodeRef,
    /// From the owner with this fence,
    pub fence: Fence,
    /// of this recruitment,
    pub fill: u64,
    /// everything up to this number.
    pub number: u64,
}

/// The beginning of a shard's state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Begin {
    /// Whether positions were forgotten here.
    pub forgetful: bool,
    /// What gateways have published: the next place of each, and the results
    /// just below.
    pub tables: Vec<(GatewayRef, u64, Vec<PublishResult>)>,
}

/// A publish, what came of it, and the keys that say that it was done: one
/// record, so that none of the three is ever without the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Performed {
    /// Whose it was.
    pub from: GatewayRef,
    /// Its place.
    pub sequence: u64,
    /// Results below it are forgotten.
    pub low_mark: u64,
    /// The channel.
    pub key: ChannelKey,
    /// Its epoch.
    pub epoch: Epoch,
    /// What is in the channel now.
    pub publication: Arc<Publication>,
    /// Its publisher's key.
    pub idempotency: Option<Idempotency>,
}

/// A key that a publisher has used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyPiece {
    /// How long ago, in milliseconds.
    pub age_ms: u64,
    /// The key.
    pub key: Digest,
    /// Of the publisher's request.
    pub body: Digest,
    /// Where the publication stands.
    pub position: Position,
    /// In how many processes that is to be: 1 for a channel that is not replicated.
    pub copies: u8,
}

/// Where a channel stood.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TombstonePiece {
    /// How long ago its state went, in milliseconds.
    pub age_ms: u64,
    /// The channel's fingerprint.
    pub name: u64,
    /// Where it stood.
    pub position: Position,
    /// Whether it was not replicated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_alone: bool,
}

/// A channel's state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChannelPiece {
    /// Which one.
    pub key: ChannelKey,
    /// Where it stands.
    pub position: Position,
    /// Whether it may be one that was forgotten.
    pub forgetful: bool,
    /// Its past, each with its age in milliseconds, the oldest first.
    pub past: Vec<(u64, Arc<Publication>)>,
    /// How many at the front are there for repair alone.
    pub retired: u32,
    /// How many at the back the repair log has.
    pub held: u32,
    /// Whether it is not replicated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_alone: bool,
}

/// A channel's state with who is present in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PresencePiece {
    /// The channel.
    pub channel: ChannelPiece,
    /// Who is there.
    pub roster: RosterPiece,
}

/// Who is present in a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterPiece {
    /// Those who have said so, in order.
    pub gateways: Vec<GatewayRef>,
    /// The users.
    pub users: Vec<UserPiece>,
}

/// A user that is present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserPiece {
    /// The user.
    pub user: User,
    /// Its connections, each with the place in [`RosterPiece::gateways`] of whoever
    /// has said so.
    pub connections: Vec<(ConnectionId, u32)>,
}

impl ChannelPiece {
    /// About how much it takes on the wire, in bytes.
    fn bytes(&self) -> usize {
        let past = self.past.iter().map(|(_, publication)| publication);
        past.map(|publication| publication.bytes() + 16).sum()
    }
}

impl RosterPiece {
    /// About how much it takes on the wire, in bytes.
    fn bytes(&self) -> usize {
        let users = self.users.iter().map(|UserPiece { user, connections }| {
            let info = user.info.as_ref().map_or(0, |info| info.len());
            16 + user.id.len() + info + 24 * connections.len()
        });
        users.sum::<usize>() + 64 * self.gateways.len()
    }
}

impl Record {
    /// About how much it takes on the wire, in bytes.
    pub fn bytes(&self) -> usize {
        const FIXED: usize = 64;
        FIXED
            + match self {
                Self::Begin(begin) => {
                    let results = begin.tables.iter().map(|(_, _, results)| results.len());
                    results.map(|results| FIXED + 32 * results).sum()
                }
                Self::Keys(keys) => keys.len() * 64,
                Self::Tombstones(stones) => stones.len() * 32,
                Self::Channel(piece) => piece.bytes(),
                Self::Presence(piece) => piece.channel.bytes() + piece.roster.bytes(),
                Self::Cached { cached, .. } => cached.publication.bytes(),
                Self::Append { publication, .. } => publication.bytes(),
                Self::Publish(performed) => performed.publication.bytes(),
                Self::Whole
                | Self::Create { .. }
                | Self::Close { .. }
                | Self::Evict { .. }
                | Self::Forget { .. }
                | Self::Confirm { .. }
                | Self::Release(_)
                | Self::Attach(_) => 0,
            }
    }
}
