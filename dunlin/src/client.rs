//! HTTP as the tools need it: one connection to one server.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use gateway::app::Secret;
use gateway::core::auth;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use proto::error::ErrorCode;
use proto::time::UnixTime;
use tokio::net::TcpStream;

use crate::cli::AppArgument;

/// How long a server may take to accept a connection.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server may take to answer.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer that is read whole.
const ANSWER_BYTES_MAX: usize = 1_024 * 1_024;
/// The same at an admin address: a map of 65,535 shards fits.
const ADMIN_ANSWER_BYTES_MAX: usize = 16 * 1_024 * 1_024;

/// A server's address: `http://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// As it stands in the URL.
    authority: String,
    host: String,
    port: u16,
}

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("{text:?} is not of the form http://HOST:PORT");
        let uri: Uri = text.parse().map_err(|_| expected())?;
        if uri.scheme_str() == Some("https") {
            return Err(
                "https is not supported by this tool; connect to the server itself, by http".into(),
            );
        }
        let authority = uri.authority().ok_or_else(expected)?;
        if uri.scheme_str() != Some("http")
            || uri.path() != "/"
            || uri.query().is_some()
            || authority.as_str().contains('@')
        {
            return Err(expected());
        }
        Ok(Self {
            authority: authority.as_str().to_owned(),
            host: authority
                .host()
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned(),
            port: authority.port_u16().unwrap_or(80),
        })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

impl Server {
    /// A connection without anything on it.
    pub(crate) async fn open(&self) -> anyhow::Result<TcpStream> {
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| anyhow!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))
            .and_then(|connected| connected.map_err(Into::into))
            .with_context(|| format!("could not connect to {self}"))?;
        stream
            .set_nodelay(true)
            .context("could not set up the connection")?;
        Ok(stream)
    }

    /// Where it is.
    pub(crate) async fn address(&self) -> anyhow::Result<SocketAddr> {
        let looked_up = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let mut addresses = looked_up.with_context(|| format!("could not look {self} up"))?;
        addresses
            .next()
            .with_context(|| format!("{self} has no address"))
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A connection for HTTP requests.
    #[expect(
        clippy::disallowed_methods,
        reason = "shell: hyper's connection is a task"
    )]
    pub(crate) async fn connect(&self) -> anyhow::Result<Connection> {
        let stream = self.open().await?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .context("could not begin HTTP")?;
        // Ends when the sender is dropped; its error is the next request's.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Connection {
            server: self.clone(),
            sender,
        })
    }

    /// `ws://HOST:PORT` and a path.
    pub(crate) fn websocket(&self, path: &str) -> String {
        format!("ws://{}{path}", self.authority)
    }
}

/// A connection to a server.
pub(crate) struct Connection {
    server: Server,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Asks for a path; the body is the caller's to read.
    pub(crate) async fn get(&mut self, path: &str) -> anyhow::Result<Response<Incoming>> {
        let request = Request::get(path)
            .header(HOST, &self.server.authority)
            .body(Full::default())?;
        Ok(self.send(request).await?)
    }

    /// Asks for a path with a token, if there is one; the whole answer.
    pub(crate) async fn get_with_token(
        &mut self,
        path: &str,
        token: Option<&Secret>,
    ) -> anyhow::Result<(StatusCode, String)> {
        let mut request = Request::get(path).header(HOST, &self.server.authority);
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        let response = self.send(request.body(Full::default())?).await?;
        let status = response.status();
        Ok((status, read_up_to(response, ADMIN_ANSWER_BYTES_MAX).await?))
    }

    /// Has something changed at a path, with a token, if there is one; the whole
    /// answer.
    pub(crate) async fn post_with_token(
        &mut self,
        path: &str,
        token: Option<&Secret>,
    ) -> anyhow::Result<(StatusCode, String)> {
        let mut request = Request::post(path).header(HOST, &self.server.authority);
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        let response = self.send(request.body(Full::default())?).await?;
        let status = response.status();
        Ok((status, read(response).await?))
    }

    /// Asks for an event stream that goes on after a cursor.
    pub(crate) async fn resume(
        &mut self,
        path: &str,
        cursor: &str,
    ) -> anyhow::Result<Response<Incoming>> {
        let request = Request::get(path)
            .header(HOST, &self.server.authority)
            .header("last-event-id", cursor)
            .body(Full::default())?;
        Ok(self.send(request).await?)
    }

    /// Publishes an event as an app's backend does. The answer and its text.
    pub(crate) async fn publish(
        &mut self,
        app: &AppArgument,
        event: &Event<'_>,
    ) -> Result<(StatusCode, String), Failed> {
        let Event {
            channel,
            name,
            data,
            idempotency_key,
        } = event;
        let body = serde_json::json!({ "name": name, "channel": channel, "data": data });
        self.post_event(app, &body, *idempotency_key).await
    }

    /// The same with a body of the caller's making.
    pub(crate) async fn post_event(
        &mut self,
        app: &AppArgument,
        body: &serde_json::Value,
        idempotency_key: Option<&str>,
    ) -> Result<(StatusCode, String), Failed> {
        let body = body.to_string();
        let path = format!("/apps/{}/events", app.id);
        let request = auth::Request {
            method: "POST",
            path: &path,
            query: "",
        };
        let query = auth::sign_request(&app.key, &app.secret, request, body.as_bytes(), now());
        let mut request = Request::post(format!("{path}?{query}"))
            .header(HOST, &self.server.authority)
            .header(CONTENT_TYPE, "application/json");
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        let request = request
            .body(Full::from(body))
            .map_err(|error| Failed::NotSent(error.into()))?;
        let response = self.send(request).await?;
        let status = response.status();
        let text = read(response).await.map_err(Failed::Unknown)?;
        Ok((status, text))
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failed> {
        let server = self.server.clone();
        let broke = move |error: hyper::Error| {
            anyhow::Error::from(error).context(format!("the connection to {server} broke"))
        };
        let answering = async {
            self.sender
                .ready()
                .await
                .map_err(|error| Failed::NotSent(broke(error)))?;
            self.sender
                .try_send_request(request)
                .await
                .map_err(|mut failed| {
                    // hyper gives a request back that it has not begun to write.
                    let not_sent = failed.take_message().is_some();
                    let error = broke(failed.into_error());
                    if not_sent {
                        Failed::NotSent(error)
                    } else {
                        Failed::Unknown(error)
                    }
                })
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, answering).await {
            Ok(answer) => answer,
            Err(_) => {
                let secs = ANSWER_TIMEOUT.as_secs();
                Err(Failed::Unknown(anyhow!(
                    "{} did not answer within {secs} s",
                    self.server
                )))
            }
        }
    }
}

/// Something to publish.
pub(crate) struct Event<'a> {
    pub(crate) channel: &'a str,
    pub(crate) name: &'a str,
    pub(crate) data: &'a str,
    /// With it the same event may be sent again.
    pub(crate) idempotency_key: Option<&'a str>,
}

/// Why there is no answer to a request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    /// It has not left: trying again is safe.
    #[error("{0:#}")]
    NotSent(anyhow::Error),
    /// The server may have acted on it.
    #[error("{0:#}")]
    Unknown(anyhow::Error),
}

/// Reads an answer whole.
pub(crate) async fn read(response: Response<Incoming>) -> anyhow::Result<String> {
    read_up_to(response, ANSWER_BYTES_MAX).await
}

async fn read_up_to(response: Response<Incoming>, bytes_max: usize) -> anyhow::Result<String> {
    let reading = Limited::new(response.into_body(), bytes_max).collect();
    let body = tokio::time::timeout(ANSWER_TIMEOUT, reading)
        .await
        .context("the answer did not end")?;
    let body = body.map_err(|error| anyhow!("the answer broke off: {error}"))?;
    Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
}

/// The code of an error answer, if it is one of ours.
pub(crate) fn code(text: &str) -> Option<ErrorCode> {
    let body: serde_json::Value = serde_json::from_str(text).ok()?;
    let code = body.get("code")?.as_str()?;
    let known = ErrorCode::ALL.iter();
    known.copied().find(|known| known.as_str() == code)
}

/// The message of an error answer, or the whole answer if it has none.
pub(crate) fn problem(status: StatusCode, text: &str) -> String {
    let message = serde_json::from_str::<serde_json::Value>(text)
        .ok()
        .and_then(|body| Some(body.get("error")?.as_str()?.to_owned()))
        .unwrap_or_else(|| text.trim().to_owned());
    if message.is_empty() {
        return format!(
            "no reason given, status {}; is this the address for clients?",
            status.as_u16()
        );
    }
    let hint = match code(text) {
        Some(ErrorCode::UnknownApp) => "; say which with --app ID:KEY:SECRET or DUNLIN_APP",
        _ => "",
    };
    format!("{message} ({}){hint}", status.as_u16())
}

#[expect(
    clippy::disallowed_methods,
    reason = "shell: requests are signed with the time"
)]
fn now() -> UnixTime {
    UnixTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_http_addresses() {
        let server: Server = "http://127.0.0.1:6001".parse().unwrap();
        assert_eq!((server.host.as_str(), server.port), ("127.0.0.1", 6001));
        let server: Server = "http://[::1]:7/".parse().unwrap();
        assert_eq!((server.host.as_str(), server.port), ("::1", 7));
        for text in [
            "",
            "127.0.0.1:1",
            "http://",
            "ftp://a",
            "http://a/b",
            "http://a?b",
            "http://u:p@a",
        ] {
            assert!(text.parse::<Server>().is_err(), "{text:?}");
        }
        assert!("https://a".parse::<Server>().unwrap_err().contains("https"));
    }

    #[test]
    fn an_unknown_app_is_answered_with_how_to_name_another() {
        let unknown = r#"{"code":"unknown_app","error":"no app has this key","status":404}"#;
        let said = problem(StatusCode::NOT_FOUND, unknown);
        assert!(said.starts_with("no app has this key (404); say which with --app"));
        assert_eq!(problem(StatusCode::NOT_FOUND, "gone"), "gone (404)");
    }
}
