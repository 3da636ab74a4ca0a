//! `dunlin bench`: a load generator that says what it measured and how far that
//! is from what the kernel alone would cost on the same machine, in the same
//! run.
//!
//! A scenario puts its load together from a [`setup`] (the server that is
//! measured), [`crowd`]s (processes of their own that follow channels) and a
//! [`pace`] at which it publishes, and fills a [`report`].

mod compare;
mod crowd;
mod fanout;
mod flood;
mod floor;
mod frames;
mod idle;
mod pace;
mod process;
mod publish;
mod report;
mod setup;
mod slow;
mod storm;
mod subscribers;
mod victim;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::exit::{Exit, Failure};
use report::Report;

#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: Option<What>,
    /// Set two files side by side that hold what runs have printed, one run a line: what each
    /// figure was (the median, if a file has several runs of a scenario) and the ratio.
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"])]
    compare: Option<Vec<PathBuf>>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// One channel or some, many subscribers: what a delivery costs and how long it takes.
    Fanout(fanout::Options),
    /// Many channels with few subscribers each: what a delivery costs.
    Many(fanout::ManyOptions),
    /// As many deliveries as can be, none of them lost.
    Flood(flood::Options),
    /// Small channels beside a large one: whether the large one's followers make the others wait.
    Victim(victim::Options),
    /// Connections that do nothing: what each takes, and what is given back when they close.
    Idle(idle::Options),
    /// All connections are dropped at once and opened again.
    Storm(storm::Options),
    /// Some of the followers do not read: what the others notice.
    Slow(slow::Options),
    /// Publishing, through a gateway or as a gateway: how long an acknowledgement takes, how many
    /// there are in a second, and what each costs.
    Publish(Box<publish::Options>),
    /// A crowd, in a process of its own.
    #[command(hide = true)]
    Subscribers(subscribers::Options),
    /// The receiving ends of the floor, in a process of their own.
    #[command(hide = true)]
    Sink(floor::SinkOptions),
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    if let Some(files) = &options.compare {
        return compare::run(files);
    }
    match &options.what {
        Some(What::Fanout(options)) => tell(fanout::run(options)?),
        Some(What::Many(options)) => tell(fanout::run_many(options)?),
        Some(What::Flood(options)) => tell(flood::run(options)?),
        Some(What::Victim(options)) => tell(victim::run(options)?),
        Some(What::Idle(options)) => tell(idle::run(options)?),
        Some(What::Storm(options)) => tell(storm::run(options)?),
        Some(What::Slow(options)) => tell(slow::run(options)?),
        Some(What::Publish(options)) => return publish::run(options),
        Some(What::Subscribers(options)) => return subscribers::run(options),
        Some(What::Sink(options)) => return floor::sink(options),
        None => return Err(Exit::Usage.because("name a scenario, or --compare A.json B.json")),
    }
    Ok(())
}

/// For people on stderr, for programs on stdout.
fn tell(report: Report) {
    eprintln!("{}", report.table());
    println!("{}", report.json());
}
