//! Why the API server refused what a controller or a user wanted to make, by its words.

use crate::finding::Finding;
use crate::object::{Fields, between};
use serde_json::Value;

/// `object`: for whom it was made.
pub fn refused(object: &Value, message: &str) -> Finding {
    judged(&object.shown(), object.namespace(), message).shown_by(message)
}

fn judged(shown: &str, namespace: &str, message: &str) -> Finding {
    let sure = |cause: &str, says: String, fix: &str| Finding::certain(cause, shown, says).mended_by(fix);
    if let Some((_, rest)) = message.split_once("exceeded quota: ") {
        let quota = rest.split(',').next().unwrap_or(rest);
        return sure(
            "quota-exceeded",
            format!("the quota {quota} of namespace {namespace} has no room for its pods"),
            "Raise the quota, remove other pods, or ask for less (kubectl describe quota shows what is used).",
        );
    }
    if let Some((_, rest)) = message.split_once("failed quota: ") {
        let (quota, lacks) = rest.split_once(": ").unwrap_or((rest, "requests"));
        return sure(
            "quota-needs-requests",
            format!("the quota {quota} of namespace {namespace} counts what its pods don't say: {lacks}"),
            "Say it in the pods' resources, or give the namespace a LimitRange with defaults.",
        );
    }
    if let Some(name) = between(message, "admission webhook \"", "\" denied the request") {
        return sure(
            "webhook-denied",
            format!("the webhook {name} denies its pods"),
            "Its reason is above: change the pods, or the webhook's policy.",
        );
    }
    if let Some(name) = between(message, "failed calling webhook \"", "\"") {
        return sure(
            "webhook-down",
            format!("the webhook {name} has to be asked about its pods, and can't be"),
            "See the webhook's service and pods (keelson why service/…). If it is gone for good, delete its webhook configuration.",
        );
    }
    if message.contains("violates PodSecurity") {
        let level = between(message, "violates PodSecurity \"", "\"").unwrap_or_default();
        return sure(
            "pod-security",
            format!("its pods ask for more than the level {level} of namespace {namespace} allows"),
            "Set the securityContext that is named above, or give the namespace another level (label pod-security.kubernetes.io/enforce).",
        );
    }
    if message.contains("ValidatingAdmissionPolicy") {
        let name = between(message, "ValidatingAdmissionPolicy '", "'").unwrap_or_default();
        return sure(
            "policy-denied",
            format!("the admission policy {name} denies its pods"),
            "Its reason is above: change the pods, or the policy.",
        );
    }
    if message.contains("serviceaccount \"") && message.contains("not found") {
        let name = between(message, "serviceaccount \"", "\"").unwrap_or_default();
        return sure(
            "serviceaccount-missing",
            format!("its pods' service account {name} doesn't exist in namespace {namespace}"),
            "Create it (kubectl create serviceaccount), or correct serviceAccountName.",
        );
    }
    if message.contains("PriorityClass") && (message.contains("no PriorityClass") || message.contains("not found")) {
        return sure(
            "priorityclass-missing",
            "its pods' priority class doesn't exist".into(),
            "Create it, or correct priorityClassName (kubectl get priorityclass lists what there is).",
        );
    }
    if message.contains("RuntimeClass") && message.contains("not found") {
        return sure(
            "runtimeclass-missing",
            "its pods' RuntimeClass doesn't exist".into(),
            "Create it, or leave runtimeClassName out.",
        );
    }
    if ["maximum ", "minimum "].iter().any(|w| message.contains(w)) && message.contains("usage per ") {
        return sure(
            "limit-range",
            format!("a LimitRange of namespace {namespace} doesn't allow its resources"),
            "Ask for amounts within it (kubectl describe limitrange), or change it.",
        );
    }
    if message.contains("because it is being terminated") {
        return sure(
            "namespace-terminating",
            format!("its namespace {namespace} is being deleted: nothing new is made in it"),
            "Use another namespace, or wait (keelson why namespace/…).",
        );
    }
    if message.contains("is invalid:") {
        return sure(
            "pod-invalid",
            "the pods that its template makes aren't valid".into(),
            "Correct the fields of the template that are named above.",
        );
    }
    if message.contains("is forbidden:") {
        return sure("forbidden", "its pods are refused".into(), "The refusal is above.");
    }
    sure(
        "create-failed",
        "its pods can't be made".into(),
        "The API server's words are above.",
    )
}
