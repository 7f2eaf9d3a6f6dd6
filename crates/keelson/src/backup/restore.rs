//! A whole backup into a machine that has no cluster: keys and volumes first, the store last, by one rename. Until then there is no cluster,
//! and the same command goes on; a key or a volume that is there already must be the same.

use super::{Turn, pool, prepare, workshop};
use crate::lock::Lock;
use crate::store::snapshot::command as snapshot;
use anyhow::{Context, bail, ensure};
use keelson_backup::manifest::{self, Backup, KEY_MOST};
use keelson_backup::repository::{Repository, SIZE};
use keelson_local::pool::picture::Incoming;
use keelson_local::pool::record::{self, Volume};
use keelson_local::pool::{Fault, Pool};
use keelson_store::snapshot::Sum;
use std::fs::{OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub async fn whole(repository: &Repository, backup: &Backup, data_dir: &Path) -> anyhow::Result<()> {
    let lock = Lock::take(data_dir)?;
    ensure!(
        !data_dir.join("store").exists() && !data_dir.join("datastore.json").exists(),
        "{} has a cluster already: a whole backup goes into an empty directory (--data-dir)",
        data_dir.display()
    );
    // What is brought into the workshop goes with it, however this ends.
    let _turn = Turn::take(data_dir)?;
    let root = pool(data_dir);
    if root.exists() {
        // By this command, when it was cut short: what is half there goes.
        Pool::open(&root)?;
    }
    room(backup, data_dir)?;
    keys(repository, backup, data_dir).await?;
    for volume in &backup.manifest.volumes {
        let record = record_of(volume)?;
        match Incoming::begin(&root, record.clone()) {
            Ok((incoming, file)) => {
                repository.fill(&volume.data, &incoming.file(), file).await?;
                tokio::task::spawn_blocking(move || incoming.place()).await??;
            }
            // What is in place is whole.
            Err(Fault::Exists(_)) => same(&root, &record)?,
            Err(other) => return Err(other.into()),
        }
    }
    let file = store(repository, backup, data_dir).await?;
    // It takes its own.
    drop(lock);
    let (at, from) = (data_dir.to_path_buf(), file);
    tokio::task::spawn_blocking(move || snapshot::restore(&at, &from, false, Sum::Wanted)).await?
}

/// What the driver knew of a volume.
pub fn record_of(volume: &manifest::Volume) -> anyhow::Result<Volume> {
    let record = serde_json::from_value(volume.record.clone());
    record.with_context(|| format!("what the backup says of volume {}", volume.id))
}

/// The cluster's keys, below a data directory.
pub async fn keys(repository: &Repository, backup: &Backup, data_dir: &Path) -> anyhow::Result<()> {
    for key in &backup.manifest.pki {
        let path = key
            .relative()
            .with_context(|| format!("the backup has a key at {:?}", key.path))?;
        let content = repository.read(&key.content, KEY_MOST).await?;
        put(&data_dir.join("pki"), &path, key.mode, &content)?;
    }
    Ok(())
}

/// The store's snapshot, as a file below a data directory.
pub async fn store(repository: &Repository, backup: &Backup, data_dir: &Path) -> anyhow::Result<PathBuf> {
    let workshop = workshop(data_dir);
    prepare(&workshop)?;
    let file = workshop.join("store.db");
    let _ = std::fs::remove_file(&file);
    let fresh = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file);
    let fresh = fresh.with_context(|| format!("cannot write {}", file.display()))?;
    repository.fill(&backup.manifest.store, &file, fresh).await?;
    Ok(file)
}

fn same(root: &Path, wanted: &Volume) -> anyhow::Result<()> {
    let file = root.join("volumes").join(&wanted.id).join("volume.json");
    let found: Option<Volume> = record::read(&file).with_context(|| format!("reading {}", file.display()))?;
    ensure!(
        found.as_ref() == Some(wanted),
        "volume {} is there, and is another: move {} away",
        wanted.id,
        root.display()
    );
    Ok(())
}

/// What a volume takes: the room that was reserved for it, or what is in it.
pub fn takes(volume: &manifest::Volume) -> anyhow::Result<u64> {
    let record = record_of(volume)?;
    let filled = (volume.data.ids().count() as u64).saturating_mul(SIZE as u64);
    Ok(if record.thin { filled } else { record.bytes.max(filled) })
}

/// Volumes that are in place have taken theirs.
fn room(backup: &Backup, data_dir: &Path) -> anyhow::Result<()> {
    let manifest = &backup.manifest;
    let mut volumes = 0u64;
    for volume in &manifest.volumes {
        if !pool(data_dir).join("volumes").join(&volume.id).exists() {
            volumes = volumes.saturating_add(takes(volume)?);
        }
    }
    // The store: the file, and what is made of it.
    let wanted = volumes.saturating_add(manifest.store.bytes.saturating_mul(3));
    let free = crate::upgrade::free(data_dir)?;
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    ensure!(
        wanted <= free,
        "the backup needs {} MiB, and {} are free where {} is",
        mib(wanted),
        mib(free),
        data_dir.display()
    );
    Ok(())
}

/// A key that is there must be this one: another cluster's isn't written over.
fn put(pki: &Path, below: &Path, mode: u32, content: &[u8]) -> anyhow::Result<()> {
    let path = pki.join(below);
    let dir = path.parent().unwrap_or(pki);
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("cannot create {}", dir.display()))?;
    match std::fs::read(&path) {
        Ok(found) if found == content => return Ok(()),
        Ok(_) => bail!(
            "{} is there, and isn't the backup's: move {} away",
            path.display(),
            pki.display()
        ),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
    let beside = dir.join(format!(".restored-{}", std::process::id()));
    let written = || -> std::io::Result<()> {
        let _ = std::fs::remove_file(&beside);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(mode & 0o755))?;
        file.sync_all()?;
        std::fs::rename(&beside, &path)?;
        std::fs::File::open(dir)?.sync_all()
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_takes_room_as_it_is_filled_needs_what_is_in_it() {
        let takes = |thin: bool, pieces: &str| {
            let volume = format!(
                r#"{{"id": "vol-1", "at": "2026-03-01T12:00:00Z", "data": {{"bytes": 1073741824, "pieces": [{pieces}]}},
                    "record": {{"id": "vol-1", "name": "a", "bytes": 1073741824, "block": false, "thin": {thin}, "origin": null}}}}"#
            );
            takes(&serde_json::from_str(&volume).unwrap()).unwrap()
        };
        let piece = format!("\"{}\"", "ab".repeat(32));
        assert_eq!(takes(false, "\"0x1024\""), 1 << 30);
        assert_eq!(takes(true, "\"0x1024\""), 0);
        assert_eq!(takes(true, &format!("{piece}, \"0x1022\", {piece}")), 2 << 20);
    }

    #[test]
    fn another_clusters_keys_arent_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        put(&pki, Path::new("etcd/ca.key"), 0o600, b"key").unwrap();
        put(&pki, Path::new("etcd/ca.key"), 0o600, b"key").unwrap();
        let refused = put(&pki, Path::new("etcd/ca.key"), 0o600, b"other")
            .unwrap_err()
            .to_string();
        assert!(refused.contains("isn't the backup's"), "{refused}");
        let path = pki.join("etcd/ca.key");
        assert_eq!(std::fs::read(&path).unwrap(), b"key");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            std::fs::read_dir(pki.join("etcd")).unwrap().count(),
            1,
            "nothing is left beside"
        );
    }
}
