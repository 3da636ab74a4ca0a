//! Gateways and a node inside a test, on a bus of its making: to lose, count or
//! change what goes over it ([`crate::disturbed`] does that).

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use gateway::app::{App, Apps};
use gateway::core::leaving::Pace;
use gateway::{Gateway, Limits, OutboxLimits};
use node::Node;
use prometheus::Registry;
use proto::bus::BusHandle;
use proto::id::{ClusterUuid, GatewayRef, Incarnation, NodeRef};
use proto::inspection::NodeInfo;
use proto::namespace::Namespaces;
use proto::shard::ShardMap;
use tokio::sync::watch;

use crate::client::KEY;

/// The name of the node.
pub const NODE: &str = "n";

/// A gateway and a node, ready.
#[derive(Debug)]
pub struct Pair {
    /// Where clients connect: `127.0.0.1:PORT`.
    pub address: String,
    /// The metrics of the gateway.
    pub registry: Registry,
    /// Ends both.
    pub stop: watch::Sender<bool>,
    /// The gateway.
    pub gateway: Gateway,
    /// The node, which owns every shard.
    pub node: Node,
}

impl Pair {
    /// Starts one.
    ///
    /// # Errors
    /// When either does not start.
    pub async fn start(bus: &BusHandle) -> Result<Self> {
        let (stop, shutdown) = watch::channel(false);
        let registry = Registry::new();
        let mut gateway = begin_gateway(bus, "g", &registry, shutdown.clone()).await?;
        let node = start_node(bus, shutdown).await?;
        gateway.ready.wait_for(|ready| *ready).await?;
        Ok(Self {
            address: gateway.address.to_string(),
            registry,
            stop,
            gateway,
            node,
        })
    }

    /// What a counter of the gateway has come to, over all its labels.
    pub fn counted(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        family.map_or(0.0, |family| {
            let metrics = family.get_metric().iter();
            metrics.map(|metric| metric.get_counter().get_value()).sum()
        })
    }
}

/// Starts a gateway for the usual app, until `shutdown`. Returns when it is
/// ready, so there has to be a node.
///
/// # Errors
/// When it does not start.
pub async fn start_gateway(
    bus: &BusHandle,
    name: &str,
    shutdown: watch::Receiver<bool>,
) -> Result<Gateway> {
    let mut gateway = begin_gateway(bus, name, &Registry::new(), shutdown).await?;
    gateway.ready.wait_for(|ready| *ready).await?;
    Ok(gateway)
}

/// Starts a gateway that looks for a node, and counts in this registry.
///
/// # Errors
/// When it does not start.
pub async fn begin_gateway(
    bus: &BusHandle,
    name: &str,
    registry: &Registry,
    shutdown: watch::Receiver<bool>,
) -> Result<Gateway> {
    let apps = Arc::new(Apps::new([App::new("app-id".parse()?, KEY, "app-secret")]));
    let metrics = Arc::new(gateway::Metrics::register(registry, bus.name(), &apps)?);
    let config = gateway::Config {
        cluster: "test".parse()?,
        gateway: GatewayRef {
            id: name.parse()?,
            incarnation: Incarnation(1),
        },
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        apps,
        workers: 2,
        activity_timeout: Duration::from_secs(120),
        tls: None,
        limits: Limits::default(),
        // No client is too slow here.
        outbox: OutboxLimits {
            bytes_max: 64 * 1_024 * 1_024,
            ..OutboxLimits::default()
        },
        namespaces: Namespaces::default(),
        leaving: Pace::AT_ONCE,
        playground: false,
    };
    Ok(gateway::start(config, Arc::clone(bus), metrics, shutdown).await?)
}

/// Starts the node, which owns every shard, until `shutdown`.
///
/// # Errors
/// When it does not start.
pub async fn start_node(bus: &BusHandle, shutdown: watch::Receiver<bool>) -> Result<Node> {
    let metrics = Arc::new(node::Metrics::register(&Registry::new(), bus.name())?);
    let me = NodeRef {
        id: NODE.parse()?,
        incarnation: Incarnation(1),
    };
    let config = node::Config {
        cluster: "test".parse()?,
        node: me.clone(),
        namespaces: Namespaces::default(),
        workers: 2,
    };
    let member = NodeInfo {
        name: me.id.clone(),
        incarnation: Some(me.incarnation),
        address: String::new(),
        zone: String::new(),
        witness: false,
        role: "leader".into(),
        gossip: "alive".into(),
        shards: 1_024,
        version: String::new(),
    };
    let view = node::View::fixed(ShardMap::standalone(ClusterUuid(1), 7, me), member);
    let kept = node::Checkpoint::default();
    Ok(node::start(config, view, kept, Arc::clone(bus), metrics, shutdown).await?)
}
