//! Bearer tokens of the admin address and what they allow. The file holds a
//! token's SHA-256, its scopes and a name, one token a line; `#` begins a
//! comment. Whoever reads the file cannot use what it finds.

use std::path::Path;

use clap::ValueEnum;
use sha2::{Digest, Sha256};

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scope {
    /// Read `/metrics`.
    #[value(name = "metrics:read")]
    MetricsRead,
    /// Read `/admin/status` and `/admin/inspect`.
    #[value(name = "cluster:read")]
    ClusterRead,
    /// Change things; includes `cluster:read`.
    #[value(name = "cluster:admin")]
    ClusterAdmin,
}

impl Scope {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::MetricsRead => "metrics:read",
            Self::ClusterRead => "cluster:read",
            Self::ClusterAdmin => "cluster:admin",
        }
    }

    fn includes(self, wanted: Self) -> bool {
        self == wanted || (self == Self::ClusterAdmin && wanted == Self::ClusterRead)
    }
}

/// A new token.
pub(crate) struct Token(String);

impl Token {
    /// 256 random bits from the system.
    pub(crate) fn mint() -> std::io::Result<Self> {
        let mut bytes = [0_u8; 32];
        crate::process::fill_random(&mut bytes)?;
        Ok(Self(format!("dunlin_{}", hex::encode(bytes))))
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Its line in the file.
    pub(crate) fn line(&self, scopes: &[Scope], name: &str) -> String {
        let scopes: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
        format!("{} {} {name}", hex::encode(hash(&self.0)), scopes.join(","))
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// The tokens of a file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tokens {
    known: Vec<([u8; 32], Vec<Scope>)>,
}

/// Whether a request may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed,
    /// No token, or an unknown one.
    Unauthorized,
    /// A known token without the scope.
    Forbidden,
}

impl Tokens {
    /// Reads a file. The error names file and line.
    pub(crate) fn read(file: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            format!("could not read the token file {}: {error}", file.display())
        })?;
        Self::parse(&text)
            .map_err(|(line, problem)| format!("{}:{line}: {problem}", file.display()))
    }

    fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut known = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let Some(hash) = words.next() else { continue };
            let fail = |problem: &str| {
                (
                    number + 1,
                    format!("{problem}; `dunlin token admin` makes such lines"),
                )
            };
            let mut digest = [0; 32];
            hex::decode_to_slice(hash, &mut digest)
                .map_err(|_| fail("expected the SHA-256 of a token, 64 hex digits"))?;
            let scopes = words
                .next()
                .ok_or_else(|| fail("expected scopes behind the hash"))?;
            let scopes = scopes
                .split(',')
                .map(|scope| {
                    Scope::from_str(scope, false)
                        .map_err(|_| fail("expected metrics:read, cluster:read or cluster:admin"))
                })
                .collect::<Result<_, _>>()?;
            known.push((digest, scopes));
        }
        if known.is_empty() {
            return Err((
                1,
                "there is no token in the file; make one with `dunlin token admin`".into(),
            ));
        }
        Ok(Self { known })
    }

    /// Whether a request with this `Authorization` may do what needs `scope`.
    /// Hashes of tokens are compared: how long that takes says nothing about
    /// the token.
    pub(crate) fn check(&self, authorization: Option<&str>, scope: Scope) -> Verdict {
        let bearer = authorization.and_then(|value| value.split_once(' '));
        let Some((_, token)) = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        else {
            return Verdict::Unauthorized;
        };
        let digest = hash(token.trim());
        match self.known.iter().find(|(known, _)| *known == digest) {
            None => Verdict::Unauthorized,
            Some((_, scopes)) if scopes.iter().any(|has| has.includes(scope)) => Verdict::Allowed,
            Some(_) => Verdict::Forbidden,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_what_its_scopes_say() {
        let (reader, admin) = (Token("r".into()), Token("a".into()));
        let file = format!(
            "# tokens\n{}\n\n{}\n",
            reader.line(&[Scope::MetricsRead], "prometheus"),
            admin.line(&[Scope::ClusterAdmin], "me"),
        );
        let tokens = Tokens::parse(&file).unwrap();
        let check = |authorization: Option<&str>, scope| tokens.check(authorization, scope);
        assert_eq!(
            check(Some("Bearer r"), Scope::MetricsRead),
            Verdict::Allowed
        );
        assert_eq!(
            check(Some("Bearer r"), Scope::ClusterRead),
            Verdict::Forbidden
        );
        assert_eq!(
            check(Some("Bearer a"), Scope::ClusterRead),
            Verdict::Allowed
        );
        assert_eq!(
            check(Some("Bearer a"), Scope::MetricsRead),
            Verdict::Forbidden
        );
        assert_eq!(
            check(Some("Bearer x"), Scope::MetricsRead),
            Verdict::Unauthorized
        );
        assert_eq!(
            check(Some("Basic r"), Scope::MetricsRead),
            Verdict::Unauthorized
        );
        assert_eq!(check(None, Scope::MetricsRead), Verdict::Unauthorized);
        assert!(!file.contains(" r "), "the file does not hold the token");
    }

    #[test]
    fn a_wrong_file_says_where() {
        assert_eq!(Tokens::parse("# a\nxyz metrics:read n").unwrap_err().0, 2);
        let hash = "0".repeat(64);
        assert!(Tokens::parse(&hash).unwrap_err().1.contains("scopes"));
        assert!(
            Tokens::parse(&format!("{hash} all n"))
                .unwrap_err()
                .1
                .contains("metrics:read")
        );
        assert!(Tokens::parse("").unwrap_err().1.contains("no token"));
    }
}
