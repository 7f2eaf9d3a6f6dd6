//! Volumes that a controller attaches to the node before they are used, and may take away again. The two sides talk by the
//! node's status: `volumesInUse` says what may not be taken away, and stands there before anything is done with the volume;
//! `volumesAttached` says what is there. How the volume was attached is told by its VolumeAttachment.

use super::super::kind::Failure;
use super::drivers::{DEADLINE, Drivers};
use super::paths;
use super::source::Source;
use k8s_openapi::api::core::v1::NodeStatus;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use keelson_client::{Objects, Rest};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What the node's status says in the API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    in_use: BTreeSet<String>,
    attached: BTreeSet<String>,
}

/// A volume in use: by which driver, and why.
#[derive(Clone, Debug, Default)]
struct Use {
    driver: String,
    pods: BTreeSet<String>,
    /// It is staged, or may be, whoever's it is.
    staged: bool,
}

pub struct Attachments {
    drivers: Arc<Drivers>,
    seen: watch::Sender<Seen>,
    used: Mutex<BTreeMap<String, Use>>,
    /// What was in use before isn't known: what the node's status says stays in it.
    keeps_all: AtomicBool,
    /// Has the node's status written.
    tell: Box<dyn Fn() + Send + Sync>,
}

impl Attachments {
    pub fn new(drivers: Arc<Drivers>, tell: Box<dyn Fn() + Send + Sync>) -> Self {
        Attachments {
            drivers,
            seen: watch::Sender::default(),
            used: Mutex::default(),
            keeps_all: AtomicBool::new(false),
            tell,
        }
    }

    /// From now on nothing leaves the status.
    pub fn keep_all(&self) {
        self.keeps_all.store(true, Ordering::Relaxed);
    }

    /// From now on the volume may not be taken away.
    pub fn hold(&self, driver: &str, handle: &str, uid: &str) {
        let mut used = self.used.lock();
        let entry = used.entry(paths::unique_name(driver, handle)).or_default();
        entry.driver = driver.to_owned();
        entry.pods.insert(uid.to_owned());
    }

    /// The pod has no volume any more: all that it had, or waited for, is given back.
    pub fn release(&self, uid: &str) {
        let gone = {
            let mut used = self.used.lock();
            let before = used.len();
            used.retain(|_, u| {
                u.pods.remove(uid);
                u.staged || !u.pods.is_empty()
            });
            used.len() != before
        };
        if gone {
            (self.tell)();
        }
    }

    /// The volume is staged from now on, or isn't any more. One that is stays in use even if no pod has it.
    pub fn set_staged(&self, driver: &str, handle: &str, staged: bool) {
        let gone = {
            let mut used = self.used.lock();
            let name = paths::unique_name(driver, handle);
            let entry = used.entry(name.clone()).or_default();
            (entry.driver, entry.staged) = (driver.to_owned(), staged);
            let unused = !staged && entry.pods.is_empty();
            unused && used.remove(&name).is_some()
        };
        if gone {
            (self.tell)();
        }
    }

    /// `volumesInUse`: what is used of the volumes that somebody attaches, sorted.
    pub fn in_use(&self) -> Vec<String> {
        let used = self.used.lock().clone();
        let attachable = used.into_iter().filter(|(_, u)| self.drivers.needs_attach(&u.driver));
        let mut names: BTreeSet<String> = attachable.map(|(name, _)| name).collect();
        if self.keeps_all.load(Ordering::Relaxed) {
            names.extend(self.seen.borrow().in_use.iter().cloned());
        }
        names.into_iter().collect()
    }

    /// The node's status as it stands in the API now.
    pub fn see(&self, status: &NodeStatus) {
        let now = Seen {
            in_use: status.volumes_in_use.iter().flatten().cloned().collect(),
            attached: status
                .volumes_attached
                .iter()
                .flatten()
                .map(|a| a.name.clone())
                .collect(),
        };
        self.seen.send_if_modified(|seen| {
            let differs = *seen != now;
            *seen = now;
            differs
        });
    }

    /// Waits until the volume is there, as both sides say. Failing that is no event: whose fault it is, the controller tells.
    pub async fn wait(&self, source: &Source, leaving: &CancellationToken) -> Result<(), Failure> {
        let name = paths::unique_name(&source.driver, &source.handle);
        (self.tell)();
        let mut seen = self.seen.subscribe();
        let there = seen.wait_for(|s| s.in_use.contains(&name) && s.attached.contains(&name));
        match tokio::time::timeout(DEADLINE, leaving.run_until_cancelled(there)).await {
            Ok(Some(Ok(_))) => Ok(()),
            _ => Err(Failure::quiet("Volume not attached according to node status")),
        }
    }
}

/// What the attacher left for the driver, once it says that the volume is attached.
pub async fn context(rest: &Rest, source: &Source, node: &str) -> Result<HashMap<String, String>, String> {
    let name = paths::attachment(&source.handle, &source.driver, node);
    let handle = &source.handle;
    let found = Objects::<VolumeAttachment>::new(rest)
        .get("", &name)
        .await
        .map_err(|e| {
            let e = crate::error_text(&e);
            format!("volume {handle} has GET error for volume attachment {name}: {e}")
        })?;
    if found.metadata.deletion_timestamp.is_some() {
        return Err("volume attachment is being deleted".into());
    }
    let status = found.status.unwrap_or_default();
    if !status.attached {
        let told = status.attach_error.and_then(|e| e.message);
        return Err(told.unwrap_or_else(|| format!("volume {handle} is not attached for volume attachment {name}")));
    }
    Ok(status.attachment_metadata.unwrap_or_default().into_iter().collect())
}
