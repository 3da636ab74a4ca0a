//! The HTTP API of backends: `POST /apps/{id}/events`.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::Method;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::any;
use futures_util::future::join_all;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as _;
use proto::channel::ChannelKey;
use proto::error::ErrorCode;
use proto::time::UnixTime;

use crate::app::App;
use crate::core::auth;
use crate::core::uplink::Order;
use crate::mesh;
use crate::problem::Problem;
use crate::protocol::pusher::event::{self, Event};
use crate::server::Context;

/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes of a body beyond its data: names, channels, and JSON's escapes.
const BODY_OVERHEAD: usize = 64 * 1_024;
/// Bytes of a body that is too large, and read all the same.
const DRAINED_MAX: u64 = 4 * 1_024 * 1_024;
/// JSON may write one byte as six.
const ESCAPED: usize = 6;

pub(crate) fn routes() -> Router<Context> {
    Router::new().route("/apps/{id}/events", any(events))
}

async fn events(
    State(context): State<Context>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let unread = !request.body().is_end_stream();
    if request.method() != Method::POST {
        return refused(Problem::method_not_allowed("POST"), unread);
    }
    let (app, signed) = match authenticate(&context, &id, &request) {
        Ok(authenticated) => authenticated,
        Err(problem) => return refused(problem, unread),
    };
    match publish_event(&context, app, &signed, request.into_body()).await {
        Ok(()) => Json(serde_json::json!({})).into_response(),
        Err(problem) => problem.into_response(),
    }
}

/// A refusal that did not wait for the body.
fn refused(problem: Problem, unread: bool) -> Response {
    let problem = if unread { problem.closing() } else { problem };
    problem.into_response()
}

/// Who asks is settled before anything is read for them.
fn authenticate<'a>(
    context: &'a Context,
    id: &str,
    request: &Request,
) -> Result<(&'a Arc<App>, auth::Signed), Problem> {
    let apps = &context.config.apps;
    let app = apps
        .by_id(id)
        .ok_or_else(|| Problem::new(ErrorCode::UnknownApp, "no app has this id"))?;
    let signature = auth::Request {
        method: request.method().as_str(),
        path: request.uri().path(),
        query: request.uri().query().unwrap_or_default(),
    };
    let signed = auth::verify_request(app, signature, UnixTime::now())
        .map_err(|error| failed(context, &error))?;
    if !app.enabled {
        return Err(Problem::new(ErrorCode::AppDisabled, "the app is disabled"));
    }
    Ok((app, signed))
}

fn failed(context: &Context, error: &auth::Error) -> Problem {
    context
        .metrics
        .auth_failures
        .with_label_values(&[error.reason()])
        .inc();
    Problem::new(error.code(), error.to_string())
}

async fn publish_event(
    context: &Context,
    app: &App,
    signed: &auth::Signed,
    body: Body,
) -> Result<(), Problem> {
    let body = read_body(body, app.payload_bytes_max * ESCAPED + BODY_OVERHEAD).await?;
    signed
        .check_body(&body)
        .map_err(|error| failed(context, &error))?;
    let event = event::parse(&body, app.payload_bytes_max)
        .map_err(|invalid| Problem::new(invalid.code, invalid.message))?;
    let published = publish(&context.mesh, app, event).await;
    let result = if published.is_ok() { "ok" } else { "failed" };
    context
        .metrics
        .publishes
        .with_label_values(&["http", result])
        .inc();
    published
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

/// Publishes an event into each of its channels. They are not one transaction:
/// what was taken and what was not is told channel by channel.
pub(crate) async fn publish(mesh: &mesh::Handle, app: &App, event: Event) -> Result<(), Problem> {
    let accepted_at = UnixTime::now();
    let orders = event.channels.iter().map(|channel| {
        mesh.publish(Order {
            key: ChannelKey {
                app: app.id.clone(),
                channel: channel.clone(),
            },
            event: Arc::clone(&event.name),
            data: Arc::clone(&event.data),
            exclude: event.exclude,
            accepted_at,
        })
    });
    let results = join_all(orders).await;
    let (mut accepted, mut failed) = (Vec::new(), Vec::new());
    let mut first_failure = None;
    for (channel, result) in event.channels.iter().zip(results) {
        match result {
            Ok(_) => accepted.push(channel.as_str()),
            Err(code) => {
                failed.push(channel.as_str());
                first_failure.get_or_insert(code);
            }
        }
    }
    match first_failure {
        None => Ok(()),
        Some(code) => Err(Problem::new(code, reason(code))
            .with("accepted", accepted)
            .with("failed", failed)),
    }
}

fn reason(code: ErrorCode) -> String {
    format!("not all channels took the event: {}", code.meaning().trim())
}
