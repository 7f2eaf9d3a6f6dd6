//! TLS of the listener: serving certificates that are renewed while it runs, and client certificates.
//!
//! The handshake takes any client certificate (it proves possession of the key); whose it is, and whether its authority
//! is known, is authentication's to decide: an unknown certificate with a good token is fine.

use anyhow::{Context, Result};
use keelson_pki::verify::Roots;
use keelson_pki::verify::tls::AnyClient;
use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::sync::Arc;

/// The provider of all TLS here.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A serving certificate that can be replaced.
#[derive(Debug)]
pub struct ServingCert(RwLock<Arc<CertifiedKey>>);

impl ServingCert {
    pub fn new(cert_pem: &str, key_pem: &str) -> Result<Arc<Self>> {
        Ok(Arc::new(ServingCert(RwLock::new(certified(cert_pem, key_pem)?))))
    }
    /// New connections get the new certificate.
    pub fn replace(&self, cert_pem: &str, key_pem: &str) -> Result<()> {
        *self.0.write() = certified(cert_pem, key_pem)?;
        Ok(())
    }
}

impl ResolvesServerCert for ServingCert {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }
}

pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| anyhow::anyhow!("no PEM certificates: {e}"))
}

fn certified(cert_pem: &str, key_pem: &str) -> Result<Arc<CertifiedKey>> {
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| anyhow::anyhow!("no PEM key: {e}"))?;
    let key = provider()
        .key_provider
        .load_private_key(key)
        .context("loading the serving key")?;
    Ok(Arc::new(CertifiedKey::new(certificates(cert_pem)?, key)))
}

/// Certificates of authorities.
pub fn roots(pem: &str) -> Result<Roots> {
    Roots::from_pem(pem.as_bytes()).context("unable to load root certificates: unable to parse bytes as PEM block")
}

/// The listener's configuration. `hints` are the authorities that clients are told of.
pub fn server_config(cert: Arc<ServingCert>, hints: &Roots) -> Result<Arc<ServerConfig>> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(AnyClient::hinting(hints))
        .with_cert_resolver(cert);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Sessions are resumed by tickets only; nothing is kept here for connections that have gone.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}
