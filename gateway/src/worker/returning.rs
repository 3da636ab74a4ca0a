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
use crate::core::attachment::Resumption;
use crate::core::hub::{ChannelIndex, ConnectionIndex, Given, Return, Returned};

impl State {
    /// The edge says what the clients missed that stand at `cursor` or, in the
    /// same epoch, behind it.
    pub(super) fn resumed(&mut self, key: &ChannelKey, cursor: Position, resumption: &Resumption) {
        let fanout = &self.fanout;
        let sweeps = |channel| fanout.is_busy(channel);
        let Some(Return { back, given, ask }) = self.hub.resumed(key, cursor, resumption, sweeps)
        else {
            return;
        };
        if ask {
            self.untold.entry(key.clone()).or_insert(Untold::Resume);
        }
        match given {
            Given::Publications(publications) => {
                self.give(key, cursor, back, publications);
            }
            Given::Gap(gap) => self.tell_gap(key, back, gap),
        }
    }

    /// A sweep has ended, so the channel has come further here.
    pub(super) fn ask_for_those_ahead(&mut self, channel: ChannelIndex) {
        if self.hub.waits(channel)
            && let Some(key) = self.hub.key(channel).cloned()
        {
            self.untold.entry(key).or_insert(Untold::Resume);
        }
    }

    pub(super) fn give(
        &mut self,
        key: &ChannelKey,
        cursor: Position,
        back: Vec<Returned>,
        publications: Vec<Arc<Publication>>,
    ) {
        let broadcast = |publication| {
            let broadcast = Broadcast::publication(key.clone(), cursor.epoch, publication);
            Arc::new(broadcast)
        };
        let broadcasts: Vec<_> = publications.into_iter().map(broadcast).collect();
        let mut counts = Counts::default();
        for one in back {
            self.welcome(key, one, one.cursor, true);
            let seen = broadcasts.partition_point(|b| b.position().offset <= one.cursor.offset);
            let missed = &broadcasts[seen..];
            self.metrics.count_recovery(missed.is_empty());
            self.deliver(one.recipient, missed, false, &mut counts);
        }
        self.count(key, &counts);
    }

    pub(super) fn tell_gap(&mut self, key: &ChannelKey, back: Vec<Returned>, gap: Gap) {
        let broadcast = [Arc::new(Broadcast::gap(key.clone(), gap))];
        let mut counts = Counts::default();
        for one in back {
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
                self.welcome(key, one, gap.latest, false);
            } else {
                self.welcome(key, one, gap.latest, false);
                self.deliver(one.recipient, &broadcast, false, &mut counts);
            }
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
