//! What comes by the links from nodes.

use proto::channel::ChannelKey;
use proto::codec;
use proto::id::{NodeId, NodeRef};
use proto::link::Receipt;
use proto::message::{Batch, Entry};
use proto::shard::ShardId;
use proto::time::Timestamp;

use super::{Edge, Effect, REFRESH_PER_TICK};

impl Edge {
    pub(super) fn batch(&mut self, now: Timestamp, batch: &Batch, effects: &mut Vec<Effect>) {
        if batch.to != self.me.incarnation {
            return;
        }
        let Some(link) = self.nodes.hear(now, &batch.from) else {
            return;
        };
        match link.receive(batch) {
            Receipt::InOrder => {}
            Receipt::Old => return,
            Receipt::Gap(missed) => {
                effects.push(Effect::LinkGap {
                    node: batch.from.id.clone(),
                    missed,
                });
                self.refresh_all_of(&batch.from.id);
            }
        }
        for bytes in &batch.entries {
            match codec::decode_entry(bytes) {
                Ok(entry) => self.receive(now, &batch.from, entry, effects),
                Err(_) => effects.push(Effect::Malformed),
            }
        }
    }

    fn receive(&mut self, now: Timestamp, from: &NodeRef, entry: Entry, effects: &mut Vec<Effect>) {
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
        self.change(now, id, &key, effects, |a, steps| {
            a.receive(epoch, publication, steps)
        });
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
