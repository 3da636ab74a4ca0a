//! `dunlin nodes`: what an operator has done to nodes.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use node::Recovery;
use proto::id::NodeId;

use super::inspect::{At, print, print_nodes};
use crate::admin::inspect::Nodes;
use crate::exit::{Exit, Failure};

/// How often it is looked whether a node still owns shards.
const DRAIN_LOOK: Duration = Duration::from_millis(250);

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Which nodes are members of the cluster; the same as `dunlin inspect nodes`.
    List {
        #[command(flatten)]
        at: At,
    },
    /// Have a node that owns nothing and stands by for nothing be no member any more: one that was
    /// drained, or that will not come back. If it runs it ends; started again, it joins again. Wants
    /// a token with the scope cluster:admin.
    Remove {
        /// The node.
        name: NodeId,
        #[command(flatten)]
        at: At,
    },
    /// When a majority of the nodes is lost for good: have one that is left decide alone. Nothing else
    /// brings such a cluster back, and it is the last resort: without --force it changes nothing, and
    /// says what would be lost.
    Recover(Recover),
    /// Have a node give its shards to others, and stand by for none, until it is started again. A
    /// node that is told to end does the same by itself. Wants a token with the scope
    /// cluster:admin.
    Drain {
        /// The node.
        name: NodeId,
        /// How many seconds to wait until it owns nothing; 0: not at all.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        wait_s: u64,
        #[command(flatten)]
        at: At,
    },
}

#[derive(Debug, Args)]
struct Recover {
    /// The data directory of the node that is left. It must not run.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Do it: none of the others will ever be started again with the data directory that it had.
    #[arg(long)]
    force: bool,
}

impl Recover {
    /// What is found, and what was done, for people.
    fn run(&self) -> Result<String, Failure> {
        let recovery = Recovery::open(&self.data).map_err(|error| Exit::Io.with(error))?;
        let mut text = format!(
            "node {} of cluster {}: its log ends with entry {}\n",
            recovery.name, recovery.cluster, recovery.last
        );
        if recovery.is_alone {
            let _ = writeln!(text, "it decides alone already; start it");
            return Ok(text);
        }
        for (name, address) in &recovery.others {
            let _ = writeln!(text, "lost: {name}, which was at {address}");
        }
        if !self.force {
            print(&text)?;
            return Err(Exit::Usage.because(
                "nothing has been changed. If a majority of these nodes can be started again, do that instead: nothing is lost then. \
                 If not, and none of them runs, --force has this node decide alone: what the others have decided without it is lost, \
                 shards that only they had begin anew, and their followers are told of the gap. Never start any of the others with \
                 its data directory again: they would be a second cluster of the same name"
                    .to_owned(),
            ));
        }
        let name = recovery.name.clone();
        recovery.force().map_err(|error| Exit::Io.with(error))?;
        let _ = writeln!(
            text,
            "node {name} decides alone from now on. Start it; then start others, with empty data directories, and strike those that \
             will not come back: `dunlin nodes remove`"
        );
        Ok(text)
    }
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    match &options.command {
        Command::List { at } => print(&at.ask("nodes", |nodes| print_nodes(&nodes))?),
        Command::Drain { name, wait_s, at } => {
            print(&at.drain(name, Duration::from_secs(*wait_s))?)
        }
        Command::Remove { name, at } => print(&at.remove(name)?),
        Command::Recover(recover) => print(&recover.run()?),
    }
}

impl At {
    /// Has something done to a node. The answer.
    fn change(&self, name: &NodeId, what: &str) -> Result<String, Failure> {
        let path = format!("/admin/nodes/{name}/{what}");
        let (status, text) = super::runtime()?
            .block_on(self.post(&path))
            .map_err(|error| Exit::Unavailable.with(error))?;
        if !status.is_success() {
            return Err(Exit::Unavailable.because(self.refused(status, &text)));
        }
        Ok(text)
    }

    fn remove(&self, name: &NodeId) -> Result<String, Failure> {
        let text = self.change(name, "remove")?;
        if self.json {
            return Ok(format!("{}\n", text.trim_end()));
        }
        Ok(format!(
            "node {name} is no member any more; started again, it joins again\n"
        ))
    }

    /// Has a node drained, and waits for it.
    fn drain(&self, name: &NodeId, patience: Duration) -> Result<String, Failure> {
        let text = self.change(name, "drain")?;
        let runtime = super::runtime()?;
        let until = super::now() + patience;
        loop {
            let nodes: Nodes = self.understand(&self.fetch("nodes")?)?;
            let left = nodes.nodes.iter().find(|node| node.name == name.as_str());
            let left = left.map_or(0, |node| node.shards);
            let has_time = super::now() < until;
            if left > 0 && has_time {
                runtime.block_on(super::wait(DRAIN_LOOK));
                continue;
            }
            if self.json {
                return Ok(format!("{}\n", text.trim_end()));
            }
            if left > 0 && !patience.is_zero() {
                return Err(Exit::Unavailable.because(format!(
                    "node {name} drains, and still owns {left} shards: is there another node that could? \
                     `dunlin nodes list` shows how many are left"
                )));
            }
            return Ok(format!(
                "node {name} drains and owns {left} shards; start it again to have it take its share\n"
            ));
        }
    }
}
