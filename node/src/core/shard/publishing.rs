//! What gateways publish: each publish once, in its place and for its key.

use std::sync::Arc;

use proto::channel::ChannelKey;
use proto::id::GatewayRef;
use proto::message::{Entry, Idempotency, Publish, PublishResult, Published, Refusal, Sequenced};
use proto::namespace::Standby;
use proto::position::{Epoch, Offset, Position};
use proto::presence::Mark;
use proto::publication::Publication;
use proto::time::Timestamp;

use super::{Effect, Shard, Tenure};
use crate::core::idempotency;
use crate::core::publish_table::{Admission, PublishTable};
use crate::core::record::{Performed, Record};

/// What a publish has changed, for the standbys.
pub(super) enum Done {
    /// A channel that they have, too.
    Replicated {
        key: ChannelKey,
        epoch: Epoch,
        publication: Arc<Publication>,
        idempotency: Option<Idempotency>,
    },
    /// One that they do not have. They are told that it was done, and with which
    /// key; nothing waits until they know.
    Alone(Option<Idempotency>),
}

impl Shard {
    /// Performs a publish exactly once, in its place of the gateway's sequence.
    pub(super) fn sequenced(
        &mut self,
        from: &GatewayRef,
        place: Sequenced,
        perform: impl FnOnce(&mut Self, &mut Option<Done>) -> PublishResult,
    ) -> PublishResult {
        self.check_fence(place.fence)?;
        let low_mark = place.low_mark.min(place.sequence);
        match self.table(from, low_mark).admit(place.sequence, low_mark) {
            Admission::Next => {
                let mut done = None;
                let result = perform(self, &mut done);
                self.table(from, low_mark).record(result.clone());
                self.log_publish(from, place.sequence, low_mark, done, &result);
                result
            }
            // Whoever repeats it is answered under the present fence.
            Admission::Repeat(mut result) => {
                if let Ok(Published::Accepted { fence, .. }) = &mut result {
                    *fence = self.tenure.fence;
                }
                result
            }
            Admission::OutOfSequence { expected } => Err(Refusal::OutOfSequence { expected }),
            Admission::Forgotten => Err(Refusal::Forgotten),
        }
    }

    fn log_publish(
        &mut self,
        from: &GatewayRef,
        sequence: u64,
        low_mark: u64,
        done: Option<Done>,
        result: &PublishResult,
    ) {
        let closed = |idempotency| Record::Close {
            from: from.clone(),
            sequence,
            low_mark,
            result: result.clone(),
            idempotency,
        };
        match done {
            None => self.replication.log(|| closed(None)),
            Some(Done::Alone(key)) => self.replication.mention(|| closed(key)),
            Some(Done::Replicated {
                key,
                epoch,
                publication,
                idempotency,
            }) => self.replication.log(|| {
                Record::Publish(Box::new(Performed {
                    from: from.clone(),
                    sequence,
                    low_mark,
                    key,
                    epoch,
                    publication,
                    idempotency,
                }))
            }),
        }
    }

    pub(super) fn table(&mut self, from: &GatewayRef, low_mark: u64) -> &mut PublishTable {
        let gateway = self
            .gateways
            .get_mut(&from.id)
            .expect("meet() has noted it");
        let silent = &mut self.silent;
        gateway.publishes.get_or_insert_with(|| {
            let known = silent.iter().position(|(known, _)| known == from);
            known
                .and_then(|at| silent.remove(at))
                .map_or_else(|| PublishTable::starting_at(low_mark), |(_, table)| table)
        })
    }

    /// Performs a publish once for its idempotency key, if it has one.
    pub(super) fn publish_once(
        &mut self,
        now: Timestamp,
        publish: Publish,
        standby: Standby,
        done: &mut Option<Done>,
        effects: &mut Vec<Effect>,
    ) -> PublishResult {
        let Some(idempotency) = publish.idempotency else {
            return self.publish(now, publish, standby, done, effects);
        };
        match self.keys.admit(now, &idempotency) {
            idempotency::Admission::New => {}
            idempotency::Admission::Repeat(first) => {
                effects.push(Effect::Repeated);
                return Ok(Published::Accepted {
                    fence: self.tenure.fence,
                    position: first.position,
                    copies: 1,
                });
            }
            idempotency::Admission::Mismatch => {
                effects.push(Effect::KeyRefused { full: false });
                return Err(Refusal::IdempotencyMismatch);
            }
            idempotency::Admission::Full => {
                effects.push(Effect::KeyRefused { full: true });
                return Err(Refusal::IdempotencyFull);
            }
        }
        let result = self.publish(now, publish, standby, done, effects)?;
        if let Published::Accepted { position, .. } = result {
            let is_alone = matches!(done, Some(Done::Alone(_)));
            let first = idempotency::Publication { position, is_alone };
            self.keys.remember(now, &idempotency, first);
        }
        Ok(result)
    }

    /// One step both hands the publication to the links and gives the result
    /// that acknowledges it; both wait together for what standbys confirm.
    fn publish(
        &mut self,
        now: Timestamp,
        publish: Publish,
        standby: Standby,
        done: &mut Option<Done>,
        effects: &mut Vec<Effect>,
    ) -> PublishResult {
        let key = publish.key.clone();
        if standby == Standby::Require && !self.replication.is_protected() {
            return Err(Refusal::NoStandby);
        }
        let idempotency = publish.idempotency;
        let (position, publication) = self.append(now, &key, effects, |offset| Publication {
            offset,
            event: publish.event,
            data: publish.data,
            exclude: publish.exclude,
            accepted_at: publish.accepted_at,
            mark: publish.by.map(|user| Box::new(Mark::By(user))),
        })?;
        self.set_check(now, &key);
        *done = match standby {
            Standby::None => Some(Done::Alone(idempotency)),
            _ => self
                .replication
                .is_replicated()
                .then_some(Done::Replicated {
                    key,
                    epoch: position.epoch,
                    publication,
                    idempotency,
                }),
        };
        Ok(Published::Accepted {
            fence: self.tenure.fence,
            position,
            copies: 1,
        })
    }

    /// Puts something into a channel and hands it to the links.
    pub(super) fn append(
        &mut self,
        now: Timestamp,
        key: &ChannelKey,
        effects: &mut Vec<Effect>,
        make: impl FnOnce(Offset) -> Publication,
    ) -> Result<(Position, Arc<Publication>), Refusal> {
        let Tenure { shard, fence, .. } = self.tenure;
        let clock = self.replication.clock(now);
        let (limits, channel) = self.channel(key)?;
        let publication = channel.append(clock, limits, make);
        let position = channel.position();
        effects.push(Effect::Deliver {
            to: channel.interest.recipients(),
            entry: Entry {
                shard,
                fence,
                key: key.clone(),
                epoch: position.epoch,
                publication: Arc::clone(&publication),
            },
        });
        self.caches.keep(now, key, &publication);
        let bytes = publication.bytes();
        self.repair.push(clock, key.clone(), position.offset, bytes);
        self.release_repaired(now);
        Ok((position, publication))
    }
}
