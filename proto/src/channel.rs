//! Channel names: what is allowed, and what kind of channel a name means.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::AppId;
use crate::presence::USER_BYTES_MAX;

/// How long a cache channel keeps its last publication.
pub const CACHE_AGE: Duration = Duration::from_secs(30 * 60);

/// Before the id of a user in the name of its channel.
const USER: &str = "#server-to-user-";

/// Longest channel name, in bytes.
pub const CHANNEL_BYTES_MAX: usize = 200;

/// Who may subscribe to a channel, told by the name's prefix as in the
/// [Pusher protocol](https://pusher.com/docs/channels/using_channels/channels/).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChannelKind {
    /// Anyone who knows the app key.
    Public,
    /// `private-`: with a signature of the app's secret.
    Private,
    /// `private-encrypted-`: like private; the payload is opaque to the server.
    Encrypted,
    /// `presence-`: with a signature, and members are told of each other.
    Presence,
    /// `#server-to-user-`: for the connections of a user that have signed in.
    User,
}

impl ChannelKind {
    /// What names of this kind begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Public => "",
            Self::Private => "private-",
            Self::Encrypted => "private-encrypted-",
            Self::Presence => "presence-",
            Self::User => USER,
        }
    }
}

/// The name of a channel inside an app.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Arc<str>", into = "Arc<str>")]
pub struct ChannelName(Arc<str>);

/// Why a text is not a channel name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidChannelName {
    /// No name at all.
    #[error("a channel name cannot be empty")]
    Empty,
    /// Longer than [`CHANNEL_BYTES_MAX`].
    #[error("a channel name has at most {CHANNEL_BYTES_MAX} characters, this one has {0}")]
    TooLong(usize),
    /// A character outside the alphabet of the Pusher protocol.
    #[error("a channel name cannot contain {0:?}: use A-Z a-z 0-9 _ - = @ , . ;")]
    Character(char),
}

/// What is no id of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the id of a user has 1 to {USER_BYTES_MAX} bytes and no control characters")]
pub struct InvalidUserId;

impl ChannelName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What kind of channel the prefix says it is.
    pub fn kind(&self) -> ChannelKind {
        // Longest prefix first: private-encrypted- is also private-.
        [
            ChannelKind::Encrypted,
            ChannelKind::Private,
            ChannelKind::Presence,
            ChannelKind::User,
        ]
        .into_iter()
        .find(|kind| self.0.starts_with(kind.prefix()))
        .unwrap_or(ChannelKind::Public)
    }

    /// The channel of a user.
    ///
    /// # Errors
    /// When nobody can have this id.
    pub fn of_user(id: &str) -> Result<Self, InvalidUserId> {
        Self::try_from(Arc::from(format!("{USER}{id}"))).map_err(|_| InvalidUserId)
    }

    /// Whose channel it is, if it is a user's.
    pub fn user(&self) -> Option<&str> {
        self.0.strip_prefix(USER)
    }

    /// The name without the prefix of its kind; what namespaces match on. Of a user's
    /// channel it is the whole name: ids are no names that anybody has chosen for this.
    pub fn base(&self) -> &str {
        match self.kind() {
            ChannelKind::User => &self.0,
            kind => &self.0[kind.prefix().len()..],
        }
    }

    /// Whether subscribers expect the last event upon subscribing: `cache-`
    /// stands first after the prefix of the kind.
    pub fn is_cache(&self) -> bool {
        self.base().starts_with("cache-")
    }
}

impl TryFrom<Arc<str>> for ChannelName {
    type Error = InvalidChannelName;

    fn try_from(text: Arc<str>) -> Result<Self, InvalidChannelName> {
        if text.is_empty() {
            return Err(InvalidChannelName::Empty);
        }
        if text.len() > CHANNEL_BYTES_MAX {
            return Err(InvalidChannelName::TooLong(text.chars().count()));
        }
        if let Some(user) = text.strip_prefix(USER) {
            return match user.chars().find(|c| c.is_control()) {
                Some(c) => Err(InvalidChannelName::Character(c)),
                None if user.is_empty() => Err(InvalidChannelName::Empty),
                None if user.len() > USER_BYTES_MAX => {
                    Err(InvalidChannelName::TooLong(text.chars().count()))
                }
                None => Ok(Self(text)),
            };
        }
        match text.chars().find(|c| !is_channel_character(*c)) {
            Some(c) => Err(InvalidChannelName::Character(c)),
            None => Ok(Self(text)),
        }
    }
}

fn is_channel_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '=' | '@' | ',' | '.' | ';')
}

impl FromStr for ChannelName {
    type Err = InvalidChannelName;

    fn from_str(text: &str) -> Result<Self, InvalidChannelName> {
        Self::try_from(Arc::from(text))
    }
}

impl From<ChannelName> for Arc<str> {
    fn from(name: ChannelName) -> Self {
        name.0
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A channel, in full: names are unique only inside their app.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChannelKey {
    /// The app it belongs to.
    pub app: AppId,
    /// Its name there.
    pub channel: ChannelName,
}

impl ChannelKey {
    /// A hash of app and name, the same in every process; for digests of sets
    /// of channels ([`crate::message::InterestDigest`]).
    pub fn fingerprint(&self) -> u64 {
        let app = self.app.as_str().as_bytes();
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(&(app.len() as u32).to_le_bytes());
        hash.update(app);
        hash.update(self.channel.as_str().as_bytes());
        hash.digest()
    }
}

impl fmt::Display for ChannelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.app, self.channel)
    }
}

impl fmt::Debug for ChannelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ChannelName {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_tells_the_kind() {
        assert_eq!(name("room").kind(), ChannelKind::Public);
        assert_eq!(name("privateroom").kind(), ChannelKind::Public);
        assert_eq!(name("private-room").kind(), ChannelKind::Private);
        assert_eq!(
            name("private-encrypted-room").kind(),
            ChannelKind::Encrypted
        );
        assert_eq!(name("presence-room").kind(), ChannelKind::Presence);
        assert_eq!(name("private-encrypted-room").base(), "room");
    }

    #[test]
    fn cache_is_anchored_after_the_kind() {
        assert!(name("cache-x").is_cache());
        assert!(name("private-encrypted-cache-x").is_cache());
        assert!(!name("mycache-x").is_cache());
    }

    #[test]
    fn a_user_has_a_channel_whatever_its_id() {
        let zoe = ChannelName::of_user("Zoë: 1").unwrap();
        assert_eq!(zoe.as_str(), "#server-to-user-Zoë: 1");
        assert_eq!(zoe, name("#server-to-user-Zoë: 1"));
        assert_eq!(zoe.kind(), ChannelKind::User);
        assert_eq!(zoe.base(), zoe.as_str());
        assert!(!ChannelName::of_user("cache-1").unwrap().is_cache());
        assert_eq!(ChannelName::of_user(""), Err(InvalidUserId));
        assert_eq!(ChannelName::of_user("a\n"), Err(InvalidUserId));
        assert!(ChannelName::of_user(&"x".repeat(128)).is_ok());
        assert!(ChannelName::of_user(&"x".repeat(129)).is_err());
        assert!("#other".parse::<ChannelName>().is_err());
    }

    #[test]
    fn bad_names_say_what_is_wrong() {
        assert_eq!("".parse::<ChannelName>(), Err(InvalidChannelName::Empty));
        assert_eq!(
            "a b".parse::<ChannelName>(),
            Err(InvalidChannelName::Character(' '))
        );
        assert_eq!(
            "a\0".parse::<ChannelName>(),
            Err(InvalidChannelName::Character('\0'))
        );
        assert_eq!(
            "x".repeat(201).parse::<ChannelName>(),
            Err(InvalidChannelName::TooLong(201))
        );
    }
}
