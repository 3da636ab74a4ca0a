//! Who a connection is: a user that has signed in, or nobody in particular.
//!
//! A user has a channel, `#server-to-user-{id}`, which its connections get from the
//! moment in which they sign in: what the backend sends to the user comes by it, and so
//! does the word that ends all of the user's connections. Each of them is a member of it,
//! so that others can be told who is online. A client is told that it has signed in only
//! when it is one: whoever has signed in is reached.

use std::sync::Arc;

use proto::channel::ChannelName;
use proto::id::ConnectionId;
use proto::presence;

use super::auth;
use super::watchlist::WATCHED_MAX;
use crate::app::App;
use crate::protocol::Frame;
use crate::protocol::pusher::member;

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Signing {
    user: User,
    /// It has shown a signature of its app's backend.
    pub is_known: bool,
}

#[derive(Debug, Default)]
enum User {
    #[default]
    Nobody,
    /// Until it is a member of its channel.
    Waits(Box<Waits>),
    Is(Box<ChannelName>),
}

#[derive(Debug)]
struct Waits {
    channel: ChannelName,
    /// What it has signed in with.
    user_data: Arc<str>,
    watches: Vec<Arc<str>>,
}

/// Who signs in, and what comes of that.
#[derive(Debug, PartialEq, Eq)]
pub struct SigningIn {
    /// Its channel, of which it is to be a member.
    pub channel: ChannelName,
    /// As this user.
    pub user: presence::User,
    /// It watches more users than it may, so none.
    pub watches_too_many: bool,
}

/// Why somebody has not signed in.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The signature is wrong.
    Signature(auth::Error),
    /// What is signed is no user.
    Data(String),
    /// It has done so before.
    Already,
}

impl Signing {
    /// A client wants to sign in. `Ok`: it is to be a member of its user's channel, and
    /// then [`Self::entered`] says what it is told.
    pub fn sign_in(
        &mut self,
        app: &App,
        connection: ConnectionId,
        user_data: String,
        auth: &str,
    ) -> Result<SigningIn, Refusal> {
        if !matches!(self.user, User::Nobody) {
            return Err(Refusal::Already);
        }
        auth::verify_user(app, connection, &user_data, auth).map_err(Refusal::Signature)?;
        let member::SignsIn { id, mut watchlist } =
            member::signs_in(&user_data).map_err(Refusal::Data)?;
        let channel =
            ChannelName::of_user(&id).map_err(|invalid| Refusal::Data(invalid.to_string()))?;
        watchlist.sort_unstable();
        watchlist.dedup();
        for user in &watchlist {
            ChannelName::of_user(user)
                .map_err(|invalid| Refusal::Data(format!("watchlist: {user:?}: {invalid}")))?;
        }
        let watches_too_many = watchlist.len() > WATCHED_MAX;
        if watches_too_many {
            watchlist.clear();
        }
        self.user = User::Waits(Box::new(Waits {
            channel: channel.clone(),
            user_data: user_data.into(),
            watches: watchlist,
        }));
        self.is_known = true;
        let user = presence::User { id, info: None };
        Ok(SigningIn {
            channel,
            user,
            watches_too_many,
        })
    }

    /// It is a member of a channel: what the client is told instead of that, if it is that
    /// of its user; and whom it watches from then on.
    pub fn entered(&mut self, channel: &ChannelName) -> Option<(Frame, Vec<Arc<str>>)> {
        if !self.waits_for(channel) {
            return None;
        }
        let is = User::Is(Box::new(channel.clone()));
        let User::Waits(waits) = std::mem::replace(&mut self.user, is) else {
            return None;
        };
        let user_data = waits.user_data;
        Some((Frame::SignedIn { user_data }, waits.watches))
    }

    /// It could not be made a member of a channel: perhaps that of its user. Then it is
    /// nobody, and may try again.
    pub fn not_entered(&mut self, channel: &ChannelName) {
        if self.waits_for(channel) {
            self.user = User::Nobody;
        }
    }

    fn waits_for(&self, channel: &ChannelName) -> bool {
        matches!(&self.user, User::Waits(waits) if waits.channel == *channel)
    }

    /// Whether a channel is that of the user who has signed in.
    pub fn has(&self, channel: &ChannelName) -> bool {
        matches!(&self.user, User::Is(own) if **own == *channel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: &str = r#"{"id":"Zoë"}"#;

    fn app() -> App {
        App::new("a".parse().unwrap(), "key", "secret")
    }

    fn connection() -> ConnectionId {
        "1.2".parse().unwrap()
    }

    /// HMAC-SHA256 of `1.2::user::{"id":"Zoë"}` by `openssl dgst -sha256 -hmac secret`.
    const AUTH: &str = "key:23d5125b740cc107821a5de28bf04f2d538c7bf73234892a8c6d57c8be1e0293";

    fn sign_in(signing: &mut Signing, data: &str, auth: &str) -> Result<SigningIn, Refusal> {
        signing.sign_in(&app(), connection(), data.into(), auth)
    }

    #[test]
    fn whoever_signs_in_is_told_when_its_channel_is_attached() {
        let mut signing = Signing::default();
        let channel = sign_in(&mut signing, DATA, AUTH).unwrap().channel;
        assert_eq!(channel.as_str(), "#server-to-user-Zoë");
        assert!(!signing.has(&channel), "not yet");
        assert_eq!(signing.entered(&"other".parse().unwrap()), None);
        let user_data = DATA.into();
        assert_eq!(
            signing.entered(&channel),
            Some((Frame::SignedIn { user_data }, vec![]))
        );
        assert_eq!(signing.entered(&channel), None);
        assert!(signing.has(&channel));
        assert!(!signing.has(&ChannelName::of_user("other").unwrap()));
        assert_eq!(sign_in(&mut signing, DATA, AUTH), Err(Refusal::Already));
    }

    #[test]
    fn what_is_not_signed_so_signs_nobody_in() {
        let wrong = |data: &str| {
            let of = format!("{}::user::{data}", connection());
            Refusal::Signature(auth::Error::WrongSignature { of })
        };
        let other = r#"{"id":"zoe"}"#;
        for (data, auth, refusal) in [
            (other, AUTH, wrong(other)),
            (DATA, "key:00", wrong(DATA)),
            (DATA, "key:xyz", wrong(DATA)),
            (DATA, "other:00", Refusal::Signature(auth::Error::WrongKey)),
            (DATA, "", Refusal::Signature(auth::Error::Missing("auth"))),
        ] {
            let mut signing = Signing::default();
            assert_eq!(sign_in(&mut signing, data, auth), Err(refusal));
            assert!(!signing.is_known);
        }
    }
}
