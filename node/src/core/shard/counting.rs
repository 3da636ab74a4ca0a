//! How many subscribers channels have, for gateways whose clients are told.
//!
//! Each of these gateways says with its joins how many it has, and joins anew when that
//! has changed; the sum is told to all of them. It is neither replicated nor an entry of
//! the channel: it is right a moment later, whatever is lost, for a new owner is told all
//! of it, and each sum that stays is told twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::channel::ChannelKey;
use proto::id::{GatewayId, GatewayRef};
use proto::message::{Reply, Subscribers};
use proto::time::{Timers, Timestamp};

use super::{Effect, Shard};

/// How often the count of a channel is told at most,
const PAUSE: Duration = Duration::from_millis(500);
/// and of one with as many subscribers as this: what a crowd does is not to be told to
/// each of the crowd.
const CROWD: u32 = 100;
const CROWD_PAUSE: Duration = Duration::from_secs(5);
/// After how long a count is told once more: a message may have been lost.
const AGAIN: Duration = Duration::from_secs(5);

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Counting {
    channels: BTreeMap<ChannelKey, Counted>,
    timers: Timers<ChannelKey>,
}

#[derive(Debug, Default)]
struct Counted {
    /// Who wants to be told.
    gateways: BTreeSet<GatewayId>,
    told: Option<Told>,
    /// When it is looked at next, if that is planned.
    due: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy)]
struct Told {
    count: u32,
    at: Timestamp,
    twice: bool,
}

impl Shard {
    /// A gateway wants to be told how many subscribers a channel has.
    pub(super) fn count_for(&mut self, now: Timestamp, key: &ChannelKey, gateway: &GatewayId) {
        let counted = self.counting.channels.entry(key.clone()).or_default();
        if !counted.gateways.contains(gateway) {
            counted.gateways.insert(gateway.clone());
            // It has not been told what the others have.
            counted.told = None;
        }
        self.recount(now, key);
    }

    /// A gateway does not follow a channel any more. If it comes again it is told anew.
    pub(super) fn uncount(&mut self, now: Timestamp, key: &ChannelKey, gateway: &GatewayId) {
        if let Some(counted) = self.counting.channels.get_mut(key) {
            counted.gateways.remove(gateway);
        }
        self.recount(now, key);
    }

    /// The subscribers of a channel may have changed.
    fn recount(&mut self, now: Timestamp, key: &ChannelKey) {
        let Some(counted) = self.counting.channels.get_mut(key) else {
            return;
        };
        let pause = |told: Told| {
            let pause = if told.count < CROWD {
                PAUSE
            } else {
                CROWD_PAUSE
            };
            told.at + pause
        };
        let due = counted.told.map_or(now, pause).max(now);
        if counted.due.is_none_or(|planned| due < planned) {
            counted.due = Some(due);
            self.counting.timers.set(due, key.clone());
        }
    }

    /// How many subscribers a channel has, as its gateways last said.
    pub(super) fn subscribers(&self, key: &ChannelKey) -> u32 {
        let channel = self.channels.get(key);
        let followers = channel.into_iter().flat_map(|it| it.interest.followers());
        let counts = followers.map(|(_, count)| count);
        counts.fold(0, u32::saturating_add)
    }

    /// Tells what is due. Not while a new owner may not have heard of all gateways.
    pub(super) fn tell_counts(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let counts = self.counts(now);
        while let Some(key) = self.counting.timers.pop_due(now) {
            let count = self.subscribers(&key);
            let Some(counted) = self.counting.channels.get_mut(&key) else {
                continue;
            };
            if counted.due.take_if(|due| *due <= now).is_none() {
                continue;
            }
            if count == 0 {
                self.counting.channels.remove(&key);
                continue;
            }
            let twice = match counted.told {
                Some(told) if told.count == count && told.twice => continue,
                Some(told) if told.count == count => now.since(told.at) >= AGAIN,
                _ => false,
            };
            let is_new = counted.told.is_none_or(|told| told.count != count);
            if !counts {
                self.plan(now + PAUSE, key);
                continue;
            }
            if is_new || twice {
                let at = now;
                counted.told = Some(Told { count, at, twice });
                let gateways = counted.gateways.clone();
                self.tell_count(&key, count, &gateways, effects);
            }
            if !twice {
                self.plan(now + AGAIN, key);
            }
        }
    }

    fn plan(&mut self, due: Timestamp, key: ChannelKey) {
        if let Some(counted) = self.counting.channels.get_mut(&key) {
            counted.due = Some(due);
            self.counting.timers.set(due, key);
        }
    }

    fn tell_count(
        &self,
        key: &ChannelKey,
        count: u32,
        gateways: &BTreeSet<GatewayId>,
        effects: &mut Vec<Effect>,
    ) {
        let channel = self.channels.get(key);
        let followers = channel.into_iter().flat_map(|it| it.interest.followers());
        let to: Vec<GatewayRef> = followers
            .filter(|(gateway, _)| gateways.contains(&gateway.id))
            .map(|(gateway, _)| gateway.clone())
            .collect();
        effects.extend(to.into_iter().map(|to| Effect::Reply {
            to,
            reply: Reply::Subscribers(Subscribers {
                shard: self.tenure.shard,
                fence: self.tenure.fence,
                key: key.clone(),
                count,
            }),
        }));
    }
}

#[cfg(test)]
mod tests;
