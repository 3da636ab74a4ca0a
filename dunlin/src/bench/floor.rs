//! The floor: the same frames to as many sockets by a bare loop of `send(2)`,
//! on the same machine in the same run. What a server costs beyond this is its
//! own doing.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;

use super::process::{Helper, Usage, check_file_limit};
use crate::exit::{Exit, Failure};

/// Connections that are opened before the other side accepts them.
const OPENING: usize = 64;

/// What the loop cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Floor {
    pub(super) sends: u64,
    pub(super) cpu_s: f64,
    pub(super) elapsed_s: f64,
}

impl Floor {
    /// `None`: too little to be measured.
    pub(super) fn us_per_send(&self) -> Option<f64> {
        /// CPU time is counted in hundredths of a second.
        const MEASURABLE_S: f64 = 0.1;
        (self.cpu_s >= MEASURABLE_S).then(|| self.cpu_s * 1e6 / self.sends as f64)
    }
}

/// What it sends: each round a frame to each socket of a group, and the groups
/// take turns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rounds {
    pub(super) sockets: usize,
    pub(super) groups: usize,
    /// Bytes of a frame.
    pub(super) size: usize,
    pub(super) rounds: u64,
    pub(super) interval: Duration,
}

/// Sends all of them.
pub(super) fn measure(rounds: Rounds, mut progress: impl FnMut(u64)) -> anyhow::Result<Floor> {
    let count = rounds.sockets;
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("could not listen for the floor")?;
    let address = listener.local_addr()?;
    let arguments = [
        "bench",
        "sink",
        "--address",
        &address.to_string(),
        "--count",
        &count.to_string(),
    ];
    let mut helper = Helper::start(&arguments.map(str::to_owned), [])?;
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let (socket, _) = listener
            .accept()
            .context("could not accept for the floor")?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        sockets.push(socket);
    }
    if helper.line()? != "ready" {
        bail!("the receiving end of the floor did not begin");
    }
    let frame = vec![b'x'; rounds.size];
    let pid = std::process::id();
    let before = Usage::of(pid)?;
    let began = Instant::now();
    let mut sends = 0;
    for round in 0..rounds.rounds {
        let due = began + rounds.interval * u32::try_from(round).unwrap_or(u32::MAX);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let group = (round % rounds.groups as u64) as usize;
        for socket in sockets.iter().skip(group).step_by(rounds.groups) {
            match (&*socket).write(&frame) {
                Ok(_) => sends += 1,
                // A full socket costs the same and takes nothing.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("the floor lost a socket"),
            }
        }
        progress(round + 1);
    }
    let after = Usage::of(pid)?;
    Ok(Floor {
        sends,
        cpu_s: after.cpu_since(&before),
        elapsed_s: began.elapsed().as_secs_f64(),
    })
}

#[derive(Debug, Args)]
pub(crate) struct SinkOptions {
    #[arg(long)]
    address: SocketAddr,
    #[arg(long)]
    count: usize,
}

/// Connects, says `ready`, and reads until stdin ends.
pub(crate) fn sink(options: &SinkOptions) -> Result<(), Failure> {
    check_file_limit(options.count).map_err(|problem| Exit::Usage.because(problem))?;
    let runtime = crate::cli::runtime()?;
    let local = tokio::task::LocalSet::new();
    local
        .block_on(&runtime, read_all(options))
        .map_err(|error| Exit::Unavailable.with(error))
}

async fn read_all(options: &SinkOptions) -> anyhow::Result<()> {
    let buffer = Rc::new(std::cell::RefCell::new(vec![0; 64 * 1_024]));
    let mut opened = Vec::with_capacity(options.count);
    for batch in (0..options.count).collect::<Vec<_>>().chunks(OPENING) {
        for _ in batch {
            let stream =
                TcpStream::connect(options.address).context("could not connect for the floor")?;
            stream.set_nonblocking(true)?;
            opened.push(tokio::net::TcpStream::from_std(stream)?);
        }
    }
    for stream in opened {
        let buffer = Rc::clone(&buffer);
        tokio::task::spawn_local(async move {
            while stream.readable().await.is_ok() {
                match stream.try_read(&mut buffer.borrow_mut()) {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
            }
        });
    }
    println!("ready");
    // Until the parent closes stdin.
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    ended.await?.context("could not read stdin")?;
    Ok(())
}
