//! What comes by the links from nodes, and what is done about what does not.
//!
//! What is missing is asked for again, of the node whose link it is. Meanwhile
//! nothing is held back; a channel in which a publication has come too early
//! waits for the repair instead of asking its owner. What cannot be repaired
//! may have been of any channel of that node, so these are asked for by their
//! positions.

use proto::channel::ChannelKey;
use proto::codec;
use proto::id::{NodeId, NodeRef};
use proto::message::{Batch, Entry, Repair, Request, Span};
use proto::position::Position;
use proto::shard::ShardId;
use proto::time::Timestamp;

use super::nodes::Change;
use super::{Edge, Effect, REFRESH_PER_TICK};
use crate::core::attachment::Ask;

/// How an entry came.
struct Arrival<'a> {
    now: Timestamp,
    from: &'a NodeRef,
    /// Its number in the link.
    number: u64,
    /// Something before it may still come.
    behind_hole: bool,
}

impl Edge {
    /// A piece of a link, for the first time or (`repair`) again.
    pub(super) fn batch(
        &mut self,
        now: Timestamp,
        batch: &Batch,
        repair: bool,
        effects: &mut Vec<Effect>,
    ) {
        if batch.to != self.me.incarnation {
            return;
        }
        let Some(link) = self.nodes.hear(now, &batch.from) else {
            return;
        };
        let mut fresh = std::mem::take(&mut self.fresh);
        let receipt = link.receiver.receive(now, batch, &mut fresh);
        let lowest = link.receiver.lowest_missing().unwrap_or(u64::MAX);
        self.sign(now, &batch.from.id, effects);
        if receipt.missed > 0 {
            effects.push(Effect::LinkGap {
                node: batch.from.id.clone(),
                missed: receipt.missed,
            });
        }
        let entries: usize = fresh.iter().map(ExactSizeIterator::len).sum();
        if repair && entries > 0 {
            effects.push(Effect::LinkRepaired {
                entries: entries as u64,
            });
        }
        for index in fresh.drain(..).flatten() {
            let number = batch.first.saturating_add(index as u64);
            match codec::decode_entry(&batch.entries[index]) {
                Ok(entry) => {
                    let arrival = Arrival {
                        now,
                        from: &batch.from,
                        number,
                        behind_hole: lowest < number,
                    };
                    self.receive(&arrival, entry, effects);
                }
                Err(_) => effects.push(Effect::Malformed),
            }
        }
        self.fresh = fresh;
        self.fall_back(&batch.from.id, &receipt.lost, effects);
        if receipt.missed > 0 {
            self.tend(now, &batch.from, effects);
        }
    }

    /// The node holds nothing of its link below this number.
    pub(super) fn unrepairable(&mut self, node: &NodeId, below: u64, effects: &mut Vec<Effect>) {
        if let Some(link) = self.nodes.link(node) {
            let lost = link.receiver.unrepairable(below);
            self.fall_back(node, &lost, effects);
        }
    }

    /// A node has shown by itself that it is there.
    pub(super) fn sign(&mut self, now: Timestamp, node: &NodeId, effects: &mut Vec<Effect>) {
        if self.nodes.sign(now, node) {
            effects.push(Effect::Silence {
                node: node.clone(),
                silent: false,
            });
        }
    }

    /// Nodes that were heard once and are silent now.
    pub fn silent_nodes(&self) -> usize {
        self.nodes.silent()
    }

    pub(super) fn tick_links(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        for change in self.nodes.tick(now) {
            match change {
                Change::Silent(node) => effects.push(Effect::Silence { node, silent: true }),
                Change::Old(node) => {
                    // Owners stay: it is known where their links had come to.
                    if !self.shards.iter().any(|shard| shard.owner.id == node) {
                        self.nodes.forget(&node);
                    }
                }
            }
        }
        for node in self.nodes.with_holes() {
            self.tend(now, &node, effects);
        }
        self.end_waits(now);
    }

    /// Asks for what a link has lost, or gives it up, if it is time.
    fn tend(&mut self, now: Timestamp, node: &NodeRef, effects: &mut Vec<Effect>) {
        let Some(link) = self.nodes.link(&node.id) else {
            return;
        };
        let due = link.receiver.due(now);
        if !due.ask.is_empty() {
            effects.push(Effect::Request {
                node: node.id.clone(),
                request: Request::Repair(Repair {
                    node: node.incarnation,
                    spans: due.ask,
                }),
            });
        }
        self.fall_back(&node.id, &due.lost, effects);
    }

    fn fall_back(&mut self, node: &NodeId, lost: &[Span], effects: &mut Vec<Effect>) {
        if lost.is_empty() {
            return;
        }
        effects.push(Effect::LinkFallback {
            node: node.clone(),
            lost: lost
                .iter()
                .fold(0, |sum, span| span.count.saturating_add(sum)),
        });
        self.refresh_all_of(node);
    }

    /// Channels whose repair did not bring what they waited for ask for it.
    fn end_waits(&mut self, now: Timestamp) {
        for ((id, key), reached) in self.nodes.done_waiting(now) {
            let position = self.shards[usize::from(id.0)]
                .channels
                .get(&key)
                .and_then(|channel| channel.position());
            let behind = |p: Position| p.epoch == reached.epoch && p.offset < reached.offset;
            if position.is_some_and(behind) {
                self.refresh_later(id, key);
            }
        }
        for (id, key) in self.nodes.take_adrift() {
            self.refresh_later(id, key);
        }
    }

    fn receive(&mut self, arrival: &Arrival<'_>, entry: Entry, effects: &mut Vec<Effect>) {
        let (now, from) = (arrival.now, arrival.from);
        let Entry {
            shard: id,
            fence,
            key,
            epoch,
            publication,
        } = entry;
        if self
            .shards
            .get(usize::from(id.0))
            .is_none_or(|shard| fence < shard.floor)
        {
            return;
        }
        self.heard_from_owner(now, id, from, fence, None, effects);
        let offset = publication.offset;
        let mut waits = false;
        self.change(now, id, &key, effects, |attachment, steps| {
            let before = attachment.position();
            let early = |p: Position| p.epoch == epoch && offset > p.offset.next();
            let ask = attachment.receive(now, epoch, publication, steps);
            waits = ask == Ask::Join && arrival.behind_hole && before.is_some_and(early);
            if waits { Ask::No } else { ask }
        });
        if waits {
            let position = Position { epoch, offset };
            let channel = (id, key);
            let link = self.nodes.link(&from.id);
            if !link.is_some_and(|it| it.wait(now, arrival.number, channel.clone(), position)) {
                self.refresh_later(channel.0, channel.1);
            }
        }
    }

    /// A link has lost something: any channel of that node may have missed it.
    fn refresh_all_of(&mut self, node: &NodeId) {
        let mut keys: Vec<(ShardId, ChannelKey)> = self
            .shards
            .iter()
            .filter(|shard| shard.owner.id == *node)
            .flat_map(|shard| shard.channels.keys().map(|key| (shard.id, key.clone())))
            .collect();
        // In a fixed order; what waits already keeps its place, so that holes
        // that come again and again do not keep anyone from its turn.
        keys.sort_unstable();
        for (id, key) in keys {
            self.refresh_later(id, key);
        }
    }

    pub(super) fn refresh_later(&mut self, id: ShardId, key: ChannelKey) {
        if self.refreshing.insert((id, key.clone())) {
            self.refresh.push_back((id, key));
        }
    }

    pub(super) fn tick_refresh(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        for _ in 0..REFRESH_PER_TICK.min(self.refresh.len()) {
            let Some(next) = self.refresh.pop_front() else {
                break;
            };
            // Somebody else may have asked for it in the meantime.
            if !self.refreshing.remove(&next) {
                continue;
            }
            let (id, key) = next;
            let restates = self.restates(id, &key);
            self.change(now, id, &key, effects, |attachment, _| {
                if restates {
                    attachment.restate()
                } else {
                    attachment.refresh()
                }
            });
        }
    }
}
