//! Where clients connect: `GET /app/{key}` for WebSocket, `GET /app/{key}/sse`
//! for event streams. The handlers decide whether to admit; a worker does the
//! rest.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_MAX_AGE, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, ORIGIN,
    SEC_WEBSOCKET_VERSION, UPGRADE, VARY,
};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use hyper::body::Body as _;
use hyper::upgrade::OnUpgrade;
use proto::channel::{ChannelKind, ChannelName};
use proto::error::ErrorCode;
use proto::position::Position;
use proto::time::UnixTime;
use tokio_tungstenite::tungstenite::handshake::server::create_response;

use crate::app::{App, Bounds};
use crate::core::address::client_address;
use crate::core::admission::{Refusal, Whose};
use crate::core::limits::Limiter;
use crate::core::token;
use crate::door::Seat;
use crate::metrics::TYPES;
use crate::problem::Problem;
use crate::protocol::{Close, CloseCode, pusher, sse};
use crate::server::{Context, Slot, Takes, unknown_route};
use crate::worker::Client;

pub(crate) fn routes() -> Router<Context> {
    Router::new()
        .route("/app/{key}", any(websocket))
        .route("/app/{key}/sse", any(event_stream))
}

/// The one version of WebSocket (RFC 6455, 4.1).
const VERSION: HeaderValue = HeaderValue::from_static("13");

// ---- WebSocket ------------------------------------------------------------

async fn websocket(
    State(context): State<Context>,
    Path(key): Path<String>,
    request: Request,
) -> Response {
    if !wants_upgrade(&request) {
        let message = "this path is for WebSocket; event streams are at /app/{key}/sse";
        return Problem::new(ErrorCode::UpgradeRequired, message).into_response();
    }
    let (parts, _) = request.into_parts();
    match admit_websocket(&context, &key, &parts) {
        Ok(seat) => upgrade(parts, Client::WebSocket(seat)).await,
        Err(Refused::ByClose(close)) => tell_by_close(&context, parts, close).await,
        Err(Refused::ByStatus(problem)) => {
            count_refused(&context, TYPES[0], "rate_limited");
            problem.into_response()
        }
    }
}

/// How a WebSocket client is refused: by an error frame and a close code, so that
/// a browser can learn that it need not try again; or, if it comes too often, by
/// what costs least.
enum Refused {
    ByClose(Close),
    ByStatus(Problem),
}

impl From<Close> for Refused {
    fn from(close: Close) -> Self {
        Self::ByClose(close)
    }
}

/// Where a client comes from, if that counts and can be told.
fn origin_address(context: &Context, request: &Parts) -> Option<IpAddr> {
    context.config.limits.admission.of_address?;
    let peer = request.extensions.get::<Slot>().map(Slot::peer)?;
    let forwarded = request.headers.get_all("x-forwarded-for");
    // What cannot be read ends the search.
    let forwarded = forwarded.iter().map(|value| value.to_str().unwrap_or("?"));
    let forwarded: Vec<&str> = forwarded.collect();
    let trusted = &context.config.limits.trusted_proxies;
    Some(client_address(peer, forwarded.into_iter(), trusted))
}

/// Whether an address may try at all, before anything is done for it.
fn knock(context: &Context, request: &Parts) -> Result<(), Problem> {
    let knocked = context.door.knock(origin_address(context, request));
    knocked.map_err(|refusal| {
        context.metrics.count_limited(refusal.limiter, 1);
        not_let_in(refusal)
    })
}

/// Lets a client of an app in.
fn enter(context: &Context, app: &Arc<App>, request: &Parts) -> Result<Seat, Refusal> {
    let entered = context.door.enter(app, origin_address(context, request));
    entered.inspect_err(|refusal| context.metrics.count_limited(refusal.limiter, 1))
}

/// The answer to a client that is not let in.
pub(crate) fn not_let_in(refusal: Refusal) -> Problem {
    let (code, message) = match (refusal.of, refusal.limiter) {
        (Whose::Address, Limiter::Connections) => (
            ErrorCode::RateLimited,
            "this address has as many connections as it may have",
        ),
        (Whose::Address, _) => (
            ErrorCode::RateLimited,
            "too many new connections from this address",
        ),
        (Whose::App, Limiter::Connections) => (
            ErrorCode::OverQuota,
            "the app has as many connections as it may have",
        ),
        (Whose::App, _) => (
            ErrorCode::RateLimited,
            "too many new connections of the app",
        ),
        (Whose::Gateway, _) => (
            ErrorCode::OverCapacity,
            "the server has as many connections as it may have",
        ),
    };
    Problem::new(code, message).after(refusal.wait)
}

fn count_refused(context: &Context, kind: &str, result: &str) {
    let connects = &context.metrics.connects;
    connects.with_label_values(&[kind, result]).inc();
}

/// Anything that is not at a known path. A WebSocket client learns it by a
/// close code: an HTTP status would make it try again for ever.
pub(crate) async fn unknown_path(State(context): State<Context>, request: Request) -> Response {
    if wants_upgrade(&request) {
        let message = format!(
            "there is no WebSocket at {}; it is at /app/{{key}}",
            request.uri().path()
        );
        let code = CloseCode::UnknownPath;
        let (parts, _) = request.into_parts();
        return match knock(&context, &parts) {
            Ok(()) => tell_by_close(&context, parts, Close { code, message }).await,
            Err(problem) => {
                count_refused(&context, TYPES[0], "rate_limited");
                problem.into_response()
            }
        };
    }
    let problem = unknown_route(request.uri().path());
    let unread = !request.body().is_end_stream();
    if unread {
        problem.closing().into_response()
    } else {
        problem.into_response()
    }
}

/// Whether a WebSocket is wanted: by an upgrade (RFC 6455), or, over HTTP/2, by a
/// stream that connects (RFC 8441).
pub(crate) fn wants_upgrade(request: &Request) -> bool {
    let upgrade = request.headers().get(UPGRADE);
    is_stream(request.extensions())
        || upgrade.is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

fn is_stream(extensions: &Extensions) -> bool {
    let protocol = extensions.get::<hyper::ext::Protocol>();
    protocol.is_some_and(|protocol| protocol.as_str() == "websocket")
}

/// Whom to let in.
fn admit_websocket(context: &Context, key: &str, request: &Parts) -> Result<Seat, Refused> {
    let refuse = |code, message: &str| Close {
        code,
        message: message.to_owned(),
    };
    knock(context, request).map_err(Refused::ByStatus)?;
    let app = context
        .config
        .apps
        .by_key(key)
        .ok_or_else(|| refuse(CloseCode::UnknownApp, "no app has this key"))?;
    pusher::check_version(parameter(&request.uri, "protocol").as_deref())?;
    if !app.enabled {
        return Err(refuse(CloseCode::AppDisabled, "the app is disabled").into());
    }
    if !app.allows_origin(origin(&request.headers)) {
        let message = "this origin may not connect";
        return Err(refuse(CloseCode::Unauthorized, message).into());
    }
    enter(context, app, request).map_err(|refusal| {
        let problem = not_let_in(refusal);
        let code = match (refusal.of, refusal.limiter) {
            (Whose::App, Limiter::Connections) => CloseCode::OverQuota,
            (_, Limiter::Connections) => CloseCode::Full,
            _ => return Refused::ByStatus(problem),
        };
        refuse(code, &problem.message).into()
    })
}

/// Upgrades a connection in order to close it with a code; or, if there are many
/// such already, only says that there is no room.
async fn tell_by_close(context: &Context, request: Parts, close: Close) -> Response {
    let full = matches!(close.code, CloseCode::Full | CloseCode::OverQuota);
    let result = if full { "overload" } else { "refused" };
    count_refused(context, TYPES[0], result);
    match context.door.keep_refused() {
        Some(seat) => upgrade(request, Client::Refused(seat, close)).await,
        None => Problem::new(ErrorCode::OverCapacity, close.message).into_response(),
    }
}

async fn upgrade(mut request: Parts, client: Client) -> Response {
    let Some(slot) = request.extensions.get::<Slot>().cloned() else {
        return unknown_route(request.uri.path()).into_response();
    };
    let upgrade = request.extensions.remove::<OnUpgrade>();
    let upgrade = upgrade.filter(|_| is_stream(&request.extensions));
    if upgrade.is_some() && request.headers.get(SEC_WEBSOCKET_VERSION) != Some(&VERSION) {
        let message = "the WebSocket handshake is not valid: sec-websocket-version is 13";
        return Problem::new(ErrorCode::BadRequest, message).into_response();
    }
    let head = match &upgrade {
        Some(_) => Ok(axum::http::Response::new(())),
        None => create_response(&axum::http::Request::from_parts(request, ())),
    };
    match head {
        Ok(head) => {
            slot.take(Takes {
                head,
                client,
                upgrade,
            })
            .await
        }
        Err(error) => {
            let message = format!("the WebSocket handshake is not valid: {error}");
            Problem::new(ErrorCode::BadRequest, message).into_response()
        }
    }
}

// ---- event streams ----------------------------------------------------------

/// The head of every stream.
const STREAM_HEAD: [(HeaderName, HeaderValue); 3] = [
    (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    ),
];

async fn event_stream(
    State(context): State<Context>,
    Path(key): Path<String>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    let origin = origin(&parts.headers);
    if parts.method == Method::OPTIONS {
        let app = context.config.apps.by_key(&key).map(AsRef::as_ref);
        let headers = "authorization, last-event-id, cache-control";
        return preflight(app, origin, "GET", headers);
    }
    if parts.method != Method::GET {
        return Problem::method_not_allowed("GET, OPTIONS").into_response();
    }
    let (seat, stream) = match admit_stream(&context, &key, &parts, origin) {
        Ok(admitted) => admitted,
        Err(problem) => {
            let (app, problem) = *problem;
            let result = match problem.code {
                ErrorCode::RateLimited => "rate_limited",
                ErrorCode::OverQuota | ErrorCode::OverCapacity => "overload",
                _ => "refused",
            };
            count_refused(&context, TYPES[1], result);
            let mut response = problem.into_response();
            // Without this a page could not read why it was refused.
            if let Some(app) = app {
                allow_origin(response.headers_mut(), &app, origin);
            }
            return response;
        }
    };
    let Some(slot) = parts.extensions.get::<Slot>().cloned() else {
        return unknown_route(parts.uri.path()).into_response();
    };
    let mut head = axum::http::Response::new(());
    head.headers_mut().extend(STREAM_HEAD);
    if let Some(app) = seat.app() {
        allow_origin(head.headers_mut(), app, origin);
    }
    let client = Client::EventStream {
        seat,
        channels: stream.channels,
        cursor: stream.cursor,
        envelope: stream.envelope,
        valid_for: stream.valid_for,
    };
    let upgrade = None;
    slot.take(Takes {
        head,
        client,
        upgrade,
    })
    .await
}

type StreamRefused = Box<(Option<Arc<App>>, Problem)>;

fn admit_stream(
    context: &Context,
    key: &str,
    request: &Parts,
    origin: Option<&str>,
) -> Result<(Seat, Stream), StreamRefused> {
    let unknown = || {
        Box::new((
            None,
            Problem::new(ErrorCode::UnknownApp, "no app has this key"),
        ))
    };
    let app = context.config.apps.by_key(key);
    knock(context, request).map_err(|problem| Box::new((app.cloned(), problem)))?;
    let app = app.ok_or_else(unknown)?;
    let refuse = |code, message: String| Box::new((Some(app.clone()), Problem::new(code, message)));
    if !app.enabled {
        return Err(refuse(ErrorCode::AppDisabled, "the app is disabled".into()));
    }
    if !app.allows_origin(origin) {
        let problem = Problem::new(ErrorCode::ForbiddenOrigin, "this origin may not connect");
        return Err(Box::new((None, problem)));
    }
    let mut stream = stream_parameters(&request.uri, &request.headers, &app.bounds)
        .map_err(|(code, message)| refuse(code, message))?;
    let grant = granted(context, app, &stream, &request.headers, UnixTime::now());
    stream.valid_for = grant.map_err(|(code, message)| refuse(code, message))?;
    let seat = enter(context, app, request)
        .map_err(|refusal| Box::new((Some(app.clone()), not_let_in(refusal))))?;
    Ok((seat, stream))
}

/// What a client wants of an event stream.
struct Stream {
    /// Ordered by name.
    channels: Vec<ChannelName>,
    /// Where it stood in each of them.
    cursor: Vec<Option<Position>>,
    envelope: bool,
    /// By the query; the header comes before it.
    token: Option<String>,
    /// How long its token lets it go on.
    valid_for: Option<Duration>,
}

/// Whether a stream may have its channels, and for how long, if its token ends.
fn granted(
    context: &Context,
    app: &App,
    stream: &Stream,
    headers: &HeaderMap,
    now: UnixTime,
) -> Result<Option<Duration>, (ErrorCode, String)> {
    let claims = match bearer(headers).or(stream.token.as_deref()) {
        Some(token) => Some(token::verify(app, token, now).map_err(|error| {
            let failures = &context.metrics.auth_failures;
            failures.with_label_values(&[error.reason()]).inc();
            (error.code(), error.to_string())
        })?),
        None => None,
    };
    for channel in &stream.channels {
        let may = match &claims {
            _ if channel.kind() == ChannelKind::Public => true,
            Some(claims) => claims.may_subscribe(channel),
            None => false,
        };
        if !may {
            let message = match (channel.kind(), claims) {
                (ChannelKind::Presence | ChannelKind::User, _) => {
                    format!("{channel}: subscribe over WebSocket, where it is told who you are")
                }
                (_, Some(_)) => format!("{channel}: the token does not name it"),
                (_, None) => format!("{channel}: an event stream of it needs a token"),
            };
            return Err((ErrorCode::ForbiddenChannel, message));
        }
    }
    Ok(claims.map(|claims| Duration::from_secs(claims.valid_for_secs(now))))
}

/// The token that a request carries in its head
/// ([RFC 6750](https://www.rfc-editor.org/rfc/rfc6750#section-2.1)).
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = text(headers, AUTHORIZATION)?;
    // Without a token it is a bad one, and not none.
    let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim_start())
}

/// `channel` (one to 64 times), `envelope`, `last_event_id`, `token`.
fn stream_parameters(
    uri: &Uri,
    headers: &HeaderMap,
    bounds: &Bounds,
) -> Result<Stream, (ErrorCode, String)> {
    let bad = |message: String| (ErrorCode::BadRequest, message);
    let mut last_event_id: Option<Cow<'_, str>> = None;
    let mut channels: Vec<ChannelName> = Vec::new();
    let (mut envelope, mut token) = (false, None);
    for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        match &*name {
            "channel" => {
                let channel = bounds
                    .channel(&value)
                    .map_err(|error| bad(format!("channel {value:?}: {error}")))?;
                channels.push(channel);
            }
            "envelope" => {
                envelope = match &*value {
                    "true" => true,
                    "false" => false,
                    _ => return Err(bad("envelope is true or false".into())),
                };
            }
            // For whom cannot set a header: a page that goes to another gateway.
            "last_event_id" => last_event_id = Some(value),
            "token" => token = Some(value.into_owned()),
            // Others may be there for the sake of caches or proxies.
            _ => {}
        }
    }
    channels.sort_unstable();
    channels.dedup();
    if channels.is_empty() || channels.len() > sse::CHANNELS_MAX {
        return Err(bad(format!(
            "name 1 to {} channels: ?channel=a&channel=b",
            sse::CHANNELS_MAX
        )));
    }
    // The header is what an `EventSource` sends by itself, so it is newer.
    if let Some(header) = headers.get("last-event-id") {
        last_event_id = Some(String::from_utf8_lossy(header.as_bytes()));
    }
    let cursor = match last_event_id.as_deref() {
        None | Some("") => vec![None; channels.len()],
        Some(id) => sse::cursor(id, channels.len()).map_err(bad)?,
    };
    Ok(Stream {
        channels,
        cursor,
        envelope,
        token,
        valid_for: None,
    })
}

/// Tells a browser what a page of this origin may ask.
pub(crate) fn preflight(
    app: Option<&App>,
    origin: Option<&str>,
    method: &'static str,
    headers_allowed: &'static str,
) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    if let Some(app) = app {
        allow_origin(response.headers_mut(), app, origin);
        let headers = response.headers_mut();
        headers.insert(
            ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static(method),
        );
        headers.insert(
            ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static(headers_allowed),
        );
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    }
    response
}

/// Lets a page of an allowed origin read the answer.
pub(crate) fn allow_origin(headers: &mut HeaderMap, app: &App, origin: Option<&str>) {
    let any = app.allowed_origins.iter().any(|allowed| allowed == "*");
    if any {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        return;
    }
    headers.insert(VARY, HeaderValue::from_static("origin"));
    if app.allows_origin(origin)
        && let Some(Ok(value)) = origin.map(HeaderValue::from_str)
    {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, value);
    }
}

pub(crate) fn origin(headers: &HeaderMap) -> Option<&str> {
    text(headers, ORIGIN)
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    // A value that is not text is an origin that nobody allows.
    headers
        .get(name)
        .map(|value| value.to_str().unwrap_or("invalid"))
}

fn parameter(uri: &Uri, name: &str) -> Option<String> {
    form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_is_missing_is_a_bad_one_and_not_none() {
        let of = |value: &'static str| {
            let value = HeaderValue::from_static(value);
            let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(of("Bearer a.b.c").as_deref(), Some("a.b.c"));
        assert_eq!(of("bearer  a").as_deref(), Some("a"));
        assert_eq!(of("Bearer").as_deref(), Some(""));
        assert_eq!(of("Basic abc"), None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

    fn parameters(query: &str) -> Result<(Vec<String>, bool), ErrorCode> {
        let uri: Uri = format!("/app/k/sse?{query}").parse().unwrap();
        stream_parameters(&uri, &HeaderMap::new(), &Bounds::default())
            .map(|stream| {
                let channels = stream.channels.iter().map(ToString::to_string);
                (channels.collect(), stream.envelope)
            })
            .map_err(|(code, _)| code)
    }

    #[test]
    fn the_cursor_comes_by_header_or_by_query() {
        let cursor = |query: &str, header: Option<&str>| {
            let uri: Uri = format!("/app/k/sse?channel=a&{query}").parse().unwrap();
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert("last-event-id", header.parse().unwrap());
            }
            let stream =
                stream_parameters(&uri, &headers, &Bounds::default()).map_err(|(code, _)| code)?;
            Ok(stream.cursor[0].map(|position| position.offset.0))
        };
        let (one, two) = ("0000000000000001-1", "0000000000000001-2");
        assert_eq!(cursor("", None), Ok(None));
        assert_eq!(cursor("", Some("")), Ok(None));
        assert_eq!(cursor("", Some(one)), Ok(Some(1)));
        let query = format!("last_event_id={one}");
        assert_eq!(cursor(&query, None), Ok(Some(1)));
        assert_eq!(cursor(&query, Some(two)), Ok(Some(2)));
        assert_eq!(cursor("", Some("1,2")), Err(ErrorCode::BadRequest));
    }

    #[test]
    fn streams_name_public_channels_each_once() {
        assert_eq!(
            parameters("channel=b&channel=a&channel=b&x=1"),
            Ok((vec!["a".into(), "b".into()], false))
        );
        assert_eq!(
            parameters("channel=a&envelope=true"),
            Ok((vec!["a".into()], true))
        );
        assert_eq!(parameters(""), Err(ErrorCode::BadRequest));
        assert_eq!(parameters("channel="), Err(ErrorCode::BadRequest));
        assert_eq!(parameters("channel=a%20b"), Err(ErrorCode::BadRequest));
        assert_eq!(
            parameters("channel=a&envelope=1"),
            Err(ErrorCode::BadRequest)
        );
        let many: Vec<String> = (0..65).map(|n| format!("channel=c{n}")).collect();
        assert_eq!(parameters(&many.join("&")), Err(ErrorCode::BadRequest));
    }

    #[test]
    fn only_allowed_origins_are_let_through() {
        let mut app = App::new("a".parse().unwrap(), "k", "s");
        let header = |app: &App, origin| {
            let mut headers = HeaderMap::new();
            allow_origin(&mut headers, app, origin);
            text(&headers, ACCESS_CONTROL_ALLOW_ORIGIN).map(str::to_owned)
        };
        assert_eq!(header(&app, Some("https://x")), Some("*".into()));
        app.allowed_origins = vec!["https://x".into()];
        assert_eq!(header(&app, Some("https://x")), Some("https://x".into()));
        assert_eq!(header(&app, Some("https://y")), None);
        assert_eq!(header(&app, None), None);
    }
}
