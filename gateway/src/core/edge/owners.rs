//! Who owns what: maps, refusals, fences, and replies in general.

use std::time::Duration;

use proto::channel::ChannelKey;
use proto::id::{ClusterUuid, NodeId, NodeRef};
use proto::message::{NodeBeat, Refusal, Replies, Reply, Request};
use proto::namespace::Namespaces;
use proto::shard::{Fence, MapUpdate, ShardId};
use proto::time::Timestamp;

use super::{Edge, Effect, MAP_RETRY, NAMESPACES_RETRY, Shard, to};

/// What a node knows that says who serves a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refuser {
    /// As much as we do, or more.
    Informed,
    /// Less: perhaps it is the owner itself, and has not heard of it yet.
    Behind,
}

impl Edge {
    /// A message from the owner under this fence. A higher one than we know
    /// means a new owner, and here it is.
    pub(super) fn heard_from_owner(
        &mut self,
        now: Timestamp,
        id: ShardId,
        from: &NodeRef,
        fence: Fence,
        except: Option<&ChannelKey>,
        effects: &mut Vec<Effect>,
    ) {
        let shard = self.shard(id);
        if fence > shard.floor {
            shard.floor = fence;
            self.move_to(now, id, from.clone(), fence, except, effects);
        }
    }

    /// Somebody says who serves a shard.
    pub(super) fn reroute(
        &mut self,
        now: Timestamp,
        id: ShardId,
        owner: NodeRef,
        fence: Fence,
        effects: &mut Vec<Effect>,
    ) -> Refuser {
        let behind = fence < self.shard(id).fence;
        self.move_to(now, id, owner, fence, None, effects);
        if behind {
            Refuser::Behind
        } else {
            Refuser::Informed
        }
    }

    /// Turns to a new owner, with everything that is unanswered and with every
    /// channel but the one that it has just answered. Under a fence that we
    /// know already this has been done.
    fn move_to(
        &mut self,
        now: Timestamp,
        id: ShardId,
        owner: NodeRef,
        fence: Fence,
        except: Option<&ChannelKey>,
        effects: &mut Vec<Effect>,
    ) {
        let version = self.version;
        let shard = self.shard(id);
        if fence <= shard.fence {
            return;
        }
        (shard.owner, shard.fence) = (owner, fence);
        shard.rejoined = except.is_none().then_some((now, version + 1));
        let Shard {
            uplink,
            owner,
            fence,
            ..
        } = shard;
        uplink.resend(now, *fence, to(&owner.id, effects));
        if shard.has_stated {
            self.state_all(now, id, effects);
        }
        // What another owner has asked for.
        self.restating.remove(&id);
        let mut keys: Vec<ChannelKey> = self.shard(id).channels.keys().cloned().collect();
        keys.sort_unstable();
        for key in keys.into_iter().filter(|key| Some(key) != except) {
            self.change(now, id, &key, effects, |attachment, _| attachment.detach());
            self.refreshing.remove(&(id, key));
        }
    }

    pub(super) fn node_beat(&mut self, now: Timestamp, beat: &NodeBeat, effects: &mut Vec<Effect>) {
        if beat.cluster != self.cluster {
            self.stranger(now, Some(&beat.from), beat.cluster, effects);
            return;
        }
        if !self.nodes.hear_ours(now, &beat.from) {
            return;
        }
        self.sign(now, &beat.from.id, effects);
        self.learn_version(now, &beat.from.id, beat.map_version, effects);
        // A node with an older map may have older namespaces as well.
        let differ = beat.namespaces != self.namespaces_digest;
        if differ && beat.map_version >= self.map_version {
            self.fetch_map(now, Some(&beat.from.id), NAMESPACES_RETRY, effects);
        }
    }

    /// A node goes by a map of this version.
    fn learn_version(
        &mut self,
        now: Timestamp,
        node: &NodeId,
        version: u64,
        effects: &mut Vec<Effect>,
    ) {
        if version > self.map_version {
            self.fetch_map(now, Some(node), MAP_RETRY, effects);
        }
    }

    /// Asks for what has changed in the map, unless that was done a moment ago.
    /// If nobody can be asked now, the next beat leads here again.
    fn fetch_map(
        &mut self,
        now: Timestamp,
        node: Option<&NodeId>,
        wait: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let Some(node) = node.or(self.nodes.any(now)) else {
            return;
        };
        if self.map_asked_at.is_some_and(|at| now.since(at) < wait) {
            return;
        }
        effects.push(Effect::Request {
            node: node.clone(),
            request: Request::Map {
                since: self.map_version,
            },
        });
        self.map_asked_at = Some(now);
    }

    /// A change of the map, asked for or pushed (then nobody knows from whom).
    pub(super) fn map(
        &mut self,
        now: Timestamp,
        from: Option<&NodeRef>,
        update: &MapUpdate,
        effects: &mut Vec<Effect>,
    ) {
        if update.cluster != self.cluster || update.sharding != self.sharding {
            self.stranger(now, from, update.cluster, effects);
            return;
        }
        if update.version <= self.map_version {
            return;
        }
        if !update.is_sound() {
            effects.push(Effect::Malformed);
            return;
        }
        if update.since > self.map_version {
            // What lies between was lost.
            self.fetch_map(now, from.map(|node| &node.id), MAP_RETRY, effects);
            return;
        }
        self.map_version = update.version;
        for (shard, row) in &update.rows {
            if let Some(owner) = update.owner(row) {
                self.reroute(now, *shard, owner.clone(), row.fence, effects);
                if !self.shard(*shard).has_stated {
                    self.nodes.owe_greeting(&owner.id, update.version);
                }
            }
        }
    }

    /// Something of another cluster, or of ours with other shards. A map row of
    /// it, or a beat, would send channels where nobody knows them.
    fn stranger(
        &mut self,
        now: Timestamp,
        from: Option<&NodeRef>,
        cluster: ClusterUuid,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(node) = from
            && cluster != self.cluster
            && !self.shards.iter().any(|shard| shard.owner == *node)
        {
            self.nodes.hear_stranger(now, node);
        }
        effects.push(Effect::Stranger {
            from: from.map(|node| node.id.clone()),
            cluster,
            log: self.nodes.complains(now),
        });
    }

    pub(super) fn replies(&mut self, now: Timestamp, replies: Replies, effects: &mut Vec<Effect>) {
        let from = &replies.from;
        if replies.to != self.me.incarnation || self.nodes.hear(now, from).is_none() {
            return;
        }
        for reply in replies.replies {
            match reply {
                Reply::Published {
                    shard,
                    sequence,
                    result,
                } => {
                    if let Err(Refusal::NotOwner { owner, fence }) = result {
                        if usize::from(shard.0) < self.shards.len()
                            && self.reroute(now, shard, owner, fence, effects) == Refuser::Behind
                        {
                            self.shard(shard).uplink.hurry(now);
                        }
                    } else {
                        self.published(now, from, shard, sequence, result, effects);
                    }
                }
                Reply::Joined { version, result } => {
                    self.joined(now, from, version, result, effects);
                }
                // From a node that answers whether that is wanted or not.
                Reply::Left { .. } => {}
                Reply::Map { update, namespaces } => {
                    self.map(now, Some(from), &update, effects);
                    self.take_namespaces(&update, namespaces);
                }
                Reply::Restate { shard, fence } => self.restate(now, shard, fence, effects),
                Reply::Inspected { id, answer } => self.inspected(id, answer, effects),
                Reply::Gone { newer } if newer > self.me.incarnation => {
                    effects.push(Effect::Superseded { newer });
                }
                Reply::Gone { .. } => effects.push(Effect::Malformed),
                Reply::DeclaredGone { through } => {
                    self.begin_life(now, through, effects);
                    // The rest is for the life before.
                    return;
                }
                Reply::Greeted { map_version } => self.nodes.greeted(&from.id, map_version),
                Reply::Subscribers(subscribers) => self.counted(now, subscribers, effects),
                Reply::Queried { id, result } => self.queried(now, from, id, result, effects),
                Reply::Unrepairable { below } => self.unrepairable(&from.id, below, effects),
            }
        }
        self.learn_version(now, &from.id, replies.map_version, effects);
    }

    /// Namespaces have no version of their own: those of a node whose map is as
    /// new as ours count.
    fn take_namespaces(&mut self, update: &MapUpdate, namespaces: Namespaces) {
        if update.cluster == self.cluster && update.version >= self.map_version {
            self.namespaces_digest = namespaces.digest();
            self.namespaces = namespaces;
        }
    }
}
