//! Starting what the plan wants: the sandbox first, then a resize, then containers in the order of their kinds.

use super::finish;
use super::task::Worker;
use crate::act::images::{Failure, Wanted};
use crate::act::sandbox;
use crate::act::start::{self, Context};
use crate::claims::Claims;
use crate::plan::Actions;
use crate::pods;
use crate::volumes::Mounted;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a failed pull is shown before the back-off is.
const SHOW_FAILURE: Duration = Duration::from_secs(2);
/// How long after a failed start it is tried again, unless a back-off says otherwise.
pub(super) const RETRY_START: Duration = Duration::from_secs(10);

impl Worker {
    /// Carries out the starts of a plan; an error says when to try again.
    pub(super) async fn start_wanted(
        &mut self,
        pod: &Arc<Pod>,
        volumes: &BTreeMap<String, Mounted>,
        actions: &Actions,
    ) -> Result<(), Instant> {
        let done = self.start_all(pod, volumes, actions).await;
        if actions.create_sandbox && pods::wants_user_namespace(pod) {
            // Wherever it fails first: files are shown to other users when a container is made.
            let m = &self.kl.metrics;
            m.started_userns_pods.inc();
            m.started_userns_pods_errors.inc_by(u64::from(done.is_err()));
        }
        done
    }

    async fn start_all(
        &mut self,
        pod: &Arc<Pod>,
        volumes: &BTreeMap<String, Mounted>,
        actions: &Actions,
    ) -> Result<(), Instant> {
        let kl = self.kl.clone();
        let soon = Instant::now() + RETRY_START;
        let mut sandbox_id = actions.sandbox_id.clone().unwrap_or_default();
        let mut ips = kl.sorted_ips(self.observed.ips());
        // Also those of a pod that runs, where this kubelet doesn't know of them any more.
        if Claims::wants(pod)
            && (actions.create_sandbox || !kl.claims.uses(&self.handle.uid))
            && let Err(e) = kl.claims.prepare(pod).await
        {
            let text = format!("Failed to prepare dynamic resources: {e}");
            kl.warn(pod, None, "FailedPrepareDynamicResources", text);
            return Err(soon);
        }
        if actions.create_sandbox {
            let made = sandbox::create(&kl, &self.inflight, pod, actions.attempt).await;
            let m = &kl.metrics;
            m.started_pods.inc();
            m.started_pods_errors.inc_by(u64::from(made.is_err()));
            match made {
                Ok(view) => {
                    sandbox_id = view.id.clone();
                    ips = kl.sorted_ips(&view.ips);
                    self.observed.sandboxes.insert(0, view);
                    // Told at once: clients time the network and the containers apart.
                    let now = finish::with_meta(pod, &self.handle.pod());
                    self.publish(&now, false);
                }
                Err(e) => {
                    kl.warn(
                        pod,
                        None,
                        "FailedCreatePodSandBox",
                        format!("Failed to create pod sandbox: {e}"),
                    );
                    return Err(self.retry.next().max(Instant::now() + Duration::from_secs(1)));
                }
            }
        }
        if let Err(e) = self.resize(pod, actions).await {
            tracing::info!(pod = %pods::describe(pod), "resize failed: {e}");
            return Err(soon);
        }
        if actions.start.is_empty() && actions.start_init.is_empty() && actions.start_ephemeral.is_empty() {
            return Ok(());
        }
        let handler = kl.runtime_handler(pod).map_err(|_| soon)?;
        let sandbox_config = sandbox::config(&kl, pod, actions.attempt).map_err(|_| soon)?;
        let pull_secrets = self.pull_secrets(pod);
        let observed = self.observed.clone();
        let inflight = self.inflight.clone();
        let mut cx = Context {
            kl: &kl,
            inflight: &inflight,
            pod,
            observed: &observed,
            sandbox_id,
            sandbox_config,
            handler,
            pod_ips: if ips.is_empty() && pods::is_host_network(pod) {
                kl.cfg.node_ips.clone()
            } else {
                ips
            },
            volumes,
            image_volumes: HashMap::new(),
            pull_secrets,
        };
        let all: Vec<Container> = pods::init_containers(pod)
            .iter()
            .chain(pods::containers(pod))
            .cloned()
            .collect();
        let starting: Vec<&Container> = actions
            .start_init
            .iter()
            .filter_map(|i| pods::init_containers(pod).get(*i))
            .chain(actions.start.iter().filter_map(|i| pods::containers(pod).get(*i)))
            .collect();
        match image_volumes(&cx, &all).await {
            Ok(found) => cx.image_volumes = found,
            Err(f) => {
                for c in starting {
                    self.failures
                        .insert(c.name.clone(), (f.reason.clone(), f.message.clone()));
                }
                return Err(soon);
            }
        }
        let mut failed = false;
        for e in actions
            .start_ephemeral
            .iter()
            .filter_map(|i| pods::ephemeral_containers(pod).get(*i))
        {
            let c = pods::as_container(e);
            let target = e.target_container_name.as_deref().filter(|t| !t.is_empty());
            failed |= !self.start_one(&cx, &c, target).await;
        }
        for i in &actions.start_init {
            let Some(c) = pods::init_containers(pod).get(*i) else {
                continue;
            };
            if !self.start_one(&cx, c, None).await {
                failed = true;
                if !pods::is_sidecar(c) {
                    return Err(soon);
                }
            }
        }
        for c in actions.start.iter().filter_map(|i| pods::containers(pod).get(*i)) {
            failed |= !self.start_one(&cx, c, None).await;
        }
        if failed { Err(soon) } else { Ok(()) }
    }

    /// Tries to start a container, unless that was tried a moment ago in vain. False when it doesn't run.
    async fn start_one(&mut self, cx: &Context<'_>, c: &Container, target: Option<&str>) -> bool {
        let generation = pods::generation(cx.pod);
        if self
            .hold
            .get(&c.name)
            .is_some_and(|(g, until)| *g == generation && *until > Instant::now())
        {
            return false;
        }
        if let Err(e) = self.actuate_container(cx.pod, &c.name) {
            tracing::warn!(container = c.name, "{e}");
            return false;
        }
        let kind = pods::container_type(cx.pod, &c.name);
        let m = self.kl.metrics.clone();
        match cx.start(c, target).await {
            Ok(()) => {
                m.started_containers.with_label_values(&[kind]).inc();
                self.kl.managers.started(cx.pod, &c.name);
                self.failures.remove(&c.name);
                self.hold.remove(&c.name);
                // The pod's other containers may take long to start; this one is told now.
                if self.observe().await.is_ok() {
                    self.kl.probes.sync(&self.kl, cx.pod, &self.observed, &self.status);
                    let now = finish::with_meta(cx.pod, &self.handle.pod());
                    self.publish(&now, false);
                }
                true
            }
            Err(f) => {
                // Waiting isn't a try.
                if !matches!(f.reason.as_str(), "CrashLoopBackOff" | "ImagePullBackOff") {
                    m.started_containers_errors.with_label_values(&[kind, &f.reason]).inc();
                }
                tracing::info!(pod = %pods::describe(cx.pod), container = c.name, reason = f.reason, "{}", f.message);
                if let Some(until) = self.hold_until(cx.pod, c, &f.reason) {
                    self.hold.insert(c.name.clone(), (generation, until));
                }
                self.failures.insert(c.name.clone(), (f.reason, f.message));
                false
            }
        }
    }

    /// When a start that failed for this reason makes sense again. A wrong configuration is tried whenever something
    /// changes.
    fn hold_until(&self, pod: &Pod, c: &Container, reason: &str) -> Option<Instant> {
        let now = Instant::now();
        match reason {
            "ErrImagePull" => Some(now + SHOW_FAILURE),
            "ImagePullBackOff" => self.kl.images.retry_at(pod, c.image.as_deref().unwrap_or_default()),
            "CrashLoopBackOff" => {
                let ended = self.observed.find(&c.name).map(|v| self.kl.instant_of(v.finished));
                self.kl
                    .crash
                    .lock()
                    .remaining(&start::backoff_key(pod, c), ended, now)
                    .map(|d| now + d)
            }
            "RunContainerError" | "CreateContainerError" => Some(now + RETRY_START),
            _ => None,
        }
    }

    fn pull_secrets(&self, pod: &Pod) -> Vec<Arc<Secret>> {
        let ns = pods::namespace(pod);
        let list = pods::spec(pod).image_pull_secrets.iter().flatten();
        list.filter_map(|r| match self.kl.volumes.tools.secrets.get(ns, &r.name) {
            Ok(Some(secret)) => Some(secret),
            _ => {
                let message = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                    r.name
                );
                self.kl.warn(pod, None, "FailedToRetrieveImagePullSecret", message);
                None
            }
        })
        .collect()
    }
}

/// Pulls the images that volumes are made of.
async fn image_volumes(cx: &Context<'_>, containers: &[Container]) -> Result<HashMap<String, String>, Failure> {
    let mut found = HashMap::new();
    for volume in pods::spec(cx.pod).volumes.iter().flatten() {
        let Some(image) = &volume.image else { continue };
        let user = containers
            .iter()
            .find(|c| c.volume_mounts.iter().flatten().any(|m| m.name == volume.name));
        let Some(user) = user else { continue };
        let wanted = Wanted {
            pod: cx.pod,
            container: &user.name,
            image: image.reference.as_deref().unwrap_or_default(),
            policy: image.pull_policy.as_deref(),
            secrets: &cx.pull_secrets,
            sandbox: &cx.sandbox_config,
            handler: &cx.handler,
        };
        found.insert(volume.name.clone(), cx.kl.images.ensure(cx.kl, &wanted).await?);
    }
    Ok(found)
}
