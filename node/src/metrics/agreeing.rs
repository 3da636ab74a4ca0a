//! What a node counts of Raft and of gossip where they happen; what can be looked
//! up of them is in [`super::ClusterMetrics`].

use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

use super::add;

/// How long writes to the log take, and decisions, for histograms.
const SECONDS: [f64; 10] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5,
];

/// What is counted of Raft. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct RaftMetrics {
    /// The last entry that this node knows to be decided.
    pub(crate) commit: IntGauge,
    /// Decided, by this node as the leader.
    pub(crate) decided: IntCounter,
    /// This node does not lead, or not any more.
    pub(crate) not_leader: IntCounter,
    /// Not decided, as far as this node knows.
    pub(crate) failed: IntCounter,
    /// How long decisions took.
    pub(crate) proposal_duration: Histogram,
    /// How long the disk took.
    pub(crate) fsync_duration: Histogram,
    /// The last entry that is in the last snapshot.
    pub(crate) snapshot_index: IntGauge,
    /// Its size.
    pub(crate) snapshot_bytes: IntGauge,
    /// Snapshots made here.
    pub(crate) snapshots_built: IntCounter,
    /// Snapshots that came from the leader.
    pub(crate) snapshots_installed: IntCounter,
    /// How long making one took.
    pub(crate) snapshot_duration: Histogram,
}

impl RaftMetrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| add(registry, IntGauge::new(name, help)?);
        let seconds = |name: &str, help: &str| {
            let options = HistogramOpts::new(name, help).buckets(SECONDS.into());
            add(registry, Histogram::with_opts(options)?)
        };
        let counters = |name: &str, help: &str, label: &str| {
            add(
                registry,
                IntCounterVec::new(Opts::new(name, help), &[label])?,
            )
        };
        let proposals = counters(
            "dunlin_raft_proposals_total",
            "What was proposed at this node: `ok` was decided, `not_leader` was passed on, for another node leads, and of `failed` it is not known here whether it was decided.",
            "result",
        )?;
        let snapshots = counters(
            "dunlin_raft_snapshots_total",
            "Snapshots of what is agreed: made here (`built`), or sent by the leader, because this node was far behind (`installed`).",
            "kind",
        )?;
        Ok(Self {
            commit: gauge(
                "dunlin_raft_commit_index",
                "The last entry of the log that this node knows to be decided.",
            )?,
            decided: proposals.with_label_values(&["ok"]),
            not_leader: proposals.with_label_values(&["not_leader"]),
            failed: proposals.with_label_values(&["failed"]),
            proposal_duration: seconds(
                "dunlin_raft_proposal_duration_seconds",
                "From proposing something at this node until it was decided and applied here.",
            )?,
            fsync_duration: seconds(
                "dunlin_raft_fsync_duration_seconds",
                "How long it took until something that Raft must not forget was on this node's disk.",
            )?,
            snapshot_index: gauge(
                "dunlin_raft_snapshot_index",
                "The last entry of the log that the last snapshot of this process contains; 0 if it has made none.",
            )?,
            snapshot_bytes: gauge(
                "dunlin_raft_snapshot_bytes",
                "Bytes of the last snapshot that this process has made or got.",
            )?,
            snapshots_built: snapshots.with_label_values(&["built"]),
            snapshots_installed: snapshots.with_label_values(&["installed"]),
            snapshot_duration: seconds(
                "dunlin_raft_snapshot_duration_seconds",
                "How long it took to make a snapshot and have it on the disk.",
            )?,
        })
    }
}

/// What is counted of gossip. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct GossipMetrics {
    /// Datagrams to other nodes.
    pub(crate) sent: IntCounter,
    /// Datagrams of other nodes.
    pub(crate) received: IntCounter,
    /// Nodes that are suspected, and were not before.
    pub(crate) suspicions: IntCounter,
    /// For how long nothing new has been heard of some node.
    pub(crate) convergence: Gauge,
}

impl GossipMetrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let messages = IntCounterVec::new(
            Opts::new(
                "dunlin_gossip_messages_total",
                "Datagrams of gossip between nodes.",
            ),
            &["direction"],
        )?;
        let messages = add(registry, messages)?;
        Ok(Self {
            sent: messages.with_label_values(&["sent"]),
            received: messages.with_label_values(&["received"]),
            suspicions: add(
                registry,
                IntCounter::new(
                    "dunlin_gossip_suspicions_total",
                    "How often this node has heard that a node is suspected to be dead, which was not before. Advice: nothing is done because of it.",
                )?,
            )?,
            convergence: add(
                registry,
                Gauge::new(
                    "dunlin_gossip_convergence_seconds",
                    "For how long this node has heard nothing new of the node of which it has heard nothing for the longest time. Each says something every second, so it is about 1; nodes that gossip has given up do not count.",
                )?,
            )?,
        })
    }
}
