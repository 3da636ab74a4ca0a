//! `dunlin bench`: a load generator that says what it measured and how far that
//! is from what the kernel alone would cost on the same machine, in the same
//! run.

mod fanout;
mod floor;
mod frames;
mod process;
mod publish;
mod report;
mod subscribers;

use clap::{Args, Subcommand};

use crate::exit::Failure;

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// One channel or some, many subscribers: what a delivery costs and how long it takes.
    Fanout(fanout::Options),
    /// Publishing, through a gateway or as a gateway: how long an acknowledgement takes, how many
    /// there are in a second, and what each costs.
    Publish(Box<publish::Options>),
    /// The subscribers of `fanout`, in a process of their own.
    #[command(hide = true)]
    Subscribers(subscribers::Options),
    /// The receiving ends of the floor, in a process of their own.
    #[command(hide = true)]
    Sink(floor::SinkOptions),
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    match &options.what {
        What::Fanout(options) => fanout::run(options),
        What::Publish(options) => publish::run(options),
        What::Subscribers(options) => subscribers::run(options),
        What::Sink(options) => floor::sink(options),
    }
}
