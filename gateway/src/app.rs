//! Apps: the tenants that a gateway serves.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use proto::channel::{CHANNEL_BYTES_MAX, ChannelKind, ChannelName, InvalidChannelName};
use proto::id::AppId;
use proto::presence::INFO_BYTES_MAX;
use proto::publication::EVENT_BYTES_MAX;

use crate::core::admission::AppLimits;
use crate::core::limits::Rate;

/// A secret that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Hides a text.
    pub fn new(text: &str) -> Self {
        Self(Arc::from(text))
    }

    /// The text, to compute with.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// One app's identity and limits.
#[derive(Debug)]
pub struct App {
    /// Stands in API paths.
    pub id: AppId,
    /// Stands in clients; public.
    pub key: Arc<str>,
    /// Signs; known to the app's backend and this server.
    pub secret: Secret,
    /// A disabled app is told so.
    pub enabled: bool,
    /// Origins whose pages may connect; `*` is any.
    pub allowed_origins: Vec<String>,
    /// What it may at this gateway.
    pub limits: AppLimits,
    /// Bytes of one event's data at most.
    pub payload_bytes_max: usize,
    /// What may be named, and how many.
    pub bounds: Bounds,
    /// Whether clients may publish to each other.
    pub client_events: bool,
    /// Whether subscribers are counted and told how many they are.
    pub subscription_count: bool,
    /// How often each of them may. `None`: without limit.
    pub client_event_rate: Option<Rate>,
    /// How long a client has to sign in, or to subscribe to a channel that needs a
    /// signature. `None`: it need not.
    pub authentication_timeout: Option<Duration>,
}

/// What the backends and clients of an app may name, and how many. The defaults are the
/// most that any app may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of a channel's name.
    pub channel_bytes_max: usize,
    /// Bytes of an event's name.
    pub event_bytes_max: usize,
    /// Channels of one event.
    pub event_channels_max: usize,
    /// Events of one batch.
    pub batch_events_max: usize,
    /// Users in a presence channel. `None`: [`USERS_MAX`](proto::presence::USERS_MAX).
    pub users_max: Option<u32>,
    /// Bytes of what is told of each of them.
    pub user_info_bytes_max: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            channel_bytes_max: CHANNEL_BYTES_MAX,
            event_bytes_max: EVENT_BYTES_MAX,
            event_channels_max: 100,
            batch_events_max: 10,
            users_max: None,
            user_info_bytes_max: INFO_BYTES_MAX,
        }
    }
}

impl Bounds {
    /// Reads the name of a channel.
    ///
    /// # Errors
    /// What is wrong with it, for whoever wrote it.
    pub fn channel(&self, name: &str) -> Result<ChannelName, String> {
        let channel: ChannelName = name
            .parse()
            .map_err(|invalid: InvalidChannelName| invalid.to_string())?;
        let (bytes, most) = (channel.as_str().len(), self.channel_bytes_max);
        // A user's channel is named by the server.
        if bytes > most && channel.kind() != ChannelKind::User {
            return Err(format!(
                "the names of this app's channels have at most {most} bytes, this one has {bytes}"
            ));
        }
        Ok(channel)
    }
}

/// Events a second that a client may publish unless the app says otherwise.
pub const CLIENT_EVENTS_PER_S_DEFAULT: u32 = 10;

/// Bytes of event data unless the app says otherwise.
pub const PAYLOAD_BYTES_DEFAULT: usize = 100 * 1_024;

/// Bytes of event data that any app may allow: together with its names a
/// publication must fit into one bus message.
pub const PAYLOAD_BYTES_LIMIT: usize = 400 * 1_024;

impl App {
    /// An app with default limits.
    pub fn new(id: AppId, key: &str, secret: &str) -> Self {
        Self {
            id,
            key: Arc::from(key),
            secret: Secret::new(secret),
            enabled: true,
            allowed_origins: vec!["*".into()],
            limits: AppLimits::default(),
            payload_bytes_max: PAYLOAD_BYTES_DEFAULT,
            bounds: Bounds::default(),
            client_events: false,
            subscription_count: false,
            client_event_rate: None,
            authentication_timeout: None,
        }
    }

    /// Whether a page of this origin may connect. No origin: not a page.
    pub fn allows_origin(&self, origin: Option<&str>) -> bool {
        origin.is_none_or(|origin| {
            self.allowed_origins
                .iter()
                .any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin))
        })
    }
}

/// All apps of a gateway.
#[derive(Debug, Default)]
pub struct Apps {
    all: Vec<Arc<App>>,
    by_key: HashMap<Arc<str>, Arc<App>>,
    by_id: HashMap<AppId, Arc<App>>,
}

impl Apps {
    /// The apps in order. Where two share an id or key, the later one counts;
    /// configuration refuses that before it comes here.
    pub fn new(apps: impl IntoIterator<Item = App>) -> Self {
        let all: Vec<_> = apps.into_iter().map(Arc::new).collect();
        Self {
            by_key: all
                .iter()
                .map(|app| (Arc::clone(&app.key), Arc::clone(app)))
                .collect(),
            by_id: all
                .iter()
                .map(|app| (app.id.clone(), Arc::clone(app)))
                .collect(),
            all,
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<App>> {
        self.all.iter()
    }

    /// The app that a client names.
    pub fn by_key(&self, key: &str) -> Option<&Arc<App>> {
        self.by_key.get(key)
    }

    /// The app that a backend names.
    pub fn by_id(&self, id: &str) -> Option<&Arc<App>> {
        self.by_id.get(&id.parse().ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_printed() {
        let app = App::new("a".parse().unwrap(), "k", "hunter2");
        assert!(!format!("{app:?}").contains("hunter2"));
    }

    #[test]
    fn origins() {
        let mut app = App::new("a".parse().unwrap(), "k", "s");
        assert!(app.allows_origin(Some("https://any.example")));
        app.allowed_origins = vec!["https://one.example".into()];
        assert!(app.allows_origin(Some("https://One.example")));
        assert!(app.allows_origin(None));
        assert!(!app.allows_origin(Some("https://two.example")));
    }
}
