//! Saying that this gateway is there, and what it wants: a digest per shard, of
//! an eighth of all shards in each beat. An owner that knows something else
//! asks for a restatement. Beside it goes what has become of the publications of
//! the same shards, for their owners to count.

use std::time::Duration;

use proto::channel::ChannelKey;
use proto::message::{Fanout, GatewayBeat, GatewayCounts, ShardCounts, ShardInterest, Subscribers};
use proto::shard::{Fence, ShardId};
use proto::time::Timestamp;

use super::{Edge, Effect};
use crate::core::attachment::{Ask, Attachment};
use crate::core::workers::WorkerId;

/// How often a gateway beats.
const BEAT: Duration = Duration::from_millis(500);
/// Beats until every shard had its turn.
const ROTATION: u16 = 8;

impl Edge {
    pub(super) fn tick_beat(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if now < self.beat_at {
            return;
        }
        self.beat_at = now + BEAT;
        self.state_counts();
        let count = self.shards.len();
        let share = self.sharding.count.div_ceil(ROTATION);
        let first = usize::from(self.beat_from);
        let in_turn = (0..usize::from(share)).map(|step| &self.shards[(first + step) % count]);
        // Shards without channels count, too: an owner may think otherwise.
        let interest = in_turn.clone().map(|shard| ShardInterest {
            shard: shard.id,
            digest: shard.digest,
        });
        effects.push(Effect::Beat(GatewayBeat {
            from: self.me.clone(),
            cluster: self.cluster,
            map_version: self.map_version,
            namespaces: self.namespaces_digest,
            connections: 0,
            interest: interest.collect(),
        }));
        let counts = in_turn.filter(|shard| shard.spread.1 != Fanout::default());
        let counts = counts.map(|shard| ShardCounts {
            shard: shard.id,
            fence: shard.spread.0,
            fanout: shard.spread.1,
        });
        let counts: Vec<ShardCounts> = counts.collect();
        if !counts.is_empty() {
            effects.push(Effect::Counts(GatewayCounts {
                from: self.me.clone(),
                cluster: self.cluster,
                counts,
            }));
        }
        self.beat_from = ((first + usize::from(share)) % count) as u16;
    }

    /// A worker has so many subscribers of a channel; its owner hears of it with the next
    /// beat.
    pub(super) fn count(&mut self, worker: WorkerId, key: ChannelKey, count: u32) {
        let shard = self.shard_of(&key);
        let id = shard.id;
        let attachment = shard.channels.get_mut(&key);
        if attachment.is_some_and(|attachment| attachment.set_count(worker, count)) {
            self.recount.insert((id, key));
        }
    }

    /// Owners hear of subscribers by joins, which are sent until they are answered; but
    /// not before all nodes know what that is.
    fn state_counts(&mut self) {
        if !self.states {
            return;
        }
        for (id, key) in std::mem::take(&mut self.recount) {
            let attachment = self.shard(id).channels.get(&key);
            if attachment.is_some_and(Attachment::owes_count) {
                self.refresh_later(id, key);
            }
        }
    }

    /// An owner says how many subscribers a channel has.
    pub(super) fn counted(
        &mut self,
        now: Timestamp,
        subscribers: Subscribers,
        effects: &mut Vec<Effect>,
    ) {
        let Subscribers {
            fence, key, count, ..
        } = subscribers;
        let shard = self.shard_of(&key);
        if fence < shard.floor {
            return;
        }
        let id = shard.id;
        self.change(now, id, &key, effects, |attachment, steps| {
            attachment.count(count, steps);
            Ask::No
        });
    }

    /// What came under another fence is counted from the beginning: each owner
    /// counts what it has sent.
    pub(super) fn spread(&mut self, shard: ShardId, fence: Fence, fanout: Fanout) {
        let Some(shard) = self.shards.get_mut(usize::from(shard.0)) else {
            return;
        };
        let (of, counted) = &mut shard.spread;
        if fence > *of {
            (*of, *counted) = (fence, fanout);
        } else if fence == *of {
            *counted = counted.and(fanout);
        }
    }
}
