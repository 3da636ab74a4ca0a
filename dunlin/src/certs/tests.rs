use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

use super::*;

const NOW: UnixTime = UnixTime(1_900_000_000_000_000);

fn id(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn verify(authority: &Pair, pair: &Pair, name: &str, now: UnixTime) -> Result<(), Error> {
    let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
    check(authority, &certificate, &id(name), now)
}

/// Two nodes that greet each other in memory, each asking for the other's
/// certificate.
fn greet(authority: &Pair, server: &Pair, client: &Pair, name: &str) -> Result<(), rustls::Error> {
    let certificate =
        |pair: &Pair| vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
    let key = |pair: &Pair| PrivateKeyDer::from_pem_slice(pair.key.expose().as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate(authority).remove(0)).unwrap();
    let roots = Arc::new(roots);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .unwrap();
    let serving = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificate(server), key(server))?;
    let connecting = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificate(client), key(client))?;
    let name = ServerName::try_from(dns_name(&id(name))).unwrap();
    let mut server = ServerConnection::new(Arc::new(serving))?;
    let mut client = ClientConnection::new(Arc::new(connecting), name)?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        server.read_tls(&mut &bytes[..]).unwrap();
        server.process_new_packets()?;
        bytes.clear();
        server.write_tls(&mut bytes).unwrap();
        client.read_tls(&mut &bytes[..]).unwrap();
        client.process_new_packets()?;
    }
    Ok(())
}

/// By the clock of this machine, for that is what the greeting is checked by.
#[test]
#[expect(clippy::disallowed_methods, reason = "rustls reads the clock as well")]
fn nodes_greet_each_other_and_nobody_else() {
    let now = UnixTime::now();
    let ours = authority(now, 3_650).unwrap();
    let theirs = authority(now, 3_650).unwrap();
    let (a, b) = (
        node(&ours, &id("Node_1"), now, 825).unwrap(),
        node(&ours, &id("b"), now, 825).unwrap(),
    );
    let stranger = node(&theirs, &id("b"), now, 825).unwrap();
    greet(&ours, &a, &b, "Node_1").unwrap();
    greet(&ours, &b, &a, "b").unwrap();
    greet(&ours, &a, &b, "b").expect_err("a is not b");
    greet(&ours, &a, &stranger, "Node_1").expect_err("not of this cluster");
    greet(&ours, &stranger, &a, "b").expect_err("not of this cluster");
}

#[test]
fn certificates_are_valid_from_a_day_ago_until_their_days_are_over() {
    let ca = authority(NOW, 3_650).unwrap();
    let pair = node(&ca, &id("a"), NOW, 2).unwrap();
    let later = |secs: i64| UnixTime(NOW.0.saturating_add_signed(secs * 1_000_000));
    for secs in [-86_400, 0, 2 * 86_400] {
        verify(&ca, &pair, "a", later(secs)).unwrap();
    }
    for (secs, word) in [(-86_402, "NotValidYet"), (2 * 86_400 + 2, "Expired")] {
        let error = verify(&ca, &pair, "a", later(secs)).unwrap_err();
        assert!(format!("{error:?}").contains(word), "{error:?}");
    }
}

#[test]
fn names_that_cannot_stand_in_a_certificate_are_refused() {
    let ca = authority(NOW, 1).unwrap();
    let longest = "x".repeat(63);
    for name in ["a", "A", "node_1", "_", "7", "a--b", &longest] {
        let pair = node(&ca, &id(name), NOW, 1).unwrap_or_else(|error| panic!("{name}: {error}"));
        verify(&ca, &pair, name, NOW).unwrap();
    }
    for name in ["-", "-a", "a-", "ca", "CA", &"x".repeat(64)] {
        let error = node(&ca, &id(name), NOW, 1).unwrap_err();
        assert!(matches!(error, Error::Name(_)), "{name}: {error}");
    }
}

#[test]
fn an_authority_that_is_none_is_refused() {
    let (ca, other) = (authority(NOW, 1).unwrap(), authority(NOW, 1).unwrap());
    let leaf = node(&ca, &id("a"), NOW, 1).unwrap();
    let mixed = |certificate: &str, key: &Secret| {
        let pair = Pair {
            certificate: certificate.to_owned(),
            key: key.clone(),
        };
        node(&pair, &id("b"), NOW, 1).unwrap_err().to_string()
    };
    assert!(mixed(&ca.certificate, &other.key).contains("does not belong"));
    assert!(mixed(&leaf.certificate, &leaf.key).contains("ca.crt"));
    assert!(mixed("nonsense", &ca.key).contains("ca.crt"));
    let error = mixed(&ca.certificate, &Secret::new("hunter2"));
    assert!(
        error.contains("ca.key") && !error.contains("hunter2"),
        "{error}"
    );
}

#[test]
fn keys_are_not_printed() {
    let ca = authority(NOW, 1).unwrap();
    assert!(!format!("{ca:?}").contains("PRIVATE"));
    assert!(ca.key.expose().contains("PRIVATE KEY"));
}
