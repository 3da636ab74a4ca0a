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

use super::idlers::Load;
use super::{Answering, HEAD_BYTES_MAX, HEAD_TIMEOUT, RoundRobin, Takes};
use crate::bridge::{self, FAREWELL};
use crate::connect::not_let_in;
use crate::metrics::Metrics;
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
/// How soon a beginning is looked at again of which too little has come, at first.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How often that is doubled.
const LOOKS: u32 = 9;
/// Open files of a pair of sockets.
pub(super) const PAIR_FILES: usize = 2;
/// How a connection begins that speaks HTTP/2 without TLS having agreed on it (RFC
/// 9113, 3.4). No request of HTTP/1.1 does.
const PREFACE: [u8; 3] = *b"PRI";
/// What a worker writes when an event stream begins: a comment, so nothing.
const BEGUN: Bytes = Bytes::from_static(b":\n\n");

/// Whether the client speaks HTTP/2 on a connection without TLS. `None`: it says
/// nothing, or too little for some seconds.
pub(super) async fn is_spoken(stream: &TcpStream) -> Option<bool> {
    let mut seen = [0; PREFACE.len()];
    for look in 0..LOOKS {
        let looking = timeout(HEAD_TIMEOUT, stream.peek(&mut seen));
        match looking.await.ok()?.ok()? {
            0 => return None,
            count if count < PREFACE.len() && PREFACE.starts_with(&seen[..count]) => {
                tokio::time::sleep(LOOK_AGAIN * 2_u32.pow(look)).await;
            }
            _ => return Some(seen == PREFACE),
        }
    }
    None
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
    pub(super) metrics: Arc<Metrics>,
    /// What each stream needs beside its client's place.
    pub(super) further_files: usize,
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
        // What a stream begins besides, to write to an upgraded one, ends with it.
        let end = END.try_with(Arc::clone).unwrap_or_default();
        let ended = Arc::clone(&end);
        tokio::spawn(END.scope(end, async move {
            tokio::select! {
                _ = stream => {}
                () = ended.notified() => ended.notify_one(),
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
            _ = look.tick() => {
                let before = std::mem::replace(&mut served, load.served());
                let is_idle = load.is_idle() && served == before;
                if is_idle && stopping {
                    // It was told a minute ago.
                    return;
                }
                is_idle
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
    pub(super) async fn take(&self, mut takes: Takes, since: Instant) -> Response {
        if let Err(refusal) = takes.client.seat().open(self.further_files) {
            self.metrics.count_limited(refusal.limiter, 1);
            return not_let_in(refusal).into_response();
        }
        match self.try_take(takes, since).await {
            Ok(response) => response,
            Err(error) => {
                // Not for everybody to fill the log with.
                tracing::debug!(%error, "could not give a stream to a worker");
                let message = format!("this stream cannot be served: {error}");
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
            under_way: Some(self.load.stream()),
        };
        if !self.workers.next().accept(takeover).await {
            return Err(io::Error::other("the gateway is shutting down"));
        }
        let end = END.try_with(Arc::clone).unwrap_or_default();
        match upgrade {
            Some(upgrade) => {
                tokio::spawn(carry(upgrade, near, patience, end));
                // Of WebSocket's own handshake nothing is left (RFC 8441, 5).
                Ok(StatusCode::OK.into_response())
            }
            None => event_stream(head.into_parts().0.headers, near, patience, end).await,
        }
    }
}

async fn carry(upgrade: OnUpgrade, near: UnixStream, patience: Duration, end: Arc<Notify>) {
    if let Ok(Ok(client)) = timeout(patience, upgrade).await {
        bridge::carry(TokioIo::new(client), near, patience).await;
    }
    // All has gone out, or never will.
    end.notify_one();
}

/// The answer, as soon as the worker has begun it.
async fn event_stream(
    headers: HeaderMap,
    near: UnixStream,
    patience: Duration,
    end: Arc<Notify>,
) -> io::Result<Response> {
    let begun = bridge::read(&near).await;
    if begun.is_empty() {
        return Err(io::Error::other("the gateway is shutting down"));
    }
    let (pieces, mut taken) = mpsc::channel::<Option<Bytes>>(1);
    tokio::spawn(async move {
        if pump(near, begun.freeze(), &pieces, patience).await.is_err() {
            end.notify_one();
        }
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
