//! Mistakes planted on purpose, to see that the simulation finds them.
//!
//! Each is a wrapper around what goes into a core or comes out of it, or
//! changes a message on its way. The product has no switch for any of them.

mod owning;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use gateway::core::attachment::{Resumption, Step};
use node::core::agreed::Agreed;
use node::core::outbound::{Kind, Parcel};
use node::core::pairs::{Batch, Echo};
use node::core::record::Record;
use node::core::shard::Effect;
use proto::channel::ChannelKey;
use proto::id::{ConnectionId, GatewayRef, Incarnation, NodeId, NodeRef};
use proto::message::{Enter, GatewayBeat, Reply, Request, Since};
use proto::position::{Epoch, Position};
use proto::publication::Publication;
use proto::shard::{Fence, ShardId};
use proto::subject::Address;
use proto::time::Timestamp;

use super::worker::{Mail, Told, Worker};

pub use owning::FirstJoins;

/// What is done wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// A node sends no beats after the last batch of a link.
    NoTailBeat,
    /// An owner takes joins and leaves as they come, whatever their versions.
    UnversionedInterest,
    /// Beats of gateways do not say what they want.
    NoDigests,
    /// A publish whose time has run out leaves a hole in the sequence.
    NoSkip,
    /// An owner does not know what it has done when it is asked again.
    ForgottenResults,
    /// A gateway delivers what comes by the link, whatever its offset.
    LinkOrder,
    /// A channel that is made anew has the epoch of the one before, and its
    /// offsets begin anew.
    KeptEpoch,
    /// A gateway delivers what is repaired at once, whatever its offset.
    RepairUnordered,
    /// A gateway's window answers though the channel is not attached.
    WindowUnattached,
    /// An owner does not look at idempotency keys.
    ForgottenKeys,
    /// A join does not reach back to the lowest cursor that waits.
    JoinFromNow,
    /// An owner takes what it has sent to a standby for confirmed.
    Unconfirmed,
    /// An owner counts its pair lease from when the echo came.
    LeaseFromReceipt,
    /// A standby does not say that it is the owner now.
    NoRefusal,
    /// A standby that is made the owner does not wait for the lease that it has
    /// given.
    NoWait,
    /// A standby is not told what gateways have published.
    TablesNotCarried,
    /// A standby is not sent the channels that were there before.
    ChannelsNotSent,
    /// An owner goes on without a standby before that is agreed.
    DroppedAlone,
    /// A leader gives shards away without waiting for leases.
    LapseNotWaited,
    /// A new leader takes it that nobody has a lease of its predecessor.
    NewLeaderInHaste,
    /// A leader grants leases without asking whether it still leads.
    NoRound,
    /// A standby says that it is the owner some echoes later.
    RefusedLate,
    /// A standby lets go of a shard that moves, though it is to stay.
    ReplicaNotKept,
    /// A node that is back goes on with what it kept once, whatever has been
    /// since.
    StaleCheckpoint,
    /// A leader judges by the silence of others whatever it hears.
    DeafLeaderJudges,
    /// What a node has that lives and can be told nothing is given up.
    UnreachableForsaken,
    /// A leader takes whom it does not hear for dead, whoever else hears it.
    OneJudges,
    /// A node says of gateways that they are silent while it does not hear itself.
    DeafJudges,
    /// A node takes it that gateways were silent while the bus was away.
    OutageIsSilence,
    /// A gateway that begins a new life sends again in it what was on its way.
    ResentInNextLife,
    /// A gateway wants a channel of a new owner from now on, and not from what it
    /// has delivered.
    RestatedFromNow,
    /// A standby is taken for in sync as soon as its filling begins.
    FillingPromoted,
    /// A node that was restarted goes on as the owner of what it had.
    OwnershipKept,
    /// A leader goes on granting leases to those whose shards it gives away.
    GrantedMeanwhile,
    /// Of all earlier owners of a shard only the last one's lease is waited for.
    EarlierNotWaited,
    /// An owner needs the lease of a standby only while it is agreed, as far as
    /// it has heard, that this one is in sync.
    PairByMap,
    /// Publications are handed to the links before they are confirmed; what
    /// acknowledges them waits.
    FannedOutEarly,
    /// A member that has gone is not taken leave of.
    ExitLost,
    /// What a gateway states anew follows what contradicts it: of a member that has
    /// gone meanwhile it says that it is there.
    RestatedOutOfOrder,
    /// A gateway says that it has stated all its members to a new owner, and has not.
    StatedInPart,
    /// A channel that is not replicated goes on in its epoch when its owner has
    /// died, where it stood as far as its standby has heard.
    AloneGoesOn,
}

impl Mistake {
    /// All of them.
    pub const ALL: [Self; 41] = [
        Self::NoTailBeat,
        Self::UnversionedInterest,
        Self::NoDigests,
        Self::NoSkip,
        Self::ForgottenResults,
        Self::ForgottenKeys,
        Self::LinkOrder,
        Self::KeptEpoch,
        Self::RepairUnordered,
        Self::WindowUnattached,
        Self::JoinFromNow,
        Self::Unconfirmed,
        Self::LeaseFromReceipt,
        Self::NoRefusal,
        Self::NoWait,
        Self::TablesNotCarried,
        Self::ChannelsNotSent,
        Self::DroppedAlone,
        Self::LapseNotWaited,
        Self::NewLeaderInHaste,
        Self::NoRound,
        Self::RefusedLate,
        Self::ReplicaNotKept,
        Self::StaleCheckpoint,
        Self::DeafLeaderJudges,
        Self::UnreachableForsaken,
        Self::OneJudges,
        Self::DeafJudges,
        Self::OutageIsSilence,
        Self::ResentInNextLife,
        Self::RestatedFromNow,
        Self::FillingPromoted,
        Self::OwnershipKept,
        Self::GrantedMeanwhile,
        Self::EarlierNotWaited,
        Self::PairByMap,
        Self::FannedOutEarly,
        Self::AloneGoesOn,
        Self::ExitLost,
        Self::RestatedOutOfOrder,
        Self::StatedInPart,
    ];
}

impl Mistake {
    /// Whether it would be found first by what it does to members, and not by what it
    /// is planted for. Such worlds have none.
    pub fn spoils_rooms(self) -> bool {
        matches!(
            self,
            Self::NoSkip | Self::TablesNotCarried | Self::RestatedFromNow
        )
    }
}

/// A mistake at one life of a node.
#[derive(Debug, Default)]
pub struct AtNode {
    mistake: Option<Mistake>,
    /// Versions as they were, by those that the owner was given.
    versions: BTreeMap<u64, u64>,
    /// Who really asked, and in which place, by the name that the owner was
    /// given.
    strangers: BTreeMap<Incarnation, (GatewayRef, u64)>,
    performed: BTreeSet<(GatewayRef, ShardId, u64)>,
    /// What channels have been seen, and by how much their offsets are shown
    /// too low.
    seen: BTreeMap<ChannelKey, Seen>,
    /// When its own beat came back last.
    echoed_at: Option<Timestamp>,
    /// Where channels stand that are not replicated, as their owner has mentioned.
    mentioned: BTreeMap<Epoch, Position>,
    /// What owners should have been told.
    refused: BTreeMap<NodeRef, VecDeque<Vec<(ShardId, Fence)>>>,
}

/// A channel at one life of a node.
#[derive(Debug, Clone, Copy)]
struct Seen {
    epoch: Epoch,
    head: u64,
    less: u64,
    /// Its state has gone.
    evicted: bool,
}

/// How many echoes late refusals are.
const LATE_ECHOES: usize = 8;

/// Versions that the owner is given begin here: above all real ones.
const VERSIONS: u64 = 1 << 40;

impl AtNode {
    /// None, or one.
    pub fn new(mistake: Option<Mistake>) -> Self {
        Self {
            mistake,
            ..Self::default()
        }
    }

    /// Changes a request before the owner gets it.
    pub fn request(&mut self, from: &mut GatewayRef, request: &mut Request) {
        match self.mistake {
            Some(Mistake::UnversionedInterest) => {
                let version = match request {
                    Request::Join(join) => &mut join.version,
                    Request::Leave(leave) => &mut leave.version,
                    _ => return,
                };
                let next = VERSIONS + self.versions.len() as u64;
                self.versions.insert(next, *version);
                *version = next;
            }
            Some(Mistake::ForgottenResults) => {
                let Request::Publish(publish) = request else {
                    return;
                };
                let place = &mut publish.place;
                let performed = (from.clone(), place.shard, place.sequence);
                if !self.performed.contains(&performed) {
                    return;
                }
                let incarnation = Incarnation(VERSIONS + self.strangers.len() as u64);
                self.strangers
                    .insert(incarnation, (from.clone(), place.sequence));
                from.id = "stranger".parse().expect("a valid id");
                from.incarnation = incarnation;
                (place.sequence, place.low_mark) = (1, 1);
            }
            Some(Mistake::ForgottenKeys) => {
                if let Request::Publish(publish) = request {
                    publish.idempotency = None;
                }
            }
            Some(Mistake::KeptEpoch) => {
                if let Request::Join(join) = request
                    && let Since::Delivered(have) | Since::Cursor(have) = &mut join.since
                    && let Some(seen) = self.seen.get(&join.key)
                    && seen.epoch == have.epoch
                {
                    have.offset.0 += seen.less;
                }
            }
            _ => {}
        }
    }

    /// Changes what the owner wants done.
    pub fn effect(&mut self, effect: &mut Effect) {
        match self.mistake {
            Some(Mistake::UnversionedInterest) => {
                if let Effect::Reply { reply, .. } = effect
                    && let Reply::Joined { version, .. } | Reply::Left { version, .. } = reply
                    && let Some(real) = self.versions.get(version)
                {
                    *version = *real;
                }
            }
            Some(Mistake::ForgottenResults) => {
                let Effect::Reply { to, reply } = effect else {
                    return;
                };
                let Reply::Published {
                    shard,
                    sequence,
                    result: Ok(_),
                } = reply
                else {
                    return;
                };
                if let Some((real, place)) = self.strangers.get(&to.incarnation) {
                    *to = real.clone();
                    *sequence = *place;
                }
                self.performed.insert((to.clone(), *shard, *sequence));
            }
            Some(Mistake::KeptEpoch) => self.keep_epoch(effect),
            _ => {}
        }
    }

    fn keep_epoch(&mut self, effect: &mut Effect) {
        let Effect::Deliver { entry, .. } = effect else {
            return;
        };
        let head = entry.publication.offset.0;
        let seen = self.seen.entry(entry.key.clone()).or_insert(Seen {
            epoch: entry.epoch,
            head,
            less: 0,
            evicted: false,
        });
        if seen.evicted && seen.epoch == entry.epoch {
            seen.less = head - 1;
        }
        (seen.epoch, seen.head, seen.evicted) = (entry.epoch, head, false);
        if seen.less > 0 && seen.less < head {
            let mut publication = (*entry.publication).clone();
            publication.offset.0 -= seen.less;
            entry.publication = publication.into();
        }
    }

    /// Channels whose state has gone, as `is_gone` knows them.
    pub fn evicted(&mut self, is_gone: impl Fn(&ChannelKey) -> bool) {
        if self.mistake == Some(Mistake::KeptEpoch) {
            for (key, seen) in &mut self.seen {
                seen.evicted |= is_gone(key);
            }
        }
    }

    /// The node's own beat has come back. When it takes it that it did, too.
    pub fn echoes(&mut self, now: Timestamp) -> Vec<Timestamp> {
        let before = self.echoed_at.replace(now);
        let missing = before.filter(|_| self.is(Mistake::OutageIsSilence));
        let missing = missing.map_or(now.0..now.0, |before| before.0..now.0);
        missing.step_by(500).map(Timestamp).collect()
    }

    /// Whether it is this one.
    pub fn is(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// Changes what an owner has sent.
    pub fn batch(&mut self, batch: &mut Batch) {
        if self.is(Mistake::AloneGoesOn) {
            self.note_mentioned(batch);
        }
        if !self.is(Mistake::TablesNotCarried) && !self.is(Mistake::ChannelsNotSent) {
            return;
        }
        for part in &mut batch.parts {
            for record in &mut part.records {
                let record = Arc::make_mut(record);
                if self.is(Mistake::ChannelsNotSent) {
                    if matches!(record, Record::Channel(_)) {
                        *record = Record::Keys(Vec::new());
                    }
                    continue;
                }
                match record {
                    Record::Begin(begin) => begin.tables.clear(),
                    Record::Publish(performed) => {
                        performed.from.id = "stranger".parse().expect("a valid id");
                        performed.idempotency = None;
                    }
                    Record::Keys(keys) => keys.clear(),
                    _ => {}
                }
            }
        }
    }

    /// Changes what a standby says of who is the owner.
    pub fn refuse(&mut self, echo: &mut Echo) {
        match self.mistake {
            Some(Mistake::NoRefusal) => echo.refused.clear(),
            Some(Mistake::RefusedLate) => {
                let late = self.refused.entry(echo.to.clone()).or_default();
                late.push_back(std::mem::take(&mut echo.refused));
                if late.len() > LATE_ECHOES {
                    echo.refused = late.pop_front().unwrap_or_default();
                }
            }
            _ => {}
        }
    }

    /// Changes what a standby hears of what is agreed.
    pub fn agreed(&self, me: &NodeRef, agreed: &Arc<Agreed>) -> Arc<Agreed> {
        if !self.is(Mistake::ReplicaNotKept) {
            return Arc::clone(agreed);
        }
        let mut told = Agreed::clone(agreed);
        for (number, replicas) in (0..).zip(&mut told.shards) {
            if told
                .map
                .owner(ShardId(number))
                .is_some_and(|(owner, _)| owner != me)
            {
                replicas.row.in_sync.clear();
            }
        }
        Arc::new(told)
    }

    /// Changes an echo before its owner hears it.
    pub fn echo(&self, now: Timestamp, echo: &mut Echo) {
        if self.is(Mistake::LeaseFromReceipt) {
            echo.sent_at = now.0;
        }
    }

    /// Whether a message of a node is sent.
    pub fn sends(&self, parcel: &Parcel) -> bool {
        let tail_beat = parcel.kind == Kind::Beat && matches!(parcel.to, Address::Gateway(_));
        self.mistake != Some(Mistake::NoTailBeat) || !tail_beat
    }
}

/// Whether a request of a gateway is sent.
pub fn asks(mistake: Option<Mistake>, request: &Request) -> bool {
    mistake != Some(Mistake::NoSkip) || !matches!(request, Request::Skip(_))
}

/// Changes what a gateway asks.
pub fn asked(mistake: Option<Mistake>, request: &mut Request) {
    if mistake == Some(Mistake::JoinFromNow)
        && let Request::Join(join) = request
        && let Since::Cursor(_) = join.since
    {
        join.since = Since::Now;
    }
}

/// What a gateway has said of its members, for mistakes with them.
#[derive(Debug, Default)]
pub struct Statements {
    members: BTreeMap<(ChannelKey, ConnectionId), Enter>,
    exits: BTreeMap<(ShardId, u64), Fence>,
}

impl Statements {
    /// Changes what it says.
    pub fn ask(&mut self, mistake: Option<Mistake>, request: &mut Request) {
        let changed = match (mistake, &*request) {
            (Some(Mistake::ExitLost), Request::Exit(exit)) => Request::Skip(exit.place),
            (Some(Mistake::StatedInPart), Request::Enter(enter)) => {
                let name = (enter.key.clone(), enter.member.connection);
                let known = self.members.insert(name, enter.clone());
                let is_other = |known: &Enter| {
                    known.place.sequence != enter.place.sequence
                        && known.place.fence < enter.place.fence
                };
                if !known.as_ref().is_some_and(is_other) {
                    return;
                }
                Request::Skip(enter.place)
            }
            (Some(Mistake::RestatedOutOfOrder), Request::Enter(enter)) => {
                let name = (enter.key.clone(), enter.member.connection);
                self.members.insert(name, enter.clone());
                return;
            }
            (Some(Mistake::RestatedOutOfOrder), Request::Exit(exit)) => {
                let place = exit.place;
                let first = self.exits.entry((place.shard, place.sequence));
                let first = *first.or_insert(place.fence);
                let name = (exit.key.clone(), exit.connection);
                match self.members.get(&name) {
                    Some(enter) if place.fence > first => Request::Enter(Enter {
                        place,
                        ..enter.clone()
                    }),
                    _ => return,
                }
            }
            _ => return,
        };
        *request = changed;
    }
}

/// Publishes of a gateway that are not answered, for [`Mistake::ResentInNextLife`].
#[derive(Debug, Default)]
pub struct Unanswered(BTreeMap<(ShardId, u64), (NodeId, Request)>);

impl Unanswered {
    /// A node is asked something.
    pub fn asked(&mut self, node: &NodeId, request: &Request) {
        if let Request::Publish(publish) = request {
            let place = (publish.place.shard, publish.place.sequence);
            self.0.insert(place, (node.clone(), request.clone()));
        }
    }

    /// Nodes have answered.
    pub fn answered(&mut self, replies: &[Reply]) {
        for reply in replies {
            if let Reply::Published {
                shard, sequence, ..
            } = reply
            {
                self.0.remove(&(*shard, *sequence));
            }
        }
    }

    /// What the gateway sends again in its next life.
    pub fn begin_life(&mut self) -> Vec<(NodeId, Request)> {
        std::mem::take(&mut self.0).into_values().collect()
    }
}

/// What a gateway has delivered, kept by channel and beyond the attachments of
/// that channel: for [`Mistake::WindowUnattached`].
#[derive(Debug, Default)]
pub struct Windows(BTreeMap<ChannelKey, (Epoch, Vec<Arc<Publication>>)>);

impl Windows {
    /// Something is told to workers.
    pub fn see(&mut self, mistake: Option<Mistake>, key: &ChannelKey, step: &Step) {
        if mistake != Some(Mistake::WindowUnattached) {
            return;
        }
        match step {
            Step::Deliver {
                epoch, publication, ..
            } => {
                let fresh = || (*epoch, Vec::new());
                let window = self.0.entry(key.clone()).or_insert_with(fresh);
                let next = window.1.last().map(|last| last.offset.next());
                if window.0 != *epoch || next.is_some_and(|next| next != publication.offset) {
                    *window = fresh();
                }
                window.1.push(Arc::clone(publication));
            }
            Step::Gap { .. } => {
                self.0.remove(key);
            }
            _ => {}
        }
    }

    /// Answers a worker at once, if that can be done; the rest is for the edge.
    pub fn answer(&self, told: Told, worker: &mut Worker) -> Told {
        let Told::Follow(key, follow, Some(cursor)) = told else {
            return told;
        };
        let window = self.0.get(&key).filter(|(epoch, _)| *epoch == cursor.epoch);
        let reaches = |all: &&Vec<Arc<Publication>>| {
            let (Some(first), Some(last)) = (all.first(), all.last()) else {
                return false;
            };
            (first.offset..=last.offset.next()).contains(&cursor.offset.next())
        };
        let Some(all) = window.map(|(_, all)| all).filter(reaches) else {
            return Told::Follow(key, follow, Some(cursor));
        };
        let missed = all.iter().filter(|p| p.offset > cursor.offset);
        let missed: Vec<_> = missed.cloned().collect();
        let position = Position {
            offset: missed.last().map_or(cursor.offset, |last| last.offset),
            ..cursor
        };
        worker.mail(Mail::Attached {
            key: key.clone(),
            follow,
            position,
        });
        worker.mail(Mail::Resumed {
            key: key.clone(),
            cursor,
            resumption: Resumption::Whole(missed),
        });
        Told::Follow(key, follow, None)
    }
}

/// Changes a beat of a gateway.
pub fn beat(mistake: Option<Mistake>, beat: &mut GatewayBeat) {
    if mistake == Some(Mistake::NoDigests) {
        beat.interest.clear();
    }
}
