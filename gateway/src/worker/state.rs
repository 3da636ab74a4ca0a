//! What a worker has: its connections and channels. Everything here runs on the
//! worker's thread and nothing waits; the methods are in the files beside this
//! one, by what they are about.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

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
use crate::core::budget::Budget;
use crate::core::connection::Effect;
use crate::core::fanout;
use crate::core::hub::{ChannelIndex, ConnectionIndex, Hub};
use crate::core::wheel::{Second, Wheel};
use crate::core::workers::{WORKERS_MAX, WorkerId};
use crate::mesh;
use crate::metrics::Metrics;
use crate::protocol::{Close, CloseCode, sse};

/// How long a closed connection may take to read what waits for it.
const CLOSE_PATIENCE: Duration = Duration::from_secs(3);
/// How long the head of an event stream waits for its channels. Intermediaries
/// and browsers give up on an answer that does not begin.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);
/// How long a subscription may wait for the channel's owner. Clients do not ask
/// again for one that is not answered, but they connect again.
const PENDING_PATIENCE: Duration = Duration::from_secs(15);
/// How soon a connection is looked at again for which something waits.
const LOOK_AT_SLOW: Duration = Duration::from_secs(1);
/// After how long without a write an event stream gets a comment.
const KEEP_ALIVE: Duration = Duration::from_secs(25);

/// Why a connection has ended, as metrics name it.
pub(super) const CLIENT_CLOSED: &str = "client_closed";
pub(super) const CLIENT_GONE: &str = "client_gone";
const SHUTDOWN: &str = "shutdown";
const TOKEN_EXPIRED: &str = "token_expired";

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
    /// When those began that are under way and take more than one slice.
    pub(super) sweeps: HashMap<ChannelIndex, Instant>,
    pub(super) sockets: Slab<Socket>,
    /// When they are looked after.
    wheel: Wheel,
    /// What waits for all of them.
    pub(super) budget: Budget,
    /// Connections with something to write, at the end of the slice.
    pub(super) dirty: Vec<usize>,
    /// What the mesh has not been told yet. Bounded by the channels.
    pub(super) untold: BTreeMap<ChannelKey, Untold>,
    /// What it has not been told of members, in order. Bounded by the members.
    pub(super) statements: VecDeque<mesh::Mail>,
    /// Channels whose subscribers have come or gone, where they are counted.
    pub(super) recount: BTreeSet<ChannelKey>,
    /// How many subscribers channels have at all gateways, as far as that is known.
    pub(super) counts: HashMap<ChannelKey, u32>,
    pub(super) effects: Vec<Effect>,
    pub(super) now: Timestamp,
    /// What became of publications, that the mesh has not been told yet. By shard;
    /// grows to as many as there are.
    pub(super) spread: Vec<(Fence, Fanout)>,
    /// The shards of which there is something in it.
    pub(super) spread_in: Vec<ShardId>,
    /// Subscriptions, channels and waiting bytes that the gauges know of.
    reported: (i64, i64, i64),
}

impl State {
    pub(super) fn new(
        id: WorkerId,
        config: Arc<Config>,
        mesh: mesh::Handle,
        metrics: Arc<Metrics>,
    ) -> Self {
        let workers = config.workers.clamp(1, WORKERS_MAX);
        let budget = Budget::new(config.outbox.total_bytes_max / workers);
        Self {
            gateway_half: ConnectionId::gateway_half(&config.gateway),
            id,
            config,
            mesh,
            metrics,
            accepted: 0,
            hub: Hub::default(),
            fanout: fanout::Fanout::default(),
            sweeps: HashMap::new(),
            sockets: Slab::new(),
            wheel: Wheel::new(Timestamp::now()),
            budget,
            dirty: Vec::new(),
            untold: BTreeMap::new(),
            statements: VecDeque::new(),
            recount: BTreeSet::new(),
            counts: HashMap::new(),
            effects: Vec::new(),
            now: Timestamp::now(),
            spread: Vec::new(),
            spread_in: Vec::new(),
            reported: (0, 0, 0),
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

    /// Time has passed: looks after at most so many connections. Whether there are
    /// more.
    pub(super) fn look_after(&mut self, most: usize) -> bool {
        for _ in 0..most {
            let Some((key, second)) = self.wheel.due(self.now) else {
                self.metrics_tick();
                self.tell_spread();
                self.tell_counts();
                self.shrink();
                return false;
            };
            let key = key as usize;
            let socket = self.sockets.get_mut(key);
            if let Some(socket) = socket.filter(|socket| socket.looked_at == second) {
                socket.looked_at = Second::NEVER;
                self.look(key);
                self.look_again(key);
            }
        }
        true
    }

    /// Pings, keep-alives, those that do not close, those that do not read.
    fn look(&mut self, key: usize) {
        let now = self.now;
        let Some(socket) = self.sockets.get_mut(key) else {
            return;
        };
        socket.outbox.shrink();
        if let Some(since) = socket.closing_since {
            if now.since(since) >= CLOSE_PATIENCE {
                self.forget(key, CLIENT_GONE);
            }
            return;
        }
        if !socket.is_held() {
            let age = socket.outbox.mark(now);
            if age >= self.config.outbox.age_max {
                let age = age.as_secs();
                self.cut_off(key, format!("reading too slowly: data waited for {age} s"));
                return;
            }
        }
        let Some(client) = &mut socket.client else {
            return;
        };
        match &socket.wire {
            Wire::EventStream(stream) if stream.expires_at.is_some_and(|at| now >= at) => {
                let message = "the token has expired".to_owned();
                let code = CloseCode::Unauthorized;
                self.end(key, Close { code, message }, TOKEN_EXPIRED);
            }
            Wire::EventStream(_) => {
                let late = socket.is_held() && now.since(socket.opened_at) >= HEAD_PATIENCE;
                if late || now.since(socket.written_at) >= KEEP_ALIVE {
                    socket.begin();
                    self.put(key, Bytes::from_static(sse::KEEP_ALIVE.as_bytes()));
                }
            }
            Wire::WebSocket(_) => {
                if let Some(effect) = client.connection.tick(now, self.config.activity_timeout) {
                    self.perform(key, effect);
                }
                self.look_at_pending(key);
            }
        }
    }

    /// Closes a connection whose subscription has waited for too long.
    fn look_at_pending(&mut self, key: usize) {
        let Some(socket) = self.sockets.get_mut(key) else {
            return;
        };
        let Some(since) = socket.pending_since else {
            return;
        };
        if !self.hub.is_pending(index(key)) {
            socket.pending_since = None;
        } else if self.now.since(since) >= PENDING_PATIENCE {
            let seconds = PENDING_PATIENCE.as_secs();
            let message = format!(
                "a subscription could not be acknowledged within {seconds} s, for the channel's owner cannot be reached; connect again"
            );
            let code = CloseCode::Unacknowledged;
            self.refuse(key, Close { code, message });
        }
    }

    /// Sees to it that a connection is looked after when something may be due.
    pub(super) fn look_again(&mut self, key: usize) {
        let now = self.now;
        let Some(socket) = self.sockets.get_mut(key) else {
            return;
        };
        let until =
            |begin: Timestamp, patience: Duration| patience.saturating_sub(now.since(begin));
        let after = match (socket.closing_since, &socket.client, &socket.wire) {
            (Some(since), ..) => until(since, CLOSE_PATIENCE),
            _ if socket.is_held() => until(socket.opened_at, HEAD_PATIENCE),
            // How old what waits grows is to be seen.
            _ if !socket.outbox.is_empty() => LOOK_AT_SLOW,
            (None, None, _) => CLOSE_PATIENCE,
            (None, Some(_), Wire::EventStream(_)) => until(socket.written_at, KEEP_ALIVE),
            (None, Some(client), Wire::WebSocket(_)) => {
                let due = client.connection.due(now, self.config.activity_timeout);
                let pending = socket.pending_since;
                pending.map_or(due, |since| due.min(until(since, PENDING_PATIENCE)))
            }
        };
        let expires_at = match &socket.wire {
            Wire::EventStream(stream) if socket.closing_since.is_none() => stream.expires_at,
            Wire::EventStream(_) | Wire::WebSocket(_) => None,
        };
        let after = expires_at.map_or(after, |at| after.min(at.since(now)));
        if self.wheel.is_before(now, after, socket.looked_at) {
            socket.looked_at = self.wheel.put(now, after, key as u32);
        }
    }

    /// Takes note of what waits for a connection.
    pub(super) fn count_waiting(&mut self, key: usize) {
        if let Some(socket) = self.sockets.get_mut(key) {
            let bytes = socket.outbox.bytes();
            self.budget.recount(&mut socket.counted, bytes);
        }
    }

    /// Beyond what may wait for all, those for whom most waits are disconnected.
    pub(super) fn check_budget(&mut self) {
        if !self.budget.is_exceeded() {
            return;
        }
        let slow = self
            .sockets
            .iter()
            .filter(|(_, socket)| socket.counted > 0 && socket.closing_since.is_none());
        let slow = slow.map(|(key, socket)| (socket.counted, key));
        for (bytes, key) in self.budget.relieve(slow) {
            let message =
                format!("the server has no room for the {bytes} bytes that wait for this client");
            self.cut_off(key, message);
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

    /// Gives back what a crowd needed, when it has gone.
    fn shrink(&mut self) {
        /// Connections for which room is kept in any case.
        const KEPT: usize = 1_024;
        let room = self.sockets.capacity();
        if room > KEPT && self.sockets.len() < room / 4 {
            self.sockets.shrink_to_fit();
            self.hub.shrink();
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
        self.budget.look_again();
        let waiting = self.budget.waiting() as i64;
        self.metrics.outbox_bytes.add(waiting - self.reported.2);
        self.reported = (subscriptions, channels, waiting);
    }
}

pub(super) fn index(key: usize) -> ConnectionIndex {
    ConnectionIndex(u32::try_from(key).expect("far fewer connections than that"))
}
