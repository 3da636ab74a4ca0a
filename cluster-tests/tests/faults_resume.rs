//! A gateway is lost, and all its clients come to another one at once: each gets
//! what it missed, and the owner is asked once for each channel, not once for
//! each client.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use cluster_tests::client::{EventStream, post_event_to};
use cluster_tests::disturbed::{Disturb, disturbed};
use cluster_tests::in_process::{start_gateway, start_node};
use futures_util::future::try_join_all;
use proto::bus::{Bus, Error, MemoryBus};
use proto::codec;
use proto::message::{Message, Request};
use proto::subject::Subject;
use serde_json::json;
use tokio::sync::watch;

const CHANNELS: usize = 10;
const CLIENTS: usize = 20;
const PUBLICATIONS: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_come_at_once_cost_the_owner_one_request_a_channel() -> Result<()> {
    let bus = Arc::new(Counting::default());
    let handle = disturbed(&bus);
    let (stop, shutdown) = watch::channel(false);
    let (stop_first, first_shutdown) = watch::channel(false);
    let _node = start_node(&handle, shutdown.clone()).await?;
    let first = start_gateway(&handle, "g1", first_shutdown).await?;
    let second = start_gateway(&handle, "g2", shutdown).await?;
    let (first, second) = (first.address.to_string(), second.address.to_string());

    let mut streams = Vec::new();
    for number in 0..CHANNELS * CLIENTS {
        let channel = format!("room-{}", number % CHANNELS);
        let mut stream = EventStream::open_at(&first, &format!("channel={channel}"), "").await?;
        let cursor = cursor(&stream.block().await?)?;
        streams.push((channel, cursor));
        // They are all lost with the gateway.
        drop(stream);
    }
    stop_first.send(true)?;
    for publication in 0..PUBLICATIONS {
        for channel in 0..CHANNELS {
            let event = json!({
                "name": "message", "channel": format!("room-{channel}"), "data": publication.to_string(),
            });
            let answer = post_event_to(&second, &event).await?;
            ensure!(answer.status == 200, "{answer:?}");
        }
    }
    let resumed = streams.into_iter().map(|(channel, cursor)| {
        let second = second.clone();
        async move {
            let query = format!("channel={channel}");
            let header = format!("last-event-id: {cursor}\r\n");
            let mut stream = EventStream::open_at(&second, &query, &header).await?;
            let mut got = Vec::new();
            while got.len() < PUBLICATIONS {
                let block = stream.block().await?;
                ensure!(!block.contains("event: gap"), "{block}");
                let data = block.lines().find_map(|line| line.strip_prefix("data: "));
                got.extend(data.map(str::to_owned));
            }
            let expected: Vec<String> = (0..PUBLICATIONS).map(|n| n.to_string()).collect();
            ensure!(got == expected, "{got:?}");
            Ok(stream)
        }
    });
    let _streams = try_join_all(resumed).await?;
    let joins = bus.joins.lock().expect("no panic").clone();
    for channel in 0..CHANNELS {
        let channel = format!("room-{channel}");
        let asked = joins.get(&("g2".to_owned(), channel.clone()));
        assert_eq!(asked, Some(&1), "{channel}: {joins:?}");
    }
    stop.send(true)?;
    Ok(())
}

fn cursor(block: &str) -> Result<String> {
    let id = block.lines().find_map(|line| line.strip_prefix("id: "));
    Ok(id.context("an id")?.to_owned())
}

/// Counts joins, by gateway and channel.
#[derive(Debug, Default)]
struct Counting {
    joins: Mutex<BTreeMap<(String, String), u32>>,
}

impl Disturb for Counting {
    fn publish(&self, bus: &MemoryBus, subject: &Subject, payload: Bytes) -> Result<(), Error> {
        if let Ok(Message::Requests(requests)) = codec::decode(&payload) {
            for request in &requests.requests {
                if let Request::Join(join) = request {
                    let gateway = requests.from.id.to_string();
                    let channel = join.key.channel.to_string();
                    let mut joins = self.joins.lock().expect("no panic");
                    *joins.entry((gateway, channel)).or_default() += 1;
                }
            }
        }
        bus.publish(subject, payload)
    }
}
