//! `dunlin certs`: makes the files by which nodes know each other. Nothing is
//! overwritten unless asked for, and keys are readable by their owner alone.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use gateway::app::Secret;
use proto::id::NodeId;
use proto::time::UnixTime;

use crate::certs::{self, Error, Pair};
use crate::exit::{Exit, Failure};

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a certificate authority for the nodes of a cluster: ca.crt and ca.key.
    Init {
        /// Where to put them; made if it is not there.
        dir: PathBuf,
        /// For how many days it is valid.
        #[arg(long, value_name = "N", default_value_t = 3_650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        valid_days: u32,
    },
    /// Make a certificate for a node, signed by the authority: NAME.crt and NAME.key.
    Node {
        /// Where ca.crt and ca.key are, and where to put the new files.
        dir: PathBuf,
        /// The node's name, as in `dunlin node --name`.
        name: NodeId,
        /// For how many days it is valid.
        #[arg(long, value_name = "N", default_value_t = 825, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        valid_days: u32,
        /// Replace the files if they are there, with a new key.
        #[arg(long)]
        renew: bool,
    },
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    match &options.command {
        Command::Init { dir, valid_days } => init(dir, *valid_days),
        Command::Node {
            dir,
            name,
            valid_days,
            renew,
        } => node(dir, name, *valid_days, *renew),
    }
}

/// A certificate's file and its key's.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn of(dir: &Path, name: &str) -> Self {
        Self {
            certificate: dir.join(format!("{name}.crt")),
            key: dir.join(format!("{name}.key")),
        }
    }

    fn both(&self) -> [&Path; 2] {
        [&self.certificate, &self.key]
    }

    fn refuse_if_there(&self, what_to_do: &str) -> Result<(), Failure> {
        match self.both().into_iter().find(|file| file.exists()) {
            None => Ok(()),
            Some(file) => Err(Exit::Io.because(format!(
                "{} is there already and is left as it is; {what_to_do}",
                file.display()
            ))),
        }
    }

    fn read(&self) -> Result<Pair, Failure> {
        let [certificate, key] = self.both().map(|file| {
            std::fs::read_to_string(file).map_err(|error| {
                Exit::Io.because(format!(
                    "could not read {}: {error}; `dunlin certs init` makes a certificate authority",
                    file.display()
                ))
            })
        });
        Ok(Pair {
            certificate: certificate?,
            key: Secret::new(&key?),
        })
    }

    /// Both are written beside their places first, so that a full disk destroys
    /// nothing that was there.
    fn write(&self, pair: &Pair) -> Result<(), Failure> {
        write_new(&beside(&self.key), pair.key.expose(), 0o600)?;
        write_new(&beside(&self.certificate), &pair.certificate, 0o644)?;
        for file in [&self.key, &self.certificate] {
            std::fs::rename(beside(file), file).map_err(|error| could_not_write(file, &error))?;
        }
        Ok(())
    }
}

fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn could_not_write(file: &Path, error: &std::io::Error) -> Failure {
    Exit::Io.because(format!("could not write {}: {error}", file.display()))
}

fn write_new(file: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let write = || -> std::io::Result<()> {
        // What an earlier attempt left, which might have another mode.
        match std::fs::remove_file(file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut open = OpenOptions::new();
        let mut file: File = open.write(true).create_new(true).mode(mode).open(file)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|error| could_not_write(file, &error))
}

fn init(dir: &Path, valid_days: u32) -> Result<(), Failure> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| could_not_write(dir, &error))?;
    let files = Files::of(dir, "ca");
    files.refuse_if_there(
        "nodes with certificates of another authority could not talk to those that have one of this; choose another directory for another cluster",
    )?;
    files.write(&certs::authority(now(), valid_days).map_err(failed)?)?;
    println!("{}", files.certificate.display());
    println!("{}", files.key.display());
    eprintln!(
        "dunlin: made a certificate authority, valid for {valid_days} days. {} stays off the servers: whoever has it \
         can become a node. Next: dunlin certs node {} NAME",
        files.key.display(),
        dir.display()
    );
    Ok(())
}

fn node(dir: &Path, name: &NodeId, valid_days: u32, renew: bool) -> Result<(), Failure> {
    certs::check_name(name).map_err(failed)?;
    let files = Files::of(dir, name.as_str());
    if !renew {
        files.refuse_if_there("--renew replaces it")?;
    }
    let authority = Files::of(dir, "ca");
    let pair = certs::node(&authority.read()?, name, now(), valid_days).map_err(failed)?;
    files.write(&pair)?;
    println!("{}", files.certificate.display());
    println!("{}", files.key.display());
    eprintln!(
        "dunlin: made a certificate for node {name}, valid for {valid_days} days. The node needs {}, {} and {} in its \
         --certs directory, and nothing else: {} stays off the servers",
        authority.certificate.display(),
        files.certificate.display(),
        files.key.display(),
        authority.key.display(),
    );
    Ok(())
}

fn failed(error: Error) -> Failure {
    let exit = match error {
        Error::Name(_) => Exit::Usage,
        Error::Authority(..) | Error::NotIssuedBy(_) => Exit::Data,
        Error::Make(_) => Exit::Software,
    };
    exit.with(error)
}

#[expect(
    clippy::disallowed_methods,
    reason = "shell: certificates begin and end by the clock"
)]
fn now() -> UnixTime {
    UnixTime::now()
}
