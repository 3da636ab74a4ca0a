//! A cluster of real processes on a real nats-server.

use anyhow::{Context, Result};
use cluster_tests::client::{Pusher, publish};
use cluster_tests::cluster::Cluster;

#[tokio::test]
async fn a_publication_reaches_clients_of_every_gateway() -> Result<()> {
    let cluster = Cluster::start().await?;
    let mut clients = Vec::new();
    for gateway in cluster.gateways.values() {
        let mut client = Pusher::connect(gateway).await?;
        client.subscribe("room").await?;
        clients.push(client);
    }
    for (number, gateway) in cluster.gateways.values().enumerate() {
        publish(gateway, "room", "e", &format!("{number}")).await?;
    }
    for client in &mut clients {
        for number in 0..2 {
            assert_eq!(client.frame().await?["data"], format!("{number}"));
        }
    }
    let nodes = Cluster::inspect(&cluster.gateway("g1").admin, "nodes").await?;
    assert_eq!(nodes["nodes"].as_array().context("a list")?.len(), 3);
    Ok(())
}
