//! Which nodes are heard, each in its latest life only, and what their links
//! have brought.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::channel::ChannelKey;

use proto::id::{Incarnation, NodeId, NodeRef};
use proto::link::Receiver;
use proto::position::Position;
use proto::shard::ShardId;
use proto::time::Timestamp;

/// A node that was silent for so long is not asked, and its silence is told.
const SILENT: Duration = Duration::from_secs(2);
/// Nodes that are remembered at most; the one silent for longest is forgotten.
const NODES_MAX: usize = 1_024;
/// How long a silent node is remembered, if it owns nothing by then.
const FORGET: Duration = Duration::from_secs(60);
/// Channels of one link that wait for a repair at most. Others ask by position.
const WAITING_MAX: usize = 65_536;
/// How long a channel waits for repairs of its link, of whatever hole.
const WAIT: Duration = Duration::from_secs(5);
/// Nodes of other clusters that are remembered at most.
const STRANGERS_MAX: usize = 64;
/// How often a node is asked whether it knows of presence, at first and after so many
/// times: it may be of a version that complains of the question.
const GREET_SOON: Duration = Duration::from_millis(250);
const GREETINGS: u32 = 8;
const GREET: Duration = Duration::from_secs(10);
/// How often it is said that another cluster is heard.
const COMPLAIN: Duration = Duration::from_secs(10);

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Nodes {
    heard: BTreeMap<NodeId, Heard>,
    /// Nodes whose beats name another cluster. Replies do not say which one
    /// they come from.
    strangers: BTreeMap<NodeRef, Timestamp>,
    complained_at: Option<Timestamp>,
    /// Channels that waited for a link which is no more.
    adrift: Vec<(ShardId, ChannelKey)>,
}

#[derive(Debug)]
struct Heard {
    incarnation: Incarnation,
    /// A beat has named our cluster.
    ours: bool,
    at: Timestamp,
    /// When it last showed by itself that it is there: by a batch or a beat.
    signed_at: Timestamp,
    silent: bool,
    /// When it is forgotten, as long as it is silent.
    forget_at: Timestamp,
    /// It knows of presence, and was last greeted with this version of the map.
    greeted: Option<u64>,
    /// It is to be greeted with this one.
    owed: u64,
    /// When that was done last, and how often since it has answered.
    greeted_at: Option<Timestamp>,
    greetings: u32,
    link: Link,
}

/// The link from a node.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) receiver: Receiver,
    /// Channels in which something came too early while the link had holes.
    waiting: BTreeMap<(ShardId, ChannelKey), Waiting>,
}

/// What a channel waits for.
#[derive(Debug)]
struct Waiting {
    since: Timestamp,
    /// The last entry that came too early.
    number: u64,
    position: Position,
}

/// What has become of a node.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It has fallen silent.
    Silent(NodeId),
    /// It has been silent for long.
    Old(NodeId),
}

impl Link {
    /// An entry has come too early, and a hole before it may be the reason: its
    /// channel waits for that to be filled. `false`: too many do already.
    pub(super) fn wait(
        &mut self,
        now: Timestamp,
        number: u64,
        channel: (ShardId, ChannelKey),
        position: Position,
    ) -> bool {
        let room = self.waiting.len() < WAITING_MAX;
        if !room && !self.waiting.contains_key(&channel) {
            return false;
        }
        let waiting = self.waiting.entry(channel).or_insert(Waiting {
            since: now,
            number,
            position,
        });
        (waiting.number, waiting.position) = (number, position);
        true
    }

    fn done_waiting(&mut self, now: Timestamp) -> Vec<((ShardId, ChannelKey), Position)> {
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let lowest = self.receiver.lowest_missing().unwrap_or(u64::MAX);
        let over = |w: &mut Waiting| w.number < lowest || now.since(w.since) >= WAIT;
        self.waiting
            .extract_if(.., |_, waiting| over(waiting))
            .map(|(channel, waiting)| (channel, waiting.position))
            .collect()
    }
}

impl Heard {
    fn new(now: Timestamp, incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            ours: false,
            at: now,
            signed_at: now,
            silent: false,
            forget_at: now,
            greeted: None,
            owed: 0,
            greeted_at: None,
            greetings: 0,
            link: Link::default(),
        }
    }
}

impl Nodes {
    /// A message of this node has come. Its link, which begins anew with each
    /// life; `None`: the message is of a life that is over, or of another
    /// cluster, and does not count.
    pub(super) fn hear(&mut self, now: Timestamp, from: &NodeRef) -> Option<&mut Link> {
        if self.strangers.contains_key(from) {
            return None;
        }
        if !self.heard.contains_key(&from.id) {
            self.make_room();
        }
        let fresh = || Heard::new(now, from.incarnation);
        let node = self.heard.entry(from.id.clone()).or_insert_with(fresh);
        if from.incarnation < node.incarnation {
            return None;
        }
        if from.incarnation > node.incarnation {
            let next = Heard {
                signed_at: node.signed_at,
                silent: node.silent,
                forget_at: node.forget_at,
                ..fresh()
            };
            let before = std::mem::replace(node, next);
            self.adrift.extend(before.link.waiting.into_keys());
        }
        node.at = now;
        Some(&mut node.link)
    }

    /// A node has shown by itself that it is there. `true`: after it had been
    /// silent.
    pub(super) fn sign(&mut self, now: Timestamp, node: &NodeId) -> bool {
        let Some(node) = self.heard.get_mut(node) else {
            return false;
        };
        node.signed_at = now;
        std::mem::take(&mut node.silent)
    }

    /// What silence has changed.
    pub(super) fn tick(&mut self, now: Timestamp) -> Vec<Change> {
        let mut changes = Vec::new();
        for (id, node) in &mut self.heard {
            if !node.silent && now.since(node.signed_at) >= SILENT {
                node.silent = true;
                node.forget_at = node.signed_at + FORGET;
                changes.push(Change::Silent(id.clone()));
            } else if node.silent && node.forget_at <= now {
                node.forget_at = now + FORGET;
                changes.push(Change::Old(id.clone()));
            }
        }
        changes
    }

    /// Nodes that are silent.
    pub(super) fn silent(&self) -> usize {
        self.heard.values().filter(|node| node.silent).count()
    }

    pub(super) fn forget(&mut self, node: &NodeId) {
        if let Some(node) = self.heard.remove(node) {
            self.adrift.extend(node.link.waiting.into_keys());
        }
    }

    /// Nodes whose links have holes.
    pub(super) fn with_holes(&self) -> Vec<NodeRef> {
        let holes = |(_, node): &(&NodeId, &Heard)| node.link.receiver.lowest_missing().is_some();
        let node_ref = |(id, node): (&NodeId, &Heard)| NodeRef {
            id: id.clone(),
            incarnation: node.incarnation,
        };
        self.heard.iter().filter(holes).map(node_ref).collect()
    }

    /// Channels whose wait for a repair is over, with the position that they
    /// should have reached by it.
    pub(super) fn done_waiting(
        &mut self,
        now: Timestamp,
    ) -> Vec<((ShardId, ChannelKey), Position)> {
        let links = self.heard.values_mut().map(|node| &mut node.link);
        links.flat_map(|link| link.done_waiting(now)).collect()
    }

    pub(super) fn link(&mut self, node: &NodeId) -> Option<&mut Link> {
        self.heard.get_mut(node).map(|node| &mut node.link)
    }

    /// This gateway begins another life: nodes number what they send to it anew.
    /// What waits is asked for with everything else.
    pub(super) fn begin_links(&mut self) {
        for node in self.heard.values_mut() {
            node.link = Link::default();
        }
    }

    /// Channels that waited for a link which is no more.
    pub(super) fn take_adrift(&mut self) -> Vec<(ShardId, ChannelKey)> {
        std::mem::take(&mut self.adrift)
    }

    /// A beat that names our cluster.
    pub(super) fn hear_ours(&mut self, now: Timestamp, from: &NodeRef) -> bool {
        self.strangers.remove(from);
        let counts = self.hear(now, from).is_some();
        if counts && let Some(node) = self.heard.get_mut(&from.id) {
            node.ours = true;
        }
        counts
    }

    /// A beat or map that names another cluster. Two clusters may call a node
    /// the same, so one whose beat has named ours stays ours; otherwise what was
    /// heard of it is forgotten.
    pub(super) fn hear_stranger(&mut self, now: Timestamp, from: &NodeRef) {
        let same = |heard: &&Heard| heard.incarnation == from.incarnation;
        match self.heard.get(&from.id).filter(same) {
            Some(heard) if heard.ours => return,
            Some(_) => self.forget(&from.id),
            None => {}
        }
        if self.strangers.len() >= STRANGERS_MAX {
            let oldest = self.strangers.iter().min_by_key(|(_, at)| **at);
            if let Some(oldest) = oldest.map(|(node, _)| node.clone()) {
                self.strangers.remove(&oldest);
            }
        }
        self.strangers.insert(from.clone(), now);
    }

    /// Whether it is time to say that another cluster is heard.
    pub(super) fn complains(&mut self, now: Timestamp) -> bool {
        let due = self
            .complained_at
            .is_none_or(|at| now.since(at) >= COMPLAIN);
        if due {
            self.complained_at = Some(now);
        }
        due
    }

    /// The nodes that are to be greeted now. One that does not answer may be of an
    /// earlier version, and may be restarted as another.
    pub(super) fn greet(&mut self, now: Timestamp) -> Vec<NodeId> {
        let mut all = Vec::new();
        for (id, node) in &mut self.heard {
            let wait = if node.greetings < GREETINGS {
                GREET_SOON
            } else {
                GREET
            };
            let is_due = node.greeted_at.is_none_or(|at| now.since(at) >= wait);
            let is_owed = node.greeted.is_none_or(|greeted| greeted < node.owed);
            if node.ours && !node.silent && is_owed && is_due {
                node.greeted_at = Some(now);
                node.greetings += 1;
                all.push(id.clone());
            }
        }
        all
    }

    /// A node is to be told anew in which shards there are no members.
    pub(super) fn owe_greeting(&mut self, node: &NodeId, map_version: u64) {
        if let Some(node) = self.heard.get_mut(node)
            && node.owed < map_version
        {
            node.owed = map_version;
            node.greeted_at = None;
        }
    }

    /// The same for all nodes: this gateway begins another life.
    pub(super) fn owe_greetings(&mut self, map_version: u64) {
        for node in self.heard.values_mut() {
            // What was told of another life does not count.
            node.greeted = node.greeted.map(|_| 0);
            node.owed = map_version;
            node.greeted_at = None;
        }
    }

    /// A node has answered: it knows of presence.
    pub(super) fn greeted(&mut self, node: &NodeId, map_version: u64) {
        if let Some(node) = self.heard.get_mut(node) {
            node.greeted = node.greeted.max(Some(map_version));
            node.greetings = 0;
        }
    }

    /// Whether all nodes do that are there.
    pub(super) fn all_know_presence(&self) -> bool {
        let mut there = self.heard.values().filter(|node| node.ours && !node.silent);
        let is_any = there.clone().next().is_some();
        is_any && there.all(|node| node.greeted.is_some())
    }

    /// Whether none has been heard yet.
    pub(super) fn is_empty(&self) -> bool {
        self.heard.is_empty()
    }

    /// Some node that is there: the one that was heard last.
    pub(super) fn any(&self, now: Timestamp) -> Option<&NodeId> {
        self.heard
            .iter()
            .filter(|(_, node)| now.since(node.at) < SILENT)
            .max_by_key(|(_, node)| node.at)
            .map(|(id, _)| id)
    }

    fn make_room(&mut self) {
        if self.heard.len() < NODES_MAX {
            return;
        }
        let oldest = self.heard.iter().min_by_key(|(_, node)| node.at);
        if let Some(oldest) = oldest.map(|(id, _)| id.clone()) {
            self.forget(&oldest);
        }
    }
}
