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
use crate::succession::{self, Files};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where a server keeps the servers' token.
pub const TOKEN_FILE: &str = "server-token";

/// Held while items of a directory are written, completed or read as a whole.
static AT_FILES: Mutex<()> = Mutex::new(());

/// Nobody else of this process writes items for as long as this is held. That no other process does is its data directory's lock.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    AT_FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Files that are shared as one.
#[derive(Debug, PartialEq, Eq)]
pub struct Item {
    pub name: &'static str,
    /// Below `pki`; with whether it is a secret. The secret ones first: a public half alone is what is refused at a start.
    files: &'static [(&'static str, bool)],
    /// Those that needn't be there, of what is replaced in steps; written last.
    also: &'static [(&'static str, bool)],
    /// The one of them that counts the steps.
    steps: &'static str,
}

/// Everything that is shared, in the order in which it is settled.
pub const ITEMS: &[Item] = &[
    Item {
        name: "ca",
        files: &[("ca.key", true), ("ca.crt", false)],
        also: &[("ca-next.key", true), ("ca-cross.crt", false), ("ca.turn", false)],
        steps: "ca.turn",
    },
    Item {
        name: "front-proxy-ca",
        files: &[("front-proxy-ca.key", true), ("front-proxy-ca.crt", false)],
        also: &[
            ("front-proxy-ca-next.key", true),
            ("front-proxy-ca-cross.crt", false),
            ("front-proxy-ca.turn", false),
        ],
        steps: "front-proxy-ca.turn",
    },
    Item {
        name: "service-accounts",
        files: &[(turn::KEY, true), (turn::PUBLIC, false)],
        also: &[(turn::NEXT, true), (turn::TURN, false)],
        steps: turn::TURN,
    },
];

/// The authority of the etcd that Keelson runs.
pub const ETCD_CA: Item = Item {
    name: "etcd-ca",
    files: &[("etcd/ca.key", true), ("etcd/ca.crt", false)],
    also: &[
        ("etcd/ca-next.key", true),
        ("etcd/ca-cross.crt", false),
        ("etcd/ca.turn", false),
    ],
    steps: "etcd/ca.turn",
};

impl Item {
    /// By which name its files are an authority's, which is followed by others in steps ([`crate::succession`]); `None`: it is none.
    pub fn authority(&self) -> Option<&'static str> {
        let name = self.steps.strip_suffix(".turn")?;
        let certificate = |file: &str| file.strip_suffix(".crt") == Some(name);
        self.files.iter().any(|(file, _)| certificate(file)).then_some(name)
    }

    /// What this machine has of it; `None` if anything is missing.
    pub fn read(&self, pki: &Path) -> Result<Option<Vec<u8>>> {
        Ok(self.texts(pki)?.map(|found| serde_json::to_vec(&found)).transpose()?)
    }

    /// The same, by the names of its files.
    pub fn texts(&self, pki: &Path) -> Result<Option<Files>> {
        let _alone = alone();
        self.end(pki)?;
        self.found(pki)
    }

    /// What stands there, and nothing is touched: for whoever isn't the one that writes there. A write that goes on, or was broken off,
    /// may be there in part.
    pub fn found(&self, pki: &Path) -> Result<Option<Files>> {
        let mut found = Files::new();
        for (file, _) in self.files {
            match files::read(&pki.join(file))? {
                Some(text) => found.insert((*file).into(), text),
                None => return Ok(None),
            };
        }
        for (file, _) in self.also {
            if let Some(text) = files::read(&pki.join(file))? {
                found.insert((*file).into(), text);
            }
        }
        Ok(Some(found))
    }

    /// Puts what another server has, or what a step has made, in its place: all of it, whatever stops this at any moment. What is to be
    /// written is written down first, and whoever opens the directory next completes it.
    pub fn write(&self, pki: &Path, content: &[u8]) -> Result<()> {
        self.check(content)?;
        let _alone = alone();
        files::write_secret(&self.pending(pki), content)?;
        self.end(pki)
    }

    fn pending(&self, pki: &Path) -> PathBuf {
        pki.join(format!("{}.pending", self.name))
    }

    /// Ends a write that was broken off.
    pub fn complete(&self, pki: &Path) -> Result<()> {
        let _alone = alone();
        self.end(pki)
    }

    /// The same, for who is [`alone`].
    pub(crate) fn end(&self, pki: &Path) -> Result<()> {
        let pending = self.pending(pki);
        let Some(content) = files::read(&pending)? else {
            return Ok(());
        };
        self.put(pki, content.as_bytes())
            .with_context(|| format!("completing what {} says", pending.display()))?;
        // For good: it would undo what comes after it. Another that opens the directory may have done it.
        files::remove(&pending)?;
        let synced = std::fs::File::open(pki).and_then(|dir| dir.sync_all());
        synced.with_context(|| format!("removing {}", pending.display()))
    }

    /// Whether it is complete, and nothing else.
    fn check(&self, content: &[u8]) -> Result<Files> {
        let found: Files = serde_json::from_slice(content).with_context(|| format!("the servers' {}", self.name))?;
        ensure!(
            self.files.iter().all(|(file, _)| found.contains_key(*file)),
            "the servers' {} is not complete",
            self.name
        );
        let known = |name: &String| self.files.iter().chain(self.also).any(|(file, _)| file == name);
        ensure!(
            found.keys().all(known),
            "the servers' {} has files that aren't known here",
            self.name
        );
        Ok(found)
    }

    fn put(&self, pki: &Path, content: &[u8]) -> Result<()> {
        let found = self.check(content)?;
        for (file, secret) in self.files.iter().chain(self.also) {
            let path = pki.join(file);
            match (found.get(*file), secret) {
                (Some(text), true) => files::write_secret(&path, text.as_bytes())?,
                (Some(text), false) => files::write_public(&path, text.as_bytes())?,
                (None, _) => files::remove(&path)?,
            }
        }
        Ok(())
    }

    /// Whether the one content is what came of the other by more steps of a replacement.
    pub fn follows(&self, one: &[u8], other: &[u8]) -> Result<bool> {
        let number = |content: &[u8]| {
            let files: Files = serde_json::from_slice(content)?;
            let text = files.get(self.steps).map(String::as_str);
            // Of authorities more is told there than the number.
            match text.filter(|text| text.starts_with('{')) {
                Some(text) => succession::number(text),
                None => turn::number(text),
            }
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

    /// The machine stops after any of a step's files: whoever opens the directory next finds the whole of it.
    #[test]
    fn a_step_of_an_authority_is_whole_or_has_not_been() {
        use crate::succession::{Step, step};
        let dir = std::env::temp_dir().join(format!("keelson-whole-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        crate::Pki::open(&dir).unwrap();
        let (pki, ca) = (dir.join("pki"), &ITEMS[0]);
        let names: Vec<&str> = ca.files.iter().chain(ca.also).map(|(name, _)| *name).collect();
        let lay = |files: &Files, some: &[&str]| {
            for name in some {
                match files.get(*name) {
                    Some(text) => files::write_secret(&pki.join(name), text.as_bytes()).unwrap(),
                    None => _ = std::fs::remove_file(pki.join(name)),
                }
            }
        };
        for next in [Step::Announce, Step::Sign, Step::Withdraw] {
            let before: Files = serde_json::from_slice(&ca.read(&pki).unwrap().unwrap()).unwrap();
            let after = step("ca", &before, next, jiff::Timestamp::now()).unwrap();
            let content = serde_json::to_vec(&after).unwrap();
            for written in 0..=names.len() {
                lay(&before, &names);
                files::write_secret(&ca.pending(&pki), &content).unwrap();
                lay(&after, &names[..written]);
                // Who only looks leaves it to the one that writes.
                ca.found(&pki).unwrap();
                assert!(ca.pending(&pki).exists());
                let opened = crate::Pki::open(&dir).unwrap();
                assert_eq!(opened.ca.bundle_pem(), after["ca.crt"], "{next:?} after {written}");
                assert_eq!(ca.read(&pki).unwrap().unwrap(), content);
                opened.apiserver_kubelet_client().unwrap();
            }
            let mode = std::fs::metadata(pki.join("ca.key")).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode, ca.pending(&pki).exists()), (0o600, false));
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
