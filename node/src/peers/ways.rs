//! A way between an owner's node and a standby's: a stream of frames in both
//! directions, each its length in four bytes, big end first, and that many bytes.

use std::time::Duration;

use quinn::{ReadExactError, RecvStream, SendStream};
use tokio::time::timeout;

/// The first byte of a way, where a call has its version.
pub(crate) const TAG: u8 = b'w';
/// Bytes of a frame at most: the publish tables of a shard go in one piece.
const FRAME_BYTES_MAX: usize = 64 * 1_024 * 1_024;

/// Both ends have one.
pub(crate) struct Way {
    pub(crate) send: SendStream,
    pub(crate) receive: RecvStream,
}

/// How long the other end may take no more before a way counts as broken: as
/// long as one that says nothing.
const STUCK: Duration = Duration::from_secs(3);

/// Writes frames, one after the other. `false`: the way has broken.
pub(crate) async fn write(send: &mut SendStream, frames: &[Vec<u8>]) -> bool {
    let mut bytes = Vec::with_capacity(frames.iter().map(|frame| 4 + frame.len()).sum());
    for frame in frames {
        bytes.extend((frame.len() as u32).to_be_bytes());
        bytes.extend(frame);
    }
    matches!(timeout(STUCK, send.write_all(&bytes)).await, Ok(Ok(())))
}

/// The next frame.
///
/// # Errors
/// Why there is none, for people.
pub(crate) async fn read(receive: &mut RecvStream) -> Result<Vec<u8>, String> {
    let broken = |error: ReadExactError| error.to_string();
    let mut length = [0; 4];
    receive.read_exact(&mut length).await.map_err(broken)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(format!("a frame of {length} bytes is too long"));
    }
    let mut frame = vec![0; length];
    receive.read_exact(&mut frame).await.map_err(broken)?;
    Ok(frame)
}
