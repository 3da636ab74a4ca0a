//! Which channels of an app are occupied: each owner is asked about its shards.

use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::response::Response;
use axum::routing::any;
use futures_util::future::join_all;
use proto::channel::{ChannelKind, ChannelName};
use proto::error::ErrorCode;
use proto::id::AppId;
use proto::message::{Told, What};
use proto::shard::ShardId;
use proto::time::UnixTime;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use super::asking::{answer, asks, parameter};
use crate::problem::Problem;
use crate::protocol::pusher::info::Info;
use crate::server::Context;

/// Shards that are asked about at once.
const TOGETHER: u16 = 64;
/// Channels of a page at most.
const LIMIT_MAX: usize = 10_000;
/// How long all answers are waited for; what has not come by then is left out, and said
/// to be.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn routes() -> Router<Context> {
    Router::new().route("/apps/{id}/channels", any(channels))
}

async fn channels(
    State(context): State<Context>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let (head, body) = request.into_parts();
    let told = list(&context, &id, &head).await;
    answer(told, &body)
}

/// What is asked for.
struct Wanted {
    app: AppId,
    prefix: String,
    info: Info,
    /// How many channels at most; `None`: all.
    limit: Option<usize>,
    /// Only what is behind this one, by shard and name.
    after: Option<(ShardId, ChannelName)>,
}

/// A channel that is occupied, and how many users are present.
struct Occupied {
    shard: ShardId,
    name: ChannelName,
    users: u32,
}

async fn list(context: &Context, id: &str, head: &Parts) -> Result<Value, Problem> {
    let wanted = wanted(context, id, head)?;
    let as_of = UnixTime::now().0 / 1_000;
    let deadline = Instant::now() + PATIENCE;
    let shards = context.mesh.shards();
    let most = wanted.limit.unwrap_or(usize::MAX);
    let mut found: Vec<Occupied> = Vec::new();
    let mut complete = true;
    let mut next = wanted.after.as_ref().map_or(0, |(shard, _)| shard.0);
    while next < shards && found.len() <= most {
        let end = next.saturating_add(TOGETHER).min(shards);
        let asked = (next..end).map(|shard| of_shard(context, &wanted, ShardId(shard)));
        let Ok(answers) = timeout_at(deadline, join_all(asked)).await else {
            complete = false;
            break;
        };
        for answer in answers {
            match answer {
                Ok((channels, knows_all)) => {
                    complete &= knows_all;
                    found.extend(channels);
                }
                Err(_) => complete = false,
            }
        }
        next = end;
    }
    let more = found.len() > most;
    found.truncate(most);
    let mut told = Map::new();
    if more && let Some(last) = found.last() {
        let cursor = format!("{}:{}", last.shard.0, last.name);
        told.insert("cursor".into(), json!(cursor));
    }
    let channel = |occupied: Occupied| {
        let mut attributes = Map::new();
        if wanted.info.user_count {
            attributes.insert("user_count".into(), json!(occupied.users));
        }
        (occupied.name.to_string(), Value::Object(attributes))
    };
    let channels: Map<String, Value> = found.into_iter().map(channel).collect();
    told.insert("channels".into(), Value::Object(channels));
    told.insert("complete".into(), json!(complete));
    told.insert("as_of".into(), json!(as_of));
    Ok(Value::Object(told))
}

/// The occupied channels of a shard, and whether its owner knows all of them. One that
/// has more than are wanted need not say the rest.
async fn of_shard(
    context: &Context,
    wanted: &Wanted,
    shard: ShardId,
) -> Result<(Vec<Occupied>, bool), ErrorCode> {
    let behind = wanted.after.as_ref();
    let behind = behind.filter(|(at, _)| *at == shard);
    let mut after = behind.map(|(_, name)| name.clone());
    let mut channels = Vec::new();
    loop {
        let what = What::Channels {
            app: wanted.app.clone(),
            prefix: wanted.prefix.as_str().into(),
            after: after.take(),
        };
        let Told::Channels(page) = context.mesh.query(Some(shard), what).await? else {
            return Err(ErrorCode::Unavailable);
        };
        after = page.channels.last().map(|(name, _)| name.clone());
        let occupied = page.channels.into_iter();
        channels.extend(occupied.map(|(name, users)| Occupied { shard, name, users }));
        let is_enough = wanted.limit.is_some_and(|limit| channels.len() > limit);
        if !page.more || after.is_none() || is_enough {
            return Ok((channels, page.complete));
        }
    }
}

fn wanted(context: &Context, id: &str, head: &Parts) -> Result<Wanted, Problem> {
    let bad = |message: String| Problem::new(ErrorCode::BadRequest, message);
    let app = asks(context, id, head)?.id.clone();
    let prefix = parameter(head, "filter_by_prefix").unwrap_or_default();
    let info = Info::parse(&parameter(head, "info").unwrap_or_default()).map_err(bad)?;
    if info.cache {
        return Err(bad("info: cache is told of one channel at a time".into()));
    }
    let presence = ChannelKind::Presence.prefix();
    if info.user_count && !prefix.starts_with(presence) {
        let message = format!("info: user_count needs a filter_by_prefix of {presence}");
        return Err(bad(message));
    }
    let limit = parameter(head, "limit").map(|limit| {
        let limit = limit.parse().ok();
        let limit = limit.filter(|limit| (1..=LIMIT_MAX).contains(limit));
        limit.ok_or_else(|| bad(format!("limit is a number from 1 to {LIMIT_MAX}")))
    });
    let limit = limit.transpose()?;
    let cursor = parameter(head, "cursor").map(|cursor| {
        cursor
            .split_once(':')
            .and_then(|(shard, name)| Some((ShardId(shard.parse().ok()?), name.parse().ok()?)))
            .ok_or_else(|| bad("cursor is none that this server gave".into()))
    });
    Ok(Wanted {
        app,
        prefix,
        info,
        after: cursor.transpose()?,
        // Who has a cursor wants pages.
        limit,
    })
}
