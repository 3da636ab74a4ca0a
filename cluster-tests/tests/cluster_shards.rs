//! What owners tell of their shards to those who look inside.

use anyhow::{Context, Result};
use cluster_tests::cluster::Cluster;
use cluster_tests::eventually;
use cluster_tests::process::run;
use rustix::process::Signal;
use serde_json::Value;

/// A shard as a process tells of it.
async fn shard(admin: &str, number: usize) -> Result<Value> {
    Cluster::inspect(admin, &format!("shard?number={number}")).await
}

/// A shard of a node for which another one stands by.
async fn shard_of(cluster: &Cluster, owner: &str, standby: &str) -> Result<usize> {
    let map = Cluster::inspect(&cluster.node(owner).admin, "shards").await?;
    let shards = map["shards"].as_array().context("a list")?;
    let is_it = |shard: &Value| shard["owner"]["id"] == owner && shard["standbys"][0] == standby;
    shards.iter().position(is_it).context("one of them")
}

#[tokio::test]
async fn a_shard_is_told_by_any_process_with_lag_and_leases() -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.protected().await;
    let number = shard_of(&cluster, "n1", "n2").await?;
    let map = Cluster::inspect(&cluster.node("n3").admin, "shards").await?;
    for admin in cluster.admins().values() {
        let told = shard(admin, number).await?;
        assert_eq!(told["owner"]["id"], "n1", "{told}");
        assert_eq!(told["fence"], map["shards"][number]["fence"]);
        assert_eq!(
            (&told["state"], &told["moves_to"]),
            (&"serves".into(), &Value::Null)
        );
        let lease = told["node_lease_ms"].as_u64().context("a lease")?;
        assert!(lease > 0 && lease <= 3_000, "{told}");
        let [standby] = &told["standbys"].as_array().context("a list")?[..] else {
            panic!("one standby: {told}")
        };
        assert_eq!(
            (&standby["node"]["id"], &standby["state"]),
            (&"n2".into(), &"in_sync".into())
        );
        assert_eq!(standby["lag_records"], 0, "nothing happens: {told}");
        let lease = standby["lease_ms"].as_u64().context("a lease")?;
        assert!(lease > 0 && lease <= 300, "{told}");
    }
    let number = number.to_string();
    let at = &cluster.gateway("g1").admin;
    let shown = run(["inspect", "shard", &number, "--admin", at]).await?;
    assert!(shown.status.success(), "{shown:?}");
    for text in [
        "owner    n1 (incarnation ",
        "state    serves",
        "from the leader",
    ] {
        assert!(shown.stdout.contains(text), "{shown:?}");
    }
    let none = run(["inspect", "shard", "1024", "--admin", at]).await?;
    assert!(none.stderr.contains("shards 0 to 1023"), "{none:?}");
    Ok(())
}

#[tokio::test]
async fn an_owner_that_has_lost_its_standby_says_for_what_it_waits_and_goes_on() -> Result<()> {
    let mut cluster = Cluster::empty(&["n1", "n2"]).await?;
    for name in ["n1", "n2"] {
        cluster.add_node(name, &[]).await?;
    }
    cluster.add_gateway("g1", &[]).await?;
    cluster.ready().await;
    cluster.protected().await;
    let number = shard_of(&cluster, "n1", "n2").await?;
    let admin = cluster.node("n1").admin.clone();
    // Two nodes without a witness: without the one the other can decide nothing,
    // not even that it goes on alone.
    cluster.node("n2").signal(Signal::STOP)?;
    eventually("it says that it waits for its standby", async || {
        let told = shard(&admin, number).await.ok()?;
        let standby = &told["standbys"][0];
        let waits_for = told["waits_for"].as_str().unwrap_or_default().to_owned();
        let is_it = told["state"] == "waits"
            && standby["lease_ms"] == 0
            && standby["state"] == "leaving"
            && (waits_for.contains("n2") || waits_for.contains("leader"));
        is_it.then_some(())
    })
    .await;
    eventually("the leader's lease has ended, too", async || {
        let told = shard(&admin, number).await.ok()?;
        (told["node_lease_ms"] == 0).then_some(())
    })
    .await;
    cluster.node("n2").signal(Signal::CONT)?;
    eventually("it serves again, and n2 stands by", async || {
        let map = Cluster::inspect(&admin, "shards").await.ok()?;
        let owner = map["shards"][number]["owner"]["id"].as_str()?.to_owned();
        let told = shard(&admin, number).await.ok()?;
        let is_it = told["owner"]["id"] == *owner
            && told["state"] == "serves"
            && told["standbys"][0]["state"] == "in_sync";
        is_it.then_some(())
    })
    .await;
    Ok(())
}
