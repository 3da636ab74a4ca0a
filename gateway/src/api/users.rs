//! What backends do with users that have signed in.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
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
use crate::app::App;
use crate::core::auth;
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
    let (app, signed) = match authenticated(&context, &id, &user, &head) {
        Ok(authenticated) => authenticated,
        Err(problem) => return refused(problem, unread),
    };
    match end_all(&context, app, &user, &signed, body).await {
        Ok(()) => Json(json!({})).into_response(),
        Err(problem) => problem.into_response(),
    }
}

/// SDKs sign the path as they were given it, and send it with `%` before what a path may
/// not have: either is right, and names the same user.
fn authenticated<'a>(
    context: &'a Context,
    id: &str,
    user: &str,
    head: &Parts,
) -> Result<(&'a Arc<App>, auth::Signed), Problem> {
    let meant = format!("/apps/{id}/users/{user}/terminate_connections");
    authenticate(context, id, head, Some(&meant))
}

/// Ends all connections that have signed in as a user by now, at all gateways: the word
/// is an entry of the user's channel, which all of them follow.
async fn end_all(
    context: &Context,
    app: &App,
    user: &str,
    signed: &auth::Signed,
    body: Body,
) -> Result<(), Problem> {
    let body = read_body(body, BODY_OVERHEAD).await?;
    signed
        .check_body(&body)
        .map_err(|error| failed(context, &error))?;
    let channel = ChannelName::of_user(user)
        .map_err(|invalid| Problem::new(ErrorCode::BadRequest, invalid.to_string()))?;
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
