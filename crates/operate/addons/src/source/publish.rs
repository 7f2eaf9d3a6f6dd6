//! Tells what this server's directories say, whenever the kernel says that something in them has changed.
//!
//! A file that is being written is told when it has been quiet for a moment; what is half written then is a file that is broken, or says less,
//! until the next notice.

use super::plan::{Plan, Step, plan};
use super::tree::{self, Tree};
use super::{MARK, NAMESPACE, Source};
use k8s_openapi::api::core::v1::Secret;
use keelson_client::{Informer, Objects, delete_options, is_not_found};
use notify::{RecursiveMode, Watcher};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// So long nothing may happen before files are read, unless something goes on happening.
const QUIET: Duration = Duration::from_secs(1);
const AT_LAST: Duration = Duration::from_secs(10);
/// After what couldn't be told, or watched.
const AGAIN: Duration = Duration::from_secs(5);
const WITHIN: Duration = Duration::from_secs(30);

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
        let changed = Arc::new(Notify::new());
        let mounts = Mounts::open();
        let mut kept = Vec::new();
        loop {
            // Watched before it is read: what changes meanwhile is a notice.
            let watcher = watch(&self.directories, &changed);
            let places: Vec<String> = self.directories.iter().map(|d| tree::place(d)).collect();
            let went = tokio::select! {
                () = stop.cancelled() => return,
                went = self.look(&mut kept) => went,
            };
            let again = match (&went, &watcher) {
                (Err(error), _) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "what files of add-ons say can't be told; will retry"
                    );
                    Some(AGAIN)
                }
                (_, Err(error)) => {
                    tracing::warn!(%error, "directories of add-ons can't be watched; will retry");
                    Some(AGAIN)
                }
                _ => None,
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = changed.notified() => settled(&changed).await,
                () = self.moved(&mounts, &places) => settled(&changed).await,
                () = sleep(again) => {}
            }
        }
    }

    /// Something was mounted over one of the directories, or taken away.
    async fn moved(&self, mounts: &Option<Mounts>, places: &[String]) {
        loop {
            match mounts {
                Some(mounts) => mounts.changed().await,
                None => std::future::pending().await,
            }
            if self
                .directories
                .iter()
                .zip(places)
                .any(|(d, place)| tree::place(d) != *place)
            {
                return;
            }
        }
    }

    async fn look(&self, kept: &mut Vec<String>) -> anyhow::Result<()> {
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
        for step in steps {
            tokio::time::timeout(WITHIN, self.take(step)).await??;
        }
        Ok(())
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
                self.secrets.create_or_update(&wanted, same).await?;
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

async fn settled(changed: &Notify) {
    let last = Instant::now() + AT_LAST;
    loop {
        let quiet = (Instant::now() + QUIET).min(last);
        if tokio::time::timeout_at(quiet, changed.notified()).await.is_err() {
            return;
        }
        if Instant::now() >= last {
            return;
        }
    }
}

/// The directories and all below, and what they are in: a directory that is exchanged can't tell of it.
fn watch(directories: &[PathBuf], changed: &Arc<Notify>) -> notify::Result<notify::RecommendedWatcher> {
    let (changed, wanted) = (changed.clone(), directories.to_vec());
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| match event {
        // Reading them is an event too, and would be answered by reading.
        Ok(event) if event.kind.is_access() => {}
        Ok(event) if !event.paths.is_empty() && !event.paths.iter().any(|p| concerns(p, &wanted)) => {}
        Ok(_) | Err(_) => changed.notify_one(),
    })?;
    for directory in directories {
        if directory.is_dir() {
            watcher.watch(directory, RecursiveMode::Recursive)?;
        }
        let mut above = directory.parent();
        while let Some(at) = above.filter(|at| !at.is_dir()) {
            above = at.parent();
        }
        watcher.watch(above.unwrap_or(Path::new("/")), RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

/// Whether it is in one of the directories, or on the way to it.
fn concerns(path: &Path, directories: &[PathBuf]) -> bool {
    directories.iter().any(|d| path.starts_with(d) || d.starts_with(path))
}

/// The kernel's notice that something was mounted or taken away.
struct Mounts(AsyncFd<OwnedFd>);

// `AsyncFd`'s makers are deprecated for types whose descriptor may change; an owned one's does not, and what replaces them is `unsafe`.
#[allow(deprecated)]
impl Mounts {
    fn open() -> Option<Mounts> {
        let file = File::open("/proc/self/mountinfo").ok()?;
        AsyncFd::with_interest(OwnedFd::from(file), Interest::PRIORITY)
            .map(Mounts)
            .ok()
    }

    async fn changed(&self) {
        match self.0.ready(Interest::PRIORITY).await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => std::future::pending().await,
        }
    }
}
