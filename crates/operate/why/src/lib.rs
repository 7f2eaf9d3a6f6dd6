//! Why an object of the cluster isn't as it should be: cause, evidence, fix.
//!
//! [`diagnose`] is pure: rules over a [`Picture`] of objects, one file a family of objects. [`needs`] says what a picture for
//! a question has to hold, [`fetch`] gets it. A rule concludes only from what an object says (certain), or from what usually is so
//! (likely); what could not be read is never taken for absent.
//!
//! The crate changes nothing in a cluster, and knows it by the API only.

mod ask;
mod autoscaler;
mod deleting;
mod denied;
mod extension;
pub mod fetch;
mod finding;
mod kinds;
mod namespace;
mod network;
mod node;
mod object;
mod picture;
mod pod;
mod storage;
mod workload;

pub use ask::{Question, WrongQuestion};
pub use denied::Asked;
pub use finding::{Confidence, Finding, Report};
pub use kinds::{KINDS, Known, kind};
pub use network::reach::Way;
pub use picture::{Lookup, Need, Picture};

use object::Fields;
use serde_json::Value;

/// The answer to a question, by what the picture shows.
pub fn diagnose(question: &Question, picture: &Picture) -> Report {
    let mut report = Report {
        about: question.to_string(),
        ..Report::default()
    };
    match question {
        Question::Object { kind, namespace, name } => match picture.find(kind, namespace, name) {
            Lookup::Found(object) => of_object(object, picture, &mut report),
            Lookup::Missing => report.add(
                Finding::certain("does-not-exist", report.about.clone(), missing(kind, namespace))
                    .shown_by_all(likenesses(kind, name, picture)),
            ),
            Lookup::Unknown => {}
        },
        Question::Denied(asked) => denied::diagnose(asked, picture, &mut report),
        Question::Unreachable(way) => network::reach::diagnose(way, picture, &mut report),
    }
    report.settle();
    report
}

fn missing(kind: &str, namespace: &str) -> String {
    match namespace {
        "" => format!("there is no such {kind}"),
        namespace => format!("there is no such {kind} in namespace {namespace}"),
    }
}

/// Objects of the name in other namespaces.
fn likenesses(kind: &str, name: &str, picture: &Picture) -> Vec<String> {
    let same = picture.all(kind, "").filter(|o| o.name() == name);
    same.map(|o| format!("there is one in namespace {}", o.namespace()))
        .take(3)
        .collect()
}

fn of_object(object: &Value, picture: &Picture, report: &mut Report) {
    match object.kind() {
        "Pod" => return pod::diagnose(object, picture, report),
        "Namespace" => return namespace::diagnose(object, picture, report),
        _ => {}
    }
    if object.is_deleting() {
        return deleting::diagnose(object, picture, report);
    }
    match object.kind() {
        "Node" => node::diagnose(object, picture, report),
        "Service" => network::service::diagnose(object, picture, report),
        "Ingress" => network::ingress::diagnose(object, picture, report),
        "PersistentVolumeClaim" => storage::claim::diagnose(object, picture, report),
        "PersistentVolume" => storage::volume::diagnose(object, picture, report),
        "HorizontalPodAutoscaler" => autoscaler::diagnose(object, picture, report),
        "APIService" => extension::api_service(object, picture, report),
        "CustomResourceDefinition" => extension::definition(object, report),
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => {
            extension::webhooks(object, picture, report)
        }
        _ if workload::diagnose(object, picture, report) => {}
        _ => others(object, report),
    }
}

/// A kind without rules of its own, custom resources too: its conditions speak for themselves.
fn others(object: &Value, report: &mut Report) {
    let good = ["Ready", "Available", "Succeeded", "Healthy", "Established"];
    for condition in object.list("/status/conditions") {
        if good.contains(&condition.text("/type")) && condition.text("/status") == "False" {
            report.add(
                Finding::certain(
                    "condition",
                    object.shown(),
                    format!(
                        "its condition {} is False: {}",
                        condition.text("/type"),
                        condition.text("/reason")
                    ),
                )
                .shown_by(condition.text("/message"))
                .mended_by("The message is its controller's own."),
            );
        }
    }
}

/// What a picture has to hold for a question, as far as it can be told from what is in it already: to be asked again when that
/// has come.
pub fn needs(question: &Question, picture: &Picture) -> Vec<Need> {
    let mut needs = match question {
        Question::Object { kind, namespace, name } => {
            let own = Need::One(kind, namespace.clone(), name.clone());
            match picture.find(kind, namespace, name) {
                Lookup::Found(object) => needs_of(object, picture),
                _ => vec![own],
            }
        }
        Question::Denied(asked) => {
            let mut needs = denied::needs(asked);
            needs.extend(denied::needs_of_webhooks(picture));
            needs
        }
        Question::Unreachable(way) => network::reach::needs(way),
    };
    needs.sort();
    needs.dedup();
    needs.retain(|n| !picture.has_asked(n));
    needs
}

fn needs_of(object: &Value, picture: &Picture) -> Vec<Need> {
    let mut needs = match object.kind() {
        "Pod" => pod::needs(object),
        "Namespace" => namespace::needs(object),
        "Node" => node::needs(object),
        "Service" => {
            let mut needs = network::service::needs(object);
            needs.extend(network::service::needs_of_pods(object, picture));
            needs
        }
        "Ingress" => network::ingress::needs(object),
        "PersistentVolumeClaim" => storage::claim::needs(object),
        "PersistentVolume" => storage::volume::needs(object),
        "HorizontalPodAutoscaler" => autoscaler::needs(object),
        "APIService" | "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => extension::needs(object),
        "Deployment"
        | "ReplicaSet"
        | "ReplicationController"
        | "StatefulSet"
        | "DaemonSet"
        | "Job"
        | "CronJob"
        | "PodDisruptionBudget" => {
            let mut needs = workload::needs(object);
            needs.extend(workload::needs_of_pods(picture, object));
            needs
        }
        _ => Vec::new(),
    };
    // The claims that pods mount are judged by what claims need.
    for need in needs.clone() {
        if let Need::One("PersistentVolumeClaim", namespace, name) = need
            && let Some(claim) = picture.find("PersistentVolumeClaim", &namespace, &name).found()
            && claim.text("/status/phase") != "Bound"
        {
            needs.extend(storage::claim::needs(claim));
        }
    }
    needs
}
