//! A directory. Files appear by renaming, for their owner alone.

use super::{Object, Place, Result, Trouble, named};
use async_trait::async_trait;
use bytes::Bytes;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What isn't whole yet ends so.
const PART: &str = ".part";

#[derive(Clone)]
pub struct Directory {
    root: PathBuf,
    told: String,
}

impl Directory {
    pub fn new(root: PathBuf) -> Directory {
        let told = root.display().to_string();
        Directory { root, told }
    }

    fn failed(&self, name: &str, error: &io::Error) -> Trouble {
        let (place, why) = (self.told.clone(), format!("{name}: {error}"));
        match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Trouble::Denied { place, why },
            _ => Trouble::Failed { place, why },
        }
    }

    /// Somewhere else, for it blocks.
    async fn work<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let root = self.root.clone();
        let done = tokio::task::spawn_blocking(move || work(&root)).await;
        let done = done.unwrap_or_else(|e| Err(io::Error::other(e)));
        done.map_err(|e| self.failed(name, &e))
    }
}

/// A file beside, filled and given its name.
fn place(root: &Path, name: &str, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let path = root.join(name);
    let dir = path.parent().unwrap_or(root);
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // Processes of other machines may have our number.
    let beside = dir.join(format!(".{}{PART}", uuid::Uuid::new_v4()));
    let written = || -> io::Result<()> {
        let mut file = fresh(&beside)?;
        fill(&mut file)?;
        file.sync_all()?;
        std::fs::rename(&beside, &path)?;
        File::open(dir)?.sync_all()
    };
    written().inspect_err(|_| drop(std::fs::remove_file(&beside)))
}

pub(super) fn fresh(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// What is left of so many bytes after some came; `most` is told where that is too much.
pub(super) fn take(left: u64, came: u64, most: u64) -> io::Result<u64> {
    let too_many = || io::Error::new(ErrorKind::InvalidData, format!("more than {most} bytes"));
    left.checked_sub(came).ok_or_else(too_many)
}

fn missing<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        other => other.map(Some),
    }
}

#[async_trait]
impl Place for Directory {
    fn told(&self) -> &str {
        &self.told
    }

    async fn put(&self, name: &str, bytes: Bytes) -> Result<()> {
        named(name)?;
        let at = name.to_string();
        self.work(name, move |root| place(root, &at, |file| file.write_all(&bytes)))
            .await
    }

    async fn put_file(&self, name: &str, from: &Path) -> Result<()> {
        named(name)?;
        let (at, from) = (name.to_string(), from.to_path_buf());
        self.work(name, move |root| {
            let mut from = File::open(from)?;
            place(root, &at, |file| io::copy(&mut from, file).map(drop))
        })
        .await
    }

    async fn get(&self, name: &str, most: u64) -> Result<Option<Bytes>> {
        named(name)?;
        let at = name.to_string();
        self.work(name, move |root| {
            let Some(file) = missing(File::open(root.join(at)))? else {
                return Ok(None);
            };
            let mut bytes = Vec::new();
            file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
            take(most, bytes.len() as u64, most)?;
            Ok(Some(bytes.into()))
        })
        .await
    }

    async fn get_file(&self, name: &str, to: &Path, most: u64) -> Result<bool> {
        named(name)?;
        let (at, to) = (name.to_string(), to.to_path_buf());
        self.work(name, move |root| {
            let Some(from) = missing(File::open(root.join(at)))? else {
                return Ok(false);
            };
            let mut file = fresh(&to)?;
            let copied = io::copy(&mut from.take(most.saturating_add(1)), &mut file)
                .and_then(|long| take(most, long, most))
                .and_then(|_| file.sync_all());
            let copied = copied.inspect_err(|_| drop(std::fs::remove_file(&to)));
            copied.map(|()| true)
        })
        .await
    }

    async fn list(&self, below: &str) -> Result<Vec<Object>> {
        let prefix = below.to_string();
        let mut found = self
            .work(below, move |root| {
                let mut found = Vec::new();
                walk(root, prefix.trim_end_matches('/'), 0, true, &mut found)?;
                Ok(found)
            })
            .await?;
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    async fn remove(&self, name: &str) -> Result<()> {
        named(name)?;
        let at = name.to_string();
        self.work(name, move |root| missing(std::fs::remove_file(root.join(at))).map(drop))
            .await
    }

    async fn tidy(&self, below: &str) -> Result<()> {
        let prefix = below.to_string();
        self.work(below, move |root| {
            let mut parts = Vec::new();
            walk(root, prefix.trim_end_matches('/'), 0, false, &mut parts)?;
            for part in parts {
                missing(std::fs::remove_file(root.join(part.name)))?;
            }
            Ok(())
        })
        .await
    }
}

/// Whether [`place`] names so what isn't whole: nothing else is taken for that, wherever a directory may lead.
fn is_begun(name: &str) -> bool {
    let number = name.strip_prefix('.').and_then(|name| name.strip_suffix(PART));
    number.is_some_and(|number| uuid::Uuid::try_parse(number).is_ok())
}

/// What is whole, or what isn't. Names are a few segments long; links, and what can't be of ours, are passed over.
fn walk(root: &Path, below: &str, depth: usize, whole: bool, found: &mut Vec<Object>) -> io::Result<()> {
    let Some(entries) = missing(std::fs::read_dir(root.join(below)))? else {
        return Ok(());
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            continue;
        };
        let wanted = match whole {
            true => !name.ends_with(PART),
            false => is_begun(name),
        };
        let name = match below {
            "" => name.to_string(),
            below => format!("{below}/{name}"),
        };
        let Some(metadata) = missing(entry.path().symlink_metadata())? else {
            continue;
        };
        if metadata.is_dir() && depth < 8 {
            walk(root, &name, depth + 1, whole, found)?;
        } else if metadata.is_file() && wanted && super::is_name(&name) {
            let bytes = metadata.len();
            found.push(Object { name, bytes });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_isnt_of_ours_is_passed_over_and_what_is_there_isnt_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("place");
        let place = Directory::new(root.clone());
        assert!(place.list("a/").await.unwrap().is_empty());
        place.put("a/b", Bytes::from_static(b"content")).await.unwrap();
        for other in ["b (copy)", "\u{1b}[31m", ".1.part"] {
            std::fs::write(root.join("a").join(other), "other").unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", root.join("a/c")).unwrap();
        let (name, bytes) = ("a/b".to_string(), 7);
        assert_eq!(place.list("a/").await.unwrap(), [Object { name, bytes }]);
        let begun = format!(".{}{PART}", uuid::Uuid::new_v4());
        std::fs::write(root.join("a").join(&begun), "half").unwrap();
        place.tidy("a/").await.unwrap();
        let is_there = |name: &str| root.join("a").join(name).exists();
        assert!(!is_there(&begun) && is_there("b") && is_there(".1.part"));

        let to = dir.path().join("to");
        std::fs::write(&to, "mine").unwrap();
        assert!(place.get_file("a/b", &to, 7).await.is_err());
        assert_eq!(std::fs::read(&to).unwrap(), b"mine");
        std::fs::remove_file(&to).unwrap();
        assert!(place.get_file("a/b", &to, 6).await.is_err() && !to.exists());
        assert!(place.get_file("a/b", &to, 7).await.unwrap());
        assert_eq!(std::fs::read(&to).unwrap(), b"content");
        place.remove("a/b").await.unwrap();
        assert_eq!(place.get("a/b", 100).await.unwrap(), None);
    }
}
