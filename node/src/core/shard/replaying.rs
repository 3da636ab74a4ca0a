//! A shard at its standby, and on its way there.

use std::collections::HashSet;
use std::iter;
use std::sync::Arc;

use proto::channel::ChannelKey;
use proto::id::{GatewayRef, NodeRef};
use proto::message::{Cached, Published};
use proto::namespace::Standby;
use proto::position::{Epoch, Position};
use proto::publication::Publication;
use proto::time::Timestamp;

use super::{Channel, PublishTable, Shard, Tenure};
use crate::core::idempotency;
use crate::core::record::{
    Begin, ChannelPiece, Held, Performed, PresencePiece, Record, TombstonePiece,
};
use crate::core::roster::Roster;
use crate::core::tombstones::Stood;

/// Keys, or tombstones, in one piece.
const PIECES: usize = 1_024;

impl Shard {
    /// Makes a node a standby: it gets the state, and from now on all that
    /// changes.
    pub(super) fn recruit(&mut self, now: Timestamp, node: NodeRef) {
        let replicated = self
            .channels
            .iter()
            .filter(|(_, channel)| !channel.is_alone);
        let mut channels: Vec<ChannelKey> = replicated.map(|(key, _)| key.clone()).collect();
        // The last is sent first.
        channels.sort_unstable_by(|a, b| b.cmp(a));
        let head = self.head(now, |stone| !stone.is_alone);
        let Some(peer) = self.replication.recruit(node, channels) else {
            return;
        };
        for record in head {
            peer.push(record);
        }
        self.fill(now);
    }

    /// The whole state, as a standby is sent it.
    pub fn checkpoint(&self, now: Timestamp) -> Vec<Record> {
        let mut records = self.head(now, |_| true);
        let mut channels: Vec<(&ChannelKey, &Channel)> = self.channels.iter().collect();
        channels.sort_unstable_by_key(|(key, _)| *key);
        let clock = self.replication.clock(now);
        for (key, channel) in channels {
            let piece = channel.piece(clock, key.clone());
            records.extend(pieces(
                piece,
                self.rosters.get(key),
                self.caches.get(now, key),
            ));
        }
        records.push(Record::Whole);
        records
    }

    /// What no standby has, as the next owner is sent it.
    pub(super) fn alone(&self, now: Timestamp) -> Vec<Record> {
        let mut records = self.stones(now, |stone| stone.is_alone);
        let alone = self.channels.iter().filter(|(_, channel)| channel.is_alone);
        let mut alone: Vec<(&ChannelKey, &Channel)> = alone.collect();
        alone.sort_unstable_by_key(|(key, _)| *key);
        let clock = self.replication.clock(now);
        for (key, channel) in alone {
            let piece = channel.repairable_piece(clock, key.clone());
            records.extend(pieces(
                piece,
                self.rosters.get(key),
                self.caches.get(now, key),
            ));
        }
        records
    }

    fn stones(&self, now: Timestamp, goes: impl Fn(&TombstonePiece) -> bool) -> Vec<Record> {
        let stones: Vec<_> = self.tombstones.pieces(now).filter(goes).collect();
        let stones = stones.chunks(PIECES);
        stones
            .map(|piece| Record::Tombstones(piece.to_vec()))
            .collect()
    }

    /// The state but for its channels, with some of the tombstones.
    fn head(&self, now: Timestamp, goes: impl Fn(&TombstonePiece) -> bool) -> Vec<Record> {
        let mut tables: Vec<_> = self
            .gateways
            .values()
            .filter_map(|gateway| Some((gateway.me.clone(), gateway.publishes.as_ref()?)))
            .chain(self.silent.iter().map(|(me, table)| (me.clone(), table)))
            .map(|(me, table)| {
                let (next, results) = table.piece();
                (me, next, results)
            })
            .collect();
        tables.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let mut head = vec![Record::Begin(Begin {
            forgetful: self.tombstones.is_forgetful(),
            tables,
        })];
        let keys: Vec<_> = self.keys.pieces(now).collect();
        head.extend(
            keys.chunks(PIECES)
                .map(|piece| Record::Keys(piece.to_vec())),
        );
        head.extend(self.stones(now, goes));
        head
    }

    /// Sends those who are being filled the next channels, as far as they have
    /// confirmed those before.
    pub(super) fn fill(&mut self, now: Timestamp) {
        let (channels, rosters, caches) = (&self.channels, &self.rosters, &self.caches);
        let clock = self.replication.clock(now);
        self.replication.fill(|key| {
            let channel = channels.get(key)?;
            let piece = channel.piece(clock, key.clone());
            Some(pieces(piece, rosters.get(key), caches.get(now, key)))
        });
    }

    /// Applies what the owner says. The only way a shard changes at a standby.
    pub fn replay(&mut self, now: Timestamp, record: Record) {
        match record {
            Record::Begin(begin) => self.begin(begin),
            Record::Keys(keys) => {
                for piece in &keys {
                    self.keys.restore(now, piece);
                }
            }
            Record::Tombstones(stones) => {
                for piece in &stones {
                    self.tombstones.restore(now, piece);
                }
            }
            Record::Channel(piece) => {
                self.restore(now, *piece);
            }
            Record::Presence(piece) => {
                let PresencePiece { channel, roster } = *piece;
                let key = channel.key.clone();
                if self.restore(now, channel) {
                    self.rosters.insert(key, Roster::of_piece(&roster));
                }
            }
            Record::Cached { key, cached } => {
                if self.channels.contains_key(&key) {
                    self.caches.restore(now, key, cached);
                }
            }
            // Whoever holds the replica has dealt with these.
            Record::Whole | Record::Release(_) | Record::Attach(_) => {}
            Record::Create {
                key,
                position,
                forgetful,
            } => {
                self.tombstones.lift(&key);
                self.channels
                    .insert(key, Channel::begun(position, forgetful));
            }
            Record::Publish(performed) => self.replay_publish(now, *performed),
            Record::Append {
                key,
                epoch,
                publication,
            } => {
                self.replay_append(now, key, epoch, publication, None);
            }
            Record::Confirm {
                key,
                connection,
                gateway,
            } => {
                if let Some(roster) = self.rosters.get_mut(&key) {
                    roster.confirm(&gateway, connection);
                }
            }
            Record::Close {
                from,
                sequence,
                low_mark,
                result,
                idempotency,
            } => {
                if let Some(idempotency) = idempotency
                    && let Ok(Published::Accepted { position, .. }) = result
                {
                    let is_alone = true;
                    let first = idempotency::Publication { position, is_alone };
                    self.keys.replace(now, &idempotency, first);
                }
                if let Some(table) = self.table_of(now, &from, low_mark) {
                    table.replay(sequence, low_mark, result);
                }
            }
            Record::Evict { key, position } => {
                self.channels.remove(&key);
                self.rosters.remove(&key);
                self.caches.remove(&key);
                let is_alone = false;
                let stood = Stood { position, is_alone };
                self.tombstones.lay(now, &key, stood);
            }
            Record::Forget { key } => {
                self.tombstones.lift(&key);
                self.drop_channels(&[key]);
            }
        }
    }

    /// What time takes away at a standby. Channels stay until the owner lets
    /// go of them.
    pub fn age(&mut self, now: Timestamp) {
        self.release_repaired(now);
        self.keys.expire(now);
        self.shrink();
    }

    /// The standby stays, under another owner.
    pub fn attach(&mut self, tenure: Tenure) {
        self.tenure = tenure;
    }

    /// The standby becomes the owner; another may stay. Interest is stated anew.
    pub fn succeed(&mut self, now: Timestamp, tenure: Tenure, stays: Option<Held>) {
        self.tenure = tenure;
        self.created = 0;
        self.replication.begin(stays);
        self.rosters.values_mut().for_each(Roster::begin);
        self.drop_changed();
        self.forget_lost();
        let mut keys: Vec<ChannelKey> = self.channels.keys().cloned().collect();
        keys.sort_unstable();
        for key in keys {
            self.set_check(now, &key);
        }
    }

    /// Channels of which the namespace says something else now than when they were
    /// made begin anew: neither who has followed them nor who stands by is to take
    /// what comes now for what was then.
    fn drop_changed(&mut self) {
        let is_changed = |(key, channel): &(&ChannelKey, &Channel)| {
            channel.is_alone != (self.namespaces.standby(key) == Standby::None)
        };
        let changed = self.channels.iter().filter(is_changed);
        let mut changed: Vec<ChannelKey> = changed.map(|(key, _)| key.clone()).collect();
        changed.sort_unstable();
        for key in &changed {
            self.replication.log(|| Record::Forget { key: key.clone() });
        }
        self.drop_channels(&changed);
    }

    /// What was in channels that are not replicated has gone with their owner,
    /// unless that one has sent it: nobody is told of it that it is there.
    fn forget_lost(&mut self) {
        let met = self.gateways.values_mut();
        let met = met.filter_map(|gateway| gateway.publishes.as_mut());
        let silent = self.silent.iter_mut().map(|(_, table)| table);
        let mut tables: Vec<&mut PublishTable> = met.chain(silent).collect();
        let named = tables.iter().flat_map(|table| table.positions());
        let named = named.chain(self.keys.alone());
        let mut lost: HashSet<Epoch> = named.map(|position| position.epoch).collect();
        if lost.is_empty() {
            return;
        }
        for channel in self.channels.values() {
            lost.remove(&channel.position().epoch);
        }
        for epoch in self.tombstones.epochs() {
            lost.remove(&epoch);
        }
        let is_lost = |position: &Position| lost.contains(&position.epoch);
        for table in &mut tables {
            table.forget_results_at(is_lost);
        }
        self.keys
            .forget(|first| first.is_alone && is_lost(&first.position));
    }

    fn drop_channels(&mut self, keys: &[ChannelKey]) {
        let mut dropped = HashSet::new();
        for key in keys {
            self.rosters.remove(key);
            self.caches.remove(key);
            if self.channels.remove(key).is_some() {
                dropped.insert(key);
            }
        }
        if !dropped.is_empty() {
            self.repair.drop_all(|key| dropped.contains(key));
        }
    }

    fn begin(&mut self, begin: Begin) {
        *self = Self::new(self.tenure.clone(), Arc::clone(&self.namespaces));
        if begin.forgetful {
            self.tombstones.be_forgetful();
        }
        // They count for who still lives the same life, and void no other: until
        // this is served a gateway may have been restarted with its clock set back.
        // What an older life said before does not get here: it is under a fence of
        // then. What makes no sense is left out: the gateway's low mark begins it.
        let tables = begin.tables.into_iter();
        self.silent = tables
            .filter_map(|(from, next, results)| Some((from, PublishTable::of(next, results).ok()?)))
            .collect();
    }

    /// `false`: it was made anew since the filling began, so records have said it
    /// all.
    fn restore(&mut self, now: Timestamp, piece: ChannelPiece) -> bool {
        let key = piece.key.clone();
        if self.channels.contains_key(&key) {
            return false;
        }
        let held = piece.held as usize;
        let repairable = piece.past.len().saturating_sub(held);
        for (age, publication) in &piece.past[repairable..] {
            let at = Timestamp(now.0.saturating_sub(*age));
            let bytes = publication.bytes();
            self.repair.push(at, key.clone(), publication.offset, bytes);
        }
        self.tombstones.lift(&key);
        self.channels.insert(key, Channel::of(now, piece));
        true
    }

    fn replay_publish(&mut self, now: Timestamp, performed: Performed) {
        let Performed {
            from,
            sequence,
            low_mark,
            key,
            epoch,
            publication,
            idempotency,
        } = performed;
        let position = Position {
            epoch,
            offset: publication.offset,
        };
        let copies = 2;
        self.replay_append(now, key, epoch, publication, Some(&from));
        if let Some(idempotency) = idempotency {
            let is_alone = false;
            let first = idempotency::Publication { position, is_alone };
            self.keys.replace(now, &idempotency, first);
        }
        let fence = self.tenure.fence;
        if let Some(table) = self.table_of(now, &from, low_mark) {
            let result = Published::Accepted {
                fence,
                position,
                copies,
            };
            table.replay(sequence, low_mark, Ok(result));
        }
    }

    fn replay_append(
        &mut self,
        now: Timestamp,
        key: ChannelKey,
        epoch: Epoch,
        publication: Arc<Publication>,
        from: Option<&GatewayRef>,
    ) {
        let limits = self.namespaces.history(&key);
        let (offset, bytes) = (publication.offset, publication.bytes());
        let change = publication.change().cloned();
        if let Some(channel) = self.channels.get_mut(&key)
            && channel.position().epoch == epoch
            && channel.replay(now, Arc::clone(&publication), limits)
        {
            self.caches.keep(now, &key, &publication);
            if let Some(change) = change {
                self.apply_change(&key, &change, from);
            }
            self.repair.push(now, key, offset, bytes);
            self.release_repaired(now);
        }
    }

    fn table_of(
        &mut self,
        now: Timestamp,
        from: &GatewayRef,
        low_mark: u64,
    ) -> Option<&mut PublishTable> {
        self.meet(now, from).ok()?;
        Some(self.table(from, low_mark))
    }
}

/// A channel with who is present in it, and then what it keeps for those who come.
fn pieces(
    channel: ChannelPiece,
    roster: Option<&Roster>,
    cached: Option<Cached>,
) -> impl Iterator<Item = Record> + use<> {
    let cached = cached.map(|cached| Record::Cached {
        key: channel.key.clone(),
        cached,
    });
    let whole = match roster.and_then(Roster::piece) {
        Some(roster) => Record::Presence(Box::new(PresencePiece { channel, roster })),
        None => Record::Channel(Box::new(channel)),
    };
    iter::once(whole).chain(cached)
}

#[cfg(test)]
mod tests;
