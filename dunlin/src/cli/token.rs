//! `dunlin token`: makes a token for the admin address. The token is printed
//! once; the file keeps only its hash.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use crate::admin::tokens::{Scope, Token};
use crate::exit::{Exit, Failure};

#[derive(Debug, Args)]
pub(crate) struct Options {
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

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
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
