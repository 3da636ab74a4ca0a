use proptest::prelude::*;
use proto::message::{Joined, Missed};
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
    steps: Vec<Step>,
    told: Option<Users>,
    /// Who was said to come though it was there, or to go though it was not.
    wrong: usize,
}

impl Here {
    fn new(owner: &Owner) -> Self {
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
        here.attachment.enter(connection(ME), place, "me".into());
        here
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
                Step::Welcome { users, .. } => {
                    assert!(self.told.is_none(), "welcome twice");
                    self.told = Some((*users).clone());
                }
                Step::Deliver { publication, .. } => {
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
    attachment.enter(connection(ME), Place { worker, index }, "me".into());
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
}
