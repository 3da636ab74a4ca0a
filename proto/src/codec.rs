//! Bytes of the bus: a version byte, then MessagePack with structs as arrays.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::message::{Entry, Message};

/// The version of everything that gateways and nodes say to each other.
pub const WIRE_VERSION: u8 = 1;

/// Largest payload on the bus. NATS servers take 1 MB by default; half of it
/// keeps one message from standing before all others for long.
pub const PAYLOAD_BYTES_MAX: usize = 512 * 1_024;

/// What an entry has besides its texts and names, when all its numbers are long.
const ENTRY_REST_BYTES: usize = 96;

/// Bytes that are not a message of ours.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing at all.
    #[error("an empty payload is not a message")]
    Empty,
    /// Of another version.
    #[error("wire version {0}, but this process speaks {WIRE_VERSION}")]
    Version(u8),
    /// Of this version, but not a message.
    #[error("not a message of wire version {WIRE_VERSION}: {0}")]
    Malformed(#[from] rmp_serde::decode::Error),
    /// A message with bytes behind it.
    #[error("{0} bytes behind the message")]
    Trailing(usize),
}

/// Encodes a message.
pub fn encode(message: &Message) -> Bytes {
    versioned(message, 256)
}

/// Decodes a message. Any bytes may come.
pub fn decode(bytes: &[u8]) -> Result<Message, Error> {
    unversioned(bytes)
}

/// Encodes an entry of a link, to be shared by the batches of many links, and
/// kept by them: it takes little more memory than it is long.
pub fn encode_entry(entry: &Entry) -> Bytes {
    let publication = &entry.publication;
    let texts = publication.data.len() + publication.event.len();
    let names = entry.key.app.as_str().len() + entry.key.channel.as_str().len();
    versioned(entry, texts + names + ENTRY_REST_BYTES)
}

/// Decodes an entry of a link.
pub fn decode_entry(bytes: &[u8]) -> Result<Entry, Error> {
    unversioned(bytes)
}

/// `bytes`: how long it will be, more or less.
fn versioned(value: &impl Serialize, bytes: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(bytes);
    bytes.push(WIRE_VERSION);
    rmp_serde::encode::write(&mut bytes, value).expect("our types always encode into memory");
    bytes.into()
}

fn unversioned<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    match bytes.split_first() {
        None => Err(Error::Empty),
        Some((&WIRE_VERSION, mut body)) => {
            let value = rmp_serde::from_read(&mut body)?;
            if body.is_empty() {
                Ok(value)
            } else {
                Err(Error::Trailing(body.len()))
            }
        }
        Some((version, _)) => Err(Error::Version(*version)),
    }
}

#[cfg(test)]
mod tests;
