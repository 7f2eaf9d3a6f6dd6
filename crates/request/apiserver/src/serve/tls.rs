//! TLS of the listener: serving certificates that are renewed while it runs, and client certificates.
//!
//! The handshake takes any client certificate (it proves possession of the key); whose it is, and whether its authority
//! is known, is authentication's to decide: an unknown certificate with a good token is fine.

mod offer;

pub use offer::Offer;

use anyhow::{Context, Result, bail, ensure};
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
use std::net::IpAddr;
use std::sync::Arc;

/// The provider of all TLS here.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A serving certificate that can be replaced, and others for who asks for another name.
#[derive(Debug)]
pub struct ServingCert {
    own: RwLock<Arc<CertifiedKey>>,
    named: RwLock<ByName>,
}

/// By names in lower case, `*.` for any one label.
type ByName = HashMap<String, Arc<CertifiedKey>>;

impl ServingCert {
    pub fn new(cert_pem: &str, key_pem: &str) -> Result<Arc<Self>> {
        Self::with(cert_pem, key_pem, Vec::new())
    }
    /// With certificates and keys for names.
    pub fn with(cert_pem: &str, key_pem: &str, others: Vec<Named>) -> Result<Arc<Self>> {
        Ok(Arc::new(ServingCert {
            own: RwLock::new(certified(cert_pem, key_pem)?),
            named: RwLock::new(by_name(others)?),
        }))
    }
    /// New connections get the new certificate.
    pub fn replace(&self, cert_pem: &str, key_pem: &str) -> Result<()> {
        *self.own.write() = certified(cert_pem, key_pem)?;
        Ok(())
    }
    /// The same of all those for names.
    pub fn replace_named(&self, others: Vec<Named>) -> Result<()> {
        *self.named.write() = by_name(others)?;
        Ok(())
    }

    fn of_name(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let name = name.to_lowercase();
        let any = || Some(format!("*.{}", name.split_once('.')?.1));
        let named = self.named.read();
        let found = named.get(&name);
        found.or_else(|| named.get(&any()?)).cloned()
    }
}

/// Of several for one name the first counts, and who was told a name before who says it himself.
fn by_name(others: Vec<Named>) -> Result<ByName> {
    let mut named = ByName::new();
    let (told, own): (Vec<_>, Vec<_>) = others.into_iter().partition(|other| other.is_told);
    for other in told.into_iter().chain(own) {
        let key = certified(&other.cert_pem, &other.key_pem)?;
        for name in other.names {
            named.entry(name.to_lowercase()).or_insert_with(|| key.clone());
        }
    }
    Ok(named)
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
    names: Vec<String>,
    /// The names are given; otherwise the certificate says them.
    is_told: bool,
}

impl Named {
    /// `names`: empty for those that the certificate says.
    pub fn new(cert_pem: String, key_pem: String, names: Vec<String>) -> Result<Named> {
        let is_told = !names.is_empty();
        let names = match is_told {
            true => names,
            false => {
                let first = certificates(&cert_pem)?.into_iter().next().context("no certificate")?;
                let read = Certificate::from_der(&first).map_err(|e| anyhow::anyhow!("{e}"))?;
                read.says.names.map(|names| names.dns).unwrap_or_default()
            }
        };
        // Nobody would ever be shown it.
        ensure!(!names.is_empty(), "the certificate says no DNS name, and none is given");
        if let Some(address) = names.iter().find(|name| name.parse::<IpAddr>().is_ok()) {
            bail!("{address} is an address, and clients ask by names only");
        }
        Ok(Named {
            cert_pem,
            key_pem,
            names,
            is_told,
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
    let chain = certificates(cert_pem)?;
    ensure!(!chain.is_empty(), "no PEM certificates");
    let both = CertifiedKey::from_der(chain, key, &provider());
    Ok(Arc::new(both.context("certificate and key don't belong together")?))
}

/// Certificates of authorities.
pub fn roots(pem: &str) -> Result<Roots> {
    Roots::from_pem(pem.as_bytes()).context("unable to load root certificates: unable to parse bytes as PEM block")
}

/// The listener's configuration. `hints` are the authorities that clients are told of.
pub fn server_config(cert: Arc<ServingCert>, hints: &Roots) -> Result<Arc<ServerConfig>> {
    Offer::default().config(cert, hints)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_pki::{Authority, CertSpec, Issued, San};

    fn issued(name: &str) -> Issued {
        let sans = vec![San::Dns(name.into())];
        let spec = CertSpec::server(name, sans);
        Authority::generate("ca").unwrap().issue(&spec).unwrap()
    }

    fn named(of: &Issued, names: &[&str]) -> Result<Named> {
        let names = names.iter().map(|name| (*name).to_string()).collect();
        Named::new(of.cert_pem.clone(), of.key_pem.clone(), names)
    }

    #[test]
    fn a_name_that_is_given_goes_before_one_that_a_certificate_says() {
        let (own, says, told) = (issued("own"), issued("a.example"), issued("other"));
        let others = vec![
            named(&says, &[]).unwrap(),
            named(&told, &["A.example", "*.b.example"]).unwrap(),
        ];
        let cert = ServingCert::with(&own.cert_pem, &own.key_pem, others).unwrap();
        let shown = |name: &str| cert.of_name(name).map(|key| key.cert.clone());
        let told = Some(certificates(&told.cert_pem).unwrap());
        assert_eq!(shown("a.example"), told);
        assert_eq!(shown("x.B.example"), told);
        assert_eq!(shown("x.y.b.example"), None);
        for wrong in ["10.0.0.1", "fd00::1"] {
            let refused = named(&own, &["a", wrong]).err().map(|e| e.to_string());
            assert!(refused.is_some_and(|why| why.contains(wrong)), "{wrong}");
        }
        cert.replace_named(vec![named(&says, &[]).unwrap()]).unwrap();
        assert_eq!(
            cert.of_name("a.example").map(|key| key.cert.clone()),
            Some(certificates(&says.cert_pem).unwrap())
        );
        assert!(cert.of_name("x.b.example").is_none());
        // Half of a pair that is being written: what was there goes on.
        assert!(cert.replace(&says.cert_pem, &own.key_pem).is_err());
        assert!(cert.replace("", &own.key_pem).is_err());
        assert_eq!(cert.own.read().cert, certificates(&own.cert_pem).unwrap());
        let nameless = CertSpec::server("a", Vec::new());
        let nameless = Authority::generate("ca").unwrap().issue(&nameless).unwrap();
        assert!(named(&nameless, &[]).is_err() && named(&nameless, &["a"]).is_ok());
    }
}
