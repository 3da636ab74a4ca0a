//! Traffic through a cluster: publishers that keep their connection, and
//! followers that write down what they get, until all of it has come.
//!
//! A follower ends when it has got [`END`] in each of its channels, so what it
//! has written down can be compared: with what was published, and with what
//! others got.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use proto::time::UnixTime;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::PATIENCE;
use crate::client::{Answer, EventStream, Pusher, batch_request, event_request};

/// The last publication of a channel.
pub const END: &str = "end";

/// A backend: one connection to one gateway, one request after another.
#[derive(Debug)]
pub struct Publisher {
    stream: TcpStream,
    address: String,
    buffer: Vec<u8>,
    /// How far its clock is off.
    pub clock_offset_s: i64,
}

impl Publisher {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            address: address.to_owned(),
            buffer: Vec::new(),
            clock_offset_s: 0,
        })
    }

    /// Publishes; whatever the answer is.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn try_publish(&mut self, channel: &str, data: &str) -> Result<Answer> {
        let body = json!({ "name": "e", "channel": channel, "data": data }).to_string();
        let request = event_request(&self.address, &body, self.now());
        self.send(&request).await
    }

    /// Publishes several in one request and has them acknowledged.
    ///
    /// # Errors
    /// When they are not.
    pub async fn publish_batch(&mut self, channel: &str, all: &[String]) -> Result<()> {
        let event = |data| json!({ "name": "e", "channel": channel, "data": data });
        let events: Vec<_> = all.iter().map(event).collect();
        let body = json!({ "batch": events }).to_string();
        let request = batch_request(&self.address, &body, self.now());
        let answer = self.send(&request).await?;
        if answer.status != 200 {
            bail!("a batch to {channel} was not acknowledged: {answer:?}");
        }
        Ok(())
    }

    fn now(&self) -> UnixTime {
        let offset_us = self.clock_offset_s * 1_000_000;
        UnixTime(UnixTime::now().0.saturating_add_signed(offset_us))
    }

    async fn send(&mut self, request: &str) -> Result<Answer> {
        self.stream.write_all(request.as_bytes()).await?;
        timeout(PATIENCE, self.answer())
            .await
            .context("no answer")?
    }

    /// Publishes and has it acknowledged.
    ///
    /// # Errors
    /// When it is not.
    pub async fn publish(&mut self, channel: &str, data: &str) -> Result<()> {
        let answer = self.try_publish(channel, data).await?;
        if answer.status != 200 {
            bail!("{data} to {channel} was not acknowledged: {answer:?}");
        }
        Ok(())
    }

    async fn answer(&mut self) -> Result<Answer> {
        loop {
            if let Some(answer) = self.whole_answer()? {
                return Ok(answer);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the gateway closed the connection");
            }
        }
    }

    fn whole_answer(&mut self) -> Result<Option<Answer>> {
        let text = String::from_utf8_lossy(&self.buffer);
        let Some((head, rest)) = text.split_once("\r\n\r\n") else {
            return Ok(None);
        };
        let head = head.to_lowercase();
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .context("a length")?
            .parse()?;
        if rest.len() < length {
            return Ok(None);
        }
        let status = head.split(' ').nth(1).context("a status")?.parse()?;
        let body = rest[..length].to_owned();
        self.buffer.clear();
        Ok(Some(Answer { status, head, body }))
    }
}

/// What a follower got, by channel.
pub type Received = BTreeMap<String, Vec<String>>;

/// A client that follows channels, in a task of its own.
#[derive(Debug)]
pub struct Follower(JoinHandle<Result<Received>>);

impl Follower {
    /// Follows by WebSocket. Returns when every channel is acknowledged.
    ///
    /// # Errors
    /// When they are not, in time.
    pub async fn by_socket(address: &str, channels: &[String]) -> Result<Self> {
        let mut socket = Pusher::connect_to(address).await?;
        for channel in channels {
            let data = json!({ "channel": channel });
            socket
                .send(&json!({ "event": "pusher:subscribe", "data": data }))
                .await?;
        }
        let (all_attached, attached) = oneshot::channel();
        let count = channels.len();
        let task = tokio::spawn(async move {
            let mut waiting = Some(all_attached);
            let (mut got, mut acknowledged) = (Notes::new(count), 0);
            while !got.complete() {
                let frame = socket.frame().await?;
                match frame["event"].as_str() {
                    Some("e") => got.write(&frame)?,
                    Some("pusher_internal:subscription_succeeded") => {
                        acknowledged += 1;
                        if let Some(waiting) = waiting.take_if(|_| acknowledged == count) {
                            let _ = waiting.send(());
                        }
                    }
                    Some("pusher:ping") => socket.send(&json!({ "event": "pusher:pong" })).await?,
                    _ => bail!("unexpected: {frame}"),
                }
            }
            Ok(got.received)
        });
        Self::attached(task, attached).await
    }

    /// Follows by SSE. Returns when every channel is attached.
    ///
    /// # Errors
    /// When they are not, in time.
    pub async fn by_stream(address: &str, channels: &[String]) -> Result<Self> {
        let query = format!("envelope=true&channel={}", channels.join("&channel="));
        let mut stream = EventStream::open_at(address, &query, "").await?;
        let (all_attached, attached) = oneshot::channel();
        let count = channels.len();
        let task = tokio::spawn(async move {
            let mut waiting = Some(all_attached);
            let mut got = Notes::new(count);
            while !got.complete() {
                let block = stream.block().await?;
                for line in block.lines() {
                    if let Some(data) = line.strip_prefix("data: ") {
                        got.write(&serde_json::from_str(data)?)?;
                    } else if let Some(cursor) = line.strip_prefix("id: ") {
                        let whole = cursor.split(',').all(|position| position != "-");
                        if let Some(waiting) = waiting.take_if(|_| whole) {
                            let _ = waiting.send(());
                        }
                    } else {
                        bail!("unexpected: {block}");
                    }
                }
            }
            Ok(got.received)
        });
        Self::attached(task, attached).await
    }

    async fn attached(
        task: JoinHandle<Result<Received>>,
        attached: oneshot::Receiver<()>,
    ) -> Result<Self> {
        match timeout(PATIENCE, attached).await {
            Ok(Ok(())) => Ok(Self(task)),
            Ok(Err(_)) => bail!("not attached: {:?}", task.await),
            Err(_) => bail!("not attached in time"),
        }
    }

    /// What it got, after the end of every channel.
    ///
    /// # Errors
    /// When nothing came for too long, or a gap was announced.
    pub async fn received(self) -> Result<Received> {
        self.0.await?
    }
}

struct Notes {
    channels: usize,
    received: Received,
    ended: BTreeSet<String>,
}

impl Notes {
    fn new(channels: usize) -> Self {
        Self {
            channels,
            received: Received::new(),
            ended: BTreeSet::new(),
        }
    }

    fn complete(&self) -> bool {
        self.ended.len() == self.channels
    }

    fn write(&mut self, message: &Value) -> Result<()> {
        let channel = message["channel"].as_str().context("a channel")?;
        let data = message["data"].as_str().context("data")?;
        if data == END {
            self.ended.insert(channel.to_owned());
        } else if self.ended.contains(channel) {
            bail!("{data} came after the end of {channel}");
        } else {
            let received = self.received.entry(channel.to_owned()).or_default();
            received.push(data.to_owned());
        }
        Ok(())
    }
}
