//! Events that clients publish to each other: whether one may be.

use std::sync::Arc;

use proto::channel::{ChannelKind, ChannelName};

use super::connection::Held;
use crate::app::App;

/// What the names of such events begin with.
pub const PREFIX: &str = "client-";

/// An event of a client, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientEvent {
    /// Its name.
    pub event: Arc<str>,
    /// The channel's name as the client wrote it.
    pub channel: String,
    /// Its data.
    pub data: Arc<str>,
}

impl ClientEvent {
    /// Which channel it may be published into. `Err`: what the client is told.
    pub fn check(&self, app: &App, held: &Held<'_>) -> Result<ChannelName, String> {
        if !app.client_events {
            return Err(
                "this app does not take events of clients: its client_events is off".into(),
            );
        }
        let (bytes, most) = (self.event.len(), app.bounds.event_bytes_max);
        if bytes > most {
            return Err(format!(
                "the name of an event has {most} bytes at most, and not {bytes}"
            ));
        }
        let channel = app
            .bounds
            .channel(&self.channel)
            .map_err(|invalid| format!("channel: {invalid}"))?;
        match channel.kind() {
            ChannelKind::Private | ChannelKind::Presence => {}
            ChannelKind::Public => {
                return Err(format!(
                    "{channel}: clients publish into private and presence channels only"
                ));
            }
            ChannelKind::User => {
                return Err(format!("{channel}: clients do not publish to users"));
            }
            ChannelKind::Encrypted => {
                return Err(format!(
                    "{channel}: clients do not publish into encrypted channels"
                ));
            }
        }
        if !(held.has)(&channel) {
            return Err(format!("{channel}: subscribe to it first"));
        }
        let (bytes, most) = (self.data.len(), app.payload_bytes_max);
        if bytes > most {
            return Err(format!(
                "the data of an event has {most} bytes at most, and not {bytes}"
            ));
        }
        Ok(channel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::publication::EVENT_BYTES_MAX;

    fn check(change: impl Fn(&mut App, &mut ClientEvent)) -> Result<String, String> {
        let mut app = App::new("a".parse().unwrap(), "key", "secret");
        app.client_events = true;
        let mut event = ClientEvent {
            event: "client-x".into(),
            channel: "private-a".into(),
            data: "{}".into(),
        };
        change(&mut app, &mut event);
        let has = |channel: &ChannelName| channel.as_str().ends_with("-a");
        let held = Held {
            count: 1,
            has: &has,
        };
        event.check(&app, &held).map(|channel| channel.to_string())
    }

    #[test]
    fn who_is_subscribed_may_publish_where_clients_do() {
        assert_eq!(check(|_, _| {}), Ok("private-a".into()));
        let refused = |change: &dyn Fn(&mut App, &mut ClientEvent)| check(change).unwrap_err();
        let in_channel = |name: &str| refused(&|_, event| event.channel = name.into());
        assert!(in_channel("private-b").contains("subscribe to it first"));
        assert!(in_channel("public-a").contains("private and presence"));
        assert!(in_channel("private-encrypted-a").contains("encrypted"));
        assert!(in_channel("private a").starts_with("channel: "));
        assert!(refused(&|app, _| app.client_events = false).contains("does not take"));
        assert!(refused(&|app, _| app.payload_bytes_max = 1).contains("1 bytes at most"));
        let long = format!("{PREFIX}{}", "x".repeat(EVENT_BYTES_MAX));
        assert!(
            refused(&|_, event| event.event = long.as_str().into()).contains("name of an event")
        );
    }
}
