//! `dunlin dev`: a gateway and a node in this one process, on a bus in memory.
//! The same code as in a cluster, with nothing to set up.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gateway::app::Apps;
use proto::bus::{BusHandle, MemoryBus};
use proto::id::{ClusterUuid, GatewayRef, Incarnation, NodeRef};
use proto::message::NodeInfo;
use proto::shard::{SHARDS_DEFAULT, ShardMap};
use proto::time::UnixTime;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::admin::Admin;
use crate::admin::tokens::Tokens;
use crate::cli::ServerOptions;
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::telemetry::{self, Exporter};

/// File descriptors that are not clients: listeners, the epoll sets, logs.
const RESERVED_FILES: u64 = 64;
/// How long everything may take to end after a signal.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn run(options: &ServerOptions) -> Result<(), Failure> {
    let config = Config::resolve(options)?;
    let tokens = config
        .admin_token_file
        .as_deref()
        .map(Tokens::read)
        .transpose();
    let tokens = tokens.map_err(|problem| Exit::Config.because(problem))?;
    telemetry::init(config.log);
    for name in Config::unknown_environment() {
        tracing::warn!(%name, "a variable of the environment that means nothing here; a typing error?");
    }
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Exit::Software.with(error))?;
    let result = runtime.block_on(serve(config, tokens.map(Arc::new)));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(config: Config, tokens: Option<Arc<Tokens>>) -> Result<(), Failure> {
    let mut signals = Signals::listen().map_err(|error| Exit::Software.with(error))?;
    let (stop, shutdown) = watch::channel(false);
    let (stop_node, node_shutdown) = watch::channel(false);
    let (ready, is_ready) = watch::channel(false);
    let bus: BusHandle = Arc::new(MemoryBus::default());
    let apps = Arc::new(Apps::new(config.apps()));
    let bug = |error: prometheus::Error| Exit::Software.with(error);

    let registries = [
        telemetry::registry_of("gateway").map_err(bug)?,
        telemetry::registry_of("node").map_err(bug)?,
    ];
    let gateway_metrics =
        Arc::new(gateway::Metrics::register(&registries[0], bus.name(), &apps).map_err(bug)?);
    let node_metrics = Arc::new(node::Metrics::register(&registries[1], bus.name()).map_err(bug)?);
    let exporter = Arc::new(Exporter::new(registries.into(), Arc::clone(&bus)).map_err(bug)?);

    let admin_listener = TcpListener::bind(config.admin).await.map_err(|error| {
        Exit::Io.because(format!(
            "could not listen on {}: {error}; choose another address with --admin",
            config.admin
        ))
    })?;
    let admin_address = admin_listener.local_addr().unwrap_or(config.admin);

    let identity = Identity::mint().map_err(|error| Exit::Software.with(error))?;
    let workers = match config.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        workers => usize::from(workers),
    };
    let gateway_config = gateway::Config {
        cluster: identity.node.id.clone(),
        gateway: identity.gateway,
        listen: config.listen,
        apps,
        workers,
        activity_timeout: Duration::from_secs(config.activity_timeout_s),
        outbox_bytes_max: config.outbox_bytes_max,
        playground: true,
    };
    let node_config = node::Config {
        cluster: identity.node.id.clone(),
        node: identity.node.clone(),
        namespaces: config.namespaces(),
        workers,
    };
    let map = ShardMap::standalone(identity.cluster, identity.seed, identity.node.clone());
    let view = node::View::fixed(map, member(&identity.node));
    let started = gateway::start(
        gateway_config,
        Arc::clone(&bus),
        gateway_metrics,
        shutdown.clone(),
    );
    let mut gateway = started.await.map_err(|error| match error {
        gateway::Error::Listen { .. } => Exit::Io.with(error),
        _ => Exit::Unavailable.with(error),
    })?;
    let node = node::start(node_config, view, bus, node_metrics, node_shutdown)
        .await
        .map_err(|error| Exit::Unavailable.with(error))?;
    // It learns the map from the node's first beat. If it ends instead, `join`
    // says why.
    let serves = gateway.ready.wait_for(|ready| *ready).await.is_ok();
    let admin = Admin {
        tokens,
        exporter,
        ready: is_ready,
        status: json!({
            "version": env!("CARGO_PKG_VERSION"),
            "commit": env!("DUNLIN_COMMIT"),
            "mode": "dev",
            "cluster": identity.cluster.to_string(),
            "listen": gateway.address.to_string(),
        }),
    };
    let admin = tokio::spawn(admin.run(admin_listener, shutdown));
    let _ = ready.send(serves);
    if !gateway.address.ip().is_loopback() {
        tracing::warn!(
            address = %gateway.address,
            "others can reach this address, and `dev` lets everyone who can publish through its page"
        );
    }
    if serves {
        greet(gateway.address, admin_address, &config);
    }

    let (ended, mut first_ended) = mpsc::channel::<()>(1);
    let gateway = tokio::spawn(telling(gateway.join(), ended.clone()));
    let node = tokio::spawn(telling(node.join(), ended));
    let signal = tokio::select! {
        () = signals.next() => true,
        // Without a signal, either of them ends only by a failure.
        _ = first_ended.recv() => false,
    };
    let _ = ready.send(false);
    tracing::info!("shutting down");
    let _ = stop.send(true);
    let rest = async {
        // The gateway first: what it has under way still needs the node.
        let gateway = gateway.await.map_err(|error| Exit::Software.with(error))?;
        let _ = stop_node.send(true);
        let node = node.await.map_err(|error| Exit::Software.with(error))?;
        let _ = admin.await;
        gateway.map_err(|error| Exit::Software.with(error))?;
        node.map_err(|error| Exit::Software.with(error))
    };
    tokio::select! {
        ended = rest => ended,
        () = signals.next() => Ok(()),
        () = tokio::time::sleep(SHUTDOWN_PATIENCE) => {
            tracing::warn!("not everything ended in time");
            if signal { Ok(()) } else { Err(Exit::Software.because("a part of the server failed")) }
        }
    }
}

/// The one member, for those who look inside.
fn member(node: &NodeRef) -> NodeInfo {
    NodeInfo {
        name: node.id.clone(),
        incarnation: Some(node.incarnation),
        address: String::new(),
        zone: String::new(),
        witness: false,
        role: "leader".into(),
        gossip: "alive".into(),
        shards: SHARDS_DEFAULT.into(),
        version: env!("CARGO_PKG_VERSION").into(),
    }
}

/// Says that a future has ended, and keeps its result.
async fn telling<T>(future: impl Future<Output = T>, ended: mpsc::Sender<()>) -> T {
    let result = future.await;
    // Full: somebody else has said so before.
    let _ = ended.try_send(());
    result
}

/// SIGTERM and SIGINT. Listened to from the start: one that comes early is
/// heeded later, and does not end the process by its default action.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Who everything in this process is. New at each start: nothing outlives it.
struct Identity {
    cluster: ClusterUuid,
    seed: u64,
    gateway: GatewayRef,
    node: NodeRef,
}

impl Identity {
    fn mint() -> std::io::Result<Self> {
        let mut random = [0; 24];
        fill_random(&mut random)?;
        let (cluster, seed) = random.split_at(16);
        let incarnation = Incarnation(UnixTime::now().0 / 1_000);
        let word = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0_u128, |word, byte| word << 8 | u128::from(*byte))
        };
        Ok(Self {
            cluster: ClusterUuid(word(cluster)),
            seed: word(seed) as u64,
            gateway: GatewayRef {
                id: "dev".parse().map_err(std::io::Error::other)?,
                incarnation,
            },
            node: NodeRef {
                id: "dev".parse().map_err(std::io::Error::other)?,
                incarnation,
            },
        })
    }
}

/// Fills a buffer with random bytes of the system.
pub(crate) fn fill_random(buffer: &mut [u8]) -> std::io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = &mut buffer[filled..];
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(())
}

/// Each client is a file descriptor.
fn raise_file_limit() {
    if let Some(limit) = file_limit() {
        let clients = limit.saturating_sub(RESERVED_FILES);
        tracing::warn!(
            "the limit of open files is {limit}: about {clients} clients fit (raise it with LimitNOFILE or ulimit -Hn)"
        );
    }
}

/// Raises the limit of open files as far as it goes. `None`: there is none.
pub(crate) fn file_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: maximum,
                maximum,
            },
        )
    {
        tracing::warn!(%error, "could not raise the limit of open files");
    }
    getrlimit(Resource::Nofile).current
}

/// Tells what to do next.
fn greet(clients: SocketAddr, admin: SocketAddr, config: &Config) {
    let app = &config.apps[0];
    let default = Config::default();
    let url = if clients == default.listen {
        String::new()
    } else {
        format!(" --url http://{clients}")
    };
    let custom = (app.id.as_str(), app.key.as_str()) != ("app-id", "app-key");
    let app_flag = if custom {
        format!(" --app {}:{}:SECRET", app.id, app.key)
    } else {
        String::new()
    };
    let text = format!(
        "Dunlin {version} is running.\n\n  \
         clients   http://{clients}   app {id}, key {key}\n  \
         admin     http://{admin}\n\n\
         Open http://{clients}/#logs in two windows, or in two terminals:\n\n  \
         dunlin sub logs{url}{app_flag}\n  \
         tail -f some.log | dunlin pub logs{url}{app_flag}\n\n\
         Ctrl-C ends it. Nothing is kept.\n",
        version = env!("CARGO_PKG_VERSION"),
        id = app.id,
        key = app.key,
    );
    // Whoever closed stdout does not want to know.
    let _ = std::io::stdout().write_all(text.as_bytes());
    let _ = std::io::stdout().flush();
}
