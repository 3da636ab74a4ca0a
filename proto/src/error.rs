//! The failures that may reach a client, one list for every protocol.
//!
//! `docs/reference/errors.md` is generated from this file.

use serde::{Deserialize, Serialize};

macro_rules! error_codes {
    ($($(#[doc = $meaning:literal])+ $variant:ident = $name:literal, $status:literal, $remedy:literal;)+) => {
        /// What went wrong, in a word that programs can compare.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum ErrorCode {
            $($(#[doc = $meaning])+ #[serde(rename = $name)] $variant,)+
        }

        impl ErrorCode {
            /// Every code, in the order of the reference page.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The code as it stands in answers: `code` in the body.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The HTTP status that goes with it.
            pub fn http_status(self) -> u16 {
                match self { $(Self::$variant => $status,)+ }
            }

            /// What it means, for the reference page.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($meaning),+),)+ }
            }

            /// What the caller can do.
            pub fn remedy(self) -> &'static str {
                match self { $(Self::$variant => $remedy,)+ }
            }
        }
    };
}

error_codes! {
    /// The request cannot be understood; the message says which part.
    BadRequest = "bad_request", 400, "Correct the request; the same one will fail again.";
    /// The signature does not fit the request and the app's secret, or the key is not the app's.
    BadSignature = "bad_signature", 401, "Check key and secret, and that nothing between client and server rewrites path, query or body.";
    /// `auth_timestamp` is more than 600 s away from the server's clock.
    StaleTimestamp = "stale_timestamp", 401, "Set the clock of the calling machine.";
    /// A part of the signature is missing.
    MissingSignature = "missing_signature", 401, "Sign the request: auth_key, auth_timestamp, auth_version, body_md5 and auth_signature.";
    /// The token is not one of this app, or does not say what it must.
    BadToken = "bad_token", 401, "Make it with the app's key as kid and its secret, with HS256: `dunlin token app` does.";
    /// The token is not valid any more.
    ExpiredToken = "expired_token", 401, "Get a new token from the app's backend.";
    /// The app is disabled in the configuration.
    AppDisabled = "app_disabled", 403, "Enable the app, or use another one.";
    /// The page's origin is not among the app's allowed origins.
    ForbiddenOrigin = "forbidden_origin", 403, "Add the origin to the app's allowed_origins.";
    /// The channel may not be read or published into this way, or not with this token.
    ForbiddenChannel = "forbidden_channel", 403, "Get a token that names the channel; for presence channels subscribe over WebSocket.";
    /// No app has this id or key.
    UnknownApp = "unknown_app", 404, "Check the id or key against the server's configuration.";
    /// There is nothing at this path.
    UnknownRoute = "unknown_route", 404, "See docs/protocol for the paths that exist.";
    /// The path exists, for another method.
    MethodNotAllowed = "method_not_allowed", 405, "Use the method in the Allow header.";
    /// The body, the data or the name is larger than the app allows.
    TooLarge = "too_large", 413, "Send less, or raise the app's limit: the message names it, or docs/operating/limits.md.";
    /// As many users are present in the channel as may be.
    RosterFull = "roster_full", 403, "Try again when somebody has left.";
    /// The idempotency key has been used for another request, in at least one of the channels. Into that one nothing was published.
    IdempotencyMismatch = "idempotency_mismatch", 422, "Use a new key for every new request, and repeat a request byte for byte.";
    /// The path is for WebSocket connections.
    UpgradeRequired = "upgrade_required", 426, "Connect with a WebSocket client.";
    /// More is asked for than is allowed: requests or publications of the app, or connections from this address. The message says which. Nothing was done.
    RateLimited = "rate_limited", 429, "Try again after the time in Retry-After, and less often.";
    /// The app has as many connections as it may have.
    OverQuota = "over_quota", 503, "Close connections, or raise connections_max.";
    /// The server has as many connections as it may have.
    OverCapacity = "over_capacity", 503, "Try again after the time in Retry-After.";
    /// A queue on the way is full. Nothing was published.
    Overloaded = "overloaded", 503, "Try again after the time in Retry-After.";
    /// The owner of the channel remembers as many idempotency keys as it may. Nothing was published.
    IdempotencyFull = "idempotency_full", 503, "Try again with the same key after the time in Retry-After, or without a key.";
    /// Nobody stands by for the channel's owner, and its namespace requires somebody. Nothing was published.
    NoStandby = "no_standby", 503, "Try again after the time in Retry-After. If it lasts: is there another node that can stand by?";
    /// The standby of the channel's owner was lost while this was published, and the namespace requires one: the publication is in the channel, in one process only.
    Unprotected = "unprotected", 503, "Try again with the same Idempotency-Key: it is acknowledged when it is in two processes. Without one a duplicate would be published.";
    /// The channel's owner cannot be reached. Nothing was published.
    Unavailable = "unavailable", 503, "Try again after the time in Retry-After.";
    /// The owner was asked and did not answer in time: the publication may or may not be in the channel.
    UnknownOutcome = "unknown_outcome", 503, "Try again with the same Idempotency-Key. Without one, only if a duplicate does no harm.";
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        for (i, code) in ErrorCode::ALL.iter().enumerate() {
            assert!(
                !ErrorCode::ALL[..i]
                    .iter()
                    .any(|c| c.as_str() == code.as_str()),
                "{code}"
            );
        }
    }
}
