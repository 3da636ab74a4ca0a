//! Configuration: flags over environment over file over defaults. The only
//! place that reads it.
//!
//! Flags and environment are laid over what the [`mod@file`] says; then each command
//! takes what it uses, fills in its own defaults and checks the whole.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use gateway::app::{App, Secret};
use gateway::core::admission::{self, AddressLimits};
use gateway::core::connection;
use gateway::core::leaving::Pace;
use gateway::core::limits::Rate;
use gateway::{OutboxLimits, tls};
use proto::id::{GatewayId, NodeId};
use proto::namespace::Namespaces;
use proto::subject::ClusterName;
use schemars::JsonSchema;
use serde::Serialize;

use crate::cli::LogFormat;
use crate::cli::server::{DevOptions, GatewayOptions, NodeOptions};
use crate::exit::{Exit, Failure};
use crate::{admin, certs};
pub(crate) use address::{BusServers, HostPort, InvalidServers, LISTEN, TrustedProxies};
use file::{AppConfig, File, LimitsConfig, NamespaceConfig};

mod address;
pub(crate) mod environment;
pub(crate) mod file;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

/// What all servers have.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Server {
    #[schemars(with = "String")]
    pub(crate) admin: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) admin_token_file: Option<PathBuf>,
    #[schemars(with = "String")]
    pub(crate) log: LogFormat,
}

/// What all servers with clients have.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Clients {
    #[schemars(with = "String")]
    pub(crate) listen: SocketAddr,
    pub(crate) workers: u8,
    pub(crate) activity_timeout_s: u64,
    pub(crate) outbox_bytes_max: usize,
    pub(crate) outbox_age_max_s: u64,
    pub(crate) outbox_bytes_total_max: usize,
    pub(crate) send_buffer_bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_key: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub(crate) trusted_proxies: Option<TrustedProxies>,
    pub(crate) limits: LimitsConfig,
    pub(crate) apps: Vec<AppConfig>,
}

/// What all servers in a cluster have.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Bus {
    #[schemars(with = "String")]
    pub(crate) cluster: ClusterName,
    #[schemars(with = "String")]
    pub(crate) bus: BusServers,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bus_creds: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bus_ca: Option<PathBuf>,
}

/// `dunlin dev`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Dev {
    #[serde(flatten)]
    pub(crate) server: Server,
    #[serde(flatten)]
    pub(crate) clients: Clients,
    namespaces: Vec<NamespaceConfig>,
}

/// `dunlin gateway`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Gateway {
    #[schemars(with = "String")]
    pub(crate) name: GatewayId,
    #[serde(flatten)]
    pub(crate) bus: Bus,
    #[serde(flatten)]
    pub(crate) server: Server,
    #[serde(flatten)]
    pub(crate) clients: Clients,
    pub(crate) drain_window_s: u64,
    pub(crate) drain_per_s: u32,
    namespaces: Vec<NamespaceConfig>,
}

/// `dunlin node`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Node {
    /// Can stand in a certificate.
    #[schemars(with = "String")]
    pub(crate) name: NodeId,
    #[serde(flatten)]
    pub(crate) bus: Bus,
    #[serde(flatten)]
    pub(crate) server: Server,
    pub(crate) data: PathBuf,
    #[schemars(with = "String")]
    pub(crate) quic: SocketAddr,
    /// `None`: what `quic` turns out to be, for its port is to be any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub(crate) quic_advertise: Option<HostPort>,
    #[schemars(with = "Vec<String>")]
    pub(crate) join: Vec<HostPort>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bootstrap_expect: Option<u8>,
    pub(crate) zone: String,
    pub(crate) witness: bool,
    pub(crate) drain_timeout_s: u64,
    pub(crate) certs: PathBuf,
    pub(crate) workers: u8,
    namespaces: Vec<NamespaceConfig>,
}

impl Server {
    fn from_file(file: &File, port: u16) -> Result<Self, String> {
        let default = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let admin = file.admin.unwrap_or(default);
        if file.admin_token_file.is_none() && !admin::is_private(admin) {
            return Err(format!(
                "admin is {admin}, which others can reach, and there are no tokens: make some with `dunlin token admin --scope cluster:admin,metrics:read --file FILE` \
                 and name the file with --admin-token-file, or use a loopback address",
            ));
        }
        Ok(Self {
            admin,
            admin_token_file: file.admin_token_file.clone(),
            log: file.log.unwrap_or_default(),
        })
    }
}

/// The client port of Soketi and Sockudo, so that existing clients just
/// connect.
const CLIENT_PORT: u16 = 6001;

impl Clients {
    fn from_file(file: &File, ip: Ipv4Addr, server: &Server) -> Result<Self, String> {
        let listen = file.listen.unwrap_or((ip, CLIENT_PORT).into());
        if listen == server.admin && listen.port() != 0 {
            return Err(format!(
                "listen and admin are both {listen}; clients and administration need an address each",
            ));
        }
        if file.tls_cert.is_some() != file.tls_key.is_some() {
            let (has, lacks) = match file.tls_cert {
                Some(_) => ("tls_cert", "tls_key"),
                None => ("tls_key", "tls_cert"),
            };
            return Err(format!(
                "{has} is given, and {lacks} is not: TLS needs both"
            ));
        }
        let outbox = OutboxLimits::default();
        let outbox_bytes_max = file.outbox_bytes_max.unwrap_or(outbox.bytes_max);
        let outbox_bytes_total_max = file
            .outbox_bytes_total_max
            .unwrap_or(outbox_bytes_max.max(outbox.total_bytes_max));
        if outbox_bytes_total_max < outbox_bytes_max {
            return Err(format!(
                "outbox_bytes_total_max: {outbox_bytes_total_max} bytes for all clients are less than the {outbox_bytes_max} that outbox_bytes_max allows for one",
            ));
        }
        Ok(Self {
            listen,
            workers: file.workers.unwrap_or_default(),
            activity_timeout_s: file.activity_timeout_s.unwrap_or(120),
            outbox_bytes_max,
            outbox_age_max_s: file.outbox_age_max_s.unwrap_or(outbox.age_max.as_secs()),
            outbox_bytes_total_max,
            send_buffer_bytes: file.send_buffer_bytes.unwrap_or(outbox.send_buffer_bytes),
            tls_cert: file.tls_cert.clone(),
            tls_key: file.tls_key.clone(),
            trusted_proxies: file.trusted_proxies.clone(),
            limits: file.limits.clone(),
            apps: file.apps.clone(),
        })
    }

    /// Where certificate and key are, if clients connect by TLS.
    pub(crate) fn tls(&self) -> Option<tls::Files> {
        let (certificate, key) = self.tls_cert.clone().zip(self.tls_key.clone())?;
        Some(tls::Files { certificate, key })
    }

    /// The scheme of the URLs of this server.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls_cert.is_some() {
            "https"
        } else {
            "http"
        }
    }

    /// For how many connections so many files are.
    pub(crate) fn room(&self, files: usize) -> Room {
        Room::of(
            files,
            match self.tls_cert {
                // The client's, and a pair to the worker.
                Some(_) => 3,
                None => 1,
            },
        )
    }

    /// What clients may, in a process with that many files; `None`: with any number.
    pub(crate) fn limits(&self, files: Option<u64>) -> gateway::Limits {
        let files = files.map_or(usize::MAX, |files| files as usize);
        let limits = &self.limits;
        let room = self.room(files);
        // More than there are files for would be refused by the kernel, without a word.
        let most = match limits.connections_max as usize {
            0 => room.clients,
            most => most.min(room.clients),
        };
        let connects = Rate {
            burst: limits.connects_per_ip_per_s.saturating_mul(10),
            per_s: limits.connects_per_ip_per_s,
        };
        let of_address = self.trusted_proxies.as_ref().map(|_| AddressLimits {
            connections_max: limits.connections_per_ip_max,
            connects,
        });
        let trusted_proxies = self.trusted_proxies.clone();
        gateway::Limits {
            admission: admission::Limits {
                connections_max: most,
                files_max: room.clients,
                refusals_max: room.refusals,
                of_address,
            },
            trusted_proxies: trusted_proxies.map(|proxies| proxies.0).unwrap_or_default(),
            requests_max: room.requests,
            connection: connection::Limits::new(
                limits.subscriptions_max,
                limits.subscribes_per_s,
                limits.messages_per_s,
            ),
        }
    }

    pub(crate) fn apps(&self) -> impl Iterator<Item = App> {
        self.apps.iter().map(AppConfig::app)
    }

    pub(crate) fn outbox(&self) -> OutboxLimits {
        OutboxLimits {
            bytes_max: self.outbox_bytes_max,
            age_max: Duration::from_secs(self.outbox_age_max_s),
            total_bytes_max: self.outbox_bytes_total_max,
            send_buffer_bytes: self.send_buffer_bytes,
        }
    }

    pub(crate) fn activity_timeout(&self) -> Duration {
        Duration::from_secs(self.activity_timeout_s)
    }
}

/// For how many connections a process has files.
pub(crate) struct Room {
    /// Of clients.
    pub(crate) clients: usize,
    /// Of backends, and of clients that have not said yet what they want.
    requests: usize,
    /// Of clients that are only told why they may not stay.
    refusals: usize,
}

impl Room {
    /// File descriptors that are no connection of any client: listeners, the epoll
    /// sets, the bus, logs.
    const RESERVED_FILES: usize = 64;

    fn of(files: usize, of_a_client: usize) -> Self {
        let requests = (files / 16).clamp(16, 4_096);
        let refusals = requests / 4;
        let others = Self::RESERVED_FILES + requests + refusals * of_a_client;
        Self {
            clients: (files.saturating_sub(others) / of_a_client).max(1),
            requests,
            refusals,
        }
    }
}

impl Bus {
    fn from_file(file: &File) -> Result<Self, String> {
        let cluster = file.cluster.clone().map_or_else(|| "dunlin".parse(), Ok);
        let bus = file.bus.clone();
        let bus = bus.map_or_else(|| "nats://127.0.0.1:4222".parse(), Ok);
        Ok(Self {
            cluster: cluster.map_err(|error| error.to_string())?,
            bus: bus.map_err(|error| error.to_string())?,
            bus_creds: file.bus_creds.clone(),
            bus_ca: file.bus_ca.clone(),
        })
    }
}

impl Dev {
    /// What file, environment and flags come to, checked.
    pub(crate) fn resolve(options: &DevOptions) -> Result<Self, Failure> {
        let mut file = File::read(options.server.config.as_deref())?;
        options.overrule(&mut file)?;
        if file.apps.is_empty() {
            // As at Soketi and Sockudo.
            let mut app = AppConfig::new("app-id", "app-key", Secret::new("app-secret"))?;
            app.client_events = true;
            file.apps.push(app);
        }
        checked(&file, Self::from_file)
    }

    fn from_file(file: &File) -> Result<Self, String> {
        let server = Server::from_file(file, 9601)?;
        Ok(Self {
            clients: Clients::from_file(file, Ipv4Addr::LOCALHOST, &server)?,
            server,
            namespaces: file.namespaces.clone(),
        })
    }

    /// Where clients connect to a `dunlin dev` that has not been told
    /// otherwise.
    pub(crate) fn listens_by_default() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, CLIENT_PORT).into()
    }

    pub(crate) fn namespaces(&self) -> Namespaces {
        namespaces(&self.namespaces)
    }
}

impl Gateway {
    /// What file, environment and flags come to, checked.
    pub(crate) fn resolve(options: &GatewayOptions) -> Result<Self, Failure> {
        let mut file = File::read(options.server.config.as_deref())?;
        options.overrule(&mut file)?;
        checked(&file, Self::from_file)
    }

    fn from_file(file: &File) -> Result<Self, String> {
        if file.apps.is_empty() {
            return Err(
                "a gateway needs at least one app to serve: give it --app ID:KEY:SECRET or DUNLIN_APPS, \
                 or [[apps]] in the configuration file (only `dunlin dev` has an app of its own)"
                    .into(),
            );
        }
        let server = Server::from_file(file, 9601)?;
        let clients = Clients::from_file(file, Ipv4Addr::UNSPECIFIED, &server)?;
        let name = file.name.clone().or_else(|| {
            // Several on one machine may ask for any port; the process tells
            // them apart.
            let number = match clients.listen.port() {
                0 => std::process::id(),
                port => port.into(),
            };
            environment::host_name(&format!("-{number}"))
        });
        let name = name.ok_or_else(no_host_name)?;
        Ok(Self {
            name: name
                .as_str()
                .parse()
                .map_err(|error| format!("name: {error}"))?,
            bus: Bus::from_file(file)?,
            server,
            clients,
            drain_window_s: file.drain_window_s.unwrap_or(10),
            drain_per_s: file.drain_per_s.unwrap_or(1_000),
            namespaces: file.namespaces.clone(),
        })
    }

    /// Of which a gateway heeds what becomes of slow clients.
    pub(crate) fn namespaces(&self) -> Namespaces {
        namespaces(&self.namespaces)
    }

    /// How clients are sent away at the end.
    pub(crate) fn leaving(&self) -> Pace {
        Pace {
            window: Duration::from_secs(self.drain_window_s),
            per_s: self.drain_per_s,
        }
    }
}

impl Node {
    /// What file, environment and flags come to, checked.
    pub(crate) fn resolve(options: &NodeOptions) -> Result<Self, Failure> {
        let mut file = File::read(options.server.config.as_deref())?;
        options.overrule(&mut file)?;
        checked(&file, Self::from_file)
    }

    fn from_file(file: &File) -> Result<Self, String> {
        let name = file.name.clone().or_else(|| environment::host_name(""));
        let name = name.ok_or_else(no_host_name)?;
        certs::check_name(&name).map_err(|error| format!("name: {error}"))?;
        let directory = |key: &Option<PathBuf>, what: &str| {
            let missing = || format!("a node needs {what}");
            key.clone()
                .filter(|path| !path.as_os_str().is_empty())
                .ok_or_else(missing)
        };
        let data = directory(
            &file.data,
            "a directory of its own for what must survive a restart: name one with --data DIR",
        )?;
        let certs = directory(
            &file.certs,
            "certificates: make them with `dunlin certs` and name their directory with --certs DIR",
        )?;
        let quic = file.quic.unwrap_or((Ipv4Addr::LOCALHOST, 7601).into());
        let bound = (quic.port() != 0).then(|| HostPort::from(quic));
        let quic_advertise = file.quic_advertise.clone().or(bound);
        let reaches_nobody = match &quic_advertise {
            Some(address) => address.is_unspecified(),
            None => quic.ip().is_unspecified(),
        };
        if reaches_nobody {
            return Err(format!(
                "other nodes would be told to connect to {}, which is no address: say with --quic-advertise HOST:PORT \
                 how they reach this node",
                quic_advertise.map_or_else(|| quic.to_string(), |address| address.to_string()),
            ));
        }
        Ok(Self {
            name,
            bus: Bus::from_file(file)?,
            server: Server::from_file(file, 9611)?,
            data,
            quic,
            quic_advertise,
            join: file.join.clone(),
            bootstrap_expect: file.bootstrap_expect,
            zone: file.zone.clone().unwrap_or_default(),
            witness: file.witness.unwrap_or_default(),
            drain_timeout_s: file.drain_timeout_s.unwrap_or(20),
            certs,
            workers: file.workers.unwrap_or_default(),
            namespaces: file.namespaces.clone(),
        })
    }
}

impl Node {
    pub(crate) fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.drain_timeout_s)
    }

    pub(crate) fn namespaces(&self) -> Namespaces {
        namespaces(&self.namespaces)
    }
}

fn no_host_name() -> String {
    "this host has no name that a process could have: give one with --name".into()
}

/// Checks what all sources together say, then takes what a command uses.
fn checked<T>(file: &File, take: impl FnOnce(&File) -> Result<T, String>) -> Result<T, Failure> {
    let checked = file.check().map_err(|(_, message)| message);
    checked
        .and_then(|()| take(file))
        .map_err(|problem| Exit::Config.because(problem))
}

/// As TOML. Secrets are masked: that is how they serialise.
pub(crate) fn to_toml(config: &impl Serialize) -> Result<String, Failure> {
    toml::to_string(config).map_err(|error| Exit::Software.with(error))
}

/// Threads of a process whose clients have threads of their own: they answer
/// HTTP and talk to nodes. Half of the cores do that; more would only wake each
/// other.
pub(crate) fn threads_beside_workers() -> usize {
    (workers(0) / 2).max(1)
}

/// How many workers a configured number means.
pub(crate) fn workers(configured: u8) -> usize {
    match configured {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        workers => usize::from(workers),
    }
}

fn namespaces(rules: &[NamespaceConfig]) -> Namespaces {
    Namespaces::new(rules.iter().map(NamespaceConfig::namespace).collect())
}
