//! Interest that was torn on purpose: the owner never got a join or a leave,
//! and the gateway believes that it did. No retry mends that; the digests in the
//! beats do, within 10 s, a hundred times of a hundred.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, bail};
use bytes::Bytes;
use cluster_tests::client::Pusher;
use cluster_tests::disturbed::{Disturb, answer_instead, disturbed, obedient};
use cluster_tests::eventually;
use cluster_tests::in_process::Pair;
use proto::bus::{Error, MemoryBus};
use proto::channel::ChannelKey;
use proto::inspection::{Answer, Question};
use proto::message::{Reply, Request};
use proto::subject::Subject;
use serde_json::json;
use tokio::time::Instant;

const TRIES: usize = 100;
const HEALS_WITHIN: Duration = Duration::from_secs(10);

/// Half of the tries lose a join, half a leave; all at once, so that healing one
/// must not wait for another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn torn_interest_heals_within_ten_seconds_every_time() -> Result<()> {
    let bus = Arc::new(Tearing::default());
    let pair = Pair::start(&disturbed(&bus)).await?;
    let mut client = Pusher::connect_to(&pair.address).await?;

    let names = |kind: &str| -> Vec<String> {
        (0..TRIES / 2)
            .map(|number| format!("{kind}-{number}"))
            .collect()
    };
    let (joined, left) = (names("torn-join"), names("torn-leave"));
    for channel in joined.iter().chain(&left) {
        client.subscribe(channel).await?;
    }
    for channel in &left {
        let data = json!({ "channel": channel });
        client
            .send(&json!({ "event": "pusher:unsubscribe", "data": data }))
            .await?;
    }
    eventually("everything is torn", async || {
        (bus.torn.lock().ok()?.len() == TRIES).then_some(())
    })
    .await;
    let torn = bus.torn.lock().expect("no panic").clone();

    let mut longest = Duration::ZERO;
    for (channel, expected) in joined
        .iter()
        .map(|channel| (channel, 1))
        .chain(left.iter().map(|channel| (channel, 0)))
    {
        let key = ChannelKey {
            app: "app-id".parse()?,
            channel: channel.parse()?,
        };
        eventually(&format!("{channel} has healed"), async || {
            let question = Question::Channel { key: key.clone() };
            match pair.node.inspector.ask(question).await {
                Answer::Channel(info) => {
                    let followers = info.state.map_or(0, |state| state.followers.len());
                    (followers == expected).then_some(())
                }
                _ => None,
            }
        })
        .await;
        let Some(since) = torn.get(channel) else {
            bail!("{channel} was not torn: {torn:?}")
        };
        let took = since.elapsed();
        assert!(took <= HEALS_WITHIN, "{channel}: {took:?}");
        longest = longest.max(took);
    }
    println!("{TRIES} of {TRIES} healed, the last after {longest:?}");
    pair.stop.send(true)?;
    Ok(())
}

/// Keeps the first join of each channel `torn-join-*` and the first leave of
/// each channel `torn-leave-*` to itself, and answers in the node's name.
#[derive(Debug, Default)]
struct Tearing {
    torn: Mutex<BTreeMap<String, Instant>>,
}

impl Tearing {
    /// What the node would have said, if this is the first of its kind.
    fn tear(&self, request: &Request) -> Option<Reply> {
        let (kind, key) = match request {
            Request::Join(join) => ("torn-join", &join.key),
            Request::Leave(leave) => ("torn-leave", &leave.key),
            _ => return None,
        };
        let channel = key.channel.as_str();
        let mut torn = self.torn.lock().expect("no panic");
        if !channel.starts_with(kind) || torn.contains_key(channel) {
            return None;
        }
        torn.insert(channel.to_owned(), Instant::now());
        obedient(request)
    }
}

impl Disturb for Tearing {
    fn publish(&self, bus: &MemoryBus, subject: &Subject, payload: Bytes) -> Result<(), Error> {
        answer_instead(bus, subject, payload, |request| self.tear(request))
    }
}
