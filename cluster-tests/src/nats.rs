//! Starts a real nats-server, and ends it by its process id.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::time::Instant;

use crate::client::exchange;
use crate::{PATIENCE, repository, skipped};

/// Ports that are tried. Below those that the system gives to outgoing
/// connections: a client that tries again and again to reach a dead server at
/// one of those may in the end be connected to itself.
const PORTS: std::ops::Range<u32> = 20_000..32_000;

static STARTED: AtomicU32 = AtomicU32::new(0);

/// A nats-server on a loopback port of its own.
#[derive(Debug)]
pub struct NatsServer {
    binary: PathBuf,
    child: Option<Child>,
    port: u16,
    folder: Folder,
}

/// The nats-server that tests run with: `NATS_SERVER`, else what
/// scripts/prerequisites installed, else what is in the `PATH`.
///
/// # Errors
/// When there is none, with how to get it.
pub fn binary() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("NATS_SERVER") {
        return Ok(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(debian());
    std::iter::once(repository().join("target/tools"))
        .chain(folders)
        .map(|folder| folder.join("nats-server"))
        .find(|file| file.is_file())
        .context("there is no nats-server: run scripts/prerequisites, or name one in NATS_SERVER")
}

/// The oldest nats-server that is supported, 2.9: `NATS_SERVER_FLOOR`, else
/// Debian's if it is that. `None` where it is not installed, which is said.
pub fn floor() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("NATS_SERVER_FLOOR") {
        return Some(named.into());
    }
    let floor = debian()
        .map(|folder| folder.join("nats-server"))
        .find(|file| version(file).is_ok_and(|version| version.contains("v2.9.")));
    if floor.is_none() {
        skipped("no nats-server 2.9 here (on Debian 12: apt-get install nats-server)");
    }
    floor
}

fn debian() -> impl Iterator<Item = PathBuf> {
    ["/usr/sbin", "/usr/bin"].into_iter().map(PathBuf::from)
}

/// What a nats-server says of itself: `nats-server: v2.15.1`.
///
/// # Errors
/// When it cannot be run.
pub fn version(binary: &Path) -> Result<String> {
    let output = Command::new(binary).arg("--version").output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl NatsServer {
    /// Starts one with default settings.
    ///
    /// # Errors
    /// When it does not begin to serve.
    pub async fn start() -> Result<Self> {
        Self::start_with("").await
    }

    /// Starts one with a configuration, whose address does not count.
    ///
    /// # Errors
    /// When it does not begin to serve.
    pub async fn start_with(config: &str) -> Result<Self> {
        Self::start_binary(&binary()?, config).await
    }

    /// Starts a certain one.
    ///
    /// # Errors
    /// When it does not begin to serve.
    pub async fn start_binary(binary: &Path, config: &str) -> Result<Self> {
        let mut server = Self::stopped(binary, config)?;
        let mut started = server.restart().await;
        if started.is_err() && server.log().contains("address already in use") {
            // Another process took the port first.
            server = Self::stopped(binary, config)?;
            started = server.restart().await;
        }
        started?;
        Ok(server)
    }

    /// One that has its port and has not been started.
    ///
    /// # Errors
    /// When its folder cannot be written, or no port is free.
    pub fn stopped(binary: &Path, config: &str) -> Result<Self> {
        let folder = Folder::new()?;
        folder.file("nats.conf", config)?;
        Ok(Self {
            binary: binary.to_owned(),
            child: None,
            port: free_tcp_port()?,
            folder,
        })
    }

    /// Starts it again, or for the first time, at its port.
    ///
    /// # Errors
    /// When it does not begin to serve.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        let _ = fs::remove_file(self.folder.path("log"));
        let child = Command::new(&self.binary)
            .args(["--addr", "127.0.0.1", "--port", &self.port.to_string()])
            .arg("--config")
            .arg(self.folder.path("nats.conf"))
            .arg("--log")
            .arg(self.folder.path("log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.folder.path("stderr"))?)
            .spawn()
            .with_context(|| format!("{} does not run", self.binary.display()))?;
        self.child = Some(child);
        let deadline = Instant::now() + PATIENCE;
        while !self.log().contains("Server is ready") {
            let ended = self.child.as_mut().map(Child::try_wait).transpose()?;
            if let Some(Some(status)) = ended {
                bail!("nats-server has ended with {status}: {}", self.log());
            }
            if Instant::now() > deadline {
                bail!("nats-server does not serve: {}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Ends it at once, with all connections; it says goodbye to nobody.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Its process id; `None`: it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Stops it without ending it: its connections stay, and nothing moves.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("it runs")?;
        let pid = Pid::from_raw(child.id().try_into()?).context("a pid")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Where it is: `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// How to reach it: `nats://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    /// Where its monitoring is, if its configuration has `http: "127.0.0.1:-1"`.
    ///
    /// # Errors
    /// When it has none.
    pub fn monitor(&self) -> Result<String> {
        let log = self.log();
        let (_, rest) = log
            .split_once("http monitor on ")
            .context("it has no monitoring")?;
        let address = rest.split_whitespace().next();
        Ok(address.context("an address")?.to_owned())
    }

    /// What it says of each connection, with its subscriptions, if its
    /// configuration has `http: "127.0.0.1:-1"`.
    ///
    /// # Errors
    /// When it does not say.
    pub async fn connections(&self) -> Result<Vec<Value>> {
        // By an earlier HTTP, which has no chunks.
        let request = b"GET /connz?subs=1 HTTP/1.0\r\n\r\n";
        let page = exchange(&self.monitor()?, request).await?.json();
        let connections = page["connections"].as_array();
        Ok(connections.context("connections")?.clone())
    }

    /// How many bytes it keeps for a process (`gateway g1`), by the same.
    ///
    /// # Errors
    /// When it does not say, or no such process is connected.
    pub async fn kept_for(&self, process: &str) -> Result<u64> {
        let connections = self.connections().await?;
        let connection = connections.iter().find(|it| it["name"] == process);
        let kept = connection.and_then(|it| it["pending_bytes"].as_u64());
        kept.with_context(|| format!("{process} is not among {connections:?}"))
    }

    /// How often it has dropped what a client did not read in time.
    pub fn slow_consumers(&self) -> usize {
        self.log().matches("Slow Consumer").count()
    }

    /// What it has written to its log, and to stderr.
    pub fn log(&self) -> String {
        ["log", "stderr"]
            .map(|file| fs::read_to_string(self.folder.path(file)).unwrap_or_default())
            .concat()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A loopback address of those ports that is free now, for a server that comes
/// back at the same place.
///
/// # Errors
/// When there is none.
pub fn free_address() -> Result<String> {
    Ok(format!("127.0.0.1:{}", free_tcp_port()?))
}

fn free_tcp_port() -> Result<u16> {
    free_port(|place| TcpListener::bind(place).is_ok())
}

/// A port that nobody is given who asks for any.
pub(crate) fn free_port(is_free: impl Fn((Ipv4Addr, u16)) -> bool) -> Result<u16> {
    let places = PORTS.end - PORTS.start;
    for _ in 0..1_000 {
        // Processes and servers begin at different places.
        let step =
            STARTED.fetch_add(1, Ordering::Relaxed) + std::process::id().wrapping_mul(37) % 12_000;
        let port = u16::try_from(PORTS.start + step % places)?;
        if is_free((Ipv4Addr::LOCALHOST, port)) {
            return Ok(port);
        }
    }
    bail!("no port is free")
}

/// A folder for files of a test, removed when dropped.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Self> {
        let name = format!(
            "dunlin-nats-{}-{}",
            std::process::id(),
            STARTED.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// Where a file of this name is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, text)?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
