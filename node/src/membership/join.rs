//! How a node comes into a cluster: drives what `core::formation` decides.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use proto::id::ClusterUuid;
use tokio::time::{Instant, sleep, timeout};

use super::MembershipError;
use super::host::{ASK, DECIDE, Host, peers_of, random};
use crate::core::cluster::RaftId;
use crate::core::formation::{Decision, Pledge, Status, decide};
use crate::peers::wire::{Call, Refusal, Reply};
use crate::peers::{CallError, Peers};
use crate::raft::{Consensus, Peer};

/// How often the others are asked.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How often a node that waits says why.
const COMPLAIN: Duration = Duration::from_secs(5);
/// The cluster that this node founds, should it found one, and its attempts.
const FOUNDING: &str = "founding";
/// What that cluster is founded with, once all pledges are there. It counts only
/// if this is the cluster that the node came into.
const FOUNDERS: &str = "founders";

/// Goes on in the node's cluster, or finds one, or founds one.
pub(super) async fn enter(
    host: &Host,
    peers: &Peers,
    waits: impl Fn(String),
) -> Result<Consensus, MembershipError> {
    if host.member_of().is_none() {
        find(host, peers, waits).await?;
    }
    let cluster = host
        .member_of()
        .ok_or_else(|| MembershipError::Failed("it entered no cluster".into()))?;
    let consensus = Consensus::start(
        host.raft_id(),
        cluster,
        host.store.clone(),
        peers.clone(),
        host.addresses.clone(),
        host.metrics.raft.clone(),
    )
    .await?;
    let founders = host
        .store
        .get::<(ClusterUuid, BTreeMap<RaftId, Peer>)>(FOUNDERS)?;
    if let Some((_, founders)) = founders.filter(|(founded, _)| *founded == cluster) {
        let begun = consensus.initialize(founders).await;
        begun.map_err(MembershipError::Failed)?;
    }
    host.set_consensus(consensus.clone());
    greet(host, peers, &consensus, &mut BTreeSet::new()).await?;
    Ok(consensus)
}

/// Tells the others where this node is now, and hears where they are: any may
/// have moved.
async fn greet(
    host: &Host,
    peers: &Peers,
    consensus: &Consensus,
    said: &mut BTreeSet<String>,
) -> Result<(), MembershipError> {
    let addresses = host.others(consensus);
    let calls = addresses
        .iter()
        .map(|address| async move { peers.call(address, &Call::Status, ASK).await });
    for reply in join_all(calls).await {
        let Err(CallError::Refused { address, refusal }) = reply else {
            continue;
        };
        let Refusal { reason, copy } = refusal;
        if copy {
            return Err(MembershipError::Refused(reason));
        }
        if said.insert(format!("{address} {reason}")) {
            tracing::error!(%address, %reason, "another node and this one cannot be in one cluster");
        }
    }
    Ok(())
}

/// Goes on greeting for as long as no leader is known: addresses in `--join` may
/// lead to nodes later that they did not lead to at the start.
pub(super) async fn look_for_others(
    host: &Host,
    peers: &Peers,
    consensus: &Consensus,
) -> MembershipError {
    let mut said = BTreeSet::new();
    loop {
        sleep(ASK).await;
        if consensus.standing().leader.is_none()
            && let Err(error) = greet(host, peers, consensus, &mut said).await
        {
            return error;
        }
    }
}

/// Finds a cluster, or founds one. When this returns the host has entered it.
async fn find(host: &Host, peers: &Peers, waits: impl Fn(String)) -> Result<(), MembershipError> {
    let mut complained: Option<Instant> = None;
    loop {
        let me = host.status();
        let mut addresses: BTreeSet<String> = host.config.join.iter().cloned().collect();
        addresses.extend(host.callers());
        addresses.retain(|address| *address != me.address);
        let (heard, failures) = ask_all(peers, &addresses).await?;
        // One of the addresses may be this node's own, under another name, and
        // several may be of one node.
        let aliases = of_one_node(&me, &heard);
        addresses.retain(|address| !aliases.contains(address));
        let heard: BTreeMap<String, Status> = heard
            .into_iter()
            .filter(|(address, _)| addresses.contains(address))
            .collect();
        if host.member_of().is_some() {
            return Ok(());
        }
        let why = match decide(&me, &addresses, &heard) {
            Decision::Join { addresses, cluster } => {
                let mut failed = String::new();
                for address in addresses {
                    match join(host, peers, address, cluster).await? {
                        Ok(()) => return Ok(()),
                        Err(why) => failed = why,
                    }
                }
                failed
            }
            Decision::Found {
                members,
                ask,
                majority,
            } => match found(host, peers, &members, &ask, majority).await? {
                Ok(()) => return Ok(()),
                Err(why) => why,
            },
            Decision::Wait(why) => why,
            Decision::Refuse(why) => return Err(MembershipError::Refused(why)),
        };
        let why = match failures.first() {
            Some(failure) => format!("{why} ({failure})"),
            None => why,
        };
        if complained.is_none_or(|at| at.elapsed() >= COMPLAIN) {
            complained = Some(Instant::now());
            tracing::info!(%why, "in no cluster yet");
        }
        waits(format!("it is in no cluster yet: {why}"));
        // Woken early when the founder has got through.
        let _ = timeout(ASK_AGAIN, host.stirred.notified()).await;
    }
}

/// Addresses that lead to this node, or to one that another address leads to.
fn of_one_node(me: &Status, heard: &BTreeMap<String, Status>) -> BTreeSet<String> {
    let mut known: BTreeSet<RaftId> = [me.raft_id].into();
    let mut aliases = BTreeSet::new();
    // The address by which a node calls itself counts first.
    let by_own_name = |(address, status): &(&String, &Status)| **address != status.address;
    let mut sorted: Vec<(&String, &Status)> = heard.iter().collect();
    sorted.sort_by_key(by_own_name);
    for (address, status) in sorted {
        if !known.insert(status.raft_id) {
            aliases.insert(address.clone());
        }
    }
    aliases
}

/// Asks everyone who they are; with why some did not say.
async fn ask_all(
    peers: &Peers,
    addresses: &BTreeSet<String>,
) -> Result<(BTreeMap<String, Status>, Vec<String>), MembershipError> {
    let ask = |address: &String| {
        let address = address.clone();
        async move {
            let reply = peers.call(&address, &Call::Status, ASK).await;
            (address, reply)
        }
    };
    let mut heard = BTreeMap::new();
    let mut failures = Vec::new();
    for (address, reply) in join_all(addresses.iter().map(ask)).await {
        match reply {
            Ok(Reply::Status(status)) => {
                heard.insert(address, status);
            }
            Ok(_) => failures.push(format!("{address} answered something else")),
            Err(error @ CallError::Unreachable { .. }) => failures.push(error.to_string()),
            Err(error @ CallError::Refused { .. }) => {
                return Err(MembershipError::Refused(error.to_string()));
            }
        }
    }
    Ok((heard, failures))
}

/// Asks to be let into a cluster. The inner error is why not now.
async fn join(
    host: &Host,
    peers: &Peers,
    mut address: String,
    cluster: ClusterUuid,
) -> Result<Result<(), String>, MembershipError> {
    // To whoever was asked first, then to the leader, who may change meanwhile.
    for _ in 0..3 {
        let call = Call::Join(host.registration());
        match peers.call(&address, &call, DECIDE).await {
            Ok(Reply::Joined(joined)) if joined == cluster => {
                if !host.enter(cluster)? {
                    return Ok(Err("it is a member of another cluster by now".into()));
                }
                tracing::info!(%cluster, "joined the cluster");
                return Ok(Ok(()));
            }
            Ok(Reply::Elsewhere(Some(leader))) => address = leader,
            Ok(Reply::Elsewhere(None)) => return Ok(Err("the cluster has no leader now".into())),
            Ok(Reply::NameTaken(why)) => return Err(MembershipError::Refused(why)),
            Ok(Reply::Refused(why)) => return Ok(Err(why)),
            Ok(_) => return Ok(Err("the leader answered something else".into())),
            Err(error) => return Ok(Err(error.to_string())),
        }
    }
    Ok(Err("the leader of the cluster keeps changing".into()))
}

/// Founds a cluster, if the pledges suffice. The inner error is why not now.
async fn found(
    host: &Host,
    peers: &Peers,
    members: &[Status],
    ask: &[Status],
    majority: usize,
) -> Result<Result<(), String>, MembershipError> {
    let (cluster, attempts) = match host.store.get::<(ClusterUuid, u64)>(FOUNDING)? {
        Some(known) => known,
        None => {
            let cluster = ClusterUuid(u128::from(random()) << 64 | u128::from(random()));
            (cluster, 0)
        }
    };
    let pledge = Pledge {
        cluster,
        founder: host.raft_id(),
        attempt: attempts + 1,
    };
    host.store.put(FOUNDING, &(cluster, pledge.attempt))?;
    if !host.pledge(pledge)? {
        return Ok(Err("this node has pledged itself to another founder".into()));
    }
    let answers = ask.iter().map(|node| async move {
        let reply = peers.call(&node.address, &Call::Pledge(pledge), ASK).await;
        (node, matches!(reply, Ok(Reply::Pledged(true))))
    });
    let mut pledged: BTreeSet<RaftId> = [host.raft_id()].into();
    for (node, answer) in join_all(answers).await {
        if answer {
            pledged.insert(node.raft_id);
        }
    }
    let all = members.iter().all(|m| pledged.contains(&m.raft_id));
    if all && pledged.len() >= majority {
        // First who the members are, then that there is a cluster: after a
        // crash in between, nothing has been begun.
        host.store.put(FOUNDERS, &(cluster, peers_of(members)))?;
        if !host.enter(cluster)? {
            return Ok(Err("it is a member of another cluster by now".into()));
        }
        tracing::info!(%cluster, members = members.len(), "founded a cluster");
        return Ok(Ok(()));
    }
    let releases = ask.iter().map(|node| async move {
        // A node that does not hear of it is asked again by this founder.
        let _ = peers.call(&node.address, &Call::Release(pledge), ASK).await;
    });
    join_all(releases).await;
    host.release(pledge)?;
    // Not in step with another founder.
    sleep(Duration::from_millis(100 + random() % 400)).await;
    Ok(Err(format!(
        "{} of the {majority} nodes that are needed have pledged themselves",
        pledged.len()
    )))
}
