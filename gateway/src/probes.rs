//! Shell: what load balancers ask of servers that speak Pusher's protocol, at the
//! address of the clients and answered as there: `/up` (Reverb, Sockudo), `/up/{app}`
//! and `/live` (Sockudo), `/ready` and `/accept-traffic` (Sockudo, Soketi). A gateway
//! that has not begun to serve, or is shutting down, accepts no connection, and so
//! answers none of them. Probes for operators are at the admin address.

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{Method, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, any};

use crate::connect::{unknown_path, wants_upgrade};
use crate::problem::Problem;
use crate::server::Context;

/// What a probe is told.
type Answer = (StatusCode, &'static str);

const OK: Answer = (StatusCode::OK, "OK");

pub(crate) fn routes() -> Router<Context> {
    Router::new()
        .route("/up", probe(|_, _| OK))
        .route("/live", probe(|_, _| OK))
        .route("/ready", probe(|_, _| OK))
        .route("/up/{app}", probe(app))
        .route("/accept-traffic", probe(accepts))
}

fn probe(answer: fn(&Context, &str) -> Answer) -> MethodRouter<Context> {
    any(
        async move |context: State<Context>, app: Option<Path<String>>, request: Request| {
            if wants_upgrade(&request) {
                return unknown_path(context, request).await;
            }
            if ![Method::GET, Method::HEAD].contains(request.method()) {
                return Problem::method_not_allowed("GET, HEAD").into_response();
            }
            let app = app.map_or_else(String::new, |Path(app)| app);
            answer(&context, &app).into_response()
        },
    )
}

/// Whether clients of this app are let in.
fn app(context: &Context, id: &str) -> Answer {
    match context.config.apps.by_id(id) {
        Some(app) if app.enabled => OK,
        Some(_) => (StatusCode::FORBIDDEN, "the app is disabled"),
        None => (StatusCode::NOT_FOUND, "no app has this id"),
    }
}

/// Whether new clients would be let in.
fn accepts(context: &Context, _: &str) -> Answer {
    if context.door.has_room() {
        return OK;
    }
    let full = "this gateway has as many connections as it may have; use another one";
    (StatusCode::SERVICE_UNAVAILABLE, full)
}
