//! What a node counts. Per-shard handles are resolved when a shard starts, so
//! that counting costs no look-up.

mod agreeing;
mod shards;
mod summary;

use std::time::Duration;

use prometheus::{
    Counter, CounterVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, core::Collector,
};
use proto::shard::ShardId;

use crate::core::cluster::Row;
use crate::core::detection::Cause;
use crate::core::placement::{self, Targets};
pub(crate) use agreeing::{GossipMetrics, RaftMetrics};
use shards::ShardFamilies;
pub(crate) use shards::ShardMetrics;

/// How long confirmations take, for a histogram: a pair lease is 0.3.
const LAG_SECONDS: [f64; 9] = [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 1.0];
/// How long it takes until a new owner knows all members, for a histogram: it listens for
/// 2 s in any case.
const CONVERGENCE_SECONDS: [f64; 9] = [2.0, 2.1, 2.25, 2.5, 3.0, 4.0, 5.0, 10.0, 60.0];
/// How long hand-offs take, for a histogram.
const HANDOFF_SECONDS: [f64; 9] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];

/// All metrics of a node.
#[derive(Debug)]
pub struct Metrics {
    /// See the help text below; the same order.
    pub bus: BusMetrics,
    shards: ShardFamilies,
    /// Shards that this node serves.
    pub shards_owned: IntGauge,
    /// Requests that made no sense.
    pub malformed: IntCounter,
    /// The version of the shard map that this node goes by.
    pub map_version: IntGauge,
    /// Gateways heard of within 2 s.
    pub gateways: IntGauge,
    /// Lives of gateways that were declared gone.
    pub gateways_gone: IntCounter,
    /// Nodes with other namespaces than this one, now.
    pub namespaces_differ: IntGauge,
    /// Differences about interest that a restatement has ended.
    pub interest_healed: IntCounter,
    /// Members of presence channels that this node owns, by app.
    pub presence_members: IntGaugeVec,
    /// How long new owners take until they know all members.
    pub presence_convergence: Histogram,
    /// Publishes that were repeated with their idempotency key.
    pub publishes_repeated: IntCounter,
    /// Idempotency keys that came again with another request.
    pub idempotency_mismatch: IntCounter,
    /// Idempotency keys that could not be remembered.
    pub idempotency_full: IntCounter,
    /// Shards that this node took over as a standby.
    pub failovers: Failovers,
    moves: IntCounterVec,
    handoffs: HistogramVec,
    /// From sending a standby something until it has confirmed it.
    pub replication_lag: Histogram,
    /// Seconds in which workers might not act as owners, by the lease that they
    /// lacked.
    pub paused: Paused,
    /// Publishes acknowledged, by in how many processes the publication is.
    pub acks: Acks,
    /// Beats of gateways of another cluster.
    pub stranger_gateways: IntCounter,
    /// Beats of nodes of another cluster.
    pub stranger_nodes: IntCounter,
}

/// Why a node begins with a shard for which it stood by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// Its owner has released it: it gives away all that it has.
    Drained,
    /// Its owner has released it: this node is to have its share.
    Balanced,
    /// Its owner was lost.
    TakenOver(Cause),
}

/// How long owners have lacked a lease.
#[derive(Debug)]
pub struct Paused {
    /// Of the leader.
    pub node: Counter,
    /// Of a standby.
    pub pair: Counter,
}

/// Acknowledged publishes.
#[derive(Debug)]
pub struct Acks {
    /// In the owner alone.
    pub alone: IntCounter,
    /// In a standby, too.
    pub replicated: IntCounter,
}

/// Shards taken over, by why.
#[derive(Debug)]
pub struct Failovers {
    restart: IntCounter,
    farewell: IntCounter,
    silence: IntCounter,
}

impl Failovers {
    fn of(by_cause: &IntCounterVec) -> Self {
        Self {
            restart: by_cause.with_label_values(&["restart"]),
            farewell: by_cause.with_label_values(&["farewell"]),
            silence: by_cause.with_label_values(&["silence"]),
        }
    }

    fn by(&self, cause: Cause) -> &IntCounter {
        match cause {
            Cause::Restart => &self.restart,
            Cause::Farewell => &self.farewell,
            Cause::Silence => &self.silence,
        }
    }
}

/// Messages of this node on the bus, by kind.
#[derive(Debug)]
pub struct BusMetrics {
    /// Requests received.
    pub requests: IntCounter,
    /// Beats received, of gateways and nodes.
    pub beats_heard: IntCounter,
    /// Replies published.
    pub replies: IntCounter,
    /// Batches published.
    pub batches: IntCounter,
    /// Batches published again, because a gateway had missed them.
    pub repairs: IntCounter,
    /// Beats published, of links and of the node.
    pub beats: IntCounter,
    /// Changes of the map published.
    pub maps: IntCounter,
    /// Messages that the bus did not take.
    pub refused: IntCounter,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// When a name is taken: a node has been registered here before.
    pub fn register(registry: &Registry, bus: &str) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            add(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let received = counters(
            "dunlin_bus_messages_received_total",
            "Messages received from the bus.",
            &["bus", "kind"],
        )?;
        let published = counters(
            "dunlin_bus_messages_published_total",
            "Messages published to the bus.",
            &["bus", "kind"],
        )?;
        let errors = counters(
            "dunlin_bus_errors_total",
            "Messages that could not be understood (malformed) or that the bus did not take (refused).",
            &["bus", "kind"],
        )?;
        let strangers = counters(
            "dunlin_strangers_total",
            "Beats from processes of another cluster that uses this cluster's name on the bus, by what they are.",
            &["kind"],
        )?;
        let keys_refused = counters(
            "dunlin_idempotency_refusals_total",
            "Publishes refused because of their idempotency key: it was used for another request (mismatch), or the shard remembers as many as it may (full).",
            &["reason"],
        )?;
        let acks = counters(
            "dunlin_acks_total",
            "Publishes that this node has acknowledged, by in how many processes the publication was then: 1 means that it would have been lost with this node.",
            &["copies"],
        )?;
        let paused = Opts::new(
            "dunlin_owner_paused_seconds_total",
            "Seconds in which a worker had shards and might not act as their owner, by the lease that it lacked: the node's, from the leader, or a pair lease, from a standby. Of all workers together.",
        );
        let paused = add(registry, CounterVec::new(paused, &["lease"])?)?;
        let gauge = |name: &str, help: &str| add(registry, IntGauge::new(name, help)?);
        let moves = counters(
            "dunlin_shard_moves_total",
            "Shards that have moved to this node as planned, for their owner has stopped, and said so: it gives away all that it has (`drain`), or more than its share (`balance`).",
            &["reason"],
        )?;
        let handoffs = HistogramVec::new(
            HistogramOpts::new(
                "dunlin_shard_handoff_duration_seconds",
                "From when this node has heard that it is a shard's owner until it begins to serve it: as planned (`drain`, `balance`), or because its owner was lost (`failover`).",
            )
            .buckets(HANDOFF_SECONDS.into()),
            &["reason"],
        )?;
        let handoffs = add(registry, handoffs)?;
        for reason in ["drain", "balance"] {
            moves.with_label_values(&[reason]);
            handoffs.with_label_values(&[reason]);
        }
        handoffs.with_label_values(&["failover"]);
        Ok(Self {
            bus: BusMetrics {
                requests: received.with_label_values(&[bus, "request"]),
                replies: published.with_label_values(&[bus, "reply"]),
                beats_heard: received.with_label_values(&[bus, "beat"]),
                maps: published.with_label_values(&[bus, "map"]),
                batches: published.with_label_values(&[bus, "batch"]),
                repairs: published.with_label_values(&[bus, "repair"]),
                beats: published.with_label_values(&[bus, "beat"]),
                refused: errors.with_label_values(&[bus, "refused"]),
            },
            malformed: errors.with_label_values(&[bus, "malformed"]),
            shards: add(registry, ShardFamilies::new()?)?,
            shards_owned: gauge("dunlin_shards_owned", "Shards that this node serves.")?,
            map_version: gauge(
                "dunlin_map_version",
                "Version of the shard map that this node goes by; 0 without one.",
            )?,
            gateways: gauge("dunlin_gateways", "Gateways heard of within 2 s.")?,
            gateways_gone: add(
                registry,
                IntCounter::new(
                    "dunlin_gateways_gone_total",
                    "Gateways that the cluster has declared gone since this node began, because most nodes had not heard of them for 2 s. Every node counts all of them.",
                )?,
            )?,
            namespaces_differ: gauge(
                "dunlin_namespaces_differ",
                "Nodes whose namespaces differ from this node's, now. Anything but 0 is a mistake in the configuration.",
            )?,
            interest_healed: add(
                registry,
                IntCounter::new(
                    "dunlin_interest_healed_total",
                    "Differences between what a gateway wants and what this node knew, ended by a restatement.",
                )?,
            )?,
            presence_members: add(
                registry,
                IntGaugeVec::new(
                    Opts::new(
                        "dunlin_presence_members",
                        "Members of presence channels, connections each, of channels that this node owns, by app.",
                    ),
                    &["app"],
                )?,
            )?,
            presence_convergence: add(
                registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "dunlin_presence_convergence_seconds",
                        "From when this node began to serve a shard in whose channels somebody is present until it knew all who are there: every gateway had said so.",
                    )
                    .buckets(CONVERGENCE_SECONDS.into()),
                )?,
            )?,
            publishes_repeated: add(
                registry,
                IntCounter::new(
                    "dunlin_idempotent_repeats_total",
                    "Publishes that were repeated with their idempotency key and got the first result.",
                )?,
            )?,
            idempotency_mismatch: keys_refused.with_label_values(&["mismatch"]),
            idempotency_full: keys_refused.with_label_values(&["full"]),
            failovers: Failovers::of(&add(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "dunlin_failovers_total",
                        "Shards that this node has taken over, with all that was acknowledged, by why: their owner was started again (`restart`), said that it ends (`farewell`), or was silent or could not be reached (`silence`).",
                    ),
                    &["cause"],
                )?,
            )?),
            moves,
            handoffs,
            replication_lag: add(
                registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "dunlin_replication_lag_seconds",
                        "From sending a standby changes until it has confirmed them.",
                    )
                    .buckets(LAG_SECONDS.into()),
                )?,
            )?,
            paused: Paused {
                node: paused.with_label_values(&["node"]),
                pair: paused.with_label_values(&["pair"]),
            },
            acks: Acks {
                alone: acks.with_label_values(&["1"]),
                replicated: acks.with_label_values(&["2"]),
            },
            stranger_gateways: strangers.with_label_values(&["gateway"]),
            stranger_nodes: strangers.with_label_values(&["node"]),
        })
    }

    /// This node begins with a shard for which it stood by.
    pub fn begun(&self, after: Duration, why: Begun) {
        let reason = match why {
            Begun::Drained => "drain",
            Begun::Balanced => "balance",
            Begun::TakenOver(_) => "failover",
        };
        match why {
            Begun::TakenOver(cause) => self.failovers.by(cause).inc(),
            _ => self.moves.with_label_values(&[reason]).inc(),
        }
        let took = self.handoffs.with_label_values(&[reason]);
        took.observe(after.as_secs_f64());
    }

    /// The handles of a shard that this node begins to serve.
    pub fn shard(&self, shard: ShardId) -> ShardMetrics {
        self.shards.add(shard)
    }

    /// Removes what is exported of a shard that this node serves no longer.
    pub fn remove_shard(&self, shard: ShardId) {
        self.shards.remove(shard);
    }
}

/// What a node counts of its cluster.
#[derive(Debug)]
pub struct ClusterMetrics {
    pub(crate) raft: RaftMetrics,
    pub(crate) gossiping: GossipMetrics,
    is_leader: IntGauge,
    term: IntGauge,
    voters: IntGauge,
    last_log: IntGauge,
    applied: IntGauge,
    leader_changes: IntCounter,
    gossip: IntGaugeVec,
    unassigned: IntGauge,
    unprotected: IntGauge,
    moving: IntGauge,
    leader: std::sync::Mutex<Option<u64>>,
}

/// The states in which gossip can see a node.
const GOSSIP_STATES: [&str; 4] = ["alive", "suspect", "down", "unknown"];

impl ClusterMetrics {
    /// Registers everything.
    ///
    /// # Errors
    /// When a name is taken: a node has been registered here before.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| add(registry, IntGauge::new(name, help)?);
        let gossip = add(
            registry,
            IntGaugeVec::new(
                Opts::new(
                    "dunlin_gossip_members",
                    "Members of the cluster, as gossip sees them.",
                ),
                &["state"],
            )?,
        )?;
        for state in GOSSIP_STATES {
            gossip.with_label_values(&[state]).set(0);
        }
        Ok(Self {
            raft: RaftMetrics::register(registry)?,
            gossiping: GossipMetrics::register(registry)?,
            is_leader: gauge("dunlin_raft_is_leader", "1 on the node that leads.")?,
            term: gauge("dunlin_raft_term", "The term of Raft.")?,
            voters: gauge("dunlin_raft_voters", "Nodes that vote.")?,
            last_log: gauge(
                "dunlin_raft_last_log_index",
                "The last entry of the log on this node.",
            )?,
            applied: gauge(
                "dunlin_raft_applied_index",
                "The last entry of the log that this node has applied.",
            )?,
            leader_changes: add(
                registry,
                IntCounter::new(
                    "dunlin_raft_leader_changes_total",
                    "How often this node has seen another leader than before.",
                )?,
            )?,
            gossip,
            unassigned: gauge(
                "dunlin_shards_unassigned",
                "Shards whose owner is not registered, or that have none.",
            )?,
            unprotected: gauge(
                "dunlin_shards_without_standby",
                "Shards of the cluster, as this node knows it, of which no other node has everything: what is in them would be lost with their owner.",
            )?,
            moving: gauge(
                "dunlin_shards_moving",
                "Shards of the cluster, as this node knows it, that are to have another owner or another standby.",
            )?,
            leader: std::sync::Mutex::new(None),
        })
    }

    pub(crate) fn observe(
        &self,
        cluster: &crate::core::cluster::Cluster,
        targets: &Targets,
        standing: &crate::raft::Standing,
        rumours: &crate::core::gossip::Rumours,
    ) {
        self.is_leader.set(i64::from(standing.leads));
        self.term.set(standing.term as i64);
        self.voters.set(standing.voters.len() as i64);
        self.last_log.set(standing.last_log as i64);
        self.applied.set(standing.applied as i64);
        let mut leader = self
            .leader
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if standing.leader.is_some() && *leader != standing.leader {
            if leader.is_some() {
                self.leader_changes.inc();
            }
            *leader = standing.leader;
        }
        let members = cluster.members();
        let state_of = |raft_id: &u64| rumours.get(raft_id).map_or("unknown", |r| r.state);
        for state in GOSSIP_STATES {
            let count = members
                .values()
                .filter(|member| state_of(&member.registration.raft_id) == state);
            self.gossip
                .with_label_values(&[state])
                .set(count.count() as i64);
        }
        let rows = cluster.rows().iter().flatten();
        let served = rows.filter(|row| cluster.is_living(&row.owner)).count();
        self.unassigned.set((cluster.rows().len() - served) as i64);
        let rows = cluster.rows().iter().flatten();
        let is_protected = |row: &&Row| row.in_sync().any(|node| cluster.is_living(node));
        let protected = rows.filter(is_protected).count();
        self.unprotected
            .set((cluster.rows().len() - protected) as i64);
        self.moving
            .set(placement::unsettled(cluster, targets) as i64);
    }
}

fn add<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
