//! The network of `openraft`: each of its messages is a call to a peer.

use std::time::Duration;

use bytes::Bytes;
use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use proto::id::ClusterUuid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Peer, Types};
use crate::addresses::Addresses;
use crate::core::cluster::RaftId;
use crate::peers::wire::{Call, Reply};
use crate::peers::{CallError, Peers};

/// How soon a node that could not be reached is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// How long a snapshot may take.
const SNAPSHOT: Duration = Duration::from_secs(5);

/// A message of `openraft` on the wire.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Rpc {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<RaftId>),
    Snapshot(InstallSnapshotRequest<Types>),
}

#[derive(Clone)]
pub(super) struct Network {
    pub(super) peers: Peers,
    pub(super) addresses: Addresses,
    pub(super) cluster: ClusterUuid,
}

/// The way to one node.
pub(super) struct Target {
    network: Network,
    id: RaftId,
    peer: Peer,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Target;

    async fn new_client(&mut self, target: RaftId, node: &Peer) -> Target {
        Target {
            network: self.clone(),
            id: target,
            peer: node.clone(),
        }
    }
}

/// Why a message got no answer.
enum Lost {
    Unreachable(CallError),
    Refused(std::io::Error),
}

impl Target {
    async fn send<T: DeserializeOwned>(&self, rpc: &Rpc, within: Duration) -> Result<T, Lost> {
        let known = self.network.addresses.get(self.id);
        let address = known.as_deref().unwrap_or(&self.peer.address);
        let rpc = rmp_serde::to_vec(rpc).expect("our types always encode into memory");
        let call = Call::Raft {
            cluster: self.network.cluster,
            to: self.id,
            rpc: Bytes::from(rpc),
        };
        let reply = self.network.peers.call(address, &call, within).await;
        match reply.map_err(Lost::Unreachable)? {
            Reply::Raft(bytes) => rmp_serde::from_slice(&bytes)
                .map_err(|error| Lost::Refused(std::io::Error::other(error))),
            Reply::Refused(reason) => Err(Lost::Refused(std::io::Error::other(reason))),
            _ => Err(Lost::Refused(std::io::Error::other(
                "an answer to something else",
            ))),
        }
    }

    async fn exchange<T, E>(
        &self,
        rpc: &Rpc,
        within: Duration,
    ) -> Result<T, RPCError<RaftId, Peer, RaftError<RaftId, E>>>
    where
        T: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
        RaftError<RaftId, E>: DeserializeOwned + std::error::Error,
    {
        match self
            .send::<Result<T, RaftError<RaftId, E>>>(rpc, within)
            .await
        {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(RPCError::RemoteError(RemoteError::new(self.id, error))),
            Err(Lost::Unreachable(error)) => Err(RPCError::Unreachable(Unreachable::new(&error))),
            Err(Lost::Refused(error)) => Err(RPCError::Network(NetworkError::new(&error))),
        }
    }
}

impl RaftNetwork<Types> for Target {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<RaftId>, RPCError<RaftId, Peer, RaftError<RaftId>>> {
        self.exchange(&Rpc::Append(rpc), option.hard_ttl()).await
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<Types>,
        _option: RPCOption,
    ) -> Result<
        InstallSnapshotResponse<RaftId>,
        RPCError<RaftId, Peer, RaftError<RaftId, InstallSnapshotError>>,
    > {
        self.exchange(&Rpc::Snapshot(rpc), SNAPSHOT).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<RaftId>,
        option: RPCOption,
    ) -> Result<VoteResponse<RaftId>, RPCError<RaftId, Peer, RaftError<RaftId>>> {
        self.exchange(&Rpc::Vote(rpc), option.hard_ttl()).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY))
    }
}
