//! How an object is, from what it says itself: the rules of kstatus, so that other tools say the same.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a message may have.
const LONGEST: usize = 1000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum State {
    Current,
    InProgress,
    Failed,
    Terminating,
    NotFound,
    #[default]
    Unknown,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    pub state: State,
    pub message: String,
}

fn health(state: State, message: impl Into<String>) -> Health {
    Health {
        state,
        message: short(&message.into()),
    }
}

/// Cut where it grows too long to be kept.
pub fn short(message: &str) -> String {
    cut(message, LONGEST)
}

pub fn cut(message: &str, longest: usize) -> String {
    match message.len() > longest {
        true => format!("{}…", &message[..message.floor_char_boundary(longest)]),
        false => message.to_string(),
    }
}

/// Of an object as the API shows it.
pub fn of(object: &Value) -> Health {
    if object["metadata"]["deletionTimestamp"].is_string() {
        let held = object["metadata"]["finalizers"].as_array();
        let held: Vec<&str> = held.into_iter().flatten().filter_map(Value::as_str).collect();
        return match held.as_slice() {
            [] => health(State::Terminating, "it is being deleted"),
            held => health(
                State::Terminating,
                format!("it is being deleted, and waits for {}", held.join(", ")),
            ),
        };
    }
    if let Some(general) = general(object) {
        return general;
    }
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    let rule: fn(&Value) -> Health = match (group, object["kind"].as_str().unwrap_or_default()) {
        ("apps", "Deployment") => deployment,
        ("apps", "StatefulSet") => stateful_set,
        ("apps", "DaemonSet") => daemon_set,
        ("apps", "ReplicaSet") => replica_set,
        ("", "Pod") => pod,
        ("", "PersistentVolumeClaim") => claim,
        ("", "Service") => service,
        ("batch", "Job") => job,
        ("apiextensions.k8s.io", "CustomResourceDefinition") => definition,
        _ => by_conditions,
    };
    rule(object)
}

fn number(object: &Value, part: &str, field: &str) -> i64 {
    object[part][field].as_i64().unwrap_or(0)
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == kind)
}

fn is(object: &Value, kind: &str, status: &str) -> bool {
    condition(object, kind).is_some_and(|c| c["status"] == status)
}

fn said(object: &Value, kind: &str) -> String {
    let condition = condition(object, kind);
    let text = |field: &str| condition.and_then(|c| c[field].as_str()).unwrap_or_default();
    match (text("reason"), text("message")) {
        ("", message) => message.to_string(),
        (reason, "") => reason.to_string(),
        (reason, message) => format!("{reason}: {message}"),
    }
}

/// What holds for every kind: a state that isn't of this generation, and the two conditions that exist for this purpose.
fn general(object: &Value) -> Option<Health> {
    let (observed, generation) = (
        &object["status"]["observedGeneration"],
        &object["metadata"]["generation"],
    );
    if observed.is_i64() && observed != generation {
        return Some(health(
            State::InProgress,
            "its last change hasn't been seen by its controller",
        ));
    }
    if is(object, "Reconciling", "True") {
        return Some(health(State::InProgress, said(object, "Reconciling")));
    }
    is(object, "Stalled", "True").then(|| health(State::Failed, said(object, "Stalled")))
}

fn by_conditions(object: &Value) -> Health {
    match condition(object, "Ready").map(|c| c["status"].as_str().unwrap_or_default()) {
        None | Some("True") => health(State::Current, ""),
        Some(_) => health(State::InProgress, said(object, "Ready")),
    }
}

/// The first of these that is so keeps it from being ready.
fn unless(reasons: impl IntoIterator<Item = (bool, String)>) -> Health {
    match reasons.into_iter().find(|(so, _)| *so) {
        Some((_, why)) => health(State::InProgress, why),
        None => health(State::Current, ""),
    }
}

fn wanted(object: &Value) -> i64 {
    object["spec"]["replicas"].as_i64().unwrap_or(1)
}

fn deployment(object: &Value) -> Health {
    let status = |field: &str| number(object, "status", field);
    if condition(object, "Progressing").is_some_and(|c| c["reason"] == "ProgressDeadlineExceeded") {
        return health(State::Failed, said(object, "Progressing"));
    }
    if is(object, "ReplicaFailure", "True") && status("readyReplicas") < wanted(object) {
        return health(State::InProgress, said(object, "ReplicaFailure"));
    }
    let wanted = wanted(object);
    let (all, updated, ready) = (status("replicas"), status("updatedReplicas"), status("readyReplicas"));
    let unseen = object["status"]["observedGeneration"].is_null();
    unless([
        (unseen, "it hasn't been seen by its controller".into()),
        (
            updated < wanted,
            format!("{updated} of {wanted} pods are of its last version"),
        ),
        (
            all > updated,
            format!("{} pods of former versions are to go", all - updated),
        ),
        (ready < wanted, format!("{ready} of {wanted} pods are ready")),
        (
            status("availableReplicas") < wanted,
            format!("{} of {wanted} pods are available", status("availableReplicas")),
        ),
    ])
}

fn stateful_set(object: &Value) -> Health {
    let status = |field: &str| number(object, "status", field);
    if object["spec"]["updateStrategy"]["type"] == "OnDelete" {
        return health(State::Current, "its pods are updated when they are deleted");
    }
    let wanted = wanted(object);
    let partition = object["spec"]["updateStrategy"]["rollingUpdate"]["partition"]
        .as_i64()
        .unwrap_or(0);
    let to_update = (wanted - partition).max(0);
    let (all, updated, ready) = (status("replicas"), status("updatedReplicas"), status("readyReplicas"));
    let same = object["status"]["currentRevision"] == object["status"]["updateRevision"];
    unless([
        (
            object["status"]["observedGeneration"].is_null(),
            "it hasn't been seen by its controller".into(),
        ),
        (all < wanted, format!("{all} of {wanted} pods are there")),
        (ready < wanted, format!("{ready} of {wanted} pods are ready")),
        (all > wanted, format!("{} pods are to go", all - wanted)),
        (
            updated < to_update,
            format!("{updated} of {to_update} pods are of its last version"),
        ),
        (partition == 0 && !same, "its last version isn't everywhere".into()),
    ])
}

fn daemon_set(object: &Value) -> Health {
    let status = |field: &str| number(object, "status", field);
    let wanted = status("desiredNumberScheduled");
    let unseen = object["status"]["observedGeneration"].is_null();
    let enough = |field: &str, what: &str| {
        (
            status(field) < wanted,
            format!("{} of {wanted} pods are {what}", status(field)),
        )
    };
    let on_delete = object["spec"]["updateStrategy"]["type"] == "OnDelete";
    let updated = enough("updatedNumberScheduled", "of its last version");
    unless([
        (unseen, "it hasn't been seen by its controller".into()),
        enough("currentNumberScheduled", "there"),
        (updated.0 && !on_delete, updated.1),
        enough("numberAvailable", "available"),
        enough("numberReady", "ready"),
    ])
}

fn replica_set(object: &Value) -> Health {
    let status = |field: &str| number(object, "status", field);
    let (wanted, all) = (wanted(object), number(object, "status", "replicas"));
    if is(object, "ReplicaFailure", "True") {
        return health(State::InProgress, said(object, "ReplicaFailure"));
    }
    unless([
        (
            object["status"]["observedGeneration"].is_null(),
            "it hasn't been seen by its controller".into(),
        ),
        (all < wanted, format!("{all} of {wanted} pods are there")),
        (
            status("availableReplicas") < wanted,
            format!("{} of {wanted} pods are available", status("availableReplicas")),
        ),
        (
            status("readyReplicas") < wanted,
            format!("{} of {wanted} pods are ready", status("readyReplicas")),
        ),
        (all > wanted, format!("{} pods are to go", all - wanted)),
    ])
}

fn pod(object: &Value) -> Health {
    match object["status"]["phase"].as_str().unwrap_or_default() {
        "Succeeded" => health(State::Current, "it has ended"),
        "Failed" => health(
            State::Failed,
            object["status"]["message"].as_str().unwrap_or("it has failed"),
        ),
        "Running" if is(object, "Ready", "True") => health(State::Current, ""),
        "Running" => match crashing(object) {
            Some(container) => health(State::Failed, format!("container {container} ends again and again")),
            None => health(State::InProgress, said(object, "Ready")),
        },
        _ if is(object, "PodScheduled", "False") => health(State::InProgress, said(object, "PodScheduled")),
        _ => health(State::InProgress, "it hasn't begun"),
    }
}

fn crashing(object: &Value) -> Option<&str> {
    let containers = object["status"]["containerStatuses"].as_array()?;
    let ill = containers
        .iter()
        .find(|c| c["state"]["waiting"]["reason"] == "CrashLoopBackOff")?;
    ill["name"].as_str()
}

fn claim(object: &Value) -> Health {
    match object["status"]["phase"].as_str() {
        Some("Bound") => health(State::Current, ""),
        phase => health(State::InProgress, format!("it is {}", phase.unwrap_or("Pending"))),
    }
}

fn service(object: &Value) -> Health {
    let balanced = object["spec"]["type"] == "LoadBalancer";
    let has_address = object["status"]["loadBalancer"]["ingress"]
        .as_array()
        .is_some_and(|i| !i.is_empty())
        || object["spec"]["clusterIP"].as_str().is_some_and(|ip| !ip.is_empty());
    unless([(balanced && !has_address, "it has no address yet".into())])
}

fn job(object: &Value) -> Health {
    if is(object, "Failed", "True") {
        return health(State::Failed, said(object, "Failed"));
    }
    if is(object, "Complete", "True") {
        return health(State::Current, "it has ended");
    }
    match object["status"]["startTime"].is_string() {
        true => health(State::Current, "it runs"),
        false => health(State::InProgress, "it hasn't begun"),
    }
}

fn definition(object: &Value) -> Health {
    if is(object, "NamesAccepted", "False") {
        return health(State::Failed, said(object, "NamesAccepted"));
    }
    match is(object, "Established", "True") {
        true => health(State::Current, ""),
        false => health(State::InProgress, "its kind isn't served yet"),
    }
}
