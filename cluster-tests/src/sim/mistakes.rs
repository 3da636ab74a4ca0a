//! Mistakes planted on purpose, to see that the simulation finds them.
//!
//! Each is a wrapper around what goes into a core or comes out of it, or
//! changes a message on its way. The product has no switch for any of them.

use std::collections::{BTreeMap, BTreeSet};

use node::core::outbound::{Kind, Parcel};
use node::core::shard::Effect;
use proto::channel::ChannelKey;
use proto::id::{GatewayRef, Incarnation};
use proto::message::{GatewayBeat, Missed, Published, Reply, Request};
use proto::position::Epoch;
use proto::shard::{Fence, ShardId};
use proto::subject::Address;

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
    /// A channel that is made anew has the epoch of the one before.
    KeptEpoch,
}

impl Mistake {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::NoTailBeat,
        Self::UnversionedInterest,
        Self::NoDigests,
        Self::NoSkip,
        Self::ForgottenResults,
        Self::LinkOrder,
        Self::KeptEpoch,
    ];
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
    /// The first epoch of each channel under a fence, and its present one.
    epochs: BTreeMap<(Fence, ChannelKey), Epoch>,
    /// Which epoch is shown as which.
    shown: BTreeMap<Epoch, Epoch>,
    present: BTreeMap<Epoch, Epoch>,
}

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
            Some(Mistake::KeptEpoch) => {
                if let Request::Join(join) = request
                    && let Some(have) = &mut join.have
                    && let Some(present) = self.present.get(&have.epoch)
                {
                    have.epoch = *present;
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
        match effect {
            Effect::Deliver { entry, .. } => {
                let first = self
                    .epochs
                    .entry((entry.fence, entry.key.clone()))
                    .or_insert(entry.epoch);
                self.shown.insert(entry.epoch, *first);
                self.present.insert(*first, entry.epoch);
                entry.epoch = *first;
            }
            Effect::Reply { reply, .. } => {
                let position = match reply {
                    Reply::Joined {
                        result: Ok(joined), ..
                    } => {
                        if let Missed::Gap(gap) = &mut joined.missed
                            && let Some(first) = self.shown.get(&gap.latest.epoch)
                        {
                            gap.latest.epoch = *first;
                        }
                        &mut joined.position
                    }
                    Reply::Published {
                        result: Ok(Published::Accepted { position, .. }),
                        ..
                    } => position,
                    _ => return,
                };
                if let Some(first) = self.shown.get(&position.epoch) {
                    position.epoch = *first;
                }
            }
            _ => {}
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

/// Changes a beat of a gateway.
pub fn beat(mistake: Option<Mistake>, beat: &mut GatewayBeat) {
    if mistake == Some(Mistake::NoDigests) {
        beat.interest.clear();
    }
}
