//! Images: what is known of them on disk and in memory.
//!
//! An image is its configuration (whose digest is its ID), the names it goes by and a stack of unpacked layers. Archives
//! of layers are not kept, unless for other nodes (`archives`): they are verified while they are unpacked, in a cell (`crate::cell`). This module knows nothing of CRI or containers;
//! who uses a layer beyond images is told to it.

pub mod archives;
mod import;
mod layers;
pub mod manifest;
mod pull;
mod signatures;
mod unpack;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

pub use keelson_oci::{digest, reference, registries};
pub use layers::{Expected, Layers};
pub use pull::PullError;
pub(crate) use unpack::{Limits, TARGET, Unpacked, unpack};

use archives::{Archives, Peers};
use manifest::{Execution, ImageConfig};
use reference::Reference;
use registries::Registries;

/// An image whose layers are all there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Image {
    pub id: String,
    /// Names with tags.
    pub tags: BTreeSet<String>,
    /// Names with digests.
    pub digests: BTreeSet<String>,
    /// Bytes to download, as upstream counts.
    pub size: u64,
    /// Names of the stack's layers, the lowest first.
    pub chains: Vec<String>,
    pub execution: Execution,
    /// Must not be collected.
    #[serde(default)]
    pub pinned: bool,
}

pub struct Images {
    root: PathBuf,
    pub layers: Layers,
    registries: Registries,
    /// What is kept for other nodes.
    archives: Option<Archives>,
    /// Other nodes, which are asked before registries.
    peers: Option<Arc<dyn Peers>>,
    pinned: Vec<String>,
    known: Mutex<BTreeMap<String, Arc<Image>>>,
    /// Imports and pulls in progress: layers may be there that no image names yet. Held while layers go, so that none
    /// begins that counts on one of them.
    busy: Mutex<usize>,
    /// Pulls of the same image wait for each other.
    pulling: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Images {
    /// `program` unpacks layers, called with `cell`.
    pub fn open(root: &Path, registries: Registries, pinned: Vec<String>, program: &Path) -> io::Result<Images> {
        std::fs::create_dir_all(root.join("images"))?;
        std::fs::create_dir_all(root.join("configs"))?;
        let images = Images {
            root: root.to_path_buf(),
            layers: Layers::open(root, program)?,
            registries,
            archives: None,
            peers: None,
            pinned,
            known: Mutex::new(BTreeMap::new()),
            busy: Mutex::new(0),
            pulling: Mutex::new(BTreeMap::new()),
        };
        images.load()?;
        Ok(images)
    }

    /// Keeps archives for other nodes, up to so many bytes, and asks them for theirs.
    pub fn sharing(mut self, keep: Option<u64>, peers: Option<Arc<dyn Peers>>) -> io::Result<Images> {
        self.archives = Archives::open(&self.root, keep)?;
        self.peers = peers;
        Ok(self)
    }

    /// An archive of a layer, or a configuration, that was pulled here from this repository.
    pub fn archive(&self, repository: &str, digest: &str) -> io::Result<Option<std::fs::File>> {
        self.archives
            .as_ref()
            .map_or(Ok(None), |all| all.find(repository, digest))
    }

    fn load(&self) -> io::Result<()> {
        let mut known = self.known.lock();
        for entry in std::fs::read_dir(self.root.join("images"))? {
            let path = entry?.path();
            if path.extension().is_none_or(|e| e != "json") {
                std::fs::remove_file(&path)?;
                continue;
            }
            let read = std::fs::read(&path)?;
            match serde_json::from_slice::<Image>(&read) {
                Ok(image) if image.chains.iter().all(|c| self.layers.has(c)) => {
                    known.insert(image.id.clone(), Arc::new(image));
                }
                Ok(image) => {
                    tracing::warn!(image = image.id, "image forgotten: a layer of it is missing");
                    std::fs::remove_file(&path)?;
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "image forgotten: its record cannot be read");
                    std::fs::remove_file(&path)?;
                }
            }
        }
        Ok(())
    }

    pub fn list(&self) -> Vec<Arc<Image>> {
        self.known.lock().values().cloned().collect()
    }

    /// The image of a name or an ID.
    pub fn find(&self, text: &str) -> Option<Arc<Image>> {
        let known = self.known.lock();
        if let Some(image) = reference::as_id(text).and_then(|id| known.get(&id)) {
            return Some(image.clone());
        }
        let name = Reference::parse(text).ok()?.to_string();
        known
            .values()
            .find(|i| i.tags.contains(&name) || i.digests.contains(&name))
            .cloned()
    }

    /// The image's configuration document.
    pub fn config(&self, id: &str) -> io::Result<Vec<u8>> {
        std::fs::read(self.config_path(id))
    }

    fn config_path(&self, id: &str) -> PathBuf {
        self.root.join("configs").join(id.strip_prefix("sha256:").unwrap_or(id))
    }

    fn record_path(&self, id: &str) -> PathBuf {
        self.root
            .join("images")
            .join(format!("{}.json", id.strip_prefix("sha256:").unwrap_or(id)))
    }

    /// Makes an image known, or an image known by more names. Its layers are on disk.
    fn add(&self, config: &[u8], parsed: ImageConfig, size: u64, names: &[Name]) -> io::Result<Arc<Image>> {
        let id = digest::of(config);
        let chains = digest::chain(&parsed.rootfs.diff_ids);
        self.layers.sync()?;
        replace_file(&self.config_path(&id), config)?;
        let mut known = self.known.lock();
        let mut image = match known.get(&id) {
            Some(image) => Image::clone(image),
            None => Image {
                id: id.clone(),
                tags: BTreeSet::new(),
                digests: BTreeSet::new(),
                size,
                chains,
                execution: parsed.config,
                pinned: false,
            },
        };
        for name in names {
            match name {
                Name::Tag(name) => image.tags.insert(name.clone()),
                Name::Digest(name) => image.digests.insert(name.clone()),
            };
        }
        image.pinned |= image.tags.iter().any(|t| self.pinned.contains(t));
        // A tag names one image: it moves here from the one that had it.
        let moved: Vec<Arc<Image>> = known
            .values()
            .filter(|other| other.id != id && !other.tags.is_disjoint(&image.tags))
            .cloned()
            .collect();
        for other in moved {
            let mut other = Image::clone(&other);
            other.tags.retain(|t| !image.tags.contains(t));
            self.save(&other)?;
            known.insert(other.id.clone(), Arc::new(other));
        }
        self.save(&image)?;
        let image = Arc::new(image);
        known.insert(id, image.clone());
        Ok(image)
    }

    fn save(&self, image: &Image) -> io::Result<()> {
        replace_file(&self.record_path(&image.id), &serde_json::to_vec(image)?)
    }

    /// Forgets an image. `in_use`: layers that something else needs. One that is unknown is fine.
    pub fn remove(&self, text: &str, in_use: &HashSet<String>) -> io::Result<()> {
        let Some(image) = self.find(text) else { return Ok(()) };
        {
            let mut known = self.known.lock();
            std::fs::remove_file(self.record_path(&image.id))?;
            known.remove(&image.id);
        }
        std::fs::remove_file(self.config_path(&image.id))?;
        self.collect(in_use)
    }

    /// Removes layers that neither an image nor anything else needs.
    pub fn collect(&self, in_use: &HashSet<String>) -> io::Result<()> {
        let doomed = {
            let busy = self.busy.lock();
            // What stays now goes at the next removal.
            if *busy > 0 {
                return Ok(());
            }
            let mut needed = in_use.clone();
            needed.extend(self.known.lock().values().flat_map(|i| i.chains.iter().cloned()));
            self.layers.set_aside(&needed)?
        };
        for path in doomed {
            std::fs::remove_dir_all(path)?;
        }
        self.archives.as_ref().map_or(Ok(()), Archives::trim)
    }
}

/// Holds back the collection of layers.
struct Busy<'a>(&'a Mutex<usize>);

impl<'a> Busy<'a> {
    fn new(images: &'a Images) -> Busy<'a> {
        *images.busy.lock() += 1;
        Busy(&images.busy)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
    }
}

/// A name for an image.
enum Name {
    Tag(String),
    Digest(String),
}

/// Replaces a file so that after a crash it is the old or the new one.
pub fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let new = path.with_extension("new");
    let mut file = std::fs::File::create(&new)?;
    file.write_all(content)?;
    file.sync_data()?;
    std::fs::rename(&new, path)
}
