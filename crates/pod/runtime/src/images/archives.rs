//! Archives of layers that are kept for other nodes, and how others are asked for theirs.
//!
//! A layer is kept unpacked, from which its archive can't be made again. With `keep` the archive stays too once it has been
//! verified: moved, not copied, as far as its bound goes and the disk isn't nearly full; the longest unasked go first. Without it
//! nothing of this costs anything.
//!
//! An archive is given to who names it by digest *and* by the repository that it was pulled from here: a registry was asked
//! about that repository with the credentials of the pull, on the node that asks as on this one. Who only knows a digest, and
//! has a registry of his own name it, gets nothing.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use parking_lot::Mutex;

use super::{digest, reference};

/// Nothing is kept where less than a fifth of the disk is free, less than this, and less than four times what may be kept.
const FREE: u64 = 10 << 30;

/// An archive, or a configuration, of an image that its registry lets this node pull.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The image's name with its digest.
    pub image: &'a str,
    pub repository: &'a str,
    pub digest: &'a str,
}

/// Other nodes. What they give is verified by who asks.
pub trait Peers: Send + Sync + Debug {
    /// The bytes of it, from whoever has it and answers soon; None: it is to be had from its registry.
    fn get<'a>(&'a self, wanted: Wanted<'a>) -> BoxFuture<'a, Option<BoxStream<'static, io::Result<Bytes>>>>;
}

#[derive(Debug)]
pub struct Archives {
    root: PathBuf,
    /// Bytes at most.
    most: u64,
    trimming: Mutex<()>,
}

impl Archives {
    /// None: nothing is kept, and what was kept is removed.
    pub fn open(root: &Path, most: Option<u64>) -> io::Result<Option<Archives>> {
        let root = root.join("archives");
        let Some(most) = most else {
            return match fs::remove_dir_all(&root) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(None),
            };
        };
        fs::create_dir_all(&root)?;
        let archives = Archives {
            root,
            most,
            trimming: Mutex::default(),
        };
        archives.trim()?;
        Ok(Some(archives))
    }

    /// Names come from strangers: paths are made of digests only.
    fn place(&self, repository: &str, of: &str) -> Option<PathBuf> {
        let hex = of.strip_prefix("sha256:").filter(|_| reference::is_digest(of))?;
        let hash = digest::of(repository.as_bytes());
        let hash = hash.strip_prefix("sha256:")?.get(..32)?;
        Some(self.root.join(hash).join(hex))
    }

    /// Keeps a verified archive by taking its file.
    pub fn keep(&self, repository: &str, of: &str, file: &Path) -> io::Result<()> {
        let Some(place) = self.place(repository, of) else {
            return Ok(());
        };
        let archive = File::open(file)?;
        // What alone is more than all may be would only drive out the others.
        if archive.metadata()?.len() > self.most {
            return Ok(());
        }
        archive.sync_data()?;
        fs::create_dir_all(place.parent().unwrap_or(&self.root))?;
        fs::rename(file, &place)?;
        self.trim()
    }

    /// Keeps a short document.
    pub fn put(&self, repository: &str, of: &str, bytes: &[u8], scratch: &Path) -> io::Result<()> {
        fs::write(scratch, bytes)?;
        self.keep(repository, of, scratch)
    }

    /// One that was pulled here from this repository. Who asks makes it one of those that stay longest.
    pub fn find(&self, repository: &str, of: &str) -> io::Result<Option<File>> {
        let Some(place) = self.place(repository, of) else {
            return Ok(None);
        };
        match File::open(place) {
            Ok(file) => {
                file.set_modified(SystemTime::now())?;
                Ok(Some(file))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes the longest unasked until the rest fits.
    pub fn trim(&self) -> io::Result<()> {
        let _alone = self.trimming.lock();
        let most = if has_room(&self.root, self.most)? { self.most } else { 0 };
        let (mut all, mut sum) = (Vec::new(), 0);
        for repository in fs::read_dir(&self.root)? {
            for entry in fs::read_dir(repository?.path())? {
                let entry = entry?;
                let meta = entry.metadata()?;
                sum += meta.len();
                all.push((meta.modified()?, meta.len(), entry.path()));
            }
        }
        all.sort();
        for (_, length, path) in all {
            if sum <= most {
                break;
            }
            fs::remove_file(&path)?;
            sum -= length;
            if let Some(repository) = path.parent() {
                // One that has others in it stays.
                let _ = fs::remove_dir(repository);
            }
        }
        Ok(())
    }
}

fn has_room(root: &Path, most: u64) -> io::Result<bool> {
    let disk = nix::sys::statvfs::statvfs(root)?;
    let unit = disk.fragment_size();
    let free = disk.blocks_available().saturating_mul(unit);
    let enough = (disk.blocks() / 5).saturating_mul(unit).min(FREE);
    Ok(free > enough.min(most.saturating_mul(4)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest_of(n: u8) -> String {
        digest::of(&[n])
    }

    #[test]
    fn the_longest_unasked_go_first_and_digests_alone_open_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let archives = Archives::open(dir.path(), Some(250)).unwrap().unwrap();
        let keep = |n: u8| {
            archives
                .put("r.example/a", &digest_of(n), &[n; 100], &dir.path().join("scratch"))
                .unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        let has = |n: u8| archives.find("r.example/a", &digest_of(n)).unwrap().is_some();
        keep(0);
        keep(1);
        assert!(has(0) && has(1));
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(has(0));
        keep(2);
        assert_eq!([has(0), has(1), has(2)], [true, false, true]);
        // One that is too long for all of it drives nobody out.
        archives
            .put("r.example/a", &digest_of(3), &[3; 251], &dir.path().join("scratch"))
            .unwrap();
        assert_eq!([has(0), has(2), has(3)], [true, true, false]);
        assert!(archives.find("evil.example/b", &digest_of(0)).unwrap().is_none());
        for bad in ["sha256:../../etc/passwd", "", "sha256:"] {
            assert!(archives.find("r.example/a", bad).unwrap().is_none(), "{bad}");
        }
        drop(archives);
        let again = Archives::open(dir.path(), Some(250)).unwrap().unwrap();
        assert!(again.find("r.example/a", &digest_of(2)).unwrap().is_some());
        assert!(Archives::open(dir.path(), None).unwrap().is_none());
        assert!(!dir.path().join("archives").exists());
    }
}
