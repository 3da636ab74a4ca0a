//! The one binary: processes (`dev`, `gateway`, `node`) and tools.

/// Gives back what a crowd needed, by a thread of its own (docs/adr/0024).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

mod admin;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: a load generator lives by the clock"
)]
mod bench;
mod certs;
mod cli;
mod client;
mod config;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: mints identities, starts the parts"
)]
mod dev;
mod exit;
mod follow;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: has a new life at each start, starts the parts"
)]
mod gateway;
#[expect(clippy::disallowed_methods, reason = "shell: starts the parts")]
mod node;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: waits for signals, and not for ever"
)]
mod process;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: measures the runtime from a thread"
)]
mod telemetry;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: publishes and follows by the clock"
)]
mod verify;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::cli::{Cli, Command};
use crate::exit::{Exit, Failure};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Best effort: there is nowhere to report that stderr is closed.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => Exit::Usage.into(),
            };
        }
    };
    match shift_clock().and_then(|()| run(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { exit, error }) => {
            eprintln!("dunlin: {error:#}");
            exit.into()
        }
    }
}

/// In debug builds, tests can have the wall clock wrong:
/// `DUNLIN_TEST_CLOCK_OFFSET_S`.
fn shift_clock() -> Result<(), Failure> {
    #[cfg(debug_assertions)]
    if let Some(secs) =
        config::environment::clock_offset_s().map_err(|problem| Exit::Config.because(problem))?
    {
        proto::time::UnixTime::shift_clock(secs);
    }
    Ok(())
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Dev(options) => dev::run(&options),
        Command::Gateway(options) => gateway::run(&options),
        Command::Node(options) => node::run(&options),
        Command::Pub(options) => cli::publish::run(&options),
        Command::Sub(options) => cli::subscribe::run(&options),
        Command::Verify(options) => verify::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Inspect(options) => cli::inspect::run(&options),
        Command::Nodes(options) => cli::nodes::run(&options),
        Command::Certs(options) => cli::certs::run(&options),
        Command::Token(options) => cli::token::run(&options),
        Command::Config(options) => cli::config::run(&options),
        Command::Completions(options) => cli::completions::run(&options),
        Command::Reference(options) => cli::reference::run(&options),
    }
}
