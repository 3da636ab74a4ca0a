//! The list of NATS servers that an operator wrote, taken apart: addresses that
//! may be shown, and whom to say that we are, which may not. The client library
//! is only ever given the addresses, so that nothing it logs holds a password.

use std::fmt;
use std::net::Ipv6Addr;

/// The port that NATS has unless one is named.
const PORT: u16 = 4222;

/// A list of servers. Its `Display` is without secrets.
#[derive(Debug)]
pub(super) struct Servers {
    pub(super) addresses: Vec<Address>,
    pub(super) identity: Option<Identity>,
}

/// Where a server is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) tls: bool,
    /// An IPv6 address has its brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

/// Whom a client says that it is.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Identity {
    User { name: String, password: String },
    Token(String),
}

/// What is wrong with a list of servers. Shows no part of it that could be part
/// of a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no address in it.
    #[error("no NATS server is named: write nats://HOST:PORT or tls://HOST:PORT")]
    Empty,
    /// One of them cannot be read.
    #[error(
        "NATS server number {number}{shown} {problem}: write nats://HOST:PORT or tls://HOST:PORT, \
         several with commas between; in a user or password write @ : / , and % as %40 %3A %2F %2C %25"
    )]
    Invalid {
        /// Which one, from 1.
        number: usize,
        /// What it says, in brackets; nothing if the list may hold a password.
        shown: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The library logs in to all servers alike.
    #[error(
        "the NATS servers are given different users: one user must serve for all of them, as they are one cluster"
    )]
    Users,
}

impl std::str::FromStr for Servers {
    type Err = Error;

    fn from_str(list: &str) -> Result<Self, Error> {
        let mut addresses = Vec::new();
        let mut identity = None;
        let entries = list.split(',').map(str::trim);
        for (index, entry) in entries.enumerate().filter(|(_, entry)| !entry.is_empty()) {
            let invalid = |problem| Error::Invalid {
                number: index + 1,
                shown: if list.contains('@') {
                    String::new()
                } else {
                    format!(" ({entry})")
                },
                problem,
            };
            let (address, named) = server(entry).map_err(invalid)?;
            if let Some(named) = named {
                if identity.as_ref().is_some_and(|known| *known != named) {
                    return Err(Error::Users);
                }
                identity = Some(named);
            }
            addresses.push(address);
        }
        if addresses.is_empty() {
            return Err(Error::Empty);
        }
        Ok(Self {
            addresses,
            identity,
        })
    }
}

fn server(entry: &str) -> Result<(Address, Option<Identity>), &'static str> {
    let (tls, rest) = match entry.split_once("://") {
        Some(("nats", rest)) => (false, rest),
        Some(("tls", rest)) => (true, rest),
        _ => return Err("does not begin with nats:// or tls://"),
    };
    let (identity, rest) = match rest.rsplit_once('@') {
        Some((user, rest)) => (Some(named(user)?), rest),
        None => (None, rest),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    // Behind the brackets of an IPv6 address, if it is one.
    let after_host = rest.find(']').map_or(0, |end| end + 1);
    let (host, port) = match rest[after_host..].find(':') {
        Some(colon) => {
            let (host, port) = rest.split_at(after_host + colon);
            (host, port[1..].parse().ok().filter(|port| *port > 0))
        }
        None => (rest, Some(PORT)),
    };
    if !is_host(host) {
        return Err("does not name a host");
    }
    let address = Address {
        tls,
        host: host.to_owned(),
        port: port.ok_or("has no port of 1 to 65535 after the host")?,
    };
    Ok((address, identity))
}

fn is_host(text: &str) -> bool {
    if let Some(inner) = text.strip_prefix('[') {
        let inner = inner.strip_suffix(']').unwrap_or_default();
        return inner.parse::<Ipv6Addr>().is_ok();
    }
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

fn named(text: &str) -> Result<Identity, &'static str> {
    let problem = "has a user or password that is not percent-encoded text";
    match text.split_once(':') {
        None => Ok(Identity::Token(percent_decoded(text).ok_or(problem)?)),
        Some((name, password)) => Ok(Identity::User {
            name: percent_decoded(name).ok_or(problem)?,
            password: percent_decoded(password).ok_or(problem)?,
        }),
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            b'@' | b'/' | b':' => return None,
            plain => plain,
        });
    }
    String::from_utf8(decoded).ok()
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "tls" } else { "nats" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, address) in self.addresses.iter().enumerate() {
            write!(f, "{}{address}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User { .. } => "a user",
            Self::Token(_) => "a token",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_servers_are_read() {
        let servers: Servers = "nats://a, tls://b.c:1,,nats://[::1]:2/".parse().unwrap();
        assert_eq!(
            servers.to_string(),
            "nats://a:4222, tls://b.c:1, nats://[::1]:2"
        );
        assert_eq!(servers.identity, None);
        let servers: Servers = "nats://u%40x:p%3A%2cw@a:1,nats://b".parse().unwrap();
        let name = "u@x".to_owned();
        let password = "p:,w".to_owned();
        assert_eq!(servers.identity, Some(Identity::User { name, password }));
        assert_eq!(servers.to_string(), "nats://a:1, nats://b:4222");
        let servers: Servers = "nats://token@a".parse().unwrap();
        assert_eq!(servers.identity, Some(Identity::Token("token".into())));
    }

    #[test]
    fn ill_formed_lists_are_refused_with_what_to_write() {
        for list in ["", ",", " , "] {
            assert_eq!(list.parse::<Servers>().err(), Some(Error::Empty));
        }
        for list in [
            "a",
            "a:4222",
            "http://a",
            "nats://",
            "nats://:4222",
            "nats://a:",
            "nats://a:0",
            "nats://a:65536",
            "nats://a:b",
            "nats://a b",
            "nats://a/path",
            "nats://::1",
            "nats://[::1",
            "nats://[a]:1",
            "nats://a%zz@b",
            "nats://u:%ff@b",
            "nats://u:é%@b",
        ] {
            let error = list.parse::<Servers>().unwrap_err().to_string();
            assert!(error.contains("write nats://HOST:PORT"), "{list}: {error}");
        }
        let list = "nats://u:a@h,nats://u:b@h";
        assert_eq!(list.parse::<Servers>().err(), Some(Error::Users));
    }

    #[test]
    fn nothing_that_could_be_a_password_is_shown() {
        for list in [
            "nats://me:sec,ret@h",
            "nats://me:12,ret@h",
            "nats://me:secret@h:x",
            "nats://me:sec/ret@h",
            "nats://me:sec@ret@h",
            "me:secret@h",
            "nats://me:sec%ret@h",
        ] {
            let error = list.parse::<Servers>().unwrap_err();
            for text in [error.to_string(), format!("{error:?}")] {
                for part in ["sec", "ret", "me:", "12,"] {
                    // "secret" is not one of our words, but "ret" is in others.
                    assert!(!text.contains(part), "{list}: {part} in {text}");
                }
            }
        }
        let servers: Servers = "nats://me:secret@h".parse().unwrap();
        assert!(!format!("{servers:?} {servers}").contains("secret"));
    }
}
