//! Registers the node and keeps its status true: written when something changed, and every five minutes.

use super::status::{self, Facts};
use crate::kubelet::Kubelet;
use crate::status::diff;
use k8s_openapi::api::core::v1::{ContainerImage, Node, NodeStatus};
use keelson_client::{Informer, InformerOptions, Objects, Patch, is_already_exists, is_not_found};
use keelson_cri::v1 as cri;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Images are listed at most this often: a pull changes them in bursts.
const IMAGES_APART: Duration = Duration::from_secs(1);

/// Returns when the node is registered.
pub async fn start(kl: &Arc<Kubelet>) -> anyhow::Result<()> {
    let images = list_images(kl).await;
    let mut delay = Duration::from_millis(100);
    let node = loop {
        match register(kl, &images).await {
            Ok(node) => break node,
            Err(e) => {
                tracing::warn!(
                    "registering the node {} failed and is tried again: {}",
                    kl.cfg.node_name,
                    crate::error_text(&e)
                );
                tokio::select! {
                    () = kl.stop.cancelled() => anyhow::bail!("stopped before the node was registered"),
                    () = tokio::time::sleep(delay) => {}
                }
                delay = (delay * 2).min(Duration::from_secs(7));
            }
        }
    };
    note(kl, &node);
    // Before the first report: a node that was ready stays so when its kubelet is started anew.
    super::initialize_drivers(kl).await;
    let options = InformerOptions {
        fields: format!("metadata.name={}", kl.cfg.node_name),
        ..InformerOptions::default()
    };
    let informer = Informer::<Node>::start(&kl.rest, options, &kl.stop);
    tokio::spawn(keep(kl.clone(), informer, images));
    Ok(())
}

fn facts<'a>(
    kl: &'a Kubelet,
    runtime: &'a super::RuntimeView,
    pressures: &'a [&'static str],
    images: Vec<ContainerImage>,
) -> Facts<'a> {
    Facts {
        cfg: &kl.cfg,
        machine: &kl.machine,
        capacity: kl.node.capacity(),
        allocatable: kl.node.allocatable(),
        devices: kl.devices.amounts(),
        runtime,
        runtime_version: format!("{}://{}", kl.runtime_name, kl.runtime_version),
        declared_features: status::declared(&kl.runtime_name),
        pressures,
        storage_problem: kl.node.storage_problem(),
        shutdown_problem: kl.shutdown.problem(),
        volumes_in_use: kl.volumes.csi.in_use(),
        images,
        now: kl.host.now(),
    }
}

async fn register(kl: &Arc<Kubelet>, images: &[ContainerImage]) -> Result<Node, keelson_client::Error> {
    let nodes = Objects::<Node>::new(&kl.unpaced);
    if !kl.cfg.register_node {
        return nodes.get("", &kl.cfg.node_name).await;
    }
    let (runtime, pressures) = (kl.node.runtime(), kl.node.pressures());
    let first = status::status(
        &facts(kl, &runtime, &pressures, images.to_vec()),
        &NodeStatus::default(),
    );
    let wanted = status::object(&kl.cfg, &kl.machine, first);
    match nodes.create(&wanted).await {
        Ok(node) => Ok(node),
        Err(e) if is_already_exists(&e) => {
            let node = nodes.get("", &kl.cfg.node_name).await?;
            let have = node.metadata.labels.clone().unwrap_or_default();
            let labels: Value = wanted
                .metadata
                .labels
                .into_iter()
                .flatten()
                .filter(|(k, v)| have.get(k) != Some(v))
                .map(|(k, v)| (k, Value::String(v)))
                .collect::<serde_json::Map<_, _>>()
                .into();
            if labels.as_object().is_some_and(serde_json::Map::is_empty) {
                return Ok(node);
            }
            nodes
                .patch(
                    "",
                    &kl.cfg.node_name,
                    Patch::Strategic(&json!({"metadata": {"labels": labels}})),
                )
                .await
        }
        Err(e) => Err(e),
    }
}

fn note(kl: &Kubelet, node: &Node) {
    kl.volumes
        .csi
        .see(node.status.as_ref().unwrap_or(&NodeStatus::default()));
    kl.node.set_object(
        node.metadata.labels.clone().unwrap_or_default(),
        node.metadata.uid.clone().unwrap_or_default(),
    );
}

async fn keep(kl: Arc<Kubelet>, informer: Informer<Node>, mut images: Vec<ContainerImage>) {
    let mut changes = informer.store().changes();
    let mut reported: Option<Instant> = None;
    let mut cidr: Option<String> = None;
    let mut images_at = Instant::now();
    let mut images_due = images_at + kl.cfg.status_report;
    let mut tick = tokio::time::interval(kl.cfg.status_update);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    informer.synced().await;
    loop {
        tokio::select! {
            () = kl.stop.cancelled() => return,
            _ = tick.tick() => {}
            () = kl.node.changed.notified() => images_due = images_due.min(images_at + IMAGES_APART),
            () = tokio::time::sleep_until(images_due) => {}
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
        // What this takes isn't kept between two looks.
        if images_due <= Instant::now() {
            images = Box::pin(list_images(&kl)).await;
            images_at = Instant::now();
            images_due = images_at + kl.cfg.status_report;
        }
        Box::pin(super::refresh_runtime(&kl)).await;
        let Some(node) = informer.store().get("", &kl.cfg.node_name) else {
            // Somebody deleted the node; it is still here.
            match Box::pin(register(&kl, &images)).await {
                Ok(node) => note(&kl, &node),
                Err(e) => tracing::warn!("registering the node again failed: {}", crate::error_text(&e)),
            }
            continue;
        };
        note(&kl, &node);
        Box::pin(pass_cidr(&kl, &node, &mut cidr)).await;
        let due = reported.is_none_or(|at| at.elapsed() >= kl.cfg.status_report);
        match Box::pin(report(&kl, &node, &images, due)).await {
            Ok(true) => reported = Some(Instant::now()),
            Ok(false) => {}
            Err(e) if is_not_found(&e) => {}
            Err(e) => tracing::warn!("the node's status can't be written: {}", crate::error_text(&e)),
        }
    }
}

/// Writes the status if it differs, or if it is time. True when it was written.
async fn report(
    kl: &Kubelet,
    node: &Node,
    images: &[ContainerImage],
    due: bool,
) -> Result<bool, keelson_client::Error> {
    let old = node.status.clone().unwrap_or_default();
    let (runtime, pressures) = (kl.node.runtime(), kl.node.pressures());
    let new = status::status(&facts(kl, &runtime, &pressures, images.to_vec()), &old);
    if !due && status::same(&old, &new) {
        return Ok(false);
    }
    let encode = |s: &NodeStatus| serde_json::to_value(s).map_err(keelson_client::Error::SerdeError);
    let (have, want) = (encode(&old)?, encode(&new)?);
    let mut patch = serde_json::Map::new();
    for (key, value) in want.as_object().into_iter().flatten() {
        if have.get(key) == Some(value) {
            continue;
        }
        let change = match key.as_str() {
            "conditions" => diff::keyed(have.get(key), value, "type"),
            "addresses" => Some(replaced(value)),
            _ => Some(diff::merge(have.get(key), value)),
        };
        patch.extend(change.map(|c| (key.clone(), c)));
    }
    for (key, _) in have.as_object().into_iter().flatten() {
        if want.get(key).is_none() {
            patch.insert(key.clone(), Value::Null);
        }
    }
    if patch.is_empty() {
        return Ok(false);
    }
    let body = json!({"status": patch});
    Objects::<Node>::new(&kl.unpaced)
        .patch_status("", &kl.cfg.node_name, Patch::Strategic(&body))
        .await?;
    Ok(true)
}

/// A list that replaces the old one as a whole.
fn replaced(list: &Value) -> Value {
    let items = list.as_array().cloned().unwrap_or_default();
    std::iter::once(json!({"$patch": "replace"})).chain(items).collect()
}

/// The runtime is told the range of pod addresses that the node was given.
async fn pass_cidr(kl: &Kubelet, node: &Node, told: &mut Option<String>) {
    let Some(cidr) = node.spec.as_ref().and_then(|s| {
        s.pod_cidrs
            .as_ref()
            .filter(|c| !c.is_empty())
            .map(|c| c.join(","))
            .or_else(|| s.pod_cidr.clone())
    }) else {
        return;
    };
    if told.as_ref() == Some(&cidr) {
        return;
    }
    let config = cri::RuntimeConfig {
        network_config: Some(cri::NetworkConfig { pod_cidr: cidr.clone() }),
    };
    let request = cri::UpdateRuntimeConfigRequest {
        runtime_config: Some(config),
    };
    match kl.cri.runtime.clone().update_runtime_config(request).await {
        Ok(_) => {
            *told = Some(cidr);
            super::refresh_runtime(kl).await;
            // Pods that waited for the network can go on.
            kl.workers.all().iter().for_each(|h| h.wake());
        }
        Err(e) => tracing::warn!("the runtime does not take the pod address range {cidr}: {e}"),
    }
}

async fn list_images(kl: &Kubelet) -> Vec<ContainerImage> {
    match kl
        .cri
        .image
        .clone()
        .list_images(cri::ListImagesRequest { filter: None })
        .await
    {
        Ok(answer) => status::images(&answer.into_inner().images, kl.cfg.status_images),
        Err(e) => {
            tracing::warn!("the runtime's images can't be listed: {e}");
            Vec::new()
        }
    }
}
