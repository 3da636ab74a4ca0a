//! Questions to owners: rosters of channels whose members are here, and what backends
//! ask. Each has one addressee, and is asked again until it is answered or its time is
//! over.

use std::time::Duration;

use proto::channel::ChannelKey;
use proto::error::ErrorCode;
use proto::id::NodeRef;
use proto::message::{Query, Refusal, Request, Told, What};
use proto::presence::RosterPage;
use proto::shard::ShardId;
use proto::time::Timestamp;

use super::{Edge, Effect, SOON, Timer};
use crate::core::attachment::Ask;
use crate::core::uplink::{DEADLINE, Ticket};

/// How soon an owner is asked again that does not know yet who is there.
const AGAIN: Duration = Duration::from_millis(250);
/// After how long without an answer a question is asked again. It changes nothing, so
/// that does no harm.
const RETRY: Duration = Duration::from_millis(500);
/// Questions of backends that are open at most; more are refused.
const ASKED_MAX: usize = 65_536;

/// A question that is open.
#[derive(Debug)]
pub(super) struct Asking {
    shard: ShardId,
    wanted: Wanted,
    due: Timestamp,
}

#[derive(Debug)]
enum Wanted {
    /// The next page of the roster of a followed channel.
    Roster(ChannelKey),
    /// What a backend asks.
    Told {
        ticket: Ticket,
        what: What,
        deadline: Timestamp,
    },
}

impl Edge {
    /// Somebody asks the owner of a shard.
    pub(super) fn query(
        &mut self,
        now: Timestamp,
        ticket: Ticket,
        shard: Option<ShardId>,
        what: What,
        effects: &mut Vec<Effect>,
    ) {
        let of_channel = |key| self.sharding.shard_of(key);
        let shard = shard.or(what.key().map(of_channel));
        let refused = |code| Effect::Queried {
            ticket,
            result: Err(code),
        };
        let is_there = |shard: &ShardId| usize::from(shard.0) < self.shards.len();
        let Some(shard) = shard.filter(is_there) else {
            return effects.push(refused(ErrorCode::Unavailable));
        };
        if self.asking.len() >= ASKED_MAX {
            return effects.push(refused(ErrorCode::Overloaded));
        }
        let deadline = now + DEADLINE;
        let wanted = Wanted::Told {
            ticket,
            what,
            deadline,
        };
        self.open_query(now, shard, wanted, effects);
    }

    /// Asks the owner for a page of a roster, if one is wanted.
    pub(super) fn ask_roster(
        &mut self,
        now: Timestamp,
        id: ShardId,
        key: &ChannelKey,
        effects: &mut Vec<Effect>,
    ) {
        let query = self.queries + 1;
        let Some(attachment) = self.shard(id).channels.get_mut(key) else {
            return;
        };
        if attachment.ask_roster(query).is_some() {
            self.open_query(now, id, Wanted::Roster(key.clone()), effects);
        }
    }

    fn open_query(
        &mut self,
        now: Timestamp,
        shard: ShardId,
        wanted: Wanted,
        effects: &mut Vec<Effect>,
    ) {
        self.queries += 1;
        let asking = Asking {
            shard,
            wanted,
            due: now,
        };
        self.asking.insert(self.queries, asking);
        self.send_query(now, self.queries, effects);
    }

    pub(super) fn query_again(&mut self, now: Timestamp, query: u64, effects: &mut Vec<Effect>) {
        if self
            .asking
            .get(&query)
            .is_some_and(|asking| asking.due <= now)
        {
            self.send_query(now, query, effects);
        }
    }

    fn send_query(&mut self, now: Timestamp, query: u64, effects: &mut Vec<Effect>) {
        let Some(asking) = self.asking.get_mut(&query) else {
            return;
        };
        let shard = &self.shards[usize::from(asking.shard.0)];
        let what = match &asking.wanted {
            Wanted::Roster(key) => {
                let attachment = shard.channels.get(key);
                let after = attachment.and_then(|it| it.asks_roster(query));
                let key = key.clone();
                after.map(|after| What::Roster { key, after })
            }
            Wanted::Told { what, deadline, .. } => (*deadline > now).then(|| what.clone()),
        };
        let Some(what) = what else {
            if let Some(Asking {
                wanted: Wanted::Told { ticket, .. },
                ..
            }) = self.asking.remove(&query)
            {
                let result = Err(ErrorCode::Unavailable);
                effects.push(Effect::Queried { ticket, result });
            }
            return;
        };
        // Just after the start, or in a cluster of two versions: what a backend asks waits.
        if !self.states && matches!(asking.wanted, Wanted::Told { .. }) {
            asking.due = now + SOON;
            self.timers.set(asking.due, Timer::Query(query));
            return;
        }
        effects.push(Effect::Request {
            node: shard.owner.id.clone(),
            request: Request::Query(Query {
                id: query,
                shard: asking.shard,
                fence: shard.fence,
                what,
            }),
        });
        asking.due = now + RETRY;
        self.timers.set(asking.due, Timer::Query(query));
    }

    /// An owner has answered, or a node that is none.
    pub(super) fn queried(
        &mut self,
        now: Timestamp,
        from: &NodeRef,
        query: u64,
        result: Result<Told, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(Asking { shard: id, .. }) = self.asking.get(&query) else {
            return;
        };
        let id = *id;
        match result {
            Ok(told) => self.told(now, from, query, told, effects),
            Err(Refusal::NotOwner { owner, fence }) => {
                let before = self.shard(id).fence;
                self.reroute(now, id, owner, fence, effects);
                if self.shard(id).fence > before {
                    self.send_query(now, query, effects);
                } else if let Some(asking) = self.asking.get_mut(&query) {
                    asking.due = now + SOON;
                    self.timers.set(asking.due, Timer::Query(query));
                }
            }
            // The timer asks again.
            Err(_) => {}
        }
    }

    fn told(
        &mut self,
        now: Timestamp,
        from: &NodeRef,
        query: u64,
        told: Told,
        effects: &mut Vec<Effect>,
    ) {
        let fence = told.fence();
        let Some(Asking { shard: id, .. }) = self.asking.get(&query) else {
            return;
        };
        let id = *id;
        if fence < self.shard(id).floor {
            return;
        }
        let Some(Asking { wanted, .. }) = self.asking.remove(&query) else {
            return;
        };
        self.heard_from_owner(now, id, from, fence, None, effects);
        match (wanted, told) {
            (Wanted::Told { ticket, .. }, told) => {
                let result = Ok(told);
                effects.push(Effect::Queried { ticket, result });
            }
            (Wanted::Roster(key), Told::Roster(page)) => {
                self.take_page(now, id, key, query, page, effects);
            }
            (Wanted::Roster(_), _) => effects.push(Effect::Malformed),
        }
    }

    fn take_page(
        &mut self,
        now: Timestamp,
        id: ShardId,
        key: ChannelKey,
        query: u64,
        page: RosterPage,
        effects: &mut Vec<Effect>,
    ) {
        let mut is_early = false;
        if let Some(attachment) = self.shard(id).channels.get_mut(&key) {
            is_early = attachment.take_page(query, page);
        }
        if is_early {
            self.timers.set(now + AGAIN, Timer::Roster(id, key));
        } else {
            self.change(now, id, &key, effects, |attachment, steps| {
                attachment.look_at_roster(steps);
                Ask::No
            });
        }
    }
}
