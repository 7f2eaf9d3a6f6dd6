//! Why a pod isn't as it should be, along its way: it is decided where it goes, its volumes and network come, its images,
//! its init containers, its containers, their probes; and how it ends.

mod container;
mod ended;
mod exit;
mod image;
mod probe;
mod scheduling;
mod setup;
mod verdict;

use crate::finding::{Finding, Report};
use crate::object::Fields;
use crate::picture::{Need, Picture};
use crate::{deleting, node};
use serde_json::Value;

pub(crate) use scheduling::{quantity, taint_shown};

pub fn diagnose(pod: &Value, picture: &Picture, report: &mut Report) {
    if pod.is_deleting() {
        return deleting::pod(pod, picture, report);
    }
    match pod.text("/status/phase") {
        "Succeeded" => report
            .notes
            .push("it has ended, and every container with success".into()),
        "Failed" => report.add_all(ended::failed(pod, picture)),
        _ if pod.text("/spec/nodeName").is_empty() => scheduling::waiting(pod, picture, report),
        _ => report.add_all(placed(pod, picture)),
    }
}

/// A pod that has a node and should run there.
fn placed(pod: &Value, picture: &Picture) -> Vec<Finding> {
    let mut found: Vec<Finding> = node::of_pod(pod, picture).into_iter().collect();
    found.extend(ended::leaving(pod));
    found.extend(setup::failing(pod, picture));
    for container in Container::all(pod) {
        found.extend(container::diagnose(&container, picture));
    }
    if found.is_empty() {
        found.extend(probe::gates(pod));
    }
    if found.is_empty() {
        found.extend(setup::slow(pod, picture));
    }
    found
}

/// Who ended it, if it wasn't a plain deletion.
pub fn told_of(pod: &Value) -> Option<Finding> {
    ended::leaving(pod)
}

/// Whether a pod serves: what its owners count.
pub fn is_ready(pod: &Value) -> bool {
    pod.condition_is("Ready", "True").is_some() && !pod.is_deleting()
}

/// A container with what is said of it.
#[derive(Clone, Copy)]
pub(crate) struct Container<'a> {
    pub pod: &'a Value,
    pub spec: &'a Value,
    /// Null until the kubelet has reported.
    pub status: &'a Value,
    pub is_init: bool,
}

impl<'a> Container<'a> {
    pub fn all(pod: &'a Value) -> impl Iterator<Item = Container<'a>> {
        let of = move |specs: &'static str, statuses: &'static str, is_init: bool| {
            pod.list(specs).iter().map(move |spec| Container {
                pod,
                spec,
                status: pod
                    .list(statuses)
                    .iter()
                    .find(|s| s.text("/name") == spec.text("/name"))
                    .unwrap_or(&Value::Null),
                is_init,
            })
        };
        of("/spec/initContainers", "/status/initContainerStatuses", true).chain(of(
            "/spec/containers",
            "/status/containerStatuses",
            false,
        ))
    }

    pub fn name(&self) -> &'a str {
        self.spec.text("/name")
    }

    /// `pod/web-0, container app`
    pub fn shown(&self) -> String {
        let kind = if self.is_init { "init container" } else { "container" };
        format!("{}, {kind} {}", self.pod.shown(), self.name())
    }

    pub fn image(&self) -> &'a str {
        self.spec.text("/image")
    }

    /// An init container that goes on beside the others.
    pub fn is_sidecar(&self) -> bool {
        self.is_init && self.spec.text("/restartPolicy") == "Always"
    }
}

/// What has to be read to judge a pod.
pub fn needs(pod: &Value) -> Vec<Need> {
    let namespace = pod.namespace();
    let one = |kind, name: &str| Need::One(kind, namespace.into(), name.into());
    let mut needs = vec![Need::All("Event", namespace.into())];
    let node = pod.text("/spec/nodeName");
    let is_over = matches!(pod.text("/status/phase"), "Succeeded" | "Failed");
    if !node.is_empty() {
        needs.push(Need::One("Node", String::new(), node.into()));
    } else if !is_over {
        let everywhere = [
            "Node",
            "Pod",
            "PersistentVolume",
            "StorageClass",
            "CSINode",
            "CSIDriver",
            "PriorityClass",
        ];
        needs.extend(everywhere.map(|kind| Need::All(kind, String::new())));
        needs.push(Need::All("Namespace", String::new()));
    }
    let volumes = pod.list("/spec/volumes").iter();
    for claim in volumes.map(|v| claim_of(pod, v)).filter(|c| !c.is_empty()) {
        needs.push(one("PersistentVolumeClaim", &claim));
    }
    for secret in pod.list("/spec/imagePullSecrets") {
        needs.push(one("Secret", secret.name_field()));
    }
    for container in Container::all(pod) {
        let before = container.status.has("/lastState/terminated") && !container.status.has("/state/terminated");
        if before
            || container
                .status
                .number("/state/terminated/exitCode")
                .is_some_and(|c| c != 0)
        {
            needs.push(Need::Log(
                namespace.into(),
                pod.name().into(),
                container.name().into(),
                before,
            ));
        }
    }
    needs
}

trait NameField {
    fn name_field(&self) -> &str;
}
impl NameField for Value {
    fn name_field(&self) -> &str {
        self.text("/name")
    }
}

/// The claim that a volume of a pod means; empty: none.
pub(crate) fn claim_of(pod: &Value, volume: &Value) -> String {
    match volume.has("/ephemeral") {
        true => format!("{}-{}", pod.name(), volume.text("/name")),
        false => volume.text("/persistentVolumeClaim/claimName").to_string(),
    }
}
