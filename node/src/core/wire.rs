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
    decode_first(bytes).map(|(value, _)| value)
}

/// The same, and what follows it: a later version may have added something there,
/// which an earlier one does not look at.
///
/// # Errors
/// What is wrong with the value, for people.
pub fn decode_first<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), String> {
    match bytes.split_first() {
        Some((&VERSION, mut body)) => match rmp_serde::from_read(&mut body) {
            Ok(value) => Ok((value, body)),
            Err(error) => Err(format!("not understood: {error}")),
        },
        Some((version, _)) => Err(format!(
            "it speaks version {version} of the protocol between nodes, this node {VERSION}"
        )),
        None => Err("it said nothing".into()),
    }
}
