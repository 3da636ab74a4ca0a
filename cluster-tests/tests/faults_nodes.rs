//! Nodes die, stand still and come back, under load. `dunlin verify` loads and
//! judges, as in `faults.rs`; here it is also measured for how long a channel
//! stands still whose owner was harmed.
//!
//! `make test` does each harm a few times, with a load that a busy machine can
//! take. `make soak` sets `SOAK`, for the load and the counts of the bars.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: faults last for some time"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use cluster_tests::client::{EventStream, metric_at};
use cluster_tests::cluster::Cluster;
use cluster_tests::durations::Durations;
use cluster_tests::nats::NatsServer;
use cluster_tests::probes::Probes;
use cluster_tests::proxy::{UdpProxy, Way};
use cluster_tests::traffic::Publisher;
use cluster_tests::verify::{Load, Verify, is_soak, times};
use cluster_tests::{SETTLES, eventually};
use rustix::process::Signal;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

/// Within which a channel goes on, whatever happened to its owner. The bar is
/// 2.5 s, of which `make soak` speaks; this is for machines that are busy.
const GOES_ON: Duration = Duration::from_secs(10);

/// A machine with two cores has enough with one cluster.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Channels whose standstill is measured, each time.
fn samples() -> usize {
    if is_soak() { 100 } else { 10 }
}

/// How long channels have stood still is said, and held to the bars.
fn tell(what: &str, gaps: &Durations) {
    println!("{what}: channels stood still {gaps}");
    assert!(gaps.percentile(100) < GOES_ON, "for too long");
    if is_soak() {
        assert!(gaps.percentile(50) <= Duration::from_millis(1_000));
        assert!(gaps.percentile(99) <= Duration::from_millis(2_500));
    }
}

/// Measures the time from the harm until something that was accepted after it is
/// delivered by another gateway.
async fn standstills(
    cluster: &mut Cluster,
    node: &str,
    gaps: &mut Durations,
    harm: impl AsyncFnOnce(&mut Cluster) -> Result<()>,
) -> Result<()> {
    let channels = cluster.channels_of(node, samples()).await?;
    let (g1, g2) = (
        cluster.gateway("g1").clients.clone(),
        cluster.gateway("g2").clients.clone(),
    );
    let mut streams = Vec::new();
    for channel in &channels {
        let mut stream = EventStream::open_at(&g2, &format!("channel={channel}"), "").await?;
        assert!(stream.block().await?.starts_with("id: "), "attached");
        streams.push(stream);
    }
    let harmed = Instant::now();
    harm(cluster).await?;
    let measures = channels
        .into_iter()
        .zip(streams)
        .map(|(channel, mut stream)| {
            let g1 = g1.clone();
            tokio::spawn(async move {
                let publish = async {
                    loop {
                        let accepted = async {
                            let mut publisher = Publisher::connect(&g1).await?;
                            publisher.publish(&channel, "after").await
                        };
                        if accepted.await.is_ok() {
                            return;
                        }
                    }
                };
                let hear = async {
                    while !stream.block().await?.contains("after") {}
                    anyhow::Ok(())
                };
                let heard = timeout(2 * GOES_ON, async { tokio::join!(publish, hear).1 });
                heard.await.context("it does not go on")??;
                anyhow::Ok(harmed.elapsed())
            })
        });
    let measures: Vec<_> = measures.collect();
    for measure in measures {
        gaps.push(measure.await??);
    }
    Ok(())
}

/// The load has ended: everything that was acknowledged is there, once and in order,
/// and nobody was told of a gap.
async fn nothing_is_lost(what: &str, verify: Verify) -> Result<()> {
    let verdict = verify.judge().await?;
    println!("{what}: {:#}", verdict.report);
    verdict.is_kept();
    verdict.has_no_gaps();
    Ok(())
}

/// Harms one node after the other, mends what was harmed, and waits each time
/// until all shards have a standby again.
async fn harm_again_and_again(
    what: &str,
    times: usize,
    harm: impl AsyncFn(&mut Cluster, &str) -> Result<()>,
    mend: impl AsyncFn(&mut Cluster, &str) -> Result<()>,
) -> Result<()> {
    let _alone = ALONE.lock().await;
    let mut cluster = Cluster::start().await?;
    cluster.protected().await;
    let verify = Verify::start(&cluster, Load::of_this_run(), &[]).await?;
    let mut gaps = Durations::default();
    for turn in 0..times {
        let node = cluster.victim(turn).await?;
        standstills(&mut cluster, &node, &mut gaps, async |cluster| {
            harm(cluster, &node).await
        })
        .await?;
        mend(&mut cluster, &node).await?;
        cluster.ready().await;
        cluster.protected().await;
    }
    nothing_is_lost(what, verify).await?;
    tell(what, &gaps);
    Ok(())
}

#[tokio::test]
async fn owners_are_killed() -> Result<()> {
    harm_again_and_again(
        "owners killed",
        times(3, 50),
        async |cluster, node| cluster.kill_node(node).await,
        async |cluster, node| cluster.add_node(node, &[]).await,
    )
    .await
}

#[tokio::test]
async fn owners_stand_still_and_go_on() -> Result<()> {
    harm_again_and_again(
        "owners stopped for five seconds",
        times(2, 20),
        async |cluster, node| cluster.node(node).signal(Signal::STOP),
        async |cluster, node| {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let node = cluster.node(node);
            node.signal(Signal::CONT)?;
            // It has found its lease over before it did anything.
            eventually("it says that it has paused", async || {
                let name = "dunlin_owner_paused_seconds_total";
                let paused = metric_at(&node.admin, name, &["lease=\"node\""]).await;
                paused.ok().filter(|seconds| *seconds > 0.0)
            })
            .await;
            Ok(())
        },
    )
    .await
}

#[tokio::test]
async fn owners_are_restarted_in_place() -> Result<()> {
    harm_again_and_again(
        "owners restarted in place",
        times(2, 10),
        async |cluster, node| {
            cluster.kill_node(node).await?;
            cluster.add_node(node, &[]).await
        },
        async |_, _| Ok(()),
    )
    .await
}

/// Three nodes, each behind a proxy of its own.
async fn behind_proxies() -> Result<(Cluster, BTreeMap<&'static str, UdpProxy>)> {
    let mut cluster = Cluster::on(NatsServer::start().await?, &["n1", "n2", "n3"]).await?;
    let mut proxies = BTreeMap::new();
    for node in ["n1", "n2", "n3"] {
        proxies.insert(node, cluster.reach_node_by_proxy(node).await?);
    }
    cluster.add_all().await?;
    cluster.ready().await;
    cluster.protected().await;
    Ok((cluster, proxies))
}

/// What one node says comes late to the leader, signs of life among it. So it is
/// taken for dead, and is not, and its standbys take over.
#[tokio::test]
async fn living_nodes_are_taken_for_dead() -> Result<()> {
    let _alone = ALONE.lock().await;
    let (cluster, proxies) = behind_proxies().await?;
    let verify = Verify::start(&cluster, Load::of_this_run(), &[]).await?;
    for _ in 0..times(2, 20) {
        let leader = cluster.leader().await?;
        let proxy = &proxies[leader.as_str()];
        let other = proxies.keys().find(|node| **node != leader);
        proxy.only(cluster.sends_from(other.context("another")?)?);
        for late in [700, 2_000, 1_200] {
            proxy.delay(Way::Both, Duration::from_millis(late));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        proxy.heal();
        cluster.ready().await;
        cluster.protected().await;
    }
    let taken_over = taken_over(&cluster).await?;
    println!("taken for dead: {taken_over} shards were taken over");
    assert!(taken_over > 0.0, "nobody was taken for dead");
    nothing_is_lost("taken for dead", verify).await
}

/// Shards that were taken over because their owner was not heard.
async fn taken_over(cluster: &Cluster) -> Result<f64> {
    let mut taken_over = 0.0;
    for node in cluster.nodes.values() {
        let name = "dunlin_failovers_total";
        taken_over += metric_at(&node.admin, name, &["cause=\"silence\""]).await?;
    }
    Ok(taken_over)
}

/// Numbers that look random, and are the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What nodes say to whoever leads, signs of life among it, comes late by up to two
/// seconds: now of this one, now of that one, and each time by something else. For
/// a minute, or here until somebody was taken for dead.
#[tokio::test]
async fn signs_of_life_come_late_at_random() -> Result<()> {
    let _alone = ALONE.lock().await;
    let (cluster, proxies) = behind_proxies().await?;
    let verify = Verify::start(&cluster, Load::of_this_run(), &[]).await?;
    let mut dice = Dice(0x5eed);
    let (began, lasts) = (Instant::now(), times(5, 60) as u64);
    let mut took_over = 0.0;
    while took_over == 0.0 || began.elapsed() < Duration::from_secs(lasts) {
        assert!(began.elapsed() < 2 * SETTLES, "nobody was taken for dead");
        // While there is none, whoever led last.
        if let Ok(leader) = cluster.leader().await {
            let others = proxies.keys().filter(|node| **node != leader);
            let others: Vec<_> = others.collect();
            let late = others[dice.below(2) as usize];
            let proxy = &proxies[leader.as_str()];
            proxy.only(cluster.sends_from(late)?);
            proxy.delay(Way::ToServer, Duration::from_millis(dice.below(2_000)));
            tokio::time::sleep(Duration::from_millis(200 + dice.below(1_300))).await;
            // Sometimes it stays, for as long as another one leads.
            if dice.below(4) > 0 {
                proxy.heal();
            }
        }
        took_over = taken_over(&cluster).await?;
    }
    proxies.values().for_each(UdpProxy::heal);
    cluster.ready().await;
    cluster.protected().await;
    println!("late at random: {took_over} shards were taken over");
    nothing_is_lost("late at random", verify).await
}

/// Channels by what a node is to them, found by trying names.
struct Concerned {
    /// It stands by for them.
    stood_by: Vec<String>,
    /// It has nothing of them.
    unharmed: Vec<String>,
}

impl Concerned {
    async fn by(cluster: &Cluster, node: &str, count: usize) -> Result<Self> {
        let (mut stood_by, mut unharmed) = (Vec::new(), Vec::new());
        let admin = &cluster.node(node).admin;
        let map = Cluster::inspect(admin, "shards").await?;
        for number in 0..10_000 {
            if stood_by.len() == count && unharmed.len() == count {
                return Ok(Self { stood_by, unharmed });
            }
            let name = format!("concerned-{number}");
            let channel = Cluster::inspect_channel(admin, &name).await?;
            let shard = channel["shard"].as_u64().context("a number")?;
            let shard = &map["shards"][shard as usize];
            let standbys = shard["standbys"].as_array().context("known")?;
            let list = if shard["owner"]["id"] == node {
                continue;
            } else if standbys.iter().any(|standby| standby == node) {
                &mut stood_by
            } else {
                &mut unharmed
            };
            if list.len() < count {
                list.push(name);
            }
        }
        anyhow::bail!("{node} stands by for everything, or for nothing")
    }
}

/// How long it takes until everything that a dead node had is in two processes again.
async fn is_made_up_for(cluster: &Cluster) -> Duration {
    let began = Instant::now();
    eventually("it is seen that something is in one process", async || {
        for node in cluster.nodes.values() {
            let bare = metric_at(&node.admin, "dunlin_shards_without_standby", &[]).await;
            if bare.is_ok_and(|bare| bare > 0.0) {
                return Some(());
            }
        }
        None
    })
    .await;
    cluster.protected().await;
    began.elapsed()
}

/// For channels of which the node that dies has only what their owner has, too,
/// acknowledgements wait until it is agreed to go on without. Those of which it has
/// nothing do not notice, whoever it was.
#[tokio::test]
async fn only_what_the_dead_node_had_is_delayed() -> Result<()> {
    let _alone = ALONE.lock().await;
    let mut cluster = Cluster::start().await?;
    cluster.protected().await;
    let verify = Verify::start(&cluster, Load::of_this_run(), &[]).await?;
    let count = if is_soak() { 10 } else { 5 };
    let (mut acks, mut delays) = (Durations::default(), Durations::default());
    let mut alone = Durations::default();
    for turn in 0..times(2, 20) {
        let node = cluster.victim(turn).await?;
        let concerned = Concerned::by(&cluster, &node, count).await?;
        let (g1, g2) = (cluster.gateway("g1"), cluster.gateway("g2"));
        let (g1, g2) = (g1.clients.clone(), g2.clients.clone());
        let stood_by = Probes::start(&g1, &g2, concerned.stood_by.clone()).await?;
        let unharmed = Probes::start(&g1, &g2, concerned.unharmed).await?;
        cluster.kill_node(&node).await?;
        // Longer than all leases.
        let longer = tokio::time::sleep(Duration::from_secs(4));
        let ((), took) = tokio::join!(longer, is_made_up_for(&cluster));
        alone.push(took);
        let took = stood_by.end().await?;
        for channel in &concerned.stood_by {
            let of_it = took.iter().filter(|took| took.channel == *channel);
            acks.extend(of_it.map(|took| took.acknowledged).max());
        }
        delays.extend(unharmed.end().await?.last().map(|took| took.heard));
        cluster.add_node(&node, &[]).await?;
        cluster.ready().await;
        cluster.protected().await;
    }
    assert_eq!(acks.count(), count * times(2, 20), "each was measured");
    assert_eq!(delays.count(), times(2, 20), "each time");
    println!("a standby lost: the slowest acknowledgement of a channel took {acks}");
    println!("owner and standby live: the slowest publication took {delays}");
    println!("what it had was in two processes again after {alone}");
    nothing_is_lost("who was no owner", verify).await?;
    if is_soak() {
        assert!(acks.percentile(99) <= Duration::from_millis(1_500));
        assert!(delays.percentile(100) <= Duration::from_millis(250));
        assert!(alone.percentile(100) <= Duration::from_secs(15));
    }
    Ok(())
}

/// Cuts ways between nodes again and again, each time for longer than connections
/// outlive silence.
async fn cut_again_and_again(
    what: &str,
    times: usize,
    cut: impl AsyncFn(&Cluster, &BTreeMap<&'static str, UdpProxy>, usize) -> Result<()>,
) -> Result<()> {
    let _alone = ALONE.lock().await;
    let (cluster, proxies) = behind_proxies().await?;
    let verify = Verify::start(&cluster, Load::of_this_run(), &[]).await?;
    for turn in 0..times {
        cut(&cluster, &proxies, turn).await?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        proxies.values().for_each(UdpProxy::heal);
        cluster.ready().await;
        cluster.protected().await;
    }
    // Owners have noticed that their standbys do not answer.
    let mut paused = 0.0;
    for node in cluster.nodes.values() {
        let name = "dunlin_owner_paused_seconds_total";
        paused += metric_at(&node.admin, name, &["lease=\"pair\""]).await?;
    }
    assert!(paused > 0.0, "nothing was cut");
    nothing_is_lost(what, verify).await
}

/// One direction, the other, and both.
fn direction(turn: usize) -> Way {
    [Way::ToServer, Way::ToClient, Way::Both][(turn + turn / 3) % 3]
}

/// What the others send to a node, or what it answers them, is lost, all of it: they
/// hear its signs of life, which come on connections of its own, and can neither
/// have it stand by nor tell it what is decided. The bus works.
#[tokio::test]
async fn nodes_cannot_be_reached_by_the_others() -> Result<()> {
    cut_again_and_again(
        "not reached by the others",
        times(3, 18),
        async |cluster, proxies, turn| {
            let node = cluster.victim(turn).await?;
            proxies[node.as_str()].lose(direction(turn), 100);
            Ok(())
        },
    )
    .await
}

/// Two nodes do not reach each other, or one of them not the other; both reach the
/// third.
#[tokio::test]
async fn two_nodes_cannot_reach_each_other() -> Result<()> {
    cut_again_and_again(
        "two not reached by each other",
        times(3, 18),
        async |cluster, proxies, turn| {
            let one = cluster.victim(turn).await?;
            let other = proxies.keys().find(|node| **node != one);
            let other = *other.context("another")?;
            let way = direction(turn);
            proxies[one.as_str()].only(cluster.sends_from(other)?);
            proxies[one.as_str()].lose(way, 100);
            // What goes the same way on the connections of the other one.
            let back = match way {
                Way::ToServer => Way::ToClient,
                Way::ToClient => Way::ToServer,
                Way::Both => Way::Both,
            };
            proxies[other].only(cluster.sends_from(&one)?);
            proxies[other].lose(back, 100);
            Ok(())
        },
    )
    .await
}
