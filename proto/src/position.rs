//! Where a publication stands in its channel.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::ClusterUuid;
use crate::shard::{Fence, ShardId};

/// A publication's number within an epoch. The first one is 1; a channel whose
/// head is [`Offset::ZERO`] has had none. Contiguous: after n comes n+1.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Offset(pub u64);

impl Offset {
    /// Before the first publication.
    pub const ZERO: Self = Self(0);

    /// The one that comes after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Debug for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Names one life of a channel's state. It ends when that state ends, so a new
/// epoch says: what was before is gone. Without it, a channel that starts again
/// at offset 1 would look like the continuation of the old one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of the `created`-th channel state that a shard creates under
    /// this fence. No two owners share a fence, so no two states share an epoch
    /// (but for the chance that 64-bit hashes collide).
    pub fn mint(cluster: ClusterUuid, shard: ShardId, fence: Fence, created: u64) -> Self {
        let mut bytes = [0; 34];
        bytes[..16].copy_from_slice(&cluster.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&fence.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&created.to_le_bytes());
        bytes[32..].copy_from_slice(&shard.0.to_le_bytes());
        Self(xxhash_rust::xxh3::xxh3_64(&bytes))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Text that is no epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an epoch is 16 hex digits")]
pub struct InvalidEpoch;

impl FromStr for Epoch {
    type Err = InvalidEpoch;

    fn from_str(text: &str) -> Result<Self, InvalidEpoch> {
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(InvalidEpoch);
        }
        let number = u64::from_str_radix(text, 16).map_err(|_| InvalidEpoch)?;
        Ok(Self(number))
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A place in a channel: everything up to and including `offset` of `epoch`.
/// Its text form, `<16 hex digits>-<decimal>`, is what clients keep as cursor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Which life of the channel.
    pub epoch: Epoch,
    /// How far into it.
    pub offset: Offset,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.offset)
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A text that is not a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a position is 16 hex digits, a dash and a decimal offset")]
pub struct InvalidPosition;

impl FromStr for Position {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Self, InvalidPosition> {
        let (epoch, offset) = text.split_once('-').ok_or(InvalidPosition)?;
        if offset.is_empty() || !offset.bytes().all(|b| b.is_ascii_digit()) {
            return Err(InvalidPosition);
        }
        Ok(Self {
            epoch: epoch.parse().map_err(|InvalidEpoch| InvalidPosition)?,
            offset: Offset(offset.parse().map_err(|_| InvalidPosition)?),
        })
    }
}

/// Why the publications after a position cannot be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GapReason {
    /// They have left the channel's history.
    #[serde(rename = "expired")]
    Expired,
    /// The channel's state was lost or dropped: the position is of an earlier
    /// epoch.
    #[serde(rename = "epoch")]
    NewEpoch,
    /// The position is ahead of the channel; it never was handed out.
    #[serde(rename = "ahead")]
    Ahead,
    /// The channel was quiet for so long, or so many were, that its owner no
    /// longer knows where it stood.
    #[serde(rename = "forgotten")]
    Forgotten,
}

impl GapReason {
    /// All of them, for metrics and the reference.
    pub const ALL: [Self; 4] = [Self::Expired, Self::NewEpoch, Self::Ahead, Self::Forgotten];

    /// The reason as clients see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::NewEpoch => "epoch",
            Self::Ahead => "ahead",
            Self::Forgotten => "forgotten",
        }
    }
}

/// What a follower missed and cannot be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Why.
    pub reason: GapReason,
    /// The earliest publication that can still be had.
    pub earliest: Offset,
    /// Where the follower goes on: after this.
    pub latest: Position,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_round_trip_and_strangers_are_refused() {
        let position = Position {
            epoch: Epoch(0xab),
            offset: Offset(7),
        };
        assert_eq!(position.to_string(), "00000000000000ab-7");
        assert_eq!(position.to_string().parse(), Ok(position));
        for text in [
            "",
            "-",
            "ab-7",
            "00000000000000ab-",
            "00000000000000ab-+7",
            "00000000000000ab",
            "zz000000000000ab-7",
        ] {
            assert_eq!(text.parse::<Position>(), Err(InvalidPosition), "{text:?}");
        }
    }

    #[test]
    fn every_creation_has_its_own_epoch() {
        let cluster = ClusterUuid(1);
        let epoch = |shard, fence, n| Epoch::mint(cluster, ShardId(shard), Fence(fence), n);
        let all = [
            epoch(0, 1, 0),
            epoch(0, 1, 1),
            epoch(0, 2, 0),
            epoch(1, 1, 0),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(!all[..i].contains(a));
        }
    }
}
