//! What a node knows of itself; how it answers other nodes is in [`calls`].

mod calls;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use proto::id::{ClusterUuid, GatewayRef, Incarnation, NodeId, NodeRef};
use proto::inspection::{Answer, Question};
use proto::time::Timestamp;
use tokio::sync::{Notify, mpsc, watch};

use super::leases::Leases;
use super::{Identity, MembershipConfig};
use crate::addresses::Addresses;
use crate::core::cluster::{Cluster, Command, Outcome, RaftId, Registration};
use crate::core::detection::bus::Buses;
use crate::core::detection::judge::Judge;
use crate::core::detection::{Beats, Cause, Leader, Out, Word};
use crate::core::formation::{Pledge, Status, may_pledge, may_release};
use crate::core::gateways::Silence;
use crate::core::gossip::{News, Rumours};
use crate::core::lease::{Grant, NODE_LEASE};
use crate::metrics::ClusterMetrics;
use crate::peers::Peers;
use crate::peers::ways::Way;
use crate::peers::wire::{Beat, Call, Reply};
use crate::raft::store::{Store, StoreError};
use crate::raft::{Consensus, Peer, ProposeError, Standing};

/// The cluster that the node is a member of.
const MEMBER_OF: &str = "member-of";
/// To whom it has pledged itself.
const PLEDGE: &str = "pledge";
/// How long another node may take to decide something.
pub(super) const DECIDE: Duration = Duration::from_secs(3);
/// How long another node may take to say who it is.
pub(super) const ASK: Duration = Duration::from_millis(500);
/// Addresses of callers that are remembered while there is no cluster.
const CALLERS_MAX: usize = 64;

/// Answers a question for a person.
type Inspect = Arc<dyn Fn(Question) -> BoxFuture<'static, Answer> + Send + Sync>;

/// See the [module](self).
pub(crate) struct Host {
    pub(super) config: MembershipConfig,
    pub(super) store: Store,
    pub(super) metrics: Arc<ClusterMetrics>,
    pub(super) addresses: Addresses,
    pub(super) gossip_members: watch::Sender<Vec<(RaftId, Incarnation)>>,
    pub(super) rumours: watch::Sender<Arc<Rumours>>,
    /// Something has changed that a node outside any cluster waits for.
    pub(super) stirred: Notify,
    identity: Identity,
    /// Names this start of the process.
    start: u64,
    address: OnceLock<String>,
    inspect: OnceLock<Inspect>,
    /// Takes ways that owners make to this node, once it stands by.
    ways: OnceLock<mpsc::Sender<(NodeId, Way)>>,
    /// What every voter hears of every node.
    pub(super) beats: Mutex<Beats>,
    pub(super) leases: Leases,
    judges: Mutex<Judges>,
    news: OnceLock<watch::Sender<News>>,
    changing: Mutex<Changing>,
}

/// What nodes have said of the bus, for when this one leads.
#[derive(Debug, Default)]
struct Judges {
    gateways: Judge,
    buses: Buses,
}

#[derive(Default)]
struct Changing {
    member_of: Option<ClusterUuid>,
    pledge: Option<Pledge>,
    consensus: Option<Consensus>,
    peers: Option<Peers>,
    /// Where callers say that they can be reached, by name: one that has moved
    /// is not two.
    callers: BTreeMap<NodeId, String>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}

impl Host {
    pub(super) fn new(
        config: MembershipConfig,
        identity: Identity,
        store: Store,
        metrics: Arc<ClusterMetrics>,
    ) -> Result<Self, StoreError> {
        let changing = Changing {
            member_of: store.get(MEMBER_OF)?,
            pledge: store.get(PLEDGE)?,
            ..Changing::default()
        };
        Ok(Self {
            config,
            store,
            metrics,
            addresses: Addresses::default(),
            gossip_members: watch::Sender::new(Vec::new()),
            rumours: watch::Sender::new(Arc::default()),
            stirred: Notify::new(),
            identity,
            start: random(),
            address: OnceLock::new(),
            inspect: OnceLock::new(),
            ways: OnceLock::new(),
            beats: Mutex::default(),
            leases: Leases::default(),
            judges: Mutex::default(),
            news: OnceLock::new(),
            changing: Mutex::new(changing),
        })
    }

    /// The node can be reached from now on.
    pub(super) fn listen(&self, address: String, peers: Peers) {
        self.addresses.set(self.identity.raft_id, &address);
        let _ = self.address.set(address);
        self.changing().peers = Some(peers);
    }

    /// Lets go of everything that goes on by itself.
    pub(super) fn end(&self) -> Option<Consensus> {
        let mut changing = self.changing();
        changing.peers = None;
        changing.consensus.take()
    }

    fn peers(&self) -> Option<Peers> {
        self.changing().peers.clone()
    }

    pub(super) fn answer_with(&self, inspect: Inspect) {
        let _ = self.inspect.set(inspect);
    }

    pub(super) fn registration(&self) -> Registration {
        Registration {
            raft_id: self.identity.raft_id,
            name: self.identity.name.clone(),
            start: self.start,
            address: self.address(),
            zone: self.config.zone.clone(),
            witness: self.config.witness,
            kept: Vec::new(),
        }
    }

    pub(super) fn status(&self) -> Status {
        Status {
            raft_id: self.identity.raft_id,
            name: self.identity.name.clone(),
            address: self.address(),
            member_of: self.member_of(),
            expect: self.config.bootstrap_expect,
        }
    }

    pub(super) fn raft_id(&self) -> RaftId {
        self.identity.raft_id
    }

    pub(super) fn member_of(&self) -> Option<ClusterUuid> {
        self.changing().member_of
    }

    pub(super) fn callers(&self) -> BTreeSet<String> {
        self.changing().callers.values().cloned().collect()
    }

    /// From now on, and after every restart, the node belongs to this cluster.
    /// `false`: it belongs to another one already.
    pub(super) fn enter(&self, cluster: ClusterUuid) -> Result<bool, StoreError> {
        let mut changing = self.changing();
        if let Some(known) = changing.member_of {
            return Ok(known == cluster);
        }
        self.store.put(MEMBER_OF, &cluster)?;
        changing.member_of = Some(cluster);
        self.stirred.notify_waiters();
        Ok(true)
    }

    pub(crate) fn consensus(&self) -> Option<Consensus> {
        self.changing().consensus.clone()
    }

    pub(super) fn set_consensus(&self, consensus: Consensus) {
        self.changing().consensus = Some(consensus);
    }

    /// Pledges the node, if it may.
    pub(super) fn pledge(&self, to: Pledge) -> Result<bool, StoreError> {
        let mut changing = self.changing();
        if changing.member_of.is_some() || !may_pledge(changing.pledge, to) {
            return Ok(false);
        }
        self.store.put(PLEDGE, &to)?;
        changing.pledge = Some(to);
        Ok(true)
    }

    /// Takes a pledge back, if the node is not a member by it.
    pub(super) fn release(&self, from: Pledge) -> Result<bool, StoreError> {
        let mut changing = self.changing();
        if changing.member_of.is_some() || !may_release(changing.pledge, from) {
            return Ok(false);
        }
        self.store.remove(PLEDGE)?;
        changing.pledge = None;
        Ok(true)
    }

    /// What gossip says of this node.
    pub(super) fn begin_news(&self, news: News) -> watch::Receiver<News> {
        self.news
            .get_or_init(|| watch::Sender::new(news))
            .subscribe()
    }

    /// Keeps gossip up to date with what is agreed.
    pub(super) fn tell_news(&self, cluster: &Cluster) {
        let members: Vec<_> = cluster
            .members()
            .values()
            .map(|member| (member.registration.raft_id, member.incarnation))
            .collect();
        self.gossip_members.send_if_modified(|known| {
            let changed = *known != members;
            *known = members;
            changed
        });
        if let Some(news) = self.news.get() {
            let owned = cluster.rows().iter().flatten();
            let owned = owned.filter(|row| row.owner.id == self.identity.name);
            let shards = owned.count() as u32;
            news.send_if_modified(|news| std::mem::replace(&mut news.shards, shards) != shards);
        }
    }

    /// Has something decided, wherever the leader is. `Err`: why it is not yet.
    pub(crate) async fn propose(
        &self,
        consensus: &Consensus,
        command: Command,
    ) -> Result<Outcome, String> {
        let leader = match consensus.propose(command.clone()).await {
            Ok(outcome) => return Ok(outcome),
            Err(ProposeError::Failed(why)) => return Err(why),
            Err(ProposeError::NotLeader(leader)) => leader,
        };
        let peers = self.peers().ok_or("the node does not listen yet")?;
        let leader = leader.and_then(|leader| {
            let now = self.addresses.get(leader);
            now.or_else(|| consensus.address_of(leader))
        });
        let Some(leader) = leader else {
            // A node that the leader does not call knows of none.
            let others = self.others(consensus);
            let calls = others
                .iter()
                .map(|address| peers.call(address, &Call::Leader, ASK));
            let told = join_all(calls)
                .await
                .into_iter()
                .find_map(|reply| match reply {
                    Ok(Reply::Elsewhere(leader)) => leader,
                    _ => None,
                });
            let leader = told.ok_or("the cluster has no leader now")?;
            return self.propose_at(&peers, &leader, command).await;
        };
        self.propose_at(&peers, &leader, command).await
    }

    async fn propose_at(
        &self,
        peers: &Peers,
        leader: &str,
        command: Command,
    ) -> Result<Outcome, String> {
        match peers.call(leader, &Call::Propose(command), DECIDE).await {
            Ok(Reply::Outcome(outcome)) => Ok(outcome),
            Ok(Reply::Refused(why)) => Err(why),
            Ok(Reply::Elsewhere(_)) => Err("the leader has just changed".into()),
            Ok(_) => Err("the leader answered something else".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Where a living member is.
    fn address_of(&self, consensus: &Consensus, node: &NodeRef) -> Option<String> {
        let cluster = Arc::clone(&consensus.cluster().borrow());
        let member = cluster.members().get(&node.id);
        let member = member.filter(|member| member.incarnation == node.incarnation)?;
        self.addresses.get(member.registration.raft_id)
    }

    /// Makes a way to a standby.
    pub(crate) async fn open(&self, to: &NodeRef) -> Result<Way, String> {
        let (peers, consensus) = self
            .peers()
            .zip(self.consensus())
            .ok_or("this node is in no cluster")?;
        let address = self
            .address_of(&consensus, to)
            .ok_or("it is no member any more")?;
        let way = peers.open(&address).await;
        way.map_err(|error| error.to_string())
    }

    pub(crate) fn welcome_with(&self, ways: mpsc::Sender<(NodeId, Way)>) {
        let _ = self.ways.set(ways);
    }

    /// Asks whoever leads for a lease. `None`: nobody has granted it.
    pub(crate) async fn renew(&self, me: NodeRef, renewal: u64) -> Option<Grant> {
        let consensus = self.consensus()?;
        let standing = consensus.standing();
        if standing.leads {
            return self.leases.ask(me, renewal)?.await.ok();
        }
        let address = self.leader_of(&consensus)?;
        let call = Call::Renew(me, renewal);
        match self.peers()?.call(&address, &call, NODE_LEASE).await {
            Ok(Reply::Granted(grant)) => Some(grant),
            _ => None,
        }
    }

    /// Tells whoever leads which gateways this node does not hear. `None`: nobody
    /// has taken note of it.
    pub(crate) async fn report(&self, me: NodeRef, silence: Silence) -> Option<()> {
        let consensus = self.consensus()?;
        if consensus.standing().leads {
            return self.judge(me, silence).then_some(());
        }
        let address = self.leader_of(&consensus)?;
        let call = Call::Report(me, silence);
        match self.peers()?.call(&address, &call, ASK).await {
            Ok(Reply::Reported) => Some(()),
            _ => None,
        }
    }

    /// Where the leader is, as far as is known.
    fn leader_of(&self, consensus: &Consensus) -> Option<String> {
        let leader = consensus.standing().leader?;
        let address = self.addresses.get(leader);
        address.or_else(|| consensus.address_of(leader))
    }

    /// Takes note of what a node hears of gateways, if this one leads.
    fn judge(&self, node: NodeRef, silence: Silence) -> bool {
        let leads = self.consensus().is_some_and(|it| it.standing().leads);
        if leads {
            let (now, mut judges) = (Timestamp::now(), self.judges());
            judges.buses.report(now, &node, silence.hears_echo);
            judges.gateways.report(now, node, silence);
        }
        leads
    }

    /// Gateways to declare gone, after what nodes have said to this one.
    pub(super) fn gone(&self, cluster: &Cluster) -> Vec<GatewayRef> {
        self.judges().gateways.gone(Timestamp::now(), cluster)
    }

    /// What to have agreed of who is on the bus, after the same.
    pub(super) fn buses(&self, cluster: &Cluster) -> Vec<(NodeRef, bool)> {
        self.judges().buses.changes(Timestamp::now(), cluster)
    }

    fn judges(&self) -> MutexGuard<'_, Judges> {
        self.judges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a sign of life to those who vote. Says whom this node does not hear, if
    /// it votes: else nobody beats to it.
    pub(crate) fn beat(&self, cluster: &Cluster, voters: &BTreeSet<RaftId>, beat: Beat) {
        let Some(peers) = self.peers() else {
            return;
        };
        let votes = voters.contains(&self.identity.raft_id);
        let misses = votes.then(|| {
            let beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
            beats.missed(Timestamp::now(), cluster)
        });
        let beat = Beat { misses, ..beat };
        let bytes = Bytes::from(beat.encode());
        for voter in voters {
            if *voter == self.identity.raft_id {
                self.hear_beat(beat.clone());
            } else if let Some(address) = self.addresses.get(*voter) {
                peers.datagram(&address, bytes.clone());
            }
        }
    }

    /// These are the members now: who of them is silent is judged from here on.
    pub(super) fn observe(&self, cluster: &Cluster) {
        let mut beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        beats.observe(Timestamp::now(), cluster);
    }

    /// Who does not serve, to this node, which leads in this term.
    pub(super) fn out(&self, cluster: &Cluster, standing: &Standing) -> Out {
        let now = Timestamp::now();
        let since = self.leases.in_term(standing.term, |table| table.since());
        let leader = Leader {
            me: self.raft_id(),
            since: since.unwrap_or(now),
            voters: &standing.voters,
        };
        let beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        beats.out(now, cluster, leader)
    }

    /// Why the shards of a node had to be taken over, as far as this one has heard.
    pub(crate) fn cause(&self, cluster: &Cluster, node: &NodeRef) -> Cause {
        let beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        beats.cause(cluster, node)
    }

    /// Whether this node leads and does not hear a majority of those who vote.
    pub(super) fn is_deaf(&self, cluster: &Cluster, standing: &Standing) -> bool {
        let beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, me, voters) = (Timestamp::now(), self.raft_id(), &standing.voters);
        standing.leads && !beats.hears_majority(now, cluster, me, voters)
    }

    /// A node lives.
    pub(super) fn hear_beat(&self, beat: Beat) {
        let now = Timestamp::now();
        let mut beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        let word = Word {
            has_lease: beat.has_lease,
            misses: beat.misses,
        };
        beats.beat(now, &beat.from, word);
        if beat.leaves {
            beats.leave(&beat.from);
        }
    }

    /// Where other nodes are, or were, or may be.
    pub(super) fn others(&self, consensus: &Consensus) -> BTreeSet<String> {
        let mut addresses: BTreeSet<String> = self.config.join.iter().cloned().collect();
        addresses.extend(consensus.addresses());
        addresses.remove(&self.address());
        addresses
    }

    /// Passes a question on to another node.
    pub(super) async fn ask(&self, node: &NodeId, question: Question) -> Answer {
        let unavailable = |why: &str| Answer::Unavailable(format!("node {node}: {why}"));
        let Some((peers, consensus)) = self.peers().zip(self.consensus()) else {
            return unavailable("this node is in no cluster yet");
        };
        let raft_id = consensus
            .cluster()
            .borrow()
            .members()
            .get(node)
            .map(|member| member.registration.raft_id);
        let Some(address) = raft_id.and_then(|raft_id| self.addresses.get(raft_id)) else {
            return unavailable("it is no member");
        };
        match peers.call(&address, &Call::Inspect(question), ASK).await {
            Ok(Reply::Inspected(answer)) => answer,
            Ok(Reply::Refused(why)) => unavailable(&why),
            Ok(_) => unavailable("it answered something else"),
            Err(error) => unavailable(&error.to_string()),
        }
    }

    fn address(&self) -> String {
        self.address.get().cloned().unwrap_or_default()
    }

    fn changing(&self) -> MutexGuard<'_, Changing> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a data directory belongs to a cluster, or may yet.
pub(super) fn is_bound(store: &Store) -> Result<bool, StoreError> {
    let member_of: Option<ClusterUuid> = store.get(MEMBER_OF)?;
    let pledge: Option<Pledge> = store.get(PLEDGE)?;
    Ok(member_of.is_some() || pledge.is_some())
}

/// Whether a data directory belongs to a cluster.
pub(super) fn is_member(store: &Store) -> Result<bool, StoreError> {
    Ok(store.get::<ClusterUuid>(MEMBER_OF)?.is_some())
}

/// What a founder asks of its members, by Raft id.
pub(super) fn peers_of(members: &[Status]) -> BTreeMap<RaftId, Peer> {
    let peer = |member: &Status| {
        let address = member.address.clone();
        (member.raft_id, Peer { address })
    };
    members.iter().map(peer).collect()
}

/// A random number of the system, not zero.
///
/// # Panics
/// When the system has none to give, which it has from early after its start.
pub(super) fn random() -> u64 {
    let mut bytes = [0; 8];
    let mut filled = 0;
    while filled < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut bytes[filled..], flags).expect("random numbers");
    }
    u64::from_le_bytes(bytes).max(1)
}
