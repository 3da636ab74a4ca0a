//! The HTTP API of backends: what is published, and what is asked about channels.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::any;
use futures_util::future::join_all;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as _;
use proto::channel::{ChannelKey, ChannelName};
use proto::error::ErrorCode;
use proto::message::Digest;
use proto::time::UnixTime;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::connect;
use crate::core::admission::Refusal;
use crate::core::limits::Limiter;
use crate::core::uplink::{Accepted, Order};
use crate::core::{auth, idempotency, token};
use crate::mesh;
use crate::problem::Problem;
use crate::protocol::pusher::event::{self, Event, Item};
use crate::server::Context;

mod asking;
mod listing;
mod users;

/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes of a body beyond its data: names, channels, and JSON's escapes.
const BODY_OVERHEAD: usize = 64 * 1_024;
/// Bytes of a body that is too large, and read all the same.
const DRAINED_MAX: u64 = 32 * 1_024 * 1_024;
/// JSON may write one byte as six.
const ESCAPED: usize = 6;

/// In how many processes a publication is, in the answer.
const COPIES: &str = "dunlin-copies";

pub(crate) fn routes() -> Router<Context> {
    Router::new()
        .route("/apps/{id}/events", any(events))
        .route("/apps/{id}/batch_events", any(batch_events))
        .merge(asking::routes())
        .merge(listing::routes())
        .merge(users::routes())
}

async fn events(context: State<Context>, id: Path<String>, request: Request) -> Response {
    take(context, id, request, Kind::Event).await
}

async fn batch_events(context: State<Context>, id: Path<String>, request: Request) -> Response {
    take(context, id, request, Kind::Batch).await
}

/// What the body of a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Event,
    Batch,
}

async fn take(
    State(context): State<Context>,
    Path(id): Path<String>,
    request: Request,
    kind: Kind,
) -> Response {
    let app = context.config.apps.by_id(&id);
    let (head, body) = request.into_parts();
    let origin = connect::origin(&head.headers);
    if head.method == Method::OPTIONS {
        let headers = "authorization, content-type, idempotency-key, x-idempotency-key";
        return connect::preflight(app.map(AsRef::as_ref), origin, "POST", headers);
    }
    let unread = !body.is_end_stream();
    let mut response = if head.method == Method::POST {
        answer(&context, app, &head, body, kind)
            .await
            .unwrap_or_else(|problem| refused(problem, unread))
    } else {
        refused(Problem::method_not_allowed("POST, OPTIONS"), unread)
    };
    // A page that has a token reads the answer.
    if let Some(app) = app {
        connect::allow_origin(response.headers_mut(), app, origin);
    }
    response
}

/// The answer to a request to publish; or why it is refused before its body is read.
async fn answer(
    context: &Context,
    app: Option<&Arc<App>>,
    head: &Parts,
    body: Body,
    kind: Kind,
) -> Result<Response, Problem> {
    let app = app.ok_or_else(unknown_app)?;
    let by = match connect::bearer(&head.headers) {
        Some(token) => By::Token(allowed(context, app, token)?),
        None => By::Signature(signed(context, app, head, None)?),
    };
    may_ask(context, app)?;
    let key = idempotency_key(&head.headers)
        .map_err(|error| Problem::new(ErrorCode::BadRequest, error.to_string()))?;
    let asked = Asked { kind, by, key };
    Ok(match publish_all(context, app, asked, body).await {
        Ok((copies, told)) => {
            ([(COPIES, HeaderValue::from(u16::from(copies)))], Json(told)).into_response()
        }
        Err(problem) => problem.into_response(),
    })
}

/// What a request to publish says besides its body.
struct Asked<'a> {
    kind: Kind,
    by: By,
    key: Option<idempotency::Key<'a>>,
}

/// What lets somebody publish.
enum By {
    /// A request that was signed with the app's secret.
    Signature(auth::Signed),
    /// A token that somebody with the secret has made.
    Token(token::Claims),
}

impl By {
    /// Whether these events may be published.
    fn check(&self, items: &[Item]) -> Result<(), Problem> {
        let Self::Token(claims) = self else {
            return Ok(());
        };
        for Item { event, .. } in items {
            let foreign = event
                .channels
                .iter()
                .find(|channel| !claims.may_publish(channel));
            if let Some(channel) = foreign {
                let message = format!("{channel}: the token does not let publish into it");
                return Err(Problem::new(ErrorCode::ForbiddenChannel, message));
            }
            if !event.info.is_empty() {
                let message = "info is for who signs requests, and not for who has a token";
                return Err(Problem::new(ErrorCode::BadRequest, message));
            }
        }
        Ok(())
    }
}

/// A refusal that did not wait for the body.
fn refused(problem: Problem, unread: bool) -> Response {
    let problem = if unread { problem.closing() } else { problem };
    problem.into_response()
}

/// Who asks is settled before anything is read for them. The signature is of the path,
/// or of its alias.
fn authenticate<'a>(
    context: &'a Context,
    id: &str,
    head: &Parts,
    alias: Option<&str>,
) -> Result<(&'a Arc<App>, auth::Signed), Problem> {
    let app = context.config.apps.by_id(id).ok_or_else(unknown_app)?;
    let signed = signed(context, app, head, alias).map_err(|mut problem| {
        if connect::bearer(&head.headers).is_some() {
            problem.message.push_str("; a token only publishes");
        }
        problem
    })?;
    may_ask(context, app)?;
    Ok((app, signed))
}

fn unknown_app() -> Problem {
    Problem::new(ErrorCode::UnknownApp, "no app has this id")
}

/// Checks the signature of a request, which is of its path or of an alias of that.
fn signed(
    context: &Context,
    app: &App,
    head: &Parts,
    alias: Option<&str>,
) -> Result<auth::Signed, Problem> {
    let now = UnixTime::now();
    let verify = |path: &str| {
        let request = auth::Request {
            method: head.method.as_str(),
            path,
            query: head.uri.query().unwrap_or_default(),
        };
        auth::verify_request(app, request, now)
    };
    let verified = verify(head.uri.path()).or_else(|error| match alias {
        Some(alias) => verify(alias).map_err(|_| error),
        None => Err(error),
    });
    verified.map_err(|error| failed(context, &error))
}

/// Checks the token of a request: what it allows.
fn allowed(context: &Context, app: &App, token: &str) -> Result<token::Claims, Problem> {
    token::verify(app, token, UnixTime::now()).map_err(|error| {
        let failures = &context.metrics.auth_failures;
        failures.with_label_values(&[error.reason()]).inc();
        Problem::new(error.code(), error.to_string())
    })
}

/// Whether the app may ask now.
fn may_ask(context: &Context, app: &Arc<App>) -> Result<(), Problem> {
    if !app.enabled {
        return Err(Problem::new(ErrorCode::AppDisabled, "the app is disabled"));
    }
    let message = "the app asks the API more often than it may";
    let within = context.door.request(app);
    within.map_err(|refusal| too_often(context, refusal, message))
}

fn idempotency_key(
    headers: &HeaderMap,
) -> Result<Option<idempotency::Key<'_>>, idempotency::Error> {
    let values = idempotency::HEADERS
        .into_iter()
        .flat_map(|name| headers.get_all(name));
    idempotency::Key::of(values.map(HeaderValue::as_bytes))
}

fn failed(context: &Context, error: &auth::Error) -> Problem {
    context
        .metrics
        .auth_failures
        .with_label_values(&[error.reason()])
        .inc();
    Problem::new(error.code(), error.to_string())
}

fn too_often(context: &Context, refusal: Refusal, message: &str) -> Problem {
    context.metrics.count_limited(refusal.limiter, 1);
    Problem::new(ErrorCode::RateLimited, message).after(refusal.wait)
}

/// Publishes what a body says; in how many processes each publication is at least, and
/// what is told of channels.
async fn publish_all(
    context: &Context,
    app: &App,
    asked: Asked<'_>,
    body: Body,
) -> Result<(u8, Value), Problem> {
    let count_large = |problem: &Problem| {
        if problem.code == ErrorCode::TooLarge {
            context.metrics.count_limited(Limiter::MessageSize, 1);
        }
    };
    let events_max = match asked.kind {
        Kind::Event => 1,
        Kind::Batch => app.bounds.batch_events_max,
    };
    let bytes_max = app.payload_bytes_max * ESCAPED * events_max + BODY_OVERHEAD;
    let body = read_body(body, bytes_max).await;
    let body = body.inspect_err(count_large)?;
    if let By::Signature(signed) = &asked.by {
        let checked = signed.check_body(&body);
        checked.map_err(|error| failed(context, &error))?;
    }
    let items = match asked.kind {
        Kind::Event => event::parse(&body, app).map(|event| vec![Item { event, key: None }]),
        Kind::Batch => event::parse_batch(&body, app),
    };
    let items = items
        .map_err(|invalid| Problem::new(invalid.code, invalid.message))
        .inspect_err(count_large)?;
    asked.by.check(&items)?;
    let channels = items.iter().map(|item| item.event.channels.len()).sum();
    let message = "the app publishes more often than it may; nothing was published";
    let within = context.door.publish(app, channels);
    within.map_err(|refusal| too_often(context, refusal, message))?;
    let digest = idempotency::body_digest(&body);
    let published = match asked.kind {
        Kind::Event => {
            let repeatable = asked.key.map(|key| (key, digest));
            publish(&context.mesh, app, &items[0].event, repeatable).await
        }
        Kind::Batch => publish_batch(&context.mesh, app, &items, asked.key, digest).await,
    };
    let result = if published.is_ok() { "ok" } else { "failed" };
    context
        .metrics
        .publishes
        .with_label_values(&["http", result])
        .inc();
    let copies = published?;
    Ok((copies, told(context, app, asked.kind, &items).await))
}

/// What was wanted to be told of the channels. What an owner does not tell is left out:
/// an error would say that nothing was published.
async fn told(context: &Context, app: &App, kind: Kind, items: &[Item]) -> Value {
    if items.iter().all(|item| item.event.info.is_empty()) {
        return json!({});
    }
    let mut of_items = Vec::new();
    for Item { event, .. } in items {
        let mut channels = Map::new();
        for channel in &event.channels {
            let attributes = asking::attributes(context, app, channel, event.info).await;
            let attributes = attributes.unwrap_or_default();
            channels.insert(channel.to_string(), Value::Object(attributes));
        }
        of_items.push(channels);
    }
    match kind {
        Kind::Event => json!({"channels": of_items.pop()}),
        Kind::Batch => {
            let of_item = |channels: Map<String, Value>| channels.into_iter().next();
            let of_items = of_items.into_iter().filter_map(of_item);
            let batch: Vec<Value> = of_items.map(|(_, attributes)| attributes).collect();
            json!({ "batch": batch })
        }
    }
}

/// Publishes the events of a batch, in order where they share a channel. Each is a
/// publish of its own, with a key of its own or its share of the request's.
async fn publish_batch(
    mesh: &mesh::Handle,
    app: &App,
    items: &[Item],
    key: Option<idempotency::Key<'_>>,
    digest: Digest,
) -> Result<u8, Problem> {
    let accepted_at = UnixTime::now();
    let mut orders = Vec::new();
    let mut channels = Vec::new();
    for (at, Item { event, key: own }) in items.iter().enumerate() {
        let own = own
            .as_ref()
            .map(|own| idempotency::Key::parse(own.as_bytes()));
        let own = own.transpose().map_err(|error| {
            let message = format!("batch[{at}]: {error}");
            Problem::new(ErrorCode::BadRequest, message)
        })?;
        for channel in &event.channels {
            let channel_key = ChannelKey {
                app: app.id.clone(),
                channel: channel.clone(),
            };
            let idempotency = match (own, key) {
                (Some(own), _) => {
                    let body = format!("{}\n{}", event.name, event.data);
                    let digest = idempotency::body_digest(body.as_bytes());
                    Some(own.in_channel(&channel_key, digest))
                }
                (None, Some(key)) => Some(key.of_event(at, &channel_key, digest)),
                (None, None) => None,
            };
            channels.push(channel.clone());
            orders.push(mesh.publish(Order {
                idempotency,
                by: None,
                key: channel_key,
                event: Arc::clone(&event.name),
                data: Arc::clone(&event.data),
                exclude: event.exclude,
                accepted_at,
            }));
        }
    }
    let results = join_all(orders).await;
    outcome(&channels, &results, key.is_some()).map_err(|problem| {
        // Several events may have the same channel.
        let failed = results.iter().enumerate().filter(|(_, it)| it.is_err());
        let failed: Vec<usize> = failed.map(|(at, _)| at).collect();
        problem.with("failed_events", failed)
    })
}

/// Reads a body of at most `bytes_max`.
pub(crate) async fn read_body(body: Body, bytes_max: usize) -> Result<Bytes, Problem> {
    let late = |_| {
        let message = format!(
            "the body did not arrive within {} s",
            BODY_TIMEOUT.as_secs()
        );
        Problem::new(ErrorCode::BadRequest, message).closing()
    };
    let announced = body.size_hint().lower();
    if announced > DRAINED_MAX {
        return Err(too_large(bytes_max).closing());
    }
    if announced > bytes_max as u64 {
        // Not kept, but read to its end, so that the next request can follow.
        tokio::time::timeout(BODY_TIMEOUT, drain(body))
            .await
            .map_err(late)?;
        return Err(too_large(bytes_max));
    }
    let read = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, bytes_max).collect());
    match read.await.map_err(late)? {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large(bytes_max).closing()),
        Err(error) => Err(Problem::new(
            ErrorCode::BadRequest,
            format!("the body did not arrive: {error}"),
        )
        .closing()),
    }
}

async fn drain(mut body: Body) {
    while let Some(Ok(_)) = body.frame().await {}
}

fn too_large(bytes_max: usize) -> Problem {
    Problem::new(
        ErrorCode::TooLarge,
        format!("the body has more than {bytes_max} bytes"),
    )
}

/// Publishes an event into each of its channels; in how many processes it is in
/// each of them at least. They are not one transaction:
/// what was taken and what was not is told channel by channel. With a key and
/// the digest of its request, each channel takes it once.
pub(crate) async fn publish(
    mesh: &mesh::Handle,
    app: &App,
    event: &Event,
    repeatable: Option<(idempotency::Key<'_>, Digest)>,
) -> Result<u8, Problem> {
    let accepted_at = UnixTime::now();
    let orders = event.channels.iter().map(|channel| {
        let key = ChannelKey {
            app: app.id.clone(),
            channel: channel.clone(),
        };
        mesh.publish(Order {
            idempotency: repeatable.map(|(name, body)| name.in_channel(&key, body)),
            by: None,
            key,
            event: Arc::clone(&event.name),
            data: Arc::clone(&event.data),
            exclude: event.exclude,
            accepted_at,
        })
    });
    let results = join_all(orders).await;
    outcome(&event.channels, &results, repeatable.is_some())
}

/// What a publisher is told: in how many processes the event is, or what failed. The failure that says least about what was
/// published stands for all: not even a retry helps against a mismatch, and
/// where one outcome is unknown, "nothing was published" would be wrong.
fn outcome(
    channels: &[ChannelName],
    results: &[Result<Accepted, ErrorCode>],
    has_key: bool,
) -> Result<u8, Problem> {
    let mut copies = u8::MAX;
    let (mut accepted, mut failed) = (Vec::new(), Vec::new());
    let mut code: Option<ErrorCode> = None;
    for (channel, result) in channels.iter().zip(results) {
        match result {
            Ok(taken) => {
                accepted.push(channel.as_str());
                copies = copies.min(taken.copies);
            }
            Err(failure) => {
                failed.push(channel.as_str());
                // Of equals the first.
                if code.is_none_or(|code| weight(code) < weight(*failure)) {
                    code = Some(*failure);
                }
            }
        }
    }
    let Some(code) = code else {
        return Ok(copies);
    };
    let what = if channels.len() == 1 {
        "the channel did not take the event"
    } else {
        "not all channels took the event"
    };
    let mut message = format!("{what}. {}", code.meaning().trim());
    if has_key && code.http_status() == 503 {
        message.push_str(
            " The same request with the same Idempotency-Key goes only into the channels that lack it.",
        );
    }
    Err(Problem::new(code, message)
        .with("accepted", accepted)
        .with("failed", failed))
}

fn weight(code: ErrorCode) -> u8 {
    match code {
        ErrorCode::IdempotencyMismatch => 3,
        ErrorCode::UnknownOutcome => 2,
        ErrorCode::Unprotected => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::position::{Epoch, Offset, Position};

    fn told(results: &[Result<u8, ErrorCode>], has_key: bool) -> Result<u8, Problem> {
        let channels: Vec<ChannelName> = (0..results.len())
            .map(|number| format!("c{number}").parse().unwrap())
            .collect();
        let position = Position {
            epoch: Epoch(1),
            offset: Offset(1),
        };
        let results: Vec<_> = results
            .iter()
            .map(|result| result.map(|copies| Accepted { position, copies }))
            .collect();
        outcome(&channels, &results, has_key)
    }

    #[test]
    fn a_partial_failure_names_the_channels_and_what_is_least_certain() {
        use ErrorCode::{
            IdempotencyMismatch, Overloaded, Unavailable, UnknownOutcome, Unprotected,
        };
        assert_eq!(told(&[Ok(2), Ok(1), Ok(2)], true), Ok(1));
        for (results, expected, accepted, failed) in [
            (
                vec![Ok(2), Err(Overloaded), Err(Unavailable)],
                Overloaded,
                vec!["c0"],
                vec!["c1", "c2"],
            ),
            (
                vec![Err(Overloaded), Err(UnknownOutcome), Ok(2)],
                UnknownOutcome,
                vec!["c2"],
                vec!["c0", "c1"],
            ),
            (
                vec![Err(Overloaded), Err(Unprotected)],
                Unprotected,
                vec![],
                vec!["c0", "c1"],
            ),
            (
                vec![Err(UnknownOutcome), Err(IdempotencyMismatch)],
                IdempotencyMismatch,
                vec![],
                vec!["c0", "c1"],
            ),
        ] {
            let problem = told(&results, true).unwrap_err();
            assert_eq!(problem.code, expected, "{results:?}");
            assert_eq!(problem.details["accepted"], json!(accepted));
            assert_eq!(problem.details["failed"], json!(failed));
        }
    }

    #[test]
    fn only_a_key_that_may_be_used_again_is_recommended() {
        let says = |code, has_key| {
            let problem = told(&[Err(code)], has_key).unwrap_err();
            problem.message.contains("same Idempotency-Key")
        };
        assert!(says(ErrorCode::UnknownOutcome, true));
        assert!(says(ErrorCode::Overloaded, true));
        assert!(!says(ErrorCode::UnknownOutcome, false));
        assert!(!says(ErrorCode::IdempotencyMismatch, true));
    }
}
