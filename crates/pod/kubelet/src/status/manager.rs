//! Sends pods' statuses to the API: each pod's in order, only the newest, only what differs.
//!
//! `set` never waits. One task a pod sends; while it is sending, newer statuses replace each other, so nothing queues.

use super::diff;
use crate::pods;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use keelson_client::{Kind, Objects, Patch, Rest, is_not_found};
use parking_lot::Mutex;
use prometheus::Histogram;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Statuses sent at the same time.
const PARALLEL: usize = 16;
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

struct Entry {
    /// The pod as it was last seen; its status is what the API is thought to have.
    pod: Arc<Pod>,
    /// Revision and status that the API answered last, when that is newer.
    answered: Option<(u64, Arc<Value>)>,
    status: PodStatus,
    version: u64,
    sending: bool,
    /// When what isn't sent yet became so.
    since: Instant,
    sent: watch::Sender<u64>,
}

impl Entry {
    fn new(pod: &Pod) -> Self {
        Entry {
            pod: Arc::new(pod.clone()),
            answered: None,
            status: PodStatus::default(),
            version: 0,
            sending: false,
            since: Instant::now(),
            sent: watch::Sender::new(0),
        }
    }

    /// Whether somebody has to begin to send; from now on it takes time.
    fn begin(&mut self) -> bool {
        if self.sending {
            return false;
        }
        self.sending = true;
        self.since = Instant::now();
        true
    }
}

/// What others are told of a pod by its UID.
#[derive(Clone, Debug)]
pub enum Change {
    /// It has another status, or is otherwise another.
    Set(String),
    /// The node has nothing of it any more.
    Forgotten(Arc<Pod>),
}

/// Changes that somebody who listens may be behind.
const BEHIND: usize = 1024;

struct Shared {
    changes: broadcast::Sender<Change>,
    rest: Rest,
    entries: Mutex<HashMap<String, Entry>>,
    slots: Semaphore,
    /// How long it takes until a status is sent.
    took: Histogram,
    stop: CancellationToken,
}

#[derive(Clone)]
pub struct StatusManager(Arc<Shared>);

impl StatusManager {
    pub fn new(rest: Rest, took: Histogram, stop: CancellationToken) -> Self {
        StatusManager(Arc::new(Shared {
            changes: broadcast::Sender::new(BEHIND),
            rest,
            entries: Mutex::default(),
            slots: Semaphore::new(PARALLEL),
            took,
            stop,
        }))
    }

    /// Told of what changes from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.0.changes.subscribe()
    }

    fn told(&self, change: Change) {
        // Without anybody who listens there is nobody to tell.
        let _ = self.0.changes.send(change);
    }

    /// The status that was last generated for a pod.
    pub fn get(&self, uid: &str) -> Option<PodStatus> {
        self.0.entries.lock().get(uid).map(|e| e.status.clone())
    }

    /// The newest status of a pod. The same as before changes nothing.
    pub fn set(&self, pod: &Pod, status: PodStatus) {
        let uid = pods::uid(pod).to_owned();
        let mut entries = self.0.entries.lock();
        let entry = entries.entry(uid.clone()).or_insert_with(|| Entry::new(pod));
        let mut is_other = false;
        if revision(pod) > revision(&entry.pod) {
            is_other = differs(pod, &entry.pod);
            entry.pod = Arc::new(pod.clone());
        }
        let same = entry.version > 0 && entry.status == status;
        if !same || is_other {
            self.told(Change::Set(uid.clone()));
        }
        if same {
            return;
        }
        entry.status = status;
        entry.version += 1;
        if entry.begin() {
            tokio::spawn(send_all(self.clone(), uid));
        }
    }

    /// Sends a pod's status again if the API shows another: somebody else has written it.
    pub fn reconcile(&self, uid: &str, seen: Option<&Arc<Pod>>) {
        let mut entries = self.0.entries.lock();
        let Some(entry) = entries.get_mut(uid) else { return };
        if let Some(pod) = seen.filter(|p| revision(p) > revision(&entry.pod)) {
            entry.pod = pod.clone();
        }
        if entry.begin() {
            entry.version += 1;
            tokio::spawn(send_all(self.clone(), uid.to_owned()));
        }
    }

    /// Waits until the newest status is in the API (or the pod isn't). False when that takes too long.
    pub async fn flush(&self, uid: &str) -> bool {
        let (mut sent, version) = {
            let entries = self.0.entries.lock();
            let Some(e) = entries.get(uid) else { return true };
            (e.sent.subscribe(), e.version)
        };
        let wait = tokio::time::timeout(Duration::from_secs(10), sent.wait_for(|v| *v >= version));
        matches!(wait.await, Ok(Ok(_)))
    }

    /// Deletes the pod's object for good: the node has nothing of it any more.
    pub async fn delete(&self, pod: &Pod) -> Result<(), keelson_client::Error> {
        let mut options = keelson_client::delete_options(None, Some(pods::uid(pod)), None);
        options.grace_period_seconds = Some(0);
        match Objects::<Pod>::new(&self.0.rest)
            .delete(pods::namespace(pod), pods::name(pod), &options)
            .await
        {
            // Gone already, or another pod has its name: either way this one is no more.
            Err(e) if is_not_found(&e) || keelson_client::is_conflict(&e) => Ok(()),
            other => other,
        }
    }

    pub fn forget(&self, uid: &str) {
        self.0.entries.lock().remove(uid);
    }

    /// The pod isn't this node's any more: nobody who lists its pods from now on finds it.
    pub fn gone(&self, pod: Arc<Pod>) {
        self.told(Change::Forgotten(pod));
    }

    /// The newest status not yet sent; `None` ends the sending task.
    fn next(&self, uid: &str, done: u64) -> Option<Job> {
        let mut entries = self.0.entries.lock();
        let entry = entries.get_mut(uid)?;
        if entry.version == done {
            entry.sending = false;
            return None;
        }
        let newer = entry
            .answered
            .as_ref()
            .filter(|(r, _)| *r > revision(&entry.pod))
            .map(|(_, s)| s.clone());
        Some(Job {
            pod: entry.pod.clone(),
            answered: newer,
            status: entry.status.clone(),
            version: entry.version,
        })
    }

    /// Notes what the API says the status is now.
    fn answered(&self, uid: &str, object: &[u8]) {
        let Ok(mut object) = serde_json::from_slice::<Value>(object) else {
            return;
        };
        let revision = object["metadata"]["resourceVersion"]
            .as_str()
            .map_or(0, keelson_client::store::parse_revision);
        if let Some(e) = self.0.entries.lock().get_mut(uid) {
            let mut status = object["status"].take();
            diff::without_nulls(&mut status);
            e.answered = Some((revision, Arc::new(status)));
        }
    }

    fn sent(&self, uid: &str, version: u64) {
        if let Some(e) = self.0.entries.lock().get_mut(uid) {
            e.sent.send_replace(version);
            self.0.took.observe(e.since.elapsed().as_secs_f64());
            e.since = Instant::now();
        }
    }
}

/// Whether somebody else than the kubelet has changed a pod.
fn differs(new: &Pod, old: &Pod) -> bool {
    let (new_meta, old_meta) = (&new.metadata, &old.metadata);
    new_meta.generation != old_meta.generation
        || new_meta.labels != old_meta.labels
        || new_meta.annotations != old_meta.annotations
        || new_meta.deletion_timestamp != old_meta.deletion_timestamp
}

/// A status to send, and what it is compared with.
struct Job {
    pod: Arc<Pod>,
    answered: Option<Arc<Value>>,
    status: PodStatus,
    version: u64,
}

fn revision(pod: &Pod) -> u64 {
    pod.metadata
        .resource_version
        .as_deref()
        .map_or(0, keelson_client::store::parse_revision)
}

async fn send_all(manager: StatusManager, uid: String) {
    let mut done = 0;
    let mut delay = RETRY;
    let mut read_first = false;
    while let Some(job) = manager.next(&uid, done) {
        let Ok(slot) = manager.0.slots.acquire().await else {
            return;
        };
        let result = send(&manager, &uid, &job, read_first || pods::is_static(&job.pod)).await;
        drop(slot);
        match result {
            Ok(()) => {
                done = job.version;
                delay = RETRY;
                read_first = false;
                manager.sent(&uid, job.version);
            }
            Err(e) => {
                tracing::warn!(pod = %pods::describe(&job.pod), "the pod's status can't be sent and is tried again: {e}");
                // What we think the API has may be wrong.
                read_first = true;
                tokio::select! {
                    () = manager.0.stop.cancelled() => return,
                    () = tokio::time::sleep(delay) => {}
                }
                delay = (delay * 2).min(RETRY_MAX);
            }
        }
    }
}

/// Brings the API's status to the wanted one. A pod that isn't there any more needs none.
async fn send(manager: &StatusManager, uid: &str, job: &Job, read_first: bool) -> Result<(), String> {
    let rest = &manager.0.rest;
    let pod = &job.pod;
    let (ns, name) = (pods::namespace(pod), pods::name(pod));
    let text = |e: keelson_client::Error| crate::error_text(&e);
    let (api_uid, have) = if read_first {
        match rest
            .get_raw(&Pod::RESOURCE, ns, name, "", keelson_client::rest::JSON)
            .await
        {
            Ok(bytes) => {
                let mut now = serde_json::from_slice::<Value>(&bytes).map_err(|e| e.to_string())?;
                let mirror = now["metadata"]["annotations"][pods::MIRROR_ANNOTATION].as_str();
                let api_uid = now["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
                let same = if pods::is_static(pod) {
                    mirror == pods::annotation(pod, pods::HASH_ANNOTATION)
                } else {
                    api_uid == uid
                };
                if !same {
                    return Ok(());
                }
                let mut status = now["status"].take();
                diff::without_nulls(&mut status);
                (api_uid, Arc::new(status))
            }
            Err(e) if is_not_found(&e) => return Ok(()),
            Err(e) => return Err(text(e)),
        }
    } else {
        let have = match &job.answered {
            Some(status) => status.clone(),
            None => Arc::new(serde_json::to_value(pods::status(pod)).map_err(|e| e.to_string())?),
        };
        (uid.to_owned(), have)
    };
    let want = serde_json::to_value(&job.status).map_err(|e| e.to_string())?;
    let Some(patch) = diff::patch(&api_uid, &have, &keep_foreign(&have, want)) else {
        return Ok(());
    };
    match rest
        .patch_raw(&Pod::RESOURCE, ns, name, "status", &Patch::Strategic(&patch))
        .await
    {
        Ok(bytes) => {
            manager.answered(uid, &bytes);
            Ok(())
        }
        // Gone, or another pod has its name: the precondition on the uid says so.
        Err(e) if is_not_found(&e) => Ok(()),
        Err(e) if keelson_client::is_conflict(&e) && read_first => Ok(()),
        Err(e) if keelson_client::is_invalid(&e) && read_first => {
            // The same again would be refused again; the pod must still be able to end.
            let why = text(e);
            tracing::error!(pod = %pods::describe(pod), "the API refuses the pod's status: {why}");
            Ok(())
        }
        Err(e) => Err(text(e)),
    }
}

/// Conditions that others set stay as they are in the API, whatever this kubelet last saw of them.
fn keep_foreign(now: &Value, mut want: Value) -> Value {
    let foreign = |c: &Value| {
        let kind = c["type"].as_str().unwrap_or_default();
        !super::conditions::is_ours(kind) && kind != "DisruptionTarget"
    };
    let theirs: Vec<Value> = now["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|c| foreign(c))
        .cloned()
        .collect();
    if let Some(list) = want["conditions"].as_array_mut() {
        list.retain(|c| !foreign(c));
        list.extend(theirs);
    }
    want
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test(start_paused = true)]
    async fn the_time_until_a_status_is_sent_begins_with_the_need() {
        let mut entry = Entry::new(&Pod::default());
        let made = entry.since;
        tokio::time::advance(RETRY).await;
        assert!(entry.begin());
        assert_eq!(entry.since, made + RETRY);
        tokio::time::advance(RETRY).await;
        assert!(!entry.begin());
        assert_eq!(entry.since, made + RETRY, "it is on its way");
    }

    #[test]
    fn conditions_of_others_are_left_alone() {
        let now = json!({"conditions": [{"type": "gate", "status": "True"}, {"type": "Ready", "status": "False"}]});
        let want = json!({"conditions": [{"type": "gate", "status": "False"}, {"type": "Ready", "status": "True"}]});
        let kept = keep_foreign(&now, want);
        let patch = diff::patch("u", &now, &kept).unwrap();
        assert_eq!(
            patch["status"],
            json!({"conditions": [{"type": "Ready", "status": "True"}]})
        );
    }
}
