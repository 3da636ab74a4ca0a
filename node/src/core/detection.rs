//! Who is dead, which gateway is gone.
//!
//! Every voter listens to the beats of all nodes, so that a new leader need not
//! begin to listen. [`Beats`] may be wrong: who counts as dead lives perhaps, and
//! what makes that safe are the leases. [`judge::Judge`] must agree before a
//! gateway counts as gone, for then its members leave.

pub mod judge;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::id::NodeRef;
use proto::time::Timestamp;

use super::cluster::Cluster;

/// How often a node beats to every voter.
pub const NODE_BEAT: Duration = Duration::from_millis(100);
/// After how much silence a node counts as dead.
pub const NODE_SILENCE: Duration = Duration::from_millis(500);
/// For how long after its start a voter does not take for dead of whom it has
/// heard nothing yet: others have to notice first that it is there again.
const FIRST_WORD: Duration = Duration::from_secs(3);
/// A voter that has not looked at its table for this long has slept, or nearly:
/// then the silence may have been its own.
const SLEPT: Duration = Duration::from_millis(250);

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
#[derive(Debug, Clone, Copy)]
struct Heard {
    /// When it was heard of last, or became a member.
    at: Timestamp,
    /// Whether it has ever beaten.
    once: bool,
}

impl Beats {
    /// A node has beaten.
    pub fn beat(&mut self, now: Timestamp, from: &NodeRef) {
        // Who is no member, or not yet known to be one, is not remembered: it
        // has all its time from when it is.
        if let Some(heard) = self.heard.get_mut(from) {
            heard.at = now.max(heard.at);
            heard.once = true;
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
                };
                let heard = before.get(&node).copied().unwrap_or(new);
                (node, heard)
            })
            .collect();
        self.left.retain(|node| self.heard.contains_key(node));
    }

    /// Whether a life counts as dead: a later one has registered, it is no
    /// member, it has said that it ends, or it is silent.
    pub fn is_dead(&self, now: Timestamp, cluster: &Cluster, node: &NodeRef) -> bool {
        if !cluster.is_living(node) || self.left.contains(node) {
            return true;
        }
        let (Some(heard), Some(since)) = (self.heard.get(node), self.since) else {
            return false;
        };
        // Between two looks it may be us who slept.
        let awake = self.observed.is_some_and(|at| now.since(at) < SLEPT);
        let is_young = self.began.is_some_and(|at| now.since(at) < FIRST_WORD);
        let may_be_late = is_young && !heard.once;
        awake && !may_be_late && now.since(since.max(heard.at)) >= NODE_SILENCE
    }

    /// All that count as dead and matter: members, owners and standbys.
    pub fn dead(&self, now: Timestamp, cluster: &Cluster) -> BTreeSet<NodeRef> {
        let silent = self.heard.keys().cloned();
        let rows = cluster.rows().iter().flatten();
        let named = rows.flat_map(|row| {
            let standbys = row.standbys.iter().map(|standby| &standby.node);
            standbys.chain([&row.owner])
        });
        let named: BTreeSet<NodeRef> = named.cloned().collect();
        let all = silent.chain(named);
        all.filter(|node| self.is_dead(now, cluster, node))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cluster::Command;
    use crate::core::cluster::tests::{node, registration};

    fn at(millis: u64) -> Timestamp {
        Timestamp(millis)
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
            hear.iter().for_each(|node| beats.beat(at(now), node));
        }
    }

    #[test]
    fn a_voter_that_has_just_started_waits_for_a_first_word() {
        let (cluster, mut beats) = (cluster(&["a", "b"]), Beats::default());
        let (a, b) = (node("a", 2), node("b", 3));
        go_on(&mut beats, &cluster, 0, 2_900, &[]);
        assert_eq!(beats.dead(at(2_999), &cluster), [].into());
        let mut late = Beats::default();
        go_on(&mut late, &cluster, 0, 1_000, &[&a]);
        go_on(&mut late, &cluster, 1_100, 1_500, &[]);
        assert_eq!(late.dead(at(1_500), &cluster), [a].into(), "heard once");
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
        assert_eq!(beats.dead(at(1_500), &cluster), [b.clone()].into());
        beats.beat(at(1_500), &b);
        assert_eq!(beats.dead(at(1_500), &cluster), [].into());
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
        beats.leave(&a);
        beats.leave(&node("x", 1));
        assert_eq!(beats.dead(at(1_000), &cluster), [a.clone()].into());
        cluster.apply(9, Command::Register(registration("a", 2)));
        go_on(&mut beats, &cluster, 1_100, 1_200, &[&b]);
        assert_eq!(beats.dead(at(1_200), &cluster), [].into());
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
}
