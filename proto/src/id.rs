//! Names of processes, apps and connections. Each is its own type, so that a
//! gateway's id can never be passed where a node's is meant.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest id of a process or app, in bytes.
pub const ID_BYTES_MAX: usize = 64;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid id: use 1 to {ID_BYTES_MAX} of the characters A-Z a-z 0-9 _ -")]
pub struct InvalidId {
    text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "Arc<str>", into = "Arc<str>")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<Arc<str>> for $name {
            type Error = InvalidId;

            fn try_from(text: Arc<str>) -> Result<Self, InvalidId> {
                if is_id(&text) {
                    Ok(Self(text))
                } else {
                    Err(InvalidId { text: text.chars().take(ID_BYTES_MAX).collect() })
                }
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::try_from(Arc::from(text))
            }
        }

        impl From<$name> for Arc<str> {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// A cluster node, named by its operator.
    NodeId
}
id! {
    /// A gateway.
    GatewayId
}
id! {
    /// A tenant: it has its own key, secret, limits and channels.
    AppId
}

/// Ids stand in bus subjects, so they hold neither dots nor wildcards.
fn is_id(text: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// One per start of a process, ordered: a higher one voids the lower ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

/// One life of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GatewayRef {
    /// Which gateway.
    pub id: GatewayId,
    /// Which of its lives.
    pub incarnation: Incarnation,
}

/// One life of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeRef {
    /// Which node.
    pub id: NodeId,
    /// Which of its lives.
    pub incarnation: Incarnation,
}

/// Minted when a cluster is formed; a process of another cluster is refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClusterUuid(pub u128);

impl fmt::Display for ClusterUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClusterUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The id of a client's connection, unique in the cluster. Its text form,
/// `123.456`, is what the Pusher protocol calls `socket_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ConnectionId {
    /// Says which life of which gateway.
    pub gateway: u64,
    /// Counts the connections of that gateway.
    pub number: u64,
}

impl ConnectionId {
    /// The first half for all connections of one life of a gateway. 53 bits,
    /// so that clients which parse it as a number do not round it.
    pub fn gateway_half(gateway: &GatewayRef) -> u64 {
        let seed = gateway.incarnation.0;
        xxhash_rust::xxh3::xxh3_64_with_seed(gateway.id.as_str().as_bytes(), seed) >> 11
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.gateway, self.number)
    }
}

/// A text that is not two decimal numbers with a dot between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a socket_id is two decimal numbers with a dot between them, such as 123.456")]
pub struct InvalidConnectionId;

impl FromStr for ConnectionId {
    type Err = InvalidConnectionId;

    fn from_str(text: &str) -> Result<Self, InvalidConnectionId> {
        let (gateway, number) = text.split_once('.').ok_or(InvalidConnectionId)?;
        Ok(Self {
            gateway: decimal(gateway)?,
            number: decimal(number)?,
        })
    }
}

/// `u64::from_str` would also take a leading `+`.
fn decimal(text: &str) -> Result<u64, InvalidConnectionId> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(InvalidConnectionId);
    }
    text.parse().map_err(|_| InvalidConnectionId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_break_a_subject_are_refused() {
        for text in ["", "a.b", "a*", "a>", "a b", "é", &"x".repeat(65)] {
            assert!(text.parse::<NodeId>().is_err(), "{text:?}");
        }
        assert_eq!("node-1_A".parse::<NodeId>().unwrap().as_str(), "node-1_A");
    }

    #[test]
    fn connection_ids_round_trip_and_reject_what_sdks_reject() {
        let id = ConnectionId {
            gateway: 7,
            number: 42,
        };
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in [
            "",
            ".",
            "1",
            "1.",
            ".1",
            "+1.2",
            "1.2.3",
            "a.b",
            "1.99999999999999999999999",
        ] {
            assert_eq!(
                text.parse::<ConnectionId>(),
                Err(InvalidConnectionId),
                "{text:?}"
            );
        }
    }
}
