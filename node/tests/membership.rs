//! Nodes that find each other and agree: real QUIC on loopback, real data
//! directories, one process.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: tests wait for what must happen"
)]

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use node::{
    ClusterMetrics, Config, Membership, MembershipConfig, MembershipError, Metrics, StoreError,
};
use prometheus::Registry;
use proto::bus::{BusHandle, MemoryBus};
use proto::id::NodeRef;
use proto::namespace::Namespaces;
use proto::shard::{ShardId, ShardMap};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::sync::watch;
use tokio::time::timeout;

/// How long anything that must happen may take: a machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// A directory of a test's own, with an authority.
struct Scratch {
    path: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Scratch {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("dunlin-membership-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        let authority = authority();
        std::fs::write(path.join("ca.crt"), authority.pem()).unwrap();
        Self { path, authority }
    }

    fn certify(&self, name: &str, directory: &Path) {
        let names = vec!["node.dunlin".to_owned(), format!("{name}.node.dunlin")];
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names)
            .unwrap()
            .signed_by(&key, &self.authority)
            .unwrap();
        std::fs::write(directory.join(format!("{name}.crt")), certificate.pem()).unwrap();
        std::fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Ports that are free now.
fn ports(count: usize) -> Vec<u16> {
    let sockets: Vec<UdpSocket> = (0..count)
        .map(|_| UdpSocket::bind("127.0.0.1:0").unwrap())
        .collect();
    let port = |socket: &UdpSocket| socket.local_addr().unwrap().port();
    sockets.iter().map(port).collect()
}

struct Running {
    membership: Membership,
    stop: watch::Sender<bool>,
}

impl Running {
    async fn end(self) {
        self.stop.send_replace(true);
        timeout(PATIENCE, self.membership.ended()).await.unwrap();
    }

    async fn registered(&self) -> NodeRef {
        let registered = timeout(PATIENCE, self.membership.registered()).await;
        registered.expect("in time").expect("registered")
    }

    /// Serves shards, as `dunlin node` does: only then does it beat. On a bus of
    /// its own: there are no gateways.
    async fn serve(&self) {
        let bus: BusHandle = Arc::new(MemoryBus::default());
        let metrics = Metrics::register(&Registry::new(), bus.name()).expect("fresh");
        let config = Config {
            cluster: "test".parse().expect("valid"),
            node: self.registered().await,
            namespaces: Namespaces::default(),
            workers: 1,
        };
        let view = self.membership.view.clone();
        let shutdown = self.stop.subscribe();
        let kept = self.membership.take_checkpoint();
        let node = node::start(config, view, kept, bus, Arc::new(metrics), shutdown).await;
        let node = node.expect("it starts");
        tokio::spawn(async move { node.join().await.expect("it ends when it is told to") });
    }

    /// Waits for a map in which everything is owned; shards by owner.
    async fn shards(&self) -> BTreeMap<String, usize> {
        let mut map = self.membership.view.map.clone();
        let map = timeout(PATIENCE, map.wait_for(|map| map.is_sound()))
            .await
            .expect("in time")
            .expect("the node runs")
            .clone();
        let mut shards = BTreeMap::new();
        for number in 0..map.sharding.count {
            let (owner, _) = map.owner(ShardId(number)).unwrap();
            *shards.entry(owner.id.to_string()).or_default() += 1;
        }
        shards
    }
}

fn config(scratch: &Scratch, name: &str, port: u16, join: &[u16]) -> MembershipConfig {
    if !scratch.path.join(format!("{name}.crt")).exists() {
        scratch.certify(name, &scratch.path);
    }
    MembershipConfig {
        cluster: "test".parse().unwrap(),
        name: name.parse().unwrap(),
        data: scratch.path.join(format!("data-{name}-{port}")),
        quic: format!("127.0.0.1:{port}").parse().unwrap(),
        advertise: None,
        join: join
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect(),
        bootstrap_expect: None,
        zone: String::new(),
        witness: false,
        certs: scratch.path.clone(),
        version: "test",
    }
}

fn open(config: MembershipConfig) -> Result<Running, MembershipError> {
    let metrics = Arc::new(ClusterMetrics::register(&Registry::new()).unwrap());
    let (stop, shutdown) = watch::channel(false);
    let membership = Membership::open(config, metrics, shutdown)?;
    Ok(Running { membership, stop })
}

/// Starts a node. An earlier one at the same place may still be letting go of
/// it: they share this process.
fn start(config: MembershipConfig, expect: Option<u16>) -> Running {
    let config = MembershipConfig {
        bootstrap_expect: expect,
        ..config
    };
    for _ in 0..500 {
        match open(config.clone()) {
            Ok(running) => return running,
            Err(MembershipError::Listen { .. } | MembershipError::Store(StoreError::InUse(_))) => {
                std::thread::sleep(Duration::from_millis(10))
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the earlier node does not let go");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_found_a_cluster_and_share_its_shards() {
    let scratch = Scratch::new("three");
    let ports = ports(4);
    let mut nodes = Vec::new();
    for (at, name) in ["a", "b", "c"].iter().enumerate() {
        nodes.push(start(
            config(&scratch, name, ports[at], &ports[..3]),
            Some(3),
        ));
    }
    let mut uuids = Vec::new();
    for node in &nodes {
        node.registered().await;
        let shards: Vec<usize> = node.shards().await.into_values().collect();
        assert_eq!(shards, [342, 341, 341]);
        uuids.push(node.membership.view.map.borrow().cluster);
        assert_eq!(node.membership.readiness(), Ok(()));
    }
    assert!(uuids.iter().all(|uuid| *uuid == uuids[0]));
    let leaders = nodes
        .iter()
        .filter(|node| *node.membership.view.leads.borrow());
    assert_eq!(leaders.count(), 1);

    // A fourth joins, and the shards stay where they are.
    let fourth = start(config(&scratch, "d", ports[3], &ports[..1]), Some(3));
    fourth.registered().await;
    assert_eq!(fourth.shards().await.len(), 3);
    let mut members = fourth.membership.view.members.clone();
    let complete = |members: &Arc<Vec<proto::inspection::NodeInfo>>| {
        members.len() == 4
            && members.iter().all(|member| member.gossip == "alive")
            && members
                .iter()
                .filter(|member| member.role == "voter")
                .count()
                == 2
            && members.iter().all(|member| member.version == "test")
    };
    timeout(PATIENCE, members.wait_for(complete))
        .await
        .unwrap_or_else(|_| panic!("{:?}", fourth.membership.view.members.borrow()))
        .unwrap();
    for node in nodes.into_iter().chain([fourth]) {
        node.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_a_majority_says_that_it_is_not_ready() {
    let scratch = Scratch::new("alone");
    let ports = ports(3);
    let mut nodes = Vec::new();
    for (at, name) in ["a", "b", "c"].iter().enumerate() {
        nodes.push(start(config(&scratch, name, ports[at], &ports), Some(3)));
    }
    for node in &nodes {
        node.registered().await;
        node.shards().await;
    }
    let leads = |node: &Running| *node.membership.view.leads.borrow();
    let leader = nodes.iter().position(leads).expect("one leads");
    let leader = nodes.swap_remove(leader);
    for node in nodes {
        node.end().await;
    }
    let alone = async {
        while leader.membership.readiness().is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, alone).await.expect("it notices");
    leader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_gets_its_shards_back_in_a_new_life() {
    let scratch = Scratch::new("restart");
    let ports = ports(3);
    let one = |name: &str, at: usize| start(config(&scratch, name, ports[at], &ports), Some(3));
    let mut nodes = BTreeMap::new();
    for (at, name) in ["a", "b", "c"].iter().enumerate() {
        nodes.insert(*name, one(name, at));
    }
    for node in nodes.values() {
        node.shards().await;
    }
    let before = nodes["b"].registered().await;
    let version = nodes["a"].membership.view.map.borrow().version;
    nodes.remove("b").unwrap().end().await;
    let b = one("b", 1);
    let after = b.registered().await;
    assert!(after.incarnation > before.incarnation);
    let mut map = nodes["a"].membership.view.map.clone();
    let map = timeout(
        PATIENCE,
        map.wait_for(|map| map.version > version && map.nodes.contains(&after)),
    )
    .await
    .expect("in time")
    .unwrap()
    .clone();
    assert!(!map.nodes.contains(&before));
    let owned = (0..map.sharding.count).filter(|n| map.owner(ShardId(*n)).unwrap().0 == &after);
    assert_eq!(owned.count(), 341);

    // All of them at once, as after a power cut.
    let uuid = map.cluster;
    for node in std::mem::take(&mut nodes).into_values().chain([b]) {
        node.end().await;
    }
    for (at, name) in ["a", "b", "c"].iter().enumerate() {
        nodes.insert(*name, one(name, at));
    }
    for node in nodes.values() {
        node.registered().await;
        assert_eq!(node.shards().await.len(), 3);
        assert_eq!(node.membership.view.map.borrow().cluster, uuid);
    }
    for node in nodes.into_values() {
        node.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn six_nodes_told_to_found_with_three_make_one_cluster() {
    let scratch = Scratch::new("six");
    let ports = ports(6);
    let names = ["a", "b", "c", "d", "e", "f"];
    // The later names first, so that whoever is there early is not the founder.
    let mut nodes = Vec::new();
    for at in (0..6).rev() {
        nodes.push(start(
            config(&scratch, names[at], ports[at], &ports),
            Some(3),
        ));
    }
    let mut uuids = Vec::new();
    for node in &nodes {
        node.registered().await;
        let mut map = node.membership.view.map.clone();
        let map = timeout(PATIENCE, map.wait_for(|map| map.is_sound())).await;
        uuids.push(map.expect("in time").unwrap().cluster);
    }
    assert!(uuids.iter().all(|uuid| *uuid == uuids[0]), "{uuids:?}");
    let mut members = nodes[0].membership.view.members.clone();
    let five_vote = |members: &Arc<Vec<proto::inspection::NodeInfo>>| {
        let learners = members.iter().filter(|member| member.role == "learner");
        members.len() == 6 && learners.count() == 1
    };
    timeout(PATIENCE, members.wait_for(five_vote))
        .await
        .unwrap_or_else(|_| panic!("{:?}", nodes[0].membership.view.members.borrow()))
        .unwrap();
    for node in nodes {
        node.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_belong_is_refused_and_told_why() {
    let scratch = Scratch::new("refused");
    let free = ports(2);
    let one = start(config(&scratch, "a", free[0], &[]), Some(1));
    one.registered().await;
    let refusal = async |config: MembershipConfig| {
        let node = start(config, None);
        let refused = timeout(PATIENCE, node.membership.registered()).await;
        let text = refused.expect("in time").expect_err("refused").to_string();
        node.end().await;
        text
    };
    let join = [free[0]];

    let mut other_name = config(&scratch, "b", free[1], &join);
    let corrected = other_name.clone();
    other_name.cluster = "other".parse().unwrap();
    let text = refusal(other_name).await;
    assert!(
        text.contains("--cluster other") && text.contains("--cluster test"),
        "{text}"
    );

    // No cluster knows of its data directory: it can be started again.
    let b = start(corrected, None);
    b.registered().await;
    b.end().await;

    let mut namesake = config(&scratch, "a", free[1], &join);
    namesake.data = scratch.path.join("data-namesake");
    let text = refusal(namesake).await;
    assert!(
        text.contains("named a") && text.contains("--name"),
        "{text}"
    );

    // A certificate of another name: whoever has it may not speak as this node.
    scratch.certify("b", &scratch.path);
    for end in ["crt", "key"] {
        std::fs::copy(
            scratch.path.join(format!("b.{end}")),
            scratch.path.join(format!("c.{end}")),
        )
        .unwrap();
    }
    match open(config(&scratch, "c", free[1], &join)) {
        Err(error) => assert!(
            error.to_string().contains("not made for a node named c"),
            "{error}"
        ),
        Ok(_) => panic!("taken"),
    }

    // A data directory under another name.
    let renamed = MembershipConfig {
        data: config(&scratch, "a", free[0], &[]).data,
        ..config(&scratch, "b", free[1], &join)
    };
    one.end().await;
    let refused = async {
        loop {
            match open(renamed.clone()) {
                // The earlier one lets go of it.
                Err(MembershipError::Store(StoreError::InUse(_))) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => break error.to_string(),
                Ok(_) => panic!("taken"),
            }
        }
    };
    let text = timeout(PATIENCE, refused).await.expect("in time");
    assert!(text.contains("belongs to node a"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_two_clusters_with_one_name_do_not_mix() {
    let scratch = Scratch::new("uuid");
    let free = ports(2);
    let one = start(config(&scratch, "a", free[0], &[]), Some(1));
    let two = start(config(&scratch, "b", free[1], &[]), Some(1));
    one.registered().await;
    two.registered().await;
    two.end().await;
    // Now it is told of the other one, by mistake: it stays what it is.
    let two = start(config(&scratch, "b", free[1], &free[..1]), Some(1));
    two.registered().await;
    one.shards().await;
    two.shards().await;
    let uuid = |node: &Running| node.membership.view.map.borrow().cluster;
    assert_ne!(uuid(&one), uuid(&two));
    assert_eq!(one.membership.view.members.borrow().len(), 1);
    one.end().await;
    two.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_disk_takes_its_old_place_as_a_new_node() {
    let scratch = Scratch::new("disk");
    let ports = ports(3);
    let one = |name: &str, at: usize| start(config(&scratch, name, ports[at], &ports), Some(3));
    let a = one("a", 0);
    let b = one("b", 1);
    let c = one("c", 2);
    for node in [&a, &b, &c] {
        node.serve().await;
        node.shards().await;
    }
    let before = c.registered().await;
    c.end().await;
    std::fs::remove_dir_all(scratch.path.join(format!("data-c-{}", ports[2]))).unwrap();
    let c = one("c", 2);
    let after = c.registered().await;
    assert!(after.incarnation > before.incarnation);
    c.serve().await;
    // Its shards are with their standbys, or with it if they had none.
    let mut map = a.membership.view.map.clone();
    let given = |map: &Arc<ShardMap>| map.is_sound() && !map.nodes.contains(&before);
    timeout(PATIENCE, map.wait_for(given))
        .await
        .expect("in time")
        .unwrap();
    let mut members = a.membership.view.members.clone();
    let three_vote = |members: &Arc<Vec<proto::inspection::NodeInfo>>| {
        members.len() == 3 && members.iter().all(|member| member.role != "learner")
    };
    timeout(PATIENCE, members.wait_for(three_vote))
        .await
        .unwrap_or_else(|_| panic!("{:?}", a.membership.view.members.borrow()))
        .unwrap();
    for node in [a, b, c] {
        node.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_all_moved_find_each_other_again() {
    let scratch = Scratch::new("moved");
    let ports = ports(4);
    let one = |name: &str, at: usize, join: &[u16]| {
        let data = scratch.path.join(format!("data-{name}"));
        let config = config(&scratch, name, ports[at], join);
        start(MembershipConfig { data, ..config }, Some(2))
    };
    let (a, b) = (one("a", 0, &ports[..2]), one("b", 1, &ports[..2]));
    a.shards().await;
    b.shards().await;
    a.end().await;
    b.end().await;
    // One of them knows where the other will be, and that comes late: it does
    // not know where to call.
    let nobody = tokio::net::UdpSocket::bind(("127.0.0.1", ports[3]));
    let nobody = nobody.await.unwrap();
    let a = one("a", 2, &ports[3..]);
    let called = timeout(PATIENCE, nobody.recv(&mut [0; 2_048])).await;
    called.expect("in time").unwrap();
    drop(nobody);
    let b = one("b", 3, &[]);
    a.registered().await;
    b.registered().await;
    a.end().await;
    b.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_may_be_among_those_that_it_is_to_join() {
    let scratch = Scratch::new("itself");
    let ports = ports(2);
    let mut own = config(&scratch, "a", ports[0], &ports);
    // Its own name is another one, and may have an address of IPv6 first.
    own.join.push(format!("localhost:{}", ports[0]));
    let a = start(own, Some(2));
    let mut by_name = config(&scratch, "b", ports[1], &[]);
    by_name.join.push("no-such-host.invalid:1".into());
    by_name.join.push(format!("localhost:{}", ports[0]));
    let b = start(by_name, Some(2));
    a.registered().await;
    b.registered().await;
    a.end().await;
    b.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_data_directory_is_refused() {
    let scratch = Scratch::new("copy");
    let ports = ports(3);
    let a = start(config(&scratch, "a", ports[0], &[]), Some(1));
    a.registered().await;
    let in_b = config(&scratch, "b", ports[1], &ports[..1]);
    let copied = scratch.path.join("copied");
    let b = start(in_b.clone(), None);
    b.registered().await;
    b.end().await;
    std::fs::create_dir_all(&copied).unwrap();
    std::fs::copy(in_b.data.join("dunlin.redb"), copied.join("dunlin.redb")).unwrap();
    let b = start(in_b, None);
    let life = b.registered().await;
    // Together they could vote twice.
    let twin = MembershipConfig {
        data: copied,
        ..config(&scratch, "b", ports[2], &ports[..2])
    };
    let twin = start(twin, None);
    let refused = timeout(PATIENCE, twin.membership.registered()).await;
    let text = refused.expect("in time").expect_err("refused").to_string();
    assert!(text.contains("copies of one data directory"), "{text}");
    twin.end().await;
    assert_eq!(b.registered().await, life);
    b.end().await;
    a.end().await;
}
