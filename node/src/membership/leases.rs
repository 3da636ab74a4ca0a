//! Node leases: asking the leader for one, and granting them as the leader.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::id::NodeRef;
use proto::time::Timestamp;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, timeout};

use crate::core::cluster::Cluster;
use crate::core::lease::{Grant, LeaseTable};
use crate::raft::Consensus;

/// How soon a quorum round may begin after a renewal has come.
const TICK: Duration = Duration::from_millis(20);
/// How long a quorum round may take.
const ROUND: Duration = Duration::from_secs(1);
/// After how long without a quorum round that was to be that is said, and how
/// often.
const COMPLAIN: Duration = Duration::from_secs(1);
/// Nodes that wait for a round at most: far more than a cluster has.
const WAITING_MAX: usize = 4_096;

/// The leases that this node has granted as the leader.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<Granting>);

#[derive(Debug, Default)]
struct Granting {
    /// In which this node leads.
    term: Option<u64>,
    table: LeaseTable,
    waiting: BTreeMap<(NodeRef, u64), oneshot::Sender<Grant>>,
}

impl Leases {
    /// This node leads in this term, or does not lead.
    fn observe(&self, term: Option<u64>) {
        let mut granting = self.granting();
        if granting.term == term {
            return;
        }
        granting.term = term;
        granting.waiting.clear();
        match term {
            Some(_) => granting.table.elected(Timestamp::now()),
            None => granting.table.deposed(),
        }
    }

    /// A renewal has come; the grant, if there will be one.
    pub(super) fn ask(&self, node: NodeRef, renewal: u64) -> Option<oneshot::Receiver<Grant>> {
        let mut granting = self.granting();
        granting.waiting.retain(|_, asker| !asker.is_closed());
        if granting.term.is_none() || granting.waiting.len() >= WAITING_MAX {
            return None;
        }
        let (grant, granted) = oneshot::channel();
        granting
            .table
            .asked(Timestamp::now(), node.clone(), renewal);
        granting.waiting.insert((node, renewal), grant);
        Some(granted)
    }

    /// Looks at the table, or withholds leases, as the leader of this term: what
    /// was granted in another says nothing of who has a lease now.
    pub(super) fn in_term<T>(&self, term: u64, look: impl FnOnce(&mut LeaseTable) -> T) -> T {
        self.observe(Some(term));
        look(&mut self.granting().table)
    }

    /// Grants, for as long as this node leads and whenever it does.
    pub(super) async fn grant(&self, consensus: &Consensus) -> Infallible {
        let cluster = consensus.cluster();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut since: Option<Instant> = None;
        loop {
            tick.tick().await;
            let standing = consensus.standing();
            self.observe(standing.leads.then_some(standing.term));
            let begins = self.granting().table.begin_round(Timestamp::now());
            if !begins {
                continue;
            }
            let read_index = timeout(ROUND, consensus.read_index()).await;
            let agreed = Arc::clone(&cluster.borrow());
            // Deposed meanwhile, and perhaps elected again: another round.
            let now_standing = consensus.standing();
            let is_same = now_standing.leads && now_standing.term == standing.term;
            let read_index = read_index.ok().flatten().filter(|_| is_same);
            if read_index.is_some() || !now_standing.leads {
                since = None;
            } else if since.get_or_insert_with(Instant::now).elapsed() >= COMPLAIN {
                since = None;
                tracing::warn!(
                    term = standing.term,
                    "a majority of the voters has not confirmed for {COMPLAIN:?} that this node leads; nobody gets a lease from it"
                );
            }
            self.end_round(read_index, &agreed);
        }
    }

    fn end_round(&self, read_index: Option<u64>, cluster: &Cluster) {
        let mut granting = self.granting();
        for grant in granting.table.round_ended(read_index, cluster) {
            let asker = (grant.node.clone(), grant.renewal);
            if let Some(asker) = granting.waiting.remove(&asker) {
                // It may have given up.
                let _ = asker.send(grant);
            }
        }
        granting.table.tidy(Timestamp::now(), cluster);
    }

    fn granting(&self) -> MutexGuard<'_, Granting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use proto::id::Incarnation;

    #[test]
    fn what_was_known_in_one_term_is_nothing_in_the_next() {
        let leases = Leases::default();
        let node = NodeRef {
            id: "n".parse().unwrap(),
            incarnation: Incarnation(1),
        };
        assert!(leases.ask(node.clone(), 1).is_none(), "it does not lead");
        let later = Timestamp::now() + Duration::from_secs(60);
        let lapsed = |term, now| leases.in_term(term, |table| table.lapsed(now, &node));
        assert!(lapsed(1, later));
        let granted = leases.ask(node.clone(), 2).expect("it leads");
        leases.in_term(1, |table| table.stop_granting([&node]));
        // Elected anew, without having noticed that it was deposed.
        assert!(!lapsed(2, Timestamp::now()), "others may have granted");
        assert!(leases.in_term(2, |table| table.withheld().is_empty()));
        assert!(granted.now_or_never().expect("told").is_err());
    }
}
