//! The configuration file: one format for all commands, so that one file can
//! serve a gateway and a node. A command ignores the keys of the others, but a
//! key that no command knows, or a value that none would take, is refused with
//! its line.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gateway::app::{
    App, Bounds, CLIENT_EVENTS_PER_S_DEFAULT, PAYLOAD_BYTES_DEFAULT, PAYLOAD_BYTES_LIMIT, Secret,
};
use gateway::core::admission::AppLimits;
use gateway::core::connection;
use gateway::core::limits::Rate;
use proto::id::{AppId, NodeId};
use proto::namespace::{HistoryLimits, Namespace, Slow, Standby};
use proto::presence::USERS_MAX;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::address::{BusServers, HostPort, LISTEN, TrustedProxies};
use crate::cli::{AppText, LogFormat};
use crate::exit::{Exit, Failure};

/// What a configuration file may say.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct File {
    /// Where clients and backends connect. Port 0 takes any free one.
    #[schemars(with = "Option<String>")]
    pub(crate) listen: Option<SocketAddr>,
    /// Where health, metrics and administration are. Without `admin_token_file` it must be a loopback address.
    #[schemars(with = "Option<String>")]
    pub(crate) admin: Option<SocketAddr>,
    /// Tokens for the admin address, made by `dunlin token admin`.
    pub(crate) admin_token_file: Option<PathBuf>,
    /// How to write logs: `text` or `json`.
    #[schemars(with = "Option<String>")]
    pub(crate) log: Option<LogFormat>,
    /// Gateway: threads that own connections. Node: tasks that share the shards. Up to 64; 0: one per core.
    pub(crate) workers: Option<u8>,
    /// Seconds of silence after which a WebSocket client is pinged; 30 s later it is given up. 1 to 3600.
    pub(crate) activity_timeout_s: Option<u64>,
    /// Bytes that may wait for one client. One that is further behind is disconnected. At least 65536.
    pub(crate) outbox_bytes_max: Option<usize>,
    /// Seconds that anything may wait for one client. One that has not read it by then is disconnected. 1 to 3600.
    pub(crate) outbox_age_max_s: Option<u64>,
    /// Bytes that may wait for all clients of a gateway. Beyond, those are disconnected for whom most waits. At least `outbox_bytes_max`.
    pub(crate) outbox_bytes_total_max: Option<usize>,
    /// Bytes that the kernel keeps for one client that does not read, before they wait here. 4096 to 16777216.
    pub(crate) send_buffer_bytes: Option<usize>,
    /// A certificate for the client address, and those between it and its authority (PEM). It is read again when the file changes.
    pub(crate) tls_cert: Option<PathBuf>,
    /// The key of that certificate (PEM).
    pub(crate) tls_key: Option<PathBuf>,
    /// Proxies in front of the gateway: addresses or networks, such as `10.0.0.0/8,fd00::1`, with commas between them, or `none`. What they say in `X-Forwarded-For` is believed, and limits by address are on. Without: they are off.
    #[schemars(with = "Option<String>")]
    pub(crate) trusted_proxies: Option<TrustedProxies>,
    /// What clients may at one gateway.
    pub(crate) limits: LimitsConfig,
    /// The cluster's name on the bus; several can share a bus.
    #[schemars(with = "Option<String>")]
    pub(crate) cluster: Option<NodeId>,
    /// The NATS servers, with commas between them: `nats://HOST:PORT`, or `tls://HOST:PORT` to insist on TLS. One may hold `USER:PASSWORD@` or `TOKEN@`, which serves for all.
    #[schemars(with = "Option<String>")]
    pub(crate) bus: Option<BusServers>,
    /// Credentials for the bus (a NATS `.creds` file).
    pub(crate) bus_creds: Option<PathBuf>,
    /// Certificate authorities for the bus (PEM), instead of the system's; connections are by TLS then.
    pub(crate) bus_ca: Option<PathBuf>,
    /// The name of this process, unlike that of every other gateway or node of the cluster.
    #[schemars(with = "Option<String>")]
    pub(crate) name: Option<NodeId>,
    /// Where the node keeps what must survive a restart. One directory per node.
    pub(crate) data: Option<PathBuf>,
    /// Where other nodes connect (QUIC, so UDP).
    #[schemars(with = "Option<String>")]
    pub(crate) quic: Option<SocketAddr>,
    /// What other nodes are told to connect to: `HOST:PORT`.
    #[schemars(with = "Option<String>")]
    pub(crate) quic_advertise: Option<HostPort>,
    /// Nodes to ask for the cluster: a list of `HOST:PORT`. One that answers is enough.
    #[schemars(with = "Vec<String>")]
    pub(crate) join: Vec<HostPort>,
    /// Form a new cluster once that many new nodes have met, 1 to 7. All of them must say the same number. A cluster that is there already is joined instead.
    pub(crate) bootstrap_expect: Option<u8>,
    /// Where the node stands, such as a rack or a data centre; a word with the characters of names.
    pub(crate) zone: Option<String>,
    /// Votes and owns nothing.
    pub(crate) witness: Option<bool>,
    /// How many seconds a node that is told to end may take to give its shards to others, 0 to 3600. 0: it ends at once, and they take over by themselves.
    pub(crate) drain_timeout_s: Option<u64>,
    /// Over how many seconds a gateway that is told to end spreads that its clients are sent away, 0 to 3600.
    pub(crate) drain_window_s: Option<u64>,
    /// How many clients a second it sends away at most, however long that takes; at least 1.
    pub(crate) drain_per_s: Option<u32>,
    /// Where the node finds `ca.crt`, `NAME.crt` and `NAME.key`, made by `dunlin certs`.
    pub(crate) certs: Option<PathBuf>,
    /// The apps that are served.
    pub(crate) apps: Vec<AppConfig>,
    /// Settings for channels by name; the first that matches counts.
    pub(crate) namespaces: Vec<NamespaceConfig>,
}

/// An app: a tenant with its own key, secret and channels.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AppConfig {
    /// Stands in the paths of the HTTP API.
    #[schemars(with = "String")]
    pub(crate) id: AppId,
    /// Stands in clients. Public.
    pub(crate) key: String,
    /// Signs subscriptions and API requests. Never leaves backends and this server.
    #[serde(deserialize_with = "read_secret", serialize_with = "mask")]
    #[schemars(with = "String")]
    pub(crate) secret: Secret,
    /// A disabled app is told so.
    #[serde(default = "yes")]
    pub(crate) enabled: bool,
    /// Origins whose pages may connect, such as `https://example.com` (no slash at the end); `*` is any.
    #[serde(default = "any_origin")]
    pub(crate) allowed_origins: Vec<String>,
    /// Connections at most, at each gateway. 0: no limit. Beyond: 4004, or 503.
    #[serde(default)]
    pub(crate) connections_max: u32,
    /// New connections a second, at each gateway; after a rest twice as many at once. 0: no limit, for after an outage all clients come back together. Beyond: 429.
    #[serde(default)]
    pub(crate) connects_per_s: u32,
    /// Requests to the HTTP API a second, at each gateway; after a rest twice as many at once. 0: no limit, for backends hold the app's secret. Beyond: 429.
    #[serde(default)]
    pub(crate) api_requests_per_s: u32,
    /// Publications a second by its backends, at each gateway, an event once for each of its channels; after a rest twice as many at once. 0: no limit. Beyond: 429.
    #[serde(default)]
    pub(crate) publishes_per_s: u32,
    /// Bytes of one event's data at most, up to 409600.
    #[serde(default = "payload_default")]
    pub(crate) payload_bytes_max: usize,
    /// Bytes of a channel's name at most, 1 to 200.
    #[serde(default = "channel_bytes_default")]
    pub(crate) channel_bytes_max: usize,
    /// Bytes of an event's name at most, 1 to 200.
    #[serde(default = "event_bytes_default")]
    pub(crate) event_bytes_max: usize,
    /// Channels of one event at most, 1 to 100.
    #[serde(default = "event_channels_default")]
    pub(crate) event_channels_max: usize,
    /// Events of one batch at most, 1 to 10.
    #[serde(default = "batch_events_default")]
    pub(crate) batch_events_max: usize,
    /// Users in one presence channel at most, 1 to 10000.
    #[serde(default = "users_default")]
    pub(crate) users_max: u32,
    /// Bytes of one user's `user_info` at most, up to 2048.
    #[serde(default = "user_info_default")]
    pub(crate) user_info_bytes_max: usize,
    /// Whether clients may publish events to each other (`client-…`), in private and presence channels that they are subscribed to, but not in encrypted ones. On for the app that `dunlin dev` has if none is given; an app that is given as `ID:KEY:SECRET` has the defaults of this table.
    #[serde(default)]
    pub(crate) client_events: bool,
    /// Whether subscribers are counted: clients are told how many there are (`pusher:subscription_count`), and backends may ask (`info`).
    #[serde(default)]
    pub(crate) subscription_count: bool,
    /// How many such events a second each client may publish; after a rest twice as many at once. 0: no limit. Beyond, each is refused with error 4301.
    #[serde(default = "client_events_default")]
    pub(crate) client_events_per_s: u32,
    /// How many seconds a client has to sign in, or to subscribe to a channel that needs a signature. 0: it need not. Beyond: 4009.
    #[serde(default)]
    pub(crate) user_authentication_timeout_s: u32,
}

/// What clients may at one gateway.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LimitsConfig {
    /// Connections of clients. 0, or more than open files leave room for: as many as they do. Beyond: 4100, or 503.
    pub(crate) connections_max: u32,
    /// Connections from one IPv4 address or one /64 of IPv6. An office or a provider's network may be behind one. Beyond: 4100, or 429.
    pub(crate) connections_per_ip_max: u32,
    /// New connections a second from one of these, and after a rest ten times as many at once: a whole office comes back at once when its line does. Beyond: 429.
    pub(crate) connects_per_ip_per_s: u32,
    /// Channels of one connection; far more than a page shows.
    pub(crate) subscriptions_max: u32,
    /// How often a second a connection may subscribe, after it has subscribed to `subscriptions_max` channels at once; faster than anybody clicks. Beyond, each is refused with status 429.
    pub(crate) subscribes_per_s: u32,
    /// Messages a second from one connection, after twice `subscriptions_max` at once. Beyond, they are ignored with one error 4301, and after 1000 the connection is closed with 4100.
    pub(crate) messages_per_s: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let of_connection = connection::Limits::default();
        Self {
            connections_max: 0,
            connections_per_ip_max: 2_000,
            connects_per_ip_per_s: 50,
            subscriptions_max: of_connection.subscriptions_max,
            subscribes_per_s: of_connection.subscribes.per_s,
            messages_per_s: of_connection.messages.per_s,
        }
    }
}

impl LimitsConfig {
    /// The first that can never be met.
    fn zero(&self) -> Option<&'static str> {
        [
            ("connections_per_ip_max", self.connections_per_ip_max),
            ("connects_per_ip_per_s", self.connects_per_ip_per_s),
            ("subscriptions_max", self.subscriptions_max),
            ("subscribes_per_s", self.subscribes_per_s),
            ("messages_per_s", self.messages_per_s),
        ]
        .into_iter()
        .find_map(|(name, value)| (value == 0).then_some(name))
    }
}

/// Settings for the channels that match.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamespaceConfig {
    /// Matched against the channel's name after `private-` and the like; `*` is any run of characters.
    pub(crate) r#match: String,
    /// Only this app's channels. Without: every app's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub(crate) app: Option<AppId>,
    /// Publications kept per channel. 0: none.
    #[serde(default = "history_publications")]
    pub(crate) history_publications: u32,
    /// Seconds that they are kept.
    #[serde(default = "history_age")]
    pub(crate) history_age_s: u64,
    /// Bytes kept per channel.
    #[serde(default = "history_bytes")]
    pub(crate) history_bytes: u32,
    /// Who has a publication when it is acknowledged: `standby`, another node, too; or `owner`, the one node
    /// that owns the channel. What the owner alone has is gone with it: then the channel begins anew, and all
    /// who follow it are told of the gap. For cursors, typing and telemetry.
    #[serde(default)]
    pub(crate) ack: AckConfig,
    /// While no other node stands by for the owner of a channel: `prefer` takes publications all the same, and
    /// their acknowledgements say that they are in one process; `require` refuses them with `no_standby`.
    #[serde(default)]
    pub(crate) standby: StandbyConfig,
    /// What a gateway does with a client that reads more slowly than is published: `disconnect` tells it so; `gap`
    /// leaves it out, and gives it what it missed when it has read what waits. What history has no more by then is
    /// announced as a gap.
    #[serde(default)]
    pub(crate) slow: SlowConfig,
}

/// What becomes of clients that read too slowly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SlowConfig {
    #[default]
    Disconnect,
    Gap,
}

/// Who has a publication when it is acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AckConfig {
    #[default]
    Standby,
    Owner,
}

/// What becomes of publications while nobody stands by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StandbyConfig {
    #[default]
    Prefer,
    Require,
}

fn read_secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    String::deserialize(deserializer).map(|text| Secret::new(&text))
}

fn mask<S: Serializer>(_: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str("***")
}

fn yes() -> bool {
    true
}

fn any_origin() -> Vec<String> {
    vec!["*".into()]
}

fn payload_default() -> usize {
    PAYLOAD_BYTES_DEFAULT
}

fn client_events_default() -> u32 {
    CLIENT_EVENTS_PER_S_DEFAULT
}

fn channel_bytes_default() -> usize {
    Bounds::default().channel_bytes_max
}

fn event_bytes_default() -> usize {
    Bounds::default().event_bytes_max
}

fn event_channels_default() -> usize {
    Bounds::default().event_channels_max
}

fn batch_events_default() -> usize {
    Bounds::default().batch_events_max
}

fn users_default() -> u32 {
    USERS_MAX as u32
}

fn user_info_default() -> usize {
    Bounds::default().user_info_bytes_max
}

fn history_publications() -> u32 {
    HistoryLimits::default().publications
}

fn history_age() -> u64 {
    HistoryLimits::default().age.as_secs()
}

fn history_bytes() -> u32 {
    HistoryLimits::default().bytes
}

/// What is wrong, and a text that stands on its line.
type Contradiction = (String, String);

impl File {
    /// Reads a file, or nothing if there is none to read.
    pub(super) fn read(path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| {
            Exit::Config.because(format!(
                "could not read the configuration file {shown}: {error}"
            ))
        })?;
        Self::parse(&text).map_err(|Problem { line, message }| match line {
            Some(line) => Exit::Config.because(format!("{shown}:{line}: {message}")),
            None => Exit::Config.because(format!("{shown}: {message}")),
        })
    }

    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        let syntax = |error: &toml::de::Error| Problem {
            line: error.span().map(|span| line_of(text, span.start)),
            message: first_line(error.message()),
        };
        let deserializer = toml::de::Deserializer::parse(text).map_err(|error| syntax(&error))?;
        let file: Self = serde_path_to_error::deserialize(deserializer).map_err(|error| {
            let key = error.path().to_string();
            let Problem { line, message } = syntax(error.inner());
            // A value of the wrong type is repeated by the message.
            if key.ends_with("secret") || (key == "bus" && message.starts_with("invalid type")) {
                let message = format!("{key}: expected a text in quotes");
                return Problem { line, message };
            }
            let message = match message.as_str() {
                // As the standard library says it.
                "invalid socket address syntax" => LISTEN.to_owned(),
                _ => message,
            };
            // An unknown key is named by the message already.
            let message = if key == "." {
                message
            } else {
                format!("{key}: {message}")
            };
            Problem { line, message }
        })?;
        file.check().map_err(|(needle, message)| Problem {
            line: find_line(text, &needle),
            message,
        })?;
        Ok(file)
    }

    /// What the values say against themselves and each other, whichever command
    /// they are for.
    pub(super) fn check(&self) -> Result<(), Contradiction> {
        self.check_apps()?;
        self.check_origins()?;
        self.check_namespaces()?;
        let within = |key: &str, fine: bool, expected: &str| {
            if fine {
                return Ok(());
            }
            Err((key.to_owned(), format!("{key}: expected {expected}")))
        };
        within(
            "activity_timeout_s",
            self.activity_timeout_s
                .is_none_or(|secs| (1..=3_600).contains(&secs)),
            "1 to 3600",
        )?;
        within(
            "drain_timeout_s",
            self.drain_timeout_s.is_none_or(|secs| secs <= 3_600),
            "0 to 3600",
        )?;
        within(
            "drain_window_s",
            self.drain_window_s.is_none_or(|secs| secs <= 3_600),
            "0 to 3600",
        )?;
        within(
            "drain_per_s",
            self.drain_per_s.is_none_or(|clients| clients > 0),
            "at least 1",
        )?;
        within(
            "workers",
            self.workers
                .is_none_or(|n| usize::from(n) <= gateway::core::workers::WORKERS_MAX),
            "0 to 64",
        )?;
        within(
            "outbox_bytes_max",
            self.outbox_bytes_max
                .is_none_or(|bytes| bytes >= 64 * 1_024),
            "at least 65536",
        )?;
        within(
            "outbox_age_max_s",
            self.outbox_age_max_s
                .is_none_or(|secs| (1..=3_600).contains(&secs)),
            "1 to 3600",
        )?;
        within(
            "send_buffer_bytes",
            self.send_buffer_bytes
                .is_none_or(|bytes| (4_096..=16 * 1_024 * 1_024).contains(&bytes)),
            "4096 to 16777216",
        )?;
        if let Some(key) = self.limits.zero() {
            return Err((key.to_owned(), format!("limits.{key}: expected at least 1")));
        }
        within(
            "bootstrap_expect",
            self.bootstrap_expect.is_none_or(|n| (1..=7).contains(&n)),
            "1 to 7",
        )?;
        within(
            "zone",
            self.zone.as_deref().is_none_or(is_zone),
            "up to 64 of the characters A-Z a-z 0-9 _ -",
        )
    }

    fn check_apps(&self) -> Result<(), Contradiction> {
        let (mut ids, mut keys) = (HashSet::new(), HashSet::new());
        for (i, app) in self.apps.iter().enumerate() {
            let at = format!("apps[{i}]");
            if !ids.insert(&app.id) {
                let id = app.id.as_str();
                let message = format!("{at}.id: another app has the id {id:?} already");
                return Err((id.to_owned(), message));
            }
            if !keys.insert(&app.key) {
                let message = format!("{at}.key: another app has this key already");
                return Err((app.key.clone(), message));
            }
            for (name, value) in [("key", app.key.as_str()), ("secret", app.secret.expose())] {
                if value.is_empty() {
                    let message = format!("{at}.{name}: expected a text that is not empty");
                    return Err((format!("{name} ="), message));
                }
            }
            if !(1..=PAYLOAD_BYTES_LIMIT).contains(&app.payload_bytes_max) {
                let message =
                    format!("{at}.payload_bytes_max: expected 1 to {PAYLOAD_BYTES_LIMIT}");
                return Err(("payload_bytes_max".into(), message));
            }
            if let Some((name, least, most)) = app.out_of_bounds() {
                let message = format!("{at}.{name}: expected {least} to {most}");
                return Err((name.into(), message));
            }
        }
        Ok(())
    }

    /// A browser sends scheme, host and port: anything else never matches.
    fn check_origins(&self) -> Result<(), Contradiction> {
        for (i, app) in self.apps.iter().enumerate() {
            for origin in app.allowed_origins.iter().filter(|origin| *origin != "*") {
                let host = origin
                    .split_once("://")
                    .map(|(_, host)| host)
                    .unwrap_or_default();
                if host.is_empty() || host.contains('/') {
                    let message = format!(
                        "apps[{i}].allowed_origins: {origin:?} matches nothing; expected * or, say, https://example.com"
                    );
                    return Err((origin.clone(), message));
                }
            }
        }
        Ok(())
    }

    fn check_namespaces(&self) -> Result<(), Contradiction> {
        for (i, namespace) in self.namespaces.iter().enumerate() {
            let pattern = &namespace.r#match;
            let at = format!("namespaces[{i}]");
            if pattern.is_empty()
                || pattern.starts_with("private-")
                || pattern.starts_with("presence-")
            {
                let message = format!(
                    "{at}.match: {pattern:?} matches nothing; expected a pattern for the name after private- and the like, such as chat-*"
                );
                return Err((format!("match = \"{pattern}\""), message));
            }
            if namespace.ack == AckConfig::Owner && namespace.standby == StandbyConfig::Require {
                let message = format!(
                    "{at}: ack = \"owner\" means that no other node has the publications, and standby = \"require\" that one must; leave out one of them"
                );
                return Err(("ack = \"owner\"".into(), message));
            }
            if let Some(id) = &namespace.app
                && !self.apps.is_empty()
                && !self.apps.iter().any(|app| app.id == *id)
            {
                return Err((
                    format!("app = \"{id}\""),
                    format!("{at}.app: there is no app with the id {:?}", id.as_str()),
                ));
            }
        }
        Ok(())
    }
}

/// Zones have the alphabet of ids, and may be left open.
fn is_zone(text: &str) -> bool {
    text.is_empty() || text.parse::<NodeId>().is_ok()
}

impl AppConfig {
    pub(super) fn new(id: &str, key: &str, secret: Secret) -> Result<Self, Failure> {
        Ok(Self {
            id: id
                .parse()
                .map_err(|error| Exit::Usage.because(format!("--app: {error}")))?,
            key: key.into(),
            secret,
            enabled: true,
            allowed_origins: any_origin(),
            connections_max: 0,
            connects_per_s: 0,
            api_requests_per_s: 0,
            publishes_per_s: 0,
            payload_bytes_max: PAYLOAD_BYTES_DEFAULT,
            channel_bytes_max: channel_bytes_default(),
            event_bytes_max: event_bytes_default(),
            event_channels_max: event_channels_default(),
            batch_events_max: batch_events_default(),
            users_max: users_default(),
            user_info_bytes_max: user_info_default(),
            client_events: false,
            subscription_count: false,
            client_events_per_s: CLIENT_EVENTS_PER_S_DEFAULT,
            user_authentication_timeout_s: 0,
        })
    }

    pub(crate) fn from_text(text: &AppText) -> Result<Self, Failure> {
        let app = text.parse()?;
        Self::new(&app.id, &app.key, app.secret)
    }

    /// The first bound that is more than any app may have, or that nothing can meet; and
    /// from where to where it may go.
    fn out_of_bounds(&self) -> Option<(&'static str, usize, usize)> {
        let most = Bounds::default();
        [
            (
                "channel_bytes_max",
                self.channel_bytes_max,
                1,
                most.channel_bytes_max,
            ),
            (
                "event_bytes_max",
                self.event_bytes_max,
                1,
                most.event_bytes_max,
            ),
            (
                "event_channels_max",
                self.event_channels_max,
                1,
                most.event_channels_max,
            ),
            (
                "batch_events_max",
                self.batch_events_max,
                1,
                most.batch_events_max,
            ),
            ("users_max", self.users_max as usize, 1, USERS_MAX),
            (
                "user_info_bytes_max",
                self.user_info_bytes_max,
                0,
                most.user_info_bytes_max,
            ),
        ]
        .into_iter()
        .find(|(_, value, least, most)| !(least..=most).contains(&value))
        .map(|(name, _, least, most)| (name, least, most))
    }

    pub(super) fn app(&self) -> App {
        let mut app = App::new(self.id.clone(), &self.key, self.secret.expose());
        app.enabled = self.enabled;
        app.allowed_origins.clone_from(&self.allowed_origins);
        // 0 is "no limit" wherever it can stand.
        let rate = |per_s: u32| {
            (per_s > 0).then(|| Rate {
                burst: per_s.saturating_mul(2),
                per_s,
            })
        };
        app.limits = AppLimits {
            connections_max: (self.connections_max > 0).then_some(self.connections_max),
            connects: rate(self.connects_per_s),
            requests: rate(self.api_requests_per_s),
            publishes: rate(self.publishes_per_s),
        };
        app.payload_bytes_max = self.payload_bytes_max;
        app.bounds = Bounds {
            channel_bytes_max: self.channel_bytes_max,
            event_bytes_max: self.event_bytes_max,
            event_channels_max: self.event_channels_max,
            batch_events_max: self.batch_events_max,
            users_max: (self.users_max < users_default()).then_some(self.users_max),
            user_info_bytes_max: self.user_info_bytes_max,
        };
        app.client_events = self.client_events;
        app.subscription_count = self.subscription_count;
        app.client_event_rate = rate(self.client_events_per_s);
        let patience = u64::from(self.user_authentication_timeout_s);
        app.authentication_timeout = (patience > 0).then(|| Duration::from_secs(patience));
        app
    }
}

impl NamespaceConfig {
    pub(super) fn namespace(&self) -> Namespace {
        Namespace {
            pattern: self.r#match.clone(),
            app: self.app.clone(),
            history: HistoryLimits {
                publications: self.history_publications,
                age: Duration::from_secs(self.history_age_s),
                bytes: self.history_bytes,
            },
            standby: match (self.ack, self.standby) {
                (AckConfig::Owner, _) => Standby::None,
                (AckConfig::Standby, StandbyConfig::Prefer) => Standby::Prefer,
                (AckConfig::Standby, StandbyConfig::Require) => Standby::Require,
            },
            slow: match self.slow {
                SlowConfig::Disconnect => Slow::Disconnect,
                SlowConfig::Gap => Slow::Gap,
            },
        }
    }
}

/// Why a file was refused.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) line: Option<usize>,
    pub(super) message: String,
}

/// The parser's messages can go on with the text of the line, which may hold a
/// secret.
fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()
        .iter()
        .take(at)
        .filter(|byte| **byte == b'\n')
        .count()
        + 1
}

/// The last line with a text: of two that say the same, the later one is wrong.
fn find_line(text: &str, needle: &str) -> Option<usize> {
    text.rfind(needle).map(|at| line_of(text, at))
}
