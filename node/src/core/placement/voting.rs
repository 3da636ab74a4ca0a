//! Who should vote, and who waits in vain to register.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::time::Timestamp;

use crate::core::cluster::{Cluster, RaftId};

/// What the leader sees of the nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Electorate {
    /// Who votes.
    pub voting: BTreeSet<RaftId>,
    /// Who votes or listens.
    pub present: BTreeSet<RaftId>,
    /// Who has nearly all that was decided.
    pub keep_up: BTreeSet<RaftId>,
    /// Whom gossip has given up: what kept up may have died since, without
    /// anything to fall behind.
    pub given_up: BTreeSet<RaftId>,
}

/// Who should vote from now on. `None`: leave it as it is. While the founders
/// have not all registered they vote nevertheless.
pub fn voters(cluster: &Cluster, seen: &Electorate) -> Option<BTreeSet<RaftId>> {
    let founding = cluster.founding()?;
    let registered = cluster.members().values();
    let registered: BTreeSet<RaftId> = registered.map(|m| m.registration.raft_id).collect();
    let members: BTreeSet<RaftId> = registered.intersection(&seen.present).copied().collect();
    if members.len() < usize::from(founding.expect) {
        return None;
    }
    let keep_up = seen.keep_up.difference(&seen.given_up).copied().collect();
    choose(&seen.voting, &members, &keep_up)
}

/// With three members three vote, with five or more five; an even number of
/// voters would survive no more deaths than one fewer.
fn choose(
    voting: &BTreeSet<RaftId>,
    members: &BTreeSet<RaftId>,
    keep_up: &BTreeSet<RaftId>,
) -> Option<BTreeSet<RaftId>> {
    let present: BTreeSet<RaftId> = voting.intersection(members).copied().collect();
    let wanted = match members.len() {
        0..=2 => present.len().max(1),
        3..=4 => 3,
        _ => 5,
    };
    let mut next = present;
    // Those who vote already stay: each change of voters is a risk of its own.
    for candidate in keep_up.intersection(members) {
        if next.len() >= wanted {
            break;
        }
        next.insert(*candidate);
    }
    // Two of two, or four of four, would be worse than what is there.
    let better = next.len() % 2 == 1 || next.len() < voting.len();
    (next != *voting && better && !next.is_empty()).then_some(next)
}

/// How long a node that was let in may take to register.
const REGISTER: Duration = Duration::from_secs(60);

/// Nodes that were let in and have not registered, and since when. One that has
/// lost its directory again, or whose name another has taken meanwhile, would be
/// called for ever.
#[derive(Debug, Default)]
pub struct Unregistered(BTreeMap<RaftId, Timestamp>);

impl Unregistered {
    /// One that has had its time. `listening` are the nodes that do not vote.
    pub fn overdue(
        &mut self,
        cluster: &Cluster,
        listening: &BTreeSet<RaftId>,
        now: Timestamp,
    ) -> Option<RaftId> {
        let registered = cluster.members().values();
        let registered: BTreeSet<RaftId> = registered.map(|m| m.registration.raft_id).collect();
        let unregistered: BTreeSet<RaftId> = listening.difference(&registered).copied().collect();
        self.0.retain(|id, _| unregistered.contains(id));
        for id in unregistered {
            self.0.entry(id).or_insert(now);
        }
        let mut all = self.0.iter();
        all.find(|(_, since)| **since + REGISTER <= now)
            .map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::cluster;
    use super::*;
    use crate::core::cluster::Command;
    use crate::core::cluster::tests::registration;

    #[test]
    fn whoever_was_let_in_and_never_registers_is_struck() {
        let mut unregistered = Unregistered::default();
        let mut cluster = cluster(1, 1, &["a"]);
        let (late, lost) = (registration("b", 1).raft_id, 7);
        let listening = [late, lost].into();
        let now = Timestamp(0);
        assert_eq!(unregistered.overdue(&cluster, &listening, now), None);
        cluster.apply(9, Command::Register(registration("b", 1)));
        let soon = now + REGISTER / 2;
        assert_eq!(unregistered.overdue(&cluster, &listening, soon), None);
        let then = now + REGISTER;
        assert_eq!(unregistered.overdue(&cluster, &listening, then), Some(lost));
        assert_eq!(unregistered.overdue(&cluster, &[late].into(), then), None);
    }

    fn set(ids: &[RaftId]) -> BTreeSet<RaftId> {
        ids.iter().copied().collect()
    }

    #[test]
    fn three_vote_then_five_and_never_an_even_number() {
        for (voting, members, keep_up, next) in [
            (&[1][..], &[1, 2][..], &[1, 2][..], None),
            (&[1], &[1, 2, 3], &[1, 2], None),
            (&[1], &[1, 2, 3], &[1, 2, 3], Some(&[1, 2, 3][..])),
            (&[1, 2, 3], &[1, 2, 3, 4], &[1, 2, 3, 4], None),
            (&[1, 2, 3], &[1, 2, 3, 4, 5], &[1, 2, 3, 4], None),
            (
                &[1, 2, 3],
                &[1, 2, 3, 4, 5],
                &[1, 2, 3, 4, 5],
                Some(&[1, 2, 3, 4, 5]),
            ),
            (&[1, 2, 3], &[1, 2, 4], &[1, 2, 4], Some(&[1, 2, 4])),
            (
                &[1, 2, 3, 4, 5],
                &[1, 2, 3, 4, 5, 6],
                &[1, 2, 3, 4, 5, 6],
                None,
            ),
        ] {
            assert_eq!(
                choose(&set(voting), &set(members), &set(keep_up)),
                next.map(set),
                "{voting:?} {members:?} {keep_up:?}"
            );
        }
    }

    #[test]
    fn who_is_not_registered_or_was_given_up_is_not_made_to_vote() {
        let id = |name: &str| registration(name, 1).raft_id;
        let (a, b, c) = (id("a"), id("b"), id("c"));
        let seen = Electorate {
            voting: set(&[a]),
            present: set(&[a, b, c]),
            keep_up: set(&[a, b, c]),
            given_up: set(&[]),
        };
        let three = cluster(8, 1, &["a", "b", "c"]);
        assert_eq!(voters(&three, &seen), Some(set(&[a, b, c])));
        let given_up = Electorate {
            given_up: set(&[c]),
            ..seen.clone()
        };
        assert_eq!(voters(&three, &given_up), None);
        assert_eq!(voters(&cluster(8, 1, &["a", "b"]), &seen), None);
        // Founders that have not registered yet still vote.
        let founded = Electorate {
            voting: set(&[a, b, c]),
            ..seen
        };
        assert_eq!(voters(&cluster(8, 3, &["a", "b"]), &founded), None);
        assert_eq!(voters(&Cluster::default(), &founded), None);
    }
}
