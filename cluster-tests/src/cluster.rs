//! Starts a whole cluster of real processes: nats-server, nodes, gateways, on
//! loopback and free ports, with certificates that `dunlin certs` made.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::client::{get, metric_at};
use crate::nats::{Folder, NatsServer, free_address, free_port};
use crate::process::{Dev, NodeProcess, binary, command_of, older_binary, run};
use crate::proxy::UdpProxy;
use crate::{PATIENCE, SETTLES};

/// The app that all gateways serve.
pub const APP: &str = "app-id:app-key:app-secret";

/// Names that are tried at most to find channels of a node.
const TRIES_MAX: u32 = 20_000;

/// A cluster; everything in it is ended when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    /// The bus.
    pub nats: NatsServer,
    /// The nodes that run, by name.
    pub nodes: BTreeMap<String, NodeProcess>,
    /// The gateways that run, by name.
    pub gateways: BTreeMap<String, Dev>,
    /// Where each node listens, also while it does not run.
    quic: BTreeMap<String, String>,
    /// Where other nodes reach a node, if not where it listens.
    detours: BTreeMap<String, String>,
    /// Where a process reaches the bus, if not where that is.
    buses: BTreeMap<String, String>,
    /// Where a gateway listens that comes back at the same place.
    places: BTreeMap<String, String>,
    /// Which binary processes run that are started from now on.
    binary: PathBuf,
    folder: Folder,
}

impl Cluster {
    /// A cluster with a bus and nothing else, for these founding nodes.
    ///
    /// # Errors
    /// When the bus does not start, or certificates cannot be made.
    pub async fn empty(founders: &[&str]) -> Result<Self> {
        Self::on(NatsServer::start().await?, founders).await
    }

    /// The same on a bus of the caller's making.
    ///
    /// # Errors
    /// When certificates cannot be made.
    pub async fn on(nats: NatsServer, founders: &[&str]) -> Result<Self> {
        let folder = Folder::new()?;
        let cluster = Self {
            nats,
            nodes: BTreeMap::new(),
            gateways: BTreeMap::new(),
            quic: founders
                .iter()
                .map(|name| Ok(((*name).to_owned(), free_udp_address()?)))
                .collect::<Result<_>>()?,
            detours: BTreeMap::new(),
            buses: BTreeMap::new(),
            places: BTreeMap::new(),
            binary: binary().to_owned(),
            folder,
        };
        let made = run(["certs", "init", cluster.certs_text()?]).await?;
        if !made.status.success() {
            bail!("no authority: {made:?}");
        }
        Ok(cluster)
    }

    /// Three nodes and two gateways of an earlier version, if the environment names
    /// one, ready. What is started later is of this version.
    ///
    /// # Errors
    /// When anything does not start.
    pub async fn start_older() -> Result<Self> {
        let mut cluster = Self::empty(&["n1", "n2", "n3"]).await?;
        if let Some(older) = older_binary() {
            println!("begins with {}", older.display());
            cluster.binary = older;
        }
        cluster.add_all().await?;
        cluster.ready().await;
        cluster.binary = binary().to_owned();
        Ok(cluster)
    }

    /// Three nodes and two gateways, ready.
    ///
    /// # Errors
    /// When anything does not start.
    pub async fn start() -> Result<Self> {
        Self::start_on(NatsServer::start().await?).await
    }

    /// The same on a bus of the caller's making.
    ///
    /// # Errors
    /// When anything does not start.
    pub async fn start_on(nats: NatsServer) -> Result<Self> {
        let mut cluster = Self::on(nats, &["n1", "n2", "n3"]).await?;
        cluster.add_all().await?;
        cluster.ready().await;
        Ok(cluster)
    }

    /// Starts three nodes and two gateways, and does not wait for more.
    ///
    /// # Errors
    /// When anything does not start.
    pub async fn add_all(&mut self) -> Result<()> {
        for name in ["n1", "n2", "n3"] {
            self.add_node(name, &[]).await?;
        }
        for name in ["g1", "g2"] {
            self.add_gateway(name, &[]).await?;
        }
        Ok(())
    }

    /// Has a process reach the bus by another address, `HOST:PORT`, such as that
    /// of a proxy, whenever it is started from now on.
    pub fn reach_bus_by(&mut self, process: &str, address: &str) {
        self.buses
            .insert(process.to_owned(), format!("nats://{address}"));
    }

    /// Has other nodes reach a founding node by a proxy, for those that are
    /// started from now on.
    ///
    /// # Errors
    /// When the node is none of the founders, or the proxy does not start.
    pub async fn reach_node_by_proxy(&mut self, node: &str) -> Result<UdpProxy> {
        let proxy = UdpProxy::start(self.quic.get(node).context("a founder")?).await?;
        self.detours
            .insert(node.to_owned(), proxy.address().to_owned());
        Ok(proxy)
    }

    /// From where a founder sends to the others.
    ///
    /// # Errors
    /// When it is none.
    pub fn sends_from(&self, node: &str) -> Result<SocketAddr> {
        Ok(self.quic.get(node).context("a founder")?.parse()?)
    }

    /// Has a gateway listen at the same address each time it is started from now
    /// on.
    ///
    /// # Errors
    /// When no port is free.
    pub fn keep_place(&mut self, gateway: &str) -> Result<()> {
        self.places.insert(gateway.to_owned(), free_address()?);
        Ok(())
    }

    fn bus_url(&self, process: &str) -> String {
        let other = self.buses.get(process).cloned();
        other.unwrap_or_else(|| self.nats.url())
    }

    /// Where certificates are.
    pub fn certs(&self) -> PathBuf {
        self.folder.path("certs")
    }

    /// A node's data directory.
    pub fn data(&self, node: &str) -> PathBuf {
        self.folder.path(&format!("data-{node}"))
    }

    fn certs_text(&self) -> Result<&'static str> {
        // Arguments live as long as the command; a leak of a path per test is
        // simpler than a lifetime through all of them.
        let text = self.certs().to_str().context("a path")?.to_owned();
        Ok(Box::leak(text.into_boxed_str()))
    }

    /// The command that runs a node, with further arguments.
    ///
    /// # Errors
    /// When its certificate cannot be made.
    pub async fn node_command(&mut self, name: &str, arguments: &[&str]) -> Result<Command> {
        let certs = self.certs_text()?;
        if !self.certs().join(format!("{name}.crt")).exists() {
            let made = run(["certs", "node", certs, name]).await?;
            if !made.status.success() {
                bail!("no certificate: {made:?}");
            }
        }
        let detours = &self.detours;
        let founders = self.quic.iter();
        let founders = founders.map(|(name, quic)| detours.get(name).unwrap_or(quic).as_str());
        let founders = founders.collect::<Vec<_>>().join(",");
        let count = self.quic.len().to_string();
        let is_founder = self.quic.contains_key(name);
        let address = match self.quic.get(name) {
            Some(address) => address.clone(),
            None => free_udp_address()?,
        };
        let bus = self.bus_url(name);
        let mut command = command_of(&self.binary, ["node", "--name", name, "--bus", &bus]);
        command
            .args(["--admin", "127.0.0.1:0", "--quic", &address])
            .args(["--join", &founders, "--certs", certs])
            .arg("--data")
            .arg(self.data(name));
        if is_founder {
            command.args(["--bootstrap-expect", &count]);
        }
        if let Some(detour) = self.detours.get(name) {
            command.args(["--quic-advertise", detour]);
        }
        command.args(arguments);
        Ok(command)
    }

    /// Starts a node, for the first time or again.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn add_node(&mut self, name: &str, arguments: &[&str]) -> Result<()> {
        let command = self.node_command(name, arguments).await?;
        self.add_node_by(name, command).await
    }

    /// Starts a node by a command of the caller's making.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn add_node_by(&mut self, name: &str, command: Command) -> Result<()> {
        let node = NodeProcess::start(command).await?;
        self.nodes.insert(name.to_owned(), node);
        Ok(())
    }

    /// The command that runs a gateway, with further arguments.
    pub fn gateway_command(&self, name: &str, arguments: &[&str]) -> Command {
        let bus = self.bus_url(name);
        let mut command = command_of(&self.binary, ["gateway", "--name", name, "--bus", &bus]);
        let place = self.places.get(name).map_or("127.0.0.1:0", String::as_str);
        command
            .args(["--listen", place, "--admin", "127.0.0.1:0"])
            .args(["--app", APP])
            .args(arguments);
        command
    }

    /// Starts a gateway, for the first time or again.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn add_gateway(&mut self, name: &str, arguments: &[&str]) -> Result<()> {
        let command = self.gateway_command(name, arguments);
        self.add_gateway_by(name, command).await
    }

    /// Starts gateways that have their apps from this configuration, and waits until
    /// all is ready.
    ///
    /// # Errors
    /// When any does not start.
    pub async fn add_gateways_of(&mut self, apps: &str, names: &[&str]) -> Result<()> {
        self.folder.file("apps.toml", apps)?;
        let path = self.folder.path("apps.toml");
        let path = path.to_str().context("a path of text")?;
        let bus = self.nats.url();
        for name in names {
            let gateway = ["gateway", "--name", name, "--bus", &bus, "--config", path];
            let at = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
            let command = command_of(&self.binary, gateway.iter().chain(&at));
            self.add_gateway_by(name, command).await?;
        }
        self.ready().await;
        Ok(())
    }

    /// Starts a gateway by a command of the caller's making.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn add_gateway_by(&mut self, name: &str, command: Command) -> Result<()> {
        let gateway = Dev::start_command(command).await?;
        self.gateways.insert(name.to_owned(), gateway);
        Ok(())
    }

    /// Ends a node at once; it says goodbye to nobody.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn kill_node(&mut self, name: &str) -> Result<()> {
        let mut node = self.nodes.remove(name).context("it runs")?;
        node.kill().await?;
        Ok(())
    }

    /// Ends a gateway at once; it says goodbye to nobody.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn kill_gateway(&mut self, name: &str) -> Result<()> {
        let mut gateway = self.gateways.remove(name).context("it runs")?;
        gateway.kill().await?;
        Ok(())
    }

    /// The admin addresses of all processes that run, by name.
    pub fn admins(&self) -> BTreeMap<&str, &str> {
        let nodes = self.nodes.iter().map(|(name, node)| (name, &node.admin));
        let gateways = self.gateways.iter().map(|(name, dev)| (name, &dev.admin));
        nodes
            .chain(gateways)
            .map(|(name, admin)| (name.as_str(), admin.as_str()))
            .collect()
    }

    /// Channels that a node owns.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn channels_of(&self, node: &str, count: usize) -> Result<Vec<String>> {
        self.channels_like("room", node, count).await
    }

    /// Channels with such names that a node owns, found by trying.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn channels_like(
        &self,
        prefix: &str,
        node: &str,
        count: usize,
    ) -> Result<Vec<String>> {
        let gateway = self.gateways.values().next().context("a gateway")?;
        let mut found = Vec::new();
        let mut number = 0;
        while found.len() < count {
            if number >= TRIES_MAX {
                bail!("node {node} owns too few shards to find {count} channels of it");
            }
            let name = format!("{prefix}-{number}");
            number += 1;
            // One that moves at this moment is nobody's.
            let channel = Self::inspect_channel(&gateway.admin, &name).await;
            if channel.is_ok_and(|channel| channel["owner"]["id"] == node) {
                found.push(name);
            }
        }
        Ok(found)
    }

    /// A gateway that runs.
    ///
    /// # Panics
    /// When none of that name does.
    pub fn gateway(&self, name: &str) -> &Dev {
        &self.gateways[name]
    }

    /// A node that runs.
    ///
    /// # Panics
    /// When none of that name does.
    pub fn node(&self, name: &str) -> &NodeProcess {
        &self.nodes[name]
    }

    /// Waits until everything says that it is ready.
    ///
    /// # Panics
    /// When something does not in time; with what it said instead.
    pub async fn ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        for (name, admin) in self.admins() {
            loop {
                let answer = get(admin, "/readyz").await;
                let said = match &answer {
                    Ok(answer) if answer.status == 200 => break,
                    Ok(answer) => &answer.body,
                    Err(error) => &error.to_string(),
                };
                assert!(Instant::now() < deadline, "{name} is not ready: {said}");
                sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// Waits until every shard is where it should be and in two processes, and
    /// every node knows.
    ///
    /// # Panics
    /// When that does not come; with what each node says.
    pub async fn protected(&self) {
        let deadline = Instant::now() + SETTLES;
        loop {
            let mut said = BTreeMap::new();
            for (name, node) in &self.nodes {
                let figure = async |name: &str| metric_at(&node.admin, name, &[]).await.ok();
                let figures = [
                    figure("dunlin_shards_without_standby").await,
                    figure("dunlin_shards_moving").await,
                    figure("dunlin_map_version").await,
                ];
                said.insert(name, figures);
            }
            let version = said.values().next().map(|[.., version]| *version);
            let are_settled = |[bare, moving, knows]: &[Option<f64>; 3]| {
                (*bare, *moving, Some(*knows)) == (Some(0.0), Some(0.0), version)
            };
            if said.values().all(are_settled) {
                return;
            }
            if Instant::now() >= deadline {
                let logs = self.nodes.iter().map(|(name, node)| {
                    let log = node.log();
                    let last: Vec<&str> = log.lines().rev().take(5).collect();
                    format!("{name}: {}", last.join("\n"))
                });
                let logs: Vec<String> = logs.collect();
                let heard = self.rumours().await;
                panic!(
                    "shards without a standby, shards that move, and the map's version: {said:?}\nwhat each has heard of the others: {heard:?}\n{}",
                    logs.join("\n")
                );
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// What gossip says at each node of each node.
    async fn rumours(&self) -> BTreeMap<&str, Vec<(Value, Value)>> {
        let mut heard = BTreeMap::new();
        for (name, node) in &self.nodes {
            let nodes = Self::inspect(&node.admin, "nodes")
                .await
                .unwrap_or_default();
            let nodes = nodes["nodes"].as_array().cloned().unwrap_or_default();
            let of = |node: &Value| (node["name"].clone(), node["gossip"].clone());
            heard.insert(name.as_str(), nodes.iter().map(of).collect());
        }
        heard
    }

    /// The name of the node that leads.
    ///
    /// # Errors
    /// When none says that it does.
    pub async fn leader(&self) -> Result<String> {
        for (name, node) in &self.nodes {
            let leads = metric_at(&node.admin, "dunlin_raft_is_leader", &[]).await;
            if leads.is_ok_and(|leads| leads > 0.0) {
                return Ok(name.clone());
            }
        }
        bail!("nobody leads")
    }

    /// Whom the next harm hits: each third time the leader, else the one of the others
    /// that owns most.
    ///
    /// # Errors
    /// When nodes do not answer.
    pub async fn victim(&self, turn: usize) -> Result<String> {
        let leader = self.leader().await?;
        if turn.is_multiple_of(3) {
            return Ok(leader);
        }
        let mut most = (0.0, String::new());
        for (name, node) in &self.nodes {
            let owned = metric_at(&node.admin, "dunlin_shards_owned", &[]).await?;
            if owned > most.0 && *name != leader {
                most = (owned, name.clone());
            }
        }
        Ok(most.1)
    }

    /// What a process says of the cluster: `nodes`, `gateways`, `shards`.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn inspect(admin: &str, what: &str) -> Result<Value> {
        let answer = get(admin, &format!("/admin/inspect/{what}")).await?;
        if answer.status != 200 {
            bail!("{}: {}", answer.status, answer.body);
        }
        Ok(answer.json())
    }

    /// What a process says of a channel.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn inspect_channel(admin: &str, name: &str) -> Result<Value> {
        Self::inspect(admin, &format!("channel?app=app-id&name={name}")).await
    }

    /// What a process says of one node or gateway (`what`: `nodes`,
    /// `gateways`).
    ///
    /// # Errors
    /// When it does not answer, or knows none of that name.
    pub async fn inspect_one(admin: &str, what: &str, name: &str) -> Result<Value> {
        let all = Self::inspect(admin, what).await?;
        let list = all[what].as_array().context("a list")?;
        let one = list.iter().find(|one| one["name"] == name);
        one.cloned()
            .with_context(|| format!("{name} is not among {all}"))
    }
}

/// Sets a process's wall clock wrong by so many seconds. Debug builds only.
pub fn with_wrong_clock(mut command: Command, offset_s: i64) -> Command {
    command.env("DUNLIN_TEST_CLOCK_OFFSET_S", offset_s.to_string());
    command
}

/// Whether a process says that it is ready.
pub async fn is_ready(admin: &str) -> Option<()> {
    let answer = get(admin, "/readyz").await.ok()?;
    (answer.status == 200).then_some(())
}

/// A UDP port of loopback that is free now, for a node that comes back at the same
/// place.
///
/// # Errors
/// When there is none.
pub fn free_udp_address() -> Result<String> {
    let port = free_port(|place| UdpSocket::bind(place).is_ok())?;
    Ok(format!("127.0.0.1:{port}"))
}

/// How soon a bus that is back must have everything working again.
pub const BUS_HEALS: Duration = Duration::from_secs(10);
