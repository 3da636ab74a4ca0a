//! `dunlin config`: what file, environment and flags come to.

use clap::{Args, Subcommand};

use super::server::{DevOptions, GatewayOptions, NodeOptions};
use crate::config::{Dev, Gateway, Node, to_toml};
use crate::exit::Failure;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    dev: DevOptions,
}

/// For which command; without one, for `dev`.
#[derive(Debug, Subcommand)]
enum Command {
    /// What `dunlin dev` would run with.
    Dev(DevOptions),
    /// What `dunlin gateway` would run with.
    Gateway(GatewayOptions),
    /// What `dunlin node` would run with.
    Node(NodeOptions),
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let text = match &options.command {
        None => to_toml(&Dev::resolve(&options.dev)?),
        Some(Command::Dev(options)) => to_toml(&Dev::resolve(options)?),
        Some(Command::Gateway(options)) => to_toml(&Gateway::resolve(options)?),
        Some(Command::Node(options)) => to_toml(&Node::resolve(options)?),
    };
    print!("{}", text?);
    Ok(())
}
