//! In-place resize within a pod's task: asking the node, remembering the answer, and seeing it through.

use super::task::Worker;
use crate::plan::{Actions, Actuated, Update};
use crate::pods;
use crate::resources::allocation::{self, Answer};
use crate::resources::{cgroup, pod as amounts, quantity};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use keelson_client::EventType;
use keelson_cri::v1 as cri;
use std::sync::Arc;

fn condition(kind: &str, generation: Option<i64>, reason: Option<&str>, message: Option<String>) -> PodCondition {
    PodCondition {
        type_: kind.into(),
        status: "True".into(),
        reason: reason.map(Into::into),
        message,
        observed_generation: generation,
        ..Default::default()
    }
}

impl Worker {
    /// Decides on a resize that is asked for, and returns the pod as it is allocated.
    pub(super) async fn allocate(&mut self, pod: &Pod) -> Result<Arc<Pod>, String> {
        if self.record.allocated.is_empty() {
            self.record.allocated = allocation::grant(pod);
            self.save_record()?;
        } else if allocation::wants_resize(pod, &self.record.allocated) {
            self.consider(pod).await?;
        } else {
            self.resize_pending = None;
        }
        let allocated = Arc::new(allocation::apply(pod, &self.record.allocated));
        let mut view = self.handle.view.lock();
        view.allocated = Some(allocated.clone());
        view.deferred = self
            .resize_pending
            .as_ref()
            .is_some_and(|c| c.reason.as_deref() == Some("Deferred"));
        Ok(allocated)
    }

    async fn consider(&mut self, pod: &Pod) -> Result<(), String> {
        let kl = self.kl.clone();
        let _one = kl.admission.lock().await;
        let mut others = quantity::ResourceList::new();
        for other in kl.workers.active(&self.handle.uid) {
            quantity::add(&mut others, &amounts::pod_requests(&other));
        }
        let managed = [
            (kl.managers.cpus.is_static(), "cpu", "CPU Manager policy \"static\""),
            (
                kl.managers.memory.is_static(),
                "memory",
                "Memory Manager policy \"Static\"",
            ),
        ];
        let held = managed.into_iter().find(|(is_static, resource, _)| {
            *is_static && !pods::is_static(pod) && allocation::moves(pod, &self.record.allocated, resource)
        });
        let answer = match held {
            Some((.., by)) => Answer::Infeasible(format!("Resize is infeasible for Guaranteed Pods alongside {by}")),
            None => allocation::judge(pod, &kl.allocatable(), &others, pods::is_static(pod)),
        };
        let generation = pods::generation(pod);
        let (reason, event, message) = match answer {
            Answer::Accept => {
                self.record.allocated = allocation::grant(pod);
                self.save_record()?;
                self.resize_pending = None;
                self.resize_progress = Some(condition("PodResizeInProgress", generation, None, None));
                kl.event(
                    pod,
                    None,
                    EventType::Normal,
                    "ResizeStarted",
                    format!("Pod resize started, generation {}", generation.unwrap_or(0)),
                );
                return Ok(());
            }
            Answer::Deferred(m) => ("Deferred", "ResizeDeferred", m),
            Answer::Infeasible(m) => ("Infeasible", "ResizeInfeasible", m),
        };
        let new = condition("PodResizePending", generation, Some(reason), Some(message.clone()));
        let told = self
            .resize_pending
            .as_ref()
            .is_some_and(|c| c.reason == new.reason && c.message == new.message);
        if !told {
            kl.warn(pod, None, event, message);
        }
        self.resize_pending = Some(new);
        Ok(())
    }

    pub(super) fn actuated(&self) -> Actuated {
        self.record
            .actuated
            .iter()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    }

    /// Notes what a container that is being created gets.
    pub(super) fn actuate_container(&mut self, pod: &Pod, name: &str) -> Result<(), String> {
        if let Some(c) = pods::find_container(pod, name) {
            self.record
                .actuated
                .insert(name.to_owned(), allocation::container_amounts(pod, &c));
        }
        self.save_record()
    }

    /// Brings running containers and the pod's cgroup to their allocated amounts: room first, then what uses it.
    pub(super) async fn resize(&mut self, pod: &Pod, actions: &Actions) -> Result<(), String> {
        if actions.update.is_empty() && !actions.update_pod_cgroup {
            return Ok(());
        }
        let result = self.resize_now(pod, actions).await;
        match &result {
            Ok(()) => {
                self.record.actuated_pod = Some(allocation::pod_amounts(pod));
                self.kl.workers.set_classes(&self.kl);
            }
            Err(e) => {
                let generation = pods::generation(pod);
                self.resize_progress = Some(condition(
                    "PodResizeInProgress",
                    generation,
                    Some("Error"),
                    Some(e.clone()),
                ));
                self.kl.warn(pod, None, "ResizeError", format!("Pod resize error: {e}"));
            }
        }
        self.save_record()?;
        result
    }

    async fn resize_now(&mut self, pod: &Pod, actions: &Actions) -> Result<(), String> {
        let limits = self.kl.pod_limits(pod, None);
        let before = self.record.actuated_pod.clone().unwrap_or_default();
        let after = allocation::pod_amounts(pod);
        let shrinks = (after.memory_limit != 0 && after.memory_limit < before.memory_limit)
            || (after.cpu_limit != 0 && after.cpu_limit < before.cpu_limit);
        if !shrinks {
            self.resize_cgroup(pod, &limits).await?;
        }
        for update in &actions.update {
            self.update_container(pod, update).await?;
        }
        if shrinks {
            self.resize_cgroup(pod, &limits).await?;
        }
        Ok(())
    }

    async fn resize_cgroup(&self, pod: &Pod, limits: &cgroup::CgroupLimits) -> Result<(), String> {
        if let Some(id) = self.observed.sandbox_id() {
            let resources = cri::LinuxContainerResources {
                cpu_period: limits.cpu_period.unwrap_or(0),
                cpu_shares: limits.cpu_shares.unwrap_or(0),
                cpu_quota: limits.cpu_quota.unwrap_or(0),
                memory_limit_in_bytes: limits.memory.unwrap_or(0),
                unified: limits.unified.clone().into_iter().collect(),
                ..Default::default()
            };
            let request = cri::UpdatePodSandboxResourcesRequest {
                pod_sandbox_id: id.to_owned(),
                overhead: None,
                resources: Some(resources),
            };
            match self.kl.cri.runtime.clone().update_pod_sandbox_resources(request).await {
                // Runtimes need not care.
                Err(e) if e.code() != tonic::Code::Unimplemented && !e.message().contains("not implemented") => {
                    return Err(crate::rpc_text(&e));
                }
                _ => {}
            }
        }
        match self.kl.host.update_cgroup(&self.kl.cgroup_of(pod), limits) {
            Err(e) if e.kind() != std::io::ErrorKind::Unsupported => Err(format!("setting the pod's cgroup: {e}")),
            _ => Ok(()),
        }
    }

    async fn update_container(&mut self, pod: &Pod, update: &Update) -> Result<(), String> {
        let Some(c) = pods::find_container(pod, &update.name) else {
            return Ok(());
        };
        let mut resources = cgroup::container_resources(pod, &c, &self.kl.limits());
        if self.kl.managers.cpus.exclusive(&self.handle.uid, &c.name).is_some() {
            // Its CPUs stay its limit.
            resources.cpu_quota = -1;
        }
        let request = cri::UpdateContainerResourcesRequest {
            container_id: update.id.clone(),
            linux: Some(resources),
            ..Default::default()
        };
        self.kl
            .cri
            .runtime
            .clone()
            .update_container_resources(request)
            .await
            .map_err(|e| crate::rpc_text(&e))?;
        self.record.actuated.insert(update.name.clone(), update.to.clone());
        Ok(())
    }

    /// Once everything that runs carries what was allocated, the resize is over.
    pub(super) fn finish_resize(&mut self, pod: &Pod) {
        if self.resize_progress.is_none() {
            return;
        }
        let done = self.observed.running().all(|v| {
            let Some(c) = pods::find_container(pod, &v.name) else {
                return true;
            };
            !allocation::resizable(pod, &c)
                || self
                    .record
                    .actuated
                    .get(&v.name)
                    .is_none_or(|a| *a == allocation::container_amounts(pod, &c))
        });
        let restarting = pods::containers(pod)
            .iter()
            .any(|c| self.observed.find(&c.name).is_none());
        if done
            && !restarting
            && self
                .record
                .actuated_pod
                .as_ref()
                .is_none_or(|a| *a == allocation::pod_amounts(pod))
        {
            let generation = self
                .resize_progress
                .take()
                .and_then(|c| c.observed_generation)
                .unwrap_or(0);
            self.kl.event(
                pod,
                None,
                EventType::Normal,
                "ResizeCompleted",
                format!("Pod resize completed, generation {generation}"),
            );
        }
    }
}
