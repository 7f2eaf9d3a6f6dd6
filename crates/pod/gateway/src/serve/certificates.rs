//! Which certificate a client is shown: the one whose host its hello names, in the table of the moment.

use super::Serving;
use keelson_client::ObjectKey;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoClientAuth, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::sync::Arc;

pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A chain and its key, as they stand in a secret. Nothing of the key is in an error.
pub fn certified(chain: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let certificates = certificates.map_err(|_| "tls.crt has no PEM certificates")?;
    if certificates.is_empty() {
        return Err("tls.crt has no PEM certificates".into());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| "tls.key has no PEM key")?;
    let certified = CertifiedKey::from_der(certificates, key, &provider());
    certified
        .map(Arc::new)
        .map_err(|_| "the certificate and the key don't belong together, or are of a kind that isn't supported".into())
}

/// Certificates of authorities, of which each can be one.
pub fn authorities(text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let all = all.map_err(|_| "ca.crt has no PEM certificates")?;
    if all.is_empty() {
        return Err("ca.crt has no PEM certificates".into());
    }
    let mut roots = RootCertStore::empty();
    for one in &all {
        let added = roots.add(one.clone());
        added.map_err(|_| "a certificate in ca.crt is none of an authority that can be used")?;
    }
    Ok(all)
}

/// `alpn`: the protocols that are spoken in it, the liked ones first; none where nobody looks into what is passed on.
pub fn config(serving: Arc<Serving>, at: u16, alpn: &[&[u8]]) -> anyhow::Result<Arc<ServerConfig>> {
    config_for(serving, at, alpn, Arc::new(NoClientAuth))
}

/// The same for who shows a certificate of their own.
pub fn config_for(
    serving: Arc<Serving>,
    at: u16,
    alpn: &[&[u8]],
    clients: Arc<dyn ClientCertVerifier>,
) -> anyhow::Result<Arc<ServerConfig>> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let mut config = builder
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(ByName { serving, at }));
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config))
}

struct ByName {
    serving: Arc<Serving>,
    at: u16,
}

impl fmt::Debug for ByName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("ByName")
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or_default().to_ascii_lowercase();
        let now = self.serving.now.read().clone();
        let key = find(now.table.ports.get(&self.at)?, &name)?;
        now.certificates.get(key).cloned()
    }
}

fn find<'a>(port: &'a crate::table::Port, name: &str) -> Option<&'a ObjectKey> {
    port.listeners.iter().find_map(|listener| {
        let of_name = |host: &crate::table::Host| match listener.one_label {
            true => host.has_label(name),
            false => host.has(name),
        };
        listener
            .certificates
            .iter()
            .find(|(host, _)| of_name(host))
            .map(|(_, key)| key)
    })
}
