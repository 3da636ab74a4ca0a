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
//! What an owner decided while its leases held is looked at once more: the
//! process may have stood still since. What is too late waits here until the
//! leases hold again, or the shard has gone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::codec::{self, PAYLOAD_BYTES_MAX};
use proto::id::{GatewayId, GatewayRef, Incarnation, NodeRef};
use proto::link;
use proto::message::{Message, NodeBeat, Repair, Replies, Reply};
use proto::shard::{Fence, MapUpdate, ShardId, ShardMap};
use proto::subject::Address;
use proto::time::Timestamp;

use super::replication::Leases;
use super::shard::Effect;

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
    leases: Leases,
    /// What came too late for its lease, in order.
    late: BTreeMap<(ShardId, Fence), Late>,
}

#[derive(Debug)]
struct Late {
    standbys: Arc<[NodeRef]>,
    effects: Vec<Effect>,
}

/// What becomes of the effects that follow in a round.
#[derive(Clone, Copy)]
enum Place {
    InTime,
    /// They wait, with others of this shard.
    Late((ShardId, Fence)),
    /// Somebody else owns the shard: whatever lease this node has now, it was
    /// not given for that.
    Over,
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
            peers: BTreeMap::new(),
            ended: BTreeMap::new(),
            floor: 1,
            turns: VecDeque::new(),
            repair_room: REPAIR_BYTES,
            leases: Leases::unlimited(),
            late: BTreeMap::new(),
        }
    }

    /// Until when this node may act as an owner, from now on.
    pub fn lease(&mut self, leases: Leases) {
        self.leases = leases;
    }

    /// Goes by this map from now on. The leader tells all gateways what has
    /// changed; who misses it learns from beats and replies that it did.
    pub fn follow(&mut self, map: Arc<ShardMap>, leads: bool) -> Option<Parcel> {
        let before = std::mem::replace(&mut self.map, map).version;
        let map = Arc::clone(&self.map);
        let is_over = |shard, fence| map.owner(shard).is_some_and(|(_, known)| known > fence);
        self.late
            .retain(|(shard, fence), _| !is_over(*shard, *fence));
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

    /// What shards decided, in the order in which they did: rounds of effects
    /// that were decided together.
    pub fn send(
        &mut self,
        now: Timestamp,
        rounds: impl Iterator<Item = Vec<Effect>>,
        parcels: &mut Vec<Parcel>,
    ) {
        for round in rounds {
            let mut place = Place::InTime;
            for effect in round {
                self.perform_in_time(now, &mut place, effect, parcels);
            }
        }
        self.finish(now, parcels);
    }

    fn perform_in_time(
        &mut self,
        now: Timestamp,
        place: &mut Place,
        effect: Effect,
        parcels: &mut Vec<Parcel>,
    ) {
        match (effect, *place) {
            (
                Effect::Under {
                    shard,
                    fence,
                    standbys,
                },
                _,
            ) => *place = self.place(now, (shard, fence), standbys, parcels),
            (Effect::Stopped(shard), _) => {
                self.late.retain(|(late, _), _| *late != shard);
            }
            (effect, Place::InTime) => self.perform(now, effect, parcels),
            (effect, Place::Late(of)) => {
                if let Some(late) = self.late.get_mut(&of) {
                    late.effects.push(effect);
                }
            }
            (_, Place::Over) => {}
        }
    }

    fn place(
        &mut self,
        now: Timestamp,
        of: (ShardId, Fence),
        standbys: Arc<[NodeRef]>,
        parcels: &mut Vec<Parcel>,
    ) -> Place {
        let (shard, fence) = of;
        if self
            .map
            .owner(shard)
            .is_some_and(|(_, known)| known > fence)
        {
            self.late.remove(&of);
            return Place::Over;
        }
        if self.leases.hold(now, &standbys) {
            self.perform_late(now, of, parcels);
            return Place::InTime;
        }
        let late = self.late.entry(of).or_insert_with(|| Late {
            standbys: Arc::clone(&standbys),
            effects: Vec::new(),
        });
        late.standbys = standbys;
        Place::Late(of)
    }

    /// Performs what waited for a lease that holds again.
    fn perform_late(&mut self, now: Timestamp, of: (ShardId, Fence), parcels: &mut Vec<Parcel>) {
        for effect in self.late.remove(&of).into_iter().flat_map(|l| l.effects) {
            self.perform(now, effect, parcels);
        }
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
            Effect::Reply { to, reply } => match self.peer(now, &to) {
                Some(peer) => peer.replies.push(reply),
                // Of a life that has ended; it is told so.
                None => self.reply(&to.id, to.incarnation, vec![reply], parcels),
            },
            Effect::Forget(gateway) => self.forget(now, &gateway, parcels),
            Effect::Repair { to, repair } => self.want(&to, &repair, parcels),
            // For the worker.
            Effect::Replicate { .. }
            | Effect::Propose(_)
            | Effect::Under { .. }
            | Effect::Healed
            | Effect::Repeated
            | Effect::KeyRefused { .. }
            | Effect::Started(_)
            | Effect::Stopped(_)
            | Effect::Unroutable => {}
        }
    }

    fn finish(&mut self, now: Timestamp, parcels: &mut Vec<Parcel>) {
        self.flush(now, parcels);
        self.shed();
        self.repeat(parcels);
    }

    /// What time brings: tail beats, the next piece of repairs, and an end to
    /// what is kept.
    pub fn tick(&mut self, now: Timestamp, parcels: &mut Vec<Parcel>) {
        self.repair_room = REPAIR_BYTES;
        for peer in self.peers.values_mut() {
            peer.repair_room = LINK_REPAIR_BYTES;
            peer.link.expire(now);
        }
        let late = self.late.iter();
        let holds = late.filter(|(_, late)| self.leases.hold(now, &late.standbys));
        let holds: Vec<_> = holds.map(|(of, _)| *of).collect();
        for of in holds {
            self.perform_late(now, of, parcels);
        }
        self.flush(now, parcels);
        self.tail_beats(now, parcels);
        self.repeat(parcels);
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
    /// `None` for a life that a later one has voided.
    fn peer(&mut self, now: Timestamp, to: &GatewayRef) -> Option<&mut Peer> {
        let linked_to = self.peers.get(&to.id).map(|peer| peer.link.to());
        if linked_to > Some(to.incarnation) {
            return None;
        }
        if linked_to < Some(to.incarnation) {
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
mod tests {
    use super::*;
    use crate::core::interest::Interest;
    use proto::channel::ChannelKey;
    use proto::id::ClusterUuid;
    use proto::message::{Batch, Entry, Joined, Missed, Span};
    use proto::position::{Epoch, Offset, Position};
    use proto::publication::Publication;
    use proto::shard::{Fence, ShardId};
    use proto::time::UnixTime;

    fn gateway(incarnation: u64) -> GatewayRef {
        GatewayRef {
            id: "g".parse().unwrap(),
            incarnation: Incarnation(incarnation),
        }
    }

    fn node() -> NodeRef {
        NodeRef {
            id: "n".parse().unwrap(),
            incarnation: Incarnation(1),
        }
    }

    fn map() -> ShardMap {
        ShardMap::standalone(ClusterUuid(4), 0, node())
    }

    fn outbound() -> Outbound {
        Outbound::new(node(), 77, Arc::new(map()))
    }

    fn publication(len: usize) -> Arc<Publication> {
        Arc::new(Publication {
            offset: Offset(1),
            event: "e".into(),
            data: "x".repeat(len).into(),
            exclude: None,
            accepted_at: UnixTime(0),
        })
    }

    fn deliver(incarnation: u64) -> Effect {
        let key = ChannelKey {
            app: "a".parse().unwrap(),
            channel: "c".parse().unwrap(),
        };
        let mut interest = Interest::default();
        interest.set(Timestamp(0), &gateway(incarnation), 1, 1);
        Effect::Deliver {
            to: interest.recipients(),
            entry: Entry {
                shard: ShardId(0),
                fence: Fence(1),
                key,
                epoch: Epoch(1),
                publication: publication(1),
            },
        }
    }

    fn joined(incarnation: u64, len: usize) -> Effect {
        let position = Position {
            epoch: Epoch(1),
            offset: Offset(1),
        };
        let missed = Missed::Publications(vec![publication(len)]);
        let reply = Reply::Joined {
            version: 1,
            result: Ok(Joined {
                fence: Fence(1),
                position,
                missed,
            }),
        };
        Effect::Reply {
            to: gateway(incarnation),
            reply,
        }
    }

    fn sent(outbound: &mut Outbound, effects: Vec<Effect>) -> Vec<Parcel> {
        let mut parcels = Vec::new();
        outbound.send(Timestamp(0), [effects].into_iter(), &mut parcels);
        parcels
    }

    fn first_of(parcel: &Parcel) -> (u64, usize) {
        match codec::decode(&parcel.bytes).unwrap() {
            Message::Batch(Batch { to, entries, .. }) => (to.0, entries.len()),
            Message::Replies(Replies { to, replies, .. }) => (to.0, replies.len()),
            other => panic!("neither batch nor replies: {other:?}"),
        }
    }

    #[test]
    fn the_leader_tells_all_gateways_what_has_changed_in_the_map() {
        let mut outbound = outbound();
        let mut next = map();
        next.version = 5;
        next.rows[3].fence = Fence(5);
        let parcel = outbound.follow(Arc::new(next.clone()), true).unwrap();
        assert_eq!((parcel.to, parcel.kind), (Address::Map, Kind::Map));
        let told = codec::decode(&parcel.bytes).unwrap();
        assert_eq!(told, Message::Map(next.since(1)));
        assert_eq!(next.since(1).rows.len(), 1);
        assert_eq!(outbound.follow(Arc::new(next.clone()), true), None);
        next.version = 6;
        assert_eq!(outbound.follow(Arc::new(next.clone()), false), None);
        // The next change is told from what the others have been told.
        next.version = 7;
        next.rows[4].fence = Fence(7);
        let parcel = outbound.follow(Arc::new(next.clone()), true).unwrap();
        let told = codec::decode(&parcel.bytes).unwrap();
        assert_eq!(told, Message::Map(next.since(6)));
    }

    #[test]
    fn beats_and_replies_go_by_the_present_map_and_without_one_there_is_no_beat() {
        let nothing = ShardMap::unassigned(ClusterUuid(0), map().sharding);
        let mut outbound = Outbound::new(node(), 77, Arc::new(nothing));
        assert_eq!(outbound.beat(), None);
        let next = ShardMap {
            version: 9,
            ..map()
        };
        outbound.follow(Arc::new(next), false);
        let beat = NodeBeat {
            from: node(),
            cluster: ClusterUuid(4),
            map_version: 9,
            namespaces: 77,
        };
        let sent_beat = codec::decode(&outbound.beat().unwrap().bytes).unwrap();
        assert_eq!(sent_beat, Message::NodeBeat(beat));
        let parcels = sent(&mut outbound, vec![joined(1, 1)]);
        let Message::Replies(replies) = codec::decode(&parcels[0].bytes).unwrap() else {
            panic!("replies")
        };
        assert_eq!(replies.map_version, 9);
    }

    #[test]
    fn who_knows_more_than_we_do_gets_the_whole_map() {
        assert_eq!(update(&map(), 9), Some(map().since(0)));
        assert_eq!(update(&map(), 1).unwrap().rows, []);
        let nothing = ShardMap::unassigned(ClusterUuid(0), map().sharding);
        assert_eq!(update(&nothing, 0), None);
    }

    #[test]
    fn a_gateway_that_counts_as_gone_has_no_link_any_more() {
        let mut outbound = outbound();
        let beats = |outbound: &mut Outbound| {
            let mut parcels = Vec::new();
            outbound.tail_beats(Timestamp(10_000), &mut parcels);
            parcels.len()
        };
        sent(&mut outbound, vec![deliver(2)]);
        sent(&mut outbound, vec![Effect::Forget(gateway(1))]);
        assert_eq!(beats(&mut outbound), 1, "it lives on");
        sent(&mut outbound, vec![Effect::Forget(gateway(2))]);
        assert_eq!(beats(&mut outbound), 0);
    }

    /// It was only cut off: it has counted, and goes on counting.
    #[test]
    fn a_gateway_that_comes_back_in_the_same_life_takes_what_comes_for_new() {
        let mut outbound = outbound();
        let mut receiver = link::Receiver::default();
        // How many entries are new.
        let mut receive = |parcels: Vec<Parcel>| -> usize {
            let [Message::Batch(batch)] = &messages(&parcels)[..] else {
                panic!("not one batch: {parcels:?}");
            };
            let mut fresh = Vec::new();
            let receipt = receiver.receive(Timestamp(0), batch, &mut fresh);
            assert_eq!(receipt, link::Receipt::default());
            fresh.into_iter().flatten().count()
        };
        assert_eq!(
            receive(sent(&mut outbound, vec![deliver(1), deliver(1)])),
            2
        );
        // What was on its way when it was forgotten still goes out.
        let effects = vec![deliver(1), Effect::Forget(gateway(1))];
        assert_eq!(receive(sent(&mut outbound, effects)), 1);
        assert_eq!(receive(sent(&mut outbound, vec![deliver(1)])), 1);
        // Another life of it begins anew.
        sent(&mut outbound, vec![Effect::Forget(gateway(1))]);
        let parcels = sent(&mut outbound, vec![deliver(2)]);
        let Message::Batch(batch) = codec::decode(&parcels[0].bytes).unwrap() else {
            panic!("a batch")
        };
        assert_eq!(batch.first, 1);
    }

    /// A publication for these gateways, of so many bytes.
    fn deliver_to<'a>(gateways: impl IntoIterator<Item = &'a GatewayRef>, len: usize) -> Effect {
        let mut interest = Interest::default();
        for gateway in gateways {
            interest.set(Timestamp(0), gateway, 1, 1);
        }
        match deliver(1) {
            Effect::Deliver { entry, .. } => Effect::Deliver {
                to: interest.recipients(),
                entry: Entry {
                    publication: publication(len),
                    ..entry
                },
            },
            other => other,
        }
    }

    fn named(id: &str) -> GatewayRef {
        GatewayRef {
            id: id.parse().unwrap(),
            incarnation: Incarnation(1),
        }
    }

    fn repair(to: &GatewayRef, first: u64, count: u64) -> Effect {
        Effect::Repair {
            to: to.clone(),
            repair: Repair {
                node: Incarnation(1),
                spans: vec![Span { first, count }],
            },
        }
    }

    fn messages(parcels: &[Parcel]) -> Vec<Message> {
        let message = |parcel: &Parcel| codec::decode(&parcel.bytes).unwrap();
        parcels.iter().map(message).collect()
    }

    /// What is sent again to whom: numbers.
    fn repairs(parcels: &[Parcel]) -> Vec<(String, u64, usize)> {
        let repairs = parcels.iter().filter(|parcel| parcel.kind == Kind::Repair);
        repairs
            .map(
                |parcel| match (&parcel.to, codec::decode(&parcel.bytes).unwrap()) {
                    (Address::Gateway(id), Message::Repair(batch)) => {
                        (id.to_string(), batch.first, batch.entries.len())
                    }
                    other => panic!("not a repair: {other:?}"),
                },
            )
            .collect()
    }

    fn tick(outbound: &mut Outbound, at: u64) -> Vec<Parcel> {
        let mut parcels = Vec::new();
        outbound.tick(Timestamp(at), &mut parcels);
        parcels
    }

    fn unrepairable(parcels: &[Parcel]) -> Vec<Reply> {
        let of = |message: Message| match message {
            Message::Replies(replies) => replies.replies,
            _ => Vec::new(),
        };
        messages(parcels).into_iter().flat_map(of).collect()
    }

    #[test]
    fn what_was_missed_is_sent_again_at_once_with_its_numbers() {
        let mut outbound = outbound();
        let before = sent(&mut outbound, (0..4).map(|_| deliver(1)).collect());
        let parcels = sent(&mut outbound, vec![repair(&gateway(1), 2, 2), deliver(1)]);
        assert_eq!(parcels[0].kind, Kind::Batch, "what is new goes first");
        assert_eq!(repairs(&parcels), [("g".into(), 2, 2)]);
        assert_eq!(parcels.len(), 2, "nothing is said besides");
        let (before, again) = (messages(&before), messages(&parcels[1..]));
        let ([Message::Batch(before)], [Message::Repair(again)]) = (&before[..], &again[..]) else {
            panic!("{before:?} {again:?}");
        };
        assert_eq!(before.entries[1..3], again.entries);
        assert_eq!(repairs(&tick(&mut outbound, 25)), [], "once");
    }

    #[test]
    fn what_is_held_no_longer_is_said() {
        let mut outbound = outbound();
        sent(&mut outbound, vec![deliver(1), deliver(1)]);
        tick(&mut outbound, 10_000);
        sent(&mut outbound, vec![deliver(1)]);
        let parcels = sent(&mut outbound, vec![repair(&gateway(1), 1, 3)]);
        assert_eq!(unrepairable(&parcels), [Reply::Unrepairable { below: 3 }]);
        assert_eq!(repairs(&parcels), [("g".into(), 3, 1)]);
    }

    #[test]
    fn requests_for_repair_that_lead_nowhere_are_harmless() {
        let mut outbound = outbound();
        sent(&mut outbound, vec![deliver(2)]);
        // Of another life of this node.
        let mut other = repair(&gateway(2), 1, 1);
        if let Effect::Repair { repair, .. } = &mut other {
            repair.node = Incarnation(7);
        }
        assert_eq!(sent(&mut outbound, vec![other]), []);
        // Of other lives of the gateway, and of one that nobody knows.
        for (id, incarnation) in [("g", 1), ("g", 3), ("unknown", 2)] {
            let to = GatewayRef {
                incarnation: Incarnation(incarnation),
                ..named(id)
            };
            let parcels = sent(&mut outbound, vec![repair(&to, 1, 1)]);
            let nothing = Reply::Unrepairable { below: u64::MAX };
            assert_eq!(unrepairable(&parcels), [nothing]);
            assert_eq!((parcels.len(), outbound.peers.len()), (1, 1));
        }
        // Absurd spans.
        for (first, count) in [(u64::MAX, u64::MAX), (2, u64::MAX), (1, 0)] {
            let parcels = sent(&mut outbound, vec![repair(&gateway(2), first, count)]);
            assert_eq!(parcels, [], "{first} {count}");
        }
        assert_eq!(outbound.turns.len(), 0);
    }

    #[test]
    fn repairs_are_paced_by_link_and_by_node_and_gateways_take_turns() {
        let mut outbound = outbound();
        let gateways: Vec<GatewayRef> = (0..20).map(|n| named(&format!("g{n:02}"))).collect();
        let entry = 64 * 1_024;
        let all = (0..8).map(|_| deliver_to(&gateways, entry)).collect();
        sent(&mut outbound, all);
        let effects = gateways.iter().map(|g| repair(g, 1, 8)).collect();
        let mut rounds = vec![sent(&mut outbound, effects)];
        let all = 8 * gateways.len();
        let mut count = repairs(&rounds[0]).iter().map(|r| r.2).sum::<usize>();
        while count < all {
            let parcels = tick(&mut outbound, 25);
            count += repairs(&parcels).iter().map(|r| r.2).sum::<usize>();
            rounds.push(parcels);
            assert!(rounds.len() < 50);
        }
        assert_eq!(count, all);
        for parcels in &rounds {
            let bytes: usize = parcels.iter().map(|p| p.bytes.len()).sum();
            // With one entry over the bound.
            assert!(bytes <= REPAIR_BYTES + 3 * entry, "{bytes}");
            for gateway in &gateways {
                let to = |p: &&Parcel| p.to == Address::Gateway(gateway.id.clone());
                let bytes: usize = parcels.iter().filter(to).map(|p| p.bytes.len()).sum();
                assert!(bytes <= LINK_REPAIR_BYTES + 2 * entry, "{bytes}");
            }
        }
        // Nobody gets its second piece before all others got their first.
        let order: Vec<String> = rounds
            .iter()
            .flat_map(|p| repairs(p))
            .map(|r| r.0)
            .collect();
        let firsts: BTreeMap<&String, usize> = order
            .iter()
            .enumerate()
            .rev()
            .map(|(at, id)| (id, at))
            .collect();
        assert!(
            firsts.values().all(|at| *at < 2 * gateways.len()),
            "{order:?}"
        );
    }

    /// The gateway that is sent most pays for it with its own past.
    #[test]
    fn all_rings_together_are_bounded_and_the_largest_lets_go_first() {
        let mut outbound = outbound();
        let quiet = named("quiet");
        sent(&mut outbound, vec![deliver_to([&quiet], 1_000)]);
        let busy: Vec<GatewayRef> = (0..12).map(|n| named(&format!("busy{n}"))).collect();
        for _ in 0..40 {
            sent(&mut outbound, vec![deliver_to(&busy, 400_000)]);
            assert!(outbound.kept_bytes() <= KEPT_BYTES_MAX);
        }
        assert!(outbound.kept_bytes() > KEPT_BYTES_MAX - 12 * 400_000);
        let parcels = sent(&mut outbound, vec![repair(&quiet, 1, 1)]);
        assert_eq!(repairs(&parcels), [("quiet".into(), 1, 1)]);
        let parcels = sent(&mut outbound, vec![repair(&busy[0], 1, 1)]);
        assert_eq!(repairs(&parcels), []);
        assert_eq!(unrepairable(&parcels).len(), 1);
    }

    #[test]
    fn a_link_that_has_ended_holds_nothing() {
        let mut outbound = outbound();
        sent(&mut outbound, vec![deliver(1), Effect::Forget(gateway(1))]);
        assert_eq!(outbound.kept_bytes(), 0);
        sent(&mut outbound, vec![deliver(1), deliver(1), deliver(2)]);
        let parcels = sent(&mut outbound, vec![repair(&gateway(2), 1, 9)]);
        assert_eq!(repairs(&parcels), [("g".into(), 1, 1)], "of this life");
    }

    #[test]
    fn links_go_before_replies_and_together() {
        let parcels = sent(&mut outbound(), vec![joined(1, 1), deliver(1), deliver(1)]);
        let kinds: Vec<_> = parcels
            .iter()
            .map(|parcel| (parcel.kind, first_of(parcel)))
            .collect();
        assert_eq!(kinds, [(Kind::Batch, (1, 2)), (Kind::Replies, (1, 1))]);
    }

    #[test]
    fn a_new_life_begins_a_new_link_and_the_old_one_gets_nothing_more() {
        let mut outbound = outbound();
        sent(&mut outbound, vec![deliver(1), deliver(1)]);
        let parcels = sent(&mut outbound, vec![deliver(2), deliver(1)]);
        assert_eq!(parcels.len(), 1);
        assert_eq!(first_of(&parcels[0]), (2, 1));
        let Message::Batch(batch) = codec::decode(&parcels[0].bytes).unwrap() else {
            panic!("a batch")
        };
        assert_eq!(batch.first, 1, "counted anew");
        // But it is answered.
        let parcels = sent(&mut outbound, vec![joined(1, 1)]);
        assert_eq!(first_of(&parcels[0]), (1, 1));
    }

    #[test]
    fn replies_that_are_too_many_for_one_message_go_in_several() {
        let parcels = sent(
            &mut outbound(),
            (0..5).map(|_| joined(1, 200_000)).collect(),
        );
        assert!(parcels.len() >= 3);
        assert!(
            parcels
                .iter()
                .all(|parcel| parcel.bytes.len() <= PAYLOAD_BYTES_MAX)
        );
        assert_eq!(
            parcels
                .iter()
                .map(|parcel| first_of(parcel).1)
                .sum::<usize>(),
            5
        );
    }
}
