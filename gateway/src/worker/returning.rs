//! Clients that have come back: what they missed is given to each of them, and
//! then they go on with everybody else.

use std::sync::Arc;

use proto::channel::ChannelKey;
use proto::position::{Gap, Position};
use proto::publication::Publication;

use super::channels::{Acknowledged, Untold};
use super::delivery::Counts;
use super::socket::Wire;
use super::state::State;
use crate::broadcast::Broadcast;
use crate::core::attachment::{Resumption, concerns};
use crate::core::hub::{ChannelIndex, ConnectionIndex, Returned};

/// Clients that are told in one go; the edge is asked again for the rest, so
/// that others get their turn.
const TOGETHER: usize = 256;

impl State {
    /// The edge says what the clients missed that stand at `cursor` or, in the
    /// same epoch, behind it.
    pub(super) fn resumed(&mut self, key: &ChannelKey, cursor: Position, resumption: Resumption) {
        let Some((channel, position)) = self.hub.answered(key, cursor) else {
            return;
        };
        match resumption {
            Resumption::Gap(gap) => self.tell_gap(key, channel, position, cursor, gap),
            Resumption::Whole(publications) => {
                self.give(key, channel, position, cursor, &publications, true);
            }
            Resumption::Part(publications) => {
                self.give(key, channel, position, cursor, &publications, false);
            }
        }
        self.ask_again(key, channel, position);
    }

    /// A sweep has ended, so the channel has come further here.
    pub(super) fn ask_for_those_ahead(&mut self, channel: ChannelIndex) {
        if self.hub.waits(channel)
            && let Some(key) = self.hub.key(channel).cloned()
        {
            self.untold.entry(key).or_insert(Untold::Resume);
        }
    }

    /// Asks for those that are left. Whoever has seen elsewhere what waits to
    /// be swept here is helped when it has been.
    fn ask_again(&mut self, key: &ChannelKey, channel: ChannelIndex, position: Position) {
        let sweeps = self.fanout.is_busy(channel);
        let ahead =
            |cursor: Position| cursor.epoch != position.epoch || cursor.offset > position.offset;
        let later = |returned: &Returned| sweeps && ahead(returned.cursor);
        let left = self.hub.returned(channel, usize::MAX, |_| true);
        if !left.is_empty() && !left.iter().all(later) {
            self.untold.entry(key.clone()).or_insert(Untold::Resume);
        }
    }

    fn give(
        &mut self,
        key: &ChannelKey,
        channel: ChannelIndex,
        position: Position,
        cursor: Position,
        publications: &[Arc<Publication>],
        whole: bool,
    ) {
        let end = publications.last().map_or(cursor.offset, |p| p.offset);
        // What the edge has passed on and waits here for its sweep comes by that.
        let end = if whole { end.min(position.offset) } else { end };
        let meant = |theirs: Position| {
            theirs.epoch == cursor.epoch
                && theirs.epoch == position.epoch
                && (cursor.offset..=end).contains(&theirs.offset)
        };
        let returned = self.hub.returned(channel, TOGETHER, meant);
        if returned.is_empty() {
            return;
        }
        let broadcasts: Vec<_> = publications
            .iter()
            .take_while(|publication| publication.offset <= end)
            .map(|publication| {
                let publication = Arc::clone(publication);
                Arc::new(Broadcast::publication(
                    key.clone(),
                    cursor.epoch,
                    publication,
                ))
            })
            .collect();
        let mut counts = Counts::default();
        for one in returned {
            let connection = one.recipient.connection;
            self.welcome(key, one, one.cursor, true);
            let missed = broadcasts.partition_point(|b| b.position().offset <= one.cursor.offset);
            let missed = &broadcasts[missed..];
            self.metrics.count_recovery(missed.is_empty());
            self.deliver(one.recipient, missed, false, &mut counts);
            if whole {
                self.hub.go_live(channel, connection);
            } else {
                let cursor = Position {
                    offset: end,
                    ..cursor
                };
                self.hub.advance(channel, connection, cursor);
            }
        }
        self.count(key, &counts);
    }

    fn tell_gap(
        &mut self,
        key: &ChannelKey,
        channel: ChannelIndex,
        position: Position,
        cursor: Position,
        gap: Gap,
    ) {
        // In another epoch than what waits here for its sweep, or behind it,
        // nobody can be put.
        if gap.latest.epoch != position.epoch {
            return;
        }
        let meant = |theirs: Position| {
            let behind = theirs.epoch != position.epoch || theirs.offset <= position.offset;
            concerns(&gap, cursor, theirs) && (behind || theirs.offset > gap.latest.offset)
        };
        // They go on where the channel stands at this worker.
        let gap = Gap {
            latest: position,
            ..gap
        };
        let broadcast = [Arc::new(Broadcast::gap(key.clone(), gap))];
        let mut counts = Counts::default();
        for one in self.hub.returned(channel, TOGETHER, meant) {
            self.metrics.recoveries_gap.inc();
            self.metrics
                .gaps_announced
                .with_label_values(&[gap.reason.as_str()])
                .inc();
            // A stream's acknowledgement moves the client's cursor: if the gap
            // came behind it and was lost, nobody would ever hear of it. On a
            // WebSocket the acknowledgement itself says it.
            if self.is_stream(one.recipient.connection) {
                self.deliver(one.recipient, &broadcast, false, &mut counts);
                self.welcome(key, one, position, false);
            } else {
                self.welcome(key, one, position, false);
                self.deliver(one.recipient, &broadcast, false, &mut counts);
            }
            self.hub.go_live(channel, one.recipient.connection);
        }
        self.count(key, &counts);
    }

    fn is_stream(&self, connection: ConnectionIndex) -> bool {
        let socket = self.sockets.get(connection.0 as usize);
        socket.is_some_and(|socket| matches!(socket.wire, Wire::EventStream(_)))
    }

    /// Acknowledges, unless that was done with an earlier part.
    fn welcome(&mut self, key: &ChannelKey, one: Returned, position: Position, recovered: bool) {
        if !one.told {
            let connection = one.recipient.connection.0 as usize;
            let acknowledged = Acknowledged::Resumed { recovered };
            self.acknowledge(connection, &key.channel, position, acknowledged);
        }
    }
}
