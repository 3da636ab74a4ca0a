//! Gateways and a node inside a test, on a bus of its making: to lose, count or
//! change what goes over it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use gateway::Gateway;
use gateway::app::{App, Apps};
use node::Node;
use prometheus::Registry;
use proto::bus::BusHandle;
use proto::id::{ClusterUuid, GatewayRef, Incarnation, NodeRef};
use proto::message::NodeInfo;
use proto::namespace::Namespaces;
use proto::shard::ShardMap;
use tokio::sync::watch;

use crate::client::KEY;

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
    let apps = Arc::new(Apps::new([App::new("app-id".parse()?, KEY, "app-secret")]));
    let metrics = gateway::Metrics::register(&Registry::new(), bus.name(), &apps)?;
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
        outbox_bytes_max: 1_024 * 1_024,
        playground: false,
    };
    let started = gateway::start(config, Arc::clone(bus), Arc::new(metrics), shutdown);
    let mut gateway = started.await?;
    gateway.ready.wait_for(|ready| *ready).await?;
    Ok(gateway)
}

/// Starts the node `n`, which owns every shard, until `shutdown`.
///
/// # Errors
/// When it does not start.
pub async fn start_node(bus: &BusHandle, shutdown: watch::Receiver<bool>) -> Result<Node> {
    let metrics = Arc::new(node::Metrics::register(&Registry::new(), bus.name())?);
    let me = NodeRef {
        id: "n".parse()?,
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
    Ok(node::start(config, view, Arc::clone(bus), metrics, shutdown).await?)
}
