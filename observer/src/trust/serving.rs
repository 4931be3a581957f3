//! TLS as both sides speak it, and the certificate that the server shows: it can change at any time, and the next handshake shows the new
//! one.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Why a certificate cannot be shown, or a bundle not be trusted.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificates.
    #[error("no certificate in PEM form can be read from it: {0}")]
    Certificate(rustls::pki_types::pem::Error),
    /// There is none.
    #[error("there is no certificate in it")]
    Empty,
    /// The key.
    #[error("no private key in PEM form can be read from it: {0}")]
    Key(rustls::pki_types::pem::Error),
    /// They cannot be used, or not with each other.
    #[error("certificate and key cannot be used: {0}")]
    Unusable(rustls::Error),
    /// A certificate that cannot be an authority.
    #[error("a certificate of it cannot be trusted: {0}")]
    Untrusted(rustls::Error),
}

/// The certificate that a server shows.
#[derive(Debug, Default)]
pub struct Serving {
    shown: RwLock<Option<Arc<CertifiedKey>>>,
}

impl Serving {
    /// From now on this one is shown: a chain in PEM form, and its key.
    ///
    /// # Errors
    /// When they cannot be used; then the one before stays.
    pub fn show(&self, chain: &[u8], key: &[u8]) -> Result<(), TlsError> {
        let chain = certificates(chain)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(TlsError::Key)?;
        // This also checks that they belong together.
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(TlsError::Unusable)?;
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(certified));
        Ok(())
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A server that shows what `serving` holds. Without memory of earlier sessions: agents connect rarely.
pub fn server_config(serving: Arc<Serving>) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
        .with_no_client_auth()
        .with_cert_resolver(serving);
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

/// A client that trusts the authorities of a bundle in PEM form, and nobody else.
///
/// # Errors
/// When there is none in it.
pub fn client_config(bundle: &[u8]) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(bundle)? {
        roots.add(certificate).map_err(TlsError::Untrusted)?;
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn provider() -> CryptoProvider {
    default_provider()
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(TlsError::Certificate)?;
    if certificates.is_empty() { Err(TlsError::Empty) } else { Ok(certificates) }
}
