//! Ending containers: preStop hook, the order of sidecars, then the runtime's stop with what is left of the grace period.

use super::hooks;
use crate::kubelet::Kubelet;
use crate::observe::{self, ContainerView, Observed};
use crate::plan::KillReason;
use crate::pods;
use futures::future::join_all;
use k8s_openapi::api::core::v1::{Container, Lifecycle, LifecycleHandler, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::EventType;
use keelson_cri::v1 as cri;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Never less, so that a container isn't killed before it could react.
const MIN_GRACE: i64 = 2;

/// How long a container gets, by whose wish it ends.
pub fn grace_period(pod: &Pod, c: &Container, reason: KillReason) -> i64 {
    if let Some(grace) = pod.metadata.deletion_grace_period_seconds {
        return grace;
    }
    let Some(own) = pods::spec(pod).termination_grace_period_seconds else {
        return MIN_GRACE;
    };
    let probe = match reason {
        KillReason::LivenessProbe => c.liveness_probe.as_ref(),
        KillReason::StartupProbe => c.startup_probe.as_ref(),
        _ => None,
    };
    probe.and_then(|p| p.termination_grace_period_seconds).unwrap_or(own)
}

/// Lets sidecars end after the containers they serve, the last started first.
pub struct Ordering {
    before: HashMap<String, BTreeSet<String>>,
    ended: watch::Sender<BTreeSet<String>>,
}

impl Ordering {
    pub fn new(pod: &Pod, running: &[&str]) -> Self {
        let mut waits: BTreeSet<String> = pods::containers(pod)
            .iter()
            .map(|c| c.name.clone())
            .filter(|n| running.contains(&n.as_str()))
            .collect();
        let mut before = HashMap::new();
        for c in pods::init_containers(pod).iter().rev().filter(|c| pods::is_sidecar(c)) {
            before.insert(c.name.clone(), waits.clone());
            if running.contains(&c.name.as_str()) {
                waits.insert(c.name.clone());
            }
        }
        Ordering {
            before,
            ended: watch::Sender::new(BTreeSet::new()),
        }
    }

    async fn turn(&self, name: &str, limit: Duration) {
        let Some(before) = self.before.get(name) else { return };
        let mut ended = self.ended.subscribe();
        let all = ended.wait_for(|done| before.is_subset(done));
        // Running out of time is as good as a turn: the grace period counts for all.
        let _ = tokio::time::timeout(limit, all).await;
    }

    fn done(&self, name: &str) {
        self.ended.send_modify(|set| {
            set.insert(name.to_owned());
        });
    }
}

pub struct Kill<'a> {
    pub pod: &'a Pod,
    pub view: &'a ContainerView,
    pub message: &'a str,
    pub reason: KillReason,
    pub grace: Option<i64>,
    pub ordering: Option<&'a Ordering>,
    pub pod_ip: Option<&'a str>,
}

pub async fn container(kl: &Kubelet, kill: &Kill<'_>) -> Result<(), String> {
    let Kill { pod, view, .. } = *kill;
    let result = stop(kl, kill).await;
    if let Some(ordering) = kill.ordering {
        ordering.done(&view.name);
    }
    result.map_err(|e| {
        tracing::warn!(pod = %pods::describe(pod), container = view.name, "stopping a container failed: {e}");
        e
    })
}

async fn stop(kl: &Kubelet, kill: &Kill<'_>) -> Result<(), String> {
    let Kill { pod, view, .. } = *kill;
    let c = pods::find_container(pod, &view.name).unwrap_or_else(|| restored(view).1);
    let mut grace = kill.grace.unwrap_or_else(|| grace_period(pod, &c, kill.reason));
    let message = if kill.message.is_empty() {
        format!("Stopping container {}", view.name)
    } else {
        kill.message.to_owned()
    };
    kl.event(pod, Some(&view.name), EventType::Normal, "Killing", message);
    let begin = Instant::now();
    if let Some(hook) = c
        .lifecycle
        .as_ref()
        .and_then(|l| l.pre_stop.as_ref())
        .filter(|_| grace > 0)
    {
        pre_stop(kl, kill, &c, hook, grace).await;
        grace -= begin.elapsed().as_secs() as i64;
    }
    if let Some(ordering) = kill.ordering.filter(|_| grace > 0) {
        let waited = Instant::now();
        ordering.turn(&view.name, Duration::from_secs(grace as u64)).await;
        grace -= waited.elapsed().as_secs() as i64;
    }
    let request = cri::StopContainerRequest {
        container_id: view.id.clone(),
        timeout: grace.max(MIN_GRACE),
    };
    let waits = keelson_cri::Waits(Duration::from_secs(request.timeout.max(0).unsigned_abs()));
    let mut request = tonic::Request::new(request);
    request.extensions_mut().insert(waits);
    match kl.cri.runtime.clone().stop_container(request).await {
        Err(e) if e.code() != tonic::Code::NotFound => Err(crate::rpc_text(&e)),
        _ => Ok(()),
    }
}

async fn pre_stop(kl: &Kubelet, kill: &Kill<'_>, c: &Container, hook: &LifecycleHandler, grace: i64) {
    let Kill { pod, view, .. } = *kill;
    let run = hooks::run(kl, pod, c, &view.id, kill.pod_ip, hook);
    match tokio::time::timeout(Duration::from_secs(grace as u64), run).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => {
            tracing::info!(pod = %pods::describe(pod), container = view.name, "preStop hook failed: {e}");
            kl.warn(pod, Some(&view.name), "FailedPreStopHook", "PreStopHook failed");
        }
        Err(_) => {
            tracing::info!(pod = %pods::describe(pod), container = view.name, "preStop hook outlasted the grace period")
        }
    }
}

/// All containers at once, in the order their kinds demand; then the sandboxes.
pub async fn pod(kl: &Kubelet, pod: &Pod, observed: &Observed, grace: Option<i64>) -> Result<(), String> {
    let running: Vec<&ContainerView> = observed.running().collect();
    let names: Vec<&str> = running.iter().map(|v| v.name.as_str()).collect();
    let ordering = pods::has_sidecars(pod).then(|| Ordering::new(pod, &names));
    let ips = kl.sorted_ips(observed.ips());
    let pod_ip = ips.first().map(String::as_str);
    let kills: Vec<Kill> = running
        .iter()
        .map(|view| Kill {
            pod,
            view,
            message: "",
            reason: KillReason::Other,
            grace,
            ordering: ordering.as_ref(),
            pod_ip,
        })
        .collect();
    let mut errors: Vec<String> = join_all(kills.iter().map(|k| container(kl, k)))
        .await
        .into_iter()
        .filter_map(Result::err)
        .collect();
    for sandbox in &observed.sandboxes {
        let request = cri::StopPodSandboxRequest {
            pod_sandbox_id: sandbox.id.clone(),
        };
        match kl.cri.runtime.clone().stop_pod_sandbox(request).await {
            Err(e) if e.code() != tonic::Code::NotFound => errors.push(crate::rpc_text(&e)),
            _ => {}
        }
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors.join("; "))
    }
}

/// Removes what is left of a pod in the runtime.
pub async fn remove(kl: &Kubelet, observed: &Observed) -> Result<(), String> {
    let gone = |r: Result<(), tonic::Status>| match r {
        Err(e) if e.code() != tonic::Code::NotFound => Err(crate::rpc_text(&e)),
        _ => Ok(()),
    };
    for c in &observed.containers {
        remove_container(kl, &c.id).await?;
    }
    for s in &observed.sandboxes {
        let request = cri::RemovePodSandboxRequest {
            pod_sandbox_id: s.id.clone(),
        };
        gone(kl.cri.runtime.clone().remove_pod_sandbox(request).await.map(drop))?;
    }
    Ok(())
}

pub async fn remove_container(kl: &Kubelet, id: &str) -> Result<(), String> {
    let request = cri::RemoveContainerRequest {
        container_id: id.to_owned(),
    };
    match kl.cri.runtime.clone().remove_container(request).await {
        Err(e) if e.code() != tonic::Code::NotFound => Err(crate::rpc_text(&e)),
        _ => Ok(()),
    }
}

/// As much of the pod and the container as their marks in the runtime tell, for a pod nobody knows any more.
pub fn restored(view: &ContainerView) -> (Pod, Container) {
    let note = |key: &str| view.annotations.get(key);
    let number = |key: &str| note(key).and_then(|v| v.parse::<i64>().ok());
    let pre_stop: Option<LifecycleHandler> = note(observe::NOTE_PRE_STOP).and_then(|j| serde_json::from_str(j).ok());
    let container = Container {
        name: view.name.clone(),
        ports: note(observe::NOTE_PORTS).and_then(|j| serde_json::from_str(j).ok()),
        lifecycle: pre_stop.map(|h| Lifecycle {
            pre_stop: Some(h),
            ..Default::default()
        }),
        ..Default::default()
    };
    let pod = Pod {
        metadata: ObjectMeta {
            deletion_grace_period_seconds: number(observe::NOTE_DELETION_GRACE),
            ..Default::default()
        },
        spec: Some(PodSpec {
            termination_grace_period_seconds: number(observe::NOTE_POD_GRACE),
            containers: vec![container.clone()],
            ..Default::default()
        }),
        status: None,
    };
    (pod, container)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(
            json!({"metadata": {"name": "p"}, "spec": {"terminationGracePeriodSeconds": 30,
            "initContainers": [{"name": "s1", "restartPolicy": "Always"}, {"name": "s2", "restartPolicy": "Always"}],
            "containers": [{"name": "m", "livenessProbe": {"terminationGracePeriodSeconds": 5}}]}}),
        )
        .unwrap()
    }

    #[test]
    fn a_probes_own_grace_period_counts_for_its_kills() {
        let mut p = pod();
        let c = pods::containers(&p)[0].clone();
        assert_eq!(grace_period(&p, &c, KillReason::LivenessProbe), 5);
        assert_eq!(grace_period(&p, &c, KillReason::Other), 30);
        p.metadata.deletion_grace_period_seconds = Some(7);
        assert_eq!(grace_period(&p, &c, KillReason::LivenessProbe), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn sidecars_wait_for_their_turn() {
        let o = Ordering::new(&pod(), &["m", "s1", "s2"]);
        let begin = Instant::now();
        o.turn("s2", Duration::from_secs(3)).await;
        assert_eq!(begin.elapsed().as_secs(), 3);
        o.done("m");
        o.turn("s2", Duration::from_secs(100)).await;
        o.turn("m", Duration::from_secs(100)).await;
        o.done("s2");
        o.turn("s1", Duration::from_secs(100)).await;
        assert_eq!(begin.elapsed().as_secs(), 3);
    }
}
