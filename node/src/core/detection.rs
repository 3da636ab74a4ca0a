//! Who is dead, which gateway is gone.
//!
//! Every voter listens to the beats of all nodes, so that a new leader need not
//! begin to listen. [`Beats`] may be wrong: who counts as dead lives perhaps, and
//! what makes that safe are the leases. [`judge::Judge`] must agree before a
//! gateway counts as gone, for then its members leave.
//!
//! Two things can be broken that are not the node's that seems dead. A leader that
//! does not hear a majority of the voters may be deaf: it takes nobody for dead,
//! for that would be everybody, and lets others lead. And a node may be heard that
//! cannot be told anything: it says itself that it has no lease, so it serves
//! nothing, and after some time others take over what they have as well. It has the
//! rest, and that is waited for. The same holds for one whom the leader does not
//! hear, and another voter does: every voter says with its beats whom it
//! [misses](Beats::missed).

pub mod bus;
pub mod judge;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::id::NodeRef;
use proto::time::Timestamp;

use super::cluster::{Cluster, RaftId};

/// How often a node beats to every voter.
pub const NODE_BEAT: Duration = Duration::from_millis(100);
/// After how much silence a node counts as dead.
pub const NODE_SILENCE: Duration = Duration::from_millis(500);
/// For how long after its start a voter does not take for dead of whom it has
/// heard nothing yet: others have to notice first that it is there again.
const FIRST_WORD: Duration = Duration::from_secs(3);
/// Within which a leader has to have heard a majority of the voters to judge by the
/// silence of others: three beats, so that it notices its own deafness before
/// anybody has been silent for too long.
const FRESH: Duration = Duration::from_millis(300);
/// For how long a node may say that it has no lease before it counts as
/// unreachable. A leader grants one within a fraction of that.
const LEASELESS: Duration = Duration::from_secs(1);
/// A voter that has not looked at its table for this long has slept, or nearly:
/// then the silence may have been its own.
const SLEPT: Duration = Duration::from_millis(250);
/// Of so many a voter says at most that it does not hear them: a beat is a datagram.
/// Of the others it is not known, which has them waited for.
const MISSED_MAX: usize = 64;

/// When each node was last heard of. It has to be [shown](Self::observe) the
/// members every 100 ms or so.
#[derive(Debug, Default)]
pub struct Beats {
    heard: BTreeMap<NodeRef, Heard>,
    /// Those that have said that they end.
    left: BTreeSet<NodeRef>,
    /// When it looked first, and last.
    began: Option<Timestamp>,
    observed: Option<Timestamp>,
    /// Silence before this counts for nothing.
    since: Option<Timestamp>,
}

/// What is known of one life.
#[derive(Debug, Clone)]
struct Heard {
    /// When it was heard of last, or became a member.
    at: Timestamp,
    /// Whether it has ever beaten.
    once: bool,
    /// Since when it says that it has no lease.
    leaseless: Option<Timestamp>,
    /// Whom it does not hear, if it says so.
    misses: Option<BTreeSet<RaftId>>,
}

/// What a node says of itself when it beats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Whether the leader lets it serve.
    pub has_lease: bool,
    /// Whom it does not hear. `None`: that is not known.
    pub misses: Option<BTreeSet<RaftId>>,
}

/// Who does not serve, as far as a leader has heard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Out {
    /// What these had is gone.
    pub dead: BTreeSet<NodeRef>,
    /// These live, and can be told nothing, or are not heard by the leader.
    pub unreachable: BTreeSet<NodeRef>,
}

impl Out {
    /// Whether a node does not serve.
    pub fn has(&self, node: &NodeRef) -> bool {
        self.dead.contains(node) || self.unreachable.contains(node)
    }
}

/// Why the shards of a node had to be taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It has been started again.
    Restart,
    /// It has said that it ends.
    Farewell,
    /// It was silent, or could not be reached.
    Silence,
}

/// Who judges by what is heard.
#[derive(Debug, Clone, Copy)]
pub struct Leader<'a> {
    /// This node.
    pub me: RaftId,
    /// Since when it leads.
    pub since: Timestamp,
    /// Who votes.
    pub voters: &'a BTreeSet<RaftId>,
}

impl Beats {
    /// A node has beaten.
    pub fn beat(&mut self, now: Timestamp, from: &NodeRef, word: Word) {
        // Who is no member, or not yet known to be one, is not remembered: it
        // has all its time from when it is.
        if let Some(heard) = self.heard.get_mut(from) {
            heard.at = now.max(heard.at);
            heard.once = true;
            heard.leaseless = if word.has_lease {
                None
            } else {
                heard.leaseless.or(Some(now))
            };
            heard.misses = word.misses;
        }
    }

    /// A node has said that it ends.
    pub fn leave(&mut self, from: &NodeRef) {
        if self.heard.contains_key(from) {
            self.left.insert(from.clone());
        }
    }

    /// These are the members now. Whoever was not before has just begun to be
    /// silent; after a start or a sleep of our own all have.
    pub fn observe(&mut self, now: Timestamp, cluster: &Cluster) {
        let slept = |before| now.since(before) >= SLEPT;
        if self.observed.is_none_or(slept) {
            self.since = Some(now);
        }
        self.observed = Some(now);
        self.began.get_or_insert(now);
        let members = cluster.members().iter().map(|(name, member)| NodeRef {
            id: name.clone(),
            incarnation: member.incarnation,
        });
        let before = std::mem::take(&mut self.heard);
        self.heard = members
            .map(|node| {
                let new = Heard {
                    at: now,
                    once: false,
                    leaseless: None,
                    misses: None,
                };
                let heard = before.get(&node).cloned().unwrap_or(new);
                (node, heard)
            })
            .collect();
        self.left.retain(|node| self.heard.contains_key(node));
    }

    /// Whether a life counts as dead: a later one has registered, it is no
    /// member, it has said that it ends, or it is silent.
    pub fn is_dead(&self, now: Timestamp, cluster: &Cluster, node: &NodeRef) -> bool {
        self.is_over(cluster, node) || self.is_silent(now, node, NODE_SILENCE)
    }

    /// Why the shards of a node had to be taken over, as far as this one has heard.
    pub fn cause(&self, cluster: &Cluster, node: &NodeRef) -> Cause {
        if cluster.has_ended(node) {
            Cause::Restart
        } else if self.left.contains(node) {
            Cause::Farewell
        } else {
            Cause::Silence
        }
    }

    /// Whether the leader, this node, hears a majority of those who vote. If not,
    /// nothing that it would decide could be agreed, or it is deaf.
    pub fn hears_majority(
        &self,
        now: Timestamp,
        cluster: &Cluster,
        me: RaftId,
        voters: &BTreeSet<RaftId>,
    ) -> bool {
        let is_there = |node: &NodeRef| !self.is_silent(now, node, NODE_SILENCE);
        self.are_majority(cluster, me, voters, is_there)
    }

    /// Whether this node, as the leader, may judge by the silence of others. Who
    /// has only just become a member has not been heard for that.
    fn may_judge(&self, now: Timestamp, cluster: &Cluster, leader: Leader<'_>) -> bool {
        let has_beaten = |node: &NodeRef| self.heard.get(node).is_some_and(|heard| heard.once);
        let is_heard = |node: &NodeRef| has_beaten(node) && !self.is_silent(now, node, FRESH);
        self.are_majority(cluster, leader.me, leader.voters, is_heard)
    }

    fn are_majority(
        &self,
        cluster: &Cluster,
        me: RaftId,
        voters: &BTreeSet<RaftId>,
        is_heard: impl Fn(&NodeRef) -> bool,
    ) -> bool {
        // While founders register nobody has anything, and nobody is missed.
        if cluster.rows().iter().all(Option::is_none) {
            return true;
        }
        let members = cluster.members().iter();
        let heard = members.filter(|(name, member)| {
            let node = NodeRef {
                id: (*name).clone(),
                incarnation: member.incarnation,
            };
            let raft_id = member.registration.raft_id;
            let is_heard = !self.left.contains(&node) && is_heard(&node);
            voters.contains(&raft_id) && (raft_id == me || is_heard)
        });
        2 * heard.count() > voters.len()
    }

    /// The members that have not been heard for as long as makes a leader take them
    /// for dead, or never.
    pub fn missed(&self, now: Timestamp, cluster: &Cluster) -> BTreeSet<RaftId> {
        let members = cluster.members().iter();
        let missed = members.filter(|(name, member)| {
            let node = NodeRef {
                id: (*name).clone(),
                incarnation: member.incarnation,
            };
            let heard = self.heard.get(&node);
            heard.is_none_or(|heard| !heard.once || now.since(heard.at) >= NODE_SILENCE)
        });
        let missed = missed.map(|(_, member)| member.registration.raft_id);
        missed.take(MISSED_MAX).collect()
    }

    /// Whether a voter that the leader hears says that it hears this life.
    pub fn is_heard_by_another(
        &self,
        now: Timestamp,
        cluster: &Cluster,
        leader: Leader<'_>,
        node: &NodeRef,
    ) -> bool {
        let Some(member) = cluster.members().get(&node.id) else {
            return false;
        };
        let raft_id = member.registration.raft_id;
        let others = self.heard.iter().filter(|(other, heard)| {
            let votes = cluster.members().get(&other.id).is_some_and(|other| {
                let other = other.registration.raft_id;
                other != leader.me && other != raft_id && leader.voters.contains(&other)
            });
            let is_fresh = heard.once && now.since(heard.at) < FRESH;
            votes && is_fresh && !self.left.contains(other)
        });
        let mut words = others.filter_map(|(_, heard)| heard.misses.as_ref());
        words.any(|misses| !misses.contains(&raft_id))
    }

    fn is_over(&self, cluster: &Cluster, node: &NodeRef) -> bool {
        !cluster.is_living(node) || self.left.contains(node)
    }

    fn is_silent(&self, now: Timestamp, node: &NodeRef, silence: Duration) -> bool {
        let (Some(heard), Some(since)) = (self.heard.get(node), self.since) else {
            return false;
        };
        // Between two looks it may be us who slept.
        let awake = self.observed.is_some_and(|at| now.since(at) < SLEPT);
        let is_young = self.began.is_some_and(|at| now.since(at) < FIRST_WORD);
        let may_be_late = is_young && !heard.once;
        awake && !may_be_late && now.since(since.max(heard.at)) >= silence
    }

    fn is_leaseless(&self, now: Timestamp, since: Timestamp, node: &NodeRef) -> bool {
        let leaseless = self.heard.get(node).and_then(|heard| heard.leaseless);
        leaseless.is_some_and(|at| now.since(at.max(since)) >= LEASELESS)
    }

    /// All that are out and matter: members, owners and standbys.
    pub fn out(&self, now: Timestamp, cluster: &Cluster, leader: Leader<'_>) -> Out {
        let hears = self.may_judge(now, cluster, leader);
        let rows = cluster.rows().iter().flatten();
        let named = rows.flat_map(|row| {
            let standbys = row.standbys.iter().map(|standby| &standby.node);
            standbys.chain([&row.owner])
        });
        let all: BTreeSet<&NodeRef> = self.heard.keys().chain(named).collect();
        let mut out = Out::default();
        for node in all {
            let is_silent = self.is_silent(now, node, NODE_SILENCE);
            if self.is_over(cluster, node) {
                out.dead.insert(node.clone());
            } else if !hears {
                // It is this one, perhaps, that hears nothing.
            } else if is_silent && !self.is_heard_by_another(now, cluster, leader, node) {
                out.dead.insert(node.clone());
            } else if is_silent || self.is_leaseless(now, leader.since, node) {
                out.unreachable.insert(node.clone());
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cluster::tests::{founding, node, registration};
    use crate::core::cluster::{Assignment, Command, How};
    use proto::shard::ShardId;

    fn at(millis: u64) -> Timestamp {
        Timestamp(millis)
    }

    /// It has a lease, and does not say whom it hears.
    fn well() -> Word {
        Word {
            has_lease: true,
            misses: None,
        }
    }

    fn cluster(names: &[&str]) -> Cluster {
        let mut cluster = Cluster::default();
        for (at, name) in names.iter().enumerate() {
            cluster.apply(at as u64 + 2, Command::Register(registration(name, 1)));
        }
        cluster
    }

    /// Looks every 100 ms, and hears these.
    fn go_on(beats: &mut Beats, cluster: &Cluster, from: u64, to: u64, hear: &[&NodeRef]) {
        for now in (from..=to).step_by(100) {
            beats.observe(at(now), cluster);
            hear.iter()
                .for_each(|node| beats.beat(at(now), node, well()));
        }
    }

    /// To a leader that is never deaf, for nobody has anything yet.
    fn dead(beats: &Beats, now: u64, cluster: &Cluster) -> BTreeSet<NodeRef> {
        let leader = Leader {
            me: 0,
            since: at(0),
            voters: &BTreeSet::new(),
        };
        beats.out(at(now), cluster, leader).dead
    }

    #[test]
    fn a_voter_that_has_just_started_waits_for_a_first_word() {
        let (cluster, mut beats) = (cluster(&["a", "b"]), Beats::default());
        let (a, b) = (node("a", 2), node("b", 3));
        go_on(&mut beats, &cluster, 0, 2_900, &[]);
        assert_eq!(dead(&beats, 2_999, &cluster), [].into());
        let mut late = Beats::default();
        go_on(&mut late, &cluster, 0, 1_000, &[&a]);
        go_on(&mut late, &cluster, 1_100, 1_500, &[]);
        assert_eq!(dead(&late, 1_500, &cluster), [a].into(), "heard once");
        go_on(&mut late, &cluster, 1_600, 3_000, &[]);
        assert!(late.is_dead(at(3_000), &cluster, &b));
    }

    #[test]
    fn half_a_second_of_silence_is_death() {
        let (cluster, mut beats) = (cluster(&["a", "b"]), Beats::default());
        let (a, b) = (node("a", 2), node("b", 3));
        go_on(&mut beats, &cluster, 0, 1_000, &[&a, &b]);
        go_on(&mut beats, &cluster, 1_100, 1_400, &[&a]);
        assert!(!beats.is_dead(at(1_499), &cluster, &b));
        assert_eq!(dead(&beats, 1_500, &cluster), [b.clone()].into());
        beats.beat(at(1_500), &b, well());
        assert_eq!(dead(&beats, 1_500, &cluster), [].into());
    }

    #[test]
    fn a_life_that_was_voided_or_forgotten_is_dead_at_once() {
        let (mut cluster, mut beats) = (cluster(&["a", "b"]), Beats::default());
        let (a, b) = (node("a", 2), node("b", 3));
        go_on(&mut beats, &cluster, 0, 1_000, &[&a, &b]);
        cluster.apply(9, Command::Register(registration("a", 2)));
        cluster.apply(10, Command::Forget(registration("b", 1).raft_id));
        let is_dead = |node| beats.is_dead(at(1_001), &cluster, node);
        assert!(is_dead(&a) && is_dead(&b));
        assert!(!is_dead(&node("a", 9)), "the new one has all its time");
    }

    #[test]
    fn a_voter_that_has_just_begun_or_has_slept_gives_all_their_time() {
        let (cluster, mut beats) = (cluster(&["a"]), Beats::default());
        let a = node("a", 2);
        assert!(!beats.is_dead(at(900), &cluster, &a));
        go_on(&mut beats, &cluster, 1_000, 4_000, &[]);
        assert!(!beats.is_dead(at(3_999), &cluster, &a));
        assert!(beats.is_dead(at(4_000), &cluster, &a));
        assert!(!beats.is_dead(at(9_000), &cluster, &a), "we slept");
        go_on(&mut beats, &cluster, 9_000, 9_400, &[]);
        assert!(!beats.is_dead(at(9_499), &cluster, &a));
        assert!(beats.is_dead(at(9_500), &cluster, &a));
    }

    #[test]
    fn one_that_has_said_that_it_ends_is_dead_at_once_and_its_next_life_is_not() {
        let (mut cluster, mut beats) = (cluster(&["a", "b"]), Beats::default());
        let (a, b) = (node("a", 2), node("b", 3));
        go_on(&mut beats, &cluster, 0, 1_000, &[&a, &b]);
        assert_eq!(beats.cause(&cluster, &a), Cause::Silence);
        beats.leave(&a);
        beats.leave(&node("x", 1));
        assert_eq!(beats.cause(&cluster, &a), Cause::Farewell);
        assert_eq!(dead(&beats, 1_000, &cluster), [a.clone()].into());
        cluster.apply(9, Command::Register(registration("a", 2)));
        assert_eq!(beats.cause(&cluster, &a), Cause::Restart);
        go_on(&mut beats, &cluster, 1_100, 1_200, &[&b]);
        assert_eq!(dead(&beats, 1_200, &cluster), [].into());
    }

    #[test]
    fn one_that_has_just_registered_has_all_its_time() {
        let (mut known, mut beats) = (cluster(&["a"]), Beats::default());
        go_on(&mut beats, &known, 0, 4_000, &[]);
        known.apply(9, Command::Register(registration("b", 1)));
        go_on(&mut beats, &known, 4_100, 4_500, &[]);
        assert!(!beats.is_dead(at(4_599), &known, &node("b", 9)));
        assert!(beats.is_dead(at(4_600), &known, &node("b", 9)));
    }

    #[test]
    fn a_leader_that_hears_no_majority_takes_nobody_for_dead_that_is_only_silent() {
        let (mut cluster, mut beats) = (cluster(&["a", "b", "c"]), Beats::default());
        let (a, b, c) = (node("a", 2), node("b", 3), node("c", 4));
        let id = |name: &str| registration(name, 1).raft_id;
        // While founders register nobody is missed.
        let (known, stranger) = ([id("a")].into(), [id("a"), 7, 8].into());
        assert!(beats.hears_majority(at(0), &cluster, id("a"), &stranger));
        cluster.apply(5, Command::Found(founding(1, 3)));
        let first = Assignment {
            shard: ShardId(0),
            owner: a.clone(),
            under: None,
            version: None,
            how: How::Afresh,
        };
        cluster.apply(6, Command::Assign(vec![first]));
        assert!(beats.hears_majority(at(0), &cluster, id("a"), &known));
        assert!(!beats.hears_majority(at(0), &cluster, id("a"), &stranger));
        let voters = [id("a"), id("b"), id("c")].into();
        let leader = Leader {
            me: id("a"),
            since: at(0),
            voters: &voters,
        };
        let deaf = |beats: &Beats, now| !beats.hears_majority(at(now), &cluster, id("a"), &voters);
        go_on(&mut beats, &cluster, 0, 1_000, &[&a, &b, &c]);
        go_on(&mut beats, &cluster, 1_100, 1_500, &[&a, &b]);
        assert!(!deaf(&beats, 1_500));
        let out = |beats: &Beats, now| beats.out(at(now), &cluster, leader).dead;
        assert_eq!(out(&beats, 1_500), [c.clone()].into());
        go_on(&mut beats, &cluster, 1_600, 2_000, &[&a]);
        assert!(deaf(&beats, 2_000));
        assert_eq!(out(&beats, 2_000), [].into());
        // What was said is believed all the same.
        beats.leave(&b);
        assert_eq!(out(&beats, 2_000), [b].into());
        beats.beat(at(2_000), &c, well());
        assert!(!deaf(&beats, 2_000));
        // Its own beats need not come to it, and who does not vote is not missed.
        let alone = [id("a")].into();
        go_on(&mut beats, &cluster, 2_100, 3_000, &[]);
        assert!(beats.hears_majority(at(3_000), &cluster, id("a"), &alone));
    }

    #[test]
    fn one_that_has_only_just_registered_lets_a_deaf_leader_judge_nobody() {
        let (mut cluster, mut beats) = (cluster(&["a", "b", "c"]), Beats::default());
        let (a, b, c) = (node("a", 2), node("b", 3), node("c", 4));
        cluster.apply(5, Command::Found(founding(1, 3)));
        let first = Assignment {
            shard: ShardId(0),
            owner: b.clone(),
            under: None,
            version: None,
            how: How::Afresh,
        };
        cluster.apply(6, Command::Assign(vec![first]));
        let id = |name: &str| registration(name, 1).raft_id;
        let voters = [id("a"), id("b"), id("c")].into();
        let leader = Leader {
            me: id("a"),
            since: at(0),
            voters: &voters,
        };
        go_on(&mut beats, &cluster, 0, 1_000, &[&a, &b, &c]);
        go_on(&mut beats, &cluster, 1_100, 1_600, &[&a]);
        cluster.apply(9, Command::Register(registration("c", 2)));
        go_on(&mut beats, &cluster, 1_700, 1_700, &[&a]);
        let out = |beats: &Beats| beats.out(at(1_700), &cluster, leader).dead;
        assert_eq!(
            out(&beats),
            [].into(),
            "it is the leader that hears nothing"
        );
        beats.beat(at(1_700), &node("c", 9), well());
        assert_eq!(out(&beats), [b].into());
    }

    #[test]
    fn one_that_has_had_time_for_a_lease_and_has_none_is_unreachable() {
        let (cluster, mut beats) = (cluster(&["a", "b"]), Beats::default());
        let (a, b) = (node("a", 2), node("b", 3));
        let voters = BTreeSet::new();
        let unreachable = |beats: &Beats, now, since| {
            let leader = Leader {
                me: 0,
                since: at(since),
                voters: &voters,
            };
            let out = beats.out(at(now), &cluster, leader);
            assert_eq!(out.dead, [].into());
            out.unreachable
        };
        for now in (0..=1_900).step_by(100) {
            go_on(&mut beats, &cluster, now, now, &[&a]);
            let word = Word {
                has_lease: now < 1_000,
                ..well()
            };
            beats.beat(at(now), &b, word);
        }
        assert_eq!(unreachable(&beats, 1_999, 0), [].into());
        assert_eq!(unreachable(&beats, 2_000, 0), [b.clone()].into());
        assert_eq!(
            unreachable(&beats, 2_000, 1_001),
            [].into(),
            "a new leader waits"
        );
        beats.beat(at(2_000), &b, well());
        assert_eq!(unreachable(&beats, 2_000, 0), [].into());
    }

    #[test]
    fn one_that_another_voter_hears_is_not_dead_and_is_once_nobody_does() {
        let (mut cluster, mut beats) = (cluster(&["a", "b", "c", "d"]), Beats::default());
        let [a, b, c, d] = [("a", 2), ("b", 3), ("c", 4), ("d", 5)].map(|(n, i)| node(n, i));
        cluster.apply(6, Command::Found(founding(1, 3)));
        let id = |name: &str| registration(name, 1).raft_id;
        let voters = [id("a"), id("b"), id("c")].into();
        let leader = Leader {
            me: id("a"),
            since: at(0),
            voters: &voters,
        };
        go_on(&mut beats, &cluster, 0, 1_000, &[&a, &b, &c, &d]);
        let say = |beats: &mut Beats, now, from: &NodeRef, misses: Option<&[RaftId]>| {
            let misses = misses.map(|misses| misses.iter().copied().collect());
            beats.beat(at(now), from, Word { misses, ..well() });
            beats.out(at(now), &cluster, leader)
        };
        let of = |dead: &[&NodeRef], unreachable: &[&NodeRef]| Out {
            dead: dead.iter().copied().cloned().collect(),
            unreachable: unreachable.iter().copied().cloned().collect(),
        };
        go_on(&mut beats, &cluster, 1_100, 1_600, &[&a, &b, &d]);
        assert_eq!(say(&mut beats, 1_600, &b, None), of(&[&c], &[]), "not said");
        assert_eq!(say(&mut beats, 1_600, &b, Some(&[])), of(&[], &[&c]));
        let misses = &[id("c")];
        assert_eq!(say(&mut beats, 1_600, &b, Some(misses)), of(&[&c], &[]));
        // Who does not vote hears nobody's beats.
        say(&mut beats, 1_600, &d, Some(&[]));
        assert_eq!(say(&mut beats, 1_600, &b, Some(misses)), of(&[&c], &[]));
        // What was said a while ago does not count.
        say(&mut beats, 1_600, &b, Some(&[]));
        go_on(&mut beats, &cluster, 1_700, 1_900, &[&a]);
        beats.observe(at(1_950), &cluster);
        let wide = [id("a"), id("d")].into();
        let late = Leader {
            voters: &wide,
            ..leader
        };
        say(&mut beats, 1_950, &d, None);
        assert_eq!(beats.out(at(1_950), &cluster, late), of(&[&c], &[]));
    }

    #[test]
    fn a_voter_misses_whom_it_has_not_heard_for_half_a_second_or_ever() {
        let (cluster, mut beats) = (cluster(&["a", "b", "c"]), Beats::default());
        let (a, b) = (node("a", 2), node("b", 3));
        let id = |name: &str| registration(name, 1).raft_id;
        go_on(&mut beats, &cluster, 0, 1_000, &[&a, &b]);
        assert_eq!(beats.missed(at(1_000), &cluster), [id("c")].into());
        go_on(&mut beats, &cluster, 1_100, 1_500, &[&a]);
        assert_eq!(beats.missed(at(1_499), &cluster), [id("c")].into());
        assert_eq!(beats.missed(at(1_500), &cluster), [id("b"), id("c")].into());
    }
}
