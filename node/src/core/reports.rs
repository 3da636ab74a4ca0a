//! What gateways say became of a shard's publications: counts that only rise
//! while gateway, shard and fence are the same. The shard's owner adds up what
//! each report adds to the one before it, so one that is lost or comes twice
//! changes nothing.

use std::collections::BTreeMap;

use proto::id::{GatewayId, GatewayRef, Incarnation};
use proto::message::Fanout;
use proto::shard::ShardId;

/// The last report of each gateway, in its present life, about each shard that is
/// served here.
#[derive(Debug, Default)]
pub struct Reports(BTreeMap<ShardId, BTreeMap<GatewayId, (Incarnation, Fanout)>>);

impl Reports {
    /// What a report adds to what was known. It must be of the fence under which
    /// the shard is served.
    pub fn take(&mut self, shard: ShardId, from: &GatewayRef, fanout: Fanout) -> Fanout {
        let known = self.0.entry(shard).or_default();
        match known.get_mut(&from.id) {
            Some((life, last)) if *life == from.incarnation => {
                // One that was overtaken on the way adds nothing, nor does it count
                // as the last.
                let added = fanout.since(*last);
                *last = last.and(added);
                added
            }
            Some((life, _)) if *life > from.incarnation => Fanout::default(),
            _ => {
                known.insert(from.id.clone(), (from.incarnation, fanout));
                fanout
            }
        }
    }

    /// A shard is served no longer, or anew.
    pub fn drop_shard(&mut self, shard: ShardId) {
        self.0.remove(&shard);
    }

    /// A gateway counts as gone.
    pub fn forget(&mut self, gateway: &GatewayRef) {
        for known in self.0.values_mut() {
            known.retain(|id, (life, _)| *id != gateway.id || *life > gateway.incarnation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(incarnation: u64) -> GatewayRef {
        GatewayRef {
            id: "g".parse().unwrap(),
            incarnation: Incarnation(incarnation),
        }
    }

    fn fanout(deliveries: u64) -> Fanout {
        Fanout {
            deliveries,
            ..Fanout::default()
        }
    }

    #[test]
    fn each_delivery_is_counted_once_whatever_reports_are_lost_or_repeated() {
        let mut reports = Reports::default();
        let mut counted = 0;
        for reported in [3, 3, 10, 7, 12] {
            let added = reports.take(ShardId(1), &gateway(1), fanout(reported));
            counted += added.deliveries;
        }
        assert_eq!(counted, 12);
    }

    #[test]
    fn a_gateway_that_starts_anew_counts_from_the_beginning() {
        let mut reports = Reports::default();
        let mut take = |incarnation, deliveries| {
            let from = gateway(incarnation);
            reports
                .take(ShardId(1), &from, fanout(deliveries))
                .deliveries
        };
        assert_eq!(take(1, 5), 5);
        assert_eq!(take(2, 4), 4);
        assert_eq!(take(1, 9), 0, "its earlier life is over");
        reports.forget(&gateway(1));
        assert_eq!(reports.0[&ShardId(1)].len(), 1);
        reports.forget(&gateway(2));
        assert_eq!(reports.0[&ShardId(1)].len(), 0);
    }

    #[test]
    fn a_shard_that_comes_back_is_counted_from_the_beginning() {
        let mut reports = Reports::default();
        reports.take(ShardId(1), &gateway(1), fanout(5));
        reports.drop_shard(ShardId(1));
        let added = reports.take(ShardId(1), &gateway(1), fanout(2));
        assert_eq!(added, fanout(2));
    }
}
