//! A registry of images: OCI's distribution API over a directory.
//!
//! * `names`, `document`, `error`, `serve::route`: what strangers say, read in one meaning; pure.
//! * `store`: files, complete or absent, whatever ends when; it knows neither HTTP nor who asks.
//! * `access`: who asks and may do what is the cluster's to say.
//! * `serve`: the API, a request's way in one place.
//! * `upstream`: registries behind this one.

mod access;
mod document;
mod error;
mod measured;
mod names;
mod serve;
mod store;
mod upstream;

pub use access::Access;
pub use store::{Bounds, Collect, Collected};
pub use upstream::Upstream;

use keelson_measure::Measures;
use keelson_oci::registries::Registries;
use keelson_pki::verify::Live;
use measured::Measured;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How often uploads are looked at that nobody goes on with.
const LOOK: Duration = Duration::from_secs(60);

/// How a registry is set up.
pub struct Settings {
    pub directory: PathBuf,
    pub bounds: Bounds,
    pub collect: Collect,
    /// How often what nothing names is looked for.
    pub collect_every: Duration,
    pub upstreams: Vec<Upstream>,
    /// Who registries behind are asked as.
    pub registries: Registries,
    /// For how long what came from them stays when nobody asks for it.
    pub upstream_keep: Duration,
}

/// A registry whose directory has been opened.
pub struct Registry {
    serving: Arc<serve::Registry>,
    collect: Collect,
    every: Duration,
    keep: Duration,
}

impl Registry {
    pub fn open(
        settings: Settings,
        access: Access,
        authorities: Live,
        measures: &Measures,
    ) -> anyhow::Result<Registry> {
        let store = Arc::new(Store::open(&settings.directory, settings.bounds)?);
        let measured = Measured::new(measures, &store);
        let upstreams = upstream::Upstreams::new(settings.upstreams, settings.registries, measured.clone());
        Ok(Registry {
            serving: Arc::new(serve::Registry::new(store, access, authorities, upstreams, measured)),
            collect: settings.collect,
            every: settings.collect_every,
            keep: settings.upstream_keep,
        })
    }

    /// Serves until `stop`. Without TLS: to this machine only, which is the caller's to see to.
    pub async fn run(
        &self,
        socket: TcpListener,
        tls: Option<Arc<rustls::ServerConfig>>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let serving = self.serving.clone();
        let limits = serve::limits();
        let served = async {
            match tls {
                Some(tls) => keelson_listen::run(socket, tls, serving, limits, stop.clone()).await,
                None => keelson_listen::run_plain(socket, serving, limits, stop.clone()).await,
            }
        };
        tokio::select! {
            served = served => served,
            () = self.look_after() => Ok(()),
        }
    }

    async fn look_after(&self) {
        let mut since = Duration::ZERO;
        loop {
            tokio::time::sleep(LOOK).await;
            since += LOOK;
            let store = self.serving.store.clone();
            match serve::blocking(move || store.expire()).await {
                Ok(0) => {}
                Ok(ended) => tracing::info!(ended, "uploads that nobody went on with"),
                Err(refused) => tracing::warn!("uploads can't be looked at: {}", refused.message),
            }
            if since >= self.every {
                since = Duration::ZERO;
                self.collect().await;
            }
        }
    }

    /// Removes what nothing names, beside everything else.
    pub async fn collect(&self) {
        let (serving, how, keep) = (self.serving.clone(), self.collect, self.keep);
        let done = serve::blocking(move || {
            let keep = |repository: &names::Repository| serving.upstreams.of(repository).map(|_| keep);
            serving.store.collect(how, keep)
        })
        .await;
        match done {
            Ok(done) => {
                self.serving.measured.collected(&done);
                if done != Collected::default() {
                    tracing::info!(
                        manifests = done.manifests,
                        blobs = done.blobs,
                        bytes = done.bytes,
                        "collected"
                    );
                }
            }
            Err(refused) => tracing::warn!("the collection failed: {}", refused.message),
        }
    }
}
