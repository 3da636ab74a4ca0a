//! Shell: pairs of local sockets. A worker writes to sockets of the kernel; of what
//! is no such socket, because it is encrypted or one stream among others, it is given
//! one end of a pair, and a task carries what goes through it. That costs a copy and
//! a task switch for each delivery, and nothing of the worker's own path.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as UnixStdStream;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long the other direction of a connection goes on after one has ended.
pub(crate) const FAREWELL: Duration = Duration::from_secs(3);
/// Bytes that are carried to a client at a time.
const OUTWARD: usize = 16 * 1_024;
/// Bytes that are carried from one at a time: clients say little.
const INWARD: usize = 2 * 1_024;

/// The end of a pair that is carried from, and the one for a worker.
pub(crate) fn pair() -> io::Result<(UnixStream, std::net::TcpStream)> {
    let (near, far) = UnixStdStream::pair()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    // To the standard library a stream is a stream.
    Ok((UnixStream::from_std(near)?, OwnedFd::from(far).into()))
}

/// Waits until a worker has written something, and takes it; empty: it has ended.
/// While nothing comes this needs no memory.
pub(crate) async fn read(worker: &impl AsRef<UnixStream>) -> BytesMut {
    loop {
        if worker.as_ref().readable().await.is_err() {
            return BytesMut::new();
        }
        let mut read = BytesMut::with_capacity(OUTWARD);
        match worker.as_ref().try_read_buf(&mut read) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return read,
        }
    }
}

/// Carries in both directions, until one has ended and the other had time to.
/// `patience`: how long the client may take for what it is sent.
pub(crate) async fn carry(
    client: impl AsyncRead + AsyncWrite,
    worker: UnixStream,
    patience: Duration,
) {
    let (from_client, to_client) = tokio::io::split(client);
    let (from_worker, to_worker) = worker.into_split();
    let outward = async {
        let mut to = to_client;
        loop {
            let bytes = read(&from_worker).await;
            if bytes.is_empty() {
                break;
            }
            if !pass(&mut to, &bytes, patience).await {
                return;
            }
        }
        let _ = timeout(FAREWELL, to.shutdown()).await;
    };
    let inward = async {
        let (mut from, mut to) = (from_client, to_worker);
        let mut buffer = [0; INWARD];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            if !pass(&mut to, &buffer[..count], patience).await {
                return;
            }
        }
        let _ = timeout(FAREWELL, to.shutdown()).await;
    };
    tokio::pin!(outward, inward);
    tokio::select! {
        () = &mut outward => {
            let _ = timeout(FAREWELL, inward).await;
        }
        () = &mut inward => {
            let _ = timeout(FAREWELL, outward).await;
        }
    }
}

/// Whether all of this went through in time.
async fn pass(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8], patience: Duration) -> bool {
    let passing = async {
        to.write_all(bytes).await?;
        to.flush().await
    };
    matches!(timeout(patience, passing).await, Ok(Ok(())))
}
