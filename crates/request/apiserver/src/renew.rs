//! Certificates of a running server, renewed before they end: serving, kubelet client, front-proxy client.

use crate::connect::{ClientTls, Trust};
use crate::serve::tls::ServingCert;
use crate::state::ServerState;
use anyhow::Result;
use keelson_pki::{CertFiles, Pki};
use std::sync::{Arc, Weak};
use std::time::Duration;

const RETRY: Duration = Duration::from_secs(60);

pub async fn run<F>(state: Weak<ServerState>, pki: Arc<Pki>, serving: F, cert: Arc<ServingCert>)
where
    F: Fn(&Pki) -> Result<CertFiles>,
{
    // All were found when the server started.
    tokio::time::sleep(RETRY).await;
    loop {
        let Some(server) = state.upgrade() else { return };
        let found = renew(&server, &pki, &serving, &cert);
        drop(server);
        match found {
            Ok(next) => keelson_pki::due(next).await,
            Err(e) => {
                tracing::error!("renewing certificates failed, trying again: {e:#}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Finds or issues each certificate and puts it to use; answers with when the next one is due.
fn renew<F>(server: &ServerState, pki: &Pki, serving: &F, cert: &ServingCert) -> Result<i64>
where
    F: Fn(&Pki) -> Result<CertFiles>,
{
    let own = serving(pki)?;
    cert.replace(&own.cert_pem, &own.key_pem)?;
    let mut next = own.renew_at;
    if server.config.kubelet_client.is_some() {
        let client = pki.apiserver_kubelet_client()?;
        let identity = (client.cert_pem.as_str(), client.key_pem.as_str());
        server.kubelet.replace(ClientTls::config(
            Trust::of_kubelets(server.config.kubelet_ca_pem.as_deref()),
            Some(identity),
        )?);
        next = next.min(client.renew_at);
    }
    if server.config.front_proxy_client.is_some() {
        let client = pki.front_proxy_client()?;
        next = next.min(client.renew_at);
        *server.front_proxy_client.write() = Some((client.cert_pem, client.key_pem));
    }
    Ok(next)
}
