//! `dunlin gateway`: clients on one side, the bus on the other. It needs nothing
//! but the bus to start, and keeps nothing.

use std::sync::Arc;

use gateway::app::Apps;
use prometheus::Registry;
use proto::bus::{BusHandle, NatsBus, NatsOptions};
use proto::id::{GatewayRef, Incarnation};
use proto::time::UnixTime;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use crate::admin::tokens::Tokens;
use crate::admin::{Admin, Readiness};
use crate::cli::server::GatewayOptions;
use crate::config::{self, Gateway};
use crate::exit::{Exit, Failure};
use crate::process::{self, Signals, telling};
use crate::telemetry::Exporter;

pub(crate) fn run(options: &GatewayOptions) -> Result<(), Failure> {
    let config = Gateway::resolve(options)?;
    let threads = config::threads_beside_workers();
    process::run(&config.server.clone(), threads, |tokens| {
        serve(config, tokens)
    })
}

async fn serve(config: Gateway, tokens: Option<Arc<Tokens>>) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    process::tell_file_limit(&config.clients);
    let (stop, shutdown) = watch::channel(false);
    let (stop_admin, admin_shutdown) = watch::channel(false);
    let (leave, mut told_to_leave) = mpsc::channel(1);
    let bus = connect(&config.bus, format!("gateway {}", config.name)).await?;
    let apps = Arc::new(Apps::new(config.clients.apps()));
    let bug = |error: prometheus::Error| Exit::Software.with(error);
    let registry = Registry::new();
    let metrics = Arc::new(gateway::Metrics::register(&registry, bus.name(), &apps).map_err(bug)?);
    let exporter = Arc::new(Exporter::new(vec![registry], Arc::clone(&bus)).map_err(bug)?);
    let (admin_listener, admin_address) = process::bind_admin(config.server.admin).await?;

    let gateway_config = gateway::Config {
        cluster: config.bus.cluster.clone(),
        gateway: GatewayRef {
            id: config.name.clone(),
            incarnation: Incarnation(UnixTime::now().0),
        },
        listen: config.clients.listen,
        apps,
        workers: config::workers(config.clients.workers),
        activity_timeout: config.clients.activity_timeout(),
        tls: config.clients.tls(),
        limits: config.clients.limits(process::file_limit()),
        outbox: config.clients.outbox(),
        namespaces: config.namespaces(),
        leaving: config.leaving(),
        playground: false,
    };
    let gateway = gateway::start(gateway_config, Arc::clone(&bus), metrics, shutdown.clone());
    let gateway = gateway.await.map_err(failed)?;
    process::greet(&format!(
        "Dunlin {}: gateway {} of cluster {}.\n\n  clients   {}://{}\n  admin     http://{admin_address}\n",
        env!("CARGO_PKG_VERSION"),
        config.name,
        config.bus.cluster,
        config.clients.scheme(),
        gateway.address,
    ));
    let admin = Admin {
        tokens,
        exporter,
        ready: readiness(bus, gateway.ready.clone(), shutdown.clone()),
        status: json!({
            "version": env!("CARGO_PKG_VERSION"),
            "commit": env!("DUNLIN_COMMIT"),
            "mode": "gateway",
            "name": config.name.as_str(),
            "cluster_name": config.bus.cluster.as_str(),
            "bus": config.bus.bus.to_string(),
            "listen": gateway.address.to_string(),
        }),
        inspector: Arc::new(gateway.inspector.clone()),
        nodes: None,
        leave: Some(leave),
    };
    let admin = tokio::spawn(admin.run(admin_listener, admin_shutdown));
    let (ended, mut first_ended) = mpsc::channel::<()>(1);
    let gateway = tokio::spawn(telling(gateway.join(), ended));
    let as_told = tokio::select! {
        by_signal = signals.or_first_end(&mut first_ended) => by_signal,
        Some(()) = told_to_leave.recv() => true,
    };
    tracing::info!("shutting down");
    let _ = stop.send(true);
    let rest = async {
        let gateway = gateway.await.map_err(|error| Exit::Software.with(error))?;
        // Until the last client has gone it can be looked at.
        let _ = stop_admin.send(true);
        let _ = admin.await;
        gateway.map_err(failed)
    };
    // There are no more clients than open files.
    let clients = process::file_limit().unwrap_or(u64::from(u32::MAX)) as usize;
    let patience = process::SHUTDOWN_PATIENCE + config.leaving().takes(clients);
    signals.end_within(patience, as_told, rest).await
}

/// The bus of a cluster. Connects in the background, and again and again.
pub(crate) async fn connect(config: &config::Bus, name: String) -> Result<BusHandle, Failure> {
    tracing::info!(servers = %config.bus, cluster = %config.cluster, "connecting to the bus");
    let bus = NatsBus::connect(NatsOptions {
        servers: config.bus.expose().to_owned(),
        credentials: config.bus_creds.clone(),
        ca: config.bus_ca.clone(),
        name,
    });
    // A bus that is away is no failure: only options that can never be right.
    Ok(bus.await.map_err(|error| Exit::Config.with(error))?)
}

/// Clients are served while the bus is there and the map is known, until the
/// shutdown.
fn readiness(
    bus: BusHandle,
    ready: watch::Receiver<bool>,
    shutdown: watch::Receiver<bool>,
) -> Readiness {
    Arc::new(move || {
        let reason = if *shutdown.borrow() {
            "shutting down"
        } else if !bus.stats().connected {
            "the bus is away"
        } else if !*ready.borrow() {
            "no shard map yet: no node has sent one (the log says why)"
        } else {
            return Ok(());
        };
        Err(reason.to_owned())
    })
}

/// Why a gateway ended, and the exit code for it.
pub(crate) fn failed(error: gateway::Error) -> Failure {
    let exit = match error {
        gateway::Error::Listen { .. } => Exit::Io,
        // To come back would end the other one, and so on.
        gateway::Error::Tls(_) | gateway::Error::Superseded(_) => Exit::Config,
        gateway::Error::WorkerPanicked | gateway::Error::Panicked(_) => Exit::Software,
        _ => Exit::Unavailable,
    };
    exit.with(error)
}
