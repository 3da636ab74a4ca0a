//! Shell: accepts connections, answers HTTP, and hands WebSocket and SSE
//! connections over to workers.
//!
//! Such a connection begins as an HTTP request like any other. Its handler
//! decides, sends a [`Takeover`] instead of answering and never returns; the
//! connection's task then takes the socket back from hyper, with whatever bytes
//! came behind the request, and gives it away. So the router sees every request
//! and a worker owns every long-lived socket. A connection that speaks HTTP/2 stays
//! with hyper ([`http2`]): it may have other requests.

mod http2;
mod idlers;

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderValue;
use axum::http::header::CONNECTION;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use proto::error::ErrorCode;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::handshake::server::write_response;
use tower_service::Service;

use crate::core::limits::Limiter;
use crate::door::Door;
use crate::metrics::Metrics;
use crate::problem::Problem;
use crate::tls::{self, Tls};
use crate::worker::{self, Client, Takeover};
use crate::{Config, Error, OutboxLimits, api, bridge, connect, mesh, playground, probes};
use http2::Streams;
pub(crate) use idlers::UnderWay;
use idlers::{Idlers, Load};

/// How long a client may take to send the head of a request; also how long a
/// connection may be idle between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a request's head at most.
const HEAD_BYTES_MAX: usize = 16 * 1_024;
/// How long to wait when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often that is said.
const COMPLAIN_EVERY: Duration = Duration::from_secs(5);
/// How often it is looked for room while there is none.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(20);
/// How long requests under way may take at shutdown.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(1);
/// The kernel's queue of connections that wait to be accepted.
const BACKLOG: u32 = 4_096;

/// An address that is taken. Whoever comes is refused until it is listened at: who
/// cannot be served yet goes elsewhere, and nothing is done for it long after it has
/// given up.
pub(crate) struct Bound {
    socket: TcpSocket,
    pub(crate) address: SocketAddr,
}

impl Bound {
    pub(crate) fn new(address: SocketAddr) -> Result<Self, Error> {
        let bind = || -> io::Result<Self> {
            let socket = match address {
                SocketAddr::V4(_) => TcpSocket::new_v4()?,
                SocketAddr::V6(_) => TcpSocket::new_v6()?,
            };
            // A restarted server takes its address back at once.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            let address = socket.local_addr()?;
            Ok(Self { socket, address })
        };
        bind().map_err(|error| Error::Listen { address, error })
    }

    pub(crate) fn listen(self) -> Result<TcpListener, Error> {
        let Self { socket, address } = self;
        let listening = socket.listen(BACKLOG);
        listening.map_err(|error| Error::Listen { address, error })
    }
}

/// What a handler that wants the connection for a worker sends.
pub(crate) struct Takes {
    /// Of the answer; without `connection`.
    pub(crate) head: axum::http::Response<()>,
    pub(crate) client: Client,
    /// Of a WebSocket over HTTP/2: its stream, both ways.
    pub(crate) upgrade: Option<OnUpgrade>,
}

impl Takes {
    /// The head as HTTP/1.1 has it. The end of a stream is that of its connection,
    /// so that the same bytes serve clients and proxies of HTTP/1.0 and 1.1.
    fn head(mut self) -> io::Result<(Bytes, Client)> {
        if !self.head.headers().contains_key(CONNECTION) {
            let close = HeaderValue::from_static("close");
            self.head.headers_mut().insert(CONNECTION, close);
        }
        let mut head = Vec::with_capacity(256);
        write_response(&mut head, &self.head).map_err(io::Error::other)?;
        Ok((head.into(), self.client))
    }
}

/// How a handler takes its connection, or its stream of one; an extension of each
/// request.
#[derive(Clone)]
pub(crate) struct Slot {
    way: Way,
    /// When the client began.
    since: Instant,
    peer: IpAddr,
}

#[derive(Clone)]
enum Way {
    Connection(mpsc::Sender<(Takes, Instant)>),
    Stream(Arc<Streams>),
}

impl Slot {
    /// Who is at the other end: the client, or a proxy.
    pub(crate) fn peer(&self) -> IpAddr {
        self.peer
    }

    /// Gives the client to a worker. The answer is only for HTTP/2; a whole
    /// connection's task drops the request.
    pub(crate) async fn take(&self, takes: Takes) -> Response {
        match &self.way {
            Way::Connection(taken) => {
                let _ = taken.send((takes, self.since)).await;
                std::future::pending().await
            }
            Way::Stream(streams) => streams.take(takes, self.since).await,
        }
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
    let mut router = Router::new()
        .merge(connect::routes())
        .merge(api::routes())
        .merge(probes::routes());
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
    let response = if is_text(request.uri().path()) {
        next.run(request).await
    } else {
        let message = "the path is not text in UTF-8";
        Problem::new(ErrorCode::BadRequest, message)
            .closing()
            .into_response()
    };
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

/// Whether a path is text, once what `%` stands for is put in.
fn is_text(path: &str) -> bool {
    if !path.contains('%') {
        return true;
    }
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let bytes = path.as_bytes();
    let mut text = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let escaped = (*byte == b'%')
            .then(|| Some((digit(bytes.get(at + 1)?)?, digit(bytes.get(at + 2)?)?)))
            .flatten();
        text.push(escaped.map_or(*byte, |(high, low)| (high * 16 + low) as u8));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    std::str::from_utf8(&text).is_ok()
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
        "CONNECT" => "CONNECT",
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
    // Those are bounded as clients are.
    let with_streams = Arc::new(AtomicUsize::new(0));
    let workers = Arc::new(RoundRobin {
        workers,
        next: AtomicUsize::new(0),
    });
    let mut complained = None;
    loop {
        let others = connections
            .len()
            .saturating_sub(with_streams.load(Ordering::Relaxed));
        let is_full = others >= requests_max;
        let accepted = tokio::select! {
            accepted = listener.accept(), if !is_full => accepted,
            () = tokio::time::sleep(LOOK_FOR_ROOM), if is_full => {
                let ended = idlers.make_room(Instant::now());
                metrics.count_limited(Limiter::Connections, ended);
                continue;
            }
            Some(ended) = connections.join_next_with_id(), if !connections.is_empty() => {
                idlers.ended(ended.map_or_else(|error| error.id(), |(id, ())| id));
                continue;
            }
            _ = shutdown.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let load = Load::new(Arc::clone(&with_streams));
                // API answers are small and awaited.
                let _ = stream.set_nodelay(true);
                let connection = Connection {
                    peer: peer.ip(),
                    accepted_at: Instant::now(),
                    routes: routes.clone(),
                    workers: Arc::clone(&workers),
                    config: Arc::clone(&config),
                    load: Arc::clone(&load),
                    metrics: Arc::clone(&metrics),
                    shutdown: shutdown.clone(),
                };
                let tls = tls.clone();
                let serve = async move {
                    match tls {
                        None => match http2::is_spoken(&stream).await {
                            Some(true) => connection.serve_streams(stream, http2::PAIR_FILES).await,
                            Some(false) => connection.serve(stream).await,
                            None => {}
                        },
                        Some(tls) => match tls.accept(stream).await {
                            Some(stream) if http2::is_agreed(&stream) => {
                                // As many have every client by TLS.
                                connection.serve_streams(stream, 0).await;
                            }
                            Some(stream) => connection.serve(stream).await,
                            None => {}
                        },
                    }
                };
                idlers.add(connections.spawn(serve), load, Instant::now());
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
    let patience = async {
        // Workers send their clients away at their own pace.
        while with_streams.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(LOOK_FOR_ROOM).await;
        }
        tokio::time::sleep(SHUTDOWN_PATIENCE).await;
    };
    tokio::select! {
        () = all => {}
        () = patience => {}
    }
    Ok(())
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

/// A connection that a worker can be given.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    fn tune(&self, outbox: &OutboxLimits) -> io::Result<()>;

    /// What the worker gets.
    fn for_worker(self, outbox: &OutboxLimits) -> io::Result<std::net::TcpStream>;
}

impl Stream for TcpStream {
    fn tune(&self, outbox: &OutboxLimits) -> io::Result<()> {
        worker::tune(self, outbox)
    }

    fn for_worker(self, _: &OutboxLimits) -> io::Result<std::net::TcpStream> {
        self.into_std()
    }
}

impl Stream for tls::Stream {
    fn tune(&self, outbox: &OutboxLimits) -> io::Result<()> {
        worker::tune(self.get_ref().0, outbox)
    }

    fn for_worker(self, outbox: &OutboxLimits) -> io::Result<std::net::TcpStream> {
        let (near, far) = bridge::pair()?;
        tokio::spawn(bridge::carry(self, near, worker::patience(outbox)));
        Ok(far)
    }
}

type Answer = BoxFuture<'static, Result<Response, Infallible>>;

/// Answers requests.
trait Answering: Fn(hyper::Request<Incoming>) -> Answer + Send + 'static {}

impl<T: Fn(hyper::Request<Incoming>) -> Answer + Send + 'static> Answering for T {}

/// One connection of the HTTP server.
struct Connection {
    peer: IpAddr,
    accepted_at: Instant,
    routes: Router,
    workers: Arc<RoundRobin>,
    config: Arc<Config>,
    load: Arc<Load>,
    metrics: Arc<Metrics>,
    shutdown: watch::Receiver<bool>,
}

impl Connection {
    fn answering(&self, way: Way) -> impl Answering {
        let is_first = AtomicBool::new(true);
        let (routes, load) = (self.routes.clone(), Arc::clone(&self.load));
        let (peer, accepted_at) = (self.peer, self.accepted_at);
        move |mut request: hyper::Request<Incoming>| {
            let since = if is_first.swap(false, Ordering::Relaxed) {
                accepted_at
            } else {
                Instant::now()
            };
            let way = way.clone();
            request.extensions_mut().insert(Slot { way, since, peer });
            let (mut routes, under_way) = (routes.clone(), load.request());
            async move {
                let response = routes.call(request).await.into_response();
                drop(under_way);
                Ok(response)
            }
            .boxed()
        }
    }

    /// Serves it until it ends; workers may take streams of it, for each of which
    /// there has to be room for so many further files.
    async fn serve_streams(self, stream: impl Stream, further_files: usize) {
        if let Err(error) = stream.tune(&self.config.outbox) {
            tracing::debug!(%error, "a connection has ended before it began");
            return;
        }
        let streams = Arc::new(Streams {
            workers: Arc::clone(&self.workers),
            config: Arc::clone(&self.config),
            load: Arc::clone(&self.load),
            metrics: Arc::clone(&self.metrics),
            further_files,
        });
        let answering = self.answering(Way::Stream(streams));
        http2::serve(stream, answering, &self.load, self.shutdown).await;
    }

    /// Serves it until it ends or a worker takes it.
    async fn serve(mut self, stream: impl Stream) {
        let (slot, mut taken) = mpsc::channel(1);
        let answering = self.answering(Way::Connection(slot));
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service_fn(answering));
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
        let Some((takes, since)) = takes else {
            // By TLS the client is to know that this was all.
            let mut stream = parts.io.into_inner();
            let _ = tokio::time::timeout(SHUTDOWN_PATIENCE, stream.shutdown()).await;
            return;
        };
        let outbox = &self.config.outbox;
        let stream = parts.io.into_inner();
        let tuned = stream.tune(outbox);
        let taken = tuned.and_then(|()| Ok((stream.for_worker(outbox)?, takes.head()?)));
        match taken {
            Ok((stream, (head, client))) => {
                let takeover = Takeover {
                    stream,
                    head,
                    leftover: parts.read_buf,
                    client,
                    since,
                    under_way: None,
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

#[cfg(test)]
mod tests {
    use super::is_text;

    #[test]
    fn paths_are_text() {
        for path in [
            "/",
            "/apps/a/users/Zo%C3%AB",
            "/up/100%",
            "/up/%zz",
            "/up/%",
        ] {
            assert!(is_text(path), "{path}");
        }
        for path in ["/up/%ff", "/up/%C3", "/up/%C3x%AB"] {
            assert!(!is_text(path), "{path}");
        }
    }
}
