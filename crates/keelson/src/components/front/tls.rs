//! What of TLS a listener offers and shows, by upstream's flags.

use super::secure::read;
use anyhow::Context;
use clap::{ArgAction, Args};
use keelson_apiserver::serve::tls::{Named, Offer, ServingCert};
use std::path::Path;
use std::sync::Arc;

#[derive(Args, Clone, Debug, Default)]
#[group(id = "tls")]
pub struct TlsOptions {
    /// The oldest version that is spoken: VersionTLS12 or VersionTLS13 [default: VersionTLS12]
    #[arg(long, value_name = "VERSION", default_value = "", hide_default_value = true)]
    tls_min_version: String,
    /// Suites of TLS 1.2 that are offered, by Go's names [default: those of ECDHE with AES-GCM or ChaCha20-Poly1305]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    tls_cipher_suites: Vec<String>,
    /// Curves that are offered, by TLS' numbers: 23 (P-256), 24 (P-384), 29 (X25519) [default: all of them]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    tls_curve_preferences: Vec<u16>,
    /// Certificate and key for who asks for another name: CERT,KEY, or CERT,KEY:NAME,…; may be given several times
    #[arg(long, value_name = "FILES")]
    tls_sni_cert_key: Vec<String>,
    /// Serve by HTTP/1.1 only
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    disable_http2_serving: bool,
}

impl TlsOptions {
    pub fn offer(&self) -> anyhow::Result<Offer> {
        let offer = Offer::default().at_least(&self.tls_min_version);
        let offer = offer.context("--tls-min-version")?.suites(&self.tls_cipher_suites);
        let offer = offer
            .context("--tls-cipher-suites")?
            .curves(&self.tls_curve_preferences);
        let offer = offer.context("--tls-curve-preferences")?;
        Ok(match self.disable_http2_serving {
            true => offer.without_http2(),
            false => offer,
        })
    }

    /// The certificate that is shown, and those for other names beside it.
    pub fn certificate(&self, cert_pem: &str, key_pem: &str) -> anyhow::Result<Arc<ServingCert>> {
        let others = self.tls_sni_cert_key.iter().map(|said| {
            let of = || format!("--tls-sni-cert-key {said}");
            named(said).with_context(of)
        });
        ServingCert::with(cert_pem, key_pem, others.collect::<Result<_, _>>()?)
    }
}

fn named(said: &str) -> anyhow::Result<Named> {
    let (files, names) = said.split_once(':').unwrap_or((said, ""));
    let (cert, key) = files
        .split_once(',')
        .context("expected comma separated certificate and key file paths")?;
    let names = names.split(',').filter(|name| !name.is_empty()).map(Into::into);
    Named::new(read(Path::new(cert))?, read(Path::new(key))?, names.collect())
}
