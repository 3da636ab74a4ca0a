//! Certificates of a gateway, and clients that trust them.

use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::PATIENCE;
use crate::nats::Folder;
use crate::process::Dev;

/// A certificate that is its own authority, in a folder.
#[derive(Debug)]
pub struct Certificate {
    /// Where it is: `tls.crt` and `tls.key`.
    pub folder: Folder,
    authority: CertificateDer<'static>,
}

impl Certificate {
    /// Makes one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new() -> Result<Self> {
        let folder = Folder::new()?;
        let authority = write(&folder)?;
        Ok(Self { folder, authority })
    }

    /// Puts another one in its place.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn renew(&mut self) -> Result<()> {
        self.authority = write(&self.folder)?;
        Ok(())
    }

    /// How a server is told of it.
    ///
    /// # Errors
    /// When its path is not text.
    pub fn arguments(&self) -> Result<[String; 4]> {
        let path = |name: &str| {
            let path = self.folder.path(name);
            path.to_str().map(str::to_owned).context("a path of text")
        };
        let (certificate, key) = (path("tls.crt")?, path("tls.key")?);
        Ok(["--tls-cert".into(), certificate, "--tls-key".into(), key])
    }

    /// A server that shows it.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn serve(&self, arguments: &[&str]) -> Result<Dev> {
        let tls = self.arguments()?;
        let tls = tls.iter().map(String::as_str);
        Dev::start_with(tls.chain(arguments.iter().copied())).await
    }

    /// Connects to such a server, and agrees on a protocol.
    ///
    /// # Errors
    /// When the two do not come to terms.
    pub async fn connect(&self, server: &Dev, protocol: &str) -> Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let stream = TcpStream::connect(&server.clients).await?;
        let connector = TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from("localhost")?;
        Ok(timeout(PATIENCE, connector.connect(name, stream)).await??)
    }
}

fn write(folder: &Folder) -> Result<CertificateDer<'static>> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    // The key first: whoever reads between the two sees that they do not fit.
    folder.file("tls.key", &made.signing_key.serialize_pem())?;
    folder.file("tls.crt", &made.cert.pem())?;
    Ok(made.cert.der().clone())
}
