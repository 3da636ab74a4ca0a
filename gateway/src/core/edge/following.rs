//! Following channels: joins, leaves, and what comes of them.

use proto::channel::{ChannelKey, ChannelKind};
use proto::id::NodeRef;
use proto::message::{Join, JoinResult, Leave, Refusal, Request};
use proto::position::Position;
use proto::shard::ShardId;
use proto::time::Timestamp;

use super::owners::Refuser;
use super::{Edge, Effect, Joining, LINGER, RETRY, SOON, Timer};
use crate::core::attachment::{Ask, Attachment, FollowId, Step};
use crate::core::workers::WorkerId;

impl Edge {
    pub(super) fn follow(
        &mut self,
        now: Timestamp,
        worker: WorkerId,
        follow: FollowId,
        key: &ChannelKey,
        cursor: Option<Position>,
        effects: &mut Vec<Effect>,
    ) {
        let id = self.sharding.shard_of(key);
        let shard = self.shard(id);
        if !shard.channels.contains_key(key) {
            shard.digest.insert(key);
            shard
                .channels
                .insert(key.clone(), Attachment::new(&key.channel));
        }
        self.change(now, id, key, effects, |attachment, steps| {
            attachment.follow(worker, follow, cursor, steps)
        });
    }

    /// Clients have come back to a channel that the worker follows.
    pub(super) fn resume(
        &mut self,
        now: Timestamp,
        worker: WorkerId,
        key: &ChannelKey,
        cursor: Position,
        effects: &mut Vec<Effect>,
    ) {
        let id = self.sharding.shard_of(key);
        self.change(now, id, key, effects, |attachment, steps| {
            attachment.resume(worker, cursor, steps)
        });
    }

    pub(super) fn unfollow(&mut self, now: Timestamp, worker: WorkerId, key: &ChannelKey) {
        let shard = self.shard_of(key);
        let id = shard.id;
        let Some(attachment) = shard.channels.get_mut(key) else {
            return;
        };
        attachment.unfollow(worker);
        if !attachment.is_followed() {
            let leave_at = now + LINGER;
            attachment.leave_at = Some(leave_at);
            self.timers.set(leave_at, Timer::Linger(id, key.clone()));
        } else if attachment.owes_count() {
            // Nobody else says that this worker has none any more.
            self.recount.insert((id, key.clone()));
        }
    }

    pub(super) fn joined(
        &mut self,
        now: Timestamp,
        from: &NodeRef,
        version: u64,
        result: JoinResult,
        effects: &mut Vec<Effect>,
    ) {
        match result {
            Ok(joined) => {
                let Some(Joining { shard: id, .. }) = self.joins.get(&version) else {
                    return;
                };
                let id = *id;
                let fence = joined.fence;
                if fence < self.shard(id).floor {
                    return;
                }
                // Before the answer counts: a new owner detaches its channels,
                // and this join was one that it answered.
                let Some(Joining { key, .. }) = self.joins.remove(&version) else {
                    return;
                };
                self.heard_from_owner(now, id, from, fence, Some(&key), effects);
                let mine = |a: &Attachment| a.asked() == Some(version);
                if !self.shard(id).channels.get(&key).is_some_and(mine) {
                    return;
                }
                self.change(now, id, &key, effects, |a, steps| {
                    a.joined(now, joined, steps)
                });
                self.restated(id, &key, Some(version), effects);
            }
            Err(Refusal::NotOwner { owner, fence }) => {
                let Some(Joining { shard, .. }) = self.joins.get(&version) else {
                    return;
                };
                if self.reroute(now, *shard, owner, fence, effects) == Refuser::Behind
                    && let Some(joining) = self.joins.get_mut(&version)
                {
                    joining.due = now + SOON;
                    self.timers.set(joining.due, Timer::Join(version));
                }
            }
            // The timer asks again. As far as a restatement goes, the owner has
            // answered: one channel without room there must not keep the
            // others from being told.
            Err(_) => {
                let Some(Joining { shard, key, .. }) = self.joins.get(&version) else {
                    return;
                };
                let (id, key) = (*shard, key.clone());
                self.restated(id, &key, Some(version), effects);
            }
        }
    }

    /// Asks a channel's owner for what comes after our position; about a user's channel
    /// once all nodes know what that is.
    pub(super) fn ask(
        &mut self,
        now: Timestamp,
        id: ShardId,
        key: &ChannelKey,
        effects: &mut Vec<Effect>,
    ) {
        if key.channel.kind() == ChannelKind::User && !self.states {
            return;
        }
        self.version += 1;
        let version = self.version;
        if let Some(attachment) = self.shard(id).channels.get_mut(key) {
            attachment.set_asked(version);
            let joining = Joining {
                shard: id,
                key: key.clone(),
                due: now,
            };
            self.joins.insert(version, joining);
            self.send_join(now, version, effects);
        }
    }

    pub(super) fn join_again(&mut self, now: Timestamp, version: u64, effects: &mut Vec<Effect>) {
        if self.joins.get(&version).is_some_and(|j| j.due <= now) {
            self.send_join(now, version, effects);
        }
    }

    /// Sends a join, for the first time or again, and sees to it that it is
    /// sent again if no answer comes.
    fn send_join(&mut self, now: Timestamp, version: u64, effects: &mut Vec<Effect>) {
        let Some(joining) = self.joins.get_mut(&version) else {
            return;
        };
        let states = self.states;
        let shard = &mut self.shards[usize::from(joining.shard.0)];
        let Some(attachment) = shard
            .channels
            .get_mut(&joining.key)
            .filter(|a| a.asked() == Some(version))
        else {
            self.joins.remove(&version);
            return;
        };
        let join = Join {
            shard: joining.shard,
            fence: shard.fence,
            key: joining.key.clone(),
            count: attachment.subscribers(),
            since: attachment.asked_since(),
            version,
            is_counted: attachment.is_counted() && states,
        };
        attachment.state_count(states);
        if attachment.owes_count() {
            self.recount.insert((joining.shard, joining.key.clone()));
        }
        effects.push(Effect::Request {
            node: shard.owner.id.clone(),
            request: Request::Join(join),
        });
        joining.due = now + RETRY;
        self.timers.set(joining.due, Timer::Join(version));
    }

    /// The time to linger is over. If the owner does not hear of it, that is seen by the
    /// digests in our beats; one under another fence has never heard of our interest.
    pub(super) fn leave_if_unfollowed(
        &mut self,
        now: Timestamp,
        id: ShardId,
        key: ChannelKey,
        effects: &mut Vec<Effect>,
    ) {
        let shard = self.shard(id);
        let due = |a: &Attachment| !a.is_followed() && a.leave_at.is_some_and(|at| at <= now);
        if !shard.channels.get(&key).is_some_and(due) {
            return;
        }
        shard.channels.remove(&key);
        // There are many shards.
        if shard.channels.len() * 4 < shard.channels.capacity() {
            shard.channels.shrink_to(shard.channels.len() * 2);
        }
        shard.digest.remove(&key);
        self.recount.remove(&(id, key.clone()));
        let shard = self.shard(id);
        let (owner, fence) = (shard.owner.id.clone(), shard.fence);
        self.version += 1;
        let leave = Leave {
            shard: id,
            fence,
            key: key.clone(),
            version: self.version,
            is_unanswered: self.states,
        };
        effects.push(Effect::Request {
            node: owner,
            request: Request::Leave(leave),
        });
        self.restated(id, &key, None, effects);
    }

    /// Changes an attachment, passes on what that did, and asks the owner if
    /// that is needed. A channel that is not followed is left alone.
    pub(super) fn change(
        &mut self,
        now: Timestamp,
        id: ShardId,
        key: &ChannelKey,
        effects: &mut Vec<Effect>,
        change: impl FnOnce(&mut Attachment, &mut Vec<Step>) -> Ask,
    ) {
        let Some(attachment) = self.shards[usize::from(id.0)].channels.get_mut(key) else {
            return;
        };
        let ask = change(attachment, &mut self.steps);
        for step in self.steps.drain(..) {
            let key = key.clone();
            match step {
                Step::Kept { offset, bytes } => self.windows.push(now, (id, key), offset, bytes),
                step => effects.push(Effect::Step { key, step }),
            }
        }
        let ask = ask.or(attachment.ask_for_members());
        self.release_windows(now);
        if ask == Ask::Join {
            self.ask(now, id, key, effects);
        }
        self.ask_roster(now, id, key, effects);
    }

    /// Windows let go of what is too old or too much.
    pub(super) fn release_windows(&mut self, now: Timestamp) {
        while let Some(((id, key), offset)) = self.windows.pop_due(now) {
            if let Some(attachment) = self.shard(id).channels.get_mut(&key) {
                attachment.release(offset);
            }
        }
    }
}
