//! Shell: what load balancers ask of servers that speak Pusher's protocol, at the
//! address of the clients and answered as there: `/` and `/ready` (Soketi), `/up`
//! (Reverb, Sockudo), `/up/{app}` and `/live` (Sockudo), `/accept-traffic` (both).
//! A gateway that has not begun to serve, or is shutting down, accepts no
//! connection, and so answers none of them. Probes for operators are at the admin
//! address.

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};

use crate::connect::{unknown_path, wants_upgrade};
use crate::problem::Problem;
use crate::server::Context;

/// What a probe is told.
type Answer = (StatusCode, &'static str);

const OK: Answer = (StatusCode::OK, "OK");

pub(crate) fn routes() -> Router<Context> {
    Router::new()
        .route("/up", probe(get(async || OK)))
        .route("/live", probe(get(async || OK)))
        .route("/ready", probe(get(async || OK)))
        .route("/up/{app}", probe(get(app)))
        .route("/accept-traffic", probe(get(accepts)))
}

fn probe(get: MethodRouter<Context>) -> MethodRouter<Context> {
    get.fallback(async || Problem::method_not_allowed("GET"))
}

/// For a gateway that has no page there.
pub(crate) fn at_root() -> Router<Context> {
    Router::new().route("/", probe(get(root)))
}

async fn root(context: State<Context>, request: Request) -> Response {
    if wants_upgrade(&request) {
        return unknown_path(context, request).await;
    }
    OK.into_response()
}

/// Whether clients of this app are let in.
async fn app(State(context): State<Context>, Path(id): Path<String>) -> Answer {
    match context.config.apps.by_id(&id) {
        Some(app) if app.enabled => OK,
        Some(_) => (StatusCode::FORBIDDEN, "the app is disabled"),
        None => (StatusCode::NOT_FOUND, "no app has this id"),
    }
}

/// Whether new clients would be let in.
async fn accepts(State(context): State<Context>) -> Answer {
    let most = context.config.limits.admission.connections_max;
    if context.door.connections() < most {
        return OK;
    }
    let full = "this gateway has as many connections as it may have; use another one";
    (StatusCode::SERVICE_UNAVAILABLE, full)
}
