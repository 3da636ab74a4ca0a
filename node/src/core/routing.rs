//! Where a request goes inside a node.

use proto::id::NodeRef;
use proto::message::{Refusal, Reply, Request};
use proto::shard::{ShardId, ShardMap};

/// What to do with a request.
#[derive(Debug, PartialEq)]
pub enum Route {
    /// It is for a shard of this node.
    Shard(ShardId),
    /// It is answered without a shard.
    Answer(Reply),
    /// It names a shard that does not exist: its sender has no map of this
    /// cluster.
    Drop,
}

/// Decides where a request goes, by the node's map.
pub fn route(map: &ShardMap, me: &NodeRef, request: &Request) -> Route {
    let shard = match request {
        Request::Publish(publish) => publish.place.shard,
        Request::Skip(place) => place.shard,
        Request::Join(join) => join.shard,
        Request::Leave(leave) => leave.shard,
        Request::RestateEnd(end) => end.shard,
        Request::Map { since } => {
            return Route::Answer(Reply::Map {
                update: map.since(*since),
                namespaces: proto::namespace::Namespaces::default(),
            });
        }
        Request::Inspect { .. } => return Route::Drop,
    };
    let Some((owner, fence)) = map.owner(shard) else {
        return Route::Drop;
    };
    if owner == me {
        return Route::Shard(shard);
    }
    let refusal = Refusal::NotOwner {
        owner: owner.clone(),
        fence,
    };
    Route::Answer(match request {
        Request::Publish(publish) => published(shard, publish.place.sequence, refusal),
        Request::Skip(place) => published(shard, place.sequence, refusal),
        Request::Join(join) => Reply::Joined {
            version: join.version,
            result: Err(refusal),
        },
        Request::Leave(leave) => Reply::Left {
            version: leave.version,
            result: Err(refusal),
        },
        Request::RestateEnd(_) => return Route::Drop,
        Request::Map { .. } | Request::Inspect { .. } => unreachable!("answered above"),
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
    use proto::id::{ClusterUuid, Incarnation};
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
    fn the_owner_serves_and_others_say_who_does() {
        let map = ShardMap::standalone(ClusterUuid(1), 0, node("a"));
        assert_eq!(route(&map, &node("a"), &skip(3)), Route::Shard(ShardId(3)));
        let refusal = Refusal::NotOwner {
            owner: node("a"),
            fence: Fence(1),
        };
        assert_eq!(
            route(&map, &node("b"), &skip(3)),
            Route::Answer(published(ShardId(3), 4, refusal))
        );
        assert_eq!(route(&map, &node("a"), &skip(1_024)), Route::Drop);
    }
}
