//! One shard's standbys, seen from its owner: what they have been sent, what
//! they have confirmed, and what waits for that.
//!
//! Whatever a shard decides (to hand a publication to the links, to acknowledge
//! it, to answer a join) rests on changes that were made before. It is held
//! until every standby that **counts** has confirmed all of these, and until the
//! leases say that nobody else can be the owner. So no gateway ever learns what
//! a failover could forget, and a standby's copy needs no undoing.
//!
//! ```text
//!            recruit          has all           agreed: in sync
//!   nobody ─────────▶ Filling ───────▶ Counting ───────────────▶ Counting
//!                        │ silent          │ silent                 │ silent
//!                        ▼                 ▼                        ▼
//!                      nobody            Leaving ◀───── silent ─────┤
//!                                          │                        │ not wanted
//!                     agreed: not in sync  │                        ▼
//!                                          ├──────────────────── Retiring
//!                                          ▼
//!                                        nobody
//! ```
//!
//! A standby counts from before the owner proposes that it is in sync, until the
//! owner knows that it is agreed that it is not: grow before, shrink after. For
//! in between it may be made the owner by what was agreed earlier.

mod describing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use proto::channel::ChannelKey;
use proto::id::NodeRef;
use proto::message::{Published, Refusal, Reply};
use proto::shard::{Fence, ShardId};
use proto::time::Timestamp;

use super::cluster::STANDBYS_MAX;
use super::lease::PairLease;
use super::pairs::Part;
use super::record::{Held, Record};
use super::shard::{Effect, Leased, Proposal};

/// Bytes of pieces of one shard that a standby may have unconfirmed. Dozens of
/// shards are filled at a time, and what other shards have to say to that standby
/// stands in line behind all of it.
const FILL_BYTES: usize = 16 * 1_024;
/// How long confirmations may take before publications stop to age.
const A_MOMENT: Duration = Duration::from_millis(300);
/// How long a proposal may take before it is made again.
const PROPOSE_AGAIN: Duration = Duration::from_millis(300);

/// Until when this node may act as an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leases {
    /// By the cluster's leader.
    pub node: Timestamp,
    /// By each standby.
    pub pairs: BTreeMap<NodeRef, PairLease>,
}

impl Leases {
    /// Of a node that is alone, and needs none.
    pub fn unlimited() -> Self {
        Self {
            node: Timestamp(u64::MAX),
            pairs: BTreeMap::new(),
        }
    }

    /// Whether this node may act as the owner of what these stand by for.
    pub fn hold<'a>(
        &self,
        now: Timestamp,
        standbys: impl IntoIterator<Item = &'a NodeRef>,
    ) -> bool {
        let holds = |node| self.pairs.get(node).is_some_and(|pair| pair.holds(now));
        now < self.node && standbys.into_iter().all(holds)
    }

    /// Whether a standby has said nothing for so long that an owner is to go
    /// on without it.
    fn is_silent(&self, now: Timestamp, node: &NodeRef) -> bool {
        let pair = self.pairs.get(node);
        pair.is_some_and(|pair| pair.is_lost(now))
    }

    /// Whether any standby is silent for so long.
    pub fn is_any_silent(&self, now: Timestamp) -> bool {
        self.pairs.values().any(|pair| pair.is_lost(now))
    }
}

/// What is agreed of a shard's replicas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    /// Changes with every change of the rest, and only grows.
    pub version: u64,
    /// The standbys that may be made the owner.
    pub in_sync: Vec<NodeRef>,
    /// Whether earlier owners are still on record: until the present one has
    /// proposed something.
    pub has_earlier: bool,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Replication {
    /// How many changes there have been.
    made: u64,
    /// How many of them have to be confirmed before anything that is decided now
    /// is performed.
    awaited: u64,
    peers: Vec<Peer>,
    /// What was decided, and how many changes have to be confirmed before.
    held: VecDeque<(u64, Effect)>,
    /// When something was released last, or began to wait when nothing did.
    moved_at: Option<Timestamp>,
    /// For how long it has stood still until then: see [`Self::clock`].
    stood: Duration,
    row: Row,
    /// It has begun, and what is agreed of its replicas has not come: who may be
    /// made the owner after it is not known yet.
    awaits_row: bool,
    /// What was proposed, on which version, and when.
    proposed: Option<(u64, Vec<NodeRef>, Timestamp)>,
    /// Nodes that were made standbys so far.
    recruited: u64,
    /// The standbys that count, as last told to those who perform.
    under: Option<Arc<[NodeRef]>>,
    /// Whether other leases would change nothing: nothing waits for them.
    is_settled: bool,
}

/// A standby. Its records have numbers of its own: it was sent pieces, too.
#[derive(Debug)]
pub struct Peer {
    node: NodeRef,
    /// Which recruitment of this owner it is.
    fill: u64,
    sent: u64,
    confirmed: u64,
    /// From behind `confirmed` up to `sent`.
    unconfirmed: VecDeque<Arc<Record>>,
    /// How many of them, at the back, have still to go out.
    outgoing: usize,
    stage: Stage,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// These channels are still to be sent, the last one first. `whole`: the
    /// number of the end.
    Filling {
        channels: Vec<ChannelKey>,
        whole: Option<u64>,
    },
    /// It has everything.
    Counting,
    /// As before, but it is to count no longer. It does until the row has a
    /// higher version than this and says that it is not in sync.
    Retiring { version: u64 },
    /// It has been silent; nothing is sent any more, and it counts for as long
    /// as one that retires.
    Leaving { version: u64 },
}

impl Peer {
    fn new(node: NodeRef, fill: u64, stage: Stage) -> Self {
        Self {
            node,
            fill,
            sent: 0,
            confirmed: 0,
            unconfirmed: VecDeque::new(),
            outgoing: 0,
            stage,
        }
    }

    /// Sends it a record.
    pub fn push(&mut self, record: Record) {
        self.push_shared(Arc::new(record));
    }

    fn push_shared(&mut self, record: Arc<Record>) {
        self.sent += 1;
        if matches!(self.stage, Stage::Leaving { .. }) {
            return;
        }
        self.outgoing += 1;
        self.unconfirmed.push_back(record);
    }

    fn counts(&self) -> bool {
        !matches!(self.stage, Stage::Filling { .. })
    }
}

impl Replication {
    /// A standby has become the owner. One that stands by for the shard already
    /// stays if it has as much as this one; else it has none yet.
    pub fn begin(&mut self, stays: Option<Held>) {
        *self = Self {
            awaits_row: true,
            ..Self::default()
        };
        if let Some(held) = stays {
            // Nothing is decided before it has said that it does.
            (self.made, self.awaited) = (1, 1);
            self.recruited = 1;
            let mut peer = Peer::new(held.node.clone(), 1, Stage::Counting);
            peer.push(Record::Attach(held));
            self.peers.push(peer);
        }
    }

    /// Whether anybody is to be told of changes.
    pub fn is_replicated(&self) -> bool {
        !self.peers.is_empty()
    }

    /// Whether somebody has everything besides the owner, and has not been given
    /// up.
    pub fn is_protected(&self) -> bool {
        let stays = |peer: &Peer| matches!(peer.stage, Stage::Counting | Stage::Retiring { .. });
        self.peers.iter().any(stays)
    }

    /// Notes a change, for every standby; what is decided from now on waits until
    /// they have confirmed it.
    pub fn log(&mut self, record: impl FnOnce() -> Record) {
        self.mention(record);
        self.awaited = self.made;
    }

    /// Notes a change for which nothing waits but what moves the shard.
    pub fn mention(&mut self, record: impl FnOnce() -> Record) {
        self.made += 1;
        if self.peers.is_empty() {
            return;
        }
        let record = Arc::new(record());
        for peer in &mut self.peers {
            peer.push_shared(Arc::clone(&record));
        }
    }

    /// Takes a node as a standby that has still to be sent these channels.
    /// `None`: it is one, or there are enough.
    pub fn recruit(&mut self, node: NodeRef, channels: Vec<ChannelKey>) -> Option<&mut Peer> {
        let is_known = self.peers.iter().any(|peer| peer.node == node);
        if is_known || self.peers.len() >= STANDBYS_MAX {
            return None;
        }
        self.recruited += 1;
        let whole = None;
        let stage = Stage::Filling { channels, whole };
        self.peers.push(Peer::new(node, self.recruited, stage));
        self.peers.last_mut()
    }

    /// Sends the next channels to those who are being filled. `pieces` says
    /// what a channel is now; one that has gone needs no sending.
    pub fn fill<P: IntoIterator<Item = Record>>(
        &mut self,
        pieces: impl Fn(&ChannelKey) -> Option<P>,
    ) {
        for peer in &mut self.peers {
            let unconfirmed = peer.unconfirmed.iter().map(|record| record.bytes());
            let mut bytes: usize = unconfirmed.sum();
            while let Stage::Filling {
                channels,
                whole: None,
            } = &mut peer.stage
                && bytes < FILL_BYTES
            {
                if let Some(key) = channels.pop() {
                    for record in pieces(&key).into_iter().flatten() {
                        bytes += record.bytes();
                        peer.push(record);
                    }
                } else {
                    peer.stage = Stage::Filling {
                        channels: Vec::new(),
                        whole: Some(peer.sent + 1),
                    };
                    peer.push(Record::Whole);
                }
            }
        }
    }

    /// A standby has everything up to this number.
    pub fn confirmed(&mut self, from: &NodeRef, fill: u64, number: u64) {
        let known = |peer: &&mut Peer| peer.node == *from && peer.fill == fill;
        let Some(peer) = self.peers.iter_mut().find(known) else {
            return;
        };
        // Nobody confirms what was not sent, nor twice.
        let news = number.min(peer.sent).saturating_sub(peer.confirmed);
        let known = peer.unconfirmed.len();
        peer.unconfirmed.drain(..known.min(news as usize));
        peer.outgoing = peer.outgoing.min(peer.unconfirmed.len());
        peer.confirmed += news;
        if let Stage::Filling {
            whole: Some(whole), ..
        } = peer.stage
            && peer.confirmed >= whole
        {
            peer.stage = Stage::Counting;
        }
    }

    /// The way to a standby was made anew.
    pub fn reopened(&mut self, node: &NodeRef) {
        let known = |peer: &&mut Peer| peer.node == *node;
        if let Some(peer) = self.peers.iter_mut().find(known)
            && !matches!(peer.stage, Stage::Leaving { .. })
        {
            peer.outgoing = peer.unconfirmed.len();
        }
    }

    /// A standby is to count no longer.
    pub fn leave_out(&mut self, node: &NodeRef) {
        let version = self.row.version;
        self.peers
            .retain(|peer| peer.node != *node || peer.counts());
        for peer in &mut self.peers {
            let is_there = matches!(peer.stage, Stage::Counting | Stage::Retiring { .. });
            if peer.node == *node && is_there {
                peer.stage = Stage::Leaving { version };
            }
        }
    }

    /// These should stand by: whoever else does is let go of, once one of them
    /// is agreed to be in sync, or to make room for one of them if another stays.
    /// Returns who is still to be recruited.
    pub fn want<'a>(&mut self, wanted: &[&'a NodeRef]) -> Vec<&'a NodeRef> {
        let version = self.row.version;
        let is_wanted = |node: &NodeRef| wanted.contains(&node);
        let in_sync = &self.row.in_sync;
        let mut others = self.peers.iter().filter(|peer| is_wanted(&peer.node));
        if others.any(|peer| peer.counts() && in_sync.contains(&peer.node)) {
            self.peers
                .retain(|peer| is_wanted(&peer.node) || peer.counts());
            for peer in &mut self.peers {
                if !is_wanted(&peer.node) && peer.stage == Stage::Counting {
                    peer.stage = Stage::Retiring { version };
                }
            }
        }
        // A decision that is wanted no more.
        for peer in &mut self.peers {
            if is_wanted(&peer.node) && matches!(peer.stage, Stage::Retiring { .. }) {
                peer.stage = Stage::Counting;
            }
        }
        let is_known = |node: &NodeRef| self.peers.iter().any(|peer| peer.node == *node);
        if self.peers.len() >= STANDBYS_MAX && !wanted.iter().all(|node| is_known(node)) {
            self.make_room(wanted);
        }
        let room = STANDBYS_MAX.saturating_sub(self.peers.len());
        let is_new = |node: &&&NodeRef| self.peers.iter().all(|peer| peer.node != ***node);
        wanted.iter().filter(is_new).take(room).copied().collect()
    }

    /// Lets go of one that nobody wants: of one that has not everything yet, or of
    /// one of two that have. Who is the only one stays.
    fn make_room(&mut self, wanted: &[&NodeRef]) {
        let version = self.row.version;
        let is_unwanted = |peer: &Peer| !wanted.contains(&&peer.node);
        let is_filling = |peer: &Peer| is_unwanted(peer) && !peer.counts();
        if let Some(at) = self.peers.iter().rposition(is_filling) {
            self.peers.remove(at);
            return;
        }
        let in_sync = &self.row.in_sync;
        let has_all = |peer: &Peer| peer.stage == Stage::Counting && in_sync.contains(&peer.node);
        if self.peers.iter().all(has_all)
            && let Some(peer) = self.peers.iter_mut().rfind(|peer| is_unwanted(peer))
        {
            peer.stage = Stage::Retiring { version };
        }
    }

    /// The owner has stopped: what it has decided is performed no more.
    pub fn stop(&mut self) {
        self.held.clear();
    }

    /// Whether a node is one of the standbys that count.
    pub fn counts(&self, node: &NodeRef) -> bool {
        self.counting().any(|counting| counting == node)
    }

    /// What one standby is told when it is the owner now, besides what `taken` has.
    /// `None` until all that count have confirmed everything.
    pub fn release_to(
        &self,
        to: &NodeRef,
        (shard, fence): (ShardId, Fence),
        taken: &[Arc<Record>],
    ) -> Option<Part> {
        if self.lag() > 0 {
            return None;
        }
        let peer = self.peers.iter().find(|peer| peer.node == *to)?;
        let others = self.peers.iter().filter(|peer| peer.counts());
        let others = others.filter(|peer| peer.node != *to);
        let held = others.map(|peer| Held {
            node: peer.node.clone(),
            fence,
            fill: peer.fill,
            number: peer.sent,
        });
        let release = Arc::new(Record::Release(held.collect()));
        Some(Part {
            shard,
            fence,
            fill: peer.fill,
            first: peer.sent + 1,
            records: taken.iter().cloned().chain([release]).collect(),
        })
    }

    /// What is agreed of the shard's replicas.
    pub fn agreed(&mut self, row: Row) {
        if row.version < self.row.version {
            return;
        }
        self.row = row;
        self.awaits_row = false;
        let row = &self.row;
        self.peers.retain(|peer| match peer.stage {
            // What was proposed on an earlier version can no longer be agreed.
            Stage::Leaving { version } | Stage::Retiring { version } => {
                row.version <= version || row.in_sync.contains(&peer.node)
            }
            _ => true,
        });
    }

    /// The standbys, and whether each of them counts.
    pub fn standbys(&self) -> impl Iterator<Item = (&NodeRef, bool)> {
        self.peers.iter().map(|peer| (&peer.node, peer.counts()))
    }

    /// The standbys whose silence matters: those that have not been given up.
    pub fn awaited(&self) -> impl Iterator<Item = &NodeRef> {
        let leaves = |peer: &&Peer| matches!(peer.stage, Stage::Leaving { .. });
        let stays = self.peers.iter().filter(move |peer| !leaves(peer));
        stays.map(|peer| &peer.node)
    }

    /// How many changes some standby that counts has not confirmed yet.
    pub fn lag(&self) -> u64 {
        let counting = self.peers.iter().filter(|peer| peer.counts());
        counting
            .map(|peer| peer.sent - peer.confirmed)
            .max()
            .unwrap_or(0)
    }

    /// What waits to be performed.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Goes on without those who have been silent for too long.
    fn leave_out_silent(&mut self, now: Timestamp, leases: &Leases) {
        let silent = |node: &&NodeRef| leases.is_silent(now, node);
        let node = self.awaited().find(silent).cloned();
        if let Some(node) = node {
            self.leave_out(&node);
        }
    }

    /// See [`super::shard::Shard::gate`].
    pub(super) fn gate(
        &mut self,
        now: Timestamp,
        (shard, fence): (ShardId, Fence),
        leases: &Leases,
        first: usize,
        effects: &mut Vec<Effect>,
    ) {
        let is_alone = self.peers.is_empty() && self.held.is_empty();
        let nothing_is_agreed = self.row == Row::default() && !self.awaits_row;
        if is_alone && *leases == Leases::unlimited() && nothing_is_agreed {
            return;
        }
        self.leave_out_silent(now, leases);
        let awaited = self.awaited;
        if self.held.is_empty() {
            self.moved_at = Some(now);
        }
        let decided = effects.drain(first..);
        self.held.extend(decided.map(|effect| (awaited, effect)));
        self.replicate((shard, fence), effects);
        if now < leases.node {
            effects.extend(self.propose(now, shard, fence));
        }
        if self.acts(now, leases) {
            self.release(now, shard, fence, effects);
        }
        self.is_settled =
            self.held.is_empty() && self.known_counting().is_some() && !self.wants_agreement();
    }

    /// Sends what standbys have not been sent.
    pub fn replicate(&mut self, (shard, fence): (ShardId, Fence), effects: &mut Vec<Effect>) {
        for peer in &mut self.peers {
            if peer.outgoing > 0 {
                let begin = peer.unconfirmed.len() - peer.outgoing;
                let records = peer.unconfirmed.range(begin..).cloned().collect();
                effects.push(Effect::Replicate {
                    to: peer.node.clone(),
                    part: Part {
                        shard,
                        fence,
                        fill: peer.fill,
                        first: peer.sent - peer.outgoing as u64 + 1,
                        records,
                    },
                });
                peer.outgoing = 0;
            }
        }
    }

    /// For how long nothing has been released though something waits.
    pub fn stands_still(&self, now: Timestamp) -> Duration {
        match self.moved_at {
            Some(moved_at) if !self.held.is_empty() => now.since(moved_at),
            _ => Duration::ZERO,
        }
    }

    /// By which what was published ages. It stands while nothing is released: a
    /// publication that waits for a standby or a lease has been seen by nobody, and whoever
    /// loses it on the way when it is released has as long to ask for it as ever.
    pub fn clock(&self, now: Timestamp) -> Timestamp {
        let behind = self.stood + self.standstill(now);
        Timestamp(now.0.saturating_sub(behind.as_millis() as u64))
    }

    /// What counts as standing still: confirmations always take a moment.
    fn standstill(&self, now: Timestamp) -> Duration {
        self.stands_still(now).saturating_sub(A_MOMENT)
    }

    /// How far its standbys are, for people.
    pub fn progress(&self) -> String {
        let far = |peer: &Peer| {
            let stage = match &peer.stage {
                Stage::Filling { channels, whole } => {
                    let end = whole.map_or_else(String::new, |whole| format!(", end at {whole}"));
                    format!("being filled, {} channels left{end}", channels.len())
                }
                Stage::Counting => "has everything".into(),
                Stage::Retiring { .. } => "retires".into(),
                Stage::Leaving { .. } => "leaves".into(),
            };
            format!(
                "{} (incarnation {}) {stage}: {} of {} records confirmed, {} to go out",
                peer.node.id, peer.node.incarnation.0, peer.confirmed, peer.sent, peer.outgoing
            )
        };
        let all: Vec<String> = self.peers.iter().map(far).collect();
        if all.is_empty() {
            return "none".into();
        }
        all.join("; ")
    }

    /// For what the shard waits, for people. `None`: for nothing.
    pub fn waits_for(&self, now: Timestamp, leases: &Leases) -> Option<String> {
        let names = |nodes: Vec<&NodeRef>| {
            let names: Vec<&str> = nodes.iter().map(|node| node.id.as_str()).collect();
            names.join(" and ")
        };
        if now >= leases.node {
            return Some("a lease from the leader".into());
        }
        if self.awaits_row {
            return Some("what is agreed of its standbys".into());
        }
        let counts = |node: &NodeRef| self.counting().any(|counting| counting == node);
        let unknown = self.row.in_sync.iter().filter(|node| !counts(node));
        let unknown: Vec<&NodeRef> = unknown.collect();
        if !unknown.is_empty() {
            return Some(format!(
                "it to be agreed that {} does not stand by any more",
                names(unknown)
            ));
        }
        let silent = self.counting().filter(|node| !leases.hold(now, [*node]));
        let silent: Vec<&NodeRef> = silent.collect();
        if !silent.is_empty() {
            return Some(format!("a lease from its standby {}", names(silent)));
        }
        let behind = self.peers.iter().filter(|peer| peer.counts());
        let behind = behind.filter(|peer| peer.confirmed < peer.sent);
        let behind: Vec<&NodeRef> = behind.map(|peer| &peer.node).collect();
        (!behind.is_empty()).then(|| format!("confirmation by its standby {}", names(behind)))
    }

    /// Whether leases that change let nothing go that waits, unless somebody is
    /// silent.
    pub fn is_settled(&self) -> bool {
        self.is_settled
    }

    /// Whether this node may act as the owner now.
    pub fn acts(&self, now: Timestamp, leases: &Leases) -> bool {
        self.knows_all_in_sync() && leases.hold(now, self.counting())
    }

    /// The standbys that count.
    fn counting(&self) -> impl Iterator<Item = &NodeRef> {
        let counting = self.peers.iter().filter(|peer| peer.counts());
        counting.map(|peer| &peer.node)
    }

    /// The same, if those who perform have been told of them.
    fn known_counting(&self) -> Option<&Arc<[NodeRef]>> {
        let known = self.under.as_ref()?;
        self.counting().eq(known.iter()).then_some(known)
    }

    /// Whether everybody who may be made the owner has been given everything.
    fn knows_all_in_sync(&self) -> bool {
        let counts = |node: &NodeRef| {
            let mut peers = self.peers.iter();
            peers.any(|peer| peer.node == *node && peer.counts())
        };
        !self.awaits_row && self.row.in_sync.iter().all(counts)
    }

    /// Gives what is confirmed.
    fn release(&mut self, now: Timestamp, shard: ShardId, fence: Fence, effects: &mut Vec<Effect>) {
        let confirmed = self.made - self.lag();
        let due = self
            .held
            .partition_point(|(awaited, _)| *awaited <= confirmed);
        // Also when nothing is to be performed: what was released before may
        // still wait for the lease of a standby that has gone.
        let known = self.known_counting().cloned();
        if due == 0 && known.is_some() {
            return;
        }
        self.stood += self.standstill(now);
        self.moved_at = Some(now);
        let standbys = known.unwrap_or_else(|| self.counting().cloned().collect());
        self.under = Some(Arc::clone(&standbys));
        let copies = 1 + standbys.len() as u8;
        let released = self.held.drain(..due);
        let released = released.map(|(_, effect)| with_copies(effect, copies));
        effects.push(Effect::Under(Leased {
            shard,
            fence,
            standbys,
            effects: released.collect(),
        }));
    }

    /// Who should be known as in sync.
    fn wanted(&self) -> impl Iterator<Item = &NodeRef> {
        let counting = self.peers.iter();
        counting
            .filter(|peer| peer.stage == Stage::Counting)
            .map(|peer| &peer.node)
    }

    fn wants_agreement(&self) -> bool {
        let leaves =
            |peer: &Peer| matches!(peer.stage, Stage::Leaving { .. } | Stage::Retiring { .. });
        self.row.has_earlier
            || self.peers.iter().any(leaves)
            || self.wanted().count() != self.row.in_sync.len()
            || self.wanted().any(|node| !self.row.in_sync.contains(node))
    }

    fn propose(&mut self, now: Timestamp, shard: ShardId, fence: Fence) -> Option<Effect> {
        if !self.wants_agreement() {
            return None;
        }
        let in_sync: Vec<NodeRef> = self.wanted().cloned().collect();
        let version = self.row.version;
        let is_open = self.proposed.as_ref().is_some_and(|(on, what, at)| {
            *on == version && *what == in_sync && now.since(*at) < PROPOSE_AGAIN
        });
        if is_open {
            return None;
        }
        self.proposed = Some((version, in_sync.clone(), now));
        Some(Effect::Propose(Proposal {
            shard,
            fence,
            version,
            in_sync,
        }))
    }
}

/// An acknowledgement says in how many processes the publication is, and is none
/// if that has to be more than one and is not.
fn with_copies(effect: Effect, count: u8) -> Effect {
    let Effect::Acknowledge {
        to,
        mut reply,
        may_be_alone,
    } = effect
    else {
        return effect;
    };
    if let Reply::Published { result, .. } = &mut reply
        && let Ok(Published::Accepted { copies, .. }) = result
    {
        *copies = count;
        if count < 2 && !may_be_alone {
            *result = Err(Refusal::Unprotected);
        }
    }
    Effect::Reply { to, reply }
}
