//! How long a publication takes from one gateway to a client at another, again
//! and again, while something is done to the cluster.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::PATIENCE;
use crate::client::EventStream;
use crate::traffic::Publisher;

/// Between two publications into one channel.
const PAUSE: Duration = Duration::from_millis(10);

/// One probe for each of some channels. Each publishes, waits until that has
/// arrived, and so on.
#[derive(Debug)]
pub struct Probes {
    tasks: Vec<JoinHandle<Result<Vec<Duration>>>>,
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

    /// Ends: how long each publication took that was made.
    ///
    /// # Errors
    /// When a publish was refused or had no answer, or something did not come.
    pub async fn end(self) -> Result<Vec<Duration>> {
        self.stop.send_replace(true);
        let mut all = Vec::new();
        for task in self.tasks {
            all.extend(task.await??);
        }
        all.sort_unstable();
        Ok(all)
    }
}

async fn probe(
    mut publisher: Publisher,
    mut stream: EventStream,
    channel: String,
    stopped: watch::Receiver<bool>,
) -> Result<Vec<Duration>> {
    let mut took = Vec::new();
    while !*stopped.borrow() {
        let data = format!("probe {}.", took.len());
        let began = Instant::now();
        publisher.publish(&channel, &data).await?;
        let heard = async {
            while !stream.block().await?.contains(&data) {}
            anyhow::Ok(())
        };
        let heard = timeout(PATIENCE, heard).await;
        heard.with_context(|| format!("{data} into {channel} does not come"))??;
        took.push(began.elapsed());
        sleep(PAUSE).await;
    }
    Ok(took)
}
