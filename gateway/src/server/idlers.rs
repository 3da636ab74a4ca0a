//! Shell: what is under way on the connections of the HTTP server, and which of
//! them have to make room.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::{AbortHandle, Id};

/// How long a connection may be without a request before it has to make room: in a
/// storm honest clients have not been read yet.
const IDLE_AT_LEAST: Duration = Duration::from_secs(1);

/// What is under way on one connection.
#[derive(Debug)]
pub(super) struct Load {
    requests: AtomicUsize,
    /// Requests of HTTP/2 that a worker has taken.
    streams: AtomicUsize,
    /// Requests that there have been.
    served: AtomicUsize,
    /// Connections of this server that have streams.
    with_streams: Arc<AtomicUsize>,
}

/// Something that is under way, as long as this is there.
#[derive(Debug)]
pub(crate) struct UnderWay {
    load: Arc<Load>,
    is_stream: bool,
}

impl Load {
    pub(super) fn new(with_streams: Arc<AtomicUsize>) -> Arc<Self> {
        Arc::new(Self {
            requests: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            served: AtomicUsize::new(0),
            with_streams,
        })
    }

    pub(super) fn request(self: &Arc<Self>) -> UnderWay {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.served.fetch_add(1, Ordering::Relaxed);
        UnderWay {
            load: Arc::clone(self),
            is_stream: false,
        }
    }

    pub(super) fn stream(self: &Arc<Self>) -> UnderWay {
        if self.streams.fetch_add(1, Ordering::Relaxed) == 0 {
            self.with_streams.fetch_add(1, Ordering::Relaxed);
        }
        UnderWay {
            load: Arc::clone(self),
            is_stream: true,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        let are_none = |count: &AtomicUsize| count.load(Ordering::Relaxed) == 0;
        are_none(&self.requests) && are_none(&self.streams)
    }

    /// How many requests there have been.
    pub(super) fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let load = &self.load;
        if !self.is_stream {
            load.requests.fetch_sub(1, Ordering::Relaxed);
        } else if load.streams.fetch_sub(1, Ordering::Relaxed) == 1 {
            load.with_streams.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The connections of the HTTP server. Those that send nothing, or only a part of a
/// request, must not keep others out: these wait in the kernel's queue meanwhile.
pub(super) struct Idlers {
    /// How many there are at most.
    most: usize,
    all: HashMap<Id, Idler>,
}

struct Idler {
    task: AbortHandle,
    load: Arc<Load>,
    came: Instant,
}

impl Idlers {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            all: HashMap::new(),
        }
    }

    pub(super) fn add(&mut self, task: AbortHandle, load: Arc<Load>, came: Instant) {
        self.all.insert(task.id(), Idler { task, load, came });
    }

    /// A connection has ended, or a worker has taken it. Its handle keeps all that
    /// its task had.
    pub(super) fn ended(&mut self, task: Id) {
        self.all.remove(&task);
        if self.all.len() < self.all.capacity() / 8 {
            self.all.shrink_to(self.all.len() * 2);
        }
    }

    /// Ends some of those on which nothing is under way and that have been there
    /// longest. How many.
    pub(super) fn make_room(&mut self, now: Instant) -> u64 {
        let makes_room =
            |idler: &Idler| idler.load.is_idle() && now.duration_since(idler.came) >= IDLE_AT_LEAST;
        let idle = self.all.iter().filter(|(_, idler)| makes_room(idler));
        let mut idle: Vec<(Instant, Id)> = idle.map(|(id, idler)| (idler.came, *id)).collect();
        idle.sort_unstable_by_key(|(came, _)| *came);
        idle.truncate((self.most / 16).max(1));
        for (_, id) in &idle {
            if let Some(idler) = self.all.remove(id) {
                idler.task.abort();
            }
        }
        idle.len() as u64
    }
}
