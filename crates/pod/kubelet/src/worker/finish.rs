//! The end of a pod: its containers end with grace, what it held is given back, and then its object goes.

use super::Stage;
use super::task::{Next, Worker};
use crate::act::{kill, start};
use crate::observe::{ContainerView, State};
use crate::pods;
use crate::status::generate;
use keelson_client::EventType;
use std::collections::HashSet;
use std::sync::Arc;

impl Worker {
    /// Ends all containers and sandboxes.
    pub(super) async fn terminate(&mut self, grace: Option<i64>) -> Next {
        let desired = self.handle.desired();
        if let Some(e) = &desired.eviction
            && self.failure.is_none()
        {
            self.failure = Some((e.reason.clone(), e.message.clone()));
            self.disruption = e.condition.clone();
        }
        let pod = self.handle.view().allocated.unwrap_or_else(|| desired.pod.clone());
        let pod = with_meta(&pod, &desired.pod);
        self.kl.probes.terminating(&self.handle.uid);
        if self.observe().await.is_err() {
            return Next::Wait(Some(self.retry.next()));
        }
        self.publish(&pod, false);
        // What was begun before the end was asked for must not come into being after it.
        self.inflight.close();
        self.inflight.wait().await;
        if self.observe().await.is_err() {
            return Next::Wait(Some(self.retry.next()));
        }
        if let Err(e) = self.kill_and_tell(&pod, grace).await {
            self.kl
                .warn(&pod, None, "FailedKillPod", format!("error killing pod: {e}"));
            return Next::Wait(Some(self.retry.next()));
        }
        if self.observe().await.is_err() {
            return Next::Wait(Some(self.retry.next()));
        }
        if !generate::all_stopped(&self.observed) {
            return Next::Wait(Some(self.retry.next()));
        }
        // Before the end is told: then claims are given to others.
        while let Err(e) = self.kl.claims.unprepare(&self.handle.uid).await {
            tracing::warn!(pod = %pods::describe(&pod), "devices can't be given back, which is tried again: {e}");
            // Here: what has ended isn't ended once more, which the runtime would tell of each time.
            let (handle, again) = (self.handle.clone(), self.retry.next());
            tokio::select! {
                () = self.kl.stop.cancelled() => return Next::Wait(None),
                () = handle.wake.notified() => {}
                () = tokio::time::sleep_until(again) => {}
            }
        }
        self.kl.probes.forget(&self.kl.metrics, &self.handle.pod());
        self.publish(&pod, true);
        self.set_stage(Stage::Terminated);
        Next::Again
    }

    /// Ends everything, and tells the API meanwhile what has ended.
    async fn kill_and_tell(
        &mut self,
        pod: &Arc<k8s_openapi::api::core::v1::Pod>,
        grace: Option<i64>,
    ) -> Result<(), String> {
        let (kl, observed, handle) = (self.kl.clone(), self.observed.clone(), self.handle.clone());
        let killing = kill::pod(&kl, pod, &observed, grace);
        tokio::pin!(killing);
        loop {
            tokio::select! {
                result = &mut killing => return result,
                () = handle.wake.notified() => {
                    // Not being able to look is no reason to stop killing.
                    if self.observe().await.is_ok() {
                        let now = with_meta(pod, &handle.pod());
                        self.publish(&now, false);
                    }
                }
            }
        }
    }

    /// Gives back volumes and cgroup.
    pub(super) async fn clean_up(&mut self) -> Next {
        let pod = self.handle.pod();
        let uid = self.handle.uid.clone();
        let kl = self.kl.clone();
        let cgroup = kl.cgroup_of(&pod);
        let result = async {
            kl.volumes.tear_down(&uid).await?;
            let host = kl.host.clone();
            let removing = kl.metrics.cgroups.with_label_values(&["destroy"]).start_timer();
            let removed = tokio::task::spawn_blocking(move || host.remove_cgroup(&cgroup)).await;
            removing.observe_duration();
            removed
                .map_err(|e| e.to_string())?
                .map_err(|e| format!("removing the pod's cgroup: {e}"))
        };
        if let Err(e) = result.await {
            tracing::warn!(pod = %pods::describe(&pod), "cleaning up failed and is tried again: {e}");
            return Next::Wait(Some(self.retry.next()));
        }
        self.kl.userns.release(&self.handle.uid);
        self.kl.devices.release(&self.handle.uid);
        self.set_stage(Stage::Finished);
        self.kl.workers.set_classes(&self.kl);
        Next::Again
    }

    /// A finished pod waits for its deletion. Then its object is deleted, and its containers and logs with it.
    pub(super) async fn last_words(&mut self) -> Next {
        let desired = self.handle.desired();
        let pod = &desired.pod;
        if !desired.removed && pod.metadata.deletion_timestamp.is_none() {
            return Next::Wait(None);
        }
        if !desired.removed && !pods::is_static(pod) {
            // The terminal status has to be told before the object is gone.
            if !self.kl.status.flush(&self.handle.uid).await {
                return Next::Wait(Some(self.retry.next()));
            }
            if let Err(e) = self.kl.status.delete(pod).await {
                tracing::warn!(pod = %pods::describe(pod), "deleting the pod's object failed: {}", crate::error_text(&e));
                return Next::Wait(Some(self.retry.next()));
            }
        }
        if self.observe().await.is_err() || kill::remove(&self.kl, &self.observed).await.is_err() {
            return Next::Wait(Some(self.retry.next()));
        }
        let logs = self
            .kl
            .layout
            .pod_logs(pods::namespace(pod), pods::name(pod), pods::uid(pod));
        let kept = match &self.kl.cfg.attic {
            Some(attic) => attic.take(&*self.kl.host, &logs),
            None => Ok(()),
        };
        // What can't be kept isn't left lying about, whatever kept it from being kept.
        if let Err(e) = kept.and(self.kl.host.remove_tree(&logs)) {
            tracing::warn!(pod = %pods::describe(pod), "removing the pod's logs failed: {e}");
        }
        self.kl.status.forget(&self.handle.uid);
        self.kl.images.forget(&self.handle.uid);
        let uid = self.handle.uid.clone();
        self.kl.crash.lock().retain(|k| !k.starts_with(&uid));
        Next::Done
    }

    /// Of each container one dead instance is kept, for its log and its last state; older ones go, with their logs. So do
    /// sandboxes that nothing is left of.
    pub(super) async fn prune(&mut self) {
        let old: Vec<(String, String)> = surplus(&self.observed.containers)
            .map(|c| (c.id.clone(), c.log_path.clone()))
            .collect();
        let gone: HashSet<&str> = old.iter().map(|(id, _)| id.as_str()).collect();
        let in_use: HashSet<&str> = self
            .observed
            .containers
            .iter()
            .filter(|c| !gone.contains(c.id.as_str()))
            .map(|c| c.sandbox_id.as_str())
            .collect();
        let empty: Vec<String> = self
            .observed
            .sandboxes
            .iter()
            .skip(1)
            .filter(|s| !s.ready && !in_use.contains(s.id.as_str()))
            .map(|s| s.id.clone())
            .collect();
        for (id, log) in old {
            if let Err(e) = kill::remove_container(&self.kl, &id).await {
                tracing::warn!(uid = self.handle.uid, "a dead container can't be removed: {e}");
                return;
            }
            if !log.is_empty()
                && let Err(e) = crate::gc::logs::remove(&*self.kl.host, log.as_ref())
            {
                tracing::warn!(
                    uid = self.handle.uid,
                    "the log of a removed container can't be removed: {e}"
                );
            }
        }
        for id in empty {
            let request = keelson_cri::v1::RemovePodSandboxRequest { pod_sandbox_id: id };
            if let Err(e) = self.kl.cri.runtime.clone().remove_pod_sandbox(request).await {
                tracing::warn!(uid = self.handle.uid, "an old sandbox can't be removed: {e}");
            }
        }
    }

    pub(super) async fn observe(&mut self) -> Result<(), tonic::Status> {
        let known: HashSet<String> = self.ended.keys().cloned().collect();
        let looking = self.kl.metrics.pod_relist.start_timer();
        match start::observe(&self.kl, &self.handle.uid, &mut self.ended).await {
            Ok(observed) => {
                looking.observe_duration();
                self.observed = observed;
                self.count_ended(&known);
                Ok(())
            }
            Err(e) => {
                tracing::warn!(uid = self.handle.uid, "the runtime can't be asked about a pod: {e}");
                Err(e)
            }
        }
    }

    /// Counts containers whose end is news.
    fn count_ended(&self, known: &HashSet<String>) {
        let pod = self.handle.pod();
        let since = self.kl.started.as_nanosecond();
        for (_, v) in self
            .ended
            .iter()
            .filter(|(id, v)| !known.contains(*id) && i128::from(v.finished) >= since)
        {
            let kind = pods::container_type(&pod, &v.name);
            let labels = [kind, &v.exit_code.to_string(), &v.reason];
            self.kl.metrics.terminated.with_label_values(&labels).inc();
        }
    }

    /// Generates the status and hands it on.
    pub(super) fn publish(&mut self, pod: &k8s_openapi::api::core::v1::Pod, terminal: bool) {
        let kl = self.kl.clone();
        let resize: Vec<_> = self
            .resize_pending
            .iter()
            .chain(&self.resize_progress)
            .cloned()
            .collect();
        let readiness = kl.probes.readiness(&self.handle.uid, pod);
        let handler = kl.runtime_handler(pod).unwrap_or_default();
        let restarting = crate::plan::wants_restart_all(pod, &self.observed, &self.status);
        // What is still coming into being isn't seen yet, and may run.
        let ends = terminal || self.inflight.is_empty();
        let failure = self.failure.as_ref().filter(|_| ends);
        let mut status = generate::status(&generate::Input {
            pod,
            observed: &self.observed,
            failures: &self.failures,
            readiness: &readiness,
            old: &self.status,
            terminal,
            host_ips: &kl.cfg.node_ips,
            runtime: &kl.runtime_name,
            recursive_read_only: kl.node.recursive_read_only(&handler),
            restarting,
            resize: &resize,
            failure: failure.map(|(r, m)| (r.as_str(), m.as_str())),
            disruption: self.disruption.clone().filter(|_| ends),
            now: kl.host.now(),
        });
        let over = terminal || pods::is_terminal_phase(status.phase.as_deref());
        if ends && over && generate::all_stopped(&self.observed) {
            // Before the end is told: then others take its place.
            kl.managers.release(&self.handle.uid);
        }
        kl.devices.tell(pod, &mut status);
        kl.claims.tell(pod, &mut status);
        self.count_start(&status);
        self.status = status.clone();
        // What somebody else has told stays told.
        if !terminal && !pods::is_terminal(pod) && kl.claims.uses(&self.handle.uid) {
            let told = kl.status.get(&self.handle.uid);
            hold_back(&mut status, told.as_ref().unwrap_or_else(|| pods::status(pod)));
        }
        kl.status.set(pod, status);
    }

    /// Counts how long it took until the pod runs.
    fn count_start(&self, status: &k8s_openapi::api::core::v1::PodStatus) {
        let phase = |s: &k8s_openapi::api::core::v1::PodStatus| s.phase.clone().unwrap_or_default();
        if phase(status) != "Running" || !matches!(phase(&self.status).as_str(), "" | "Pending") {
            return;
        }
        let (kl, pod) = (&self.kl, self.handle.pod());
        kl.metrics.pod_start.observe(self.handle.seen.elapsed().as_secs_f64());
        let made = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
        // One from before this kubelet may have run for long.
        if let Some(made) = made.filter(|t| !pods::is_static(&pod) && *t >= kl.started) {
            let took = kl.host.now().duration_since(made).as_secs_f64().max(0.0);
            kl.metrics.pod_start_total.observe(took);
        }
    }

    /// The node gives the pod up.
    pub(super) fn fail(&mut self, reason: &str, message: &str) {
        let pod = self.handle.pod();
        self.failure = Some((reason.to_owned(), message.to_owned()));
        self.kl
            .event(&pod, None, EventType::Warning, reason, message.to_owned());
    }
}

/// That a pod has ended isn't told while drivers have devices ready for it: its claims would be given to others.
fn hold_back(status: &mut k8s_openapi::api::core::v1::PodStatus, told: &k8s_openapi::api::core::v1::PodStatus) {
    if pods::is_terminal_phase(status.phase.as_deref()) && !pods::is_terminal_phase(told.phase.as_deref()) {
        status.phase = told.phase.clone();
        status.reason = told.reason.clone();
        status.message = told.message.clone();
    }
}

/// Instances that nobody asks for any more, of a list with the newest first: dead ones but for the last of each container,
/// and those that a kubelet which died meanwhile has made but not started.
fn surplus(containers: &[ContainerView]) -> impl Iterator<Item = &ContainerView> {
    let (mut seen, mut dead) = (HashSet::new(), HashSet::new());
    containers.iter().filter(move |c| {
        let newest = seen.insert(c.name.as_str());
        match c.state {
            State::Exited => !dead.insert(c.name.as_str()),
            State::Created => !newest,
            State::Running | State::Unknown => false,
        }
    })
}

/// The pod as allocated, with the metadata and status of now.
pub(super) fn with_meta(
    allocated: &k8s_openapi::api::core::v1::Pod,
    now: &k8s_openapi::api::core::v1::Pod,
) -> Arc<k8s_openapi::api::core::v1::Pod> {
    let mut pod = allocated.clone();
    pod.metadata = now.metadata.clone();
    pod.status = now.status.clone();
    Arc::new(pod)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_cri::v1 as cri;

    #[test]
    fn one_dead_instance_of_each_container_stays() {
        let view = |id: &str, name: &str, state: State| {
            let mut view = crate::observe::container_view(&cri::ContainerStatus::default(), "s", None);
            (view.id, view.name, view.state) = (id.into(), name.into(), state);
            view
        };
        let all = [
            view("5", "a", State::Running),
            view("4", "a", State::Created),
            view("3", "a", State::Exited),
            view("2", "b", State::Created),
            view("1", "a", State::Exited),
        ];
        let ids: Vec<&str> = surplus(&all).map(|c| c.id.as_str()).collect();
        assert_eq!(ids, ["4", "1"]);
    }
}
