//! How long a publication takes from one gateway to a client at another, again
//! and again, while something is done to the cluster.

use std::time::Duration;

use anyhow::{Context, Result};
use proto::time::UnixTime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::PATIENCE;
use crate::client::EventStream;
use crate::traffic::Publisher;

/// Between two publications into one channel.
const PAUSE: Duration = Duration::from_millis(10);

/// How long one publication took.
#[derive(Debug, Clone)]
pub struct Took {
    /// Until it was heard.
    pub heard: Duration,
    /// Until it was acknowledged.
    pub acknowledged: Duration,
    /// When it was published: the time of day in UTC, as logs have it.
    pub at: String,
    /// Into which channel.
    pub channel: String,
}

/// One probe for each of some channels. Each publishes, waits until that has
/// arrived, and so on.
#[derive(Debug)]
pub struct Probes {
    tasks: Vec<JoinHandle<Result<Vec<Took>>>>,
    stop: watch::Sender<bool>,
}

impl Probes {
    /// Begins: what is published at one gateway is followed at another.
    ///
    /// # Errors
    /// When a gateway does not take clients.
    pub async fn start(from: &str, to: &str, channels: Vec<String>) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = Vec::new();
        for channel in channels {
            let mut stream = EventStream::open_at(to, &format!("channel={channel}"), "").await?;
            anyhow::ensure!(stream.block().await?.starts_with("id: "), "attached");
            let publisher = Publisher::connect(from).await?;
            tasks.push(tokio::spawn(probe(
                publisher,
                stream,
                channel,
                stopped.clone(),
            )));
        }
        Ok(Self { tasks, stop })
    }

    /// Ends: how long each publication took that was made, the slowest last.
    ///
    /// # Errors
    /// When a publish was refused or had no answer, or something did not come.
    pub async fn end(self) -> Result<Vec<Took>> {
        self.stop.send_replace(true);
        let mut all = Vec::new();
        for task in self.tasks {
            all.extend(task.await??);
        }
        all.sort_unstable_by_key(|took: &Took| took.heard);
        Ok(all)
    }
}

async fn probe(
    mut publisher: Publisher,
    mut stream: EventStream,
    channel: String,
    stopped: watch::Receiver<bool>,
) -> Result<Vec<Took>> {
    let mut took = Vec::new();
    while !*stopped.borrow() {
        let data = format!("probe {}.", took.len());
        let (at, began) = (time_of_day(), Instant::now());
        publisher.publish(&channel, &data).await?;
        let acknowledged = began.elapsed();
        let heard = async {
            while !stream.block().await?.contains(&data) {}
            anyhow::Ok(())
        };
        let heard = timeout(PATIENCE, heard).await;
        heard.with_context(|| format!("{data} into {channel} does not come"))??;
        took.push(Took {
            heard: began.elapsed(),
            acknowledged,
            at,
            channel: channel.clone(),
        });
        sleep(PAUSE).await;
    }
    Ok(took)
}

fn time_of_day() -> String {
    let ms = UnixTime::now().0 / 1_000 % 86_400_000;
    let (seconds, ms) = (ms / 1_000, ms % 1_000);
    let (minutes, s) = (seconds / 60, seconds % 60);
    format!("{:02}:{:02}:{s:02}.{ms:03}", minutes / 60, minutes % 60)
}
