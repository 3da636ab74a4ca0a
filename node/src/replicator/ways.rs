//! The tasks of a way: one reads, one writes.

use std::time::Duration;

use proto::id::{NodeId, NodeRef};
use tokio::sync::mpsc;

use crate::agreement::Agreement;
use crate::core::lease::Grant;
use crate::core::pairs::{Batch, Echo};
use crate::core::wire;
use crate::peers::ways::{Way, read, write};

/// Encoded frames, for the task that writes them.
pub(super) type Frames = mpsc::Sender<Vec<u8>>;

/// Frames that may wait; when there are more, the way is broken off.
const FRAMES: usize = 1_024;
/// Frames that are written together at most.
const TOGETHER: usize = 64;
/// How soon a way that could not be made is tried again.
const AGAIN: Duration = Duration::from_millis(50);

/// What comes from outside the task. `number` says on which way.
pub(super) enum Event {
    /// A way to a standby is made.
    Opened {
        to: NodeRef,
        number: u64,
        frames: Frames,
    },
    /// A standby has answered.
    Echo {
        to: NodeRef,
        number: u64,
        echo: Echo,
    },
    /// A way to a standby could not be made, or has broken.
    Broke { to: NodeRef, number: u64 },
    /// An owner has sent something.
    Batch {
        from: NodeId,
        number: u64,
        batch: Box<Batch>,
    },
    /// A way from an owner has broken.
    Left { from: NodeId, number: u64 },
    /// The leader has granted a lease.
    Granted(Grant),
    /// What was proposed is decided, or may never be.
    Proposed,
}

/// Makes a way to a standby and reads what comes back, to its end.
pub(super) async fn make(
    agreement: Agreement,
    to: NodeRef,
    number: u64,
    events: mpsc::Sender<Event>,
) {
    match agreement.open(&to).await {
        Ok(Way { send, mut receive }) => {
            let (frames, out) = mpsc::channel(FRAMES);
            let opened = Event::Opened {
                to: to.clone(),
                number,
                frames,
            };
            let writing = tokio::spawn(write_all(send, out));
            if events.send(opened).await.is_err() {
                return;
            }
            let why = loop {
                let echo = match read(&mut receive)
                    .await
                    .and_then(|frame| wire::decode(&frame))
                {
                    Ok(echo) => echo,
                    Err(why) => break why,
                };
                let to = to.clone();
                if events.send(Event::Echo { to, number, echo }).await.is_err() {
                    break "the node ends".into();
                }
            };
            writing.abort();
            tracing::debug!(to = %to.id, why, "a way to a standby has broken");
        }
        Err(why) => {
            tracing::debug!(to = %to.id, why, "no way to a standby");
            tokio::time::sleep(AGAIN).await;
        }
    }
    // The node ends: nobody wants to know any more.
    let _ = events.send(Event::Broke { to, number }).await;
}

/// Takes a way that an owner has made: where to put the answers.
pub(super) fn attend(way: Way, from: NodeId, number: u64, events: mpsc::Sender<Event>) -> Frames {
    let Way { send, mut receive } = way;
    let (frames, out) = mpsc::channel(FRAMES);
    tokio::spawn(async move {
        let writing = tokio::spawn(write_all(send, out));
        let why = loop {
            let batch = match read(&mut receive)
                .await
                .and_then(|frame| wire::decode(&frame))
            {
                Ok(batch) => Box::new(batch),
                Err(why) => break why,
            };
            let event = Event::Batch {
                from: from.clone(),
                number,
                batch,
            };
            // The way was replaced by another, or the node ends.
            if writing.is_finished() || events.send(event).await.is_err() {
                break "it is not wanted any more".into();
            }
        };
        writing.abort();
        tracing::debug!(%from, why, "a way from an owner has ended");
        // The node ends: nobody wants to know any more.
        let _ = events.send(Event::Left { from, number }).await;
    });
    frames
}

/// Writes until there is nobody who sends, or the way breaks.
async fn write_all(mut send: quinn::SendStream, mut out: mpsc::Receiver<Vec<u8>>) {
    let mut frames = Vec::with_capacity(TOGETHER);
    while out.recv_many(&mut frames, TOGETHER).await > 0 {
        if !write(&mut send, &frames).await {
            return;
        }
        frames.clear();
    }
}
