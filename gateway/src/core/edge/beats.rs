//! Saying that this gateway is there, and what it wants: a digest per shard, of
//! an eighth of all shards in each beat. An owner that knows something else
//! asks for a restatement. Beside it goes what has become of the publications of
//! the same shards, for their owners to count.

use std::time::Duration;

use proto::message::{Fanout, GatewayBeat, GatewayCounts, ShardCounts, ShardInterest};
use proto::shard::{Fence, ShardId};
use proto::time::Timestamp;

use super::{Edge, Effect};

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
