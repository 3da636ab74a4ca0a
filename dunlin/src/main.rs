//! The one binary: processes (`dev`) and tools.

mod admin;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: a load generator lives by the clock"
)]
mod bench;
mod cli;
mod client;
mod config;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: mints identities, waits for signals"
)]
mod dev;
mod exit;
#[expect(
    clippy::disallowed_methods,
    reason = "shell: measures the runtime from a thread"
)]
mod telemetry;

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
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { exit, error }) => {
            eprintln!("dunlin: {error:#}");
            exit.into()
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Dev(options) => dev::run(&options),
        Command::Pub(options) => cli::publish::run(&options),
        Command::Sub(options) => cli::subscribe::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Token(options) => cli::token::run(&options),
        Command::Config(options) => cli::config::run(&options),
        Command::Completions(options) => cli::completions::run(&options),
        Command::Reference(options) => cli::reference::run(&options),
    }
}
