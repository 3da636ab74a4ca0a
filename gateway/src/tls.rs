//! Shell: TLS at the client address. The certificate is read again when its files
//! change.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use prometheus::IntCounter;
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// What HTTP/2 is called there (RFC 9113, 3.2).
pub(crate) const HTTP2: &[u8] = b"h2";

/// A connection.
pub(crate) type Stream = TlsStream<TcpStream>;

/// Where certificate and key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The certificate and those between it and the authority, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file has not what it should have.
    #[error("could not read {what} from {}: {why}", file.display())]
    Unreadable {
        /// Certificate or key.
        what: &'static str,
        /// The file.
        file: PathBuf,
        /// What was wrong.
        why: String,
    },
    /// They do not belong together, or cannot be used.
    #[error("the certificate in {} and the key in {} cannot be used: {why}", files.certificate.display(), files.key.display())]
    Unusable {
        /// Both.
        files: Files,
        /// What was wrong.
        why: rustls::Error,
    },
}

impl Files {
    fn read(&self) -> Result<CertifiedKey, Error> {
        let unreadable = |what, file: &PathBuf, why: String| Error::Unreadable {
            what,
            file: file.clone(),
            why,
        };
        let chain = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(|chain| chain.collect::<Result<Vec<_>, _>>())
            .map_err(|why| unreadable("a certificate", &self.certificate, why.to_string()))?;
        if chain.is_empty() {
            let why = "there is none in it".to_owned();
            return Err(unreadable("a certificate", &self.certificate, why));
        }
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|why| unreadable("a private key", &self.key, why.to_string()))?;
        CertifiedKey::from_der(chain, key, &default_provider()).map_err(|why| Error::Unusable {
            files: self.clone(),
            why,
        })
    }

    /// When they were last written, as far as that can be seen.
    fn written(&self) -> [Option<SystemTime>; 2] {
        let written = |file: &PathBuf| fs::metadata(file).and_then(|seen| seen.modified()).ok();
        [written(&self.certificate), written(&self.key)]
    }
}

/// The certificate that is shown now.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&current))
    }
}

/// TLS for those who connect.
#[derive(Clone)]
pub(crate) struct Tls {
    acceptor: TlsAcceptor,
    current: Arc<Current>,
    files: Files,
    seen: [Option<SystemTime>; 2],
}

impl Tls {
    /// Reads the files.
    pub(crate) fn load(files: Files) -> Result<Self, Error> {
        // Before they are read: what is written meanwhile is read again.
        let seen = files.written();
        let current = Arc::new(Current(RwLock::new(Arc::new(files.read()?))));
        let unusable = |why| Error::Unusable {
            files: files.clone(),
            why,
        };
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            current,
            files,
            seen,
        })
    }

    /// Reads the files again whenever they have changed, until shutdown. If they
    /// cannot be used the certificate stays as it is.
    pub(crate) async fn keep_fresh(
        mut self,
        reloaded: [IntCounter; 2],
        mut shutdown: watch::Receiver<bool>,
    ) {
        let [ok, failed] = reloaded;
        loop {
            tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let written = self.files.written();
            if written == self.seen {
                continue;
            }
            self.seen = written;
            match self.files.read() {
                Ok(key) => {
                    let mut current = self
                        .current
                        .0
                        .write()
                        .unwrap_or_else(PoisonError::into_inner);
                    *current = Arc::new(key);
                    ok.inc();
                    tracing::info!(file = %self.files.certificate.display(), "the certificate was read again");
                }
                Err(error) => {
                    failed.inc();
                    tracing::error!(%error, "the certificate has changed and cannot be used; going on with the one before");
                }
            }
        }
    }

    /// Shakes hands. `None`: the client did not, in time or at all.
    pub(crate) async fn accept(&self, stream: TcpStream) -> Option<Stream> {
        let accepting = self.acceptor.accept(stream);
        match tokio::time::timeout(HANDSHAKE, accepting).await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a TLS handshake failed");
                None
            }
            Err(_) => None,
        }
    }
}
