//! The state machine of `openraft`: keeps [`Cluster`] and shows it to whoever
//! watches. It lives in memory; snapshots and the log bring it back.

use std::io::Cursor;
use std::sync::Arc;

use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::{
    AnyError, EntryPayload, LogId, OptionalSend, RaftSnapshotBuilder, SnapshotMeta, StorageError,
    StorageIOError, StoredMembership,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::store::{Store, StoreError};
use super::{Entry, Peer, Types};
use crate::core::cluster::{Cluster, Outcome, RaftId};
use crate::metrics::RaftMetrics;

pub(super) const SNAPSHOT: &str = "raft-snapshot";

/// What has been applied.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Applied {
    pub(super) last: Option<LogId<RaftId>>,
    pub(super) membership: StoredMembership<RaftId, Peer>,
    pub(super) cluster: Cluster,
}

#[derive(Debug, Clone)]
pub(super) struct State {
    store: Store,
    applied: Applied,
    shown: watch::Sender<Arc<Cluster>>,
    metrics: RaftMetrics,
}

type Result<T> = std::result::Result<T, StorageError<RaftId>>;

fn failed(error: StoreError) -> StorageError<RaftId> {
    StorageIOError::read_state_machine(AnyError::new(&error)).into()
}

impl State {
    /// The state of the last snapshot. `openraft` applies what is committed
    /// after it.
    pub(super) fn open(
        store: Store,
        shown: watch::Sender<Arc<Cluster>>,
        metrics: RaftMetrics,
    ) -> std::result::Result<Self, StoreError> {
        let applied: Applied = store.get(SNAPSHOT)?.unwrap_or_default();
        shown.send_replace(Arc::new(applied.cluster.clone()));
        Ok(Self {
            store,
            applied,
            shown,
            metrics,
        })
    }

    fn measure_snapshot(&self, last: Option<LogId<RaftId>>, bytes: usize) {
        let index = last.map_or(0, |last| last.index as i64);
        self.metrics.snapshot_index.set(index);
        self.metrics.snapshot_bytes.set(bytes as i64);
    }

    fn snapshot(applied: &Applied) -> Snapshot<Types> {
        let bytes = rmp_serde::to_vec(applied).expect("our types always encode into memory");
        let index = applied.last.map_or(0, |last| last.index);
        Snapshot {
            meta: SnapshotMeta {
                last_log_id: applied.last,
                last_membership: applied.membership.clone(),
                snapshot_id: format!("{index}"),
            },
            snapshot: Box::new(Cursor::new(bytes)),
        }
    }
}

impl RaftSnapshotBuilder<Types> for State {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>> {
        let (store, applied) = (self.store.clone(), self.applied.clone());
        let timer = self.metrics.snapshot_duration.start_timer();
        let snapshot = Self::snapshot(&applied);
        let (index, bytes) = (applied.last, snapshot.snapshot.get_ref().len());
        let written = tokio::task::spawn_blocking(move || store.put(SNAPSHOT, &applied)).await;
        match written {
            Ok(written) => written.map_err(failed)?,
            Err(error) => return Err(StorageIOError::write(AnyError::new(&error)).into()),
        }
        timer.observe_duration();
        self.metrics.snapshots_built.inc();
        self.measure_snapshot(index, bytes);
        Ok(snapshot)
    }
}

impl RaftStateMachine<Types> for State {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<RaftId>>, StoredMembership<RaftId, Peer>)> {
        Ok((self.applied.last, self.applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut outcomes = Vec::new();
        for entry in entries {
            let log_id = entry.log_id;
            self.applied.last = Some(log_id);
            outcomes.push(match entry.payload {
                EntryPayload::Blank => Outcome::Done,
                EntryPayload::Normal(command) => self.applied.cluster.apply(log_id.index, command),
                EntryPayload::Membership(membership) => {
                    self.applied.membership = StoredMembership::new(Some(log_id), membership);
                    Outcome::Done
                }
            });
        }
        if *self.shown.borrow().as_ref() != self.applied.cluster {
            self.shown
                .send_replace(Arc::new(self.applied.cluster.clone()));
        }
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<RaftId, Peer>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<()> {
        let bytes = snapshot.into_inner();
        self.measure_snapshot(meta.last_log_id, bytes.len());
        let applied: Applied = rmp_serde::from_slice(&bytes).map_err(|error| {
            StorageIOError::read_snapshot(Some(meta.signature()), AnyError::new(&error))
        })?;
        let (store, kept) = (self.store.clone(), applied.clone());
        match tokio::task::spawn_blocking(move || store.put(SNAPSHOT, &kept)).await {
            Ok(written) => written.map_err(failed)?,
            Err(error) => return Err(StorageIOError::write(AnyError::new(&error)).into()),
        }
        self.metrics.snapshots_installed.inc();
        self.shown.send_replace(Arc::new(applied.cluster.clone()));
        self.applied = applied;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>> {
        let kept: Option<Applied> = self.store.get(SNAPSHOT).map_err(failed)?;
        Ok(kept.as_ref().map(Self::snapshot))
    }
}
