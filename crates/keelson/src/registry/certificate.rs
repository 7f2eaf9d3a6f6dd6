//! By what the registry is known: files that somebody else renews, or a certificate of the cluster's authority that is renewed here.

use super::Options;
use crate::components::front::secure::read;
use crate::supervise::Supervisor;
use anyhow::{Context, bail};
use keelson_apiserver::serve::tls::ServingCert;
use keelson_pki::authority::CertSpec;
use keelson_pki::layout::{self, CertFiles, Pki};
use keelson_pki::{San, files};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How often files are looked at: those who renew certificates do it days before they end.
const LOOK: Duration = Duration::from_secs(600);
const RETRY: Duration = Duration::from_secs(60);

pub fn start(components: &mut Supervisor, options: &Options) -> anyhow::Result<Arc<ServingCert>> {
    if let (Some(cert), Some(key)) = (&options.tls_cert_file, &options.tls_private_key_file) {
        let (first, served) = of_files(cert, key)?;
        let (cert, key, told) = (cert.clone(), key.clone(), served.clone());
        components.spawn("registry-certificate", move |stop| {
            let (cert, key, served, mut last) = (cert.clone(), key.clone(), told.clone(), first.clone());
            async move {
                while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
                    last = again(&cert, &key, &served, last);
                }
                Ok(())
            }
        });
        return Ok(served);
    }
    let Some(data_dir) = &options.data_dir else {
        bail!("which certificate?");
    };
    let data_dir = crate::config::absolute(data_dir.clone())?;
    let sans: Vec<San> = options.tls_name.iter().map(|name| San::parse(name)).collect();
    let issued = of_authority(&data_dir, &sans)?;
    let served = ServingCert::new(&issued.cert_pem, &issued.key_pem)?;
    let told = served.clone();
    components.spawn("registry-certificate", move |stop| {
        let (data_dir, sans, served, mut due) = (data_dir.clone(), sans.clone(), told.clone(), issued.renew_at);
        async move {
            while stop.run_until_cancelled(layout::due(due)).await.is_some() {
                match of_authority(&data_dir, &sans) {
                    Ok(issued) => {
                        served.replace(&issued.cert_pem, &issued.key_pem)?;
                        due = issued.renew_at;
                    }
                    Err(error) => {
                        tracing::warn!(error = format!("{error:#}"), "the registry's certificate isn't renewed");
                        stop.run_until_cancelled(tokio::time::sleep(RETRY)).await;
                    }
                }
            }
            Ok(())
        }
    });
    Ok(served)
}

fn of_authority(data_dir: &Path, sans: &[San]) -> anyhow::Result<CertFiles> {
    // Authorities are the server's to make.
    let ca = data_dir.join("pki/ca.key");
    if files::read(&ca)?.is_none() {
        bail!(
            "{} isn't there: --data-dir is that of a server on this machine; elsewhere give --tls-cert-file",
            ca.display()
        );
    }
    Pki::open(data_dir)?
        .ensure("registry", &CertSpec::server("keelson-registry", sans.to_vec()))
        .context("the registry's certificate")
}

type Pair = (String, String);

fn of_files(cert: &Path, key: &Path) -> anyhow::Result<(Pair, Arc<ServingCert>)> {
    let pair = (read(cert)?, read(key)?);
    let served = ServingCert::new(&pair.0, &pair.1).context("--tls-cert-file, --tls-private-key-file")?;
    Ok((pair, served))
}

/// What stands in the files now is in force from now on, if certificate and key belong together: they may be written one after
/// the other.
fn again(cert: &Path, key: &Path, served: &ServingCert, last: Pair) -> Pair {
    let now = match read(cert).and_then(|c| Ok((c, read(key)?))) {
        Ok(now) => now,
        Err(error) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "the registry's certificate can't be read again"
            );
            return last;
        }
    };
    if now == last || !keelson_pki::authority::pairs(&now.0, &now.1) {
        return last;
    }
    match served.replace(&now.0, &now.1) {
        Ok(()) => now,
        Err(error) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "the registry's new certificate can't be used"
            );
            last
        }
    }
}
