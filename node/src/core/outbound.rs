//! What a node sends: which life of a gateway gets what, in which order, in how
//! many messages.
//!
//! Links go before replies, so that a publication is on its way before its
//! publisher hears of it. A gateway has one link; when a new life of it is
//! heard of, a new link begins, and what was for the old one goes nowhere.
//!
//! Links keep what they have carried, to send it again when a gateway has
//! missed it. Two bounds hold for all links together:
//! - **Memory.** When all rings together have come to their bound, the largest
//!   lets go of its oldest. So a gateway that is sent much shortens its own
//!   past, and one that is sent little can still be repaired as far back as
//!   age allows. (To drop the oldest of all would let one busy link empty the
//!   rings of all others.)
//! - **Pace.** After a server of the bus has restarted, all gateways ask at
//!   once. In each tick a link repeats up to a bound and all links together up
//!   to another, and gateways take turns; what is new never waits for that.
//!
//! What an owner decided while its leases held is looked at once more, for the
//! process may have stood still since: see `late`.

mod late;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::codec::{self, PAYLOAD_BYTES_MAX};
use proto::id::{GatewayId, GatewayRef, Incarnation, NodeRef};
use proto::link;
use proto::message::{Message, NodeBeat, Repair, Replies, Reply};
use proto::shard::{MapUpdate, ShardMap};
use proto::subject::Address;
use proto::time::Timestamp;

use super::gone::Gone;
use super::pairs::Part;
use super::replication::Leases;
use super::shard::Effect;
use late::Late;

/// A message to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcel {
    /// Where to.
    pub to: Address,
    /// What it is, for metrics.
    pub kind: Kind,
    /// The encoded message.
    pub bytes: Bytes,
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Publications.
    Batch,
    /// Publications that are sent again.
    Repair,
    /// Answers.
    Replies,
    /// A sign of life, of a link or of the node.
    Beat,
    /// A change of the map.
    Map,
}

/// The sending side of a node.
#[derive(Debug)]
pub struct Outbound {
    from: NodeRef,
    namespaces: u64,
    map: Arc<ShardMap>,
    gone: Arc<Gone>,
    peers: BTreeMap<GatewayId, Peer>,
    /// How far the links of forgotten gateways had come. One that lives after
    /// all has counted up to there, and would take a lower number for old.
    ended: BTreeMap<GatewayId, (Incarnation, u64)>,
    /// Where links begin of which even that is forgotten.
    floor: u64,
    /// Gateways that wait for something to be sent again, the next one first.
    turns: VecDeque<GatewayId>,
    /// Bytes that may still be sent again in this tick.
    repair_room: usize,
    leases: Arc<Leases>,
    late: Late,
    released: Vec<(NodeRef, Part)>,
}

/// Links that have ended and are remembered at most.
const ENDED_MAX: usize = 4_096;
/// Bytes that all rings together keep at most.
pub const KEPT_BYTES_MAX: usize = 128 * 1_024 * 1_024;
/// How much the largest ring lets go at a time.
const SHED_BYTES: usize = 64 * 1_024;
/// How often [`Outbound::tick`] is to be called.
pub const TICK: Duration = Duration::from_millis(25);
/// Bytes that one link sends again in a tick: 5 MiB/s.
const LINK_REPAIR_BYTES: usize = 128 * 1_024;
/// Bytes that all links together send again in a tick: 40 MiB/s.
const REPAIR_BYTES: usize = 1_024 * 1_024;

/// What goes to one gateway.
#[derive(Debug)]
struct Peer {
    link: link::Sender,
    replies: Vec<Reply>,
    touched: bool,
    /// Bytes that may still be sent again in this tick.
    repair_room: usize,
}

/// What a process needs that has this version of the map: what came after it,
/// or all if it knows more than we do. `None` while there is no map.
pub fn update(map: &ShardMap, version: u64) -> Option<MapUpdate> {
    let version = if version > map.version { 0 } else { version };
    (!map.rows.is_empty()).then(|| map.since(version))
}

impl Outbound {
    /// A node that has sent nothing yet, and the digest of its namespaces.
    pub fn new(from: NodeRef, namespaces: u64, map: Arc<ShardMap>) -> Self {
        Self {
            from,
            namespaces,
            map,
            gone: Arc::default(),
            peers: BTreeMap::new(),
            ended: BTreeMap::new(),
            floor: 1,
            turns: VecDeque::new(),
            repair_room: REPAIR_BYTES,
            leases: Arc::new(Leases::unlimited()),
            late: Late::default(),
            released: Vec::new(),
        }
    }

    /// Until when this node may act as an owner, from now on.
    pub fn lease(&mut self, leases: Arc<Leases>) {
        self.leases = leases;
    }

    /// These gateways are gone: they have no links any more, and get none.
    pub fn lose(&mut self, gone: Arc<Gone>) {
        if Arc::ptr_eq(&gone, &self.gone) {
            return;
        }
        self.gone = gone;
        self.peers.retain(|id, peer| {
            !self.gone.contains(&GatewayRef {
                id: id.clone(),
                incarnation: peer.link.to(),
            })
        });
    }

    /// Goes by this map from now on. The leader tells all gateways what has
    /// changed; who misses it learns from beats and replies that it did.
    pub fn follow(&mut self, map: Arc<ShardMap>, leads: bool) -> Option<Parcel> {
        let before = std::mem::replace(&mut self.map, map).version;
        self.late.follow(&self.map);
        if !leads || self.map.version <= before {
            return None;
        }
        let update = update(&self.map, before)?;
        Some(Parcel {
            to: Address::Map,
            kind: Kind::Map,
            bytes: codec::encode(&Message::Map(update)),
        })
    }

    /// What shards decided, in the order in which they did.
    pub fn send(
        &mut self,
        now: Timestamp,
        effects: impl Iterator<Item = Effect>,
        parcels: &mut Vec<Parcel>,
    ) {
        for effect in effects {
            self.perform(now, effect, parcels);
        }
        self.flush(now, parcels);
        self.shed();
        self.repeat(parcels);
    }

    fn perform(&mut self, now: Timestamp, effect: Effect, parcels: &mut Vec<Parcel>) {
        match effect {
            Effect::Deliver { to, entry } => {
                let mut to = to.iter().peekable();
                let bytes = to.peek().map(|_| codec::encode_entry(&entry));
                for (gateway, bytes) in to.zip(bytes.iter().cycle()) {
                    if let Some(peer) = self.peer(now, gateway) {
                        peer.link.push(bytes.clone());
                    }
                }
            }
            Effect::Reply { to, reply } | Effect::Acknowledge { to, reply, .. } => {
                match self.peer(now, &to) {
                    Some(peer) => peer.replies.push(reply),
                    // Of a life that has ended; it is told so.
                    None => self.reply(&to.id, to.incarnation, vec![reply], parcels),
                }
            }
            Effect::Forget(gateway) => self.forget(now, &gateway, parcels),
            Effect::Repair { to, repair } => self.want(&to, &repair, parcels),
            Effect::Under(leased) => {
                for effect in self.late.admit(now, leased, &self.leases, &self.map) {
                    self.perform(now, effect, parcels);
                }
            }
            Effect::Stopped(shard) => self.late.stopped(shard),
            Effect::Release { to, part } => self.released.push((to, part)),
            // For the worker.
            Effect::Replicate { .. }
            | Effect::Propose(_)
            | Effect::Healed
            | Effect::Converged(_)
            | Effect::Repeated
            | Effect::KeyRefused { .. }
            | Effect::Started(_)
            | Effect::Unroutable => {}
        }
    }

    /// What time brings: tail beats, the next piece of repairs, and an end to
    /// what is kept.
    pub fn tick(&mut self, now: Timestamp, parcels: &mut Vec<Parcel>) {
        self.repair_room = REPAIR_BYTES;
        for peer in self.peers.values_mut() {
            peer.repair_room = LINK_REPAIR_BYTES;
            peer.link.expire(now);
        }
        for effect in self.late.due(now, &self.leases) {
            self.perform(now, effect, parcels);
        }
        self.flush(now, parcels);
        self.tail_beats(now, parcels);
        self.repeat(parcels);
    }

    /// What may be told to those who are the owners now: everything that was
    /// decided here before has been performed, or never will be.
    pub fn released(&mut self) -> impl Iterator<Item = (NodeRef, Part)> {
        self.released.drain(..)
    }

    /// What all rings together keep, in bytes.
    pub fn kept_bytes(&self) -> usize {
        self.peers.values().map(|peer| peer.link.kept_bytes()).sum()
    }

    fn tail_beats(&mut self, now: Timestamp, parcels: &mut Vec<Parcel>) {
        parcels.extend(self.peers.iter_mut().filter_map(|(id, peer)| {
            let beat = Message::Batch(peer.link.beat(now)?);
            Some(Parcel {
                to: Address::Gateway(id.clone()),
                kind: Kind::Beat,
                bytes: codec::encode(&beat),
            })
        }));
    }

    /// The node's own beat. `None` while it has no map: until then it cannot
    /// say which cluster it is of, nor serve anybody.
    pub fn beat(&self) -> Option<Parcel> {
        let beat = NodeBeat {
            from: self.from.clone(),
            cluster: self.map.cluster,
            map_version: self.map.version,
            namespaces: self.namespaces,
        };
        (!self.map.rows.is_empty()).then(|| Parcel {
            to: Address::NodeBeats,
            kind: Kind::Beat,
            bytes: codec::encode(&Message::NodeBeat(beat)),
        })
    }

    /// A gateway has missed something.
    fn want(&mut self, to: &GatewayRef, repair: &Repair, parcels: &mut Vec<Parcel>) {
        if repair.node != self.from.incarnation {
            return;
        }
        let linked = |peer: &&mut Peer| peer.link.to() == to.incarnation;
        let Some(peer) = self.peers.get_mut(&to.id).filter(linked) else {
            let nothing = Reply::Unrepairable { below: u64::MAX };
            self.reply(&to.id, to.incarnation, vec![nothing], parcels);
            return;
        };
        let waits = peer.link.is_wanted();
        if let Some(below) = peer.link.want(&repair.spans) {
            peer.replies.push(Reply::Unrepairable { below });
            peer.touched = true;
        }
        if !waits && peer.link.is_wanted() {
            self.turns.push_back(to.id.clone());
        }
    }

    /// Sends again what was asked for, as far as this tick's room goes.
    fn repeat(&mut self, parcels: &mut Vec<Parcel>) {
        for _ in 0..self.turns.len() {
            if self.repair_room == 0 {
                return;
            }
            let Some(id) = self.turns.pop_front() else {
                return;
            };
            // A link that has begun anew since is asked anew.
            let Some(peer) = self.peers.get_mut(&id) else {
                continue;
            };
            let room = peer.repair_room.min(self.repair_room);
            let sent = peer.link.repeat(room, |batch| {
                parcels.push(Parcel {
                    to: Address::Gateway(id.clone()),
                    kind: Kind::Repair,
                    bytes: codec::encode(&Message::Repair(batch)),
                });
            });
            peer.repair_room = peer.repair_room.saturating_sub(sent);
            self.repair_room = self.repair_room.saturating_sub(sent);
            if peer.link.is_wanted() {
                self.turns.push_back(id);
            }
        }
    }

    /// Holds all rings together to their bound.
    fn shed(&mut self) {
        let mut kept = self.kept_bytes();
        while kept > KEPT_BYTES_MAX {
            let largest = self
                .peers
                .values_mut()
                .max_by_key(|it| it.link.kept_bytes());
            let Some(Peer { link, .. }) = largest else {
                return;
            };
            let before = link.kept_bytes();
            link.shrink_to(before.saturating_sub(SHED_BYTES));
            kept -= before - link.kept_bytes();
        }
    }

    /// Ends a link. What is still to be sent goes out: the gateway may live.
    fn forget(&mut self, now: Timestamp, gateway: &GatewayRef, parcels: &mut Vec<Parcel>) {
        let linked = |peer: &Peer| peer.link.to() <= gateway.incarnation;
        if !self.peers.get(&gateway.id).is_some_and(linked) {
            return;
        }
        self.flush(now, parcels);
        if let Some(peer) = self.peers.remove(&gateway.id) {
            let ended = (peer.link.to(), peer.link.next());
            self.ended.insert(gateway.id.clone(), ended);
        }
        if self.ended.len() > ENDED_MAX
            && let Some((_, (_, next))) = self.ended.pop_first()
        {
            self.floor = self.floor.max(next);
        }
    }

    /// What goes to a gateway, beginning a link if this life of it has none.
    /// `None` for a life that is over.
    fn peer(&mut self, now: Timestamp, to: &GatewayRef) -> Option<&mut Peer> {
        let linked_to = self.peers.get(&to.id).map(|peer| peer.link.to());
        if linked_to > Some(to.incarnation) {
            return None;
        }
        if linked_to < Some(to.incarnation) {
            if self.gone.contains(to) {
                return None;
            }
            let next = match self.ended.remove(&to.id) {
                Some((incarnation, next)) if incarnation == to.incarnation => next,
                _ => self.floor,
            };
            let peer = Peer {
                link: link::Sender::going_on(self.from.clone(), to.incarnation, next, now),
                replies: Vec::new(),
                touched: false,
                repair_room: LINK_REPAIR_BYTES,
            };
            self.peers.insert(to.id.clone(), peer);
        }
        let peer = self.peers.get_mut(&to.id)?;
        peer.touched = true;
        Some(peer)
    }

    fn flush(&mut self, now: Timestamp, parcels: &mut Vec<Parcel>) {
        let mut replies = Vec::new();
        for (id, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.touched) {
            peer.touched = false;
            peer.link.seal(now, |batch| {
                let to = Address::Gateway(id.clone());
                parcels.push(Parcel {
                    to,
                    kind: Kind::Batch,
                    bytes: codec::encode(&Message::Batch(batch)),
                });
            });
            if !peer.replies.is_empty() {
                replies.push((
                    id.clone(),
                    peer.link.to(),
                    std::mem::take(&mut peer.replies),
                ));
            }
        }
        for (id, incarnation, all) in replies {
            self.reply(&id, incarnation, all, parcels);
        }
    }

    /// Puts replies into as many messages as the bus needs.
    fn reply(
        &self,
        id: &GatewayId,
        to: Incarnation,
        replies: Vec<Reply>,
        parcels: &mut Vec<Parcel>,
    ) {
        let message = Message::Replies(Replies {
            from: self.from.clone(),
            to,
            map_version: self.map.version,
            replies,
        });
        let bytes = codec::encode(&message);
        let Message::Replies(Replies { mut replies, .. }) = message else {
            return;
        };
        if bytes.len() > PAYLOAD_BYTES_MAX && replies.len() > 1 {
            let rest = replies.split_off(replies.len() / 2);
            self.reply(id, to, replies, parcels);
            self.reply(id, to, rest, parcels);
            return;
        }
        parcels.push(Parcel {
            to: Address::Inbox(id.clone()),
            kind: Kind::Replies,
            bytes,
        });
    }
}

#[cfg(test)]
mod tests;
