//! The same where somebody else renews them, in files. What a file says anew is in force at once; what can't be used isn't, and what was
//! there before stays.

use super::{RETRY, Told};
use crate::bootstrap;
use crate::connect::{ClientTls, Trust};
use crate::state::ServerState;
use anyhow::{Context, Result};
use keelson_follow::Contents;
use std::path::PathBuf;
use std::sync::Weak;

/// No certificate, key or bundle is larger.
const MOST: u64 = 1 << 20;

/// Where they are. What isn't named stays as the server was told at its start.
#[derive(Clone, Debug, Default)]
pub struct CertificateFiles {
    /// Authorities of clients.
    pub client_ca: Option<PathBuf>,
    /// Authorities of front proxies.
    pub front_proxy_ca: Option<PathBuf>,
    /// Authorities of kubelets.
    pub kubelet_ca: Option<PathBuf>,
    /// Certificate and key that kubelets are shown.
    pub kubelet_client: Option<(PathBuf, PathBuf)>,
    /// Certificate and key that aggregated servers are shown.
    pub front_proxy_client: Option<(PathBuf, PathBuf)>,
}

/// Each by itself: one that is broken doesn't hold up another.
pub async fn follow(state: Weak<ServerState>, files: CertificateFiles) {
    tokio::join!(
        trusted(&state, [&files.client_ca, &files.front_proxy_ca]),
        kubelets(&state, &files.kubelet_ca, &files.kubelet_client),
        front_proxy(&state, &files.front_proxy_client),
    );
}

fn text(pem: &[u8]) -> Result<&str> {
    std::str::from_utf8(pem).context("it isn't PEM")
}

fn both(pair: &Option<(PathBuf, PathBuf)>) -> impl Iterator<Item = PathBuf> {
    pair.iter().flat_map(|(cert, key)| [cert.clone(), key.clone()])
}

/// Whom the server trusts, of which the cluster is told.
async fn trusted(state: &Weak<ServerState>, [clients, front_proxies]: [&Option<PathBuf>; 2]) {
    let files: Vec<PathBuf> = clients.iter().chain(front_proxies).cloned().collect();
    let Some(mut told) = state.upgrade().map(|server| Told::of(&server.config)) else {
        return;
    };
    if files.is_empty() {
        return;
    }
    let mut contents = Contents::of(files.clone(), MOST);
    loop {
        let wanted = match contents.changed().await {
            Ok(found) => named(found, clients.is_some(), front_proxies.is_some(), &told),
            Err(e) => Err(e.into()),
        };
        let Some(server) = state.upgrade() else { return };
        let taken = wanted.and_then(|wanted| {
            server
                .vouched
                .replace(&wanted.clients, wanted.front_proxies.as_deref())
                .map(|()| wanted)
        });
        match taken {
            Ok(wanted) if wanted == told => {}
            Ok(wanted) => match bootstrap::publish(&server.config, &wanted, &server.loopback).await {
                Ok(()) => {
                    tracing::info!(?files, "the authorities of these files are trusted");
                    told = wanted;
                }
                Err(e) => {
                    tracing::error!("telling the cluster whom it trusts: {e}");
                    contents.again(RETRY);
                }
            },
            Err(e) => tracing::warn!(?files, "the authorities of before stay trusted: {e:#}"),
        }
    }
}

fn named(found: &[Vec<u8>], clients: bool, front_proxies: bool, told: &Told) -> Result<Told> {
    let mut found = found.iter();
    let mut next = || found.next().map(|pem| text(pem).map(str::to_string)).transpose();
    let mut wanted = told.clone();
    if clients {
        wanted.clients = next()?.unwrap_or_default();
    }
    if front_proxies {
        wanted.front_proxies = next()?;
    }
    Ok(wanted)
}

async fn kubelets(state: &Weak<ServerState>, ca: &Option<PathBuf>, client: &Option<(PathBuf, PathBuf)>) {
    let files: Vec<PathBuf> = ca.iter().cloned().chain(both(client)).collect();
    if files.is_empty() {
        return;
    }
    let take = |found: &[Vec<u8>]| {
        let Some(server) = state.upgrade() else { return Ok(()) };
        let (bundle, identity) = found.split_at(usize::from(ca.is_some()));
        let bundle = bundle.first().map(|pem| text(pem)).transpose()?;
        let identity = match identity {
            [cert, key] => Some((text(cert)?, text(key)?)),
            _ => None,
        };
        server
            .kubelet
            .replace(ClientTls::config(Trust::of_kubelets(bundle), identity)?);
        anyhow::Ok(())
    };
    match Contents::of(files, MOST).each(take).await {}
}

async fn front_proxy(state: &Weak<ServerState>, client: &Option<(PathBuf, PathBuf)>) {
    let files: Vec<PathBuf> = both(client).collect();
    if files.is_empty() {
        return;
    }
    let take = |found: &[Vec<u8>]| {
        let Some(server) = state.upgrade() else { return Ok(()) };
        let [cert, key] = found else { return Ok(()) };
        let (cert, key) = (text(cert)?, text(key)?);
        // Whether they belong together is found before, not at each request.
        ClientTls::config(Trust::Machine, Some((cert, key)))?;
        *server.front_proxy_client.write() = Some((cert.into(), key.into()));
        anyhow::Ok(())
    };
    match Contents::of(files, MOST).each(take).await {}
}
