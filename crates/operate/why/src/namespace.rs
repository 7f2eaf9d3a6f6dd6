//! A namespace that is being deleted and stays.

use crate::finding::{Finding, Report};
use crate::object::Fields;
use crate::picture::{Need, Picture};
use serde_json::Value;

pub fn diagnose(namespace: &Value, picture: &Picture, report: &mut Report) {
    if !namespace.is_deleting() {
        return;
    }
    if let Some(condition) = namespace.condition_is("NamespaceDeletionDiscoveryFailure", "True") {
        report.add(undiscovered(namespace, condition, picture));
    }
    if let Some(condition) = namespace.condition_is("NamespaceDeletionGroupVersionParsingFailure", "True") {
        report.add(
            Finding::certain(
                "group-version",
                namespace.shown(),
                "an API with a name that can't be read is in the way",
            )
            .shown_by(condition.text("/message"))
            .mended_by("Remove the APIService or CRD that is named above."),
        );
    }
    let remaining = namespace.condition_is("NamespaceContentRemaining", "True");
    if let Some(condition) = namespace.condition_is("NamespaceFinalizersRemaining", "True") {
        report.add(
            Finding::certain("content-finalizers", namespace.shown(), "objects in it wait for the owners of their finalizers")
                .shown_by(condition.text("/message"))
                .shown_by(remaining.map_or("", |c| c.text("/message")))
                .mended_by("Let the controllers of those finalizers run again (reinstall what was removed too early). If they are gone for good, remove the finalizers from those objects by hand."),
        );
    } else if let Some(condition) = remaining {
        report.add(
            Finding::certain(
                "content-remains",
                namespace.shown(),
                "objects in it are still being ended",
            )
            .shown_by(condition.text("/message"))
            .mended_by("Pods end within their grace period. See keelson why for those that stay."),
        );
    }
    if let Some(condition) = namespace.condition_is("NamespaceDeletionContentFailure", "True") {
        report.add(
            Finding::certain(
                "content-not-deleted",
                namespace.shown(),
                "objects in it can't be deleted",
            )
            .shown_by(condition.text("/message"))
            .mended_by(
                "The API server's words are above: a webhook that denies, or that is gone itself, is the usual reason.",
            ),
        );
    }
    let others = namespace
        .list("/spec/finalizers")
        .iter()
        .filter_map(Value::as_str)
        .filter(|f| *f != "kubernetes");
    for finalizer in others {
        report.add(
            Finding::certain("namespace-finalizer", namespace.shown(), format!("it waits for whoever owns its finalizer {finalizer}"))
                .mended_by("Let that controller run; if it is gone for good, remove the finalizer by the namespace's finalize subresource."),
        );
    }
    if report.findings.is_empty() && !namespace.list("/metadata/finalizers").is_empty() {
        crate::deleting::diagnose(namespace, picture, report);
    }
    if report.findings.is_empty() {
        report
            .notes
            .push("it is being deleted, and nothing is known to be in the way".into());
    }
}

fn undiscovered(namespace: &Value, condition: &Value, picture: &Picture) -> Finding {
    let dead: Vec<&Value> = picture
        .all("APIService", "")
        .filter(|a| a.condition_is("Available", "False").is_some())
        .collect();
    let names: Vec<&str> = dead.iter().map(|a| a.name()).collect();
    let found = match names.is_empty() {
        true => Finding::certain(
            "dead-api-service",
            namespace.shown(),
            "an API that could have objects in it doesn't answer",
        ),
        false => Finding::certain(
            "dead-api-service",
            namespace.shown(),
            format!(
                "the API {} could have objects in it, and doesn't answer",
                names.join(", ")
            ),
        ),
    };
    let why = dead
        .iter()
        .filter_map(|a| a.condition("Available"))
        .map(|c| c.text("/message"));
    found.shown_by(condition.text("/message")).shown_by_all(why).mended_by(
        "Mend what serves it (keelson why apiservice/NAME), or if it is gone for good: kubectl delete apiservice NAME.",
    )
}

pub fn needs(_: &Value) -> Vec<Need> {
    vec![Need::All("APIService", String::new())]
}
