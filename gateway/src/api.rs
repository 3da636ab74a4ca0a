//! The HTTP API of backends: `POST /apps/{id}/events`.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::Method;
use axum::http::request::Parts;
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
    if request.method() != Method::POST {
        return Problem::method_not_allowed("POST").into_response();
    }
    match publish_event(&context, &id, request).await {
        Ok(()) => Json(serde_json::json!({})).into_response(),
        Err(problem) => problem.into_response(),
    }
}

async fn publish_event(context: &Context, id: &str, request: Request) -> Result<(), Problem> {
    let app = context
        .config
        .apps
        .by_id(id)
        .ok_or_else(|| Problem::new(ErrorCode::UnknownApp, "no app has this id"))?;
    let (parts, body) = request.into_parts();
    let body = read_body(body, app.payload_bytes_max * ESCAPED + BODY_OVERHEAD).await?;
    authenticate(context, app, &parts, &body)?;
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

fn authenticate(context: &Context, app: &App, parts: &Parts, body: &[u8]) -> Result<(), Problem> {
    let request = auth::Request {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: parts.uri.query().unwrap_or_default(),
        body,
    };
    auth::verify_request(app, request, UnixTime::now()).map_err(|error| {
        context
            .metrics
            .auth_failures
            .with_label_values(&[error.reason()])
            .inc();
        Problem::new(error.code(), error.to_string())
    })?;
    if !app.enabled {
        return Err(Problem::new(ErrorCode::AppDisabled, "the app is disabled"));
    }
    Ok(())
}

/// Reads a body of at most `bytes_max`.
pub(crate) async fn read_body(body: Body, bytes_max: usize) -> Result<Bytes, Problem> {
    let announced = body.size_hint().lower();
    if announced > DRAINED_MAX {
        return Err(too_large(bytes_max).closing());
    }
    // A little too large: read to its end, so that the next request can follow.
    let limit = bytes_max.max(announced as usize);
    let read = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect());
    let late = || {
        let message = format!(
            "the body did not arrive within {} s",
            BODY_TIMEOUT.as_secs()
        );
        Problem::new(ErrorCode::BadRequest, message).closing()
    };
    match read.await.map_err(|_| late())? {
        Ok(body) => {
            let bytes = body.to_bytes();
            if bytes.len() > bytes_max {
                Err(too_large(bytes_max))
            } else {
                Ok(bytes)
            }
        }
        Err(error) if error.is::<LengthLimitError>() => Err(too_large(bytes_max).closing()),
        Err(error) => Err(Problem::new(
            ErrorCode::BadRequest,
            format!("the body did not arrive: {error}"),
        )
        .closing()),
    }
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
