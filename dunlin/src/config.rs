//! Configuration: flags over environment over file over defaults. The only
//! place that reads it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::CommandFactory;
use gateway::app::{App, PAYLOAD_BYTES_DEFAULT, PAYLOAD_BYTES_LIMIT};
use proto::id::AppId;
use proto::namespace::{HistoryLimits, Namespace, Namespaces};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::admin;
use crate::cli::{AppText, Cli, LogFormat, ServerOptions};
use crate::exit::{Exit, Failure};

/// What a configuration file may say. Every key has a default.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Where clients and backends connect. Port 0 takes any free one.
    #[schemars(with = "String")]
    pub(crate) listen: SocketAddr,
    /// Where health, metrics and administration are. Without `admin_token_file` it must be a loopback address.
    #[schemars(with = "String")]
    pub(crate) admin: SocketAddr,
    /// Tokens for the admin address, made by `dunlin token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) admin_token_file: Option<PathBuf>,
    /// How to write logs: `text` or `json`.
    #[schemars(with = "String")]
    pub(crate) log: LogFormat,
    /// Threads that own connections, up to 64. 0: one per core.
    pub(crate) workers: u8,
    /// Seconds of silence after which a WebSocket client is pinged; 30 s later it is given up. 1 to 3600.
    pub(crate) activity_timeout_s: u64,
    /// Bytes that may wait for one client. One that is further behind is disconnected. At least 65536.
    pub(crate) outbox_bytes_max: usize,
    /// The apps that are served. Without any, one for development: `app-id`, `app-key`, `app-secret`.
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
    pub(crate) secret: String,
    /// A disabled app is told so.
    #[serde(default = "yes")]
    pub(crate) enabled: bool,
    /// Origins whose pages may connect, such as `https://example.com` (no slash at the end); `*` is any.
    #[serde(default = "any_origin")]
    pub(crate) allowed_origins: Vec<String>,
    /// Connections at most. 0: no limit.
    #[serde(default)]
    pub(crate) connections_max: u32,
    /// Bytes of one event's data at most, up to 409600.
    #[serde(default = "payload_default")]
    pub(crate) payload_bytes_max: usize,
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

fn history_publications() -> u32 {
    HistoryLimits::default().publications
}

fn history_age() -> u64 {
    HistoryLimits::default().age.as_secs()
}

fn history_bytes() -> u32 {
    HistoryLimits::default().bytes
}

impl Default for Config {
    fn default() -> Self {
        // Those of Soketi and Sockudo, so that existing clients just connect.
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 6001)),
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 9601)),
            admin_token_file: None,
            log: LogFormat::Text,
            workers: 0,
            activity_timeout_s: 120,
            outbox_bytes_max: 1_024 * 1_024,
            apps: Vec::new(),
            namespaces: Vec::new(),
        }
    }
}

impl Config {
    /// What file, environment and flags come to, checked.
    pub(crate) fn resolve(options: &ServerOptions) -> Result<Self, Failure> {
        let mut config = match &options.config {
            Some(file) => Self::read(file).map_err(|problem| Exit::Config.because(problem))?,
            None => Self::default(),
        };
        if let Some(listen) = options.listen {
            config.listen = listen;
        }
        if let Some(admin) = options.admin {
            config.admin = admin;
        }
        if let Some(log) = options.log {
            config.log = log;
        }
        if let Some(workers) = options.workers {
            config.workers = workers;
        }
        if options.admin_token_file.is_some() {
            config
                .admin_token_file
                .clone_from(&options.admin_token_file);
        }
        if !options.apps.is_empty() {
            config.apps = options
                .apps
                .iter()
                .map(AppConfig::from_text)
                .collect::<Result<_, _>>()?;
        }
        if config.apps.is_empty() {
            config
                .apps
                .push(AppConfig::new("app-id", "app-key", "app-secret")?);
        }
        config
            .check()
            .map_err(|problem| Exit::Config.because(problem))?;
        Ok(config)
    }

    /// Names in the environment that look like ours and are not: typing errors.
    /// No more than a warning, for Kubernetes sets some of its own for a
    /// service called dunlin.
    pub(crate) fn unknown_environment() -> Vec<String> {
        fn known(command: &clap::Command, names: &mut BTreeSet<String>) {
            let own = command
                .get_arguments()
                .filter_map(|argument| argument.get_env());
            names.extend(own.map(|name| name.to_string_lossy().into_owned()));
            for sub in command.get_subcommands() {
                known(sub, names);
            }
        }
        let mut names = BTreeSet::new();
        known(&Cli::command(), &mut names);
        let all = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
        all.filter(|name| name.starts_with("DUNLIN_") && !names.contains(name))
            .collect()
    }

    fn read(file: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            format!(
                "could not read the configuration file {}: {error}",
                file.display()
            )
        })?;
        Self::parse(&text).map_err(|Problem { line, message }| match line {
            Some(line) => format!("{}:{line}: {message}", file.display()),
            None => format!("{}: {message}", file.display()),
        })
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let syntax = |error: &toml::de::Error| Problem {
            line: error.span().map(|span| line_of(text, span.start)),
            message: first_line(error.message()),
        };
        let deserializer = toml::de::Deserializer::parse(text).map_err(|error| syntax(&error))?;
        let config: Self = serde_path_to_error::deserialize(deserializer).map_err(|error| {
            let key = error.path().to_string();
            let Problem { line, message } = syntax(error.inner());
            // A value of the wrong type is repeated by the message.
            if key.ends_with("secret") {
                let message = format!("{key}: expected a text in quotes");
                return Problem { line, message };
            }
            // An unknown key is named by the message already.
            let message = if key == "." {
                message
            } else {
                format!("{key}: {message}")
            };
            Problem { line, message }
        })?;
        config.check_file().map_err(|(needle, message)| Problem {
            line: find_line(text, &needle),
            message,
        })?;
        Ok(config)
    }

    /// What a file says against itself; with a text that stands on the line.
    fn check_file(&self) -> Result<(), (String, String)> {
        for (i, app) in self.apps.iter().enumerate() {
            let at = format!("apps[{i}]");
            let earlier = &self.apps[..i];
            if earlier.iter().any(|other| other.id == app.id) {
                return Err((
                    app.id.to_string(),
                    format!(
                        "{at}.id: another app has the id {:?} already",
                        app.id.as_str()
                    ),
                ));
            }
            if earlier.iter().any(|other| other.key == app.key) {
                return Err((
                    app.key.clone(),
                    format!("{at}.key: another app has this key already"),
                ));
            }
            for (name, value) in [("key", &app.key), ("secret", &app.secret)] {
                if value.is_empty() {
                    return Err((
                        format!("{name} ="),
                        format!("{at}.{name}: expected a text that is not empty"),
                    ));
                }
            }
            if app.payload_bytes_max == 0 || app.payload_bytes_max > PAYLOAD_BYTES_LIMIT {
                let message =
                    format!("{at}.payload_bytes_max: expected 1 to {PAYLOAD_BYTES_LIMIT}");
                return Err(("payload_bytes_max".into(), message));
            }
        }
        self.check_origins()?;
        self.check_namespaces()?;
        if !(1..=3_600).contains(&self.activity_timeout_s) {
            return Err((
                "activity_timeout_s".into(),
                "activity_timeout_s: expected 1 to 3600".into(),
            ));
        }
        if usize::from(self.workers) > gateway::core::workers::WORKERS_MAX {
            return Err(("workers".into(), "workers: expected 0 to 64".into()));
        }
        if self.outbox_bytes_max < 64 * 1_024 {
            return Err((
                "outbox_bytes_max".into(),
                "outbox_bytes_max: expected at least 65536".into(),
            ));
        }
        Ok(())
    }

    /// A browser sends scheme, host and port: anything else never matches.
    fn check_origins(&self) -> Result<(), (String, String)> {
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

    fn check_namespaces(&self) -> Result<(), (String, String)> {
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

    /// What all sources together say against each other.
    fn check(&self) -> Result<(), String> {
        self.check_file().map_err(|(_, message)| message)?;
        if self.listen == self.admin && self.listen.port() != 0 {
            return Err(format!(
                "listen and admin are both {}; clients and administration need an address each",
                self.listen
            ));
        }
        if self.admin_token_file.is_none() && !admin::is_private(self.admin) {
            return Err(format!(
                "admin is {}, which others can reach, and there are no tokens: make some with `dunlin token --file FILE` \
                 and name the file with --admin-token-file, or use a loopback address",
                self.admin
            ));
        }
        Ok(())
    }

    /// As TOML, with secrets masked.
    pub(crate) fn masked(&self) -> String {
        let mut masked = self.clone();
        for app in &mut masked.apps {
            app.secret = "***".into();
        }
        toml::to_string(&masked).expect("a configuration is always TOML")
    }

    pub(crate) fn apps(&self) -> impl Iterator<Item = App> {
        self.apps.iter().map(|config| {
            let mut app = App::new(config.id.clone(), &config.key, &config.secret);
            app.enabled = config.enabled;
            app.allowed_origins.clone_from(&config.allowed_origins);
            app.connections_max = config.connections_max;
            app.payload_bytes_max = config.payload_bytes_max;
            app
        })
    }

    pub(crate) fn namespaces(&self) -> Namespaces {
        let rules = self.namespaces.iter().map(|namespace| Namespace {
            pattern: namespace.r#match.clone(),
            app: namespace.app.clone(),
            history: HistoryLimits {
                publications: namespace.history_publications,
                age: Duration::from_secs(namespace.history_age_s),
                bytes: namespace.history_bytes,
            },
        });
        Namespaces::new(rules.collect())
    }

    /// The reference page.
    pub(crate) fn reference() -> String {
        let schema = schemars::schema_for!(Self).to_value();
        let mut page = String::from(
            "# Configuration\n\nFlags overrule the environment, which overrules the file, which overrules the defaults. \
             The file is TOML and named by `--config` or `DUNLIN_CONFIG`. `dunlin config` prints the result, secrets masked.\n\n\
             An unknown key or a wrong value is refused, with file, line, key and what was expected (exit code 78).\n",
        );
        let defaults = serde_json::to_value(Self::default()).unwrap_or_default();
        page.push_str("\n## Top level\n");
        table(&mut page, &schema, Some(&defaults));
        for (section, definition) in [
            ("`[[apps]]`", "AppConfig"),
            ("`[[namespaces]]`", "NamespaceConfig"),
        ] {
            let _ = write!(
                page,
                "\n## {section}\n\n{}\n",
                schema["$defs"][definition]["description"]
                    .as_str()
                    .unwrap_or_default()
            );
            table(&mut page, &schema["$defs"][definition], None);
        }
        page
    }
}

fn table(page: &mut String, schema: &serde_json::Value, defaults: Option<&serde_json::Value>) {
    page.push_str("\n| key | default | meaning |\n|---|---|---|\n");
    let required: Vec<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v.as_str())
        .collect();
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        let meaning = property["description"]
            .as_str()
            .unwrap_or_default()
            .replace('\n', " ");
        let default = defaults.map_or(&property["default"], |defaults| &defaults[key.as_str()]);
        let default = match default {
            _ if required.contains(&key.as_str()) => "required".to_owned(),
            serde_json::Value::Null => "none".to_owned(),
            value => format!("`{value}`"),
        };
        let _ = writeln!(page, "| `{key}` | {default} | {meaning} |");
    }
}

impl AppConfig {
    fn new(id: &str, key: &str, secret: &str) -> Result<Self, Failure> {
        Ok(Self {
            id: id
                .parse()
                .map_err(|error| Exit::Usage.because(format!("--app: {error}")))?,
            key: key.into(),
            secret: secret.into(),
            enabled: true,
            allowed_origins: any_origin(),
            connections_max: 0,
            payload_bytes_max: PAYLOAD_BYTES_DEFAULT,
        })
    }

    fn from_text(text: &AppText) -> Result<Self, Failure> {
        let app = text.parse()?;
        Self::new(&app.id, &app.key, app.secret.expose())
    }
}

#[derive(Debug)]
struct Problem {
    line: Option<usize>,
    message: String,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> (Option<usize>, String) {
        let Problem { line, message } = Config::parse(text).expect_err("refused");
        (line, message)
    }

    const APP: &str = "[[apps]]\nid = \"a\"\nkey = \"k\"\nsecret = \"hunter2\"\n";

    #[test]
    fn problems_name_line_key_and_what_was_expected() {
        let (line, message) = problem("\nlisten = \"nowhere\"\n");
        assert_eq!(line, Some(2));
        assert!(
            message.contains("listen") && message.contains("socket address"),
            "{message}"
        );
        let (line, message) = problem("listen = \"127.0.0.1:1\"\nlisten_adress = 7\n");
        assert_eq!(line, Some(2));
        assert!(
            message.contains("listen_adress") && message.contains("expected one of"),
            "{message}"
        );
        let (line, message) = problem(&format!("{APP}colour = \"red\"\n"));
        assert_eq!(line, Some(5));
        assert!(message.contains("colour"), "{message}");
        let (line, message) = problem("[[apps]]\nid = \"a\"\nkey = 7\n");
        assert_eq!(line, Some(3));
        assert!(
            message.contains("apps[0].key") && message.contains("string"),
            "{message}"
        );
        let (line, message) = problem("[[apps]]\nid = \"a.b\"\nkey = \"k\"\nsecret = \"s\"\n");
        assert_eq!(line, Some(2));
        assert!(message.contains("apps[0].id"), "{message}");
        assert_eq!(problem("listen = ").0, Some(1));
    }

    #[test]
    fn contradictions_are_found() {
        let (line, message) = problem(&format!("{APP}{APP}"));
        assert_eq!(line, Some(6));
        assert!(
            message.contains("apps[1].id") && message.contains("already"),
            "{message}"
        );
        let other = APP.replace("\"a\"", "\"b\"");
        let (line, message) = problem(&format!("{APP}{other}"));
        assert_eq!(line, Some(7));
        assert!(message.contains("apps[1].key"), "{message}");
        assert!(problem("activity_timeout_s = 0").1.contains("1 to 3600"));
        assert!(
            problem(&format!("{APP}payload_bytes_max = 9000000"))
                .1
                .contains("payload_bytes_max")
        );
    }

    #[test]
    fn what_could_never_match_is_refused() {
        let origin = format!("{APP}allowed_origins = [\"https://example.com/\"]\n");
        assert_eq!(problem(&origin).0, Some(5));
        assert!(
            problem(&origin.replace("https://example.com/", "example.com"))
                .1
                .contains("allowed_origins")
        );
        assert!(Config::parse(&origin.replace("com/", "com:8443")).is_ok());
        for pattern in ["", "private-chat-*", "presence-x"] {
            let (line, message) = problem(&format!("\n[[namespaces]]\nmatch = \"{pattern}\"\n"));
            assert_eq!(
                (line, message.contains("namespaces[0].match")),
                (Some(3), true),
                "{message}"
            );
        }
        let stranger = format!("{APP}[[namespaces]]\nmatch = \"*\"\napp = \"nobody\"\n");
        assert!(problem(&stranger).1.contains("nobody"));
    }

    #[test]
    fn secrets_appear_in_no_message_and_no_printout() {
        for broken in [
            format!("{APP}x"),
            format!("{APP}x = 1"),
            format!("{APP}{APP}"),
            APP.replace("\"hunter2\"", "\"hunter2"),
            APP.replace("\"hunter2\"", "hunter2"),
            APP.replace("\"hunter2\"", "[\"hunter2\"]"),
        ] {
            let (_, message) = problem(&broken);
            assert!(!message.contains("hunter2"), "{message}");
        }
        let (line, message) = problem(&APP.replace("\"hunter2\"", "998877"));
        assert_eq!(
            (line, message.contains("998877")),
            (Some(4), false),
            "{message}"
        );
        let config = Config::parse(APP).expect("accepted");
        assert!(!config.masked().contains("hunter2"));
        assert!(config.masked().contains("secret = \"***\""));
    }

    #[test]
    fn flags_overrule_the_file_and_replace_its_apps() {
        let file = std::env::temp_dir().join(format!("dunlin-config-{}.toml", std::process::id()));
        std::fs::write(
            &file,
            format!("listen = \"127.0.0.1:1\"\nadmin = \"127.0.0.1:2\"\n{APP}"),
        )
        .unwrap();
        let options = ServerOptions {
            config: Some(file.clone()),
            listen: Some("127.0.0.1:3".parse().unwrap()),
            apps: vec!["b:l:t".parse().unwrap()],
            ..ServerOptions::default()
        };
        let config = Config::resolve(&options).unwrap();
        std::fs::remove_file(file).unwrap();
        assert_eq!(config.listen.port(), 3);
        assert_eq!(config.admin.port(), 2);
        assert_eq!(config.apps.len(), 1);
        assert_eq!(config.apps[0].id.as_str(), "b");
    }

    #[test]
    fn an_open_admin_address_needs_tokens() {
        let options = ServerOptions {
            admin: Some("0.0.0.0:9601".parse().unwrap()),
            ..ServerOptions::default()
        };
        let failure = Config::resolve(&options).unwrap_err();
        assert_eq!(failure.exit, Exit::Config);
        assert!(failure.error.to_string().contains("--admin-token-file"));
        let options = ServerOptions {
            admin: Some("127.0.0.1:6001".parse().unwrap()),
            ..ServerOptions::default()
        };
        assert!(
            Config::resolve(&options)
                .unwrap_err()
                .error
                .to_string()
                .contains("both")
        );
    }

    #[test]
    fn namespaces_have_the_documented_defaults() {
        let config = Config::parse("[[namespaces]]\nmatch = \"chat-*\"\nhistory_age_s = 60\n")
            .expect("accepted");
        let key = |channel: &str| proto::channel::ChannelKey {
            app: "a".parse().unwrap(),
            channel: channel.parse().unwrap(),
        };
        let namespaces = config.namespaces();
        assert_eq!(
            namespaces.history(&key("private-chat-1")).age,
            Duration::from_secs(60)
        );
        assert_eq!(namespaces.history(&key("private-chat-1")).publications, 256);
        assert_eq!(namespaces.history(&key("news")), &HistoryLimits::default());
    }
}
