//! Namespaces: patterns of channel names with their settings.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::channel::ChannelKey;
use crate::id::AppId;

/// How much of a channel's past its owner keeps. All three bounds hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryLimits {
    /// How many publications. Zero: no history.
    pub publications: u32,
    /// For how long.
    pub age: Duration,
    /// How many bytes.
    pub bytes: u32,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self {
            publications: 256,
            age: Duration::from_secs(300),
            bytes: 256 * 1_024,
        }
    }
}

/// Who has a channel's publications besides its owner, and what becomes of them
/// while nobody stands by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standby {
    /// They are taken all the same, and the acknowledgement says that they are in
    /// one process.
    #[default]
    Prefer,
    /// They are refused.
    Require,
    /// Nobody is to have them: they are acknowledged by the owner alone, and gone
    /// with it.
    None,
}

impl Standby {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What becomes of a client that reads a channel more slowly than it is published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Slow {
    /// It is told so and disconnected.
    #[default]
    Disconnect,
    /// It stays, and is given what it missed when it has read what waits; what
    /// history has no more is announced as a gap.
    Gap,
}

/// Settings for the channels whose name matches a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Matched against the channel's name after the prefix of its kind; `*`
    /// stands for any run of characters.
    pub pattern: String,
    /// Only this app's channels; `None`: every app's.
    pub app: Option<AppId>,
    /// What its channels keep.
    pub history: HistoryLimits,
    /// Whether its channels may be, or are to be, in one process only.
    #[serde(default, skip_serializing_if = "Standby::is_default")]
    pub standby: Standby,
    /// What becomes of slow clients. A matter of each gateway: nodes neither tell nor
    /// compare it.
    #[serde(skip)]
    pub slow: Slow,
}

/// All namespaces, in order: the first match wins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    rules: Vec<Namespace>,
    rest: HistoryLimits,
}

impl Namespaces {
    /// The rules in order; channels that match none have the default limits.
    pub fn new(rules: Vec<Namespace>) -> Self {
        Self {
            rules,
            rest: HistoryLimits::default(),
        }
    }

    /// Says whether two processes have the same namespaces: a hash of their
    /// encoded form.
    pub fn digest(&self) -> u64 {
        let bytes = rmp_serde::to_vec(self).expect("our types always encode into memory");
        xxhash_rust::xxh3::xxh3_64(&bytes)
    }

    /// The history limits of a channel.
    pub fn history(&self, key: &ChannelKey) -> &HistoryLimits {
        self.rule(key).map_or(&self.rest, |rule| &rule.history)
    }

    /// Who is to have a channel besides its owner.
    pub fn standby(&self, key: &ChannelKey) -> Standby {
        // Rarely does any say so.
        if self.rules.iter().all(|rule| rule.standby.is_default()) {
            return Standby::default();
        }
        self.rule(key)
            .map_or(Standby::default(), |rule| rule.standby)
    }

    /// What becomes of the slow clients of a channel.
    pub fn slow(&self, key: &ChannelKey) -> Slow {
        self.rule(key).map_or(Slow::default(), |rule| rule.slow)
    }

    fn rule(&self, key: &ChannelKey) -> Option<&Namespace> {
        let base = key.channel.base();
        self.rules.iter().find(|rule| {
            rule.app.as_ref().is_none_or(|app| *app == key.app) && matches(&rule.pattern, base)
        })
    }
}

/// Whether `text` is `pattern` with every `*` filled in. Greedy with one level
/// of backtracking, so it is linear but for the last star.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((star_p, star_t)) = star {
            star = Some((star_p, star_t + 1));
            p = star_p + 1;
            t = star_t + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("*", "anything", true),
            ("chat-*", "chat-1", true),
            ("chat-*", "chat", false),
            ("*-log", "a-b-log", true),
            ("a*b*c", "a1b2b3c", true),
            ("a*b*c", "a1b2b3", false),
            ("exact", "exact", true),
            ("exact", "exact1", false),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern:?} on {text:?}");
        }
    }

    #[test]
    fn first_match_wins_after_the_prefix_of_the_kind() {
        let rule = |pattern: &str, app: Option<&str>, publications| Namespace {
            pattern: pattern.into(),
            app: app.map(|app| app.parse().unwrap()),
            history: HistoryLimits {
                publications,
                ..HistoryLimits::default()
            },
            standby: match publications {
                2 => Standby::Require,
                3 => Standby::None,
                _ => Standby::Prefer,
            },
            slow: match publications {
                2 => Slow::Gap,
                _ => Slow::Disconnect,
            },
        };
        let namespaces = Namespaces::new(vec![
            rule("chat-*", Some("a"), 1),
            rule("chat-*", None, 2),
            rule("*", None, 3),
        ]);
        let settings = |namespaces: &Namespaces, app: &str, channel: &str| {
            let key = ChannelKey {
                app: app.parse().unwrap(),
                channel: channel.parse().unwrap(),
            };
            (
                namespaces.history(&key).publications,
                namespaces.standby(&key),
                namespaces.slow(&key),
            )
        };
        assert_eq!(
            settings(&namespaces, "a", "private-chat-1"),
            (1, Standby::Prefer, Slow::Disconnect)
        );
        assert_eq!(
            settings(&namespaces, "b", "chat-1"),
            (2, Standby::Require, Slow::Gap)
        );
        assert_eq!(
            settings(&namespaces, "b", "news"),
            (3, Standby::None, Slow::Disconnect)
        );
        let none = Namespaces::default();
        assert_eq!(
            settings(&none, "a", "x"),
            (256, Standby::Prefer, Slow::Disconnect)
        );
        let slow = |slow| {
            let rule = Namespace {
                slow,
                ..rule("*", None, 1)
            };
            Namespaces::new(vec![rule]).digest()
        };
        assert_eq!(
            slow(Slow::Gap),
            slow(Slow::Disconnect),
            "nodes and gateways may differ in it"
        );
    }
}
