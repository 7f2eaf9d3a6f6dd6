//! Tells what this server's directories say, whenever the kernel says that something in them has changed.
//!
//! A file that is being written is told when it has been quiet for a moment; what is half written then is a file that is broken, or says less,
//! until the next notice.

use super::plan::{Plan, Step, plan};
use super::tree::{self, QUIET, Tree};
use super::{MARK, NAMESPACE, Source};
use anyhow::Context;
use k8s_openapi::api::core::v1::Secret;
use keelson_client::{Informer, Objects, delete_options, is_not_found};
use keelson_follow::{Target, Watch};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// When something goes on happening what is quiet is read all the same.
const AT_LAST: Duration = Duration::from_secs(10);
/// After what couldn't be told, or watched.
const AGAIN: Duration = Duration::from_secs(5);
const WITHIN: Duration = Duration::from_secs(30);
/// Between two times that what somebody else made of it is made good: shorter than the applier waits for a file.
const APART: Duration = Duration::from_secs(2);

pub struct Publisher {
    pub server: String,
    pub directories: Vec<PathBuf>,
    pub secrets: Objects<Secret>,
    /// All servers' sources.
    pub told: Informer<Secret>,
}

impl Publisher {
    pub async fn run(&self, stop: &CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => return,
            () = self.told.synced() => {}
        }
        let touched = self.touched();
        let mut watch = None;
        let mut kept = Vec::new();
        loop {
            // Watched before it is read: what changes meanwhile is a notice.
            if watch.is_none() {
                watch = self.watch().inspect_err(unwatched).ok();
            }
            let went = tokio::select! {
                () = stop.cancelled() => return,
                went = self.look(&mut kept) => went,
            };
            let looked = Instant::now();
            let again = match (&went, &watch) {
                (Err(error), _) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "what files of add-ons say can't be told; will retry"
                    );
                    Some(AGAIN)
                }
                (_, None) => Some(AGAIN),
                (Ok(are_young), Some(_)) => are_young.then_some(QUIET),
            };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = async { watch.as_mut()?.changed().await.inspect_err(unwatched).ok() }, if watch.is_some() => {
                    if changed.is_none() {
                        watch = None;
                    }
                }
                () = async { touched.notified().await; tokio::time::sleep_until(looked + APART).await } => {}
                () = sleep(again) => {}
            }
        }
    }

    /// Tells when a Secret of this server is another than it was: by itself, or because somebody deleted or changed it, who is not asked whether
    /// the file is gone.
    fn touched(&self) -> Arc<Notify> {
        let touched = Arc::new(Notify::new());
        let (note, server) = (touched.clone(), self.server.clone());
        self.told.on_change(move |change| {
            let mut all = change.old().into_iter().chain([change.object()]);
            if all.any(|secret| super::server_of(secret) == Some(server.as_str())) {
                note.notify_one();
            }
        });
        touched
    }

    fn watch(&self) -> std::io::Result<Watch> {
        let trees = self.directories.iter().cloned().map(Target::Tree);
        Ok(Watch::new(trees.collect())?.settled(QUIET, AT_LAST))
    }

    /// Whether there are files that were just being written.
    async fn look(&self, kept: &mut Vec<String>) -> anyhow::Result<bool> {
        let directories = self.directories.clone();
        let read = move || directories.iter().map(|d| tree::read(d)).collect::<Vec<Tree>>();
        let trees = tokio::task::spawn_blocking(read).await?;
        for why in trees.iter().filter_map(|t| t.incomplete.as_ref()) {
            tracing::debug!(why, "not all files of add-ons could be read");
        }
        let told: Vec<Source> = self.told.store().list().iter().filter_map(|s| Source::of(s)).collect();
        let own: Vec<Source> = told.into_iter().filter(|s| s.server == self.server).collect();
        let Plan { steps, kept: why } = plan(&self.server, &trees, &own);
        if *kept != why {
            for why in &why {
                tracing::warn!("{why}");
            }
            *kept = why;
        }
        let mut failed = None;
        for step in steps {
            // Its objects may have gone to a file that couldn't be told.
            if failed.is_some() && matches!(step, Step::Withdraw(_)) {
                break;
            }
            if let Err(error) = tokio::time::timeout(WITHIN, self.take(step)).await? {
                failed.get_or_insert(error);
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(trees.iter().flat_map(|t| &t.files).any(|f| f.is_young)),
        }
    }

    async fn take(&self, step: Step) -> anyhow::Result<()> {
        match step {
            Step::Tell(source) => {
                tracing::info!(
                    file = source.file,
                    addon = source.addon(),
                    "a file of add-ons is new or has changed"
                );
                let wanted = source.to_secret();
                let same = |live: &mut Secret| {
                    let is_so = live.data == wanted.data
                        && live.metadata.annotations == wanted.metadata.annotations
                        && live.metadata.labels == wanted.metadata.labels;
                    live.data = wanted.data.clone();
                    live.metadata.annotations = wanted.metadata.annotations.clone();
                    live.metadata.labels = wanted.metadata.labels.clone();
                    !is_so
                };
                let told = self.secrets.create_or_update(&wanted, same).await;
                told.with_context(|| source.file.clone())?;
            }
            Step::Withdraw(name) => {
                tracing::info!(source = name, "a file of add-ons is gone");
                match self
                    .secrets
                    .delete(NAMESPACE, &name, &delete_options(None, None, None))
                    .await
                {
                    Err(error) if !is_not_found(&error) => return Err(error.into()),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Which Secrets are sources.
pub fn options() -> keelson_client::InformerOptions<Secret> {
    keelson_client::InformerOptions {
        namespace: NAMESPACE.into(),
        labels: MARK.into(),
        ..Default::default()
    }
}

async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

fn unwatched(error: &std::io::Error) {
    tracing::warn!("directories of add-ons can't be watched; will retry: {error}");
}
