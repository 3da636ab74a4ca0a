use proptest::prelude::*;
use proto::message::{Joined, Missed, Since};
use proto::position::{Gap, GapReason};
use proto::presence::{Mark, Member};
use proto::shard::Fence;
use proto::time::{Timestamp, UnixTime};

use super::*;
use crate::core::attachment::{Ask, FollowId};

const EPOCH: Epoch = Epoch(1);
const NOW: Timestamp = Timestamp(5_000_000);
const ME: u64 = 1_000;

fn connection(number: u64) -> ConnectionId {
    ConnectionId { gateway: 1, number }
}

fn user(id: &str) -> User {
    User {
        id: id.into(),
        info: None,
    }
}

/// A channel at its owner: each user has one connection.
#[derive(Default)]
struct Owner {
    epoch: u64,
    users: Users,
    entries: Vec<Arc<Publication>>,
}

impl Owner {
    fn position(&self) -> Position {
        Position {
            epoch: Epoch(EPOCH.0 + self.epoch),
            offset: Offset(self.entries.len() as u64),
        }
    }

    fn change(&mut self, id: &str, comes: bool) {
        if self.users.contains(id) == comes {
            return;
        }
        let connection = connection(7);
        let change = if comes {
            let user = user(id);
            let member = Member { connection, user };
            Change::Came {
                member,
                is_first: true,
            }
        } else {
            Change::Went {
                connection,
                user: id.into(),
                is_last: true,
            }
        };
        self.users.apply(&change);
        self.entries.push(Arc::new(Publication {
            offset: self.position().offset.next(),
            event: "".into(),
            data: "".into(),
            exclude: None,
            accepted_at: UnixTime(0),
            mark: Some(Box::new(Mark::Change(change))),
        }));
    }

    fn publish(&mut self) {
        self.entries.push(Arc::new(Publication {
            offset: self.position().offset.next(),
            event: "e".into(),
            data: "d".into(),
            exclude: None,
            accepted_at: UnixTime(0),
            mark: None,
        }));
    }

    /// The answer to a join: at most so many, of the last so many.
    fn joined(&self, since: Since, most: usize, kept: usize) -> Joined {
        let gone = self.entries.len().saturating_sub(kept);
        let missed = match since {
            Since::Cursor(cursor) if (cursor.offset.0 as usize) < gone => Missed::Gap(Gap {
                reason: GapReason::Expired,
                earliest: Offset(gone as u64 + 1),
                latest: self.position(),
            }),
            Since::Cursor(cursor) => {
                let missed = self.entries.iter().skip(cursor.offset.0 as usize);
                Missed::Publications(missed.take(most).cloned().collect())
            }
            Since::Now | Since::Delivered(_) => Missed::Publications(Vec::new()),
        };
        Joined {
            fence: Fence(1),
            position: self.position(),
            missed,
            cached: None,
        }
    }

    fn page(&self, after: Option<&str>, most: usize, complete: bool) -> RosterPage {
        let behind = |user: &User| after.is_none_or(|after| &*user.id > after);
        let mut users: Vec<User> = self.users.iter().filter(behind).collect();
        let more = users.len() > most;
        users.truncate(most);
        RosterPage {
            fence: Fence(1),
            position: Some(self.position()),
            users,
            count: self.users.len() as u32,
            more,
            complete,
        }
    }
}

/// A gateway with one member, and what that has been told.
#[derive(Default)]
struct Here {
    attachment: Attachment,
    queries: u64,
    delivered: usize,
    /// An answer that is on its way.
    coming: Option<(u64, RosterPage)>,
    /// The answer to a join that is.
    joined: Option<Joined>,
    joins: u64,
    steps: Vec<Step>,
    told: Option<Users>,
    /// Who was said to come though it was there, or to go though it was not.
    wrong: usize,
    /// What it was given, those that it missed first.
    given: Vec<Offset>,
    gap: Option<Gap>,
}

impl Here {
    fn new(owner: &Owner) -> Self {
        Self::returning(owner, None)
    }

    fn returning(owner: &Owner, cursor: Option<Position>) -> Self {
        let mut here = Self::default();
        let worker = WorkerId(0);
        let _ = here
            .attachment
            .follow(worker, FollowId(1), None, &mut here.steps);
        here.attachment.set_asked(1);
        let joined = Joined {
            fence: Fence(1),
            position: owner.position(),
            missed: Missed::Publications(Vec::new()),
            cached: None,
        };
        let _ = here.attachment.joined(NOW, joined, &mut here.steps);
        here.delivered = owner.entries.len();
        let place = Place {
            worker,
            index: ConnectionIndex(0),
        };
        here.attachment
            .enter(connection(ME), place, "me".into(), cursor);
        here
    }

    /// Asks the owner for what the member missed, if that is to be.
    fn join(&mut self, owner: &Owner, kept: usize) {
        if self.attachment.ask_for_members() == Ask::Join {
            self.joins += 1;
            self.attachment.set_asked(1 + self.joins);
            let since = self.attachment.asked_since();
            self.joined = Some(owner.joined(since, 3, kept));
        }
    }

    /// The answer comes.
    fn take_join(&mut self) {
        if let Some(joined) = self.joined.take() {
            let _ = self.attachment.joined(NOW, joined, &mut self.steps);
            self.look();
        }
    }

    /// The next entry comes by the link.
    fn deliver(&mut self, owner: &Owner) {
        if let Some(next) = owner.entries.get(self.delivered) {
            let epoch = owner.position().epoch;
            let ask = self
                .attachment
                .receive(NOW, epoch, Arc::clone(next), &mut self.steps);
            assert_eq!(ask, Ask::No);
            self.delivered += 1;
        }
        self.look();
    }

    /// The owner answers with a page, if it is asked.
    fn ask(&mut self, owner: &Owner, complete: bool) {
        self.queries += 1;
        if let Some(after) = self.attachment.ask_roster(self.queries) {
            let page = owner.page(after.as_deref(), 2, complete);
            self.coming = Some((self.queries, page));
        }
    }

    /// The answer comes.
    fn take(&mut self) -> bool {
        let Some((query, page)) = self.coming.take() else {
            return false;
        };
        let is_early = self.attachment.take_page(query, page);
        self.attachment.look_at_roster(&mut self.steps);
        self.look();
        is_early
    }

    fn page(&mut self, owner: &Owner, complete: bool) -> bool {
        self.ask(owner, complete);
        self.take()
    }

    fn look(&mut self) {
        for step in self.steps.drain(..) {
            match step {
                Step::Welcome { users, missed, .. } => {
                    assert!(self.told.is_none(), "welcome twice");
                    match missed {
                        None => {}
                        Some(Missed::Gap(gap)) => self.gap = Some(gap),
                        Some(Missed::Publications(missed)) => {
                            assert!(missed.iter().all(|it| it.change().is_none()));
                            self.given.extend(missed.iter().map(|it| it.offset));
                        }
                    }
                    self.told = Some((*users).clone());
                }
                Step::Deliver { publication, .. } => {
                    if self.told.is_some()
                        && publication.change().is_none()
                        && !publication.is_blank()
                    {
                        self.given.push(publication.offset);
                    }
                    if let (Some(change), Some(told)) = (publication.change(), &mut self.told) {
                        assert!(change.is_of_users());
                        self.wrong += usize::from(!told.apply(change));
                    }
                }
                Step::Members { came, went, .. } => {
                    let told = self.told.as_mut().expect("nobody else is told");
                    let came = came.iter().filter(|user| !told.insert(user)).count();
                    let went = went.iter().filter(|user| !told.remove(user)).count();
                    self.wrong += came + went;
                }
                _ => {}
            }
        }
    }

    fn finish(&mut self, owner: &Owner) {
        for _ in 0..100 {
            self.page(owner, true);
            self.deliver(owner);
        }
    }
}

#[test]
fn nobody_is_asked_who_is_there_before_it_is_known_from_where_entries_come() {
    let mut attachment = Attachment::default();
    let worker = WorkerId(0);
    let mut steps = Vec::new();
    let _ = attachment.follow(worker, FollowId(1), None, &mut steps);
    let index = ConnectionIndex(0);
    let place = Place { worker, index };
    attachment.enter(connection(ME), place, "me".into(), None);
    assert_eq!(attachment.ask_roster(1), None);
    attachment.set_asked(1);
    let joined = Joined {
        fence: Fence(1),
        position: Owner::default().position(),
        missed: Missed::Publications(Vec::new()),
        cached: None,
    };
    let _ = attachment.joined(NOW, joined, &mut steps);
    assert_eq!(attachment.ask_roster(2), Some(None));
}

#[test]
fn a_member_is_welcome_when_it_is_in_the_roster_and_not_before() {
    let mut owner = Owner::default();
    owner.change("a", true);
    let mut here = Here::new(&owner);
    here.page(&owner, true);
    assert!(
        here.told.is_none(),
        "the owner has not said yet that it is in"
    );
    owner.change("me", true);
    let at = owner.position();
    here.attachment.entered(connection(ME), at, &mut here.steps);
    here.look();
    assert!(here.told.is_none(), "its entry has not come yet");
    here.deliver(&owner);
    let told: Vec<User> = here.told.iter().flat_map(Users::iter).collect();
    assert_eq!(told, [user("a"), user("me")]);
}

/// The sequence is lost: what the members here were told is set right, but only when
/// the owner knows who is there.
#[test]
fn in_a_new_epoch_the_difference_is_told_when_all_have_been_stated() {
    let mut owner = Owner::default();
    for id in ["a", "b", "me"] {
        owner.change(id, true);
    }
    let mut here = Here::new(&owner);
    here.attachment
        .entered(connection(ME), owner.position(), &mut here.steps);
    here.finish(&owner);
    assert_eq!(here.told, Some(owner.users.clone()));
    let mut next = Owner {
        epoch: 1,
        ..Owner::default()
    };
    next.change("me", true);
    let gap = Gap {
        reason: GapReason::NewEpoch,
        earliest: Offset(1),
        latest: next.position(),
    };
    let _ = here.attachment.detach();
    here.attachment.set_asked(2);
    let joined = Joined {
        fence: Fence(2),
        position: next.position(),
        missed: Missed::Gap(gap),
        cached: None,
    };
    let _ = here.attachment.joined(NOW, joined, &mut here.steps);
    here.delivered = next.entries.len();
    assert!(
        here.page(&next, false),
        "early: the other gateways have not stated yet"
    );
    assert_eq!(here.told, Some(owner.users.clone()), "nobody has gone");
    // a is stated, b has gone meanwhile, c comes.
    next.change("a", true);
    here.deliver(&next);
    next.change("c", true);
    here.finish(&next);
    assert_eq!(here.told, Some(next.users.clone()));
    assert_eq!(here.wrong, 0);
}

proptest! {
    /// However pages and entries come in between, what a member is told is what the
    /// channel is, and each change is told once.
    #[test]
    fn what_a_member_is_told_is_the_roster(
        before in prop::collection::vec(0_u8..6, 0..6),
        moves in prop::collection::vec((0_u8..9, 0_u8..6), 0..60),
        enters in 0_usize..60,
    ) {
        let mut owner = Owner::default();
        for id in before {
            owner.change(&format!("u{id}"), true);
        }
        let mut here = Here::new(&owner);
        let mut is_in = false;
        let enter = |owner: &mut Owner, here: &mut Here, is_in: &mut bool| {
            owner.change("me", true);
            let at = owner.position();
            here.attachment.entered(connection(ME), at, &mut here.steps);
            here.look();
            *is_in = true;
        };
        for (at, (what, id)) in moves.into_iter().enumerate() {
            match what {
                0..=2 => owner.change(&format!("u{id}"), true),
                3 | 4 => owner.change(&format!("u{id}"), false),
                5 | 6 => here.deliver(&owner),
                7 => here.ask(&owner, true),
                _ => {
                    here.take();
                }
            }
            if at == enters {
                enter(&mut owner, &mut here, &mut is_in);
            }
        }
        if !is_in {
            enter(&mut owner, &mut here, &mut is_in);
        }
        here.finish(&owner);
        prop_assert_eq!(here.told, Some(owner.users));
        prop_assert_eq!(here.wrong, 0);
    }
    /// However answers and entries come in between, a member that has come back is given
    /// each publication behind its cursor once and in order, or is told that it cannot be.
    #[test]
    fn what_a_member_missed_is_given_to_it_with_the_roster(
        before in prop::collection::vec((0_u8..3, 0_u8..6), 0..40),
        cursor in 0_usize..40,
        moves in prop::collection::vec((0_u8..9, 0_u8..6), 0..80),
        enters in 0_usize..80,
        kept in 1_usize..60,
    ) {
        let happen = |owner: &mut Owner, what: u8, id: u8| match what {
            0 => owner.change(&format!("u{id}"), true),
            1 => owner.change(&format!("u{id}"), false),
            _ => owner.publish(),
        };
        let mut owner = Owner::default();
        for (what, id) in before {
            happen(&mut owner, what, id);
        }
        let cursor = Position {
            offset: Offset(cursor.min(owner.entries.len()) as u64),
            ..owner.position()
        };
        let mut here = Here::returning(&owner, Some(cursor));
        let enter = |owner: &mut Owner, here: &mut Here| {
            owner.change("me", true);
            let at = owner.position();
            here.attachment.entered(connection(ME), at, &mut here.steps);
            here.look();
        };
        let count = moves.len();
        for (at, (what, id)) in moves.into_iter().enumerate() {
            if at == enters {
                enter(&mut owner, &mut here);
            }
            match what {
                0..=2 => happen(&mut owner, what, id),
                3 | 4 => here.deliver(&owner),
                5 => here.ask(&owner, true),
                6 => {
                    here.take();
                }
                7 => here.join(&owner, kept),
                _ => here.take_join(),
            }
        }
        if enters >= count {
            enter(&mut owner, &mut here);
        }
        for _ in 0..100 {
            here.page(&owner, true);
            here.deliver(&owner);
            here.take_join();
            here.join(&owner, kept);
        }
        prop_assert_eq!(here.told, Some(owner.users.clone()), "it is in");
        prop_assert_eq!(here.wrong, 0);
        let behind = |offset: Offset| {
            let all = owner.entries.iter().filter(move |it| it.offset > offset);
            all.filter(|it| it.change().is_none()).map(|it| it.offset).collect::<Vec<_>>()
        };
        match here.gap {
            None => prop_assert_eq!(here.given, behind(cursor.offset)),
            Some(gap) => {
                prop_assert!(owner.entries.len() > kept + cursor.offset.0 as usize);
                prop_assert_eq!(here.given, behind(gap.latest.offset));
            }
        }
    }
}
