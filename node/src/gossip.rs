//! Shell: gossip between nodes, by `foca` over QUIC datagrams. It tells who
//! seems to be there, and what nodes say of themselves: where they are, their zone,
//! version and number of shards.
//! Advice: no decision is triggered by it. Two may wait for it: a namesake takes
//! a lost node's place when gossip has given that up, and who has been given up
//! is not made to vote.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use foca::{
    AccumulatingRuntime, BroadcastHandler, Config, Foca, Identity, Invalidates, PeriodicParams,
    PostcardCodec, State,
};
use proto::id::{Incarnation, NodeId};
use proto::time::{Timers, Timestamp};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::addresses::Addresses;
use crate::core::cluster::RaftId;
use crate::peers::{Datagram, Peers};

/// How exactly the protocol's timers are kept.
const TICK: Duration = Duration::from_millis(20);
/// How often a node tells of itself, and calls out to nodes that are missing:
/// a single announcement can be lost.
const NEWS: Duration = Duration::from_secs(1);
/// Bytes of a datagram: what every path takes (RFC 9000, section 14, less what
/// QUIC needs of it).
const PACKET_BYTES_MAX: NonZeroUsize = NonZeroUsize::new(1_100).expect("not zero");

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct News {
    pub(crate) raft_id: RaftId,
    pub(crate) incarnation: Incarnation,
    /// Counts the news of one life.
    pub(crate) edition: u64,
    pub(crate) name: NodeId,
    pub(crate) address: String,
    pub(crate) zone: String,
    pub(crate) version: String,
    /// Its load, as far as that is known: shards that it owns.
    pub(crate) shards: u32,
}

/// What is heard of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rumour {
    pub(crate) state: &'static str,
    pub(crate) news: Option<News>,
}

impl Rumour {
    /// Whether it has not been given up.
    pub(crate) fn is_seen(&self) -> bool {
        self.state != DOWN
    }
}

/// What is heard of a node that was given up.
const DOWN: &str = "down";

/// What is heard of all nodes.
pub(crate) type Rumours = BTreeMap<RaftId, Rumour>;

/// A node in one of its lives, as gossip names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Gossiper {
    raft_id: RaftId,
    incarnation: u64,
    /// Rises when the others have given this life up for dead by mistake.
    comeback: u32,
}

impl Identity for Gossiper {
    type Addr = RaftId;

    fn renew(&self) -> Option<Self> {
        Some(Self {
            comeback: self.comeback.wrapping_add(1),
            ..self.clone()
        })
    }

    fn addr(&self) -> RaftId {
        self.raft_id
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        (self.incarnation, self.comeback) > (adversary.incarnation, adversary.comeback)
    }
}

/// Newer news of a node replace older ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Edition {
    raft_id: RaftId,
    at: (Incarnation, u64),
}

impl Invalidates for Edition {
    fn invalidates(&self, other: &Self) -> bool {
        self.raft_id == other.raft_id && self.at > other.at
    }
}

/// What members said last. Of others nothing is kept or passed on: they may
/// call themselves anything.
#[derive(Debug)]
struct Newspaper {
    latest: Arc<std::sync::Mutex<BTreeMap<RaftId, News>>>,
    members: Members,
}

type Members = watch::Receiver<Vec<(RaftId, Incarnation)>>;

fn is_member(members: &[(RaftId, Incarnation)], node: RaftId) -> bool {
    members.iter().any(|(raft_id, _)| *raft_id == node)
}

/// Bytes that are not news.
#[derive(Debug, thiserror::Error)]
#[error("not news of a node: {0}")]
struct NotNews(rmp_serde::decode::Error);

impl BroadcastHandler<Gossiper> for Newspaper {
    type Key = Edition;
    type Error = NotNews;

    fn receive_item(
        &mut self,
        data: &[u8],
        _sender: Option<&Gossiper>,
    ) -> Result<Option<Edition>, NotNews> {
        let news: News = rmp_serde::from_slice(data).map_err(NotNews)?;
        if !is_member(&self.members.borrow(), news.raft_id) {
            return Ok(None);
        }
        let edition = Edition {
            raft_id: news.raft_id,
            at: (news.incarnation, news.edition),
        };
        let mut latest = self
            .latest
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let known = latest.get(&news.raft_id);
        if known.is_some_and(|known| (known.incarnation, known.edition) >= edition.at) {
            return Ok(None);
        }
        latest.insert(news.raft_id, news);
        Ok(Some(edition))
    }
}

/// What gossip needs of the rest.
pub(crate) struct Gossip {
    pub(crate) peers: Peers,
    pub(crate) addresses: Addresses,
    pub(crate) datagrams: mpsc::Receiver<Datagram>,
    /// What this node says; the edition is counted here.
    pub(crate) news: watch::Receiver<News>,
    /// Who else should be there.
    pub(crate) members: Members,
    pub(crate) rumours: watch::Sender<Arc<Rumours>>,
    /// For choices that should differ between nodes.
    pub(crate) seed: u64,
}

impl Gossip {
    /// Runs until shutdown.
    pub(crate) async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
        let own = self.news.borrow().clone();
        let me = Gossiper {
            raft_id: own.raft_id,
            incarnation: own.incarnation.0,
            comeback: 0,
        };
        let latest = Arc::default();
        let newspaper = Newspaper {
            latest: Arc::clone(&latest),
            members: self.members.clone(),
        };
        let mut config = Config::simple();
        config.max_packet_size = PACKET_BYTES_MAX;
        config.notify_down_members = true;
        config.periodic_gossip = Some(PeriodicParams {
            frequency: Duration::from_millis(500),
            num_members: NonZeroUsize::new(3).expect("not zero"),
        });
        let mut foca = Foca::with_custom_broadcast(
            me.clone(),
            config,
            StdRng::seed_from_u64(self.seed),
            PostcardCodec,
            newspaper,
        );
        let mut runtime = AccumulatingRuntime::new();
        let mut timers: Timers<foca::Timer<Gossiper>> = Timers::default();
        let mut edition = 0;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut news = tokio::time::interval(NEWS);
        news.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => {
                    // Said once; whoever misses it finds out by probing.
                    let _ = foca.leave_cluster(&mut runtime);
                    self.send(&mut runtime);
                    return;
                }
                datagram = self.datagrams.recv() => {
                    let Some(Datagram { from, bytes }) = datagram else { return };
                    if let Err(error) = foca.handle_data(&bytes, &mut runtime) {
                        tracing::debug!(from, %error, "gossip that was not understood");
                    }
                }
                _ = tick.tick() => {
                    while let Some(timer) = timers.pop_due(Timestamp::now()) {
                        // Fails for members that have gone since.
                        let _ = foca.handle_timer(timer, &mut runtime);
                    }
                }
                _ = news.tick() => {
                    edition += 1;
                    let own = News { edition, ..self.news.borrow().clone() };
                    let bytes = rmp_serde::to_vec(&own).expect("our types always encode into memory");
                    if let Err(error) = foca.add_broadcast(&bytes) {
                        tracing::debug!(%error, "own news were not taken");
                    }
                    self.call_missing(&mut foca, &me, &mut runtime);
                    self.read(&latest);
                    self.show(&foca, &latest);
                }
            }
            let mut changed = false;
            while let Some(notification) = runtime.to_notify() {
                changed = true;
                log(notification);
            }
            if changed {
                self.show(&foca, &latest);
            }
            while let Some((after, timer)) = runtime.to_schedule() {
                timers.set(Timestamp::now() + after, timer);
            }
            self.send(&mut runtime);
        }
    }

    /// Forgets whoever is no member, and learns where the members are now: one
    /// that has moved may not have called this node since.
    fn read(&self, latest: &std::sync::Mutex<BTreeMap<RaftId, News>>) {
        let members = self.members.borrow();
        let mut latest = latest
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        latest.retain(|node, _| is_member(&members, *node));
        for news in latest.values() {
            // Of its present life: in an earlier one it may have been elsewhere.
            if members.contains(&(news.raft_id, news.incarnation)) {
                self.addresses.set(news.raft_id, &news.address);
            }
        }
    }

    /// Announces this node to members that gossip does not know of.
    fn call_missing(
        &self,
        foca: &mut Foca<Gossiper, PostcardCodec, StdRng, Newspaper>,
        me: &Gossiper,
        runtime: &mut AccumulatingRuntime<Gossiper>,
    ) {
        let members = self.members.borrow().clone();
        for (raft_id, incarnation) in members {
            let known = foca.iter_members().any(|m| m.id().raft_id == raft_id);
            if raft_id != me.raft_id && !known {
                let missing = Gossiper {
                    raft_id,
                    incarnation: incarnation.0,
                    comeback: 0,
                };
                // Fails only for packets that are too large, and this is small.
                let _ = foca.announce(missing, &mut *runtime);
            }
        }
    }

    fn send(&self, runtime: &mut AccumulatingRuntime<Gossiper>) {
        while let Some((to, bytes)) = runtime.to_send() {
            if let Some(address) = self.addresses.get(to.raft_id) {
                self.peers.datagram(&address, bytes);
            }
        }
    }

    fn show(
        &self,
        foca: &Foca<Gossiper, PostcardCodec, StdRng, Newspaper>,
        latest: &std::sync::Mutex<BTreeMap<RaftId, News>>,
    ) {
        let latest = latest
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let own = self.news.borrow().clone();
        let mut rumours: Rumours = foca
            .iter_membership_state()
            .map(|member| {
                let raft_id = member.id().raft_id;
                let state = match member.state() {
                    State::Alive => "alive",
                    State::Suspect => "suspect",
                    State::Down => DOWN,
                };
                let news = latest.get(&raft_id).cloned();
                (raft_id, Rumour { state, news })
            })
            .collect();
        rumours.insert(
            own.raft_id,
            Rumour {
                state: "alive",
                news: Some(own),
            },
        );
        self.rumours.send_if_modified(|shown| {
            let changed = **shown != rumours;
            if changed {
                *shown = Arc::new(rumours);
            }
            changed
        });
    }
}

fn log(notification: foca::OwnedNotification<Gossiper>) {
    use foca::OwnedNotification as N;
    match notification {
        N::MemberUp(member) => tracing::debug!(node = member.raft_id, "gossip: up"),
        N::MemberDown(member) => tracing::debug!(node = member.raft_id, "gossip: down"),
        other => tracing::debug!(?other, "gossip"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_of_members_are_taken_once_and_of_others_not_at_all() {
        let (_keep, members) = watch::channel(vec![(1, Incarnation(1))]);
        let latest = Arc::default();
        let mut newspaper = Newspaper {
            latest: Arc::clone(&latest),
            members,
        };
        let mut is_taken = |raft_id, edition| {
            let news = News {
                raft_id,
                incarnation: Incarnation(1),
                edition,
                name: "a".parse().unwrap(),
                address: String::new(),
                zone: String::new(),
                version: String::new(),
                shards: 0,
            };
            let bytes = rmp_serde::to_vec(&news).unwrap();
            newspaper.receive_item(&bytes, None).unwrap().is_some()
        };
        assert!(is_taken(1, 1));
        assert!(!is_taken(1, 1));
        assert!(is_taken(1, 2));
        assert!(!is_taken(2, 1));
        assert_eq!(latest.lock().unwrap().len(), 1);
    }
}
