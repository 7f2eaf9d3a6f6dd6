//! Where the cluster's objects are kept: in the data directory, or in an etcd that somebody else runs.
//!
//! The options have kube-apiserver's names and meanings, so that a cluster's flags can be taken over as they are.

pub mod migrate;
pub mod snapshot;

use crate::config::{Options, absolute};
use anyhow::{Context, ensure};
use keelson_api::duration::length;
use keelson_apiserver::encryption::ROOT;
use keelson_store::{Embedded, Etcd, Rooted, Store, compactor, embedded, etcd};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Which store it is to be.
#[derive(Clone, Debug)]
pub enum Choice {
    /// In this directory.
    Embedded(PathBuf),
    Etcd(EtcdChoice),
}

#[derive(Clone, Debug)]
pub struct EtcdChoice {
    pub servers: Vec<String>,
    pub ca_file: Option<PathBuf>,
    /// This server's certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
    health_within: Duration,
    /// What all keys begin with, without a slash at its end.
    pub root: String,
}

impl Choice {
    pub fn of(options: &Options, data_dir: &Path) -> anyhow::Result<Choice> {
        let file = |path: &Option<PathBuf>| path.clone().map(absolute).transpose();
        let (cert, key) = (file(&options.etcd_certfile)?, file(&options.etcd_keyfile)?);
        let Some(servers) = options.etcd_servers.clone().filter(|servers| !servers.is_empty()) else {
            // Of servers that run etcd themselves the rest is known later.
            let rooted = options.cluster_init == Some(true) || options.server.is_some();
            ensure!(
                cert.is_none()
                    && key.is_none()
                    && options.etcd_cafile.is_none()
                    && options.etcd_healthcheck_timeout.is_none()
                    && (rooted || options.etcd_prefix.is_none()),
                "--etcd-cafile, --etcd-certfile, --etcd-keyfile, --etcd-prefix and --etcd-healthcheck-timeout say how etcd is reached: \
                 say with --etcd-servers where it is"
            );
            return Ok(Choice::Embedded(data_dir.join("store")));
        };
        let identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => anyhow::bail!("--etcd-certfile and --etcd-keyfile belong together: give both or neither"),
        };
        let health = options.etcd_healthcheck_timeout.as_deref();
        let health_within = duration("--etcd-healthcheck-timeout", health)?.unwrap_or(Duration::from_secs(2));
        ensure!(
            !health_within.is_zero(),
            "--etcd-healthcheck-timeout 0: no etcd answers in no time"
        );
        Ok(Choice::Etcd(EtcdChoice {
            servers: servers.iter().map(|s| s.trim().to_string()).collect(),
            ca_file: file(&options.etcd_cafile)?,
            identity,
            health_within,
            root: root(options.etcd_prefix.as_deref().unwrap_or(ROOT)),
        }))
    }

    /// What the store's keys begin with, without a slash at its end.
    pub fn root(&self) -> &str {
        match self {
            Choice::Embedded(_) => ROOT,
            Choice::Etcd(choice) => &choice.root,
        }
    }

    /// The store as the API server sees it: under the usual root, whatever the real one is.
    pub fn seen(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        match self.root() {
            ROOT => store,
            other => Rooted::new(store, ROOT, other.to_string()),
        }
    }
}

/// A prefix as upstream reads it: a path from the root, cleaned. The root itself is nothing.
fn root(prefix: &str) -> String {
    let mut parts = Vec::new();
    for part in prefix.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.iter().flat_map(|part| ["/", part]).collect()
}

/// `--etcd-compaction-interval`; `None`: this server gives up no past.
pub fn compaction_interval(options: &Options) -> anyhow::Result<Option<Duration>> {
    let given = duration(
        "--etcd-compaction-interval",
        options.etcd_compaction_interval.as_deref(),
    )?;
    Ok(Some(given.unwrap_or(compactor::INTERVAL)).filter(|interval| !interval.is_zero()))
}

/// `--etcd-listen`: what is served is a store of this server's own.
pub fn listens(options: &Options) -> anyhow::Result<Option<SocketAddr>> {
    let has_etcd = options.etcd_servers.as_ref().is_some_and(|servers| !servers.is_empty())
        || options.cluster_init == Some(true)
        || options.server.is_some();
    ensure!(
        options.etcd_listen.is_none() || !has_etcd,
        "--etcd-listen: the cluster is kept in an etcd (--etcd-servers, --cluster-init, --server); clients of etcd go there"
    );
    Ok(options.etcd_listen)
}

/// What an option says, as Go writes durations: `5m`, `1h30m`, `2s`, `0`.
pub fn duration(flag: &str, text: Option<&str>) -> anyhow::Result<Option<Duration>> {
    let read = |text| length(text).with_context(|| format!("{flag} {text}: a duration is written 5m or 1h30m or 2s"));
    text.map(read).transpose()
}

/// The store that is open.
pub enum Opened {
    Embedded(Arc<Embedded>),
    Etcd(Arc<Etcd>),
}

impl Opened {
    pub async fn open(choice: &Choice) -> anyhow::Result<Opened> {
        Opened::open_with(choice, embedded::Options::default()).await
    }

    /// `engine`: of a store in a directory.
    pub async fn open_with(choice: &Choice, engine: embedded::Options) -> anyhow::Result<Opened> {
        Ok(match choice {
            Choice::Embedded(directory) => {
                take_restored(directory)?;
                Opened::Embedded(Embedded::open(directory, engine).await?)
            }
            Choice::Etcd(choice) => Opened::Etcd(Etcd::open(choice.options()?).await.context("the store in etcd")?),
        })
    }

    pub fn store(&self) -> Arc<dyn Store> {
        match self {
            Opened::Embedded(store) => store.clone(),
            Opened::Etcd(store) => store.clone(),
        }
    }

    /// Nobody writes any more.
    pub async fn close(self) {
        match self {
            Opened::Embedded(store) => {
                if let Err(error) = store.close().await {
                    tracing::warn!(%error, "the store could not be closed; what was acknowledged is on disk");
                }
            }
            // The connections go with the last holder.
            Opened::Etcd(_) => {}
        }
    }
}

/// Where a restored store is until it takes the place of the one that was.
fn restored(store: &Path) -> PathBuf {
    store.with_extension("restored")
}

/// Ends a restore that was cut short when the store that was had been moved away. Where there is nothing to take, but a store
/// that was, an empty one isn't begun in its place: pods that it doesn't know would be ended.
fn take_restored(store: &Path) -> anyhow::Result<()> {
    if store.exists() {
        return Ok(());
    }
    let restored = restored(store);
    if restored.exists() {
        tracing::info!(store = %store.display(), "the store is now the one that was restored");
        std::fs::rename(&restored, store).with_context(|| format!("moving {} to its place", restored.display()))?;
        let parent = store.parent().map(std::fs::File::open).transpose()?;
        parent.map_or(Ok(()), |parent| parent.sync_all())?;
        return Ok(());
    }
    let Some(parent) = store.parent().filter(|parent| parent.exists()) else {
        return Ok(());
    };
    let beside = std::fs::read_dir(parent).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    let mut beside = beside
        .with_context(|| format!("what is in {}", parent.display()))?
        .into_iter();
    let was = beside.find_map(|entry| {
        let path = entry.path();
        let name = path.file_name()?.to_str()?;
        name.strip_prefix(store.file_name()?.to_str()?)?
            .starts_with(".before-")
            .then_some(path.clone())
    });
    match was {
        Some(was) => anyhow::bail!(
            "{} is missing, and {} is there: a restore was cut short. Move it back, or restore again; to begin an empty cluster move it away",
            store.display(),
            was.display()
        ),
        None => Ok(()),
    }
}

impl EtcdChoice {
    fn options(&self) -> anyhow::Result<etcd::Options> {
        let (ca, identity) = (self.ca_file.as_deref(), self.identity.as_ref());
        let encrypted = self.servers.iter().any(|s| s.starts_with("https://")) || ca.is_some() || identity.is_some();
        let identity = identity.map(|(cert, key)| (cert.as_path(), key.as_path()));
        let tls = encrypted.then(|| crate::etcd::followed::config(ca, identity));
        Ok(etcd::Options {
            tls: tls
                .transpose()
                .context("--etcd-cafile, --etcd-certfile, --etcd-keyfile")?,
            health_within: self.health_within,
            health_key: format!("{}/health", self.root).into(),
            ..etcd::Options::new(self.servers.clone())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        let read = |text| duration("--x", Some(text)).ok().flatten().map(|d| d.as_millis());
        assert_eq!(read("5m0s"), Some(300_000));
        assert_eq!(read("1h30m"), Some(5_400_000));
        assert_eq!(read("1.5s"), Some(1500));
        assert_eq!(read("150ms"), Some(150));
        assert_eq!(read("0"), Some(0));
        for wrong in ["", "5", "m", "5 minutes", "-1s", "1x", "1..2s"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn options_of_etcd_are_all_honoured_or_refused() {
        let choice = |options: Options| Choice::of(&options, Path::new("/data"));
        assert!(
            matches!(choice(Options::default()).unwrap(), Choice::Embedded(path) if path == Path::new("/data/store"))
        );
        let etcd = Options {
            etcd_servers: Some(vec!["http://127.0.0.1:2379".into()]),
            ..Options::default()
        };
        assert!(matches!(choice(etcd.clone()).unwrap(), Choice::Etcd(_)));
        for (prefix, is) in [
            ("/registry", "/registry"),
            ("a//b/", "/a/b"),
            ("/", ""),
            ("../x/./y/..", "/x"),
        ] {
            let elsewhere = Options {
                etcd_prefix: Some(prefix.into()),
                ..etcd.clone()
            };
            assert_eq!(choice(elsewhere).unwrap().root(), is, "{prefix}");
        }
        let prefix_of_nothing = Options {
            etcd_prefix: Some("/a".into()),
            ..Options::default()
        };
        assert!(choice(prefix_of_nothing).is_err());
        let half = Options {
            etcd_certfile: Some("/a".into()),
            ..etcd
        };
        assert!(choice(half).is_err());
        let nowhere = Options {
            etcd_cafile: Some("/a".into()),
            ..Options::default()
        };
        assert!(choice(nowhere).is_err());
        let interval = |text: Option<&str>| {
            let etcd_compaction_interval = text.map(Into::into);
            compaction_interval(&Options {
                etcd_compaction_interval,
                ..Options::default()
            })
            .unwrap()
        };
        assert_eq!(interval(None), Some(Duration::from_secs(300)));
        assert_eq!(interval(Some("0s")), None);
    }

    #[test]
    fn a_restore_that_was_cut_short_is_ended_or_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        take_restored(&store).unwrap();
        assert!(!store.exists(), "a first start");
        std::fs::create_dir(dir.path().join("store.before-1")).unwrap();
        let error = take_restored(&store).unwrap_err().to_string();
        assert!(
            error.contains("a restore was cut short") && error.contains("store.before-1"),
            "{error}"
        );
        std::fs::create_dir(dir.path().join("store.restored")).unwrap();
        std::fs::write(dir.path().join("store.restored/whole"), "").unwrap();
        take_restored(&store).unwrap();
        assert!(store.join("whole").exists() && !dir.path().join("store.restored").exists());
        take_restored(&store).unwrap();
    }
}
