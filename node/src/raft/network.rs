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

use super::{Entry, Peer, Types};
use crate::addresses::Addresses;
use crate::core::cluster::RaftId;
use crate::peers::wire::{Call, Reply};
use crate::peers::{CallError, Peers};

/// How soon a node that could not be reached is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// Bytes of log entries that go in one message. `openraft` gives it up after a
/// heartbeat's time, and however often it is tried then: it must be done within
/// that, also on a machine that is busy.
const APPEND_BYTES: usize = 64 * 1_024;
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

/// How many of these entries go in one message: at least one, if there are any.
fn fitting(entries: &[Entry]) -> usize {
    let mut room = APPEND_BYTES;
    let fits = |(at, entry): &(usize, &Entry)| {
        let bytes = rmp_serde::to_vec(entry).map_or(usize::MAX, |bytes| bytes.len());
        let fits = *at == 0 || bytes <= room;
        room = room.saturating_sub(bytes);
        fits
    };
    entries.iter().enumerate().take_while(fits).count()
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
        mut rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<RaftId>, RPCError<RaftId, Peer, RaftError<RaftId>>> {
        let fitting = fitting(&rpc.entries);
        let is_all = fitting == rpc.entries.len();
        rpc.entries.truncate(fitting);
        let last = rpc.entries.last().map(|entry| entry.log_id);
        let answer = self.exchange(&Rpc::Append(rpc), option.hard_ttl()).await?;
        Ok(match answer {
            AppendEntriesResponse::Success if !is_all => {
                AppendEntriesResponse::PartialSuccess(last)
            }
            answer => answer,
        })
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

#[cfg(test)]
mod tests {
    use openraft::{CommittedLeaderId, EntryPayload, LogId};

    use super::*;
    use crate::core::cluster::{Command, ReplicaSet};
    use proto::shard::{Fence, ShardId};

    fn entry(index: u64, sets: usize) -> Entry {
        let set = ReplicaSet {
            shard: ShardId(1),
            owner: proto::id::NodeRef {
                id: "owner".parse().unwrap(),
                incarnation: proto::id::Incarnation(1),
            },
            fence: Fence(1),
            version: 1,
            standbys: Vec::new(),
        };
        Entry {
            log_id: LogId::new(CommittedLeaderId::new(1, 1), index),
            payload: EntryPayload::Normal(Command::Replicas(vec![set; sets])),
        }
    }

    #[test]
    fn a_follower_that_is_far_behind_is_sent_what_can_be_taken_in_time() {
        assert_eq!(fitting(&[]), 0);
        let small: Vec<Entry> = (1..=100).map(|index| entry(index, 1)).collect();
        assert_eq!(fitting(&small), 100);
        let large: Vec<Entry> = (1..=100).map(|index| entry(index, 1_024)).collect();
        let bytes = rmp_serde::to_vec(&large[0]).unwrap().len();
        assert_eq!(fitting(&large), (APPEND_BYTES / bytes).max(1));
        assert_eq!(
            fitting(&[entry(1, 100_000), entry(2, 1)]),
            1,
            "it goes alone"
        );
    }
}
