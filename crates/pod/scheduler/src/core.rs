//! Cluster and queue under one lock, and the word that there is something to do.

use crate::cluster::Cluster;
use crate::events::ClusterEvent;
use crate::extender;
use crate::plugins::dynamic_resources;
use crate::pod::PodInfo;
use crate::profile::Profile;
use crate::queue::{Backoffs, Queue};
use crate::snapshot::Snapshot;
use crate::told::Told;
use crate::world::World;
use k8s_openapi::api::core::v1::Node;
use keelson_trace::Tracer;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Who decides whose pods, by scheduler name. There are few.
pub type Profiles = Arc<Vec<Arc<Profile>>>;

pub struct Core {
    profiles: Profiles,
    state: Mutex<State>,
    pub changed: Notify,
    /// Told when a pod goes that was being bound.
    pub left: Notify,
}

pub struct State {
    pub cluster: Cluster,
    pub queue: Queue,
}

impl Core {
    pub fn new(
        profiles: Profiles,
        world: Arc<dyn World>,
        backoffs: Backoffs,
        told: Arc<Told>,
        tracer: Tracer,
    ) -> Arc<Core> {
        let asked = profiles.clone();
        let hearing = profiles.clone();
        let hears = move |event: &ClusterEvent, name: &str| {
            // What they look at nobody knows.
            if name == extender::NAME {
                return true;
            }
            let plugins = hearing.iter().flat_map(|profile| &profile.plugins);
            plugins
                .filter(|e| e.plugin.name() == name)
                .any(|e| e.plugin.hears(event))
        };
        let (deciding, ledger) = (profiles.clone(), world.devices());
        let held = move |pod: &PodInfo| {
            let profile = deciding.iter().find(|p| p.scheduler_name == pod.scheduler_name());
            profile.is_some_and(|p| p.allocates()) && dynamic_resources::waits(&pod.pod, &ledger)
        };
        let helps = move |event: &ClusterEvent, pod: &PodInfo, by: &BTreeSet<&'static str>| {
            if by.contains(extender::NAME) {
                return true;
            }
            let profile = asked.iter().find(|p| p.scheduler_name == pod.scheduler_name());
            let plugins = profile.into_iter().flat_map(|p| &p.plugins);
            plugins
                .filter(|e| by.contains(e.plugin.name()))
                .any(|e| e.plugin.hears(event) && e.plugin.helps(event, pod, &*world))
        };
        let state = State {
            cluster: Cluster::default(),
            queue: Queue::new(Box::new(helps), backoffs)
                .heard_by(Box::new(hears))
                .held_by(Box::new(held))
                .telling(told)
                .traced_by(tracer),
        };
        Arc::new(Core {
            profiles,
            state: Mutex::new(state),
            changed: Notify::new(),
            left: Notify::new(),
        })
    }

    fn change<T>(&self, f: impl FnOnce(&mut State, Instant) -> T) -> T {
        let result = f(&mut self.state.lock(), Instant::now());
        self.changed.notify_one();
        result
    }

    pub fn happened(&self, event: ClusterEvent) {
        self.change(|state, now| {
            if matches!(event, ClusterEvent::Namespace) {
                state.cluster.namespaces_changed();
            }
            if let ClusterEvent::Claim { namespace, effect, .. } = &event
                && effect.matters
            {
                state.queue.look_at_held(namespace);
            }
            state.queue.happened(event, now);
        });
    }

    pub fn node_seen(&self, node: Arc<Node>, matters: bool) {
        self.change(|state, now| {
            state.cluster.set_node(node.clone());
            if matters {
                state.queue.happened(ClusterEvent::Node(node), now);
            }
        });
    }

    pub fn node_gone(&self, name: &str) {
        self.change(|state, now| {
            state.cluster.remove_node(name);
            state.queue.happened(ClusterEvent::NodeGone, now);
        });
    }

    pub fn pod_seen(&self, pod: Arc<PodInfo>) {
        self.change(|state, now| match pod.node_name() {
            Some(_) => state.placed(pod, now),
            None if pod.is_deleting() || !self.is_ours(&pod) => {
                self.leaves(state, &pod);
                state.cluster.clear_nomination(pod.uid());
            }
            // Its binding is under way; the API is behind.
            None if state.cluster.is_placed(pod.uid()) => {
                if state.queue.pod(pod.uid()).is_some() {
                    state.queue.set(pod, now);
                }
            }
            None => {
                let was_written = state
                    .queue
                    .pod(pod.uid())
                    .and_then(|old| old.nominated_node())
                    .is_some();
                match pod.nominated_node().map(str::to_owned) {
                    Some(node) => state.cluster.nominate(pod.clone(), &node),
                    // One that isn't written yet stays.
                    None if !was_written => {}
                    None => state.cluster.clear_nomination(pod.uid()),
                }
                state.queue.set(pod, now);
            }
        });
    }

    pub fn pod_gone(&self, pod: Arc<PodInfo>) {
        self.change(|state, now| {
            self.leaves(state, &pod);
            state.cluster.clear_nomination(pod.uid());
            if let Some(pod) = state.cluster.remove_pod(pod.uid()) {
                state.queue.happened(ClusterEvent::PodLeft(pod), now);
            }
        });
    }

    fn leaves(&self, state: &mut State, pod: &PodInfo) {
        if state.queue.is_binding(pod.uid()) {
            self.left.notify_waiters();
        }
        state.queue.remove(pod.uid());
    }

    fn is_ours(&self, pod: &PodInfo) -> bool {
        self.profiles.iter().any(|p| p.scheduler_name == pod.scheduler_name())
    }

    /// The next pod to try; the picture of the cluster is brought up to date. `Err`: when to look again.
    pub fn next(&self, snapshot: &mut Snapshot) -> Result<Arc<PodInfo>, Option<Instant>> {
        let mut state = self.state.lock();
        match state.queue.pop(Instant::now()) {
            Some(pod) => {
                state.cluster.update(snapshot);
                Ok(pod)
            }
            None => Err(state.queue.next_time()),
        }
    }

    pub fn look<T>(&self, f: impl FnOnce(&State) -> T) -> T {
        f(&self.state.lock())
    }

    /// For what the scheduling loop does itself.
    pub fn with<T>(&self, f: impl FnOnce(&mut State, Instant) -> T) -> T {
        self.change(f)
    }
}

impl State {
    fn placed(&mut self, pod: Arc<PodInfo>, now: Instant) {
        self.queue.remove(pod.uid());
        self.cluster.clear_nomination(pod.uid());
        let old = self.cluster.remove_pod(pod.uid());
        self.cluster.set_pod(pod.clone());
        let Some(old) = old else {
            return self.queue.happened(ClusterEvent::PodPlaced(pod), now);
        };
        let mut freed = old.requests.clone();
        freed.sub(&pod.requests);
        let needs_less = freed.milli_cpu > 0 || freed.memory > 0 || freed.ephemeral_storage > 0;
        let is_other = old.labels() != pod.labels();
        if is_other {
            self.queue.happened(ClusterEvent::PodPlaced(pod.clone()), now);
        }
        // One that only ends still takes its room.
        if needs_less || is_other {
            self.queue.happened(ClusterEvent::PodLeft(old), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Why;
    use crate::world::Fixed;
    use keelson_measure::Measures;
    use serde_json::json;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn whom_an_extender_refused_anything_may_help() {
        let profiles: Profiles = Arc::new(vec![Arc::default()]);
        let told = Told::new(&Measures::default());
        let world = Arc::new(Fixed::default());
        let core = Core::new(profiles, world.clone(), Backoffs::default(), told, Tracer::none());
        let mut snapshot = Snapshot::new(world);
        let pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "u"}, "spec": {"containers": []}});
        core.pod_seen(Arc::new(PodInfo::of(Arc::new(serde_json::from_value(pod).unwrap()))));
        for (by, is_tried) in [("NodePorts", false), (extender::NAME, true)] {
            let pod = core.next(&mut snapshot).unwrap();
            let why = Why {
                plugins: BTreeSet::from([by]),
                ..Why::default()
            };
            core.with(|state, now| state.queue.refused(pod.uid(), Arc::new(why), now));
            core.happened(ClusterEvent::Namespace);
            tokio::time::advance(Duration::from_secs(20)).await;
            assert_eq!(core.next(&mut snapshot).is_ok(), is_tried, "{by}");
            core.happened(ClusterEvent::Anything);
            tokio::time::advance(Duration::from_secs(20)).await;
        }
    }
}
