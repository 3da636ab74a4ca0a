//! From where a client comes, behind any number of proxies.

use ::core::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// Whom limits by address count as one: an IPv4 address, or the network of 64
/// bits that is commonly given to one customer of IPv6 (RFC 6177).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Origin(IpAddr);

impl Origin {
    /// The one that an address belongs to.
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = u128::from(address) >> 64 << 64;
                IpAddr::V6(Ipv6Addr::from(network))
            }
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// The address of the client: of the peer, unless that is a trusted proxy. Such a
/// one has written who came to it at the end of `X-Forwarded-For`, so that what
/// stands before the last one that is no trusted proxy is anybody's invention.
///
/// `forwarded` are the values of that header, in their order. What cannot be read
/// ends the search: the proxy that passed it on is the one that is known.
pub fn client_address<'a>(
    peer: IpAddr,
    forwarded: impl DoubleEndedIterator<Item = &'a str>,
    trusted: &[IpNet],
) -> IpAddr {
    let is_trusted = |address: &IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = peer.to_canonical();
    let hops = forwarded.rev().flat_map(|value| value.rsplit(','));
    for hop in hops {
        if !is_trusted(&client) {
            break;
        }
        match read(hop.trim()) {
            Some(address) => client = address.to_canonical(),
            None => break,
        }
    }
    client
}

/// An address as proxies write it: bare, in brackets, or with a port.
fn read(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let address = bare.unwrap_or(text).parse().ok();
    address.or_else(|| {
        text.parse()
            .ok()
            .map(|with_port: SocketAddr| with_port.ip())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client(peer: &str, forwarded: &[&str]) -> String {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap());
        let peer = peer.parse().unwrap();
        client_address(peer, forwarded.iter().copied(), &trusted).to_string()
    }

    #[test]
    fn a_stranger_can_say_what_it_likes() {
        assert_eq!(client("1.2.3.4", &[]), "1.2.3.4");
        assert_eq!(client("1.2.3.4", &["5.6.7.8"]), "1.2.3.4");
        assert_eq!(client("::ffff:1.2.3.4", &["5.6.7.8"]), "1.2.3.4");
    }

    #[test]
    fn the_last_one_that_no_trusted_proxy_has_the_address_of_counts() {
        assert_eq!(client("10.0.0.1", &["5.6.7.8"]), "5.6.7.8");
        assert_eq!(client("10.0.0.1", &["9.9.9.9, 5.6.7.8"]), "5.6.7.8");
        assert_eq!(
            client("10.0.0.1", &["9.9.9.9, 5.6.7.8,10.0.0.2"]),
            "5.6.7.8"
        );
        assert_eq!(client("10.0.0.1", &["5.6.7.8", "10.0.0.2"]), "5.6.7.8");
        assert_eq!(client("::ffff:10.0.0.1", &["5.6.7.8"]), "5.6.7.8");
        assert_eq!(client("fd00::1", &["[2001:db8::1]:443"]), "2001:db8::1");
        assert_eq!(client("fd00::1", &["[2001:db8::1]"]), "2001:db8::1");
        assert_eq!(client("fd00::1", &["1.2.3.4:5"]), "1.2.3.4");
    }

    #[test]
    fn what_cannot_be_read_is_not_looked_behind() {
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["1.2.3.4, unknown"]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["1.2.3.4, _x, 10.0.0.9"]), "10.0.0.9");
        assert_eq!(client("10.0.0.1", &[""]), "10.0.0.1");
    }

    #[test]
    fn networks_of_ipv6_count_as_one() {
        let origin = |text: &str| Origin::of(text.parse().unwrap());
        assert_eq!(origin("2001:db8::1"), origin("2001:db8::ffff:2"));
        assert_ne!(origin("2001:db8::1"), origin("2001:db8:0:1::1"));
        assert_ne!(origin("1.2.3.4"), origin("1.2.3.5"));
        assert_eq!(origin("1.2.3.4"), origin("::ffff:1.2.3.4"));
    }

    proptest! {
        #[test]
        fn arbitrary_headers_never_panic(values in prop::collection::vec(".{0,60}", 0..4)) {
            client("10.0.0.1", &values.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }
}
