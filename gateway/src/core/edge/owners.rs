//! Who owns what: maps, refusals, fences, and replies in general.

use std::collections::BTreeSet;

use proto::channel::ChannelKey;
use proto::id::NodeRef;
use proto::message::{NodeBeat, Refusal, Replies, Reply, Request};
use proto::shard::{Fence, MapUpdate, ShardId};
use proto::time::Timestamp;

use super::{Edge, Effect, MAP_RETRY, Shard, to};

impl Edge {
    /// A message from the owner under this fence. A higher fence than ever
    /// before means a new owner: what it says must be joined to what we have.
    pub(super) fn heard_from_owner(
        &mut self,
        now: Timestamp,
        id: ShardId,
        fence: Fence,
        except: Option<&ChannelKey>,
        effects: &mut Vec<Effect>,
    ) {
        let shard = self.shard(id);
        if fence <= shard.floor {
            return;
        }
        // The first message from the owner that the map named changes nothing.
        let first = shard.floor == Fence(0) && fence == shard.fence;
        shard.floor = fence;
        if !first {
            self.rejoin_all(now, id, except, effects);
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
    ) {
        let shard = self.shard(id);
        if fence <= shard.fence {
            return;
        }
        (shard.owner, shard.fence) = (owner, fence);
        let Shard {
            uplink,
            owner,
            fence,
            ..
        } = shard;
        uplink.resend(now, *fence, to(&owner.id, effects));
        let leaves: BTreeSet<u64> = self
            .leaves
            .iter()
            .filter(|(_, (of, _))| *of == id)
            .map(|(version, _)| *version)
            .collect();
        for version in leaves {
            self.send_leave(now, version, effects);
        }
        self.rejoin_all(now, id, None, effects);
    }

    fn rejoin_all(
        &mut self,
        now: Timestamp,
        id: ShardId,
        except: Option<&ChannelKey>,
        effects: &mut Vec<Effect>,
    ) {
        let mut keys: Vec<ChannelKey> = self.shard(id).channels.keys().cloned().collect();
        keys.sort_unstable();
        for key in keys.iter().filter(|key| Some(*key) != except) {
            self.change(now, id, key, effects, |attachment, _| attachment.detach());
        }
    }

    pub(super) fn node_beat(&mut self, now: Timestamp, beat: &NodeBeat, effects: &mut Vec<Effect>) {
        let asked = self
            .map_asked_at
            .is_some_and(|at| now.since(at) < MAP_RETRY);
        if beat.map_version > self.map_version && !asked {
            self.map_asked_at = Some(now);
            effects.push(Effect::Request {
                node: beat.from.id.clone(),
                request: Request::Map {
                    since: self.map_version,
                },
            });
        }
    }

    fn map(&mut self, now: Timestamp, update: &MapUpdate, effects: &mut Vec<Effect>) {
        if update.version <= self.map_version || update.since > self.map_version {
            return;
        }
        if !update.is_sound() || update.sharding != self.sharding {
            effects.push(Effect::Malformed);
            return;
        }
        self.map_version = update.version;
        for (shard, row) in &update.rows {
            if let Some(owner) = update.owner(row) {
                self.reroute(now, *shard, owner.clone(), row.fence, effects);
            }
        }
    }

    pub(super) fn replies(&mut self, now: Timestamp, replies: Replies, effects: &mut Vec<Effect>) {
        if replies.to != self.me.incarnation {
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
                        if usize::from(shard.0) < self.shards.len() {
                            self.reroute(now, shard, owner, fence, effects);
                        }
                    } else {
                        self.published(now, shard, sequence, result, effects);
                    }
                }
                Reply::Joined { version, result } => self.joined(now, version, result, effects),
                Reply::Left { version, result } => self.left(now, version, result, effects),
                Reply::Map { update, .. } => self.map(now, &update, effects),
                Reply::Restate { .. } | Reply::Inspected { .. } => {}
                Reply::Gone { newer } => effects.push(Effect::Superseded { newer }),
            }
        }
    }
}
