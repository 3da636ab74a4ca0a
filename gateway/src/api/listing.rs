//! Which channels of an app are occupied: each owner is asked about its shards.

use std::iter;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::response::Response;
use axum::routing::any;
use futures_util::stream::{self, Stream, StreamExt};
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
const TOGETHER: usize = 64;
/// Channels of a page at most.
const LIMIT_MAX: usize = 10_000;
/// How long all answers are waited for.
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
#[derive(Debug)]
struct Occupied {
    shard: ShardId,
    name: ChannelName,
    users: u32,
    subscribers: u32,
}

/// The occupied channels of a shard, and whether its owner knows all of them.
type Answer = Result<(Vec<Occupied>, bool), ErrorCode>;

/// What the owners have said.
#[derive(Debug)]
struct Found {
    channels: Vec<Occupied>,
    /// Whether there are more behind the last one.
    more: bool,
    complete: bool,
}

async fn list(context: &Context, id: &str, head: &Parts) -> Result<Value, Problem> {
    let wanted = wanted(context, id, head)?;
    let as_of = UnixTime::now().0 / 1_000;
    let deadline = Instant::now() + PATIENCE;
    let first = wanted.after.as_ref().map_or(0, |(shard, _)| shard.0);
    let shards = first..context.mesh.shards();
    let asked = stream::iter(shards.map(|shard| of_shard(context, &wanted, ShardId(shard))));
    let found = match wanted.limit {
        None => all(asked.buffer_unordered(TOGETHER), deadline).await,
        Some(limit) => page(asked.buffered(TOGETHER), limit, deadline).await?,
    };
    let mut told = Map::new();
    if found.more
        && let Some(last) = found.channels.last()
    {
        let cursor = format!("{}:{}", last.shard.0, last.name);
        told.insert("cursor".into(), json!(cursor));
    }
    let channel = |occupied: Occupied| {
        let mut attributes = Map::new();
        if wanted.info.user_count {
            attributes.insert("user_count".into(), json!(occupied.users));
        }
        if wanted.info.subscription_count {
            let count = json!(occupied.subscribers);
            attributes.insert("subscription_count".into(), count);
        }
        (occupied.name.to_string(), Value::Object(attributes))
    };
    let channels: Map<String, Value> = found.channels.into_iter().map(channel).collect();
    told.insert("channels".into(), Value::Object(channels));
    told.insert("complete".into(), json!(found.complete));
    told.insert("as_of".into(), json!(as_of));
    Ok(Value::Object(told))
}

/// All channels. What has not been told in time is left out, and said to be.
async fn all(answers: impl Stream<Item = Answer>, deadline: Instant) -> Found {
    let mut answers = pin!(answers);
    let mut found = Found {
        channels: Vec::new(),
        more: false,
        complete: true,
    };
    loop {
        match timeout_at(deadline, answers.next()).await {
            Ok(Some(Ok((channels, knows_all)))) => {
                found.complete &= knows_all;
                found.channels.extend(channels);
            }
            Ok(None) => return found,
            Ok(Some(Err(_))) => found.complete = false,
            Err(_) => {
                found.complete = false;
                return found;
            }
        }
    }
}

/// The next channels, by shard and name. A page ends before a shard whose owner does not
/// answer, so that whoever goes on by its cursor passes over none.
async fn page(
    answers: impl Stream<Item = Answer>,
    limit: usize,
    deadline: Instant,
) -> Result<Found, Problem> {
    let mut answers = pin!(answers);
    let mut found = Found {
        channels: Vec::new(),
        more: false,
        complete: true,
    };
    while found.channels.len() <= limit {
        match timeout_at(deadline, answers.next()).await {
            Ok(Some(Ok((channels, knows_all)))) => {
                found.complete &= knows_all;
                found.channels.extend(channels);
            }
            Ok(None) => break,
            Ok(Some(Err(_))) | Err(_) if found.channels.is_empty() => {
                let message = "the owner of a shard did not answer; ask for this page again";
                return Err(Problem::new(ErrorCode::Unavailable, message));
            }
            Ok(Some(Err(_))) | Err(_) => {
                found.more = true;
                return Ok(found);
            }
        }
    }
    found.more = found.channels.len() > limit;
    found.channels.truncate(limit);
    Ok(found)
}

/// Asks the owner of a shard. One that has more than are wanted need not say the rest.
async fn of_shard(context: &Context, wanted: &Wanted, shard: ShardId) -> Answer {
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
        let counts = page.subscribers.into_iter().chain(iter::repeat(0));
        channels.extend(
            occupied
                .zip(counts)
                .map(|((name, users), subscribers)| Occupied {
                    shard,
                    name,
                    users,
                    subscribers,
                }),
        );
        let is_enough = wanted.limit.is_some_and(|limit| channels.len() > limit);
        if !page.more || after.is_none() || is_enough {
            return Ok((channels, page.complete));
        }
    }
}

fn wanted(context: &Context, id: &str, head: &Parts) -> Result<Wanted, Problem> {
    let bad = |message: String| Problem::new(ErrorCode::BadRequest, message);
    let app = asks(context, id, head)?;
    let prefix = parameter(head, "filter_by_prefix").unwrap_or_default();
    let info = Info::parse(&parameter(head, "info").unwrap_or_default()).map_err(bad)?;
    info.check_app(app).map_err(bad)?;
    let app = app.id.clone();
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
            .filter(|(shard, _)| shard.0 < context.mesh.shards())
            .ok_or_else(|| bad("cursor is none that this server gave".into()))
    });
    let after = cursor.transpose()?;
    if after.is_some() && limit.is_none() {
        return Err(bad("a cursor goes with the limit of its pages".into()));
    }
    Ok(Wanted {
        app,
        prefix,
        info,
        after,
        limit,
    })
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures_util::future::{BoxFuture, FutureExt};

    use super::*;

    fn answer(shard: u16, names: &[&str]) -> BoxFuture<'static, Answer> {
        let occupied = |name: &&str| Occupied {
            shard: ShardId(shard),
            name: name.parse().unwrap(),
            users: 0,
            subscribers: 0,
        };
        ready(Ok((names.iter().map(occupied).collect(), true))).boxed()
    }

    fn no_answer() -> BoxFuture<'static, Answer> {
        pending().boxed()
    }

    fn refusal() -> BoxFuture<'static, Answer> {
        ready(Err(ErrorCode::Unavailable)).boxed()
    }

    fn told(found: &Found) -> (Vec<&str>, bool, bool) {
        let names = found.channels.iter().map(|it| it.name.as_str());
        (names.collect(), found.more, found.complete)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[tokio::test]
    async fn a_list_has_all_that_was_told_whoever_does_not_answer() {
        for silent in [no_answer, refusal] {
            let asked = [answer(0, &["a"]), silent(), answer(2, &["b", "c"])];
            let found = all(stream::iter(asked).buffer_unordered(2), soon()).await;
            assert_eq!(told(&found), (vec!["a", "b", "c"], false, false));
        }
        let asked = [answer(0, &["a"]), answer(1, &[])];
        let found = all(stream::iter(asked).buffer_unordered(2), soon()).await;
        assert_eq!(told(&found), (vec!["a"], false, true));
    }

    #[tokio::test]
    async fn a_page_ends_before_whoever_does_not_answer_and_says_that_there_is_more() {
        for silent in [no_answer, refusal] {
            let asked = [answer(0, &["a"]), silent(), answer(2, &["b"])];
            let found = page(stream::iter(asked).buffered(2), 5, soon()).await;
            assert_eq!(told(&found.unwrap()), (vec!["a"], true, true));
            let asked = [silent(), answer(1, &["b"])];
            let nothing = page(stream::iter(asked).buffered(2), 5, soon()).await;
            assert_eq!(nothing.unwrap_err().code, ErrorCode::Unavailable);
        }
    }

    #[tokio::test]
    async fn a_page_has_as_many_as_were_asked_for() {
        for (limit, expected) in [
            (2, (vec!["a", "b"], true, true)),
            (3, (vec!["a", "b", "c"], false, true)),
        ] {
            let asked = [answer(0, &["a"]), answer(1, &["b", "c"])];
            let found = page(stream::iter(asked).buffered(2), limit, soon()).await;
            assert_eq!(told(&found.unwrap()), expected);
        }
    }
}
