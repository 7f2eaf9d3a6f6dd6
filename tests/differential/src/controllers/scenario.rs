//! What happens: steps on objects, as data.

use crate::controllers::recorded::Played;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

macro_rules! files {
    ($($name:literal),*) => { &[$(($name, include_str!(concat!("../../controllers/", $name, ".yaml")))),*] };
}
const FILES: &[(&str, &str)] = files![
    "deployments",
    "sets",
    "jobs",
    "daemons",
    "services",
    "cluster",
    "garbage",
    "volumes"
];

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its namespace; its other namespaces and its objects outside of namespaces begin with it.
    pub name: String,
    pub steps: Vec<Step>,
}

impl Played for Scenario {
    fn name(&self) -> &str {
        &self.name
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    Create(Value),
    Patch(Change),
    Delete(Delete),
    /// What kubelets say of some pods from now on.
    Pods(Pods),
    /// A node isn't heard of any more.
    Silence(String),
    /// It is heard of again.
    Speak(String),
    /// Seconds.
    Wait(f64),
    /// An object has something somewhere.
    Until(Until),
    /// One after the other, without waiting for quiet.
    Together(Vec<Step>),
}

/// `apps/v1 Deployment web`, in the scenario's namespace, or `apps/v1 Deployment other/web`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Change {
    pub of: String,
    #[serde(default)]
    pub merge: Option<Value>,
    #[serde(default)]
    pub json: Option<Value>,
    #[serde(default)]
    pub strategic: Option<Value>,
    /// A subresource.
    #[serde(default)]
    pub sub: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Delete {
    pub of: String,
    /// `DeleteOptions`.
    #[serde(default)]
    pub options: Value,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Pods {
    /// Labels that they have; all pods of the scenario, if there are none.
    #[serde(default)]
    pub with: Map<String, Value>,
    /// At most so many, the oldest first.
    #[serde(default)]
    pub count: Option<usize>,
    #[serde(default)]
    pub phase: Option<String>,
    #[serde(default)]
    pub ready: Option<bool>,
    #[serde(default)]
    pub exit: Option<i64>,
    /// Merged into the status as it is.
    #[serde(default)]
    pub status: Option<Value>,
    /// Those that terminate are gone.
    #[serde(default)]
    pub gone: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Until {
    pub of: String,
    /// A JSON pointer.
    #[serde(default)]
    pub at: String,
    /// What is there; null: nothing, or no such object.
    pub is: Value,
}

/// All scenarios, in the files' order.
pub fn all() -> Result<Vec<Scenario>> {
    let mut out: Vec<Scenario> = Vec::new();
    for (name, text) in FILES {
        let read: Vec<Scenario> = serde_saphyr::from_str(text).with_context(|| format!("controllers/{name}.yaml"))?;
        out.extend(read);
    }
    let names: BTreeSet<&str> = out.iter().map(|s| s.name.as_str()).collect();
    ensure!(names.len() == out.len(), "two scenarios have one name");
    for scenario in &mut out {
        scenario.steps.iter_mut().for_each(furnish);
    }
    Ok(out)
}

/// `a-b-c`, `a-b`, `a`.
pub fn prefixes(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(name), |n| n.rsplit_once('-').map(|(head, _)| head))
}

/// Fills in what every workload has to say and no scenario is about.
fn furnish(step: &mut Step) {
    match step {
        Step::Create(object) => furnish_object(object),
        Step::Together(steps) => steps.iter_mut().for_each(furnish),
        _ => {}
    }
}

pub(crate) fn furnish_object(object: &mut Value) {
    let text = |at: &str| object.pointer(at).and_then(Value::as_str).unwrap_or_default();
    let (kind, name) = (text("/kind").to_string(), text("/metadata/name").to_string());
    let labels = json!({"app": name});
    match kind.as_str() {
        "Pod" => pod(object),
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" => {
            let selector = json!({"matchLabels": labels});
            template(
                object,
                &["spec"],
                if kind == "StatefulSet" { &["serviceName"] } else { &[] },
                &selector,
                &labels,
            );
        }
        "ReplicationController" => template(object, &["spec"], &[], &labels.clone(), &labels),
        "Job" => job(&mut object["spec"]),
        "CronJob" => job(&mut object["spec"]["jobTemplate"]["spec"]),
        "PersistentVolumeClaim" | "PersistentVolume" => {
            let spec = &mut object["spec"];
            or(&mut spec["accessModes"], json!(["ReadWriteOnce"]));
            match kind.as_str() {
                "PersistentVolume" => {
                    or(&mut spec["capacity"], json!({"storage": "1Gi"}));
                }
                _ => or(&mut spec["resources"], json!({"requests": {"storage": "1Gi"}})),
            }
        }
        "Node" => or(&mut object["metadata"]["labels"]["kubernetes.io/hostname"], json!(name)),
        _ => {}
    }
}

fn template(object: &mut Value, at: &[&str], named: &[&str], selector: &Value, labels: &Value) {
    let name = object["metadata"]["name"].clone();
    let spec = at.iter().fold(object, |o, key| &mut o[*key]);
    for field in named {
        or(&mut spec[*field], name.clone());
    }
    or(&mut spec["selector"], selector.clone());
    or(&mut spec["template"]["metadata"]["labels"], labels.clone());
    pod(&mut spec["template"]);
}

fn job(spec: &mut Value) {
    pod(&mut spec["template"]);
    or(&mut spec["template"]["spec"]["restartPolicy"], json!("Never"));
}

fn pod(of: &mut Value) {
    or(&mut of["spec"]["containers"], json!([{"name": "c", "image": "i"}]));
}

pub(crate) fn or(place: &mut Value, value: Value) {
    if place.is_null() {
        *place = value;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn they_can_be_read() -> anyhow::Result<()> {
        assert!(super::all()?.len() > 10);
        Ok(())
    }
}
