//! The one judge of gateway death: every voter's table of what the nodes say.
//! The leader's counts, and what it says is decided through Raft.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::id::{GatewayRef, Incarnation, NodeId, NodeRef};
use proto::time::Timestamp;

use crate::core::cluster::Cluster;
use crate::core::gateways::Silence;

/// Gateways that one entry declares gone at most; the next follows at once.
const GONE_PER_ENTRY: usize = 1_024;
/// How long a report counts. Nodes have to report more often.
pub const REPORT_LASTS: Duration = Duration::from_secs(1);

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Judge {
    reports: BTreeMap<NodeId, Heard>,
}

#[derive(Debug)]
struct Heard {
    at: Timestamp,
    incarnation: Incarnation,
    silent: BTreeSet<GatewayRef>,
}

impl Judge {
    /// A node has said what it hears: only the last that it said counts.
    pub fn report(&mut self, now: Timestamp, from: NodeRef, silence: Silence) {
        let NodeRef { id, incarnation } = from;
        let known = self.reports.get(&id);
        if known.is_some_and(|known| known.incarnation > incarnation) {
            return;
        }
        let silent = if silence.hears_echo {
            silence.gateways
        } else {
            BTreeSet::new()
        };
        let heard = Heard {
            at: now,
            incarnation,
            silent,
        };
        self.reports.insert(id, heard);
    }

    /// Gateways to declare gone: a majority of all members, whether they report
    /// or not, say that they are silent, and none was declared gone before.
    pub fn gone(&mut self, now: Timestamp, cluster: &Cluster) -> Vec<GatewayRef> {
        let members = cluster.members();
        self.reports.retain(|id, heard| {
            let current = members.get(id).map(|member| member.incarnation);
            let passed = current.is_none_or(|current| current > heard.incarnation);
            now.since(heard.at) <= REPORT_LASTS && !passed
        });
        let mut votes: BTreeMap<&GatewayRef, usize> = BTreeMap::new();
        for (id, heard) in &self.reports {
            // One whose registration we have not heard of yet waits.
            if members[id].incarnation == heard.incarnation {
                for gateway in &heard.silent {
                    *votes.entry(gateway).or_default() += 1;
                }
            }
        }
        let majority = members.len() / 2 + 1;
        let silent = votes.into_iter().filter(|(_, votes)| *votes >= majority);
        let silent = silent.map(|(gateway, _)| gateway);
        let new = silent.filter(|gateway| !cluster.gone().contains(gateway));
        new.take(GONE_PER_ENTRY).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cluster::tests::{node, registration};
    use crate::core::cluster::{Command, Registration};

    /// `a` (2), `b` (3) and `w` (4), a witness.
    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        for (at, name) in ["a", "b", "w"].into_iter().enumerate() {
            let registration = Registration {
                witness: name == "w",
                ..registration(name, 1)
            };
            cluster.apply(at as u64 + 2, Command::Register(registration));
        }
        cluster
    }

    fn gateway(incarnation: u64) -> GatewayRef {
        GatewayRef {
            id: "g".parse().unwrap(),
            incarnation: Incarnation(incarnation),
        }
    }

    fn silent() -> Silence {
        Silence {
            hears_echo: true,
            gateways: [gateway(1)].into(),
        }
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp(millis)
    }

    #[test]
    fn a_majority_of_all_members_declares_a_gateway_gone_once() {
        let (mut cluster, mut judge) = (cluster(), Judge::default());
        judge.report(at(0), node("a", 2), silent());
        judge.report(at(1), node("a", 2), silent());
        assert_eq!(judge.gone(at(1), &cluster), [], "one node is no majority");
        judge.report(at(2), node("w", 4), silent());
        assert_eq!(judge.gone(at(2), &cluster), [gateway(1)]);
        cluster.apply(9, Command::GatewaysGone(vec![gateway(1)]));
        assert_eq!(judge.gone(at(2), &cluster), []);
    }

    #[test]
    fn whoever_does_not_hear_itself_says_nothing() {
        let (cluster, mut judge) = (cluster(), Judge::default());
        judge.report(at(0), node("a", 2), silent());
        let deaf = Silence {
            hears_echo: false,
            ..silent()
        };
        judge.report(at(0), node("b", 3), deaf);
        assert_eq!(judge.gone(at(0), &cluster), []);
    }

    #[test]
    fn what_was_said_long_ago_or_taken_back_does_not_count() {
        let (cluster, mut judge) = (cluster(), Judge::default());
        judge.report(at(0), node("a", 2), silent());
        judge.report(at(1_000), node("b", 3), silent());
        assert_eq!(judge.gone(at(1_000), &cluster), [gateway(1)]);
        assert_eq!(judge.gone(at(1_001), &cluster), []);
        judge.report(at(1_001), node("a", 2), silent());
        let hears = Silence {
            gateways: BTreeSet::new(),
            ..silent()
        };
        judge.report(at(1_001), node("b", 3), hears);
        assert_eq!(judge.gone(at(1_001), &cluster), []);
    }

    #[test]
    fn only_members_in_their_present_lives_are_heard() {
        let (mut cluster, mut judge) = (cluster(), Judge::default());
        judge.report(at(0), node("a", 2), silent());
        judge.report(at(0), node("x", 1), silent());
        judge.report(at(0), node("b", 2), silent());
        assert_eq!(judge.gone(at(0), &cluster), []);
        judge.report(at(0), node("b", 9), silent());
        assert_eq!(judge.gone(at(0), &cluster), [], "not yet registered");
        cluster.apply(9, Command::Register(registration("b", 2)));
        assert_eq!(judge.gone(at(0), &cluster), [gateway(1)]);
    }
}
