//! What a process has used, and helper processes.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, anyhow};

/// CPU time and memory of a process at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    pub(super) user_s: f64,
    pub(super) system_s: f64,
    pub(super) rss_bytes: u64,
}

impl Usage {
    /// Of several processes together; `None` of none.
    pub(super) fn of_all(pids: &[u32]) -> anyhow::Result<Option<Self>> {
        let usages = pids.iter().map(|pid| Self::of(*pid));
        usages
            .reduce(|sum, usage| {
                let (sum, usage) = (sum?, usage?);
                Ok(Self {
                    user_s: sum.user_s + usage.user_s,
                    system_s: sum.system_s + usage.system_s,
                    rss_bytes: sum.rss_bytes + usage.rss_bytes,
                })
            })
            .transpose()
    }

    /// Of a process by its id, from `/proc`.
    pub(super) fn of(pid: u32) -> anyhow::Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            std::fs::read_to_string(&path).with_context(|| format!("could not read {path}"))
        };
        let malformed = || anyhow!("/proc/{pid} is not as expected");
        let stat = read("stat")?;
        // The name, in parentheses, may hold anything.
        let (_, fields) = stat.rsplit_once(')').ok_or_else(malformed)?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = |field: usize| -> anyhow::Result<f64> {
            let ticks: u64 = fields.get(field).ok_or_else(malformed)?.parse()?;
            Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
        };
        let statm = read("statm")?;
        let pages: u64 = statm
            .split_whitespace()
            .nth(1)
            .ok_or_else(malformed)?
            .parse()?;
        Ok(Self {
            user_s: ticks(11)?,
            system_s: ticks(12)?,
            rss_bytes: pages * rustix::param::page_size() as u64,
        })
    }

    /// CPU seconds since an earlier moment.
    pub(super) fn cpu_since(&self, earlier: &Self) -> f64 {
        self.user_s + self.system_s - earlier.user_s - earlier.system_s
    }
}

/// Some processes at one moment, and this one.
pub(super) struct Processes(Vec<(u32, Usage)>);

/// CPU time that a process has used.
#[derive(Debug)]
pub(super) struct Cpu {
    pub(super) pid: u32,
    /// Its program and, of Dunlin's, the command.
    pub(super) process: String,
    pub(super) seconds: f64,
}

impl Processes {
    pub(super) fn of(pids: &[u32]) -> anyhow::Result<Self> {
        let own = std::process::id();
        let usages = pids.iter().copied().chain([own]);
        let usages = usages.map(|pid| Ok((pid, Usage::of(pid)?)));
        usages.collect::<anyhow::Result<_>>().map(Self)
    }

    pub(super) fn cpu_until_now(&self) -> anyhow::Result<Vec<Cpu>> {
        let cpu = self.0.iter().map(|(pid, before)| {
            Ok(Cpu {
                pid: *pid,
                process: process_name(*pid)?,
                seconds: Usage::of(*pid)?.cpu_since(before),
            })
        });
        cpu.collect()
    }
}

fn process_name(pid: u32) -> anyhow::Result<String> {
    let path = format!("/proc/{pid}/cmdline");
    let line = std::fs::read(&path).with_context(|| format!("could not read {path}"))?;
    let line = String::from_utf8_lossy(&line);
    let mut words = line.split('\0');
    let program = words.next().unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default();
    // Only the command: what follows may be a secret.
    let command = words
        .next()
        .filter(|word| word.chars().all(char::is_alphabetic));
    Ok(match command {
        Some(command) if program == "dunlin" && !command.is_empty() => format!("dunlin {command}"),
        _ => program.to_owned(),
    })
}

/// Another process of this binary, spoken to by lines. It ends with us: its
/// stdin closes, and it is killed by its id when this is dropped.
pub(super) struct Helper {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Helper {
    pub(super) fn start(
        arguments: &[String],
        environment: impl IntoIterator<Item = (&'static str, String)>,
    ) -> anyhow::Result<Self> {
        let binary = std::env::current_exe().context("could not find this binary")?;
        let mut child = Command::new(binary)
            .args(arguments)
            .envs(environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("could not start `dunlin {}`", arguments.join(" ")))?;
        let output = child
            .stdout
            .take()
            .map(BufReader::new)
            .context("the helper has no stdout")?;
        Ok(Self {
            input: child.stdin.take(),
            child,
            output,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line that it prints.
    pub(super) fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self
            .output
            .read_line(&mut line)
            .context("could not read from a helper")?
            == 0
        {
            let status = self.child.wait().context("a helper ended")?;
            return Err(anyhow!("a helper process ended early: {status}"));
        }
        Ok(line.trim_end().to_owned())
    }

    /// Asks for something by a line.
    pub(super) fn ask(&mut self, line: &str) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("the helper has no stdin")?;
        writeln!(input, "{line}").context("a helper does not listen")
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        drop(self.input.take());
        // By its own id; it has not been waited for, so the id is still its own.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How many connections to a port of this machine come from a network
/// `127.0.NETWORK.0/24`, as long as the server has not closed them.
pub(super) fn established_from(network: u8, port: u16) -> anyhow::Result<usize> {
    const PATH: &str = "/proc/net/tcp";
    const ESTABLISHED: &str = "01";
    let table = std::fs::read_to_string(PATH).with_context(|| format!("could not read {PATH}"))?;
    let is_counted = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
        let (_, local_port) = local.split_once(':')?;
        // The kernel writes the address as the machine keeps it.
        let remote = u32::from_str_radix(remote.split_once(':')?.0, 16).ok()?;
        let remote = remote.to_ne_bytes();
        let counts = state == ESTABLISHED
            && u16::from_str_radix(local_port, 16).ok()? == port
            && remote[..3] == [127, 0, network];
        Some(counts)
    };
    Ok(table
        .lines()
        .filter_map(is_counted)
        .filter(|counts| *counts)
        .count())
}

/// Nanoseconds of a clock that all processes of this machine share.
pub(super) fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Says so if this process cannot have that many connections.
pub(super) fn check_file_limit(connections: usize) -> Result<(), String> {
    const RESERVED: u64 = 64;
    match crate::process::file_limit() {
        Some(limit) if limit.saturating_sub(RESERVED) < connections as u64 => Err(format!(
            "{connections} connections do not fit: the limit of open files is {limit}; raise it with `ulimit -n`"
        )),
        _ => Ok(()),
    }
}
