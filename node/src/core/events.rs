//! What has happened in the cluster, for people: the difference between two
//! states that were agreed one after the other.

use std::collections::{BTreeMap, VecDeque};

use proto::id::NodeRef;
use proto::inspection::{EventInfo, EventKind};
use proto::time::UnixTime;

use super::cluster::{Cluster, Row};

/// Events that are remembered; the oldest are forgotten first.
const EVENTS_MAX: usize = 1_024;

/// Adds what has happened between two states.
pub fn record(events: &mut VecDeque<EventInfo>, at: UnixTime, before: &Cluster, after: &Cluster) {
    let version = after.rows_version();
    events.extend(between(before, after).map(|happened| {
        let Happened {
            kind,
            from,
            to,
            shards,
        } = happened;
        EventInfo {
            at,
            version,
            kind,
            from,
            to,
            shards,
        }
    }));
    let surplus = events.len().saturating_sub(EVENTS_MAX);
    events.drain(..surplus);
}

#[derive(Debug, PartialEq, Eq)]
struct Happened {
    kind: EventKind,
    from: Option<NodeRef>,
    to: Option<NodeRef>,
    shards: u32,
}

fn between(before: &Cluster, after: &Cluster) -> impl Iterator<Item = Happened> {
    members(before, after).chain(shards(before, after))
}

fn members(before: &Cluster, after: &Cluster) -> impl Iterator<Item = Happened> {
    let happened = |kind, from, to| Happened {
        kind,
        from,
        to,
        shards: 0,
    };
    let present = |cluster: &Cluster| -> BTreeMap<NodeRef, (bool, bool)> {
        let members = cluster.members().iter();
        members
            .map(|(name, member)| {
                let node = NodeRef {
                    id: name.clone(),
                    incarnation: member.incarnation,
                };
                (node, (member.drains, member.off_bus))
            })
            .collect()
    };
    let (had, has) = (present(before), present(after));
    let mut all = Vec::new();
    for (node, (drains, off_bus)) in &has {
        let before = had.get(node);
        if before.is_none() {
            all.push(happened(EventKind::Started, None, Some(node.clone())));
        }
        let (drained, was_off) = before.copied().unwrap_or_default();
        if *drains && !drained {
            all.push(happened(EventKind::Drains, Some(node.clone()), None));
        }
        if *off_bus && !was_off {
            all.push(happened(EventKind::OffBus, Some(node.clone()), None));
        }
        if !off_bus && was_off {
            all.push(happened(EventKind::OnBus, None, Some(node.clone())));
        }
    }
    for node in had.keys() {
        if !after.members().contains_key(&node.id) {
            all.push(happened(EventKind::Struck, Some(node.clone()), None));
        }
    }
    all.into_iter()
}

/// Shards that have got another owner, those alike together.
fn shards(before: &Cluster, after: &Cluster) -> impl Iterator<Item = Happened> {
    let mut counts: BTreeMap<(EventKind, Option<&NodeRef>, &NodeRef), u32> = BTreeMap::new();
    let had = before.rows().iter().map(Option::as_ref);
    let had = had.chain(std::iter::repeat(None));
    for (had, has) in had.zip(after.rows()) {
        let Some(has) = has.as_ref() else {
            continue;
        };
        if had.is_none_or(|had| had.fence < has.fence) {
            let from = had.map(|had| &had.owner);
            let kind = kind(after, had, has);
            *counts.entry((kind, from, &has.owner)).or_default() += 1;
        }
    }
    let happened = |((kind, from, to), shards): ((_, Option<&NodeRef>, &NodeRef), u32)| Happened {
        kind,
        from: from.cloned(),
        to: Some(to.clone()),
        shards,
    };
    let all: Vec<Happened> = counts.into_iter().map(happened).collect();
    all.into_iter()
}

fn kind(after: &Cluster, had: Option<&Row>, has: &Row) -> EventKind {
    let Some(had) = had else {
        return EventKind::Assigned;
    };
    // Only who moves as planned begins with a standby.
    let began_with_one = has.version == has.fence.0 && !has.standbys.is_empty();
    let is_planned = began_with_one || after.gives_away(&had.owner);
    match has.promoted {
        false => EventKind::BeganAnew,
        true if had.owner.id == has.owner.id => EventKind::CameBack,
        true if is_planned => EventKind::Moved,
        true => EventKind::FailedOver,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::checkpoint::Claims;
    use crate::core::cluster::tests::{founding, node, registration};
    use crate::core::cluster::{
        Assignment, Command, How, Registration, Replica, ReplicaSet, Standby,
    };
    use proto::shard::{Fence, ShardId};

    fn assign(shard: u16, to: NodeRef, under: Option<u64>, how: How) -> Command {
        Command::Assign(vec![Assignment {
            shard: ShardId(shard),
            owner: to,
            under: under.map(Fence),
            version: None,
            how,
        }])
    }

    fn standbys(shard: u16, owner: NodeRef, fence: u64, nodes: &[NodeRef]) -> Command {
        let standby = |node: &NodeRef| Standby {
            node: node.clone(),
            state: Replica::InSync,
        };
        Command::Replicas(vec![ReplicaSet {
            shard: ShardId(shard),
            owner,
            fence: Fence(fence),
            version: fence,
            standbys: nodes.iter().map(standby).collect(),
        }])
    }

    fn register(name: &str, start: u64, kept: Claims) -> Command {
        Command::Register(Registration {
            kept,
            ..registration(name, start)
        })
    }

    /// What each entry makes people see, from the first index on.
    fn seen(cluster: &mut Cluster, first: u64, commands: Vec<Command>) -> Vec<String> {
        let mut seen = Vec::new();
        for (index, command) in (first..).zip(commands) {
            let before = cluster.clone();
            cluster.apply(index, command);
            let name = |node: &Option<NodeRef>| {
                node.as_ref().map_or("-".to_owned(), |node| {
                    format!("{}@{}", node.id, node.incarnation.0)
                })
            };
            seen.extend(between(&before, cluster).map(|happened| {
                let Happened {
                    kind,
                    from,
                    to,
                    shards,
                } = happened;
                format!(
                    "{index} {} {} {} {shards}",
                    kind.as_str(),
                    name(&from),
                    name(&to)
                )
            }));
        }
        seen
    }

    #[test]
    fn everything_that_happens_to_nodes_and_shards_is_seen() {
        let mut cluster = Cluster::default();
        let (a, b, c) = (node("a", 2), node("b", 3), node("c", 4));
        let founded = vec![
            Command::Found(founding(3, 1)),
            register("a", 1, Claims::new()),
            register("b", 1, Claims::new()),
            register("c", 1, Claims::new()),
            assign(0, a.clone(), None, How::Afresh),
            standbys(0, a.clone(), 5, &[b.clone(), c.clone()]),
        ];
        assert_eq!(
            seen(&mut cluster, 1, founded),
            [
                "2 started - a@2 0",
                "3 started - b@3 0",
                "4 started - c@4 0",
                "5 assigned - a@2 1"
            ]
        );
        let keep = Some(c.clone());
        let later = vec![
            assign(0, b.clone(), Some(5), How::Promote { keep }),
            Command::Drain(b),
            assign(0, c.clone(), Some(10), How::Promote { keep: None }),
            standbys(0, c.clone(), 12, std::slice::from_ref(&a)),
            assign(0, a, Some(12), How::Promote { keep: None }),
            register("a", 2, vec![(Fence(14), vec![ShardId(0)])]),
            assign(0, c, Some(15), How::Afresh),
            Command::Forget(registration("a", 1).raft_id),
        ];
        assert_eq!(
            seen(&mut cluster, 10, later),
            [
                "10 moved a@2 b@3 1",
                "11 drains b@3 - 0",
                "12 moved b@3 c@4 1",
                "14 failed_over c@4 a@2 1",
                "15 started - a@15 0",
                "15 came_back a@2 a@15 1",
                "16 began_anew a@15 c@4 1",
                "17 struck a@15 - 0"
            ]
        );
    }

    #[test]
    fn the_oldest_are_forgotten_first() {
        let mut events = VecDeque::new();
        let mut cluster = Cluster::default();
        cluster.apply(1, Command::Found(founding(1, 1)));
        for start in 0..2_000 {
            let before = cluster.clone();
            cluster.apply(start + 2, register("a", start, Claims::new()));
            record(&mut events, UnixTime(start), &before, &cluster);
        }
        assert_eq!(events.len(), EVENTS_MAX);
        assert_eq!(events.back().map(|event| event.at), Some(UnixTime(1_999)));
    }
}
