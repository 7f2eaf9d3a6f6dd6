//! Unpacked layers, by the name of their stack. A layer is there whole or not at all.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use keelson_sys::mount;

use super::unpack::{Limits, most_bytes};
use crate::cell::{Cells, Task};

/// Entries that a layer may have.
const MAX_ENTRIES: u64 = 4_000_000;
/// What no layer may take of the disk: a twentieth, and no more than this.
const KEPT_BYTES: u64 = 1 << 30;
const KEPT_FILES: u64 = 100_000;
/// Seconds of computing that any layer may take, of waiting too, and bytes of its archive that are worth another.
const COMPUTING: u64 = 180;
const WAITING: u64 = 900;
const SLOWEST: u64 = 1 << 20;

#[derive(Debug)]
pub struct Layers {
    root: PathBuf,
    ingest: PathBuf,
    counter: AtomicU64,
    /// Something was unpacked that may not be on the disk yet.
    dirty: AtomicBool,
    cells: Cells,
}

/// What an archive has to be: its own digest, if known, and that of its uncompressed form.
pub struct Expected<'a> {
    pub digest: Option<&'a str>,
    pub diff_id: &'a str,
}

impl Layers {
    /// Opens the store; what an earlier run did not finish is removed.
    /// `program` unpacks, called with `cell`.
    pub fn open(root: &Path, program: &Path) -> io::Result<Layers> {
        let layers = Layers {
            root: root.join("layers"),
            ingest: root.join("ingest"),
            counter: AtomicU64::new(0),
            dirty: AtomicBool::new(false),
            cells: Cells::new(program),
        };
        fs::create_dir_all(&layers.root)?;
        for mounted in mount::below(&layers.ingest)? {
            mount::unmount(&mounted)?;
        }
        match fs::remove_dir_all(&layers.ingest) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => fs::create_dir_all(&layers.ingest)?,
        }
        Ok(layers)
    }

    /// A directory that all layers lie in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directories of a stack, topmost first, as overlayfs wants them.
    pub fn directories(&self, chains: &[String]) -> Vec<PathBuf> {
        chains.iter().rev().map(|chain| self.entry(chain).join("fs")).collect()
    }

    pub fn has(&self, chain: &str) -> bool {
        self.entry(chain).is_dir()
    }

    /// Short, because older kernels take only a page of names at once: half a digest is unique enough.
    fn entry(&self, chain: &str) -> PathBuf {
        let hex = chain.strip_prefix("sha256:").unwrap_or(chain);
        self.root.join(hex.get(..32).unwrap_or(hex))
    }

    /// A new file for what is being downloaded.
    pub fn ingest_file(&self) -> PathBuf {
        self.ingest
            .join(self.counter.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Unpacks the archive of the topmost layer of `chains`, the next `length` bytes of a file, onto the layers below it,
    /// which are there already.
    pub fn add(&self, chains: &[String], archive: File, length: u64, expected: &Expected<'_>) -> io::Result<()> {
        let Some((chain, below)) = chains.split_last() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no layer"));
        };
        let entry = self.ingest_file();
        let work = self.ingest_file();
        let (free, files) = self.free()?;
        let result = (|| {
            fs::create_dir_all(entry.join("fs"))?;
            fs::create_dir_all(&work)?;
            let task = Task {
                upper: entry.join("fs"),
                work: work.clone(),
                below: self.directories(below),
                length,
                limits: Limits {
                    bytes: most_bytes(length, free),
                    files: files.min(MAX_ENTRIES),
                },
                seconds: (COMPUTING + length / SLOWEST, WAITING + 4 * length / SLOWEST),
                parent: std::process::id(),
            };
            let unpacked = self.cells.run(&task, archive)?;
            verify(expected.diff_id, &unpacked.diff_id, "uncompressed layer")?;
            if let Some(digest) = expected.digest {
                verify(digest, &unpacked.digest, "layer")?;
            }
            fs::write(entry.join("size"), unpacked.size.to_string())?;
            match fs::rename(&entry, self.entry(chain)) {
                // Another pull was quicker.
                Err(_) if self.has(chain) => fs::remove_dir_all(&entry),
                done => done,
            }
        })();
        self.dirty.store(true, Ordering::SeqCst);
        fs::remove_dir_all(&work)?;
        if result.is_err() && entry.exists() {
            fs::remove_dir_all(&entry)?;
        }
        result
    }

    /// Whether there is room for so many bytes of archives.
    pub fn check_room(&self, bytes: u64) -> io::Result<()> {
        let (free, _) = self.free()?;
        if bytes > free {
            let text = format!("the image's archives take {bytes} bytes, and {free} are free");
            return Err(io::Error::new(io::ErrorKind::StorageFull, text));
        }
        Ok(())
    }

    /// Bytes and files that the disk has for layers; a part stays for everybody else.
    fn free(&self) -> io::Result<(u64, u64)> {
        let disk = nix::sys::statvfs::statvfs(&self.root)?;
        let unit = disk.fragment_size();
        let kept = (disk.blocks() / 20 * unit).min(KEPT_BYTES);
        // A file system that counts no inodes has as many as fit.
        let files = match disk.files() {
            0 => MAX_ENTRIES,
            all => disk.files_available().saturating_sub((all / 20).min(KEPT_FILES)),
        };
        Ok(((disk.blocks_available() * unit).saturating_sub(kept), files))
    }

    /// Takes layers that no stack names out of sight, so that a crash leaves no half of one, and returns where they are to
    /// be removed from.
    pub fn set_aside(&self, chains: &HashSet<String>) -> io::Result<Vec<PathBuf>> {
        let kept: HashSet<PathBuf> = chains.iter().map(|c| self.entry(c)).collect();
        let mut doomed = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            if !kept.contains(&path) {
                doomed.push(self.ingest_file());
                fs::rename(&path, &doomed[doomed.len() - 1])?;
            }
        }
        Ok(doomed)
    }

    /// Bytes and number of layers.
    pub fn usage(&self) -> io::Result<(u64, u64)> {
        let (mut bytes, mut count) = (0, 0);
        for entry in fs::read_dir(&self.root)? {
            let size = fs::read_to_string(entry?.path().join("size")).unwrap_or_default();
            bytes += size.trim().parse().unwrap_or(0);
            count += 1;
        }
        Ok((bytes, count))
    }

    /// Everything unpacked so far is on the disk.
    pub fn sync(&self) -> io::Result<()> {
        if self.dirty.swap(false, Ordering::SeqCst) {
            // Costly: the kernel writes what everybody has written.
            nix::unistd::syncfs(File::open(&self.root)?)?;
        }
        Ok(())
    }
}

pub fn verify(wanted: &str, got: &str, what: &str) -> io::Result<()> {
    if wanted == got {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{what} has digest {got}, expected {wanted}"),
    ))
}
