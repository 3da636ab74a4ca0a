//! What cache channels keep, while real processes die.

use anyhow::{Result, ensure};
use cluster_tests::client::{Pusher, publish};
use cluster_tests::cluster::Cluster;
use serde_json::json;

const COUNT: usize = 30;

/// What whoever subscribes now is told first.
async fn kept(address: &str, channel: &str) -> Result<String> {
    let mut client = Pusher::connect_to(address).await?;
    let subscribe = json!({ "event": "pusher:subscribe", "data": { "channel": channel } });
    client.send(&subscribe).await?;
    let acknowledged = client.frame().await?;
    ensure!(
        acknowledged["event"] == "pusher_internal:subscription_succeeded",
        "{acknowledged}"
    );
    let first = client.frame().await?;
    Ok(format!("{} {}", first["event"], first["data"]))
}

#[tokio::test]
async fn what_is_kept_survives_the_nodes_that_had_it() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    // Of all nodes.
    let channels: Vec<String> = (0..COUNT).map(|n| format!("cache-room{n}")).collect();
    for channel in &channels {
        let [first, second] = ["g1", "g2"].map(|name| cluster.gateway(name));
        publish(first, channel, "e", "old").await?;
        publish(second, channel, "e", channel).await?;
    }
    let addresses = ["g1", "g2"].map(|name| cluster.gateway(name).clients.clone());
    cluster.protected().await;
    for node in ["n2", "n3"] {
        for address in &addresses {
            for channel in &channels {
                let told = kept(address, channel).await?;
                ensure!(told == format!(r#""e" "{channel}""#), "{channel}: {told}");
            }
        }
        // With its memory: the next one has what it stood by for, and what it was sent.
        cluster.kill_node(node).await?;
        cluster.add_node(node, &[]).await?;
        cluster.protected().await;
    }
    for channel in &channels {
        let told = kept(&addresses[0], channel).await?;
        ensure!(told == format!(r#""e" "{channel}""#), "{channel}: {told}");
    }
    Ok(())
}
