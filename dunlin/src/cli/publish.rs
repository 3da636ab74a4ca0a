//! `dunlin pub`: publishes stdin, line by line, in order: the next line is sent
//! when the one before it has been acknowledged.
//!
//! Each line has an idempotency key, so one that was not acknowledged is sent
//! again and is still published once. Owners remember keys for two minutes; a
//! line is given up before that.

use std::time::Duration;

use clap::Args;
use hyper::StatusCode;
use proto::channel::ChannelName;
use proto::error::ErrorCode;
use proto::time::Timestamp;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};

use super::{ServerArguments, Target, now};
use crate::client::{Connection, Event, Failed, code, problem};
use crate::exit::{Exit, Failure};
use crate::process::fill_random;

/// How long to try to reach a server that is not there (yet).
const CONNECT_FOR: Duration = Duration::from_secs(10);
/// How long to repeat a line that a server has had. The last try and what the
/// gateway makes of it end well before the owner forgets the key.
const REPEAT_FOR: Duration = Duration::from_secs(60);
const TRY_EVERY: Duration = Duration::from_millis(500);
/// For how long keys are left out when there is no room for them: a stream of
/// lines is not to be sent twice over, nor to wait for two minutes.
const KEYLESS_FOR: Duration = Duration::from_secs(1);
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
    let mut publisher = Publisher::new(options, target).map_err(|error| {
        Exit::Software.because(format!("the system gave no random bytes: {error}"))
    })?;
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
        if let Verdict::Refused(why) = publisher.line(number, text).await? {
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

/// What to do after a try.
enum Next {
    Done(Verdict),
    /// Try again at once, in another way.
    AtOnce,
    /// Wait and try again; why.
    Again(String),
    /// No line will fare better.
    GiveUp(String),
}

struct Publisher<'a> {
    options: &'a Options,
    target: &'a Target,
    connection: Option<Connection>,
    /// What all keys of this run begin with.
    run: String,
    /// Until when no keys are used: the server remembers as many as it may.
    keyless_until: Timestamp,
}

/// One line while it is tried.
struct Line<'a> {
    text: &'a str,
    /// Its idempotency key. With one it may be sent again whatever became of
    /// it; without, only if it was certainly not published.
    key: Option<String>,
    /// Whether it may have been published.
    unknown: bool,
    /// Whether a server has had it.
    sent: bool,
}

impl<'a> Publisher<'a> {
    fn new(options: &'a Options, target: &'a Target) -> std::io::Result<Self> {
        let mut random = [0; 16];
        fill_random(&mut random)?;
        Ok(Self {
            options,
            target,
            connection: None,
            run: format!("dunlin-pub-{}", hex::encode(random)),
            keyless_until: Timestamp(0),
        })
    }

    /// Publishes one line: once, however often it has to be sent.
    async fn line(&mut self, number: u64, text: &str) -> Result<Verdict, Failure> {
        let began = now();
        let has_key = began >= self.keyless_until;
        let mut line = Line {
            text,
            key: has_key.then(|| format!("{}-{number}", self.run)),
            unknown: false,
            sent: false,
        };
        let mut tries = 0;
        loop {
            let had_connection = self.connection.is_some();
            let why = match self.attempt(&mut line).await {
                Next::Done(verdict) => return Ok(verdict),
                Next::AtOnce => continue,
                Next::GiveUp(why) => return Err(gave_up(number, &line, &why)),
                Next::Again(why) => why,
            };
            let patience = if line.sent { REPEAT_FOR } else { CONNECT_FOR };
            if now().since(began) >= patience || (line.unknown && line.key.is_none()) {
                return Err(gave_up(number, &line, &why));
            }
            tries += 1;
            // The first time it may only be that the server has closed a
            // connection that was idle for long.
            if tries == 1 && had_connection && !line.sent {
                continue;
            }
            if tries <= 2 {
                eprintln!("dunlin: line {number} waits: {why}");
            }
            super::wait(TRY_EVERY).await;
        }
    }

    async fn attempt(&mut self, line: &mut Line<'_>) -> Next {
        match self.send(line).await {
            Ok((status, body)) => {
                line.sent = true;
                self.judge(line, status, &body)
            }
            Err(Failed::NotSent(error)) => {
                self.connection = None;
                Next::Again(format!("{error:#}"))
            }
            Err(Failed::Unknown(error)) => {
                self.connection = None;
                (line.sent, line.unknown) = (true, true);
                Next::Again(format!("{error:#}"))
            }
        }
    }

    fn judge(&mut self, line: &mut Line<'_>, status: StatusCode, body: &str) -> Next {
        let why = problem(status, body);
        match status {
            StatusCode::OK => Next::Done(Verdict::Acknowledged),
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => {
                Next::Done(Verdict::Refused(why))
            }
            _ if !status.is_server_error() => Next::GiveUp(why),
            _ => {
                match code(body) {
                    Some(ErrorCode::Overloaded | ErrorCode::Unavailable | ErrorCode::NoStandby) => {
                    }
                    Some(ErrorCode::IdempotencyFull) => {
                        self.keyless_until = now() + KEYLESS_FOR;
                        if !line.unknown && line.key.take().is_some() {
                            return Next::AtOnce;
                        }
                    }
                    // A proxy's answer tells nothing, either.
                    _ => line.unknown = true,
                }
                Next::Again(why)
            }
        }
    }

    /// Sends on the connection that is there, or on a new one.
    async fn send(&mut self, line: &Line<'_>) -> Result<(StatusCode, String), Failed> {
        let open = match &mut self.connection {
            Some(open) => open,
            none => none.insert(self.target.url.connect().await.map_err(Failed::NotSent)?),
        };
        let event = Event {
            channel: self.options.channel.as_str(),
            name: &self.options.event,
            data: line.text,
            idempotency_key: line.key.as_deref(),
        };
        open.publish(&self.target.app, &event).await
    }
}

fn gave_up(number: u64, line: &Line<'_>, why: &str) -> Failure {
    let doubt = if line.unknown {
        "; it may or may not be published"
    } else {
        ""
    };
    Exit::Unavailable.because(format!("line {number} was not acknowledged: {why}{doubt}"))
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
