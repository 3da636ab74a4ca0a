//! Which gateways want a channel.
//!
//! Joins and leaves may arrive late or twice, so each carries a version from one
//! counter per gateway incarnation, and the higher one wins. A removal stays as
//! a tombstone until nothing older can still be on its way.

use std::sync::Arc;
use std::time::Duration;

use proto::id::{GatewayId, GatewayRef, Incarnation};
use proto::time::Timestamp;

/// How long a removal is remembered. Longer than any message is delayed.
pub const TOMBSTONE: Duration = Duration::from_secs(30);

/// The gateways of one channel.
#[derive(Debug, Default)]
pub struct Interest {
    /// Ordered by gateway. One piece of memory, which every publication's
    /// effect shares: publishing allocates nothing for its recipients.
    rows: Arc<[Row]>,
}

/// What one gateway has said of a channel.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    gateway: GatewayRef,
    version: u64,
    wish: Wish,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Wish {
    /// It has this many subscribers, at least one.
    Subscribers(u32),
    /// A tombstone.
    Removed(Timestamp),
}

/// The gateways that get a channel's publications; cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipients(Arc<[Row]>);

/// What a change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The gateway gets publications from now on.
    Began,
    /// It gets none from now on.
    Ended,
    /// It gets them, or gets none, as before.
    Same,
    /// Nothing: a newer one came before it.
    Stale,
}

impl Row {
    fn subscribers(&self) -> Option<u32> {
        match self.wish {
            Wish::Subscribers(count) => Some(count),
            Wish::Removed(_) => None,
        }
    }

    fn removed_at(&self) -> Option<Timestamp> {
        match self.wish {
            Wish::Removed(at) => Some(at),
            Wish::Subscribers(_) => None,
        }
    }
}

impl Interest {
    /// Sets what a gateway wants: `count` subscribers; zero removes it. The same
    /// change may come again.
    pub fn set(
        &mut self,
        now: Timestamp,
        gateway: &GatewayRef,
        count: u32,
        version: u64,
    ) -> Change {
        let row = Row {
            gateway: gateway.clone(),
            version,
            wish: match count {
                0 => Wish::Removed(now),
                count => Wish::Subscribers(count),
            },
        };
        let wanted = match self.find(&gateway.id) {
            Ok(at) => {
                let known = &self.rows[at];
                if (known.gateway.incarnation, known.version) > (gateway.incarnation, version) {
                    return Change::Stale;
                }
                let wanted = known.subscribers().is_some();
                Arc::make_mut(&mut self.rows)[at] = row;
                wanted
            }
            Err(at) => {
                let (before, after) = self.rows.split_at(at);
                let (before, after) = (before.iter().cloned(), after.iter().cloned());
                self.rows = before.chain([row]).chain(after).collect();
                false
            }
        };
        match (wanted, count > 0) {
            (false, true) => Change::Began,
            (true, false) => Change::Ended,
            _ => Change::Same,
        }
    }

    /// Forgets a gateway, without a tombstone, if what it last said, under this
    /// incarnation and version, is to go.
    pub fn forget(
        &mut self,
        gateway: &GatewayId,
        goes: impl FnOnce(Incarnation, u64) -> bool,
    ) -> Change {
        let Ok(at) = self.find(gateway) else {
            return Change::Same;
        };
        let row = &self.rows[at];
        if !goes(row.gateway.incarnation, row.version) {
            return Change::Same;
        }
        let wanted = row.subscribers().is_some();
        let (before, after) = (&self.rows[..at], &self.rows[at + 1..]);
        self.rows = before.iter().chain(after).cloned().collect();
        if wanted { Change::Ended } else { Change::Same }
    }

    /// Forgets tombstones that are old enough.
    pub fn expire(&mut self, now: Timestamp) {
        let stays = |row: &&Row| row.removed_at().is_none_or(|at| at + TOMBSTONE > now);
        if !self.rows.iter().all(|row| stays(&row)) {
            self.rows = self.rows.iter().filter(stays).cloned().collect();
        }
    }

    /// When the next tombstone is old enough.
    pub fn expires_at(&self) -> Option<Timestamp> {
        let removed = self.rows.iter().filter_map(Row::removed_at);
        removed.min().map(|at| at + TOMBSTONE)
    }

    /// The gateways that get the channel's publications.
    pub fn recipients(&self) -> Recipients {
        Recipients(Arc::clone(&self.rows))
    }

    /// Those gateways, with how many subscribers they last said to have.
    pub fn followers(&self) -> impl Iterator<Item = (&GatewayRef, u32)> {
        let rows = self.rows.iter();
        rows.filter_map(|row| Some((&row.gateway, row.subscribers()?)))
    }

    /// Whether nothing is known, not even a tombstone.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn find(&self, gateway: &GatewayId) -> Result<usize, usize> {
        self.rows
            .binary_search_by(|row| row.gateway.id.cmp(gateway))
    }
}

impl Recipients {
    /// Each of them once, in order.
    pub fn iter(&self) -> impl Iterator<Item = &GatewayRef> {
        let wanting = |row: &&Row| row.subscribers().is_some();
        self.0.iter().filter(wanting).map(|row| &row.gateway)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gateway(id: &str, incarnation: u64) -> GatewayRef {
        GatewayRef {
            id: id.parse().unwrap(),
            incarnation: Incarnation(incarnation),
        }
    }

    fn recipients(interest: &Interest) -> Vec<GatewayRef> {
        interest.recipients().iter().cloned().collect()
    }

    #[test]
    fn a_late_join_does_not_undo_a_leave() {
        let mut interest = Interest::default();
        let g = gateway("g", 1);
        assert_eq!(interest.set(Timestamp(0), &g, 1, 5), Change::Began);
        assert_eq!(interest.set(Timestamp(0), &g, 2, 5), Change::Same);
        assert_eq!(interest.set(Timestamp(1), &g, 0, 6), Change::Ended);
        assert_eq!(interest.set(Timestamp(2), &g, 1, 5), Change::Stale);
        assert_eq!(recipients(&interest), []);
    }

    #[test]
    fn a_tombstone_goes_after_its_time_and_not_before() {
        let mut interest = Interest::default();
        interest.set(Timestamp(10), &gateway("g", 1), 0, 1);
        let at = interest.expires_at().unwrap();
        assert_eq!(at, Timestamp(10) + TOMBSTONE);
        interest.expire(Timestamp(at.0 - 1));
        assert!(!interest.is_empty());
        interest.expire(at);
        assert!(interest.is_empty());
    }

    #[test]
    fn a_new_incarnation_voids_the_old_one_whatever_its_versions_were() {
        let mut interest = Interest::default();
        interest.set(Timestamp(0), &gateway("g", 1), 1, 900);
        assert_eq!(
            interest.set(Timestamp(0), &gateway("g", 2), 1, 1),
            Change::Same
        );
        assert_eq!(
            interest.set(Timestamp(0), &gateway("g", 1), 0, 901),
            Change::Stale
        );
        assert_eq!(recipients(&interest), [gateway("g", 2)]);
    }

    #[test]
    fn what_is_to_go_goes_and_nothing_else() {
        let mut interest = Interest::default();
        for id in ["a", "b", "c"] {
            interest.set(Timestamp(0), &gateway(id, 2), 1, 7);
        }
        interest.set(Timestamp(0), &gateway("d", 2), 0, 8);
        let mut forget = |id: &str, incarnation, version| {
            interest.forget(&id.parse().unwrap(), |i, v| {
                i < Incarnation(incarnation) || v < version
            })
        };
        assert_eq!(forget("b", 2, 7), Change::Same, "it is as new as that");
        assert_eq!(forget("x", 9, 9), Change::Same, "it is not there");
        assert_eq!(forget("b", 3, 0), Change::Ended);
        assert_eq!(forget("c", 0, 8), Change::Ended);
        assert_eq!(
            forget("d", 0, 9),
            Change::Same,
            "a tombstone goes unnoticed"
        );
        assert_eq!(recipients(&interest), [gateway("a", 2)]);
        assert_eq!(interest.expires_at(), None);
    }

    #[test]
    fn publications_under_way_keep_their_recipients() {
        let mut interest = Interest::default();
        interest.set(Timestamp(0), &gateway("a", 1), 1, 1);
        let under_way = interest.recipients();
        interest.set(Timestamp(0), &gateway("a", 1), 0, 2);
        interest.set(Timestamp(0), &gateway("b", 1), 1, 3);
        assert_eq!(under_way.iter().count(), 1);
        assert_eq!(recipients(&interest), [gateway("b", 1)]);
    }

    /// With 100,000 channels a node needs 370 to 440 bytes for one that two
    /// gateways follow, names and allocator included; 512 is the bar.
    #[test]
    fn a_row_stays_small() {
        assert!(size_of::<Row>() <= 48);
        assert!(size_of::<super::super::channel::Channel>() <= 88);
    }

    proptest! {
        /// In whatever order changes arrive, and however often, the newest of
        /// each gateway holds.
        #[test]
        fn the_newest_change_wins(
            mut changes in prop::collection::vec((0_u8..3, 1_u64..3, 0_u32..3, 1_u64..50), 1..40),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..120),
        ) {
            // One change per version of an incarnation.
            changes.sort_by_key(|(g, incarnation, _, version)| (*g, *incarnation, *version));
            changes.dedup_by_key(|(g, incarnation, _, version)| (*g, *incarnation, *version));
            let mut interest = Interest::default();
            let apply = |interest: &mut Interest, (g, incarnation, count, version): (u8, u64, u32, u64)| {
                interest.set(Timestamp(0), &gateway(&format!("g{g}"), incarnation), count, version);
            };
            for at in &order {
                apply(&mut interest, changes[at.index(changes.len())]);
            }
            for change in changes.iter().rev() {
                apply(&mut interest, *change);
            }
            let mut want = Vec::new();
            for g in 0..3 {
                let newest = changes.iter().filter(|c| c.0 == g).max_by_key(|c| (c.1, c.3));
                if let Some((_, incarnation, count, _)) = newest && *count > 0 {
                    want.push(gateway(&format!("g{g}"), *incarnation));
                }
            }
            prop_assert_eq!(recipients(&interest), want);
        }
    }
}
