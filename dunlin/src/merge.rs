//! merge: stand-ins for what colleagues are building. To be deleted, with its
//! uses (`grep -rn merge: dunlin/src`), when their branches are in.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use proto::bus::{BusHandle, MemoryBus};
use proto::message::{Answer, ChannelInfo, GatewayInfo, NodeInfo, Question};
use proto::shard::ShardMap;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admin::Inspect;

/// merge: `proto::bus::NatsOptions`.
#[expect(dead_code, reason = "merge: a stand-in")]
pub(crate) struct NatsOptions {
    pub(crate) servers: String,
    pub(crate) credentials: Option<PathBuf>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) name: String,
}

/// merge: `proto::bus::NatsBus`.
pub(crate) struct NatsBus;

impl NatsBus {
    pub(crate) async fn connect(_: NatsOptions) -> Result<Arc<MemoryBus>, std::io::Error> {
        Ok(Arc::new(MemoryBus::default()))
    }
}

/// merge: `gateway::Gateway`.
pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    pub(crate) ready: watch::Receiver<bool>,
    pub(crate) inspector: Inspector,
    running: JoinHandle<Result<(), gateway::Error>>,
}

/// merge: `gateway::start`, which is to return at once.
pub(crate) async fn start_gateway(
    mut config: gateway::Config,
    bus: BusHandle,
    metrics: Arc<gateway::Metrics>,
    shutdown: watch::Receiver<bool>,
) -> Result<Gateway, gateway::Error> {
    let failed = |error| gateway::Error::Listen {
        address: config.listen,
        error,
    };
    let address = TcpListener::bind(config.listen).and_then(|socket| socket.local_addr());
    let address = address.map_err(failed)?;
    config.listen = address;
    let (set_ready, ready) = watch::channel(false);
    let running = tokio::spawn(async move {
        let gateway = match gateway::start(config, bus, metrics, shutdown).await {
            Err(gateway::Error::Stopped) => return Ok(()),
            started => started?,
        };
        let _ = set_ready.send(true);
        gateway.join().await
    });
    Ok(Gateway {
        address,
        ready,
        inspector: Inspector { map: None },
        running,
    })
}

impl Gateway {
    pub(crate) async fn join(self) -> Result<(), gateway::Error> {
        self.running.await.map_err(gateway::Error::Panicked)?
    }
}

/// merge: `gateway::Inspector`.
#[derive(Clone)]
pub(crate) struct Inspector {
    pub(crate) map: Option<ShardMap>,
}

impl Inspect for Inspector {
    fn ask(&self, question: Question) -> BoxFuture<'_, Answer> {
        let answer = match &self.map {
            Some(map) => answer(map, question),
            None => Answer::Unavailable("no map yet: no node has been heard of".into()),
        };
        Box::pin(std::future::ready(answer))
    }
}

fn answer(map: &ShardMap, question: Question) -> Answer {
    let node = &map.nodes[0];
    match question {
        Question::Nodes => Answer::Nodes(vec![NodeInfo {
            name: node.id.clone(),
            incarnation: Some(node.incarnation),
            address: String::new(),
            zone: String::new(),
            witness: false,
            role: "leader".into(),
            gossip: "alive".into(),
            shards: u32::from(map.sharding.count),
            version: env!("CARGO_PKG_VERSION").into(),
        }]),
        Question::Gateways => Answer::Gateways(vec![GatewayInfo {
            name: node.id.as_str().parse().expect("the same alphabet"),
            incarnation: node.incarnation,
            heard_ms: 0,
            map_version: map.version,
            connections: 0,
        }]),
        Question::Shards => Answer::Shards(map.since(0)),
        Question::Channel { key } => {
            let shard = map.sharding.shard_of(&key);
            Answer::Channel(ChannelInfo {
                key,
                shard,
                owner: node.clone(),
                fence: map.rows[usize::from(shard.0)].fence,
                state: None,
            })
        }
    }
}
