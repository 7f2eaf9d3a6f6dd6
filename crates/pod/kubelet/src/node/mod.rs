//! The node itself: what it is, how it is, and telling the API so.

pub mod lease;
pub mod status;
pub mod sync;

use crate::claims::Wipe;
use crate::kubelet::Kubelet;
use crate::plugins;
use crate::resources::quantity::ResourceList;
use keelson_cri::v1 as cri;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

#[derive(Clone, Debug, Default)]
pub(crate) struct RuntimeView {
    /// Why the runtime or its network isn't ready.
    pub runtime_problem: Option<String>,
    pub network_problem: Option<String>,
    /// Handler name to (recursive read-only mounts, user namespaces).
    pub handlers: BTreeMap<String, (bool, bool)>,
    pub supplemental_groups_policy: bool,
}

#[derive(Default)]
struct Inner {
    capacity: ResourceList,
    allocatable: ResourceList,
    labels: BTreeMap<String, String>,
    uid: String,
    pressures: BTreeSet<&'static str>,
    /// Why volumes of drivers can't be used yet.
    storage_problem: Option<String>,
    runtime: RuntimeView,
}

/// What is known of the node, for all who ask.
#[derive(Default)]
pub struct NodeState {
    inner: Mutex<Inner>,
    /// Something that stands in the node's status may have changed.
    pub changed: Arc<Notify>,
}

impl NodeState {
    pub fn new(capacity: ResourceList, allocatable: ResourceList) -> Self {
        let state = NodeState::default();
        *state.inner.lock() = Inner {
            capacity,
            allocatable,
            runtime: RuntimeView {
                runtime_problem: Some("the container runtime has not been asked yet".into()),
                network_problem: Some("the container runtime has not been asked yet".into()),
                ..RuntimeView::default()
            },
            ..Inner::default()
        };
        state
    }

    pub fn capacity(&self) -> ResourceList {
        self.inner.lock().capacity.clone()
    }

    pub fn allocatable(&self) -> ResourceList {
        self.inner.lock().allocatable.clone()
    }

    pub fn labels(&self) -> BTreeMap<String, String> {
        self.inner.lock().labels.clone()
    }

    pub fn uid(&self) -> String {
        self.inner.lock().uid.clone()
    }

    pub(crate) fn set_object(&self, labels: BTreeMap<String, String>, uid: String) {
        let mut inner = self.inner.lock();
        inner.labels = labels;
        inner.uid = uid;
    }

    /// `MemoryPressure` and the like, as far as they hold.
    pub fn pressures(&self) -> Vec<&'static str> {
        self.inner.lock().pressures.iter().copied().collect()
    }

    pub fn set_pressures(&self, now: BTreeSet<&'static str>) {
        let mut inner = self.inner.lock();
        if inner.pressures != now {
            inner.pressures = now;
            self.changed.notify_one();
        }
    }

    pub fn storage_problem(&self) -> Option<String> {
        self.inner.lock().storage_problem.clone()
    }

    pub fn set_storage_problem(&self, problem: Option<String>) {
        let before = std::mem::replace(&mut self.inner.lock().storage_problem, problem.clone());
        if before != problem {
            self.changed.notify_one();
        }
    }

    pub fn network_ready(&self) -> bool {
        self.inner.lock().runtime.network_problem.is_none()
    }

    pub fn network_problem(&self) -> Option<String> {
        self.inner.lock().runtime.network_problem.clone()
    }

    pub(crate) fn runtime(&self) -> RuntimeView {
        self.inner.lock().runtime.clone()
    }

    pub fn recursive_read_only(&self, handler: &str) -> bool {
        self.inner.lock().runtime.handlers.get(handler).is_some_and(|h| h.0)
    }

    pub fn user_namespaces(&self, handler: &str) -> bool {
        self.inner.lock().runtime.handlers.get(handler).is_some_and(|h| h.1)
    }
}

/// Asks the runtime how it is.
pub async fn refresh_runtime(kl: &Kubelet) {
    let view = match kl
        .cri
        .runtime
        .clone()
        .status(cri::StatusRequest { verbose: false })
        .await
    {
        Ok(answer) => view(answer.into_inner()),
        Err(e) => RuntimeView {
            runtime_problem: Some(format!("container runtime is down: {}", e.message())),
            network_problem: Some(format!("container runtime is down: {}", e.message())),
            ..kl.node.runtime()
        },
    };
    let mut inner = kl.node.inner.lock();
    let differs = inner.runtime.runtime_problem != view.runtime_problem
        || inner.runtime.network_problem != view.network_problem
        || inner.runtime.handlers != view.handlers;
    let network_came = inner.runtime.network_problem.is_some() && view.network_problem.is_none();
    inner.runtime = view;
    drop(inner);
    if network_came {
        // Pods that waited for it can go on.
        kl.workers.all().iter().for_each(|h| h.wake());
    }
    if differs {
        kl.node.changed.notify_one();
    }
}

fn view(answer: cri::StatusResponse) -> RuntimeView {
    let conditions: HashMap<String, cri::RuntimeCondition> = answer
        .status
        .unwrap_or_default()
        .conditions
        .into_iter()
        .map(|c| (c.r#type.clone(), c))
        .collect();
    let problem = |kind: &str| match conditions.get(kind) {
        Some(c) if c.status => None,
        Some(c) => Some(format!("{kind}=false reason:{} message:{}", c.reason, c.message)),
        None => Some(format!("{kind} is not reported")),
    };
    RuntimeView {
        runtime_problem: problem(keelson_cri::RUNTIME_READY),
        network_problem: problem(keelson_cri::NETWORK_READY),
        handlers: answer
            .runtime_handlers
            .into_iter()
            .map(|h| {
                let f = h.features.unwrap_or_default();
                (h.name, (f.recursive_read_only_mounts, f.user_namespaces))
            })
            .collect(),
        supplemental_groups_policy: answer.features.is_some_and(|f| f.supplemental_groups_policy),
    }
}

/// Makes sure that the node has the object that says which drivers it has. A node that hasn't isn't ready.
async fn initialize_drivers(kl: &Kubelet) -> bool {
    let problem = match kl.volumes.csi.initialize().await {
        Ok(()) => None,
        Err(e) => Some(format!("failed to initialize CSINode: {e}")),
    };
    kl.node.set_storage_problem(problem.clone());
    problem.is_none()
}

async fn start_drivers(kl: &Kubelet) {
    let mut delay = Duration::from_millis(30);
    while kl.node.storage_problem().is_some() && !initialize_drivers(kl).await {
        tokio::time::sleep(delay).await;
        delay = (delay * 8).min(Duration::from_secs(60));
    }
    // No driver has registered with this kubelet yet.
    let claims = kl.claims.clone();
    tokio::spawn(async move { claims.wipe(Wipe::All).await });
    let dir = kl.layout.root.join("plugins_registry");
    tokio::spawn(plugins::follow(
        kl.host.clone(),
        dir,
        kl.plugins.clone(),
        kl.stop.clone(),
    ));
}

/// Starts everything about the node; returns once it is registered.
pub async fn start(kl: &Arc<Kubelet>) -> anyhow::Result<()> {
    refresh_runtime(kl).await;
    kl.node
        .set_storage_problem(Some("CSINode is not yet initialized".into()));
    sync::start(kl).await?;
    let drivers = kl.clone();
    tokio::spawn(async move {
        let stop = drivers.stop.clone();
        stop.run_until_cancelled(start_drivers(&drivers)).await;
    });
    tokio::spawn(lease::run(kl.clone()));
    Ok(())
}
