//! Probes: one task for each running container that has any. Their results decide readiness, start and liveness.
//!
//! Results are kept by container instance; a change wakes the pod's task, which draws the conclusions.

pub mod check;
pub mod grpc;
pub mod http;
mod runner;

use crate::kubelet::Kubelet;
use crate::metrics::Metrics;
use crate::observe::{Observed, State};
use crate::plan::ProbeResults;
use crate::pods;
use crate::status::generate::Readiness;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

/// What is known of one container instance.
#[derive(Default)]
struct Instance {
    results: HashMap<Kind, bool>,
    stop: CancellationToken,
    /// Ends startup and liveness probes alone: the pod is being ended anyway.
    stop_restarts: CancellationToken,
}

#[derive(Default)]
pub struct Probes {
    pods: Mutex<HashMap<String, HashMap<String, Instance>>>,
}

fn has_probe(c: &Container) -> bool {
    c.readiness_probe.is_some() || c.liveness_probe.is_some() || c.startup_probe.is_some()
}

/// The containers that can have probes.
fn probed(pod: &Pod) -> impl Iterator<Item = &Container> {
    let sidecars = pods::init_containers(pod).iter().filter(|c| pods::is_sidecar(c));
    pods::containers(pod).iter().chain(sidecars).filter(|c| has_probe(c))
}

impl Probes {
    /// Starts tasks for instances that run, and ends those of instances that don't.
    pub fn sync(&self, kl: &Arc<Kubelet>, pod: &Arc<Pod>, observed: &Observed, status: &PodStatus) {
        let mut running: HashMap<String, (&Container, i64)> = HashMap::new();
        for c in probed(pod) {
            if let Some(v) = observed.find(&c.name).filter(|v| v.state == State::Running) {
                running.insert(v.id.clone(), (c, v.started));
            }
        }
        let uid = pods::uid(pod);
        let mut all = self.pods.lock();
        if running.is_empty() && !all.contains_key(uid) {
            return;
        }
        let known = all.entry(uid.to_owned()).or_default();
        known.retain(|id, i| {
            let keep = running.contains_key(id);
            if !keep {
                i.stop.cancel();
            }
            keep
        });
        for (id, (c, started)) in running {
            if known.contains_key(&id) {
                continue;
            }
            let mut instance = Instance::default();
            seed(kl, c, &id, started, status, &mut instance);
            let begun = instance.results.get(&Kind::Startup).copied() == Some(true) || c.startup_probe.is_none();
            let task = runner::Task {
                kl: kl.clone(),
                pod: pod.clone(),
                container: c.clone(),
                id: id.clone(),
                ip: kl.sorted_ips(observed.ips()).first().cloned().or_else(|| {
                    pods::is_host_network(pod)
                        .then(|| kl.cfg.node_ips.first().cloned())
                        .flatten()
                }),
                begin: kl.instant_of(started),
                started: watch::Sender::new(begun),
                stop: instance.stop.clone(),
                stop_restarts: instance.stop_restarts.clone(),
            };
            known.insert(id, instance);
            tokio::spawn(runner::run(task));
        }
    }

    /// Notes a result; true when it is news.
    fn set(&self, uid: &str, id: &str, kind: Kind, good: bool) -> bool {
        let mut all = self.pods.lock();
        let Some(instance) = all.get_mut(uid).and_then(|p| p.get_mut(id)) else {
            return false;
        };
        instance.results.insert(kind, good) != Some(good)
    }

    pub fn results(&self, uid: &str) -> ProbeResults {
        let all = self.pods.lock();
        let of = |kind: Kind| {
            all.get(uid)
                .into_iter()
                .flatten()
                .filter_map(|(id, i)| Some((id.clone(), *i.results.get(&kind)?)))
                .collect()
        };
        ProbeResults {
            startup: of(Kind::Startup),
            liveness: of(Kind::Liveness),
        }
    }

    pub fn readiness(&self, uid: &str, pod: &Pod) -> Readiness {
        let all = self.pods.lock();
        let of = |kind: Kind| -> HashMap<String, bool> {
            all.get(uid)
                .into_iter()
                .flatten()
                .map(|(id, i)| (id.clone(), i.results.get(&kind).copied().unwrap_or(false)))
                .collect()
        };
        Readiness {
            ready: of(Kind::Readiness),
            started: of(Kind::Startup),
            has_readiness: probed(pod)
                .filter(|c| c.readiness_probe.is_some())
                .map(|c| c.name.clone())
                .collect(),
            has_startup: probed(pod)
                .filter(|c| c.startup_probe.is_some())
                .map(|c| c.name.clone())
                .collect(),
        }
    }

    /// The pod is ending: it isn't restarted any more, but its readiness is still told.
    pub fn terminating(&self, uid: &str) {
        for instance in self.pods.lock().get(uid).into_iter().flat_map(|p| p.values()) {
            instance.stop_restarts.cancel();
        }
    }

    pub fn forget(&self, metrics: &Metrics, pod: &Pod) {
        let instances = self.pods.lock().remove(pods::uid(pod));
        for instance in instances.into_iter().flat_map(HashMap::into_values) {
            instance.stop.cancel();
        }
        probed(pod).for_each(|c| metrics.forget_probes(pod, &c.name));
    }
}

/// What ran before this kubelet started keeps what was last told of it, until a probe says otherwise.
fn seed(kl: &Kubelet, c: &Container, id: &str, started: i64, status: &PodStatus, instance: &mut Instance) {
    if i128::from(started) >= kl.started.as_nanosecond() {
        return;
    }
    let told = pods::any_status(status, &c.name).filter(|s| {
        s.container_id
            .as_deref()
            .and_then(|i| i.split_once("://"))
            .is_some_and(|(_, i)| i == id)
    });
    let Some(told) = told else { return };
    if c.readiness_probe.is_some() && told.ready {
        instance.results.insert(Kind::Readiness, true);
    }
    if c.startup_probe.is_some() && told.started == Some(true) {
        instance.results.insert(Kind::Startup, true);
    }
}
