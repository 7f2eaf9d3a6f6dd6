//! Blobs: content that repositories name.

use super::{Store, is_stale, remove, sync, touch};
use crate::error::{Code, Result, refuse, refused};
use crate::names::{Digest, Repository};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Repositories that are looked through for a blob which is to be mounted from wherever it is.
const LOOKED_THROUGH: usize = 1024;
/// Those of them that have it and are told.
const TOLD: usize = 8;

impl Store {
    fn link(&self, repository: &Repository, digest: &Digest) -> PathBuf {
        self.directory(repository).join("blobs").join(digest.file())
    }

    /// A blob of a repository, and its length. Who asks counts on it for a while.
    pub fn blob(&self, repository: &Repository, digest: &Digest) -> Result<(File, u64)> {
        let unknown = || refused(Code::BlobUnknown, format!("this repository has no blob {digest}"));
        let _open = self.gate.read();
        let link = self.link(repository, digest);
        let marked = match fs::metadata(&link) {
            Ok(meta) => meta.modified()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(unknown()),
            Err(error) => return Err(error.into()),
        };
        if is_stale(marked) {
            touch(&link)?;
        }
        match File::open(self.blob_path(digest)) {
            Ok(file) => {
                let length = file.metadata()?.len();
                Ok((file, length))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(unknown()),
            Err(error) => Err(error.into()),
        }
    }

    /// A mark whose content is gone is none: it comes again.
    pub fn has_blob(&self, repository: &Repository, digest: &Digest) -> bool {
        self.link(repository, digest).exists() && self.blob_path(digest).exists()
    }

    /// Takes a file, which has been written and whose bytes are `reserved`, as the content of this digest, and names it in the
    /// repository. What is the content's own from then on is no longer reserved, also when naming it fails.
    pub(super) fn take_in(
        &self,
        file: &Path,
        length: u64,
        digest: &Digest,
        repository: &Repository,
        reserved: &mut u64,
    ) -> Result<()> {
        let written = File::open(file)?;
        written.sync_all()?;
        let _open = self.gate.read();
        self.ensure_repository(repository)?;
        self.within_usage(repository, digest, length, || {
            let place = self.blob_path(digest);
            let parent = place.parent().unwrap_or(&place);
            if place.exists() {
                touch(&place)?;
                remove(file)?;
            } else {
                if !parent.is_dir() {
                    fs::create_dir_all(parent)?;
                    sync(parent.parent().unwrap_or(parent))?;
                }
                written.set_modified(SystemTime::now())?;
                fs::rename(file, &place)?;
                *reserved = reserved.saturating_sub(length);
                sync(parent)?;
            }
            Ok(())
        })
    }

    /// Content that is short enough to be in memory.
    pub(super) fn keep(&self, bytes: &[u8], digest: &Digest, repository: &Repository) -> Result<()> {
        let length = bytes.len() as u64;
        self.check_disk(length)?;
        self.reserve(length)?;
        let (file, mut reserved) = (self.incoming(), length);
        let kept = fs::write(&file, bytes)
            .map_err(Into::into)
            .and_then(|()| self.take_in(&file, length, digest, repository, &mut reserved));
        self.release(reserved);
        if kept.is_err() {
            remove(&file)?;
        }
        kept
    }

    /// Has a blob that another repository has.
    pub fn mount(&self, from: &Repository, to: &Repository, digest: &Digest) -> Result<()> {
        let _open = self.gate.read();
        if !self.has_blob(from, digest) {
            return refuse(Code::BlobUnknown, format!("{from} has no blob {digest}"));
        }
        self.ensure_repository(to)?;
        let place = self.blob_path(digest);
        touch(&place)?;
        let length = fs::metadata(&place)?.len();
        self.within_usage(to, digest, length, || Ok(()))
    }

    /// Does what brings a blob, and names it, if the repository's quota leaves room. Where there is a quota, one at a time: what two find free
    /// would be taken twice. The gate is held.
    fn within_usage(
        &self,
        repository: &Repository,
        digest: &Digest,
        length: u64,
        bring: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let _alone = self.bounds.repository.map(|_| self.naming.lock());
        self.check_usage(repository, digest, length)?;
        bring()?;
        self.mark(repository, digest, length)
    }

    fn check_usage(&self, repository: &Repository, digest: &Digest, length: u64) -> Result<()> {
        match self.bounds.repository {
            Some(most)
                if !self.has_blob(repository, digest) && self.usage_of(repository)?.saturating_add(length) > most =>
            {
                refuse(
                    Code::Denied,
                    format!("the quota of {most} bytes of this repository doesn't leave room for {length} more"),
                )
            }
            _ => Ok(()),
        }
    }

    /// The gate is held.
    fn mark(&self, repository: &Repository, digest: &Digest, length: u64) -> Result<()> {
        let link = self.link(repository, digest);
        if link.exists() {
            touch(&link)?;
            return Ok(());
        }
        File::create(&link)?;
        if let Some(known) = self.usage.lock().get_mut(repository) {
            *known += length;
        }
        Ok(sync(link.parent().unwrap_or(&link))?)
    }

    /// What a manifest counts on is there, of this length, and stays. The gate is held.
    pub(super) fn count_on_blob(&self, repository: &Repository, digest: &Digest, length: u64) -> Result<()> {
        let link = self.link(repository, digest);
        if !link.exists() {
            return Err(crate::error::Refused::not_there(&digest.to_string()));
        }
        touch(&link)?;
        let there = self.length(digest)?;
        if there != length {
            return refuse(
                Code::ManifestInvalid,
                format!("the manifest says that {digest} has {length} bytes, and it has {there}"),
            );
        }
        Ok(())
    }

    /// The repository has the blob no longer; the content goes when no other has it.
    pub fn delete_blob(&self, repository: &Repository, digest: &Digest) -> Result<()> {
        let _closed = self.gate.write();
        if self.record(repository, digest).exists() {
            return refuse(Code::Unsupported, "that is a manifest: it is deleted as one");
        }
        let link = self.link(repository, digest);
        if !remove(&link)? {
            return refuse(Code::BlobUnknown, format!("this repository has no blob {digest}"));
        }
        self.forget_usage(repository);
        Ok(sync(link.parent().unwrap_or(&link))?)
    }

    /// Some of the repositories that have a blob.
    pub fn who_has(&self, digest: &Digest) -> Result<Vec<Repository>> {
        let mut found = Vec::new();
        if !self.blob_path(digest).exists() {
            return Ok(found);
        }
        let mut looked = 0;
        self.each_repository(|repository| {
            looked += 1;
            if looked <= LOOKED_THROUGH && found.len() < TOLD && self.has_blob(&repository, digest) {
                found.push(repository);
            }
        })?;
        Ok(found)
    }

    pub(super) fn remove_content(&self, digest: &Digest) -> io::Result<u64> {
        let place = self.blob_path(digest);
        let length = fs::metadata(&place)?.len();
        fs::remove_file(&place)?;
        self.release(length);
        Ok(length)
    }
}
