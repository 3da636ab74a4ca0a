//! `dunlin token`: makes tokens. One for the admin address is printed once, and its
//! file keeps only its hash; those of an app are kept nowhere.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::{ArgGroup, Args, Subcommand};
use gateway::core::token::{self, Claims, PATTERNS_MAX};
use proto::time::UnixTime;

use super::AppOption;
use crate::admin::tokens::{Scope, Token};
use crate::exit::{Exit, Failure};

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    of: Of,
}

#[derive(Debug, Subcommand)]
enum Of {
    /// Make a token for the admin address. Its hash goes into a file.
    Admin(AdminOptions),
    /// Make a token of an app: for an event stream of private channels, or to publish without the
    /// app's secret.
    App(AppOptions),
}

#[derive(Debug, Args)]
struct AdminOptions {
    /// What it may be used for; several with commas.
    #[arg(long, value_enum, value_delimiter = ',', required = true)]
    scope: Vec<Scope>,
    /// Whom it is for; stands in the file.
    #[arg(long, default_value = "unnamed")]
    name: String,
    /// Append its line to this file, the one of --admin-token-file.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("channels").required(true).multiple(true).args(["subscribe", "publish"]))]
struct AppOptions {
    #[command(flatten)]
    app: AppOption,
    /// Channels that may be read; `*` stands for any run of characters. May be given several
    /// times.
    #[arg(long, value_name = "PATTERN")]
    subscribe: Vec<String>,
    /// Channels that may be published into.
    #[arg(long, value_name = "PATTERN")]
    publish: Vec<String>,
    /// How many seconds it is valid.
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = clap::value_parser!(u32).range(1..))]
    valid: u32,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    match &options.of {
        Of::Admin(options) => admin(options),
        Of::App(options) => app(options),
    }
}

fn app(options: &AppOptions) -> Result<(), Failure> {
    let app = options.app.parse()?;
    for (flag, patterns) in [
        ("--subscribe", &options.subscribe),
        ("--publish", &options.publish),
    ] {
        if patterns.len() > PATTERNS_MAX {
            let message = format!("{flag}: at most {PATTERNS_MAX} patterns");
            return Err(Exit::Usage.because(message));
        }
    }
    let exp = now().secs() + u64::from(options.valid);
    let claims = Claims {
        exp,
        nbf: None,
        subscribe: options.subscribe.clone(),
        publish: options.publish.clone(),
    };
    println!("{}", token::issue(&app.key, &app.secret, &claims));
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "shell: tokens expire by the wall clock"
)]
fn now() -> UnixTime {
    UnixTime::now()
}

fn admin(options: &AdminOptions) -> Result<(), Failure> {
    if options.name.is_empty() || options.name.contains(char::is_whitespace) {
        return Err(Exit::Usage.because("--name: one word, for the token file"));
    }
    let token = Token::mint().map_err(|error| Exit::Software.with(error))?;
    let line = token.line(&options.scope, &options.name);
    match &options.file {
        Some(file) => {
            append(file, &line).map_err(|error| Exit::Io.with(error))?;
            eprintln!("added to {}; restart the server to use it", file.display());
        }
        None => eprintln!("put this line into the file of --admin-token-file:\n{line}"),
    }
    println!("{}", token.expose());
    Ok(())
}

fn append(file: &PathBuf, line: &str) -> anyhow::Result<()> {
    let context = || format!("could not append to {}", file.display());
    let mut open = OpenOptions::new();
    open.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut open, 0o600);
    open.open(file)
        .and_then(|mut file| writeln!(file, "{line}"))
        .with_context(context)
}
