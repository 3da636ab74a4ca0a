//! `dunlin dev`: a gateway and a node in this one process, on a bus in memory.
//! The same code as in a cluster, with nothing to set up.

use std::net::SocketAddr;
use std::sync::Arc;

use gateway::app::Apps;
use gateway::core::leaving::Pace;
use proto::bus::{BusHandle, MemoryBus};
use proto::id::{ClusterUuid, GatewayRef, Incarnation, NodeRef};
use proto::inspection::NodeInfo;
use proto::shard::{SHARDS_DEFAULT, ShardMap};
use proto::time::UnixTime;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use crate::admin::Admin;
use crate::admin::tokens::Tokens;
use crate::cli::server::DevOptions;
use crate::config::{self, Dev};
use crate::exit::{Exit, Failure};
use crate::process::{self, Signals, fill_random, telling};
use crate::telemetry::{self, Exporter};

pub(crate) fn run(options: &DevOptions) -> Result<(), Failure> {
    let config = Dev::resolve(options)?;
    let threads = config::threads_beside_workers();
    process::run(&config.server.clone(), threads, |tokens| {
        serve(config, tokens)
    })
}

async fn serve(config: Dev, tokens: Option<Arc<Tokens>>) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    process::tell_file_limit(&config.clients);
    let (stop, shutdown) = watch::channel(false);
    let (stop_node, node_shutdown) = watch::channel(false);
    let (ready, is_ready) = watch::channel(false);
    let bus: BusHandle = Arc::new(MemoryBus::default());
    let apps = Arc::new(Apps::new(config.clients.apps()));
    let bug = |error: prometheus::Error| Exit::Software.with(error);

    let registries = [
        telemetry::registry_of("gateway").map_err(bug)?,
        telemetry::registry_of("node").map_err(bug)?,
    ];
    let gateway_metrics =
        Arc::new(gateway::Metrics::register(&registries[0], bus.name(), &apps).map_err(bug)?);
    let node_metrics = Arc::new(node::Metrics::register(&registries[1], bus.name()).map_err(bug)?);
    let exporter = Arc::new(Exporter::new(registries.into(), Arc::clone(&bus)).map_err(bug)?);
    let (admin_listener, admin_address) = process::bind_admin(config.server.admin).await?;

    let identity = Identity::mint().map_err(|error| Exit::Software.with(error))?;
    let workers = config::workers(config.clients.workers);
    let gateway_config = gateway::Config {
        cluster: identity.node.id.clone(),
        gateway: identity.gateway,
        listen: config.clients.listen,
        apps,
        workers,
        activity_timeout: config.clients.activity_timeout(),
        tls: config.clients.tls(),
        limits: config.clients.limits(process::file_limit()),
        outbox: config.clients.outbox(),
        namespaces: config.namespaces(),
        leaving: Pace::AT_ONCE,
        playground: true,
    };
    let map = ShardMap::standalone(identity.cluster, identity.seed, identity.node.clone());
    let view = node::View::fixed(map, member(&identity.node));
    let node_config = node::Config {
        cluster: identity.node.id.clone(),
        node: identity.node.clone(),
        namespaces: config.namespaces(),
        workers,
    };
    let gateway = gateway::start(
        gateway_config,
        Arc::clone(&bus),
        gateway_metrics,
        shutdown.clone(),
    );
    let gateway = gateway.await.map_err(crate::gateway::failed)?;
    // After it, so that it hears the node's first beat.
    let node = node::start(
        node_config,
        view,
        node::Checkpoint::default(),
        bus,
        node_metrics,
        node_shutdown,
    );
    let node = node.await.map_err(|error| Exit::Unavailable.with(error))?;
    let address = gateway.address;
    let mut serves = gateway.ready.clone();
    let admin = Admin {
        tokens,
        exporter,
        ready: Arc::new(move || {
            let serves = *is_ready.borrow();
            serves.then_some(()).ok_or("clients are not served".into())
        }),
        status: json!({
            "version": env!("CARGO_PKG_VERSION"),
            "commit": env!("DUNLIN_COMMIT"),
            "mode": "dev",
            "cluster": identity.cluster.to_string(),
            "listen": address.to_string(),
        }),
        inspector: Arc::new(gateway.inspector.clone()),
        nodes: None,
        leave: None,
    };
    let admin = tokio::spawn(admin.run(admin_listener, shutdown));
    let (ended, mut first_ended) = mpsc::channel::<()>(1);
    let gateway = tokio::spawn(telling(gateway.join(), ended.clone()));
    let node = tokio::spawn(telling(node.join(), ended));
    let by_signal = tokio::select! {
        by_signal = signals.or_first_end(&mut first_ended) => by_signal,
        Ok(_) = serves.wait_for(|serves| *serves) => {
            let _ = ready.send(true);
            greet(address, admin_address, &config);
            signals.or_first_end(&mut first_ended).await
        }
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
        gateway.map_err(crate::gateway::failed)?;
        node.map_err(|error| Exit::Software.with(error))
    };
    signals.end(by_signal, rest).await
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
        let incarnation = Incarnation(UnixTime::now().0);
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

/// The one node, as those see it who look inside.
fn member(node: &NodeRef) -> NodeInfo {
    NodeInfo {
        name: node.id.clone(),
        incarnation: Some(node.incarnation),
        address: String::new(),
        zone: String::new(),
        witness: false,
        role: "leader".into(),
        gossip: "alive".into(),
        shards: u32::from(SHARDS_DEFAULT),
        version: env!("CARGO_PKG_VERSION").into(),
    }
}

/// Tells what to do next.
fn greet(clients: SocketAddr, admin: SocketAddr, config: &Dev) {
    if !clients.ip().is_loopback() {
        tracing::warn!(
            address = %clients,
            "others can reach this address, and `dev` lets everyone who can publish through its page"
        );
    }
    let app = &config.clients.apps[0];
    let scheme = config.clients.scheme();
    // The tools speak HTTP only.
    let tools_reach_it = scheme == "http";
    let url = if clients == Dev::listens_by_default() {
        String::new()
    } else {
        format!(" --url {scheme}://{clients}")
    };
    let custom = (app.id.as_str(), app.key.as_str()) != ("app-id", "app-key");
    let app_flag = if custom {
        format!(" --app {}:{}:SECRET", app.id, app.key)
    } else {
        String::new()
    };
    let tools = if tools_reach_it {
        format!(
            ", or in two terminals:\n\n  \
             dunlin sub logs{url}{app_flag}\n  \
             tail -f some.log | dunlin pub logs{url}{app_flag}\n"
        )
    } else {
        ".\n".to_owned()
    };
    process::greet(&format!(
        "Dunlin {version} is running.\n\n  \
         clients   {scheme}://{clients}   app {id}, key {key}\n  \
         admin     http://{admin}\n\n\
         Open {scheme}://{clients}/#logs in two windows{tools}\n\
         Ctrl-C ends it. Nothing is kept.\n",
        version = env!("CARGO_PKG_VERSION"),
        id = app.id,
        key = app.key,
    ));
}
