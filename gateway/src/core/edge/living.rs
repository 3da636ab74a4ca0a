//! One life after another: a gateway that was declared gone begins a new one.
//!
//! Nothing that it has asked in the old one counts any more, and nodes have
//! forgotten what it wanted. So it takes a higher incarnation, tells those whose
//! publishes were on their way that it cannot know what became of them, and joins
//! every channel that it follows from where it had come to: clients notice
//! nothing, as long as history reaches back so far.

use proto::id::Incarnation;
use proto::message::Fanout;
use proto::shard::ShardId;
use proto::time::Timestamp;

use super::{Edge, Effect};

impl Edge {
    /// The cluster has declared gone all lives of this gateway up to one.
    pub(super) fn begin_life(
        &mut self,
        now: Timestamp,
        through: Incarnation,
        effects: &mut Vec<Effect>,
    ) {
        if through < self.me.incarnation {
            return;
        }
        let Some(next) = through.0.checked_add(1) else {
            effects.push(Effect::Malformed);
            return;
        };
        self.me.incarnation = Incarnation(next);
        effects.push(Effect::Reborn {
            incarnation: self.me.incarnation,
        });
        self.nodes.begin_links();
        self.nodes.owe_greetings(self.map_version);
        self.map_asked_at = None;
        let mut answers = Vec::new();
        for at in 0..self.shards.len() {
            let shard = &mut self.shards[at];
            shard.uplink.begin_life(&mut answers);
            // Owners add up what each life counts.
            shard.spread.1 = Fanout::default();
            let id = ShardId(at as u16);
            let follows = !shard.channels.is_empty();
            // To nobody in this life.
            shard.has_stated = false;
            shard.stating = None;
            if shard.members.is_empty() {
                shard.send(now, effects);
            } else {
                self.state_all(now, id, effects);
            }
            if follows {
                self.begin_restatement(id, None, effects);
            }
        }
        effects.extend(answers.into_iter().map(Effect::Answer));
        let asked = self.asked.iter();
        effects.extend(asked.map(|(ticket, asked)| asked.request(*ticket)));
        // Nodes hear of it at once.
        self.beat_at = now;
    }
}
