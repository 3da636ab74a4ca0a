//! What a backend wants to be told of channels: `info`.

use proto::channel::{ChannelKind, ChannelName};

use crate::app::App;

/// What may be told of a channel besides whether anybody is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Info {
    /// How many users are present.
    pub user_count: bool,
    /// How many connections are subscribed.
    pub subscription_count: bool,
    /// What a cache channel keeps.
    pub cache: bool,
}

impl Info {
    /// Reads names with commas between them.
    ///
    /// # Errors
    /// Which one is none, for the caller.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut info = Self::default();
        for name in text
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            match name {
                "user_count" => info.user_count = true,
                "subscription_count" => info.subscription_count = true,
                "cache" => info.cache = true,
                other => {
                    return Err(format!(
                        "info: {other:?} is not known; user_count, subscription_count and cache are"
                    ));
                }
            }
        }
        Ok(info)
    }

    /// Whether the app has what does not depend on the channel.
    ///
    /// # Errors
    /// What it does not have, for the caller.
    pub fn check_app(self, app: &App) -> Result<(), String> {
        if self.subscription_count && !app.subscription_count {
            return Err(
                "info: subscribers of this app are not counted; its setting subscription_count turns that on".into(),
            );
        }
        Ok(())
    }

    /// Whether a channel has all of it.
    ///
    /// # Errors
    /// What it does not have, for the caller.
    pub fn check(self, channel: &ChannelName) -> Result<(), String> {
        if self.user_count && channel.kind() != ChannelKind::Presence {
            return Err(format!(
                "info: user_count is of presence channels, and {channel} is none"
            ));
        }
        if self.cache && !channel.is_cache() {
            return Err(format!(
                "info: cache is of cache channels, and {channel} is none"
            ));
        }
        Ok(())
    }

    /// Whether nothing is wanted.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_may_be_asked_of_channels_that_have_it() {
        let info = Info::parse(" user_count, ").unwrap();
        assert!(info.user_count);
        assert_eq!(info.check(&"presence-a".parse().unwrap()), Ok(()));
        assert!(info.check(&"private-a".parse().unwrap()).is_err());
        let info = Info::parse("cache").unwrap();
        assert_eq!(info.check(&"private-cache-a".parse().unwrap()), Ok(()));
        assert!(info.check(&"mycache-a".parse().unwrap()).is_err());
        assert!(Info::parse("").unwrap().is_empty());
        assert!(
            Info::parse("user_count,colour")
                .unwrap_err()
                .contains("colour")
        );
    }
}
