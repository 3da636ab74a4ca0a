//! What is read from the system: variables that are not flags, and the host's
//! name.

use std::collections::BTreeSet;

use clap::CommandFactory;
use gateway::app::Secret;
use proto::id::{ID_BYTES_MAX, NodeId};

use crate::cli::Cli;

/// The token that tools show at an admin address. Not a flag: command lines can
/// be read by everyone on the machine.
const ADMIN_TOKEN: &str = "DUNLIN_ADMIN_TOKEN";
/// Seconds by which a test shifts the wall clock.
#[cfg(debug_assertions)]
const CLOCK_OFFSET: &str = "DUNLIN_TEST_CLOCK_OFFSET_S";

/// Names in the environment that look like ours and are not: typing errors. No
/// more than a warning, for Kubernetes sets some of its own for a service
/// called dunlin.
pub(crate) fn unknown_variables() -> Vec<String> {
    fn known(command: &clap::Command, names: &mut BTreeSet<String>) {
        let own = command
            .get_arguments()
            .filter_map(|argument| argument.get_env());
        names.extend(own.map(|name| name.to_string_lossy().into_owned()));
        for sub in command.get_subcommands() {
            known(sub, names);
        }
    }
    let mut names = BTreeSet::from([ADMIN_TOKEN.to_owned()]);
    #[cfg(debug_assertions)]
    names.insert(CLOCK_OFFSET.to_owned());
    known(&Cli::command(), &mut names);
    let all = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    all.filter(|name| name.starts_with("DUNLIN_") && !names.contains(name))
        .collect()
}

/// The token for an admin address, if there is one.
pub(crate) fn admin_token() -> Option<Secret> {
    let token = std::env::var_os(ADMIN_TOKEN)?;
    let token = token.to_string_lossy();
    let token = token.trim();
    (!token.is_empty()).then(|| Secret::new(token))
}

/// By how many seconds a test wants the wall clock to be wrong.
#[cfg(debug_assertions)]
pub(crate) fn clock_offset_s() -> Result<Option<i64>, String> {
    let Some(text) = std::env::var_os(CLOCK_OFFSET) else {
        return Ok(None);
    };
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    seconds
        .map(Some)
        .ok_or_else(|| format!("{CLOCK_OFFSET}: expected a number of seconds"))
}

/// The host's name, made into one that a process may have: other characters
/// become `-`, and `-` stands neither first nor last, for names of nodes stand
/// in certificates.
pub(super) fn host_name(suffix: &str) -> Option<NodeId> {
    name_of(
        &rustix::system::uname().nodename().to_string_lossy(),
        suffix,
    )
}

fn name_of(host: &str, suffix: &str) -> Option<NodeId> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let host: String = host
        .trim_matches(|c: char| !fits(c) || c == '-')
        .chars()
        .map(|c| if fits(c) { c } else { '-' })
        // One less than an id may have: the longest label of a DNS name.
        .take(ID_BYTES_MAX - 1 - suffix.len())
        .collect();
    format!("{}{suffix}", host.trim_end_matches('-'))
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::name_of;

    #[test]
    fn host_names_become_valid_names() {
        for (host, suffix, name) in [
            ("web-1", "-6001", "web-1-6001"),
            ("web-1.example.com", "", "web-1-example-com"),
            ("-böse.", "", "b-se"),
        ] {
            assert_eq!(name_of(host, suffix).unwrap().as_str(), name);
        }
        let long = name_of(&"x".repeat(300), "-6001").unwrap();
        assert_eq!(long.as_str().len(), 63);
        assert!(long.as_str().ends_with("x-6001"));
        assert_eq!(name_of("...", ""), None);
    }
}
