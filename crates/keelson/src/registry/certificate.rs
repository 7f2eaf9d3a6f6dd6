//! By what the registry is known: files that somebody else renews, or a certificate of the cluster's authority that is renewed here.

use super::Options;
use crate::components::front::secure::read;
use crate::components::front::tls::follow_pair;
use crate::supervise::Supervisor;
use anyhow::{Context, bail};
use keelson_apiserver::serve::tls::ServingCert;
use keelson_pki::authority::CertSpec;
use keelson_pki::layout::{self, CertFiles, Pki};
use keelson_pki::{San, files};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const RETRY: Duration = Duration::from_secs(60);

pub fn start(components: &mut Supervisor, options: &Options) -> anyhow::Result<Arc<ServingCert>> {
    if let (Some(cert), Some(key)) = (&options.tls_cert_file, &options.tls_private_key_file) {
        let served = ServingCert::new(&read(cert)?, &read(key)?).context("--tls-cert-file, --tls-private-key-file")?;
        follow_pair(components, "registry-certificate", [cert.clone(), key.clone()], &served);
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
