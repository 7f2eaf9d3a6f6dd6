//! Manifests, tags, and what manifests say of others.

use super::{Store, is_stale, remove, sync, touch};
use crate::document::Facts;
use crate::error::{Code, Refused, Result, refuse, refused};
use crate::names::{Digest, Reference, Repository, is_tag};
use std::collections::BinaryHeap;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// A manifest as it is given out.
#[derive(Debug)]
pub struct Manifest {
    pub digest: Digest,
    pub facts: Facts,
    pub file: File,
}

/// Some of a list, in order.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    pub names: Vec<String>,
    pub is_last: bool,
}

impl Store {
    pub(super) fn record(&self, repository: &Repository, digest: &Digest) -> PathBuf {
        self.directory(repository).join("manifests").join(digest.file())
    }

    fn tag(&self, repository: &Repository, tag: &str) -> PathBuf {
        self.directory(repository).join("tags").join(tag)
    }

    /// What is known of a manifest.
    pub(super) fn facts(&self, repository: &Repository, digest: &Digest) -> Result<Option<Facts>> {
        match fs::read(self.record(repository, digest)) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(facts) => Ok(Some(facts)),
                Err(error) => Err(io::Error::other(format!("the record of {repository}@{digest}: {error}")).into()),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Which manifest is meant.
    pub fn resolve(&self, repository: &Repository, reference: &Reference) -> Result<Digest> {
        let unknown = |what: &str| refused(Code::ManifestUnknown, format!("this repository has no manifest {what}"));
        let digest = match reference {
            Reference::Digest(digest) => digest.clone(),
            Reference::Tag(tag) => match fs::read_to_string(self.tag(repository, tag)) {
                Ok(text) => Digest::parse(text.trim()).ok_or_else(|| unknown(tag))?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(unknown(tag)),
                Err(error) => return Err(error.into()),
            },
        };
        match self.record(repository, &digest).exists() && self.blob_path(&digest).exists() {
            true => Ok(digest),
            false => Err(unknown(&digest.to_string())),
        }
    }

    pub fn manifest(&self, repository: &Repository, reference: &Reference) -> Result<Manifest> {
        let digest = self.resolve(repository, reference)?;
        let unknown = || {
            refused(
                Code::ManifestUnknown,
                format!("this repository has no manifest {digest}"),
            )
        };
        let _open = self.gate.read();
        let facts = self.facts(repository, &digest)?.ok_or_else(unknown)?;
        let record = self.record(repository, &digest);
        if is_stale(fs::metadata(&record)?.modified()?) {
            touch(&record)?;
        }
        match File::open(self.blob_path(&digest)) {
            Ok(file) => Ok(Manifest { digest, facts, file }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(unknown()),
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps a manifest, under tags if there are any. What it names has to be here, unless `sparse`.
    pub fn put(
        &self,
        repository: &Repository,
        digest: &Digest,
        bytes: &[u8],
        facts: &Facts,
        tags: &[&str],
        sparse: bool,
    ) -> Result<()> {
        if !sparse {
            let _open = self.gate.read();
            self.check_needed(repository, facts)?;
        }
        // The content comes first: a record never stands without it.
        self.keep(bytes, digest, repository)?;
        let _open = self.gate.read();
        self.count_on_blob(repository, digest, bytes.len() as u64)?;
        if !sparse {
            self.check_needed(repository, facts)?;
        }
        let record = serde_json::to_vec(facts).map_err(io::Error::from)?;
        self.write(&self.record(repository, digest), &record)?;
        if let Some(subject) = facts.subject.as_deref().and_then(Digest::parse) {
            let of = self.directory(repository).join("referrers").join(subject.file());
            if !of.is_dir() {
                fs::create_dir_all(&of)?;
                sync(of.parent().unwrap_or(&of))?;
            }
            File::create(of.join(digest.file()))?;
            sync(&of)?;
        }
        for tag in tags {
            self.write(&self.tag(repository, tag), digest.to_string().as_bytes())?;
        }
        Ok(())
    }

    fn check_needed(&self, repository: &Repository, facts: &Facts) -> Result<()> {
        for (text, length) in &facts.blobs {
            let digest = Digest::parse(text).ok_or_else(|| Refused::not_there(text))?;
            self.count_on_blob(repository, &digest, *length)?;
        }
        for (text, length) in &facts.manifests {
            let digest = Digest::parse(text).ok_or_else(|| Refused::not_there(text))?;
            // It stays as long as a new one would: the collection may have seen it before anything named it.
            match touch(&self.record(repository, &digest)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Refused::not_there(text)),
                touched => touched?,
            }
            self.count_on_blob(repository, &digest, *length)?;
        }
        Ok(())
    }

    /// Removes a tag; or a manifest, with the tags that stand for it. Nobody pushes it meanwhile: what is left of both would be half of it.
    pub fn delete(&self, repository: &Repository, reference: &Reference) -> Result<()> {
        let _closed = self.gate.write();
        self.delete_closed(repository, reference)
    }

    /// The gate is closed.
    pub(super) fn delete_closed(&self, repository: &Repository, reference: &Reference) -> Result<()> {
        let unknown = || refused(Code::ManifestUnknown, "this repository has no such manifest");
        let digest = match reference {
            Reference::Tag(tag) => {
                let place = self.tag(repository, tag);
                if !remove(&place)? {
                    return Err(unknown());
                }
                return Ok(sync(place.parent().unwrap_or(&place))?);
            }
            Reference::Digest(digest) => digest,
        };
        let Some(facts) = self.facts(repository, digest)? else {
            return Err(unknown());
        };
        let directory = self.directory(repository);
        for entry in fs::read_dir(directory.join("tags"))? {
            let path = entry?.path();
            if fs::read_to_string(&path).is_ok_and(|text| text.trim() == digest.to_string()) {
                remove(&path)?;
            }
        }
        if let Some(subject) = facts.subject.as_deref().and_then(Digest::parse) {
            let of = directory.join("referrers").join(subject.file());
            remove(&of.join(digest.file()))?;
            // One that is empty now goes; one that isn't stays.
            let _ = fs::remove_dir(&of);
        }
        remove(&self.record(repository, digest))?;
        // Its content too, unless somebody pushes it again: as a blob nobody asked for it.
        remove(&directory.join("blobs").join(digest.file()))?;
        self.forget_usage(repository);
        sync(&directory.join("tags"))?;
        Ok(sync(&directory.join("manifests"))?)
    }

    /// Tags after `last`.
    pub fn tags(&self, repository: &Repository, last: &str, most: usize) -> Result<Page> {
        if !self.has_repository(repository) {
            return refuse(Code::NameUnknown, format!("there is no repository {repository}"));
        }
        self.page(&self.directory(repository).join("tags"), last, most, |name| {
            is_tag(name).then(|| name.to_owned())
        })
    }

    /// Repositories after `last`.
    pub fn repositories(&self, last: &str, most: usize) -> Result<Page> {
        self.page(&self.root.join("repositories"), last, most, |name| {
            Repository::of_directory(name).map(|r| r.to_string())
        })
    }

    /// Manifests that say something of this one, after `last`.
    pub fn referrers(&self, repository: &Repository, of: &Digest, last: &str, most: usize) -> Result<Page> {
        let directory = self.directory(repository).join("referrers").join(of.file());
        match directory.is_dir() {
            true => self.page(&directory, last, most, |name| {
                Digest::of_file(name).map(|d| d.to_string())
            }),
            false => Ok(Page {
                names: Vec::new(),
                is_last: true,
            }),
        }
    }

    pub fn descriptor(&self, repository: &Repository, digest: &str) -> Result<Option<Facts>> {
        Digest::parse(digest).map_or(Ok(None), |d| self.facts(repository, &d))
    }

    /// The least names of a directory that are greater than `last`; only as many are in memory as are told.
    fn page(
        &self,
        directory: &std::path::Path,
        last: &str,
        most: usize,
        read: impl Fn(&str) -> Option<String>,
    ) -> Result<Page> {
        let mut least: BinaryHeap<String> = BinaryHeap::new();
        for entry in fs::read_dir(directory)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str().and_then(&read).filter(|n| n.as_str() > last) else {
                continue;
            };
            if least.len() > most && least.peek().is_some_and(|greatest| *greatest <= name) {
                continue;
            }
            least.push(name);
            if least.len() > most + 1 {
                least.pop();
            }
        }
        let mut names = least.into_sorted_vec();
        let is_last = names.len() <= most;
        names.truncate(most);
        Ok(Page { names, is_last })
    }

    /// For how long a tag has stood for what it does, or since when that was confirmed.
    pub fn tag_age(&self, repository: &Repository, tag: &str) -> Option<Duration> {
        let modified = fs::metadata(self.tag(repository, tag))
            .and_then(|m| m.modified())
            .ok()?;
        Some(SystemTime::now().duration_since(modified).unwrap_or_default())
    }

    pub fn confirm_tag(&self, repository: &Repository, tag: &str) -> Result<()> {
        Ok(touch(&self.tag(repository, tag))?)
    }
}
