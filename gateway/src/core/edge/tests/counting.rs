//! What became of publications, on its way to the owners of their shards.

use proto::message::ShardCounts;

use super::*;

const LATER: Fence = Fence(2);

fn deliveries(deliveries: u64) -> Fanout {
    Fanout {
        deliveries,
        ..Fanout::default()
    }
}

impl Bench {
    fn spread(&mut self, shard: ShardId, fence: Fence, count: u64) {
        let fanout = deliveries(count);
        self.tell(
            0,
            Input::Spread {
                shard,
                fence,
                fanout,
            },
        );
    }

    /// What eight beats say, from the one at this time on.
    fn counted(&mut self, from: u64) -> Vec<ShardCounts> {
        let mut all = Vec::new();
        for at in (from..from + 4_000).step_by(20) {
            for effect in self.tell(at, Input::Tick) {
                if let Effect::Counts(counts) = effect {
                    assert_eq!((&counts.from, counts.cluster), (&me(), ClusterUuid(1)));
                    all.extend(&counts.counts);
                }
            }
        }
        all
    }
}

#[test]
fn what_became_of_publications_is_told_once_in_eight_beats_until_another_owner_sends() {
    let mut bench = Bench::new();
    assert_eq!(bench.counted(0), []);
    let (shard, other) = (ShardId(7), ShardId(900));
    bench.spread(shard, FENCE, 3);
    bench.spread(shard, FENCE, 2);
    bench.spread(other, FENCE, 1);
    let counts = |shard, fence, count| ShardCounts {
        shard,
        fence,
        fanout: deliveries(count),
    };
    let told = [counts(shard, FENCE, 5), counts(other, FENCE, 1)];
    let mut first = bench.counted(4_000);
    first.sort_by_key(|counts| counts.shard);
    assert_eq!(first, told);
    // Again and again: one may be lost.
    assert_eq!(bench.counted(8_000).len(), 2);
    bench.spread(shard, LATER, 4);
    // Late, and for nobody.
    bench.spread(shard, FENCE, 9);
    bench.spread(ShardId(u16::MAX), FENCE, 9);
    let last = bench.counted(12_000);
    assert!(last.contains(&counts(shard, LATER, 4)), "{last:?}");
    assert_eq!(last.len(), 2);
}

#[test]
fn another_life_counts_from_the_beginning() {
    let mut bench = Bench::new();
    bench.spread(ShardId(7), FENCE, 3);
    let through = me().incarnation;
    bench.reply(0, "a", Reply::DeclaredGone { through });
    bench.spread(ShardId(7), FENCE, 2);
    let all = (0..4_000).step_by(20).flat_map(|at| {
        let effects = bench.tell(at, Input::Tick);
        let counts = effects.iter().filter_map(|effect| match effect {
            Effect::Counts(counts) => Some(counts.clone()),
            _ => None,
        });
        counts.collect::<Vec<_>>()
    });
    let all: Vec<_> = all.collect();
    let [told] = &all[..] else {
        panic!("told once: {all:?}");
    };
    assert_eq!(told.from.incarnation.0, through.0 + 1);
    assert_eq!(told.counts[0].fanout, deliveries(2));
}

#[test]
fn the_place_of_a_channel_is_the_one_whose_owner_has_spoken() {
    let mut bench = Bench::new();
    assert_eq!(bench.edge.place_of(&key("c")).1, Fence(0));
    bench.attach("c", 5);
    let shard = bench.edge.sharding.shard_of(&key("c"));
    assert_eq!(bench.edge.place_of(&key("c")), (shard, FENCE));
    let entry = bench.entry("c", LATER, 6);
    bench.batch("b", 1, &[entry]);
    assert_eq!(bench.edge.place_of(&key("c")), (shard, LATER));
}
