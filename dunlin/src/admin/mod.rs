//! The admin address: health, metrics, administration. Apart from clients, so
//! that a firewall can tell them apart, and behind tokens unless it is a
//! loopback address.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::telemetry::Exporter;
use tokens::{Scope, Tokens, Verdict};

pub(crate) mod tokens;

/// What the admin address needs of the rest.
#[derive(Clone)]
pub(crate) struct Admin {
    /// `None`: everyone who reaches the address, which is a loopback one.
    pub(crate) tokens: Option<Arc<Tokens>>,
    pub(crate) exporter: Arc<Exporter>,
    /// Turns true when clients are served, and false when that ends.
    pub(crate) ready: watch::Receiver<bool>,
    pub(crate) status: serde_json::Value,
}

impl Admin {
    /// Serves until shutdown.
    pub(crate) async fn run(
        self,
        listener: TcpListener,
        mut shutdown: watch::Receiver<bool>,
    ) -> std::io::Result<()> {
        let routes = self.routes();
        axum::serve(listener, routes)
            .with_graceful_shutdown(async move {
                let _ = shutdown.wait_for(|stop| *stop).await;
            })
            .await
    }

    fn routes(self) -> Router {
        let metrics = Router::new()
            .route("/metrics", get(metrics))
            .layer(from_fn_with_state(
                (self.clone(), Scope::MetricsRead),
                guard,
            ));
        let admin = Router::new()
            .route("/admin/status", get(status))
            .layer(from_fn_with_state(
                (self.clone(), Scope::ClusterRead),
                guard,
            ));
        Router::new()
            .route("/livez", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .merge(metrics)
            .merge(admin)
            .with_state(self)
    }
}

async fn readyz(State(admin): State<Admin>) -> Response {
    if *admin.ready.borrow() {
        return "ready\n".into_response();
    }
    (
        StatusCode::SERVICE_UNAVAILABLE,
        "not ready: clients are not served\n",
    )
        .into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let headers = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (headers, admin.exporter.text()).into_response()
}

async fn status(State(admin): State<Admin>) -> Response {
    Json(admin.status).into_response()
}

async fn guard(
    State((admin, scope)): State<(Admin, Scope)>,
    request: Request,
    next: Next,
) -> Response {
    let verdict = match &admin.tokens {
        Some(tokens) => {
            let authorization = request.headers().get(AUTHORIZATION);
            tokens.check(authorization.and_then(|value| value.to_str().ok()), scope)
        }
        // Without tokens, a page whose name was made to point here must not
        // read along.
        None if names_an_address(request.headers()) => Verdict::Allowed,
        None => Verdict::Unauthorized,
    };
    let refuse = |status: StatusCode, error: String| {
        let body = json!({ "error": error, "status": status.as_u16() });
        (status, [(WWW_AUTHENTICATE, "Bearer")], Json(body)).into_response()
    };
    match verdict {
        Verdict::Allowed => next.run(request).await,
        Verdict::Unauthorized => refuse(
            StatusCode::UNAUTHORIZED,
            "send `Authorization: Bearer TOKEN`; `dunlin token` makes one".into(),
        ),
        Verdict::Forbidden => refuse(
            StatusCode::FORBIDDEN,
            format!("the token does not have the scope {}", scope.as_str()),
        ),
    }
}

fn names_an_address(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let Some(Ok(uri)) = host.map(|host| format!("http://{host}").parse::<Uri>()) else {
        return false;
    };
    let name = uri
        .host()
        .unwrap_or_default()
        .trim_start_matches('[')
        .trim_end_matches(']');
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok()
}

/// Whether an address may be used for administration without tokens.
pub(crate) fn is_private(address: SocketAddr) -> bool {
    address.ip().is_loopback()
}
