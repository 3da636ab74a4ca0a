//! What those who look inside are told about the cluster. The answers about
//! single things are given by the things themselves.

use std::collections::VecDeque;

use proto::id::ID_BYTES_MAX;
use proto::inspection::{Answer, EventInfo, NodeInfo, StandbyInfo};
use proto::shard::ShardId;

use super::cluster::Cluster;
use super::placement::Targets;

/// Bytes of an answer: less than a message may have, by the room for the rest
/// of it.
const ANSWER_BYTES_MAX: usize = proto::codec::PAYLOAD_BYTES_MAX - 4_096;
/// Upper bound of what stands beside the texts of one member, or shard.
const REST_BYTES: usize = 64;
/// Upper bound of an event.
const EVENT_BYTES: usize = REST_BYTES + 2 * (ID_BYTES_MAX + 16);

/// The members that fit into one message, in their order. A cluster for which
/// that is not all of them would have thousands of nodes.
pub fn nodes(members: &[NodeInfo]) -> Answer {
    let mut room = ANSWER_BYTES_MAX;
    let fits = |member: &&NodeInfo| {
        let texts = [
            member.name.as_str(),
            &member.address,
            &member.zone,
            &member.role,
            &member.gossip,
            &member.version,
        ];
        let bytes = REST_BYTES + texts.iter().map(|text| text.len()).sum::<usize>();
        room.checked_sub(bytes).is_some_and(|rest| {
            room = rest;
            true
        })
    };
    Answer::Nodes(members.iter().take_while(fits).cloned().collect())
}

/// Who stands by for the shards, as far as that fits into one message.
pub fn standbys(cluster: &Cluster, targets: &Targets) -> Answer {
    let mut room = ANSWER_BYTES_MAX;
    let rows = cluster.rows().iter().zip((0..).map(ShardId));
    let infos = rows.filter_map(|(row, shard)| {
        let row = row.as_ref()?;
        let target = targets.get(&shard).and_then(|target| target.owner.as_ref());
        Some(StandbyInfo {
            shard,
            fence: row.fence,
            in_sync: row.in_sync().map(|node| node.id.clone()).collect(),
            moves_to: target.map(|node| node.id.clone()),
        })
    });
    let fits = |info: &StandbyInfo| {
        let names = info.in_sync.iter().chain(&info.moves_to);
        let bytes = REST_BYTES + names.map(|name| name.as_str().len() + 4).sum::<usize>();
        room.checked_sub(bytes).is_some_and(|rest| {
            room = rest;
            true
        })
    };
    Answer::Standbys(infos.take_while(fits).collect())
}

/// What has happened, the last first, as far as that fits into one message.
pub fn events(events: &VecDeque<EventInfo>) -> Answer {
    let last = events.iter().rev().take(ANSWER_BYTES_MAX / EVENT_BYTES);
    Answer::Events(last.cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cluster::tests::{founding, node, registration};
    use crate::core::cluster::{Assignment, Command, How, Replica, ReplicaSet, Standby};
    use proto::codec::{self, PAYLOAD_BYTES_MAX};
    use proto::id::{ID_BYTES_MAX, Incarnation, NodeRef};
    use proto::inspection::EventKind;
    use proto::message::{Message, Replies, Reply};
    use proto::shard::Fence;
    use proto::time::UnixTime;

    fn member(text: usize) -> NodeInfo {
        let text = "x".repeat(text);
        NodeInfo {
            name: "n".repeat(ID_BYTES_MAX).parse().unwrap(),
            incarnation: Some(Incarnation(u64::MAX)),
            address: text.clone(),
            zone: text.clone(),
            witness: true,
            role: text.clone(),
            gossip: text.clone(),
            shards: u32::MAX,
            version: text,
        }
    }

    fn bytes(answer: Answer) -> usize {
        let id = u64::MAX;
        let message = Message::Replies(Replies {
            from: longest(),
            to: Incarnation(u64::MAX),
            map_version: u64::MAX,
            replies: vec![Reply::Inspected { id, answer }],
        });
        codec::encode(&message).len()
    }

    fn longest() -> NodeRef {
        NodeRef {
            id: "n".repeat(ID_BYTES_MAX).parse().unwrap(),
            incarnation: Incarnation(u64::MAX),
        }
    }

    #[test]
    fn an_answer_holds_as_many_events_as_fit_a_message() {
        let event = EventInfo {
            at: UnixTime(u64::MAX),
            version: u64::MAX,
            kind: EventKind::FailedOver,
            from: Some(longest()),
            to: Some(longest()),
            shards: u32::MAX,
        };
        let many = VecDeque::from(vec![event; 100_000]);
        let answer = events(&many);
        let Answer::Events(told) = &answer else {
            panic!("events")
        };
        assert!(
            told.len() > 1_024,
            "as many as are remembered: {}",
            told.len()
        );
        assert!(bytes(answer) <= PAYLOAD_BYTES_MAX);
    }

    #[test]
    fn an_answer_holds_as_many_shards_as_fit_a_message() {
        let count = u16::MAX;
        let mut cluster = Cluster::default();
        cluster.apply(1, Command::Found(founding(count, 1)));
        let owner = "o".repeat(ID_BYTES_MAX);
        let others = ["p", "q"].map(|name| name.repeat(ID_BYTES_MAX));
        for (index, name) in (2..).zip([&owner, &others[0], &others[1]]) {
            cluster.apply(index, Command::Register(registration(name, 1)));
        }
        let shards = || (0..count).map(ShardId);
        let assign = shards().map(|shard| Assignment {
            shard,
            owner: node(&owner, 2),
            under: None,
            version: None,
            how: How::Afresh,
        });
        cluster.apply(5, Command::Assign(assign.collect()));
        let standby = |(name, life): (&String, u64)| Standby {
            node: node(name, life),
            state: Replica::InSync,
        };
        let sets = shards().map(|shard| ReplicaSet {
            shard,
            owner: node(&owner, 2),
            fence: Fence(5),
            version: 5,
            standbys: others.iter().zip(3..).map(standby).collect(),
        });
        cluster.apply(6, Command::Replicas(sets.collect()));
        let answer = standbys(&cluster, &Targets::new());
        let Answer::Standbys(told) = &answer else {
            panic!("standbys")
        };
        assert!(told.len() > 1_024 && told.len() < usize::from(count));
        assert_eq!(told[7].in_sync.len(), 2);
        assert!(bytes(answer) <= PAYLOAD_BYTES_MAX);
    }

    #[test]
    fn an_answer_holds_as_many_members_as_fit_a_message() {
        for (text, count) in [(0, 10_000), (300, 1_000), (70_000, 3)] {
            let members = vec![member(text); count];
            let answer = nodes(&members);
            let Answer::Nodes(told) = &answer else {
                panic!("members")
            };
            assert!(!told.is_empty() && told.len() < members.len());
            assert!(bytes(answer) <= PAYLOAD_BYTES_MAX);
        }
        let few = vec![member(30); 50];
        assert_eq!(nodes(&few), Answer::Nodes(few));
    }
}
