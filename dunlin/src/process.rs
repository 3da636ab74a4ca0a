//! What every server process does, whatever it serves: read tokens, begin to
//! log, take as many file descriptors as it may, listen to signals, and end in
//! time when one comes.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::admin::tokens::Tokens;
use crate::config::{self, environment};
use crate::exit::{Exit, Failure};
use crate::telemetry;

/// How long everything may take to end after a signal.
pub(crate) const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// Runs a server to its end, on so many threads, besides those that it starts by
/// itself.
pub(crate) fn run<F>(
    config: &config::Server,
    threads: usize,
    serve: impl FnOnce(Option<Arc<Tokens>>) -> F,
) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    let tokens = config.admin_token_file.as_deref().map(Tokens::read);
    let tokens = tokens
        .transpose()
        .map_err(|problem| Exit::Config.because(problem))?;
    telemetry::init(config.log);
    for name in environment::unknown_variables() {
        tracing::warn!(%name, "a variable of the environment that means nothing here; a typing error?");
    }
    file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(|error| Exit::Software.with(error))?;
    let result = runtime.block_on(serve(tokens.map(Arc::new)));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Takes the admin address; with what it turned out to be.
pub(crate) async fn bind_admin(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Failure> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
        Exit::Io.because(format!(
            "could not listen on {address}: {error}; choose another address with --admin"
        ))
    })?;
    let bound = listener.local_addr().unwrap_or(address);
    Ok((listener, bound))
}

/// Tells whoever started the server what to know.
pub(crate) fn greet(text: &str) {
    // Whoever closed stdout does not want to know.
    let _ = std::io::stdout().write_all(text.as_bytes());
    let _ = std::io::stdout().flush();
}

/// Says that a future has ended, and keeps its result.
pub(crate) async fn telling<T>(future: impl Future<Output = T>, ended: mpsc::Sender<()>) -> T {
    let result = future.await;
    // Full: somebody else has said so before.
    let _ = ended.try_send(());
    result
}

/// SIGTERM and SIGINT. Listened to from the start: one that comes early is
/// heeded later, and does not end the process by its default action.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Exit::Software.with(error));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for a signal, or for the first part of the server to say that it
    /// has ended, which without a signal is a failure. Whether it was a signal.
    pub(crate) async fn or_first_end(&mut self, ended: &mut mpsc::Receiver<()>) -> bool {
        tokio::select! {
            () = self.next() => true,
            _ = ended.recv() => false,
        }
    }

    /// Waits for the rest to end, though not for ever, and not after a second
    /// signal.
    pub(crate) async fn end(
        self,
        by_signal: bool,
        rest: impl Future<Output = Result<(), Failure>>,
    ) -> Result<(), Failure> {
        self.end_within(SHUTDOWN_PATIENCE, by_signal, rest).await
    }

    /// The same, for those who have more to do.
    pub(crate) async fn end_within(
        mut self,
        patience: Duration,
        by_signal: bool,
        rest: impl Future<Output = Result<(), Failure>>,
    ) -> Result<(), Failure> {
        tokio::select! {
            ended = rest => ended,
            () = self.next() => Ok(()),
            () = tokio::time::sleep(patience) => {
                tracing::warn!("not everything ended in time");
                if by_signal { Ok(()) } else { Err(Exit::Software.because("a part of the server failed")) }
            }
        }
    }
}

/// Fills a buffer with random bytes of the system.
pub(crate) fn fill_random(buffer: &mut [u8]) -> std::io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = &mut buffer[filled..];
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(())
}

/// Each client is a file descriptor: how many fit, for those who serve any.
pub(crate) fn tell_file_limit(config: &config::Clients) {
    if let Some(limit) = file_limit() {
        let clients = config.room(limit as usize).clients;
        tracing::warn!(
            "the limit of open files is {limit}: about {clients} clients fit (raise it with LimitNOFILE or ulimit -Hn)"
        );
    }
}

/// Raises the limit of open files as far as it goes. `None`: there is none.
pub(crate) fn file_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: maximum,
                maximum,
            },
        )
    {
        tracing::warn!(%error, "could not raise the limit of open files");
    }
    getrlimit(Resource::Nofile).current
}
