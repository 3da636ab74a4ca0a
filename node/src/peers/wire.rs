//! What nodes say to each other over QUIC: a hello when they meet, then calls
//! with one reply each, every one on a stream of its own.

use bytes::Bytes;
use proto::id::{ClusterUuid, NodeId};
use proto::message::{Answer, Question};
use proto::subject::ClusterName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::core::cluster::{Command, Outcome, RaftId, Registration};
use crate::core::formation::{Pledge, Status};

/// The version of everything in this file.
pub(crate) const WIRE_VERSION: u8 = 1;
/// Bytes of a call or reply at most: a Raft snapshot is far below.
pub(crate) const BYTES_MAX: usize = 16 * 1_024 * 1_024;

/// Who opens a connection, or answers to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The cluster's name.
    pub(crate) cluster: ClusterName,
    /// The cluster itself, once the node is a member of it.
    pub(crate) member_of: Option<ClusterUuid>,
    /// The node's name, for which its certificate must hold.
    pub(crate) name: NodeId,
    /// Its data directory.
    pub(crate) raft_id: RaftId,
    /// Where it can be reached.
    pub(crate) address: String,
}

/// The answer to a [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Greeting {
    /// Who is here.
    Welcome(Hello),
    /// The two cannot be in one cluster.
    Refused(Refusal),
}

/// Why two nodes cannot be in one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// For people.
    pub(crate) reason: String,
    /// They use copies of one data directory: together they could vote twice,
    /// so the one that calls must end.
    pub(crate) copy: bool,
}

impl Refusal {
    pub(crate) fn because(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            copy: false,
        }
    }

    pub(crate) fn for_a_copy(reason: String) -> Self {
        Self { reason, copy: true }
    }
}

/// A question to another node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Call {
    /// Who are you, and are you in a cluster?
    Status,
    /// Where is the leader? Also of nodes that it does not call.
    Leader,
    /// Pledge yourself to a cluster that is to be founded.
    Pledge(Pledge),
    /// The founder gave up; take the pledge back.
    Release(Pledge),
    /// Let me in. The leader does.
    Join(Registration),
    /// Decide this. The leader does.
    Propose(Command),
    /// A Raft message, as the adapter encodes it.
    Raft {
        /// The cluster.
        cluster: ClusterUuid,
        /// Whom it is for: not for whoever has come to that address since.
        to: RaftId,
        /// The message.
        rpc: Bytes,
    },
    /// Tell something for a person who looks inside.
    Inspect(Question),
}

/// The answer to a [`Call`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// To `Status`.
    Status(Status),
    /// To `Pledge` and `Release`: whether it was done.
    Pledged(bool),
    /// To `Join`.
    Joined(ClusterUuid),
    /// To `Propose`.
    Outcome(Outcome),
    /// To `Join`: another node of that name is there, and will stay; why.
    NameTaken(String),
    /// Ask the leader; where it is, if that is known.
    Elsewhere(Option<String>),
    /// To `Raft`, as the adapter encodes it.
    Raft(Bytes),
    /// To `Inspect`.
    Inspected(Answer),
    /// It was not done; why.
    Refused(String),
}

/// Bytes of a value, with the version before them.
pub(crate) fn encode(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![WIRE_VERSION];
    rmp_serde::encode::write(&mut bytes, value).expect("our types always encode into memory");
    bytes
}

/// A value of bytes that came from outside. `Err`: what is wrong with them.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match bytes.split_first() {
        Some((&WIRE_VERSION, body)) => {
            rmp_serde::from_slice(body).map_err(|error| format!("not understood: {error}"))
        }
        Some((version, _)) => Err(format!(
            "it speaks version {version} of the protocol between nodes, this node {WIRE_VERSION}"
        )),
        None => Err("it said nothing".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn calls_round_trip_and_another_version_is_named() {
        let call = Call::Raft {
            cluster: ClusterUuid(7),
            to: 3,
            rpc: Bytes::from_static(b"x"),
        };
        let mut bytes = encode(&call);
        assert_eq!(decode::<Call>(&bytes), Ok(call));
        bytes[0] = 9;
        assert!(decode::<Call>(&bytes).unwrap_err().contains("version 9"));
    }

    proptest! {
        #[test]
        fn any_bytes_may_come(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Call>(&bytes);
            let _ = decode::<Hello>(&bytes);
        }
    }
}
