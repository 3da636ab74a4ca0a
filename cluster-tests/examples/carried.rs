//! What a delivery costs, and a client that waits for one, when it is carried by TLS
//! or HTTP/2 instead of by a socket of its own (docs/operating/tls.md): `cargo run
//! --release -p cluster-tests --example carried`.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: a load generator lives by the clock"
)]

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use cluster_tests::certificate::Certificate;
use cluster_tests::client::metric;
use cluster_tests::eventually;
use cluster_tests::process::Dev;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper::ext::Protocol;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

const CLIENTS: usize = 1_000;
const PUBLICATIONS: usize = 100;
/// Time between two of them.
const PACE: Duration = Duration::from_millis(50);
const DATA_BYTES: usize = 128;
const PATH: &str = "/app/app-key";

/// How a client is connected.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    WebSocket,
    EventStream,
}

struct Carried {
    name: &'static str,
    way: Way,
    tls: bool,
    http2: bool,
}

const fn carried(name: &'static str, way: Way, tls: bool, http2: bool) -> Carried {
    Carried {
        name,
        way,
        tls,
        http2,
    }
}

/// The first of each way is what the others are measured by.
const ALL: [Carried; 8] = [
    carried("WebSocket", Way::WebSocket, false, false),
    carried("WebSocket, HTTP/2", Way::WebSocket, false, true),
    carried("WebSocket, TLS", Way::WebSocket, true, false),
    carried("WebSocket, HTTP/2, TLS", Way::WebSocket, true, true),
    carried("event stream", Way::EventStream, false, false),
    carried("event stream, HTTP/2", Way::EventStream, false, true),
    carried("event stream, TLS", Way::EventStream, true, false),
    carried("event stream, HTTP/2, TLS", Way::EventStream, true, true),
];

trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for T {}

/// Connects a client that follows the channel, and reads whatever comes.
async fn connect(carried: &Carried, server: &Dev, certificate: &Certificate) -> Result<()> {
    if carried.tls {
        let protocol = if carried.http2 { "h2" } else { "http/1.1" };
        follow(carried, certificate.connect(server, protocol).await?).await
    } else {
        follow(carried, TcpStream::connect(&server.clients).await?).await
    }
}

async fn follow(carried: &Carried, mut stream: impl Stream) -> Result<()> {
    match (carried.way, carried.http2) {
        (Way::WebSocket, false) => {
            let url = format!("ws://localhost{PATH}?protocol=7");
            let (socket, _) = tokio_tungstenite::client_async(url, stream).await?;
            subscribe(socket).await
        }
        (Way::WebSocket, true) => {
            let mut request = Request::builder()
                .method(Method::CONNECT)
                .uri(format!("http://localhost{PATH}?protocol=7"))
                .header("sec-websocket-version", "13")
                .body(Empty::new())?;
            let websocket = Protocol::from_static("websocket");
            request.extensions_mut().insert(websocket);
            let upgraded = hyper::upgrade::on(ask(stream, request).await?).await?;
            let stream = TokioIo::new(upgraded);
            subscribe(WebSocketStream::from_raw_socket(stream, Role::Client, None).await).await
        }
        (Way::EventStream, false) => {
            let request =
                format!("GET {PATH}/sse?channel=news HTTP/1.1\r\nhost: localhost\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut buffer = vec![0; 4_096];
            ensure!(stream.read(&mut buffer).await? > 0, "no answer");
            tokio::spawn(async move { while let Ok(1..) = stream.read(&mut buffer).await {} });
            Ok(())
        }
        (Way::EventStream, true) => {
            let uri = format!("http://localhost{PATH}/sse?channel=news");
            let answer = ask(stream, Request::get(uri).body(Empty::new())?).await?;
            ensure!(answer.status() == 200, "{answer:?}");
            let mut body = answer.into_body();
            tokio::spawn(async move { while let Some(Ok(_)) = body.frame().await {} });
            Ok(())
        }
    }
}

async fn ask(
    stream: impl Stream,
    request: Request<Empty<Bytes>>,
) -> Result<Response<hyper::body::Incoming>> {
    let io = TokioIo::new(stream);
    let (mut requests, connection) = http2::handshake(TokioExecutor::new(), io).await?;
    tokio::spawn(async move {
        // The load ends before the server does.
        let _ = connection.await;
    });
    requests.ready().await?;
    Ok(requests.send_request(request).await?)
}

async fn subscribe(mut socket: WebSocketStream<impl Stream>) -> Result<()> {
    let subscribe = json!({ "event": "pusher:subscribe", "data": { "channel": "news" } });
    socket.send(Message::text(subscribe.to_string())).await?;
    loop {
        let frame = socket.next().await.context("it has ended")??;
        if frame.to_text()?.contains("subscription_succeeded") {
            break;
        }
    }
    tokio::spawn(async move { while let Some(Ok(_)) = socket.next().await {} });
    Ok(())
}

struct Cost {
    us_per_delivery: f64,
    kib_per_client: f64,
}

async fn measure(carried: &Carried) -> Result<Cost> {
    let certificate = Certificate::new()?;
    let server = if carried.tls {
        certificate.serve(&[]).await?
    } else {
        Dev::start().await?
    };
    let before = memory(&server)?;
    for _ in 0..CLIENTS {
        connect(carried, &server, &certificate).await?;
    }
    let kib_per_client = (memory(&server)? - before) / CLIENTS as f64;
    let kind = match carried.way {
        Way::WebSocket => "websocket",
        Way::EventStream => "eventsource",
    };
    let sent = async || metric(&server, "dunlin_messages_sent_total", &[kind]).await;
    let cpu = cpu_us(&server)?;
    let data = "x".repeat(DATA_BYTES);
    let mut pace = tokio::time::interval(PACE);
    for _ in 0..PUBLICATIONS {
        pace.tick().await;
        publish(&server, &certificate, carried.tls, &data).await?;
    }
    let deliveries = (CLIENTS * PUBLICATIONS) as f64;
    eventually("all is sent", async || {
        (sent().await.ok()? >= deliveries).then_some(())
    })
    .await;
    Ok(Cost {
        us_per_delivery: (cpu_us(&server)? - cpu) / deliveries,
        kib_per_client,
    })
}

async fn publish(server: &Dev, certificate: &Certificate, tls: bool, data: &str) -> Result<()> {
    let now = proto::time::UnixTime::now();
    let body = json!({ "name": "e", "channel": "news", "data": data }).to_string();
    let request = cluster_tests::client::event_request(&server.clients, &body, now);
    let request = request.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
    let answer = if tls {
        exchange(certificate.connect(server, "http/1.1").await?, &request).await?
    } else {
        exchange(TcpStream::connect(&server.clients).await?, &request).await?
    };
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}

async fn exchange(mut stream: impl Stream, request: &str) -> Result<String> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8(answer)?)
}

/// What the server has in memory, in KiB.
fn memory(server: &Dev) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("VmRSS")?.parse()?)
}

/// What the server has computed, in microseconds.
fn cpu_us(server: &Dev) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid()))?;
    let (_, fields) = stat.rsplit_once(')').context("fields")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || -> Result<f64> { Ok(fields.next().context("a field")?.parse()?) };
    let hz = rustix::param::clock_ticks_per_second() as f64;
    Ok((ticks()? + ticks()?) * 1e6 / hz)
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{CLIENTS} clients of one channel, {PUBLICATIONS} publications of {DATA_BYTES} bytes"
    )?;
    let mut plain = None;
    for carried in &ALL {
        let cost = measure(carried).await?;
        let is_plain = !carried.tls && !carried.http2;
        if is_plain {
            plain = Some(cost.us_per_delivery);
        }
        let by = plain.context("the plain ones come first")?;
        writeln!(
            out,
            "{:26} {:5.1} us per delivery ({:3.1} x), {:5.1} KiB per client",
            carried.name,
            cost.us_per_delivery,
            cost.us_per_delivery / by,
            cost.kib_per_client
        )?;
    }
    Ok(())
}
