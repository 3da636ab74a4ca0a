//! Shell: gossip between nodes over QUIC datagrams. Drives [`core::gossip`].
//!
//! [`core::gossip`]: crate::core::gossip

use std::sync::Arc;
use std::time::Duration;

use proto::time::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::addresses::Addresses;
use crate::core::cluster::RaftId;
use crate::core::gossip::{self, Effect, Freshness, Gossiper, Input, Members, News, Rumours};
use crate::metrics::GossipMetrics;
use crate::peers::{Datagram, Peers};

/// How exactly the protocol's timers are kept.
const TICK: Duration = Duration::from_millis(20);
/// How often a node tells of itself.
const TELL: Duration = Duration::from_secs(1);

/// What gossip needs of the rest.
pub(crate) struct Gossip {
    pub(crate) peers: Peers,
    pub(crate) addresses: Addresses,
    pub(crate) datagrams: mpsc::Receiver<Datagram>,
    /// What this node says.
    pub(crate) news: watch::Receiver<News>,
    /// Who else should be there.
    pub(crate) members: watch::Receiver<Members>,
    pub(crate) rumours: watch::Sender<Arc<Rumours>>,
    pub(crate) metrics: GossipMetrics,
    /// For choices that should differ between nodes.
    pub(crate) seed: u64,
}

impl Gossip {
    /// Runs until shutdown.
    pub(crate) async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
        let news = self.news.borrow_and_update().clone();
        let members = self.members.borrow_and_update().clone();
        let mut gossip = gossip::Gossip::new(news, members, self.seed);
        let mut effects = Vec::new();
        let mut freshness = Freshness::default();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tell = tokio::time::interval(TELL);
        tell.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut from = None;
            let datagram;
            let input = tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => {
                    gossip.handle(Timestamp::now(), Input::Leave, &mut effects);
                    self.perform(&mut effects, None);
                    return;
                }
                next = self.datagrams.recv() => match next {
                    Some(next) => {
                        self.metrics.received.inc();
                        from = Some(next.from);
                        datagram = next;
                        Input::Datagram(&datagram.bytes)
                    }
                    None => return,
                },
                _ = tick.tick() => Input::Tick,
                _ = tell.tick() => Input::Tell,
            };
            let now = Timestamp::now();
            // Before it: it is judged by who is a member now.
            if self.members.has_changed().unwrap_or(false) {
                let members = self.members.borrow_and_update().clone();
                gossip.handle(now, Input::Members(members), &mut effects);
            }
            if self.news.has_changed().unwrap_or(false) {
                let news = self.news.borrow_and_update().clone();
                gossip.handle(now, Input::News(news), &mut effects);
            }
            gossip.handle(now, input, &mut effects);
            for effect in &effects {
                if let Effect::Rumours(rumours) = effect {
                    let suspicions = freshness.hear(now, rumours);
                    self.metrics.suspicions.inc_by(suspicions);
                    let oldest = freshness.oldest(now, rumours).as_secs_f64();
                    self.metrics.convergence.set(oldest);
                }
            }
            self.perform(&mut effects, from);
        }
    }

    /// `from`: who sent the datagram of which these are the effects.
    fn perform(&self, effects: &mut Vec<Effect>, from: Option<RaftId>) {
        for effect in effects.drain(..) {
            match effect {
                Effect::Send { to, bytes } => {
                    if let Some(address) = self.addresses.get(to) {
                        self.metrics.sent.inc();
                        self.peers.datagram(&address, bytes);
                    }
                }
                Effect::Address { node, address } => self.addresses.set(node, &address),
                Effect::Rumours(rumours) => {
                    self.rumours.send_if_modified(|shown| {
                        let changed = **shown != rumours;
                        if changed {
                            *shown = Arc::new(rumours);
                        }
                        changed
                    });
                }
                Effect::Noticed(notification) => log(notification),
                Effect::Failed(error) => {
                    tracing::debug!(from, %error, "gossip that was not understood, or own news that were not taken");
                }
            }
        }
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
