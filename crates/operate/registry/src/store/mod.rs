//! What the registry keeps: files under one directory. Knows nothing of HTTP, nor of who asks.
//!
//! ```text
//! blobs/sha256/ab/abcd…          content, by its digest; also manifests'
//! repositories/team+app/
//!   blobs/sha256-abcd…           (empty) the repository has this blob; touched when somebody counts on it
//!   manifests/sha256-abcd…       what is known of a manifest: `document::Facts`
//!   tags/v1                      the digest that the tag stands for
//!   referrers/sha256-…/sha256-…  (empty) the second one says something of the first
//! uploads/<uuid>/data, repository
//! incoming/                      files on their way, gone after a restart
//! ```
//!
//! Everything comes into its place whole, by renaming, when it is on the disk; what a crash leaves is content that nothing
//! names, which the collection (`collect`) removes. Whoever makes something depend on a file touches that file first and
//! holds the gate open meanwhile; the collection closes the gate for each file it removes, and leaves what was touched
//! since it began to look.

mod blobs;
mod collect;
mod manifests;
mod uploads;

use crate::error::{Code, Result, refuse};
use crate::names::{Digest, Repository};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

pub use collect::{Collect, Collected};
use uploads::Known;
pub use uploads::{Scratch, Upload};

/// Repositories at most: each is a directory, and listings go through all of them.
const MOST_REPOSITORIES: usize = 65_536;
/// What stays free on the disk for everybody else: a twentieth, and no more than this.
const KEPT_FREE: u64 = 1 << 30;
const KEPT_FREE_FILES: u64 = 100_000;
/// What is being written is measured against the disk after so many bytes.
const STEP: u64 = 1 << 20;
/// When something was last asked for is known to within this: less than the shortest time that anything stays for.
const FRESH: Duration = Duration::from_secs(30);

/// What may be kept.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Bytes of all content.
    pub whole: Option<u64>,
    /// Bytes of the content that one repository names; what several name counts for each.
    pub repository: Option<u64>,
    /// Bytes of one blob.
    pub blob: u64,
    /// Uploads at a time; half of them of one namespace at most.
    pub uploads: usize,
    /// An upload to which nothing came for so long is given up.
    pub upload_idle: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            whole: None,
            repository: None,
            blob: 64 << 30,
            uploads: 1024,
            upload_idle: Duration::from_secs(6 * 3600),
        }
    }
}

pub struct Store {
    root: PathBuf,
    bounds: Bounds,
    /// Open for whoever makes something depend on a file, closed while one is removed.
    gate: RwLock<()>,
    /// Bytes of content, of uploads, and of what is being fetched.
    kept: Arc<AtomicU64>,
    /// Bytes by repository, of those that were asked for.
    usage: Mutex<HashMap<Repository, u64>>,
    /// Held from the look at a repository's quota until what it lets in is named there.
    naming: Mutex<()>,
    sessions: Mutex<HashMap<uuid::Uuid, Known>>,
    /// The directory is this process's.
    _lock: nix::fcntl::Flock<File>,
}

impl Store {
    /// Opens the directory, or makes it.
    pub fn open(root: &Path, bounds: Bounds) -> anyhow::Result<Store> {
        use anyhow::Context;
        for part in ["blobs/sha256", "blobs/sha512", "repositories", "uploads"] {
            fs::create_dir_all(root.join(part))
                .with_context(|| format!("cannot create {}", root.join(part).display()))?;
        }
        let lock = File::create(root.join("lock"))?;
        let lock = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusiveNonblock);
        let lock = lock.map_err(|(_, error)| match error {
            nix::errno::Errno::EAGAIN => anyhow::anyhow!("another registry runs on {}", root.display()),
            error => anyhow::anyhow!("cannot lock {}: {error}", root.display()),
        })?;
        let incoming = root.join("incoming");
        if incoming.exists() {
            fs::remove_dir_all(&incoming)?;
        }
        fs::create_dir(&incoming)?;
        let store = Store {
            root: root.to_path_buf(),
            bounds,
            gate: RwLock::default(),
            kept: Arc::default(),
            usage: Mutex::default(),
            naming: Mutex::default(),
            sessions: Mutex::default(),
            _lock: lock,
        };
        store.resume_uploads()?;
        let mut kept = 0;
        store.each_blob(|_, meta| kept += meta.len())?;
        store.kept.fetch_add(kept, Ordering::Relaxed);
        Ok(store)
    }

    /// Bytes of content, uploads included.
    pub fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }

    pub fn uploads(&self) -> usize {
        self.sessions.lock().len()
    }

    fn directory(&self, repository: &Repository) -> PathBuf {
        self.root.join("repositories").join(repository.directory())
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root
            .join("blobs")
            .join(digest.algorithm.name())
            .join(&hex[..2])
            .join(hex)
    }

    /// A name for a file on its way.
    fn incoming(&self) -> PathBuf {
        self.root.join("incoming").join(uuid::Uuid::new_v4().to_string())
    }

    /// Calls `each` with all content and what the disk says of it.
    fn each_blob(&self, mut each: impl FnMut(Digest, fs::Metadata)) -> io::Result<()> {
        for algorithm in ["sha256", "sha512"] {
            for part in fs::read_dir(self.root.join("blobs").join(algorithm))? {
                for entry in fs::read_dir(part?.path())? {
                    let entry = entry?;
                    let name = entry.file_name();
                    let digest = name
                        .to_str()
                        .and_then(|hex| Digest::parse(&format!("{algorithm}:{hex}")));
                    if let Some(digest) = digest {
                        each(digest, entry.metadata()?);
                    }
                }
            }
        }
        Ok(())
    }

    /// Calls `each` with all repositories.
    pub fn each_repository(&self, mut each: impl FnMut(Repository)) -> io::Result<()> {
        for entry in fs::read_dir(self.root.join("repositories"))? {
            let name = entry?.file_name();
            if let Some(repository) = name.to_str().and_then(Repository::of_directory) {
                each(repository);
            }
        }
        Ok(())
    }

    pub fn has_repository(&self, repository: &Repository) -> bool {
        self.directory(repository).is_dir()
    }

    /// Makes a repository's directories, unless they are there: all at once, since others look through them. The gate is held: they go when
    /// they are empty.
    fn ensure_repository(&self, repository: &Repository) -> Result<()> {
        let directory = self.directory(repository);
        if directory.is_dir() {
            return Ok(());
        }
        let all = self.root.join("repositories");
        if fs::read_dir(&all)?.count() >= MOST_REPOSITORIES {
            return refuse(
                Code::Denied,
                format!("there are {MOST_REPOSITORIES} repositories already"),
            );
        }
        let new = self.incoming();
        for part in ["blobs", "manifests", "tags", "referrers"] {
            fs::create_dir_all(new.join(part))?;
        }
        sync(&new)?;
        match fs::rename(&new, &directory) {
            // Somebody else was quicker.
            Err(_) if directory.is_dir() => fs::remove_dir_all(&new)?,
            done => done?,
        }
        Ok(sync(&all)?)
    }

    /// Takes so many bytes of what may be kept, or says why not.
    fn reserve(&self, bytes: u64) -> Result<()> {
        if let Some(whole) = self.bounds.whole {
            let taken = self.kept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |kept| {
                kept.checked_add(bytes).filter(|sum| *sum <= whole)
            });
            if taken.is_err() {
                return refuse(
                    Code::Denied,
                    format!("the registry's quota of {whole} bytes is used up"),
                );
            }
        } else {
            self.kept.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    fn release(&self, bytes: u64) {
        release(&self.kept, bytes);
    }

    /// Whether the disk has room for more, in bytes and in files; a part stays for everybody else.
    fn check_disk(&self, bytes: u64) -> Result<()> {
        let disk = nix::sys::statvfs::statvfs(&self.root).map_err(io::Error::from)?;
        let unit = disk.fragment_size();
        let free = (disk.blocks_available() * unit).saturating_sub((disk.blocks() / 20 * unit).min(KEPT_FREE));
        // A file system that counts no files has as many as fit.
        let files = disk.files() == 0 || disk.files_available() > (disk.files() / 20).min(KEPT_FREE_FILES);
        match bytes <= free && files {
            true => Ok(()),
            false => refuse(Code::Full, "the registry's disk has no room for that"),
        }
    }

    /// The same while something grows by `more`, now and then: others write to the disk too.
    fn check_step(&self, before: u64, more: u64) -> Result<()> {
        match before / STEP == (before + more) / STEP {
            true => Ok(()),
            false => self.check_disk(more),
        }
    }

    /// Bytes that a repository names.
    fn usage_of(&self, repository: &Repository) -> Result<u64> {
        if let Some(known) = self.usage.lock().get(repository) {
            return Ok(*known);
        }
        let mut sum = 0;
        for entry in fs::read_dir(self.directory(repository).join("blobs"))? {
            let name = entry?.file_name();
            let digest = name.to_str().and_then(Digest::of_file);
            sum += digest.map_or(Ok(0), |d| self.length(&d))?;
        }
        self.usage.lock().insert(repository.clone(), sum);
        Ok(sum)
    }

    fn forget_usage(&self, repository: &Repository) {
        self.usage.lock().remove(repository);
    }

    /// Length of content; 0: it isn't there.
    fn length(&self, digest: &Digest) -> io::Result<u64> {
        match fs::metadata(self.blob_path(digest)) {
            Ok(meta) => Ok(meta.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Puts a short file in its place, whole.
    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let new = self.incoming();
        let mut file = File::create(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        sync(path.parent().unwrap_or(path))
    }
}

fn release(kept: &AtomicU64, bytes: u64) {
    let _always = kept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |kept| {
        Some(kept.saturating_sub(bytes))
    });
}

/// Whether a mark is so old that whoever asks now has to renew it.
fn is_stale(marked: SystemTime) -> bool {
    marked.elapsed().unwrap_or_default() > FRESH
}

/// What a directory names is on the disk.
fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Somebody counts on the file from now on.
fn touch(path: &Path) -> io::Result<()> {
    File::open(path)?.set_modified(SystemTime::now())
}

/// Removes a file; that it isn't there is fine.
fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
