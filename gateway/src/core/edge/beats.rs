//! Saying that this gateway is there, and what it wants: a digest per shard, of
//! an eighth of all shards in each beat. An owner that knows something else
//! asks for a restatement.

use std::time::Duration;

use proto::message::{GatewayBeat, ShardInterest};
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
        // Shards without channels count, too: an owner may think otherwise.
        let interest = (0..usize::from(share)).map(|step| {
            let shard = &self.shards[(first + step) % count];
            ShardInterest {
                shard: shard.id,
                digest: shard.digest,
            }
        });
        effects.push(Effect::Beat(GatewayBeat {
            from: self.me.clone(),
            cluster: self.cluster,
            map_version: self.map_version,
            namespaces: self.namespaces_digest,
            connections: 0,
            interest: interest.collect(),
        }));
        self.beat_from = ((first + usize::from(share)) % count) as u16;
    }
}
