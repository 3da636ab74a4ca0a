//! Going on without a majority that will never be back: the only node that is
//! left decides for itself who votes. Against all rules of Raft, so only an
//! operator can say that it is right: what the others have decided without this
//! node is lost, and if they still run there are two clusters.

use std::collections::BTreeMap;

use openraft::{CommittedLeaderId, EntryPayload, LogId, Membership, Vote};

use super::log::{PURGED, VOTE};
use super::state::{Applied, SNAPSHOT};
use super::store::{Store, StoreError};
use super::{Entry, Peer};
use crate::core::cluster::{Cluster, RaftId};

/// What is in the data directory of the node that is left.
#[derive(Debug)]
pub(crate) struct Left {
    /// All that it knows, also what may never have been decided.
    pub(crate) cluster: Cluster,
    /// Who votes, and where all nodes are, as far as it knows.
    pub(crate) voters: Vec<RaftId>,
    pub(crate) nodes: BTreeMap<RaftId, Peer>,
    /// The last entry of its log.
    pub(crate) last: u64,
    term: u64,
}

impl Left {
    /// Reads; changes nothing. `None`: there is no log yet.
    pub(crate) fn read(store: &Store) -> Result<Option<Self>, StoreError> {
        let applied: Applied = store.get(SNAPSHOT)?.unwrap_or_default();
        let purged: Option<LogId<RaftId>> = store.get(PURGED)?;
        let vote: Option<Vote<RaftId>> = store.get(VOTE)?;
        let mut cluster = applied.cluster;
        let mut membership = applied.membership.membership().clone();
        let mut last = applied.last.max(purged);
        for entry in store.entries::<Entry>(.., usize::MAX)? {
            let is_new = applied.last < Some(entry.log_id);
            last = last.max(Some(entry.log_id));
            match entry.payload {
                EntryPayload::Normal(command) if is_new => {
                    cluster.apply(entry.log_id.index, command);
                }
                EntryPayload::Membership(changed) if is_new => membership = changed,
                _ => {}
            }
        }
        let Some(last) = last else {
            return Ok(None);
        };
        let voted = vote.map_or(0, |vote| vote.leader_id.term);
        let nodes = membership.nodes();
        Ok(Some(Self {
            voters: membership.voter_ids().collect(),
            nodes: nodes.map(|(id, peer)| (*id, peer.clone())).collect(),
            cluster,
            last: last.index,
            term: voted.max(last.leader_id.term),
        }))
    }

    /// From its next start on this node alone votes. It decides what is in its log,
    /// in a term that nobody has voted in.
    pub(crate) fn go_on_alone(&self, store: &Store, me: RaftId) -> Result<(), StoreError> {
        let term = self.term + 1;
        let peer = self.nodes.get(&me).cloned().unwrap_or_default();
        let membership = Membership::new(vec![[me].into()], BTreeMap::from([(me, peer)]));
        let index = self.last + 1;
        let entry = Entry {
            log_id: LogId::new(CommittedLeaderId::new(term, me), index),
            payload: EntryPayload::Membership(membership),
        };
        // First: an entry of a term that is above the vote makes no sense.
        store.put(VOTE, &Vote::new(term, me))?;
        store.append(&[(index, entry)])
    }
}
