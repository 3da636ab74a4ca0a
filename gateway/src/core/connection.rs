//! One client connection: what its commands mean, and when it is given up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::channel::{ChannelKind, ChannelName};
use proto::error::ErrorCode;
use proto::id::ConnectionId;
use proto::presence::User;
use proto::time::Timestamp;

use super::auth;
use super::client_event::ClientEvent;
use super::limits::{Bucket, Limiter, Rate};
use super::signing::{self, Signing};
use super::watchlist::WATCHED_MAX;
use crate::app::App;
use crate::protocol::pusher::{Malformed, member};
use crate::protocol::{Close, CloseCode, Command, Frame, Recover};

/// How long a client has to answer a ping.
pub const PONG_TIMEOUT: Duration = Duration::from_secs(30);

/// What one connection may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Channels.
    pub subscriptions_max: u32,
    /// How often it subscribes.
    pub subscribes: Rate,
    /// Messages, whatever they are.
    pub messages: Rate,
}

impl Limits {
    /// Enough for a page that subscribes to everything it may at once, and goes on
    /// at these rates.
    pub fn new(subscriptions_max: u32, subscribes_per_s: u32, messages_per_s: u32) -> Self {
        Self {
            subscriptions_max,
            subscribes: Rate {
                burst: subscriptions_max,
                per_s: subscribes_per_s,
            },
            messages: Rate {
                burst: subscriptions_max.saturating_mul(2),
                per_s: messages_per_s,
            },
        }
    }
}

impl Default for Limits {
    /// Faster than anybody clicks.
    fn default() -> Self {
        Self::new(1_000, 50, 100)
    }
}

/// Messages over the rate, one after the other, until a client is given up.
const IGNORED_MAX: u32 = 1_000;

/// Pusher's code for a watchlist that is too long.
const WATCHLIST_LIMIT: u16 = 4302;
/// Pusher's code for a message of a client that was not taken.
const MESSAGE_REJECTED: u16 = 4301;

/// The channels that a connection gets.
pub struct Held<'a> {
    /// How many.
    pub count: usize,
    /// Whether this one is among them.
    pub has: &'a dyn Fn(&ChannelName) -> bool,
}

impl std::fmt::Debug for Held<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

/// What a subscription may be signed with.
#[derive(Clone, Copy)]
struct Signed<'a> {
    auth: Option<&'a str>,
    channel_data: Option<&'a str>,
}

/// What is to be done for a connection, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send a frame.
    Send(Frame),
    /// Add it to the channel; it is told when the channel is attached.
    Subscribe(ChannelName, Recover),
    /// Add it to the channel as this user; it is told when it is a member.
    Enter(ChannelName, Recover, User),
    /// Take it out of the channel.
    Unsubscribe(ChannelName),
    /// Publish an event of its own.
    Publish(Publish),
    /// Count a refused signature.
    AuthFailed(&'static str),
    /// Count what was over a limit.
    Limited(Limiter),
    /// End it.
    Close(Close),
}

/// An event of a client, for the others in a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Where to.
    pub channel: ChannelName,
    /// Its name.
    pub event: Arc<str>,
    /// Its data.
    pub data: Arc<str>,
    /// Who publishes, if the client is a member of the channel.
    pub by: Option<Arc<str>>,
}

/// The state of a connection.
#[derive(Debug)]
pub struct Connection {
    id: ConnectionId,
    app: Arc<App>,
    heard_at: Timestamp,
    pinged_at: Option<Timestamp>,
    messages: Bucket,
    subscribes: Bucket,
    /// Events of its own; `None`: without limit.
    events: Option<Bucket>,
    /// Messages over the rate, one after the other.
    ignored: u32,
    /// Which user it is in the presence channels that it has asked for.
    users: BTreeMap<ChannelName, Arc<str>>,
    signing: Signing,
    opened_at: Timestamp,
}

impl Connection {
    /// A connection that has just been opened.
    pub fn new(id: ConnectionId, app: Arc<App>, limits: &Limits, now: Timestamp) -> Self {
        Self {
            id,
            events: app.client_event_rate.map(|rate| Bucket::full(rate, now)),
            app,
            heard_at: now,
            pinged_at: None,
            messages: Bucket::full(limits.messages, now),
            subscribes: Bucket::full(limits.subscribes, now),
            ignored: 0,
            users: BTreeMap::new(),
            signing: Signing::default(),
            opened_at: now,
        }
    }

    /// Its id.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// The app that it is a client of.
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Anything has come from the client, if only a part of a frame.
    pub fn heard(&mut self, now: Timestamp) {
        self.heard_at = now;
        self.pinged_at = None;
    }

    /// Whether a message may be looked at. A client that goes over the rate is
    /// told so once, and given up if it does not mind.
    pub fn admit(&mut self, now: Timestamp, limits: &Limits, effects: &mut Vec<Effect>) -> bool {
        if self.messages.take(limits.messages, now) {
            self.ignored = 0;
            return true;
        }
        self.ignored += 1;
        effects.push(Effect::Limited(Limiter::Messages));
        let per_s = limits.messages.per_s;
        let message = format!("too many messages: {per_s} per second are taken");
        match self.ignored {
            1 => effects.push(error(Some(MESSAGE_REJECTED), message)),
            IGNORED_MAX => {
                let code = CloseCode::TooManyMessages;
                effects.push(Effect::Close(Close { code, message }));
            }
            _ => {}
        }
        false
    }

    /// A message has come.
    pub fn handle(
        &mut self,
        message: Result<Command, Malformed>,
        now: Timestamp,
        limits: &Limits,
        held: &Held<'_>,
        effects: &mut Vec<Effect>,
    ) {
        match message {
            Ok(Command::Subscribe {
                channel,
                auth,
                channel_data,
                recover,
            }) => {
                let signed = Signed {
                    auth: auth.as_deref(),
                    channel_data: channel_data.as_deref(),
                };
                if self.subscribes.take(limits.subscribes, now) {
                    effects.extend(self.subscribe(channel, signed, recover, limits, held));
                } else {
                    let per_s = limits.subscribes.per_s;
                    let message = format!(
                        "a connection may subscribe {per_s} times a second; try this one again later"
                    );
                    effects.push(Effect::Limited(Limiter::Subscribe));
                    effects.push(refused(channel, "LimitReached", message, 429));
                }
            }
            // A name that is not valid was never subscribed.
            Ok(Command::Unsubscribe { channel }) => {
                let channel: Option<ChannelName> = channel.parse().ok();
                // Whoever has signed in stays so: the backend must reach it.
                let channel = channel.filter(|it| it.kind() != ChannelKind::User);
                if let Some(channel) = channel {
                    self.leave(&channel);
                    effects.push(Effect::Unsubscribe(channel));
                }
            }
            Ok(Command::Publish(event)) => self.publish(event, now, held, effects),
            Ok(Command::SignIn { auth, user_data }) => {
                self.sign_in(user_data, &auth, effects);
            }
            Ok(Command::Ping) => effects.push(Effect::Send(Frame::Pong)),
            Ok(Command::Pong) => {}
            Ok(Command::Unsupported { event }) => effects.push(unsupported(&event)),
            Err(malformed) => effects.push(error(None, malformed.to_string())),
        }
    }

    /// Whether it has not said in time who it is.
    fn is_unknown(&self, now: Timestamp) -> bool {
        let patience = self.app.authentication_timeout;
        patience.is_some_and(|patience| now.since(self.opened_at) >= patience)
            && !self.signing.is_known
    }

    /// Time has passed: ends a client that has not said who it is, and pings one that
    /// has been silent for `activity_timeout`
    /// and gives it up if that stays unanswered.
    pub fn tick(&mut self, now: Timestamp, activity_timeout: Duration) -> Option<Effect> {
        if self.is_unknown(now) {
            let message =
                "neither signed in nor subscribed to a channel that needs a signature in time";
            return Some(Effect::Close(Close {
                code: CloseCode::Unauthenticated,
                message: message.into(),
            }));
        }
        if let Some(pinged_at) = self.pinged_at {
            return (now.since(pinged_at) >= PONG_TIMEOUT).then(|| {
                Effect::Close(Close {
                    code: CloseCode::PongMissing,
                    message: format!("no answer to a ping within {} s", PONG_TIMEOUT.as_secs()),
                })
            });
        }
        if now.since(self.heard_at) < activity_timeout {
            return None;
        }
        self.pinged_at = Some(now);
        Some(Effect::Send(Frame::Ping))
    }

    /// How long it is until [`Self::tick`] may have something to do.
    pub fn due(&self, now: Timestamp, activity_timeout: Duration) -> Duration {
        let (since, patience) = match self.pinged_at {
            Some(pinged_at) => (pinged_at, PONG_TIMEOUT),
            None => (self.heard_at, activity_timeout),
        };
        let silent = patience.saturating_sub(now.since(since));
        match self.app.authentication_timeout {
            Some(patience) if !self.signing.is_known => {
                silent.min(patience.saturating_sub(now.since(self.opened_at)))
            }
            _ => silent,
        }
    }

    fn sign_in(&mut self, user_data: String, auth: &str, effects: &mut Vec<Effect>) {
        let unauthorized = Some(CloseCode::Unauthorized.number());
        match self.signing.sign_in(&self.app, self.id, user_data, auth) {
            Ok(signing::SigningIn {
                channel,
                user,
                watches_too_many,
            }) => {
                if watches_too_many {
                    let message =
                        format!("a watchlist has at most {WATCHED_MAX} users; nobody is watched");
                    effects.push(error(Some(WATCHLIST_LIMIT), message));
                }
                effects.push(Effect::Enter(channel, Recover::No, user));
            }
            Err(signing::Refusal::Signature(refusal)) => {
                effects.push(Effect::AuthFailed(refusal.reason()));
                effects.push(error(unauthorized, format!("signing in: {refusal}")));
            }
            Err(signing::Refusal::Data(message)) => {
                effects.push(error(unauthorized, format!("signing in: {message}")));
            }
            Err(signing::Refusal::Already) => {
                effects.push(error(None, "this connection has signed in already".into()));
            }
        }
    }

    /// It is a member of a channel: what the client is told instead of that, if it has
    /// signed in by it, and whom it watches.
    pub fn signed_in(&mut self, channel: &ChannelName) -> Option<(Frame, Vec<Arc<str>>)> {
        self.signing.entered(channel)
    }

    /// Whether it has signed in as the user whose channel it is.
    pub fn is_user_of(&self, channel: &ChannelName) -> bool {
        self.signing.has(channel)
    }

    fn publish(
        &mut self,
        event: ClientEvent,
        now: Timestamp,
        held: &Held<'_>,
        effects: &mut Vec<Effect>,
    ) {
        let rejected = |message| error(Some(MESSAGE_REJECTED), message);
        let channel = match event.check(&self.app, held) {
            Ok(channel) => channel,
            Err(message) => return effects.push(rejected(message)),
        };
        let limit = self.events.as_mut().zip(self.app.client_event_rate);
        if let Some((events, rate)) = limit
            && !events.take(rate, now)
        {
            let per_s = rate.per_s;
            let message = format!(
                "{channel}: a client may publish {per_s} events a second; this one was not"
            );
            effects.push(Effect::Limited(Limiter::ClientEvents));
            return effects.push(rejected(message));
        }
        effects.push(Effect::Publish(Publish {
            by: self.users.get(&channel).cloned(),
            channel,
            event: event.event,
            data: event.data,
        }));
    }

    /// It is in a channel no longer, or was not let in.
    pub fn leave(&mut self, channel: &ChannelName) {
        self.users.remove(channel);
        self.signing.not_entered(channel);
    }

    fn subscribe(
        &mut self,
        name: String,
        signed: Signed<'_>,
        recover: Recover,
        limits: &Limits,
        held: &Held<'_>,
    ) -> Vec<Effect> {
        let channel = match self.app.bounds.channel(&name) {
            Ok(channel) => channel,
            Err(invalid) => return vec![refused(name, "InvalidChannel", invalid, 400)],
        };
        let most = limits.subscriptions_max;
        if held.count >= most as usize && !(held.has)(&channel) {
            let message =
                format!("a connection may have {most} subscriptions; unsubscribe from some");
            return vec![
                Effect::Limited(Limiter::Subscriptions),
                refused(name, "LimitReached", message, 400),
            ];
        }
        if channel.kind() == ChannelKind::User {
            if self.signing.has(&channel) {
                return vec![Effect::Subscribe(channel, Recover::No)];
            }
            let message = format!("subscribing to {channel}: sign in as this user first");
            return vec![
                Effect::AuthFailed("missing"),
                refused(name, "AuthError", message, 401),
            ];
        }
        if channel.kind() != ChannelKind::Public
            && let Err(error) = auth::verify_channel(
                &self.app,
                self.id,
                &channel,
                signed.channel_data,
                signed.auth,
            )
        {
            let message = format!("subscribing to {channel}: {error}");
            return vec![
                Effect::AuthFailed(error.reason()),
                refused(name, "AuthError", message, 401),
            ];
        }
        self.signing.is_known |= channel.kind() != ChannelKind::Public;
        if channel.kind() != ChannelKind::Presence {
            return vec![Effect::Subscribe(channel, recover)];
        }
        if (held.has)(&channel) {
            let message = format!("Existing subscription to channel {channel}");
            return vec![error(None, message)];
        }
        let info_bytes_max = self.app.bounds.user_info_bytes_max;
        match member::parse(signed.channel_data.unwrap_or_default(), info_bytes_max) {
            Ok(user) => {
                self.users.insert(channel.clone(), Arc::clone(&user.id));
                vec![Effect::Enter(channel, recover, user)]
            }
            Err(error) => {
                let message = format!("subscribing to {channel}: {error}");
                vec![refused(name, "InvalidUser", message, 400)]
            }
        }
    }
}

/// What a client is told that is not let into a presence channel, or that could not sign
/// in.
pub fn not_entered(channel: &ChannelName, code: ErrorCode) -> Frame {
    if channel.kind() == ChannelKind::User {
        return Frame::Error {
            code: Some(CloseCode::Unauthorized.number()),
            message: format!("signing in: {code}; try again later"),
        };
    }
    let (kind, message) = match code {
        ErrorCode::RosterFull => (
            "LimitReached",
            format!("{channel} has as many members as it may have"),
        ),
        code => ("Unavailable", format!("subscribing to {channel}: {code}")),
    };
    Frame::SubscriptionRefused {
        channel: channel.to_string(),
        kind,
        message,
        status: code.http_status(),
    }
}

fn refused(channel: String, kind: &'static str, message: String, status: u16) -> Effect {
    Effect::Send(Frame::SubscriptionRefused {
        channel,
        kind,
        message,
        status,
    })
}

/// What a client is told whose event was not published as it should have been.
pub fn not_published(event: &str, code: ErrorCode) -> Frame {
    let message = match code {
        ErrorCode::UnknownOutcome => format!("{event}: whether it was published is not known"),
        ErrorCode::Unprotected => {
            format!("{event} was published, but is in one process only; do not send it again")
        }
        code => {
            let code = code.as_str();
            format!("{event} was not published: {code}; try again later")
        }
    };
    Frame::Error {
        code: Some(MESSAGE_REJECTED),
        message,
    }
}

fn unsupported(event: &str) -> Effect {
    let event: String = event.chars().take(50).collect();
    if event.starts_with("pusher:") {
        return error(None, format!("{event} is not available in this version"));
    }
    error(None, format!("{event:?} is not an event that clients send"))
}

fn error(code: Option<u16>, message: String) -> Effect {
    Effect::Send(Frame::Error { code, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(120);

    fn connection() -> Connection {
        let app = App::new("a".parse().unwrap(), "key", "secret");
        let limits = Limits::default();
        Connection::new("1.2".parse().unwrap(), Arc::new(app), &limits, Timestamp(0))
    }

    fn handle(
        connection: &mut Connection,
        message: Result<Command, Malformed>,
        held: &Held<'_>,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        connection.handle(
            message,
            Timestamp(0),
            &Limits::default(),
            held,
            &mut effects,
        );
        effects
    }

    /// So many channels, and `x` is among them if there is any.
    fn held(count: usize) -> Held<'static> {
        fn only_x(channel: &ChannelName) -> bool {
            channel.as_str() == "x"
        }
        let has: &'static dyn Fn(&ChannelName) -> bool =
            if count > 0 { &only_x } else { &|_| false };
        Held { count, has }
    }

    fn subscribe(channel: &str, auth: Option<String>) -> Vec<Effect> {
        let command = Command::Subscribe {
            channel: channel.into(),
            auth,
            channel_data: None,
            recover: Recover::No,
        };
        handle(&mut connection(), Ok(command), &held(0))
    }

    fn refusal(effects: &[Effect]) -> (&str, u16) {
        match effects.last() {
            Some(Effect::Send(Frame::SubscriptionRefused { kind, status, .. })) => (kind, *status),
            other => panic!("a refusal expected, got {other:?}"),
        }
    }

    #[test]
    fn public_channels_need_no_signature_and_private_ones_do() {
        let room: ChannelName = "private-room".parse().unwrap();
        assert_eq!(
            subscribe("room", None),
            [Effect::Subscribe("room".parse().unwrap(), Recover::No)]
        );
        let connection = connection();
        let signature = auth::channel_signature(&connection.app.secret, connection.id, &room, None);
        assert_eq!(
            subscribe("private-room", Some(format!("key:{signature}"))),
            [Effect::Subscribe(room, Recover::No)]
        );
        let effects = subscribe("private-room", Some("key:00".into()));
        assert_eq!(effects[0], Effect::AuthFailed("bad_signature"));
        assert_eq!(refusal(&effects), ("AuthError", 401));
        let effects = subscribe("private-room", None);
        assert_eq!(effects[0], Effect::AuthFailed("missing"));
    }

    #[test]
    fn a_client_that_has_to_say_who_it_is_has_so_long() {
        let mut app = App::new("a".parse().unwrap(), "key", "secret");
        app.authentication_timeout = Some(Duration::from_secs(10));
        let app = Arc::new(app);
        let open = || {
            let id = "1.2".parse().unwrap();
            Connection::new(id, Arc::clone(&app), &Limits::default(), Timestamp(0))
        };
        let mut silent = open();
        assert_eq!(
            silent.due(Timestamp(4_000), TIMEOUT),
            Duration::from_secs(6)
        );
        assert_eq!(silent.tick(Timestamp(9_999), TIMEOUT), None);
        let Some(Effect::Close(Close { code, .. })) = silent.tick(Timestamp(10_000), TIMEOUT)
        else {
            panic!("it goes on");
        };
        assert_eq!((code, code.number()), (CloseCode::Unauthenticated, 4009));

        let room: ChannelName = "private-room".parse().unwrap();
        let signature = auth::channel_signature(&app.secret, open().id(), &room, None);
        for (channel, auth, stays) in [
            ("private-room", format!("key:{signature}"), true),
            ("private-room", "key:00".into(), false),
            ("room", String::new(), false),
        ] {
            let mut connection = open();
            let command = Command::Subscribe {
                channel: channel.into(),
                auth: Some(auth),
                channel_data: None,
                recover: Recover::No,
            };
            handle(&mut connection, Ok(command), &held(0));
            let ends = connection.tick(Timestamp(10_000), TIMEOUT).is_some();
            assert_eq!(ends, !stays, "{channel}");
        }
    }

    #[test]
    fn a_user_s_channel_is_for_whoever_has_signed_in() {
        assert_eq!(
            refusal(&subscribe("#server-to-user-a", Some("key:00".into()))),
            ("AuthError", 401)
        );
        let channel = "#server-to-user-a".into();
        let left = handle(
            &mut connection(),
            Ok(Command::Unsubscribe { channel }),
            &held(0),
        );
        assert_eq!(left, []);
    }

    #[test]
    fn what_is_no_channel_is_refused() {
        assert_eq!(refusal(&subscribe("a b", None)), ("InvalidChannel", 400));
    }

    #[test]
    fn subscriptions_are_limited_and_those_it_has_may_be_repeated() {
        let asks = |channel: &str| {
            let command = Command::Subscribe {
                channel: channel.into(),
                auth: None,
                channel_data: None,
                recover: Recover::No,
            };
            handle(&mut connection(), Ok(command), &held(1_000))
        };
        let effects = asks("y");
        assert_eq!(effects[0], Effect::Limited(Limiter::Subscriptions));
        assert_eq!(refusal(&effects), ("LimitReached", 400));
        assert_eq!(
            asks("x"),
            [Effect::Subscribe("x".parse().unwrap(), Recover::No)]
        );
    }

    #[test]
    fn who_subscribes_too_often_is_told_so_each_time() {
        let mut connection = connection();
        let mut asks = |at| {
            let command = Command::Subscribe {
                channel: "x".into(),
                auth: None,
                channel_data: None,
                recover: Recover::No,
            };
            let (now, limits) = (Timestamp(at), Limits::default());
            let mut effects = Vec::new();
            connection.handle(Ok(command), now, &limits, &held(0), &mut effects);
            effects
        };
        for _ in 0..1_000 {
            assert_eq!(asks(0).len(), 1);
        }
        let effects = asks(0);
        assert_eq!(effects[0], Effect::Limited(Limiter::Subscribe));
        assert_eq!(refusal(&effects), ("LimitReached", 429));
        let wait = 1_000 / u64::from(Limits::default().subscribes.per_s);
        assert_eq!(
            asks(wait),
            [Effect::Subscribe("x".parse().unwrap(), Recover::No)]
        );
    }

    #[test]
    fn a_client_over_the_rate_is_told_once_and_then_given_up() {
        let mut connection = connection();
        let limits = Limits::default();
        let mut effects = Vec::new();
        let mut admit =
            |effects: &mut Vec<Effect>| connection.admit(Timestamp(0), &limits, effects);
        for _ in 0..limits.messages.burst {
            assert!(admit(&mut effects));
        }
        assert_eq!(effects, []);
        assert!(!admit(&mut effects));
        assert!(matches!(
            effects[..],
            [
                Effect::Limited(Limiter::Messages),
                Effect::Send(Frame::Error {
                    code: Some(4301),
                    ..
                })
            ]
        ));
        effects.clear();
        for _ in 2..IGNORED_MAX {
            assert!(!admit(&mut effects));
        }
        let counted = Effect::Limited(Limiter::Messages);
        assert!(effects.iter().all(|effect| *effect == counted));
        effects.clear();
        admit(&mut effects);
        assert!(matches!(effects.last(), Some(Effect::Close(_))));
    }

    #[test]
    fn who_slows_down_goes_on() {
        let mut connection = connection();
        let limits = Limits::default();
        let mut effects = Vec::new();
        for _ in 0..=limits.messages.burst {
            connection.admit(Timestamp(0), &limits, &mut effects);
        }
        assert!(connection.admit(Timestamp(1_000), &limits, &mut effects));
    }

    #[test]
    fn a_silent_client_is_pinged_and_then_given_up() {
        let mut connection = connection();
        assert_eq!(connection.tick(Timestamp(119_999), TIMEOUT), None);
        assert_eq!(
            connection.tick(Timestamp(120_000), TIMEOUT),
            Some(Effect::Send(Frame::Ping))
        );
        assert_eq!(connection.tick(Timestamp(149_999), TIMEOUT), None);
        let Some(Effect::Close(close)) = connection.tick(Timestamp(150_000), TIMEOUT) else {
            panic!("closed");
        };
        assert_eq!(close.code.number(), 4201);
    }

    #[test]
    fn any_sign_of_life_starts_the_silence_anew() {
        let mut connection = connection();
        let due =
            |connection: &Connection, now| connection.due(Timestamp(now), TIMEOUT).as_millis();
        assert_eq!(due(&connection, 20_000), 100_000);
        connection.tick(Timestamp(120_000), TIMEOUT);
        assert_eq!(due(&connection, 130_000), 20_000);
        connection.heard(Timestamp(140_000));
        assert_eq!(due(&connection, 141_000), 119_000);
        assert_eq!(connection.tick(Timestamp(200_000), TIMEOUT), None);
        assert_eq!(
            connection.tick(Timestamp(260_000), TIMEOUT),
            Some(Effect::Send(Frame::Ping))
        );
    }

    #[test]
    fn who_published_is_told_no_more_than_is_known() {
        let told = |code| match not_published("client-x", code) {
            Frame::Error { message, .. } => message,
            other => panic!("{other:?}"),
        };
        assert!(told(ErrorCode::Overloaded).contains("was not published: overloaded"));
        assert!(told(ErrorCode::UnknownOutcome).contains("is not known"));
        assert!(told(ErrorCode::Unprotected).contains("was published"));
    }

    #[test]
    fn errors_of_clients_keep_the_connection() {
        let told = |frame| {
            let effects = handle(&mut connection(), frame, &held(0));
            match &effects[..] {
                [Effect::Send(Frame::Error { code, .. })] => *code,
                other => panic!("one error expected, got {other:?}"),
            }
        };
        let event = ClientEvent {
            event: "client-x".into(),
            channel: "private-x".into(),
            data: "{}".into(),
        };
        assert_eq!(told(Ok(Command::Publish(event))), Some(4301));
        // The server's own events are no more a client's than others are.
        assert_eq!(
            told(Ok(Command::Unsupported {
                event: "dunlin:gap".into()
            })),
            None
        );
        assert_eq!(
            told(Ok(Command::Unsupported {
                event: "foo".into()
            })),
            None
        );
        assert_eq!(told(crate::protocol::pusher::decode("{")), None);
    }
}
