//! Who is present, while real processes die: members of a killed gateway leave once
//! and in time, and nobody leaves because an owner died. What the HTTP API lists and
//! what members are told agree.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: what takes how long is measured"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::client::{get, signed_query};
use cluster_tests::cluster::Cluster;
use cluster_tests::member::Member;
use proto::time::UnixTime;
use tokio::time::{Instant, timeout};

/// Within which the members of a dead gateway have left: lease and grace.
const LEAVES: Duration = Duration::from_secs(5);
/// For how long nodes have to hear themselves before they say of others that they are
/// silent: a bus that has just come back is no reason to leave.
const SETTLES: Duration = Duration::from_secs(5);
/// How long nothing happens that should not.
const QUIET: Duration = Duration::from_secs(6);

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
    let mut cluster = Cluster::start().await?;
    let channel = "presence-room";
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
    let mut slowest = Duration::ZERO;
    let mut asked = tokio::time::interval(Duration::from_millis(100));
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
                slowest = slowest.max(began.elapsed());
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
    let took = since.elapsed();
    println!("left after {took:?}; the users were told within {slowest:?} all the while");
    ensure!(took < LEAVES, "left after {took:?}");
    ensure!(users(&here, channel).await?.0 == left, "the list differs");
    twin.knows(&left, LEAVES).await?;
    watcher.is_left_alone(QUIET).await?;
    drop(lost);
    Ok(())
}

#[tokio::test]
async fn nobody_leaves_because_an_owner_died() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let gateways = ["g1", "g2"].map(|name| cluster.gateway(name).clients.clone());
    // Channels of all nodes.
    let channels = names("presence-room", 30);
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
    cluster.kill_node("n2").await?;
    // These go while nobody owns a third of the channels.
    drop(leaving);
    let since = Instant::now();
    let left: BTreeSet<String> = ["a", "b"].map(Into::into).into();
    for member in &mut members {
        member.knows(&left, 2 * LEAVES).await?;
    }
    println!("all know after {:?}", since.elapsed());
    for channel in &channels {
        loop {
            let (listed, complete) = users(&gateways[0], channel).await?;
            ensure!(listed == left, "{channel}: {listed:?}");
            if complete {
                break;
            }
            ensure!(since.elapsed() < 3 * LEAVES, "{channel} is not complete");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    println!("all are complete after {:?}", since.elapsed());
    for member in &mut members {
        member.is_left_alone(Duration::from_millis(100)).await?;
    }
    Ok(())
}

/// The node that has it, and the one that stands by for it.
#[tokio::test]
async fn members_stay_when_all_that_was_known_of_them_is_lost() -> Result<()> {
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
