//! Interest that was torn on purpose: the owner never got a join or a leave,
//! and the gateway believes that it did. No retry mends that; the digests in the
//! beats do, within 10 s, a hundred times of a hundred.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, bail};
use bytes::Bytes;
use cluster_tests::client::Pusher;
use cluster_tests::eventually;
use cluster_tests::in_process::{start_gateway, start_node};
use futures_util::future::BoxFuture;
use proto::bus::{Bus, BusHandle, Error, MemoryBus, Stats, Subscription};
use proto::channel::ChannelKey;
use proto::codec;
use proto::id::{Incarnation, NodeRef};
use proto::message::{Answer, Joined, Message, Missed, Question, Replies, Reply, Request};
use proto::position::{Epoch, Offset, Position};
use proto::subject::{Address, Subject};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

const TRIES: usize = 100;
const HEALS_WITHIN: Duration = Duration::from_secs(10);

/// Half of the tries lose a join, half a leave; all at once, so that healing one
/// must not wait for another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn torn_interest_heals_within_ten_seconds_every_time() -> Result<()> {
    let bus = Arc::new(Tearing::default());
    let (stop, shutdown) = watch::channel(false);
    let handle = Arc::clone(&bus) as BusHandle;
    let node = start_node(&handle, shutdown.clone()).await?;
    let gateway = start_gateway(&handle, "g", shutdown).await?;
    let mut client = Pusher::connect_to(&gateway.address.to_string()).await?;

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
            match node.inspector.ask(question).await {
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
    stop.send(true)?;
    Ok(())
}

/// Keeps the first join of each channel `torn-join-*` and the first leave of
/// each channel `torn-leave-*` to itself, and answers in the node's name.
#[derive(Debug, Default)]
struct Tearing {
    inner: MemoryBus,
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
        Some(match request {
            Request::Join(join) => Reply::Joined {
                version: join.version,
                result: Ok(Joined {
                    fence: join.fence,
                    position: Position {
                        epoch: Epoch(1),
                        offset: Offset::ZERO,
                    },
                    missed: Missed::Publications(Vec::new()),
                }),
            },
            Request::Leave(leave) => Reply::Left {
                version: leave.version,
                result: Ok(()),
            },
            _ => return None,
        })
    }
}

impl Bus for Tearing {
    fn publish(&self, subject: &Subject, payload: Bytes) -> Result<(), Error> {
        let Ok(Message::Requests(mut requests)) = codec::decode(&payload) else {
            return self.inner.publish(subject, payload);
        };
        let mut replies = Vec::new();
        requests
            .requests
            .retain(|request| match self.tear(request) {
                Some(reply) => {
                    replies.push(reply);
                    false
                }
                None => true,
            });
        if !replies.is_empty() {
            let told = Message::Replies(Replies {
                from: NodeRef {
                    id: "n".parse().expect("a valid name"),
                    incarnation: Incarnation(1),
                },
                to: requests.from.incarnation,
                map_version: requests.map_version,
                replies,
            });
            let inbox = Subject {
                cluster: subject.cluster.clone(),
                address: Address::Inbox(requests.from.id.clone()),
            };
            self.inner.publish(&inbox, codec::encode(&told))?;
        }
        let rest = codec::encode(&Message::Requests(requests));
        self.inner.publish(subject, rest)
    }

    fn subscribe(&self, subject: Subject) -> BoxFuture<'_, Result<Subscription, Error>> {
        self.inner.subscribe(subject)
    }

    fn name(&self) -> &'static str {
        "tearing"
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }
}
