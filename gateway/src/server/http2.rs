//! Shell: connections that speak HTTP/2 (RFC 9113). A worker that takes a stream of
//! one, an event stream or a WebSocket (RFC 8441), is given one end of a pair of
//! local sockets, as with TLS.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hyper::server::conn::http2;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use proto::error::ErrorCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;

use super::idlers::{Load, UnderWay};
use super::{Answering, HEAD_BYTES_MAX, HEAD_TIMEOUT, RoundRobin, Takes};
use crate::bridge::{self, FAREWELL};
use crate::problem::Problem;
use crate::worker::{self, Takeover};
use crate::{Config, tls};

/// Streams of one connection at a time: RFC 9113 recommends no fewer than 100.
const STREAMS_MAX: u32 = 128;
/// Bytes that a client may send of one stream before they are taken.
const STREAM_WINDOW: u32 = 64 * 1_024;
/// Of all streams of a connection.
const CONNECTION_WINDOW: u32 = 256 * 1_024;
/// Bytes that wait in one stream to be sent at most.
const SEND_BYTES: usize = 64 * 1_024;
/// How often a client is asked whether it is there.
const ASK_EVERY: Duration = Duration::from_secs(20);
/// How soon a beginning is looked at again of which too little has come.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How a connection begins that speaks HTTP/2 without TLS having agreed on it (RFC
/// 9113, 3.4). No request of HTTP/1.1 does.
const PREFACE: [u8; 3] = *b"PRI";
/// What a worker writes when an event stream begins: a comment, so nothing.
const BEGUN: Bytes = Bytes::from_static(b":\n\n");

/// Whether the client speaks HTTP/2 on a connection without TLS. `None`: it says
/// nothing.
pub(super) async fn is_spoken(stream: &TcpStream) -> Option<bool> {
    let looking = async {
        let mut seen = [0; PREFACE.len()];
        loop {
            match stream.peek(&mut seen).await.ok()? {
                0 => return None,
                count if count < PREFACE.len() && PREFACE.starts_with(&seen[..count]) => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                _ => return Some(seen == PREFACE),
            }
        }
    };
    timeout(HEAD_TIMEOUT, looking).await.ok()?
}

/// Whether the client has agreed on HTTP/2 by TLS (RFC 7301).
pub(super) fn is_agreed(stream: &tls::Stream) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(tls::HTTP2)
}

/// How workers take streams of one connection.
pub(super) struct Streams {
    pub(super) workers: Arc<RoundRobin>,
    pub(super) config: Arc<Config>,
    pub(super) load: Arc<Load>,
}

tokio::task_local! {
    /// Ends the stream whose request this task answers.
    static END: Arc<Notify>;
}

/// Runs each stream in a task that can be told to end: the library would wait for a
/// client that takes nothing as long as it is there.
#[derive(Clone)]
struct Executor;

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
{
    fn execute(&self, stream: F) {
        let end = Arc::new(Notify::new());
        let ended = Arc::clone(&end);
        tokio::spawn(END.scope(end, async move {
            tokio::select! {
                _ = stream => {}
                () = ended.notified() => {}
            }
        }));
    }
}

/// Serves a connection until it ends.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    answering: impl Answering,
    load: &Load,
    mut shutdown: watch::Receiver<bool>,
) {
    let service = hyper::service::service_fn(answering);
    let connection = http2::Builder::new(Executor)
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BYTES)
        .keep_alive_interval(ASK_EVERY)
        .keep_alive_timeout(ASK_EVERY)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut served = 0;
    let mut look = tokio::time::interval(HEAD_TIMEOUT);
    look.reset();
    let mut stopping = false;
    loop {
        let stop = tokio::select! {
            biased;
            // An error here is a client that went or broke the protocol.
            _ = connection.as_mut() => return,
            _ = shutdown.wait_for(|stop| *stop), if !stopping => true,
            _ = look.tick(), if !stopping => {
                let before = std::mem::replace(&mut served, load.served());
                load.is_idle() && served == before
            }
        };
        if stop {
            stopping = true;
            connection.as_mut().graceful_shutdown();
        }
    }
}

impl Streams {
    /// Gives a stream to a worker.
    pub(super) async fn take(&self, takes: Takes, since: Instant) -> Response {
        match self.try_take(takes, since).await {
            Ok(response) => response,
            Err(error) => {
                tracing::warn!(%error, "could not give a stream to a worker");
                let message = format!("there is no room for this stream: {error}");
                Problem::new(ErrorCode::OverCapacity, message).into_response()
            }
        }
    }

    async fn try_take(&self, takes: Takes, since: Instant) -> io::Result<Response> {
        let Takes {
            head,
            client,
            upgrade,
        } = takes;
        let patience = worker::patience(&self.config.outbox);
        let (near, far) = bridge::pair()?;
        let takeover = Takeover {
            stream: far,
            head: upgrade.as_ref().map_or(BEGUN, |_| Bytes::new()),
            leftover: Bytes::new(),
            client,
            since,
        };
        self.workers.next().accept(takeover).await;
        let under_way = self.load.stream();
        match upgrade {
            Some(upgrade) => {
                tokio::spawn(carry(upgrade, near, patience, under_way));
                // Of WebSocket's own handshake nothing is left (RFC 8441, 5).
                Ok(StatusCode::OK.into_response())
            }
            None => event_stream(head.into_parts().0.headers, near, patience, under_way).await,
        }
    }
}

async fn carry(upgrade: OnUpgrade, near: UnixStream, patience: Duration, under_way: UnderWay) {
    if let Ok(Ok(client)) = timeout(patience, upgrade).await {
        bridge::carry(TokioIo::new(client), near, patience).await;
    }
    drop(under_way);
}

/// The answer, as soon as the worker has begun it.
async fn event_stream(
    headers: HeaderMap,
    near: UnixStream,
    patience: Duration,
    under_way: UnderWay,
) -> io::Result<Response> {
    let begun = bridge::read(&near).await;
    if begun.is_empty() {
        return Err(io::Error::other("the gateway is shutting down"));
    }
    let (pieces, mut taken) = mpsc::channel::<Option<Bytes>>(1);
    let end = END.try_with(Arc::clone).ok();
    tokio::spawn(async move {
        if pump(near, begun.freeze(), &pieces, patience).await.is_err()
            && let Some(end) = end
        {
            end.notify_one();
        }
        drop(under_way);
    });
    let body = stream::poll_fn(move |cx| taken.poll_recv(cx).map(Option::flatten));
    let body = Body::from_stream(body.map(Ok::<_, Infallible>));
    Ok((headers, body).into_response())
}

/// The client has taken nothing for too long.
struct Stalls;

/// Takes what a worker writes to the answer. `Ok`: all of it has gone out, or the
/// client has.
async fn pump(
    near: UnixStream,
    begun: Bytes,
    pieces: &mpsc::Sender<Option<Bytes>>,
    patience: Duration,
) -> Result<(), Stalls> {
    let mut piece = Some(begun);
    loop {
        let is_last = piece.is_none();
        match timeout(patience, pieces.send(piece)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Ok(()),
            Err(_) => return Err(Stalls),
        }
        if is_last {
            return timeout(FAREWELL, pieces.closed()).await.map_err(|_| Stalls);
        }
        let read = tokio::select! {
            read = bridge::read(&near) => read,
            () = pieces.closed() => return Ok(()),
        };
        piece = (!read.is_empty()).then(|| read.freeze());
    }
}
