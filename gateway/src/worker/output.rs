//! What goes out to one connection, and how it ends.

use std::rc::Rc;

use bytes::Bytes;
use tokio::net::TcpStream;

use super::channels::Untold;
use super::socket::{Wire, Write};
use super::state::{CLIENT_CLOSED, CLIENT_GONE, State, index};
use crate::protocol::{Close, CloseCode, Frame, pusher};
use crate::websocket::text_frame;

impl State {
    /// Sends a frame to a WebSocket client.
    pub(super) fn send(&mut self, key: usize, frame: &Frame) {
        self.put(key, text_frame(&pusher::encode(frame)));
    }

    /// Queues bytes that are for one connection alone.
    pub(super) fn put(&mut self, key: usize, bytes: Bytes) {
        if let Some(socket) = self.sockets.get_mut(key) {
            socket.outbox.push(bytes);
            socket.written_at = self.now;
            self.mark_dirty(key);
        }
    }

    pub(super) fn mark_dirty(&mut self, key: usize) {
        if let Some(socket) = self.sockets.get_mut(key)
            && !socket.dirty
        {
            socket.dirty = true;
            self.dirty.push(key);
        }
    }

    /// Writes what waits for a connection. `Some`: its socket is full and
    /// nobody waits for room yet.
    pub(super) fn flush(&mut self, key: usize) -> Option<Rc<TcpStream>> {
        let socket = self.sockets.get_mut(key)?;
        socket.dirty = false;
        // A writer task waits for room already; trying would find none.
        let written = if socket.writer.is_some() {
            Write::Blocked
        } else {
            socket.flush()
        };
        match written {
            Write::Done => {
                self.has_written_all(key);
                None
            }
            Write::Gone => {
                self.forget(key, CLIENT_GONE);
                None
            }
            Write::Blocked => {
                self.check_bound(key);
                self.count_waiting(key);
                self.check_budget();
                self.look_again(key);
                let socket = self.sockets.get(key)?;
                (socket.writer.is_none() && !socket.outbox.is_empty())
                    .then(|| Rc::clone(&socket.stream))
            }
        }
    }

    /// Nothing waits any more.
    pub(super) fn has_written_all(&mut self, key: usize) {
        self.count_waiting(key);
        let socket = self.sockets.get_mut(key);
        if socket.is_some_and(|socket| std::mem::take(&mut socket.is_behind)) {
            for channel in self.hub.catch_up(index(key)) {
                if let Some(channel) = self.hub.key(channel).cloned() {
                    self.untold.entry(channel).or_insert(Untold::Resume);
                }
            }
        }
        self.finish_if_closed(key);
    }

    /// The bound of what may wait for one client.
    fn check_bound(&mut self, key: usize) {
        let max = self.config.outbox.bytes_max;
        let Some(socket) = self.sockets.get(key) else {
            return;
        };
        let waiting = socket.outbox.bytes();
        if waiting > max && socket.closing_since.is_none() {
            let message = format!("reading too slowly: {waiting} bytes were waiting, {max} may");
            self.cut_off(key, message);
        }
    }

    /// Disconnects a client that reads too slowly; what waits for it is dropped.
    pub(super) fn cut_off(&mut self, key: usize, message: String) {
        let Some(socket) = self.sockets.get_mut(key) else {
            return;
        };
        socket.outbox.drop_unsent();
        self.metrics.slow_disconnected.inc();
        self.metrics.deliveries_slow.inc();
        self.refuse(
            key,
            Close {
                code: CloseCode::OverCapacity,
                message,
            },
        );
        self.count_waiting(key);
    }

    /// Ends a connection for a reason that its client is told.
    pub(super) fn refuse(&mut self, key: usize, close: Close) {
        let reason = close.code.reason();
        self.end(key, close, reason);
    }

    /// Tells a client that its connection ends, and why; nothing else follows.
    /// It is kept until the client has taken that, for a while.
    pub(super) fn end(&mut self, key: usize, close: Close, reason: &'static str) {
        let now = self.now;
        let Some(socket) = self.sockets.get_mut(key) else {
            return;
        };
        if socket.closing_since.is_some() {
            return;
        }
        let mut output = Vec::new();
        if let Wire::WebSocket(websocket) = &mut socket.wire {
            let code = Some(close.code.number());
            let error = Frame::Error {
                code,
                message: close.message.clone(),
            };
            output.extend_from_slice(&text_frame(&pusher::encode(&error)));
            websocket.close(&close, &mut output);
        }
        socket.closing_since = Some(now);
        self.look_again(key);
        self.leave(key, reason);
        if !output.is_empty() {
            self.put(key, output.into());
        }
        self.mark_dirty(key);
    }

    /// The client has answered our close, or has closed by itself.
    pub(super) fn answered_close(&mut self, key: usize) {
        let now = self.now;
        let Some(socket) = self.sockets.get_mut(key) else {
            return;
        };
        if socket.closing_since.is_some() {
            self.forget(key, CLIENT_CLOSED);
        } else {
            // Our answer is in the outbox; when it is written, that was all.
            socket.closing_since = Some(now);
            self.look_again(key);
            self.leave(key, CLIENT_CLOSED);
            self.mark_dirty(key);
        }
    }

    /// All is written. A connection that is closing has its end announced, and
    /// is gone at once if there is nothing to wait for.
    pub(super) fn finish_if_closed(&mut self, key: usize) {
        let Some(socket) = self.sockets.get(key) else {
            return;
        };
        if socket.closing_since.is_none() {
            return;
        }
        match &socket.wire {
            Wire::WebSocket(websocket) if websocket.awaits_close() => {}
            _ => self.forget(key, CLIENT_CLOSED),
        }
    }

    /// Takes a connection out of its channels and out of the count of clients.
    fn leave(&mut self, key: usize, reason: &'static str) {
        self.exit_all(key);
        self.note_leaver(key);
        let before = self.hub.subscriptions();
        for unfollowed in self.hub.remove(index(key)) {
            self.unfollow(Some(unfollowed));
        }
        self.metrics
            .unsubscribes_disconnect
            .inc_by((before - self.hub.subscriptions()) as u64);
        let Some(socket) = self.sockets.get_mut(key) else {
            return;
        };
        let lasted = self.now.since(socket.opened_at);
        let kind = socket.kind();
        if let Some(client) = socket.client.take() {
            if let Some(traffic) = &client.traffic {
                traffic.clients.dec();
            }
            self.metrics
                .disconnects
                .with_label_values(&[kind, reason])
                .inc();
            self.metrics
                .connection_duration
                .observe(lasted.as_secs_f64());
        }
    }

    /// Drops a connection. Its socket is closed.
    pub(super) fn forget(&mut self, key: usize, reason: &'static str) {
        if self.sockets.contains(key) {
            self.leave(key, reason);
            let mut socket = self.sockets.remove(key);
            self.budget.recount(&mut socket.counted, 0);
        }
    }
}
