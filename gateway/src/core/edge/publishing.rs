//! Publishing: the uplinks of all shards.

use proto::channel::ChannelKind;
use proto::error::ErrorCode;
use proto::id::NodeRef;
use proto::message::{PublishResult, Published, Refusal};
use proto::shard::ShardId;
use proto::time::Timestamp;

use super::{Edge, Effect, Shard, to};
use crate::core::uplink::{Order, Settled, Ticket};

impl Edge {
    pub(super) fn publish(
        &mut self,
        now: Timestamp,
        ticket: Ticket,
        order: Order,
        effects: &mut Vec<Effect>,
    ) {
        // A node of an earlier version would take nothing of the message.
        if order.key.channel.kind() == ChannelKind::User && !self.states {
            return effects.push(Effect::Answer((ticket, Err(ErrorCode::Unavailable))));
        }
        let shard = self.shard_of(&order.key);
        match shard.uplink.push(now, ticket, order) {
            Ok(()) => {
                shard.send(now, effects);
                let id = shard.id;
                self.busy.insert(id);
            }
            Err(code) => effects.push(Effect::Answer((ticket, Err(code)))),
        }
    }

    pub(super) fn published(
        &mut self,
        now: Timestamp,
        from: &NodeRef,
        id: ShardId,
        sequence: u64,
        result: PublishResult,
        effects: &mut Vec<Effect>,
    ) {
        let Some(shard) = self.shards.get_mut(usize::from(id.0)) else {
            return;
        };
        let mut owner_speaks = None;
        match &result {
            Ok(Published::Accepted { fence, .. }) if *fence < shard.floor => return,
            Ok(Published::Accepted { fence, .. }) => owner_speaks = Some(*fence),
            // Without a fence: an earlier owner's may come late.
            _ if *from != shard.owner => return,
            Err(Refusal::OutOfSequence { expected }) => {
                let Shard {
                    uplink,
                    owner,
                    fence,
                    ..
                } = shard;
                uplink.fill_hole(now, *fence, *expected, to(&owner.id, effects));
                return;
            }
            _ => {}
        }
        let settled = shard.uplink.answered(sequence, result);
        self.go_on_stating(id);
        self.shard(id).send(now, effects);
        if let Some(fence) = owner_speaks {
            self.heard_from_owner(now, id, from, fence, None, effects);
        }
        match settled {
            Some(Settled::Publish(answer)) => effects.push(Effect::Answer(answer)),
            Some(Settled::Entered(key, connection, result)) => {
                self.entered(now, id, &key, connection, result, effects);
            }
            Some(Settled::Nothing) | None => {}
        }
    }

    pub(super) fn tick_uplinks(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let mut answers = Vec::new();
        let shards = &mut self.shards;
        self.busy.retain(|id| {
            let Shard {
                uplink,
                owner,
                fence,
                ..
            } = &mut shards[usize::from(id.0)];
            uplink.tick(now, *fence, &mut answers, to(&owner.id, effects));
            !uplink.is_idle()
        });
        effects.extend(answers.into_iter().map(Effect::Answer));
    }
}
