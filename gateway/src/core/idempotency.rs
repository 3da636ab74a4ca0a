//! The key with which a backend may repeat a request to publish: what it may
//! look like, and what owners get to see of it.

use proto::channel::ChannelKey;
use proto::message::{Digest, Idempotency};
use sha2::{Digest as _, Sha256};

/// The headers that carry a key. The second is for clients whose libraries put
/// an `X-` before what is not a standard.
pub const HEADERS: [&str; 2] = ["idempotency-key", "x-idempotency-key"];
/// Characters of a key at most.
pub const KEY_BYTES_MAX: usize = 255;

/// A key, as a backend chose it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key<'a>(&'a [u8]);

/// A key that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Empty or too long.
    #[error("an idempotency key has 1 to {KEY_BYTES_MAX} characters, this one has {0}")]
    Length(usize),
    /// Something that cannot be seen, or not by everybody.
    #[error("an idempotency key has visible ASCII characters only")]
    Character,
    /// Two different ones.
    #[error("the request has two different idempotency keys: send one")]
    Different,
}

impl<'a> Key<'a> {
    /// The key of a request, from the values of [`HEADERS`]. `None`: it has none.
    pub fn of(values: impl IntoIterator<Item = &'a [u8]>) -> Result<Option<Self>, Error> {
        let mut key = None;
        for value in values {
            if key.is_some_and(|Self(first)| first != value) {
                return Err(Error::Different);
            }
            key = Some(Self::parse(value)?);
        }
        Ok(key)
    }

    /// A key that stands somewhere else.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(value: &'a [u8]) -> Result<Self, Error> {
        if value.is_empty() || value.len() > KEY_BYTES_MAX {
            return Err(Error::Length(value.len()));
        }
        if !value.iter().all(u8::is_ascii_graphic) {
            return Err(Error::Character);
        }
        Ok(Self(value))
    }

    /// What the owner of a channel compares for one of the events of a request that
    /// has this key for all of them.
    pub fn of_event(self, at: usize, channel: &ChannelKey, body: Digest) -> Idempotency {
        let Idempotency { key, body } = self.in_channel(channel, body);
        let mut hash = Sha256::new_with_prefix(key.0.to_be_bytes());
        hash.update((at as u64).to_be_bytes());
        Idempotency {
            key: first_half(hash),
            body,
        }
    }

    /// What the owner of a channel compares: each channel of a request is a
    /// publish of its own.
    pub fn in_channel(self, channel: &ChannelKey, body: Digest) -> Idempotency {
        let mut hash = Sha256::new();
        // With their lengths, so that they do not run into each other.
        for part in [channel.app.as_str(), channel.channel.as_str()] {
            hash.update((part.len() as u32).to_be_bytes());
            hash.update(part);
        }
        hash.update(self.0);
        Idempotency {
            key: first_half(hash),
            body,
        }
    }
}

/// The digest of a request's body, byte for byte.
pub fn body_digest(body: &[u8]) -> Digest {
    first_half(Sha256::new_with_prefix(body))
}

fn first_half(hash: Sha256) -> Digest {
    let whole: [u8; 32] = hash.finalize().into();
    let mut half = [0; 16];
    half.copy_from_slice(&whole[..16]);
    Digest(u128::from_be_bytes(half))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn channel(app: &str, channel: &str) -> ChannelKey {
        ChannelKey {
            app: app.parse().unwrap(),
            channel: channel.parse().unwrap(),
        }
    }

    #[test]
    fn a_key_is_visible_and_one() {
        let longest = [b'k'; KEY_BYTES_MAX];
        assert_eq!(Key::of([]), Ok(None));
        assert_eq!(Key::of([&longest[..]]), Ok(Some(Key(&longest))));
        assert_eq!(Key::of([&b"!~"[..], b"!~"]), Ok(Some(Key(b"!~"))));
        let too_long = [b'k'; KEY_BYTES_MAX + 1];
        for (values, error) in [
            (vec![&b""[..]], Error::Length(0)),
            (vec![&too_long], Error::Length(256)),
            (vec![b"a b"], Error::Character),
            (vec![b"a\x7f"], Error::Character),
            (vec!["é".as_bytes()], Error::Character),
            (vec![b"a", b"b"], Error::Different),
            (vec![b"a", b"a", b""], Error::Different),
        ] {
            assert_eq!(Key::of(values.iter().copied()), Err(error), "{values:?}");
        }
    }

    /// Gateways of different versions must agree: this is part of the wire.
    #[test]
    fn digests_are_pinned() {
        let body = body_digest(b"body");
        let digests = Key(b"key").in_channel(&channel("app-id", "room"), body);
        assert_eq!(body.0, 0x230d_8358_dc8e_8890_b4c5_8dee_b629_12ee);
        assert_eq!(digests.body, body);
        assert_eq!(digests.key.0, 0x156a_9f66_5e70_8462_6347_f20b_5cda_6efc);
    }

    #[test]
    fn app_channel_and_key_do_not_run_into_each_other() {
        let digest = |app, name, key| {
            let channel = channel(app, name);
            Key(key).in_channel(&channel, Digest(0)).key
        };
        let all = [
            digest("a", "bc", b"d"),
            digest("ab", "c", b"d"),
            digest("a", "b", b"cd"),
            digest("a", "bcd", b"d"),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[..at].contains(one), "{at}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_headers_never_panic(values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..3)) {
            if let Ok(Some(Key(key))) = Key::of(values.iter().map(Vec::as_slice)) {
                prop_assert!((1..=KEY_BYTES_MAX).contains(&key.len()));
            }
        }
    }
}
