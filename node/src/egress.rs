//! Shell: sends what shards decided. One task, so that each gateway has one
//! link with one sequence, and replies leave after the publications that were
//! decided before them.
//!
//! Batching is natural: what comes while the last round is being sent goes out
//! together in the next. Nothing here waits for a recipient.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proto::bus::BusHandle;
use proto::codec::{self, PAYLOAD_BYTES_MAX};
use proto::id::{GatewayId, GatewayRef, Incarnation};
use proto::link;
use proto::message::{Message, NodeBeat, Replies, Reply};
use proto::subject::{Address, Subject};
use proto::time::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::Config;
use crate::core::shard::Effect;
use crate::metrics::Metrics;

/// Rounds of effects that may wait; then workers wait.
pub(crate) const MAILBOX: usize = 1_024;
/// Rounds of effects that are sent together at most.
const ROUND: usize = 256;
/// How exactly tail beats are timed.
const TICK: Duration = Duration::from_millis(25);
/// How often the node says that it is there.
const BEAT: Duration = Duration::from_millis(500);

/// Runs until shutdown.
pub(crate) async fn run(
    config: Arc<Config>,
    bus: BusHandle,
    mut mailbox: mpsc::Receiver<Vec<Effect>>,
    metrics: Arc<Metrics>,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut egress = Egress {
        config,
        bus,
        metrics,
        peers: HashMap::new(),
    };
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round = Vec::with_capacity(ROUND);
    loop {
        tokio::select! {
            biased;
            _ = shutdown.wait_for(|stop| *stop) => return,
            _ = beat.tick() => egress.beat(),
            _ = tick.tick() => egress.tail_beats(),
            count = mailbox.recv_many(&mut round, ROUND) => {
                if count == 0 {
                    return;
                }
                egress.send(round.drain(..).flatten());
            }
        }
    }
}

struct Egress {
    config: Arc<Config>,
    bus: BusHandle,
    metrics: Arc<Metrics>,
    peers: HashMap<GatewayId, Peer>,
}

/// What goes to one gateway.
struct Peer {
    link: link::Sender,
    replies: Vec<Reply>,
    touched: bool,
}

impl Egress {
    fn send(&mut self, effects: impl Iterator<Item = Effect>) {
        let now = Timestamp::now();
        for effect in effects {
            match effect {
                Effect::Deliver { to, entry } => {
                    if to.is_empty() {
                        continue;
                    }
                    let bytes = codec::encode_entry(&entry);
                    for gateway in to.iter() {
                        if let Some(peer) = self.peer(now, gateway) {
                            peer.link.push(bytes.clone());
                        }
                    }
                }
                Effect::Reply { to, reply } => match self.peer(now, &to) {
                    Some(peer) => peer.replies.push(reply),
                    // Of a life that has ended; it is told so.
                    None => self.reply(&to.id, to.incarnation, vec![reply]),
                },
            }
        }
        self.flush(now);
    }

    /// What goes to a gateway, beginning a link if this life of it has none.
    /// `None` for a life that a later one has voided.
    fn peer(&mut self, now: Timestamp, to: &GatewayRef) -> Option<&mut Peer> {
        let from = &self.config.node;
        let new = || Peer {
            link: link::Sender::new(from.clone(), to.incarnation, now),
            replies: Vec::new(),
            touched: false,
        };
        if !self.peers.contains_key(&to.id) {
            self.peers.insert(to.id.clone(), new());
        }
        let peer = self.peers.get_mut(&to.id)?;
        if peer.link.to() > to.incarnation {
            return None;
        }
        if peer.link.to() < to.incarnation {
            *peer = new();
        }
        peer.touched = true;
        Some(peer)
    }

    /// Links first: a publication is on its way before its publisher hears of it.
    fn flush(&mut self, now: Timestamp) {
        let mut batches = Vec::new();
        let mut replies = Vec::new();
        for (id, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.touched) {
            peer.touched = false;
            peer.link
                .seal(now, |batch| batches.push((id.clone(), batch)));
            if !peer.replies.is_empty() {
                replies.push((
                    id.clone(),
                    peer.link.to(),
                    std::mem::take(&mut peer.replies),
                ));
            }
        }
        for (id, batch) in batches {
            self.metrics.bus.batches.inc();
            self.publish(Address::Gateway(id), &Message::Batch(batch));
        }
        for (id, incarnation, all) in replies {
            self.reply(&id, incarnation, all);
        }
    }

    /// Sends replies, in as many messages as the bus needs.
    fn reply(&self, id: &GatewayId, to: Incarnation, replies: Vec<Reply>) {
        let message = Message::Replies(Replies {
            from: self.config.node.clone(),
            to,
            map_version: self.config.map.version,
            replies,
        });
        let bytes = codec::encode(&message);
        let Message::Replies(Replies { mut replies, .. }) = message else {
            return;
        };
        if bytes.len() > PAYLOAD_BYTES_MAX && replies.len() > 1 {
            let rest = replies.split_off(replies.len() / 2);
            self.reply(id, to, replies);
            self.reply(id, to, rest);
            return;
        }
        self.metrics.bus.replies.inc();
        self.publish_bytes(Address::Inbox(id.clone()), bytes);
    }

    fn tail_beats(&mut self) {
        let now = Timestamp::now();
        let due: Vec<_> = self
            .peers
            .iter_mut()
            .filter_map(|(id, peer)| Some((id.clone(), peer.link.beat(now)?)))
            .collect();
        for (id, beat) in due {
            self.metrics.bus.beats.inc();
            self.publish(Address::Gateway(id), &Message::Batch(beat));
        }
    }

    fn beat(&self) {
        self.metrics.bus.beats.inc();
        let beat = NodeBeat {
            from: self.config.node.clone(),
            map_version: self.config.map.version,
        };
        self.publish(Address::NodeBeats, &Message::NodeBeat(beat));
    }

    fn publish(&self, address: Address, message: &Message) {
        self.publish_bytes(address, codec::encode(message));
    }

    fn publish_bytes(&self, address: Address, bytes: bytes::Bytes) {
        let subject = Subject {
            cluster: self.config.cluster.clone(),
            address,
        };
        if let Err(error) = self.bus.publish(&subject, bytes) {
            self.metrics.bus.refused.inc();
            tracing::warn!(node = %self.config.node.id, %subject, %error, "the bus did not take a message");
        }
    }
}
