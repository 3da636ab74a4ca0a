use axum::body::Body;
use http_body_util::BodyExt;
use proto::bus::MemoryBus;
use proto::id::{ClusterUuid, GatewayRef, Incarnation, NodeRef};
use proto::inspection::{
    ChannelInfo, ChannelState, EventInfo, EventKind, GatewayInfo, NodeInfo, ReplicaInfo,
    ReplicaState, ShardInfo, ShardState, StandbyInfo,
};
use proto::position::{Epoch, Offset, Position};
use proto::shard::{Fence, ShardId, ShardMap};
use proto::time::UnixTime;
use serde_json::Value;

use super::*;

/// Answers as a small cluster would; channels whose names say so, otherwise.
struct Cluster;

fn node() -> NodeRef {
    NodeRef {
        id: "n".parse().unwrap(),
        incarnation: Incarnation(4),
    }
}

impl Inspect for Cluster {
    fn ask(&self, question: Question) -> BoxFuture<'_, Answer> {
        Box::pin(async move {
            match question {
                Question::Nodes => Answer::Nodes(vec![NodeInfo {
                    name: "n".parse().unwrap(),
                    incarnation: None,
                    address: "n:7601".into(),
                    zone: "z".into(),
                    witness: false,
                    role: "leader".into(),
                    gossip: "alive".into(),
                    shards: 2,
                    version: "1".into(),
                }]),
                Question::Gateways => Answer::Gateways(vec![GatewayInfo {
                    name: "g".parse().unwrap(),
                    incarnation: Incarnation(5),
                    heard_ms: 6,
                    map_version: 7,
                    connections: 8,
                }]),
                Question::Shards => {
                    let mut map = ShardMap::standalone(ClusterUuid(0xab), 4_711, node());
                    map.sharding.count = 1;
                    map.rows.truncate(1);
                    Answer::Shards(map.since(0))
                }
                Question::Standbys => Answer::Standbys(vec![StandbyInfo {
                    shard: ShardId(0),
                    fence: Fence(1),
                    in_sync: vec!["m".parse().unwrap()],
                    moves_to: Some("m".parse().unwrap()),
                }]),
                Question::Events => Answer::Events(vec![EventInfo {
                    at: UnixTime(1_795_725_063_612_999),
                    version: 7,
                    kind: EventKind::FailedOver,
                    from: Some(node()),
                    to: None,
                    shards: 3,
                }]),
                Question::Shard { shard: ShardId(0) } => Answer::Shard(ShardInfo {
                    shard: ShardId(0),
                    owner: node(),
                    fence: Fence(1),
                    state: ShardState::Waits,
                    waits_for: Some("why".into()),
                    waits_ms: 300,
                    held: 2,
                    channels: 5,
                    interest: 6,
                    node_lease_ms: Some(2_500),
                    standbys: vec![ReplicaInfo {
                        node: node(),
                        state: ReplicaState::InSync,
                        lag_records: 3,
                        lag_ms: None,
                        lease_ms: 260,
                    }],
                }),
                Question::Shard { .. } => Answer::Unavailable("no such shard".into()),
                Question::Channel { key } => match key.channel.as_str() {
                    "away" => Answer::Unavailable("no map yet".into()),
                    "elsewhere" => Answer::NotOwner { owner: node() },
                    name => Answer::Channel(ChannelInfo {
                        state: (name == "news").then(|| ChannelState {
                            position: Position {
                                epoch: Epoch(0xab),
                                offset: Offset(20),
                            },
                            earliest: Offset(11),
                            kept: 10,
                            is_alone: true,
                            followers: vec![(
                                GatewayRef {
                                    id: "g".parse().unwrap(),
                                    incarnation: Incarnation(5),
                                },
                                3,
                            )],
                        }),
                        key,
                        shard: ShardId(9),
                        owner: node(),
                        fence: Fence(11),
                    }),
                },
            }
        })
    }
}

fn admin(ready: Result<(), String>) -> Admin {
    let exporter = Exporter::new(Vec::new(), Arc::new(MemoryBus::default())).unwrap();
    Admin {
        tokens: None,
        exporter: Arc::new(exporter),
        ready: Arc::new(move || ready.clone()),
        status: json!({}),
        inspector: Arc::new(Cluster),
        nodes: Some(Arc::new(Cluster)),
        leave: None,
    }
}

impl Nodes for Cluster {
    fn drain(&self, name: NodeId) -> BoxFuture<'_, Result<NodeRef, NotDecided>> {
        Box::pin(async move {
            match name.as_str() {
                "n" => Ok(node()),
                "late" => Err(NotDecided::Undecided(name, "no leader".into())),
                _ => Err(NotDecided::NoMember(name)),
            }
        })
    }

    fn remove(&self, name: NodeId) -> BoxFuture<'_, Result<NodeRef, NotDecided>> {
        Box::pin(async move {
            match name.as_str() {
                "n" => Ok(node()),
                _ => Err(NotDecided::Refused("it owns something".into())),
            }
        })
    }
}

async fn drain(admin: Admin, name: &str, origin: Option<&str>) -> (u16, String) {
    change(admin, &format!("{name}/drain"), origin).await
}

async fn change(admin: Admin, what: &str, origin: Option<&str>) -> (u16, String) {
    let path = format!("/admin/nodes/{what}");
    let mut request = Request::post(path).header(HOST, "127.0.0.1:9611");
    if let Some(origin) = origin {
        request = request.header(ORIGIN, origin);
    }
    answer(admin, request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn nodes_are_drained_by_name_and_not_by_a_page() {
    let drained = drain(admin(Ok(())), "n", None).await;
    assert_eq!(drained, (202, r#"{"incarnation":4,"node":"n"}"#.into()));
    for (name, expected, why) in [
        ("other", 404, "node other is no member"),
        ("not%20a%20name", 404, "name: "),
        ("late", 503, "no leader; try again"),
    ] {
        let (status, body) = drain(admin(Ok(())), name, None).await;
        assert_eq!(status, expected);
        assert!(body.contains(why), "{body}");
    }
    let page = drain(admin(Ok(())), "n", Some("http://127.0.0.1:9611")).await;
    assert_eq!(page.0, 401);
    let gateway = Admin {
        nodes: None,
        ..admin(Ok(()))
    };
    let (status, body) = drain(gateway, "n", None).await;
    assert_eq!(status, 404);
    assert!(body.contains("no node of a cluster"), "{body}");
    let asked = get(admin(Ok(())), "/admin/nodes/n/drain").await;
    assert_eq!(asked.0, 405);
}

#[tokio::test]
async fn a_gateway_is_told_to_leave_by_whoever_may_and_a_node_is_not() {
    let (leave, mut told) = mpsc::channel(1);
    let gateway = || Admin {
        leave: Some(leave.clone()),
        ..admin(Ok(()))
    };
    let ask = |origin: Option<&str>| {
        let mut request = Request::post("/admin/drain").header(HOST, "127.0.0.1:9601");
        if let Some(origin) = origin {
            request = request.header(ORIGIN, origin);
        }
        request.body(Body::empty()).unwrap()
    };
    let page = answer(gateway(), ask(Some("http://127.0.0.1:9601"))).await;
    assert_eq!(page.0, 401);
    assert!(told.try_recv().is_err(), "it was not told");
    for _ in 0..2 {
        let (status, body) = answer(gateway(), ask(None)).await;
        assert_eq!((status, body.as_str()), (202, r#"{"draining":true}"#));
    }
    assert!(told.try_recv().is_ok());
    let (status, body) = answer(admin(Ok(())), ask(None)).await;
    assert_eq!(status, 404);
    assert!(body.contains("no gateway"), "{body}");
}

#[tokio::test]
async fn nodes_that_have_nothing_are_removed() {
    let removed = change(admin(Ok(())), "n/remove", None).await;
    assert_eq!(removed, (200, r#"{"incarnation":4,"node":"n"}"#.into()));
    let (status, body) = change(admin(Ok(())), "busy/remove", None).await;
    assert_eq!(status, 409);
    assert!(body.contains("it owns something"), "{body}");
    let page = change(admin(Ok(())), "n/remove", Some("http://127.0.0.1:9611"));
    assert_eq!(page.await.0, 401);
}

async fn get(admin: Admin, path: &str) -> (u16, String) {
    let request = Request::get(path).header(HOST, "127.0.0.1:9601");
    answer(admin, request.body(Body::empty()).unwrap()).await
}

async fn answer(admin: Admin, request: Request) -> (u16, String) {
    let answer = admin.routes().call(request);
    let answer = answer.await.unwrap_or_else(|never| match never {});
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn inspect(what: &str) -> (u16, Value) {
    let (status, body) = get(admin(Ok(())), &format!("/admin/inspect/{what}")).await;
    (status, serde_json::from_str(&body).unwrap())
}

#[tokio::test]
async fn to_drain_a_node_takes_the_right_scope() {
    let file = std::env::temp_dir().join(format!("dunlin-drain-tokens-{}", std::process::id()));
    let (reads, changes) = (
        tokens::Token::mint().unwrap(),
        tokens::Token::mint().unwrap(),
    );
    let lines = [
        reads.line(&[Scope::ClusterRead], "reads"),
        changes.line(&[Scope::ClusterAdmin], "changes"),
    ];
    std::fs::write(&file, lines.join("\n")).unwrap();
    let tokens = Arc::new(Tokens::read(&file).unwrap());
    std::fs::remove_file(file).unwrap();
    for (token, expected) in [(None, 401), (Some(&reads), 403), (Some(&changes), 202)] {
        let admin = Admin {
            tokens: Some(Arc::clone(&tokens)),
            ..admin(Ok(()))
        };
        let mut request = Request::post("/admin/nodes/n/drain").header(HOST, "n1.example:9611");
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        let (status, body) = answer(admin, request.body(Body::empty()).unwrap()).await;
        assert_eq!(status, expected, "{body}");
    }
}

#[tokio::test]
async fn readiness_says_why_not() {
    let ready = get(admin(Ok(())), "/readyz").await;
    assert_eq!(ready, (200, "ready\n".into()));
    let away = get(admin(Err("the bus is away".into())), "/readyz").await;
    assert_eq!(away, (503, "not ready: the bus is away\n".into()));
    let lives = get(admin(Err("the bus is away".into())), "/livez").await;
    assert_eq!(lives.0, 200);
}

/// Scripts rely on these.
#[tokio::test]
async fn shapes_of_answers_are_pinned() {
    for (what, expected) in [
        (
            "nodes",
            json!({ "nodes": [{
                "name": "n", "incarnation": null, "address": "n:7601", "zone": "z", "witness": false,
                "role": "leader", "gossip": "alive", "shards": 2, "version": "1",
            }] }),
        ),
        (
            "gateways",
            json!({ "gateways": [{
                "name": "g", "incarnation": 5, "heard_ms": 6, "map_version": 7, "connections": 8,
            }] }),
        ),
        (
            "shards",
            json!({
                "cluster": "000000000000000000000000000000ab", "version": 1,
                "shards": [{
                    "shard": 0, "owner": { "id": "n", "incarnation": 4 }, "fence": 1,
                    "standbys": ["m"], "moves_to": "m",
                }],
            }),
        ),
        (
            "events",
            json!({ "events": [{
                "at": "2026-11-26T20:31:03.612Z", "version": 7, "kind": "failed_over",
                "from": { "id": "n", "incarnation": 4 }, "to": null, "shards": 3,
            }] }),
        ),
        (
            "shard?number=0",
            json!({
                "shard": 0, "owner": { "id": "n", "incarnation": 4 }, "fence": 1, "state": "waits",
                "waits_for": "why", "waits_ms": 300, "held": 2, "channels": 5, "interest": 6,
                "node_lease_ms": 2_500, "moves_to": "m",
                "standbys": [{
                    "node": { "id": "n", "incarnation": 4 }, "state": "in_sync", "lag_records": 3,
                    "lag_ms": null, "lease_ms": 260,
                }],
            }),
        ),
        (
            "channel?app=a&name=news",
            json!({
                "app": "a", "channel": "news", "shard": 9, "owner": { "id": "n", "incarnation": 4 }, "fence": 11,
                "state": {
                    "epoch": "00000000000000ab", "offset": 20, "earliest": 11, "kept": 10, "ack": "owner",
                    "followers": [{ "gateway": { "id": "g", "incarnation": 5 }, "subscribers": 3 }],
                },
            }),
        ),
    ] {
        assert_eq!(inspect(what).await, (200, expected), "{what}");
    }
    assert_eq!(
        inspect("channel?app=a&name=quiet").await.1["state"],
        Value::Null
    );
}

#[tokio::test]
async fn what_cannot_be_told_is_an_error_with_a_reason() {
    for (what, status, word) in [
        ("channel", 400, "name=NAME"),
        ("channel?app=a", 400, "name=NAME"),
        ("shard", 400, "number=N"),
        ("shard?number=70000", 400, "number=N"),
        ("shard?number=9", 503, "no such shard"),
        ("channel?app=a.b&name=news", 404, "app"),
        ("channel?app=a&name=a%20b", 404, "name"),
        ("channel?app=a&name=away", 503, "no map yet"),
        ("channel?app=a&name=elsewhere", 503, "node n"),
    ] {
        let (got, body) = inspect(what).await;
        assert_eq!(got, status, "{what}: {body}");
        let error = body["error"].as_str().unwrap_or_default();
        assert!(error.contains(word), "{what}: {body}");
        assert_eq!(body["status"], status);
    }
}
