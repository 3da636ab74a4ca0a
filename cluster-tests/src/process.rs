//! Starts the real binary, and ends it by its process id.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::{PATIENCE, repository};

/// The binary, built once with the profile of the tests.
///
/// # Panics
/// When it does not build.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let cargo = option_env!("CARGO").unwrap_or("cargo");
        let mut build = std::process::Command::new(cargo);
        build
            .args(["build", "--quiet", "-p", "dunlin"])
            .current_dir(repository());
        let profile = if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        };
        if profile == "release" {
            build.arg("--release");
        }
        // What cargo tells a test of its own package would count as a change
        // for some build scripts, and have half of the binary built anew.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                build.env_remove(name);
            }
        }
        let status = build.status().expect("cargo runs");
        assert!(status.success(), "the binary builds");
        // The test's own path is <target>/<profile>/deps/<name>.
        let test = std::env::current_exe().expect("a test has a path");
        let target = test
            .ancestors()
            .nth(3)
            .expect("a test is in target/PROFILE/deps");
        target.join(profile).join("dunlin")
    })
}

/// The binary of an earlier version, if `OLDER_BINARY` names one.
pub fn older_binary() -> Option<PathBuf> {
    std::env::var_os("OLDER_BINARY").map(PathBuf::from)
}

/// A command of the binary, with nothing from our own environment that would
/// configure it.
pub fn command<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    command_of(binary(), arguments)
}

/// The same of another binary.
pub fn command_of<S: AsRef<OsStr>>(
    binary: &Path,
    arguments: impl IntoIterator<Item = S>,
) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("DUNLIN_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command
        .args(arguments)
        .kill_on_drop(true)
        .stdin(Stdio::null());
    command
}

/// What a command that has ended left behind.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

/// Runs a command to its end.
///
/// # Errors
/// When it does not end in time.
pub async fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<Ended> {
    run_command(command(arguments), "").await
}

/// Runs a command to its end, with some input.
///
/// # Errors
/// When it does not end in time.
pub async fn run_command(mut command: Command, input: &str) -> Result<Ended> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    let input = input.to_owned();
    // Beside the reading: the command may answer before it has read all.
    let writing = tokio::spawn(async move {
        // A command that ends early does not read.
        let _ = stdin.write_all(input.as_bytes()).await;
    });
    let output = timeout(PATIENCE, child.wait_with_output())
        .await
        .context("the command did not end")??;
    writing.abort();
    Ok(Ended {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A server process.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts a server and reads the addresses that it prints first, up to that
    /// of `admin`, which is the last.
    async fn start(mut command: Command) -> Result<(Self, HashMap<String, String>)> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let log =
            std::env::temp_dir().join(format!("dunlin-test-{}-{number}.log", std::process::id()));
        let file = std::fs::File::create(&log).context("a log file")?;
        let mut child = command.stdout(Stdio::piped()).stderr(file).spawn()?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let began = timeout(PATIENCE, addresses(&mut lines)).await;
        let running = Self { child, log };
        match began {
            Ok(Ok(addresses)) => {
                // What else it prints must not fill the pipe.
                tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                Ok((running, addresses))
            }
            failed => bail!("the server did not begin: {failed:?}\n{}", running.log()),
        }
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it has ended.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it has not been waited for")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends SIGTERM and waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(rustix::process::Signal::TERM)?;
        self.ended().await
    }

    /// Ends it at once; it says goodbye to nobody.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(rustix::process::Signal::KILL)?;
        self.ended().await
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = i32::try_from(self.pid())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .context("a pid")?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        self.ended_within(PATIENCE).await
    }

    async fn ended_within(&mut self, patience: Duration) -> Result<ExitStatus> {
        Ok(timeout(patience, self.child.wait())
            .await
            .context("the server did not end")??)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Kept when a test has failed, to be read.
        if !std::thread::panicking() {
            let _ = std::fs::remove_file(&self.log);
        }
    }
}

/// A `dunlin dev` or `dunlin gateway` that serves.
#[derive(Debug)]
pub struct Dev {
    process: Running,
    /// Where clients connect: `127.0.0.1:PORT`.
    pub clients: String,
    /// Where health and metrics are.
    pub admin: String,
}

impl Dev {
    /// Starts `dunlin dev` with default settings on free ports.
    ///
    /// # Errors
    /// When it does not begin to serve.
    pub async fn start() -> Result<Self> {
        Self::start_with::<&str>([]).await
    }

    /// Starts one with further arguments.
    ///
    /// # Errors
    /// When it does not begin to serve.
    pub async fn start_with<S: AsRef<OsStr>>(
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        let mut command = command(["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        command.args(arguments);
        Self::start_command(command).await
    }

    /// Starts one with a configuration file of this text, and further arguments.
    ///
    /// # Errors
    /// When it does not begin to serve.
    pub async fn start_configured(text: &str, arguments: &[&str]) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = format!("dunlin-config-{}-{number}.toml", std::process::id());
        let file = std::env::temp_dir().join(file);
        std::fs::write(&file, text)?;
        let config = ["--config", file.to_str().context("a path of text")?];
        let server = Self::start_with(config.iter().chain(arguments)).await;
        std::fs::remove_file(file)?;
        server
    }

    /// Starts one that may have so many files open.
    ///
    /// # Errors
    /// When it does not begin to serve.
    pub async fn start_with_files(most: u32) -> Result<Self> {
        let limited = format!("ulimit -n {most} && exec \"$0\" \"$@\"");
        let mut command = command_of("bash".as_ref(), ["-c", &limited]);
        command
            .arg(binary())
            .args(["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        Self::start_command(command).await
    }

    /// Starts one by a command of the caller's making.
    ///
    /// # Errors
    /// When it does not begin to serve; with its log.
    pub async fn start_command(command: Command) -> Result<Self> {
        let (process, mut addresses) = Running::start(command).await?;
        Ok(Self {
            process,
            clients: addresses.remove("clients").context("a client address")?,
            admin: addresses.remove("admin").context("an admin address")?,
        })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.clients)
    }
}

impl Deref for Dev {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.process
    }
}

impl DerefMut for Dev {
    fn deref_mut(&mut self) -> &mut Running {
        &mut self.process
    }
}

/// A `dunlin node` that runs.
#[derive(Debug)]
pub struct NodeProcess {
    process: Running,
    /// Where other nodes reach it.
    pub quic: String,
    /// Where health and metrics are.
    pub admin: String,
}

impl NodeProcess {
    /// Starts one.
    ///
    /// # Errors
    /// When it does not begin; with its log.
    pub async fn start(command: Command) -> Result<Self> {
        let (process, mut addresses) = Running::start(command).await?;
        Ok(Self {
            process,
            quic: addresses.remove("quic").context("a quic address")?,
            admin: addresses.remove("admin").context("an admin address")?,
        })
    }

    /// Sends SIGTERM and waits for its end: it gives away its shards first, for
    /// which it may take [`PATIENCE`].
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        self.process.signal(rustix::process::Signal::TERM)?;
        self.process.ended_within(2 * PATIENCE).await
    }
}

impl Deref for NodeProcess {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.process
    }
}

impl DerefMut for NodeProcess {
    fn deref_mut(&mut self) -> &mut Running {
        &mut self.process
    }
}

/// Finds the addresses in what a server prints first; `admin` is the last.
async fn addresses(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<HashMap<String, String>> {
    let mut addresses = HashMap::new();
    while let Some(line) = lines.next_line().await? {
        let mut words = line.split_whitespace();
        if let (Some(name @ ("clients" | "quic" | "admin")), Some(address)) =
            (words.next(), words.next())
        {
            let address = address.trim_start_matches("http://");
            let address = address.trim_start_matches("https://");
            addresses.insert(name.to_owned(), address.to_owned());
            if name == "admin" {
                return Ok(addresses);
            }
        }
    }
    bail!("it printed no addresses")
}

/// A tool that goes on, such as `sub`.
#[derive(Debug)]
pub struct Tool {
    child: Child,
    /// Its stdin, to be written to and closed.
    pub input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
    notes: Lines<BufReader<tokio::process::ChildStderr>>,
}

impl Tool {
    /// Starts one.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<Self> {
        let mut command = command(arguments);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Self {
            input: child.stdin.take(),
            output: BufReader::new(child.stdout.take().context("stdout is piped")?).lines(),
            notes: BufReader::new(child.stderr.take().context("stderr is piped")?).lines(),
            child,
        })
    }

    /// Starts `dunlin sub` and waits until it is subscribed.
    ///
    /// # Errors
    /// When it is not.
    pub async fn subscribe(server: &Dev, arguments: &[&str]) -> Result<Self> {
        let url = server.url();
        let mut all = vec!["sub", "--url", &url];
        all.extend(arguments);
        let mut tool = Self::start(all)?;
        tool.note("subscribed").await?;
        Ok(tool)
    }

    /// The next line that it prints.
    ///
    /// # Errors
    /// When none comes in time.
    pub async fn line(&mut self) -> Result<String> {
        let next = timeout(PATIENCE, self.output.next_line())
            .await
            .context("no line came")??;
        next.context("it has ended")
    }

    /// The next note on stderr with this word.
    ///
    /// # Errors
    /// When none comes in time.
    pub async fn note(&mut self, word: &str) -> Result<String> {
        let last = self.notes_until(word).await?.pop();
        last.context("a note")
    }

    /// The notes on stderr up to the first with this word.
    ///
    /// # Errors
    /// When none comes in time.
    pub async fn notes_until(&mut self, word: &str) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        loop {
            let next = timeout(PATIENCE, self.notes.next_line())
                .await
                .context("no note came")??;
            let note = next.with_context(|| format!("it has ended without a note of {word:?}"))?;
            let is_it = note.contains(word);
            notes.push(note);
            if is_it {
                return Ok(notes);
            }
        }
    }

    /// Writes to its stdin, which stays open.
    ///
    /// # Errors
    /// When it has been closed, or the tool does not read.
    pub async fn write(&mut self, text: &str) -> Result<()> {
        let input = self.input.as_mut().context("its stdin is open")?;
        Ok(timeout(PATIENCE, input.write_all(text.as_bytes()))
            .await
            .context("it does not read")??)
    }

    /// Ends it at once; with what it had still to say.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn kill(mut self) -> Result<Ended> {
        self.child.start_kill()?;
        self.end().await
    }

    /// Waits for its end; with what it had still to say.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn end(mut self) -> Result<Ended> {
        drop(self.input.take());
        let status = timeout(PATIENCE, self.child.wait())
            .await
            .context("it did not end")??;
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.output.into_inner().read_to_string(&mut stdout).await?;
        self.notes.into_inner().read_to_string(&mut stderr).await?;
        Ok(Ended {
            status,
            stdout,
            stderr,
        })
    }
}
