//! A directory of volumes and snapshots. A volume is a file with an ext4 in it, or a bare one, and so has the size that it has: its
//! user can't take more, and what is reserved for it nobody else gets.
//!
//! ```text
//! volumes/<id>/{volume.json,data}   snapshots/<id>/{snapshot.json,data}   new/…: what isn't complete, or is being removed
//! ```
//!
//! Something is made beside and put into place by one rename, and taken away by one: after a crash it is there completely, or not
//! at all. The same name gives the same id, so asking twice makes one thing. Knows nothing of CSI or of the cluster.

pub mod data;
pub mod picture;
pub mod record;

use data::BLOCK;
use parking_lot::{Condvar, Mutex};
use record::{Origin, Snapshot, Volume};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The smallest volume: less than this holds no useful file system.
pub const SMALLEST: u64 = 8 << 20;
/// What volumes leave of the disk to everybody else.
const LEFT: u64 = 4 << 30;

#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("{0} not found")]
    NotFound(String),
    #[error("{0} exists and is not the same")]
    Exists(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{asked} bytes are less than the {source_bytes} of what is copied")]
    Smaller { asked: u64, source_bytes: u64 },
    #[error("there is no room for {wanted} bytes: {free} are free")]
    Full { wanted: u64, free: u64 },
    #[error("{0}: the disk is full")]
    DiskFull(&'static str),
    #[error("{0} is in use")]
    InUse(String),
    #[error("an operation on {0} is under way")]
    Busy(String),
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
}

type Result<T> = std::result::Result<T, Fault>;

fn io_of(what: &'static str) -> impl Fn(io::Error) -> Fault {
    move |error| match error.raw_os_error() {
        Some(nix::libc::ENOSPC | nix::libc::EDQUOT) => Fault::DiskFull(what),
        _ => Fault::Io(what, error),
    }
}

/// What a new volume is to be.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub name: String,
    /// At least, and at most if that is said.
    pub bytes: u64,
    pub limit: Option<u64>,
    pub block: bool,
    pub thin: bool,
    pub origin: Option<Origin>,
}

pub struct Pool {
    root: PathBuf,
    busy: Arc<Busy>,
    /// Room is looked for and taken by one at a time.
    room: Mutex<()>,
}

/// What somebody works on.
#[derive(Default)]
struct Busy {
    ids: Mutex<BTreeSet<String>>,
    /// One of them no more.
    freed: Condvar,
}

/// While this is held, nobody else works on that volume or snapshot.
struct Hold {
    busy: Arc<Busy>,
    id: String,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.busy.ids.lock().remove(&self.id);
        self.busy.freed.notify_all();
    }
}

fn id(prefix: &str, name: &str) -> String {
    format!("{prefix}-{}", hex::encode(&Sha256::digest(name)[..16]))
}

/// What a volume that was asked for by this name is called.
pub fn id_of(volume: &str) -> String {
    id("vol", volume)
}

/// Ids become paths: only those that were made here are looked for.
fn is_id(id: &str, prefix: &str) -> bool {
    id.strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('-'))
        .is_some_and(|hex| hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// How much new volumes of a pool can take together, whoever has it open.
pub fn free(root: &Path) -> Result<u64> {
    let found = nix::sys::statvfs::statvfs(root).map_err(|e| Fault::Io("asking for room", e.into()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
    let left = LEFT.min(bytes(found.blocks()) / 20);
    Ok(bytes(found.blocks_available()).saturating_sub(left) / BLOCK * BLOCK)
}

fn rounded(bytes: u64) -> u64 {
    bytes.max(SMALLEST).div_ceil(BLOCK).saturating_mul(BLOCK)
}

impl Pool {
    /// Opens the pool in a directory, and clears away what was left half done.
    pub fn open(root: &Path) -> Result<Self> {
        let pool = Pool {
            root: root.to_path_buf(),
            busy: Arc::default(),
            room: Mutex::default(),
        };
        for dir in ["volumes", "snapshots", "new"] {
            std::fs::create_dir_all(root.join(dir)).map_err(io_of("making the pool's directories"))?;
        }
        std::fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(io_of("protecting the pool"))?;
        for left in entries(&root.join("new"))? {
            remove(&root.join("new").join(left))?;
        }
        for volume in pool.volumes()?.iter().filter(|v| !v.block) {
            for dir in pool.mounts(&volume.id)? {
                // Somebody died while a snapshot was made.
                if let Err(error) = keelson_sys::block::thaw(&dir) {
                    tracing::warn!(volume = volume.id, %error, "a file system may be frozen");
                }
            }
        }
        Ok(pool)
    }

    fn hold(&self, id: &str) -> Result<Hold> {
        self.hold_within(id, Duration::ZERO)
    }

    /// Waits so long for somebody else who works on it.
    fn hold_within(&self, id: &str, patience: Duration) -> Result<Hold> {
        let until = Instant::now() + patience;
        let mut ids = self.busy.ids.lock();
        while !ids.insert(id.to_string()) {
            if self.busy.freed.wait_until(&mut ids, until).timed_out() && ids.contains(id) {
                return Err(Fault::Busy(id.into()));
            }
        }
        drop(ids);
        Ok(Hold {
            busy: self.busy.clone(),
            id: id.into(),
        })
    }

    fn dir(&self, id: &str) -> PathBuf {
        self.root.join("volumes").join(id)
    }

    /// The file that holds a volume.
    pub fn file(&self, id: &str) -> PathBuf {
        self.dir(id).join("data")
    }

    fn snapshot_dir(&self, id: &str) -> PathBuf {
        self.root.join("snapshots").join(id)
    }

    pub fn volume(&self, id: &str) -> Result<Volume> {
        let missing = || Fault::NotFound(format!("volume {id}"));
        if !is_id(id, "vol") {
            return Err(missing());
        }
        let found = record::read(&self.dir(id).join("volume.json")).map_err(io_of("reading a volume's record"))?;
        found.ok_or_else(missing)
    }

    pub fn snapshot(&self, id: &str) -> Result<Snapshot> {
        let missing = || Fault::NotFound(format!("snapshot {id}"));
        if !is_id(id, "snap") {
            return Err(missing());
        }
        let file = self.snapshot_dir(id).join("snapshot.json");
        let found = record::read(&file).map_err(io_of("reading a snapshot's record"))?;
        found.ok_or_else(missing)
    }

    /// All volumes, by id.
    pub fn volumes(&self) -> Result<Vec<Volume>> {
        let ids = entries(&self.root.join("volumes"))?;
        ids.iter().map(|id| self.volume(id)).filter(exists).collect()
    }

    /// All snapshots, by id.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        let ids = entries(&self.root.join("snapshots"))?;
        ids.iter().map(|id| self.snapshot(id)).filter(exists).collect()
    }

    /// How much new volumes can take together.
    pub fn free(&self) -> Result<u64> {
        free(&self.root)
    }

    pub fn create(&self, wanted: &Wanted) -> Result<Volume> {
        let id = id("vol", &wanted.name);
        let _hold = self.hold(&id)?;
        let fits = |bytes: u64| bytes >= wanted.bytes && wanted.limit.is_none_or(|limit| bytes <= limit);
        match self.volume(&id) {
            Ok(found) => {
                let same = fits(found.bytes) && found.block == wanted.block && found.origin == wanted.origin;
                return same
                    .then_some(found)
                    .ok_or_else(|| Fault::Exists(format!("volume {}", wanted.name)));
            }
            Err(Fault::NotFound(_)) => {}
            Err(other) => return Err(other),
        }
        let origin = wanted.origin.as_ref().map(|o| self.origin(o)).transpose()?;
        if origin.as_ref().is_some_and(|(_, block, _)| *block != wanted.block) {
            return Err(Fault::Invalid(
                "a device can't become a file system, nor the other way round".into(),
            ));
        }
        let least = origin.as_ref().map_or(0, |(_, _, bytes)| *bytes);
        // No size at all means the source's.
        if wanted.bytes != 0 && rounded(wanted.bytes) < least {
            return Err(Fault::Smaller {
                asked: wanted.bytes,
                source_bytes: least,
            });
        }
        let bytes = rounded(wanted.bytes.max(least));
        if !fits(bytes) {
            return Err(Fault::Invalid(format!(
                "no volume has at most {:?} bytes",
                wanted.limit
            )));
        }
        let volume = Volume {
            id: id.clone(),
            name: wanted.name.clone(),
            bytes,
            block: wanted.block,
            thin: wanted.thin,
            origin: wanted.origin.clone(),
        };
        let new = self.fresh(&id)?;
        let file = {
            // Whoever comes next sees what was taken.
            let _room = self.room.lock();
            let free = self.free()?;
            if bytes > free {
                return Err(Fault::Full { wanted: bytes, free });
            }
            let file = data::create(&new.join("data")).map_err(io_of("making a volume"))?;
            if origin.is_none() {
                data::size(&file, bytes, wanted.thin).map_err(io_of("reserving a volume's room"))?;
            }
            file
        };
        if let Some((from, _, _)) = &origin {
            self.copy(wanted.origin.as_ref(), from, &file)?;
            data::size(&file, bytes, wanted.thin).map_err(io_of("reserving a volume's room"))?;
        }
        // The disk takes its time for either.
        std::thread::scope(|both| {
            let recorded = both.spawn(|| record::first(&new.join("volume.json"), &volume));
            if origin.is_none() && !wanted.block {
                data::format(&new.join("data")).map_err(io_of("making a file system"))?;
            }
            file.sync_all().map_err(io_of("writing a volume"))?;
            let recorded = recorded.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
            recorded.map_err(io_of("writing a volume's record"))
        })?;
        record::sync_dir(&new).map_err(io_of("writing a volume"))?;
        place(&new, &self.dir(&id))?;
        Ok(volume)
    }

    /// The file that a volume begins with, whether it is a device, and its size.
    fn origin(&self, origin: &Origin) -> Result<(PathBuf, bool, u64)> {
        Ok(match origin {
            Origin::Snapshot(id) => {
                let found = self.snapshot(id)?;
                (self.snapshot_dir(id).join("data"), found.block, found.bytes)
            }
            Origin::Volume(id) => {
                let found = self.volume(id)?;
                (self.file(id), found.block, found.bytes)
            }
        })
    }

    /// Copies a file, that of a volume while its file system holds still.
    fn copy(&self, origin: Option<&Origin>, from: &Path, to: &File) -> Result<()> {
        let (_hold, _still) = match origin {
            Some(Origin::Volume(id)) => {
                let hold = self.hold(id)?;
                (Some(hold), self.still(&self.volume(id)?)?)
            }
            Some(Origin::Snapshot(id)) => (Some(self.hold(id)?), None),
            None => (None, None),
        };
        let from = File::open(from).map_err(io_of("reading what is copied"))?;
        data::copy(&from, to).map_err(io_of("copying"))
    }

    /// A volume that has a file system which is mounted, held still.
    fn still(&self, volume: &Volume) -> Result<Option<keelson_sys::block::Frozen>> {
        if volume.block {
            return Ok(None);
        }
        // One mount is enough: others are of the same file system, which holds still only once.
        let mounts = self.mounts(&volume.id)?;
        let frozen = mounts.first().map(|dir| keelson_sys::block::freeze(dir));
        frozen.transpose().map_err(io_of("freezing a file system"))
    }

    /// An empty directory for something that isn't complete.
    fn fresh(&self, id: &str) -> Result<PathBuf> {
        let new = self.root.join("new").join(id);
        remove(&new)?;
        std::fs::create_dir(&new).map_err(io_of("making a directory"))?;
        Ok(new)
    }

    /// Where a volume's file system is mounted, or its device.
    pub fn mounts(&self, id: &str) -> Result<Vec<PathBuf>> {
        let device = keelson_sys::block::attached(&self.file(id)).map_err(io_of("looking for a volume's device"))?;
        let Some(device) = device else { return Ok(Vec::new()) };
        let all = keelson_sys::mount::list().map_err(io_of("looking for mounts"))?;
        let source = device.path.to_string_lossy().into_owned();
        let node = Path::new("/").join(device.path.file_name().unwrap_or_default());
        Ok(all
            .into_iter()
            .filter(|m| m.source == source || m.fs_type == "devtmpfs" && m.root == node)
            .map(|m| m.target)
            .collect())
    }

    /// One that isn't there is removed.
    pub fn delete(&self, id: &str) -> Result<()> {
        let _hold = self.hold(id)?;
        match self.volume(id) {
            Err(Fault::NotFound(_)) => return Ok(()),
            other => other?,
        };
        // The kernel says whether it is in use, not we.
        let device = keelson_sys::block::attached(&self.file(id)).map_err(io_of("looking for a volume's device"))?;
        if device.is_some() {
            return Err(Fault::InUse(format!("volume {id}")));
        }
        self.take_away(&self.dir(id), id)
    }

    fn take_away(&self, dir: &Path, id: &str) -> Result<()> {
        let gone = self.root.join("new").join(format!("{id}.gone"));
        remove(&gone)?;
        place(dir, &gone)?;
        remove(&gone)
    }

    /// Makes a volume larger, never smaller; its device and its file system follow on the node.
    pub fn expand(&self, id: &str, bytes: u64, limit: Option<u64>) -> Result<Volume> {
        let _hold = self.hold(id)?;
        let mut volume = self.volume(id)?;
        let bytes = rounded(bytes);
        if bytes <= volume.bytes {
            return Ok(volume);
        }
        if limit.is_some_and(|limit| bytes > limit) {
            return Err(Fault::Invalid(format!("no volume has at most {limit:?} bytes")));
        }
        let _room = self.room.lock();
        let (more, free) = (bytes - volume.bytes, self.free()?);
        if more > free {
            return Err(Fault::Full { wanted: more, free });
        }
        let file = File::options().write(true).open(self.file(id));
        let file = file.map_err(io_of("opening a volume"))?;
        data::size(&file, bytes, volume.thin).map_err(io_of("reserving a volume's room"))?;
        file.sync_all().map_err(io_of("writing a volume"))?;
        volume.bytes = bytes;
        record::write(&self.dir(id).join("volume.json"), &volume).map_err(io_of("writing a volume's record"))?;
        Ok(volume)
    }

    pub fn snap(&self, name: &str, volume: &str, now: (i64, i32)) -> Result<Snapshot> {
        let id = id("snap", name);
        let _hold = self.hold(&id)?;
        match self.snapshot(&id) {
            Ok(found) if found.volume == volume => return Ok(found),
            Ok(_) => return Err(Fault::Exists(format!("snapshot {name}"))),
            Err(Fault::NotFound(_)) => {}
            Err(other) => return Err(other),
        }
        let source = self.volume(volume)?;
        let free = self.free()?;
        if source.bytes > free {
            return Err(Fault::Full {
                wanted: source.bytes,
                free,
            });
        }
        let snapshot = Snapshot {
            id: id.clone(),
            name: name.into(),
            volume: volume.into(),
            bytes: source.bytes,
            block: source.block,
            created: now,
        };
        let new = self.fresh(&id)?;
        let file = data::create(&new.join("data")).map_err(io_of("making a snapshot"))?;
        self.copy(Some(&Origin::Volume(volume.into())), &self.file(volume), &file)?;
        file.sync_all().map_err(io_of("writing a snapshot"))?;
        record::write(&new.join("snapshot.json"), &snapshot).map_err(io_of("writing a snapshot's record"))?;
        place(&new, &self.snapshot_dir(&id))?;
        Ok(snapshot)
    }

    /// One that isn't there is removed.
    pub fn unsnap(&self, id: &str) -> Result<()> {
        let _hold = self.hold(id)?;
        match self.snapshot(id) {
            Err(Fault::NotFound(_)) => return Ok(()),
            other => other?,
        };
        self.take_away(&self.snapshot_dir(id), id)
    }
}

/// What went between listing and reading isn't there.
fn exists<T>(found: &Result<T>) -> bool {
    !matches!(found, Err(Fault::NotFound(_)))
}

fn entries(dir: &Path) -> Result<Vec<String>> {
    let list = std::fs::read_dir(dir).map_err(io_of("listing the pool"))?;
    let names = list.map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()));
    let mut names: Vec<_> = names.collect::<io::Result<_>>().map_err(io_of("listing the pool"))?;
    names.sort();
    Ok(names)
}

fn place(from: &Path, to: &Path) -> Result<()> {
    let place = io_of("putting into place");
    std::fs::rename(from, to).map_err(&place)?;
    for dir in [from, to].iter().filter_map(|p| p.parent()) {
        record::sync_dir(dir).map_err(&place)?;
    }
    Ok(())
}

/// Removes a directory of plain files: whatever else is in it stays, and so does it.
fn remove(dir: &Path) -> Result<()> {
    let failed = io_of("removing");
    let list = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(&failed)?,
    };
    for entry in list {
        std::fs::remove_file(entry.map_err(&failed)?.path()).map_err(&failed)?;
    }
    std::fs::remove_dir(dir).map_err(&failed)
}
