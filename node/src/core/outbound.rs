//! What a node sends: which life of a gateway gets what, in which order, in how
//! many messages.
//!
//! Links go before replies, so that a publication is on its way before its
//! publisher hears of it. A gateway has one link; when a new life of it is
//! heard of, a new link begins, and what was for the old one goes nowhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proto::codec::{self, PAYLOAD_BYTES_MAX};
use proto::id::{GatewayId, GatewayRef, Incarnation, NodeRef};
use proto::link;
use proto::message::{Message, NodeBeat, Replies, Reply};
use proto::shard::{MapUpdate, ShardMap};
use proto::subject::Address;
use proto::time::Timestamp;

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
}

/// Links that have ended and are remembered at most.
const ENDED_MAX: usize = 4_096;

/// What goes to one gateway.
#[derive(Debug)]
struct Peer {
    link: link::Sender,
    replies: Vec<Reply>,
    touched: bool,
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
        }
    }

    /// Goes by this map from now on. The leader tells all gateways what has
    /// changed; who misses it learns from beats and replies that it did.
    pub fn follow(&mut self, map: Arc<ShardMap>, leads: bool) -> Option<Parcel> {
        let before = std::mem::replace(&mut self.map, map).version;
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
                // For the worker.
                Effect::Healed
                | Effect::Repeated
                | Effect::KeyRefused { .. }
                | Effect::Started(_)
                | Effect::Stopped(_)
                | Effect::Unroutable => {}
            }
        }
        self.flush(now, parcels);
    }

    /// The tail beats of links that are due.
    pub fn tail_beats(&mut self, now: Timestamp, parcels: &mut Vec<Parcel>) {
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
    use proto::message::{Batch, Entry, Joined, Missed};
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
        outbound.send(Timestamp(0), effects.into_iter(), &mut parcels);
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
        let mut receive = |parcels: Vec<Parcel>| -> Vec<link::Receipt> {
            let batch = |parcel: &Parcel| match codec::decode(&parcel.bytes).unwrap() {
                Message::Batch(batch) => batch,
                other => panic!("not a batch: {other:?}"),
            };
            parcels
                .iter()
                .map(|p| receiver.receive(&batch(p)))
                .collect()
        };
        let in_order = vec![link::Receipt::InOrder];
        assert_eq!(
            receive(sent(&mut outbound, vec![deliver(1), deliver(1)])),
            in_order
        );
        // What was on its way when it was forgotten still goes out.
        let effects = vec![deliver(1), Effect::Forget(gateway(1))];
        assert_eq!(receive(sent(&mut outbound, effects)), in_order);
        assert_eq!(receive(sent(&mut outbound, vec![deliver(1)])), in_order);
        // Another life of it begins anew.
        sent(&mut outbound, vec![Effect::Forget(gateway(1))]);
        let parcels = sent(&mut outbound, vec![deliver(2)]);
        let Message::Batch(batch) = codec::decode(&parcels[0].bytes).unwrap() else {
            panic!("a batch")
        };
        assert_eq!(batch.first, 1);
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
