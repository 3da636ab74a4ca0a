//! What a worker has: its connections and channels. Everything here runs on the
//! worker's thread and nothing waits; the methods are in the files beside this
//! one, by what they are about.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::channel::ChannelKey;
use proto::id::ConnectionId;
use proto::message::Fanout;
use proto::shard::{Fence, ShardId};
use proto::time::Timestamp;
use slab::Slab;

use super::channels::Untold;
use super::socket::{Socket, Wire};
use crate::Config;
use crate::core::connection::Effect;
use crate::core::fanout;
use crate::core::hub::{ConnectionIndex, Hub};
use crate::core::workers::WorkerId;
use crate::mesh;
use crate::metrics::Metrics;
use crate::protocol::{Close, CloseCode, sse};

/// How long a closed connection may take to read what waits for it.
const CLOSE_PATIENCE: Duration = Duration::from_secs(3);
/// How long the head of an event stream waits for its channels. Intermediaries
/// and browsers give up on an answer that does not begin.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);
/// After how long without a write an event stream gets a comment.
const KEEP_ALIVE: Duration = Duration::from_secs(25);

/// Why a connection has ended, as metrics name it.
pub(super) const CLIENT_CLOSED: &str = "client_closed";
pub(super) const CLIENT_GONE: &str = "client_gone";
const SHUTDOWN: &str = "shutdown";

pub(super) struct State {
    pub(super) id: WorkerId,
    pub(super) config: Arc<Config>,
    pub(super) mesh: mesh::Handle,
    pub(super) metrics: Arc<Metrics>,
    /// The first half of all connection ids.
    pub(super) gateway_half: u64,
    pub(super) accepted: u64,
    pub(super) hub: Hub,
    pub(super) fanout: fanout::Fanout,
    pub(super) sockets: Slab<Socket>,
    /// Connections with something to write, at the end of the slice.
    pub(super) dirty: Vec<usize>,
    /// What the mesh has not been told yet. Bounded by the channels.
    pub(super) untold: BTreeMap<ChannelKey, Untold>,
    pub(super) effects: Vec<Effect>,
    pub(super) now: Timestamp,
    /// What became of publications, that the mesh has not been told yet. By shard;
    /// grows to as many as there are.
    pub(super) spread: Vec<(Fence, Fanout)>,
    /// The shards of which there is something in it.
    pub(super) spread_in: Vec<ShardId>,
    /// Subscriptions and channels that the gauges know of.
    reported: (i64, i64),
}

impl State {
    pub(super) fn new(
        id: WorkerId,
        config: Arc<Config>,
        mesh: mesh::Handle,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            gateway_half: ConnectionId::gateway_half(&config.gateway),
            id,
            config,
            mesh,
            metrics,
            accepted: 0,
            hub: Hub::default(),
            fanout: fanout::Fanout::default(),
            sockets: Slab::new(),
            dirty: Vec::new(),
            untold: BTreeMap::new(),
            effects: Vec::new(),
            now: Timestamp::now(),
            spread: Vec::new(),
            spread_in: Vec::new(),
            reported: (0, 0),
        }
    }

    /// The connections that do not end already.
    pub(super) fn staying(&self) -> impl Iterator<Item = usize> {
        let sockets = self.sockets.iter();
        let staying = sockets.filter(|(_, socket)| socket.closing_since.is_none());
        staying.map(|(key, _)| key)
    }

    /// Closes so many of them, telling their clients to connect again.
    pub(super) fn send_away(&mut self, count: usize) {
        let keys: Vec<usize> = self.staying().take(count).collect();
        for key in keys {
            let message = "the server is shutting down; connect again".to_owned();
            let code = CloseCode::GoingAway;
            self.end(key, Close { code, message }, SHUTDOWN);
        }
    }

    /// Time has passed: pings, keep-alives, those that do not close.
    pub(super) fn look_after(&mut self, keys: std::ops::Range<usize>) {
        let now = self.now;
        if keys.start == 0 {
            self.metrics_tick();
            self.tell_spread();
        }
        for key in keys {
            let Some(socket) = self.sockets.get_mut(key) else {
                continue;
            };
            socket.outbox.shrink();
            if socket
                .closing_since
                .is_some_and(|since| now.since(since) >= CLOSE_PATIENCE)
            {
                self.forget(key, CLIENT_GONE);
                continue;
            }
            let Some(client) = &mut socket.client else {
                continue;
            };
            match &socket.wire {
                Wire::EventStream(_) => {
                    let late = socket.is_held() && now.since(socket.opened_at) >= HEAD_PATIENCE;
                    if late || now.since(socket.written_at) >= KEEP_ALIVE {
                        socket.begin();
                        self.put(key, Bytes::from_static(sse::KEEP_ALIVE.as_bytes()));
                    }
                }
                Wire::WebSocket(_) => {
                    if let Some(effect) = client.connection.tick(now, self.config.activity_timeout)
                    {
                        self.perform(key, effect);
                    }
                }
            }
        }
    }

    /// Adds to what became of publications. A shard of which something came under
    /// a higher fence begins anew: the earlier owner asks no more.
    pub(super) fn add_spread(&mut self, shard: ShardId, fence: Fence, fanout: Fanout) {
        let at = usize::from(shard.0);
        if self.spread.len() <= at {
            self.spread.resize(at + 1, (Fence(0), Fanout::default()));
        }
        let (of, counted) = &mut self.spread[at];
        if fanout == Fanout::default() || fence < *of {
            return;
        }
        if *counted == Fanout::default() {
            self.spread_in.push(shard);
        }
        if fence > *of {
            (*of, *counted) = (fence, fanout);
        } else {
            *counted = counted.and(fanout);
        }
    }

    /// Tells the mesh what became of publications; later, if it has no room now.
    fn tell_spread(&mut self) {
        if self.spread_in.is_empty() {
            return;
        }
        let of = |shard: &ShardId| {
            let (fence, fanout) = self.spread[usize::from(shard.0)];
            (*shard, fence, fanout)
        };
        let all = self.spread_in.iter().map(of).collect();
        if self.mesh.try_tell(mesh::Mail::Spread(all)) {
            for shard in self.spread_in.drain(..) {
                self.spread[usize::from(shard.0)].1 = Fanout::default();
            }
        }
    }

    /// Gauges that several workers share are kept as differences.
    fn metrics_tick(&mut self) {
        let subscriptions = self.hub.subscriptions() as i64;
        let channels = self.hub.channels() as i64;
        self.metrics
            .subscriptions
            .add(subscriptions - self.reported.0);
        self.metrics.active_channels.add(channels - self.reported.1);
        self.reported = (subscriptions, channels);
    }
}

pub(super) fn index(key: usize) -> ConnectionIndex {
    ConnectionIndex(u32::try_from(key).expect("far fewer connections than that"))
}
