//! Real faults: real processes and a real nats-server, under load, harmed in
//! every way that a test can. `dunlin verify` loads and judges: nothing that
//! was acknowledged is lost, nothing comes twice or in another order, and no
//! gap is silent.
//!
//! `make test` does each harm once or a few times, with a load that a busy
//! machine can take. `make soak` sets `SOAK`, for the load and the counts of the
//! bars in docs/guarantees.md.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: faults last for some time"
)]

use std::time::Duration;

use anyhow::Result;
use cluster_tests::client::metric_at;
use cluster_tests::cluster::{BUS_HEALS, Cluster};
use cluster_tests::nats::NatsServer;
use cluster_tests::proxy::{TcpProxy, Way};
use cluster_tests::traffic::{END, Follower, Publisher};
use cluster_tests::verify::{Load, Verdict, Verify, is_soak};
use cluster_tests::{PATIENCE, eventually};
use futures_util::future::try_join_all;
use rustix::process::Signal;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long a fault lasts that is not over at once.
const FAULT: Duration = Duration::from_secs(3);
/// Bytes that nats-server keeps for a gateway that has much to read: beyond what
/// the kernel holds already.
const MUCH: u64 = 1_024 * 1_024;

/// A machine with two cores has enough with one cluster under load.
static ALONE: Mutex<()> = Mutex::const_new(());

/// How often a harm is done.
fn times(few: u32) -> u32 {
    if is_soak() { 10 } else { few }
}

/// Waits until every gateway takes publications; how long that took.
async fn works(cluster: &Cluster) -> Result<Duration> {
    let began = Instant::now();
    for gateway in cluster.gateways.values() {
        let mut number = 0;
        while number < 20 {
            let published = async {
                let mut publisher = Publisher::connect(&gateway.clients).await?;
                // Some channels of every node.
                while number < 20 {
                    let channel = format!("works-{number}");
                    publisher.publish(&channel, "x").await?;
                    number += 1;
                }
                anyhow::Ok(())
            };
            if let Err(error) = published.await {
                assert!(began.elapsed() < 2 * PATIENCE, "in vain: {error:#}");
                lasts(Duration::from_millis(20)).await;
            }
        }
    }
    Ok(began.elapsed())
}

/// The time that a fault takes, or that passes between two.
async fn lasts(time: Duration) {
    tokio::time::sleep(time).await;
}

fn told(what: &str, verdict: &Verdict) {
    println!("{what}: {:#}", verdict.report);
}

#[tokio::test]
async fn nothing_is_lost_while_nothing_happens() -> Result<()> {
    let _alone = ALONE.lock().await;
    let cluster = Cluster::start().await?;
    let verify = Verify::start(&cluster, Load::of_this_run(), &[]).await?;
    lasts(FAULT).await;
    let verdict = verify.judge().await?;
    told("no fault", &verdict);
    verdict.is_kept();
    verdict.has_no_gaps();
    assert!(verdict.figure("reconnects") > 0 && verdict.figure("unknown") == 0);
    Ok(())
}

#[tokio::test]
async fn nats_is_killed_and_restarted() -> Result<()> {
    let _alone = ALONE.lock().await;
    let mut cluster = Cluster::start().await?;
    let verify = Verify::start(&cluster, Load::of_this_run(), &[]).await?;
    for _ in 0..times(2) {
        cluster.nats.kill();
        lasts(Duration::from_millis(500)).await;
        cluster.nats.restart().await?;
        works(&cluster).await?;
        lasts(Duration::from_secs(1)).await;
    }
    let verdict = verify.judge().await?;
    told("nats-server killed", &verdict);
    verdict.is_kept();
    // History holds far more than what is published meanwhile.
    verdict.has_no_gaps();
    Ok(())
}

#[tokio::test]
async fn nats_stands_still_for_some_seconds() -> Result<()> {
    let _alone = ALONE.lock().await;
    let cluster = Cluster::start().await?;
    let verify = Verify::start(&cluster, Load::of_this_run(), &[]).await?;
    for _ in 0..times(1) {
        cluster.nats.pause()?;
        lasts(FAULT).await;
        cluster.nats.resume()?;
        works(&cluster).await?;
        lasts(Duration::from_secs(1)).await;
    }
    let verdict = verify.judge().await?;
    told("nats-server stopped", &verdict);
    verdict.is_kept();
    verdict.has_no_gaps();
    Ok(())
}

#[tokio::test]
async fn a_gateway_is_killed_and_restarted() -> Result<()> {
    let _alone = ALONE.lock().await;
    let mut cluster = Cluster::on(NatsServer::start().await?, &["n1", "n2", "n3"]).await?;
    cluster.keep_place("g1")?;
    cluster.add_all().await?;
    cluster.ready().await;
    let verify = Verify::start(&cluster, Load::of_this_run(), &[]).await?;
    for _ in 0..times(2) {
        cluster.kill_gateway("g1").await?;
        // Long enough that its clients are at the other one.
        lasts(Duration::from_secs(1)).await;
        cluster.add_gateway("g1", &[]).await?;
        works(&cluster).await?;
        lasts(Duration::from_secs(1)).await;
    }
    let verdict = verify.judge().await?;
    told("gateway killed", &verdict);
    verdict.is_kept();
    verdict.has_no_gaps();
    assert!(verdict.figure("disconnects") > 0);
    Ok(())
}

/// What a gateway does not read in time, nats-server drops, and its connection
/// with it.
#[tokio::test]
async fn a_gateway_stands_still_and_nats_drops_what_is_for_it() -> Result<()> {
    let _alone = ALONE.lock().await;
    // The least that goes with the largest message.
    let nats = NatsServer::start_with("max_pending: 1MB\nwrite_deadline: \"200ms\"\n").await?;
    let cluster = Cluster::start_on(nats).await?;
    let verify = Verify::start(&cluster, Load::of_this_run(), &[]).await?;
    let gateway = cluster.gateway("g2");
    let figure = async |name: &str| metric_at(&gateway.admin, name, &[]).await;
    let gaps = figure("dunlin_link_gaps_total").await?;
    for time in 1..=times(1) {
        let before = cluster.nats.slow_consumers();
        let is_dropped = async || Ok(cluster.nats.slow_consumers() > before);
        stands_still_while_much_comes(&cluster, &format!("dropped-{time}"), is_dropped).await?;
        let reconnects = figure("dunlin_bus_reconnects_total").await?;
        assert!(reconnects >= f64::from(time), "its connection was dropped");
        lasts(Duration::from_secs(1)).await;
    }
    let noticed = figure("dunlin_link_gaps_total").await? - gaps;
    assert!(noticed > 0.0, "something was missing at the gateway");
    let verdict = verify.judge().await?;
    told("slow consumer", &verdict);
    verdict.is_kept();
    verdict.has_no_gaps();
    Ok(())
}

/// All that nats-server kept comes at once, and the queues of the gateway take
/// it: nothing is dropped, there or here.
#[tokio::test]
async fn a_gateway_stands_still_and_has_much_to_read_after_it() -> Result<()> {
    let _alone = ALONE.lock().await;
    let nats = NatsServer::start_with("http: \"127.0.0.1:-1\"\n").await?;
    let cluster = Cluster::start_on(nats).await?;
    let verify = Verify::start(&cluster, Load::of_this_run(), &[]).await?;
    let gateway = cluster.gateway("g2");
    for time in 1..=times(1) {
        let is_kept = async || Ok(cluster.nats.kept_for("gateway g2").await? >= MUCH);
        stands_still_while_much_comes(&cluster, &format!("much-{time}"), is_kept).await?;
    }
    for name in ["dunlin_bus_dropped_total", "dunlin_bus_reconnects_total"] {
        assert_eq!(metric_at(&gateway.admin, name, &[]).await?, 0.0, "{name}");
    }
    assert_eq!(cluster.nats.slow_consumers(), 0, "{}", cluster.nats.log());
    let verdict = verify.judge().await?;
    told("gateway stopped", &verdict);
    verdict.is_kept();
    verdict.has_no_gaps();
    Ok(())
}

/// Stops `g2` and publishes through `g1` for clients of it until that is enough, in less
/// time than a gateway may be silent; lets it go on, and checks what its clients got.
async fn stands_still_while_much_comes(
    cluster: &Cluster,
    prefix: &str,
    is_enough: impl AsyncFn() -> Result<bool>,
) -> Result<()> {
    let gateway = cluster.gateway("g2");
    // A client has one of them, or it would be too slow for the rest.
    let channels: Vec<String> = (0..32).map(|n| format!("{prefix}-{n}")).collect();
    let mut following = Vec::new();
    let mut publishers = Vec::new();
    for channel in &channels {
        let one = std::slice::from_ref(channel);
        following.push(Follower::by_stream(&gateway.clients, one).await?);
        publishers.push(Publisher::connect(&cluster.gateway("g1").clients).await?);
    }
    let mut publish = async |data: &str| {
        let each = publishers.iter_mut().zip(&channels);
        try_join_all(each.map(|(publisher, channel)| publisher.publish(channel, data))).await
    };
    let mut sent = Vec::new();
    gateway.signal(Signal::STOP)?;
    while !is_enough().await? {
        // More would not go into the outbox of a client.
        assert!(
            sent.len() < 10,
            "in vain: nats-server has much for {prefix}"
        );
        let data = format!("{}-{}", sent.len(), "x".repeat(90_000));
        publish(&data).await?;
        sent.push(data);
    }
    publish(END).await?;
    gateway.signal(Signal::CONT)?;
    works(cluster).await?;
    for (follower, channel) in following.into_iter().zip(channels) {
        let got = follower.received().await?;
        assert!(got == [(channel, sent.clone())].into(), "once and in order");
    }
    Ok(())
}

/// Each process's way to the bus is broken in one direction, then in the other,
/// then in both; for so long that it may or may not be given up.
#[tokio::test]
async fn a_way_to_the_bus_is_broken_in_one_direction() -> Result<()> {
    let _alone = ALONE.lock().await;
    let mut cluster = Cluster::on(NatsServer::start().await?, &["n1", "n2", "n3"]).await?;
    let mut proxies = Vec::new();
    for process in ["g1", "n2"] {
        let proxy = TcpProxy::start(&cluster.nats.address()).await?;
        cluster.reach_bus_by(process, proxy.address());
        proxies.push(proxy);
    }
    cluster.add_all().await?;
    cluster.ready().await;
    let verify = Verify::start(&cluster, Load::of_this_run(), &[]).await?;
    for _ in 0..times(1) {
        for proxy in &proxies {
            for way in [Way::ToServer, Way::ToClient, Way::Both] {
                proxy.stall(way);
                lasts(FAULT).await;
                proxy.heal();
                let took = works(&cluster).await?;
                println!("{way:?}: works again after {took:?}");
                assert!(took < BUS_HEALS, "{way:?}: {took:?}");
            }
            proxy.cut();
            works(&cluster).await?;
        }
    }
    let verdict = verify.judge().await?;
    told("bus broken one way", &verdict);
    verdict.is_kept();
    verdict.has_no_gaps();
    Ok(())
}

/// The other nodes reach it, and no gateway does: it hands over what it has, as
/// planned, and takes its share again when the bus is back.
#[tokio::test]
async fn a_node_that_loses_the_bus_gives_away_what_it_has() -> Result<()> {
    let _alone = ALONE.lock().await;
    let mut cluster = Cluster::on(NatsServer::start().await?, &["n1", "n2", "n3"]).await?;
    let proxy = TcpProxy::start(&cluster.nats.address()).await?;
    cluster.reach_bus_by("n2", proxy.address());
    cluster.add_all().await?;
    cluster.ready().await;
    let verify = Verify::start(&cluster, Load::of_this_run(), &[]).await?;
    let owned = async || {
        let owned = metric_at(&cluster.node("n2").admin, "dunlin_shards_owned", &[]);
        owned.await.ok()
    };
    for _ in 0..times(1) {
        proxy.stall(Way::Both);
        let stalled = Instant::now();
        eventually("it has given away everything", async || {
            (owned().await? == 0.0).then_some(())
        })
        .await;
        println!("given away after {:?}", stalled.elapsed());
        works(&cluster).await?;
        proxy.heal();
        eventually("it takes its share again", async || {
            (owned().await? >= 300.0).then_some(())
        })
        .await;
    }
    let verdict = verify.judge().await?;
    told("one node without the bus", &verdict);
    verdict.is_kept();
    verdict.has_no_gaps();
    Ok(())
}

/// A bus that is far away, for one gateway: everything is late, nothing else.
#[tokio::test]
async fn a_way_to_the_bus_is_long() -> Result<()> {
    let _alone = ALONE.lock().await;
    let mut cluster = Cluster::on(NatsServer::start().await?, &["n1", "n2", "n3"]).await?;
    let proxy = TcpProxy::start(&cluster.nats.address()).await?;
    cluster.reach_bus_by("g1", proxy.address());
    cluster.add_all().await?;
    cluster.ready().await;
    let verify = Verify::start(&cluster, Load::of_this_run(), &[]).await?;
    proxy.delay(Way::Both, Duration::from_millis(100));
    lasts(FAULT).await;
    proxy.heal();
    let verdict = verify.judge().await?;
    told("bus far away", &verdict);
    verdict.is_kept();
    verdict.has_no_gaps();
    Ok(())
}

/// Nodes lose a third of what they send to each other. They stay one cluster,
/// and clients notice nothing.
#[tokio::test]
async fn nodes_lose_what_they_send_to_each_other() -> Result<()> {
    let _alone = ALONE.lock().await;
    let mut cluster = Cluster::on(NatsServer::start().await?, &["n1", "n2", "n3"]).await?;
    let mut proxies = Vec::new();
    for node in ["n1", "n2", "n3"] {
        proxies.push(cluster.reach_node_by_proxy(node).await?);
    }
    cluster.add_all().await?;
    cluster.ready().await;
    let verify = Verify::start(&cluster, Load::of_this_run(), &[]).await?;
    for proxy in &proxies {
        proxy.lose(Way::Both, 30);
        proxy.delay(Way::Both, Duration::from_millis(20));
    }
    lasts(2 * FAULT).await;
    // All of it: each node is alone.
    for proxy in &proxies {
        proxy.lose(Way::Both, 100);
    }
    lasts(FAULT).await;
    for proxy in &proxies {
        proxy.heal();
    }
    cluster.ready().await;
    let verdict = verify.judge().await?;
    told("nodes lose datagrams", &verdict);
    verdict.is_kept();
    verdict.has_no_gaps();
    // Not at once: what a node took over meanwhile moves back to who owns less.
    eventually("each shard has one owner", async || {
        let mut owned = 0.0;
        for node in cluster.nodes.values() {
            let shards = metric_at(&node.admin, "dunlin_shards_owned", &[]);
            owned += shards.await.ok()?;
        }
        (owned == 1_024.0).then_some(())
    })
    .await;
    Ok(())
}
