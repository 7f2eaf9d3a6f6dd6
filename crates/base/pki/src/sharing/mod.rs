//! What all servers of a cluster have to have alike, as items: each some files of `<data-dir>/pki` that belong together.
//!
//! An item is in the store sealed by the servers' token ([`Sealer`]). Knows no store: who has one asks which items there are,
//! what this machine has of each, and gives it what the others have.

mod envelope;
mod token;

pub use envelope::{Sealer, WrongToken};
pub use token::ServerToken;

use crate::files;
use crate::jwt::turn;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where a server keeps the servers' token.
pub const TOKEN_FILE: &str = "server-token";

/// Files that are shared as one.
#[derive(Debug, PartialEq, Eq)]
pub struct Item {
    pub name: &'static str,
    /// Below `pki`; with whether it is a secret. The secret ones first: a public half alone is what is refused at a start.
    files: &'static [(&'static str, bool)],
    /// Those that needn't be there, of what is replaced in steps; written last.
    also: &'static [(&'static str, bool)],
}

/// Everything that is shared, in the order in which it is settled.
pub const ITEMS: &[Item] = &[
    Item {
        name: "ca",
        files: &[("ca.key", true), ("ca.crt", false)],
        also: &[],
    },
    Item {
        name: "front-proxy-ca",
        files: &[("front-proxy-ca.key", true), ("front-proxy-ca.crt", false)],
        also: &[],
    },
    Item {
        name: "service-accounts",
        files: &[(turn::KEY, true), (turn::PUBLIC, false)],
        also: &[(turn::NEXT, true), (turn::TURN, false)],
    },
];

/// The authority of the etcd that Keelson runs.
pub const ETCD_CA: Item = Item {
    name: "etcd-ca",
    files: &[("etcd/ca.key", true), ("etcd/ca.crt", false)],
    also: &[],
};

impl Item {
    /// What this machine has of it; `None` if anything is missing.
    pub fn read(&self, pki: &Path) -> Result<Option<Vec<u8>>> {
        let mut found = BTreeMap::new();
        for (file, _) in self.files {
            match files::read(&pki.join(file))? {
                Some(text) => found.insert(*file, text),
                None => return Ok(None),
            };
        }
        for (file, _) in self.also {
            if let Some(text) = files::read(&pki.join(file))? {
                found.insert(*file, text);
            }
        }
        Ok(Some(serde_json::to_vec(&found)?))
    }

    /// Puts what another server has in its place.
    pub fn write(&self, pki: &Path, content: &[u8]) -> Result<()> {
        let mut found: BTreeMap<String, String> =
            serde_json::from_slice(content).with_context(|| format!("the servers' {}", self.name))?;
        let named = self
            .files
            .iter()
            .map(|(file, secret)| Some((file, secret, found.remove(*file)?)));
        let named: Option<Vec<_>> = named.collect();
        let named = named.with_context(|| format!("the servers' {} is not complete", self.name))?;
        let also: Vec<_> = self
            .also
            .iter()
            .map(|(file, secret)| (file, secret, found.remove(*file)))
            .collect();
        ensure!(
            found.is_empty(),
            "the servers' {} has files that aren't known here",
            self.name
        );
        let named = named.into_iter().map(|(file, secret, text)| (file, secret, Some(text)));
        for (file, secret, text) in named.chain(also) {
            let path = pki.join(file);
            match (text, secret) {
                (Some(text), true) => files::write_secret(&path, text.as_bytes())?,
                (Some(text), false) => files::write_public(&path, text.as_bytes())?,
                (None, _) if path.exists() => {
                    std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
                }
                (None, _) => {}
            }
        }
        Ok(())
    }

    /// Whether the one content is what came of the other by more steps of a replacement.
    pub fn follows(&self, one: &[u8], other: &[u8]) -> Result<bool> {
        if self.also.is_empty() {
            return Ok(false);
        }
        let number = |content: &[u8]| {
            let files: BTreeMap<String, String> = serde_json::from_slice(content)?;
            turn::number(files.get(turn::TURN).map(String::as_str))
        };
        Ok(number(one)? > number(other)?)
    }

    /// Where it is on this machine.
    pub fn paths(&self, pki: &Path) -> Vec<PathBuf> {
        self.files.iter().map(|(file, _)| pki.join(file)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_item_comes_to_another_machine_as_it_was() {
        let directory = std::env::temp_dir().join(format!("keelson-sharing-{}", std::process::id()));
        let (one, other) = (directory.join("one"), directory.join("other"));
        crate::Pki::open(&one).unwrap();
        for item in ITEMS {
            assert!(item.read(&other.join("pki")).unwrap().is_none());
            let content = item.read(&one.join("pki")).unwrap().unwrap();
            item.write(&other.join("pki"), &content).unwrap();
            assert_eq!(item.read(&other.join("pki")).unwrap().unwrap(), content);
            for path in item.paths(&other.join("pki")) {
                let secret = path.extension().is_some_and(|e| e == "key");
                let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
                assert_eq!(mode, if secret { 0o600 } else { 0o644 }, "{}", path.display());
            }
        }
        let [first, second] = [&one, &other].map(|d| crate::Pki::open(d).unwrap());
        assert_eq!(first.ca.cert_pem(), second.ca.cert_pem());
        assert_eq!(first.service_account.jwks(), second.service_account.jwks());
        // Nothing is written that the item doesn't have.
        for bad in [
            r#"{"ca.key": "x"}"#,
            r#"{"ca.key": "x", "ca.crt": "x", "../a": "x"}"#,
            "[]",
        ] {
            assert!(
                ITEMS[0].write(&directory.join("third"), bad.as_bytes()).is_err(),
                "{bad}"
            );
        }
        assert!(!directory.join("third").exists() && !directory.join("a").exists());
        std::fs::remove_dir_all(directory).unwrap();
    }
}
