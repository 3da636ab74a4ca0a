//! Signatures of the Pusher protocol: of subscriptions and of API requests.
//! Pure: keys and the time are given; every comparison of secrets takes the
//! same time whatever it finds.

use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use proto::channel::ChannelName;
use proto::error::ErrorCode;
use proto::id::ConnectionId;
use proto::time::UnixTime;
use sha2::Sha256;

use crate::app::{App, Secret};

/// How far a request's clock may be off.
pub const TIMESTAMP_TOLERANCE_SECS: u64 = 600;
/// Characters of a text that are shown to whoever has signed another one.
const SHOWN_CHARS_MAX: usize = 512;

/// Why a signature was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A parameter is missing or not what it must be.
    #[error("{0} is missing or malformed")]
    Missing(&'static str),
    /// Another app's key.
    #[error("the key is not the one of this app")]
    WrongKey,
    /// Too old, or of the future.
    #[error(
        "auth_timestamp is {off_secs} s away from this server's clock; {TIMESTAMP_TOLERANCE_SECS} s are allowed"
    )]
    StaleTimestamp {
        /// How far.
        off_secs: u64,
    },
    /// The body is not the one that was signed.
    #[error("body_md5 is not the MD5 of the body")]
    WrongBody,
    /// The signature is of something else, or made with another secret.
    #[error(
        "the signature is not the hex HMAC-SHA256, with the app's secret, of {}", shown(.of)
    )]
    WrongSignature {
        /// The text that should have been signed.
        of: String,
    },
}

/// Text to be compared with another by eye: what cannot be seen is written as JSON
/// would.
fn shown(text: &str) -> String {
    let mut cut: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    let is_cut = cut.len() < text.len();
    cut = serde_json::Value::from(cut).to_string();
    if is_cut {
        cut.push_str(" and so on");
    }
    cut
}

impl Error {
    /// As the API says it.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Missing(_) => ErrorCode::MissingSignature,
            Self::StaleTimestamp { .. } => ErrorCode::StaleTimestamp,
            Self::WrongKey | Self::WrongBody | Self::WrongSignature { .. } => {
                ErrorCode::BadSignature
            }
        }
    }

    /// As metrics count it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing(_) => "missing",
            Self::StaleTimestamp { .. } => "expired",
            Self::WrongKey | Self::WrongBody | Self::WrongSignature { .. } => "bad_signature",
        }
    }
}

/// The token with which a client may subscribe to a channel: what an app's
/// backend computes as `auth`, without the key before the colon.
pub fn channel_signature(
    secret: &Secret,
    connection: ConnectionId,
    channel: &ChannelName,
    channel_data: Option<&str>,
) -> String {
    sign(secret, &channel_text(connection, channel, channel_data))
}

/// Checks a client's `auth` for a channel: `<app key>:<hex signature>`.
pub fn verify_channel(
    app: &App,
    connection: ConnectionId,
    channel: &ChannelName,
    channel_data: Option<&str>,
    auth: Option<&str>,
) -> Result<(), Error> {
    let (key, signature) = auth
        .and_then(|auth| auth.rsplit_once(':'))
        .ok_or(Error::Missing("auth"))?;
    // The key is public: comparing it may take any time.
    if key != &*app.key {
        return Err(Error::WrongKey);
    }
    let text = channel_text(connection, channel, channel_data);
    verify(&app.secret, text, signature)
}

/// Checks a client's `auth` for signing in as the user that `user_data` says.
pub fn verify_user(
    app: &App,
    connection: ConnectionId,
    user_data: &str,
    auth: &str,
) -> Result<(), Error> {
    let (key, signature) = auth.rsplit_once(':').ok_or(Error::Missing("auth"))?;
    if key != &*app.key {
        return Err(Error::WrongKey);
    }
    verify(&app.secret, user_text(connection, user_data), signature)
}

/// The token with which a client may sign in: what an app's backend computes as `auth`,
/// without the key before the colon.
pub fn user_signature(secret: &Secret, connection: ConnectionId, user_data: &str) -> String {
    sign(secret, &user_text(connection, user_data))
}

fn user_text(connection: ConnectionId, user_data: &str) -> String {
    format!("{connection}::user::{user_data}")
}

fn channel_text(
    connection: ConnectionId,
    channel: &ChannelName,
    channel_data: Option<&str>,
) -> String {
    match channel_data {
        Some(data) => format!("{connection}:{channel}:{data}"),
        None => format!("{connection}:{channel}"),
    }
}

/// A request to the HTTP API, as far as its signature goes. The body is signed
/// by its MD5, which stands in the query: who signed can be told before the
/// body is read.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Upper case.
    pub method: &'a str,
    /// As the client sees it, without query.
    pub path: &'a str,
    /// The raw query string.
    pub query: &'a str,
}

/// A request whose signature is right; its body is still to be checked.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Signed {
    body_md5: Option<String>,
}

impl Signed {
    /// Checks that the body is the one that was signed.
    pub fn check_body(&self, body: &[u8]) -> Result<(), Error> {
        let Some(md5) = &self.body_md5 else {
            return if body.is_empty() {
                Ok(())
            } else {
                Err(Error::Missing("body_md5"))
            };
        };
        // The digest is public: it stands in the URL.
        if body.is_empty() || md5.eq_ignore_ascii_case(&hex::encode(Md5::digest(body))) {
            return Ok(());
        }
        Err(Error::WrongBody)
    }
}

/// Checks the signature of an API request.
pub fn verify_request(app: &App, request: Request<'_>, now: UnixTime) -> Result<Signed, Error> {
    let parameters = parameters(request.query);
    let find = |name: &str| {
        parameters
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    };
    let get = |name: &'static str| find(name).ok_or(Error::Missing(name));
    if get("auth_key")? != &*app.key {
        return Err(Error::WrongKey);
    }
    if get("auth_version")? != "1.0" {
        return Err(Error::Missing("auth_version"));
    }
    let signature = get("auth_signature")?;
    let timestamp: u64 = get("auth_timestamp")?
        .parse()
        .map_err(|_| Error::Missing("auth_timestamp"))?;
    verify(&app.secret, request_text(request, &parameters), signature)?;
    // Last, so that only who knows the secret learns of this server's clock.
    let off_secs = timestamp.abs_diff(now.secs());
    if off_secs > TIMESTAMP_TOLERANCE_SECS {
        return Err(Error::StaleTimestamp { off_secs });
    }
    Ok(Signed {
        body_md5: find("body_md5").map(str::to_owned),
    })
}

/// The query with which a backend calls the API: parameters and signature.
pub fn sign_request(
    key: &str,
    secret: &Secret,
    request: Request<'_>,
    body: &[u8],
    now: UnixTime,
) -> String {
    let mut query = form_urlencoded::Serializer::new(request.query.to_owned());
    query
        .append_pair("auth_key", key)
        .append_pair("auth_timestamp", &now.secs().to_string())
        .append_pair("auth_version", "1.0");
    if !body.is_empty() {
        query.append_pair("body_md5", &hex::encode(Md5::digest(body)));
    }
    let query = query.finish();
    let signature = sign(secret, &request_text(request, &parameters(&query)));
    format!("{query}&auth_signature={signature}")
}

/// Decoded, keys in lower case, sorted.
fn parameters(query: &str) -> Vec<(String, String)> {
    let mut parameters: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes())
        .map(|(key, value)| (key.to_ascii_lowercase(), value.into_owned()))
        .collect();
    parameters.sort();
    parameters
}

fn request_text(request: Request<'_>, parameters: &[(String, String)]) -> String {
    let signed = parameters.iter().filter(|(key, _)| key != "auth_signature");
    let query: Vec<String> = signed
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let Request { method, path, .. } = request;
    format!("{method}\n{path}\n{}", query.join("&"))
}

fn sign(secret: &Secret, text: &str) -> String {
    let mac = keyed(secret).chain_update(text);
    hex::encode(mac.finalize().into_bytes())
}

fn verify(secret: &Secret, text: String, signature: &str) -> Result<(), Error> {
    let mac = keyed(secret).chain_update(&text);
    match hex::decode(signature) {
        Ok(signature) if mac.verify_slice(&signature).is_ok() => Ok(()),
        _ => Err(Error::WrongSignature { of: text }),
    }
}

pub(super) fn keyed(secret: &Secret) -> Hmac<Sha256> {
    Hmac::new_from_slice(secret.expose().as_bytes()).expect("HMAC takes keys of any length")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn app() -> App {
        App::new(
            "3".parse().unwrap(),
            "278d425bdf160c739803",
            "7ad3773142a6692b25b8",
        )
    }

    /// The worked example of the Pusher documentation, "Authenticating users".
    #[test]
    fn the_documented_channel_signature() {
        let connection = "1234.1234".parse().unwrap();
        let channel: ChannelName = "private-foobar".parse().unwrap();
        let signature = "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4";
        assert_eq!(
            channel_signature(&app().secret, connection, &channel, None),
            signature
        );
        let auth = format!("278d425bdf160c739803:{signature}");
        let verify = |auth: Option<&str>| verify_channel(&app(), connection, &channel, None, auth);
        assert_eq!(verify(Some(&auth)), Ok(()));
        assert_eq!(verify(None), Err(Error::Missing("auth")));
        assert_eq!(verify(Some("")), Err(Error::Missing("auth")));
        assert_eq!(
            verify(Some(&auth.replace("278d", "0000"))),
            Err(Error::WrongKey)
        );
        let of = "1234.1234:private-foobar".to_owned();
        let wrong = Err(Error::WrongSignature { of });
        assert_eq!(verify(Some(&auth.replace("58df", "58de"))), wrong);
        assert_eq!(verify(Some("278d425bdf160c739803:zz")), wrong);
    }

    /// The worked example of the Pusher documentation, "HTTP API".
    #[test]
    fn the_documented_request_signature() {
        let body = br#"{"name":"foo","channels":["project-3"],"data":"{\"some\":\"data\"}"}"#;
        let query = "auth_key=278d425bdf160c739803&auth_timestamp=1353088179&auth_version=1.0\
            &body_md5=ec365a775a4cd0599faeb73354201b6f\
            &auth_signature=da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c";
        let request = Request {
            method: "POST",
            path: "/apps/3/events",
            query,
        };
        let now = UnixTime(1_353_088_179 * 1_000_000);
        let signed = verify_request(&app(), request, now).unwrap();
        assert_eq!(signed.check_body(body), Ok(()));
        assert_eq!(signed.check_body(b"{}"), Err(Error::WrongBody));
        let late = UnixTime(now.0 + 601 * 1_000_000);
        assert_eq!(
            verify_request(&app(), request, late),
            Err(Error::StaleTimestamp { off_secs: 601 })
        );
        let other_path = Request {
            path: "/apps/3/event",
            ..request
        };
        let of = "POST\n/apps/3/event\nauth_key=278d425bdf160c739803\
            &auth_timestamp=1353088179&auth_version=1.0\
            &body_md5=ec365a775a4cd0599faeb73354201b6f"
            .to_owned();
        let wrong = Error::WrongSignature { of };
        assert_eq!(verify_request(&app(), other_path, now), Err(wrong.clone()));
        assert!(
            wrong
                .to_string()
                .contains(r#"of "POST\n/apps/3/event\nauth_key=278d"#)
        );
        let unsigned = Request {
            query: "auth_key=278d425bdf160c739803&auth_version=1.0",
            ..request
        };
        assert_eq!(
            verify_request(&app(), unsigned, now),
            Err(Error::Missing("auth_signature"))
        );
    }

    #[test]
    fn a_long_text_is_shown_by_its_beginning() {
        assert_eq!(shown("a\"b"), r#""a\"b""#);
        let long = "é".repeat(SHOWN_CHARS_MAX + 1);
        let begin = format!("\"{}\" and so on", "é".repeat(SHOWN_CHARS_MAX));
        assert_eq!(shown(&long), begin);
    }

    #[test]
    fn what_we_sign_we_accept() {
        let now = UnixTime(5_000_000_000);
        let request = Request {
            method: "GET",
            path: "/apps/3/channels",
            query: "info=a%20b&filter_by_prefix=x",
        };
        let query = sign_request("278d425bdf160c739803", &app().secret, request, b"", now);
        let signed = verify_request(
            &app(),
            Request {
                query: &query,
                ..request
            },
            now,
        )
        .unwrap();
        assert_eq!(signed.check_body(b""), Ok(()));
        assert_eq!(signed.check_body(b"more"), Err(Error::Missing("body_md5")));
    }

    proptest! {
        #[test]
        fn arbitrary_requests_never_panic(query in ".{0,200}", path in ".{0,50}") {
            let request = Request { method: "POST", path: &path, query: &query };
            prop_assert!(verify_request(&app(), request, UnixTime(0)).is_err());
        }

        #[test]
        fn arbitrary_auth_never_passes(auth in ".{0,120}") {
            let channel: ChannelName = "private-x".parse().unwrap();
            let connection = "1.1".parse().unwrap();
            prop_assert!(verify_channel(&app(), connection, &channel, None, Some(&auth)).is_err());
        }
    }
}
