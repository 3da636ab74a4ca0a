//! What tools have in common that follow channels: how they connect, what comes
//! next, and whether it is worth trying again when nothing does.

use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::client::{ANSWER_TIMEOUT, Server, problem, read};

/// Why a connection ended.
pub(crate) enum End {
    /// Trying again may help.
    Lost(anyhow::Error),
    /// The server will never do it.
    Refused(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for End {
    fn from(error: E) -> Self {
        Self::Lost(error.into())
    }
}

/// Nothing ends well: a subscription goes on for ever.
pub(crate) enum Never {}

/// An event stream, if the server has opened one.
pub(crate) async fn opened(
    server: &Server,
    response: Response<Incoming>,
) -> Result<Response<Incoming>, End> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let why = problem(status, &read(response).await?);
    let error = anyhow!("{server} refused the subscription: {why}");
    Err(if status.is_client_error() {
        End::Refused(error)
    } else {
        End::Lost(error)
    })
}

/// The next bytes of an event stream, which says something at least this often.
pub(crate) async fn next_bytes(
    stream: &mut Response<Incoming>,
    silence: Duration,
) -> Result<Bytes, End> {
    loop {
        let frame = timeout(silence, stream.frame())
            .await
            .context("the server has gone silent")?;
        let frame = frame
            .context("the server closed the stream")?
            .context("the stream broke")?;
        if let Ok(bytes) = frame.into_data() {
            return Ok(bytes);
        }
    }
}

/// A WebSocket of a Pusher client.
pub(crate) type Socket = WebSocketStream<TcpStream>;

/// Connects to a server as a client of this app.
pub(crate) async fn open_socket(server: &Server, key: &str) -> anyhow::Result<Socket> {
    let stream = server.open().await?;
    let url = server.websocket(&format!("/app/{key}?protocol=7&client=dunlin"));
    let connecting = tokio_tungstenite::client_async(url, stream);
    let (socket, _) = timeout(ANSWER_TIMEOUT, connecting)
        .await
        .context("no answer to the handshake")??;
    Ok(socket)
}

/// The next frame of a WebSocket. A server that says nothing for so long is
/// asked whether it is there.
pub(crate) async fn next_frame(socket: &mut Socket, ping: Duration) -> Result<Utf8Bytes, End> {
    loop {
        let next = match timeout(ping, socket.next()).await {
            Ok(next) => next,
            Err(_) => {
                let asked = json!({ "event": "pusher:ping", "data": {} });
                socket.send(message(&asked)).await?;
                timeout(ping, socket.next())
                    .await
                    .context("the server has gone silent")?
            }
        };
        match next.context("the server closed the connection")?? {
            Message::Text(frame) => return Ok(frame),
            Message::Close(Some(close)) => {
                let code = u16::from(close.code);
                let reason = close.reason;
                let error = anyhow!("the server closed the connection: {reason} ({code})");
                // By the protocol: not to be tried again.
                return Err(if (4_000..4_100).contains(&code) {
                    End::Refused(error)
                } else {
                    End::Lost(error)
                });
            }
            _ => {}
        }
    }
}

/// A frame to be sent.
pub(crate) fn message(value: &Value) -> Message {
    Message::Text(Utf8Bytes::from(value.to_string()))
}
