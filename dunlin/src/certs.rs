//! Certificates by which nodes know each other: one authority per cluster, and
//! one certificate per node that it has signed. Whoever has one is a node, so
//! the authority's key stays off the servers.
//!
//! What is made is checked as a peer would check it before anyone gets it: a
//! key that belongs to another authority, or a name that cannot stand in a
//! certificate, shows here and not when the cluster starts.

use std::sync::Arc;
use std::time::Duration;

use gateway::app::Secret;
use proto::id::NodeId;
use proto::time::UnixTime;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};

/// What every node's certificate is for.
const DOMAIN: &str = "node.dunlin";
/// Clocks differ, and some take local time for UTC: a new certificate is valid
/// since a day ago.
const BACKDATED: Duration = Duration::from_secs(86_400);
/// The longest label of a DNS name.
const LABEL_BYTES_MAX: usize = 63;

/// A certificate and its key, as PEM.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: Secret,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "no certificate can be for a node named {0:?}: use at most 63 characters, of A-Z a-z 0-9 _ -, with no - first or last, and not `ca`"
    )]
    Name(String),
    #[error("{0} is not what `dunlin certs init` makes: {1}")]
    Authority(&'static str, String),
    #[error("ca.key does not belong to ca.crt: {0}")]
    NotIssuedBy(rustls::Error),
    #[error("could not make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// Whether a node of this name can have a certificate: the name is a label of a
/// DNS name in it.
pub(crate) fn check_name(name: &NodeId) -> Result<(), Error> {
    let text = name.as_str();
    let fits = text.len() <= LABEL_BYTES_MAX
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.eq_ignore_ascii_case("ca");
    if fits {
        Ok(())
    } else {
        Err(Error::Name(text.to_owned()))
    }
}

/// The name by which a node's certificate is asked for.
fn dns_name(name: &NodeId) -> String {
    format!("{}.{DOMAIN}", name.as_str().to_ascii_lowercase())
}

/// Makes a certificate authority.
pub(crate) fn authority(now: UnixTime, days: u32) -> Result<Pair, Error> {
    let mut params = valid(now, days);
    params
        .distinguished_name
        .push(DnType::CommonName, "Dunlin nodes");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    Ok(Pair {
        certificate: params.self_signed(&key)?.pem(),
        key: Secret::new(&key.serialize_pem()),
    })
}

/// Makes a node's certificate, signed by an authority.
pub(crate) fn node(
    authority: &Pair,
    name: &NodeId,
    now: UnixTime,
    days: u32,
) -> Result<Pair, Error> {
    check_name(name)?;
    let signing = KeyPair::from_pem(authority.key.expose())
        .map_err(|error| Error::Authority("ca.key", error.to_string()))?;
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, signing)
        .map_err(|error| Error::Authority("ca.crt", error.to_string()))?;
    let usages = issuer.key_usages();
    if !usages.is_empty() && !usages.contains(&KeyUsagePurpose::KeyCertSign) {
        let why = "it is not the certificate of an authority".to_owned();
        return Err(Error::Authority("ca.crt", why));
    }
    let mut params = valid(now, days);
    params
        .distinguished_name
        .push(DnType::CommonName, name.as_str());
    for dns in [DOMAIN.to_owned(), dns_name(name)] {
        let dns = dns.try_into()?;
        params.subject_alt_names.push(rcgen::SanType::DnsName(dns));
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    check(authority, certificate.der(), name, now)?;
    Ok(Pair {
        certificate: certificate.pem(),
        key: Secret::new(&key.serialize_pem()),
    })
}

fn valid(now: UnixTime, days: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now.secs());
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::from_secs(u64::from(days) * 86_400);
    params
}

/// Checks a node's certificate as the nodes that connect to it will.
fn check(
    authority: &Pair,
    certificate: &CertificateDer<'_>,
    name: &NodeId,
    now: UnixTime,
) -> Result<(), Error> {
    let root = CertificateDer::from_pem_slice(authority.certificate.as_bytes())
        .map_err(|error| Error::Authority("ca.crt", error.to_string()))?;
    let mut roots = RootCertStore::empty();
    roots.add(root).map_err(Error::NotIssuedBy)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| Error::Authority("ca.crt", error.to_string()))?;
    let now = rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_secs(now.secs()));
    for dns in [DOMAIN.to_owned(), dns_name(name)] {
        let dns = ServerName::try_from(dns).map_err(|_| Error::Name(name.as_str().to_owned()))?;
        verifier
            .verify_server_cert(certificate, &[], &dns, &[], now)
            .map_err(Error::NotIssuedBy)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
