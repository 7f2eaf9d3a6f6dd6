//! A backup, read by an API server over it that nobody but we reaches, in a directory that goes afterwards. So everything is read in its
//! current version and opened by the backup's own keys. What that server writes counts nowhere.

use super::restore;
use anyhow::Context;
use keelson_apiserver::encryption::{ROOT, place};
use keelson_apiserver::{ApiServer, Config, UserInfo};
use keelson_backup::manifest::Backup;
use keelson_backup::repository::Repository;
use keelson_client::Rest;
use keelson_pki::Pki;
use keelson_seal::Sealing;
use keelson_store::Embedded;
use keelson_store::embedded::{self, Options};
use keelson_store::snapshot::Sum;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// For a server that has nothing but memory to fill.
const READY: Duration = Duration::from_secs(60);

pub struct Reading {
    pub rest: Rest,
    server: ApiServer,
    store: Arc<Embedded>,
}

impl Reading {
    /// In an empty directory. `encryption`: the configuration that the backup's server had of its user.
    pub async fn open(
        repository: &Repository,
        backup: &Backup,
        directory: &Path,
        encryption: Option<&Path>,
    ) -> anyhow::Result<Reading> {
        restore::keys(repository, backup, directory).await?;
        let file = restore::store(repository, backup, directory).await?;
        let at = directory.join("store");
        let to = at.clone();
        tokio::task::spawn_blocking(move || embedded::restore(&file, &to, 0, Sum::Wanted)).await??;
        let store = Embedded::open(at, Options::default()).await?;
        let source = crate::secrets::source(encryption, false, false)?;
        let sealing = Sealing::open(store.clone(), source, place(directory.join("pki"), ROOT)).await;
        let sealing = sealing.context("the backup's encryption at rest")?;
        let config = Config {
            publish_kubernetes_service: false,
            sealing: Some(sealing.clone()),
            ..Config::from_pki(Pki::open(directory)?)?
        };
        let server = ApiServer::new(config, sealing.store())?;
        let ready = tokio::time::timeout(READY, server.ready()).await;
        ready.context("the backup's objects can't be served")?;
        let client = server.client(UserInfo::from_identity("system:apiserver"));
        Ok(Reading {
            rest: Rest::new(client, "keelson-backup"),
            server,
            store,
        })
    }

    pub async fn close(self) {
        self.server.shutdown();
        if let Err(error) = self.store.close().await {
            tracing::debug!(%error, "the store of a backup that was read");
        }
    }
}
