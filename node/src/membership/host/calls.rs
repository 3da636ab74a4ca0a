//! How a node answers other nodes.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use proto::id::{ClusterUuid, NodeRef};

use super::{ASK, CALLERS_MAX, Host};
use crate::core::cluster::{Command, RaftId, Registration};
use crate::core::formation::{Succession, succession};
use crate::core::gateways::Silence;
use crate::core::gossip::Rumour;
use crate::peers::Serve;
use crate::peers::ways::Way;
use crate::peers::wire::{Beat, Call, Hello, Refusal, Reply, may_meet};
use crate::raft::store::StoreError;
use crate::raft::{Consensus, Peer, ProposeError};

impl Serve for Host {
    fn hello(&self) -> Hello {
        Hello {
            cluster: self.config.cluster.clone(),
            member_of: self.member_of(),
            name: self.identity.name.clone(),
            raft_id: self.identity.raft_id,
            address: self.address(),
        }
    }

    fn meet(&self, other: &Hello) -> Result<(), Refusal> {
        let me = self.hello();
        may_meet(&me, other)?;
        let mine = other.raft_id == me.raft_id;
        self.addresses.set(other.raft_id, &other.address);
        let mut changing = self.changing();
        let known = changing.callers.contains_key(&other.name);
        if !mine && (known || changing.callers.len() < CALLERS_MAX) {
            let (name, address) = (other.name.clone(), other.address.clone());
            changing.callers.insert(name, address);
        }
        Ok(())
    }

    fn serve(self: Arc<Self>, from: Hello, call: Call) -> BoxFuture<'static, Reply> {
        Box::pin(self.take(from, call))
    }

    fn welcome(&self, from: Hello, way: Way) {
        if let Some(ways) = self.ways.get() {
            // Too many at once: dropped, and made again.
            let _ = ways.try_send((from.name, way));
        }
    }

    fn heard(&self, from: &Hello, beat: &[u8]) {
        match Beat::decode(beat) {
            Ok(beat) if beat.from.id == from.name => self.hear_beat(beat),
            Ok(_) => tracing::debug!(from = %from.name, "a sign of life for another node"),
            Err(error) => tracing::debug!(from = %from.name, error, "a sign of life"),
        }
    }
}

impl Host {
    async fn take(self: Arc<Self>, from: Hello, call: Call) -> Reply {
        let done = |done: Result<bool, StoreError>| match done {
            Ok(done) => Reply::Pledged(done),
            Err(error) => Reply::Refused(error.to_string()),
        };
        match call {
            Call::Status => Reply::Status(self.status()),
            Call::Leader => match self.leading() {
                Ok(_) => Reply::Elsewhere(Some(self.address())),
                Err(reply) => *reply,
            },
            Call::Pledge(pledge) => done(self.pledge(pledge)),
            Call::Release(pledge) => done(self.release(pledge)),
            Call::Raft { cluster, to, rpc } => self.take_raft(cluster, to, &rpc).await,
            Call::Join(registration) => self.take_join(&from, registration).await,
            Call::Propose(command) => self.take_proposal(&from, command).await,
            Call::Renew(node, renewal) => self.take_renewal(&from, node, renewal).await,
            Call::Report(node, silence) => self.take_report(&from, node, silence),
            Call::Inspect(question) => match self.inspect.get() {
                Some(inspect) => Reply::Inspected(inspect(question).await),
                None => Reply::Refused("the node does not serve yet".into()),
            },
        }
    }

    /// On the leader: grants a lease, after the next quorum round.
    async fn take_renewal(&self, from: &Hello, node: NodeRef, renewal: u64) -> Reply {
        if from.name != node.id {
            return Reply::Refused("nodes ask for leases for themselves only".into());
        }
        let granted = match self.leases.ask(node, renewal) {
            Some(granted) => granted.await.ok(),
            None => None,
        };
        match granted {
            Some(grant) => Reply::Granted(grant),
            None => Reply::Refused("this node does not lead, or not for certain".into()),
        }
    }

    /// On the leader: what another node hears of gateways.
    fn take_report(&self, from: &Hello, node: NodeRef, silence: Silence) -> Reply {
        if from.name != node.id {
            return Reply::Refused("nodes say what they hear themselves only".into());
        }
        if !self.judge(node, silence) {
            return Reply::Refused("this node does not lead".into());
        }
        Reply::Reported
    }

    async fn take_raft(&self, cluster: ClusterUuid, to: RaftId, rpc: &[u8]) -> Reply {
        if to != self.identity.raft_id {
            return Reply::Refused("the node that this is for is not here any more".into());
        }
        let (member_of, pledge) = {
            let changing = self.changing();
            (changing.member_of, changing.pledge)
        };
        if member_of.is_none() && pledge.is_some_and(|pledge| pledge.cluster == cluster) {
            // The founder got through.
            match self.enter(cluster) {
                Ok(true) => {}
                Ok(false) => {
                    return Reply::Refused("this node is a member of another cluster".into());
                }
                Err(error) => return Reply::Refused(error.to_string()),
            }
        } else if member_of != Some(cluster) {
            return Reply::Refused("this node is not a member of that cluster".into());
        }
        let Some(consensus) = self.consensus() else {
            return Reply::Refused("the node has just begun".into());
        };
        match consensus.receive(rpc).await {
            Ok(bytes) => Reply::Raft(bytes),
            Err(why) => Reply::Refused(why),
        }
    }

    /// On the leader: lets a node in.
    async fn take_join(&self, from: &Hello, registration: Registration) -> Reply {
        if !speaks_for_itself(from, &registration) {
            return Reply::Refused("nodes join for themselves only".into());
        }
        let (consensus, cluster) = match self.leading() {
            Ok(leading) => leading,
            Err(reply) => return *reply,
        };
        let agreed = Arc::clone(&consensus.cluster().borrow());
        let namesake = agreed
            .members()
            .get(&registration.name)
            .map(|member| member.registration.clone())
            .filter(|known| known.raft_id != registration.raft_id);
        if let Some(known) = namesake
            && let Err(reply) = self.replace(&consensus, &registration, &known).await
        {
            return reply;
        }
        let peer = Peer {
            address: registration.address,
        };
        match consensus.add(registration.raft_id, peer).await {
            Ok(()) => Reply::Joined(cluster),
            Err(ProposeError::NotLeader(leader)) => {
                Reply::Elsewhere(leader.and_then(|leader| self.addresses.get(leader)))
            }
            Err(ProposeError::Failed(why)) => Reply::Refused(why),
        }
    }

    /// A node comes with the name of a member, but with another data directory:
    /// it takes the member's place only if that is not there any more.
    async fn replace(
        &self,
        consensus: &Consensus,
        registration: &Registration,
        known: &Registration,
    ) -> Result<(), Reply> {
        let Some(peers) = self.peers() else {
            return Err(Reply::Refused("the node does not listen yet".into()));
        };
        let address = self
            .addresses
            .get(known.raft_id)
            .unwrap_or_else(|| known.address.clone());
        let answers = match peers.call(&address, &Call::Status, ASK).await {
            Ok(Reply::Status(status)) => Some(status.raft_id),
            _ => None,
        };
        let rumours = Arc::clone(&self.rumours.borrow());
        let is_seen = rumours.get(&known.raft_id).is_some_and(Rumour::is_seen);
        let name = &known.name;
        match succession(known.raft_id, answers, is_seen) {
            Succession::Takes => {}
            Succession::Taken => {
                return Err(Reply::NameTaken(format!(
                    "the name {name} is taken: a node of that name runs at {address} with another data directory; give each node its own --name"
                )));
            }
            Succession::Wait => {
                return Err(Reply::Refused(format!(
                    "another node of the name {name} ran a moment ago at {address}; waiting until it is sure that it does not any more"
                )));
            }
        }
        tracing::warn!(node = %registration.name, "a node has come with an empty data directory; it takes the place of its namesake, which cannot be reached");
        let failed = |error: ProposeError| Reply::Refused(error.to_string());
        let forget = Command::Forget(known.raft_id);
        consensus.propose(forget).await.map_err(failed)?;
        let mut voters = consensus.standing().voters;
        if voters.remove(&known.raft_id) {
            consensus.set_voters(voters).await.map_err(failed)?;
        }
        consensus.strike(known.raft_id).await.map_err(failed)
    }

    async fn take_proposal(&self, from: &Hello, command: Command) -> Reply {
        let (consensus, _) = match self.leading() {
            Ok(leading) => leading,
            Err(reply) => return *reply,
        };
        let peer = match &command {
            Command::Register(registration) if speaks_for_itself(from, registration) => Peer {
                address: registration.address.clone(),
            },
            Command::Replicas(sets) if sets.iter().all(|set| set.owner.id == from.name) => {
                return self.decide(&consensus, command).await;
            }
            // Of itself, or of another one that its operator has named.
            Command::Drain(_) | Command::Remove(_) => {
                return self.decide(&consensus, command).await;
            }
            _ => return Reply::Refused("only the leader decides that".into()),
        };
        let agreed = Arc::clone(&consensus.cluster().borrow());
        let known = agreed.members().get(&from.name);
        let may_register = known.is_none_or(|m| m.registration.raft_id == from.raft_id);
        // One that was struck while it was away would never hear of its
        // registration.
        if may_register
            && !consensus.standing().members.contains(&from.raft_id)
            && let Err(ProposeError::Failed(why)) = consensus.add(from.raft_id, peer).await
        {
            return Reply::Refused(why);
        }
        self.decide(&consensus, command).await
    }

    async fn decide(&self, consensus: &Consensus, command: Command) -> Reply {
        match consensus.propose(command).await {
            Ok(outcome) => Reply::Outcome(outcome),
            Err(ProposeError::NotLeader(leader)) => {
                Reply::Elsewhere(leader.and_then(|leader| self.addresses.get(leader)))
            }
            Err(ProposeError::Failed(why)) => Reply::Refused(why),
        }
    }

    /// The agreement and its cluster, if this node leads; else what to answer.
    fn leading(&self) -> Result<(Consensus, ClusterUuid), Box<Reply>> {
        let (consensus, cluster) = {
            let changing = self.changing();
            (changing.consensus.clone(), changing.member_of)
        };
        let Some((consensus, cluster)) = consensus.zip(cluster) else {
            return Err(Box::new(Reply::Refused(
                "the node is in no cluster yet".into(),
            )));
        };
        let standing = consensus.standing();
        if standing.leads {
            return Ok((consensus, cluster));
        }
        let leader = standing.leader.and_then(|leader| {
            self.addresses
                .get(leader)
                .or_else(|| consensus.address_of(leader))
        });
        Err(Box::new(Reply::Elsewhere(leader)))
    }
}

/// Whether a registration is of the node that sends it: the certificate holds
/// for the name in the hello.
fn speaks_for_itself(from: &Hello, registration: &Registration) -> bool {
    (registration.raft_id, &registration.name) == (from.raft_id, &from.name)
}
