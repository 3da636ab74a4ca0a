//! What backends ask about channels. Each question goes to the owner of the channel,
//! which is the only one that knows.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::Method;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::any;
use hyper::body::Body as _;
use proto::channel::{CACHE_AGE, ChannelKey, ChannelKind, ChannelName};
use proto::error::ErrorCode;
use proto::message::{Attendance, Cached, Told, What};
use serde_json::{Map, Value, json};

use super::{authenticate, refused};
use crate::app::App;
use crate::problem::Problem;
use crate::protocol::pusher::info::Info;
use crate::server::Context;

pub(super) fn routes() -> Router<Context> {
    Router::new()
        .route("/apps/{id}/channels/{name}", any(channel))
        .route("/apps/{id}/channels/{name}/users", any(users))
}

async fn channel(
    State(context): State<Context>,
    Path((id, name)): Path<(String, String)>,
    request: Request,
) -> Response {
    let (head, body) = request.into_parts();
    let told = tell_channel(&context, &id, &name, &head).await;
    answer(told, &body)
}

async fn tell_channel(
    context: &Context,
    id: &str,
    name: &str,
    head: &Parts,
) -> Result<Value, Problem> {
    let app = asks(context, id, head)?;
    let channel = channel_name(name)?;
    let bad = |message| Problem::new(ErrorCode::BadRequest, message);
    let info = Info::parse(&parameter(head, "info").unwrap_or_default()).map_err(bad)?;
    info.check_app(app)
        .and_then(|()| info.check(&channel))
        .map_err(bad)?;
    let attendance = attendance(context, app, &channel).await?;
    let mut told = info_of(attendance, info);
    add_cached(context, app, &channel, info, &mut told).await?;
    let is_occupied = attendance.is_followed || attendance.users > 0;
    told.insert("occupied".into(), json!(is_occupied));
    told.insert("complete".into(), json!(attendance.complete));
    Ok(Value::Object(told))
}

/// What is wanted of a channel, as its owner says.
pub(super) async fn attributes(
    context: &Context,
    app: &App,
    channel: &ChannelName,
    info: Info,
) -> Result<Map<String, Value>, Problem> {
    if info.is_empty() {
        return Ok(Map::new());
    }
    let mut told = info_of(attendance(context, app, channel).await?, info);
    add_cached(context, app, channel, info, &mut told).await?;
    Ok(told)
}

/// What a cache channel keeps: its data, and for how many seconds more.
async fn add_cached(
    context: &Context,
    app: &App,
    channel: &ChannelName,
    info: Info,
    told: &mut Map<String, Value>,
) -> Result<(), Problem> {
    if !info.cache {
        return Ok(());
    }
    let key = key(app, channel.clone());
    let cached = match context.mesh.query(None, What::Cached { key }).await {
        Ok(Told::Cached { cached, .. }) => cached,
        Ok(_) => return Err(unavailable(ErrorCode::Unavailable)),
        Err(code) => return Err(unavailable(code)),
    };
    if let Some(Cached {
        age_ms,
        publication,
    }) = cached
    {
        let ttl = CACHE_AGE.saturating_sub(Duration::from_millis(age_ms));
        let cache = json!({"data": &*publication.data, "ttl": ttl.as_secs()});
        told.insert("cache".into(), cache);
    }
    Ok(())
}

fn info_of(attendance: Attendance, info: Info) -> Map<String, Value> {
    let mut told = Map::new();
    if info.user_count {
        told.insert("user_count".into(), json!(attendance.users));
    }
    if info.subscription_count {
        let count = json!(attendance.subscribers);
        told.insert("subscription_count".into(), count);
    }
    told
}

async fn attendance(
    context: &Context,
    app: &App,
    channel: &ChannelName,
) -> Result<Attendance, Problem> {
    let key = key(app, channel.clone());
    match context.mesh.query(None, What::Channel { key }).await {
        Ok(Told::Channel(attendance)) => Ok(attendance),
        Ok(_) => Err(unavailable(ErrorCode::Unavailable)),
        Err(code) => Err(unavailable(code)),
    }
}

async fn users(
    State(context): State<Context>,
    Path((id, name)): Path<(String, String)>,
    request: Request,
) -> Response {
    let (head, body) = request.into_parts();
    let told = tell_users(&context, &id, &name, &head).await;
    answer(told, &body)
}

async fn tell_users(
    context: &Context,
    id: &str,
    name: &str,
    head: &Parts,
) -> Result<Value, Problem> {
    let app = asks(context, id, head)?;
    let channel = channel_name(name)?;
    if channel.kind() != ChannelKind::Presence {
        let message = format!("users are of presence channels, and {channel} is none");
        return Err(Problem::new(ErrorCode::BadRequest, message));
    }
    let key = key(app, channel);
    let mut users = Vec::new();
    let mut after = None;
    let complete = loop {
        let what = What::Roster {
            key: key.clone(),
            after: after.take(),
        };
        let page = match context.mesh.query(None, what).await {
            Ok(Told::Roster(page)) => page,
            Ok(_) => return Err(unavailable(ErrorCode::Unavailable)),
            Err(code) => return Err(unavailable(code)),
        };
        after = page.users.last().map(|user| user.id.clone());
        users.extend(page.users.iter().map(|user| json!({"id": &*user.id})));
        if !page.more || after.is_none() {
            break page.complete;
        }
    };
    Ok(json!({"users": users, "complete": complete}))
}

/// The app that asks, by a request that may only read.
pub(super) fn asks<'a>(context: &'a Context, id: &str, head: &Parts) -> Result<&'a App, Problem> {
    if head.method != Method::GET {
        return Err(Problem::method_not_allowed("GET"));
    }
    let (app, _) = authenticate(context, id, head, None)?;
    Ok(app)
}

pub(super) fn answer(told: Result<Value, Problem>, body: &Body) -> Response {
    match told {
        Ok(told) => Json(told).into_response(),
        Err(problem) => refused(problem, !body.is_end_stream()),
    }
}

fn channel_name(name: &str) -> Result<ChannelName, Problem> {
    name.parse().map_err(|error| {
        let message = format!("channel {name:?}: {error}");
        Problem::new(ErrorCode::BadRequest, message)
    })
}

fn key(app: &App, channel: ChannelName) -> ChannelKey {
    ChannelKey {
        app: app.id.clone(),
        channel,
    }
}

fn unavailable(code: ErrorCode) -> Problem {
    let message = "the owner of the channel did not answer";
    Problem::new(code, message)
}

/// A parameter of the query, decoded.
pub(super) fn parameter(head: &Parts, name: &str) -> Option<String> {
    let query = head.uri.query()?;
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find_map(|(key, value)| (key == name).then(|| value.into_owned()))
}
