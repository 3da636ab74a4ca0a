//! Text frames of clients.

use proto::position::{Epoch, InvalidEpoch, Offset, Position};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::core::client_event::{self, ClientEvent};
use crate::protocol::{Command, Recover};

/// A frame that is not of the protocol; the message is for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(String);

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(default)]
    event: Option<String>,
    /// Only events of clients have one that counts.
    #[serde(default, borrow)]
    channel: Option<&'a RawValue>,
    #[serde(default, borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Subscribe {
    channel: String,
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    channel_data: Option<String>,
    #[serde(default)]
    recover: Option<Wanted>,
}

#[derive(Deserialize)]
struct SignIn {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    user_data: String,
}

/// What `recover` may be.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "recover is true, or {epoch, offset} as the server gave them"
)]
enum Wanted {
    OptIn(bool),
    From { epoch: Epoch16, offset: u64 },
}

/// An epoch as clients have it: 16 hex digits, since JavaScript's numbers are
/// too small.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Epoch16(Epoch);

impl TryFrom<String> for Epoch16 {
    type Error = InvalidEpoch;

    fn try_from(text: String) -> Result<Self, InvalidEpoch> {
        text.parse().map(Self)
    }
}

impl From<Wanted> for Recover {
    fn from(wanted: Wanted) -> Self {
        match wanted {
            Wanted::OptIn(false) => Self::No,
            Wanted::OptIn(true) => Self::OptIn,
            Wanted::From { epoch, offset } => Self::From(Position {
                epoch: epoch.0,
                offset: Offset(offset),
            }),
        }
    }
}

#[derive(Deserialize)]
struct Unsubscribe {
    channel: String,
}

/// Decodes a text frame. Any text may come.
pub fn decode(text: &str) -> Result<Command, Malformed> {
    // serde would also take an array for an object.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(Malformed("the frame is not a JSON object".into()));
    }
    let envelope: Envelope<'_> = serde_json::from_str(text).map_err(|error| {
        Malformed(format!(
            "the frame is not a JSON object with an event: {error}"
        ))
    })?;
    let event = envelope
        .event
        .ok_or_else(|| Malformed("the frame has no event".into()))?;
    match event.as_str() {
        "pusher:subscribe" => {
            let Subscribe {
                channel,
                auth,
                channel_data,
                recover,
            } = data(&event, envelope.data)?;
            let auth = auth.filter(|auth| !auth.is_empty());
            Ok(Command::Subscribe {
                channel,
                auth,
                channel_data,
                recover: recover.map(Into::into).unwrap_or_default(),
            })
        }
        "pusher:unsubscribe" => {
            let Unsubscribe { channel } = data(&event, envelope.data)?;
            Ok(Command::Unsubscribe { channel })
        }
        "pusher:signin" => {
            let SignIn { auth, user_data } = data(&event, envelope.data)?;
            Ok(Command::SignIn { auth, user_data })
        }
        "pusher:ping" => Ok(Command::Ping),
        "pusher:pong" => Ok(Command::Pong),
        _ if event.starts_with(client_event::PREFIX) => {
            let text = |raw: &RawValue| serde_json::from_str::<String>(raw.get());
            let channel = envelope.channel.and_then(|raw| text(raw).ok());
            let channel = channel.ok_or_else(|| {
                let shown: String = event.chars().take(50).collect();
                Malformed(format!("{shown} has no channel"))
            })?;
            // JSON goes on as text; RawValue has checked it.
            let data = match envelope.data {
                Some(raw) => text(raw).unwrap_or_else(|_| raw.get().to_owned()),
                None => "null".into(),
            };
            Ok(Command::Publish(ClientEvent {
                event: event.into(),
                channel,
                data: data.into(),
            }))
        }
        _ => Ok(Command::Unsupported { event }),
    }
}

/// The data of an event: an object, or, from old clients, an object inside a
/// string.
fn data<T: DeserializeOwned>(event: &str, raw: Option<&RawValue>) -> Result<T, Malformed> {
    let malformed = |error: serde_json::Error| {
        Malformed(format!("the data of {event} is not understood: {error}"))
    };
    let raw = raw
        .ok_or_else(|| Malformed(format!("{event} has no data")))?
        .get();
    if raw.starts_with('"') {
        let inner: String = serde_json::from_str(raw).map_err(malformed)?;
        return serde_json::from_str(&inner).map_err(malformed);
    }
    serde_json::from_str(raw).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn subscribe(channel: &str, auth: Option<&str>) -> Command {
        Command::Subscribe {
            channel: channel.into(),
            auth: auth.map(Into::into),
            channel_data: None,
            recover: Recover::No,
        }
    }

    fn recover(text: &str) -> Result<Recover, String> {
        let frame =
            format!(r#"{{"event":"pusher:subscribe","data":{{"channel":"a","recover":{text}}}}}"#);
        match decode(&frame) {
            Ok(Command::Subscribe { recover, .. }) => Ok(recover),
            Ok(other) => panic!("{other:?}"),
            Err(malformed) => Err(malformed.to_string()),
        }
    }

    #[test]
    fn a_client_may_opt_in_to_resume_or_resume() {
        assert_eq!(recover("true"), Ok(Recover::OptIn));
        assert_eq!(recover("false"), Ok(Recover::No));
        assert_eq!(recover("null"), Ok(Recover::No));
        let from = Position {
            epoch: Epoch(0xab),
            offset: Offset(7),
        };
        let text = r#"{"epoch":"00000000000000ab","offset":7}"#;
        assert_eq!(recover(text), Ok(Recover::From(from)));
        for wrong in [
            "7",
            "{}",
            r#"{"epoch":"ab","offset":7}"#,
            r#"{"epoch":171,"offset":7}"#,
            r#"{"epoch":"00000000000000ab","offset":-1}"#,
        ] {
            let error = recover(wrong).unwrap_err();
            assert!(error.contains("recover is true, or"), "{wrong}: {error}");
        }
    }

    #[test]
    fn data_may_be_an_object_or_a_string_of_one() {
        let object = r#"{"event":"pusher:subscribe","data":{"auth":"","channel":"a"}}"#;
        let string =
            r#"{"event":"pusher:subscribe","data":"{\"auth\":\"k:s\",\"channel\":\"a\"}"}"#;
        assert_eq!(decode(object), Ok(subscribe("a", None)));
        assert_eq!(decode(string), Ok(subscribe("a", Some("k:s"))));
    }

    #[test]
    fn pings_need_no_data() {
        assert_eq!(decode(r#"{"event":"pusher:ping"}"#), Ok(Command::Ping));
        assert_eq!(
            decode(r#"{"event":"pusher:pong","data":{}}"#),
            Ok(Command::Pong)
        );
    }

    #[test]
    fn what_is_not_of_the_protocol_is_refused_with_a_reason() {
        let refused = |text: &str| decode(text).unwrap_err().to_string();
        assert!(refused("").contains("not a JSON object"));
        assert!(refused("[]").contains("not a JSON object"));
        assert!(refused("{}").contains("no event"));
        assert!(refused(r#"{"event":"pusher:subscribe"}"#).contains("no data"));
        assert!(refused(r#"{"event":"pusher:subscribe","data":7}"#).contains("not understood"));
        assert!(refused(r#"{"event":"pusher:subscribe","data":{}}"#).contains("channel"));
    }

    #[test]
    fn unknown_events_keep_their_name() {
        let event = "typing".to_owned();
        assert_eq!(
            decode(r#"{"event":"typing","channel":"a","data":{}}"#),
            Ok(Command::Unsupported { event })
        );
    }

    #[test]
    fn data_of_a_client_is_text_or_json() {
        let published = |rest: &str| {
            let frame = format!(r#"{{"event":"client-x"{rest}}}"#);
            match decode(&frame) {
                Ok(Command::Publish(event)) => Ok(event.data.to_string()),
                Ok(other) => panic!("{other:?}"),
                Err(malformed) => Err(malformed.to_string()),
            }
        };
        let json = r#","channel":"private-a","data":{"a":"b c"}"#;
        assert_eq!(published(json), Ok(r#"{"a":"b c"}"#.into()));
        let text = r#","channel":"private-a","data":"a \"b\"""#;
        assert_eq!(published(text), Ok(r#"a "b""#.into()));
        assert_eq!(published(r#","channel":"private-a""#), Ok("null".into()));
        assert_eq!(published(""), Err("client-x has no channel".into()));
        let number = r#","channel":7"#;
        assert_eq!(published(number), Err("client-x has no channel".into()));
        // Where it means nothing it is not looked at.
        let ping = r#"{"event":"pusher:ping","channel":7}"#;
        assert_eq!(decode(ping), Ok(Command::Ping));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,300}") {
            let _ = decode(&text);
        }

        #[test]
        fn damaged_frames_never_panic(at in any::<prop::sample::Index>(), c: char) {
            let mut text: Vec<char> = r#"{"event":"pusher:subscribe","data":{"channel":"a","auth":"k:s"}}"#.chars().collect();
            let at = at.index(text.len());
            text[at] = c;
            let _ = decode(&text.into_iter().collect::<String>());
        }
    }
}
