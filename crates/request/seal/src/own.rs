//! The configuration of those who gave none: secrets are sealed by a key of our own, made at the first start.
//!
//! It is an `EncryptionConfiguration` like any other, `encryption/config.yaml` in the data directory, readable by its owner only:
//! kube-apiserver takes it as it is. What it protects against: whoever gets hold of the store without it: its files, a snapshot,
//! a disk that is given away without this file. It does not protect against who can read the whole data directory; for that the
//! configuration has to be the user's own, and elsewhere.
//!
//! The provider is secretbox: its nonces may be chosen at random for as many writes as anybody makes, other than AES-GCM's.
//! [`rotate`] puts a new key in front. The key before it stays, for revisions that aren't compacted yet; older ones go,
//! which is refused until a pass has written anew whatever they sealed ([`crate::reload::Report`]).

use crate::config::{EncryptionConfiguration, Identity, Key, Keys, ProviderConfiguration, ResourceConfiguration, read};
use crate::provider::random;
use crate::reload::{Report, report_path};
use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The newest, and the one before.
const KEPT: usize = 2;

pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("encryption/config.yaml")
}

/// The file, made if it isn't there: once it is lost, what it sealed can't be opened by the new one.
pub fn ensure(data_dir: &Path) -> anyhow::Result<PathBuf> {
    let path = path(data_dir);
    match fs::metadata(&path) {
        Ok(found) => {
            ensure!(
                found.permissions().mode() & 0o077 == 0,
                "{} can be read by others than its owner: what it seals isn't secret. chmod 600 it, and put a new key in front",
                path.display()
            );
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => write(&path, vec![key(1)?])?,
        Err(e) => return Err(e).with_context(|| path.display().to_string()),
    }
    Ok(path)
}

/// Puts a new key in front; tells its name.
pub fn rotate(data_dir: &Path) -> anyhow::Result<String> {
    let path = path(data_dir);
    let (config, hash) = read(&path)?;
    let providers = config
        .resources
        .first()
        .map(|r| r.providers.as_slice())
        .unwrap_or_default();
    let keys = providers.iter().find_map(|p| p.secretbox.as_ref());
    let keys = &keys
        .with_context(|| format!("{} has no keys of ours", path.display()))?
        .keys;
    if keys.len() >= KEPT {
        let passed = fs::read_to_string(report_path(&path)).ok();
        let passed = passed.and_then(|text| serde_saphyr::from_str::<Report>(&text).ok());
        ensure!(
            passed.is_some_and(|report| report.hash == hash),
            "what the oldest key of {} sealed isn't written anew yet: it can't be given up",
            path.display()
        );
    }
    let newest = keys
        .iter()
        .filter_map(|k| k.name.strip_prefix("key")?.parse::<u64>().ok())
        .max();
    let new = key(newest.unwrap_or(0) + 1)?;
    let name = new.name.clone();
    let keys = std::iter::once(new).chain(keys.iter().cloned()).take(KEPT);
    write(&path, keys.collect())?;
    Ok(name)
}

fn key(number: u64) -> anyhow::Result<Key> {
    let secret: [u8; 32] = random().map_err(anyhow::Error::msg)?;
    Ok(Key {
        name: format!("key{number}"),
        secret: STANDARD.encode(secret),
    })
}

/// Whole or not at all, and on the disk before anything is sealed by it.
fn write(path: &Path, keys: Vec<Key>) -> anyhow::Result<()> {
    let providers = vec![
        ProviderConfiguration {
            secretbox: Some(Keys { keys }),
            ..ProviderConfiguration::default()
        },
        // What was stored before there was a key.
        ProviderConfiguration {
            identity: Some(Identity {}),
            ..ProviderConfiguration::default()
        },
    ];
    let config = EncryptionConfiguration {
        api_version: "apiserver.config.k8s.io/v1".into(),
        kind: "EncryptionConfiguration".into(),
        resources: vec![ResourceConfiguration {
            resources: vec!["secrets".into()],
            providers,
        }],
    };
    let text = serde_saphyr::to_string(&config).map_err(|_| anyhow::anyhow!("the configuration can't be written"))?;
    let directory = path.parent().context("a file stands in a directory")?;
    let failed = || format!("the key that seals secrets can't be kept in {}", path.display());
    let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(directory);
    made.with_context(failed)?;
    let fresh = path.with_extension("fresh");
    match fs::remove_file(&fresh) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).with_context(failed),
        _ => {}
    }
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh);
    let mut file = opened.with_context(failed)?;
    file.write_all(text.as_bytes()).with_context(failed)?;
    file.sync_all().with_context(failed)?;
    fs::rename(&fresh, path).with_context(failed)?;
    File::open(directory).and_then(|d| d.sync_all()).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &Path) -> Vec<String> {
        let (config, _) = read(path).unwrap();
        let keys = config.resources[0].providers[0].secretbox.clone().unwrap();
        keys.keys.into_iter().map(|k| k.name).collect()
    }

    #[test]
    fn a_key_is_made_once_and_rotated() {
        let directory = tempfile::tempdir().unwrap();
        let file = ensure(directory.path()).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let first = fs::read(&file).unwrap();
        ensure(directory.path()).unwrap();
        assert_eq!(fs::read(&file).unwrap(), first);
        assert_eq!(rotate(directory.path()).unwrap(), "key2");
        assert_eq!(names(&file), ["key2", "key1"]);
        let early = rotate(directory.path()).unwrap_err().to_string();
        assert!(early.contains("isn't written anew yet"), "{early}");
        let report = Report {
            hash: read(&file).unwrap().1,
            writes_by: "secretbox/key2".into(),
            current: 1,
            rewritten: 1,
            unreadable: 0,
        };
        fs::write(report_path(&file), serde_saphyr::to_string(&report).unwrap()).unwrap();
        assert_eq!(rotate(directory.path()).unwrap(), "key3");
        assert!(rotate(directory.path()).is_err(), "the report is of the file before");
        assert_eq!(names(&file), ["key3", "key2"]);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(ensure(directory.path()).unwrap_err().to_string().contains("chmod 600"));
    }
}
