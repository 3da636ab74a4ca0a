//! Who is present in one channel, at its owner and its standbys.
//!
//! The roster is what the channel's changes add up to. Besides the user each member
//! has the gateway that last said it is there: when that is gone, so is the member.
//! A new owner has the roster of the one before, and until a gateway has stated its
//! members anew they are **unconfirmed**: some may have gone meanwhile.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use proto::id::{ConnectionId, GatewayRef};
use proto::presence::{Change, Member, USERS_MAX, User};

use super::record::{RosterPiece, UserPiece};

/// Bytes of users in one answer; a gateway asks again for more.
const PAGE_BYTES_MAX: usize = 256 * 1_024;
/// What a user takes in an answer besides its texts.
const USER_BYTES: usize = 16;

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Roster {
    members: BTreeMap<ConnectionId, Held>,
    users: BTreeMap<Arc<str>, Here>,
}

#[derive(Debug)]
struct Held {
    user: Arc<str>,
    /// Who last said so.
    gateway: GatewayRef,
    /// Whether it was said to this owner.
    is_confirmed: bool,
}

#[derive(Debug)]
struct Here {
    info: Option<Arc<str>>,
    connections: u32,
}

/// What to make of a member that is stated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It comes.
    New,
    /// It is there, and this gateway has said so before.
    Here,
    /// It is there, as another life of the gateway has said.
    Moved,
    /// As many users are there as may be.
    Full,
}

impl Roster {
    /// Decides on a member that is stated. There may be [`USERS_MAX`] users, or fewer.
    pub fn admit(
        &self,
        gateway: &GatewayRef,
        member: &Member,
        users_max: Option<u32>,
    ) -> Admission {
        if let Some(held) = self.members.get(&member.connection) {
            return if held.gateway == *gateway {
                Admission::Here
            } else {
                Admission::Moved
            };
        }
        let most = users_max.map_or(USERS_MAX, |most| USERS_MAX.min(most as usize));
        if self.users.len() >= most && !self.users.contains_key(&member.user.id) {
            return Admission::Full;
        }
        Admission::New
    }

    /// A gateway has said of a member that it is there.
    pub fn confirm(&mut self, gateway: &GatewayRef, connection: ConnectionId) {
        if let Some(held) = self.members.get_mut(&connection) {
            held.is_confirmed = true;
            if held.gateway != *gateway {
                held.gateway = gateway.clone();
            }
        }
    }

    /// What it means that a member comes that is [new](Admission::New).
    pub fn with(&self, member: Member) -> Change {
        let is_first = !self.users.contains_key(&member.user.id);
        Change::Came { member, is_first }
    }

    /// What it means that a connection has gone. `None`: it is not there.
    pub fn without(&self, connection: ConnectionId) -> Option<Change> {
        let user = Arc::clone(&self.members.get(&connection)?.user);
        let is_last = self.users.get(&user)?.connections == 1;
        Some(Change::Went {
            connection,
            user,
            is_last,
        })
    }

    /// A member has come, as a gateway has said to this owner.
    pub fn enter(&mut self, member: &Member, gateway: &GatewayRef) {
        self.insert(member, gateway, true);
    }

    /// A connection has gone.
    pub fn exit(&mut self, connection: ConnectionId) {
        self.remove(connection);
    }

    fn insert(&mut self, member: &Member, gateway: &GatewayRef, is_confirmed: bool) {
        let Member { connection, user } = member;
        self.remove(*connection);
        // One piece of memory for the name, however many connections it has.
        let id = match self.users.get_key_value(&user.id) {
            Some((id, _)) => Arc::clone(id),
            None => Arc::clone(&user.id),
        };
        let here = self.users.entry(Arc::clone(&id)).or_insert_with(|| Here {
            info: user.info.clone(),
            connections: 0,
        });
        here.connections += 1;
        let held = Held {
            user: id,
            gateway: gateway.clone(),
            is_confirmed,
        };
        self.members.insert(*connection, held);
    }

    fn remove(&mut self, connection: ConnectionId) {
        let Some(held) = self.members.remove(&connection) else {
            return;
        };
        if let Some(here) = self.users.get_mut(&held.user) {
            here.connections -= 1;
            if here.connections == 0 {
                self.users.remove(&held.user);
            }
        }
    }

    /// Another process is the owner now: nobody has said anything to it yet.
    pub fn begin(&mut self) {
        for held in self.members.values_mut() {
            held.is_confirmed = false;
        }
    }

    /// Whether all were stated to this owner.
    pub fn is_confirmed(&self) -> bool {
        self.members.values().all(|held| held.is_confirmed)
    }

    /// The connections of which a gateway, and how it was said, are such.
    pub fn of(&self, goes: impl Fn(&GatewayRef, bool) -> bool) -> Vec<ConnectionId> {
        let members = self.members.iter();
        let going = members.filter(|(_, held)| goes(&held.gateway, held.is_confirmed));
        going.map(|(connection, _)| *connection).collect()
    }

    /// The gateways that are named, each perhaps several times in a row.
    pub fn gateways(&self) -> impl Iterator<Item = &GatewayRef> {
        self.members.values().map(|held| &held.gateway)
    }

    /// Whether nobody is there.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// How many users are there.
    pub fn users(&self) -> usize {
        self.users.len()
    }

    /// How many connections they have.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// The first users behind one, as many as fit an answer, and whether there are
    /// more.
    pub fn page(&self, after: Option<&str>) -> (Vec<User>, bool) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut page = Vec::new();
        let mut bytes = 0;
        for (id, here) in self.users.range::<str, _>((from, Bound::Unbounded)) {
            let info = here.info.clone();
            bytes += USER_BYTES + id.len() + info.as_ref().map_or(0, |info| info.len());
            if bytes > PAGE_BYTES_MAX && !page.is_empty() {
                return (page, true);
            }
            let id = Arc::clone(id);
            page.push(User { id, info });
        }
        (page, false)
    }

    /// All of it, for a standby. `None`: nobody is there.
    pub fn piece(&self) -> Option<RosterPiece> {
        if self.members.is_empty() {
            return None;
        }
        let mut gateways: Vec<GatewayRef> = self.gateways().cloned().collect();
        gateways.sort_unstable();
        gateways.dedup();
        let mut connections: BTreeMap<&Arc<str>, Vec<(ConnectionId, u32)>> = BTreeMap::new();
        for (connection, held) in &self.members {
            let gateway = gateways.binary_search(&held.gateway).unwrap_or_default();
            let of_user = connections.entry(&held.user).or_default();
            of_user.push((*connection, gateway as u32));
        }
        let users = connections.into_iter().map(|(id, connections)| UserPiece {
            user: User {
                id: Arc::clone(id),
                info: self.users.get(id).and_then(|here| here.info.clone()),
            },
            connections,
        });
        let users = users.collect();
        Some(RosterPiece { gateways, users })
    }

    /// A roster as another process had it. What makes no sense is left out.
    pub fn of_piece(piece: &RosterPiece) -> Self {
        let mut roster = Self::default();
        for UserPiece { user, connections } in &piece.users {
            for (connection, gateway) in connections {
                if let Some(gateway) = piece.gateways.get(*gateway as usize) {
                    let member = Member {
                        connection: *connection,
                        user: user.clone(),
                    };
                    roster.insert(&member, gateway, false);
                }
            }
        }
        roster
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::id::Incarnation;
    use proto::presence::Users;

    fn gateway(incarnation: u64) -> GatewayRef {
        GatewayRef {
            id: "g".parse().unwrap(),
            incarnation: Incarnation(incarnation),
        }
    }

    fn connection(number: u64) -> ConnectionId {
        ConnectionId { gateway: 1, number }
    }

    fn member(number: u64, user: &str) -> Member {
        Member {
            connection: connection(number),
            user: User {
                id: user.into(),
                info: Some(format!("{number}").into()),
            },
        }
    }

    fn here(roster: &mut Roster, number: u64, user: &str) {
        roster.enter(&member(number, user), &gateway(1));
    }

    #[test]
    fn the_last_connection_of_a_user_takes_it_along() {
        let mut roster = Roster::default();
        here(&mut roster, 1, "a");
        here(&mut roster, 2, "a");
        let went = |roster: &Roster, number| roster.without(connection(number)).unwrap();
        let first = went(&roster, 1);
        assert!(matches!(first, Change::Went { is_last: false, .. }));
        roster.exit(connection(1));
        assert_eq!((roster.users(), roster.members()), (1, 1));
        let last = went(&roster, 2);
        assert!(matches!(last, Change::Went { is_last: true, .. }));
        roster.exit(connection(2));
        assert!(roster.is_empty());
        assert_eq!(roster.without(connection(2)), None);
    }

    #[test]
    fn who_is_stated_again_is_there_once() {
        let mut roster = Roster::default();
        here(&mut roster, 1, "a");
        let one = member(1, "a");
        assert_eq!(roster.admit(&gateway(1), &one, None), Admission::Here);
        assert_eq!(roster.admit(&gateway(2), &one, None), Admission::Moved);
        assert_eq!(
            roster.admit(&gateway(1), &member(2, "a"), None),
            Admission::New
        );
        roster.begin();
        assert!(!roster.is_confirmed());
        roster.confirm(&gateway(2), connection(1));
        assert!(roster.is_confirmed());
        assert_eq!(roster.of(|of, _| *of == gateway(2)), [connection(1)]);
    }

    #[test]
    fn a_full_roster_takes_further_connections_of_its_users_only() {
        let mut roster = Roster::default();
        for number in 0..USERS_MAX as u64 {
            here(&mut roster, number, &format!("u{number}"));
        }
        let more = USERS_MAX as u64;
        let admit = |user| roster.admit(&gateway(1), &member(more, user), None);
        assert_eq!([admit("u0"), admit("v")], [Admission::New, Admission::Full]);
    }

    #[test]
    fn pages_fit_an_answer_and_lead_to_the_end() {
        let mut roster = Roster::default();
        let info: Arc<str> = "i".repeat(2_000).into();
        for number in 0..300 {
            let mut one = member(number, &format!("u{number:03}"));
            one.user.info = Some(Arc::clone(&info));
            roster.enter(&one, &gateway(1));
        }
        let (mut all, mut pages) = (Vec::new(), 0);
        loop {
            let after = all.last().map(|user: &User| Arc::clone(&user.id));
            let (page, more) = roster.page(after.as_deref());
            let bytes: usize = page.iter().map(|_| 2_000 + 4 + USER_BYTES).sum();
            assert!(bytes <= PAGE_BYTES_MAX);
            all.extend(page);
            pages += 1;
            if !more {
                break;
            }
        }
        assert_eq!((all.len(), pages), (300, 3));
        assert_eq!(roster.page(Some("u299")), (Vec::new(), false));
    }

    proptest! {
        /// However members come and go, the fold over the changes, and what a
        /// standby makes of the piece, are the roster.
        #[test]
        fn a_roster_is_the_fold_over_its_changes(moves in prop::collection::vec((0_u64..8, 0_u8..4, any::<bool>()), 0..80)) {
            let mut roster = Roster::default();
            let mut users = Users::default();
            for (number, user, comes) in moves {
                let change = if comes {
                    let one = member(number, &format!("u{user}"));
                    (roster.admit(&gateway(1), &one, None) == Admission::New).then(|| roster.with(one))
                } else {
                    roster.without(connection(number))
                };
                if let Some(change) = change {
                    match &change {
                        Change::Came { member, .. } => roster.enter(member, &gateway(1)),
                        Change::Went { connection, .. } => roster.exit(*connection),
                    }
                    prop_assert_eq!(users.apply(&change), change.is_of_users());
                }
            }
            let (page, more) = roster.page(None);
            prop_assert!(!more);
            prop_assert_eq!(page, users.iter().collect::<Vec<_>>());
            let piece = roster.piece();
            let copy = piece.as_ref().map(Roster::of_piece).unwrap_or_default();
            prop_assert_eq!(copy.page(None), roster.page(None));
            prop_assert_eq!(copy.members(), roster.members());
            prop_assert_eq!(copy.piece(), piece);
        }
    }
}
