//! Steps of what is replaced while all runs, among several servers: what stands in the datastore counts. Whoever makes a step writes it
//! there first, if nobody else was faster, and then takes it like all the others, who follow what is written there.
//!
//! So it needs no leader: of two that make the same step one has made it. A server that ends between the two takes it at its next start
//! ([`super::shared::settle`]).

use super::held::{Held, Shared};
use super::shared::key;
use anyhow::{Context, bail, ensure};
use jiff::Timestamp;
use keelson_pki::sharing::Item;
use keelson_pki::succession::{self, Files, Step};
use keelson_store::{Expect, KeyRange, ListRequest, Outcome, Store};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// After this a watch that broke off is begun again.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct Steps {
    store: Arc<dyn Store>,
    root: String,
    held: Shared,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    Done,
    /// Somebody else has made one meanwhile.
    Met,
}

impl Steps {
    pub fn new(store: Arc<dyn Store>, root: &str, held: Shared) -> Steps {
        Steps {
            store,
            root: root.into(),
            held,
        }
    }

    pub fn store(&self) -> &dyn Store {
        self.store.as_ref()
    }
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The first time it takes as long as guessing a token is to take.
    pub async fn with_held<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Held) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let held = self.held.clone();
        tokio::task::spawn_blocking(move || work(&mut held.lock())).await?
    }

    /// Writes down what an authority is after the step that follows on `number` others. Nothing changes on this machine.
    pub async fn write(&self, item: &'static Item, step: Step, number: u64, now: Timestamp) -> anyhow::Result<Written> {
        let key = key(&self.root, item.name);
        let got = self.store.get(key.as_bytes(), None).await;
        let found = got.with_context(|| format!("the servers' {}", item.name))?.kv;
        let found = found.with_context(|| format!("the servers' {} is not in the datastore any more", item.name))?;
        let value = found.value.clone();
        let (by, opened) = self.with_held(move |held| held.open(item.name, &value)).await?;
        let before: Files = serde_json::from_slice(&opened)?;
        let name = item.authority().context("it is no authority")?;
        if succession::standing(name, &before)?.number != number {
            return Ok(Written::Met);
        }
        let after = serde_json::to_vec(&succession::step(name, &before, step, now)?)?;
        // While one token takes the place of another, that is a step of its own.
        let sealed = self.with_held(move |held| held.seal(by, item.name, &after)).await?;
        let expected = Expect::ModRevision(found.mod_revision);
        let put = self.store.put(key.into(), sealed.into(), expected, None).await;
        match put.with_context(|| format!("sharing {} with other servers", item.name))? {
            Outcome::Done { .. } => Ok(Written::Done),
            Outcome::Conflict { .. } => Ok(Written::Met),
        }
    }

    /// Takes what has followed on what this machine has; whether anything has.
    pub async fn take(&self, pki: &Path, items: &[&'static Item]) -> anyhow::Result<bool> {
        let mut taken = false;
        for item in items.iter().copied() {
            // That of an etcd which somebody else runs is nobody's here.
            let Some(own) = item.read(pki)? else { continue };
            let got = self.store.get(key(&self.root, item.name).as_bytes(), None).await;
            let Some(found) = got.with_context(|| format!("the servers' {}", item.name))?.kv else {
                bail!("the servers' {} is not in the datastore any more", item.name);
            };
            let (_, theirs) = self.with_held(move |held| held.open(item.name, &found.value)).await?;
            if own == theirs {
                continue;
            }
            if item.follows(&theirs, &own)? {
                item.write(pki, &theirs)?;
                tracing::info!(
                    item = item.name,
                    "the cluster's servers have replaced it: taken from them"
                );
                taken = true;
            } else {
                ensure!(
                    item.follows(&own, &theirs)?,
                    "the servers' {0} is not the one of this machine: somebody replaced it there, or here; it is looked at when this server starts",
                    item.name
                );
            }
        }
        Ok(taken)
    }

    /// Calls `changed` whenever others may have written something, until `stop`.
    pub async fn follow(&self, changed: impl Fn(), stop: CancellationToken) {
        let following = async {
            loop {
                if let Err(error) = self.watch(&changed).await {
                    tracing::debug!(error = format!("{error:#}"), "following what servers share");
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        tokio::select! {
            () = following => {}
            () = stop.cancelled() => {}
        }
    }

    async fn watch(&self, changed: &impl Fn()) -> anyhow::Result<()> {
        let range = KeyRange::prefix(key(&self.root, ""));
        let listed = self.store.list(ListRequest::new(range.clone()).limit(1)).await?;
        let mut watch = self.store.watch(range, listed.revision).await?;
        // What was written before this watch began.
        changed();
        while let Some(batch) = watch.next().await {
            if !batch?.events.is_empty() {
                changed();
            }
        }
        Ok(())
    }
}
