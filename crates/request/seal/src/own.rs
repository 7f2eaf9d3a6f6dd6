//! The configuration of those who gave none: secrets are sealed by a key of our own, made at the first start.
//!
//! It is an `EncryptionConfiguration` like any other, [`FILE`] among the cluster's keys, readable by its owner only:
//! kube-apiserver takes it as it is. What it protects against: whoever gets hold of the store without it: its files, a snapshot,
//! a disk that is given away without this file. It does not protect against who can read the whole data directory; for that the
//! configuration has to be the user's own, and elsewhere.
//!
//! The provider is secretbox: its nonces may be chosen at random for as many writes as anybody makes, other than AES-GCM's.

use crate::config::{EncryptionConfiguration, Identity, Key, Keys, ProviderConfiguration, ResourceConfiguration, read};
use crate::provider::random;
use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// In the directory of the cluster's keys.
pub const FILE: &str = "encryption.yaml";

/// Keys, newest first. Never empty.
pub struct Own {
    path: PathBuf,
    keys: Vec<Key>,
}

impl Own {
    /// The file's, or none.
    pub fn open(directory: &Path) -> anyhow::Result<Option<Own>> {
        let path = directory.join(FILE);
        match fs::metadata(&path) {
            Ok(found) => ensure!(
                found.permissions().mode() & 0o077 == 0,
                "{} can be read by others than its owner: what it seals isn't secret. chmod 600 it, and put a new key in front (keelson secrets rotate)",
                path.display()
            ),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
        }
        let (config, _) = read(&path)?;
        let providers = config.resources.first().map(|r| r.providers.as_slice());
        let keys = providers.unwrap_or_default().iter().find_map(|p| p.secretbox.clone());
        let keys = keys.map(|keys| keys.keys).unwrap_or_default();
        ensure!(!keys.is_empty(), "{} has no keys of ours", path.display());
        Ok(Some(Own { path, keys }))
    }

    /// A file with a first key. Once it is lost, what it sealed can't be opened by another.
    pub fn make(directory: &Path) -> anyhow::Result<Own> {
        let mut own = Own {
            path: directory.join(FILE),
            keys: Vec::new(),
        };
        own.write(vec![key(1)?])?;
        Ok(own)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn names(&self) -> Vec<String> {
        self.keys.iter().map(|key| key.name.clone()).collect()
    }

    /// A new key in front; the others go on opening what they have sealed.
    pub fn rotate(&mut self) -> anyhow::Result<()> {
        let numbers = self
            .keys
            .iter()
            .filter_map(|k| k.name.strip_prefix("key")?.parse::<u64>().ok());
        let new = key(numbers.max().unwrap_or(0) + 1)?;
        self.write(std::iter::once(new).chain(self.keys.iter().cloned()).collect())
    }

    /// Whether there are keys older than this one.
    pub fn has_older(&self, than: &str) -> bool {
        self.up_to(than) < self.keys.len()
    }

    /// This one stays, and those that are newer: for when nothing in the store is sealed by another. Of a name that isn't
    /// known, all stay.
    pub fn forget_older(&mut self, than: &str) -> anyhow::Result<()> {
        self.write(self.keys[..self.up_to(than)].to_vec())
    }

    fn up_to(&self, name: &str) -> usize {
        let at = self.keys.iter().position(|key| key.name == name);
        at.map_or(self.keys.len(), |at| at + 1)
    }

    /// Secrets sealed by the newest key; `plain`: what is sealed is opened, and written as it is.
    pub fn config(&self, plain: bool) -> EncryptionConfiguration {
        configuration(&self.keys, plain)
    }

    /// Whole or not at all, and on the disk before anything is sealed by it.
    fn write(&mut self, keys: Vec<Key>) -> anyhow::Result<()> {
        let text = serde_saphyr::to_string(&configuration(&keys, false));
        let text = text.map_err(|_| anyhow::anyhow!("the configuration can't be written"))?;
        keelson_pki::files::write_secret(&self.path, text.as_bytes())
            .context("the key that seals secrets can't be kept")?;
        self.keys = keys;
        Ok(())
    }
}

fn configuration(keys: &[Key], plain: bool) -> EncryptionConfiguration {
    let keys = ProviderConfiguration {
        secretbox: Some(Keys { keys: keys.to_vec() }),
        ..ProviderConfiguration::default()
    };
    // What was stored before there was a key.
    let identity = ProviderConfiguration {
        identity: Some(Identity {}),
        ..ProviderConfiguration::default()
    };
    EncryptionConfiguration {
        api_version: "apiserver.config.k8s.io/v1".into(),
        kind: "EncryptionConfiguration".into(),
        resources: vec![ResourceConfiguration {
            resources: vec!["secrets".into()],
            providers: if plain {
                vec![identity, keys]
            } else {
                vec![keys, identity]
            },
        }],
    }
}

fn key(number: u64) -> anyhow::Result<Key> {
    let secret: [u8; 32] = random().map_err(|e| anyhow::anyhow!(e.why))?;
    Ok(Key {
        name: format!("key{number}"),
        secret: STANDARD.encode(secret),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_rotated() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Own::open(directory.path()).unwrap().is_none());
        let mut own = Own::make(directory.path()).unwrap();
        let file = own.path().to_path_buf();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        own.rotate().unwrap();
        own.rotate().unwrap();
        assert_eq!(
            Own::open(directory.path()).unwrap().unwrap().names(),
            ["key3", "key2", "key1"]
        );
        own.forget_older("key9").unwrap();
        assert!(own.has_older("key2") && !own.has_older("key1"));
        for (than, left) in [("key2", ["key3", "key2"].as_slice()), ("key3", &["key3"])] {
            own.forget_older(than).unwrap();
            assert_eq!(Own::open(directory.path()).unwrap().unwrap().names(), left);
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let refused = Own::open(directory.path()).err().unwrap().to_string();
        assert!(refused.contains("chmod 600"), "{refused}");
    }
}
