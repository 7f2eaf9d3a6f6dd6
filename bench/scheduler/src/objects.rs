//! Objects from templates, named and numbered.

use crate::workload::{Nodes, Pods, text};
use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::CSINode;
use serde_json::{Value, json};
use std::path::Path;

/// A template's object. Upstream's may be programs in Go's language of templates; those aren't run.
pub fn template(path: &Path) -> Result<Value> {
    let text = text(path)?;
    if text.contains("{{") {
        bail!("{}: templates with parameters aren't read", path.display());
    }
    serde_saphyr::from_str(&text).with_context(|| path.display().to_string())
}

/// Gives the object the name that a server would make up, but one that tells which it is.
pub fn name(object: &mut Value, n: usize) -> String {
    let metadata = &mut object["metadata"];
    if let Some(name) = metadata["name"].as_str() {
        return name.to_owned();
    }
    let name = format!("{}{n}", metadata["generateName"].as_str().unwrap_or("object-"));
    metadata["name"] = json!(name);
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.remove("generateName");
    }
    name
}

/// `first`: how many nodes there are already.
pub fn nodes(op: &Nodes, first: usize) -> Result<Vec<(Node, Option<CSINode>)>> {
    let base = match &op.template {
        Some(path) => template(path)?,
        None => json!({
            "metadata": {"generateName": "node-"},
            "status": {"capacity": {"pods": "110", "cpu": "4", "memory": "32Gi"}, "conditions": [{"type": "Ready", "status": "True"}]},
        }),
    };
    let make = |n: usize| {
        let mut node = base.clone();
        let name = name(&mut node, first + n);
        let labels = &mut node["metadata"]["labels"];
        labels["kubernetes.io/hostname"] = json!(name);
        if let Some((key, values)) = &op.label {
            labels[key] = json!(values[n % values.len()]);
        }
        let status = &mut node["status"];
        for (resource, amount) in &op.allocatable {
            status["capacity"][resource] = json!(amount);
        }
        if status["allocatable"].is_null() {
            status["allocatable"] = status["capacity"].clone();
        }
        let drivers: Vec<Value> = op
            .drivers
            .iter()
            .map(|(driver, count)| json!({"name": driver, "nodeID": name, "allocatable": {"count": count}}))
            .collect();
        let csi = (!drivers.is_empty()).then(|| {
            let annotations = json!({"storage.alpha.kubernetes.io/migrated-plugins": op.migrated.join(",")});
            json!({"metadata": {"name": name, "annotations": annotations}, "spec": {"drivers": drivers}})
        });
        let csi = csi.map(serde_json::from_value).transpose()?;
        Ok((serde_json::from_value(node)?, csi))
    };
    (0..op.count).map(make).collect()
}

/// A pod with the volume and the claim made for it.
pub struct Made {
    pub pod: Pod,
    pub volume: Option<(PersistentVolume, PersistentVolumeClaim)>,
}

/// `first`: what numbers their names begin with.
pub fn pods(op: &Pods, namespace: &str, first: usize) -> Result<Vec<Made>> {
    let base = match op.template.as_os_str().is_empty() {
        false => template(&op.template)?,
        true => json!({
            "metadata": {"generateName": "pod-"},
            "spec": {"containers": [{"name": "pause", "image": "pause", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "100m", "memory": "500Mi"}, "requests": {"cpu": "100m", "memory": "500Mi"}}}]},
        }),
    };
    let volumes = match &op.volume {
        Some((volume, claim)) => Some((template(volume)?, template(claim)?)),
        None => None,
    };
    let make = |n: usize| {
        let mut pod = base.clone();
        let name = name(&mut pod, first + n);
        pod["metadata"]["namespace"] = json!(namespace);
        if let Some(alike) = op.alike {
            pod["metadata"]["labels"]["signature"] = json!(format!("signature-label-{}", n / alike.max(1)));
        }
        let mut made = None;
        if let Some((volume, claim)) = &volumes {
            pod["spec"]["volumes"] = json!([{"name": "vol", "persistentVolumeClaim": {"claimName": name}}]);
            let (mut volume, mut claim) = (volume.clone(), claim.clone());
            let volume_name = format!("{namespace}-{name}");
            volume["metadata"] = json!({"name": volume_name});
            volume["spec"]["claimRef"] =
                json!({"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": namespace, "name": name});
            if volume["spec"]["csi"].is_object() {
                volume["spec"]["csi"]["volumeHandle"] = json!(volume_name);
            }
            volume["status"] = json!({"phase": "Bound"});
            claim["metadata"]["name"] = json!(name);
            claim["metadata"]["namespace"] = json!(namespace);
            claim["spec"]["volumeName"] = json!(volume_name);
            claim["status"] = json!({"phase": "Bound"});
            made = Some((serde_json::from_value(volume)?, serde_json::from_value(claim)?));
        }
        Ok(Made {
            pod: serde_json::from_value(pod)?,
            volume: made,
        })
    };
    (0..op.count).map(make).collect()
}

pub fn namespace(name: &str, template_path: Option<&Path>) -> Result<Namespace> {
    let mut base = match template_path {
        Some(path) => template(path)?,
        None => json!({}),
    };
    base["metadata"]["name"] = json!(name);
    Ok(serde_json::from_value(base)?)
}
