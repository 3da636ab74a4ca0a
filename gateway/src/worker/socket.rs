//! One connection: its socket, its protocol state and what waits to be written.

use std::io::{self, IoSlice};
use std::rc::Rc;

use bytes::Bytes;
use proto::channel::ChannelName;
use proto::position::Position;
use proto::time::Timestamp;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use crate::core::connection::Connection;
use crate::core::outbox::{GATHER, Outbox};
use crate::core::watchlist::Watching;
use crate::core::wheel::Second;
use crate::door::Seat;
use crate::metrics::Traffic;
use crate::server::UnderWay;
use crate::websocket::WebSocket;

/// Bytes that may wait for an answer to begin.
const HELD_BYTES_MAX: usize = 64 * 1_024;

pub(super) struct Socket {
    pub(super) stream: Rc<TcpStream>,
    pub(super) outbox: Outbox,
    pub(super) wire: Wire,
    /// `None`: it was refused and is only being told so.
    pub(super) client: Option<Client>,
    /// Whether it stands in the list of those to be written to.
    pub(super) dirty: bool,
    pub(super) reader: Option<AbortHandle>,
    /// Waits for room in the socket.
    pub(super) writer: Option<AbortHandle>,
    /// The server has ended it, then: it is kept until the client has taken
    /// what waits, for a while.
    pub(super) closing_since: Option<Timestamp>,
    pub(super) opened_at: Timestamp,
    pub(super) written_at: Timestamp,
    /// When it is looked after next.
    pub(super) looked_at: Second,
    /// What waits for it, as the worker has counted it.
    pub(super) counted: usize,
    /// It has fallen behind in some channel.
    pub(super) is_behind: bool,
    /// Since when a subscription has waited to be acknowledged, at least.
    pub(super) pending_since: Option<Timestamp>,
    /// Counts it, as long as its socket is there.
    pub(super) _seat: Seat,
    pub(super) _under_way: Option<UnderWay>,
}

/// A connection that was admitted.
pub(super) struct Client {
    pub(super) connection: Connection,
    /// Counts what it is part of.
    pub(super) traffic: Option<Traffic>,
    /// What it has not been told yet of whom it watches.
    pub(super) watching: Option<Box<Watching>>,
}

/// What the bytes are.
pub(super) enum Wire {
    WebSocket(Box<WebSocket>),
    EventStream(Box<EventStream>),
}

impl Wire {
    /// Its place where there is one thing for each kind.
    pub(super) fn number(&self) -> usize {
        match self {
            Self::WebSocket(_) => 0,
            Self::EventStream(_) => 1,
        }
    }
}

/// A stream of some channels, ordered by name, with where it stands in each.
pub(super) struct EventStream {
    /// The head of the answer, until it is sent: when the stream is attached
    /// to all its channels, so that a client whose stream has opened misses
    /// nothing that is published from then on.
    pub(super) head: Option<Bytes>,
    pub(super) channels: Box<[ChannelName]>,
    pub(super) cursor: Box<[Option<Position>]>,
    /// Channels that it does not get yet.
    pub(super) unattached: usize,
    pub(super) envelope: bool,
    /// When the token that let it in is valid no more.
    pub(super) expires_at: Option<Timestamp>,
}

/// How a write went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    /// Nothing waits any more.
    Done,
    /// The socket is full.
    Blocked,
    /// The client is gone.
    Gone,
}

/// What became of offering a frame to a socket; with its bytes.
pub(super) enum Offered {
    Written(usize),
    Queued(usize),
    Gone,
}

impl EventStream {
    pub(super) fn set(&mut self, channel: &ChannelName, position: Position) {
        if let Ok(at) = self.channels.binary_search(channel) {
            self.cursor[at] = Some(position);
        }
    }
}

impl Socket {
    /// Writes a frame at once if nothing waits before it; queues what the
    /// socket does not take.
    fn write_now(&mut self, frame: &Bytes) -> Write {
        if !self.outbox.is_empty() {
            self.outbox.push(frame.clone());
            return Write::Blocked;
        }
        match self.stream.try_write(frame) {
            Ok(written) if written == frame.len() => Write::Done,
            Ok(written) => {
                self.outbox.push_rest(frame, written);
                Write::Blocked
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.outbox.push(frame.clone());
                Write::Blocked
            }
            Err(_) => Write::Gone,
        }
    }

    /// Writes what waits, many frames at a time.
    pub(super) fn flush(&mut self) -> Write {
        if self.is_held() {
            return Write::Done;
        }
        while !self.outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); GATHER];
            let count = self.outbox.gather(&mut slices);
            match self.stream.try_write_vectored(&slices[..count]) {
                Ok(written) => self.outbox.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Write::Blocked,
                Err(_) => return Write::Gone,
            }
        }
        Write::Done
    }

    /// Whether the answer has not begun: an event stream that waits for its
    /// channels.
    pub(super) fn is_held(&self) -> bool {
        matches!(&self.wire, Wire::EventStream(stream) if stream.head.is_some())
    }

    /// Begins the answer: its head goes before everything that waits.
    pub(super) fn begin(&mut self) {
        if let Wire::EventStream(stream) = &mut self.wire
            && let Some(head) = stream.head.take()
        {
            self.outbox.push_front(head);
        }
    }

    /// What some channels bring while others are waited for is bounded.
    pub(super) fn begin_if_much_waits(&mut self) {
        if self.outbox.bytes() > HELD_BYTES_MAX {
            self.begin();
        }
    }

    /// Writes a frame if that can be done at once, otherwise queues it.
    pub(super) fn offer(&mut self, frame: &Bytes, direct: bool) -> Offered {
        if direct && self.writer.is_none() && !self.is_held() {
            return match self.write_now(frame) {
                Write::Done => Offered::Written(frame.len()),
                Write::Blocked => Offered::Queued(frame.len()),
                Write::Gone => Offered::Gone,
            };
        }
        self.outbox.push(frame.clone());
        Offered::Queued(frame.len())
    }

    pub(super) fn kind(&self) -> &'static str {
        crate::metrics::TYPES[self.wire.number()]
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        for task in self.reader.iter().chain(&self.writer) {
            task.abort();
        }
    }
}
