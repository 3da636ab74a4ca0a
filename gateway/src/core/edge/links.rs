//! What comes by the links from nodes.

use proto::channel::ChannelKey;
use proto::codec;
use proto::id::NodeId;
use proto::link::{self, Receipt};
use proto::message::{Batch, Entry};
use proto::shard::ShardId;
use proto::time::Timestamp;

use super::{Edge, Effect, Link};

impl Edge {
    pub(super) fn batch(&mut self, now: Timestamp, batch: &Batch, effects: &mut Vec<Effect>) {
        if batch.to != self.me.incarnation {
            return;
        }
        let fresh = || Link {
            incarnation: batch.from.incarnation,
            receiver: link::Receiver::default(),
        };
        let link = self
            .links
            .entry(batch.from.id.clone())
            .or_insert_with(fresh);
        if batch.from.incarnation < link.incarnation {
            return;
        }
        if batch.from.incarnation > link.incarnation {
            *link = fresh();
        }
        match link.receiver.receive(batch) {
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
                Ok(entry) => self.receive(now, entry, effects),
                Err(_) => effects.push(Effect::Malformed),
            }
        }
    }

    fn receive(&mut self, now: Timestamp, entry: Entry, effects: &mut Vec<Effect>) {
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
        self.heard_from_owner(now, id, fence, None, effects);
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
        for key in keys {
            if self.refreshing.insert(key.clone()) {
                self.refresh.push_back(key);
            }
        }
    }
}
