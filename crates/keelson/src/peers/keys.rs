//! This node's keys for WireGuard, on disk: `key`, `next` while one is about to take its place, and `asked`, the request that was
//! answered last. Private keys are readable by the owner of the directory alone and leave it only to the kernel.
//!
//! What is on disk counts: a program that ends anywhere in the middle of an exchange carries on with it.

use anyhow::Context;
use jiff::Timestamp;
use keelson_network::underlay::{Identity, PrivateKey};
use keelson_pki::files;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub struct Keys {
    dir: PathBuf,
    pub current: Arc<Identity>,
    pub next: Option<Arc<Identity>>,
    /// The request that was answered last.
    pub asked: String,
    made: Timestamp,
}

impl Keys {
    /// With a first key, if there is none yet.
    pub fn open(dir: &Path) -> anyhow::Result<Keys> {
        let (current, made) = match read(&dir.join("key"))? {
            Some(found) => found,
            None => make(&dir.join("key"))?,
        };
        Ok(Keys {
            dir: dir.to_path_buf(),
            current,
            next: read(&dir.join("next"))?.map(|(key, _)| key),
            asked: files::read(&dir.join("asked"))?.unwrap_or_default(),
            made,
        })
    }

    pub fn age(&self) -> Duration {
        let age = keelson_clock::now().duration_since(self.made);
        age.try_into().unwrap_or_default()
    }

    /// Makes the next key, which answers this request.
    pub fn begin(&mut self, asked: &str) -> anyhow::Result<()> {
        let (next, _) = make(&self.dir.join("next"))?;
        files::write_public(&self.dir.join("asked"), asked.as_bytes())?;
        (self.next, self.asked) = (Some(next), asked.to_owned());
        Ok(())
    }

    /// The next key is the key.
    pub fn switch(&mut self) -> anyhow::Result<()> {
        let (from, to) = (self.dir.join("next"), self.dir.join("key"));
        let Some(next) = self.next.clone() else { return Ok(()) };
        std::fs::rename(&from, &to).with_context(|| format!("renaming {}", from.display()))?;
        std::fs::File::open(&self.dir)?.sync_all()?;
        self.made = when(&to)?;
        (self.current, self.next) = (next, None);
        Ok(())
    }
}

fn when(path: &Path) -> anyhow::Result<Timestamp> {
    let made = std::fs::metadata(path).and_then(|m| m.modified());
    let made = made.with_context(|| format!("reading {}", path.display()))?;
    Ok(Timestamp::try_from(made)?)
}

fn identity(private: PrivateKey) -> anyhow::Result<Arc<Identity>> {
    let public = keelson_network::underlay::public_key(&private).context("a key for WireGuard")?;
    Ok(Arc::new(Identity { private, public }))
}

fn read(path: &Path) -> anyhow::Result<Option<(Arc<Identity>, Timestamp)>> {
    let Some(text) = files::read(path)? else {
        return Ok(None);
    };
    let key = PrivateKey::read(&text).with_context(|| format!("{} holds no key", path.display()))?;
    Ok(Some((identity(key)?, when(path)?)))
}

fn make(path: &Path) -> anyhow::Result<(Arc<Identity>, Timestamp)> {
    let key = PrivateKey::generate().context("random numbers")?;
    files::write_secret(path, key.secret_text().as_bytes())?;
    Ok((identity(key)?, when(path)?))
}
