//! The admin address: health, metrics, administration. Apart from clients, so
//! that a firewall can tell them apart, and behind tokens unless it is a
//! loopback address.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use node::NotDecided;
use proto::id::{NodeId, NodeRef};
use proto::inspection::{Answer, Question};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tower_service::Service;

use crate::telemetry::Exporter;
use tokens::{Scope, Tokens, Verdict};

pub(crate) mod inspect;
pub(crate) mod tokens;

/// How long a client may take to send the head of a request; also how long a
/// connection may be idle between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a request's head at most.
const HEAD_BYTES_MAX: usize = 16 * 1_024;
/// Connections at most; more wait until one ends.
const CONNECTIONS_MAX: usize = 256;
/// How long to wait when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long requests under way may take at shutdown.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(1);

/// Whether clients are served; if not, why.
pub(crate) type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Who knows what is inside: a gateway asks nodes, a node knows by itself.
pub(crate) trait Inspect: Send + Sync {
    fn ask(&self, question: Question) -> BoxFuture<'_, Answer>;
}

/// Who can change what nodes do.
pub(crate) trait Nodes: Send + Sync {
    /// Has a member give away all that it has; the life that is meant.
    fn drain(&self, name: NodeId) -> BoxFuture<'_, Result<NodeRef, NotDecided>>;

    /// Has a member that has nothing be one no more; the life that is meant.
    fn remove(&self, name: NodeId) -> BoxFuture<'_, Result<NodeRef, NotDecided>>;
}

impl Inspect for gateway::Inspector {
    fn ask(&self, question: Question) -> BoxFuture<'_, Answer> {
        Box::pin(self.ask(question))
    }
}

/// What the admin address needs of the rest.
#[derive(Clone)]
pub(crate) struct Admin {
    /// `None`: everyone who reaches the address, which is a loopback one.
    pub(crate) tokens: Option<Arc<Tokens>>,
    pub(crate) exporter: Arc<Exporter>,
    pub(crate) ready: Readiness,
    /// What `/admin/status` says.
    pub(crate) status: serde_json::Value,
    pub(crate) inspector: Arc<dyn Inspect>,
    /// `None`: this process is no node of a cluster.
    pub(crate) nodes: Option<Arc<dyn Nodes>>,
    /// Told when the process is to send its clients away and end. `None`: it has
    /// none that could go elsewhere.
    pub(crate) leave: Option<mpsc::Sender<()>>,
}

impl Admin {
    /// Serves until shutdown.
    #[expect(
        clippy::disallowed_methods,
        reason = "shell: waits when it cannot accept"
    )]
    pub(crate) async fn run(self, listener: TcpListener, mut shutdown: watch::Receiver<bool>) {
        let routes = self.routes();
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => accepted,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                _ = shutdown.wait_for(|stop| *stop) => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, routes.clone(), shutdown.clone()));
                }
                // The server of clients complains about a lack of descriptors.
                Err(error) => {
                    tracing::debug!(%error, "could not accept a connection to the admin address");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        let all = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(SHUTDOWN_PATIENCE, all).await;
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
            .merge(inspect::routes())
            .layer(from_fn_with_state(
                (self.clone(), Scope::ClusterRead),
                guard,
            ));
        let changing = Router::new()
            .route("/admin/drain", post(leave))
            .route("/admin/nodes/{name}/drain", post(drain))
            .route("/admin/nodes/{name}/remove", post(remove))
            .layer(from_fn_with_state(
                (self.clone(), Scope::ClusterAdmin),
                guard,
            ));
        Router::new()
            .route("/livez", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .merge(metrics)
            .merge(admin)
            .merge(changing)
            .with_state(self)
    }
}

/// Serves one connection, to the end of the request under way at shutdown.
async fn serve(stream: TcpStream, routes: Router, mut shutdown: watch::Receiver<bool>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = routes.clone().call(request);
        async { Ok::<_, Infallible>(answer.await.into_response()) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        // What broke the connection is its client's to know.
        _ = connection.as_mut() => return,
        _ = shutdown.wait_for(|stop| *stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

async fn readyz(State(admin): State<Admin>) -> Response {
    match (admin.ready)() {
        Ok(()) => "ready\n".into_response(),
        Err(why) => {
            let body = format!("not ready: {why}\n");
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let headers = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (headers, admin.exporter.text()).into_response()
}

async fn status(State(admin): State<Admin>) -> Response {
    Json(admin.status).into_response()
}

async fn leave(State(admin): State<Admin>) -> Response {
    let Some(leave) = &admin.leave else {
        let error = "this is no gateway: POST /admin/nodes/NAME/drain has a node give away its shards, and SIGTERM ends it";
        return problem(StatusCode::NOT_FOUND, error.to_owned());
    };
    // Full, or closed: it has been told before.
    let _ = leave.try_send(());
    (StatusCode::ACCEPTED, Json(json!({ "draining": true }))).into_response()
}

async fn drain(State(admin): State<Admin>, Path(name): Path<String>) -> Response {
    match named(&admin, &name) {
        Ok((nodes, name)) => decided(nodes.drain(name).await, StatusCode::ACCEPTED),
        Err(problem) => *problem,
    }
}

async fn remove(State(admin): State<Admin>, Path(name): Path<String>) -> Response {
    match named(&admin, &name) {
        Ok((nodes, name)) => decided(nodes.remove(name).await, StatusCode::OK),
        Err(problem) => *problem,
    }
}

/// Who can change nodes, and the one that is to be changed.
fn named<'a>(admin: &'a Admin, name: &str) -> Result<(&'a dyn Nodes, NodeId), Box<Response>> {
    let not_found = |error| Box::new(problem(StatusCode::NOT_FOUND, error));
    let Some(nodes) = &admin.nodes else {
        let error = "this is no node of a cluster: ask the admin address of one".to_owned();
        return Err(not_found(error));
    };
    let name = name.parse::<NodeId>();
    let name = name.map_err(|error| not_found(format!("name: {error}")))?;
    Ok((&**nodes, name))
}

fn decided(decided: Result<NodeRef, NotDecided>, done: StatusCode) -> Response {
    let error = match decided {
        Ok(NodeRef { id, incarnation }) => {
            let body = json!({ "node": id.as_str(), "incarnation": incarnation.0 });
            return (done, Json(body)).into_response();
        }
        Err(error) => error,
    };
    let status = match &error {
        NotDecided::NoMember(_) => StatusCode::NOT_FOUND,
        NotDecided::Refused(_) => StatusCode::CONFLICT,
        NotDecided::Undecided(..) => StatusCode::SERVICE_UNAVAILABLE,
    };
    problem(status, error.to_string())
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
        // read along, and no page at all may change anything.
        None if scope == Scope::ClusterAdmin && request.headers().contains_key(ORIGIN) => {
            Verdict::Unauthorized
        }
        None if names_an_address(request.headers()) => Verdict::Allowed,
        None => Verdict::Unauthorized,
    };
    let refuse = |status: StatusCode, error: String| {
        ([(WWW_AUTHENTICATE, "Bearer")], problem(status, error)).into_response()
    };
    match verdict {
        Verdict::Allowed => next.run(request).await,
        Verdict::Unauthorized => refuse(
            StatusCode::UNAUTHORIZED,
            "send `Authorization: Bearer TOKEN`; `dunlin token admin` makes one".into(),
        ),
        Verdict::Forbidden => refuse(
            StatusCode::FORBIDDEN,
            format!("the token does not have the scope {}", scope.as_str()),
        ),
    }
}

/// An error as everywhere on this address.
fn problem(status: StatusCode, error: String) -> Response {
    let body = json!({ "error": error, "status": status.as_u16() });
    (status, Json(body)).into_response()
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

#[cfg(test)]
mod tests;
