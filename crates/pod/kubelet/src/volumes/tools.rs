//! What kinds of volumes work with: the machine, the API, and the objects that volumes show.

use super::kind::{Failure, Stats};
use super::{certificates, token, trust};
use crate::host::{Host, Layout, Ownership};
use crate::objects::{Objects, Wake};
use crate::pods;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use keelson_client::{EventType, Recorder, Rest};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub struct Tools {
    pub host: Arc<dyn Host>,
    pub layout: Layout,
    pub rest: Rest,
    pub recorder: Recorder,
    /// Tells a pod's task to look again.
    pub wake: Wake,
    pub tokens: token::Tokens,
    pub config_maps: Objects<ConfigMap>,
    pub secrets: Objects<Secret>,
    pub trust: trust::TrustBundles,
    pub certificates: certificates::PodCertificates,
}

impl Tools {
    /// `wake` tells a pod's task that something its volumes show has changed.
    pub fn new(
        host: Arc<dyn Host>,
        layout: Layout,
        rest: Rest,
        recorder: Recorder,
        wake: Wake,
        stop: CancellationToken,
    ) -> Self {
        Tools {
            host,
            layout,
            tokens: token::Tokens::new(rest.clone()),
            config_maps: Objects::new(rest.clone(), stop.clone(), wake.clone()),
            secrets: Objects::new(rest.clone(), stop.clone(), wake.clone()),
            trust: trust::TrustBundles::new(rest.clone(), stop.clone(), wake.clone()),
            certificates: certificates::PodCertificates::new(rest.clone(), stop, wake.clone()),
            wake,
            rest,
            recorder,
        }
    }

    /// An event about a pod.
    pub fn warn(&self, pod: &Pod, reason: &str, message: String) {
        let reference = keelson_client::events::reference(&<Pod as keelson_client::Kind>::RESOURCE, &pod.metadata);
        self.recorder.event_for(&reference, EventType::Warning, reason, message);
    }

    /// Gives a tree to a group. A large one takes a while: that is told to the pod, again and again.
    pub async fn give_to(&self, pod: &Pod, path: &Path, ownership: Ownership) -> io::Result<()> {
        const REASON: &str = "VolumePermissionChangeInProgress";
        let done = Arc::new(AtomicU64::new(0));
        let (target, counter) = (path.to_owned(), done.clone());
        let work = self.blocking(move |host| host.set_ownership(&target, ownership, &counter));
        tokio::pin!(work);
        let full = path.to_string_lossy();
        let shown = full.find(pods::uid(pod)).map_or(&*full, |at| &full[at..]);
        let first = format!(
            "Setting volume ownership for {shown} is taking longer than expected, consider using OnRootMismatch - \
             https://kubernetes.io/docs/tasks/configure-pod-container/security-context/#configure-volume-permission-and-ownership-change-policy-for-pods"
        );
        match tokio::time::timeout(Duration::from_secs(30), &mut work).await {
            Ok(result) => return result,
            Err(_) => self.warn(pod, REASON, first),
        }
        loop {
            match tokio::time::timeout(Duration::from_secs(60), &mut work).await {
                Ok(result) => return result,
                Err(_) => {
                    let files = done.load(Ordering::Relaxed);
                    let message = format!("Setting volume ownership for {shown}, processed {files} files.");
                    self.warn(pod, REASON, message);
                }
            }
        }
    }

    /// Work on the machine that may take a while, where no other task waits for it.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Host) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let host = self.host.clone();
        tokio::task::spawn_blocking(move || work(&*host))
            .await
            .map_err(io::Error::other)?
    }

    /// A file system in memory, unless one is mounted there already (by this kubelet before a restart).
    pub fn tmpfs(&self, path: &Path, size: Option<u64>) -> Result<(), Failure> {
        if !self.host.is_mounted(path)? {
            self.host.make_dir(path, 0o777)?;
            self.host.mount_tmpfs(path, size)?;
            self.host.make_dir(path, 0o1777)?;
        }
        Ok(())
    }

    /// What a directory holds, counted file by file, on the file system that it is on.
    pub async fn counted(&self, path: &Path) -> Result<Option<Stats>, String> {
        let path = path.to_owned();
        self.blocking(move |host| {
            let (used, inodes_used) = host.disk_usage(&path)?;
            let fs = host.fs_stats(&path)?;
            Ok(Some(Stats { fs, used, inodes_used }))
        })
        .await
        .map_err(|e| e.to_string())
    }

    /// Whether a volume has once been wholly there for a pod: then its files have the owners that they were to get, and
    /// whatever they have now is the pod's doing.
    pub fn is_ready(&self, uid: &str, kind: &str, name: &str) -> bool {
        matches!(self.host.kind(&self.ready_mark(uid, kind, name)), Ok(Some(_)))
    }

    pub fn set_ready(&self, uid: &str, kind: &str, name: &str) -> io::Result<()> {
        let mark = self.ready_mark(uid, kind, name);
        if let Some(dir) = mark.parent() {
            self.host.make_dir(dir, 0o750)?;
        }
        self.host.write(&mark, b"", 0o640)
    }

    fn ready_mark(&self, uid: &str, kind: &str, name: &str) -> PathBuf {
        self.layout.volume_meta(uid, kind, name).join("ready")
    }
}
