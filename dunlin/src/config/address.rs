//! Addresses that are more than an IP address and a port.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use gateway::app::Secret;
use ipnet::IpNet;
use serde::{Deserialize, Serialize, Serializer};

/// What an address to listen on has to be.
pub(crate) const LISTEN: &str =
    "expected IP:PORT, such as 127.0.0.1:6001 or [::1]:6001; names are not looked up";

/// The servers of the bus: URLs with commas between them. They may hold a
/// password, so only [`BusServers::expose`] shows them whole.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct BusServers(Secret);

/// Why a text does not name servers of the bus. Does not repeat it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}; expected nats://HOST:PORT or tls://HOST:PORT, with commas between several; in a user or \
     password write @ : / ? # , % as %40 %3A %2F %3F %23 %2C %25, or use a credentials file"
)]
pub(crate) struct InvalidServers(&'static str);

impl BusServers {
    /// With whatever passwords they hold, to connect with.
    pub(crate) fn expose(&self) -> &str {
        self.0.expose()
    }

    /// For clap, which would repeat what it cannot parse: a value that may be
    /// an error.
    pub(crate) fn or_why_not(text: &str) -> Result<Result<Self, InvalidServers>, InvalidServers> {
        Ok(text.parse())
    }
}

impl FromStr for BusServers {
    type Err = InvalidServers;

    fn from_str(text: &str) -> Result<Self, InvalidServers> {
        let urls: Vec<&str> = text.split(',').map(str::trim).collect();
        for url in &urls {
            check_server(url)?;
        }
        Ok(Self(Secret::new(&urls.join(","))))
    }
}

fn check_server(url: &str) -> Result<(), InvalidServers> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(InvalidServers("not the URL of a server"));
    };
    if !["nats", "tls"].contains(&scheme) {
        return Err(InvalidServers("not a scheme of the bus"));
    }
    let (user, server) = rest.rsplit_once('@').unwrap_or(("", rest));
    let odd = |c: char| matches!(c, '@' | '/' | '?' | '#') || c.is_whitespace() || c.is_control();
    let server = server.strip_suffix('/').unwrap_or(server);
    if user.contains(odd) || server.contains(odd) {
        return Err(InvalidServers("a character that cannot stand there"));
    }
    let port = format!("{server}:4222");
    if server.parse::<HostPort>().is_err() && port.parse::<HostPort>().is_err() {
        return Err(InvalidServers("no host, or a port that is none"));
    }
    Ok(())
}

impl TryFrom<String> for BusServers {
    type Error = InvalidServers;

    fn try_from(text: String) -> Result<Self, InvalidServers> {
        text.parse()
    }
}

/// Without users and passwords.
impl fmt::Display for BusServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, url) in self.expose().split(',').enumerate() {
            let comma = if i == 0 { "" } else { "," };
            match (url.split_once("://"), url.rsplit_once('@')) {
                (Some((scheme, _)), Some((_, server))) => {
                    write!(f, "{comma}{scheme}://***@{server}")?;
                }
                _ => write!(f, "{comma}{url}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for BusServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for BusServers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Networks of proxies, with commas between them; `none`: there are no proxies.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct TrustedProxies(pub(crate) Vec<IpNet>);

/// Why a text does not name networks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a network of proxies: expected ADDRESS or ADDRESS/BITS with commas between several, \
     such as 10.0.0.0/8,fd00::1, or none if clients connect without one"
)]
pub(crate) struct InvalidProxies(String);

impl FromStr for TrustedProxies {
    type Err = InvalidProxies;

    fn from_str(text: &str) -> Result<Self, InvalidProxies> {
        if text == "none" {
            return Ok(Self(Vec::new()));
        }
        let network = |part: &str| {
            let single = |part: &str| part.parse().ok().map(|ip: IpAddr| IpNet::from(ip));
            let network = part.parse().ok().or_else(|| single(part));
            // Whom everybody is trusted by, anybody can tell anything.
            let network = network.filter(|network: &IpNet| network.prefix_len() > 0);
            network.ok_or_else(|| InvalidProxies(part.chars().take(100).collect()))
        };
        let networks = text.split(',').map(str::trim).map(network);
        networks.collect::<Result<_, _>>().map(Self)
    }
}

impl TryFrom<String> for TrustedProxies {
    type Error = InvalidProxies;

    fn try_from(text: String) -> Result<Self, InvalidProxies> {
        text.parse()
    }
}

impl From<TrustedProxies> for String {
    fn from(proxies: TrustedProxies) -> Self {
        let networks: Self = proxies
            .0
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(",");
        if networks.is_empty() {
            "none".into()
        } else {
            networks
        }
    }
}

/// An address whose host may be a name: `HOST:PORT`, IPv6 in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct HostPort {
    host: String,
    port: u16,
}

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address: expected HOST:PORT, such as node-1.example:7601 or [::1]:7601")]
pub(crate) struct InvalidAddress(String);

impl HostPort {
    /// Whether nobody could connect to it: it means "any address of mine".
    pub(crate) fn is_unspecified(&self) -> bool {
        self.host
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_unspecified())
    }
}

impl FromStr for HostPort {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress(text.chars().take(300).collect());
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let host_is_fine = match bare {
            Some(host) => host.parse::<std::net::Ipv6Addr>().is_ok(),
            None => is_host(host),
        };
        if !host_is_fine || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(invalid());
        }
        let port = port.parse().ok().filter(|port| *port > 0);
        Ok(Self {
            host: bare.unwrap_or(host).to_owned(),
            port: port.ok_or_else(invalid)?,
        })
    }
}

/// A DNS name or an IPv4 address.
fn is_host(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    text.len() <= 253 && text.trim_end_matches('.').split('.').all(is_label)
}

impl TryFrom<String> for HostPort {
    type Error = InvalidAddress;

    fn try_from(text: String) -> Result<Self, InvalidAddress> {
        text.parse()
    }
}

impl From<HostPort> for String {
    fn from(address: HostPort) -> Self {
        address.to_string()
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self {
            host: address.ip().to_string(),
            port: address.port(),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_the_bus_are_shown_nowhere() {
        let servers: BusServers = "nats://user:hunter2@a:4222, tls://token@[::1],nats://c"
            .parse()
            .unwrap();
        let shown = "nats://***@a:4222,tls://***@[::1],nats://c";
        assert_eq!(servers.to_string(), shown);
        assert_eq!(format!("{servers:?}"), shown);
        assert_eq!(
            serde_json::to_string(&servers).unwrap(),
            format!("{shown:?}")
        );
        assert_eq!(
            servers.expose(),
            "nats://user:hunter2@a:4222,tls://token@[::1],nats://c"
        );
        assert!("nats://a:4222/".parse::<BusServers>().is_ok());
        for text in [
            "",
            "hunter2",
            "nats://",
            "http://hunter2",
            "nats://a:4222,",
            "nats://u:hun,ter2@a",
            "nats://u:hun/ter2@a",
            "nats://u:hun@ter2@a",
            "nats://a:hunter2",
            "nats://a/hunter2",
            "nats://a//",
        ] {
            let why = text.parse::<BusServers>().unwrap_err().to_string();
            assert!(!why.contains("ter2"), "{why}");
            assert!(why.contains("nats://HOST:PORT"), "{why}");
        }
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for text in ["a:1", "node-1.example:7601", "127.0.0.1:65535", "[::1]:7"] {
            assert_eq!(text.parse::<HostPort>().unwrap().to_string(), text);
        }
        for text in [
            "", "a", ":1", "a:", "a:0", "a:x", "a:+1", "a:65536", "a b:1", "::1:7", "[a]:7",
            "a..b:1", "u@a:1",
        ] {
            assert!(text.parse::<HostPort>().is_err(), "{text:?}");
        }
        for (text, unspecified) in [("0.0.0.0:1", true), ("[::]:1", true), ("a:1", false)] {
            assert_eq!(
                text.parse::<HostPort>().unwrap().is_unspecified(),
                unspecified
            );
        }
    }
}
