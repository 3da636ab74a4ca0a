//! `make cluster` does what it says, and leaves nothing behind.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use cluster_tests::process::{Ended, Tool, binary, command, run_command};
use cluster_tests::{PATIENCE, nats, repository};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// The script takes ports from its base up to this far.
const PORTS: u16 = 40;

/// The script, and what it has printed until it was ready.
struct Script {
    child: Child,
    pid: Pid,
    printed: Vec<String>,
}

impl Script {
    /// Starts it at a base port, and waits until it says that all is ready.
    async fn start(base: u16) -> Result<Self> {
        // The signal may be ignored where tests run in the background, and a
        // shell does not listen to what was ignored before it.
        let mut child = Command::new("env")
            .args(["--default-signal=INT", "scripts/cluster"])
            .current_dir(repository())
            .env("CLUSTER_BINARY", binary())
            .env("CLUSTER_PORTS", base.to_string())
            .env("NATS_SERVER", nats::binary()?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        let pid = i32::try_from(child.id().context("it runs")?)?;
        let pid = Pid::from_raw(pid).context("a pid")?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let mut script = Self {
            child,
            pid,
            printed: Vec::new(),
        };
        while let Some(line) = timeout(PATIENCE, lines.next_line()).await?? {
            let last = line.contains("Ctrl-C");
            script.printed.push(line);
            if last {
                return Ok(script);
            }
        }
        bail!("it has ended before it was ready: {:?}", script.printed)
    }

    /// Starts it where ports are free; another process may be faster.
    async fn start_anywhere() -> Result<(Self, u16)> {
        let mut failure = None;
        for base in free_bases().take(3) {
            match Self::start(base).await {
                Ok(script) => return Ok((script, base)),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.context("no ports are free")?)
    }

    /// The processes that it has started.
    fn children(&self) -> Result<Vec<u32>> {
        let pid = self.pid.as_raw_nonzero();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let pids = children.split_whitespace().map(str::parse);
        Ok(pids.collect::<Result<_, _>>()?)
    }

    /// What follows a word at the beginning of a line.
    fn told(&self, word: &str) -> Result<&str> {
        let rest = |line: &'_ String| line.trim_start().starts_with(word);
        let line = self.printed.iter().find(|line| rest(line));
        let line = line.with_context(|| format!("{word:?} in {:?}", self.printed))?;
        Ok(line.trim_start()[word.len()..].trim())
    }

    /// Presses Ctrl-C and waits for its end.
    async fn interrupt(&mut self) -> Result<()> {
        kill_process(self.pid, Signal::INT)?;
        let ended = timeout(PATIENCE, self.child.wait()).await;
        let status = ended.context("the script did not end")??;
        assert!(status.success(), "{status}");
        Ok(())
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // After a failure: it ends what it has started.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process(self.pid, Signal::TERM);
        }
    }
}

/// Where ports are free, beginning elsewhere in each process.
fn free_bases() -> impl Iterator<Item = u16> {
    let places = (20_000..32_000 - PORTS).step_by(usize::from(PORTS));
    let skip = std::process::id() as usize % places.len();
    let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let bases = places.clone().skip(skip).chain(places);
    bases.filter(move |base| (*base..base + PORTS).all(free))
}

/// Runs a tool with something to read.
async fn tool(arguments: &[&str], input: &str) -> Result<Ended> {
    let ended = run_command(command(arguments), input).await?;
    assert!(ended.status.success(), "{ended:?}");
    Ok(ended)
}

#[tokio::test]
async fn a_cluster_of_one_command_works_and_leaves_nothing_behind() -> Result<()> {
    let (mut script, base) = Script::start_anywhere().await?;
    let url = |gateway: u16| format!("http://127.0.0.1:{}", base + gateway);

    let mut subscriber = Tool::start(["sub", "logs", "--url", &url(1)])?;
    subscriber.note("subscribed").await?;
    tool(&["pub", "logs", "--url", &url(2)], "hello\n").await?;
    assert_eq!(subscriber.line().await?, "hello");
    let admin = format!("127.0.0.1:{}", base + 6);
    let nodes = tool(&["inspect", "nodes", "--admin", &admin], "").await?;
    for name in ["n1", "n2", "n3"] {
        assert!(nodes.stdout.contains(name), "{nodes:?}");
    }

    let children = script.children()?;
    assert!(children.len() >= 6, "{children:?}");
    let folder = script.told("logs")?.to_owned();
    assert!(Path::new(&folder).join("n1.log").is_file(), "{folder}");
    script.interrupt().await?;
    for pid in children {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{pid} lives");
    }
    assert!(!Path::new(&folder).exists(), "{folder} is still there");
    Ok(())
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() -> Result<()> {
    // Not where the other test begins.
    let base = free_bases().nth(9).context("no ports are free")?;
    let port = base + 1;
    let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let mut script = Command::new("scripts/cluster");
    script
        .current_dir(repository())
        .env("CLUSTER_BINARY", binary())
        .env("CLUSTER_PORTS", base.to_string())
        .env("NATS_SERVER", nats::binary()?);
    let ended = run_command(script, "").await?;
    assert!(!ended.status.success(), "{ended:?}");
    assert!(ended.stderr.contains("g1 has ended"), "{ended:?}");
    assert!(ended.stderr.contains(&port.to_string()), "{ended:?}");
    let folder = ended.stderr.split("logs stay in ").nth(1);
    let folder = folder.and_then(|rest| rest.split(';').next());
    std::fs::remove_dir_all(folder.context("where the logs are")?)?;
    Ok(())
}
