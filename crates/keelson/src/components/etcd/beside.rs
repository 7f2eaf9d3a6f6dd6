//! `--etcd-listen`: a server's own store, for clients of etcd. They and the server know each other by etcd's authority, in
//! `pki/etcd` of the data directory; who has its key, or `client.key`, is the cluster's administrator.

use super::{Front, listen};
use crate::config::Config;
use crate::etcd::certificates::Certificates;
use crate::etcd::{Place, pki};
use crate::store::Opened;
use crate::supervise::Supervisor;
use anyhow::{Context, bail};
use keelson_apiserver::serve::tls::{ServingCert, roots};
use keelson_pki::Pki;
use keelson_pki::verify::{Live, Roots};
use keelson_store::serve::{self, Api};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::watch;

pub async fn start(
    running: &mut Supervisor,
    config: &Config,
    store: &Opened,
    address: SocketAddr,
    mut changes: watch::Receiver<Arc<Pki>>,
) -> anyhow::Result<()> {
    let Opened::Embedded(store) = store else {
        bail!("--etcd-listen: the cluster is kept in an etcd; clients of etcd go there");
    };
    // Of the addresses that are in the certificate one is where it is listened on.
    let place = Place {
        data_dir: config.data_dir.clone(),
        name: config.node_name.clone(),
        ip: match address.ip().is_unspecified() || address.ip().is_loopback() {
            true => config.node_ip(),
            false => address.ip(),
        },
        program: None,
    };
    let issued = Certificates::ensure(&place).context("--etcd-listen")?;
    let cert = ServingCert::new(&issued.server.cert_pem, &issued.server.key_pem)?;
    let known = Live::default();
    known.replace(clients(&place)?);
    let options = serve::Options {
        name: config.node_name.clone(),
        client_urls: vec![format!("https://{address}")],
        ..serve::Options::default()
    };
    let front = Front::new(Api::new(store.clone(), options), Some(known.clone()));
    listen(
        running,
        "etcd-api",
        &[address],
        Some(cert.clone()),
        front,
        "--etcd-listen",
    )
    .await?;
    tracing::info!(%address, certificates = %pki(&config.data_dir).display(), "the store speaks etcd's API");
    let (place, renew_at) = (Arc::new(place), issued.renew_at());
    changes.mark_unchanged();
    running.spawn("etcd-api-certificate", move |stop| {
        let (place, cert, known, mut due) = (place.clone(), cert.clone(), known.clone(), renew_at);
        let mut changes = changes.clone();
        async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = keelson_pki::due(due) => {}
                    // Perhaps another authority follows etcd's.
                    _ = changes.changed() => {}
                }
                known.replace(clients(&place)?);
                let issued = Certificates::ensure(&place)?;
                cert.replace(&issued.server.cert_pem, &issued.server.key_pem)?;
                due = issued.renew_at();
            }
        }
    });
    Ok(())
}

/// Whose certificates are let in, as it is now.
fn clients(place: &Place) -> anyhow::Result<Roots> {
    let authority = place.pki().join("ca.crt");
    let text = std::fs::read_to_string(&authority).with_context(|| format!("cannot read {}", authority.display()))?;
    roots(&text)
}
