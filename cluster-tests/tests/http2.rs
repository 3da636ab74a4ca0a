//! HTTP/2: event streams and WebSockets are streams of one connection beside requests
//! of the API, by TLS or without, and everything holds for them that holds for
//! connections of their own.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: tests stamp requests by the clock"
)]

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use cluster_tests::certificate::Certificate;
use cluster_tests::client::{KEY, metric, publish, signed_query};
use cluster_tests::cluster::Cluster;
use cluster_tests::process::Dev;
use cluster_tests::{PATIENCE, eventually};
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::ext::Protocol;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proto::time::UnixTime;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

/// A connection that speaks HTTP/2.
#[derive(Clone)]
struct Client(SendRequest<Full<Bytes>>);

impl Client {
    async fn on(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self> {
        let (requests, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(65_535)
            .initial_connection_window_size(16 * 1_024 * 1_024)
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(connection);
        Ok(Self(requests))
    }

    async fn connect(address: &str) -> Result<Self> {
        Self::on(TcpStream::connect(address).await?).await
    }

    async fn ask(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        let mut requests = self.0.clone();
        timeout(PATIENCE, requests.ready()).await??;
        Ok(timeout(PATIENCE, requests.send_request(request)).await??)
    }

    async fn get(&self, path: &str) -> Result<Response<Incoming>> {
        self.ask(Request::get(uri(path)).body(Full::default())?)
            .await
    }

    async fn publish(&self, channel: &str, data: &str) -> Result<()> {
        let path = "/apps/app-id/events";
        let body = json!({ "name": "e", "channel": channel, "data": data }).to_string();
        let query = signed_query("POST", path, &body, "app-secret", UnixTime::now());
        let request = Request::post(uri(&format!("{path}?{query}"))).body(body.into())?;
        let answer = self.ask(request).await?;
        ensure!(answer.status() == 200, "{answer:?}");
        Ok(())
    }

    async fn stream(&self, query: &str) -> Result<EventStream> {
        let answer = self.get(&format!("/app/{KEY}/sse?{query}")).await?;
        ensure!(answer.status() == 200, "{answer:?}");
        ensure!(answer.headers()["content-type"] == "text/event-stream");
        let seen = String::new();
        let body = answer.into_body();
        Ok(EventStream { body, seen })
    }

    /// Asks for a WebSocket, by a handshake of this version.
    async fn handshake(&self, path: &str, version: &str) -> Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(uri(path))
            .header("sec-websocket-version", version)
            .body(Full::default())?;
        let websocket = Protocol::from_static("websocket");
        request.extensions_mut().insert(websocket);
        self.ask(request).await
    }

    async fn websocket(&self, path: &str) -> Result<WebSocket> {
        let answer = self.handshake(path, "13").await?;
        ensure!(answer.status() == 200, "{answer:?}");
        let upgraded = timeout(PATIENCE, hyper::upgrade::on(answer)).await??;
        let stream = TokioIo::new(upgraded);
        Ok(WebSocket(
            WebSocketStream::from_raw_socket(stream, Role::Client, None).await,
        ))
    }

    async fn follow(&self, channel: &str) -> Result<WebSocket> {
        let mut socket = self.websocket(&format!("/app/{KEY}?protocol=7")).await?;
        let subscribe = json!({ "event": "pusher:subscribe", "data": { "channel": channel } });
        socket.0.send(Message::text(subscribe.to_string())).await?;
        while socket.frame().await?["event"] != "pusher_internal:subscription_succeeded" {}
        Ok(socket)
    }
}

fn uri(path: &str) -> String {
    format!("http://localhost{path}")
}

struct WebSocket(WebSocketStream<TokioIo<Upgraded>>);

impl WebSocket {
    async fn message(&mut self) -> Result<Message> {
        Ok(timeout(PATIENCE, self.0.next())
            .await?
            .context("no frame")??)
    }

    async fn frame(&mut self) -> Result<Value> {
        match self.message().await? {
            Message::Text(text) => Ok(serde_json::from_str(&text)?),
            other => bail!("a frame expected: {other:?}"),
        }
    }

    async fn close_code(&mut self) -> Result<u16> {
        loop {
            if let Message::Close(Some(close)) = self.message().await? {
                return Ok(close.code.into());
            }
        }
    }
}

struct EventStream {
    body: Incoming,
    seen: String,
}

impl EventStream {
    /// `None`: it has ended.
    async fn more(&mut self) -> Result<Option<()>> {
        match timeout(PATIENCE, self.body.frame()).await? {
            Some(frame) => {
                let data = frame?.into_data().ok().context("data")?;
                self.seen.push_str(std::str::from_utf8(&data)?);
                Ok(Some(()))
            }
            None => Ok(None),
        }
    }

    async fn until(&mut self, text: &str) -> Result<()> {
        while !self.seen.contains(text) {
            self.more().await?.context("it ended")?;
        }
        Ok(())
    }
}

fn open_files(server: &Dev) -> Result<usize> {
    let files = format!("/proc/{}/fd", server.pid());
    Ok(std::fs::read_dir(files)?.count())
}

async fn connected(server: &Dev, kind: &str) -> Result<f64> {
    metric(server, "dunlin_connected_clients", &[kind]).await
}

/// An event stream, a WebSocket and a backend on one connection.
async fn all_on_one_connection(server: &Dev, client: &Client) -> Result<()> {
    let mut stream = client.stream("channel=news").await?;
    let mut socket = client.follow("news").await?;
    for number in 0..20 {
        client.publish("news", &number.to_string()).await?;
        assert_eq!(socket.frame().await?["data"], number.to_string());
        stream.until(&format!("data: {number}\n")).await?;
    }
    assert_eq!(connected(server, "websocket").await?, 1.0);
    assert_eq!(connected(server, "eventsource").await?, 1.0);
    // The same bytes as on a connection of its own, behind a comment.
    let begun = stream.seen.strip_prefix(":\n\n").context("a comment")?;
    let numbers = begun.lines().filter_map(|line| line.strip_prefix("data: "));
    assert!(numbers.eq((0..20).map(|n| n.to_string())), "{begun}");
    let cursor = begun.lines().rfind(|line| line.starts_with("id: "));
    let cursor = cursor.and_then(|line| line.strip_prefix("id: "));
    let cursor = cursor.context("a cursor")?.to_owned();

    // Whoever resets a stream leaves; the others stay.
    drop(stream);
    eventually("it is counted out", async || {
        (connected(server, "eventsource").await.ok()? == 0.0).then_some(())
    })
    .await;
    client.publish("news", "missed").await?;
    assert_eq!(socket.frame().await?["data"], "missed");
    let query = format!("channel=news&last_event_id={cursor}");
    let mut again = client.stream(&query).await?;
    again.until("data: missed\n").await?;

    socket.0.close(None).await?;
    assert!(matches!(socket.message().await?, Message::Close(_)));
    eventually("it is counted out", async || {
        (connected(server, "websocket").await.ok()? == 0.0).then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn streams_are_served_as_connections_are() -> Result<()> {
    let server = Dev::start().await?;
    all_on_one_connection(&server, &Client::connect(&server.clients).await?).await
}

#[tokio::test]
async fn browsers_agree_on_it_by_tls() -> Result<()> {
    let certificate = Certificate::new()?;
    let server = certificate.serve(&[]).await?;
    let stream = certificate.connect(&server, "h2").await?;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    all_on_one_connection(&server, &Client::on(stream).await?).await
}

#[tokio::test]
async fn refusals_are_spoken() -> Result<()> {
    let server = Dev::start().await?;
    let client = Client::connect(&server.clients).await?;
    let mut refused = client.websocket("/app/unknown?protocol=7").await?;
    assert_eq!(refused.frame().await?["data"]["code"], 4001);
    assert_eq!(refused.close_code().await?, 4001);
    let mut refused = client.websocket("/nowhere").await?;
    assert_eq!(refused.close_code().await?, 4005);
    let path = format!("/app/{KEY}?protocol=7");
    assert_eq!(client.handshake(&path, "12").await?.status(), 400);
    assert_eq!(client.get(&path).await?.status(), 426);
    let stream = client.get(&format!("/app/{KEY}/sse")).await?;
    assert_eq!(stream.status(), 400);
    let other = Protocol::from_static("connect-udp");
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(uri(&path))
        .body(Full::default())?;
    request.extensions_mut().insert(other);
    assert_eq!(client.ask(request).await?.status(), 426);
    assert_eq!(client.get("/nowhere").await?.status(), 404);
    // None of this has hurt the connection.
    client.publish("news", "still").await
}

/// Without TLS it is told by how the client begins, in whatever pieces that comes.
#[tokio::test]
async fn a_beginning_in_pieces_is_understood() -> Result<()> {
    let server = Dev::start().await?;
    let mut stream = TcpStream::connect(&server.clients).await?;
    stream.set_nodelay(true)?;
    for piece in ["P", "R", "I * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        stream.write_all(piece.as_bytes()).await?;
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    }
    // No settings, and a ping: the server's settings come first.
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await?;
    let mut head = [0; 9];
    timeout(PATIENCE, stream.read_exact(&mut head)).await??;
    assert_eq!(head[3], 4, "a frame of settings");
    for (begins, status) in [("POST", "404"), ("PROPFIND", "404"), ("PRO", "404")] {
        let mut stream = TcpStream::connect(&server.clients).await?;
        let rest = " /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let (first, second) = begins.split_at(2);
        stream.write_all(first.as_bytes()).await?;
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        stream
            .write_all(format!("{second}{rest}").as_bytes())
            .await?;
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await??;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
    }
    // What is no HTTP/2 behind such a beginning ends, and harms nobody.
    let mut stream = TcpStream::connect(&server.clients).await?;
    stream
        .write_all(b"PRI * HTTP/1.1\r\nhost: x\r\n\r\n")
        .await?;
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await?;
    Client::connect(&server.clients)
        .await?
        .publish("news", "on")
        .await
}

/// A stream whose client takes nothing ends by itself: the bound on what waits for it
/// holds, and others on the same connection go on.
#[tokio::test]
async fn a_stream_that_is_not_read_ends_alone() -> Result<()> {
    let bounds = ["--outbox-bytes-max", "65536", "--outbox-age-max-s", "2"];
    let server = Dev::start_with(bounds).await?;
    let client = Client::connect(&server.clients).await?;
    let mut other = client.stream("channel=news").await?;
    let before = open_files(&server)?;
    let mut stalled = client.stream("channel=news").await?;
    let stalled_socket = client.follow("news").await?;
    let data = "x".repeat(9_000);
    for number in 0..100 {
        publish(&server, "news", "e", &format!("{number} {data}")).await?;
        other.until(&format!("data: {number} ")).await?;
        other.seen.clear();
    }
    let cut_off = eventually("both are acted upon", async || {
        let cut_off = metric(&server, "dunlin_slow_consumers_total", &["disconnected"]);
        let cut_off = cut_off.await.ok()?;
        (cut_off == 2.0).then_some(cut_off)
    });
    cut_off.await;
    // Not even a client that reads nothing keeps what has ended.
    eventually("their sockets are closed", async || {
        (open_files(&server).ok()? <= before).then_some(())
    })
    .await;
    while let Some(frame) = timeout(PATIENCE, stalled.body.frame()).await? {
        if frame.is_err() {
            break;
        }
    }
    drop(stalled_socket);
    client.publish("news", "on").await?;
    other.until("data: on\n").await
}

/// Each needs more files than a connection of its own: they end before the process
/// has none for others.
#[tokio::test]
async fn streams_leave_files_to_others() -> Result<()> {
    let server = Dev::start_with_files(1_024).await?;
    let mut held = Vec::new();
    let refused = 'full: loop {
        ensure!(held.len() < 1_000, "it is never full");
        let client = Client::connect(&server.clients).await?;
        for _ in 0..100 {
            let answer = client.get(&format!("/app/{KEY}/sse?channel=news")).await?;
            if answer.status() != 200 {
                break 'full answer;
            }
            held.push((client.clone(), answer));
        }
    };
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    let limited = ["limiter=\"connections\""];
    let limited = metric(&server, "dunlin_rate_limit_triggered_total", &limited).await?;
    assert_eq!(limited, 1.0);
    assert!(held.len() > 200, "{} streams", held.len());
    assert!(open_files(&server)? < 1_000);
    publish(&server, "news", "e", "x").await?;
    held.clear();
    eventually("there is room again", async || {
        let client = Client::connect(&server.clients).await.ok()?;
        client.stream("channel=news").await.ok()
    })
    .await;
    Ok(())
}

/// Streams outlive the patience with which requests are waited for.
#[tokio::test]
async fn clients_are_sent_away_in_the_way_of_their_protocol() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster
        .add_gateway("g3", &["--drain-window-s", "3"])
        .await?;
    cluster.ready().await;
    let address = cluster.gateway("g3").clients.clone();
    let client = Client::connect(&address).await?;
    let mut stream = client.stream("channel=news").await?;
    let mut sockets = Vec::new();
    for _ in 0..20 {
        sockets.push(client.follow("news").await?);
    }
    let until_it_ends = async {
        while stream.more().await?.is_some() {}
        anyhow::Ok(())
    };
    let until_all_are_closed = async {
        for socket in &mut sockets {
            assert_eq!(socket.close_code().await?, 4200);
        }
        anyhow::Ok(())
    };
    let mut gateway = cluster.gateways.remove("g3").context("a gateway")?;
    let (ended, streamed, closed) =
        tokio::join!(gateway.terminate(), until_it_ends, until_all_are_closed);
    streamed?;
    closed?;
    assert!(ended?.success());
    Ok(())
}
