//! Text frames to clients.

use std::borrow::Cow;
use std::sync::Arc;

use proto::channel::ChannelName;
use proto::position::Position;
use proto::presence::{Change, User, Users};
use proto::publication::Publication;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::protocol::Frame;

#[derive(Serialize)]
struct Envelope<'a, D: Serialize> {
    event: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<&'a str>,
    data: D,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<Place>,
}

/// A position as clients have it: the epoch as text, since JavaScript's numbers
/// are too small.
#[derive(Serialize)]
struct Place {
    epoch: String,
    offset: u64,
}

impl From<Position> for Place {
    fn from(position: Position) -> Self {
        Self {
            epoch: position.epoch.to_string(),
            offset: position.offset.0,
        }
    }
}

/// The JSON text of a publication, the same for every client that has not
/// asked for its position.
pub fn publication(channel: &ChannelName, publication: &Publication) -> String {
    published(channel, publication, None)
}

/// The same with its position, for those that have.
pub fn positioned(channel: &ChannelName, publication: &Publication, position: Position) -> String {
    published(channel, publication, Some(position.into()))
}

fn published(channel: &ChannelName, publication: &Publication, position: Option<Place>) -> String {
    let channel = Some(channel.as_str());
    let Some(change) = publication.change() else {
        return text(&Envelope {
            event: &publication.event,
            channel,
            data: &*publication.data,
            user_id: publication.by().map(|user| &**user),
            position,
        });
    };
    let (event, data) = match change {
        Change::Came { member, .. } => (MEMBER_ADDED, added(&member.user)),
        Change::Went { user, .. } => (MEMBER_REMOVED, removed(user)),
    };
    text(&Envelope {
        event,
        channel,
        data,
        user_id: None,
        position,
    })
}

const SUCCEEDED: &str = "pusher_internal:subscription_succeeded";
const WATCHLIST: &str = "pusher_internal:watchlist_events";
const COUNT: &str = "pusher_internal:subscription_count";
const MEMBER_ADDED: &str = "pusher_internal:member_added";
const MEMBER_REMOVED: &str = "pusher_internal:member_removed";

/// The JSON texts that say who has come and gone.
pub fn members<'a>(
    channel: &'a ChannelName,
    came: &'a [User],
    went: &'a [Arc<str>],
) -> impl Iterator<Item = String> + 'a {
    let frame = |event, data| json(event, Some(channel.as_str()), data);
    let went = went
        .iter()
        .map(move |user| frame(MEMBER_REMOVED, removed(user)));
    let came = came
        .iter()
        .map(move |user| frame(MEMBER_ADDED, added(user)));
    went.chain(came)
}

fn added(user: &User) -> String {
    #[derive(Serialize)]
    struct Added<'a> {
        user_id: &'a str,
        user_info: &'a RawValue,
    }
    text(&Added {
        user_id: &user.id,
        user_info: &info(user),
    })
}

fn removed(user: &str) -> String {
    #[derive(Serialize)]
    struct Removed<'a> {
        user_id: &'a str,
    }
    text(&Removed { user_id: user })
}

/// What is told of a user, as it was signed: it was checked to be JSON.
fn info(user: &User) -> Cow<'static, RawValue> {
    let text = user.info.as_deref().unwrap_or("null");
    RawValue::from_string(text.to_owned()).map_or(Cow::Borrowed(RawValue::NULL), Cow::Owned)
}

/// Who is present, as subscribers are told it.
struct Present<'a>(&'a Users);

impl Serialize for Present<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ids = self.0.iter().map(|user| user.id);
        let ids: Vec<Arc<str>> = ids.collect();
        let mut present = serializer.serialize_struct("presence", 3)?;
        present.serialize_field("count", &ids.len())?;
        present.serialize_field("ids", &ids)?;
        present.serialize_field("hash", &Hash(self.0))?;
        present.end()
    }
}

struct Hash<'a>(&'a Users);

impl Serialize for Hash<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|user| {
            let info = info(&user);
            (user.id, info)
        }))
    }
}

/// Encodes a frame. Strict clients want `data` to be a string everywhere but in
/// errors, pings and pongs.
pub fn encode(frame: &Frame) -> String {
    #[derive(Serialize)]
    struct Established {
        socket_id: String,
        activity_timeout: u64,
    }
    #[derive(Serialize)]
    struct Error<'a> {
        code: Option<u16>,
        message: &'a str,
    }
    #[derive(Serialize)]
    struct Refused<'a> {
        r#type: &'a str,
        error: &'a str,
        status: u16,
    }
    #[derive(Serialize)]
    struct Empty {}
    #[derive(Serialize)]
    struct Succeeded<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        presence: Option<Present<'a>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        position: Option<Place>,
        #[serde(skip_serializing_if = "Option::is_none")]
        recovered: Option<bool>,
    }
    #[derive(Serialize)]
    struct MovedData<'a> {
        channel: &'a str,
        epoch: String,
        offset: u64,
    }
    #[derive(Serialize)]
    struct WatchlistEvent {
        name: &'static str,
        user_ids: Vec<Arc<str>>,
    }
    #[derive(Serialize)]
    struct WatchlistEvents {
        events: Vec<WatchlistEvent>,
    }
    #[derive(Serialize)]
    struct CountData {
        subscription_count: u32,
    }
    #[derive(Serialize)]
    struct SignedInData<'a> {
        user_data: &'a str,
    }
    #[derive(Serialize)]
    struct GapData<'a> {
        channel: &'a str,
        reason: &'a str,
        earliest: u64,
        latest: String,
    }
    match frame {
        Frame::Established {
            connection,
            activity_timeout_secs,
        } => {
            let data = Established {
                socket_id: connection.to_string(),
                activity_timeout: *activity_timeout_secs,
            };
            json("pusher:connection_established", None, text(&data))
        }
        Frame::Error { code, message } => json(
            "pusher:error",
            None,
            Error {
                code: *code,
                message,
            },
        ),
        Frame::Ping => json("pusher:ping", None, Empty {}),
        Frame::Pong => json("pusher:pong", None, Empty {}),
        Frame::Subscribed {
            channel,
            position,
            recovered,
        } => {
            let data = Succeeded {
                presence: None,
                position: position.map(Into::into),
                recovered: *recovered,
            };
            json(SUCCEEDED, Some(channel.as_str()), text(&data))
        }
        Frame::Entered {
            channel,
            position,
            recovered,
            users,
        } => {
            let data = Succeeded {
                presence: Some(Present(users)),
                position: position.map(Into::into),
                recovered: *recovered,
            };
            json(SUCCEEDED, Some(channel.as_str()), text(&data))
        }
        Frame::SignedIn { user_data } => {
            let data = SignedInData { user_data };
            json("pusher:signin_success", None, text(&data))
        }
        Frame::Watched(news) => {
            let event = |name, user_ids: &[Arc<str>]| WatchlistEvent {
                name,
                user_ids: user_ids.to_vec(),
            };
            let events = [
                event("online", &news.online),
                event("offline", &news.offline),
            ];
            let events = events.into_iter().filter(|it| !it.user_ids.is_empty());
            let events = events.collect();
            json(WATCHLIST, None, text(&WatchlistEvents { events }))
        }
        Frame::Count { channel, count } => {
            let data = CountData {
                subscription_count: *count,
            };
            json(COUNT, Some(channel.as_str()), text(&data))
        }
        Frame::CacheMiss { channel } => {
            json("pusher:cache_miss", Some(channel.as_str()), text(&Empty {}))
        }
        Frame::Moved { channel, position } => {
            let data = MovedData {
                channel: channel.as_str(),
                epoch: position.epoch.to_string(),
                offset: position.offset.0,
            };
            json("dunlin:position", None, text(&data))
        }
        Frame::SubscriptionRefused {
            channel,
            kind,
            message,
            status,
        } => {
            let data = Refused {
                r#type: kind,
                error: message,
                status: *status,
            };
            json("pusher:subscription_error", Some(channel), data)
        }
        // No `channel` member: clients hand frames with one to that channel's
        // handlers as if they were publications.
        Frame::Gap { channel, gap } => {
            let data = GapData {
                channel: channel.as_str(),
                reason: gap.reason.as_str(),
                earliest: gap.earliest.0,
                latest: gap.latest.to_string(),
            };
            json("dunlin:gap", None, text(&data))
        }
    }
}

fn json(event: &str, channel: Option<&str>, data: impl Serialize) -> String {
    text(&Envelope {
        event,
        channel,
        data,
        user_id: None,
        position: None,
    })
}

fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("our frames always encode")
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proto::id::ConnectionId;
    use proto::position::{Epoch, Gap, GapReason, Offset};
    use proto::time::UnixTime;

    fn check(frame: &Frame, golden: Expect) {
        golden.assert_eq(&encode(frame));
    }

    #[test]
    fn golden_frames() {
        check(
            &Frame::Established {
                connection: ConnectionId {
                    gateway: 123,
                    number: 456,
                },
                activity_timeout_secs: 120,
            },
            expect![[
                r#"{"event":"pusher:connection_established","data":"{\"socket_id\":\"123.456\",\"activity_timeout\":120}"}"#
            ]],
        );
        check(
            &Frame::Error {
                code: Some(4001),
                message: "no".into(),
            },
            expect![[r#"{"event":"pusher:error","data":{"code":4001,"message":"no"}}"#]],
        );
        check(
            &Frame::Error {
                code: None,
                message: "no".into(),
            },
            expect![[r#"{"event":"pusher:error","data":{"code":null,"message":"no"}}"#]],
        );
        check(
            &Frame::Ping,
            expect![[r#"{"event":"pusher:ping","data":{}}"#]],
        );
        check(
            &Frame::Pong,
            expect![[r#"{"event":"pusher:pong","data":{}}"#]],
        );
        check(
            &Frame::Subscribed {
                channel: "room".parse().unwrap(),
                position: None,
                recovered: None,
            },
            expect![[
                r#"{"event":"pusher_internal:subscription_succeeded","channel":"room","data":"{}"}"#
            ]],
        );
        let position = Position {
            epoch: Epoch(1),
            offset: Offset(9),
        };
        check(
            &Frame::Subscribed {
                channel: "room".parse().unwrap(),
                position: Some(position),
                recovered: Some(true),
            },
            expect![[
                r#"{"event":"pusher_internal:subscription_succeeded","channel":"room","data":"{\"position\":{\"epoch\":\"0000000000000001\",\"offset\":9},\"recovered\":true}"}"#
            ]],
        );
        check(
            &Frame::Moved {
                channel: "room".parse().unwrap(),
                position,
            },
            expect![[
                r#"{"event":"dunlin:position","data":"{\"channel\":\"room\",\"epoch\":\"0000000000000001\",\"offset\":9}"}"#
            ]],
        );
        check(
            &Frame::SubscriptionRefused {
                channel: "private-x".into(),
                kind: "AuthError",
                message: "no".into(),
                status: 401,
            },
            expect![[
                r#"{"event":"pusher:subscription_error","channel":"private-x","data":{"type":"AuthError","error":"no","status":401}}"#
            ]],
        );
        check(
            &Frame::Gap {
                channel: "room".parse().unwrap(),
                gap: Gap {
                    reason: GapReason::Expired,
                    earliest: Offset(3),
                    latest: Position {
                        epoch: Epoch(1),
                        offset: Offset(9),
                    },
                },
            },
            expect![[
                r#"{"event":"dunlin:gap","data":"{\"channel\":\"room\",\"reason\":\"expired\",\"earliest\":3,\"latest\":\"0000000000000001-9\"}"}"#
            ]],
        );
    }

    #[test]
    fn a_publication_keeps_its_data_byte_for_byte() {
        let data = "{\"text\":\"line\\nbreak \u{1F426} \\\" \u{7f}\"}";
        let frame = publication(
            &"room".parse().unwrap(),
            &Publication {
                offset: Offset(1),
                event: "m\"x".into(),
                data: data.into(),
                exclude: None,
                accepted_at: UnixTime(0),
                mark: None,
            },
        );
        let value: serde_json::Value = serde_json::from_str(&frame).unwrap();
        assert_eq!(
            (value["event"].as_str(), value["channel"].as_str()),
            (Some("m\"x"), Some("room"))
        );
        assert_eq!(value["data"].as_str(), Some(data));
    }

    #[test]
    fn a_publication_has_its_position_for_those_that_ask_for_it() {
        let published = Publication {
            offset: Offset(3),
            event: "e".into(),
            data: "d".into(),
            exclude: None,
            accepted_at: UnixTime(0),
            mark: None,
        };
        let position = Position {
            epoch: Epoch(1),
            offset: Offset(3),
        };
        let frame = positioned(&"room".parse().unwrap(), &published, position);
        expect![[
            r#"{"event":"e","channel":"room","data":"d","position":{"epoch":"0000000000000001","offset":3}}"#
        ]]
        .assert_eq(&frame);
    }
}
