//! How a gateway comes to its first map.
//!
//! It listens for beats of nodes and asks one after another for the map, until
//! one of them answers with something to route by:
//!
//! ```text
//!             beat of a node that has a map           map
//!  Listening ───────────────────────────────▶ Asked ───────▶ Found
//!      ▲                                     │   ▲ │ Gone: raise, ask again
//!      └─────── 1 s, or no use of it ────────┘   └─┘
//! ```
//!
//! A node that knows a later life of this gateway answers `Gone`: the clock by
//! which this life was named is behind. As long as nothing has been done under
//! the name, the gateway takes a higher one. How much higher depends on when it
//! started: nodes may know different lives, and two processes that hear of the
//! same one must not become one life, whose publishes would answer each other.
//! From then on only answers to the higher one count: what is said of the
//! earlier one may speak of this process itself.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::id::{GatewayRef, Incarnation, NodeId};
use proto::message::{Message, NodeBeat, Reply, Request};
use proto::namespace::Namespaces;
use proto::shard::MapUpdate;
use proto::time::Timestamp;

/// How long a node has to answer before another is asked; no node is asked
/// more often.
const PATIENCE: Duration = Duration::from_secs(1);
/// A node that was silent for so long is not asked.
const SILENT: Duration = Duration::from_secs(2);
/// How often a gateway without a map says so.
const COMPLAIN: Duration = Duration::from_secs(5);
/// By how much the incarnation is raised at most, and then one: a second.
const RAISE: u64 = 1_000_000;
/// Nodes that are remembered at most; any one of them will do.
const NODES_MAX: usize = 256;

/// What discovery is told.
#[derive(Debug)]
pub enum Input {
    /// A message from the bus.
    Message(Message),
    /// Time has passed; comes every 20 ms or so.
    Tick,
}

/// What is to be done, in this order.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Ask a node for the map.
    Request {
        /// Which one.
        node: NodeId,
        /// In whose name; its incarnation may have been raised.
        me: GatewayRef,
        /// For the map.
        request: Request,
    },
    /// Log: a node knows a later life of this gateway, so it takes a higher
    /// incarnation.
    Raised {
        /// The new one.
        to: Incarnation,
    },
    /// Log: there is still no map.
    Complain(Trouble),
    /// Count: a message that does not belong here, or a map that makes no sense.
    Malformed,
    /// Start: this is the map. The last effect.
    Found(Found),
}

/// Why there is no map yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// No node is heard on the bus.
    NoNode,
    /// Nodes are heard, and none has a map: their cluster is not formed.
    NotFormed {
        /// One of them.
        node: NodeId,
    },
    /// A node is heard and does not answer.
    NoAnswer {
        /// Which one.
        node: NodeId,
    },
    /// A node's map makes no sense.
    Unsound {
        /// Which one's.
        node: NodeId,
    },
}

/// What a gateway needs to start.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// This gateway, perhaps under a raised incarnation.
    pub me: GatewayRef,
    /// A whole map that is sound.
    pub map: MapUpdate,
    /// What channels keep.
    pub namespaces: Namespaces,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Discovery {
    me: GatewayRef,
    /// When this process started, by its clock.
    started: Incarnation,
    nodes: BTreeMap<NodeId, Heard>,
    asked: Option<(NodeId, Timestamp)>,
    trouble: Trouble,
    complain_at: Timestamp,
    found: bool,
}

#[derive(Debug)]
struct Heard {
    at: Timestamp,
    has_map: bool,
    asked_at: Option<Timestamp>,
}

impl Discovery {
    /// Knows nobody yet.
    pub fn new(me: GatewayRef, now: Timestamp) -> Self {
        Self {
            started: me.incarnation,
            me,
            nodes: BTreeMap::new(),
            asked: None,
            trouble: Trouble::NoNode,
            complain_at: now + COMPLAIN,
            found: false,
        }
    }

    /// Applies one input. The only way discovery changes; after
    /// [`Effect::Found`] it does nothing any more.
    pub fn handle(&mut self, now: Timestamp, input: Input, effects: &mut Vec<Effect>) {
        if self.found {
            return;
        }
        match input {
            Input::Message(Message::NodeBeat(beat)) => self.beat(now, beat),
            Input::Message(Message::Replies(replies)) => {
                if replies.to == self.me.incarnation {
                    for reply in replies.replies {
                        self.reply(now, &replies.from.id, reply, effects);
                    }
                }
            }
            // Of links that served an earlier life, and of maps: the whole one
            // that is asked for is at least as new.
            Input::Message(Message::Batch(_) | Message::Repair(_) | Message::Map(_)) => {}
            Input::Message(
                Message::Requests(_) | Message::GatewayBeat(_) | Message::GatewayCounts(_),
            ) => {
                effects.push(Effect::Malformed);
            }
            Input::Tick => self.tick(now, effects),
        }
        self.ask(now, effects);
    }

    fn beat(&mut self, now: Timestamp, beat: NodeBeat) {
        if self.nodes.len() >= NODES_MAX && !self.nodes.contains_key(&beat.from.id) {
            self.nodes.retain(|_, node| now.since(node.at) < SILENT);
            if self.nodes.len() >= NODES_MAX {
                return;
            }
        }
        let has_map = beat.map_version > 0;
        if !has_map && self.trouble == Trouble::NoNode {
            self.trouble = Trouble::NotFormed {
                node: beat.from.id.clone(),
            };
        }
        let asked_at = self.nodes.get(&beat.from.id).and_then(|node| node.asked_at);
        let heard = Heard {
            at: now,
            has_map,
            asked_at,
        };
        self.nodes.insert(beat.from.id, heard);
    }

    fn reply(&mut self, now: Timestamp, from: &NodeId, reply: Reply, effects: &mut Vec<Effect>) {
        match reply {
            Reply::Map { update, namespaces } => self.map(from, update, namespaces, effects),
            Reply::Gone { newer } if newer > self.me.incarnation => {
                self.raise(now, from, newer, effects);
            }
            Reply::DeclaredGone { through } if through >= self.me.incarnation => {
                self.raise(now, from, through, effects);
            }
            // Answers to what an earlier life had asked.
            _ => {}
        }
    }

    fn map(
        &mut self,
        from: &NodeId,
        map: MapUpdate,
        namespaces: Namespaces,
        effects: &mut Vec<Effect>,
    ) {
        if self.found {
            return;
        }
        let node = from.clone();
        if map.version == 0 || map.rows.is_empty() {
            self.give_up(from, Trouble::NotFormed { node });
        } else if map.since > 0 || !map.is_sound() {
            self.give_up(from, Trouble::Unsound { node });
            effects.push(Effect::Malformed);
        } else {
            self.found = true;
            effects.push(Effect::Found(Found {
                me: self.me.clone(),
                map,
                namespaces,
            }));
        }
    }

    fn raise(
        &mut self,
        now: Timestamp,
        from: &NodeId,
        newer: Incarnation,
        effects: &mut Vec<Effect>,
    ) {
        let Some(above) = newer.0.checked_add(1 + self.started.0 % RAISE) else {
            effects.push(Effect::Malformed);
            return;
        };
        if self.found {
            return;
        }
        self.me.incarnation = Incarnation(above);
        effects.push(Effect::Raised {
            to: self.me.incarnation,
        });
        // It answers, so it is asked again at once.
        self.request(now, from.clone(), effects);
    }

    fn tick(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if let Some((node, at)) = self.asked.clone()
            && now.since(at) >= PATIENCE
        {
            self.give_up(&node, Trouble::NoAnswer { node: node.clone() });
        }
        if now >= self.complain_at {
            self.complain_at = now + COMPLAIN;
            effects.push(Effect::Complain(self.trouble.clone()));
            // What it was may be over; if it is not, it shows again.
            self.trouble = Trouble::NoNode;
        }
    }

    fn give_up(&mut self, node: &NodeId, why: Trouble) {
        self.asked.take_if(|(asked, _)| asked == node);
        self.trouble = why;
    }

    /// Asks the node that has waited longest for its turn, if none is asked.
    fn ask(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if self.found || self.asked.is_some() {
            return;
        }
        let next = self
            .nodes
            .iter()
            .filter(|(_, node)| node.has_map && now.since(node.at) < SILENT)
            .filter(|(_, node)| node.asked_at.is_none_or(|at| now.since(at) >= PATIENCE))
            .min_by_key(|(_, node)| node.asked_at);
        if let Some((id, _)) = next {
            let id = id.clone();
            self.request(now, id, effects);
        }
    }

    fn request(&mut self, now: Timestamp, node: NodeId, effects: &mut Vec<Effect>) {
        if let Some(heard) = self.nodes.get_mut(&node) {
            heard.asked_at = Some(now);
        }
        self.asked = Some((node.clone(), now));
        effects.push(Effect::Request {
            node,
            me: self.me.clone(),
            request: Request::Map { since: 0 },
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::id::{ClusterUuid, NodeRef};
    use proto::message::{GatewayBeat, Replies};
    use proto::shard::ShardMap;

    fn node(id: &str) -> NodeRef {
        NodeRef {
            id: id.parse().unwrap(),
            incarnation: Incarnation(1),
        }
    }

    fn me(incarnation: u64) -> GatewayRef {
        GatewayRef {
            id: "g".parse().unwrap(),
            incarnation: Incarnation(incarnation),
        }
    }

    fn map() -> MapUpdate {
        ShardMap::standalone(ClusterUuid(1), 0, node("a")).since(0)
    }

    struct Bench(Discovery, Vec<Effect>);

    impl Bench {
        fn new() -> Self {
            Self(Discovery::new(me(5), Timestamp(0)), Vec::new())
        }

        fn tell(&mut self, at: u64, input: Input) -> &[Effect] {
            self.1.clear();
            self.0.handle(Timestamp(at), input, &mut self.1);
            &self.1
        }

        fn beat(&mut self, at: u64, from: &str, map_version: u64) -> &[Effect] {
            let beat = NodeBeat {
                from: node(from),
                cluster: ClusterUuid(1),
                map_version,
                namespaces: 0,
            };
            self.tell(at, Input::Message(Message::NodeBeat(beat)))
        }

        fn reply(&mut self, at: u64, from: &str, to: u64, reply: Reply) -> &[Effect] {
            let replies = Replies {
                from: node(from),
                to: Incarnation(to),
                map_version: 1,
                replies: vec![reply],
            };
            self.tell(at, Input::Message(Message::Replies(replies)))
        }

        fn map(&mut self, at: u64, from: &str, update: MapUpdate) -> &[Effect] {
            let namespaces = Namespaces::default();
            self.reply(at, from, 5, Reply::Map { update, namespaces })
        }
    }

    fn ask(node: &str, as_incarnation: u64) -> Effect {
        Effect::Request {
            node: node.parse().unwrap(),
            me: me(as_incarnation),
            request: Request::Map { since: 0 },
        }
    }

    fn found(incarnation: u64) -> Effect {
        Effect::Found(Found {
            me: me(incarnation),
            map: map(),
            namespaces: Namespaces::default(),
        })
    }

    #[test]
    fn the_first_node_that_is_heard_is_asked_and_its_map_taken() {
        let mut bench = Bench::new();
        assert_eq!(bench.tell(0, Input::Tick), []);
        assert_eq!(bench.beat(10, "a", 1), [ask("a", 5)]);
        assert_eq!(bench.beat(20, "b", 1), [], "one at a time");
        assert_eq!(bench.map(30, "a", map()), [found(5)]);
        assert_eq!(bench.beat(5_000, "b", 1), [], "it is over");
    }

    #[test]
    fn a_node_that_does_not_answer_is_given_up_for_another() {
        let mut bench = Bench::new();
        bench.beat(0, "a", 1);
        bench.beat(0, "b", 1);
        assert_eq!(bench.tell(999, Input::Tick), []);
        assert_eq!(bench.tell(1_000, Input::Tick), [ask("b", 5)]);
        assert_eq!(bench.tell(1_999, Input::Tick), []);
        assert_eq!(bench.tell(2_000, Input::Tick), [], "both are silent by now");
        assert_eq!(bench.beat(2_500, "b", 1), [ask("b", 5)]);
        // Who answers late answers all the same.
        assert_eq!(bench.map(2_600, "a", map()), [found(5)]);
    }

    #[test]
    fn a_node_without_a_map_is_not_asked_until_it_has_one() {
        let mut bench = Bench::new();
        assert_eq!(bench.beat(0, "a", 0), []);
        assert_eq!(bench.beat(500, "a", 1), [ask("a", 5)]);
    }

    #[test]
    fn a_map_to_which_nothing_can_be_routed_is_not_taken() {
        let mut other = map();
        other.rows.clear();
        let empty = ShardMap::unassigned(ClusterUuid(1), map().sharding).since(0);
        for useless in [other, empty] {
            let mut bench = Bench::new();
            bench.beat(0, "a", 1);
            bench.beat(0, "b", 1);
            assert_eq!(
                bench.map(10, "a", useless.clone()),
                [ask("b", 5)],
                "another may know more"
            );
            assert_eq!(bench.map(20, "b", useless), [], "nobody is pestered");
            assert_eq!(bench.beat(1_000, "a", 1), [ask("a", 5)]);
        }
    }

    #[test]
    fn a_map_that_makes_no_sense_is_counted_and_not_taken() {
        let mut strange = map();
        strange.rows[7].1.owner = 9;
        let delta = MapUpdate { since: 1, ..map() };
        for unsound in [strange, delta] {
            let mut bench = Bench::new();
            bench.beat(0, "a", 1);
            assert_eq!(bench.map(10, "a", unsound), [Effect::Malformed]);
            assert_eq!(bench.tell(1_000, Input::Tick), [ask("a", 5)]);
        }
    }

    #[test]
    fn a_later_life_that_a_node_knows_is_outdone() {
        let mut bench = Bench::new();
        bench.beat(0, "a", 1);
        let gone = |newer| Reply::Gone {
            newer: Incarnation(newer),
        };
        let to = Incarnation(8 + 1 + 5);
        let raised = Effect::Raised { to };
        assert_eq!(bench.reply(10, "a", 5, gone(8)), [raised, ask("a", to.0)]);
        // Answers to the life before: the second may speak of this process.
        assert_eq!(bench.reply(20, "b", 5, gone(8)), []);
        assert_eq!(bench.reply(20, "b", 5, gone(to.0)), []);
        assert_eq!(bench.map(20, "a", map()), [], "asked by the life before");
        let whole = Reply::Map {
            update: map(),
            namespaces: Namespaces::default(),
        };
        assert_eq!(bench.reply(30, "a", to.0, whole), [found(to.0)]);
    }

    #[test]
    fn a_life_that_was_declared_gone_is_not_begun_again() {
        let mut bench = Bench::new();
        bench.beat(0, "a", 1);
        let gone = |through| Reply::DeclaredGone {
            through: Incarnation(through),
        };
        assert_eq!(bench.reply(10, "a", 5, gone(4)), []);
        let to = Incarnation(5 + 1 + 5);
        let raised = Effect::Raised { to };
        assert_eq!(bench.reply(10, "a", 5, gone(5)), [raised, ask("a", to.0)]);
    }

    /// The clock was set back twice, and the node that is asked the second time
    /// has not heard of the life that was begun the first time.
    #[test]
    fn two_processes_that_outdo_one_life_become_two() {
        let become_of = |started| {
            let mut discovery = Discovery::new(me(started), Timestamp(0));
            let reply = Reply::Gone {
                newer: Incarnation(1_800_000_000_000_507),
            };
            let replies = Replies {
                from: node("a"),
                to: Incarnation(started),
                map_version: 1,
                replies: vec![reply],
            };
            let mut effects = Vec::new();
            let input = Input::Message(Message::Replies(replies));
            discovery.handle(Timestamp(10), input, &mut effects);
            match effects[..] {
                [Effect::Raised { to }, ..] => to,
                _ => panic!("it is raised: {effects:?}"),
            }
        };
        let (one, other) = (1_799_999_998_000_042, 1_799_999_999_000_043);
        assert_ne!(become_of(one), become_of(other));
    }

    #[test]
    fn an_incarnation_that_cannot_be_outdone_is_not_believed() {
        let mut bench = Bench::new();
        bench.beat(0, "a", 1);
        for newer in [u64::MAX, 5, 4] {
            let gone = Reply::Gone {
                newer: Incarnation(newer),
            };
            let raises = bench
                .reply(10, "a", 5, gone)
                .iter()
                .any(|effect| matches!(effect, Effect::Raised { .. } | Effect::Request { .. }));
            assert!(!raises, "{newer}");
        }
    }

    #[test]
    fn it_says_every_5_s_what_it_waits_for() {
        let mut bench = Bench::new();
        let complaints = |bench: &mut Bench, from: u64, beat: Option<u64>| {
            let mut heard = Vec::new();
            for at in (from..from + 5_000).step_by(20) {
                if let Some(version) = beat.filter(|_| at % 500 == 0) {
                    bench.beat(at, "a", version);
                }
                for effect in bench.tell(at, Input::Tick) {
                    if let Effect::Complain(trouble) = effect {
                        heard.push((at, trouble.clone()));
                    }
                }
            }
            heard
        };
        let a = || "a".parse().unwrap();
        assert_eq!(complaints(&mut bench, 20, None), [(5_000, Trouble::NoNode)]);
        assert_eq!(
            complaints(&mut bench, 5_020, Some(0)),
            [(10_000, Trouble::NotFormed { node: a() })]
        );
        assert_eq!(
            complaints(&mut bench, 10_020, Some(1)),
            [(15_000, Trouble::NoAnswer { node: a() })]
        );
    }

    #[test]
    fn what_is_for_nodes_is_counted() {
        let mut bench = Bench::new();
        let beat = GatewayBeat {
            from: me(5),
            cluster: ClusterUuid(1),
            map_version: 0,
            namespaces: 0,
            connections: 0,
            interest: vec![],
        };
        let message = Message::GatewayBeat(beat);
        assert_eq!(bench.tell(0, Input::Message(message)), [Effect::Malformed]);
    }
}
