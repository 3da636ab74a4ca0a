//! The page that `dunlin dev` serves: it shows the thing working. It exists
//! only there, and `POST /dev/publish` with it.
//!
//! The page holds no secret: its requests are signed by nothing and taken only
//! from itself. A page of another origin is told from it by the `Origin` that
//! browsers send along; one whose name was made to point here (DNS rebinding)
//! by the `Host`, which has to be an address or `localhost`.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, ORIGIN};
use axum::http::{HeaderMap, Method, Uri};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::any;
use proto::error::ErrorCode;
use serde::Serialize;

use crate::problem::Problem;
use crate::protocol::pusher::event;
use crate::server::Context;
use crate::{api, connect};

const PAGE: &str = include_str!("index.html");
/// The page loads nothing from elsewhere, and nobody may frame it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
    connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'";
/// Bytes of a request at most.
const BODY_BYTES_MAX: usize = 256 * 1_024;

pub(crate) fn routes() -> Router<Context> {
    Router::new()
        .route("/", any(page))
        .route("/dev/app", any(app))
        .route("/dev/publish", any(publish))
}

async fn page(context: State<Context>, request: Request) -> Response {
    if connect::wants_upgrade(&request) {
        return connect::unknown_path(context, request).await;
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Problem::method_not_allowed("GET").into_response();
    }
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (CACHE_CONTROL, "no-store"),
    ];
    (headers, PAGE).into_response()
}

/// The key of the app that the page is a client of; keys are public.
async fn app(State(context): State<Context>, request: Request) -> Response {
    #[derive(Serialize)]
    struct App<'a> {
        key: &'a str,
    }
    if request.method() != Method::GET {
        return Problem::method_not_allowed("GET").into_response();
    }
    match context.config.apps.iter().next() {
        Some(app) => Json(App { key: &app.key }).into_response(),
        None => Problem::new(ErrorCode::UnknownApp, "there is no app").into_response(),
    }
}

async fn publish(State(context): State<Context>, request: Request) -> Response {
    if request.method() != Method::POST {
        return Problem::method_not_allowed("POST").into_response();
    }
    match try_publish(&context, request).await {
        Ok(()) => Json(serde_json::json!({})).into_response(),
        Err(problem) => problem.into_response(),
    }
}

async fn try_publish(context: &Context, request: Request) -> Result<(), Problem> {
    if !is_own_page(request.headers()) {
        let message = "only the page that this server serves may publish here; use the API";
        return Err(Problem::new(ErrorCode::ForbiddenOrigin, message).closing());
    }
    let app = context
        .config
        .apps
        .iter()
        .next()
        .ok_or_else(|| Problem::new(ErrorCode::UnknownApp, "there is no app"))?;
    let body = api::read_body(request.into_body(), BODY_BYTES_MAX).await?;
    let event =
        event::parse(&body, app).map_err(|invalid| Problem::new(invalid.code, invalid.message))?;
    let published = api::publish(&context.mesh, app, &event, None).await;
    let result = if published.is_ok() { "ok" } else { "failed" };
    context
        .metrics
        .publishes
        .with_label_values(&["playground", result])
        .inc();
    published.map(drop)
}

/// Whether a request comes from the page itself.
fn is_own_page(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let (Some(host), Some(origin)) = (text(HOST), text(ORIGIN)) else {
        return false;
    };
    let Ok(host_uri) = format!("http://{host}").parse::<Uri>() else {
        return false;
    };
    let name = host_uri
        .host()
        .unwrap_or_default()
        .trim_start_matches('[')
        .trim_end_matches(']');
    let rebindable = name != "localhost" && name.parse::<std::net::IpAddr>().is_err();
    let from = ["http://", "https://"].map(|scheme| origin.strip_prefix(scheme));
    !rebindable
        && from
            .into_iter()
            .flatten()
            .any(|from| from.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().unwrap());
        }
        is_own_page(&headers)
    }

    #[test]
    fn only_the_page_itself_may_publish() {
        assert!(own("127.0.0.1:6001", Some("http://127.0.0.1:6001")));
        assert!(own("localhost:6001", Some("http://localhost:6001")));
        assert!(own("localhost:6001", Some("https://localhost:6001")));
        assert!(own("[::1]:6001", Some("http://[::1]:6001")));
        assert!(!own("127.0.0.1:6001", None));
        assert!(!own("127.0.0.1:6001", Some("http://127.0.0.1:6002")));
        assert!(!own("127.0.0.1:6001", Some("https://evil.example")));
        assert!(!own("127.0.0.1:6001", Some("ftp://127.0.0.1:6001")));
        assert!(!own("127.0.0.1:6001", Some("null")));
        // A name that was made to point here.
        assert!(!own("evil.example:6001", Some("http://evil.example:6001")));
    }
}
