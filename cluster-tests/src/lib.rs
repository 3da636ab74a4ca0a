//! Tests of the whole: the real binary, real sockets, real client libraries.
//! docs/TESTING.md says which rung of the ladder a test belongs on.
//!
//! [`process`] starts and ends servers and tools, [`client`] speaks to them;
//! [`nats`] starts and ends the bus of a cluster, [`cluster`] all of one, and
//! [`traffic`] goes through it, [`member`]s are present in its channels, and
//! [`bus_messages`] counts what it says; [`in_process`] starts gateways and a node inside
//! the test, on a bus that [`disturbed`] disturbs. [`proxy`] disturbs what goes between processes,
//! [`disk`] can be full, [`network`] can lose what is sent,
//! and [`verify`] has `dunlin verify` judge what came of it.
//! Everything listens on free loopback ports and waits with deadlines.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: tests start processes and wait for them"
)]

pub mod bus_messages;
pub mod certificate;
pub mod client;
pub mod cluster;
pub mod disk;
pub mod disturbed;
pub mod durations;
pub mod in_process;
pub mod invariants;
pub mod member;
mod namespace;
pub mod nats;
pub mod network;
pub mod probes;
pub mod process;
pub mod proxy;
pub mod sim;
pub mod traffic;
pub mod verify;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// How long anything that must happen may take. Far more than it takes: a
/// machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How long it may take until hundreds of shards are where they should be.
pub const SETTLES: Duration = Duration::from_secs(60);

/// The root of the repository.
pub fn repository() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent()
        .expect("the crate is inside the repository")
        .to_owned()
}

/// Says that a test is skipped, and why. Not by `print!`, which is only shown
/// when a test fails.
pub fn skipped(why: &str) {
    let _ = std::io::stderr().write_all(format!("SKIPPED: {why}\n").as_bytes());
}

/// Asks again and again until there is an answer.
///
/// # Panics
/// When there is none within [`PATIENCE`].
pub async fn eventually<T, F>(what: &str, probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    eventually_within(PATIENCE, what, probe).await
}

/// The same, for as long as the caller says.
///
/// # Panics
/// When there is none by then.
pub async fn eventually_within<T, F>(
    patience: Duration,
    what: &str,
    mut probe: impl FnMut() -> F,
) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
