//! Members of this gateway: saying that they come and go, and saying it all anew to a
//! new owner.
//!
//! What is said goes through the uplink of the shard, in order with everything else:
//! a restatement can neither overtake nor follow what it contradicts. It is made a few
//! hundred at a time, as what was said before is answered, of the members that are
//! there by then.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use proto::channel::{ChannelKey, ChannelKind};
use proto::error::ErrorCode;
use proto::id::ConnectionId;
use proto::message::{Greet, Request};
use proto::position::Position;
use proto::presence::{Member, User};
use proto::shard::ShardId;
use proto::time::Timestamp;

use super::{Edge, Effect, Shard, Timer};
use crate::core::attachment::{Ask, Place, Step};
use crate::core::uplink::Statement;

/// Statements of one shard that are unanswered at most before more of a restatement
/// are made.
const TOGETHER: usize = 256;

/// A member of this gateway.
#[derive(Debug)]
pub(super) struct Present {
    place: Place,
    user: User,
    users_max: Option<u32>,
    /// An owner may have been told of it.
    stated: bool,
}

/// A restatement that is under way, or owed: everything behind the last one that was
/// stated.
#[derive(Debug, Default)]
pub(super) struct Stating {
    last: Option<(ChannelKey, ConnectionId)>,
}

impl Edge {
    /// A client is a member of a channel from now on, or again: with a cursor. Its worker
    /// follows the channel.
    pub(super) fn enter(
        &mut self,
        now: Timestamp,
        key: &ChannelKey,
        (member, users_max): (Member, Option<u32>),
        (place, cursor): (Place, Option<Position>),
        effects: &mut Vec<Effect>,
    ) {
        let id = self.sharding.shard_of(key);
        let Member { connection, user } = member.clone();
        self.change(now, id, key, effects, |attachment, _| {
            attachment.enter(connection, place, Arc::clone(&user.id), cursor);
            Ask::No
        });
        let states = self.states;
        let shard = self.shard(id);
        // The first one is all there are.
        let is_first = !shard.has_stated;
        let present = Present {
            place,
            user,
            users_max,
            stated: states && !is_first,
        };
        shard.members.insert((key.clone(), connection), present);
        if states && is_first {
            self.state_all(now, id, effects);
        } else if states {
            let statement = Statement::Enter(key.clone(), member, users_max);
            self.state(now, id, statement, effects);
        }
    }

    /// A client is to be told who is in a channel. Its worker follows the channel.
    pub(super) fn watch(
        &mut self,
        now: Timestamp,
        key: &ChannelKey,
        connection: ConnectionId,
        place: Place,
        effects: &mut Vec<Effect>,
    ) {
        let id = self.sharding.shard_of(key);
        self.change(now, id, key, effects, |attachment, steps| {
            attachment.watch(connection, place, steps);
            Ask::No
        });
    }

    /// A client is a member no longer.
    pub(super) fn exit(
        &mut self,
        now: Timestamp,
        key: &ChannelKey,
        connection: ConnectionId,
        effects: &mut Vec<Effect>,
    ) {
        let id = self.sharding.shard_of(key);
        let shard = self.shard(id);
        let Some(present) = shard.members.remove(&(key.clone(), connection)) else {
            return;
        };
        if let Some(attachment) = shard.channels.get_mut(key) {
            attachment.exit(connection);
        }
        if present.stated {
            self.state(now, id, Statement::Exit(key.clone(), connection), effects);
        }
    }

    /// A client is gone without a word; it may be back in a moment.
    pub(super) fn linger(
        &mut self,
        now: Timestamp,
        key: ChannelKey,
        connection: ConnectionId,
        grace: Duration,
    ) {
        self.timers.set(now + grace, Timer::Exit(key, connection));
    }

    fn state(
        &mut self,
        now: Timestamp,
        id: ShardId,
        statement: Statement,
        effects: &mut Vec<Effect>,
    ) {
        let shard = self.shard(id);
        shard.uplink.state(statement);
        shard.send(now, effects);
        self.busy.insert(id);
    }

    /// The owner has answered what was said of a member.
    pub(super) fn entered(
        &mut self,
        now: Timestamp,
        id: ShardId,
        key: &ChannelKey,
        connection: ConnectionId,
        result: Result<Position, ErrorCode>,
        effects: &mut Vec<Effect>,
    ) {
        let shard = self.shard(id);
        let Some(present) = shard.members.get(&(key.clone(), connection)) else {
            return;
        };
        let (place, user, users_max) = (present.place, present.user.clone(), present.users_max);
        match result {
            Ok(position) => {
                self.change(now, id, key, effects, |attachment, steps| {
                    attachment.entered(connection, position, steps);
                    Ask::No
                });
            }
            // What became of it is forgotten: to say it again does no harm.
            Err(ErrorCode::UnknownOutcome) => {
                let member = Member { connection, user };
                let statement = Statement::Enter(key.clone(), member, users_max);
                self.state(now, id, statement, effects);
            }
            Err(code) => {
                shard.members.remove(&(key.clone(), connection));
                if let Some(attachment) = shard.channels.get_mut(key) {
                    attachment.exit(connection);
                }
                let key = key.clone();
                let step = Step::Refused {
                    place,
                    connection,
                    code,
                };
                effects.push(Effect::Step { key, step });
            }
        }
    }

    /// Nodes are told where there are no members, and say whether they know of presence.
    /// Nothing is said of members before all of them do: what one takes another one has to
    /// stand by for.
    pub(super) fn tick_greetings(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        for node in self.nodes.greet(now) {
            let stated = self.shards.iter().filter(|shard| shard.has_stated);
            let except = stated.map(|shard| shard.id).collect();
            let request = Request::Greet(Greet { except });
            effects.push(Effect::Request { node, request });
        }
        let states = self.nodes.all_know_presence();
        if states && !self.states {
            self.states = true;
            for at in 0..self.shards.len() {
                let id = ShardId(at as u16);
                if self.shard(id).stating.is_some() || !self.shard(id).members.is_empty() {
                    self.state_all(now, id, effects);
                }
                let of_users = self.shard(id).channels.iter().filter(|(key, attachment)| {
                    key.channel.kind() == ChannelKind::User && attachment.asked().is_none()
                });
                let of_users: Vec<ChannelKey> = of_users.map(|(key, _)| key.clone()).collect();
                for key in of_users {
                    self.ask(now, id, &key, effects);
                }
            }
        }
        self.states = states;
    }

    /// There is a new owner, or this gateway has a new life: all members of a shard
    /// are stated.
    pub(super) fn state_all(&mut self, now: Timestamp, id: ShardId, effects: &mut Vec<Effect>) {
        self.shard(id).stating = Some(Stating::default());
        self.go_on_stating(id);
        self.shard(id).send(now, effects);
        self.busy.insert(id);
    }

    /// States some more members, if what was stated has been answered.
    pub(super) fn go_on_stating(&mut self, id: ShardId) {
        if !self.states {
            return;
        }
        let Shard {
            uplink,
            members,
            stating,
            has_stated,
            fence,
            ..
        } = self.shard(id);
        let room = TOGETHER.saturating_sub(uplink.statements());
        let Some(Stating { last }) = stating.as_mut().filter(|_| room > 0) else {
            return;
        };
        *has_stated = true;
        let from = last.take().map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = members.range_mut((from, Bound::Unbounded));
        for (key, present) in rest.by_ref().take(room) {
            let (channel, connection) = key.clone();
            let user = present.user.clone();
            present.stated = true;
            let member = Member { connection, user };
            uplink.state(Statement::Enter(channel, member, present.users_max));
            *last = Some(key.clone());
        }
        if rest.next().is_none() {
            uplink.state(Statement::All(*fence));
            *stating = None;
        }
    }
}
