//! How what nodes say to each other is encoded: MessagePack, with the version
//! before it.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version of everything that nodes say to each other.
pub const VERSION: u8 = 1;

/// Bytes of a value, with the version before them.
pub fn encode(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    rmp_serde::encode::write(&mut bytes, value).expect("our types always encode into memory");
    bytes
}

/// A value of bytes that came from outside.
///
/// # Errors
/// What is wrong with them, for people.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match bytes.split_first() {
        Some((&VERSION, body)) => {
            rmp_serde::from_slice(body).map_err(|error| format!("not understood: {error}"))
        }
        Some((version, _)) => Err(format!(
            "it speaks version {version} of the protocol between nodes, this node {VERSION}"
        )),
        None => Err("it said nothing".into()),
    }
}
