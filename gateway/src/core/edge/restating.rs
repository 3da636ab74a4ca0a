//! Stating the interest in a shard anew, because its owner asks for that: every
//! channel is joined again with a new version, a few hundred at a time, and the
//! end is told when all of these joins are answered. The owner then forgets
//! what it knew under a lower version; so it must not be told earlier, for a
//! join that was lost would be forgotten with the rest.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::channel::ChannelKey;
use proto::id::NodeId;
use proto::message::{Request, RestateEnd};
use proto::shard::{Fence, ShardId};
use proto::time::Timestamp;

use super::{Edge, Effect};
use crate::core::attachment::Attachment;

/// A new owner asks at once, and the channels were joined anew at once. Within
/// this time those joins are the restatement.
const FRESH: Duration = Duration::from_secs(5);

/// One shard's restatement.
#[derive(Debug)]
pub(super) struct Restating {
    /// The lowest version of its joins.
    since: u64,
    /// Channels whose join is not answered yet.
    left: BTreeSet<ChannelKey>,
}

impl Edge {
    /// The owner asks for a restatement.
    pub(super) fn restate(
        &mut self,
        now: Timestamp,
        id: ShardId,
        fence: Fence,
        effects: &mut Vec<Effect>,
    ) {
        let Some(shard) = self.shards.get_mut(usize::from(id.0)) else {
            effects.push(Effect::Malformed);
            return;
        };
        if shard.fence != fence || self.restating.contains_key(&id) {
            return;
        }
        if shard.has_stated {
            self.state_all(now, id, effects);
        }
        let shard = self.shard(id);
        // Taken: if it was not enough, the owner asks again and all is joined.
        let fresh = shard.rejoined.take();
        let fresh = fresh.filter(|(at, _)| now.since(*at) < FRESH);
        self.begin_restatement(id, fresh.map(|(_, version)| version), effects);
    }

    /// States everything, or what is not answered yet of joins from `fresh` on.
    pub(super) fn begin_restatement(
        &mut self,
        id: ShardId,
        fresh: Option<u64>,
        effects: &mut Vec<Effect>,
    ) {
        let next = self.version + 1;
        let shard = self.shard(id);
        shard.rejoined = None;
        let unanswered =
            |(_, a): &(&ChannelKey, &Attachment)| fresh.is_none() || a.asked().is_some();
        let channels = shard.channels.iter().filter(unanswered);
        let left: BTreeSet<ChannelKey> = channels.map(|(key, _)| key.clone()).collect();
        if fresh.is_none() {
            for key in &left {
                self.refresh_later(id, key.clone());
            }
        }
        let since = fresh.unwrap_or(next);
        self.restating.insert(id, Restating { since, left });
        self.end_restatement(id, effects);
    }

    /// Whether a channel is still to be joined for a restatement.
    pub(super) fn restates(&self, id: ShardId, key: &ChannelKey) -> bool {
        self.restating
            .get(&id)
            .is_some_and(|r| r.left.contains(key))
    }

    /// A channel's join with this version was answered, or (`None`) the channel
    /// has been left.
    pub(super) fn restated(
        &mut self,
        id: ShardId,
        key: &ChannelKey,
        version: Option<u64>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(restating) = self.restating.get_mut(&id) else {
            return;
        };
        if version.is_none_or(|version| version >= restating.since) && restating.left.remove(key) {
            self.end_restatement(id, effects);
        }
    }

    fn end_restatement(&mut self, id: ShardId, effects: &mut Vec<Effect>) {
        let Some(restating) = self.restating.get(&id).filter(|r| r.left.is_empty()) else {
            return;
        };
        let since = restating.since;
        self.restating.remove(&id);
        let shard = &self.shards[usize::from(id.0)];
        let node: NodeId = shard.owner.id.clone();
        let request = Request::RestateEnd(RestateEnd {
            shard: id,
            fence: shard.fence,
            since,
        });
        effects.push(Effect::Request { node, request });
    }
}
