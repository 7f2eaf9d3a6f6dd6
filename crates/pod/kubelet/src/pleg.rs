//! Tells pods' tasks that something happened to their containers: the runtime's own stream of events. While that stream
//! is broken, everything is looked at once more, and it is opened again with growing delay.

use crate::act::start;
use crate::kubelet::Kubelet;
use crate::observe;
use keelson_cri::v1 as cri;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

const FIRST_DELAY: Duration = Duration::from_millis(500);
const MAX_DELAY: Duration = Duration::from_secs(10);

pub async fn run(kl: Arc<Kubelet>) {
    let mut delay = FIRST_DELAY;
    loop {
        let result = tokio::select! {
            () = kl.stop.cancelled() => return,
            result = follow(&kl, &mut delay) => result,
        };
        match result {
            Ok(()) => tracing::debug!("the runtime closed its stream of events"),
            Err(e) => tracing::warn!("the runtime's events can't be followed and are tried again: {e}"),
        }
        tokio::select! {
            () = kl.stop.cancelled() => return,
            () = tokio::time::sleep(delay) => {}
        }
        delay = (delay * 2).min(MAX_DELAY);
    }
}

async fn follow(kl: &Arc<Kubelet>, delay: &mut Duration) -> Result<(), tonic::Status> {
    let mut events = kl
        .cri
        .runtime
        .clone()
        .get_container_events(cri::GetEventsRequest {})
        .await
        .inspect_err(|_| kl.metrics.events_failed.inc())?
        .into_inner();
    kl.metrics.events_connected.inc();
    seen(kl);
    // What happened before the stream began is seen by looking now.
    kl.workers.all().iter().for_each(|h| h.wake());
    kl.runtime_events.send_modify(|n| *n += 1);
    while let Some(event) = events.message().await? {
        *delay = FIRST_DELAY;
        seen(kl);
        kl.runtime_events.send_modify(|n| *n += 1);
        let uid = event
            .pod_sandbox_status
            .and_then(|s| s.metadata)
            .map(|m| m.uid)
            .unwrap_or_default();
        if !uid.is_empty() {
            kl.workers.wake(&uid);
        }
    }
    Ok(())
}

fn seen(kl: &Kubelet) {
    kl.metrics.last_seen.set(kl.host.now().as_second() as f64);
}

/// Ends pods that run here although nobody wants them: deleted while this kubelet was away. To be called once all
/// sources of pods are known; tries until the runtime says what runs.
pub async fn end_orphans(kl: Arc<Kubelet>) {
    let mut delay = FIRST_DELAY;
    while let Err(e) = find_orphans(&kl).await {
        tracing::warn!("pods that nobody wants could not be looked for and are looked for again: {e}");
        tokio::select! {
            () = kl.stop.cancelled() => return,
            () = tokio::time::sleep(delay) => {}
        }
        delay = (delay * 2).min(MAX_DELAY);
    }
}

async fn find_orphans(kl: &Arc<Kubelet>) -> Result<(), tonic::Status> {
    let mut client = kl.cri.runtime.clone();
    let listing = kl.metrics.relist.start_timer();
    let sandboxes = client
        .list_pod_sandbox(cri::ListPodSandboxRequest { filter: None })
        .await?
        .into_inner()
        .items;
    let containers = client
        .list_containers(cri::ListContainersRequest { filter: None })
        .await?
        .into_inner()
        .containers;
    listing.observe_duration();
    let label = |l: &HashMap<String, String>| l.get(observe::LABEL_POD_UID).cloned();
    let mut uids: BTreeSet<String> = sandboxes.iter().filter_map(|s| label(&s.labels)).collect();
    uids.extend(containers.iter().filter_map(|c| label(&c.labels)));
    uids.extend(kl.host.list_dir(&kl.layout.pods()).unwrap_or_default());
    // CPUs and memory of pods that are gone; of those that still run when they have ended.
    let is_here = |uid: &str| uids.contains(uid) || kl.workers.get(uid).is_some();
    kl.managers.keep_only(is_here);
    for uid in uids.into_iter().filter(|u| kl.workers.get(u).is_none()) {
        tokio::spawn(end_orphan(kl.clone(), uid));
    }
    for (path, uid) in kl.host.pod_cgroups(&kl.cfg.cgroup_root).unwrap_or_default() {
        if kl.workers.get(&uid).is_none()
            && let Err(e) = kl.host.remove_cgroup(&path)
        {
            tracing::warn!("the cgroup {path} of a pod that is gone can't be removed: {e}");
        }
    }
    Ok(())
}

async fn end_orphan(kl: Arc<Kubelet>, uid: String) {
    tracing::info!(uid, "ending a pod that nobody wants any more");
    let mut delay = FIRST_DELAY;
    loop {
        match try_end(&kl, &uid).await {
            Ok(()) => return,
            Err(e) => tracing::warn!(uid, "ending a pod that nobody wants failed and is tried again: {e}"),
        }
        tokio::select! {
            () = kl.stop.cancelled() => return,
            () = tokio::time::sleep(delay) => {}
        }
        delay = (delay * 2).min(MAX_DELAY);
    }
}

async fn try_end(kl: &Arc<Kubelet>, uid: &str) -> Result<(), String> {
    use crate::act::kill;
    let observed = start::observe(kl, uid, &mut HashMap::new())
        .await
        .map_err(|e| e.to_string())?;
    let mut pod = observed
        .containers
        .first()
        .map(|v| kill::restored(v).0)
        .unwrap_or_default();
    pod.metadata.uid = Some(uid.to_owned());
    kill::pod(kl, &pod, &observed, None).await?;
    kill::remove(kl, &observed).await?;
    kl.claims.unprepare(uid).await?;
    kl.volumes.tear_down(uid).await?;
    kl.devices.release(uid);
    kl.managers.release(uid);
    kl.userns.release(uid);
    for name in kl.host.list_dir(&kl.layout.logs).unwrap_or_default() {
        if name.ends_with(&format!("_{uid}")) {
            kl.host
                .remove_tree(&kl.layout.logs.join(name))
                .map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}
