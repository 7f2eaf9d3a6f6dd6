//! A repository: what files are made of, each piece once.
//!
//! | name | what |
//! |---|---|
//! | `config` | what the repository is, and how its keys are kept |
//! | `chunks/ab/abcd…` | a piece, compressed and sealed, named by what it is |
//! | `backups/<time>-<number>` | a backup: which pieces make up which file; written last, so that what has none isn't there |
//! | `locks/…` | who writes just now |
//!
//! Invariant: a piece is written once and never changed, so that what two backups share is never in danger by either. Whatever is read is
//! held against its name.

pub mod files;
mod keys;
mod lock;
mod piece;

pub use files::File;
pub use keys::{Id, Secret};
pub use lock::Lock;
pub use piece::SIZE;

use crate::place::{Object, Place, Trouble};
use jiff::Timestamp;
use keys::{Kept, Keys};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

const CONFIG: &str = "config";
const CHUNKS: &str = "chunks/";
pub(crate) const BACKUPS: &str = "backups/";
const VERSION: u32 = 1;
/// A configuration is a few hundred bytes.
const CONFIG_MOST: u64 = 16 << 10;
/// What a backup's list may have: a hundred bytes a piece, so a few TiB.
const LIST_MOST: usize = 512 << 20;

#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error(transparent)]
    Place(#[from] Trouble),
    #[error("{0}")]
    Refused(String),
    #[error("{0} is missing")]
    Missing(String),
    #[error("{0} isn't what was written")]
    Changed(String),
    #[error("{0:?}: {1}")]
    Io(PathBuf, std::io::Error),
}

pub type Result<T, E = Damage> = std::result::Result<T, E>;

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    keelson_backup: u32,
    id: String,
    made: Timestamp,
    key: Kept,
}

pub struct Repository {
    place: Arc<dyn Place>,
    keys: Keys,
}

fn chunk_name(id: &Id) -> String {
    let id = hex::encode(id);
    format!("{CHUNKS}{}/{id}", &id[..2])
}

fn chunk_id(name: &str) -> Option<Id> {
    let (directory, id) = name.strip_prefix(CHUNKS)?.split_once('/')?;
    let id: Id = hex::decode(id).ok()?.try_into().ok()?;
    id_of(&id).starts_with(directory).then_some(id)
}

fn id_of(id: &Id) -> String {
    hex::encode(id)
}

impl Repository {
    /// # Errors
    ///
    /// If there is none, or it can't be opened by this secret.
    pub async fn open(place: Arc<dyn Place>, secret: &Secret) -> Result<Repository> {
        let none = format!("{}: there is no repository", place.told());
        Repository::find(place, secret).await?.ok_or(Damage::Refused(none))
    }

    /// The one that is there, or a new one in a place where there is nothing.
    pub async fn open_or_make(place: Arc<dyn Place>, secret: &Secret) -> Result<Repository> {
        if let Some(found) = Repository::find(place.clone(), secret).await? {
            return Ok(found);
        }
        // Of two that make it at once one would seal by keys that the other has written over.
        let lock = Lock::take(place.clone(), "who makes the repository").await?;
        let made = Repository::make(place, secret).await;
        let released = lock.release().await;
        let made = made?;
        released.map(|()| made)
    }

    async fn make(place: Arc<dyn Place>, secret: &Secret) -> Result<Repository> {
        // Meanwhile somebody else may have.
        if let Some(found) = Repository::find(place.clone(), secret).await? {
            return Ok(found);
        }
        if !place.list(CHUNKS).await?.is_empty() || !place.list(BACKUPS).await?.is_empty() {
            return Err(Damage::Missing(format!(
                "{} of the repository in {}",
                CONFIG,
                place.told()
            )));
        }
        let id = uuid::Uuid::new_v4().to_string();
        let (named, secret) = (id.clone(), secret.clone());
        let (keys, key) = away(move || Keys::make(&named, &secret)).await?;
        let config = Config {
            keelson_backup: VERSION,
            id,
            made: Timestamp::now(),
            key,
        };
        let json = serde_json::to_vec(&config).map_err(|e| Damage::Refused(e.to_string()))?;
        place.put(CONFIG, json.into()).await?;
        Ok(Repository { place, keys })
    }

    async fn find(place: Arc<dyn Place>, secret: &Secret) -> Result<Option<Repository>> {
        let Some(json) = place.get(CONFIG, CONFIG_MOST).await? else {
            return Ok(None);
        };
        let told = place.told().to_string();
        let config: Config = serde_json::from_slice(&json)
            .map_err(|_| Damage::Changed(format!("the configuration of the repository in {told}")))?;
        if config.keelson_backup != VERSION {
            return Err(Damage::Refused(format!(
                "{told}: a repository of version {}, and this program reads {VERSION}",
                config.keelson_backup
            )));
        }
        let secret = secret.clone();
        let keys = away(move || Keys::open(&config.id, &config.key, &secret)).await?;
        Ok(Some(Repository { place, keys }))
    }

    pub fn told(&self) -> &str {
        self.place.told()
    }

    pub fn is_sealed(&self) -> bool {
        self.keys.is_sealed()
    }

    /// Names of pieces that are there.
    pub async fn known(&self) -> Result<HashSet<Id>> {
        let found = self.place.list(CHUNKS).await?;
        Ok(found.iter().filter_map(|object| chunk_id(&object.name)).collect())
    }

    /// A piece, as it was.
    pub async fn fetch(&self, id: &Id) -> Result<Vec<u8>> {
        let name = chunk_name(id);
        let kept = self.place.get(&name, piece::MOST).await?;
        let kept = kept.ok_or_else(|| Damage::Missing(name.clone()))?;
        let opened = self.keys.open_sealed(&name, kept.into());
        let content = opened.and_then(|packed| piece::unpack(&packed, piece::SIZE));
        match content {
            Some(content) if self.keys.id(&content) == *id => Ok(content),
            _ => Err(Damage::Changed(name)),
        }
    }

    /// Names of backups, the oldest first.
    pub async fn backups(&self) -> Result<Vec<Object>> {
        Ok(self.place.list(BACKUPS).await?)
    }

    pub(crate) async fn put_list(&self, name: &str, json: Vec<u8>) -> Result<()> {
        let packed = away(move || Ok(piece::pack(&json))).await?;
        let sealed = self.keys.seal(name, &packed)?;
        Ok(self.place.put(name, sealed.into()).await?)
    }

    pub(crate) async fn get_list(&self, name: &str) -> Result<Vec<u8>> {
        let kept = self.place.get(name, LIST_MOST as u64).await?;
        let kept = kept.ok_or_else(|| Damage::Missing(name.into()))?;
        let changed = || Damage::Changed(name.into());
        let packed = self.keys.open_sealed(name, kept.into()).ok_or_else(changed)?;
        let unpacked = away(move || Ok(piece::unpack(&packed, LIST_MOST))).await?;
        unpacked.ok_or_else(changed)
    }

    /// Removes a backup; what only it needed goes with [`Repository::sweep`].
    pub async fn forget(&self, name: &str) -> Result<()> {
        Ok(self.place.remove(name).await?)
    }

    /// Removes pieces that no backup needs, and what was cut short; gives how many pieces. Nobody else may be writing (`lock`), and `needed` is of
    /// all backups. What isn't named as pieces are stays: who can write to the place may have led its directory elsewhere.
    pub async fn sweep(&self, _lock: &Lock, needed: &HashSet<Id>) -> Result<u64> {
        let mut removed = 0;
        for object in self.place.list(CHUNKS).await? {
            if chunk_id(&object.name).is_some_and(|id| !needed.contains(&id)) {
                self.place.remove(&object.name).await?;
                removed += 1;
            }
        }
        for below in [CHUNKS, BACKUPS] {
            self.place.tidy(below).await?;
        }
        Ok(removed)
    }
}

/// What computes for long doesn't hold up who waits for I/O.
async fn away<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Damage::Refused(e.to_string())))
}

#[cfg(test)]
mod tests;
