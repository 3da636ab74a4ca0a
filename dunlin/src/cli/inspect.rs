//! `dunlin inspect`: asks an admin address what is inside, and prints it for
//! people or, with `--json`, as it came.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write};
use std::str::FromStr;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use hyper::StatusCode;
use proto::channel::ChannelName;
use proto::id::AppId;
use serde::de::DeserializeOwned;

use super::table::Table;
use crate::admin::inspect::{Channel, Events, Gateways, Nodes, OneShard, Ref, Shard, Shards};
use crate::client::{Connection, Server, problem};
use crate::config::environment;
use crate::exit::{Exit, Failure};

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    question: Question,
}

#[derive(Debug, Subcommand)]
enum Question {
    /// Who owns the shards, under which fences, and which of them nobody stands by for or move: a
    /// row per node.
    Shards {
        /// A row for every shard.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        at: At,
    },
    /// One shard, as its owner knows it: whether it serves, for what it waits, how far its standbys
    /// are, and for how much longer its leases last.
    Shard {
        /// Its number.
        number: u16,
        #[command(flatten)]
        at: At,
    },
    /// Which nodes are members of the cluster.
    Nodes {
        #[command(flatten)]
        at: At,
    },
    /// Which gateways the nodes hear of.
    Gateways {
        #[command(flatten)]
        at: At,
    },
    /// What has happened to nodes and shards since the node that is asked began, the last first:
    /// who has started, drained or gone, which shards have moved or were taken over.
    Events {
        #[command(flatten)]
        at: At,
    },
    /// One channel: where it is, where it stands, who follows it.
    Channel {
        /// The channel.
        name: ChannelName,
        /// The id of its app.
        #[arg(long, value_name = "ID", default_value = "app-id")]
        app: AppId,
        #[command(flatten)]
        at: At,
    },
}

/// Whom to ask, and how to print the answer.
#[derive(Debug, Args)]
pub(super) struct At {
    /// The admin address of a gateway or node: IP:PORT or http://HOST:PORT. If it wants a token,
    /// put one with the scope cluster:read into DUNLIN_ADMIN_TOKEN.
    #[arg(
        long,
        env = "DUNLIN_ADMIN_URL",
        value_name = "ADDRESS",
        default_value = "http://127.0.0.1:9601"
    )]
    admin: AdminServer,
    /// Print the answer as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// An admin address: a URL, or what a server is given as `--admin`.
#[derive(Debug, Clone)]
struct AdminServer(Server);

impl FromStr for AdminServer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url = if text.contains("://") {
            text.to_owned()
        } else {
            format!("http://{text}")
        };
        let server = url.parse();
        server
            .map(Self)
            .map_err(|error| format!("{error}, or of the form IP:PORT"))
    }
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let text = match &options.question {
        Question::Shards { all, at } => {
            let all = *all;
            at.ask("shards", move |shards| print_shards(&shards, all))
        }
        Question::Shard { number, at } => at.ask(&format!("shard?number={number}"), |shard| {
            print_shard(&shard)
        }),
        Question::Nodes { at } => at.ask("nodes", |nodes| print_nodes(&nodes)),
        Question::Gateways { at } => at.ask("gateways", |gateways| print_gateways(&gateways)),
        Question::Events { at } => at.ask("events", |events| print_events(&events)),
        Question::Channel { name, app, at } => {
            let mut query = form_urlencoded::Serializer::new(String::from("channel?"));
            query
                .append_pair("app", app.as_str())
                .append_pair("name", name.as_str());
            at.ask(&query.finish(), |channel| print_channel(&channel))
        }
    };
    print(&text?)
}

/// Prints to somebody who may have seen enough, as `head` does.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Exit::Io.because(format!("could not write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

impl At {
    /// The answer to a question, as it is to be printed.
    pub(super) fn ask<T: DeserializeOwned>(
        &self,
        question: &str,
        print: impl FnOnce(T) -> String,
    ) -> Result<String, Failure> {
        let text = self.fetch(question)?;
        if self.json {
            return Ok(format!("{}\n", text.trim_end()));
        }
        Ok(print(self.understand(&text)?))
    }

    pub(super) fn fetch(&self, question: &str) -> Result<String, Failure> {
        let path = format!("/admin/inspect/{question}");
        let (status, text) = super::runtime()?
            .block_on(self.get(&path))
            .map_err(|error| Exit::Unavailable.with(error))?;
        if status != StatusCode::OK {
            return Err(Exit::Unavailable.because(self.refused(status, &text)));
        }
        Ok(text)
    }

    pub(super) fn understand<T: DeserializeOwned>(&self, text: &str) -> Result<T, Failure> {
        let answer = serde_json::from_str(text).with_context(|| {
            format!(
                "{} gave an answer that is not understood; is it of another version?",
                self.admin.0
            )
        });
        answer.map_err(|error| Exit::Unavailable.with(error))
    }

    async fn get(&self, path: &str) -> anyhow::Result<(StatusCode, String)> {
        let token = environment::admin_token();
        let mut connection = self.connect().await?;
        connection.get_with_token(path, token.as_ref()).await
    }

    pub(super) async fn post(&self, path: &str) -> anyhow::Result<(StatusCode, String)> {
        let token = environment::admin_token();
        let mut connection = self.connect().await?;
        connection.post_with_token(path, token.as_ref()).await
    }

    async fn connect(&self) -> anyhow::Result<Connection> {
        self.admin.0.connect().await.map_err(|error| {
            anyhow!(
                "{error:#}; is a server running there? Say with --admin (or DUNLIN_ADMIN_URL) where its admin address is"
            )
        })
    }

    pub(super) fn refused(&self, status: StatusCode, text: &str) -> String {
        let server = &self.admin.0;
        let why = problem(status, text);
        match status {
            StatusCode::UNAUTHORIZED => format!(
                "{server} wants a token, or another one: put one with the scope cluster:read into the environment as \
                 DUNLIN_ADMIN_TOKEN (`dunlin token admin --scope cluster:read` makes one): {why}"
            ),
            StatusCode::FORBIDDEN => {
                format!("{server} does not allow that with the token in DUNLIN_ADMIN_TOKEN: {why}")
            }
            StatusCode::NOT_FOUND if !text.starts_with('{') => format!(
                "{server} knows nothing to inspect: is it the admin address of a Dunlin server of this version?"
            ),
            StatusCode::CONFLICT => format!("{server} refuses: {why}"),
            _ => format!("{server} answered: {why}"),
        }
    }
}

fn print_shards(answer: &Shards, all: bool) -> String {
    let mut text = format!(
        "cluster {}, map version {}, {} shards\n\n",
        super::printable(&answer.cluster),
        answer.version,
        answer.shards.len()
    );
    let nobody = Ref {
        id: String::new(),
        incarnation: 0,
    };
    if all {
        let mut table = Table::new(&[
            "shard",
            "node",
            "incarnation",
            "fence",
            "standbys",
            "moves to",
        ]);
        for shard in &answer.shards {
            let owner = shard.owner.as_ref().unwrap_or(&nobody);
            let standbys = match &shard.standbys {
                Some(standbys) => standbys.join(" "),
                None => "?".into(),
            };
            let moves_to = shard.moves_to.as_deref().unwrap_or_default();
            table.row([
                &shard.shard,
                &owner.id,
                &owner.incarnation,
                &shard.fence,
                &standbys,
                &moves_to,
            ]);
        }
        let _ = write!(text, "{table}");
        return text;
    }
    let mut owned: BTreeMap<&Ref, Vec<&Shard>> = BTreeMap::new();
    for shard in &answer.shards {
        let owner = shard.owner.as_ref().unwrap_or(&nobody);
        owned.entry(owner).or_default().push(shard);
    }
    let mut table = Table::new(&[
        "node",
        "incarnation",
        "shards",
        "lowest fence",
        "highest fence",
        "without standby",
        "to another owner",
    ]);
    for (owner, shards) in owned {
        let fences = shards.iter().map(|shard| shard.fence);
        let lowest = fences.clone().min().unwrap_or_default();
        let highest = fences.max().unwrap_or_default();
        let is_bare = |shard: &&&Shard| shard.standbys.as_ref().is_some_and(Vec::is_empty);
        let moves = |shard: &&&Shard| shard.moves_to.is_some();
        table.row([
            &owner.id,
            &owner.incarnation,
            &shards.len(),
            &lowest,
            &highest,
            &shards.iter().filter(is_bare).count(),
            &shards.iter().filter(moves).count(),
        ]);
    }
    let _ = write!(text, "{table}");
    text
}

fn print_events(answer: &Events) -> String {
    let mut table = Table::new(&["at", "what", "from", "to", "shards"]);
    for event in &answer.events {
        let node = |node: &Option<Ref>| {
            let node = node.as_ref();
            node.map(|node| format!("{} ({})", node.id, node.incarnation))
                .unwrap_or_default()
        };
        let shards = match event.shards {
            0 => String::new(),
            shards => shards.to_string(),
        };
        let what = event.kind.replace('_', " ");
        table.row([
            &event.at,
            &what,
            &node(&event.from),
            &node(&event.to),
            &shards,
        ]);
    }
    table.to_string()
}

pub(super) fn print_nodes(answer: &Nodes) -> String {
    let mut table = Table::new(&[
        "node",
        "incarnation",
        "address",
        "zone",
        "role",
        "witness",
        "gossip",
        "shards",
        "version",
    ]);
    for node in &answer.nodes {
        let incarnation = node.incarnation.map(|n| n.to_string()).unwrap_or_default();
        table.row([
            &node.name,
            &incarnation,
            &node.address,
            &node.zone,
            &node.role,
            &yes_or_no(node.witness),
            &node.gossip,
            &node.shards,
            &node.version,
        ]);
    }
    table.to_string()
}

fn yes_or_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

fn print_gateways(answer: &Gateways) -> String {
    let mut table = Table::new(&[
        "gateway",
        "incarnation",
        "heard ms ago",
        "map version",
        "connections",
    ]);
    for gateway in &answer.gateways {
        table.row([
            &gateway.name,
            &gateway.incarnation,
            &gateway.heard_ms,
            &gateway.map_version,
            &gateway.connections,
        ]);
    }
    table.to_string()
}

fn print_shard(answer: &OneShard) -> String {
    let mut lines = vec![
        ("shard", answer.shard.to_string()),
        ("owner", life(&answer.owner)),
        ("fence", answer.fence.to_string()),
        ("state", answer.state.clone()),
    ];
    if let Some(waits_for) = &answer.waits_for {
        let waits = format!(
            "for {waits_for}: {} to perform, since {} ms",
            answer.held, answer.waits_ms
        );
        lines.push(("waits", waits));
    }
    lines.push((
        "lease",
        match answer.node_lease_ms {
            None => "needs none: the node is alone".into(),
            Some(0) => "none from the leader".into(),
            Some(left) => format!("from the leader, for another {left} ms"),
        },
    ));
    if let Some(moves_to) = &answer.moves_to {
        lines.push(("moves to", moves_to.clone()));
    }
    lines.push((
        "channels",
        format!(
            "{}, and {} pairs of gateway and channel",
            answer.channels, answer.interest
        ),
    ));
    let mut text = labelled(lines);
    if answer.standbys.is_empty() {
        let _ = writeln!(text, "standbys none");
        return text;
    }
    let mut table = Table::new(&[
        "standby",
        "incarnation",
        "state",
        "lag records",
        "lag ms",
        "lease ms",
    ]);
    for standby in &answer.standbys {
        let lag_ms = standby.lag_ms.map_or("?".into(), |ms| ms.to_string());
        let state = standby.state.replace('_', " ");
        table.row([
            &standby.node.id,
            &standby.node.incarnation,
            &state,
            &standby.lag_records,
            &lag_ms,
            &standby.lease_ms,
        ]);
    }
    let _ = write!(text, "\n{table}");
    text
}

/// A line for each value, behind its name.
fn labelled(lines: Vec<(&str, String)>) -> String {
    let mut text = String::new();
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<8} {}", super::printable(&value));
    }
    text
}

fn life(of: &Ref) -> String {
    format!("{} (incarnation {})", of.id, of.incarnation)
}

fn print_channel(answer: &Channel) -> String {
    let mut lines = vec![
        ("channel", answer.channel.clone()),
        ("app", answer.app.clone()),
        ("shard", answer.shard.to_string()),
        ("owner", life(&answer.owner)),
        ("fence", answer.fence.to_string()),
    ];
    if let Some(state) = &answer.state {
        lines.extend([
            ("epoch", state.epoch.clone()),
            ("offset", state.offset.to_string()),
            (
                "kept",
                format!(
                    "{} publications, from offset {}",
                    state.kept, state.earliest
                ),
            ),
            ("ack", state.ack.clone()),
        ]);
    } else {
        let nothing = "none: nobody follows the channel, and nothing is kept";
        lines.push(("state", nothing.to_owned()));
    }
    let mut text = labelled(lines);
    let followers = answer
        .state
        .as_ref()
        .map(|state| state.followers.as_slice());
    if let Some(followers @ [_, ..]) = followers {
        let mut table = Table::new(&["gateway", "incarnation", "subscribers"]);
        for follower in followers {
            let Ref { id, incarnation } = &follower.gateway;
            table.row([id, incarnation, &follower.subscribers]);
        }
        let _ = write!(text, "\n{table}");
    }
    text
}

#[cfg(test)]
mod tests;
