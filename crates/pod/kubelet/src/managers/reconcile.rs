//! Running containers are kept to their CPUs: whenever somebody's become others, and after a container has started, those that
//! run on others are told. What fails is tried again after upstream's period.

use super::set::Set;
use crate::kubelet::Kubelet;
use crate::observe;
use keelson_cri::v1 as cri;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Follows until the kubelet stops.
pub fn start(kl: &Arc<Kubelet>) {
    if !kl.managers.cpus.is_static() {
        return;
    }
    let kl = kl.clone();
    tokio::spawn(async move {
        let mut told = BTreeMap::new();
        loop {
            let all = reconcile(&kl, &mut told).await;
            let again = async {
                match all {
                    true => std::future::pending().await,
                    false => tokio::time::sleep(kl.cfg.cpu_reconcile).await,
                }
            };
            tokio::select! {
                () = kl.stop.cancelled() => return,
                () = kl.managers.cpus.changed.notified() => {}
                () = again => {}
            }
        }
    });
}

/// Tells containers what they run on from now on; whether all know.
async fn reconcile(kl: &Kubelet, told: &mut BTreeMap<String, Set>) -> bool {
    let running = cri::ContainerFilter {
        state: Some(cri::ContainerStateValue {
            state: cri::ContainerState::ContainerRunning as i32,
        }),
        ..Default::default()
    };
    let request = cri::ListContainersRequest { filter: Some(running) };
    let containers = match kl.cri.runtime.clone().list_containers(request).await {
        Ok(answer) => answer.into_inner().containers,
        Err(e) => {
            tracing::warn!("containers can't be told their CPUs: {}", crate::rpc_text(&e));
            return false;
        }
    };
    told.retain(|id, _| containers.iter().any(|c| c.id == *id));
    let mut all = true;
    for c in containers {
        let label = |name: &str| c.labels.get(name).map(String::as_str).unwrap_or_default();
        let (uid, name) = (label(observe::LABEL_POD_UID), label(observe::LABEL_CONTAINER_NAME));
        // What nobody here knows is ended by others.
        let known = kl.workers.get(uid).is_some();
        let Some(cpus) = kl.managers.cpus.of(uid, name).filter(|cpus| known && !cpus.is_empty()) else {
            continue;
        };
        if told.get(&c.id) == Some(&cpus) {
            continue;
        }
        match tell(kl, &c.id, &cpus).await {
            Ok(()) => {
                told.insert(c.id, cpus);
            }
            Err(e) => {
                tracing::warn!(
                    container = c.id,
                    "a container can't be told its CPUs {cpus}: {}",
                    crate::rpc_text(&e)
                );
                all = false;
            }
        }
    }
    all
}

async fn tell(kl: &Kubelet, id: &str, cpus: &Set) -> Result<(), tonic::Status> {
    let request = cri::UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(cri::LinuxContainerResources {
            cpuset_cpus: cpus.to_string(),
            ..Default::default()
        }),
        ..Default::default()
    };
    kl.cri.runtime.clone().update_container_resources(request).await?;
    Ok(())
}
