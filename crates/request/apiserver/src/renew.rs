//! Certificates of a running server, renewed before they end: serving, kubelet client, front-proxy client. And whom it trusts, as
//! authorities follow one another: clients, kubelets, and what the cluster is told of it.

mod files;

pub use files::{CertificateFiles, follow};

use crate::bootstrap::{self, Trust as Told};
use crate::connect::{ClientTls, Trust};
use crate::serve::tls::ServingCert;
use crate::state::ServerState;
use anyhow::Result;
use keelson_pki::{CertFiles, Current, Pki};
use std::sync::{Arc, Weak};
use std::time::Duration;

const RETRY: Duration = Duration::from_secs(60);

pub async fn run<F>(state: Weak<ServerState>, pki: Current, serving: F, cert: Arc<ServingCert>)
where
    F: Fn(&Pki) -> Result<CertFiles>,
{
    let mut changes = pki.changes();
    // All were found, and told, when the server started.
    let mut told = state.upgrade().map(|server| Told::of(&server.config));
    tokio::select! {
        () = tokio::time::sleep(RETRY) => {}
        _ = changes.changed() => {}
    }
    loop {
        let Some(server) = state.upgrade() else { return };
        let now = changes.borrow_and_update().clone();
        let renewed = renew(&server, &now, &serving, &cert);
        let renewed = renewed.and_then(|next| Ok((next, trusted(&server, &now)?)));
        let found = match renewed {
            Ok((next, trust)) if told.as_ref() == Some(&trust) => Ok(next),
            Ok((next, trust)) => {
                let done = bootstrap::publish(&server.config, &trust, &server.loopback).await;
                told = done.is_ok().then_some(trust);
                done.map(|()| next)
                    .map_err(|e| anyhow::anyhow!("telling the cluster whom it trusts: {e}"))
            }
            Err(e) => Err(e),
        };
        drop(server);
        let due = async {
            match found {
                Ok(next) => keelson_pki::due(next).await,
                Err(e) => {
                    tracing::error!("renewing certificates failed, trying again: {e:#}");
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        tokio::select! {
            () = due => {}
            _ = changes.changed() => {}
        }
    }
}

fn trusted(server: &ServerState, pki: &Pki) -> Result<Told> {
    let front_proxies = server.config.front_proxy_ca_pem.is_some();
    Ok(Told {
        clients: pki.ca.bundle_pem(),
        front_proxies: front_proxies.then(|| pki.front_proxy_ca.bundle_pem()),
        introductions: pki.introductions()?,
    })
}

/// Trusts whom it is to trust, finds or issues each certificate and puts it to use; answers with when the next one is due.
fn renew<F>(server: &ServerState, pki: &Pki, serving: &F, cert: &ServingCert) -> Result<i64>
where
    F: Fn(&Pki) -> Result<CertFiles>,
{
    let (clients, front_proxies) = (pki.ca.bundle_pem(), pki.front_proxy_ca.bundle_pem());
    server.vouched.replace(&clients, Some(&front_proxies))?;
    let own = serving(pki)?;
    cert.replace(&own.cert_pem, &own.key_pem)?;
    let mut next = own.renew_at;
    if server.config.kubelet_client.is_some() {
        let client = pki.apiserver_kubelet_client()?;
        let identity = (client.cert_pem.as_str(), client.key_pem.as_str());
        // Where any kubelet is taken, any is.
        let trust = Trust::of_kubelets(server.config.kubelet_ca_pem.as_ref().map(|_| clients.as_str()));
        server.kubelet.replace(ClientTls::config(trust, Some(identity))?);
        next = next.min(client.renew_at);
    }
    if server.config.front_proxy_client.is_some() {
        let client = pki.front_proxy_client()?;
        next = next.min(client.renew_at);
        *server.front_proxy_client.write() = Some((client.cert_pem, client.key_pem));
    }
    Ok(next)
}
