//! What a gateway counts. Closed label sets are primed with zero, so that the
//! first increment is seen by `rate()`; handles are resolved once, so that
//! counting costs no look-up.

use std::collections::HashMap;

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};
use proto::id::AppId;
use proto::message::Message;
use proto::position::GapReason;

use crate::app::Apps;
use crate::core::limits::Limiter;
use crate::protocol::CloseCode;

/// The two kinds of client connection, as labels.
pub(crate) const TYPES: [&str; 2] = ["websocket", "eventsource"];
/// Why connections of both kinds end.
const ENDS: [&str; 3] = ["client_gone", "shutdown", CloseCode::OverCapacity.reason()];
/// Why WebSocket connections end, besides.
const WEBSOCKET_ENDS: [&str; 7] = [
    "panic",
    CloseCode::TooManyMessages.reason(),
    "client_closed",
    CloseCode::ProtocolError.reason(),
    CloseCode::Unsupported.reason(),
    CloseCode::TooLarge.reason(),
    CloseCode::PongMissing.reason(),
];
/// Error kinds of WebSocket input.
const WEBSOCKET_ERRORS: [&str; 4] = [
    "malformed",
    "unsupported_frame",
    "frame_too_large",
    "protocol_error",
];

/// All metrics of a gateway.
#[derive(Debug)]
pub struct Metrics {
    pub(crate) connects: IntCounterVec,
    pub(crate) disconnects: IntCounterVec,
    pub(crate) connection_duration: Histogram,
    pub(crate) handshake_duration: Histogram,
    pub(crate) runtime_lag_worker: Histogram,
    pub(crate) draining: IntGauge,
    pub(crate) subscriptions: IntGauge,
    pub(crate) active_channels: IntGauge,
    pub(crate) subscribes_ok: IntCounter,
    pub(crate) subscribes_refused: IntCounter,
    pub(crate) unsubscribes_client: IntCounter,
    pub(crate) unsubscribes_disconnect: IntCounter,
    pub(crate) auth_failures: IntCounterVec,
    pub(crate) messages_received: IntCounterVec,
    pub(crate) websocket_errors: IntCounterVec,
    pub(crate) deliveries_ok: IntCounter,
    pub(crate) deliveries_client_gone: IntCounter,
    pub(crate) deliveries_slow: IntCounter,
    pub(crate) recoveries_recovered: IntCounter,
    pub(crate) recoveries_not_needed: IntCounter,
    pub(crate) recoveries_gap: IntCounter,
    pub(crate) slow_disconnected: IntCounter,
    pub(crate) slow_gap: IntCounter,
    pub(crate) outbox_bytes: IntGauge,
    pub(crate) writes_skipped_closing: IntCounter,
    pub(crate) writes_skipped_backpressure: IntCounter,
    pub(crate) fanout_recipients: Histogram,
    pub(crate) fanout_duration: Histogram,
    pub(crate) fanout_share: Histogram,
    pub(crate) fanout_batches: IntCounter,
    pub(crate) fanout_yields: IntCounter,
    pub(crate) e2e_latency: Histogram,
    pub(crate) http_requests: IntCounterVec,
    pub(crate) http_duration: HistogramVec,
    pub(crate) publishes: IntCounterVec,
    pub(crate) gaps_announced: IntCounterVec,
    pub(crate) link_gaps: IntCounter,
    pub(crate) link_repaired: IntCounter,
    pub(crate) link_fallbacks: IntCounter,
    pub(crate) nodes_silent: IntGauge,
    pub(crate) accept_errors: IntCounter,
    pub(crate) connection_panics: IntCounter,
    limited: IntCounterVec,
    certificates: IntCounterVec,
    pub(crate) bus_requests: IntCounter,
    pub(crate) bus_replies: IntCounter,
    pub(crate) bus_batches: IntCounter,
    pub(crate) bus_repairs: IntCounter,
    pub(crate) bus_beats: IntCounter,
    pub(crate) bus_maps: IntCounter,
    pub(crate) bus_gateway_beats: IntCounter,
    pub(crate) stranger_nodes: IntCounter,
    pub(crate) interest_restated: IntCounter,
    pub(crate) lives_begun: IntCounter,
    pub(crate) bus_malformed: IntCounter,
    pub(crate) bus_refused: IntCounter,
    clients: IntGaugeVec,
    sent: IntCounterVec,
    sent_bytes: IntCounterVec,
    /// Of each app, by kind of connection, in the order of [`TYPES`].
    traffic: HashMap<AppId, [Traffic; 2]>,
}

/// One app's handles for one kind of connection.
#[derive(Debug, Clone)]
pub(crate) struct Traffic {
    pub(crate) clients: IntGauge,
    pub(crate) sent: IntCounter,
    pub(crate) sent_bytes: IntCounter,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// When a name is taken: a gateway has been registered here before.
    pub fn register(
        registry: &Registry,
        bus: &str,
        apps: &Apps,
    ) -> Result<Self, prometheus::Error> {
        let r = Registrar { registry };
        let received = r.counters(
            "dunlin_bus_messages_received_total",
            "Messages received from the bus.",
            &["bus", "kind"],
        )?;
        let published = r.counters(
            "dunlin_bus_messages_published_total",
            "Messages published to the bus.",
            &["bus", "kind"],
        )?;
        let errors = r.counters(
            "dunlin_bus_errors_total",
            "Messages that could not be understood (malformed) or that the bus did not take (refused).",
            &["bus", "kind"],
        )?;
        let recoveries = r.counters("dunlin_recoveries_total", "Clients that came back to a channel, by what they were given: what they missed, nothing because they had missed nothing, or the word that it cannot be given.", &["result"])?;
        let deliveries = r.counters(
            "dunlin_deliveries_total",
            "Publications times clients: written or queued (ok), the client was gone, or too slow.",
            &["result"],
        )?;
        let lag = r.add(HistogramVec::new(
            HistogramOpts::new(
                "dunlin_runtime_lag_seconds",
                "How long a new task waits until a runtime begins with it, measured every 20 ms: of the process (main), and of the threads that own connections (worker).",
            )
            .buckets(vec![0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5]),
            &["runtime"],
        )?)?;
        let slow = r.counters(
            "dunlin_slow_consumers_total",
            "Clients that were too slow, by what was done: told so and disconnected, or left out until they had read what waited and then given what they had missed (gap).",
            &["action"],
        )?;
        let skipped = r.counters(
            "dunlin_writes_skipped_total",
            "Deliveries not attempted, by reason: the connection was closing, or so much waited for it that it is given them later (backpressure).",
            &["reason"],
        )?;
        let subscribes = r.counters(
            "dunlin_channel_subscribes_total",
            "Subscriptions asked for, by result.",
            &["result"],
        )?;
        let unsubscribes = r.counters(
            "dunlin_channel_unsubscribes_total",
            "Subscriptions ended, by reason.",
            &["reason"],
        )?;
        let errors_total = r.counters(
            "dunlin_errors_total",
            "Errors that a person should look at, by kind and source.",
            &["kind", "source"],
        )?;
        let mut metrics = Self {
            connects: r.counters("dunlin_connects_total", "Client connections, by type and result.", &["type", "result"])?,
            disconnects: r.counters("dunlin_disconnects_total", "Client connections ended, by type and reason.", &["type", "reason"])?,
            connection_duration: r.histogram(
                "dunlin_connection_duration_seconds",
                "How long client connections lasted.",
                &[1.0, 10.0, 60.0, 300.0, 1_800.0, 7_200.0, 43_200.0, 172_800.0],
            )?,
            handshake_duration: r.histogram(
                "dunlin_handshake_duration_seconds",
                "From accepting a client's connection, or from its request on an older one, until a worker has it and its answer is on the way.",
                &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0],
            )?,
            runtime_lag_worker: lag.with_label_values(&["worker"]),
            draining: r.gauge("dunlin_draining", "1 while this gateway has been told to end and sends its clients away.")?,
            subscriptions: r.gauge("dunlin_subscriptions", "Pairs of connection and channel now.")?,
            active_channels: r.gauge("dunlin_active_channels", "Channels with at least one subscriber, summed over workers.")?,
            subscribes_ok: subscribes.with_label_values(&["ok"]),
            subscribes_refused: subscribes.with_label_values(&["refused"]),
            unsubscribes_client: unsubscribes.with_label_values(&["client"]),
            unsubscribes_disconnect: unsubscribes.with_label_values(&["disconnect"]),
            auth_failures: r.counters("dunlin_auth_failures_total", "Signatures that were refused, by reason.", &["reason"])?,
            messages_received: r.counters("dunlin_messages_received_total", "Messages from clients, by type and operation.", &["type", "op"])?,
            websocket_errors: r.counters("dunlin_websocket_errors_total", "Input of WebSocket clients that was not acceptable, by kind.", &["kind"])?,
            deliveries_ok: deliveries.with_label_values(&["ok"]),
            deliveries_client_gone: deliveries.with_label_values(&["client_gone"]),
            deliveries_slow: deliveries.with_label_values(&["slow_dropped"]),
            recoveries_recovered: recoveries.with_label_values(&["recovered"]),
            recoveries_not_needed: recoveries.with_label_values(&["not_needed"]),
            recoveries_gap: recoveries.with_label_values(&["gap"]),
            slow_disconnected: slow.with_label_values(&["disconnected"]),
            slow_gap: slow.with_label_values(&["gap"]),
            outbox_bytes: r.gauge("dunlin_outbox_bytes", "Bytes that wait to be written to clients whose sockets are full.")?,
            writes_skipped_closing: skipped.with_label_values(&["closing"]),
            writes_skipped_backpressure: skipped.with_label_values(&["backpressure"]),
            fanout_recipients: r.histogram(
                "dunlin_fanout_recipients",
                "Connections that one worker sent one publication to.",
                &[1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0],
            )?,
            fanout_duration: r.histogram(
                "dunlin_fanout_duration_seconds",
                "From a worker's first write of a publication to its last; what a write to a full socket leaves behind comes later.",
                &[0.00001, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5],
            )?,
            fanout_share: r.histogram(
                "dunlin_fanout_share_ratio",
                "Fraction of a worker's connections that one publication went to.",
                &[0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0],
            )?,
            fanout_batches: r.counter("dunlin_fanout_batches_total", "Slices of fan-outs.")?,
            fanout_yields: r.counter("dunlin_fanout_yields_total", "Times a fan-out let others go first.")?,
            e2e_latency: r.histogram(
                "dunlin_e2e_latency_seconds",
                "From accepting a publication to having written it to the last of a worker's clients.",
                &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5],
            )?,
            http_requests: r.counters("dunlin_http_requests_total", "HTTP requests, by route, method and status code.", &["route", "method", "code"])?,
            http_duration: r.add(HistogramVec::new(
                HistogramOpts::new("dunlin_http_request_duration_seconds", "How long HTTP requests took, by route.")
                    .buckets(vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0]),
                &["route"],
            )?)?,
            publishes: r.counters("dunlin_publishes_total", "Publications asked for, by source and result.", &["source", "result"])?,
            gaps_announced: r.counters("dunlin_gaps_announced_total", "Gaps that a channel's followers were told of, by reason.", &["reason"])?,
            link_gaps: r.counter("dunlin_link_gaps_total", "Holes found in the links from nodes.")?,
            link_repaired: r.counter("dunlin_link_repaired_total", "Entries that a link had lost and that came by repair.")?,
            link_fallbacks: r.counter("dunlin_link_fallbacks_total", "Times that a part of what a link had lost was beyond repair, so that the node's channels were asked for by position.")?,
            nodes_silent: r.gauge("dunlin_nodes_silent", "Nodes of which neither batch nor beat has come for 2 s.")?,
            accept_errors: errors_total.with_label_values(&["accept", "server"]),
            connection_panics: errors_total.with_label_values(&["panic", "connection"]),
            certificates: r.counters("dunlin_certificate_reloads_total", "Times that the certificate's files had changed and were read again, by whether they could be used.", &["result"])?,
            limited: r.counters("dunlin_rate_limit_triggered_total", "What clients and backends asked for beyond a limit, by limiter.", &["limiter"])?,
            bus_requests: published.with_label_values(&[bus, "request"]),
            bus_replies: received.with_label_values(&[bus, "reply"]),
            bus_batches: received.with_label_values(&[bus, "batch"]),
            bus_repairs: received.with_label_values(&[bus, "repair"]),
            bus_beats: received.with_label_values(&[bus, "beat"]),
            bus_maps: received.with_label_values(&[bus, "map"]),
            bus_gateway_beats: published.with_label_values(&[bus, "beat"]),
            stranger_nodes: r
                .counters(
                    "dunlin_strangers_total",
                    "Beats from processes of another cluster that uses this cluster's name on the bus, by what they are.",
                    &["kind"],
                )?
                .with_label_values(&["node"]),
            interest_restated: r.counter(
                "dunlin_interest_restated_total",
                "Times that all channels of a shard were joined anew because its owner had asked, or the gateway had been declared gone.",
            )?,
            lives_begun: r.counter(
                "dunlin_declared_gone_total",
                "Times that this gateway found itself declared gone, because the nodes had not heard of it for 2 s, and went on under another incarnation.",
            )?,
            bus_malformed: errors.with_label_values(&[bus, "malformed"]),
            bus_refused: errors.with_label_values(&[bus, "refused"]),
            clients: r.add(IntGaugeVec::new(Opts::new("dunlin_connected_clients", "Client connections now, by type and app."), &["type", "app"])?)?,
            sent: r.counters("dunlin_messages_sent_total", "Publications sent to clients, by type and app.", &["type", "app"])?,
            sent_bytes: r.counters("dunlin_messages_sent_bytes_total", "Bytes of publications sent to clients, by type and app.", &["type", "app"])?,
            traffic: HashMap::new(),
        };
        let traffic = |app: &AppId| TYPES.map(|kind| metrics.new_traffic(kind, app));
        let traffic = apps.iter().map(|app| (app.id.clone(), traffic(&app.id)));
        metrics.traffic = traffic.collect();
        metrics.prime();
        Ok(metrics)
    }

    /// The handles of an app that is served, in the order of [`TYPES`].
    pub(crate) fn traffic(&self, app: &AppId) -> Option<&[Traffic; 2]> {
        self.traffic.get(app)
    }

    fn new_traffic(&self, kind: &str, app: &AppId) -> Traffic {
        let labels = [kind, app.as_str()];
        Traffic {
            clients: self.clients.with_label_values(&labels),
            sent: self.sent.with_label_values(&labels),
            sent_bytes: self.sent_bytes.with_label_values(&labels),
        }
    }

    /// Counts a message from the bus by its kind.
    pub(crate) fn count_received(&self, message: &Message) {
        match message {
            Message::Replies(_) => self.bus_replies.inc(),
            // A batch without entries is a tail beat.
            Message::Batch(batch) if batch.entries.is_empty() => self.bus_beats.inc(),
            Message::Batch(_) => self.bus_batches.inc(),
            Message::Repair(_) => self.bus_repairs.inc(),
            Message::NodeBeat(_) => self.bus_beats.inc(),
            Message::Map(_) => self.bus_maps.inc(),
            // For nodes; counted as malformed.
            Message::Requests(_) | Message::GatewayBeat(_) | Message::GatewayCounts(_) => {}
        }
    }

    fn prime(&self) {
        for kind in TYPES {
            for result in ["ok", "refused", "rate_limited", "overload"] {
                self.connects.with_label_values(&[kind, result]);
            }
            for reason in ENDS {
                self.disconnects.with_label_values(&[kind, reason]);
            }
        }
        for reason in WEBSOCKET_ENDS {
            self.disconnects.with_label_values(&["websocket", reason]);
        }
        for op in [
            "subscribe",
            "unsubscribe",
            "signin",
            "ping",
            "pong",
            "unsupported",
        ] {
            self.messages_received.with_label_values(&["websocket", op]);
        }
        for reason in ["expired", "bad_signature", "missing"] {
            self.auth_failures.with_label_values(&[reason]);
        }
        for kind in WEBSOCKET_ERRORS {
            self.websocket_errors.with_label_values(&[kind]);
        }
        for source in ["http", "playground"] {
            self.publishes.with_label_values(&[source, "ok"]);
            self.publishes.with_label_values(&[source, "failed"]);
        }
        self.certificate_reloads();
        for limiter in Limiter::ALL {
            self.limited.with_label_values(&[limiter.as_str()]);
        }
        for reason in GapReason::ALL {
            self.gaps_announced.with_label_values(&[reason.as_str()]);
        }
        self.http_requests
            .with_label_values(&["/apps/{id}/events", "POST", "200"]);
        self.http_duration.with_label_values(&["/apps/{id}/events"]);
    }
}

impl Metrics {
    /// Certificates that were read again: those that could be used, and others.
    pub(crate) fn certificate_reloads(&self) -> [IntCounter; 2] {
        ["ok", "failed"].map(|result| self.certificates.with_label_values(&[result]))
    }

    /// So often somebody asked for more than is allowed.
    pub(crate) fn count_limited(&self, limiter: Limiter, times: u64) {
        let limited = self.limited.with_label_values(&[limiter.as_str()]);
        limited.inc_by(times);
    }

    /// A client has come back to a channel and is given what it missed.
    pub(crate) fn count_recovery(&self, nothing_missed: bool) {
        if nothing_missed {
            self.recoveries_not_needed.inc();
        } else {
            self.recoveries_recovered.inc();
        }
    }
}

struct Registrar<'a> {
    registry: &'a Registry,
}

impl Registrar<'_> {
    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> Result<C, prometheus::Error> {
        self.registry.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.add(IntCounter::new(name, help)?)
    }

    fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.add(IntGauge::new(name, help)?)
    }

    fn histogram(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
    ) -> Result<Histogram, prometheus::Error> {
        self.add(Histogram::with_opts(
            HistogramOpts::new(name, help).buckets(buckets.to_vec()),
        )?)
    }
}
