//! Who is present in the channels of a shard.
//!
//! What gateways say of their members takes the path of publishes, and each change
//! of a roster is an entry of its channel. Nobody says that the members of a gateway
//! have gone that is gone itself: this owner does, a moment later, for the gateway
//! may live and state them under another incarnation.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proto::channel::{ChannelKey, ChannelKind, ChannelName};
use proto::id::{AppId, ConnectionId, GatewayRef};
use proto::message::{
    Attendance, ChannelsPage, Enter, Exit, PublishResult, Published, Query, Refusal, Reply, Stated,
    Told, What,
};
use proto::position::Position;
use proto::presence::{Change, Mark, RosterPage};
use proto::publication::Publication;
use proto::time::{Timestamp, UnixTime};

use super::publishing::Done;
use super::{Channel, Effect, Shard};
use crate::core::gone::Gone;
use crate::core::record::Record;
use crate::core::roster::{Admission, Roster};

/// How long a gateway may take to come back before its members leave.
const GRACE: Duration = Duration::from_secs(2);
/// For how long a node listens before it takes the gateways that it has heard for all
/// there are.
const LISTENS: Duration = Duration::from_secs(2);
/// For how long it does so as the owner: a beat of each gateway. What it knew when it
/// became the owner may be from before it stood still.
const LISTENS_ANEW: Duration = Duration::from_millis(500);
/// For how long an owner listens before it takes the interest that it was told of for
/// all there is: that is not ended by anything that a gateway says.
const COUNTS: Duration = Duration::from_secs(2);
/// After how long a gateway that this owner has never heard of counts as gone, as
/// one does that falls silent for so long.
const NEVER_HEARD: Duration = Duration::from_secs(60);

/// Which gateways there are, as this node hears.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Around {
    /// Those that were heard.
    pub gateways: BTreeSet<GatewayRef>,
    /// Since when whatever is sent on the bus would be heard; `None`: it would not.
    pub hears_since: Option<Timestamp>,
}

/// Channels in one answer about those that are occupied.
const CHANNELS_PAGE: usize = 1_000;

/// What a shard knows of presence besides its rosters.
#[derive(Debug, Default)]
pub(super) struct Presence {
    around: Arc<Around>,
    /// Since when this owner has had the shard.
    began: Option<Timestamp>,
    /// Lives of gateways whose members leave, and when; in order.
    leaving: Vec<(Timestamp, GatewayRef)>,
    /// All members were stated to this owner. Those who come later are.
    is_confirmed: bool,
    /// It knows all who are there.
    has_converged: bool,
}

impl Shard {
    /// How many members are present in each presence channel that has any, with its app.
    pub fn members(&self) -> impl Iterator<Item = (&AppId, usize)> {
        let rosters = self.rosters.iter();
        let rooms = rosters.filter(|(key, _)| key.channel.kind() == ChannelKind::Presence);
        rooms.map(|(key, roster)| (&key.app, roster.members()))
    }

    /// Takes note, once, of when this owner knows all who are there.
    pub fn converge(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if self.presence.has_converged || !self.is_stated(now) {
            return;
        }
        if !self.rosters.values().all(Roster::is_confirmed) {
            return;
        }
        self.presence.has_converged = true;
        if let Some(began) = self.presence.began.filter(|_| !self.rosters.is_empty()) {
            effects.push(Effect::Converged(now.since(began)));
        }
    }

    /// From now on it hears of members.
    pub fn listen(&mut self, now: Timestamp, around: Arc<Around>) {
        self.presence.began = Some(now);
        self.presence.is_confirmed = false;
        self.presence.has_converged = false;
        self.presence.around = around;
    }

    /// Which gateways there are.
    pub(super) fn look_around(&mut self, around: Arc<Around>) {
        self.presence.around = around;
    }

    /// A gateway has no members here that this owner has not been told of.
    pub(super) fn vacate(&mut self, now: Timestamp, gateway: &GatewayRef) {
        if self.meet(now, gateway).is_ok() {
            self.gateway(gateway).stated = true;
        }
    }

    /// Whether members are to leave that nobody speaks for.
    pub fn has_leaving(&self, now: Timestamp) -> bool {
        let first = self.presence.leaving.first();
        first.is_some_and(|(due, _)| *due <= now)
    }

    /// A life of a gateway is over: its members leave, unless they are stated by
    /// another one before.
    fn part_with(&mut self, now: Timestamp, gateway: &GatewayRef) {
        let is_known = |(_, leaving): &(Timestamp, GatewayRef)| leaving == gateway;
        let mut named = self.rosters.values().flat_map(Roster::gateways);
        let is_named = named.any(|named| named == gateway);
        if is_named && !self.presence.leaving.iter().any(is_known) {
            let due = now + GRACE;
            self.presence.leaving.push((due, gateway.clone()));
        }
    }

    /// The same for all lives that are over and are named here.
    pub(super) fn part_with_gone(&mut self, now: Timestamp, gone: &Gone) {
        let named = self.rosters.values().flat_map(Roster::gateways);
        let over: BTreeSet<GatewayRef> = named
            .filter(|named| gone.contains(named))
            .cloned()
            .collect();
        for gateway in over {
            self.part_with(now, &gateway);
        }
    }

    /// A gateway has taken a new life: what is said by other ones is void. By later ones,
    /// too: its clock may have been set back, when nobody remembered them.
    pub(super) fn part_with_others(&mut self, now: Timestamp, met: &GatewayRef) {
        let named = self.rosters.values().flat_map(Roster::gateways);
        let is_other = |named: &&GatewayRef| named.id == met.id && *named != met;
        let others: BTreeSet<GatewayRef> = named.filter(is_other).cloned().collect();
        for gateway in others {
            self.part_with(now, &gateway);
        }
    }

    /// Members whose time is over leave.
    pub(super) fn expire_members(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        self.remove_unheard(now, effects);
        while self.has_leaving(now) {
            let (_, gateway) = self.presence.leaving.remove(0);
            self.remove_members(now, |of, _| *of == gateway, effects);
        }
    }

    /// Who was named by an owner before and was never heard here is told of by
    /// nobody: not even its silence.
    fn remove_unheard(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let since = self.listens_since();
        if self.presence.is_confirmed || since.is_none_or(|since| now.since(since) < NEVER_HEARD) {
            return;
        }
        self.presence.is_confirmed = self.rosters.values().all(Roster::is_confirmed);
        if self.presence.is_confirmed {
            return;
        }
        let around = Arc::clone(&self.presence.around);
        let goes =
            |of: &GatewayRef, is_confirmed: bool| !is_confirmed && !around.gateways.contains(of);
        self.remove_members(now, goes, effects);
    }

    /// Members of such gateways leave, in a fixed order.
    pub(super) fn remove_members(
        &mut self,
        now: Timestamp,
        goes: impl Fn(&GatewayRef, bool) -> bool,
        effects: &mut Vec<Effect>,
    ) {
        let of = |(key, roster): (&ChannelKey, &Roster)| (key.clone(), roster.of(&goes));
        let going: Vec<(ChannelKey, Vec<ConnectionId>)> = self.rosters.iter().map(of).collect();
        for (key, connections) in going {
            for connection in connections {
                self.remove_member(now, &key, connection, effects);
            }
        }
    }

    /// Nobody says that a member has gone, so this owner does.
    fn remove_member(
        &mut self,
        now: Timestamp,
        key: &ChannelKey,
        connection: ConnectionId,
        effects: &mut Vec<Effect>,
    ) {
        let Some(change) = self.rosters.get(key).and_then(|it| it.without(connection)) else {
            return;
        };
        // The channel is there: somebody is present in it.
        let Ok((position, publication)) = self.append_change(now, key, change, None, effects)
        else {
            return;
        };
        if self
            .channels
            .get(key)
            .is_some_and(|channel| !channel.is_alone)
        {
            self.replication.log(|| Record::Append {
                key: key.clone(),
                epoch: position.epoch,
                publication,
            });
        }
    }

    /// A gateway says that a member is there.
    pub(super) fn enter(
        &mut self,
        now: Timestamp,
        from: &GatewayRef,
        enter: Enter,
        done: &mut Option<Done>,
        effects: &mut Vec<Effect>,
    ) -> PublishResult {
        let Enter {
            key,
            member,
            users_max,
            ..
        } = enter;
        let empty = Roster::default();
        let roster = self.rosters.get(&key).unwrap_or(&empty);
        let admission = roster.admit(from, &member, users_max);
        match admission {
            Admission::New => {}
            Admission::Full => return Err(Refusal::RosterFull),
            Admission::Here | Admission::Moved => {
                let connection = member.connection;
                if let Some(roster) = self.rosters.get_mut(&key) {
                    roster.confirm(from, connection);
                }
                if admission == Admission::Moved {
                    let gateway = from.clone();
                    self.confirm_to_standbys(&key, connection, gateway);
                }
                return self.standing(&key);
            }
        }
        let change = roster.with(member);
        let (position, publication) = self.append_change(now, &key, change, Some(from), effects)?;
        self.note(done, key, position, publication);
        Ok(self.accepted(position))
    }

    /// A gateway says that a member has gone.
    pub(super) fn exit(
        &mut self,
        now: Timestamp,
        exit: Exit,
        done: &mut Option<Done>,
        effects: &mut Vec<Effect>,
    ) -> PublishResult {
        let Exit {
            key, connection, ..
        } = exit;
        let change = self.rosters.get(&key).and_then(|it| it.without(connection));
        let Some(change) = change else {
            return Ok(Published::Skipped);
        };
        let (position, publication) = self.append_change(now, &key, change, None, effects)?;
        self.note(done, key, position, publication);
        Ok(self.accepted(position))
    }

    /// A gateway has stated all its members. Those that it has not are not there:
    /// they have gone while nobody was there to be told.
    pub(super) fn end_statement(
        &mut self,
        now: Timestamp,
        from: &GatewayRef,
        stated: Stated,
        effects: &mut Vec<Effect>,
    ) -> PublishResult {
        // To whom it was stated may have been another owner.
        if stated.to == self.tenure.fence {
            self.gateway(from).stated = true;
            let goes = |of: &GatewayRef, is_confirmed: bool| {
                of.id == from.id && (of != from || !is_confirmed)
            };
            self.remove_members(now, goes, effects);
        }
        Ok(Published::Skipped)
    }

    /// Answers a question.
    pub(super) fn query(&self, now: Timestamp, query: &Query) -> Reply {
        let result = self.check_fence(query.fence).map(|()| match &query.what {
            What::Roster { key, after } => Told::Roster(self.page(now, key, after.as_deref())),
            What::Channel { key } => Told::Channel(self.attendance(now, key)),
            What::Channels { app, prefix, after } => {
                Told::Channels(self.occupied(now, app, prefix, after.as_ref()))
            }
            What::Cached { key } => Told::Cached {
                fence: self.tenure.fence,
                cached: self.caches.get(now, key),
            },
        });
        let id = query.id;
        Reply::Queried { id, result }
    }

    /// The next occupied channels of an app: no more of them than fit into a message.
    fn occupied(
        &self,
        now: Timestamp,
        app: &AppId,
        prefix: &str,
        after: Option<&ChannelName>,
    ) -> ChannelsPage {
        let is_wanted = |key: &ChannelKey| {
            key.app == *app
                // Users' own channels are for who asks for them.
                && (key.channel.kind() != ChannelKind::User || prefix.starts_with('#'))
                && key.channel.as_str().starts_with(prefix)
                && after.is_none_or(|after| key.channel > *after)
        };
        let users = |key: &ChannelKey| self.rosters.get(key).map_or(0, Roster::users) as u32;
        let wanted = self.channels.iter().filter(|(key, channel)| {
            is_wanted(key) && (channel.interest.followers().next().is_some() || users(key) > 0)
        });
        let mut names: Vec<&ChannelKey> = wanted.map(|(key, _)| key).collect();
        let more = names.len() > CHANNELS_PAGE;
        if more {
            names.select_nth_unstable(CHANNELS_PAGE);
            names.truncate(CHANNELS_PAGE);
        }
        names.sort_unstable();
        let channel = |key: &&ChannelKey| (key.channel.clone(), users(key));
        ChannelsPage {
            fence: self.tenure.fence,
            channels: names.iter().map(channel).collect(),
            subscribers: names.iter().map(|key| self.subscribers(key)).collect(),
            more,
            complete: self.rosters.values().all(Roster::is_confirmed) && self.is_stated(now),
        }
    }

    fn page(&self, now: Timestamp, key: &ChannelKey, after: Option<&str>) -> RosterPage {
        let empty = Roster::default();
        let roster = self.rosters.get(key).unwrap_or(&empty);
        let (users, more) = roster.page(after);
        let channel = self.channels.get(key);
        RosterPage {
            fence: self.tenure.fence,
            position: channel.map(Channel::position),
            users,
            count: roster.users() as u32,
            more,
            complete: roster.is_confirmed() && self.is_stated(now),
        }
    }

    fn attendance(&self, now: Timestamp, key: &ChannelKey) -> Attendance {
        let channel = self.channels.get(key);
        let mut followers = channel.into_iter().flat_map(|it| it.interest.followers());
        let roster = self.rosters.get(key);
        Attendance {
            fence: self.tenure.fence,
            is_followed: followers.next().is_some(),
            users: roster.map_or(0, Roster::users) as u32,
            complete: roster.is_none_or(Roster::is_confirmed) && self.is_stated(now),
            subscribers: self.subscribers(key),
        }
    }

    /// Whether every gateway has stated its members to this owner.
    pub fn is_stated(&self, now: Timestamp) -> bool {
        let gateways = &self.presence.around.gateways;
        let has_stated = |gateway: &GatewayRef| {
            let known = self.gateways.get(&gateway.id);
            known.is_some_and(|known| known.me == *gateway && known.stated)
        };
        let is_past =
            |since: Option<Timestamp>, pause| since.is_some_and(|since| now.since(since) >= pause);
        is_past(self.presence.around.hears_since, LISTENS)
            && is_past(self.presence.began, LISTENS_ANEW)
            && gateways.iter().all(has_stated)
    }

    /// Whether this owner has listened for so long that all gateways have told it what
    /// they follow.
    pub(super) fn counts(&self, now: Timestamp) -> bool {
        let since = self.listens_since();
        since.is_some_and(|since| now.since(since) >= COUNTS)
    }

    /// Since when this owner would have heard of any member.
    fn listens_since(&self) -> Option<Timestamp> {
        let hears_since = self.presence.around.hears_since?;
        Some(hears_since.max(self.presence.began?))
    }

    /// Nothing changes for a member that is there.
    fn standing(&self, key: &ChannelKey) -> PublishResult {
        let channel = self.channels.get(key).ok_or(Refusal::Overloaded)?;
        Ok(self.accepted(channel.position()))
    }

    fn accepted(&self, position: Position) -> Published {
        Published::Accepted {
            fence: self.tenure.fence,
            position,
            copies: 1,
        }
    }

    fn confirm_to_standbys(
        &mut self,
        key: &ChannelKey,
        connection: ConnectionId,
        gateway: GatewayRef,
    ) {
        if self
            .channels
            .get(key)
            .is_some_and(|channel| !channel.is_alone)
        {
            self.replication.log(|| Record::Confirm {
                key: key.clone(),
                connection,
                gateway,
            });
        }
    }

    /// What standbys are told of a change with its place in a gateway's sequence.
    fn note(
        &self,
        done: &mut Option<Done>,
        key: ChannelKey,
        position: Position,
        publication: Arc<Publication>,
    ) {
        let channel = self.channels.get(&key);
        *done = if channel.is_some_and(|channel| channel.is_alone) {
            Some(Done::Alone(None))
        } else {
            self.replication
                .is_replicated()
                .then_some(Done::Replicated {
                    key,
                    epoch: position.epoch,
                    publication,
                    idempotency: None,
                })
        };
    }

    /// Puts a change into its channel and its roster. Who comes does so as a gateway
    /// says.
    fn append_change(
        &mut self,
        now: Timestamp,
        key: &ChannelKey,
        change: Change,
        from: Option<&GatewayRef>,
        effects: &mut Vec<Effect>,
    ) -> Result<(Position, Arc<Publication>), Refusal> {
        let appended = self.append(now, key, effects, |offset| Publication {
            offset,
            event: Arc::default(),
            data: Arc::default(),
            exclude: None,
            accepted_at: UnixTime(0),
            mark: Some(Box::new(Mark::Change(change.clone()))),
        })?;
        self.apply_change(key, &change, from);
        self.set_check(now, key);
        Ok(appended)
    }

    /// Applies a change that is in its channel.
    pub(super) fn apply_change(
        &mut self,
        key: &ChannelKey,
        change: &Change,
        from: Option<&GatewayRef>,
    ) {
        match (change, from) {
            (Change::Came { member, .. }, Some(from)) => {
                self.rosters
                    .entry(key.clone())
                    .or_default()
                    .enter(member, from);
            }
            // Nobody comes unless a gateway says so.
            (Change::Came { .. }, None) => {}
            (Change::Went { connection, .. }, _) => {
                let Some(roster) = self.rosters.get_mut(key) else {
                    return;
                };
                roster.exit(*connection);
                if roster.is_empty() {
                    self.rosters.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
