//! Server-sent events: the framing, and the cursor that a stream's `id` is.
//! <https://html.spec.whatwg.org/multipage/server-sent-events.html>
//!
//! One block per publication: `event`, `data` and `id`. A stream of one channel
//! has that channel's position as `id`, so the whole block is the same for all
//! its clients. A stream of several has all their positions, in the order of
//! the channels' names: such an `id` belongs to one connection.

use std::fmt::Write;

use proto::position::{Gap, Position};

/// The comment that keeps intermediaries from closing a quiet stream.
pub const KEEP_ALIVE: &str = ":\n\n";

/// Channels of one stream at most: their cursor stands in every block.
pub const CHANNELS_MAX: usize = 64;

/// Stands in a cursor for a channel whose position is not known yet.
const UNKNOWN: &str = "-";

/// The beginning of a block: event and data, without the blank line that ends
/// it. Data of several lines takes several fields.
pub fn body(event: &str, data: &str) -> String {
    let mut block = String::with_capacity(event.len() + data.len() + 32);
    // `message` is what a client assumes.
    if event != "message" {
        push_field(&mut block, "event", event);
    }
    for line in split_lines(data) {
        push_field(&mut block, "data", line);
    }
    block
}

/// The end of a block.
pub fn tail<'a>(cursor: impl IntoIterator<Item = &'a Option<Position>>) -> String {
    let mut id = String::with_capacity(40);
    id.push_str("id: ");
    for (i, position) in cursor.into_iter().enumerate() {
        if i > 0 {
            id.push(',');
        }
        match position {
            Some(position) => write!(id, "{position}").expect("a String takes everything"),
            None => id.push_str(UNKNOWN),
        }
    }
    id.push_str("\n\n");
    id
}

/// Reads the `id` of a stream of `channels` channels, as a client sends it back.
///
/// # Errors
/// What is wrong with it, for the client.
pub fn cursor(text: &str, channels: usize) -> Result<Vec<Option<Position>>, String> {
    let position = |part: &str| match part {
        UNKNOWN => Ok(None),
        part => part.parse().map(Some),
    };
    let parts = text.trim().split(',');
    let positions: Vec<_> = parts
        .take(CHANNELS_MAX + 1)
        .map(position)
        .collect::<Result<_, _>>()
        .map_err(|invalid| format!("the last event id is none that this server gave: {invalid}"))?;
    if positions.len() != channels {
        return Err(format!(
            "the last event id is of a stream of {} channels, and this one has {channels}; ask for the same channels again",
            positions.len()
        ));
    }
    Ok(positions)
}

/// The block that announces a gap, without its end.
pub fn gap(channel: &str, gap: &Gap) -> String {
    let data = serde_json::json!({
        "channel": channel,
        "reason": gap.reason.as_str(),
        "earliest": gap.earliest.0,
        "latest": gap.latest.to_string(),
    });
    body("gap", &data.to_string())
}

fn push_field(block: &mut String, name: &str, value: &str) {
    block.push_str(name);
    block.push_str(": ");
    block.push_str(value);
    block.push('\n');
}

/// Lines as a client will count them: ended by CR, LF or both.
fn split_lines(data: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(data);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(at) = text.find(['\r', '\n']) else {
            rest = None;
            return Some(text);
        };
        let ending = if text[at..].starts_with("\r\n") { 2 } else { 1 };
        rest = Some(&text[at + ending..]);
        Some(&text[..at])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::position::{Epoch, GapReason, Offset};

    fn position(offset: u64) -> Position {
        Position {
            epoch: Epoch(0xa),
            offset: Offset(offset),
        }
    }

    #[test]
    fn blocks() {
        assert_eq!(body("message", "hello"), "data: hello\n");
        assert_eq!(
            body("news", "a\nb\r\nc\rd\n"),
            "event: news\ndata: a\ndata: b\ndata: c\ndata: d\ndata: \n"
        );
        assert_eq!(body("e", ""), "event: e\ndata: \n");
        assert_eq!(tail(&[Some(position(3))]), "id: 000000000000000a-3\n\n");
        assert_eq!(
            tail(&[Some(position(3)), None]),
            "id: 000000000000000a-3,-\n\n"
        );
        assert_eq!(
            gap(
                "room",
                &Gap {
                    reason: GapReason::NewEpoch,
                    earliest: Offset(1),
                    latest: position(2)
                }
            ),
            "event: gap\ndata: {\"channel\":\"room\",\"earliest\":1,\"latest\":\"000000000000000a-2\",\"reason\":\"epoch\"}\n"
        );
    }

    #[test]
    fn a_cursor_that_comes_back_is_read_as_it_was_written() {
        let positions = [Some(position(3)), None, Some(position(0))];
        let id = tail(&positions);
        let id = id.trim().strip_prefix("id: ").unwrap();
        assert_eq!(cursor(id, 3), Ok(positions.to_vec()));
        assert!(cursor(id, 2).unwrap_err().contains("of 3 channels"));
        for wrong in ["", "x", "000000000000000a", "000000000000000a-1,", "-,-,x"] {
            assert!(
                cursor(wrong, 1)
                    .unwrap_err()
                    .contains("none that this server gave"),
                "{wrong:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn arbitrary_cursors_never_panic(text in ".{0,80}", channels in 0_usize..70) {
            let _ = cursor(&text, channels);
        }

        /// No data can end a block early or begin another field.
        #[test]
        fn data_stays_data(data in "[a-z:\r\n ]{0,60}") {
            let block = body("e", &data);
            let mut lines = block.lines();
            prop_assert_eq!(lines.next(), Some("event: e"));
            let mut got = Vec::new();
            for line in lines {
                let value = line.strip_prefix("data: ");
                prop_assert!(value.is_some(), "{line:?}");
                got.extend(value);
            }
            let normal = data.replace("\r\n", "\n").replace('\r', "\n");
            prop_assert_eq!(got.join("\n"), normal);
            prop_assert!(!block.contains('\r'));
        }
    }
}
