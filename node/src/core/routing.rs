//! Where a request goes inside a node, and what it is told if it has come to
//! the wrong one.

use proto::inspection::Question;
use proto::message::{Refusal, Reply, Request};
use proto::shard::{ShardId, ShardMap, Sharding};

/// Who answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Whoever drives this shard, served here or not.
    Shard(ShardId),
    /// The node as a whole.
    Node,
}

/// Decides where a request goes.
pub fn route(sharding: &Sharding, request: &Request) -> Route {
    Route::Shard(match request {
        Request::Publish(publish) => publish.place.shard,
        Request::Enter(enter) => enter.place.shard,
        Request::Exit(exit) => exit.place.shard,
        Request::Stated(stated) => stated.place.shard,
        Request::Query(query) => query.shard,
        Request::Skip(place) => place.shard,
        Request::Join(join) => join.shard,
        Request::Leave(leave) => leave.shard,
        Request::RestateEnd(end) => end.shard,
        Request::Inspect {
            question: Question::Channel { key },
            ..
        } if sharding.count > 0 => sharding.shard_of(key),
        Request::Inspect {
            question: Question::Shard { shard },
            ..
        } if shard.0 < sharding.count => *shard,
        Request::Inspect { .. } | Request::Map { .. } | Request::Repair(_) | Request::Greet(_) => {
            return Route::Node;
        }
    })
}

/// What to say to a request of a shard that is not served here.
#[derive(Debug, PartialEq)]
pub enum Elsewhere {
    /// This.
    Answer(Reply),
    /// Nothing: the request needs no answer, or nobody here knows one yet.
    Nothing,
    /// Nothing: there is no such shard.
    Unroutable,
}

/// Says who does serve a shard, as far as the map knows.
pub fn elsewhere(map: &ShardMap, shard: ShardId, request: &Request) -> Elsewhere {
    if map.rows.is_empty() {
        return Elsewhere::Nothing;
    }
    let Some((owner, fence)) = map.owner(shard) else {
        return Elsewhere::Unroutable;
    };
    let refusal = Refusal::NotOwner {
        owner: owner.clone(),
        fence,
    };
    Elsewhere::Answer(match request {
        Request::Publish(publish) => published(shard, publish.place.sequence, refusal),
        Request::Skip(place) => published(shard, place.sequence, refusal),
        Request::Enter(enter) => published(shard, enter.place.sequence, refusal),
        Request::Exit(exit) => published(shard, exit.place.sequence, refusal),
        Request::Stated(stated) => published(shard, stated.place.sequence, refusal),
        Request::Query(query) => Reply::Queried {
            id: query.id,
            result: Err(refusal),
        },
        Request::Join(join) => Reply::Joined {
            version: join.version,
            result: Err(refusal),
        },
        Request::Leave(leave) if leave.is_unanswered => return Elsewhere::Nothing,
        Request::Leave(leave) => Reply::Left {
            version: leave.version,
            result: Err(refusal),
        },
        Request::RestateEnd(_)
        | Request::Map { .. }
        | Request::Inspect { .. }
        | Request::Repair(_)
        | Request::Greet(_) => {
            return Elsewhere::Nothing;
        }
    })
}

fn published(shard: ShardId, sequence: u64, refusal: Refusal) -> Reply {
    Reply::Published {
        shard,
        sequence,
        result: Err(refusal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::channel::ChannelKey;
    use proto::id::{ClusterUuid, Incarnation, NodeRef};
    use proto::message::Sequenced;
    use proto::shard::Fence;

    fn node(id: &str) -> NodeRef {
        NodeRef {
            id: id.parse().unwrap(),
            incarnation: Incarnation(1),
        }
    }

    fn skip(shard: u16) -> Request {
        Request::Skip(Sequenced {
            shard: ShardId(shard),
            fence: Fence(1),
            sequence: 4,
            low_mark: 4,
        })
    }

    #[test]
    fn what_is_of_a_shard_goes_to_it_and_the_rest_to_the_node() {
        let sharding = Sharding { seed: 7, count: 64 };
        let key = ChannelKey {
            app: "app".parse().unwrap(),
            channel: "c".parse().unwrap(),
        };
        let of_channel = Request::Inspect {
            id: 1,
            question: Question::Channel { key: key.clone() },
        };
        let of_node = Request::Inspect {
            id: 1,
            question: Question::Nodes,
        };
        for (shard, expected) in [
            (63, Route::Shard(ShardId(63))),
            // There is no such shard, and the node says so.
            (64, Route::Node),
        ] {
            let shard = ShardId(shard);
            let question = Question::Shard { shard };
            let request = Request::Inspect { id: 1, question };
            assert_eq!(route(&sharding, &request), expected);
        }
        assert_eq!(route(&sharding, &skip(3)), Route::Shard(ShardId(3)));
        let shard = sharding.shard_of(&key);
        assert_eq!(route(&sharding, &of_channel), Route::Shard(shard));
        assert_eq!(route(&sharding, &of_node), Route::Node);
        assert_eq!(route(&sharding, &Request::Map { since: 0 }), Route::Node);
        let unknown = Sharding { seed: 0, count: 0 };
        assert_eq!(route(&unknown, &of_channel), Route::Node);
    }

    #[test]
    fn others_say_who_owns_a_shard_if_they_know() {
        let map = ShardMap::standalone(ClusterUuid(1), 0, node("a"));
        let refusal = Refusal::NotOwner {
            owner: node("a"),
            fence: Fence(1),
        };
        let answer = Elsewhere::Answer(published(ShardId(3), 4, refusal));
        assert_eq!(elsewhere(&map, ShardId(3), &skip(3)), answer);
        let outside = ShardId(1_024);
        assert_eq!(
            elsewhere(&map, outside, &skip(1_024)),
            Elsewhere::Unroutable
        );
        let none = ShardMap::unassigned(ClusterUuid(1), map.sharding);
        assert_eq!(elsewhere(&none, ShardId(3), &skip(3)), Elsewhere::Nothing);
    }
}
