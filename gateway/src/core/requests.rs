//! The requests of one round, cut into messages that the bus takes.

use proto::codec::PAYLOAD_BYTES_MAX;
use proto::message::{Request, What};
use proto::presence::User;

/// Bytes of requests in one message, as estimated; the rest goes into the next.
const BATCH_BYTES_MAX: usize = PAYLOAD_BYTES_MAX - 64 * 1_024;
/// What a request has besides a publication's texts: names at their longest,
/// numbers, and what MessagePack puts around them.
const REST_BYTES: usize = 512;
/// What the number of a shard takes at most.
const SHARD_BYTES: usize = 3;
/// What a span of a link takes at most.
const SPAN_BYTES: usize = 20;

/// Cuts requests for one node into batches, in order. None is empty.
pub fn batches(requests: impl IntoIterator<Item = Request>) -> Vec<Vec<Request>> {
    let mut batches: Vec<Vec<Request>> = Vec::new();
    let mut room = 0;
    for request in requests {
        let bytes = estimate(&request);
        // Who does not understand a message takes nothing of it.
        let is_alone = matches!(request, Request::Greet(_));
        match batches.last_mut() {
            Some(batch) if bytes <= room && !is_alone => batch.push(request),
            _ => {
                batches.push(vec![request]);
                room = BATCH_BYTES_MAX;
            }
        }
        room = if is_alone {
            0
        } else {
            room.saturating_sub(bytes)
        };
    }
    batches
}

/// Upper bound of a request's encoded bytes.
fn estimate(request: &Request) -> usize {
    match request {
        Request::Publish(publish) => publish.data.len() + publish.event.len() + REST_BYTES,
        Request::Enter(enter) => {
            let User { id, info } = &enter.member.user;
            id.len() + info.as_ref().map_or(0, |info| info.len()) + REST_BYTES
        }
        Request::Query(query) => match &query.what {
            What::Roster { after, .. } => after.as_ref().map_or(0, |user| user.len()) + REST_BYTES,
            What::Channel { .. } | What::Cached { .. } | What::Channels { .. } => REST_BYTES,
        },
        Request::Greet(greet) => greet.except.len() * SHARD_BYTES + REST_BYTES,
        Request::Repair(repair) => repair.spans.len() * SPAN_BYTES + REST_BYTES,
        _ => REST_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::PAYLOAD_BYTES_LIMIT;
    use proptest::prelude::*;
    use proto::channel::{CHANNEL_BYTES_MAX, ChannelKey};
    use proto::codec;
    use proto::id::{ConnectionId, GatewayRef, ID_BYTES_MAX, Incarnation};
    use proto::message::{Digest, Idempotency, Message, Publish, Requests, Sequenced};
    use proto::publication::EVENT_BYTES_MAX;
    use proto::shard::{Fence, ShardId};
    use proto::time::UnixTime;

    /// A publish with everything at its largest.
    fn publish(sequence: u64, data: usize) -> Request {
        let place = Sequenced {
            shard: ShardId(u16::MAX),
            fence: Fence(u64::MAX),
            sequence,
            low_mark: u64::MAX,
        };
        Request::Publish(Publish {
            place,
            key: ChannelKey {
                app: "a".repeat(ID_BYTES_MAX).parse().unwrap(),
                channel: "c".repeat(CHANNEL_BYTES_MAX).parse().unwrap(),
            },
            event: "e".repeat(EVENT_BYTES_MAX).into(),
            data: "d".repeat(data).into(),
            exclude: Some(ConnectionId {
                gateway: u64::MAX,
                number: u64::MAX,
            }),
            accepted_at: UnixTime(u64::MAX),
            idempotency: Some(Idempotency {
                key: Digest(u128::MAX),
                body: Digest(u128::MAX),
            }),
            by: None,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_batch_fits_and_order_is_kept(sizes in prop::collection::vec(0..=PAYLOAD_BYTES_LIMIT, 0..20)) {
            let requests: Vec<Request> = (u64::MAX - 20..).zip(&sizes).map(|(n, size)| publish(n, *size)).collect();
            let batches = batches(requests.clone());
            for batch in &batches {
                prop_assert!(!batch.is_empty());
                let message = Message::Requests(Requests {
                    from: GatewayRef { id: "g".repeat(ID_BYTES_MAX).parse().unwrap(), incarnation: Incarnation(u64::MAX) },
                    map_version: u64::MAX,
                    requests: batch.clone(),
                });
                prop_assert!(codec::encode(&message).len() <= PAYLOAD_BYTES_MAX);
            }
            prop_assert_eq!(batches.concat(), requests);
        }
    }
}
