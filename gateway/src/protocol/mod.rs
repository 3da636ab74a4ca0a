//! Client protocols. Each is a folder or file that turns bytes into
//! [`Command`]s and [`Frame`]s into bytes, and nothing else: what a command
//! means is decided in [`crate::core::connection`], once for all of them.

use std::sync::Arc;

use proto::channel::ChannelName;
use proto::id::ConnectionId;
use proto::position::{Gap, Position};
use proto::presence::Users;

use crate::core::client_event::ClientEvent;
use crate::core::watchlist::News;

pub mod pusher;
pub mod sse;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Receive a channel.
    Subscribe {
        /// Its name as the client wrote it.
        channel: String,
        /// The signature, where the channel needs one.
        auth: Option<String>,
        /// What was signed along with the name.
        channel_data: Option<String>,
        /// Whether it wants to know positions, and has one.
        recover: Recover,
    },
    /// Receive it no longer.
    Unsubscribe {
        /// Its name as the client wrote it.
        channel: String,
    },
    /// Be known as a user.
    SignIn {
        /// The signature.
        auth: String,
        /// What was signed: the JSON of a user.
        user_data: String,
    },
    /// Are you there?
    Ping,
    /// I am here.
    Pong,
    /// Tell the others in a channel.
    Publish(ClientEvent),
    /// Something that this version has no meaning for.
    Unsupported {
        /// The event's name.
        event: String,
    },
}

/// How a client that subscribes wants to resume, now or later.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Recover {
    /// Not at all.
    #[default]
    No,
    /// Later: it is told the position of each publication.
    OptIn,
    /// From here. It is told positions, too.
    From(Position),
}

/// What a client is told, publications apart: those are encoded once for all
/// clients, as a [`crate::broadcast::Broadcast`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The connection is open.
    Established {
        /// Its id.
        connection: ConnectionId,
        /// Seconds of silence after which the client should ping.
        activity_timeout_secs: u64,
    },
    /// Something went wrong.
    Error {
        /// One of the protocol's codes; `None`: no code fits.
        code: Option<u16>,
        /// What was attempted and what to do.
        message: String,
    },
    /// Are you there?
    Ping,
    /// I am here.
    Pong,
    /// From now on the channel's publications come.
    Subscribed {
        /// The channel.
        channel: ChannelName,
        /// For a client that wants to know: those after this position.
        position: Option<Position>,
        /// For a client that has come back: whether what it missed comes, too.
        recovered: Option<bool>,
    },
    /// The same, of a channel of which this client is a member.
    Entered {
        /// The channel.
        channel: ChannelName,
        /// For a client that wants to know: those after this position.
        position: Option<Position>,
        /// For a client that has come back: whether what it missed comes, too.
        recovered: Option<bool>,
        /// Who is there, itself included.
        users: Arc<Users>,
    },
    /// It has signed in.
    SignedIn {
        /// As whom: what it has signed in with, byte for byte.
        user_data: Arc<str>,
    },
    /// Users that it watches are online now, or are not.
    Watched(News),
    /// So many connections are subscribed to a channel, at all gateways.
    Count {
        /// The channel.
        channel: ChannelName,
        /// How many.
        count: u32,
    },
    /// A cache channel has nothing to keep.
    CacheMiss {
        /// The channel.
        channel: ChannelName,
    },
    /// The client has published something that it does not get itself; it
    /// stands here now.
    Moved {
        /// The channel.
        channel: ChannelName,
        /// Where it stands.
        position: Position,
    },
    /// The channel's publications will not come.
    SubscriptionRefused {
        /// Its name as the client wrote it.
        channel: String,
        /// What kind of refusal.
        kind: &'static str,
        /// Why.
        message: String,
        /// The HTTP status that says the same.
        status: u16,
    },
    /// Publications of a channel are missing before the next one.
    Gap {
        /// The channel.
        channel: ChannelName,
        /// Which ones and why.
        gap: Gap,
    },
}

/// Why the server ends a connection, in the Pusher protocol's codes, which say
/// what the client should do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// 1003: a binary frame.
    Unsupported,
    /// 1009: a frame that is too large.
    TooLarge,
    /// 1002: not WebSocket.
    ProtocolError,
    /// 4001: no such app. Do not reconnect.
    UnknownApp,
    /// 4003: disabled app. Do not reconnect.
    AppDisabled,
    /// 4004: the app has too many connections. Do not reconnect.
    OverQuota,
    /// 4005: no such path. Do not reconnect.
    UnknownPath,
    /// 4006: the version is not a number. Do not reconnect.
    InvalidVersion,
    /// 4007: a version that this server does not speak. Do not reconnect.
    UnsupportedVersion,
    /// 4009: not allowed. Do not reconnect.
    Unauthorized,
    /// 4009: the app's backend has ended the connections of this user. Do not reconnect.
    Terminated,
    /// 4009: it has not said in time who it is. Do not reconnect.
    Unauthenticated,
    /// 4100: cannot keep up. Reconnect after a while.
    OverCapacity,
    /// 4100: too many messages. Reconnect after a while.
    TooManyMessages,
    /// 4100: no room for another connection. Reconnect after a while.
    Full,
    /// 4200: going away. Reconnect at once.
    GoingAway,
    /// 4200: a subscription was not acknowledged. Reconnect at once.
    Unacknowledged,
    /// 4201: no pong came. Reconnect at once.
    PongMissing,
}

impl CloseCode {
    /// All of them, for the reference page.
    pub const ALL: [Self; 18] = [
        Self::ProtocolError,
        Self::Unsupported,
        Self::TooLarge,
        Self::UnknownApp,
        Self::AppDisabled,
        Self::OverQuota,
        Self::UnknownPath,
        Self::InvalidVersion,
        Self::UnsupportedVersion,
        Self::Unauthorized,
        Self::Terminated,
        Self::Unauthenticated,
        Self::OverCapacity,
        Self::TooManyMessages,
        Self::Full,
        Self::GoingAway,
        Self::Unacknowledged,
        Self::PongMissing,
    ];

    /// The number in the close frame.
    pub fn number(self) -> u16 {
        match self {
            Self::ProtocolError => 1002,
            Self::Unsupported => 1003,
            Self::TooLarge => 1009,
            Self::UnknownApp => 4001,
            Self::AppDisabled => 4003,
            Self::OverQuota => 4004,
            Self::UnknownPath => 4005,
            Self::InvalidVersion => 4006,
            Self::UnsupportedVersion => 4007,
            Self::Unauthorized | Self::Terminated | Self::Unauthenticated => 4009,
            Self::OverCapacity | Self::TooManyMessages | Self::Full => 4100,
            Self::GoingAway | Self::Unacknowledged => 4200,
            Self::PongMissing => 4201,
        }
    }

    /// As metrics name it, and the reference page.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::ProtocolError => "protocol_error",
            Self::Unsupported => "unsupported_frame",
            Self::TooLarge => "frame_too_large",
            Self::UnknownApp => "unknown_app",
            Self::AppDisabled => "app_disabled",
            Self::OverQuota => "over_quota",
            Self::UnknownPath => "unknown_path",
            Self::InvalidVersion => "invalid_version",
            Self::UnsupportedVersion => "unsupported_version",
            Self::Unauthorized => "unauthorized",
            Self::Terminated => "terminated",
            Self::Unauthenticated => "unauthenticated",
            Self::OverCapacity => "slow_consumer",
            Self::TooManyMessages => "too_many_messages",
            Self::Full => "over_capacity",
            Self::GoingAway => "going_away",
            Self::Unacknowledged => "unacknowledged",
            Self::PongMissing => "pong_missing",
        }
    }

    /// What it means to a client, for the reference page.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::ProtocolError => "What came is not WebSocket.",
            Self::Unsupported => "Binary frames are not part of the protocol.",
            Self::TooLarge => "A frame is over the limit.",
            Self::UnknownApp => "No app has this key. Do not reconnect.",
            Self::AppDisabled => "The app is disabled. Do not reconnect.",
            Self::OverQuota => "The app has as many connections as it may have. Do not reconnect.",
            Self::UnknownPath => "WebSocket connections go to /app/{key}. Do not reconnect.",
            Self::InvalidVersion => "`protocol` is not a number. Do not reconnect.",
            Self::UnsupportedVersion => {
                "`protocol` is a version that is not spoken here; 5, 6 and 7 are. Do not reconnect."
            }
            Self::Unauthorized => "The page's origin may not connect. Do not reconnect.",
            Self::Terminated => {
                "The app's backend has ended all connections of this user. Do not reconnect."
            }
            Self::Unauthenticated => {
                "The client has neither signed in nor subscribed to a channel that needs a signature within the time that the app gives it. Do not reconnect."
            }
            Self::OverCapacity => {
                "The client reads too slowly: what waited for it was over the bound. Reconnect after a while."
            }
            Self::TooManyMessages => {
                "The client went on sending faster than is taken. Reconnect after a while."
            }
            Self::Full => {
                "The server has as many connections as it may have, in all or from this address. Reconnect after a while."
            }
            Self::GoingAway => "The server is shutting down. Reconnect at once.",
            Self::Unacknowledged => {
                "A subscription could not be acknowledged for 15 s: the channel's owner cannot be reached. Reconnect at once."
            }
            Self::PongMissing => {
                "The client was silent and did not answer a ping. Reconnect at once."
            }
        }
    }
}

/// The end of a connection, decided by the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    /// What the client should conclude.
    pub code: CloseCode,
    /// For whoever reads the client's log.
    pub message: String,
}
