//! Small clients: HTTP byte by byte, so that a test can send what no library
//! would; WebSocket by the library.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use gateway::app::Secret;
use gateway::core::auth;
use proto::time::UnixTime;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::PATIENCE;
use crate::process::Dev;

/// The app that `dunlin dev` has when it is told of none.
pub const KEY: &str = "app-key";
const SECRET: &str = "app-secret";
const EVENTS: &str = "/apps/app-id/events";
const BATCHES: &str = "/apps/app-id/batch_events";

/// An HTTP answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The head, in lower case.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// When it is not.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// The `code` of an error body.
    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// Sends bytes and reads until the server closes; for requests that say
/// `connection: close`.
///
/// # Errors
/// When there is no answer in time.
pub async fn exchange(address: &str, request: &[u8]) -> Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .context("no answer")?;
    if let Err(error) = read
        && answer.is_empty()
    {
        return Err(error.into());
    }
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .with_context(|| format!("not HTTP: {text:?}"))?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .context("a status")?;
    Ok(Answer {
        status,
        head: head.to_lowercase(),
        body: body.to_owned(),
    })
}

/// A request with headers and a body.
///
/// # Errors
/// When there is no answer in time.
pub async fn request(
    address: &str,
    method: &str,
    target: &str,
    headers: &str,
    body: &str,
) -> Result<Answer> {
    let length = body.len();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    );
    exchange(address, request.as_bytes()).await
}

/// A GET request.
///
/// # Errors
/// When there is no answer in time.
pub async fn get(address: &str, target: &str) -> Result<Answer> {
    request(address, "GET", target, "", "").await
}

/// The query with which the API is called at a time.
pub fn signed_query(method: &str, path: &str, body: &str, secret: &str, now: UnixTime) -> String {
    let request = auth::Request {
        method,
        path,
        query: "",
    };
    auth::sign_request(KEY, &Secret::new(secret), request, body.as_bytes(), now)
}

/// Posts a body to the API, signed.
///
/// # Errors
/// When there is no answer in time.
pub async fn post_event(server: &Dev, body: &Value) -> Result<Answer> {
    post_event_to(&server.clients, body).await
}

/// Posts a body to the API at an address, signed.
///
/// # Errors
/// When there is no answer in time.
pub async fn post_event_to(address: &str, body: &Value) -> Result<Answer> {
    post_event_with(address, "", body).await
}

/// Posts a body to the API at an address, signed, with further header lines.
///
/// # Errors
/// When there is no answer in time.
pub async fn post_event_with(address: &str, headers: &str, body: &Value) -> Result<Answer> {
    let body = body.to_string();
    let query = signed_query("POST", EVENTS, &body, SECRET, UnixTime::now());
    let target = format!("{EVENTS}?{query}");
    request(address, "POST", &target, headers, &body).await
}

/// The bytes of a signed request that publishes, on a connection that stays.
pub fn event_request(address: &str, body: &str, now: UnixTime) -> String {
    signed_post(address, EVENTS, body, now)
}

/// The bytes of a signed request that publishes a batch, on a connection that stays.
pub fn batch_request(address: &str, body: &str, now: UnixTime) -> String {
    signed_post(address, BATCHES, body, now)
}

fn signed_post(address: &str, path: &str, body: &str, now: UnixTime) -> String {
    let query = signed_query("POST", path, body, SECRET, now);
    let length = body.len();
    format!(
        "POST {path}?{query} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// Publishes one event.
///
/// # Errors
/// When it is not acknowledged.
pub async fn publish(server: &Dev, channel: &str, event: &str, data: &str) -> Result<()> {
    let answer = post_event(
        server,
        &json!({ "name": event, "channel": channel, "data": data }),
    )
    .await?;
    if answer.status != 200 {
        bail!("not acknowledged: {answer:?}");
    }
    Ok(())
}

/// The value of a metric without labels, or of one with exactly this text
/// between the braces' labels.
///
/// # Errors
/// When the page cannot be read.
pub async fn metric(server: &Dev, name: &str, labels: &[&str]) -> Result<f64> {
    metric_at(&server.admin, name, labels).await
}

/// The same, by the admin address of any process.
///
/// # Errors
/// When the page cannot be read.
pub async fn metric_at(admin: &str, name: &str, labels: &[&str]) -> Result<f64> {
    let page = get(admin, "/metrics").await?;
    let line = page
        .body
        .lines()
        .find(|line| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            (rest.starts_with('{') || rest.starts_with(' '))
                && labels.iter().all(|label| rest.contains(label))
        })
        .with_context(|| format!("no metric {name} with {labels:?}"))?;
    Ok(line.rsplit(' ').next().context("a value")?.parse()?)
}

/// A Pusher client.
#[derive(Debug)]
pub struct Pusher {
    socket: WebSocketStream<TcpStream>,
    /// The id that the server gave it.
    pub socket_id: String,
}

impl Pusher {
    /// Connects as the default app's client.
    ///
    /// # Errors
    /// When the server does not establish the connection.
    pub async fn connect(server: &Dev) -> Result<Self> {
        Self::connect_to(&server.clients).await
    }

    /// Connects to an address.
    ///
    /// # Errors
    /// When the server does not establish the connection.
    pub async fn connect_to(address: &str) -> Result<Self> {
        let mut client =
            Self::open_at(address, &format!("/app/{KEY}?protocol=7&client=test")).await?;
        let frame = client.frame().await?;
        if frame["event"] != "pusher:connection_established" {
            bail!("not established: {frame}");
        }
        let data: Value =
            serde_json::from_str(frame["data"].as_str().context("data is a string")?)?;
        client.socket_id = data["socket_id"]
            .as_str()
            .context("a socket_id")?
            .to_owned();
        Ok(client)
    }

    /// Opens a WebSocket without waiting for anything.
    ///
    /// # Errors
    /// When the handshake fails.
    pub async fn open(server: &Dev, path: &str) -> Result<Self> {
        Self::open_at(&server.clients, path).await
    }

    /// The same from one of the addresses of this machine.
    ///
    /// # Errors
    /// When the handshake fails.
    pub async fn open_from(server: &Dev, from: Ipv4Addr, path: &str) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((from, 0)))?;
        let stream = socket.connect(server.clients.parse()?).await?;
        Self::open_on(stream, &server.clients, path).await
    }

    async fn open_at(address: &str, path: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        Self::open_on(stream, address, path).await
    }

    async fn open_on(stream: TcpStream, address: &str, path: &str) -> Result<Self> {
        let url = format!("ws://{address}{path}");
        let (socket, _) = timeout(PATIENCE, tokio_tungstenite::client_async(url, stream))
            .await
            .context("no handshake")??;
        Ok(Self {
            socket,
            socket_id: String::new(),
        })
    }

    /// Sends an event.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send(&mut self, frame: &Value) -> Result<()> {
        self.send_text(&frame.to_string()).await
    }

    /// Sends any text.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send_text(&mut self, text: &str) -> Result<()> {
        Ok(self
            .socket
            .send(Message::Text(Utf8Bytes::from(text)))
            .await?)
    }

    /// Subscribes and waits for the acknowledgement.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn subscribe(&mut self, channel: &str) -> Result<()> {
        self.send(&json!({ "event": "pusher:subscribe", "data": { "channel": channel } }))
            .await?;
        let frame = self.frame().await?;
        if frame["event"] != "pusher_internal:subscription_succeeded" || frame["channel"] != channel
        {
            bail!("not subscribed to {channel}: {frame}");
        }
        Ok(())
    }

    /// The next frame.
    ///
    /// # Errors
    /// When none comes in time, or the connection ends.
    pub async fn frame(&mut self) -> Result<Value> {
        Ok(serde_json::from_str(&self.text().await?)?)
    }

    /// The same, as it came.
    ///
    /// # Errors
    /// When none comes in time, or the connection ends.
    pub async fn text(&mut self) -> Result<Utf8Bytes> {
        loop {
            match timeout(PATIENCE, self.socket.next())
                .await
                .context("no frame came")?
            {
                Some(Ok(Message::Text(text))) => return Ok(text),
                Some(Ok(Message::Close(close))) => bail!("closed: {close:?}"),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => bail!("the connection ended"),
            }
        }
    }

    /// The code of the close frame that comes next.
    ///
    /// # Errors
    /// When something else comes, or nothing.
    pub async fn closed(&mut self) -> Result<u16> {
        match timeout(PATIENCE, self.socket.next())
            .await
            .context("no close came")?
        {
            Some(Ok(Message::Close(Some(close)))) => {
                let code: CloseCode = close.code;
                Ok(code.into())
            }
            other => bail!("a close frame expected, got {other:?}"),
        }
    }

    /// The socket itself, for a test that stops reading.
    pub fn into_socket(self) -> WebSocketStream<TcpStream> {
        self.socket
    }
}

/// An event stream, read by hand.
#[derive(Debug)]
pub struct EventStream {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// The head of the answer, in lower case.
    pub head: String,
}

impl EventStream {
    /// Asks for a stream, with further header lines.
    ///
    /// # Errors
    /// When no head comes in time.
    pub async fn open(server: &Dev, query: &str, headers: &str) -> Result<Self> {
        Self::open_at(&server.clients, query, headers).await
    }

    /// Asks an address for a stream.
    ///
    /// # Errors
    /// When no head comes in time.
    pub async fn open_at(address: &str, query: &str, headers: &str) -> Result<Self> {
        let mut stream = TcpStream::connect(address).await?;
        let request =
            format!("GET /app/{KEY}/sse?{query} HTTP/1.1\r\nhost: {address}\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut opened = Self {
            stream,
            buffer: Vec::new(),
            head: String::new(),
        };
        opened.head = opened.until(b"\r\n\r\n").await?.to_lowercase();
        Ok(opened)
    }

    /// The next block, comments apart.
    ///
    /// # Errors
    /// When none comes in time.
    pub async fn block(&mut self) -> Result<String> {
        loop {
            let block = self.until(b"\n\n").await?;
            if !block.starts_with(':') {
                return Ok(block);
            }
        }
    }

    async fn until(&mut self, end: &[u8]) -> Result<String> {
        loop {
            if let Some(at) = self
                .buffer
                .windows(end.len())
                .position(|window| window == end)
            {
                let rest = self.buffer.split_off(at + end.len());
                let text = std::mem::replace(&mut self.buffer, rest);
                return Ok(String::from_utf8_lossy(&text[..at]).into_owned());
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.buffer))
                .await
                .context("nothing came")??;
            if read == 0 {
                bail!("the stream ended");
            }
        }
    }
}
