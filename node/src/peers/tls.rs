//! The certificates of a node: who may speak to it, and as whom it speaks.
//!
//! A node's certificate holds for two names: `node.dunlin`, which every node
//! asks for when it connects, and `<name>.node.dunlin`, by which the other side
//! checks that a node is who it says it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::id::NodeId;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, RootCertStore};

/// The name that every node's certificate holds for.
pub(crate) const ANY_NODE: &str = "node.dunlin";
/// Says which protocol is spoken.
const ALPN: &[u8] = b"dunlin-node/1";

/// Why certificates cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or not what it should be.
    #[error(
        "could not use {file}: {problem}; `dunlin certs init DIR` makes an authority and `dunlin certs node DIR NAME` a node's certificate"
    )]
    File {
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// The node's own certificate would be refused by all others.
    #[error("the certificate {file} cannot be used: {problem}")]
    Unusable {
        /// The file.
        file: String,
        /// Why.
        problem: String,
    },
}

/// Both sides of mutual TLS.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    pub(crate) client: quinn::ClientConfig,
    pub(crate) server: quinn::ServerConfig,
}

impl Tls {
    /// Reads `ca.crt`, `NAME.crt` and `NAME.key` and checks that they belong
    /// together.
    pub(crate) fn load(directory: &Path, name: &NodeId) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let path = |file: &str| directory.join(file);
        let (authority, certificate, key) = (
            path("ca.crt"),
            path(&format!("{name}.crt")),
            path(&format!("{name}.key")),
        );
        let roots = Arc::new(roots(&authority)?);
        let chain = certificates(&certificate)?;
        check_own(&chain, &roots, &provider, name, &certificate)?;
        let private =
            || PrivateKeyDer::from_pem_file(&key).map_err(|error| file_problem(&key, &error));
        let mismatch = |error: rustls::Error| file_problem(&key, &error);
        let versions = &[&rustls::version::TLS13];
        let mut client = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(mismatch)?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), private()?)
            .map_err(mismatch)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| file_problem(&authority, &error))?;
        let mut server = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(mismatch)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, private()?)
            .map_err(mismatch)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        let client = QuicClientConfig::try_from(client).map_err(|e| file_problem(&key, &e))?;
        let server = QuicServerConfig::try_from(server).map_err(|e| file_problem(&key, &e))?;
        Ok(Self {
            client: quinn::ClientConfig::new(Arc::new(client)),
            server: quinn::ServerConfig::with_crypto(Arc::new(server)),
        })
    }
}

fn file_problem(file: &Path, error: &dyn std::fmt::Display) -> TlsError {
    TlsError::File {
        file: file.display().to_string(),
        problem: error.to_string(),
    }
}

fn certificates(file: &PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file)
        .map_err(|error| file_problem(file, &error))?
        .collect();
    let chain = chain.map_err(|error| file_problem(file, &error))?;
    if chain.is_empty() {
        return Err(file_problem(file, &"there is no certificate in it"));
    }
    Ok(chain)
}

fn roots(file: &PathBuf) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots
            .add(certificate)
            .map_err(|error| file_problem(file, &error))?;
    }
    Ok(roots)
}

/// Looks at the node's own certificate as others will.
fn check_own(
    chain: &[CertificateDer<'static>],
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
    name: &NodeId,
    file: &Path,
) -> Result<(), TlsError> {
    let unusable = |problem: String| TlsError::Unusable {
        file: file.display().to_string(),
        problem,
    };
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
            .build()
            .map_err(|error| unusable(error.to_string()))?;
    let Some((own, rest)) = chain.split_first() else {
        return Ok(());
    };
    let any = ServerName::try_from(ANY_NODE).expect("a valid name");
    verifier
        .verify_server_cert(own, rest, &any, &[], UnixTime::now())
        .map_err(|error| unusable(explain(&error)))?;
    if !holds_for(own, name) {
        return Err(unusable(format!(
            "it was not made for a node named {name}; make one with `dunlin certs node DIR {name}`"
        )));
    }
    Ok(())
}

/// Whether a certificate holds for a node's name.
pub(crate) fn holds_for(certificate: &CertificateDer<'_>, name: &NodeId) -> bool {
    let text = format!("{}.{ANY_NODE}", name.as_str().to_ascii_lowercase());
    let Ok(name) = ServerName::try_from(text) else {
        return false;
    };
    webpki::EndEntityCert::try_from(certificate)
        .is_ok_and(|certificate| certificate.verify_is_valid_for_subject_name(&name).is_ok())
}

/// What is wrong with a certificate, in words that say what to do.
pub(crate) fn explain(error: &rustls::Error) -> String {
    use CertificateError as E;
    let rustls::Error::InvalidCertificate(problem) = error else {
        return error.to_string();
    };
    match problem {
        E::Expired | E::ExpiredContext { .. } => {
            "it has expired; make a new one with `dunlin certs node DIR NAME --renew`".into()
        }
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "it is not valid yet; are the clocks right?".into()
        }
        E::UnknownIssuer | E::BadSignature => {
            "it is of another authority than ca.crt; all nodes of a cluster need certificates of one".into()
        }
        other => other.to_string(),
    }
}

/// What the failure of a handshake means.
pub(crate) fn explain_handshake(error: &quinn::ConnectionError) -> String {
    let text = error.to_string();
    // An alert is all that the other side tells: RFC 8446, section 6.2.
    let alert = |number: u8| quinn_code(error) == Some(number);
    if text.contains("Expired") || alert(45) {
        return format!(
            "a certificate has expired ({text}); make a new one with `dunlin certs node DIR NAME --renew`"
        );
    }
    if text.contains("UnknownIssuer") || text.contains("BadSignature") || alert(48) || alert(51) {
        return format!(
            "its certificate and ours are of different authorities ({text}); all nodes of a cluster need certificates of one"
        );
    }
    if alert(42) || alert(46) || alert(116) {
        return format!("one side did not accept the other's certificate ({text})");
    }
    text
}

/// The TLS alert in a QUIC error: RFC 9001, section 4.8.
fn quinn_code(error: &quinn::ConnectionError) -> Option<u8> {
    let code: u64 = match error {
        quinn::ConnectionError::TransportError(error) => error.code.into(),
        quinn::ConnectionError::ConnectionClosed(close) => close.error_code.into(),
        _ => return None,
    };
    (0x100..0x200)
        .contains(&code)
        .then_some((code & 0xff) as u8)
}
