//! Publishing at a rate, or until somebody says that it is enough.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::bail;
use futures_util::future::try_join_all;
use hyper::StatusCode;
use tokio::time::Instant;

use super::frames::{self, channel};
use super::process::now_ns;
use super::setup::Setup;
use crate::client::{Connection, Event, Failed, problem};

/// Connections to the API: while one publication waits for its acknowledgement
/// the next one has its turn.
const LANES: usize = 8;

/// What is published, and how fast.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace<'a> {
    pub(super) run: &'a str,
    /// Published into in turn.
    pub(super) channels: u32,
    /// Publications per second, into all channels together.
    pub(super) per_s: u32,
    /// Bytes of data.
    pub(super) size: u32,
    /// Publications at most.
    pub(super) most: u64,
}

/// How it went; others may look while it goes on.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Taken by the server.
    pub(super) published: AtomicU64,
    /// Not taken, for now: 429 and 503.
    pub(super) refused: AtomicU64,
    /// Says that it is enough.
    pub(super) enough: AtomicBool,
}

impl Progress {
    pub(super) fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub(super) fn stop(&self) {
        self.enough.store(true, Ordering::Relaxed);
    }

    fn is_enough(&self) -> bool {
        self.enough.load(Ordering::Relaxed)
    }

    /// Publishes one; whether the server took it is counted.
    pub(super) async fn publish(
        &self,
        setup: &Setup,
        connection: &mut Connection,
        channel: &str,
        size: u32,
    ) -> anyhow::Result<()> {
        let data = frames::data(now_ns(), size as usize);
        let event = Event {
            channel,
            name: "b",
            data: &data,
            idempotency_key: None,
        };
        let published = match connection.publish(&setup.app, &event).await {
            // Some servers answer one request on each connection.
            Err(Failed::NotSent(_)) => {
                *connection = setup.server.connect().await?;
                connection.publish(&setup.app, &event).await
            }
            published => published,
        };
        let (status, body) = published?;
        match status {
            StatusCode::OK => self.published.fetch_add(1, Ordering::Relaxed),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                self.refused.fetch_add(1, Ordering::Relaxed)
            }
            _ => bail!("a publication was not taken: {}", problem(status, &body)),
        };
        Ok(())
    }
}

/// Publishes. What cannot keep up catches up: each publication carries the time
/// at which it was sent.
pub(super) async fn publish(
    setup: &Setup,
    pace: Pace<'_>,
    progress: &Progress,
    mut on_each: impl FnMut(u64),
) -> anyhow::Result<()> {
    let interval = Duration::from_secs(1) / pace.per_s;
    let (began, next) = (Instant::now(), Cell::new(0_u64));
    let on_each = std::cell::RefCell::new(&mut on_each);
    let lane = async || {
        let mut connection = setup.server.connect().await?;
        loop {
            let number = next.get();
            if number >= pace.most || progress.is_enough() {
                return Ok(());
            }
            next.set(number + 1);
            let due = interval.mul_f64(number as f64);
            tokio::time::sleep_until(began + due).await;
            if progress.is_enough() {
                return Ok(());
            }
            let in_turn = (number % u64::from(pace.channels)) as u32;
            let channel = channel(pace.run, in_turn);
            let publishing = progress.publish(setup, &mut connection, &channel, pace.size);
            publishing.await?;
            (on_each.borrow_mut())(progress.published());
        }
    };
    let lanes = (0..LANES).map(|_| lane());
    try_join_all(lanes).await.map(drop)
}

/// Drives publishers on this thread.
pub(super) fn block_on<T>(
    publishing: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(publishing)
}
