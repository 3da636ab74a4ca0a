//! What came too late for its lease. It waits, in order, until the leases hold
//! again; and goes for good when the shard has gone, or has another owner: then
//! whatever lease this node has now was not given for that.
//!
//! A shard decides nothing to be performed while its leases do not hold, so what
//! waits here was all decided within one of them, and no more comes.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::id::NodeRef;
use proto::shard::{Fence, ShardId, ShardMap};
use proto::time::Timestamp;

use crate::core::replication::Leases;
use crate::core::shard::{Effect, Leased};

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Late(BTreeMap<(ShardId, Fence), Waiting>);

#[derive(Debug)]
struct Waiting {
    standbys: Arc<[NodeRef]>,
    effects: Vec<Effect>,
}

fn is_over(map: &ShardMap, shard: ShardId, fence: Fence) -> bool {
    map.owner(shard).is_some_and(|(_, known)| known > fence)
}

impl Late {
    /// An owner has decided something: what may be performed now.
    pub(super) fn admit(
        &mut self,
        now: Timestamp,
        leased: Leased,
        leases: &Leases,
        map: &ShardMap,
    ) -> Vec<Effect> {
        let Leased {
            shard,
            fence,
            standbys,
            effects,
        } = leased;
        if is_over(map, shard, fence) {
            self.0.remove(&(shard, fence));
            return Vec::new();
        }
        let holds = leases.hold(now, &*standbys);
        let waiting = self.0.remove(&(shard, fence));
        if holds && waiting.is_none() {
            return effects;
        }
        let mut all = waiting.map_or_else(Vec::new, |waiting| waiting.effects);
        all.extend(effects);
        if holds {
            return all;
        }
        let effects = all;
        let waiting = Waiting { standbys, effects };
        self.0.insert((shard, fence), waiting);
        Vec::new()
    }

    /// What may be performed now that waited.
    pub(super) fn due(&mut self, now: Timestamp, leases: &Leases) -> Vec<Effect> {
        let holds = |waiting: &mut Waiting| leases.hold(now, &*waiting.standbys);
        let due = self.0.extract_if(.., |_, waiting| holds(waiting));
        due.flat_map(|(_, waiting)| waiting.effects).collect()
    }

    /// This node serves a shard no longer.
    pub(super) fn stopped(&mut self, shard: ShardId) {
        self.0.retain(|(of, _), _| *of != shard);
    }

    /// This is the map from now on.
    pub(super) fn follow(&mut self, map: &ShardMap) {
        self.0
            .retain(|(shard, fence), _| !is_over(map, *shard, *fence));
    }
}
