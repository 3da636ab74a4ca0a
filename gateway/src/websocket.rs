//! WebSocket over bytes that somebody else reads and writes. tungstenite does
//! the protocol; the socket, the read buffer and the write queue are the
//! worker's, which has one of the first two for all its connections. Pure.

use std::io::{self, Read, Write};

use bytes::Bytes;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{
    CloseCode as WireCode, Data, OpCode,
};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::protocol::{Close, CloseCode};

/// Bytes of a client's message at most.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1_024;
/// Bytes of the reason in a close frame at most (RFC 6455, 5.5).
const REASON_BYTES_MAX: usize = 123;

/// A text frame for any client: frames of servers are not masked.
pub fn text_frame(text: &str) -> Bytes {
    let frame = Frame::message(
        Bytes::copy_from_slice(text.as_bytes()),
        OpCode::Data(Data::Text),
        true,
    );
    let mut bytes = Vec::with_capacity(text.len() + 10);
    frame.format(&mut bytes).expect("a Vec takes everything");
    bytes.into()
}

/// What came from the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary,
    /// The closing handshake is complete, or the client says it is.
    Closed,
}

/// The state of one connection's WebSocket protocol.
#[derive(Debug)]
pub struct WebSocket {
    context: WebSocketContext,
    /// We have sent a close and the client has not answered.
    awaits_close: bool,
    /// What came was not acceptable; the rest of it is not looked at.
    failed: bool,
}

impl Default for WebSocket {
    fn default() -> Self {
        // Bytes come from memory, so small reads cost nothing and an idle
        // connection holds no buffer.
        let config = WebSocketConfig::default()
            .read_buffer_size(0)
            .write_buffer_size(0)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        Self {
            context: WebSocketContext::new(Role::Server, Some(config)),
            awaits_close: false,
            failed: false,
        }
    }
}

impl WebSocket {
    /// Takes bytes that were read from the socket. Bytes to be written (pongs,
    /// the answer to a close) are appended to `output`.
    ///
    /// After an error everything further is taken and dropped: tungstenite's
    /// state must not be used again, and bytes that stayed unread in the socket
    /// would make the kernel reset the connection before the client has read
    /// why it is closed.
    ///
    /// # Errors
    /// How to end the connection when the bytes are not acceptable WebSocket.
    pub fn feed(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
        event: impl FnMut(Event),
    ) -> Result<(), Close> {
        if self.failed {
            return Ok(());
        }
        let result = self.read_all(input, output, event);
        self.failed = result.is_err();
        result
    }

    fn read_all(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
        mut event: impl FnMut(Event),
    ) -> Result<(), Close> {
        let mut pipe = Pipe { input, output };
        loop {
            match self.context.read(&mut pipe) {
                Ok(Message::Text(text)) => event(Event::Text(text.as_str().to_owned())),
                Ok(Message::Binary(_)) => event(Event::Binary),
                // Pings are answered; the answer to a close is on its way.
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_)) => {
                }
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(Error::ConnectionClosed | Error::AlreadyClosed) => {
                    self.awaits_close = false;
                    event(Event::Closed);
                    return Ok(());
                }
                Err(Error::Capacity(error)) => {
                    return Err(Close {
                        code: CloseCode::TooLarge,
                        message: error.to_string(),
                    });
                }
                Err(error) => {
                    return Err(Close {
                        code: CloseCode::ProtocolError,
                        message: error.to_string(),
                    });
                }
            }
        }
    }

    /// Whether the client has still to answer our close.
    pub fn awaits_close(&self) -> bool {
        self.awaits_close
    }

    /// Begins the closing handshake; the frame is appended to `output`.
    pub fn close(&mut self, close: &Close, output: &mut Vec<u8>) {
        let mut reason = close.message.as_str();
        while reason.len() > REASON_BYTES_MAX {
            let end = reason.char_indices().next_back().map_or(0, |(at, _)| at);
            reason = &reason[..end];
        }
        let frame = CloseFrame {
            code: WireCode::from(close.code.number()),
            reason: reason.into(),
        };
        self.awaits_close = true;
        // The pipe never fails; a connection that is closing already stays so.
        let _ = self
            .context
            .close(&mut Pipe { input: &[], output }, Some(frame));
    }
}

/// A stream whose input ends with "would block" and which takes all output.
struct Pipe<'a> {
    input: &'a [u8],
    output: &'a mut Vec<u8>,
}

impl Read for Pipe<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.input.read(buffer)
    }
}

impl Write for Pipe<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A masked frame of a client; the mask is zero, so the payload is plain.
    fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x80 | opcode];
        match payload.len() {
            len @ 0..=125 => frame.push(0x80 | len as u8),
            len @ 126..=65_535 => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&(len as u16).to_be_bytes());
            }
            len => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(payload);
        frame
    }

    fn feed(socket: &mut WebSocket, bytes: &[u8]) -> (Result<(), Close>, Vec<Event>, Vec<u8>) {
        let (mut events, mut output) = (Vec::new(), Vec::new());
        let result = socket.feed(bytes, &mut output, |event| events.push(event));
        (result, events, output)
    }

    #[test]
    fn a_frame_of_ours_is_what_the_rfc_shows() {
        assert_eq!(text_frame("Hello")[..], *b"\x81\x05Hello");
    }

    #[test]
    fn pings_are_answered_and_text_comes_through() {
        let mut socket = WebSocket::default();
        let mut bytes = client_frame(9, b"hi");
        bytes.extend(client_frame(1, b"text"));
        let (result, events, output) = feed(&mut socket, &bytes);
        assert_eq!((result, events), (Ok(()), vec![Event::Text("text".into())]));
        assert_eq!(output, b"\x8a\x02hi");
    }

    #[test]
    fn a_client_that_closes_is_answered() {
        let mut socket = WebSocket::default();
        let (_, events, output) = feed(&mut socket, &client_frame(8, &1000_u16.to_be_bytes()));
        assert_eq!(events, [Event::Closed]);
        assert_eq!(output, b"\x88\x02\x03\xe8");
    }

    #[test]
    fn a_close_of_ours_carries_code_and_a_reason_that_fits() {
        let mut socket = WebSocket::default();
        let mut output = Vec::new();
        let close = Close {
            code: CloseCode::UnknownApp,
            message: "ü".repeat(100),
        };
        socket.close(&close, &mut output);
        assert_eq!(output[..4], [0x88, 2 + 122, 0x0f, 0xa1]);
        let (_, events, again) = feed(&mut socket, &client_frame(8, &4001_u16.to_be_bytes()));
        assert_eq!(
            (events, again),
            (vec![Event::Closed], vec![]),
            "one close frame is enough"
        );
    }

    #[test]
    fn too_large_is_refused_before_it_is_here() {
        let mut socket = WebSocket::default();
        let head = &client_frame(1, &vec![b'x'; MESSAGE_BYTES_MAX + 1])[..14];
        assert_eq!(
            feed(&mut socket, head).0.unwrap_err().code,
            CloseCode::TooLarge
        );
    }

    /// The rest of a frame that was refused comes all the same.
    #[test]
    fn after_a_refusal_the_rest_is_dropped() {
        let mut socket = WebSocket::default();
        let frame = client_frame(1, &vec![b'x'; 4 * MESSAGE_BYTES_MAX]);
        let (first, rest) = frame.split_at(16 * 1_024);
        let close = feed(&mut socket, first).0.unwrap_err();
        let mut output = Vec::new();
        socket.close(&close, &mut output);
        assert_eq!(output[..4], [0x88, output[1], 0x03, 0xf1], "1009");
        for piece in rest.chunks(16 * 1_024) {
            assert_eq!(feed(&mut socket, piece), (Ok(()), vec![], vec![]));
        }
    }

    #[test]
    fn what_is_not_websocket_is_a_protocol_error() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"\x81\x05Hello",
            b"\x83\x80\0\0\0\0",
            b"\x81\x81\0\0\0\0\xff",
        ] {
            let mut socket = WebSocket::default();
            assert_eq!(
                feed(&mut socket, bytes).0.unwrap_err().code,
                CloseCode::ProtocolError,
                "{bytes:?}"
            );
        }
    }

    proptest! {
        /// A message arrives whole, however the network has cut it.
        #[test]
        fn torn_frames_are_put_together(text in "[a-z]{0,400}", cuts in prop::collection::vec(1_usize..50, 1..60)) {
            let mut socket = WebSocket::default();
            let bytes = client_frame(1, text.as_bytes());
            let mut rest = &bytes[..];
            let mut all = Vec::new();
            for cut in cuts.into_iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at(cut.min(rest.len()));
                let (result, events, _) = feed(&mut socket, now);
                prop_assert_eq!(result, Ok(()));
                all.extend(events);
                rest = later;
            }
            prop_assert_eq!(all, vec![Event::Text(text)]);
        }

        #[test]
        fn arbitrary_bytes_never_panic(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..10)) {
            let mut socket = WebSocket::default();
            for chunk in chunks {
                let _ = feed(&mut socket, &chunk);
            }
        }
    }
}
