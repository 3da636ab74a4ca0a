//! What nodes say to each other over QUIC: a hello when they meet, then calls
//! with one reply each, every one on a stream of its own, and signs of life.

use std::collections::BTreeSet;

use bytes::Bytes;
use proto::id::{ClusterUuid, NodeId, NodeRef};
use proto::inspection::{Answer, Question};
use proto::subject::ClusterName;
use serde::{Deserialize, Serialize};

use crate::core::cluster::{Command, Outcome, RaftId, Registration};
use crate::core::formation::{Pledge, Status};
use crate::core::gateways::Silence;
use crate::core::lease::Grant;
use crate::core::wire::decode_first;
pub(crate) use crate::core::wire::{decode, encode};

/// Bytes of a call or reply at most: a Raft snapshot is far below.
pub(crate) const BYTES_MAX: usize = 16 * 1_024 * 1_024;

/// With what a datagram begins that is a sign of life. Gossip never begins so:
/// there it would be a number with more than 64 bits.
pub(crate) const BEAT: [u8; 10] = [0xff; 10];

/// A sign of life to the voters: a datagram, every 100 ms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Beat {
    /// Who lives.
    pub(crate) from: NodeRef,
    /// It is the last one: the node ends.
    pub(crate) leaves: bool,
    /// Whether the leader lets it serve. A version that does not say so is taken at
    /// its best.
    #[serde(default = "yes")]
    pub(crate) has_lease: bool,
    /// Whom it does not hear, if it votes. Follows the rest, so that a version that
    /// does not know it reads the rest.
    #[serde(skip)]
    pub(crate) misses: Option<BTreeSet<RaftId>>,
}

impl Beat {
    /// What is sent of it.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = BEAT.to_vec();
        bytes.extend(encode(self));
        if let Some(misses) = &self.misses {
            bytes.extend(encode(misses));
        }
        bytes
    }

    /// Of bytes without the [`BEAT`] before them.
    ///
    /// # Errors
    /// What is wrong with them, for people.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let (beat, rest) = decode_first(bytes)?;
        let misses = decode(rest).ok();
        Ok(Self { misses, ..beat })
    }
}

fn yes() -> bool {
    true
}

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

/// Whether two nodes can be in one cluster, as far as their hellos tell.
pub(crate) fn may_meet(me: &Hello, other: &Hello) -> Result<(), Refusal> {
    if other.cluster != me.cluster {
        return Err(Refusal::because(format!(
            "{} was started with --cluster {}, and {} with --cluster {}",
            other.name, other.cluster, me.name, me.cluster
        )));
    }
    if let (Some(theirs), Some(ours)) = (other.member_of, me.member_of)
        && theirs != ours
    {
        return Err(Refusal::because(format!(
            "{} is a member of cluster {theirs}, and {} of cluster {ours}: they have the same name, but are not the same; check --join",
            other.name, me.name
        )));
    }
    match (other.raft_id == me.raft_id, other.name == me.name) {
        (false, false) => Ok(()),
        (true, false) => Err(Refusal::for_a_copy(format!(
            "{} uses a copy of the data directory of {}; give each node its own --data",
            other.name, me.name
        ))),
        (false, true) => Err(Refusal::because(format!(
            "two nodes are named {}, at {} and at {}: give each its own --name",
            other.name, other.address, me.address
        ))),
        // It has called itself.
        (true, true) if other.address == me.address => Ok(()),
        (true, true) => Err(Refusal::for_a_copy(format!(
            "the nodes at {} and {} use copies of one data directory; give each its own --data",
            other.address, me.address
        ))),
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
    /// Grant this life a lease, counted from now. The leader does.
    Renew(NodeRef, u64),
    /// This life of a node hears nothing of these gateways. The leader judges.
    Report(NodeRef, Silence),
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
    /// To `Renew`.
    Granted(Grant),
    /// To `Report`.
    Reported,
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

    #[test]
    fn a_version_that_knows_less_of_beats_understands_them_and_is_understood() {
        let says_nothing = Beat {
            from: NodeRef {
                id: "a".parse().unwrap(),
                incarnation: proto::id::Incarnation(7),
            },
            leaves: false,
            has_lease: true,
            misses: None,
        };
        let beat = Beat {
            misses: Some([3, u64::MAX].into()),
            ..says_nothing.clone()
        };
        let bytes = beat.encode();
        let bytes = bytes.strip_prefix(&BEAT).unwrap();
        assert_eq!(Beat::decode(bytes), Ok(beat));
        // As the earlier version read it, and as it wrote it.
        assert_eq!(decode::<Beat>(bytes), Ok(says_nothing.clone()));
        assert_eq!(Beat::decode(&encode(&says_nothing)), Ok(says_nothing));
    }

    #[test]
    fn hellos_tell_who_cannot_be_in_one_cluster() {
        let me = Hello {
            cluster: "c".parse().unwrap(),
            member_of: Some(ClusterUuid(1)),
            name: "a".parse().unwrap(),
            raft_id: 1,
            address: "a:1".into(),
        };
        let other = Hello {
            name: "b".parse().unwrap(),
            raft_id: 2,
            address: "b:1".into(),
            ..me.clone()
        };
        let why = |other: &Hello| may_meet(&me, other).unwrap_err();
        assert_eq!(may_meet(&me, &other), Ok(()));
        assert_eq!(may_meet(&me, &me), Ok(()), "it calls itself");
        let fresh = Hello {
            member_of: None,
            ..other.clone()
        };
        assert_eq!(may_meet(&me, &fresh), Ok(()));
        let stranger = Hello {
            cluster: "d".parse().unwrap(),
            ..other.clone()
        };
        assert!(why(&stranger).reason.contains("--cluster d"));
        let stranger = Hello {
            member_of: Some(ClusterUuid(2)),
            ..other.clone()
        };
        assert!(why(&stranger).reason.contains("--join") && !why(&stranger).copy);
        let namesake = Hello {
            name: me.name.clone(),
            ..other.clone()
        };
        assert!(why(&namesake).reason.contains("--name") && !why(&namesake).copy);
        let copy = Hello {
            raft_id: 1,
            ..other
        };
        assert!(why(&copy).copy);
        let copy = Hello {
            address: "c:1".into(),
            ..me.clone()
        };
        assert!(why(&copy).copy);
    }

    proptest! {
        #[test]
        fn any_bytes_may_come(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Call>(&bytes);
            let _ = decode::<Hello>(&bytes);
            let _ = Beat::decode(&bytes);
        }
    }
}
