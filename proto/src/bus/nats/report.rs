//! What the log says of the bus: when it is reached and when it is lost, why it
//! cannot be reached, and what the server refuses. Each once or now and then,
//! since the client library tries four times a second and a server refuses
//! every message anew.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often it is said that no server has been reached since the start.
const UNREACHED_EVERY: Duration = Duration::from_secs(5);
/// How often it is said that the bus is still away after it had been there.
const AWAY_EVERY: Duration = Duration::from_secs(30);
/// How often the same refusal is repeated.
const REFUSAL_EVERY: Duration = Duration::from_secs(60);
/// Most refusals that are told apart.
const REFUSALS_MAX: usize = 64;

/// Writes the log of one bus.
#[derive(Debug)]
pub(super) struct Reporter {
    /// As may be shown.
    servers: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    reached: bool,
    /// Since when nothing has been said of an absence; none while it is there.
    quiet_since: Option<Instant>,
    /// What the library called the last failure, which it tells apart from
    /// what happened at each server.
    failure: Option<String>,
    refusals: BTreeMap<String, Instant>,
}

impl Reporter {
    pub(super) fn new(servers: String) -> Self {
        Self {
            servers,
            state: Mutex::default(),
        }
    }

    pub(super) fn servers(&self) -> &str {
        &self.servers
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn connected(&self) {
        let again = {
            let mut state = self.state();
            state.quiet_since = None;
            state.failure = None;
            std::mem::replace(&mut state.reached, true)
        };
        if again {
            tracing::info!(servers = %self.servers, "the bus is reached again: what was lost meanwhile is asked for again");
        } else {
            tracing::info!(servers = %self.servers, "the bus is reached");
        }
    }

    pub(super) fn disconnected(&self) {
        self.state().quiet_since = Some(Instant::now());
        tracing::warn!(
            servers = %self.servers,
            "the bus is away: messages to other processes are dropped and counted until it is reached again, which is tried at once and then several times a second"
        );
    }

    pub(super) fn failure(&self, kind: String) {
        self.state().failure = Some(kind);
    }

    /// Another round over all servers begins. `failures` is what happened at
    /// them in the last one.
    pub(super) fn tries(&self, failures: impl Iterator<Item = (String, String)>) {
        let now = Instant::now();
        let mut state = self.state();
        if !state.is_due(now) {
            return;
        }
        let mut reasons: Vec<String> = failures
            .map(|(server, failure)| format!("{server}: {}", failure.replace("IO error: ", "")))
            .collect();
        if reasons.is_empty() {
            reasons.extend(state.failure.clone());
        }
        // Nothing is known before the first round.
        if reasons.is_empty() {
            return;
        }
        state.quiet_since = Some(now);
        let reached = state.reached;
        drop(state);
        self.unreachable(&reasons.join("; "), reached);
    }

    fn unreachable(&self, reason: &str, reached: bool) {
        let servers = &self.servers;
        let since = if reached { "still away" } else { "not reached" };
        let lower = reason.to_lowercase();
        if lower.contains("authorization") || lower.contains("authentication") {
            tracing::error!(%servers, reason, "the bus is {since}: the server refuses who we are. Check the user and password or the credentials file, and the users that the server knows");
        } else if ["certificate", "tls", "corrupt message"]
            .iter()
            .any(|word| lower.contains(word))
        {
            tracing::error!(%servers, reason, "the bus is {since}: TLS fails. Check that the server has TLS, that its certificate is valid, names the host that we connect to and is signed by a root that we know, and the CA file");
        } else {
            tracing::warn!(%servers, reason, "the bus is {since}: nothing can be sent to other processes. Is nats-server running, and can it be reached from here? Trying on");
        }
    }

    /// The server says no to something.
    pub(super) fn refused(&self, text: &str) {
        if !self.is_new(text) {
            return;
        }
        if text.to_lowercase().contains("permissions violation") {
            tracing::error!(
                refusal = text,
                "the bus does not permit what this process must do: it is connected as the wrong user, or this user lacks a permission. docs/operating/bus.md has the permissions of both roles"
            );
        } else {
            tracing::warn!(refusal = text, "the bus refuses something");
        }
    }

    /// A message is larger than the server takes.
    pub(super) fn too_large(&self, bytes: usize, bytes_max: usize) {
        if self.is_new("max_payload") {
            tracing::error!(
                bytes,
                bytes_max,
                "the bus takes smaller messages than we send: set max_payload of nats-server to 1MB, its default. Until then larger messages are dropped and counted"
            );
        }
    }

    pub(super) fn slow_consumer(&self) {
        if self.is_new("slow consumer") {
            tracing::warn!(
                "messages from the bus come faster than this process reads them: the newest are dropped and counted"
            );
        }
    }

    pub(super) fn leaving(&self) {
        tracing::info!(servers = %self.servers, "the bus's server is about to shut down");
    }

    fn is_new(&self, text: &str) -> bool {
        self.state().is_new(text, Instant::now())
    }
}

impl State {
    /// Whether it is time to say why the bus is away.
    fn is_due(&self, now: Instant) -> bool {
        let every = if self.reached {
            AWAY_EVERY
        } else {
            UNREACHED_EVERY
        };
        match self.quiet_since {
            Some(since) => now.duration_since(since) >= every,
            // Reached and not known to be lost: what the library tells is old.
            None => !self.reached,
        }
    }

    /// Whether this has not been said for a while.
    fn is_new(&mut self, text: &str, now: Instant) -> bool {
        let said = self.refusals.get(text);
        if said.is_some_and(|at| now.duration_since(*at) < REFUSAL_EVERY) {
            return false;
        }
        if self.refusals.len() >= REFUSALS_MAX {
            self.refusals.clear();
        }
        self.refusals.insert(text.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absence_is_told_now_and_then() {
        let start = Instant::now();
        let mut state = State::default();
        assert!(state.is_due(start), "at the first failure");
        state.quiet_since = Some(start);
        assert!(!state.is_due(start + UNREACHED_EVERY / 2));
        assert!(state.is_due(start + UNREACHED_EVERY));
        state.reached = true;
        assert!(!state.is_due(start + UNREACHED_EVERY), "the loss was told");
        assert!(state.is_due(start + AWAY_EVERY));
        state.quiet_since = None;
        assert!(!state.is_due(start + AWAY_EVERY), "it is there");
    }

    #[test]
    fn the_same_refusal_is_not_repeated_and_others_are_told() {
        let start = Instant::now();
        let mut state = State::default();
        assert!(state.is_new("a", start));
        assert!(!state.is_new("a", start + REFUSAL_EVERY / 2));
        assert!(state.is_new("b", start + REFUSAL_EVERY / 2));
        assert!(state.is_new("a", start + REFUSAL_EVERY));
        for i in 0..1_000 {
            assert!(state.is_new(&i.to_string(), start));
            assert!(state.refusals.len() <= REFUSALS_MAX, "bounded");
        }
    }
}
