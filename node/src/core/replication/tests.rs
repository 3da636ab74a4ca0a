use std::collections::BTreeSet;

use proptest::prelude::*;
use proto::id::Incarnation;

use super::*;

fn node(number: u8) -> NodeRef {
    NodeRef {
        id: format!("n{number}").parse().unwrap(),
        incarnation: Incarnation(1),
    }
}

/// An owner that is told whom it should have, while its standbys and the agreement
/// come along when they like.
#[derive(Default)]
struct Owner {
    replication: Replication,
    now: u64,
}

impl Owner {
    fn want(&mut self, wanted: &BTreeSet<u8>) {
        let nodes: Vec<NodeRef> = wanted.iter().copied().map(node).collect();
        let wanted: Vec<&NodeRef> = nodes.iter().collect();
        for new in self.replication.want(&wanted) {
            self.replication.recruit(new.clone(), Vec::new());
        }
        self.replication.fill(|_| None::<Option<Record>>);
    }

    /// All standbys have everything that they were sent.
    fn confirm(&mut self) {
        let sent = self.replication.peers.iter();
        let sent: Vec<_> = sent.map(|p| (p.node.clone(), p.fill, p.sent)).collect();
        for (node, fill, sent) in sent {
            self.replication.confirmed(&node, fill, sent);
        }
    }

    /// What it proposes is agreed.
    fn agree(&mut self) {
        self.now += 1_000;
        let now = Timestamp(self.now);
        let Some(Effect::Propose(proposal)) = self.replication.propose(now, ShardId(0), Fence(1))
        else {
            return;
        };
        self.replication.agreed(Row {
            version: proposal.version + 1,
            in_sync: proposal.in_sync,
            has_earlier: false,
        });
    }

    fn standbys(&self) -> BTreeSet<NodeRef> {
        let standbys = self.replication.standbys();
        standbys.map(|(node, _)| node.clone()).collect()
    }

    fn settle(&mut self, wanted: &BTreeSet<u8>) {
        for _ in 0..6 {
            self.want(wanted);
            self.confirm();
            self.agree();
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Want(BTreeSet<u8>),
    Confirm,
    Agree,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let want = prop::collection::btree_set(0..4u8, 1..=2);
    let step = prop_oneof![
        want.prop_map(Step::Want),
        Just(Step::Confirm),
        Just(Step::Agree)
    ];
    prop::collection::vec(step, 0..24)
}

proptest! {
    #[test]
    fn whoever_is_wanted_for_long_stands_by_at_last_and_nobody_else(
        steps in steps(),
        wanted in prop::collection::btree_set(0..4u8, 1..=2),
    ) {
        let mut owner = Owner::default();
        for step in steps {
            let was_in_sync = !owner.replication.row.in_sync.is_empty();
            match step {
                Step::Want(wanted) => owner.want(&wanted),
                Step::Confirm => owner.confirm(),
                Step::Agree => owner.agree(),
            }
            let is_in_sync = !owner.replication.row.in_sync.is_empty();
            prop_assert!(is_in_sync || !was_in_sync, "nobody is silent");
        }
        owner.settle(&wanted);
        let nodes: BTreeSet<NodeRef> = wanted.into_iter().map(node).collect();
        prop_assert_eq!(&owner.standbys(), &nodes);
        let in_sync: BTreeSet<NodeRef> = owner.replication.row.in_sync.into_iter().collect();
        prop_assert_eq!(in_sync, nodes);
    }
}

#[test]
fn what_waits_for_a_lease_does_not_age_while_it_does() {
    let mut replication = Replication::default();
    let gate = |replication: &mut Replication, now: u64, until: u64, decided: usize| {
        let leases = Leases {
            node: Timestamp(until),
            ..Leases::unlimited()
        };
        let mut effects = vec![Effect::Converged(Duration::ZERO); decided];
        let place = (ShardId(0), Fence(1));
        replication.gate(Timestamp(now), place, &leases, 0, &mut effects);
        effects.len()
    };
    let clock = |replication: &Replication, now: u64| replication.clock(Timestamp(now)).0;
    assert_eq!(gate(&mut replication, 1_000, 5_000, 1), 1);
    assert_eq!(clock(&replication, 1_000), 1_000);
    assert_eq!(gate(&mut replication, 6_000, 5_000, 1), 0, "it waits");
    // Confirmations take a moment, always: that counts for nothing.
    assert_eq!(clock(&replication, 6_300), 6_300);
    assert_eq!(clock(&replication, 9_000), 6_300);
    assert_eq!(gate(&mut replication, 9_000, 20_000, 0), 1);
    assert_eq!(clock(&replication, 9_000), 6_300);
    assert_eq!(clock(&replication, 10_000), 7_300);
}
