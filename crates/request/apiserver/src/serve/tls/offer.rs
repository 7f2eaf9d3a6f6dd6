//! What of TLS a listener offers, by upstream's flags: versions, suites and curves under the names that Go has for them, and HTTP/2.
//!
//! TLS 1.2 and 1.3 are spoken, with suites of forward secrecy and authenticated encryption only. What upstream knows beyond
//! (older versions, CBC, RSA key exchange, P-521) is refused, so that nobody counts on it.

use super::{ServingCert, provider};
use anyhow::{Context, Result, bail, ensure};
use keelson_pki::verify::Roots;
use keelson_pki::verify::tls::AnyClient;
use rustls::crypto::CryptoProvider;
use rustls::{CipherSuite, NamedGroup, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion, version};
use std::sync::Arc;

#[derive(Clone, Debug)]
pub struct Offer {
    provider: Arc<CryptoProvider>,
    versions: Vec<&'static SupportedProtocolVersion>,
    http2: bool,
}

impl Default for Offer {
    fn default() -> Self {
        Offer {
            provider: provider(),
            versions: vec![&version::TLS13, &version::TLS12],
            http2: true,
        }
    }
}

/// Go's names of TLS 1.2's suites that are offered; the shorter ones are upstream's older names.
const SUITES: [(&str, CipherSuite); 8] = [
    (
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ),
    (
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ),
    (
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
];
/// They can be named and are offered in any case, as by Go.
const OF_TLS13: [&str; 3] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
];
/// Curves by the numbers that TLS has for them.
const CURVES: [(u16, NamedGroup); 3] = [
    (23, NamedGroup::secp256r1),
    (24, NamedGroup::secp384r1),
    (29, NamedGroup::X25519),
];

impl Offer {
    /// `--tls-min-version`
    pub fn at_least(mut self, version: &str) -> Result<Offer> {
        match version {
            "" | "VersionTLS12" => {}
            "VersionTLS13" => self.versions.retain(|v| v.version == rustls::ProtocolVersion::TLSv1_3),
            "VersionTLS10" | "VersionTLS11" => bail!("{version} isn't spoken here: VersionTLS12 is the oldest"),
            other => bail!("unknown tls version {other:?}"),
        }
        Ok(self)
    }

    /// `--tls-cipher-suites`: which of TLS 1.2's are offered; without any, TLS 1.2 isn't.
    pub fn suites(mut self, names: &[String]) -> Result<Offer> {
        let mut wanted = Vec::new();
        for name in names.iter().filter(|name| !OF_TLS13.contains(&name.as_str())) {
            let found = SUITES.iter().find(|(known, _)| known == name);
            let (_, suite) = found.with_context(|| format!("Cipher suite {name} not supported or doesn't exist"))?;
            wanted.push(*suite);
        }
        if names.is_empty() {
            return Ok(self);
        }
        let mut provider = CryptoProvider::clone(&self.provider);
        let is_wanted = |suite: &SupportedCipherSuite| suite.tls13().is_some() || wanted.contains(&suite.suite());
        provider.cipher_suites.retain(is_wanted);
        if wanted.is_empty() {
            self = self.at_least("VersionTLS13")?;
        }
        self.provider = Arc::new(provider);
        Ok(self)
    }

    /// `--tls-curve-preferences`: which are offered; in which order is for who speaks to decide.
    pub fn curves(mut self, numbers: &[u16]) -> Result<Offer> {
        let known = |number: &u16| CURVES.iter().find(|(known, _)| known == number);
        if let Some(unknown) = numbers.iter().find(|number| known(number).is_none()) {
            bail!("curve {unknown} isn't offered here: 23 (P-256), 24 (P-384) and 29 (X25519) are");
        }
        if numbers.is_empty() {
            return Ok(self);
        }
        let wanted: Vec<NamedGroup> = numbers.iter().filter_map(known).map(|(_, group)| *group).collect();
        let mut provider = CryptoProvider::clone(&self.provider);
        provider.kx_groups.retain(|group| wanted.contains(&group.name()));
        ensure!(!provider.kx_groups.is_empty(), "no curve is left");
        self.provider = Arc::new(provider);
        Ok(self)
    }

    /// `--disable-http2-serving`
    pub fn without_http2(self) -> Offer {
        Offer { http2: false, ..self }
    }

    /// The listener's configuration. `hints` are the authorities that clients are told of.
    pub fn config(&self, cert: Arc<ServingCert>, hints: &Roots) -> Result<Arc<ServerConfig>> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&self.versions)?
            .with_client_cert_verifier(AnyClient::hinting(hints))
            .with_cert_resolver(cert);
        let protocols: &[&[u8]] = if self.http2 {
            &[b"h2", b"http/1.1"]
        } else {
            &[b"http/1.1"]
        };
        config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        // Sessions are resumed by tickets only; nothing is kept here for connections that have gone.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Arc::new(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suites(offer: &Offer) -> Vec<CipherSuite> {
        let of_12 = offer.provider.cipher_suites.iter().filter(|s| s.tls13().is_none());
        of_12.map(SupportedCipherSuite::suite).collect()
    }

    #[test]
    fn what_is_offered_goes_by_upstreams_names_and_what_is_not_spoken_is_refused() {
        let names = |list: &[&str]| list.iter().map(|n| (*n).to_string()).collect::<Vec<_>>();
        let offer = || Offer::default();
        assert_eq!(suites(&offer().suites(&[]).unwrap()).len(), 6);
        let one = names(&["TLS_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305"]);
        let one = offer().suites(&one).unwrap();
        assert_eq!(suites(&one), [CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256]);
        assert_eq!((one.versions.len(), one.provider.cipher_suites.len()), (2, 4));
        let none = offer().suites(&names(&["TLS_AES_256_GCM_SHA384"])).unwrap();
        assert_eq!((none.versions.len(), suites(&none).len()), (1, 0));
        let cbc = names(&["TLS_RSA_WITH_AES_128_CBC_SHA"]);
        let refused = offer().suites(&cbc).unwrap_err().to_string();
        assert!(refused.contains("TLS_RSA_WITH_AES_128_CBC_SHA"), "{refused}");

        assert_eq!(offer().at_least("VersionTLS13").unwrap().versions.len(), 1);
        assert_eq!(offer().at_least("VersionTLS12").unwrap().versions.len(), 2);
        for old in ["VersionTLS10", "VersionTLS11", "TLS1.2"] {
            let refused = offer().at_least(old).unwrap_err().to_string();
            assert!(refused.contains(old), "{refused}");
        }
        assert_eq!(offer().curves(&[24]).unwrap().provider.kx_groups.len(), 1);
        assert!(offer().curves(&[23, 25]).unwrap_err().to_string().contains("curve 25"));
    }
}
