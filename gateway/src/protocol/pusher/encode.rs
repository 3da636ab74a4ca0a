//! Text frames to clients.

use proto::channel::ChannelName;
use proto::position::Position;
use proto::publication::Publication;
use serde::Serialize;

use crate::protocol::Frame;

#[derive(Serialize)]
struct Envelope<'a, D: Serialize> {
    event: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<&'a str>,
    data: D,
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
    json(
        &publication.event,
        Some(channel.as_str()),
        &*publication.data,
    )
}

/// The same with its position, for those that have.
pub fn positioned(channel: &ChannelName, publication: &Publication, position: Position) -> String {
    text(&Envelope {
        event: &publication.event,
        channel: Some(channel.as_str()),
        data: &*publication.data,
        position: Some(position.into()),
    })
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
    struct Succeeded {
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
                position: position.map(Into::into),
                recovered: *recovered,
            };
            json(
                "pusher_internal:subscription_succeeded",
                Some(channel.as_str()),
                text(&data),
            )
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
