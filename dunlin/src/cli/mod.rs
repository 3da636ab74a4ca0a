//! The command line: one file per tool.

use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use gateway::app::Secret;
use serde::{Deserialize, Serialize};

pub(crate) mod certs;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod inspect;
pub(crate) mod nodes;
pub(crate) mod publish;
pub(crate) mod reference;
pub(crate) mod server;
pub(crate) mod subscribe;
mod table;
pub(crate) mod token;

use crate::client::Server;
use crate::exit::{Exit, Failure};

/// Version, commit and wire version.
const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (commit ",
    env!("DUNLIN_COMMIT"),
    ", wire version 1)"
);

/// Dunlin: publish and subscribe for many clients, in order and without silent gaps.
#[derive(Debug, Parser)]
#[command(name = "dunlin", version = VERSION, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run everything in this one process: a gateway and a node on a bus in memory.
    Dev(server::DevOptions),
    /// Run a gateway of a cluster: clients on one side, the bus on the other.
    Gateway(server::GatewayOptions),
    /// Run a node of a cluster: it owns channels and agrees with the other nodes on who owns which.
    Node(Box<server::NodeOptions>),
    /// Publish stdin into a channel, line by line, in order.
    Pub(publish::Options),
    /// Print what arrives in channels.
    Sub(subscribe::Options),
    /// Hold a running cluster to its promises: publish, follow, reconnect, and judge what came.
    Verify(crate::verify::Options),
    /// Measure.
    Bench(crate::bench::Options),
    /// Look inside a running server, or inside its cluster through it.
    Inspect(inspect::Options),
    /// Administer the nodes of a cluster.
    Nodes(nodes::Options),
    /// Make the certificates by which nodes know each other.
    Certs(certs::Options),
    /// Make tokens: for the admin address, or of an app.
    Token(token::Options),
    /// Print the configuration that results from file, environment and flags.
    Config(Box<config::Options>),
    /// Print a completion script for a shell.
    Completions(completions::Options),
    /// Print a reference page; docs/reference is made of them.
    #[command(hide = true)]
    Reference(reference::Options),
}

/// How logs are written.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    ValueEnum,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// JSON objects, one a line.
    Json,
}

/// An app on the command line.
#[derive(Debug, Clone)]
pub(crate) struct AppArgument {
    pub(crate) id: String,
    pub(crate) key: String,
    pub(crate) secret: Secret,
}

/// An app as it was written. clap repeats what it cannot parse, and this may
/// hold a secret: so it takes any text, and parsing comes after.
#[derive(Clone)]
pub(crate) struct AppText(Secret);

impl FromStr for AppText {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(Secret::new(text)))
    }
}

impl std::fmt::Debug for AppText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl AppText {
    /// The app that is meant. The error does not repeat the text.
    pub(crate) fn parse(&self) -> Result<AppArgument, Failure> {
        let mut parts = self.0.expose().splitn(3, ':');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(id), Some(key), Some(secret)) if ![id, key, secret].contains(&"") => Ok(AppArgument {
                id: id.into(),
                key: key.into(),
                secret: Secret::new(secret),
            }),
            _ => Err(Exit::Usage.because(
                "--app (or DUNLIN_APP, DUNLIN_APPS): an app is ID:KEY:SECRET, none of them empty; \
                 DUNLIN_APPS has commas between apps, so a secret with a comma goes into the configuration file",
            )),
        }
    }
}

/// Text with control characters spelled out, but for those that make lines: what
/// others wrote must not command a terminal.
pub(crate) fn printable(text: &str) -> String {
    let spell = |c: char| {
        if c.is_control() && c != '\n' && c != '\t' {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    text.chars().map(spell).collect()
}

/// The runtime of a tool.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.map_err(|error| Exit::Software.with(error))
}

/// For deadlines.
#[expect(clippy::disallowed_methods, reason = "shell: tools have patience")]
pub(crate) fn now() -> proto::time::Timestamp {
    proto::time::Timestamp::now()
}

/// Waits before trying again.
#[expect(clippy::disallowed_methods, reason = "shell: tools wait for servers")]
pub(crate) async fn wait(duration: std::time::Duration) {
    tokio::time::sleep(duration).await;
}

/// As which app a tool acts.
#[derive(Debug, Clone, Args)]
pub(crate) struct AppOption {
    /// The app to act as.
    #[arg(
        long,
        env = "DUNLIN_APP",
        value_name = "ID:KEY:SECRET",
        default_value = "app-id:app-key:app-secret",
        hide_env_values = true
    )]
    app: AppText,
}

impl AppOption {
    /// See [`AppText::parse`].
    pub(crate) fn parse(&self) -> Result<AppArgument, Failure> {
        self.app.parse()
    }
}

/// Where a tool finds its server, and as which app.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerArguments {
    /// The server.
    #[arg(
        long,
        env = "DUNLIN_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:6001"
    )]
    url: Server,
    #[command(flatten)]
    app: AppOption,
}

/// A server, and the app to be there.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) url: Server,
    pub(crate) app: AppArgument,
}

impl ServerArguments {
    pub(crate) fn target(&self) -> Result<Target, Failure> {
        Ok(Target {
            url: self.url.clone(),
            app: self.app.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn messages_do_not_command_a_terminal() {
        assert_eq!(
            super::printable("a\tb\nc\u{1b}[31m\r\u{9b}é"),
            "a\tb\nc\\u{1b}[31m\\r\\u{9b}é"
        );
    }
}
