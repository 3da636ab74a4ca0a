//! What has gone over the bus of a cluster, as its processes count it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use crate::client::{get, metric_at};
use crate::cluster::Cluster;
use crate::eventually;

/// What has gone over the bus, but beats: by process, direction and kind.
///
/// # Errors
/// When a process does not tell.
pub async fn counts(cluster: &Cluster) -> Result<BTreeMap<String, f64>> {
    let mut counts = BTreeMap::new();
    for (name, admin) in cluster.admins() {
        let page = get(admin, "/metrics").await?.body;
        for line in page.lines() {
            let Some(rest) = line.strip_prefix("dunlin_bus_messages_") else {
                continue;
            };
            let (labels, value) = rest.rsplit_once(' ').context("a value")?;
            let direction = labels.split("_total").next().unwrap_or_default();
            let kind = labels
                .split("kind=\"")
                .nth(1)
                .and_then(|kind| kind.split('"').next());
            let kind = kind.context("a kind")?;
            if kind != "beat" {
                counts.insert(format!("{name} {direction} {kind}"), value.parse()?);
            }
        }
    }
    Ok(counts)
}

/// Counts twice with a beat of everybody between, until nothing has moved.
pub async fn at_rest(cluster: &Cluster) -> BTreeMap<String, f64> {
    let rest = async || -> Option<BTreeMap<String, f64>> {
        let before = counts(cluster).await.ok()?;
        let beats = beats(cluster).await.ok()?;
        eventually("everybody beats", async || {
            let now = self::beats(cluster).await.ok()?;
            now.iter()
                .zip(&beats)
                .all(|(now, then)| now > then)
                .then_some(())
        })
        .await;
        let after = counts(cluster).await.ok()?;
        (before == after).then_some(after)
    };
    eventually("the bus is at rest", rest).await
}

async fn beats(cluster: &Cluster) -> Result<Vec<f64>> {
    let mut beats = Vec::new();
    for admin in cluster.admins().values() {
        let name = "dunlin_bus_messages_published_total";
        beats.push(metric_at(admin, name, &["kind=\"beat\""]).await?);
    }
    Ok(beats)
}

/// What was published and received since then, at rest.
pub async fn since(cluster: &Cluster, before: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let after = at_rest(cluster).await;
    let grown = after.into_iter().filter_map(|(what, count)| {
        let more = count - before.get(&what).unwrap_or(&0.0);
        (more != 0.0).then_some((what, more))
    });
    grown.collect()
}
