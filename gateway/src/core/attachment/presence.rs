//! Who is present in a followed channel, as the members here are told of it.
//!
//! The **view** is what they have been told: the users that were there when they
//! came, and every change since. It is folded from the channel's entries, so it is of
//! one position, like everything that is delivered. Where it cannot be folded (for
//! the first member here, or behind a gap) the roster is fetched from the owner, page
//! by page, while entries go on coming: a page has the changes up to its own
//! position, and later ones are folded into it. What the fetched roster and the view
//! differ in is told then, but only once the owner knows all who are there; until then
//! the members here are told of nobody.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::id::ConnectionId;
use proto::position::{Epoch, Gap, Offset, Position};
use proto::presence::{Change, RosterPage, User, Users};
use proto::publication::Publication;

use super::{Ask, Attachment, Step};
use crate::core::hub::ConnectionIndex;
use crate::core::workers::{WorkerId, Workers};
use returning::Returning;

mod returning;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Presence {
    view: Option<Arc<Users>>,
    fetch: Option<Fetch>,
    /// Members that wait for the word that they are in.
    entering: BTreeMap<ConnectionId, Entering>,
}

/// A connection of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Whose it is.
    pub worker: WorkerId,
    /// Where it is there.
    pub index: ConnectionIndex,
}

#[derive(Debug)]
struct Entering {
    place: Place,
    /// `None`: it is no member and is to be none, but is told who is there.
    user: Option<Arc<str>>,
    /// The channel's position from which on the member is in, as the owner says.
    at: Option<Position>,
    /// It has come back, and is given what it missed.
    returning: Option<Returning>,
}

impl Entering {
    /// Whether it is in, at a position of which this is the view.
    fn is_in(&self, position: Position, view: &Users, told: Workers) -> bool {
        let reached = |at: Position| at.epoch == position.epoch && at.offset <= position.offset;
        let is_member = |user: &Arc<str>| self.at.is_some_and(reached) && view.contains(user);
        self.user.as_ref().is_none_or(is_member) && told.contains(self.place.worker)
    }
}

/// A roster that is being fetched.
#[derive(Debug, Default)]
struct Fetch {
    epoch: Option<Epoch>,
    users: Users,
    pages: Vec<Page>,
    /// The question that is open.
    asked: Option<u64>,
    /// What has changed since it was asked: the answer may be of before that, and
    /// come later.
    seen: Vec<(Position, Change)>,
    /// All pages have come, and whether the owner knew all who are there.
    whole: Option<bool>,
}

/// A part of a roster: users up to one, as of a position.
#[derive(Debug)]
struct Page {
    through: Option<Arc<str>>,
    at: Offset,
}

impl Fetch {
    fn take(&mut self, page: RosterPage) {
        self.asked = None;
        // There is no channel yet to which the members here have been added.
        let Some(position) = page.position else {
            return self.again();
        };
        if self.epoch.is_some_and(|epoch| epoch != position.epoch) {
            return self.again();
        }
        self.epoch = Some(position.epoch);
        let after = self.after();
        let last = page.users.last().map(|user| Arc::clone(&user.id));
        for user in &page.users {
            self.users.insert(user);
        }
        let through = last.filter(|_| page.more);
        for (at, change) in std::mem::take(&mut self.seen) {
            let user = change.user();
            let is_on_it = after.as_ref().is_none_or(|after| user > after)
                && through.as_ref().is_none_or(|last| user <= last);
            if is_on_it && at.epoch == position.epoch && at.offset > position.offset {
                self.users.apply(&change);
            }
        }
        self.pages.push(Page {
            through,
            at: position.offset,
        });
        if !page.more {
            self.whole = Some(page.complete);
        }
    }

    fn again(&mut self) {
        *self = Self::default();
    }

    /// Folds a change, if the page of its user does not have it.
    fn apply(&mut self, epoch: Epoch, offset: Offset, change: &Change) {
        if self.asked.is_some() {
            let at = Position { epoch, offset };
            self.seen.push((at, change.clone()));
        }
        if self.epoch != Some(epoch) {
            return;
        }
        let user = change.user();
        let covers = |page: &&Page| page.through.as_ref().is_none_or(|last| user <= last);
        if self
            .pages
            .iter()
            .find(covers)
            .is_some_and(|page| page.at < offset)
        {
            self.users.apply(change);
        }
    }

    /// Whether it is what the channel is at a position, and all pages are there.
    fn is_of(&self, position: Position) -> bool {
        let reached = self.pages.iter().all(|page| page.at <= position.offset);
        self.whole.is_some() && self.epoch == Some(position.epoch) && reached
    }

    fn after(&self) -> Option<Arc<str>> {
        self.pages.last()?.through.clone()
    }
}

impl Attachment {
    /// A member of this gateway comes into the channel, or comes back with a cursor.
    pub fn enter(
        &mut self,
        connection: ConnectionId,
        place: Place,
        user: Arc<str>,
        cursor: Option<Position>,
    ) {
        let returning = cursor.map(Returning::from);
        self.await_word(connection, place, Some(user), returning);
    }

    /// A client of this gateway is to be told who is in the channel.
    pub fn watch(&mut self, connection: ConnectionId, place: Place, steps: &mut Vec<Step>) {
        self.await_word(connection, place, None, None);
        self.welcome(steps);
    }

    fn await_word(
        &mut self,
        connection: ConnectionId,
        place: Place,
        user: Option<Arc<str>>,
        returning: Option<Returning>,
    ) {
        let presence = self.presence.get_or_insert_default();
        if presence.view.is_none() && presence.fetch.is_none() {
            presence.fetch = Some(Fetch::default());
        }
        let entering = Entering {
            place,
            user,
            at: None,
            returning,
        };
        presence.entering.insert(connection, entering);
    }

    /// It has gone, or is not let in. Where it was, if it was still waiting.
    pub fn exit(&mut self, connection: ConnectionId) -> Option<Place> {
        let presence = self.presence.as_mut()?;
        Some(presence.entering.remove(&connection)?.place)
    }

    /// The owner says from where on a member is in.
    pub fn entered(&mut self, connection: ConnectionId, at: Position, steps: &mut Vec<Step>) {
        if let Some(presence) = &mut self.presence
            && let Some(entering) = presence.entering.get_mut(&connection)
        {
            entering.at = Some(at);
            self.welcome(steps);
        }
    }

    /// The user behind whom the owner is to be asked for the next page, if it is to be
    /// asked; under this number. Not before it is known from where on entries come: the
    /// page would be of before that, and what has changed in between would be missing.
    pub fn ask_roster(&mut self, query: u64) -> Option<Option<Arc<str>>> {
        self.position?;
        let fetch = self.presence.as_mut()?.fetch.as_mut()?;
        if fetch.asked.is_some() || fetch.whole.is_some() {
            return None;
        }
        fetch.asked = Some(query);
        fetch.seen.clear();
        Some(fetch.after())
    }

    /// Whether a question is the one that is open, and behind whom it asks.
    pub fn asks_roster(&self, query: u64) -> Option<Option<Arc<str>>> {
        let fetch = self.presence.as_ref()?.fetch.as_ref()?;
        (fetch.asked == Some(query)).then(|| fetch.after())
    }

    /// The owner has answered with a page. `true`: it does not know yet who is there,
    /// and is to be asked again a little later.
    pub fn take_page(&mut self, query: u64, page: RosterPage) -> bool {
        let Some(presence) = &mut self.presence else {
            return false;
        };
        let Some(fetch) = presence.fetch.as_mut().filter(|it| it.asked == Some(query)) else {
            return false;
        };
        fetch.take(page);
        // A roster that may lack somebody takes nobody away.
        let is_early = presence.view.is_some() && fetch.whole == Some(false);
        if is_early || fetch.epoch.is_none() {
            fetch.again();
            return true;
        }
        false
    }

    /// The channel goes on behind a gap: what has changed there is not known.
    pub(super) fn lose_roster(&mut self) {
        if let Some(presence) = &mut self.presence {
            presence.fetch = Some(Fetch::default());
        }
    }

    /// An entry of the channel is delivered. What is delivered instead of it, if it
    /// tells the members here nothing.
    pub(super) fn fold(&mut self, epoch: Epoch, publication: Arc<Publication>) -> Arc<Publication> {
        let Some(change) = publication.change() else {
            return publication;
        };
        let mut is_shown = false;
        if let Some(presence) = &mut self.presence {
            match (&mut presence.fetch, &mut presence.view) {
                // Behind a gap: a new owner is told again what has come and gone before,
                // and what comes of all that is told in the end.
                (Some(fetch), _) => fetch.apply(epoch, publication.offset, change),
                (None, Some(view)) => is_shown = Arc::make_mut(view).apply(change),
                (None, None) => {}
            }
        }
        match is_shown {
            true if change.is_of_users() => publication,
            // Behind a gap: what the members here were told was not so.
            true => Arc::new(publication.of_users()),
            false => Arc::new(publication.blank()),
        }
    }

    /// The channel has come further, or a page has come.
    pub fn look_at_roster(&mut self, steps: &mut Vec<Step>) {
        let (Some(presence), Some(position)) = (&mut self.presence, self.position) else {
            return;
        };
        if let Some(fetch) = presence.fetch.take_if(|fetch| fetch.is_of(position)) {
            let before = presence.view.replace(Arc::new(fetch.users));
            if let (Some(before), Some(now)) = (before, &presence.view) {
                let came = now.iter().filter(|user| !before.contains(&user.id));
                let went = before.iter().filter(|user| !now.contains(&user.id));
                let came: Vec<User> = came.collect();
                let went: Vec<Arc<str>> = went.map(|user| user.id).collect();
                let is_any = !came.is_empty() || !went.is_empty();
                if is_any && !self.told.is_empty() {
                    steps.push(Step::Members {
                        workers: self.told,
                        position,
                        came,
                        went,
                    });
                }
            }
        }
        self.welcome(steps);
    }

    /// Tells members that they are in, and who else is; those that have come back once it
    /// is known what they missed.
    pub(super) fn welcome(&mut self, steps: &mut Vec<Step>) {
        let (Some(presence), Some(position)) = (&mut self.presence, self.position) else {
            return;
        };
        let Some(view) = presence.view.as_ref().filter(|_| self.attached) else {
            return;
        };
        let (told, kept, window) = (self.told, &self.kept, &self.window);
        presence.entering.retain(|connection, entering| {
            if !entering.is_in(position, view, told) {
                return true;
            }
            let missed = match &entering.returning {
                None => None,
                Some(returning) => match returning.missed(window, position) {
                    None => return true,
                    missed => missed,
                },
            };
            steps.push(Step::Welcome {
                place: entering.place,
                connection: *connection,
                position,
                users: Arc::clone(view),
                kept: kept.clone(),
                missed,
            });
            false
        });
    }

    /// Whether the owner is to be asked for what members have missed.
    pub fn ask_for_members(&self) -> Ask {
        self.ask_if(self.returning().next().is_some())
    }

    /// Where those members stand that are in but for what they missed.
    pub(super) fn returning(&self) -> impl Iterator<Item = Position> {
        let at = self.position.filter(|_| self.attached);
        let presence = self.presence.as_ref().zip(at);
        presence.into_iter().flat_map(move |(presence, position)| {
            let view = presence.view.as_deref();
            let entering = presence.entering.values();
            entering.filter_map(move |one| {
                let returning = one.returning.as_ref()?;
                one.is_in(position, view?, self.told)
                    .then(|| returning.cursor())
            })
        })
    }

    /// The owner has no more than this of what members missed.
    pub(super) fn gap_for_members(&mut self, asked: Position, gap: &Gap) {
        for returning in self.all_returning() {
            returning.take_gap(asked, gap);
        }
    }

    /// The owner has given these of what members missed, and they have been delivered here.
    pub(super) fn give_members(&mut self, epoch: Epoch, publications: &[Arc<Publication>]) {
        for returning in self.all_returning() {
            returning.take(epoch, publications);
        }
    }

    fn all_returning(&mut self) -> impl Iterator<Item = &mut Returning> {
        let presence = self.presence.as_mut();
        let entering = presence.into_iter().flat_map(|it| it.entering.values_mut());
        entering.filter_map(|entering| entering.returning.as_mut())
    }
}

#[cfg(test)]
mod tests;
