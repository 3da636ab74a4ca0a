//! What servers can be told on the command line or by the environment. Both
//! overrule the file.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use proto::id::NodeId;

use super::{AppText, LogFormat};
use crate::config::file::{AppConfig, File};
use crate::config::{BusServers, HostPort, InvalidServers, LISTEN, TrustedProxies};
use crate::exit::{Exit, Failure};

/// Of all servers.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ServerOptions {
    /// Configuration file (TOML); see docs/reference/config.md.
    #[arg(long, env = "DUNLIN_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where health, metrics and administration are [default: 127.0.0.1:9601; of a node
    /// 127.0.0.1:9611].
    #[arg(long, env = "DUNLIN_ADMIN", value_name = "IP:PORT", value_parser = address)]
    pub(crate) admin: Option<SocketAddr>,
    /// Tokens for the admin address, one a line, made by `dunlin token admin`. Without them it must be a
    /// loopback address.
    #[arg(long, env = "DUNLIN_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub(crate) admin_token_file: Option<PathBuf>,
    /// How to write logs [default: text].
    #[arg(long, env = "DUNLIN_LOG", value_name = "FORMAT")]
    pub(crate) log: Option<LogFormat>,
    /// Gateway: threads that own connections. Node: tasks that share the shards. Up to 64; 0 is one
    /// per core [default: 0].
    #[arg(long, env = "DUNLIN_WORKERS", value_name = "N", value_parser = clap::value_parser!(u8).range(0..=64))]
    pub(crate) workers: Option<u8>,
}

/// Of all servers with clients.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ClientOptions {
    /// Where clients and backends connect [default: 0.0.0.0:6001; of dev 127.0.0.1:6001].
    #[arg(long, env = "DUNLIN_LISTEN", value_name = "IP:PORT", value_parser = address)]
    pub(crate) listen: Option<SocketAddr>,
    /// An app; may be given several times. Replaces the apps of the file. A gateway needs one, dev
    /// has one of its own.
    #[arg(
        long = "app",
        env = "DUNLIN_APPS",
        value_name = "ID:KEY:SECRET",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub(crate) apps: Vec<AppText>,
    /// Seconds of silence after which a WebSocket client is pinged [default: 120].
    #[arg(long, env = "DUNLIN_ACTIVITY_TIMEOUT_S", value_name = "N", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub(crate) activity_timeout_s: Option<u64>,
    /// Bytes that may wait for one client, at least 65536 [default: 1048576].
    #[arg(long, env = "DUNLIN_OUTBOX_BYTES_MAX", value_name = "N")]
    pub(crate) outbox_bytes_max: Option<usize>,
    /// Seconds that anything may wait for one client [default: 20].
    #[arg(long, env = "DUNLIN_OUTBOX_AGE_MAX_S", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub(crate) outbox_age_max_s: Option<u64>,
    /// Bytes that may wait for all clients together [default: 268435456].
    #[arg(long, env = "DUNLIN_OUTBOX_BYTES_TOTAL_MAX", value_name = "N")]
    pub(crate) outbox_bytes_total_max: Option<usize>,
    /// Bytes that the kernel keeps for one client that does not read [default: 65536].
    #[arg(long, env = "DUNLIN_SEND_BUFFER_BYTES", value_name = "N")]
    pub(crate) send_buffer_bytes: Option<usize>,
    /// A certificate, with those between it and its authority (PEM): clients and backends connect by
    /// TLS then. Read again when it changes.
    #[arg(long, env = "DUNLIN_TLS_CERT", value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, env = "DUNLIN_TLS_KEY", value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Proxies whose X-Forwarded-For is believed, with commas between them: addresses or networks
    /// such as 10.0.0.0/8; `none` if clients connect without one. Limits by address are on then
    /// [default: off].
    #[arg(long, env = "DUNLIN_TRUSTED_PROXIES", value_name = "CIDR")]
    pub(crate) trusted_proxies: Option<TrustedProxies>,
}

/// Of all servers in a cluster.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct BusOptions {
    /// The cluster's name on the bus [default: dunlin].
    #[arg(long, env = "DUNLIN_CLUSTER", value_name = "NAME")]
    pub(crate) cluster: Option<NodeId>,
    /// The NATS servers, with commas between them [default: nats://127.0.0.1:4222].
    #[arg(
        long,
        env = "DUNLIN_BUS",
        value_name = "URL",
        value_parser = BusServers::or_why_not,
        hide_env_values = true
    )]
    pub(crate) bus: Option<Result<BusServers, InvalidServers>>,
    /// Credentials for the bus (a NATS .creds file).
    #[arg(long, env = "DUNLIN_BUS_CREDS", value_name = "FILE")]
    pub(crate) bus_creds: Option<PathBuf>,
    /// Certificate authorities for the bus (PEM), instead of the system's; connections are by TLS
    /// then.
    #[arg(long, env = "DUNLIN_BUS_CA", value_name = "FILE")]
    pub(crate) bus_ca: Option<PathBuf>,
    /// The name of this process, unlike that of every other gateway or node of the cluster
    /// [default: the host's name; of a gateway with the port of --listen].
    #[arg(long, env = "DUNLIN_NAME", value_name = "NAME")]
    pub(crate) name: Option<NodeId>,
}

/// `dunlin dev`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct DevOptions {
    #[command(flatten)]
    pub(crate) server: ServerOptions,
    #[command(flatten)]
    pub(crate) clients: ClientOptions,
}

/// `dunlin gateway`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct GatewayOptions {
    #[command(flatten)]
    pub(crate) bus: BusOptions,
    #[command(flatten)]
    pub(crate) server: ServerOptions,
    #[command(flatten)]
    pub(crate) clients: ClientOptions,
    /// Over how long the gateway spreads that its clients are sent away when it is told to end, in
    /// seconds; 0: all at once, as far as --drain-per-s goes [default: 10].
    #[arg(long, env = "DUNLIN_DRAIN_WINDOW_S", value_name = "SECONDS")]
    pub(crate) drain_window_s: Option<u64>,
    /// How many clients a second it sends away at most, however long that takes [default: 1000].
    #[arg(long, env = "DUNLIN_DRAIN_PER_S", value_name = "N")]
    pub(crate) drain_per_s: Option<u32>,
}

/// `dunlin node`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct NodeOptions {
    #[command(flatten)]
    pub(crate) bus: BusOptions,
    #[command(flatten)]
    pub(crate) server: ServerOptions,
    /// Where to keep what must survive a restart; a directory of this node alone. Required.
    #[arg(long, env = "DUNLIN_DATA", value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Where other nodes connect, by QUIC over UDP [default: 127.0.0.1:7601].
    #[arg(long, env = "DUNLIN_QUIC", value_name = "IP:PORT", value_parser = address)]
    pub(crate) quic: Option<SocketAddr>,
    /// What other nodes are told to connect to [default: the address of --quic].
    #[arg(long, env = "DUNLIN_QUIC_ADVERTISE", value_name = "HOST:PORT")]
    pub(crate) quic_advertise: Option<HostPort>,
    /// Nodes to ask for the cluster, with commas between them. One that answers is enough.
    #[arg(
        long,
        env = "DUNLIN_JOIN",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    pub(crate) join: Vec<HostPort>,
    /// Form a new cluster once that many new nodes have met, 1 to 7; all of them must say the same
    /// number. A cluster that is there already is joined instead.
    #[arg(long, env = "DUNLIN_BOOTSTRAP_EXPECT", value_name = "N", value_parser = clap::value_parser!(u8).range(1..=7))]
    pub(crate) bootstrap_expect: Option<u8>,
    /// Where the node stands, such as a rack or a data centre.
    #[arg(long, env = "DUNLIN_ZONE", value_name = "TEXT")]
    pub(crate) zone: Option<String>,
    /// Vote and own nothing.
    #[arg(
        long,
        env = "DUNLIN_WITNESS",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub(crate) witness: Option<bool>,
    /// How long the node may take to give its shards to others when it is told to end, in seconds;
    /// 0: not at all [default: 20].
    #[arg(long, env = "DUNLIN_DRAIN_TIMEOUT_S", value_name = "SECONDS")]
    pub(crate) drain_timeout_s: Option<u64>,
    /// Where ca.crt, NAME.crt and NAME.key are, made by `dunlin certs`. Required.
    #[arg(long, env = "DUNLIN_CERTS", value_name = "DIR")]
    pub(crate) certs: Option<PathBuf>,
}

/// An address to listen on.
fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| LISTEN.to_owned())
}

/// Puts a flag, if there is one, in the place of the file's value.
fn overrule<T: Clone>(value: &mut Option<T>, flag: &Option<T>) {
    if flag.is_some() {
        value.clone_from(flag);
    }
}

impl ServerOptions {
    fn overrule(&self, file: &mut File) {
        overrule(&mut file.admin, &self.admin);
        overrule(&mut file.admin_token_file, &self.admin_token_file);
        overrule(&mut file.log, &self.log);
        overrule(&mut file.workers, &self.workers);
    }
}

impl ClientOptions {
    fn overrule(&self, file: &mut File) -> Result<(), Failure> {
        overrule(&mut file.listen, &self.listen);
        overrule(&mut file.activity_timeout_s, &self.activity_timeout_s);
        overrule(&mut file.outbox_bytes_max, &self.outbox_bytes_max);
        overrule(&mut file.outbox_age_max_s, &self.outbox_age_max_s);
        overrule(
            &mut file.outbox_bytes_total_max,
            &self.outbox_bytes_total_max,
        );
        overrule(&mut file.send_buffer_bytes, &self.send_buffer_bytes);
        overrule(&mut file.tls_cert, &self.tls_cert);
        overrule(&mut file.tls_key, &self.tls_key);
        overrule(&mut file.trusted_proxies, &self.trusted_proxies);
        if !self.apps.is_empty() {
            let apps = self.apps.iter().map(AppConfig::from_text);
            file.apps = apps.collect::<Result<_, _>>()?;
        }
        Ok(())
    }
}

impl BusOptions {
    fn overrule(&self, file: &mut File) -> Result<(), Failure> {
        overrule(&mut file.cluster, &self.cluster);
        overrule(&mut file.bus_creds, &self.bus_creds);
        overrule(&mut file.bus_ca, &self.bus_ca);
        overrule(&mut file.name, &self.name);
        if let Some(bus) = &self.bus {
            let bus = bus.clone();
            file.bus = Some(bus.map_err(|error| Exit::Usage.because(format!("--bus: {error}")))?);
        }
        Ok(())
    }
}

impl DevOptions {
    /// Lays flags and environment over the file.
    pub(crate) fn overrule(&self, file: &mut File) -> Result<(), Failure> {
        self.server.overrule(file);
        self.clients.overrule(file)
    }
}

impl GatewayOptions {
    /// Lays flags and environment over the file.
    pub(crate) fn overrule(&self, file: &mut File) -> Result<(), Failure> {
        self.server.overrule(file);
        self.bus.overrule(file)?;
        overrule(&mut file.drain_window_s, &self.drain_window_s);
        overrule(&mut file.drain_per_s, &self.drain_per_s);
        self.clients.overrule(file)
    }
}

impl NodeOptions {
    /// Lays flags and environment over the file.
    pub(crate) fn overrule(&self, file: &mut File) -> Result<(), Failure> {
        self.server.overrule(file);
        overrule(&mut file.data, &self.data);
        overrule(&mut file.quic, &self.quic);
        overrule(&mut file.quic_advertise, &self.quic_advertise);
        if !self.join.is_empty() {
            file.join.clone_from(&self.join);
        }
        overrule(&mut file.bootstrap_expect, &self.bootstrap_expect);
        overrule(&mut file.zone, &self.zone);
        overrule(&mut file.witness, &self.witness);
        overrule(&mut file.drain_timeout_s, &self.drain_timeout_s);
        overrule(&mut file.certs, &self.certs);
        self.bus.overrule(file)
    }
}
