//! Who is present in a channel: members, and how they come and go.
//!
//! A member is a user on one connection. Coming and going are entries of the
//! channel's sequence, with offsets like publications; the roster is what they add
//! up to, and each process that needs it adds up for itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::ConnectionId;
use crate::position::Position;
use crate::shard::Fence;

/// Longest id of a user, in bytes.
pub const USER_BYTES_MAX: usize = 128;
/// Users of one channel at most.
pub const USERS_MAX: usize = 10_000;
/// What is told of a user at most, in bytes.
pub const INFO_BYTES_MAX: usize = 2_048;

/// A user on a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The connection.
    pub connection: ConnectionId,
    /// Whose it is.
    pub user: User,
}

/// A user, as the others in a channel are told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Its id, as the application has it.
    pub id: Arc<str>,
    /// What the others are told of it: JSON, byte for byte as the application
    /// signed it.
    pub info: Option<Arc<str>>,
}

/// What a publication has to do with presence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// It is no message but a change of the roster. Event and data are empty.
    Change(Change),
    /// It was published by this user.
    By(Arc<str>),
}

impl Mark {
    /// What it counts against byte bounds.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Change(change) => change.bytes(),
            Self::By(user) => user.len(),
        }
    }
}

/// A change of a roster, as an entry of the channel's sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// A member has come.
    Came {
        /// Who.
        member: Member,
        /// Whether the user had no connection in the channel before.
        is_first: bool,
    },
    /// One has gone.
    Went {
        /// Which connection.
        connection: ConnectionId,
        /// Whose it was.
        user: Arc<str>,
        /// Whether the user has no other connection in the channel.
        is_last: bool,
    },
}

impl Change {
    /// The user.
    pub fn user(&self) -> &Arc<str> {
        match self {
            Self::Came { member, .. } => &member.user.id,
            Self::Went { user, .. } => user,
        }
    }

    /// What it counts against byte bounds.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.user().len() + self.info().map_or(0, str::len)
    }

    /// Whether it is one of users, and not only of their connections.
    pub fn is_of_users(&self) -> bool {
        match self {
            Self::Came { is_first, .. } => *is_first,
            Self::Went { is_last, .. } => *is_last,
        }
    }

    fn info(&self) -> Option<&str> {
        match self {
            Self::Came { member, .. } => member.user.info.as_deref(),
            Self::Went { .. } => None,
        }
    }
}

/// The users of a channel by id, each with what is told of it: what its first
/// connection said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Users(BTreeMap<Arc<str>, Option<Arc<str>>>);

impl Users {
    /// Applies a change. Whether that made a difference: a user has come that was
    /// not there, or one has gone that was.
    pub fn apply(&mut self, change: &Change) -> bool {
        match change {
            Change::Came { member, .. } => self.insert(&member.user),
            Change::Went { user, is_last, .. } => *is_last && self.remove(user),
        }
    }

    /// Adds a user, unless it is there.
    pub fn insert(&mut self, user: &User) -> bool {
        let is_new = !self.0.contains_key(&user.id);
        if is_new {
            self.0.insert(Arc::clone(&user.id), user.info.clone());
        }
        is_new
    }

    /// Removes a user.
    pub fn remove(&mut self, id: &str) -> bool {
        self.0.remove(id).is_some()
    }

    /// Whether a user is there.
    pub fn contains(&self, id: &str) -> bool {
        self.0.contains_key(id)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = User> {
        self.0.iter().map(|(id, info)| User {
            id: Arc::clone(id),
            info: info.clone(),
        })
    }
}

impl FromIterator<User> for Users {
    fn from_iter<T: IntoIterator<Item = User>>(users: T) -> Self {
        Self(users.into_iter().map(|user| (user.id, user.info)).collect())
    }
}

/// Some users of a channel, as its owner has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterPage {
    /// The owner's fence.
    pub fence: Fence,
    /// Where the channel stood then; `None`: it has no state, and nobody is there.
    pub position: Option<Position>,
    /// The first users behind the one that was named, in order.
    pub users: Vec<User>,
    /// How many there are in all.
    pub count: u32,
    /// Whether there are more behind these.
    pub more: bool,
    /// Whether the owner knows all who are there: every gateway has said who its
    /// members are since this owner has had the channel.
    pub complete: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn came(connection: u64, user: &str, info: &str) -> Change {
        let member = Member {
            connection: ConnectionId {
                gateway: 1,
                number: connection,
            },
            user: User {
                id: user.into(),
                info: Some(info.into()),
            },
        };
        let is_first = connection == 1;
        Change::Came { member, is_first }
    }

    fn went(connection: u64, user: &str, is_last: bool) -> Change {
        Change::Went {
            connection: ConnectionId {
                gateway: 1,
                number: connection,
            },
            user: user.into(),
            is_last,
        }
    }

    #[test]
    fn a_user_is_there_from_its_first_connection_to_its_last() {
        let mut users = Users::default();
        assert!(users.apply(&came(1, "a", "1")));
        assert!(!users.apply(&came(2, "a", "2")));
        assert!(!users.apply(&went(1, "a", false)));
        let info = users.iter().next().and_then(|user| user.info);
        assert_eq!(info.as_deref(), Some("1"), "as its first connection said");
        assert!(users.apply(&went(2, "a", true)));
        assert!(!users.apply(&went(2, "a", true)), "once");
        assert!(users.is_empty());
    }
}
