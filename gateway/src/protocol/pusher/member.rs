//! What a client says of its user when it subscribes to a presence channel, and when it
//! signs in.

use std::sync::Arc;

use proto::presence::{USER_BYTES_MAX, User};
use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct ChannelData<'a> {
    #[serde(default, borrow)]
    user_id: Option<&'a RawValue>,
    #[serde(default, borrow)]
    user_info: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct UserData {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    watchlist: Option<Vec<Arc<str>>>,
}

/// Who signs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignsIn {
    /// Its id.
    pub id: Arc<str>,
    /// The users of whom it wants to be told whether they are online.
    pub watchlist: Vec<Arc<str>>,
}

/// The most that a user may sign in with, in bytes.
pub const USER_DATA_BYTES_MAX: usize = 10 * 1_024;

/// Reads `user_data`: the user's id and whom it watches. The rest is between the client
/// and its backend.
///
/// # Errors
/// What is wrong with it, for the client.
pub fn signs_in(user_data: &str) -> Result<SignsIn, String> {
    let bytes = user_data.len();
    if bytes > USER_DATA_BYTES_MAX {
        return Err(format!(
            "user_data has {bytes} bytes; {USER_DATA_BYTES_MAX} are allowed"
        ));
    }
    let data: UserData = serde_json::from_str(user_data)
        .map_err(|error| format!("user_data is not the JSON of a user: {error}"))?;
    let id = data.id.filter(|id| !id.is_empty());
    Ok(SignsIn {
        id: id.ok_or("user_data has no id")?.into(),
        watchlist: data.watchlist.unwrap_or_default(),
    })
}

/// Reads `channel_data`: the user's id, text or number, and what the others are told
/// of it, at most `info_bytes_max`.
///
/// # Errors
/// What is wrong with it, for the client.
pub fn parse(channel_data: &str, info_bytes_max: usize) -> Result<User, String> {
    if channel_data.is_empty() {
        return Err("channel_data is missing: it says who comes in (`user_id`)".into());
    }
    let data: ChannelData<'_> = serde_json::from_str(channel_data)
        .map_err(|error| format!("channel_data is not the JSON of a user: {error}"))?;
    let id = match data.user_id.map(RawValue::get) {
        Some(text) if text.starts_with('"') => serde_json::from_str::<String>(text)
            .map_err(|error| format!("user_id is no text: {error}"))?,
        Some(number) if number.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => {
            number.to_owned()
        }
        Some(_) => return Err("user_id is neither a text nor a number".into()),
        None => return Err("channel_data has no user_id".into()),
    };
    if id.is_empty() {
        return Err("user_id is empty".into());
    }
    if id.len() > USER_BYTES_MAX {
        let bytes = id.len();
        return Err(format!(
            "user_id has {bytes} bytes; {USER_BYTES_MAX} are allowed"
        ));
    }
    let info = data.user_info.map(RawValue::get);
    let info = info.filter(|info| *info != "null");
    if let Some(bytes) = info.map(str::len).filter(|bytes| *bytes > info_bytes_max) {
        return Err(format!(
            "user_info has {bytes} bytes; {info_bytes_max} are allowed"
        ));
    }
    Ok(User {
        id: id.into(),
        info: info.map(Into::into),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::presence::INFO_BYTES_MAX;

    fn parse(data: &str) -> Result<User, String> {
        super::parse(data, INFO_BYTES_MAX)
    }

    #[test]
    fn whoever_signs_in_has_an_id() {
        let who = signs_in(r#"{"id":"a","user_info":{"x":1},"watchlist":["b"]}"#).unwrap();
        assert_eq!((&*who.id, who.watchlist), ("a", vec!["b".into()]));
        assert_eq!(signs_in(r#"{"id":"a"}"#).unwrap().watchlist, []);
        for (data, word) in [
            ("{}", "no id"),
            (r#"{"id":""}"#, "no id"),
            (r#"{"id":7}"#, "not the JSON"),
            ("a", "not the JSON"),
            (r#"{"id":"a","watchlist":"b"}"#, "not the JSON"),
            (r#"{"id":"a","watchlist":[7]}"#, "not the JSON"),
        ] {
            assert!(signs_in(data).unwrap_err().contains(word), "{data}");
        }
        let large = format!(r#"{{"id":"a","x":"{}"}}"#, "x".repeat(USER_DATA_BYTES_MAX));
        assert!(signs_in(&large).unwrap_err().contains("bytes"));
    }

    #[test]
    fn a_user_has_an_id_and_perhaps_more() {
        let user = parse(r#"{"user_id":"a","user_info":{"name": "A"}}"#).unwrap();
        assert_eq!(
            (&*user.id, user.info.as_deref()),
            ("a", Some(r#"{"name": "A"}"#))
        );
        let user = parse(r#"{"user_id":7,"user_info":null}"#).unwrap();
        assert_eq!((&*user.id, user.info), ("7", None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = format!(r#"{{"user_id":"{}"}}"#, "x".repeat(129));
        let large = format!(r#"{{"user_id":"a","user_info":"{}"}}"#, "x".repeat(2_047));
        for (data, word) in [
            ("", "missing"),
            ("{", "not the JSON"),
            ("[]", "no user_id"),
            ("{}", "no user_id"),
            (r#"{"user_id":null}"#, "no user_id"),
            (r#"{"user_id":true}"#, "neither"),
            (r#"{"user_id":""}"#, "empty"),
            (&long, "129 bytes"),
            (&large, "2049 bytes"),
        ] {
            let error = parse(data).unwrap_err();
            assert!(error.contains(word), "{data}: {error}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_texts_never_panic(data in ".{0,200}") {
            let _ = parse(&data);
        }
    }
}
