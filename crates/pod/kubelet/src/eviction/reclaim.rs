//! Disk that can be had without ending a pod: logs of pods that are gone, dead containers of pods that are done, then unused images. In upstream's
//! order. Of pods that still run, dead containers are pruned by their own task, which keeps what status is made of.

use crate::act::kill;
use crate::disks::{Disk, Disks};
use crate::gc;
use crate::kubelet::Kubelet;
use crate::observe;
use crate::worker::Stage;
use keelson_cri::v1 as cri;

/// Of one disk, which has what is on it only.
pub async fn on(kl: &Kubelet, disks: &Disks, disk: Disk) {
    if disk == Disk::Node
        && let Some(attic) = &kl.cfg.attic
        && let Err(error) = attic.clear(&*kl.host)
    {
        tracing::warn!(%error, "logs of pods that are gone can't be removed to get disk");
    }
    if disk == disks.layers
        && let Err(error) = dead_containers(kl).await
    {
        tracing::warn!(error, "dead containers can't be removed to get disk");
    }
    if disk == disks.images
        && let Err(error) = gc::images::delete_unused(kl).await
    {
        tracing::warn!(error, "unused images can't be removed to get disk");
    }
}

async fn dead_containers(kl: &Kubelet) -> Result<(), String> {
    let request = cri::ListContainersRequest { filter: None };
    let answer = kl.cri.runtime.clone().list_containers(request).await;
    let containers = answer.map_err(|e| crate::rpc_text(&e))?.into_inner().containers;
    for container in containers {
        let uid = container
            .labels
            .get(observe::LABEL_POD_UID)
            .map(String::as_str)
            .unwrap_or_default();
        let done = kl.workers.get(uid).is_some_and(|h| h.stage() == Stage::Finished);
        if done && container.state() == cri::ContainerState::ContainerExited {
            kill::remove_container(kl, &container.id).await?;
        }
    }
    Ok(())
}
