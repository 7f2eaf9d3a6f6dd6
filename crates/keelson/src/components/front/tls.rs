//! What of TLS a listener offers and shows, by upstream's flags.

use super::secure::read;
use crate::supervise::Supervisor;
use anyhow::Context;
use clap::{ArgAction, Args};
use keelson_apiserver::serve::tls::{Named, Offer, ServingCert};
use keelson_follow::Contents;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// No certificate, key or bundle is larger.
const MOST: u64 = 1 << 20;

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
        ServingCert::with(cert_pem, key_pem, self.named()?)
    }

    /// What stands in the files anew is shown from then on.
    pub fn follow(&self, components: &mut Supervisor, own: Option<[PathBuf; 2]>, cert: &Arc<ServingCert>) {
        if let Some(files) = own {
            follow_pair(components, "serving-certificate", files, cert);
        }
        if !self.tls_sni_cert_key.is_empty() {
            let said = self.tls_sni_cert_key.iter().filter_map(|said| pair(said).ok());
            let files = said.flat_map(|(files, _)| files.map(PathBuf::from)).collect();
            let (options, cert) = (self.clone(), cert.clone());
            let take = move |_: &[Vec<u8>]| cert.replace_named(options.named()?);
            followed(components, "certificates-for-names", files, take);
        }
    }

    fn named(&self) -> anyhow::Result<Vec<Named>> {
        let each = self.tls_sni_cert_key.iter().map(|said| {
            let of = || format!("--tls-sni-cert-key {said}");
            named(said).with_context(of)
        });
        each.collect()
    }
}

/// Certificate and key.
pub fn follow_pair(components: &mut Supervisor, name: &'static str, files: [PathBuf; 2], cert: &Arc<ServingCert>) {
    let cert = cert.clone();
    let take = move |found: &[Vec<u8>]| cert.replace(text(&found[0])?, text(&found[1])?);
    followed(components, name, files.to_vec(), take);
}

/// Has whatever stands in files taken, until the component ends.
pub fn followed(
    components: &mut Supervisor,
    name: &'static str,
    files: Vec<PathBuf>,
    take: impl Fn(&[Vec<u8>]) -> anyhow::Result<()> + Send + Sync + 'static,
) {
    let take = Arc::new(take);
    components.spawn(name, move |stop| {
        let (files, take) = (files.clone(), take.clone());
        async move {
            stop.run_until_cancelled(Contents::of(files, MOST).each(&*take)).await;
            Ok(())
        }
    });
}

pub fn text(pem: &[u8]) -> anyhow::Result<&str> {
    std::str::from_utf8(pem).context("it isn't PEM")
}

/// The files and the names of `CERT,KEY:NAME,…`.
fn pair(said: &str) -> anyhow::Result<([&str; 2], &str)> {
    let (files, names) = said.split_once(':').unwrap_or((said, ""));
    let (cert, key) = files
        .split_once(',')
        .context("expected comma separated certificate and key file paths")?;
    Ok(([cert, key], names))
}

fn named(said: &str) -> anyhow::Result<Named> {
    let ([cert, key], names) = pair(said)?;
    let names = names.split(',').filter(|name| !name.is_empty()).map(Into::into);
    Named::new(read(Path::new(cert))?, read(Path::new(key))?, names.collect())
}
