//! TLS of the listener: serving certificates that are renewed while it runs, and client certificates.
//!
//! The handshake takes any client certificate (it proves possession of the key); whose it is, and whether its authority
//! is known, is authentication's to decide: an unknown certificate with a good token is fine.

mod offer;

pub use offer::Offer;

use anyhow::{Context, Result};
use keelson_pki::verify::Roots;
use keelson_pki::x509::Certificate;
use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::sync::Arc;

/// The provider of all TLS here.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A serving certificate that can be replaced, and others for who asks for another name.
#[derive(Debug)]
pub struct ServingCert {
    own: RwLock<Arc<CertifiedKey>>,
    /// By names in lower case, `*.` for any one label.
    named: HashMap<String, Arc<CertifiedKey>>,
}

impl ServingCert {
    pub fn new(cert_pem: &str, key_pem: &str) -> Result<Arc<Self>> {
        Self::with(cert_pem, key_pem, Vec::new())
    }
    /// With certificates and keys for names; of several for one the first counts.
    pub fn with(cert_pem: &str, key_pem: &str, others: Vec<Named>) -> Result<Arc<Self>> {
        let mut named = HashMap::new();
        for other in others {
            let key = certified(&other.cert_pem, &other.key_pem)?;
            for name in other.names {
                named.entry(name.to_lowercase()).or_insert_with(|| key.clone());
            }
        }
        let own = RwLock::new(certified(cert_pem, key_pem)?);
        Ok(Arc::new(ServingCert { own, named }))
    }
    /// New connections get the new certificate.
    pub fn replace(&self, cert_pem: &str, key_pem: &str) -> Result<()> {
        *self.own.write() = certified(cert_pem, key_pem)?;
        Ok(())
    }

    fn of_name(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let name = name.to_lowercase();
        let any = || Some(format!("*.{}", name.split_once('.')?.1));
        let found = self.named.get(&name);
        found.or_else(|| self.named.get(&any()?)).cloned()
    }
}

impl ResolvesServerCert for ServingCert {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| self.of_name(name));
        Some(named.unwrap_or_else(|| self.own.read().clone()))
    }
}

/// A certificate for clients that ask for one of its names.
pub struct Named {
    pub cert_pem: String,
    pub key_pem: String,
    pub names: Vec<String>,
}

impl Named {
    /// `names`: empty for those that the certificate says.
    pub fn new(cert_pem: String, key_pem: String, names: Vec<String>) -> Result<Named> {
        let names = match names.is_empty() {
            true => {
                let first = certificates(&cert_pem)?.into_iter().next().context("no certificate")?;
                let read = Certificate::from_der(&first).map_err(|e| anyhow::anyhow!("{e}"))?;
                read.says.names.map(|names| names.dns).unwrap_or_default()
            }
            false => names,
        };
        Ok(Named {
            cert_pem,
            key_pem,
            names,
        })
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
    Offer::default().config(cert, hints)
}
