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
#[derive(Debug)]
pub struct Interest {
    /// Ordered by gateway.
    rows: Vec<Row>,
    /// Those with subscribers, ready to be shared by every publication's
    /// effect: publishing allocates nothing for them.
    recipients: Arc<[GatewayRef]>,
}

#[derive(Debug)]
struct Row {
    gateway: GatewayRef,
    count: u32,
    version: u64,
    removed_at: Option<Timestamp>,
}

/// Whether a change was newer than what was known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is what holds now; also when the same one came again.
    Applied,
    /// A newer one came before it.
    Stale,
}

impl Default for Interest {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            recipients: Arc::new([]),
        }
    }
}

impl Interest {
    /// Sets what a gateway wants: `count` subscribers; zero removes it.
    pub fn set(
        &mut self,
        now: Timestamp,
        gateway: &GatewayRef,
        count: u32,
        version: u64,
    ) -> Change {
        let row = Row {
            gateway: gateway.clone(),
            count,
            version,
            removed_at: (count == 0).then_some(now),
        };
        match self
            .rows
            .binary_search_by(|row| row.gateway.id.cmp(&gateway.id))
        {
            Ok(at) => {
                let known = &self.rows[at];
                if (known.gateway.incarnation, known.version) > (gateway.incarnation, version) {
                    return Change::Stale;
                }
                self.rows[at] = row;
            }
            Err(at) => self.rows.insert(at, row),
        }
        self.refresh();
        Change::Applied
    }

    /// Forgets a gateway's lives before `incarnation`.
    pub fn void(&mut self, gateway: &GatewayId, incarnation: Incarnation) {
        self.retain(|row| row.gateway.id != *gateway || row.gateway.incarnation >= incarnation);
    }

    /// Forgets tombstones that are old enough.
    pub fn expire(&mut self, now: Timestamp) {
        self.retain(|row| row.removed_at.is_none_or(|at| at + TOMBSTONE > now));
    }

    /// When the next tombstone is old enough.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.rows
            .iter()
            .filter_map(|row| row.removed_at)
            .min()
            .map(|at| at + TOMBSTONE)
    }

    /// The gateways that get the channel's publications.
    pub fn recipients(&self) -> &Arc<[GatewayRef]> {
        &self.recipients
    }

    /// Whether nothing is known, not even a tombstone.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn retain(&mut self, keep: impl FnMut(&Row) -> bool) {
        let before = self.rows.len();
        self.rows.retain(keep);
        if self.rows.len() != before {
            self.rows.shrink_to_fit();
            self.refresh();
        }
    }

    fn refresh(&mut self) {
        let wanting = || {
            self.rows
                .iter()
                .filter(|row| row.count > 0)
                .map(|row| &row.gateway)
        };
        if !wanting().eq(self.recipients.iter()) {
            self.recipients = wanting().cloned().collect();
        }
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

    #[test]
    fn a_late_join_does_not_undo_a_leave() {
        let mut interest = Interest::default();
        let g = gateway("g", 1);
        assert_eq!(interest.set(Timestamp(0), &g, 1, 5), Change::Applied);
        assert_eq!(interest.set(Timestamp(1), &g, 0, 6), Change::Applied);
        assert_eq!(interest.set(Timestamp(2), &g, 1, 5), Change::Stale);
        assert!(interest.recipients().is_empty());
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
            Change::Applied
        );
        assert_eq!(
            interest.set(Timestamp(0), &gateway("g", 1), 0, 901),
            Change::Stale
        );
        assert_eq!(interest.recipients()[..], [gateway("g", 2)]);
        interest.void(&"g".parse().unwrap(), Incarnation(3));
        assert!(interest.is_empty() && interest.recipients().is_empty());
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
            prop_assert_eq!(interest.recipients().to_vec(), want);
        }
    }
}
