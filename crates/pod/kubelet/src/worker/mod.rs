//! One task for each pod. This file is the register of those tasks and what they are told; `task` is the state machine.
//!
//! Everything that happens to a pod (its object, the runtime, a probe, a config map) ends here as a wake-up: the task
//! then looks at the whole state again. So no event is queued, and none can be lost or overflow.

mod classes;
mod finish;
mod resize;
mod start;
mod sync;
mod task;

use crate::kubelet::Kubelet;
use crate::pods;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// How far a pod has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It shall run.
    Syncing,
    /// Its containers are being ended.
    Terminating,
    /// No container runs; what it held is being given back.
    Terminated,
    /// Nothing is left on this node.
    Finished,
}

/// Why the node itself ends a pod.
#[derive(Clone, Debug)]
pub struct Eviction {
    pub reason: String,
    pub message: String,
    pub grace: Option<i64>,
    pub condition: Option<PodCondition>,
}

/// What is wanted of a pod now.
#[derive(Clone, Debug)]
pub struct Desired {
    pub pod: Arc<Pod>,
    /// The object is gone from the API (or its manifest from the disk).
    pub removed: bool,
    pub eviction: Option<Eviction>,
}

impl Desired {
    /// The grace period with which the pod is to end, if it is to end.
    fn end(&self) -> Option<i64> {
        let own = pods::spec(&self.pod).termination_grace_period_seconds.unwrap_or(30);
        let asked = self.pod.metadata.deletion_grace_period_seconds;
        let deleting = self.pod.metadata.deletion_timestamp.is_some();
        let by_api = (deleting || self.removed).then(|| asked.unwrap_or(own));
        let by_node = self.eviction.as_ref().map(|e| e.grace.unwrap_or(own));
        by_api.into_iter().chain(by_node).min().map(|g| g.max(1))
    }
}

/// What others may know of a pod's task.
#[derive(Clone, Debug)]
pub struct View {
    pub stage: Stage,
    /// The pod with its allocated resources, once admitted.
    pub allocated: Option<Arc<Pod>>,
    /// A resize waits for room.
    pub deferred: bool,
}

pub struct Handle {
    pub uid: String,
    /// When this kubelet saw the pod first.
    pub seen: Instant,
    desired: Mutex<Desired>,
    wake: Notify,
    /// The grace period with which the pod shall end; the task follows it at once.
    end: watch::Sender<Option<i64>>,
    view: Mutex<View>,
}

impl Handle {
    pub fn desired(&self) -> Desired {
        self.desired.lock().clone()
    }

    pub fn pod(&self) -> Arc<Pod> {
        self.desired.lock().pod.clone()
    }

    pub fn view(&self) -> View {
        self.view.lock().clone()
    }

    pub fn stage(&self) -> Stage {
        self.view.lock().stage
    }

    pub fn wake(&self) {
        self.wake.notify_one();
    }

    fn change(&self, change: impl FnOnce(&mut Desired)) {
        let end = {
            let mut desired = self.desired.lock();
            change(&mut desired);
            desired.end()
        };
        self.end.send_if_modified(|now| {
            let differs = *now != end;
            *now = end;
            differs
        });
        self.wake();
    }
}

#[derive(Default)]
pub struct Workers {
    handles: Mutex<HashMap<String, Arc<Handle>>>,
    /// Changes whenever a pod has come further.
    pub stages: watch::Sender<u64>,
}

impl Workers {
    pub fn get(&self, uid: &str) -> Option<Arc<Handle>> {
        self.handles.lock().get(uid).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Handle>> {
        let mut all: Vec<Arc<Handle>> = self.handles.lock().values().cloned().collect();
        all.sort_by(|a, b| a.uid.cmp(&b.uid));
        all
    }

    pub fn by_name(&self, namespace: &str, name: &str) -> Option<Arc<Handle>> {
        let all = self.all();
        let mut found = all.into_iter().filter(|h| {
            let pod = h.pod();
            pods::namespace(&pod) == namespace && pods::name(&pod) == name
        });
        let first = found.next()?;
        // Of two of the same name the one that isn't ending is meant.
        found.chain([first]).max_by_key(|h| h.stage() == Stage::Syncing)
    }

    pub fn wake(&self, uid: &str) {
        if let Some(h) = self.get(uid) {
            h.wake();
        }
    }

    /// Resizes that waited for room may fit now.
    pub fn wake_deferred(&self) {
        self.all().iter().filter(|h| h.view().deferred).for_each(|h| h.wake());
    }

    /// A pod is there, or has changed. Its task is started if it has none.
    pub fn update(&self, kl: &Arc<Kubelet>, pod: Arc<Pod>) {
        let uid = pods::uid(&pod).to_owned();
        let mut handles = self.handles.lock();
        if let Some(h) = handles.get(&uid) {
            h.change(|d| d.pod = pod);
            return;
        }
        let desired = Desired {
            pod,
            removed: false,
            eviction: None,
        };
        let handle = Arc::new(Handle {
            uid: uid.clone(),
            seen: Instant::now(),
            end: watch::Sender::new(desired.end()),
            desired: Mutex::new(desired),
            wake: Notify::new(),
            view: Mutex::new(View {
                stage: Stage::Syncing,
                allocated: None,
                deferred: false,
            }),
        });
        handles.insert(uid, handle.clone());
        drop(handles);
        tokio::spawn(task::run(kl.clone(), handle));
    }

    /// The pod's object is gone.
    pub fn remove(&self, uid: &str) {
        if let Some(h) = self.get(uid) {
            h.change(|d| d.removed = true);
        }
    }

    pub fn evict(&self, uid: &str, eviction: Eviction) {
        if let Some(h) = self.get(uid) {
            h.change(|d| d.eviction = Some(eviction));
        }
    }

    fn moved(&self) {
        self.stages.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn forget(&self, uid: &str) {
        self.handles.lock().remove(uid);
        self.moved();
    }

    /// The pods that hold resources of the node, but for `except`.
    pub fn active(&self, except: &str) -> Vec<Arc<Pod>> {
        self.all()
            .iter()
            .filter(|h| h.uid != except)
            .filter_map(|h| {
                let view = h.view();
                // After a restart one that ran before counts, although its task hasn't come to it yet.
                let before = || Some(h.pod()).filter(|p| pods::status(p).start_time.is_some() && !pods::is_terminal(p));
                matches!(view.stage, Stage::Syncing | Stage::Terminating)
                    .then(|| view.allocated.or_else(before))
                    .flatten()
            })
            .collect()
    }
}
