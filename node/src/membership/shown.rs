//! What is agreed, as the rest of the node and people see it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use proto::id::{NodeId, NodeRef};
use proto::inspection::{EventInfo, NodeInfo};
use proto::shard::ShardMap;
use proto::time::UnixTime;
use tokio::sync::watch;

use super::Phase;
use crate::agreement::Known;
use crate::core::agreed::Agreed;
use crate::core::cluster::{Cluster, Member, RaftId};
use crate::core::events;
use crate::core::gossip::Rumours;
use crate::core::placement;
use crate::raft::Standing;

/// Senders of what a [`crate::View`] shows, and of the rest that is watched.
pub(super) struct Shown {
    pub(super) known: watch::Sender<Known>,
    pub(super) map: watch::Sender<Arc<ShardMap>>,
    pub(super) members: watch::Sender<Arc<Vec<NodeInfo>>>,
    pub(super) leads: watch::Sender<bool>,
    pub(super) events: watch::Sender<Arc<VecDeque<EventInfo>>>,
    pub(super) has_leader: watch::Sender<bool>,
    pub(super) phase: watch::Sender<Phase>,
}

impl Shown {
    /// Shows what has changed; who watches hears of nothing else.
    pub(super) fn show(&self, cluster: &Arc<Cluster>, standing: &Standing, rumours: &Rumours) {
        // Before what is agreed: whoever acts on that may ask.
        set(&self.leads, standing.leads);
        set(&self.has_leader, standing.leader.is_some());
        // The map is a copy of all rows: not for every tick.
        let is_same = Arc::ptr_eq(&self.known.borrow().cluster, cluster);
        // What was decided before it was there is no news.
        if !is_same && matches!(*self.phase.borrow(), Phase::Registered(_)) {
            let before = Arc::clone(&self.known.borrow().cluster);
            self.events.send_modify(|events| {
                let events = Arc::make_mut(events);
                events::record(events, UnixTime::now(), &before, cluster);
            });
        }
        if let Some(map) = (!is_same).then(|| cluster.map()).flatten() {
            self.map.send_if_modified(|shown| {
                let changed = **shown != map;
                if changed {
                    tracing::info!(version = map.version, "the shard map has changed");
                    *shown = Arc::new(map);
                }
                changed
            });
        }
        let infos = infos(cluster, standing, rumours);
        self.members.send_if_modified(|shown| {
            let changed = **shown != infos;
            if changed {
                *shown = Arc::new(infos);
            }
            changed
        });
        // Last: who waits for it finds the rest, too.
        self.tell_known(cluster, standing, rumours);
    }

    fn tell_known(&self, cluster: &Arc<Cluster>, standing: &Standing, rumours: &Rumours) {
        let given_up = rumours.iter().filter(|(_, rumour)| !rumour.is_seen());
        let given_up: BTreeSet<RaftId> = given_up.map(|(id, _)| *id).collect();
        self.known.send_if_modified(|known| {
            let is_same = Arc::ptr_eq(&known.cluster, cluster);
            if !is_same || known.given_up != given_up {
                known.targets = Arc::new(placement::targets(cluster, &given_up));
            }
            let changed = !is_same
                || known.given_up != given_up
                || known.applied != standing.applied
                || known.voters != standing.voters;
            let map = Arc::clone(&self.map.borrow());
            let differs = known.cluster.rows_version() != cluster.rows_version()
                || !Arc::ptr_eq(&known.agreed.gone, cluster.gone())
                || !Arc::ptr_eq(&known.agreed.map, &map);
            if differs {
                known.agreed = Arc::new(Agreed::of(cluster, map));
            }
            known.cluster = Arc::clone(cluster);
            known.given_up = given_up;
            known.applied = standing.applied;
            known.voters.clone_from(&standing.voters);
            changed
        });
    }
}

/// What a member does in the cluster.
fn role(member: &Member, standing: &Standing) -> String {
    let raft_id = member.registration.raft_id;
    let role = if standing.leader == Some(raft_id) {
        "leader"
    } else if standing.voters.contains(&raft_id) {
        "voter"
    } else {
        "learner"
    };
    let drains = if member.drains { ", drains" } else { "" };
    let off_bus = if member.off_bus { ", off the bus" } else { "" };
    format!("{role}{drains}{off_bus}")
}

fn set(shown: &watch::Sender<bool>, value: bool) {
    shown.send_if_modified(|shown| std::mem::replace(shown, value) != value);
}

/// Members as people see them.
fn infos(cluster: &Cluster, standing: &Standing, rumours: &Rumours) -> Vec<NodeInfo> {
    let mut shards: BTreeMap<&NodeRef, u32> = BTreeMap::new();
    for row in cluster.rows().iter().flatten() {
        *shards.entry(&row.owner).or_default() += 1;
    }
    let info = |(name, member): (&NodeId, &Member)| {
        let registration = &member.registration;
        let raft_id = registration.raft_id;
        let rumour = rumours.get(&raft_id);
        let own = NodeRef {
            id: name.clone(),
            incarnation: member.incarnation,
        };
        NodeInfo {
            name: name.clone(),
            incarnation: Some(member.incarnation),
            address: registration.address.clone(),
            zone: registration.zone.clone(),
            witness: registration.witness,
            role: role(member, standing),
            gossip: rumour.map_or("unknown", |rumour| rumour.state).into(),
            shards: shards.get(&own).copied().unwrap_or(0),
            version: rumour
                .and_then(|rumour| rumour.news.as_ref())
                .map_or_else(String::new, |news| news.version.clone()),
        }
    };
    cluster.members().iter().map(info).collect()
}
