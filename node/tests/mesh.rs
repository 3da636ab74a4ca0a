//! A node on a bus in memory, spoken to as gateways and other nodes do, while
//! the map of its cluster changes.

use std::sync::Arc;
use std::time::Duration;

use node::{Config, Error, Metrics, Node, View};
use prometheus::Registry;
use prometheus::proto::MetricFamily;
use proto::bus::{BusHandle, MemoryBus, Subscription};
use proto::channel::ChannelKey;
use proto::codec;
use proto::id::{ClusterUuid, GatewayRef, Incarnation, NodeRef};
use proto::inspection::{Answer, NodeInfo, Question};
use proto::message::{
    GatewayBeat, InterestDigest, Join, Message, NodeBeat, Publish, Published, Refusal, Reply,
    Request, Requests, RestateEnd, Sequenced, ShardInterest, Since,
};
use proto::namespace::Namespaces;
use proto::position::Position;
use proto::shard::{Fence, Row, ShardId, ShardMap, Sharding};
use proto::subject::{Address, Subject};
use proto::time::UnixTime;
use tokio::sync::watch;

const CLUSTER: ClusterUuid = ClusterUuid(7);
const SHARDING: Sharding = Sharding { seed: 1, count: 8 };

fn node_ref(id: &str, incarnation: u64) -> NodeRef {
    NodeRef {
        id: id.parse().expect("valid"),
        incarnation: Incarnation(incarnation),
    }
}

fn gateway(incarnation: u64) -> GatewayRef {
    GatewayRef {
        id: "g".parse().expect("valid"),
        incarnation: Incarnation(incarnation),
    }
}

fn key() -> ChannelKey {
    ChannelKey {
        app: "app".parse().expect("valid"),
        channel: "room".parse().expect("valid"),
    }
}

/// The shard that the tests speak of.
fn shard() -> ShardId {
    SHARDING.shard_of(&key())
}

/// A map in which one node owns everything since the first version and another
/// one owns the tests' shard since this version.
fn map(version: u64, rest: NodeRef, owner: NodeRef) -> Arc<ShardMap> {
    let row = Row {
        owner: 0,
        fence: Fence(1),
    };
    let mut rows = vec![row; usize::from(SHARDING.count)];
    rows[usize::from(shard().0)] = Row {
        owner: 1,
        fence: Fence(version),
    };
    Arc::new(ShardMap {
        cluster: CLUSTER,
        version,
        sharding: SHARDING,
        nodes: vec![rest, owner],
        rows,
    })
}

fn publish(fence: u64, sequence: u64) -> Request {
    let place = Sequenced {
        shard: shard(),
        fence: Fence(fence),
        sequence,
        low_mark: sequence,
    };
    Request::Publish(Publish {
        place,
        key: key(),
        event: "e".into(),
        data: "d".into(),
        exclude: None,
        accepted_at: UnixTime(0),
        idempotency: None,
        by: None,
    })
}

fn join(fence: u64, version: u64) -> Request {
    Request::Join(Join {
        shard: shard(),
        fence: Fence(fence),
        key: key(),
        count: 1,
        since: Since::Now,
        version,
        is_counted: false,
    })
}

/// A node, and a gateway's ends of the bus.
struct Mesh {
    bus: BusHandle,
    metrics: Arc<Metrics>,
    registry: Registry,
    map: watch::Sender<Arc<ShardMap>>,
    _members: watch::Sender<Arc<Vec<NodeInfo>>>,
    _leads: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    node: Node,
    inbox: Subscription,
    pushed: Subscription,
    node_beats: Subscription,
}

fn subject(address: Address) -> Subject {
    Subject {
        cluster: "test".parse().expect("valid"),
        address,
    }
}

impl Mesh {
    async fn start(first: Arc<ShardMap>) -> Self {
        let bus: BusHandle = Arc::new(MemoryBus::default());
        let subscribe = async |address| {
            let subscribed = bus.subscribe(subject(address)).await;
            subscribed.expect("a bus in memory takes it")
        };
        let inbox = subscribe(Address::Inbox(gateway(1).id)).await;
        let pushed = subscribe(Address::Map).await;
        let node_beats = subscribe(Address::NodeBeats).await;
        let (map, map_view) = watch::channel(first);
        let (members, members_view) = watch::channel(Arc::default());
        let (leads, leads_view) = watch::channel(true);
        let (stop, shutdown) = watch::channel(false);
        let registry = Registry::new();
        let metrics = Arc::new(Metrics::register(&registry, bus.name()).expect("fresh"));
        let config = Config {
            cluster: "test".parse().expect("valid"),
            node: node_ref("n", 5),
            namespaces: Namespaces::default(),
            workers: 2,
        };
        let view = View {
            agreement: None,
            map: map_view,
            members: members_view,
            leads: leads_view,
            events: watch::channel(Arc::default()).1,
        };
        let before = bus.stats().subscriptions;
        let node = node::start(
            config,
            view,
            node::Checkpoint::default(),
            Arc::clone(&bus),
            Arc::clone(&metrics),
            shutdown,
        );
        let node = node.await.expect("it starts");
        assert_eq!(bus.stats().subscriptions - before, 3, "never more");
        Self {
            bus,
            metrics,
            registry,
            map,
            _members: members,
            _leads: leads,
            stop,
            node,
            inbox,
            pushed,
            node_beats,
        }
    }

    fn send(&self, address: Address, message: &Message) {
        let sent = self.bus.publish(&subject(address), codec::encode(message));
        sent.expect("a bus in memory takes it");
    }

    fn ask(&self, from: GatewayRef, request: Request) {
        let requests = Requests {
            from,
            map_version: 1,
            requests: vec![request],
        };
        let to = Address::Node("n".parse().expect("valid"));
        self.send(to, &Message::Requests(requests));
    }

    /// The next answer, and the version of the map that it names.
    async fn answer(&mut self) -> (Reply, u64) {
        match next(&mut self.inbox).await {
            Message::Replies(mut replies) => {
                assert_eq!(replies.replies.len(), 1, "{replies:?}");
                (replies.replies.remove(0), replies.map_version)
            }
            other => panic!("replies expected, got {other:?}"),
        }
    }

    async fn published(&mut self) -> Result<Position, Refusal> {
        match self.answer().await.0 {
            Reply::Published { result, .. } => match result {
                Ok(Published::Accepted { position, .. }) => Ok(position),
                Ok(Published::Skipped) => panic!("it was no skip"),
                Err(refusal) => Err(refusal),
            },
            other => panic!("a result expected, got {other:?}"),
        }
    }

    async fn end(self) {
        self.stop.send(true).expect("the node listens");
        let ended = tokio::time::timeout(PATIENCE, self.node.join()).await;
        ended.expect("in time").expect("without failure");
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

async fn next(subscription: &mut Subscription) -> Message {
    let bytes = tokio::time::timeout(PATIENCE, subscription.next()).await;
    let bytes = bytes.expect("in time").expect("the bus is open");
    codec::decode(&bytes).expect("a message")
}

#[tokio::test]
async fn shards_come_and_go_while_requests_flow() {
    let (me, other) = (node_ref("n", 5), node_ref("other", 1));
    let mut mesh = Mesh::start(map(1, me.clone(), me.clone())).await;
    mesh.ask(gateway(1), publish(1, 1));
    let before = mesh.published().await.expect("it is the owner");
    assert_eq!(before.offset.0, 1);

    // From the very moment of the change, nothing is served under the old fence
    // and nothing is left without an answer.
    mesh.map.send_replace(map(4, me.clone(), other.clone()));
    mesh.ask(gateway(1), publish(1, 2));
    let refusal = Refusal::NotOwner {
        owner: other,
        fence: Fence(4),
    };
    assert_eq!(mesh.published().await, Err(refusal));

    // It comes back: a new fence, a new epoch.
    mesh.map.send_replace(map(9, me.clone(), me.clone()));
    mesh.ask(gateway(1), publish(9, 2));
    let after = mesh.published().await.expect("it is the owner again");
    assert_ne!(after.epoch, before.epoch);
    assert_eq!(after.offset.0, 1);

    // Another life of this node owns it: this one does not.
    let next_life = node_ref("n", 6);
    mesh.map
        .send_replace(map(12, me.clone(), next_life.clone()));
    mesh.ask(gateway(1), publish(9, 3));
    let refusal = Refusal::NotOwner {
        owner: next_life,
        fence: Fence(12),
    };
    assert_eq!(mesh.published().await, Err(refusal));
    assert_eq!(mesh.metrics.shards_owned.get(), 7);
    mesh.end().await;
}

#[tokio::test]
async fn what_is_counted_of_a_shard_goes_with_it() {
    let (me, other) = (node_ref("n", 5), node_ref("other", 1));
    let mut mesh = Mesh::start(map(1, me.clone(), me.clone())).await;
    let exported = |registry: &Registry| {
        let families = registry.gather();
        let of_one = |family: &&MetricFamily| {
            let mut labels = family
                .get_metric()
                .iter()
                .flat_map(|metric| metric.get_label());
            labels.any(|label| label.name() == "shard")
        };
        let of_shards = families.iter().filter(of_one);
        let counts: Vec<usize> = of_shards.map(|family| family.get_metric().len()).collect();
        counts
    };
    assert_eq!(exported(&mesh.registry), [8; 9]);
    mesh.map.send_replace(map(2, me, other));
    mesh.ask(gateway(1), publish(2, 1));
    mesh.published().await.expect_err("it has followed the map");
    assert_eq!(exported(&mesh.registry), [7; 9]);
    assert_eq!(mesh.metrics.map_version.get(), 2);
    mesh.end().await;
}

#[tokio::test]
async fn a_node_without_a_map_is_silent_until_it_has_one() {
    let nothing = Arc::new(ShardMap::unassigned(ClusterUuid(0), SHARDING));
    let mut mesh = Mesh::start(nothing).await;
    mesh.ask(gateway(1), publish(1, 1));
    mesh.ask(gateway(1), Request::Map { since: 0 });
    let question = Question::Nodes;
    mesh.ask(gateway(1), Request::Inspect { id: 3, question });
    // The last one is answered; those before it were not.
    let (reply, _) = mesh.answer().await;
    let answer = Answer::Nodes(Vec::new());
    assert_eq!(reply, Reply::Inspected { id: 3, answer });
    assert_eq!(mesh.node_beats.try_next(), None, "no beat");

    let me = node_ref("n", 5);
    let first = map(2, me.clone(), me.clone());
    mesh.map.send_replace(Arc::clone(&first));
    let pushed = next(&mut mesh.pushed).await;
    assert_eq!(pushed, Message::Map(first.since(0)), "the leader tells");
    let beat = NodeBeat {
        from: me.clone(),
        cluster: CLUSTER,
        map_version: 2,
        namespaces: Namespaces::default().digest(),
    };
    assert_eq!(next(&mut mesh.node_beats).await, Message::NodeBeat(beat));
    mesh.ask(gateway(1), publish(2, 1));
    mesh.published().await.expect("it serves");
    for (since, rows) in [(1, 1), (9, 8)] {
        mesh.ask(gateway(1), Request::Map { since });
        let (reply, version) = mesh.answer().await;
        let Reply::Map { update, namespaces } = reply else {
            panic!("the map expected, got {reply:?}")
        };
        assert_eq!((update.rows.len(), version), (rows, 2));
        assert_eq!(namespaces, Namespaces::default());
    }
    mesh.end().await;
}

fn beat(cluster: ClusterUuid, incarnation: u64, interest: Vec<ShardInterest>) -> Message {
    Message::GatewayBeat(GatewayBeat {
        from: gateway(incarnation),
        cluster,
        map_version: 1,
        namespaces: 0,
        connections: 3,
        interest,
    })
}

#[tokio::test]
async fn a_difference_about_interest_is_found_by_beats_and_healed() {
    let me = node_ref("n", 5);
    let mut mesh = Mesh::start(map(1, me.clone(), me)).await;
    let mut digest = InterestDigest::default();
    digest.insert(&key());
    let interest = ShardInterest {
        shard: shard(),
        digest,
    };
    for cluster in [ClusterUuid(8), CLUSTER, ClusterUuid(8), CLUSTER] {
        // Those of another cluster count for nothing.
        mesh.send(Address::GatewayBeats, &beat(cluster, 1, vec![interest]));
    }
    let restate = Reply::Restate {
        shard: shard(),
        fence: Fence(1),
    };
    assert_eq!(mesh.answer().await.0, restate);
    assert_eq!(mesh.metrics.stranger_gateways.get(), 2);
    assert_eq!(mesh.metrics.interest_healed.get(), 0);
    mesh.ask(gateway(1), join(1, 1));
    let end = RestateEnd {
        shard: shard(),
        fence: Fence(1),
        since: 1,
    };
    mesh.ask(gateway(1), Request::RestateEnd(end));
    assert!(matches!(mesh.answer().await.0, Reply::Joined { .. }));
    assert_eq!(mesh.metrics.interest_healed.get(), 1);
    mesh.end().await;
}

#[tokio::test]
async fn a_beat_of_a_new_life_ends_the_old_one() {
    let me = node_ref("n", 5);
    let mut mesh = Mesh::start(map(1, me.clone(), me)).await;
    mesh.ask(gateway(1), join(1, 1));
    assert!(matches!(mesh.answer().await.0, Reply::Joined { .. }));
    // They say nothing of this shard, and yet it hears of them.
    for incarnation in [2, 1] {
        let beat = beat(CLUSTER, incarnation, Vec::new());
        mesh.send(Address::GatewayBeats, &beat);
    }
    let newer = Incarnation(2);
    assert_eq!(mesh.answer().await.0, Reply::Gone { newer });
    let inspector = mesh.node.inspector.clone();
    let Answer::Channel(info) = inspector.ask(Question::Channel { key: key() }).await else {
        panic!("its owner knows")
    };
    assert_eq!(info.state.map(|state| state.followers), Some(Vec::new()));
    let Answer::Gateways(gateways) = inspector.ask(Question::Gateways).await else {
        panic!("every node knows")
    };
    let known: Vec<_> = gateways
        .iter()
        .map(|gateway| (gateway.incarnation.0, gateway.connections))
        .collect();
    assert_eq!(known, [(2, 3)]);
    mesh.end().await;
    let answer = inspector.ask(Question::Nodes).await;
    assert!(matches!(answer, Answer::Unavailable(_)), "{answer:?}");
}

#[tokio::test]
async fn a_node_that_has_been_replaced_ends_and_says_so() {
    let me = node_ref("n", 5);
    let mesh = Mesh::start(map(1, me.clone(), me)).await;
    let beat = |cluster, incarnation, namespaces| {
        Message::NodeBeat(NodeBeat {
            from: node_ref("n", incarnation),
            cluster,
            map_version: 1,
            namespaces,
        })
    };
    // A stranger, an earlier life, and then a later one.
    for (cluster, incarnation) in [(ClusterUuid(8), 9), (CLUSTER, 4), (CLUSTER, 6)] {
        mesh.send(Address::NodeBeats, &beat(cluster, incarnation, 0));
    }
    let metrics = Arc::clone(&mesh.metrics);
    let ended = tokio::time::timeout(PATIENCE, mesh.node.join()).await;
    let error = ended.expect("in time").expect_err("it ends by itself");
    assert!(
        matches!(
            &error,
            Error::Superseded {
                newer: Incarnation(6),
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(metrics.stranger_nodes.get(), 1);
}

#[tokio::test]
async fn a_view_that_never_changes_ends_nothing() {
    let bus: BusHandle = Arc::new(MemoryBus::default());
    let me = node_ref("n", 5);
    let member = NodeInfo {
        name: me.id.clone(),
        incarnation: Some(me.incarnation),
        address: String::new(),
        zone: String::new(),
        witness: false,
        role: "leader".into(),
        gossip: "alive".into(),
        shards: 8,
        version: String::new(),
    };
    let view = View::fixed((*map(1, me.clone(), me.clone())).clone(), member.clone());
    let config = Config {
        cluster: "test".parse().expect("valid"),
        node: me,
        namespaces: Namespaces::default(),
        workers: 2,
    };
    let metrics = Arc::new(Metrics::register(&Registry::new(), "memory").expect("fresh"));
    let (stop, shutdown) = watch::channel(false);
    let kept = node::Checkpoint::default();
    let node = node::start(config, view, kept, bus, metrics, shutdown).await;
    let node = node.expect("it starts");
    let answer = node.inspector.ask(Question::Nodes).await;
    assert_eq!(answer, Answer::Nodes(vec![member]));
    stop.send(true).expect("the node listens");
    node.join().await.expect("without failure");
}
