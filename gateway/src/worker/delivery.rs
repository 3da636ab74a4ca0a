//! Spreading publications over connections.

use std::sync::Arc;
use std::time::Instant;

use proto::channel::ChannelKey;
use proto::message::Fanout;
use proto::namespace::Slow;
use proto::position::{Offset, Position};
use proto::publication::Publication;
use proto::time::UnixTime;

use super::socket::{Offered, Wire};
use super::state::{CLIENT_GONE, State};
use crate::broadcast::{Broadcast, Content};
use crate::core::fanout::Slice;
use crate::core::hub::Recipient;
use crate::protocol::{Close, CloseCode, Frame, pusher, sse};
use crate::websocket::text_frame;

/// Connections that get publications before others may go: what one write to each
/// costs is how long a small channel beside a large one waits.
const ROUND_VISITS: usize = 32;

impl State {
    pub(super) fn fan_out(&mut self) -> bool {
        let mut room = ROUND_VISITS;
        while room > 0 {
            let Some(slice) = self.fanout.next(&mut self.hub) else {
                break;
            };
            let direct = self.fanout.is_alone(&slice);
            let began = Instant::now();
            let deliveries = self.spread(&slice, direct);
            let mut fanout = Fanout {
                deliveries,
                busy_us: began.elapsed().as_micros() as u64,
                ..Fanout::default()
            };
            if slice.last {
                let began = self.sweeps.remove(&slice.channel).unwrap_or(began);
                self.metrics
                    .fanout_duration
                    .observe(began.elapsed().as_secs_f64());
                self.observe(&slice, &mut fanout);
            } else {
                self.sweeps.entry(slice.channel).or_insert(began);
            }
            // Of one shard, and nearly always under one fence.
            let origin = slice.broadcasts.iter().rev().find_map(|b| b.origin);
            if let Some((shard, fence)) = origin {
                self.add_spread(shard, fence, fanout);
            }
            room = room.saturating_sub(slice.slots.len().max(1));
            let unfollowed = self.fanout.done(&slice, &mut self.hub);
            if slice.last && unfollowed.is_none() {
                self.ask_for_those_ahead(slice.channel);
            }
            self.unfollow(unfollowed);
        }
        if room == 0 {
            self.metrics.fanout_yields.inc();
        }
        room < ROUND_VISITS
    }

    /// Sends the publications of a slice to its connections, and says how many
    /// that were. `direct`: there is nothing to gather, so each is written at once.
    fn spread(&mut self, slice: &Slice, direct: bool) -> u64 {
        let mut counts = Counts::default();
        for slot in slice.slots.clone() {
            if let Some(recipient) = self.hub.subscriber(slice.channel, slot) {
                self.deliver(recipient, &slice.broadcasts, direct, &mut counts);
            }
        }
        self.metrics.fanout_batches.inc();
        if let Some(key) = self.hub.key(slice.channel).cloned() {
            self.count(&key, &counts);
        }
        counts.delivered
    }

    pub(super) fn count(&self, key: &ChannelKey, counts: &Counts) {
        self.metrics.deliveries_ok.inc_by(counts.delivered);
        self.metrics.writes_skipped_closing.inc_by(counts.closing);
        self.metrics
            .writes_skipped_backpressure
            .inc_by(counts.left_out);
        self.metrics.slow_gap.inc_by(counts.fell_behind);
        self.metrics.deliveries_client_gone.inc_by(counts.gone);
        let traffic = self.metrics.traffic(&key.app).into_iter().flatten();
        for (traffic, sent) in traffic.zip(&counts.sent) {
            if sent.messages > 0 {
                traffic.sent.inc_by(sent.messages);
                traffic.sent_bytes.inc_by(sent.bytes);
            }
        }
    }

    pub(super) fn deliver(
        &mut self,
        recipient: Recipient,
        broadcasts: &[Arc<Broadcast>],
        direct: bool,
        counts: &mut Counts,
    ) {
        let key = recipient.connection.0 as usize;
        let Some(socket) = self.sockets.get_mut(key) else {
            return;
        };
        if socket.closing_since.is_some() {
            counts.closing += 1;
            return;
        }
        if recipient.watches {
            return self.deliver_news(key, broadcasts);
        }
        let Some(client) = &socket.client else { return };
        let id = client.connection.id();
        let bytes_max = self.config.outbox.bytes_max;
        for (at, broadcast) in broadcasts.iter().enumerate() {
            if broadcast.is_end {
                let code = CloseCode::Terminated;
                let message = "all connections of this user have been ended".into();
                return self.refuse(key, Close { code, message });
            }
            // The other half is for what cannot be left out.
            if socket.outbox.bytes() > bytes_max / 2
                && let Content::Publication(publication) = &broadcast.content
                && self.config.namespaces.slow(&broadcast.key) == Slow::Gap
                && let Some(channel) = self.hub.index(&broadcast.key)
            {
                let Position { epoch, .. } = broadcast.position();
                let offset = Offset(publication.offset.0.saturating_sub(1));
                socket.is_behind = true;
                self.hub
                    .fall_behind(recipient.connection, channel, Position { epoch, offset });
                counts.fell_behind += 1;
                counts.left_out += (broadcasts.len() - at) as u64;
                break;
            }
            let is_own = |publication: &Arc<Publication>| publication.exclude == Some(id);
            let is_left_out = match &broadcast.content {
                Content::Publication(publication) => is_own(publication),
                Content::Gap(_) | Content::Members { .. } | Content::Count(_) => false,
            };
            let is_stream = matches!(socket.wire, Wire::EventStream(_));
            if is_left_out || broadcast.is_silent() || is_stream && broadcast.is_for_websockets() {
                if let Wire::EventStream(stream) = &mut socket.wire {
                    stream.set(&broadcast.key.channel, broadcast.position());
                } else if recipient.positions {
                    let moved = text_frame(&pusher::encode(&Frame::Moved {
                        channel: broadcast.key.channel.clone(),
                        position: broadcast.position(),
                    }));
                    socket.outbox.push(moved);
                }
                continue;
            }
            let (sent, written) = match &mut socket.wire {
                Wire::WebSocket(_) => {
                    let frame = if recipient.positions {
                        broadcast.positioned()
                    } else {
                        broadcast.websocket()
                    };
                    (&mut counts.sent[0], socket.offer(frame, direct))
                }
                Wire::EventStream(stream) => {
                    stream.set(&broadcast.key.channel, broadcast.position());
                    let written = if stream.channels.len() == 1 && !stream.envelope {
                        socket.offer(broadcast.event_stream(), direct)
                    } else {
                        let body = if stream.envelope {
                            broadcast.envelope()
                        } else {
                            broadcast.body()
                        };
                        let tail = sse::tail(&stream.cursor).into();
                        socket.outbox.push(body.clone());
                        socket.outbox.push(tail);
                        Offered::Queued(body.len())
                    };
                    (&mut counts.sent[1], written)
                }
            };
            match written {
                Offered::Written(bytes) | Offered::Queued(bytes) => {
                    counts.delivered += 1;
                    sent.messages += 1;
                    sent.bytes += bytes as u64;
                }
                Offered::Gone => {
                    counts.gone += 1;
                    self.forget(key, CLIENT_GONE);
                    return;
                }
            }
        }
        socket.written_at = self.now;
        socket.begin_if_much_waits();
        if !socket.outbox.is_empty() {
            self.mark_dirty(key);
        }
    }

    /// What a finished sweep tells about the worker.
    fn observe(&self, slice: &Slice, fanout: &mut Fanout) {
        let recipients = slice.slots.end as f64;
        let all = self.sockets.len().max(1) as f64;
        let now = UnixTime::now();
        for broadcast in &*slice.broadcasts {
            let Content::Publication(publication) = &broadcast.content else {
                continue;
            };
            if publication.is_blank() || publication.change().is_some() {
                continue;
            }
            self.metrics.fanout_recipients.observe(recipients);
            let share = (recipients / all).min(1.0);
            self.metrics.fanout_share.observe(share);
            fanout.spreads += 1;
            fanout.share_ppm += (share * 1e6) as u64;
            let micros = now.0.saturating_sub(publication.accepted_at.0);
            self.metrics.e2e_latency.observe(micros as f64 / 1e6);
        }
    }
}

/// What one slice has done, to be counted once.
#[derive(Default)]
pub(super) struct Counts {
    delivered: u64,
    closing: u64,
    gone: u64,
    /// Connections, and what they were not given for now.
    fell_behind: u64,
    left_out: u64,
    /// By kind of connection, in the order of the metrics' labels.
    sent: [Sent; 2],
}

#[derive(Default)]
pub(super) struct Sent {
    messages: u64,
    bytes: u64,
}
