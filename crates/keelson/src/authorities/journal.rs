//! Where the steps of authorities are written down: in this machine's `pki`, or among several servers in their datastore first.

use crate::servers::{Steps, Written};
use anyhow::Context;
use jiff::Timestamp;
use keelson_pki::sharing::{ETCD_CA, ITEMS, Item};
use keelson_pki::succession::{self, Files, Standing, Step};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokio::sync::Mutex;

/// Authorities that are followed by others, each with the name of its files. Of an etcd that servers run only these have one.
pub fn items() -> impl Iterator<Item = (&'static Item, &'static str)> {
    let all = ITEMS.iter().chain(std::iter::once(&ETCD_CA));
    all.filter_map(|item| Some((item, item.authority()?)))
}

pub fn item(name: &str) -> Option<&'static Item> {
    items().map(|(item, _)| item).find(|item| item.name == name)
}

pub struct Journal {
    pki: PathBuf,
    /// `None`: this server has its store for itself.
    shared: Option<Steps>,
    /// Whether servers share an etcd that they run.
    etcd: bool,
    /// One at a time writes the directory.
    writing: Mutex<()>,
}

impl Journal {
    pub fn new(pki: &Path, shared: Option<Steps>, etcd: bool) -> Journal {
        Journal {
            pki: pki.into(),
            shared,
            etcd,
            writing: Mutex::default(),
        }
    }

    pub fn pki(&self) -> &Path {
        &self.pki
    }
    pub fn shared(&self) -> Option<&Steps> {
        self.shared.as_ref()
    }

    /// Those whose steps are written down here. Of several servers whose etcd is somebody else's, one that is left in the directory (of
    /// `--etcd-listen`, before the store went to an etcd) is nobody's.
    pub fn items(&self) -> impl Iterator<Item = (&'static Item, &'static str)> + use<> {
        let etcd = self.etcd || self.shared.is_none();
        items().filter(move |(item, _)| etcd || item.name != ETCD_CA.name)
    }

    /// Where they stand, by name.
    pub fn standing(&self) -> anyhow::Result<BTreeMap<String, Standing>> {
        standing_of(self.items(), |item| item.texts(&self.pki))
    }

    /// Makes the step that follows on what is known here as `before`.
    pub async fn step(
        &self,
        item: &'static Item,
        step: Step,
        before: &Standing,
        now: Timestamp,
    ) -> anyhow::Result<Written> {
        let _writing = self.writing.lock().await;
        if let Some(steps) = &self.shared {
            let written = steps.write(item, step, before.number, now).await?;
            steps.take(&self.pki, &[item]).await?;
            return Ok(written);
        }
        let files = item.texts(&self.pki)?;
        let files = files.with_context(|| format!("there is no {} here", item.name))?;
        let name = item.authority().context("it is no authority")?;
        if succession::standing(name, &files)?.number != before.number {
            return Ok(Written::Met);
        }
        let after = succession::step(name, &files, step, now)?;
        item.write(&self.pki, &serde_json::to_vec(&after)?)?;
        Ok(Written::Done)
    }

    /// Takes what other servers have written; whether there was anything.
    pub async fn take(&self) -> anyhow::Result<bool> {
        let Some(steps) = &self.shared else { return Ok(false) };
        let _writing = self.writing.lock().await;
        let all: Vec<&Item> = self.items().map(|(item, _)| item).collect();
        steps.take(&self.pki, &all).await
    }
}

/// Where the authorities of a directory stand, by name. A server may write there meanwhile, in another process: nothing is touched.
pub fn standing(pki: &Path) -> anyhow::Result<BTreeMap<String, Standing>> {
    standing_of(items(), |item| item.found(pki))
}

fn standing_of(
    items: impl Iterator<Item = (&'static Item, &'static str)>,
    read: impl Fn(&Item) -> anyhow::Result<Option<Files>>,
) -> anyhow::Result<BTreeMap<String, Standing>> {
    let mut all = BTreeMap::new();
    for (item, name) in items {
        if let Some(files) = read(item)? {
            all.insert(item.name.to_string(), succession::standing(name, &files)?);
        }
    }
    Ok(all)
}
