//! Pods that are bound to this node in the API.

use super::mirror::Mirrors;
use crate::kubelet::Kubelet;
use crate::pods;
use k8s_openapi::api::core::v1::Pod;
use keelson_client::{Change, Informer, InformerOptions};
use std::sync::Arc;

/// Follows the pods of this node; they have all been seen when this returns.
pub async fn start(kl: &Arc<Kubelet>, mirrors: &Arc<Mirrors>) -> Informer<Pod> {
    let options = InformerOptions {
        fields: format!("spec.nodeName={}", kl.cfg.node_name),
        ..InformerOptions::default()
    };
    let informer = Informer::<Pod>::start(&kl.rest, options, &kl.stop);
    let (kl, mirrors) = (kl.clone(), mirrors.clone());
    informer.on_change(move |change| {
        let pod = change.object();
        if pods::is_mirror(pod) {
            mirrors.seen(pod, change.is_deleted());
            return;
        }
        match change {
            Change::Added(pod) => kl.workers.update(&kl, pod.clone()),
            Change::Updated { old, new } => {
                if old.metadata.uid != new.metadata.uid {
                    kl.workers.remove(pods::uid(old));
                }
                kl.workers.update(&kl, new.clone());
                if status_was_changed(&kl, new) {
                    kl.status.reconcile(pods::uid(new), Some(new));
                }
            }
            Change::Deleted(pod) => kl.workers.remove(pods::uid(pod)),
        }
    });
    informer.synced().await;
    informer
}

/// Whether somebody else wrote what is the kubelet's to say.
fn status_was_changed(kl: &Kubelet, pod: &Pod) -> bool {
    let Some(ours) = kl.status.get(pods::uid(pod)) else {
        return false;
    };
    let now = pods::status(pod);
    let ready = |s: &k8s_openapi::api::core::v1::PodStatus| pods::condition(s, "Ready").map(|c| c.status.clone());
    now.phase != ours.phase && !pods::is_terminal_phase(now.phase.as_deref()) || ready(now) != ready(&ours)
}
