//! Shell: accepts connections, answers HTTP, and hands WebSocket and SSE
//! connections over to workers.
//!
//! Such a connection begins as an HTTP request like any other. Its handler
//! decides, sends a [`Takeover`] instead of answering and never returns; the
//! connection's task then takes the socket back from hyper, with whatever bytes
//! came behind the request, and gives it away. So the router sees every request
//! and a worker owns every long-lived socket.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use proto::error::ErrorCode;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::server::TlsStream;
use tower_service::Service;

use crate::core::limits::Limiter;
use crate::door::Door;
use crate::metrics::Metrics;
use crate::problem::Problem;
use crate::tls::{self, Tls};
use crate::worker::{self, Client, Takeover};
use crate::{Config, Error, OutboxLimits, api, connect, mesh, playground};

/// How long a client may take to send the head of a request; also how long a
/// connection may be idle between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a request's head at most.
const HEAD_BYTES_MAX: usize = 16 * 1_024;
/// How long to wait when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often that is said.
const COMPLAIN_EVERY: Duration = Duration::from_secs(5);
/// How long a connection may be without a request before it has to make room: in a
/// storm honest clients have not been read yet.
const IDLE_AT_LEAST: Duration = Duration::from_secs(1);
/// How often that is looked at while there is no room.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(20);
/// How long requests under way may take at shutdown.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(1);
/// The kernel's queue of connections that wait to be accepted.
const BACKLOG: u32 = 4_096;

/// Takes the address. Does not accept yet.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    let listen = || -> Result<TcpListener, io::Error> {
        let socket = match address {
            SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
            SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
        };
        // A restarted server takes its address back at once.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error| Error::Listen { address, error })
}

/// What a handler that wants the connection for a worker sends.
pub(crate) struct Takes {
    pub(crate) head: Bytes,
    pub(crate) client: Client,
}

/// How a handler takes its connection; an extension of each request.
#[derive(Clone)]
pub(crate) struct Slot {
    taken: mpsc::Sender<(Takes, Instant)>,
    /// When the client began.
    since: Instant,
    peer: IpAddr,
}

impl Slot {
    /// Who is at the other end: the client, or a proxy.
    pub(crate) fn peer(&self) -> IpAddr {
        self.peer
    }

    /// Gives the connection to a worker. Never returns: the connection's task
    /// drops the request.
    pub(crate) async fn take(&self, takes: Takes) -> Response {
        let _ = self.taken.send((takes, self.since)).await;
        std::future::pending().await
    }
}

/// What handlers share.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) config: Arc<Config>,
    pub(crate) mesh: mesh::Handle,
    pub(crate) door: Door,
    pub(crate) metrics: Arc<Metrics>,
}

/// All paths of the client address.
pub(crate) fn routes(context: Context) -> Router {
    let playground = context.config.playground;
    let mut router = Router::new().merge(connect::routes()).merge(api::routes());
    if playground {
        router = router.merge(playground::routes());
    }
    router
        .fallback(connect::unknown_path)
        .layer(from_fn_with_state(context.clone(), count))
        .with_state(context)
}

/// Counts requests by route template, never by the raw path.
async fn count(State(context): State<Context>, request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unknown".to_owned(), |path| path.as_str().to_owned());
    let method = known_method(request.method());
    let began = Instant::now();
    let response = next.run(request).await;
    let code = response.status();
    context
        .metrics
        .http_requests
        .with_label_values(&[&route, method, code.as_str()])
        .inc();
    context
        .metrics
        .http_duration
        .with_label_values(&[&route])
        .observe(began.elapsed().as_secs_f64());
    response
}

/// Clients may invent methods; labels must not grow with them.
fn known_method(method: &axum::http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "OPTIONS" => "OPTIONS",
        "HEAD" => "HEAD",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        _ => "other",
    }
}

/// What it takes to serve connections.
pub(crate) struct Serving {
    pub(crate) routes: Router,
    pub(crate) workers: Vec<worker::Handle>,
    pub(crate) tls: Option<Tls>,
    pub(crate) config: Arc<Config>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Accepts until shutdown.
pub(crate) async fn run(
    listener: TcpListener,
    serving: Serving,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), Error> {
    let Serving {
        routes,
        workers,
        tls,
        config,
        metrics,
    } = serving;
    let requests_max = config.limits.requests_max;
    let mut connections = JoinSet::new();
    let mut idlers = Idlers::new(requests_max);
    let workers = Arc::new(RoundRobin {
        workers,
        next: AtomicUsize::new(0),
    });
    let mut complained = None;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if connections.len() < requests_max => accepted,
            () = tokio::time::sleep(LOOK_FOR_ROOM), if connections.len() >= requests_max => {
                let ended = idlers.make_room(Instant::now());
                metrics.count_limited(Limiter::Connections, ended);
                continue;
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            _ = shutdown.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let busy = Arc::new(AtomicBool::new(false));
                // API answers are small and awaited.
                let _ = stream.set_nodelay(true);
                let connection = Connection {
                    peer: peer.ip(),
                    accepted_at: Instant::now(),
                    routes: routes.clone(),
                    workers: Arc::clone(&workers),
                    config: Arc::clone(&config),
                    busy: Arc::clone(&busy),
                    shutdown: shutdown.clone(),
                };
                let tls = tls.clone();
                let serve = async move {
                    match tls {
                        None => connection.serve(stream).await,
                        Some(tls) => {
                            if let Some(stream) = tls.accept(stream).await {
                                connection.serve(stream).await;
                            }
                        }
                    }
                };
                idlers.add(connections.spawn(serve), busy, Instant::now());
            }
            Err(error) => {
                metrics.accept_errors.inc();
                if complained.is_none_or(|at: Instant| at.elapsed() >= COMPLAIN_EVERY) {
                    complained = Some(Instant::now());
                    tracing::warn!(%error, "could not accept a connection; raise the limit of open files?");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(SHUTDOWN_PATIENCE, all).await;
    Ok(())
}

/// Connections of the HTTP server in the order in which they came. Those that send
/// nothing, or only a part of a request, must not keep others out: these wait in
/// the kernel's queue meanwhile.
struct Idlers {
    /// How many there are at most.
    most: usize,
    all: VecDeque<Idler>,
}

struct Idler {
    task: AbortHandle,
    /// A request is under way.
    busy: Arc<AtomicBool>,
    came: Instant,
}

impl Idlers {
    fn new(most: usize) -> Self {
        Self {
            most,
            all: VecDeque::new(),
        }
    }

    /// Ends some of those that have no request under way and have been there
    /// longest. How many.
    fn make_room(&mut self, now: Instant) -> u64 {
        let mut room = (self.most / 16).max(1);
        let before = room;
        self.all.retain(|idler| {
            let is_old = now.duration_since(idler.came) >= IDLE_AT_LEAST;
            if room > 0
                && is_old
                && !idler.busy.load(Ordering::Relaxed)
                && !idler.task.is_finished()
            {
                idler.task.abort();
                room -= 1;
            }
            !idler.task.is_finished()
        });
        (before - room) as u64
    }

    fn add(&mut self, task: AbortHandle, busy: Arc<AtomicBool>, came: Instant) {
        // Most end, or go to a worker, soon.
        if self.all.len() >= 2 * self.most {
            self.all.retain(|idler| !idler.task.is_finished());
        }
        self.all.push_back(Idler { task, busy, came });
    }
}

/// Gives each worker as many connections as the others. Only those that a
/// worker takes over count.
struct RoundRobin {
    workers: Vec<worker::Handle>,
    next: AtomicUsize,
}

impl RoundRobin {
    fn next(&self) -> &worker::Handle {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        &self.workers[next % self.workers.len()]
    }
}

/// A stream that a worker can be given.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// What the worker gets.
    fn for_worker(self, outbox: &OutboxLimits) -> io::Result<std::net::TcpStream>;
}

impl Stream for TcpStream {
    fn for_worker(self, outbox: &OutboxLimits) -> io::Result<std::net::TcpStream> {
        worker::tune(&self, outbox)?;
        self.into_std()
    }
}

impl Stream for TlsStream<TcpStream> {
    fn for_worker(self, outbox: &OutboxLimits) -> io::Result<std::net::TcpStream> {
        worker::tune(self.get_ref().0, outbox)?;
        tls::local_end(self, worker::patience(outbox))
    }
}

/// One connection of the HTTP server.
struct Connection {
    peer: IpAddr,
    accepted_at: Instant,
    routes: Router,
    workers: Arc<RoundRobin>,
    config: Arc<Config>,
    /// It has a request under way.
    busy: Arc<AtomicBool>,
    shutdown: watch::Receiver<bool>,
}

impl Connection {
    /// Serves it until it ends or a worker takes it.
    async fn serve(mut self, stream: impl Stream) {
        let is_first = AtomicBool::new(true);
        let (slot, mut taken) = mpsc::channel(1);
        let (routes, busy) = (self.routes, self.busy);
        let (peer, accepted_at) = (self.peer, self.accepted_at);
        let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            let mut routes = routes.clone();
            let is_first = is_first.swap(false, Ordering::Relaxed);
            request.extensions_mut().insert(Slot {
                taken: slot.clone(),
                since: if is_first {
                    accepted_at
                } else {
                    Instant::now()
                },
                peer,
            });
            let busy = Arc::clone(&busy);
            busy.store(true, Ordering::Relaxed);
            Box::pin(async move {
                let response = routes.call(request).await.into_response();
                busy.store(false, Ordering::Relaxed);
                Ok::<_, Infallible>(response)
            })
        });
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let mut stopping = false;
        let takes = loop {
            tokio::select! {
                biased;
                takes = taken.recv() => break takes,
                // An error here is a client that went or spoke no HTTP.
                _ = poll_fn(|cx| connection.poll_without_shutdown(cx)) => break None,
                _ = self.shutdown.wait_for(|stop| *stop), if !stopping => {
                    stopping = true;
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                }
            }
        };
        let parts = connection.into_parts();
        let Some((Takes { head, client }, since)) = takes else {
            // By TLS the client is to know that this was all.
            let mut stream = parts.io.into_inner();
            let _ = tokio::time::timeout(SHUTDOWN_PATIENCE, stream.shutdown()).await;
            return;
        };
        match parts.io.into_inner().for_worker(&self.config.outbox) {
            Ok(stream) => {
                let takeover = Takeover {
                    stream,
                    head,
                    leftover: parts.read_buf,
                    client,
                    since,
                };
                self.workers.next().accept(takeover).await;
            }
            Err(error) => {
                tracing::warn!(%error, "could not take a connection from the HTTP server")
            }
        }
    }
}

/// The answer to a path that does not exist.
pub(crate) fn unknown_route(path: &str) -> Problem {
    let path: String = path.chars().take(100).collect();
    Problem::new(
        ErrorCode::UnknownRoute,
        format!("there is nothing at {path}"),
    )
}
