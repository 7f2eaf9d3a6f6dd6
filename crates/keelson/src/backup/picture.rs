//! A picture of this machine: its volumes, then the store, in a directory beside them. Volumes come first: whatever objects say of data,
//! data isn't older than that but for the moment in between.

use super::{pool, prepare, workshop};
use crate::store::snapshot::Source;
use anyhow::Context;
use jiff::Timestamp;
use keelson_apiserver::snapshots::Take;
use keelson_local::pool::Pool;
use keelson_local::pool::record::Volume;
use keelson_store::snapshot::Summary;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Mutex;

const STORE: &str = "store.db";

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Picture {
    pub path: PathBuf,
    /// As the cluster names this machine.
    pub node: String,
    pub at: Timestamp,
    pub revision: u64,
    pub keys: u64,
    pub one_moment: bool,
    pub volumes: Vec<Pictured>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Pictured {
    pub volume: Volume,
    pub at: Timestamp,
}

impl Picture {
    pub fn store(&self) -> PathBuf {
        self.path.join(STORE)
    }

    pub fn volume(&self, id: &str) -> PathBuf {
        self.path.join("volumes").join(id)
    }
}

/// Takes pictures, one at a time.
pub struct Pictures {
    source: Source,
    pool: Option<Arc<Pool>>,
    data_dir: PathBuf,
    node: String,
    last: Mutex<Option<Picture>>,
}

impl Pictures {
    /// `pool`: volumes that are open here; `None`: this machine has none.
    pub fn new(source: Source, pool: Option<Arc<Pool>>, data_dir: &Path, node: &str) -> Arc<Pictures> {
        Arc::new(Pictures {
            source,
            pool,
            data_dir: data_dir.into(),
            node: node.into(),
            last: Mutex::default(),
        })
    }

    /// For a machine on which no server runs.
    pub fn alone(source: Source, data_dir: &Path, node: &str) -> anyhow::Result<Arc<Pictures>> {
        let pool = pool(data_dir);
        let pool = pool.exists().then(|| Pool::open(&pool)).transpose()?;
        Ok(Pictures::new(source, pool.map(Arc::new), data_dir, node))
    }

    /// Who asks again while one is being taken, or before anybody cleared it away, gets that one.
    pub async fn take(&self) -> anyhow::Result<Picture> {
        let mut last = self.last.lock().await;
        if let Some(picture) = last.as_ref().filter(|picture| picture.path.exists()) {
            return Ok(picture.clone());
        }
        let at = Timestamp::now();
        let path = workshop(&self.data_dir).join(format!("picture-{}", at.as_millisecond()));
        let taken = self.take_in(&path, at).await;
        match &taken {
            Ok(picture) => *last = Some(picture.clone()),
            Err(_) => drop(std::fs::remove_dir_all(&path)),
        }
        taken
    }

    async fn take_in(&self, path: &Path, at: Timestamp) -> anyhow::Result<Picture> {
        let volumes = path.join("volumes");
        prepare(&volumes)?;
        let (pool, to) = (self.pool.clone(), volumes.clone());
        let pictured = tokio::task::spawn_blocking(move || pool.map(|pool| pool.picture(&to)).transpose());
        let pictured = pictured.await?.context("a picture of the volumes")?;
        let (volumes, one_moment) = match pictured {
            Some(picture) => (picture.volumes, picture.one_moment),
            None => (Vec::new(), true),
        };
        let of = |pictured: keelson_local::pool::picture::Pictured| {
            let at = Timestamp::try_from(pictured.at)?;
            let volume = pictured.volume;
            anyhow::Ok(Pictured { volume, at })
        };
        let saved = self.source.save(&path.join(STORE)).await;
        let Summary { revision, keys, .. } = saved.context("a snapshot of the store")?;
        Ok(Picture {
            path: path.into(),
            node: self.node.clone(),
            at,
            revision,
            keys,
            one_moment,
            volumes: volumes.into_iter().map(of).collect::<anyhow::Result<_>>()?,
        })
    }

    /// For who asks the server.
    pub fn taker(self: &Arc<Self>) -> Take {
        let pictures = self.clone();
        Arc::new(move || {
            let pictures = pictures.clone();
            Box::pin(async move { Ok(serde_json::to_value(pictures.take().await?)?) })
        })
    }
}
