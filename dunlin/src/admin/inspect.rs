//! `/admin/inspect/…`: what is inside a server and its cluster, as JSON. The
//! shapes here are what scripts rely on and `dunlin inspect` reads: keys may be
//! added, but neither removed nor changed. They are not those of the bus, which
//! may change with the protocol between processes.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use proto::channel::ChannelKey;
use proto::id::{GatewayRef, NodeRef};
use proto::inspection::{
    Answer, ChannelInfo, EventInfo, GatewayInfo, NodeInfo, Question, ReplicaInfo, ShardInfo,
    StandbyInfo,
};
use proto::shard::{Fence, MapUpdate, ShardId};
use proto::time::UnixTime;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Admin, problem};

/// How long an answer may take: less than the tools wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// `GET /admin/inspect/nodes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Nodes {
    pub(crate) nodes: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) name: String,
    /// `null` until it has registered.
    pub(crate) incarnation: Option<u64>,
    pub(crate) address: String,
    pub(crate) zone: String,
    pub(crate) witness: bool,
    pub(crate) role: String,
    pub(crate) gossip: String,
    pub(crate) shards: u32,
    pub(crate) version: String,
}

/// `GET /admin/inspect/gateways`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Gateways {
    pub(crate) gateways: Vec<Gateway>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Gateway {
    pub(crate) name: String,
    pub(crate) incarnation: u64,
    pub(crate) heard_ms: u64,
    pub(crate) map_version: u64,
    pub(crate) connections: u32,
}

/// `GET /admin/inspect/shards`. Without the seed, with which somebody could
/// choose channels that fall into one shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Shards {
    /// The cluster's uuid in hex.
    pub(crate) cluster: String,
    pub(crate) version: u64,
    pub(crate) shards: Vec<Shard>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Shard {
    pub(crate) shard: u16,
    /// `null`: nobody.
    pub(crate) owner: Option<Ref>,
    pub(crate) fence: u64,
    /// The names of the nodes that have all of it besides its owner. `null`: the
    /// node that was asked does not know it under this fence.
    pub(crate) standbys: Option<Vec<String>>,
    /// The node to which it moves.
    pub(crate) moves_to: Option<String>,
}

/// `GET /admin/inspect/shard?number=N`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct OneShard {
    pub(crate) shard: u16,
    pub(crate) owner: Ref,
    pub(crate) fence: u64,
    /// `serves`, `waits` or `begins`.
    pub(crate) state: String,
    /// `null`: for nothing.
    pub(crate) waits_for: Option<String>,
    pub(crate) waits_ms: u64,
    pub(crate) held: u32,
    pub(crate) channels: u32,
    pub(crate) interest: u32,
    /// `null`: the owner is alone, and needs none.
    pub(crate) node_lease_ms: Option<u64>,
    pub(crate) standbys: Vec<OneStandby>,
    /// The node to which it moves.
    pub(crate) moves_to: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct OneStandby {
    pub(crate) node: Ref,
    /// `filling`, `counting`, `in_sync`, `retiring` or `leaving`.
    pub(crate) state: String,
    pub(crate) lag_records: u64,
    /// `null`: it has confirmed nothing yet.
    pub(crate) lag_ms: Option<u64>,
    pub(crate) lease_ms: u64,
}

/// `GET /admin/inspect/events`, the last first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Events {
    pub(crate) events: Vec<Event>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// When the node that was asked saw it: RFC 3339, in UTC.
    pub(crate) at: String,
    pub(crate) version: u64,
    pub(crate) kind: String,
    pub(crate) from: Option<Ref>,
    pub(crate) to: Option<Ref>,
    pub(crate) shards: u32,
}

/// One life of a process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Ref {
    pub(crate) id: String,
    pub(crate) incarnation: u64,
}

/// `GET /admin/inspect/channel`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Channel {
    pub(crate) app: String,
    pub(crate) channel: String,
    pub(crate) shard: u16,
    pub(crate) owner: Ref,
    pub(crate) fence: u64,
    /// `null`: nobody follows it and nothing is kept.
    pub(crate) state: Option<ChannelState>,
}

/// The state of a channel at its owner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ChannelState {
    /// In hex.
    pub(crate) epoch: String,
    pub(crate) offset: u64,
    pub(crate) earliest: u64,
    pub(crate) kept: u32,
    /// `standby` or `owner`, as the namespace says.
    pub(crate) ack: String,
    pub(crate) followers: Vec<Follower>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Follower {
    pub(crate) gateway: Ref,
    pub(crate) subscribers: u32,
}

pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route(
            "/admin/inspect/nodes",
            get(async |State(admin): State<Admin>| ask(&admin, Question::Nodes).await),
        )
        .route(
            "/admin/inspect/gateways",
            get(async |State(admin): State<Admin>| ask(&admin, Question::Gateways).await),
        )
        .route(
            "/admin/inspect/shards",
            get(async |State(admin): State<Admin>| shards(&admin).await),
        )
        .route(
            "/admin/inspect/events",
            get(async |State(admin): State<Admin>| ask(&admin, Question::Events).await),
        )
        .route("/admin/inspect/channel", get(channel))
        .route("/admin/inspect/shard", get(shard))
}

#[derive(Debug, Deserialize)]
struct Which {
    app: Option<String>,
    name: Option<String>,
}

async fn channel(State(admin): State<Admin>, Query(which): Query<Which>) -> Response {
    let (Some(app), Some(name)) = (which.app, which.name) else {
        let error = "expected /admin/inspect/channel?app=ID&name=NAME".to_owned();
        return problem(StatusCode::BAD_REQUEST, error);
    };
    // No such thing can be there.
    let not_found = |error: String| problem(StatusCode::NOT_FOUND, error);
    let app = match app.parse() {
        Ok(app) => app,
        Err(error) => return not_found(format!("app: {error}")),
    };
    match name.parse() {
        Ok(channel) => {
            let key = ChannelKey { app, channel };
            ask(&admin, Question::Channel { key }).await
        }
        Err(error) => not_found(format!("name: {error}")),
    }
}

#[derive(Debug, Deserialize)]
struct WhichShard {
    number: Option<String>,
}

/// What its owner knows, and where it is to go: two questions, for the second is
/// not the owner's to decide.
async fn shard(State(admin): State<Admin>, Query(which): Query<WhichShard>) -> Response {
    let number = which.number.map(|number| number.parse::<u16>());
    let Some(Ok(number)) = number else {
        let error = "expected /admin/inspect/shard?number=N".to_owned();
        return problem(StatusCode::BAD_REQUEST, error);
    };
    let shard = ShardId(number);
    let info = match answer(&admin, Question::Shard { shard }).await {
        Answer::Shard(info) => info,
        other => return respond(other),
    };
    let moves_to = match answer(&admin, Question::Standbys).await {
        Answer::Standbys(standbys) => standbys
            .into_iter()
            .find(|known| (known.shard, known.fence) == (shard, info.fence))
            .and_then(|known| Some(known.moves_to?.to_string())),
        _ => None,
    };
    Json(OneShard {
        moves_to,
        ..OneShard::from(info)
    })
    .into_response()
}

/// The map, and who stands by: two questions, for gateways ask nodes.
async fn shards(admin: &Admin) -> Response {
    let map = match answer(admin, Question::Shards).await {
        Answer::Shards(map) => map,
        other => return respond(other),
    };
    match answer(admin, Question::Standbys).await {
        Answer::Standbys(standbys) => Json(Shards::of(map, standbys)).into_response(),
        // It speaks of the map alone.
        _ => Json(Shards::of(map, Vec::new())).into_response(),
    }
}

async fn ask(admin: &Admin, question: Question) -> Response {
    respond(answer(admin, question).await)
}

async fn answer(admin: &Admin, question: Question) -> Answer {
    let answer = tokio::time::timeout(PATIENCE, admin.inspector.ask(question)).await;
    answer.unwrap_or_else(|_| {
        Answer::Unavailable(format!("no node answered within {} s", PATIENCE.as_secs()))
    })
}

fn respond(answer: Answer) -> Response {
    let unavailable = |why: String| problem(StatusCode::SERVICE_UNAVAILABLE, why);
    match answer {
        Answer::Unavailable(why) => unavailable(why),
        Answer::NotOwner { owner } => unavailable(format!(
            "the shard is on its way, to node {} as far as is known; ask again",
            owner.id
        )),
        Answer::Nodes(nodes) => Json(Nodes::from(nodes)).into_response(),
        Answer::Gateways(gateways) => Json(Gateways::from(gateways)).into_response(),
        Answer::Shards(map) => Json(Shards::of(map, Vec::new())).into_response(),
        Answer::Standbys(_) => unavailable("that was not asked".into()),
        Answer::Events(events) => Json(Events::from(events)).into_response(),
        Answer::Channel(info) => Json(Channel::from(info)).into_response(),
        Answer::Shard(info) => Json(OneShard::from(info)).into_response(),
    }
}

impl From<NodeRef> for Ref {
    fn from(node: NodeRef) -> Self {
        Self {
            id: node.id.to_string(),
            incarnation: node.incarnation.0,
        }
    }
}

impl From<GatewayRef> for Ref {
    fn from(gateway: GatewayRef) -> Self {
        Self {
            id: gateway.id.to_string(),
            incarnation: gateway.incarnation.0,
        }
    }
}

impl From<Vec<NodeInfo>> for Nodes {
    fn from(nodes: Vec<NodeInfo>) -> Self {
        let node = |info: NodeInfo| Node {
            name: info.name.to_string(),
            incarnation: info.incarnation.map(|incarnation| incarnation.0),
            address: info.address,
            zone: info.zone,
            witness: info.witness,
            role: info.role,
            gossip: info.gossip,
            shards: info.shards,
            version: info.version,
        };
        Self {
            nodes: nodes.into_iter().map(node).collect(),
        }
    }
}

impl From<Vec<GatewayInfo>> for Gateways {
    fn from(gateways: Vec<GatewayInfo>) -> Self {
        let gateway = |info: GatewayInfo| Gateway {
            name: info.name.to_string(),
            incarnation: info.incarnation.0,
            heard_ms: info.heard_ms,
            map_version: info.map_version,
            connections: info.connections,
        };
        Self {
            gateways: gateways.into_iter().map(gateway).collect(),
        }
    }
}

impl From<Vec<EventInfo>> for Events {
    fn from(events: Vec<EventInfo>) -> Self {
        let event = |info: EventInfo| Event {
            at: rfc3339(info.at),
            version: info.version,
            kind: info.kind.as_str().to_owned(),
            from: info.from.map(Ref::from),
            to: info.to.map(Ref::from),
            shards: info.shards,
        };
        Self {
            events: events.into_iter().map(event).collect(),
        }
    }
}

/// With milliseconds; empty for times that have no year of four digits.
fn rfc3339(at: UnixTime) -> String {
    let nanos = i128::from(at.0 / 1_000) * 1_000_000;
    let at = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok();
    at.and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_default()
}

impl Shards {
    fn of(map: MapUpdate, standbys: Vec<StandbyInfo>) -> Self {
        let known: BTreeMap<(ShardId, Fence), StandbyInfo> = standbys
            .into_iter()
            .map(|info| ((info.shard, info.fence), info))
            .collect();
        let shards = map.rows.iter().map(|(shard, row)| {
            let known = known.get(&(*shard, row.fence));
            Shard {
                shard: shard.0,
                owner: map.owner(row).cloned().map(Ref::from),
                fence: row.fence.0,
                standbys: known
                    .map(|known| known.in_sync.iter().map(ToString::to_string).collect()),
                moves_to: known.and_then(|known| Some(known.moves_to.as_ref()?.to_string())),
            }
        });
        Self {
            cluster: map.cluster.to_string(),
            version: map.version,
            shards: shards.collect(),
        }
    }
}

impl From<ShardInfo> for OneShard {
    fn from(info: ShardInfo) -> Self {
        let standby = |standby: ReplicaInfo| OneStandby {
            node: standby.node.into(),
            state: standby.state.as_str().to_owned(),
            lag_records: standby.lag_records,
            lag_ms: standby.lag_ms,
            lease_ms: standby.lease_ms,
        };
        Self {
            shard: info.shard.0,
            owner: info.owner.into(),
            fence: info.fence.0,
            state: info.state.as_str().to_owned(),
            waits_for: info.waits_for,
            waits_ms: info.waits_ms,
            held: info.held,
            channels: info.channels,
            interest: info.interest,
            node_lease_ms: info.node_lease_ms,
            standbys: info.standbys.into_iter().map(standby).collect(),
            moves_to: None,
        }
    }
}

impl From<ChannelInfo> for Channel {
    fn from(info: ChannelInfo) -> Self {
        let state = info.state.map(|state| ChannelState {
            epoch: state.position.epoch.to_string(),
            offset: state.position.offset.0,
            earliest: state.earliest.0,
            kept: state.kept,
            ack: if state.is_alone { "owner" } else { "standby" }.into(),
            followers: state
                .followers
                .into_iter()
                .map(|(gateway, subscribers)| Follower {
                    gateway: gateway.into(),
                    subscribers,
                })
                .collect(),
        });
        Self {
            app: info.key.app.to_string(),
            channel: info.key.channel.to_string(),
            shard: info.shard.0,
            owner: info.owner.into(),
            fence: info.fence.0,
            state,
        }
    }
}
