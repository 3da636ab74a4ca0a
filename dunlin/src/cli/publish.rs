//! `dunlin pub`: publishes stdin, line by line, in order: the next line is sent
//! when the one before it has been acknowledged.

use std::time::Duration;

use clap::Args;
use hyper::StatusCode;
use proto::channel::ChannelName;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};

use super::{ServerArguments, Target};
use crate::client::{Connection, Failed, problem};
use crate::exit::{Exit, Failure};

/// How often and how long to try to reach a server that is not there (yet).
const CONNECT_EVERY: Duration = Duration::from_millis(500);
const CONNECT_TRIES: u32 = 20;
/// Bytes of a line that any server might take.
const LINE_BYTES_MAX: usize = gateway::app::PAYLOAD_BYTES_LIMIT;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The channel to publish into.
    channel: ChannelName,
    /// The name of the events.
    #[arg(long, default_value = "message")]
    event: String,
    #[command(flatten)]
    server: ServerArguments,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let target = options.server.target()?;
    let runtime = super::runtime()?;
    let result = runtime.block_on(publish(options, &target));
    // A read of stdin that nobody waits for must not keep the process.
    runtime.shutdown_background();
    result
}

async fn publish(options: &Options, target: &Target) -> Result<(), Failure> {
    let mut input = BufReader::with_capacity(64 * 1_024, tokio::io::stdin());
    let mut connection = None;
    let mut line = Vec::new();
    let (mut number, mut refused) = (0_u64, 0_u64);
    loop {
        line.clear();
        let read = read_line(&mut input, &mut line).await;
        let length =
            read.map_err(|error| Exit::Io.because(format!("could not read stdin: {error}")))?;
        if length == 0 {
            break;
        }
        number += 1;
        if length > line.len() {
            eprintln!(
                "dunlin: line {number} was refused: it has {length} bytes, and no app takes more than {LINE_BYTES_MAX}"
            );
            refused += 1;
            continue;
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let Ok(text) = std::str::from_utf8(text) else {
            eprintln!("dunlin: line {number} is not UTF-8 and was not published");
            refused += 1;
            continue;
        };
        if let Verdict::Refused(why) = one(options, target, &mut connection, number, text).await? {
            eprintln!("dunlin: line {number} was refused: {why}");
            refused += 1;
        }
    }
    if refused > 0 {
        return Err(Exit::Data.because(format!("{refused} of {number} lines were not published")));
    }
    Ok(())
}

/// Reads a line, with its end. Of one that is too long only the beginning is
/// kept. How long it was; zero: there is none.
async fn read_line(
    input: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
) -> std::io::Result<usize> {
    let mut length = 0;
    loop {
        let bytes = input.fill_buf().await?;
        let end = bytes
            .iter()
            .position(|byte| *byte == b'\n')
            .map(|at| at + 1);
        let taken = end.unwrap_or(bytes.len());
        let room = (LINE_BYTES_MAX + 1).saturating_sub(line.len());
        line.extend_from_slice(&bytes[..taken.min(room)]);
        length += taken;
        input.consume(taken);
        if end.is_some() || taken == 0 {
            return Ok(length);
        }
    }
}

enum Verdict {
    Acknowledged,
    /// This line cannot be published; others may.
    Refused(String),
}

/// Publishes one line. A failure that leaves open whether the line was
/// published ends the command: sending it again could publish it twice.
async fn one(
    options: &Options,
    target: &Target,
    connection: &mut Option<Connection>,
    number: u64,
    text: &str,
) -> Result<Verdict, Failure> {
    let gave_up = |why: String| {
        Exit::Unavailable.because(format!("line {number} was not acknowledged: {why}"))
    };
    let mut tries = 0;
    loop {
        let answer = attempt(options, target, connection, text).await;
        let (status, body) = match answer {
            Ok(answer) => answer,
            // As certain as an answer: trying again cannot publish it twice.
            Err(Failed::NotSent(error)) => {
                *connection = None;
                tries += 1;
                if tries > CONNECT_TRIES {
                    return Err(gave_up(format!("{error:#}")));
                }
                // The first time it may only be that the server has closed a
                // connection that was idle for long.
                if tries > 1 {
                    if tries == 2 {
                        eprintln!("dunlin: line {number} waits: {error:#}");
                    }
                    super::wait(CONNECT_EVERY).await;
                }
                continue;
            }
            Err(Failed::Unknown(error)) => {
                return Err(gave_up(format!(
                    "{error:#}; it may or may not be published"
                )));
            }
        };
        return match status {
            StatusCode::OK => Ok(Verdict::Acknowledged),
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => {
                Ok(Verdict::Refused(problem(status, &body)))
            }
            _ => Err(gave_up(problem(status, &body))),
        };
    }
}

/// Publishes on the connection that is there, or on a new one.
async fn attempt(
    options: &Options,
    target: &Target,
    connection: &mut Option<Connection>,
    text: &str,
) -> Result<(StatusCode, String), Failed> {
    let open = match connection {
        Some(open) => open,
        None => connection.insert(target.url.connect().await.map_err(Failed::NotSent)?),
    };
    open.publish(&target.app, options.channel.as_str(), &options.event, text)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_read_and_long_ones_measured() {
        let text = [&b"one\n\n"[..], &vec![b'x'; LINE_BYTES_MAX + 5], b"\nlast"].concat();
        let mut input = BufReader::with_capacity(1_000, &text[..]);
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            let length = read_line(&mut input, &mut line).await.unwrap();
            if length == 0 {
                break;
            }
            lines.push((length, line.len()));
        }
        assert_eq!(
            lines,
            [
                (4, 4),
                (1, 1),
                (LINE_BYTES_MAX + 6, LINE_BYTES_MAX + 1),
                (4, 4)
            ]
        );
    }
}
