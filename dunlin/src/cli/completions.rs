//! `dunlin completions SHELL`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::exit::{Exit, Failure};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// For which shell.
    shell: Shell,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(
        options.shell,
        &mut super::Cli::command(),
        "dunlin",
        &mut script,
    );
    std::io::Write::write_all(&mut std::io::stdout(), &script).map_err(|error| Exit::Io.with(error))
}
