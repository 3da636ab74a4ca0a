//! What every bus must do, as one suite for all of them. Each rule names the
//! sentence of [`Bus`](super::Bus) that it holds the bus to; a broken rule
//! panics.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;

use super::{BusHandle, Error, Subscription};
use crate::codec::PAYLOAD_BYTES_MAX;
use crate::subject::{Address, Subject};

/// Longest wait for what must come: far more than it takes, as a machine may be
/// busy.
const PATIENCE: Duration = Duration::from_secs(20);
/// Time until a message that a bus may drop is published again.
const PACE: Duration = Duration::from_millis(100);
/// Messages of the order test.
const MANY: u32 = 10_000;

/// Runs all rules, each on a bus of its own. `connect` gives a bus that can be
/// reached and on which no earlier rule has left anything.
pub async fn check<F, B>(connect: F)
where
    F: Fn() -> B,
    B: Future<Output = BusHandle>,
{
    a_message_reaches_every_subscriber_of_its_subject_and_no_other(&connect().await).await;
    the_order_of_one_publisher_is_kept(&connect().await).await;
    a_message_to_nobody_is_no_error(&connect().await);
    a_payload_over_the_limit_is_refused(&connect().await).await;
    a_dropped_subscription_is_forgotten(&connect().await).await;
    a_slow_subscriber_loses_the_newest_and_is_counted(&connect().await).await;
}

fn subject(name: &str) -> Subject {
    Subject {
        cluster: "conformance".parse().expect("a valid name"),
        address: Address::Node(name.parse().expect("a valid name")),
    }
}

async fn next(subscription: &mut Subscription) -> Bytes {
    tokio::time::timeout(PATIENCE, subscription.next())
        .await
        .expect("the message comes in time")
        .expect("the bus is open")
}

async fn a_message_reaches_every_subscriber_of_its_subject_and_no_other(bus: &BusHandle) {
    let mut first = bus.subscribe(subject("a")).await.expect("subscribed");
    let mut second = bus.subscribe(subject("a")).await.expect("subscribed");
    let mut other = bus.subscribe(subject("b")).await.expect("subscribed");
    bus.publish(&subject("a"), Bytes::from_static(b"for a"))
        .expect("published");
    bus.publish(&subject("b"), Bytes::from_static(b"for b"))
        .expect("published");
    assert_eq!(next(&mut first).await, "for a");
    assert_eq!(next(&mut second).await, "for a");
    assert_eq!(next(&mut other).await, "for b");
    assert_eq!(first.try_next(), None);
    assert_eq!(other.try_next(), None);
}

async fn the_order_of_one_publisher_is_kept(bus: &BusHandle) {
    let mut subscription = bus.subscribe(subject("a")).await.expect("subscribed");
    for i in 0..MANY {
        bus.publish(&subject("a"), Bytes::copy_from_slice(&i.to_le_bytes()))
            .expect("published");
    }
    for i in 0..MANY {
        assert_eq!(next(&mut subscription).await, i.to_le_bytes()[..]);
    }
}

fn a_message_to_nobody_is_no_error(bus: &BusHandle) {
    assert_eq!(
        bus.publish(&subject("nobody"), Bytes::from_static(b"x")),
        Ok(())
    );
}

async fn a_payload_over_the_limit_is_refused(bus: &BusHandle) {
    let mut subscription = bus.subscribe(subject("a")).await.expect("subscribed");
    let fits = Bytes::from(vec![7; PAYLOAD_BYTES_MAX]);
    let over = Bytes::from(vec![7; PAYLOAD_BYTES_MAX + 1]);
    assert_eq!(
        bus.publish(&subject("a"), over),
        Err(Error::TooLarge(PAYLOAD_BYTES_MAX + 1))
    );
    bus.publish(&subject("a"), fits.clone()).expect("published");
    assert_eq!(next(&mut subscription).await, fits);
}

async fn a_dropped_subscription_is_forgotten(bus: &BusHandle) {
    let subscription = bus.subscribe(subject("a")).await.expect("subscribed");
    assert_eq!(bus.stats().subscriptions, 1);
    drop(subscription);
    bus.publish(&subject("a"), Bytes::from_static(b"x"))
        .expect("published");
    assert_eq!(bus.stats().subscriptions, 0);
}

/// The flood is paced, and goes on until it shows: a bus may drop at the
/// publisher, too, which is no loss by a slow subscriber.
async fn a_slow_subscriber_loses_the_newest_and_is_counted(bus: &BusHandle) {
    let mut slow = bus.subscribe(subject("a")).await.expect("subscribed");
    let mut quick = bus.subscribe(subject("b")).await.expect("subscribed");
    let filler = Bytes::from(vec![0; PAYLOAD_BYTES_MAX]);
    bus.publish(&subject("a"), Bytes::from_static(b"oldest"))
        .expect("published");
    let flood = async {
        while bus.stats().dropped == 0 {
            for _ in 0..2 {
                bus.publish(&subject("a"), filler.clone())
                    .expect("a full bus is no error");
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, flood)
        .await
        .expect("the queue of a subscription is bounded, and the loss is counted");
    assert_eq!(unharmed(bus, &mut quick).await, "unharmed");
    assert_eq!(next(&mut slow).await, "oldest");
    // What had room comes, in its order, and then what is published from now on.
    let mut kept = 0;
    while let Some(payload) = slow.try_next() {
        assert_eq!(payload.len(), filler.len());
        kept += 1;
    }
    assert!(kept > 0, "only the newest are lost");
    bus.publish(&subject("a"), Bytes::from_static(b"newest"))
        .expect("published");
    while next(&mut slow).await != "newest" {}
}

/// Publishes to another subscriber until one message arrives: while what was
/// published before still waits, the bus may drop this one.
async fn unharmed(bus: &BusHandle, quick: &mut Subscription) -> Bytes {
    let unharmed = async {
        loop {
            bus.publish(&subject("b"), Bytes::from_static(b"unharmed"))
                .expect("published");
            if let Ok(payload) = tokio::time::timeout(PACE, quick.next()).await {
                return payload.expect("the bus is open");
            }
        }
    };
    tokio::time::timeout(PATIENCE, unharmed)
        .await
        .expect("a slow subscriber holds up no other")
}
