//! What `dunlin verify` publishes, and how it reads what comes: data that says
//! which publication it is, frames of the Pusher protocol, blocks of event
//! streams. Pure.

use proto::position::{Epoch, Offset, Position};
use serde_json::Value;

use super::ledger::Number;
use crate::cli::subscribe::event_stream::Block;

/// Event data of at least this size: which run, channel, publisher and number.
pub(super) fn data(
    run: u64,
    channel: usize,
    publisher: usize,
    number: Number,
    size: usize,
) -> String {
    let mut data = format!("{run:016x}.{channel}.{publisher}.{number}.");
    data.extend(std::iter::repeat_n('x', size.saturating_sub(data.len())));
    data
}

/// Which publication of this run some data is; `None`: it is somebody else's.
pub(super) fn number(run: u64, channel: usize, data: &str) -> Option<Number> {
    let rest = data.strip_prefix(&format!("{run:016x}.{channel}."))?;
    let (_publisher, rest) = rest.split_once('.')?;
    rest.split_once('.')?.0.parse().ok()
}

/// What a WebSocket client is sent.
#[derive(Debug, PartialEq)]
pub(super) enum Frame {
    Established,
    /// A subscription is confirmed. `None`: the server does not say where.
    Attached {
        channel: String,
        position: Option<Position>,
    },
    Publication {
        channel: String,
        position: Option<Position>,
        data: String,
    },
    /// The position has moved on, without anything for this client.
    Moved {
        channel: String,
        position: Position,
    },
    Gap(Gap),
    /// A subscription is refused; why.
    Refused(String),
    Ping,
    /// Nothing that counts.
    Other,
}

#[derive(Debug, PartialEq)]
pub(super) struct Gap {
    pub(super) channel: String,
    pub(super) reason: String,
    pub(super) latest: Position,
}

/// Something that no client can make sense of.
#[derive(Debug, thiserror::Error)]
#[error("the server sent what is not of the protocol: {0}")]
pub(super) struct Invalid(String);

fn invalid(value: impl std::fmt::Display) -> Invalid {
    const SHOWN: usize = 300;
    Invalid(value.to_string().chars().take(SHOWN).collect())
}

fn text(value: &Value, name: &str) -> Result<String, Invalid> {
    let text = value[name].as_str().map(str::to_owned);
    text.ok_or_else(|| invalid(value))
}

/// `{"epoch":"<16 hex digits>","offset":n}`.
fn position(value: &Value) -> Result<Position, Invalid> {
    let epoch = value["epoch"].as_str().filter(|text| text.len() == 16);
    let epoch = epoch.and_then(|text| u64::from_str_radix(text, 16).ok());
    match (epoch, value["offset"].as_u64()) {
        (Some(epoch), Some(offset)) => Ok(Position {
            epoch: Epoch(epoch),
            offset: Offset(offset),
        }),
        _ => Err(invalid(value)),
    }
}

fn member(value: &Value) -> Result<Option<Position>, Invalid> {
    value.get("position").map(position).transpose()
}

/// Of a publication: there is none before the first.
fn of_publication(position: Option<Position>) -> Result<Option<Position>, Invalid> {
    match position {
        Some(Position {
            offset: Offset::ZERO,
            ..
        }) => Err(invalid("a publication at offset 0")),
        other => Ok(other),
    }
}

fn gap(data: &Value) -> Result<Gap, Invalid> {
    let latest = text(data, "latest")?;
    Ok(Gap {
        channel: text(data, "channel")?,
        reason: text(data, "reason")?,
        latest: latest.parse().map_err(|_| invalid(data))?,
    })
}

/// Reads a frame.
pub(super) fn frame(json: &str) -> Result<Frame, Invalid> {
    let frame: Value = serde_json::from_str(json).map_err(|_| invalid(json))?;
    // The data of the protocol's own events is JSON in a string.
    let data = || -> Result<Value, Invalid> {
        let data = frame["data"].as_str().unwrap_or("{}");
        serde_json::from_str(data).map_err(|_| invalid(&frame))
    };
    Ok(match frame["event"].as_str().unwrap_or_default() {
        "pusher:connection_established" => Frame::Established,
        "pusher_internal:subscription_succeeded" => Frame::Attached {
            channel: text(&frame, "channel")?,
            position: member(&data()?)?,
        },
        "pusher:subscription_error" => Frame::Refused(frame["data"].to_string()),
        "pusher:ping" => Frame::Ping,
        "dunlin:gap" => Frame::Gap(gap(&data()?)?),
        "dunlin:position" => {
            let data = data()?;
            Frame::Moved {
                channel: text(&data, "channel")?,
                position: position(&data)?,
            }
        }
        name if name.starts_with("pusher") => Frame::Other,
        _ => Frame::Publication {
            channel: text(&frame, "channel")?,
            position: of_publication(member(&frame)?)?,
            data: text(&frame, "data")?,
        },
    })
}

/// What an event stream's client is sent: something, and where it stands then.
#[derive(Debug, PartialEq)]
pub(super) struct Step {
    pub(super) what: What,
    /// Of each channel, in the order of their names. `None`: the block has none.
    pub(super) cursor: Option<Vec<Option<Position>>>,
}

#[derive(Debug, PartialEq)]
pub(super) enum What {
    Publication { channel: String, data: String },
    Gap(Gap),
    Nothing,
}

/// Reads a block of a stream of these channels, with envelopes if they are
/// several.
pub(super) fn block(block: &Block, channels: &[String]) -> Result<Step, Invalid> {
    let cursor = block.id.as_deref().map(|id| cursor(id, channels.len()));
    let json = |data: &str| -> Result<Value, Invalid> {
        serde_json::from_str(data).map_err(|_| invalid(data))
    };
    let what = match (&block.data, block.event.as_deref(), channels) {
        (None, _, _) => What::Nothing,
        (Some(data), Some("gap"), _) => What::Gap(gap(&json(data)?)?),
        (Some(data), _, [channel]) => What::Publication {
            channel: channel.clone(),
            data: data.clone(),
        },
        (Some(data), _, _) => {
            let envelope = json(data)?;
            What::Publication {
                channel: text(&envelope, "channel")?,
                data: text(&envelope, "data")?,
            }
        }
    };
    Ok(Step {
        what,
        cursor: cursor.transpose()?,
    })
}

fn cursor(id: &str, channels: usize) -> Result<Vec<Option<Position>>, Invalid> {
    let positions: Result<Vec<_>, _> = id
        .split(',')
        .map(|part| match part {
            "-" => Ok(None),
            part => part.parse().map(Some),
        })
        .collect();
    let positions = positions.map_err(|_| invalid(id))?;
    if positions.len() != channels {
        return Err(invalid(id));
    }
    Ok(positions)
}

/// The cursor to resume from.
pub(super) fn cursor_text(positions: &[Option<Position>]) -> String {
    let parts = positions.iter().map(|position| match position {
        Some(position) => position.to_string(),
        None => "-".to_owned(),
    });
    parts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: u64) -> Position {
        Position {
            epoch: Epoch(0xa),
            offset: Offset(offset),
        }
    }

    #[test]
    fn data_says_which_publication_it_is() {
        for size in [0, 60, 1_000] {
            let data = data(7, 3, 2, 45, size);
            assert!(data.len() >= size);
            assert_eq!(number(7, 3, &data), Some(45));
            // Another run, another channel.
            assert_eq!(number(8, 3, &data), None);
            assert_eq!(number(7, 4, &data), None);
        }
        for foreign in [
            "",
            "hello",
            "0000000000000007.3.",
            "0000000000000007.3.1.x.",
        ] {
            assert_eq!(number(7, 3, foreign), None, "{foreign}");
        }
    }

    #[test]
    fn frames() {
        let attached = r#"{"event":"pusher_internal:subscription_succeeded","channel":"c","data":"{\"position\":{\"epoch\":\"000000000000000a\",\"offset\":5},\"recovered\":true}"}"#;
        let channel = || "c".to_owned();
        assert_eq!(
            frame(attached).unwrap(),
            Frame::Attached {
                channel: channel(),
                position: Some(at(5))
            }
        );
        let plain =
            r#"{"event":"pusher_internal:subscription_succeeded","channel":"c","data":"{}"}"#;
        assert_eq!(
            frame(plain).unwrap(),
            Frame::Attached {
                channel: channel(),
                position: None
            }
        );
        let publication = r#"{"event":"e","channel":"c","data":"d","position":{"epoch":"000000000000000a","offset":6}}"#;
        assert_eq!(
            frame(publication).unwrap(),
            Frame::Publication {
                channel: channel(),
                position: Some(at(6)),
                data: "d".into()
            }
        );
        let gap = r#"{"event":"dunlin:gap","data":"{\"channel\":\"c\",\"reason\":\"expired\",\"earliest\":3,\"latest\":\"000000000000000a-9\"}"}"#;
        assert_eq!(
            frame(gap).unwrap(),
            Frame::Gap(Gap {
                channel: channel(),
                reason: "expired".into(),
                latest: at(9)
            })
        );
        let moved = r#"{"event":"dunlin:position","data":"{\"channel\":\"c\",\"epoch\":\"000000000000000a\",\"offset\":7}"}"#;
        assert_eq!(
            frame(moved).unwrap(),
            Frame::Moved {
                channel: channel(),
                position: at(7)
            }
        );
        assert_eq!(
            frame(r#"{"event":"pusher:pong","data":"{}"}"#).unwrap(),
            Frame::Other
        );
        for nonsense in [
            "",
            "{}",
            r#"{"event":"e","channel":"c"}"#,
            r#"{"event":"e","channel":"c","data":"d","position":{"epoch":"a","offset":6}}"#,
            r#"{"event":"e","channel":"c","data":"d","position":{"epoch":"000000000000000a","offset":0}}"#,
            r#"{"event":"dunlin:gap","data":"{}"}"#,
        ] {
            assert!(frame(nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn blocks() {
        let of = |event: Option<&str>, data: Option<&str>, id: Option<&str>| {
            let block = Block {
                event: event.map(Into::into),
                data: data.map(Into::into),
                id: id.map(Into::into),
            };
            super::block(&block, &["b".to_owned(), "c".to_owned()])
        };
        let two = "000000000000000a-1,-";
        assert_eq!(
            of(None, None, Some(two)).unwrap(),
            Step {
                what: What::Nothing,
                cursor: Some(vec![Some(at(1)), None])
            }
        );
        assert_eq!(cursor_text(&[Some(at(1)), None]), two);
        let envelope = r#"{"channel":"c","event":"e","data":"d"}"#;
        assert_eq!(
            of(None, Some(envelope), None).unwrap(),
            Step {
                what: What::Publication {
                    channel: "c".into(),
                    data: "d".into()
                },
                cursor: None
            }
        );
        let gap = r#"{"channel":"c","reason":"epoch","earliest":1,"latest":"000000000000000a-2"}"#;
        assert!(matches!(
            of(Some("gap"), Some(gap), Some(two)).unwrap().what,
            What::Gap(_)
        ));
        assert!(of(None, None, Some("000000000000000a-1")).is_err());
        assert!(of(None, None, Some("x,-")).is_err());
        assert!(of(None, Some("hello"), None).is_err());
        let plain = Block {
            event: Some("e".into()),
            data: Some("hello".into()),
            id: Some("000000000000000a-1".into()),
        };
        assert_eq!(
            block(&plain, &["c".to_owned()]).unwrap(),
            Step {
                what: What::Publication {
                    channel: "c".into(),
                    data: "hello".into()
                },
                cursor: Some(vec![Some(at(1))])
            }
        );
    }
}
