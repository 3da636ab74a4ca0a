//! `dunlin reference PAGE`: the pages of docs/reference, made from the code. A
//! test keeps the files equal to this.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;

use clap::{Args, CommandFactory, ValueEnum};
use gateway::app::{App, Apps};
use gateway::protocol::CloseCode;
use prometheus::Registry;
use prometheus::proto::{MetricFamily, MetricType};
use proto::bus::{BusHandle, MemoryBus};
use proto::error::ErrorCode;
use proto::shard::ShardId;

use crate::config;
use crate::exit::{Exit, Failure};
use crate::telemetry::{self, Exporter};

#[derive(Debug, Args)]
pub(crate) struct Options {
    page: Page,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Page {
    Cli,
    Config,
    Metrics,
    Errors,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let page = match options.page {
        Page::Cli => cli(),
        Page::Config => config::reference::page(),
        Page::Metrics => metrics().map_err(|error| Exit::Software.with(error))?,
        Page::Errors => errors(),
    };
    print!("{page}");
    Ok(())
}

fn cli() -> String {
    let mut page = String::from("# Command line\n");
    let mut command = super::Cli::command().term_width(100);
    command.build();
    help(&mut page, &mut command, "dunlin");
    page.push_str("\n## Exit codes\n\nThose of sysexits(3), but for 1.\n\n| code | meaning |\n|---|---|\n| 0 | Success. |\n");
    for exit in Exit::ALL {
        let _ = writeln!(page, "| {} | {} |", exit as u8, exit.meaning());
    }
    page.push_str("| 128 + n | Ended by signal n: 130 after Ctrl-C. A server ends with 0. |\n");
    page
}

fn help(page: &mut String, command: &mut clap::Command, path: &str) {
    let text = command.render_long_help().to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let _ = write!(
        page,
        "\n## {path}\n\n```text\n{}\n```\n",
        lines.join("\n").trim_end()
    );
    for sub in command.get_subcommands_mut() {
        // Those of `config` take the flags of the commands whose names they have.
        if !sub.is_hide_set() && sub.get_name() != "help" && path != "dunlin config" {
            let path = format!("{path} {}", sub.get_name());
            help(page, sub, &path);
        }
    }
}

fn metrics() -> Result<String, prometheus::Error> {
    let bus: BusHandle = Arc::new(MemoryBus::default());
    let id = "app-id"
        .parse()
        .map_err(|_| prometheus::Error::Msg("the example id is valid".into()))?;
    let apps = Apps::new([App::new(id, "app-key", "app-secret")]);
    let registries = [
        telemetry::registry_of("gateway")?,
        telemetry::registry_of("node")?,
    ];
    gateway::Metrics::register(&registries[0], bus.name(), &apps)?;
    let node = node::Metrics::register(&registries[1], bus.name())?;
    node.shard(ShardId(0));
    let exporter = Exporter::new(registries.into(), bus)?;
    let mut page = String::from(
        "# Metrics\n\nOn the admin address at `/metrics`, in the Prometheus text format. A fresh process exposes every family \
         below, closed label sets at zero; those with a `shard` once it owns one. `app` is bounded by the configuration; nothing is labelled by channel, user or address. \
         `role` is there where one process is both gateway and node (`dunlin dev`).\n\n\
         | name | type | labels | meaning |\n|---|---|---|---|\n",
    );
    rows(&mut page, &exporter.families());
    let cluster = Registry::new();
    node::ClusterMetrics::register(&cluster)?;
    page.push_str(
        "\n## Of nodes of a cluster\n\n`dunlin node` exposes these besides.\n\n\
         | name | type | labels | meaning |\n|---|---|---|---|\n",
    );
    rows(&mut page, &cluster.gather());
    Ok(page)
}

fn rows(page: &mut String, families: &[MetricFamily]) {
    for family in families {
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {} |",
            family.name(),
            kind(family),
            labels(family),
            family.help().replace('|', "\\|")
        );
    }
}

fn kind(family: &MetricFamily) -> &'static str {
    match family.get_field_type() {
        MetricType::COUNTER => "counter",
        MetricType::GAUGE => "gauge",
        MetricType::HISTOGRAM => "histogram",
        MetricType::SUMMARY => "summary",
        MetricType::UNTYPED => "untyped",
    }
}

fn labels(family: &MetricFamily) -> String {
    let metrics = family.get_metric().iter();
    let names: BTreeSet<String> = metrics
        .flat_map(|metric| {
            metric
                .get_label()
                .iter()
                .map(|label| format!("`{}`", label.name()))
        })
        .collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

fn errors() -> String {
    let mut page = String::from(
        "# Errors\n\n## HTTP\n\nOn the client address, bodies are JSON: `error` (for people), `code` (for programs), `status`. A publication \
         that was not taken into all of its channels also has `accepted` and `failed`, lists of channels, and one of a batch `failed_events`, their places in it. 429 and 503 come with `Retry-After`. Probes of load balancers are answered in plain text.\n\n\
         | code | status | meaning | what to do |\n|---|---|---|---|\n",
    );
    for code in ErrorCode::ALL {
        let _ = writeln!(
            page,
            "| `{code}` | {} | {} | {} |",
            code.http_status(),
            code.meaning().trim(),
            code.remedy()
        );
    }
    page.push_str(
        "\n## WebSocket\n\nA connection that the server ends gets a `pusher:error` event with the code, then a close frame with the same \
         code. A `pusher:error` whose code is `null` or 4301 (a message was not taken: a client event, or one over the rate) leaves the connection as it is; so do 4009 where it says that signing in was refused, and 4302, that a list of users to watch is too long. A subscription \
         that is refused is answered by `pusher:subscription_error` with `type`, `error` and `status`: `AuthError` 401, `InvalidChannel`, \
         `InvalidUser` and `LimitReached` 400 (429 if it came too fast, 403 if the channel is full).\n\n| code | meaning |\n|---|---|\n",
    );
    for code in CloseCode::ALL {
        let _ = writeln!(page, "| {} | {} |", code.number(), code.meaning());
    }
    page
}
