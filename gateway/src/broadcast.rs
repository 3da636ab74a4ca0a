//! What happens in a channel, on its way to this gateway's connections: encoded
//! at most once for each wire format, whichever worker needs it first, and
//! shared.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use proto::channel::{CACHE_AGE, ChannelKey, ChannelKind};
use proto::position::{Epoch, Gap, Position};
use proto::presence::{Change, User};
use proto::publication::Publication;
use proto::shard::{Fence, ShardId};
use proto::time::Timestamp;

use crate::core::attachment::Kept;
use crate::core::watchlist::News;
use crate::protocol::{Frame, pusher, sse};
use crate::websocket;

/// Something in a channel, and its encodings.
#[derive(Debug)]
pub struct Broadcast {
    /// The channel.
    pub key: ChannelKey,
    /// What happened.
    pub content: Content,
    /// The shard that is told what became of it, and under which fence it came.
    pub origin: Option<(ShardId, Fence)>,
    position: Position,
    keeps: Keeps,
    /// Whether it ends the connections that it comes to.
    pub is_end: bool,
    websocket: OnceLock<Bytes>,
    positioned: OnceLock<Bytes>,
    event_stream: OnceLock<Bytes>,
    body: OnceLock<Bytes>,
    envelope: OnceLock<Bytes>,
}

/// What a cache channel keeps for those who come, from then on.
#[derive(Debug, Clone, Default)]
pub enum Keeps {
    /// What it has kept.
    #[default]
    AsBefore,
    /// This publication, since then.
    Itself(Timestamp),
    /// This one, or none.
    Other(Option<Arc<Broadcast>>),
}

/// What can happen in a channel.
#[derive(Debug)]
pub enum Content {
    /// A publication.
    Publication(Arc<Publication>),
    /// Publications before the next one are gone.
    Gap(Gap),
    /// Users have come and gone, and no publication tells of it.
    Members {
        /// These have come,
        came: Vec<User>,
        /// and these gone.
        went: Vec<Arc<str>>,
    },
    /// So many connections are subscribed, at all gateways.
    Count(u32),
}

impl Broadcast {
    /// A publication of this epoch.
    pub fn publication(key: ChannelKey, epoch: Epoch, publication: Arc<Publication>) -> Self {
        let position = Position {
            epoch,
            offset: publication.offset,
        };
        let is_end = key.channel.kind() == ChannelKind::User && publication.is_end();
        Self {
            is_end,
            ..Self::new(key, position, Content::Publication(publication))
        }
    }

    /// The same, for a shard whose owner is told what became of it.
    #[must_use]
    pub fn from(self, shard: ShardId, fence: Fence) -> Self {
        Self {
            origin: Some((shard, fence)),
            ..self
        }
    }

    /// A gap.
    pub fn gap(key: ChannelKey, gap: Gap) -> Self {
        Self::new(key, gap.latest, Content::Gap(gap))
    }

    /// What a cache channel keeps for those who come.
    pub fn kept(key: ChannelKey, kept: Kept) -> Arc<Self> {
        let broadcast = Self::publication(key, kept.epoch, kept.publication);
        Arc::new(broadcast.keeping(Keeps::Itself(kept.since)))
    }

    /// The same, and the channel keeps this from then on.
    #[must_use]
    pub fn keeping(self, keeps: Keeps) -> Self {
        Self { keeps, ..self }
    }

    /// What the channel keeps from then on.
    pub fn keeps(&self) -> &Keeps {
        &self.keeps
    }

    /// Whether it is kept for those who come, still.
    pub fn is_kept(&self, now: Timestamp) -> bool {
        matches!(self.keeps, Keeps::Itself(since) if now.since(since) < CACHE_AGE)
    }

    /// Users that have come and gone, by where the channel stands.
    pub fn members(
        key: ChannelKey,
        position: Position,
        came: Vec<User>,
        went: Vec<Arc<str>>,
    ) -> Self {
        Self::new(key, position, Content::Members { came, went })
    }

    /// How many connections are subscribed, by where the channel stands.
    pub fn count(key: ChannelKey, position: Position, count: u32) -> Self {
        Self::new(key, position, Content::Count(count))
    }

    /// Whether subscribers are told nothing of it but where the channel stands: it is for
    /// watchers, or a publication that only takes a place, or one of a connection of a user who has
    /// another.
    pub fn is_silent(&self) -> bool {
        self.is_of_watchers() || self.is_quiet()
    }

    fn is_quiet(&self) -> bool {
        match &self.content {
            Content::Publication(publication) => {
                let change = publication.change();
                publication.is_blank() || change.is_some_and(|change| !change.is_of_users())
            }
            Content::Gap(_) | Content::Members { .. } => false,
            // Who is present is told there, and not how many connections that makes.
            Content::Count(_) => matches!(
                self.key.channel.kind(),
                ChannelKind::Presence | ChannelKind::User
            ),
        }
    }

    /// Whether it is for those who watch a user: they are told who comes into its channel
    /// and goes, and nothing else.
    fn is_of_watchers(&self) -> bool {
        // For each recipient of everything: what is rare first.
        self.is_of_members() && self.key.channel.kind() == ChannelKind::User
    }

    /// Whether the user whose channel it is is online now, if that has changed.
    pub fn is_online(&self) -> Option<bool> {
        match &self.content {
            Content::Publication(publication) => match publication.change()? {
                Change::Came { is_first, .. } => is_first.then_some(true),
                Change::Went { is_last, .. } => is_last.then_some(false),
            },
            Content::Members { came, .. } => Some(!came.is_empty()),
            Content::Gap(_) | Content::Count(_) => None,
        }
    }

    /// Whether it is for WebSockets alone: streams carry what is published.
    pub fn is_for_websockets(&self) -> bool {
        self.is_of_members() || matches!(self.content, Content::Count(_))
    }

    fn is_of_members(&self) -> bool {
        match &self.content {
            Content::Publication(publication) => publication.change().is_some(),
            Content::Members { .. } => true,
            Content::Gap(_) | Content::Count(_) => false,
        }
    }

    fn new(key: ChannelKey, position: Position, content: Content) -> Self {
        Self {
            key,
            content,
            origin: None,
            position,
            keeps: Keeps::AsBefore,
            is_end: false,
            websocket: OnceLock::new(),
            positioned: OnceLock::new(),
            event_stream: OnceLock::new(),
            body: OnceLock::new(),
            envelope: OnceLock::new(),
        }
    }

    /// Where the channel stands after it.
    pub fn position(&self) -> Position {
        self.position
    }

    /// As a WebSocket frame of the Pusher protocol.
    pub fn websocket(&self) -> &Bytes {
        self.websocket.get_or_init(|| match &self.content {
            _ if self.is_of_watchers() => {
                let user = self.key.channel.user().unwrap_or_default();
                let is_online = self.is_online().unwrap_or_default();
                let news = Frame::Watched(News::of(user.into(), is_online));
                websocket::text_frame(&pusher::encode(&news))
            }
            Content::Members { came, went } => {
                let texts = pusher::members(&self.key.channel, came, went);
                let frames = texts.flat_map(|text| websocket::text_frame(&text));
                frames.collect()
            }
            _ => websocket::text_frame(&self.json()),
        })
    }

    /// The same for clients that have asked for positions.
    pub fn positioned(&self) -> &Bytes {
        let Content::Publication(publication) = &self.content else {
            // A gap says where it leads to.
            return self.websocket();
        };
        self.positioned.get_or_init(|| {
            let text = pusher::positioned(&self.key.channel, publication, self.position);
            websocket::text_frame(&text)
        })
    }

    /// As a whole block of a stream of this channel alone.
    pub fn event_stream(&self) -> &Bytes {
        self.event_stream.get_or_init(|| {
            let mut block = self.block();
            block.push_str(&sse::tail([&Some(self.position)]));
            block.into()
        })
    }

    /// As a block without its end, for streams of several channels: their `id`
    /// is their own.
    pub fn body(&self) -> &Bytes {
        self.body.get_or_init(|| self.block().into())
    }

    /// The same with the whole message as data, for streams that asked for it:
    /// they cannot tell by the event from which of their channels it came.
    pub fn envelope(&self) -> &Bytes {
        self.envelope.get_or_init(|| match &self.content {
            Content::Publication(_) => sse::body("message", &self.json()).into(),
            Content::Gap(_) | Content::Members { .. } | Content::Count(_) => self.block().into(),
        })
    }

    fn json(&self) -> String {
        let channel = &self.key.channel;
        match &self.content {
            Content::Publication(publication) => pusher::publication(channel, publication),
            Content::Gap(gap) => pusher::encode(&Frame::Gap {
                channel: channel.clone(),
                gap: *gap,
            }),
            Content::Members { .. } => String::new(),
            Content::Count(count) => pusher::encode(&Frame::Count {
                channel: channel.clone(),
                count: *count,
            }),
        }
    }

    fn block(&self) -> String {
        match &self.content {
            Content::Publication(publication) => sse::body(&publication.event, &publication.data),
            Content::Gap(gap) => sse::gap(self.key.channel.as_str(), gap),
            Content::Members { .. } | Content::Count(_) => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::position::Offset;
    use proto::time::UnixTime;

    #[test]
    fn one_publication_in_every_format() {
        let publication = Publication {
            offset: Offset(3),
            event: "news".into(),
            data: "a\nb".into(),
            exclude: None,
            accepted_at: UnixTime(0),
            mark: None,
        };
        let key = ChannelKey {
            app: "a".parse().unwrap(),
            channel: "room".parse().unwrap(),
        };
        let broadcast = Broadcast::publication(key, Epoch(1), Arc::new(publication));
        let json = r#"{"event":"news","channel":"room","data":"a\nb"}"#;
        assert_eq!(broadcast.websocket()[2..], *json.as_bytes());
        assert_eq!(
            broadcast.event_stream(),
            "event: news\ndata: a\ndata: b\nid: 0000000000000001-3\n\n"
        );
        assert_eq!(broadcast.body(), "event: news\ndata: a\ndata: b\n");
        assert_eq!(broadcast.envelope(), &format!("data: {json}\n"));
    }
}
