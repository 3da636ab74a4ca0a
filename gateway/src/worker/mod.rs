//! Shell: one thread per core, which owns its connections outright. No lock is
//! taken and no task is woken for a delivery: a publication is encoded once,
//! and the bytes are written straight to the sockets in slices. When a socket
//! would block, or when several publications are at hand, pointers are queued
//! and go out together in one write.
//!
//! Each connection has a small local task that waits for input; all of them
//! share one read buffer. A connection whose socket is full has a second one,
//! that waits for room, for as long as it is full.

mod channels;
mod counting;
mod delivery;
mod input;
mod output;
mod presence;
mod returning;
mod socket;
mod state;
mod tasks;
mod watching;

use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::channel::{ChannelKey, ChannelName};
use proto::error::ErrorCode;
use proto::id::ConnectionId;
use proto::message::Missed;
use proto::position::Position;
use proto::presence::Users;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::LocalSet;
use tokio::time::MissedTickBehavior;

use crate::Config;
use crate::broadcast::Broadcast;
use crate::core::attachment::{FollowId, Resumption};
use crate::core::hub::ConnectionIndex;
use crate::core::workers::WorkerId;
use crate::door::Seat;
use crate::mesh;
use crate::metrics::Metrics;
use crate::protocol::Close;
use crate::server::UnderWay;
pub(crate) use input::{patience, tune};
use tasks::Worker;

/// What the mesh may have waiting for a worker; then it waits itself.
const MAILBOX: usize = 4_096;
/// Connections that may wait to be taken over.
const ACCEPTS: usize = 1_024;
/// Mail taken in one round at most.
const ROUND: usize = 64;
/// How often connections are looked after.
const TICK: Duration = Duration::from_secs(1);
/// How soon a follow that found the mesh's mailbox full is tried again.
const RETRY: Duration = Duration::from_millis(5);
/// How often clients are sent away at the end.
const SEND_AWAY: Duration = Duration::from_millis(20);
/// How long clients have to take their close frames at shutdown.
const FAREWELL: Duration = Duration::from_millis(500);

/// What the mesh tells a worker about channels, in this order.
#[derive(Debug, Clone)]
pub(crate) enum Mail {
    /// A channel that it follows stands here.
    Attached {
        key: ChannelKey,
        follow: FollowId,
        position: Position,
        /// What it keeps for those who come, if it is a cache channel.
        kept: Option<Arc<Broadcast>>,
    },
    /// Something happened in a channel.
    Broadcast(Arc<Broadcast>),
    /// What a client wanted to publish was not, or perhaps not.
    NotPublished {
        sender: mesh::Sender,
        code: ErrorCode,
    },
    /// A client is a member of a channel.
    Welcome {
        key: ChannelKey,
        index: ConnectionIndex,
        connection: ConnectionId,
        position: Position,
        users: Arc<Users>,
        kept: Option<Arc<Broadcast>>,
        /// If it has come back: what it missed, but for who came and went.
        missed: Option<Missed>,
    },
    /// A client is not let into a channel.
    Refused {
        key: ChannelKey,
        index: ConnectionIndex,
        connection: ConnectionId,
        code: ErrorCode,
    },
    /// Clients that have come back to a channel are told what they missed.
    Resumed {
        key: ChannelKey,
        cursor: Position,
        resumption: Resumption,
    },
}

/// A connection on its way from the HTTP server to a worker.
#[derive(Debug)]
pub(crate) struct Takeover {
    pub(crate) stream: TcpStream,
    /// The head of the response, to be written first. Of a stream of HTTP/2 not: empty,
    /// or what shows that it has begun.
    pub(crate) head: Bytes,
    /// Bytes that came behind the request.
    pub(crate) leftover: Bytes,
    pub(crate) client: Client,
    /// When the client began: its connection, or a request on an older one.
    pub(crate) since: Instant,
    /// Of a stream of HTTP/2, for as long as the worker has it.
    pub(crate) under_way: Option<UnderWay>,
}

/// What kind of connection it becomes.
#[derive(Debug)]
pub(crate) enum Client {
    /// A WebSocket.
    WebSocket(Seat),
    /// A WebSocket that is only told why it is closed.
    Refused(Seat, Close),
    /// An event stream of these channels, ordered by name.
    EventStream {
        seat: Seat,
        channels: Vec<ChannelName>,
        /// Where it stood in each of them, if it has been here before.
        cursor: Vec<Option<Position>>,
        envelope: bool,
        /// How long it may go on, if its token ends.
        valid_for: Option<Duration>,
    },
}

impl Client {
    /// Counts it.
    pub(crate) fn seat(&mut self) -> &mut Seat {
        match self {
            Self::WebSocket(seat) | Self::Refused(seat, _) | Self::EventStream { seat, .. } => seat,
        }
    }
}

/// How others reach a worker.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    mailbox: mpsc::Sender<Mail>,
    accepts: mpsc::Sender<Takeover>,
    runtime: tokio::runtime::Handle,
}

impl Handle {
    /// Where its tasks run.
    pub(crate) fn runtime(&self) -> tokio::runtime::Handle {
        self.runtime.clone()
    }

    pub(crate) fn mailbox(&self) -> mpsc::Sender<Mail> {
        self.mailbox.clone()
    }

    /// Hands a connection over. `false`: the worker has ended, and it is closed.
    pub(crate) async fn accept(&self, takeover: Takeover) -> bool {
        self.accepts.send(takeover).await.is_ok()
    }
}

/// Starts a worker. The receiver is told when it has ended after a shutdown;
/// it fails if the worker panicked.
pub(crate) fn spawn(
    id: WorkerId,
    config: Arc<Config>,
    mesh: mesh::Handle,
    metrics: Arc<Metrics>,
    shutdown: watch::Receiver<bool>,
) -> Result<(Handle, oneshot::Receiver<()>), std::io::Error> {
    let (mailbox, mail) = mpsc::channel(MAILBOX);
    let (accepts, takeovers) = mpsc::channel(ACCEPTS);
    let (ended, has_ended) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let handle = Handle {
        mailbox,
        accepts,
        runtime: runtime.handle().clone(),
    };
    std::thread::Builder::new()
        .name(format!("worker-{}", id.0))
        .spawn(move || {
            let local = LocalSet::new();
            let worker = Rc::new(Worker::new(id, config, mesh, metrics));
            local.block_on(&runtime, run(worker, mail, takeovers, shutdown));
            let _ = ended.send(());
        })?;
    Ok((handle, has_ended))
}

async fn run(
    worker: Rc<Worker>,
    mut mailbox: mpsc::Receiver<Mail>,
    mut takeovers: mpsc::Receiver<Takeover>,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut send_away = tokio::time::interval(SEND_AWAY);
    send_away.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leaving = None;
    let mut mail = Vec::with_capacity(ROUND);
    loop {
        let wants_mail = !worker.is_full();
        let busy = worker.has_work();
        // Not biased: a storm of connections must not hold up deliveries, nor
        // the other way round.
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop), if leaving.is_none() => {
                leaving = Some(worker.begin_to_leave());
            }
            _ = send_away.tick(), if leaving.is_some() => {
                if let Some(leaving) = &mut leaving && worker.send_away(leaving) {
                    break;
                }
            }
            Some(takeover) = takeovers.recv() => worker.accept(takeover),
            _ = tick.tick() => worker.tick().await,
            count = mailbox.recv_many(&mut mail, ROUND), if wants_mail => {
                if count == 0 {
                    break;
                }
                for mail in mail.drain(..) {
                    worker.take(mail);
                }
            }
            () = tokio::time::sleep(RETRY), if worker.owes_follows() && !busy => {}
            () = worker.owes() => {}
            () = std::future::ready(()), if busy => {}
        }
        worker.tell_mesh();
        if worker.fan_out() && (worker.has_work() || !mailbox.is_empty()) {
            // Lets connections be read and written between slices. With nothing to
            // do there is no need: waiting does it.
            tokio::task::yield_now().await;
        }
    }
    // Also when it was the mesh that ended.
    worker.send_away_all();
    // Bounded: whoever has not read its close frame by then will not.
    let _ = tokio::time::timeout(FAREWELL, worker.all_gone()).await;
}
