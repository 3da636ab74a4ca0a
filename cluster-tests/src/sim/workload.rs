//! What clients and publishers do: subscribers that come, change their minds,
//! leave and come back elsewhere, and publishers that number what they publish.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use gateway::core::uplink;
use proto::channel::ChannelKey;
use proto::message::{Digest, Idempotency};
use proto::namespace::{HistoryLimits, Namespace, Namespaces, Standby};
use proto::position::Position;
use proto::publication::Publication;
use proto::time::UnixTime;

use super::random::Random;
use super::trace::{Channel, Connection, Order, User};

/// Channels of the world: most keep much, some little, some nothing.
pub const CHANNELS: Channel = 12;
/// The first of those that keep little.
const BRIEF: Channel = 8;
/// The first of those that keep nothing.
const BARE: Channel = 10;
/// Those that are not replicated: a busy one, and a quiet one.
const ALONE: [Channel; 2] = [3, 7];
/// For how long their past can be had from the next owner: as long as the repair
/// log has it.
const TAKEN_ALONG: Duration = Duration::from_secs(10);
/// Channels behind those in which clients are members, and nothing is published.
pub const ROOMS: Channel = 3;
/// The channels by number.
pub fn channels() -> Vec<ChannelKey> {
    let key = |channel: Channel| {
        let kind = match channel {
            CHANNELS.. => "presence-room",
            BARE.. => "bare",
            BRIEF.. => "brief",
            _ if is_alone(channel) => "alone",
            _ => "room",
        };
        ChannelKey {
            app: "app".parse().expect("a valid id"),
            channel: format!("{kind}-{channel}").parse().expect("a valid name"),
        }
    };
    (0..CHANNELS + ROOMS).map(key).collect()
}

/// Whether a channel is not replicated.
pub fn is_alone(channel: Channel) -> bool {
    ALONE.contains(&channel)
}

/// Which channel this is.
pub fn channel_of(key: &ChannelKey) -> Channel {
    let name = key.channel.as_str();
    let number = name.rsplit('-').next().unwrap_or_default();
    number.parse().expect("our channels end in a number")
}

/// Which publish a publication comes from: its payload says so.
pub fn order_of(publication: &Publication) -> Order {
    let number = publication.data.parse();
    number.expect("our payloads are numbers")
}

/// What a channel keeps: how many publications, and for how long.
pub fn kept(channel: Channel) -> HistoryLimits {
    let (publications, age) = match channel {
        BARE.. => (0, Duration::from_secs(60)),
        BRIEF.. => (4, Duration::from_secs(3)),
        _ => return HistoryLimits::default(),
    };
    HistoryLimits {
        publications,
        age,
        ..HistoryLimits::default()
    }
}

/// What of a channel's past can be had whoever owns it.
pub fn kept_by_all(channel: Channel) -> HistoryLimits {
    let limits = kept(channel);
    let age = if is_alone(channel) {
        TAKEN_ALONG
    } else {
        limits.age
    };
    HistoryLimits { age, ..limits }
}

/// How often a publisher asks with one key at most.
pub const REPEATS: u8 = 5;

/// Whether a publish has an idempotency key.
pub fn is_keyed(order: Order) -> bool {
    order.is_multiple_of(3)
}

/// What channels keep.
pub fn namespaces() -> Namespaces {
    let namespace = |pattern: &str, channel| Namespace {
        slow: Default::default(),
        pattern: pattern.into(),
        app: None,
        history: kept(channel),
        standby: if is_alone(channel) {
            Standby::None
        } else {
            Standby::Prefer
        },
    };
    Namespaces::new(vec![
        namespace("brief-*", BRIEF),
        namespace("bare-*", BARE),
        namespace("alone-*", ALONE[0]),
    ])
}

/// What a gateway is asked to publish.
pub fn publish(
    key: &ChannelKey,
    order: Order,
    event: &Arc<str>,
    accepted_at: UnixTime,
) -> uplink::Order {
    uplink::Order {
        key: key.clone(),
        event: Arc::clone(event),
        data: order.to_string().into(),
        exclude: None,
        accepted_at,
        idempotency: is_keyed(order).then(|| {
            let digest = Digest(u128::from(order));
            Idempotency {
                key: digest,
                body: digest,
            }
        }),
        by: None,
    }
}

/// Where a client is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which gateway.
    pub gateway: u8,
    /// Which worker of it.
    pub worker: u8,
    /// The connection.
    pub connection: Connection,
}

/// Which user a client is: each has two.
pub fn user_of(client: usize) -> User {
    (client / 2) as User
}

/// A subscriber.
#[derive(Debug)]
pub struct Client {
    /// Where it is connected, if it is.
    pub place: Option<Place>,
    /// What it wants, connected or not, and where it stood when it was last
    /// connected.
    pub wants: BTreeMap<Channel, Option<Position>>,
    /// Whether it resumes there.
    pub resumes: bool,
    /// The channels of which it is a member, connected or not.
    pub rooms: BTreeSet<Channel>,
}

/// What a client does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// Subscribes.
    Subscribe(Channel),
    /// Unsubscribes.
    Unsubscribe(Channel),
    /// Loses its connection, and comes back after so long.
    Leave(Duration),
    /// Nothing.
    Stay,
}

impl Client {
    /// A client that wants a few channels.
    pub fn new(random: &mut Random) -> Self {
        let count = random.between(1, 6);
        let wants = (0..count).map(|_| (some_channel(random), None)).collect();
        Self {
            place: None,
            wants,
            resumes: random.chance(700),
            rooms: BTreeSet::new(),
        }
    }

    /// Draws what it does next.
    pub fn draw(&self, random: &mut Random) -> Move {
        match random.below(10) {
            0..4 => Move::Subscribe(some_channel(random)),
            4..7 if self.wants.len() > 1 => {
                let nth = random.index(self.wants.len());
                Move::Unsubscribe(*self.wants.keys().nth(nth).expect("there are as many"))
            }
            7 => Move::Leave(Duration::from_millis(random.between(50, 8_000))),
            // A page that is loaded anew.
            8 => Move::Leave(Duration::from_millis(random.between(1, 100))),
            _ => Move::Stay,
        }
    }
}

/// Subscribers leave the last channel of each kind to publishers: it is
/// published to and never followed, so its state comes and goes.
fn some_channel(random: &mut Random) -> Channel {
    loop {
        let channel = random.below(u64::from(CHANNELS)) as Channel;
        if channel != BARE - 1 && channel != CHANNELS - 1 {
            return channel;
        }
    }
}

/// Draws where something is published: some channels are busy, some quiet.
pub fn published_channel(random: &mut Random) -> Channel {
    let most = if random.chance(700) { 4 } else { CHANNELS };
    random.below(u64::from(most)) as Channel
}
