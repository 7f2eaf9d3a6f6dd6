//! One step towards a running pod: look, admit, prepare what it needs, then do what the plan says.

use super::start::RETRY_START;
use super::task::{Next, Worker};
use super::{Stage, finish};
use crate::act::kill::{self, Kill};
use crate::objects;
use crate::plan::{self, Actions};
use crate::pods;
use crate::resources::{admit, allocation};
#[cfg(test)]
use crate::status::conditions;
use crate::volumes::{Mounted, NodeView, Problem};
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use tokio::time::Instant;

impl Worker {
    pub(super) async fn sync(&mut self) -> Next {
        let desired = self.handle.desired();
        let api = desired.pod.clone();
        if self.observe().await.is_err() {
            return Next::Wait(Some(self.retry.next()));
        }
        if pods::is_terminal(&api) {
            return self.stop_running();
        }
        let pod = match self.admit(&api).await {
            Ok(Some(pod)) => pod,
            Ok(None) => {
                self.publish(&api, true);
                return self.stop_running();
            }
            Err(e) => return self.later(&api, &e),
        };
        if let Some(next) = self.past_deadline(&pod) {
            return next;
        }
        self.kl.probes.sync(&self.kl, &pod, &self.observed, &self.status);
        self.publish(&pod, false);
        if pods::is_terminal_phase(self.status.phase.as_deref()) {
            return self.stop_running();
        }
        if !self.kl.node.network_ready() && !pods::is_host_network(&pod) {
            crate::node::refresh_runtime(&self.kl).await;
            if let Some(why) = self.kl.node.network_problem() {
                let message = format!("network is not ready: container runtime network not ready: {why}");
                self.kl.warn(&pod, None, "NetworkNotReady", message);
                return Next::Wait(Some(self.retry.next()));
            }
        }
        let (volumes, refresh) = match self.prepare(&pod).await {
            Ok(ready) => ready,
            Err(e) => return self.later(&pod, &e),
        };
        let before = self.fingerprint();
        let result = self.carry_out(&pod, &volumes).await;
        if self.observe().await.is_err() {
            return Next::Wait(Some(self.retry.next()));
        }
        self.finish_resize(&pod);
        self.kl.probes.sync(&self.kl, &pod, &self.observed, &self.status);
        // The object may have changed while the step ran.
        let now = finish::with_meta(&pod, &self.handle.pod());
        self.publish(&now, false);
        if pods::is_terminal_phase(self.status.phase.as_deref()) {
            return self.stop_running();
        }
        self.prune().await;
        if before != self.fingerprint() {
            // Something came to be; whatever depends on it may be next.
            self.handle.wake();
        }
        let wakes = [
            result.err(),
            self.next_start(),
            refresh.map(|at| self.kl.instant_at(at)),
            self.deadline(&pod),
        ];
        Next::Wait(wakes.into_iter().flatten().min())
    }

    fn stop_running(&mut self) -> Next {
        self.set_stage(Stage::Terminating);
        Next::Again
    }

    fn later(&mut self, pod: &Pod, error: &str) -> Next {
        tracing::info!(pod = %pods::describe(pod), "the pod can't go on and is tried again: {error}");
        Next::Wait(Some(self.retry.next()))
    }

    /// What tells whether a step changed anything in the runtime.
    fn fingerprint(&self) -> HashSet<(String, i32)> {
        let containers = self.observed.containers.iter().map(|c| (c.id.clone(), c.state as i32));
        let sandboxes = self
            .observed
            .sandboxes
            .iter()
            .map(|s| (s.id.clone(), i32::from(s.ready)));
        containers.chain(sandboxes).collect()
    }

    /// The pod as it is allocated, or `None` when the node won't have it.
    async fn admit(&mut self, api: &Pod) -> Result<Option<Arc<Pod>>, String> {
        if !self.admitted {
            let kl = self.kl.clone();
            let started = pods::status(api).start_time.is_some() || !self.observed.containers.is_empty();
            // A plug-in may take its time over it: nobody else's admission waits for that.
            if !started && let Err(no) = self.give(api).await {
                kl.metrics.rejections.with_label_values(&[&no.reason]).inc();
                self.fail(&no.reason, &no.message);
                return Ok(None);
            }
            let one = kl.admission.lock().await;
            if !started && let Err(no) = admit::check(&kl, api, &kl.workers.active(&self.handle.uid)) {
                drop(one);
                kl.metrics.rejections.with_label_values(&[&no.reason]).inc();
                self.fail(&no.reason, &no.message);
                return Ok(None);
            }
            self.record.allocated = if started {
                granted_before(api)
            } else {
                allocation::grant(api)
            };
            self.save_record()?;
            self.admitted = true;
            kl.metrics
                .containers_per_pod
                .observe(pods::containers(api).len() as f64);
            let view = allocation::apply(api, &self.record.allocated);
            self.handle.view.lock().allocated = Some(Arc::new(view));
        }
        self.allocate(api).await.map(Some)
    }

    /// What its containers have for themselves, unless the machine stops: then nothing is asked for.
    async fn give(&self, api: &Pod) -> Result<(), admit::Rejection> {
        admit::shutting_down(self.kl.shutdown.is_under_way())?;
        self.kl.managers.admit(&self.kl.devices, api).await
    }

    fn deadline(&self, pod: &Pod) -> Option<Instant> {
        let seconds = pods::spec(pod).active_deadline_seconds?;
        let start = self
            .status
            .start_time
            .as_ref()
            .or(pods::status(pod).start_time.as_ref())?;
        let end = start.0.checked_add(jiff::SignedDuration::from_secs(seconds)).ok()?;
        Some(self.kl.instant_at(end))
    }

    fn past_deadline(&mut self, pod: &Pod) -> Option<Next> {
        if self.deadline(pod)? > Instant::now() {
            return None;
        }
        self.fail(
            "DeadlineExceeded",
            "Pod was active on the node longer than the specified deadline",
        );
        self.publish(pod, false);
        Some(self.stop_running())
    }

    /// The cgroup, the directories, the objects and the volumes that containers need.
    async fn prepare(
        &mut self,
        pod: &Arc<Pod>,
    ) -> Result<(BTreeMap<String, Mounted>, Option<jiff::Timestamp>), String> {
        let kl = self.kl.clone();
        let uid = &self.handle.uid.clone();
        if !self.cgroup_made {
            let limits = kl.pod_limits(pod, kl.cfg.pod_pids_limit);
            let making = kl.metrics.cgroups.with_label_values(&["create"]).start_timer();
            let made = kl.host.create_cgroup(&kl.cgroup_of(pod), &limits);
            making.observe_duration();
            match made {
                Err(e) if e.kind() != std::io::ErrorKind::Unsupported => {
                    let message =
                        format!("failed to ensure that the pod: {uid} cgroups exist and are correctly applied: {e}");
                    kl.warn(pod, None, "FailedCreatePodContainer", message.clone());
                    return Err(message);
                }
                _ => {}
            }
            self.cgroup_made = true;
            kl.workers.set_classes(&kl);
            self.record
                .actuated_pod
                .get_or_insert_with(|| allocation::pod_amounts(pod));
            for dir in [
                kl.layout.pod(uid),
                kl.layout.volumes(uid),
                kl.layout.pod(uid).join("plugins"),
            ] {
                kl.host.make_dir(&dir, 0o750).map_err(|e| {
                    let message = format!("error making pod data directories: {e}");
                    kl.warn(pod, None, "Failed", message.clone());
                    message
                })?;
            }
            self.save_record()?;
        }
        let (maps, secrets) = objects::references(pod);
        let tools = &kl.volumes.tools;
        tools.config_maps.set(uid, maps);
        tools.secrets.set(uid, secrets);
        tools.config_maps.ready(uid).await?;
        tools.secrets.ready(uid).await?;
        let node = Arc::new(NodeView {
            name: kl.cfg.node_name.clone(),
            uid: kl.node.uid(),
            labels: kl.node.labels(),
            host_ips: kl.cfg.node_ips.clone(),
            pod_ips: kl.sorted_ips(self.observed.ips()),
            allocatable: kl.allocatable(),
        });
        match kl.volumes.ensure(pod, &node).await {
            Ok(done) => {
                self.retry.reset();
                Ok(done)
            }
            Err(problems) => Err(self.tell(pod, &problems)),
        }
    }

    /// Tells of volumes that aren't there, and sums it up.
    fn tell(&self, pod: &Pod, problems: &[Problem]) -> String {
        let (mut missing, mut unclear, mut messages) = (Vec::new(), Vec::new(), Vec::new());
        for problem in problems {
            match problem {
                Problem::Unclear { volume, message } => {
                    missing.push(volume.as_str());
                    unclear.push(volume.as_str());
                    messages.push(message.clone());
                }
                Problem::Failed { volume, name, failure } => {
                    missing.push(volume.as_str());
                    let text = format!("{} for volume \"{name}\" : {}", failure.step, failure.message);
                    if let Some(reason) = failure.reason {
                        self.kl.warn(pod, None, reason, text.clone());
                    }
                    messages.push(text);
                }
            }
        }
        let all = messages.join("; ");
        if !unclear.is_empty() {
            let (missing, unclear) = (missing.join(" "), unclear.join(" "));
            let text = format!(
                "Unable to attach or mount volumes: unmounted volumes=[{missing}], unattached volumes=[], failed to process \
                 volumes=[{unclear}]: {all}"
            );
            self.kl.warn(pod, None, "FailedMount", text);
        }
        all
    }

    /// Carries out the plan; an error says when to try again.
    async fn carry_out(&mut self, pod: &Arc<Pod>, volumes: &BTreeMap<String, Mounted>) -> Result<(), Instant> {
        let kl = self.kl.clone();
        let restart_all = plan::wants_restart_all(pod, &self.observed, &self.status);
        if restart_all && self.observed.containers.is_empty() {
            // All is gone: from here on it is a start like any other.
            if let Some(c) = self
                .status
                .conditions
                .iter_mut()
                .flatten()
                .find(|c| c.type_ == "AllContainersRestarting")
            {
                c.status = "False".into();
            }
            return Err(Instant::now());
        }
        let actions = plan::compute(&plan::Input {
            pod,
            observed: &self.observed,
            probes: &kl.probes.results(&self.handle.uid),
            actuated: &self.actuated(),
            actuated_pod: self.record.actuated_pod.as_ref(),
            restart_all,
        });
        tracing::debug!(pod = %pods::describe(pod), ?actions, "plan");
        self.failures.retain(|name, _| {
            // A reason stays until its container runs.
            self.observed
                .find(name)
                .is_none_or(|v| v.state != crate::observe::State::Running)
        });
        let retry = |e: String| {
            tracing::info!(pod = %pods::describe(pod), "{e}");
            Instant::now() + RETRY_START
        };
        self.end_unwanted(pod, &actions).await.map_err(retry)?;
        if actions.kill_pod && !actions.create_sandbox {
            return Ok(());
        }
        self.start_wanted(pod, volumes, &actions).await
    }

    async fn end_unwanted(&mut self, pod: &Pod, actions: &Actions) -> Result<(), String> {
        let kl = self.kl.clone();
        if actions.kill_pod {
            if actions.create_sandbox && !self.observed.sandboxes.is_empty() {
                let message = "Pod sandbox changed, it will be killed and re-created.".into();
                kl.event(pod, None, keelson_client::EventType::Normal, "SandboxChanged", message);
            }
            kill::pod(&kl, pod, &self.observed, None).await?;
            if actions.create_sandbox {
                for name in pods::init_containers(pod).iter().map(|c| &c.name) {
                    for v in self.observed.containers.iter().filter(|v| v.name == *name) {
                        kill::remove_container(&kl, &v.id).await?;
                    }
                }
            }
            return Ok(());
        }
        let ips = kl.sorted_ips(self.observed.ips());
        let pod_ip = ips.first().map(String::as_str);
        for k in &actions.kill {
            let Some(view) = self.observed.containers.iter().find(|v| v.id == k.id) else {
                continue;
            };
            let kill = Kill {
                pod,
                view,
                message: &k.message,
                reason: k.reason,
                grace: None,
                ordering: None,
                pod_ip,
            };
            kill::container(&kl, &kill).await?;
        }
        for r in &actions.reset {
            let Some(view) = self.observed.containers.iter().find(|v| v.id == r.id) else {
                continue;
            };
            if r.kill {
                let reason = plan::KillReason::RestartAll;
                let kill = Kill {
                    pod,
                    view,
                    message: "killing",
                    reason,
                    grace: Some(0),
                    ordering: None,
                    pod_ip,
                };
                kill::container(&kl, &kill).await?;
            }
            kill::remove_container(&kl, &r.id).await?;
        }
        Ok(())
    }

    /// When the first container that is held back may be tried again.
    fn next_start(&self) -> Option<Instant> {
        self.hold
            .values()
            .map(|(_, until)| *until)
            .filter(|until| *until > Instant::now())
            .min()
    }
}

/// The allocation of a pod that ran before its record was lost: what its status says, else what it asks.
fn granted_before(pod: &Pod) -> BTreeMap<String, k8s_openapi::api::core::v1::ResourceRequirements> {
    let mut all = allocation::grant(pod);
    if pods::condition(pods::status(pod), "PodResizePending").is_none() {
        return all;
    }
    for (name, resources) in &mut all {
        if let Some(s) = pods::any_status(pods::status(pod), name) {
            if let Some(allocated) = &s.allocated_resources {
                resources.requests = Some(allocated.clone());
            }
            if let Some(actual) = s.resources.as_ref().and_then(|r| r.limits.clone()) {
                resources.limits = Some(actual);
            }
        }
    }
    all
}

/// Conditions that are never the kubelet's stay with their owners; this names the others for tests.
#[cfg(test)]
#[test]
fn readiness_gates_are_not_ours() {
    assert!(conditions::is_ours("Ready") && !conditions::is_ours("example.com/gate"));
}
