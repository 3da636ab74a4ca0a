//! What a cluster of real processes refuses, and that it is unharmed by it:
//! directories, certificates, names and bytes that are not as they should be.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: tests start processes and wait for them"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cluster_tests::client::{get, publish};
use cluster_tests::cluster::{Cluster, free_udp_address, is_ready};
use cluster_tests::nats::{Folder, NatsServer};
use cluster_tests::process::{Dev, Ended, NodeProcess, command, run, run_command};
use cluster_tests::{eventually, repository};
use futures_util::future::try_join_all;
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::process::Command;

/// Reading or writing failed.
const IO: i32 = 74;
/// The configuration is wrong.
const CONFIG: i32 = 78;
/// What was asked for is not done.
const UNAVAILABLE: i32 = 69;
/// How long a node may take to end after SIGTERM.
const END: Duration = Duration::from_secs(3);

/// A place for nodes that need not be of one cluster.
struct Place {
    nats: NatsServer,
    folder: Folder,
}

impl Place {
    async fn new() -> Result<Self> {
        let place = Self {
            nats: NatsServer::start().await?,
            folder: Folder::new()?,
        };
        place.authority("certs").await?;
        Ok(place)
    }

    async fn authority(&self, folder: &str) -> Result<PathBuf> {
        let path = self.folder.path(folder);
        let made = run([Path::new("certs"), Path::new("init"), &path]).await?;
        assert!(made.status.success(), "{made:?}");
        Ok(path)
    }

    async fn certify(&self, certs: &Path, name: &str) -> Result<()> {
        if !certs.join(format!("{name}.crt")).exists() {
            let made = run([
                Path::new("certs"),
                Path::new("node"),
                certs,
                Path::new(name),
            ])
            .await?;
            assert!(made.status.success(), "{made:?}");
        }
        Ok(())
    }

    /// The command of a node, with these options besides or instead.
    async fn node(&self, name: &str, options: &[(&str, &str)]) -> Result<Command> {
        let certs = self.folder.path("certs");
        self.certify(&certs, name).await?;
        let path = |path: PathBuf| path.display().to_string();
        let mut all = vec![
            ("--name", name.to_owned()),
            ("--bus", self.nats.url()),
            ("--admin", "127.0.0.1:0".to_owned()),
            ("--quic", "127.0.0.1:0".to_owned()),
            ("--certs", path(certs)),
            ("--data", path(self.folder.path(&format!("data-{name}")))),
        ];
        all.retain(|(option, _)| !options.iter().any(|(other, _)| other == option));
        let mut command = command(["node"]);
        command.args(all.iter().flat_map(|(option, value)| [*option, value]));
        for (option, value) in options {
            command.arg(option);
            if !value.is_empty() {
                command.arg(value);
            }
        }
        Ok(command)
    }

    /// A node that ends by itself.
    async fn refused(&self, name: &str, options: &[(&str, &str)]) -> Result<Ended> {
        let mut command = self.node(name, options).await?;
        command.env("RUST_BACKTRACE", "1");
        run_command(command, "").await
    }

    /// A node that founds a cluster alone, and is ready.
    async fn founder(&self, name: &str) -> Result<NodeProcess> {
        let command = self.node(name, &[("--bootstrap-expect", "1")]).await?;
        let node = NodeProcess::start(command).await?;
        ready(&node).await;
        Ok(node)
    }
}

async fn ready(node: &NodeProcess) {
    eventually("the node is ready", async || is_ready(&node.admin).await).await;
}

async fn logs(node: &NodeProcess, text: &str) {
    let has = async || node.log().contains(text).then_some(());
    eventually(&format!("the log has {text:?}"), has).await;
}

fn assert_refused(ended: &Ended, code: i32, texts: &[&str]) {
    assert_eq!(ended.status.code(), Some(code), "{ended:?}");
    for text in texts {
        assert!(ended.stderr.contains(text), "{text:?} in {}", ended.stderr);
    }
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

async fn uuid(node: &NodeProcess) -> Result<Value> {
    Ok(Cluster::inspect(&node.admin, "shards").await?["cluster"].clone())
}

async fn members(node: &NodeProcess) -> Vec<Value> {
    let nodes = Cluster::inspect(&node.admin, "nodes").await;
    let nodes = nodes
        .ok()
        .and_then(|nodes| nodes["nodes"].as_array().cloned());
    nodes.unwrap_or_default()
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_used_is_named_and_left_as_it_is() -> Result<()> {
    let place = Place::new().await?;
    let mut node = place.founder("n1").await?;
    let data = place.folder.path("data-n1");
    let text = data.to_str().context("a path")?;
    let ended = place.refused("n2", &[("--data", text)]).await?;
    assert_refused(&ended, IO, &[text, "in use by another process"]);
    ready(&node).await;
    node.kill().await?;

    let ended = place.refused("n2", &[("--data", text)]).await?;
    assert_refused(&ended, CONFIG, &[text, "belongs to node n1", "node n2"]);
    let whole = std::fs::read(data.join("dunlin.redb"))?;
    let mut beheaded = whole.clone();
    beheaded[..256].fill(0xaa);
    for damaged in [b"no database".to_vec(), beheaded, whole[..4_096].to_vec()] {
        std::fs::write(data.join("dunlin.redb"), &damaged)?;
        let ended = place.refused("n1", &[]).await?;
        assert_refused(
            &ended,
            IO,
            &["dunlin.redb", "is damaged", "restore it from a copy"],
        );
        assert_eq!(std::fs::read(data.join("dunlin.redb"))?, damaged);
    }
    std::fs::write(data.join("dunlin.redb"), &whole)?;
    let node = NodeProcess::start(place.node("n1", &[]).await?).await?;
    ready(&node).await;

    let file = place.folder.file("file", "")?.join("data");
    let file = file.to_str().context("a path")?;
    let ended = place.refused("n2", &[("--data", file)]).await?;
    assert_refused(&ended, IO, &[file]);
    Ok(())
}

/// A certificate that was valid for a day, long ago.
fn expired(certs: &Path, name: &str) -> Result<()> {
    let read = |file: &str| std::fs::read_to_string(certs.join(file));
    let signing = KeyPair::from_pem(&read("ca.key")?)?;
    let issuer = Issuer::from_ca_cert_pem(&read("ca.crt")?, signing)?;
    let names = ["node.dunlin".to_owned(), format!("{name}.node.dunlin")];
    let mut params = CertificateParams::new(names)?;
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2020, 1, 2);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    std::fs::write(certs.join(format!("{name}.crt")), certificate.pem())?;
    std::fs::write(certs.join(format!("{name}.key")), key.serialize_pem())?;
    Ok(())
}

#[tokio::test]
async fn certificates_that_cannot_be_used_are_refused_with_what_to_do() -> Result<()> {
    let place = Place::new().await?;
    let one = place.founder("n1").await?;
    let nowhere = place.folder.path("nowhere");
    let nowhere = nowhere.to_str().context("a path")?;
    let ended = place.refused("n2", &[("--certs", nowhere)]).await?;
    assert_refused(&ended, CONFIG, &["ca.crt", "dunlin certs init"]);
    let mut without = command(["node", "--name", "n2", "--data", nowhere]);
    without.args(["--bus", &place.nats.url()]);
    let ended = run_command(without, "").await?;
    assert_refused(&ended, CONFIG, &["--certs"]);
    expired(&place.folder.path("certs"), "n3")?;
    let ended = place.refused("n3", &[("--join", &one.quic)]).await?;
    assert_refused(&ended, CONFIG, &["n3.crt", "expired", "--renew"]);

    // A node of another authority stays outside; both sides say why.
    let other = place.authority("other").await?;
    place.certify(&other, "n4").await?;
    let other = other.to_str().context("a path")?;
    let options = [("--certs", other), ("--join", one.quic.as_str())];
    let mut stranger = NodeProcess::start(place.node("n4", &options).await?).await?;
    for node in [&one, &stranger] {
        logs(node, "different authorities").await;
    }
    assert_eq!(is_ready(&stranger.admin).await, None);
    let began = Instant::now();
    assert!(stranger.terminate().await?.success());
    assert!(began.elapsed() < END, "{:?}", began.elapsed());
    ready(&one).await;
    assert_eq!(members(&one).await.len(), 1);
    Ok(())
}

#[tokio::test]
async fn who_has_the_wrong_name_is_refused_and_the_cluster_is_unharmed() -> Result<()> {
    let place = Place::new().await?;
    let one = place.founder("n1").await?;
    let join = ("--join", one.quic.as_str());
    let ended = place.refused("n2", &[join, ("--cluster", "other")]).await?;
    assert_refused(&ended, CONFIG, &["--cluster other", "--cluster dunlin"]);

    // Of the name of the only node, and of one that is not who is asked.
    let data = place.folder.path("data-twin");
    let data = ("--data", data.to_str().context("a path")?);
    let ended = place.refused("n1", &[join, data]).await?;
    assert_refused(&ended, CONFIG, &["two nodes are named n1", "--name"]);
    let two = NodeProcess::start(place.node("n2", &[join]).await?).await?;
    ready(&two).await;
    let ended = place.refused("n2", &[join, data]).await?;
    assert_refused(&ended, CONFIG, &["the name n2 is taken", "--name"]);

    // Of another cluster of the same name: it stays what it is, and says so.
    let mut stranger = place.founder("n3").await?;
    let before = uuid(&stranger).await?;
    assert_ne!(before, uuid(&one).await?);
    stranger.terminate().await?;
    let stranger = NodeProcess::start(place.node("n3", &[join]).await?).await?;
    logs(&stranger, "they have the same name, but are not the same").await;
    ready(&stranger).await;
    assert_eq!(uuid(&stranger).await?, before);
    for node in [&one, &two] {
        ready(node).await;
        assert_eq!(members(node).await.len(), 2);
    }
    Ok(())
}

#[tokio::test]
async fn six_nodes_started_at_once_make_one_cluster() -> Result<()> {
    let place = Place::new().await?;
    let addresses: Vec<String> = (0..6).map(|_| free_udp_address()).collect::<Result<_>>()?;
    let join = addresses.join(",");
    let mut commands = Vec::new();
    for (number, quic) in addresses.iter().enumerate() {
        let options = [
            ("--quic", quic.as_str()),
            ("--join", &join),
            ("--bootstrap-expect", "3"),
        ];
        commands.push(place.node(&format!("n{number}"), &options).await?);
    }
    // The ports are random, and so is the order of the names by them.
    let mut order: Vec<usize> = (0..6).collect();
    order.sort_by_key(|number| &addresses[*number][addresses[*number].len() - 2..]);
    let mut commands: Vec<Option<Command>> = commands.into_iter().map(Some).collect();
    let starting = order.iter().filter_map(|number| commands[*number].take());
    let nodes = try_join_all(starting.map(NodeProcess::start)).await?;
    let mut uuids = BTreeSet::new();
    for node in &nodes {
        ready(node).await;
        uuids.insert(uuid(node).await?.to_string());
    }
    assert_eq!(uuids.len(), 1, "{uuids:?}");
    eventually("five vote", async || {
        let members = members(&nodes[0]).await;
        let votes = |member: &&Value| member["role"] != "learner";
        (members.len() == 6 && members.iter().filter(votes).count() == 5).then_some(())
    })
    .await;
    Ok(())
}

/// Waits until a node, which may hear of it a little later than the leader, knows of so
/// many members.
async fn knows(node: &NodeProcess, count: usize) {
    eventually("it knows of them all, and of nobody else", async || {
        (members(node).await.len() == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_node_is_removed_when_it_has_nothing_and_can_come_again() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.protected().await;
    let at = cluster.node("n1").admin.clone();
    let remove = async |name: &str| run(["nodes", "remove", name, "--admin", &at]).await;
    let refused = remove("n3").await?;
    assert_refused(&refused, UNAVAILABLE, &["node n3 owns", "drain it first"]);
    assert_refused(&remove("n4").await?, UNAVAILABLE, &["n4 is no member"]);

    // One that will not come back: when others have taken over from it.
    let mut killed = cluster.nodes.remove("n3").context("it runs")?;
    killed.kill().await?;
    eventually("it is removed", async || {
        let removed = remove("n3").await.ok()?;
        removed.status.success().then_some(())
    })
    .await;
    knows(cluster.node("n2"), 2).await;
    cluster.protected().await;

    cluster.add_node("n3", &[]).await?;
    cluster.ready().await;
    cluster.protected().await;
    knows(cluster.node("n2"), 3).await;

    // One that runs, and was drained, ends.
    let drained = run(["nodes", "drain", "n3", "--admin", &at]).await?;
    assert!(drained.status.success(), "{drained:?}");
    cluster.protected().await;
    let removed = remove("n3").await?;
    assert!(removed.status.success(), "{removed:?}");
    let mut node = cluster.nodes.remove("n3").context("it runs")?;
    assert_eq!(node.ended().await?.code(), Some(CONFIG));
    assert!(node.log().contains("is no member of the cluster any more"));
    Ok(())
}

#[tokio::test]
async fn a_witness_votes_and_owns_nothing() -> Result<()> {
    let mut cluster = Cluster::empty(&["n1", "n2", "w"]).await?;
    cluster.add_node("n1", &[]).await?;
    cluster.add_node("n2", &[]).await?;
    cluster.add_node("w", &["--witness"]).await?;
    cluster.ready().await;
    eventually("all vote, and two own something", async || {
        let members = members(cluster.node("n2")).await;
        let is_right = |member: &Value| {
            member["role"] != "learner" && (member["shards"] == 0) == (member["name"] == "w")
        };
        (members.len() == 3 && members.iter().all(is_right)).then_some(())
    })
    .await;
    // Those that are left decide that it is back.
    cluster
        .nodes
        .remove("n1")
        .context("it runs")?
        .kill()
        .await?;
    cluster.add_node("n1", &[]).await?;
    cluster.ready().await;
    assert!(!cluster.node("n2").log().contains("without a witness"));
    Ok(())
}

#[tokio::test]
async fn two_nodes_are_warned_and_one_of_them_alone_is_not_ready() -> Result<()> {
    let mut cluster = Cluster::empty(&["n1", "n2"]).await?;
    cluster.add_node("n1", &[]).await?;
    cluster.add_node("n2", &[]).await?;
    cluster.ready().await;
    eventually("the leader warns", async || {
        let warns = |node: &NodeProcess| node.log().contains("start a third with --witness");
        cluster.nodes.values().any(warns).then_some(())
    })
    .await;
    cluster
        .nodes
        .remove("n1")
        .context("it runs")?
        .kill()
        .await?;
    let mut left = cluster.nodes.remove("n2").context("it runs")?;
    eventually("the other one knows that it cannot decide", async || {
        let answer = get(&left.admin, "/readyz").await.ok()?;
        (answer.status == 503 && answer.body.contains("no leader")).then_some(())
    })
    .await;
    let began = Instant::now();
    assert!(left.terminate().await?.success());
    assert!(began.elapsed() < END, "{:?}", began.elapsed());
    Ok(())
}

/// Bytes that differ, and are the same in each run.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..count).map(|_| next()).collect()
}

/// A QUIC client that has a certificate of the cluster.
fn insider(certs: &Path, name: &str) -> Result<quinn::Endpoint> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certs.join("ca.crt"))?)?;
    let chain = vec![CertificateDer::from_pem_file(
        certs.join(format!("{name}.crt")),
    )?];
    let key = PrivateKeyDer::from_pem_file(certs.join(format!("{name}.key")))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    tls.alpn_protocols = vec![b"dunlin-node/1".to_vec()];
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls)?;
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse()?)?;
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
    Ok(endpoint)
}

#[tokio::test]
async fn bytes_that_make_no_sense_harm_no_node() -> Result<()> {
    let place = Place::new().await?;
    let mut node = place.founder("n1").await?;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    for number in 0..2_000 {
        let length = usize::try_from(number % 1_400)?;
        socket.send_to(&noise(number, length), &node.quic)?;
    }
    let certs = place.folder.path("certs");
    place.certify(&certs, "n2").await?;
    let endpoint = insider(&certs, "n2")?;
    let to = node.quic.parse()?;
    // Every first message but a hello is refused.
    for number in 0..20 {
        let connection = endpoint.connect(to, "node.dunlin")?.await?;
        let (mut send, mut receive) = connection.open_bi().await?;
        // The version that is spoken, and nonsense in it.
        let mut bytes = noise(number, usize::try_from(number * 500)?);
        if let Some(first) = bytes.first_mut() {
            *first = 1;
        }
        let _ = send.write_all(&bytes).await;
        let _ = send.finish();
        let _ = receive.read_to_end(10_000).await;
        connection.close(0_u32.into(), b"");
    }
    // After a hello that is right: calls and datagrams that are not.
    let hello = serde_json::json!({
        "cluster": "dunlin", "member_of": null, "name": "n2", "raft_id": 7, "address": "127.0.0.1:1",
    });
    let mut bytes = vec![1];
    bytes.extend(rmp_serde::to_vec(&hello)?);
    let connection = endpoint.connect(to, "node.dunlin")?.await?;
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_all(&bytes).await?;
    send.finish()?;
    let welcome = receive.read_to_end(10_000).await?;
    let text = String::from_utf8_lossy(&welcome);
    assert!(text.contains("welcome"), "{text}");
    for number in 0..500 {
        let (mut send, mut receive) = connection.open_bi().await?;
        let mut bytes = noise(number, usize::try_from(number)?);
        if let Some(first) = bytes.first_mut() {
            *first = 1;
        }
        send.write_all(&bytes).await?;
        send.finish()?;
        let reply = receive.read_to_end(10_000).await?;
        assert!(!reply.is_empty(), "every call has a reply");
        connection.send_datagram(noise(number, 1 + usize::try_from(number)?).into())?;
    }
    // One that never ends keeps nobody waiting.
    let (mut endless, _unread) = connection.open_bi().await?;
    endless.write_all(&[1]).await?;
    ready(&node).await;
    assert!(!node.log().contains("panicked"), "{}", node.log());
    assert!(node.log().lines().count() < 200, "{}", node.log());
    let began = Instant::now();
    assert!(node.terminate().await?.success());
    assert!(began.elapsed() < END, "{:?}", began.elapsed());
    Ok(())
}

/// The families of the two tables of the reference page.
fn documented_families() -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let page = std::fs::read_to_string(repository().join("docs/reference/metrics.md"))?;
    let names = |table: &str| -> BTreeSet<String> {
        let name = |line: &str| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned());
        table.lines().filter_map(name).collect()
    };
    let (all, of_nodes) = page
        .split_once("## Of nodes of a cluster")
        .context("two tables")?;
    Ok((names(all), names(of_nodes)))
}

async fn families(admin: &str) -> Result<BTreeSet<String>> {
    let page = get(admin, "/metrics").await?.body;
    let name = |line: &str| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned());
    Ok(page.lines().filter_map(name).collect())
}

#[tokio::test]
async fn fresh_processes_expose_what_the_reference_page_lists() -> Result<()> {
    let mut cluster = Cluster::empty(&["n1"]).await?;
    // No node is there that it could join: it is as fresh as can be.
    cluster.add_node("alone", &[]).await?;
    let (_, of_nodes) = documented_families()?;
    let node = families(&cluster.node("alone").admin).await?;
    let missing: Vec<_> = of_nodes.difference(&node).collect();
    assert!(missing.is_empty(), "{missing:?}");
    cluster.add_node("n1", &[]).await?;
    cluster.add_gateway("g1", &[]).await?;
    cluster.ready().await;
    let (all, of_nodes) = documented_families()?;
    assert!(all.len() > 40 && of_nodes.len() > 5, "{all:?} {of_nodes:?}");
    // What is counted by shard is there once a node owns one.
    let admin = &cluster.node("n1").admin;
    eventually("the node owns shards", async || {
        let families = families(admin).await.ok()?;
        families.contains("dunlin_shard_channels").then_some(())
    })
    .await;
    let node = families(admin).await?;
    let gateway = families(&cluster.gateway("g1").admin).await?;
    let both = &node | &gateway;
    let missing: Vec<_> = all.difference(&both).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let documented = &all | &of_nodes;
    let unknown: Vec<_> = both.difference(&documented).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    Ok(())
}

/// The configuration of docs/operating/bus.md, with passwords.
fn two_users() -> Result<String> {
    let page = std::fs::read_to_string(repository().join("docs/operating/bus.md"))?;
    let mut blocks = page
        .split("```")
        .filter_map(|block| block.strip_prefix("conf\n"));
    let config = blocks.next().context("the page has a configuration")?;
    Ok(format!(
        "GATEWAY_PASSWORD: \"for-gateway\"\nNODE_PASSWORD: \"for-node\"\n{config}"
    ))
}

#[tokio::test]
async fn a_node_cannot_run_with_the_gateways_user() -> Result<()> {
    let place = Place {
        nats: NatsServer::start_with(&two_users()?).await?,
        folder: Folder::new()?,
    };
    place.authority("certs").await?;
    let user = |role: &str| format!("nats://{role}:for-{role}@{}", place.nats.address());
    let founds = ("--bootstrap-expect", "1");
    let options = [founds, ("--bus", &user("node"))];
    let node = NodeProcess::start(place.node("n1", &options).await?).await?;
    let mut gateway = command(["gateway", "--name", "g1", "--bus", &user("gateway")]);
    gateway.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    gateway.args(["--app", cluster_tests::cluster::APP]);
    let gateway = Dev::start_command(gateway).await?;
    ready(&node).await;
    eventually("the gateway is ready", async || {
        is_ready(&gateway.admin).await
    })
    .await;
    publish(&gateway, "room", "e", "x").await?;
    for process in [&*node, &*gateway] {
        if process.log().contains("does not permit") {
            bail!("{}", process.log());
        }
    }
    let options = [founds, ("--bus", &user("gateway"))];
    let wrong = NodeProcess::start(place.node("n2", &options).await?).await?;
    logs(&wrong, "the bus does not permit what this process must do").await;
    logs(&wrong, "docs/operating/bus.md").await;
    Ok(())
}
