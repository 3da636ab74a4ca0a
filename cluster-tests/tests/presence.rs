//! Who is present, while real processes die: members of a killed gateway leave once
//! and in time, and nobody leaves because an owner died. What the HTTP API lists and
//! what members are told agree.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: what takes how long is measured"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::client::{get, signed_query};
use cluster_tests::cluster::Cluster;
use cluster_tests::durations::Durations;
use cluster_tests::member::Member;
use cluster_tests::verify::{is_soak, times};
use proto::time::UnixTime;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

/// Within which the members of a dead gateway have left: lease and grace.
const LEAVES: Duration = Duration::from_secs(5);
/// For how long nodes have to hear themselves before they say of others that they are
/// silent: a bus that has just come back is no reason to leave.
const SETTLES: Duration = Duration::from_secs(5);
/// How long nothing happens that should not.
const QUIET: Duration = Duration::from_secs(6);
/// How often is asked who is there.
const ASKS: Duration = Duration::from_millis(20);

/// A machine with two cores has enough with one cluster.
static ALONE: Mutex<()> = Mutex::const_new(());

/// What the API says who is there, and whether that is all.
async fn users(address: &str, channel: &str) -> Result<(BTreeSet<String>, bool)> {
    let path = format!("/apps/app-id/channels/{channel}/users");
    let query = signed_query("GET", &path, "", "app-secret", UnixTime::now());
    let answer = get(address, &format!("{path}?{query}")).await?;
    let told = answer.json();
    let users = told["users"].as_array().context("users")?;
    let ids = users
        .iter()
        .filter_map(|user| Some(user["id"].as_str()?.to_owned()));
    Ok((ids.collect(), told["complete"] == true))
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("{prefix}{number}"))
        .collect()
}

#[tokio::test]
async fn the_members_of_a_killed_gateway_leave_once_and_in_time() -> Result<()> {
    let _alone = ALONE.lock().await;
    let mut cluster = Cluster::start().await?;
    let (mut leaving, mut asking) = (Durations::default(), Durations::default());
    for turn in 0..times(1, 10) {
        a_gateway_is_killed(&mut cluster, turn, &mut leaving, &mut asking).await?;
        cluster.add_gateway("g2", &[]).await?;
        cluster.ready().await;
    }
    println!("members of killed gateways have left: {leaving}");
    println!("the users were told all the while: {asking}");
    ensure!(leaving.percentile(100) < LEAVES);
    ensure!(!is_soak() || asking.percentile(99) <= Duration::from_millis(20));
    Ok(())
}

async fn a_gateway_is_killed(
    cluster: &mut Cluster,
    turn: usize,
    leaving: &mut Durations,
    asking: &mut Durations,
) -> Result<()> {
    let channel = &format!("presence-room{turn}");
    let (here, there) = (
        cluster.gateway("g1").clients.clone(),
        cluster.gateway("g2").clients.clone(),
    );
    let mut watcher = Member::join(&here, channel, "watcher").await?;
    let mut lost = Vec::new();
    for user in names("lost", 10) {
        lost.push(Member::join(&there, channel, &user).await?);
    }
    // This one is at both.
    let _twin_there = Member::join(&there, channel, "twin").await?;
    let mut twin = Member::join(&here, channel, "twin").await?;
    let mut all: BTreeSet<String> = names("lost", 10).into_iter().collect();
    all.extend(["watcher".to_owned(), "twin".to_owned()]);
    watcher.knows(&all, LEAVES).await?;
    ensure!(twin.users == all, "{:?}", twin.users);
    tokio::time::sleep(SETTLES).await;
    cluster.kill_gateway("g2").await?;
    let since = Instant::now();
    let left: BTreeSet<String> = ["watcher".to_owned(), "twin".to_owned()].into();
    let mut asked = tokio::time::interval(ASKS);
    loop {
        let is_over = tokio::select! {
            told = watcher.told() => {
                let told = told?;
                ensure!(told.starts_with("-lost"), "{told}");
                watcher.users == left
            }
            _ = asked.tick() => {
                let began = Instant::now();
                let (listed, _) = users(&here, channel).await?;
                asking.push(began.elapsed());
                ensure!(listed.is_superset(&left) && listed.is_subset(&all), "{listed:?}");
                false
            }
        };
        if is_over {
            break;
        }
        ensure!(
            since.elapsed() < 2 * LEAVES,
            "still there: {:?}",
            watcher.users
        );
    }
    leaving.push(since.elapsed());
    ensure!(users(&here, channel).await?.0 == left, "the list differs");
    twin.knows(&left, LEAVES).await?;
    watcher.is_left_alone(QUIET).await?;
    drop(lost);
    Ok(())
}

#[tokio::test]
async fn nobody_leaves_because_an_owner_died() -> Result<()> {
    let _alone = ALONE.lock().await;
    let mut cluster = Cluster::start().await?;
    let mut completing = Durations::default();
    for turn in 0..times(2, 20) {
        cluster.protected().await;
        let node = cluster.victim(turn).await?;
        an_owner_is_killed(&mut cluster, turn, &node, &mut completing).await?;
        cluster.add_node(&node, &[]).await?;
        cluster.ready().await;
    }
    println!("complete after the owner was killed: {completing}");
    ensure!(!is_soak() || completing.percentile(99) <= Duration::from_millis(2_500));
    Ok(())
}

async fn an_owner_is_killed(
    cluster: &mut Cluster,
    turn: usize,
    node: &str,
    completing: &mut Durations,
) -> Result<()> {
    let gateways = ["g1", "g2"].map(|name| cluster.gateway(name).clients.clone());
    let prefix = format!("presence-room{turn}");
    let channels = cluster.channels_like(&prefix, node, times(10, 30)).await?;
    let mut members = Vec::new();
    let mut leaving = Vec::new();
    for channel in &channels {
        members.push(Member::join(&gateways[0], channel, "a").await?);
        members.push(Member::join(&gateways[1], channel, "b").await?);
        leaving.push(Member::join(&gateways[1], channel, "gone").await?);
    }
    let all: BTreeSet<String> = ["a", "b", "gone"].map(Into::into).into();
    for member in &mut members {
        member.knows(&all, LEAVES).await?;
    }
    cluster.kill_node(node).await?;
    // These go while nobody owns the channels.
    drop(leaving);
    let left: BTreeSet<String> = ["a", "b"].map(Into::into).into();
    let complete = channels.iter().map(|channel| {
        let (gateway, channel) = (gateways[0].clone(), channel.clone());
        let (left, all) = (left.clone(), all.clone());
        tokio::spawn(async move { completes(&gateway, &channel, &left, &all).await })
    });
    for completes in complete.collect::<Vec<_>>() {
        completing.push(completes.await??);
    }
    for member in &mut members {
        member.knows(&left, 2 * LEAVES).await?;
    }
    for channel in &channels {
        let (listed, is_complete) = users(&gateways[0], channel).await?;
        ensure!(is_complete, "{channel} is complete no longer");
        ensure!(listed == left, "{channel}: {listed:?}");
    }
    for member in &mut members {
        member.is_left_alone(Duration::from_millis(100)).await?;
    }
    Ok(())
}

/// How long it takes until the list of a channel is complete. All the while it leaves
/// out nobody who is there, and names nobody who never was.
async fn completes(
    gateway: &str,
    channel: &str,
    there: &BTreeSet<String>,
    all: &BTreeSet<String>,
) -> Result<Duration> {
    let since = Instant::now();
    while since.elapsed() < 3 * LEAVES {
        // Nobody answers for a channel that has no owner.
        if let Ok(Ok((listed, complete))) = timeout(LEAVES, users(gateway, channel)).await {
            ensure!(
                listed.is_superset(there) && listed.is_subset(all),
                "{channel}: {listed:?}"
            );
            if complete {
                return Ok(since.elapsed());
            }
        }
        tokio::time::sleep(ASKS).await;
    }
    bail!("{channel} is not complete after {:?}", since.elapsed())
}

/// The node that has it, and the one that stands by for it.
#[tokio::test]
async fn members_stay_when_all_that_was_known_of_them_is_lost() -> Result<()> {
    let _alone = ALONE.lock().await;
    let mut cluster = Cluster::start().await?;
    let gateways = ["g1", "g2"].map(|name| cluster.gateway(name).clients.clone());
    let channels = names("presence-room", 12);
    let mut members = Vec::new();
    for channel in &channels {
        members.push(Member::join(&gateways[0], channel, "a").await?);
        members.push(Member::join(&gateways[1], channel, "b").await?);
    }
    let all: BTreeSet<String> = ["a", "b"].map(Into::into).into();
    for member in &mut members {
        member.knows(&all, LEAVES).await?;
    }
    // A majority is gone, and comes back with nothing.
    for name in ["n2", "n3"] {
        cluster.kill_node(name).await?;
    }
    for name in ["n2", "n3"] {
        cluster.add_node(name, &[]).await?;
    }
    let since = Instant::now();
    for channel in &channels {
        loop {
            let told = timeout(Duration::from_secs(8), users(&gateways[0], channel)).await;
            if let Ok(Ok((listed, true))) = &told
                && *listed == all
            {
                break;
            }
            ensure!(
                since.elapsed() < Duration::from_secs(60),
                "{channel}: {told:?}"
            );
        }
    }
    println!("all are complete after {:?}", since.elapsed());
    for member in &mut members {
        member.is_left_alone(Duration::from_millis(200)).await?;
    }
    Ok(())
}
