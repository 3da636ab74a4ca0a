//! Whom a client watches: users, of each of whom it is told whether it is online. A user
//! is online while anybody is a member of its channel, `#server-to-user-{id}`.
//!
//! What a client is told first is the state of all of them, in one piece; so what changes
//! before all are known goes into that.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Users that one client may watch.
pub const WATCHED_MAX: usize = 100;

/// What a client is told of whom it watches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct News {
    /// These are online now,
    pub online: Vec<Arc<str>>,
    /// and these are not.
    pub offline: Vec<Arc<str>>,
}

impl News {
    /// Of one user.
    pub fn of(user: Arc<str>, is_online: bool) -> Self {
        let mut news = Self::default();
        news.add(user, is_online);
        news
    }

    fn add(&mut self, user: Arc<str>, is_online: bool) {
        match is_online {
            true => self.online.push(user),
            false => self.offline.push(user),
        }
    }
}

/// What a client has not been told yet. See the [module](self).
#[derive(Debug)]
pub struct Watching {
    users: BTreeMap<Arc<str>, Option<bool>>,
}

impl Watching {
    /// A client watches these users.
    pub fn new(users: impl IntoIterator<Item = Arc<str>>) -> Self {
        let users = users.into_iter().map(|user| (user, None)).collect();
        Self { users }
    }

    /// A user is online now, or is not. `Some`: that was the last one of whom it was not
    /// known, and the client is told this.
    pub fn set(&mut self, user: &str, is_online: bool) -> Option<News> {
        *self.users.get_mut(user)? = Some(is_online);
        if self.users.values().any(Option::is_none) {
            return None;
        }
        let mut news = News::default();
        for (user, is_online) in std::mem::take(&mut self.users) {
            news.add(user, is_online.unwrap_or_default());
        }
        Some(news)
    }

    /// Whether the client waits to be told.
    pub fn is_waiting(&self) -> bool {
        !self.users.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_told_in_one_piece_as_they_are_by_then() {
        let mut watching = Watching::new(["a", "b", "c"].map(Into::into));
        assert_eq!(watching.set("a", true), None);
        assert_eq!(watching.set("b", true), None);
        assert_eq!(watching.set("a", false), None, "it went meanwhile");
        assert_eq!(watching.set("x", true), None, "nobody watches it");
        assert!(watching.is_waiting());
        let news = watching.set("c", false).unwrap();
        assert_eq!(news.online, ["b".into()]);
        assert_eq!(news.offline, ["a".into(), "c".into()]);
        assert!(!watching.is_waiting());
        assert_eq!(watching.set("a", true), None, "what comes later is news");
    }
}
