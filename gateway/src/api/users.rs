//! What backends do with users that have signed in.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::Method;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::any;
use hyper::body::Body as _;
use proto::channel::{ChannelKey, ChannelName};
use proto::error::ErrorCode;
use proto::publication::TERMINATE;
use proto::time::UnixTime;
use serde_json::json;

use super::{BODY_OVERHEAD, authenticate, failed, read_body, refused};
use crate::core::uplink::Order;
use crate::problem::Problem;
use crate::server::Context;

pub(super) fn routes() -> Router<Context> {
    let path = "/apps/{id}/users/{user}/terminate_connections";
    Router::new().route(path, any(terminate))
}

async fn terminate(
    State(context): State<Context>,
    Path((id, user)): Path<(String, String)>,
    request: Request,
) -> Response {
    let unread = !request.body().is_end_stream();
    if request.method() != Method::POST {
        return refused(Problem::method_not_allowed("POST"), unread);
    }
    let (head, body) = request.into_parts();
    match end_all(&context, &id, &user, &head, body).await {
        Ok(()) => Json(json!({})).into_response(),
        Err(problem) => refused(problem, unread),
    }
}

/// Ends all connections that have signed in as a user by now, at all gateways: the word
/// is an entry of the user's channel, which all of them follow.
async fn end_all(
    context: &Context,
    id: &str,
    user: &str,
    head: &Parts,
    body: axum::body::Body,
) -> Result<(), Problem> {
    let (app, signed) = authenticate(context, id, head)?;
    let body = read_body(body, BODY_OVERHEAD).await?;
    signed
        .check_body(&body)
        .map_err(|error| failed(context, &error))?;
    let channel = ChannelName::of_user(user)
        .map_err(|invalid| Problem::new(ErrorCode::BadRequest, format!("user: {invalid}")))?;
    let app = app.id.clone();
    let order = Order {
        key: ChannelKey { app, channel },
        event: Arc::from(TERMINATE),
        data: Arc::from(""),
        exclude: None,
        accepted_at: UnixTime::now(),
        idempotency: None,
        by: None,
    };
    match context.mesh.publish(order).await {
        Ok(_) => Ok(()),
        Err(code) => {
            let message = "the user's connections may go on; repeat the request";
            Err(Problem::new(code, message))
        }
    }
}
