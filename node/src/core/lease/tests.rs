use super::*;
use crate::core::cluster::tests::{node, registration};
use crate::core::cluster::{Cluster, Command};
use proptest::prelude::*;
use proto::id::NodeRef;

/// `a` (2) and `b` (3).
fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    cluster.apply(2, Command::Register(registration("a", 1)));
    cluster.apply(3, Command::Register(registration("b", 1)));
    cluster
}

fn at(millis: u64) -> Timestamp {
    Timestamp(millis)
}

/// A round that begins and ends now.
fn round(table: &mut LeaseTable, now: u64, read_index: u64) -> Vec<Grant> {
    assert!(table.begin_round(at(now)));
    table.round_ended(Some(read_index), &cluster())
}

fn grant(node: NodeRef, renewal: u64, applied: u64) -> Grant {
    Grant {
        node,
        renewal,
        applied,
    }
}

#[test]
fn the_holder_counts_from_when_it_asked() {
    let mut lease = NodeLease::default();
    assert!(!lease.holds(at(0), 9));
    let renewal = lease.renew(at(100));
    lease.granted(renewal, 7);
    assert!(lease.holds(at(3_099), 7));
    assert!(!lease.holds(at(3_100), 7));
    assert!(!lease.holds(at(200), 6), "it has not applied enough");
}

#[test]
fn no_answer_shortens_a_lease_or_lengthens_it_beyond_its_own_renewal() {
    let mut lease = NodeLease::default();
    let (first, second) = (lease.renew(at(0)), lease.renew(at(1_000)));
    lease.granted(second, 7);
    lease.granted(first, 5);
    assert_eq!(lease.until(7), Some(at(4_000)));
    assert_eq!(lease.until(5), Some(at(3_000)));
    let third = lease.renew(at(2_000));
    lease.granted(third, 90);
    assert_eq!(lease.until(7), Some(at(4_000)), "that one still lasts");
    assert_eq!(lease.until(90), Some(at(5_000)));
    lease.granted(77, 0);
    assert_eq!(lease.until(90), Some(at(5_000)), "never asked");
}

#[test]
fn a_renewal_is_granted_by_a_round_that_began_after_it_arrived() {
    let mut table = LeaseTable::default();
    table.asked(at(0), node("a", 2), 1);
    assert!(!table.begin_round(at(0)), "it does not lead");
    table.elected(at(0));
    assert!(!table.begin_round(at(0)), "nobody asks");
    table.asked(at(0), node("a", 2), 1);
    assert!(table.begin_round(at(10)));
    table.asked(at(11), node("b", 3), 4);
    assert!(!table.begin_round(at(200)), "one at a time");
    let grants = table.round_ended(Some(6), &cluster());
    assert_eq!(grants, [grant(node("a", 2), 1, 6)]);
    assert!(!table.begin_round(at(109)), "one per tick");
    assert!(table.begin_round(at(110)));
    assert_eq!(table.round_ended(None, &cluster()), [], "it failed");
    assert!(!table.begin_round(at(300)), "they have to ask again");
}

#[test]
fn a_life_that_was_voided_gets_no_lease() {
    let mut table = LeaseTable::default();
    table.elected(at(0));
    table.asked(at(0), node("a", 1), 9);
    table.asked(at(0), node("x", 1), 9);
    assert_eq!(round(&mut table, 0, 5), []);
}

#[test]
fn the_leader_counts_from_receipt_and_longer() {
    let mut table = LeaseTable::default();
    table.elected(at(0));
    table.asked(at(5_000), node("a", 2), 1);
    table.asked(at(5_001), node("a", 2), 1);
    round(&mut table, 5_400, 6);
    assert!(!table.lapsed(at(8_049), &node("a", 2)));
    assert!(table.lapsed(at(8_050), &node("a", 2)));
    assert!(table.lapsed(at(5_401), &node("b", 3)));
    assert!(table.lapsed_unless_told(at(5_401), &node("a", 2), 6));
    assert!(!table.lapsed_unless_told(at(5_401), &node("a", 2), 7));
}

#[test]
fn a_new_leader_treats_every_lease_as_just_granted() {
    let mut table = LeaseTable::default();
    assert!(!table.lapsed(at(9_000), &node("a", 2)), "it does not lead");
    table.elected(at(100));
    for node in [node("a", 2), node("forgotten", 1)] {
        assert!(!table.lapsed_unless_told(at(3_149), &node, 0));
        assert!(table.lapsed(at(3_150), &node));
    }
}

#[test]
fn whoever_is_withheld_gets_nothing_until_a_round_that_tells_it() {
    let mut table = LeaseTable::default();
    table.elected(at(0));
    table.asked(at(0), node("a", 2), 1);
    assert!(table.begin_round(at(0)));
    table.stop_granting([&node("a", 2)]);
    // The decision is applied before the round ends that knew nothing of it.
    table.grant_again([&node("a", 2)]);
    assert_eq!(table.round_ended(Some(5), &cluster()), []);
    table.stop_granting([&node("a", 2)]);
    table.asked(at(100), node("a", 2), 2);
    assert!(!table.begin_round(at(100)));
    table.grant_again([&node("a", 2)]);
    assert_eq!(round(&mut table, 200, 8), [grant(node("a", 2), 2, 8)]);
}

#[test]
fn a_pair_lease_lasts_from_what_was_echoed() {
    let mut lease = PairLease::new(at(1_000));
    assert!(!lease.holds(at(1_000)));
    assert!(!lease.is_lost(at(1_399)) && lease.is_lost(at(1_400)));
    lease.echo(at(1_060), at(1_050));
    lease.echo(at(1_061), at(1_000));
    lease.echo(at(1_062), at(9_000));
    assert!(lease.holds(at(1_349)) && !lease.holds(at(1_350)));
    assert!(!lease.is_lost(at(1_449)) && lease.is_lost(at(1_450)));
    assert_eq!(may_serve_from(at(10)), at(318));
}

proptest! {
    /// Whatever is lost or late, and with clocks that run differently: when the
    /// leader says that a life's leases are over, the holder says so too. Time
    /// goes in hundredths of a millisecond; the holder's clock is slower.
    #[test]
    fn the_holder_ends_first(
        slow in 0_u64..=1,
        steps in prop::collection::vec((0_u64..400, 0_u8..5), 1..200),
    ) {
        let (mut lease, mut table) = (NodeLease::default(), LeaseTable::default());
        let (cluster, a) = (cluster(), node("a", 2));
        let mut now = 10_000;
        table.elected(at(now));
        let (mut asked, mut grants) = (Vec::new(), Vec::new());
        for (wait, what) in steps {
            now += wait;
            let holder = at(now * (100 - slow) / 100);
            match what {
                0 => asked.push(lease.renew(holder)),
                1 => asked.drain(..).for_each(|r| table.asked(at(now), a.clone(), r)),
                2 => drop(table.begin_round(at(now))),
                3 => grants.extend(table.round_ended(Some(now), &cluster)),
                _ => grants.drain(..).for_each(|g| lease.granted(g.renewal, g.applied)),
            }
            if table.lapsed(at(now), &a) {
                prop_assert!(!lease.holds(holder, u64::MAX));
            }
            for told in [10_000, now / 2, now] {
                if table.lapsed_unless_told(at(now), &a, told) {
                    prop_assert!(!lease.holds(holder, told - 1));
                }
            }
        }
    }
}
