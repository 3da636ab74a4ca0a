//! Where messages go: O(gateways + nodes) subjects, never one per channel.

use std::fmt;
use std::str::FromStr;

use crate::id::{GatewayId, InvalidId, NodeId};

/// A subject, without the cluster's prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// Requests to a node.
    Node(NodeId),
    /// Link batches to a gateway.
    Gateway(GatewayId),
    /// Replies to a gateway's requests.
    Inbox(GatewayId),
    /// Beats of all nodes, to whoever listens.
    NodeBeats,
    /// Beats of all gateways, to all nodes.
    GatewayBeats,
    /// Changes of the shard map, to all gateways.
    Map,
}

/// A full subject: `dunlin.<cluster>.<address>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    /// The cluster's name, so that several can share a bus.
    pub cluster: ClusterName,
    /// Where in it.
    pub address: Address,
}

/// The name of a cluster: the same alphabet as process ids, because it stands
/// in subjects.
pub type ClusterName = NodeId;

/// A text that is not a subject of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSubject {
    /// Not of the form `dunlin.<cluster>.<address>`.
    #[error("{0:?} is not a subject of this system")]
    Unknown(String),
    /// The cluster or process id in it is not valid.
    #[error(transparent)]
    Id(#[from] InvalidId),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dunlin.{}.", self.cluster)?;
        match &self.address {
            Address::Node(id) => write!(f, "node.{id}"),
            Address::Gateway(id) => write!(f, "gw.{id}"),
            Address::Inbox(id) => write!(f, "inbox.{id}"),
            Address::NodeBeats => f.write_str("beat.node"),
            Address::GatewayBeats => f.write_str("beat.gw"),
            Address::Map => f.write_str("map"),
        }
    }
}

impl FromStr for Subject {
    type Err = InvalidSubject;

    fn from_str(text: &str) -> Result<Self, InvalidSubject> {
        let tokens: Vec<&str> = text.split('.').collect();
        let ["dunlin", cluster, ref address @ ..] = tokens[..] else {
            return Err(InvalidSubject::Unknown(text.into()));
        };
        let address = match *address {
            ["node", id] => Address::Node(id.parse()?),
            ["gw", id] => Address::Gateway(id.parse()?),
            ["inbox", id] => Address::Inbox(id.parse()?),
            ["beat", "node"] => Address::NodeBeats,
            ["beat", "gw"] => Address::GatewayBeats,
            ["map"] => Address::Map,
            _ => return Err(InvalidSubject::Unknown(text.into())),
        };
        Ok(Self {
            cluster: cluster.parse()?,
            address,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_round_trip() {
        for text in [
            "dunlin.c.node.n1",
            "dunlin.c.gw.g-1",
            "dunlin.c.inbox.g-1",
            "dunlin.c.beat.node",
            "dunlin.c.beat.gw",
            "dunlin.c.map",
        ] {
            assert_eq!(text.parse::<Subject>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "dunlin",
            "dunlin.c.node",
            "dunlin.c.node.",
            "x.c.node.n",
            "dunlin.c.beat.x",
            "dunlin.c.gw.a.b",
        ] {
            assert!(text.parse::<Subject>().is_err(), "{text:?}");
        }
    }
}
