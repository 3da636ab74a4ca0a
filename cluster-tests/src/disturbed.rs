//! A bus inside a test that is not what processes believe: it loses messages,
//! counts them, or answers in the name of a node that never got them.
//!
//! A test says in [`Disturb`] what is done to each message; the rest is a
//! [`MemoryBus`].

use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use proto::bus::{Bus, BusHandle, Error, MemoryBus, Stats, Subscription};
use proto::codec;
use proto::id::{Incarnation, NodeRef};
use proto::message::{Joined, Message, Missed, Replies, Reply, Request};
use proto::position::{Epoch, Offset, Position};
use proto::subject::{Address, Subject};

use crate::in_process::NODE;

/// What a test does to what is published.
pub trait Disturb: Debug + Send + Sync + 'static {
    /// Hands a message over to the bus, or does something else with it.
    ///
    /// # Errors
    /// Those of the bus.
    fn publish(&self, bus: &MemoryBus, subject: &Subject, payload: Bytes) -> Result<(), Error>;
}

/// A bus, disturbed.
#[derive(Debug)]
struct Disturbed<D> {
    inner: MemoryBus,
    by: Arc<D>,
}

/// A new bus, disturbed by this.
pub fn disturbed<D: Disturb>(by: &Arc<D>) -> BusHandle {
    Arc::new(Disturbed {
        inner: MemoryBus::default(),
        by: Arc::clone(by),
    })
}

impl<D: Disturb> Bus for Disturbed<D> {
    fn publish(&self, subject: &Subject, payload: Bytes) -> Result<(), Error> {
        self.by.publish(&self.inner, subject, payload)
    }

    fn subscribe(&self, subject: Subject) -> BoxFuture<'_, Result<Subscription, Error>> {
        self.inner.subscribe(subject)
    }

    fn name(&self) -> &'static str {
        "disturbed"
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }
}

/// Keeps those requests from the node to which `lie` has a reply, and sends that
/// in the node's name.
///
/// # Errors
/// Those of the bus.
pub fn answer_instead(
    bus: &MemoryBus,
    subject: &Subject,
    payload: Bytes,
    lie: impl Fn(&Request) -> Option<Reply>,
) -> Result<(), Error> {
    let Ok(Message::Requests(mut requests)) = codec::decode(&payload) else {
        return bus.publish(subject, payload);
    };
    let mut replies = Vec::new();
    requests.requests.retain(|request| {
        let reply = lie(request);
        let is_honest = reply.is_none();
        replies.extend(reply);
        is_honest
    });
    if replies.is_empty() {
        return bus.publish(subject, payload);
    }
    let told = Message::Replies(Replies {
        from: NodeRef {
            id: NODE.parse().expect("a valid name"),
            incarnation: Incarnation(1),
        },
        to: requests.from.incarnation,
        map_version: requests.map_version,
        replies,
    });
    let inbox = Subject {
        cluster: subject.cluster.clone(),
        address: Address::Inbox(requests.from.id.clone()),
    };
    bus.publish(&inbox, codec::encode(&told))?;
    bus.publish(subject, codec::encode(&Message::Requests(requests)))
}

/// What a node says that has done as it was asked, to a join or a leave. The
/// position is made up.
pub fn obedient(request: &Request) -> Option<Reply> {
    match request {
        Request::Join(join) => Some(Reply::Joined {
            version: join.version,
            result: Ok(Joined {
                fence: join.fence,
                position: Position {
                    epoch: Epoch(1),
                    offset: Offset::ZERO,
                },
                missed: Missed::Publications(Vec::new()),
                cached: None,
            }),
        }),
        Request::Leave(leave) => Some(Reply::Left {
            version: leave.version,
            result: Ok(()),
        }),
        _ => None,
    }
}
