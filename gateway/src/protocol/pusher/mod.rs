//! The Pusher protocol, version 7, over WebSocket: one JSON object per text
//! frame. <https://pusher.com/docs/channels/library_auth_reference/pusher-websockets-protocol/>

mod decode;
mod encode;
pub mod event;
pub mod info;
pub mod member;

pub use decode::{Malformed, decode};
pub use encode::{encode, members, positioned, publication};

use super::{Close, CloseCode};

/// Protocol versions that differ in nothing this server does.
const VERSIONS: std::ops::RangeInclusive<u16> = 5..=7;

/// Checks the `protocol` parameter of the URL. Without one, it is 7.
pub fn check_version(protocol: Option<&str>) -> Result<(), Close> {
    let Some(text) = protocol else { return Ok(()) };
    match text.parse::<u16>() {
        Ok(version) if VERSIONS.contains(&version) => Ok(()),
        Ok(version) => Err(Close {
            code: CloseCode::UnsupportedVersion,
            message: format!("protocol version {version} is not supported; use 7"),
        }),
        Err(_) => Err(Close {
            code: CloseCode::InvalidVersion,
            message: "the protocol version in the URL is not a number; use 7".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(check_version(None), Ok(()));
        assert_eq!(check_version(Some("7")), Ok(()));
        let code = |text| check_version(Some(text)).unwrap_err().code;
        assert_eq!(code("99"), CloseCode::UnsupportedVersion);
        assert_eq!(code(""), CloseCode::InvalidVersion);
        assert_eq!(code("seven"), CloseCode::InvalidVersion);
    }
}
