//! The collection of what nothing names any more, beside everything else.
//!
//! First it looks, with nothing held; then it removes file by file, each with the gate closed, and leaves what was made or
//! touched since it began to look, or within the time of grace before. A push touches what it counts on with the gate held
//! open: either that is seen here, or the push finds the file gone and says so.

use super::{Store, remove, sync};
use crate::error::Result;
use crate::names::{Digest, Reference, Repository};
use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

#[derive(Clone, Copy, Debug)]
pub struct Collect {
    /// What was made or asked for within this stays, named or not: for as long as a push may take.
    pub grace: Duration,
    /// Manifests without a tag that nobody asked for within this go. None: they stay.
    pub untagged: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub manifests: u64,
    pub blobs: u64,
    pub bytes: u64,
}

impl Store {
    /// Removes what nothing names. `keep`: for how long a repository's manifests stay that nobody asks for, if not for ever.
    pub fn collect(&self, how: Collect, keep: impl Fn(&Repository) -> Option<Duration>) -> Result<Collected> {
        let mut done = Collected::default();
        let began = SystemTime::now();
        let before = began.checked_sub(how.grace).unwrap_or(SystemTime::UNIX_EPOCH);
        // What was touched before has been written down by the time this gets the gate: it is seen as named.
        drop(self.gate.write());
        let mut all = Vec::new();
        self.each_repository(|repository| all.push(repository))?;
        let mut named: HashSet<u64> = HashSet::new();
        for repository in &all {
            let looked = self
                .end_manifests(repository, how.untagged, keep(repository), before)
                .and_then(|ended| {
                    done.manifests += ended;
                    self.unmark(repository, before)
                });
            // What can't be read of one keeps all that it names, and nothing of the others.
            if let Err(refused) = looked {
                tracing::warn!(%repository, "nothing is collected of it: {}", refused.message);
            }
            self.each_link(repository, |digest, _| {
                named.insert(digest.short());
            })?;
            if let Err(refused) = self.end_repository(repository, before) {
                tracing::warn!(%repository, "it isn't removed: {}", refused.message);
            }
        }
        let mut doomed = Vec::new();
        self.each_blob(|digest, meta| {
            let old = meta.modified().is_ok_and(|at| at < before);
            if old && !named.contains(&digest.short()) {
                doomed.push(digest);
            }
        })?;
        for digest in doomed {
            let _closed = self.gate.write();
            // Whoever has come to count on it has touched it.
            if is_older(&self.blob_path(&digest), before)? {
                done.bytes += self.remove_content(&digest)?;
                done.blobs += 1;
            }
        }
        Ok(done)
    }

    fn each_link(&self, repository: &Repository, mut each: impl FnMut(Digest, fs::Metadata)) -> io::Result<()> {
        for entry in fs::read_dir(self.directory(repository).join("blobs"))? {
            let entry = entry?;
            // What has another name is no mark of ours.
            let Some(digest) = entry.file_name().to_str().and_then(Digest::of_file) else {
                continue;
            };
            match entry.metadata() {
                Ok(meta) => each(digest, meta),
                // Deleted meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn each_manifest(&self, repository: &Repository, mut each: impl FnMut(Digest)) -> io::Result<()> {
        for entry in fs::read_dir(self.directory(repository).join("manifests"))? {
            if let Some(digest) = entry?.file_name().to_str().and_then(Digest::of_file) {
                each(digest);
            }
        }
        Ok(())
    }

    /// Manifests that are kept for a time only, and those that nothing stands for.
    fn end_manifests(
        &self,
        repository: &Repository,
        untagged: Option<Duration>,
        keep: Option<Duration>,
        before: SystemTime,
    ) -> Result<u64> {
        if untagged.is_none() && keep.is_none() {
            return Ok(0);
        }
        let mut stands: HashSet<u64> = HashSet::new();
        for entry in fs::read_dir(self.directory(repository).join("tags"))? {
            match fs::read_to_string(entry?.path()) {
                Ok(text) => stands.extend(Digest::parse(text.trim()).map(|d| d.short())),
                // Deleted meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut all = Vec::new();
        self.each_manifest(repository, |digest| all.push(digest))?;
        for digest in &all {
            let Some(facts) = self.facts(repository, digest)? else {
                continue;
            };
            // What an index names, and what says something of another that is here, stands by that.
            stands.extend(
                facts
                    .manifests
                    .iter()
                    .filter_map(|(d, _)| Some(Digest::parse(d)?.short())),
            );
            let subject = facts.subject.as_deref().and_then(Digest::parse);
            if subject.is_some_and(|of| self.record(repository, &of).exists()) {
                stands.insert(digest.short());
            }
        }
        let mut ended = 0;
        for digest in all {
            let time = match (keep, untagged) {
                (Some(keep), _) => keep,
                (None, Some(untagged)) if !stands.contains(&digest.short()) => untagged,
                _ => continue,
            };
            let until = SystemTime::now()
                .checked_sub(time)
                .unwrap_or(SystemTime::UNIX_EPOCH)
                .min(before);
            let _closed = self.gate.write();
            if is_older(&self.record(repository, &digest), until)? {
                self.delete_closed(repository, &Reference::Digest(digest))?;
                ended += 1;
            }
        }
        Ok(ended)
    }

    /// Takes away marks of blobs that no manifest of the repository names.
    fn unmark(&self, repository: &Repository, before: SystemTime) -> Result<()> {
        let mut needed: HashSet<u64> = HashSet::new();
        let mut all = Vec::new();
        self.each_manifest(repository, |digest| all.push(digest))?;
        for digest in all {
            needed.insert(digest.short());
            if let Some(facts) = self.facts(repository, &digest)? {
                needed.extend(facts.needed().map(|d| d.short()));
            }
        }
        let mut doomed = Vec::new();
        self.each_link(repository, |digest, meta| {
            if meta.modified().is_ok_and(|at| at < before) && !needed.contains(&digest.short()) {
                doomed.push(digest);
            }
        })?;
        for digest in &doomed {
            let link = self.directory(repository).join("blobs").join(digest.file());
            let _closed = self.gate.write();
            if is_older(&link, before)? {
                remove(&link)?;
            }
        }
        if !doomed.is_empty() {
            self.forget_usage(repository);
            // Before any content of theirs goes.
            sync(&self.directory(repository).join("blobs"))?;
        }
        Ok(())
    }

    /// Removes a repository that nothing is in: there may be so many of them, and no more.
    fn end_repository(&self, repository: &Repository, before: SystemTime) -> Result<()> {
        let directory = self.directory(repository);
        let _closed = self.gate.write();
        for part in ["blobs", "manifests", "tags", "referrers"] {
            let part = directory.join(part);
            if fs::read_dir(&part)?.next().is_some() || !is_older(&part, before)? {
                return Ok(());
            }
        }
        let gone = self.incoming();
        fs::rename(&directory, &gone)?;
        self.forget_usage(repository);
        Ok(fs::remove_dir_all(&gone)?)
    }
}

/// A file that is gone isn't older.
fn is_older(path: &Path, than: SystemTime) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(meta) => Ok(meta.modified()? < than),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
