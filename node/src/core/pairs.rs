//! The ways to standbys, seen from the owner's node: one for each pair of nodes,
//! whatever the number of shards, ordered and reliable until it breaks.
//!
//! A batch carries the time at which it was sent, by the owner's clock. The
//! standby's echo carries the same time back, and from it the **pair lease** is
//! counted: until then plus 300 ms the standby has promised not to be the owner
//! of anything that this node owns. So no two clocks are ever compared, and what
//! an echo takes only shortens the lease. A batch is sent every 50 ms at least.
//!
//! What is pushed together goes in as many batches as it needs: when a way is
//! made anew, everything unconfirmed of all shards is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proto::id::NodeRef;
use proto::shard::{Fence, ShardId};
use proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::lease::{PAIR_BEAT, PairLease};
use super::record::Record;

/// About how many bytes of records a batch has at most, unless one part alone
/// has more. A frame on a way may have many times that.
const BATCH_BYTES: usize = 1_024 * 1_024;

/// What an owner's node sends to a standby's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// Who sends it.
    pub from: NodeRef,
    /// For whom it is.
    pub to: NodeRef,
    /// When, in milliseconds by the sender's clock: means nothing to others.
    pub sent_at: u64,
    /// What has changed.
    pub parts: Vec<Part>,
}

/// What has changed in one shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The shard.
    pub shard: ShardId,
    /// Under which the sender owns it.
    pub fence: Fence,
    /// Which recruitment of a standby it is.
    pub fill: u64,
    /// The number of the first record.
    pub first: u64,
    /// The records.
    pub records: Vec<Arc<Record>>,
}

/// What a standby's node answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Echo {
    /// Who answers.
    pub from: NodeRef,
    /// Whom.
    pub to: NodeRef,
    /// The batch's.
    pub sent_at: u64,
    /// Shards that somebody else owns, under a higher fence, unless the sender
    /// stands by for them as before. Before anything else: no echo comes from one
    /// who knows that and has not said so.
    pub refused: Vec<(ShardId, Fence)>,
    /// What it has, up to which number.
    pub confirmed: Vec<Confirmation>,
    /// What it should have, and does not.
    pub lost: Vec<(ShardId, Fence)>,
}

/// What a standby has of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// The shard.
    pub shard: ShardId,
    /// The owner's fence.
    pub fence: Fence,
    /// Which recruitment it was.
    pub fill: u64,
    /// It has everything up to this number.
    pub number: u64,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send it on the way to its standby.
    Send(Batch),
    /// A standby has that much.
    Confirmed(NodeRef, Confirmation),
    /// The shard has another owner, says a node: it itself, if it stood by.
    Refused(NodeRef, ShardId, Fence),
    /// A standby has lost what it had.
    Lost(NodeRef, ShardId, Fence),
    /// What went the old way may be lost.
    Reopened(NodeRef),
    /// This life of a standby is over.
    Ended(NodeRef),
}

/// See the [module](self).
#[derive(Debug)]
pub struct Pairs {
    me: NodeRef,
    pairs: BTreeMap<NodeRef, Pair>,
}

#[derive(Debug)]
struct Pair {
    is_open: bool,
    parts: Vec<Part>,
    lease: PairLease,
    sent_at: Option<Timestamp>,
}

impl Pairs {
    /// A node without standbys.
    pub fn new(me: NodeRef) -> Self {
        Self {
            me,
            pairs: BTreeMap::new(),
        }
    }

    /// Something is to be sent to a standby.
    pub fn push(&mut self, now: Timestamp, to: NodeRef, part: Part) {
        let pair = self.pairs.entry(to).or_insert_with(|| Pair::new(now));
        // What is not sent now is sent when the way is made.
        if pair.is_open {
            pair.parts.push(part);
        }
    }

    /// Sends what has been pushed.
    pub fn flush(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        self.send(now, |pair| !pair.parts.is_empty(), effects);
    }

    /// Time has passed: whoever has been sent nothing for long gets a beat.
    pub fn tick(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let is_due = |pair: &Pair| pair.sent_at.is_none_or(|at| now.since(at) >= PAIR_BEAT);
        self.send(now, |pair| !pair.parts.is_empty() || is_due(pair), effects);
    }

    /// Those to whom there has to be a way.
    pub fn standbys(&self) -> impl Iterator<Item = &NodeRef> {
        self.pairs.keys()
    }

    /// These nodes are alive; what stood by in other lives does not any more.
    pub fn members(&mut self, members: &BTreeSet<NodeRef>, effects: &mut Vec<Effect>) {
        let ended = self.pairs.extract_if(.., |node, _| !members.contains(node));
        effects.extend(ended.map(|(node, _)| Effect::Ended(node)));
    }

    /// There is a way to a standby, a new one.
    pub fn opened(&mut self, now: Timestamp, to: &NodeRef, effects: &mut Vec<Effect>) {
        if let Some(pair) = self.pairs.get_mut(to) {
            pair.is_open = true;
            pair.parts.clear();
            pair.sent_at = None;
            pair.lease.reopened(now);
            effects.push(Effect::Reopened(to.clone()));
        }
    }

    /// The way to a standby has broken.
    pub fn closed(&mut self, to: &NodeRef) {
        if let Some(pair) = self.pairs.get_mut(to) {
            pair.is_open = false;
            pair.parts.clear();
        }
    }

    /// A standby has answered.
    pub fn echo(&mut self, now: Timestamp, echo: Echo, effects: &mut Vec<Effect>) {
        if echo.to != self.me {
            return;
        }
        let Some(pair) = self.pairs.get_mut(&echo.from) else {
            return;
        };
        let from = &echo.from;
        let refused = echo.refused.into_iter();
        effects.extend(refused.map(|(shard, fence)| Effect::Refused(from.clone(), shard, fence)));
        pair.lease.echo(now, Timestamp(echo.sent_at));
        let lost = echo.lost.into_iter();
        effects.extend(lost.map(|(shard, fence)| Effect::Lost(from.clone(), shard, fence)));
        let confirmed = echo.confirmed.into_iter();
        effects.extend(confirmed.map(|confirmed| Effect::Confirmed(from.clone(), confirmed)));
    }

    /// What standbys let this node do.
    pub fn leases(&self) -> BTreeMap<NodeRef, PairLease> {
        let lease = |(node, pair): (&NodeRef, &Pair)| (node.clone(), pair.lease);
        self.pairs.iter().map(lease).collect()
    }

    fn send(&mut self, now: Timestamp, is_due: impl Fn(&Pair) -> bool, effects: &mut Vec<Effect>) {
        for (to, pair) in &mut self.pairs {
            if pair.is_open && is_due(pair) {
                pair.sent_at = Some(now);
                let mut rest = std::mem::take(&mut pair.parts);
                loop {
                    let mut parts = rest;
                    rest = parts.split_off(fitting(&parts));
                    effects.push(Effect::Send(Batch {
                        from: self.me.clone(),
                        to: to.clone(),
                        sent_at: now.0,
                        parts,
                    }));
                    if rest.is_empty() {
                        break;
                    }
                }
            }
        }
    }
}

/// How many of these parts go into one batch: at least one, if there are any.
fn fitting(parts: &[Part]) -> usize {
    let mut bytes = 0;
    let fits = |part: &&Part| {
        let before = bytes;
        bytes += part
            .records
            .iter()
            .map(|record| record.bytes())
            .sum::<usize>();
        before == 0 || bytes <= BATCH_BYTES
    };
    parts.iter().take_while(fits).count()
}

impl Pair {
    fn new(now: Timestamp) -> Self {
        Self {
            is_open: false,
            parts: Vec::new(),
            lease: PairLease::new(now),
            sent_at: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::id::Incarnation;

    fn node(name: &str) -> NodeRef {
        NodeRef {
            id: name.parse().unwrap(),
            incarnation: Incarnation(1),
        }
    }

    fn part(shard: u16, bytes: usize) -> Part {
        let record = Arc::new(Record::Whole);
        let count = bytes / record.bytes();
        Part {
            shard: ShardId(shard),
            fence: Fence(1),
            fill: 1,
            first: 1,
            records: vec![record; count],
        }
    }

    /// The shards in each batch that goes out when these are pushed.
    fn batches(parts: Vec<Part>) -> Vec<Vec<u16>> {
        let (now, to) = (Timestamp(1_000), node("standby"));
        let mut pairs = Pairs::new(node("owner"));
        let mut effects = Vec::new();
        pairs.push(now, to.clone(), part(0, 0));
        pairs.opened(now, &to, &mut effects);
        for part in parts {
            pairs.push(now, to.clone(), part);
        }
        effects.clear();
        pairs.tick(now, &mut effects);
        let shards = |effect: &Effect| match effect {
            Effect::Send(batch) => batch.parts.iter().map(|part| part.shard.0).collect(),
            other => panic!("not sent: {other:?}"),
        };
        effects.iter().map(shards).collect()
    }

    #[test]
    fn what_is_pushed_together_goes_in_batches_of_bounded_size() {
        let half = BATCH_BYTES / 2;
        assert_eq!(batches(vec![]), [vec![0; 0]], "a beat");
        let three = (1..=3).map(|shard| part(shard, half)).collect();
        assert_eq!(batches(three), [vec![1, 2], vec![3]]);
        // One that is larger alone goes alone, and holds nobody up.
        let large = vec![part(1, 3 * half), part(2, half), part(3, 0)];
        assert_eq!(batches(large), [vec![1], vec![2, 3]]);
        let many: Vec<Part> = (0..1_024).map(|shard| part(shard, half)).collect();
        let sent = batches(many);
        assert!(sent.iter().all(|batch| batch.len() <= 2));
        assert!(sent.concat().into_iter().eq(0..1_024), "all, in order");
    }
}
