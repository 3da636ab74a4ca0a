use proto::id::{ClusterUuid, Incarnation, NodeRef};
use proto::message::{Request, Sequenced};
use proto::namespace::Namespaces;
use proto::position::Offset;
use proto::presence::{Member, User};
use proto::shard::{Fence, ShardId};

use super::super::{Input, Tenure};
use super::*;

const SHARD: ShardId = ShardId(7);

fn tenure(fence: u64) -> Tenure {
    Tenure {
        shard: SHARD,
        fence: Fence(fence),
        owner: NodeRef {
            id: "n".parse().unwrap(),
            incarnation: Incarnation(1),
        },
        cluster: ClusterUuid(9),
    }
}

fn gateway(id: &str, incarnation: u64) -> GatewayRef {
    GatewayRef {
        id: id.parse().unwrap(),
        incarnation: Incarnation(incarnation),
    }
}

fn key() -> ChannelKey {
    ChannelKey {
        app: "app".parse().unwrap(),
        channel: "presence-room".parse().unwrap(),
    }
}

fn connection(number: u64) -> ConnectionId {
    ConnectionId { gateway: 1, number }
}

/// A shard, and what gateways say to it.
struct World {
    now: Timestamp,
    shard: Shard,
    sequences: std::collections::BTreeMap<GatewayRef, u64>,
    /// What was put into the channel, in short.
    told: Vec<String>,
    offsets: Vec<Offset>,
}

impl World {
    fn new() -> Self {
        let mut shard = Shard::new(tenure(1), Arc::default());
        let now = Timestamp(1_000);
        shard.listen(now, Arc::default());
        Self {
            now,
            shard,
            sequences: std::collections::BTreeMap::new(),
            told: Vec::new(),
            offsets: Vec::new(),
        }
    }

    fn place(&mut self, from: &GatewayRef) -> Sequenced {
        let sequence = self.sequences.entry(from.clone()).or_insert(0);
        *sequence += 1;
        Sequenced {
            shard: SHARD,
            fence: self.shard.fence(),
            sequence: *sequence,
            low_mark: *sequence,
        }
    }

    fn tell(&mut self, input: Input) -> Option<Reply> {
        let mut effects = Vec::new();
        self.shard.handle(self.now, input, &mut effects);
        let mut reply = None;
        for effect in effects {
            match effect {
                Effect::Deliver { entry, .. } => {
                    self.offsets.push(entry.publication.offset);
                    self.told.push(match entry.publication.change() {
                        Some(Change::Came { member, is_first }) => {
                            let mark = if *is_first { "+" } else { "=" };
                            format!("{mark}{}", member.user.id)
                        }
                        Some(Change::Went { user, is_last, .. }) => {
                            let mark = if *is_last { "-" } else { "~" };
                            format!("{mark}{user}")
                        }
                        None => "message".into(),
                    });
                }
                Effect::Reply { reply: it, .. } | Effect::Acknowledge { reply: it, .. } => {
                    reply = Some(it);
                }
                _ => {}
            }
        }
        reply
    }

    fn ask(&mut self, from: &GatewayRef, request: Request) -> Option<Reply> {
        let from = from.clone();
        self.tell(Input::Request { from, request })
    }

    fn enter(&mut self, from: &GatewayRef, number: u64, user: &str) -> PublishResult {
        self.enter_if(from, number, user, None)
    }

    fn enter_if(
        &mut self,
        from: &GatewayRef,
        number: u64,
        user: &str,
        users_max: Option<u32>,
    ) -> PublishResult {
        let user = User {
            id: user.into(),
            info: None,
        };
        let enter = Enter {
            place: self.place(from),
            key: key(),
            member: Member {
                connection: connection(number),
                user,
            },
            users_max,
        };
        published(self.ask(from, Request::Enter(enter)))
    }

    fn exit(&mut self, from: &GatewayRef, number: u64) -> PublishResult {
        let exit = Exit {
            place: self.place(from),
            key: key(),
            connection: connection(number),
        };
        published(self.ask(from, Request::Exit(exit)))
    }

    fn stated(&mut self, from: &GatewayRef, to: u64) {
        let stated = Stated {
            place: self.place(from),
            to: Fence(to),
        };
        let _ = self.ask(from, Request::Stated(stated));
    }

    fn pass(&mut self, millis: u64) {
        self.now = self.now + Duration::from_millis(millis);
        self.tell(Input::Tick);
    }

    fn hear(&mut self, gateways: &[&GatewayRef]) {
        self.hear_since(Timestamp(0), gateways);
    }

    fn hear_since(&mut self, since: Timestamp, gateways: &[&GatewayRef]) {
        let around = Around {
            gateways: gateways.iter().map(|gateway| (*gateway).clone()).collect(),
            hears_since: Some(since),
        };
        self.tell(Input::Around(Arc::new(around)));
    }

    /// A standby becomes the owner.
    fn fail_over(&mut self, fence: u64) {
        let mut next = Shard::new(tenure(fence), Arc::new(Namespaces::default()));
        for record in self.shard.checkpoint(self.now) {
            next.replay(self.now, record);
        }
        next.succeed(self.now, tenure(fence), None);
        next.listen(self.now, Arc::default());
        self.shard = next;
    }

    fn page(&self) -> RosterPage {
        self.shard.page(self.now, &key(), None)
    }

    fn users(&self) -> Vec<String> {
        let users = self.page().users.into_iter();
        users.map(|user| user.id.to_string()).collect()
    }
}

fn published(reply: Option<Reply>) -> PublishResult {
    match reply {
        Some(Reply::Published { result, .. }) => result,
        other => panic!("an answer expected, got {other:?}"),
    }
}

fn at(result: PublishResult) -> u64 {
    match result {
        Ok(Published::Accepted { position, .. }) => position.offset.0,
        other => panic!("taken, not {other:?}"),
    }
}

#[test]
fn each_change_is_an_entry_and_what_changes_nothing_is_none() {
    let mut world = World::new();
    let g = gateway("g", 1);
    assert_eq!(at(world.enter(&g, 1, "a")), 1);
    assert_eq!(at(world.enter(&g, 2, "a")), 2);
    assert_eq!(at(world.enter(&g, 2, "a")), 2, "it is there");
    assert_eq!(at(world.exit(&g, 1)), 3);
    assert_eq!(world.exit(&g, 1), Ok(Published::Skipped));
    assert_eq!(at(world.exit(&g, 2)), 4);
    assert_eq!(world.told, ["+a", "=a", "~a", "-a"]);
    let all: Vec<u64> = world.offsets.iter().map(|offset| offset.0).collect();
    assert_eq!(all, [1, 2, 3, 4]);
    assert!(world.users().is_empty());
}

#[test]
fn a_channel_stays_as_long_as_somebody_is_there() {
    let mut world = World::new();
    let g = gateway("g", 1);
    world.enter(&g, 1, "a").unwrap();
    for _ in 0..20 {
        world.pass(60_000);
    }
    assert_eq!(
        (world.users(), world.shard.channels()),
        (vec!["a".to_owned()], 1)
    );
    world.exit(&g, 1).unwrap();
    for _ in 0..20 {
        world.pass(60_000);
    }
    assert_eq!(world.shard.channels(), 0);
}

#[test]
fn the_members_of_a_gateway_that_is_gone_leave_once_and_after_a_while() {
    let mut world = World::new();
    let (g, h) = (gateway("g", 1), gateway("h", 1));
    world.enter(&g, 1, "a").unwrap();
    world.enter(&h, 2, "b").unwrap();
    let mut gone = Gone::default();
    gone.declare(5, g.clone());
    world.tell(Input::Gone(Arc::new(gone.clone())));
    world.pass(1_000);
    world.tell(Input::Gone(Arc::new(gone)));
    world.pass(999);
    assert_eq!(world.users(), ["a", "b"]);
    world.pass(1);
    assert_eq!(world.users(), ["b"]);
    world.pass(5_000);
    assert_eq!(world.told, ["+a", "+b", "-a"]);
}

/// It was declared gone, and lives.
#[test]
fn who_is_stated_by_a_new_life_in_time_has_never_left() {
    let mut world = World::new();
    let (before, after) = (gateway("g", 1), gateway("g", 2));
    world.enter(&before, 1, "a").unwrap();
    world.enter(&before, 2, "b").unwrap();
    let mut gone = Gone::default();
    gone.declare(5, before);
    world.tell(Input::Gone(Arc::new(gone)));
    assert_eq!(
        at(world.enter(&after, 1, "a")),
        2,
        "where the channel stands"
    );
    world.pass(5_000);
    assert_eq!(world.told, ["+a", "+b", "-b"]);
    assert_eq!(world.users(), ["a"]);
}

#[test]
fn a_gateway_that_is_restarted_takes_its_members_along() {
    let mut world = World::new();
    world.enter(&gateway("g", 1), 1, "a").unwrap();
    world.tell(Input::Met(gateway("g", 2)));
    world.pass(1_999);
    assert_eq!(world.users(), ["a"]);
    world.pass(1);
    assert!(world.users().is_empty());
}

/// Its clock was set back, and no node remembered the life before.
#[test]
fn a_gateway_that_is_restarted_with_a_lower_number_takes_them_along_too() {
    let mut world = World::new();
    world.enter(&gateway("g", 5), 1, "a").unwrap();
    world.fail_over(2);
    let now = gateway("g", 3);
    world.hear(&[&now]);
    world.enter(&now, 2, "b").unwrap();
    world.stated(&now, 2);
    world.pass(2_000);
    assert_eq!(world.told, ["+a", "+b", "-a"]);
    assert!(world.page().complete);
}

#[test]
fn after_a_failover_nobody_leaves_who_is_stated_and_who_is_not_leaves_once() {
    let mut world = World::new();
    let g = gateway("g", 1);
    for (number, user) in [(1, "a"), (2, "b"), (3, "b")] {
        world.enter(&g, number, user).unwrap();
    }
    world.fail_over(2);
    assert_eq!(world.users(), ["a", "b"]);
    world.hear(&[&g]);
    world.pass(2_000);
    assert!(!world.page().complete, "nothing has been stated");
    assert_eq!(at(world.enter(&g, 1, "a")), 3);
    assert_eq!(at(world.enter(&g, 3, "b")), 3);
    // To the owner before: to this one not all has been said.
    world.stated(&g, 1);
    assert_eq!(world.users(), ["a", "b"]);
    assert!(!world.page().complete);
    world.stated(&g, 2);
    assert_eq!(world.users(), ["a", "b"], "one connection of b is left");
    assert!(world.page().complete);
    world.pass(10_000);
    assert_eq!(world.told, ["+a", "+b", "=b", "~b"]);
}

#[test]
fn it_is_not_complete_before_all_have_stated_and_it_has_listened() {
    let mut world = World::new();
    let (g, h) = (gateway("g", 1), gateway("h", 1));
    world.hear(&[&g, &h]);
    world.stated(&g, 1);
    world.pass(2_000);
    assert!(!world.page().complete);
    world.stated(&h, 1);
    assert!(world.page().complete);
    // A new life has said nothing yet.
    world.hear(&[&g, &gateway("h", 2)]);
    assert!(!world.page().complete);
}

/// The next owner has heard of all gateways for long, but may have stood still just now.
#[test]
fn the_next_owner_need_not_listen_for_as_long() {
    let mut world = World::new();
    let g = gateway("g", 1);
    world.enter(&g, 1, "a").unwrap();
    world.pass(60_000);
    world.fail_over(2);
    world.hear(&[&g]);
    world.enter(&g, 1, "a").unwrap();
    world.stated(&g, 2);
    world.pass(499);
    assert!(!world.page().complete);
    world.pass(1);
    assert!(world.page().complete);
    // Unless nothing was heard of anybody until a moment ago.
    world.hear_since(world.now, &[&g]);
    world.pass(1_999);
    assert!(!world.page().complete);
    world.pass(1);
    assert!(world.page().complete);
}

/// Long after this owner began: a gateway starts, and its first member is quicker here
/// than its first beat is looked at.
#[test]
fn the_members_of_a_gateway_that_has_just_begun_stay() {
    let mut world = World::new();
    world.hear(&[&gateway("h", 1)]);
    world.pass(120_000);
    world.enter(&gateway("g", 1), 1, "a").unwrap();
    world.pass(1_000);
    world.pass(5_000);
    assert_eq!(world.users(), ["a"]);
}

/// Nobody will ever say that a gateway is silent which nobody has heard since.
#[test]
fn members_of_a_gateway_that_is_never_heard_leave_in_the_end() {
    let mut world = World::new();
    let (g, h) = (gateway("g", 1), gateway("h", 1));
    world.enter(&g, 1, "a").unwrap();
    world.enter(&h, 2, "b").unwrap();
    world.fail_over(2);
    world.hear(&[&h]);
    world.enter(&h, 2, "b").unwrap();
    world.pass(59_000);
    assert_eq!(world.users(), ["a", "b"]);
    world.pass(1_000);
    assert_eq!(world.users(), ["b"]);
}

#[test]
fn a_standby_has_the_roster_with_who_has_said_so() {
    let mut world = World::new();
    let (g, h) = (gateway("g", 1), gateway("h", 4));
    world.enter(&g, 1, "a").unwrap();
    world.enter(&h, 2, "a").unwrap();
    world.fail_over(2);
    world.fail_over(3);
    let mut gone = Gone::default();
    gone.declare(5, h);
    world.tell(Input::Gone(Arc::new(gone)));
    world.pass(2_000);
    assert_eq!(world.told, ["+a", "=a", "~a"]);
    assert_eq!(world.users(), ["a"]);
}

#[test]
fn a_gateway_may_let_fewer_in() {
    let mut world = World::new();
    let one = gateway("g", 1);
    let mut enter = |number, user| world.enter_if(&one, number, user, Some(2));
    assert!(enter(1, "a").is_ok());
    assert!(enter(2, "b").is_ok());
    assert_eq!(enter(3, "c"), Err(Refusal::RosterFull));
    assert!(enter(4, "a").is_ok(), "whoever is there has room");
    assert!(world.enter_if(&one, 5, "c", None).is_ok());
}
