//! What a node counts. Per-shard handles are resolved when a shard starts, so
//! that counting costs no look-up.

use prometheus::{
    IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, core::Collector,
};
use proto::shard::ShardId;

/// All metrics of a node.
#[derive(Debug)]
pub struct Metrics {
    /// See the help text below; the same order.
    pub bus: BusMetrics,
    shard_publications: IntCounterVec,
    shard_fanout_messages: IntCounterVec,
    shard_bytes: IntCounterVec,
    shard_channels: IntGaugeVec,
    shard_interest: IntGaugeVec,
    /// Shards that this node serves.
    pub shards_owned: IntGauge,
    /// Requests that made no sense.
    pub malformed: IntCounter,
}

/// Messages of this node on the bus, by kind.
#[derive(Debug)]
pub struct BusMetrics {
    /// Requests received.
    pub requests: IntCounter,
    /// Replies published.
    pub replies: IntCounter,
    /// Batches published.
    pub batches: IntCounter,
    /// Beats published, of links and of the node.
    pub beats: IntCounter,
    /// Messages that the bus did not take.
    pub refused: IntCounter,
}

/// One shard's handles.
#[derive(Debug)]
pub struct ShardMetrics {
    /// Publications.
    pub publications: IntCounter,
    /// Link messages: publications times interested gateways.
    pub fanout_messages: IntCounter,
    /// Bytes of event data.
    pub bytes: IntCounter,
    /// Channels with state.
    pub channels: IntGauge,
    /// (gateway, channel) pairs.
    pub interest: IntGauge,
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
        let gauges = |name: &str, help: &str| {
            add(
                registry,
                IntGaugeVec::new(Opts::new(name, help), &["shard"])?,
            )
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
        Ok(Self {
            bus: BusMetrics {
                requests: received.with_label_values(&[bus, "request"]),
                replies: published.with_label_values(&[bus, "reply"]),
                batches: published.with_label_values(&[bus, "batch"]),
                beats: published.with_label_values(&[bus, "beat"]),
                refused: errors.with_label_values(&[bus, "refused"]),
            },
            malformed: errors.with_label_values(&[bus, "malformed"]),
            shard_publications: counters(
                "dunlin_shard_publications_total",
                "Publications of a shard. Exported by its owner alone.",
                &["shard"],
            )?,
            shard_fanout_messages: counters(
                "dunlin_shard_fanout_messages_total",
                "Link messages of a shard: publications times interested gateways.",
                &["shard"],
            )?,
            shard_bytes: counters(
                "dunlin_shard_bytes_total",
                "Bytes of event data published in a shard.",
                &["shard"],
            )?,
            shard_channels: gauges(
                "dunlin_shard_channels",
                "Channels of a shard that have state.",
            )?,
            shard_interest: gauges(
                "dunlin_shard_interest",
                "Pairs of gateway and channel in a shard that get publications.",
            )?,
            shards_owned: add(
                registry,
                IntGauge::new("dunlin_shards_owned", "Shards that this node serves.")?,
            )?,
        })
    }

    /// The handles of a shard that this node begins to serve.
    pub fn shard(&self, shard: ShardId) -> ShardMetrics {
        let label = shard.to_string();
        let label = [label.as_str()];
        ShardMetrics {
            publications: self.shard_publications.with_label_values(&label),
            fanout_messages: self.shard_fanout_messages.with_label_values(&label),
            bytes: self.shard_bytes.with_label_values(&label),
            channels: self.shard_channels.with_label_values(&label),
            interest: self.shard_interest.with_label_values(&label),
        }
    }
}

/// What a node counts of its cluster.
#[derive(Debug)]
pub struct ClusterMetrics {
    is_leader: IntGauge,
    term: IntGauge,
    voters: IntGauge,
    last_log: IntGauge,
    applied: IntGauge,
    leader_changes: IntCounter,
    gossip: IntGaugeVec,
    unassigned: IntGauge,
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
            leader: std::sync::Mutex::new(None),
        })
    }

    pub(crate) fn observe(
        &self,
        cluster: &crate::core::cluster::Cluster,
        standing: &crate::raft::Standing,
        rumours: &crate::gossip::Rumours,
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
        let served = |row: &&Option<(proto::id::NodeRef, proto::shard::Fence)>| {
            row.as_ref().is_some_and(|(owner, _)| {
                members
                    .get(&owner.id)
                    .is_some_and(|member| member.incarnation == owner.incarnation)
            })
        };
        let served = cluster.rows().iter().filter(served).count();
        self.unassigned.set((cluster.rows().len() - served) as i64);
    }
}

fn add<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
