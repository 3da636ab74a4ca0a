//! Tokens of an app for those who cannot sign each request: event streams of private
//! channels, and whoever publishes without the app's secret. A JSON Web Token
//! ([RFC 7519](https://www.rfc-editor.org/rfc/rfc7519)) in its compact form
//! ([RFC 7515](https://www.rfc-editor.org/rfc/rfc7515)), signed with HS256 alone: what
//! its header calls its algorithm never decides how it is verified.
//!
//! Pure: the time is given.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::Mac;
use proto::channel::{ChannelKind, ChannelName};
use proto::error::ErrorCode;
use proto::namespace::matches;
use proto::time::UnixTime;
use serde::{Deserialize, Serialize};

use super::auth::keyed;
use crate::app::{App, Secret};

/// Bytes of a token at most; it goes into a request's head.
pub const TOKEN_BYTES_MAX: usize = 8 * 1_024;
/// Patterns of channels for each purpose at most.
pub const PATTERNS_MAX: usize = 64;
/// How far the clock of whoever made it may be ahead, seconds.
pub const SKEW_SECS: u64 = 5;

/// Why a token was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is not a token, or not one that says what is needed.
    #[error("the token {0}")]
    Malformed(&'static str),
    /// It was made with another secret, or changed since.
    #[error("the token's signature is wrong")]
    WrongSignature,
    /// It is not valid any more.
    #[error("the token has expired")]
    Expired,
}

impl Error {
    /// As answers say it.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Malformed(_) | Self::WrongSignature => ErrorCode::BadToken,
            Self::Expired => ErrorCode::ExpiredToken,
        }
    }

    /// As metrics count it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::WrongSignature => "bad_signature",
            Self::Expired => "expired",
        }
    }
}

/// What a token says. Other claims may be there, and mean nothing here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// From this second on, since 1970, it is not valid.
    pub exp: u64,
    /// Before this second it is not valid yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    /// Patterns of channels that may be read; `*` stands for any run of characters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subscribe: Vec<String>,
    /// Patterns of channels that may be published into.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Header<'a> {
    alg: &'a str,
    #[serde(default)]
    typ: Option<&'a str>,
    #[serde(default)]
    kid: Option<&'a str>,
}

impl Claims {
    /// Whether the channel may be read. Who is in a presence channel or gets what is
    /// sent to a user is somebody, and a token is nobody.
    pub fn may_subscribe(&self, channel: &ChannelName) -> bool {
        !matches!(channel.kind(), ChannelKind::Presence | ChannelKind::User)
            && covers(&self.subscribe, channel)
    }

    /// Whether it may be published into the channel.
    pub fn may_publish(&self, channel: &ChannelName) -> bool {
        covers(&self.publish, channel)
    }

    /// How long it is valid from now on, seconds.
    pub fn valid_for_secs(&self, now: UnixTime) -> u64 {
        self.exp.saturating_sub(now.secs())
    }
}

/// A user's channel has to be meant: a star at the beginning does not stand for it.
fn covers(patterns: &[String], channel: &ChannelName) -> bool {
    let meant = |pattern: &String| channel.kind() != ChannelKind::User || pattern.starts_with('#');
    patterns
        .iter()
        .any(|pattern| meant(pattern) && matches(pattern, channel.as_str()))
}

/// Checks a token of an app: what it allows.
pub fn verify(app: &App, token: &str, now: UnixTime) -> Result<Claims, Error> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Error::Malformed("has more than 8192 bytes"));
    }
    let not_compact = Error::Malformed("is not three parts with points between them");
    let (signed, signature) = token.rsplit_once('.').ok_or(not_compact.clone())?;
    let (header, claims) = signed.split_once('.').ok_or(not_compact)?;
    let header = decoded(header)?;
    let header: Header<'_> = serde_json::from_slice(&header)
        .map_err(|_| Error::Malformed("has a header that is not understood"))?;
    if header.alg != "HS256" {
        return Err(Error::Malformed("is not signed with HS256"));
    }
    // The key is public: comparing it may take any time.
    if header.kid != Some(&*app.key) {
        return Err(Error::Malformed("does not have the app's key as its kid"));
    }
    let signature = decoded(signature)?;
    let mut mac = keyed(&app.secret);
    mac.update(signed.as_bytes());
    mac.verify_slice(&signature)
        .map_err(|_| Error::WrongSignature)?;
    // From here on it is the app's backend that speaks.
    let claims: Claims = serde_json::from_slice(&decoded(claims)?).map_err(|_| {
        Error::Malformed("has claims that are not understood: exp is a number of seconds, subscribe and publish are lists of patterns")
    })?;
    if claims.subscribe.len().max(claims.publish.len()) > PATTERNS_MAX {
        return Err(Error::Malformed("has more than 64 patterns"));
    }
    if claims.exp <= now.secs() {
        return Err(Error::Expired);
    }
    if claims.nbf.is_some_and(|nbf| nbf > now.secs() + SKEW_SECS) {
        return Err(Error::Malformed("is not valid yet"));
    }
    Ok(claims)
}

/// Makes a token.
pub fn issue(key: &str, secret: &Secret, claims: &Claims) -> String {
    let header = Header {
        alg: "HS256",
        typ: Some("JWT"),
        kid: Some(key),
    };
    let signed = format!("{}.{}", encoded(&header), encoded(claims));
    let mut mac = keyed(secret);
    mac.update(signed.as_bytes());
    let signature = URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
    format!("{signed}.{signature}")
}

fn decoded(part: &str) -> Result<Vec<u8>, Error> {
    URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| Error::Malformed("has a part that is not base64url"))
}

fn encoded(part: &impl Serialize) -> String {
    let json = serde_json::to_vec(part).expect("texts and numbers always encode into memory");
    URL_SAFE_NO_PAD.encode(json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: UnixTime = UnixTime(1_000 * 1_000_000);

    fn app() -> App {
        App::new("a".parse().unwrap(), "key", "secret")
    }

    fn claims() -> Claims {
        Claims {
            exp: 1_001,
            nbf: None,
            subscribe: vec!["private-a-*".into()],
            publish: vec![],
        }
    }

    fn issued(claims: &Claims) -> String {
        issue("key", &Secret::new("secret"), claims)
    }

    /// Signs whatever a backend may have written.
    fn signed(header: &str, claims: &str) -> String {
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(claims)
        );
        let mut mac = keyed(&Secret::new("secret"));
        mac.update(signed.as_bytes());
        let signature = URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
        format!("{signed}.{signature}")
    }

    /// The example of RFC 7515, appendix A.1, with its key: its header has no `kid`, so
    /// it is as far as it goes that the signature is looked at.
    #[test]
    fn the_signature_of_the_rfc() {
        let signed = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        let key = URL_SAFE_NO_PAD
            .decode("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")
            .unwrap();
        let mut mac = <hmac::Hmac<sha2::Sha256> as hmac::KeyInit>::new_from_slice(&key).unwrap();
        mac.update(signed.as_bytes());
        assert_eq!(
            URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()),
            "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
        );
    }

    #[test]
    fn what_is_issued_is_accepted_until_it_expires() {
        let token = issued(&claims());
        assert_eq!(verify(&app(), &token, NOW), Ok(claims()));
        let late = UnixTime(1_001 * 1_000_000);
        assert_eq!(verify(&app(), &token, late), Err(Error::Expired));
        let early = Claims {
            nbf: Some(1_006),
            exp: 2_000,
            ..claims()
        };
        let early = issued(&early);
        assert!(verify(&app(), &early, NOW).is_err());
        assert!(verify(&app(), &early, late).is_ok());
    }

    #[test]
    fn nothing_in_a_token_decides_how_it_is_verified() {
        let right = issued(&claims());
        let refusal = |token: &str| verify(&app(), token, NOW).unwrap_err();
        let good = r#"{"exp":1001,"subscribe":["a"]}"#;
        for header in [
            r#"{"alg":"none","kid":"key"}"#,
            r#"{"alg":"hs256","kid":"key"}"#,
            r#"{"alg":"RS256","kid":"key"}"#,
            r#"{"alg":"HS256"}"#,
            r#"{"alg":"HS256","kid":"another"}"#,
            r#"{"kid":"key"}"#,
            "[]",
        ] {
            assert!(
                matches!(refusal(&signed(header, good)), Error::Malformed(_)),
                "{header}"
            );
        }
        let header = r#"{"alg":"HS256","kid":"key"}"#;
        assert!(verify(&app(), &signed(header, good), NOW).is_ok());
        for claims in [
            "{}",
            r#"{"exp":"1001"}"#,
            r#"{"exp":-1}"#,
            r#"{"exp":1001.5}"#,
            r#"{"exp":1001,"subscribe":"a"}"#,
            "",
        ] {
            assert!(
                matches!(refusal(&signed(header, claims)), Error::Malformed(_)),
                "{claims}"
            );
        }
        let (unsigned, _) = right.rsplit_once('.').unwrap();
        assert_eq!(refusal(&format!("{unsigned}.")), Error::WrongSignature);
        let other = issue("key", &Secret::new("another"), &claims());
        assert_eq!(refusal(&other), Error::WrongSignature);
        let many = Claims {
            publish: vec!["a".into(); 65],
            ..claims()
        };
        assert!(matches!(refusal(&issued(&many)), Error::Malformed(_)));
    }

    #[test]
    fn patterns_say_which_channels() {
        let may = |pattern: &str, channel: &str| {
            let claims = Claims {
                subscribe: vec![pattern.into()],
                publish: vec![pattern.into()],
                ..claims()
            };
            let channel = channel.parse().unwrap();
            (claims.may_subscribe(&channel), claims.may_publish(&channel))
        };
        assert_eq!(may("private-a-*", "private-a-1"), (true, true));
        assert_eq!(may("private-a-*", "private-b-1"), (false, false));
        assert_eq!(may("a", "private-a"), (false, false), "the whole name");
        assert_eq!(may("*", "private-encrypted-a"), (true, true));
        assert_eq!(may("*", "presence-a"), (false, true));
        assert_eq!(may("*", "#server-to-user-1"), (false, false));
        assert_eq!(may("#server-to-user-1", "#server-to-user-1"), (false, true));
    }

    proptest! {
        #[test]
        fn nothing_else_is_a_token(token in "[A-Za-z0-9_.-]{0,300}") {
            prop_assert!(verify(&app(), &token, NOW).is_err());
        }

        #[test]
        fn a_changed_token_is_none(at in 0_usize..200, to in "[A-Za-z0-9_-]") {
            let right = issued(&claims());
            let at = at % right.len();
            let mut changed = right.clone();
            changed.replace_range(at..=at, &to);
            prop_assume!(changed != right);
            // The last character of a part may have bits that mean nothing; the decoder
            // insists that they are zero.
            prop_assert!(verify(&app(), &changed, NOW).is_err());
        }
    }
}
