//! The bodies of `POST /apps/{id}/events` and `/batch_events`.

use std::sync::Arc;

use proto::channel::{ChannelKind, ChannelName};
use proto::error::ErrorCode;
use proto::id::ConnectionId;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::info::Info;
use crate::app::{App, Bounds};

/// An event to publish into some channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its name.
    pub name: Arc<str>,
    /// Its data, byte for byte.
    pub data: Arc<str>,
    /// Where to; at least one, none twice.
    pub channels: Vec<ChannelName>,
    /// Who does not get it.
    pub exclude: Option<ConnectionId>,
    /// What is to be told of its channels.
    pub info: Info,
}

/// An event of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The event, for one channel.
    pub event: Event,
    /// Its idempotency key, if it has one of its own.
    pub key: Option<String>,
}

/// A body that cannot be published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// What kind of fault.
    pub code: ErrorCode,
    /// Which one, for the caller.
    pub message: String,
}

#[derive(Deserialize)]
struct Body<'a> {
    name: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    channel: Option<String>,
    channels: Option<Vec<String>>,
    socket_id: Option<String>,
    info: Option<String>,
    idempotency_key: Option<String>,
}

#[derive(Deserialize)]
struct Batch<'a> {
    #[serde(borrow)]
    batch: Vec<Body<'a>>,
}

fn bad(message: impl Into<String>) -> Invalid {
    Invalid {
        code: ErrorCode::BadRequest,
        message: message.into(),
    }
}

/// Parses and checks a body, within the app's limits.
pub fn parse(body: &[u8], app: &App) -> Result<Event, Invalid> {
    let body: Body<'_> = serde_json::from_slice(body)
        .map_err(|error| bad(format!("the body is not the JSON of an event: {error}")))?;
    if body.idempotency_key.is_some() {
        return Err(bad(
            "idempotency_key: of a single event it is the header Idempotency-Key",
        ));
    }
    checked(body, app)
}

/// Parses and checks the body of a batch: each event has one channel.
pub fn parse_batch(body: &[u8], app: &App) -> Result<Vec<Item>, Invalid> {
    let Batch { batch } = serde_json::from_slice(body)
        .map_err(|error| bad(format!("the body is not the JSON of a batch: {error}")))?;
    let most = app.bounds.batch_events_max;
    if batch.is_empty() || batch.len() > most {
        let events = batch.len();
        return Err(bad(format!("batch: 1 to {most} events, not {events}")));
    }
    let item = |(at, mut body): (usize, Body<'_>)| {
        let key = body.idempotency_key.take();
        let event = if body.channels.is_some() {
            Err(bad("an event of a batch has one channel: give channel"))
        } else {
            checked(body, app)
        };
        match event {
            Ok(event) => Ok(Item { event, key }),
            Err(Invalid { code, message }) => Err(Invalid {
                code,
                message: format!("batch[{at}]: {message}"),
            }),
        }
    };
    batch.into_iter().enumerate().map(item).collect()
}

fn checked(body: Body<'_>, app: &App) -> Result<Event, Invalid> {
    let info = Info::parse(body.info.as_deref().unwrap_or_default()).map_err(bad)?;
    info.check_app(app).map_err(bad)?;
    let name = event_name(body.name.as_deref(), &app.bounds)?;
    let data = data(body.data)?;
    let most = app.payload_bytes_max;
    if data.len() > most {
        return Err(Invalid {
            code: ErrorCode::TooLarge,
            message: format!(
                "data has {} bytes; this app allows {most} (payload_bytes_max)",
                data.len()
            ),
        });
    }
    let exclude = body
        .socket_id
        .map(|id| {
            id.parse()
                .map_err(|error| bad(format!("socket_id: {error}")))
        })
        .transpose()?;
    let channels = channels(body.channel, body.channels, &app.bounds)?;
    for channel in &channels {
        info.check(channel).map_err(bad)?;
    }
    Ok(Event {
        name,
        data,
        channels,
        exclude,
        info,
    })
}

/// Checks the name of an event that comes from outside.
pub fn event_name(name: Option<&str>, bounds: &Bounds) -> Result<Arc<str>, Invalid> {
    let name = name
        .filter(|name| !name.is_empty())
        .ok_or_else(|| bad("name: an event needs one"))?;
    let most = bounds.event_bytes_max;
    if name.len() > most {
        return Err(bad(format!("name: at most {most} bytes")));
    }
    if name.chars().any(char::is_control) {
        return Err(bad("name: control characters are not allowed"));
    }
    let reserved = ["pusher:", "pusher_internal:", "dunlin:"];
    if let Some(prefix) = reserved.iter().find(|prefix| name.starts_with(**prefix)) {
        return Err(bad(format!(
            "name: {prefix} is reserved for the server's own events"
        )));
    }
    Ok(Arc::from(name))
}

/// SDKs send a string, and that is published as it is; any other JSON is
/// published as its text.
fn data(raw: Option<&RawValue>) -> Result<Arc<str>, Invalid> {
    let raw = raw
        .ok_or_else(|| bad("data: an event needs some, if only an empty string"))?
        .get();
    if raw.starts_with('"') {
        let text: String =
            serde_json::from_str(raw).map_err(|error| bad(format!("data: {error}")))?;
        return Ok(text.into());
    }
    Ok(raw.into())
}

fn channels(
    one: Option<String>,
    many: Option<Vec<String>>,
    bounds: &Bounds,
) -> Result<Vec<ChannelName>, Invalid> {
    let names = match (one, many) {
        (Some(channel), None) => vec![channel],
        (None, Some(channels)) => channels,
        (None, None) => return Err(bad("channel or channels: name at least one")),
        (Some(_), Some(_)) => return Err(bad("give channel or channels, not both")),
    };
    let most = bounds.event_channels_max;
    if names.is_empty() || names.len() > most {
        return Err(bad(format!("channels: 1 to {most}, not {}", names.len())));
    }
    let mut channels = Vec::with_capacity(names.len());
    for name in names {
        let channel = bounds
            .channel(&name)
            .map_err(|error| bad(format!("channel {name:?}: {error}")))?;
        if !channels.contains(&channel) {
            channels.push(channel);
        }
    }
    if channels.len() > 1 && channels.iter().any(|c| c.kind() == ChannelKind::Encrypted) {
        return Err(bad(
            "an encrypted channel has a key of its own: publish to it alone",
        ));
    }
    Ok(channels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn app(payload_bytes_max: usize) -> App {
        App {
            payload_bytes_max,
            ..App::new("a".parse().unwrap(), "key", "secret")
        }
    }

    #[test]
    fn an_app_may_be_allowed_less() {
        let mut app = app(10);
        app.bounds = Bounds {
            channel_bytes_max: 4,
            event_bytes_max: 2,
            event_channels_max: 2,
            batch_events_max: 1,
            ..Bounds::default()
        };
        let parse = |body: &str| parse(body.as_bytes(), &app);
        assert!(parse(r#"{"name":"ee","data":"","channels":["abcd","x"]}"#).is_ok());
        for (body, word) in [
            (r#"{"name":"eee","data":"","channel":"x"}"#, "2 bytes"),
            (r#"{"name":"e","data":"","channel":"abcde"}"#, "4 bytes"),
            (
                r#"{"name":"e","data":"","channels":["a","b","c"]}"#,
                "1 to 2",
            ),
        ] {
            let message = parse(body).unwrap_err().message;
            assert!(message.contains(word), "{body}: {message}");
        }
        let event = r#"{"name":"e","data":"","channel":"x"}"#;
        let two = format!(r#"{{"batch":[{event},{event}]}}"#);
        let refusal = parse_batch(two.as_bytes(), &app).unwrap_err();
        assert!(refusal.message.contains("1 to 1"));
    }

    fn refused(body: &str) -> (ErrorCode, String) {
        let invalid = parse(body.as_bytes(), &app(10)).unwrap_err();
        (invalid.code, invalid.message)
    }

    #[test]
    fn a_full_event() {
        let body = br#"{"name":"e","data":"{\"a\":1}","channels":["x","y","x"],"socket_id":"1.2"}"#;
        let event = parse(body, &app(100)).unwrap();
        assert_eq!((&*event.name, &*event.data), ("e", r#"{"a":1}"#));
        assert_eq!(
            event.channels,
            ["x", "y"].map(|c| c.parse::<ChannelName>().unwrap())
        );
        assert_eq!(event.exclude, "1.2".parse().ok());
    }

    #[test]
    fn data_that_is_no_string_is_published_as_its_text() {
        let event = parse(
            br#"{"name":"e","data":{"a": [1, 2]},"channel":"x"}"#,
            &app(100),
        )
        .unwrap();
        assert_eq!(&*event.data, r#"{"a": [1, 2]}"#);
    }

    #[test]
    fn faults_are_named() {
        for (body, word) in [
            ("", "JSON"),
            ("[]", "JSON"),
            (r#"{"data":"","channel":"x"}"#, "name"),
            (r#"{"name":"","data":"","channel":"x"}"#, "name"),
            (r#"{"name":"a\nb","data":"","channel":"x"}"#, "control"),
            (r#"{"name":"pusher:x","data":"","channel":"x"}"#, "reserved"),
            (
                r#"{"name":"dunlin:gap","data":"","channel":"x"}"#,
                "reserved",
            ),
            (
                r#"{"name":"dunlin:","data":"","channels":["x","y"]}"#,
                "reserved",
            ),
            (r#"{"name":"e","channel":"x"}"#, "data"),
            (r#"{"name":"e","data":""}"#, "channels"),
            (r#"{"name":"e","data":"","channels":[]}"#, "channels"),
            (
                r#"{"name":"e","data":"","channel":"x","channels":["x"]}"#,
                "not both",
            ),
            (r#"{"name":"e","data":"","channel":"x y"}"#, "x y"),
            (
                r#"{"name":"e","data":"","channel":"x","socket_id":"1"}"#,
                "socket_id",
            ),
            (
                r#"{"name":"e","data":"","channels":["x","private-encrypted-y"]}"#,
                "encrypted",
            ),
            (
                r#"{"name":"e","data":"","channel":"x","info":"user_count"}"#,
                "presence",
            ),
            (
                r#"{"name":"e","data":"","channel":"x","idempotency_key":"k"}"#,
                "header",
            ),
        ] {
            let (code, message) = refused(body);
            assert_eq!(code, ErrorCode::BadRequest, "{body}");
            assert!(message.contains(word), "{body}: {message}");
        }
        assert_eq!(
            refused(r#"{"name":"e","data":"12345678901","channel":"x"}"#).0,
            ErrorCode::TooLarge
        );
    }

    #[test]
    fn a_batch_has_some_events_of_one_channel_each() {
        let event = r#"{"name":"e","data":"d","channel":"x","idempotency_key":"k"}"#;
        let batch = |events: &[&str]| {
            let body = format!(r#"{{"batch":[{}]}}"#, events.join(","));
            parse_batch(body.as_bytes(), &app(10))
        };
        let items = batch(&[event, r#"{"name":"f","data":"d","channel":"y"}"#]).unwrap();
        let names: Vec<&str> = items.iter().map(|item| &*item.event.name).collect();
        assert_eq!(names, ["e", "f"]);
        assert_eq!(items[0].key.as_deref(), Some("k"));
        let wrong = |events: &[&str]| batch(events).unwrap_err().message;
        assert!(wrong(&[]).contains("1 to 10"));
        assert!(wrong(&[event; 11]).contains("not 11"));
        let two = r#"{"name":"e","data":"d","channels":["x"]}"#;
        assert!(wrong(&[event, two]).starts_with("batch[1]: an event of a batch"));
        let large = r#"{"name":"e","data":"12345678901","channel":"x"}"#;
        assert_eq!(batch(&[large]).unwrap_err().code, ErrorCode::TooLarge);
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&body, &app(100));
            let _ = parse_batch(&body, &app(100));
        }
    }
}
