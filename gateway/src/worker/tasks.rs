//! The tasks of a worker: one that reads for each connection, one that waits
//! for room for each that is full. They share the worker's state and never keep
//! it across a wait.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use proto::time::Timestamp;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::socket::Write;
use super::state::{CLIENT_GONE, State};
use super::{Mail, Takeover};
use crate::Config;
use crate::core::leaving::Leaving;
use crate::core::workers::{WORKERS_MAX, WorkerId};
use crate::mesh;
use crate::metrics::Metrics;

/// Bytes that one read takes; one buffer for all connections.
const READ_BYTES: usize = 16 * 1_024;
/// Connections looked after before others may go.
const TICK_SLICE: usize = 1_024;

pub(super) struct Worker {
    state: RefCell<State>,
    read_buffer: RefCell<Box<[u8]>>,
    /// Told when the mesh had no room.
    owes: Notify,
}

impl Worker {
    pub(super) fn new(
        id: WorkerId,
        config: Arc<Config>,
        mesh: mesh::Handle,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            state: RefCell::new(State::new(id, config, mesh, metrics)),
            read_buffer: RefCell::new(vec![0; READ_BYTES].into()),
            owes: Notify::new(),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.state.borrow().fanout.is_full()
    }

    pub(super) fn has_work(&self) -> bool {
        !self.state.borrow().fanout.is_idle()
    }

    pub(super) fn owes_follows(&self) -> bool {
        let state = self.state.borrow();
        !state.untold.is_empty() || !state.statements.is_empty()
    }

    /// Takes a connection over and begins to read it.
    pub(super) fn accept(self: &Rc<Self>, takeover: Takeover) {
        let opened = {
            let mut state = self.state.borrow_mut();
            state.now = Timestamp::now();
            state.open(takeover)
        };
        match opened {
            Ok(Some((key, stream, leftover))) => {
                let reader =
                    tokio::task::spawn_local(read(Rc::clone(self), key, Rc::clone(&stream)));
                if let Some(socket) = self.state.borrow_mut().sockets.get_mut(key) {
                    socket.reader = Some(reader.abort_handle());
                }
                if !leftover.is_empty() {
                    self.guarded(key, || {
                        self.state.borrow_mut().input(key, &leftover);
                        true
                    });
                }
                self.arm_writers();
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "could not take a connection over"),
        }
    }

    pub(super) fn take(&self, mail: Mail) {
        let mut state = self.state.borrow_mut();
        match mail {
            Mail::Attached {
                key,
                follow,
                position,
                kept,
            } => state.attached(&key, follow, position, kept),
            Mail::NotPublished { sender, code } => state.not_published(&sender, code),
            Mail::Resumed {
                key,
                cursor,
                resumption,
            } => state.resumed(&key, cursor, &resumption),
            Mail::Welcome {
                key,
                index,
                connection,
                position,
                users,
                kept,
                missed,
            } => {
                let member = (index, connection);
                state.welcome_member(&key, member, (position, missed), users, kept);
            }
            Mail::Refused {
                key,
                index,
                connection,
                code,
            } => state.refuse_member(&key, (index, connection), code),
            Mail::Broadcast(broadcast) => {
                state.tell_waiting_members(&broadcast);
                state.take_count(&broadcast);
                if let Some(channel) = state.hub.live(&broadcast.key) {
                    let audience = state.hub.audience(channel);
                    state.fanout.push(channel, broadcast, audience);
                }
            }
        }
    }

    /// Does some of the fanning out. Whether it did anything.
    pub(super) fn fan_out(self: &Rc<Self>) -> bool {
        let worked = self.state.borrow_mut().fan_out();
        self.arm_writers();
        worked
    }

    /// Tells the mesh what channels are followed, as far as it has room.
    pub(super) fn tell_mesh(&self) {
        if !self.state.borrow_mut().tell_mesh() {
            self.owes.notify_one();
        }
    }

    /// The mesh had no room for something.
    pub(super) async fn owes(&self) {
        self.owes.notified().await;
    }

    /// Looks after connections: pings, keep-alives, those that do not close.
    pub(super) async fn tick(self: &Rc<Self>) {
        loop {
            let more = {
                let mut state = self.state.borrow_mut();
                state.now = Timestamp::now();
                state.look_after(TICK_SLICE)
            };
            self.arm_writers();
            if !more {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// From now on clients are sent away.
    pub(super) fn begin_to_leave(&self) -> Leaving {
        let state = self.state.borrow();
        let pace = state.config.leaving;
        let workers = state.config.workers.clamp(1, WORKERS_MAX);
        Leaving::begin(Timestamp::now(), state.staying().count(), pace, workers)
    }

    /// Closes the connections that are due, telling their clients to connect again.
    /// Whether none stays.
    pub(super) fn send_away(self: &Rc<Self>, leaving: &mut Leaving) -> bool {
        let mut state = self.state.borrow_mut();
        state.now = Timestamp::now();
        let there = state.staying().count();
        let due = leaving.due(state.now, there);
        state.send_away(due);
        drop(state);
        self.arm_writers();
        there == due
    }

    /// Closes all that are left.
    pub(super) fn send_away_all(self: &Rc<Self>) {
        self.state.borrow_mut().send_away(usize::MAX);
        self.arm_writers();
    }

    /// Waits until no connection is left.
    pub(super) async fn all_gone(&self) {
        while !self.state.borrow().sockets.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Input is there. Whether to go on reading.
    fn on_readable(self: &Rc<Self>, key: usize) -> bool {
        let alive = {
            let mut state = self.state.borrow_mut();
            state.now = Timestamp::now();
            state.read(key, &mut self.read_buffer.borrow_mut())
        };
        self.tell_mesh();
        self.arm_writers();
        alive
    }

    /// Does what bytes from outside have brought about. A panic is a bug; it
    /// may cost the connection whose bytes brought it out, but no other one.
    fn guarded(&self, key: usize, act: impl FnOnce() -> bool) -> bool {
        catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|_| {
            let mut state = self.state.borrow_mut();
            state.metrics.connection_panics.inc();
            tracing::error!(
                "a bug: reading a connection panicked, and it was closed; please report it"
            );
            state.forget(key, "panic");
            false
        })
    }

    /// There is room in the socket. Whether to go on waiting for more.
    fn on_writable(&self, key: usize) -> bool {
        let mut state = self.state.borrow_mut();
        let Some(socket) = state.sockets.get_mut(key) else {
            return false;
        };
        let written = socket.flush();
        if written == Write::Blocked {
            state.count_waiting(key);
            return true;
        }
        // Not aborted: this is the task that asks.
        socket.writer = None;
        if written == Write::Done {
            state.has_written_all(key);
        } else {
            state.forget(key, CLIENT_GONE);
        }
        drop(state);
        self.tell_mesh();
        false
    }

    /// Writes to all that have something to be written; those whose sockets
    /// are full get a task that waits for room.
    fn arm_writers(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        while let Some(key) = state.dirty.pop() {
            if let Some(stream) = state.flush(key) {
                let writer = tokio::task::spawn_local(write(Rc::clone(self), key, stream));
                if let Some(socket) = state.sockets.get_mut(key) {
                    socket.writer = Some(writer.abort_handle());
                }
            }
        }
    }
}

async fn read(worker: Rc<Worker>, key: usize, stream: Rc<TcpStream>) {
    while stream.readable().await.is_ok() && worker.guarded(key, || worker.on_readable(key)) {
        // A client that never stops sending takes turns with all others.
        tokio::task::yield_now().await;
    }
}

async fn write(worker: Rc<Worker>, key: usize, stream: Rc<TcpStream>) {
    while stream.writable().await.is_ok() && worker.on_writable(key) {}
}
