//! What the bench publishes and how its subscribers read it: the data begins
//! with the time of publishing, so that a latency needs no table. Pure.

use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;

/// The time of publishing, in nanoseconds of a clock that both processes share.
const STAMP_DIGITS: usize = 19;
/// Stands before the data in a frame.
const DATA: &[u8] = b"\"data\":\"";

/// A channel of a run.
pub(super) fn channel(run: &str, number: u32) -> String {
    format!("bench-{run}-{number}")
}

/// Event data of `size` bytes, or of the stamp alone if that is longer.
pub(super) fn data(now_ns: u64, size: usize) -> String {
    let mut data = format!("{now_ns:0STAMP_DIGITS$}");
    data.extend(std::iter::repeat_n('x', size.saturating_sub(STAMP_DIGITS)));
    data
}

/// Bytes of a publication in a channel, as it goes to a subscriber.
pub(super) fn frame_bytes(channel: &str, size: u32) -> usize {
    let data = data(0, size as usize);
    let event = serde_json::json!({ "event": "b", "channel": channel, "data": data });
    gateway::websocket::text_frame(&event.to_string()).len()
}

/// Puts frames together that arrive in pieces.
#[derive(Debug, Default)]
pub(super) struct Frames {
    rest: Vec<u8>,
}

impl Frames {
    /// Takes bytes; calls back with each payload that they complete.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        mut payload: impl FnMut(&[u8]),
    ) -> Result<(), &'static str> {
        if self.rest.is_empty() {
            let used = split(bytes, &mut payload)?;
            self.rest.extend_from_slice(&bytes[used..]);
        } else {
            self.rest.extend_from_slice(bytes);
            let used = split(&self.rest, &mut payload)?;
            self.rest.drain(..used);
        }
        Ok(())
    }
}

/// Calls back with each whole frame's payload; how many bytes they were.
fn split(bytes: &[u8], payload: &mut impl FnMut(&[u8])) -> Result<usize, &'static str> {
    let mut used = 0;
    loop {
        let mut cursor = std::io::Cursor::new(&bytes[used..]);
        let header =
            FrameHeader::parse(&mut cursor).map_err(|_| "the server sent what is not WebSocket")?;
        let Some((_, length)) = header else {
            return Ok(used);
        };
        let start = used + cursor.position() as usize;
        let end = start + length as usize;
        let Some(whole) = bytes.get(start..end) else {
            return Ok(used);
        };
        payload(whole);
        used = end;
    }
}

/// When the publication in a frame was published. `None`: it is no publication
/// of the bench.
pub(super) fn published_ns(payload: &[u8]) -> Option<u64> {
    let at = payload
        .windows(DATA.len())
        .position(|window| window == DATA)?
        + DATA.len();
    let digits = payload.get(at..at + STAMP_DIGITS)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_survive_the_wire_in_pieces() {
        let mut wire = Vec::new();
        for now in [7, 8, 9] {
            let json = format!(
                r#"{{"event":"b","channel":"c","data":"{}"}}"#,
                data(now, 200)
            );
            wire.extend_from_slice(&gateway::websocket::text_frame(&json));
        }
        for size in [1, 3, 100, 10_000] {
            let mut frames = Frames::default();
            let mut stamps = Vec::new();
            for piece in wire.chunks(size) {
                frames
                    .feed(piece, |payload| stamps.extend(published_ns(payload)))
                    .unwrap();
            }
            assert_eq!(stamps, [7, 8, 9]);
        }
        assert_eq!(data(1, 5).len(), STAMP_DIGITS);
        assert_eq!(published_ns(br#"{"event":"pusher:pong","data":{}}"#), None);
    }
}
