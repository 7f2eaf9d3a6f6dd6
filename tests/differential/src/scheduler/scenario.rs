//! What there is and what comes, as data.

use crate::controllers::recorded::Played;
use crate::controllers::scenario::{Step, furnish_object, or};
use crate::scheduler::random;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

macro_rules! files {
    ($($name:literal),*) => { &[$(($name, include_str!(concat!("../../scheduler/", $name, ".yaml")))),*] };
}
const FILES: &[(&str, &str)] = files![
    "nodes",
    "affinity",
    "spread",
    "resources",
    "preemption",
    "volumes",
    "devices",
    "queue"
];

/// How pods are decided: one `KubeSchedulerConfiguration` for all scenarios, with a profile for each way.
pub const CONFIGURATION: &str = include_str!("../../scheduler/configuration.yaml");

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub name: String,
    /// By name, in short: `labels`, `zone`, `taints`, `unschedulable`, `room` (what is allocatable) and fields of the status.
    #[serde(default)]
    pub nodes: Map<String, Value>,
    /// Whatever else is there.
    #[serde(default)]
    pub objects: Vec<Value>,
    /// Pods that are there, in short.
    #[serde(default)]
    pub there: Vec<Value>,
    /// Pods that come, in short, each when the one before has been decided.
    #[serde(default)]
    pub pods: Vec<Value>,
    /// What happens then.
    #[serde(default)]
    pub then: Vec<Step>,
    /// A pod that gets no node goes before the next comes.
    #[serde(default)]
    pub apart: bool,
}

impl Played for Scenario {
    fn name(&self) -> &str {
        &self.name
    }
}

/// All scenarios, in the files' order, and then those that are drawn.
pub fn all() -> Result<Vec<Scenario>> {
    let mut out: Vec<Scenario> = Vec::new();
    for (name, text) in FILES {
        let read: Vec<Scenario> = serde_saphyr::from_str(text).with_context(|| format!("scheduler/{name}.yaml"))?;
        out.extend(read);
    }
    out.extend((0..random::COUNT).map(random::scenario));
    let names: BTreeSet<&str> = out.iter().map(|s| s.name.as_str()).collect();
    ensure!(names.len() == out.len(), "two scenarios have one name");
    for scenario in &mut out {
        scenario.furnish();
    }
    Ok(out)
}

impl Scenario {
    fn furnish(&mut self) {
        let nodes = std::mem::take(&mut self.nodes);
        self.nodes = nodes
            .into_iter()
            .map(|(name, short)| (name.clone(), node(&name, short)))
            .collect();
        for (n, short) in self.there.iter_mut().chain(&mut self.pods).enumerate() {
            *short = pod(n, short.take());
        }
        self.objects.iter_mut().for_each(furnish_object);
        self.then.iter_mut().for_each(long);
    }
}

/// `{pod: …}` and `{node: …}` within steps.
fn long(step: &mut Step) {
    match step {
        Step::Create(Value::Array(objects)) => objects.iter_mut().for_each(long_object),
        Step::Create(object) => long_object(object),
        Step::Together(steps) => steps.iter_mut().for_each(long),
        _ => {}
    }
}

fn long_object(object: &mut Value) {
    let name = |of: &Value| of["name"].as_str().unwrap_or_default().to_string();
    if let Some(short) = object.get_mut("pod") {
        *object = pod(0, short.take());
    } else if let Some(short) = object.get_mut("node") {
        let mut short = short.take();
        let named = name(&short);
        short.as_object_mut().map(|s| s.remove("name"));
        *object = node(&named, short);
    } else {
        furnish_object(object);
    }
}

fn node(name: &str, mut short: Value) -> Value {
    let mut take = |key: &str| short.as_object_mut().and_then(|s| s.remove(key)).unwrap_or_default();
    let mut labels = take("labels");
    or(&mut labels["kubernetes.io/hostname"], json!(name));
    let zone = take("zone");
    if !zone.is_null() {
        labels["topology.kubernetes.io/zone"] = zone;
    }
    let (annotations, taints, unschedulable) = (take("annotations"), take("taints"), take("unschedulable"));
    let mut room = take("room");
    for (resource, amount) in [("cpu", "4"), ("memory", "8Gi"), ("pods", "110")] {
        or(&mut room[resource], json!(amount));
    }
    let mut status = if short.is_null() { json!({}) } else { short };
    status["allocatable"] = room.clone();
    status["capacity"] = room;
    let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": {}, "status": status});
    for (place, value) in [("taints", taints), ("unschedulable", unschedulable)] {
        if !value.is_null() {
            node["spec"][place] = value;
        }
    }
    if !annotations.is_null() {
        node["metadata"]["annotations"] = annotations;
    }
    node
}

/// `name`, `namespace`, `labels`, `annotations`, `owner`; `on` a node, `class` of its priority; `started`; `cpu`, `memory` and `asks` for what its
/// one container requests, `limits`, `ports`, `image`; everything else is of its spec.
fn pod(n: usize, mut short: Value) -> Value {
    let mut take = |key: &str| short.as_object_mut().and_then(|s| s.remove(key)).unwrap_or_default();
    let mut meta = json!({});
    for key in ["name", "namespace", "labels", "annotations", "finalizers"] {
        let value = take(key);
        if !value.is_null() {
            meta[key] = value;
        }
    }
    let owner = take("owner");
    if !owner.is_null() {
        meta["ownerReferences"] = json!([owner]);
    }
    let mut asks = take("asks");
    for key in ["cpu", "memory"] {
        let value = take(key);
        if !value.is_null() {
            asks[key] = value;
        }
    }
    let mut container = json!({"name": "c", "image": "i"});
    let image = take("image");
    if !image.is_null() {
        container["image"] = image;
    }
    let (limits, ports, claims) = (take("limits"), take("ports"), take("claims"));
    for (key, value) in [("requests", asks), ("limits", limits), ("claims", claims)] {
        if !value.is_null() {
            container["resources"][key] = value;
        }
    }
    if !ports.is_null() {
        container["ports"] = ports;
    }
    let (on, class, started) = (take("on"), take("class"), take("started"));
    let mut spec = if short.is_null() { json!({}) } else { short };
    or(&mut spec["containers"], json!([container]));
    for (key, value) in [("nodeName", &on), ("priorityClassName", &class)] {
        if !value.is_null() {
            spec[key] = value.clone();
        }
    }
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec});
    if !on.is_null() {
        // Each began at another time, so that who began last is certain.
        let at = format!("2026-01-01T00:{:02}:{:02}Z", n / 60, n % 60);
        let at = if started.is_null() { json!(at) } else { started };
        pod["status"] = json!({"phase": "Running", "startTime": at});
    }
    pod
}

#[cfg(test)]
mod tests {
    #[test]
    fn they_can_be_read() -> anyhow::Result<()> {
        assert!(super::all()?.len() > 120);
        Ok(())
    }
}
