//! The log of `openraft` in the [`Store`].

use std::fmt::Debug;
use std::ops::RangeBounds;

use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{AnyError, LogId, OptionalSend, RaftLogReader, StorageError, StorageIOError, Vote};

use super::store::{Store, StoreError};
use super::{Entry, Types};
use crate::core::cluster::RaftId;
use crate::metrics::RaftMetrics;

/// Bytes of entries that are read at a time to be sent to another node.
/// `openraft` gives a message up after a heartbeat's time, reads the entries again
/// and tries again, as often as it takes: with as many as are missing, a leader
/// whose machine is busy would do nothing else, and nothing would ever arrive.
const APPEND_BYTES: usize = 64 * 1_024;

pub(super) const VOTE: &str = "raft-vote";
const COMMITTED: &str = "raft-committed";
pub(super) const PURGED: &str = "raft-purged";

/// Clones are the same log.
#[derive(Debug, Clone)]
pub(super) struct Log {
    pub(super) store: Store,
    /// Whose log it is.
    pub(super) me: RaftId,
    pub(super) metrics: RaftMetrics,
}

type Result<T> = std::result::Result<T, StorageError<RaftId>>;

fn read_failed(error: StoreError) -> StorageError<RaftId> {
    StorageIOError::read_logs(AnyError::new(&error)).into()
}

fn write_failed(error: StoreError) -> StorageError<RaftId> {
    StorageIOError::write_logs(AnyError::new(&error)).into()
}

fn index_of(entry: Option<LogId<RaftId>>) -> i64 {
    entry.map_or(0, |entry| entry.index as i64)
}

impl Log {
    /// Writes beside the runtime: a write waits for the disk.
    async fn write(
        &self,
        write: impl FnOnce(&Store) -> std::result::Result<(), StoreError> + Send + 'static,
    ) -> Result<()> {
        let store = self.store.clone();
        let timer = self.metrics.fsync_duration.start_timer();
        let written = tokio::task::spawn_blocking(move || write(&store)).await;
        timer.observe_duration();
        match written {
            Ok(written) => written.map_err(write_failed),
            Err(error) => Err(StorageIOError::write_logs(AnyError::new(&error)).into()),
        }
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>> {
        self.store.entries(range, usize::MAX).map_err(read_failed)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>> {
        self.store
            .entries(start..end, APPEND_BYTES)
            .map_err(read_failed)
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>> {
        let purged: Option<LogId<RaftId>> = self.store.get(PURGED).map_err(read_failed)?;
        let last: Option<Entry> = self.store.last().map_err(read_failed)?;
        Ok(LogState {
            last_purged_log_id: purged,
            last_log_id: last.map(|entry| entry.log_id).or(purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<RaftId>) -> Result<()> {
        let vote = *vote;
        self.write(move |store| store.put(VOTE, &vote)).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<RaftId>>> {
        let vote: Option<Vote<RaftId>> = self.store.get(VOTE).map_err(read_failed)?;
        // Asked for at the start only. Whoever led when it ended begins as a
        // follower, as in the Raft paper (5.2); `openraft` would have it lead on,
        // while others may have begun to elect another.
        Ok(vote.map(|vote| Vote {
            committed: vote.committed && vote.leader_id.voted_for() != Some(self.me),
            ..vote
        }))
    }

    async fn save_committed(&mut self, committed: Option<LogId<RaftId>>) -> Result<()> {
        self.metrics.commit.set(index_of(committed));
        self.write(move |store| match committed {
            Some(committed) => store.put(COMMITTED, &committed),
            None => store.remove(COMMITTED),
        })
        .await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId<RaftId>>> {
        let committed = self.store.get(COMMITTED).map_err(read_failed)?;
        self.metrics.commit.set(index_of(committed));
        Ok(committed)
    }

    /// Entries are on disk, so readable and durable, before this returns.
    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<(u64, Entry)> = entries
            .into_iter()
            .map(|entry| (entry.log_id.index, entry))
            .collect();
        self.write(move |store| store.append(&entries)).await?;
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId<RaftId>) -> Result<()> {
        self.write(move |store| store.cut::<()>(log_id.index.., None))
            .await
    }

    async fn purge(&mut self, log_id: LogId<RaftId>) -> Result<()> {
        self.write(move |store| store.cut(..=log_id.index, Some((PURGED, &log_id))))
            .await
    }
}

#[cfg(test)]
mod tests {
    use openraft::{CommittedLeaderId, EntryPayload};
    use proto::id::{Incarnation, NodeRef};
    use proto::shard::{Fence, ShardId};

    use super::*;
    use crate::core::cluster::{Command, ReplicaSet};
    use crate::raft::store::tests::Scratch;

    fn log(scratch: &Scratch) -> Log {
        let metrics = RaftMetrics::register(&prometheus::Registry::new()).unwrap();
        Log {
            store: Store::open(&scratch.0).unwrap(),
            me: 1,
            metrics,
        }
    }

    fn entry(index: u64, sets: usize) -> Entry {
        let set = ReplicaSet {
            shard: ShardId(1),
            owner: NodeRef {
                id: "owner".parse().unwrap(),
                incarnation: Incarnation(1),
            },
            fence: Fence(1),
            version: 1,
            standbys: Vec::new(),
        };
        Entry {
            log_id: LogId::new(CommittedLeaderId::new(1, 1), index),
            payload: EntryPayload::Normal(Command::Replicas(vec![set; sets])),
        }
    }

    #[tokio::test]
    async fn a_follower_that_is_far_behind_is_sent_what_can_be_taken_in_time() {
        let scratch = Scratch::new("log-limits");
        let mut log = log(&scratch);
        let small = (1..=50).map(|index| (index, entry(index, 1)));
        let large = (51..=100).map(|index| (index, entry(index, 1_024)));
        let all: Vec<(u64, Entry)> = small.chain(large).collect();
        log.store.append(&all).unwrap();
        let whole = log.try_get_log_entries(1..101).await.unwrap();
        assert_eq!(whole.len(), 100, "to be applied");
        let sent = log.limited_get_log_entries(1, 51).await.unwrap();
        assert_eq!(sent.len(), 50);
        let bytes = rmp_serde::to_vec(&whole[50]).unwrap().len();
        let few = (APPEND_BYTES / bytes).max(1);
        let sent = log.limited_get_log_entries(51, 101).await.unwrap();
        assert!((1..=few).contains(&sent.len()), "{} of {few}", sent.len());
        assert_eq!(sent[0].log_id.index, 51);
    }

    #[tokio::test]
    async fn whoever_led_when_it_ended_begins_as_a_follower() {
        let scratch = Scratch::new("log-vote");
        let mut log = log(&scratch);
        for (vote, expected) in [
            (Vote::new_committed(7, 1), Vote::new(7, 1)),
            (Vote::new_committed(7, 2), Vote::new_committed(7, 2)),
            (Vote::new(8, 1), Vote::new(8, 1)),
        ] {
            log.save_vote(&vote).await.unwrap();
            assert_eq!(log.read_vote().await.unwrap(), Some(expected));
        }
    }
}
