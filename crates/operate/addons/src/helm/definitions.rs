//! The definitions of charts and their configurations: names, fields, columns and rules are those of k3s' helm-controller, so that either's
//! objects are the other's. `failurePolicy` takes one value more.

use super::chart::{CHARTS, CONFIGS, GROUP};
use crate::definitions::{MANAGED_BY, US, described, strings};
use serde_json::{Value, json};

const FAILURE_POLICY: &str = "abort: the release stays as it failed. reinstall: it is uninstalled and installed anew. retry: it is upgraded again when something \
    changes. rollback: it goes back to its last revision that was well.";

fn flag(description: &str) -> Value {
    json!({"type": "boolean", "description": description})
}

fn word(description: &str) -> Value {
    described(description, strings())
}

fn reference(description: &str) -> Value {
    json!({"type": "object", "description": description, "x-kubernetes-map-type": "atomic",
        "properties": {"name": {"type": "string", "default": ""}}})
}

fn values() -> [(&'static str, Value); 5] {
    let secret = json!({"type": "object", "properties": {
        "name": word("In the chart's namespace."),
        "keys": described("Keys with values; without any it isn't used.", json!({"type": "array", "items": strings()})),
        "ignoreUpdates": flag("It may be missing, and its changes change nothing.")}});
    [
        (
            "values",
            json!({"description": "Values; they count before valuesContent.", "x-kubernetes-preserve-unknown-fields": true}),
        ),
        ("valuesContent", word("Values as YAML.")),
        (
            "valuesSecrets",
            described("Values in Secrets.", json!({"type": "array", "items": secret})),
        ),
        (
            "failurePolicy",
            json!({"type": "string", "enum": ["abort", "reinstall", "retry", "rollback"], "description": FAILURE_POLICY}),
        ),
        (
            "serverSide",
            json!({"type": "string", "enum": ["true", "false", "auto"], "description": "helm's --server-side."}),
        ),
    ]
}

fn object(properties: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let properties: serde_json::Map<String, Value> = properties.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
    json!({"type": "object", "properties": properties})
}

fn definition(name: &str, kind: &str, short: &str, columns: Value, properties: Value, subresources: Value) -> Value {
    let plural = name.split('.').next().unwrap_or_default();
    let mut version = json!({"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}}});
    for (field, value) in [("additionalPrinterColumns", columns), ("subresources", subresources)] {
        if !value.is_null() {
            version[field] = value;
        }
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": name, "labels": {MANAGED_BY: US}},
        "spec": {"group": GROUP, "scope": "Namespaced",
            "names": {"kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": kind.to_lowercase(), "shortNames": [short]},
            "versions": [version]},
    })
}

fn whole(spec: Value, status: Option<Value>) -> Value {
    let mut all = json!({"apiVersion": strings(), "kind": strings(), "metadata": {"type": "object"}, "spec": spec});
    if let Some(status) = status {
        all["status"] = status;
    }
    all
}

pub fn charts() -> Value {
    let context =
        |what: &str| json!({"type": "object", "description": what, "x-kubernetes-preserve-unknown-fields": true});
    let own = [
        (
            "targetNamespace",
            word("Where the release goes; without it to the chart's own namespace."),
        ),
        ("createNamespace", flag("Make that namespace, if there is none.")),
        ("chart", word("A chart's name in repo, or the URL of its archive.")),
        ("version", word("Of a chart of a repository.")),
        ("repo", word("The repository's URL.")),
        ("repoCA", word("Authorities of the repository's certificate, PEM.")),
        ("repoCAConfigMap", reference("A ConfigMap with authorities.")),
        (
            "set",
            described(
                "Simple values, which count before all others.",
                json!({"type": "object",
            "additionalProperties": {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true}}),
            ),
        ),
        ("helmVersion", word("Empty, or v3.")),
        (
            "bootstrap",
            flag("The cluster needs it to become ready: its job runs on a server's own network."),
        ),
        ("takeOwnership", flag("helm's --take-ownership.")),
        ("forceConflicts", flag("helm's --force-conflicts.")),
        (
            "chartContent",
            word("The archive itself, in base64; counts before chart."),
        ),
        ("jobImage", word("What the job runs in place of the usual image.")),
        (
            "backOffLimit",
            json!({"type": "integer", "format": "int32", "description": "After so many tries the job has failed."}),
        ),
        ("timeout", word("helm's --timeout.")),
        (
            "authSecret",
            reference("A Secret of type kubernetes.io/basic-auth for the repository."),
        ),
        ("authPassCredentials", flag("Show it to all hosts.")),
        ("insecureSkipTLSVerify", flag("Take any certificate of the repository.")),
        ("plainHTTP", flag("Speak plain HTTP to the registry.")),
        (
            "dockerRegistrySecret",
            reference("A Secret of type kubernetes.io/dockerconfigjson for the registry."),
        ),
        ("podSecurityContext", context("Of the job's pod.")),
        ("securityContext", context("Of the job's container.")),
        (
            "driver",
            json!({"type": "string", "enum": ["secret", "configmap"], "description": "What helm keeps releases in.",
            "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "driver is immutable after creation"}]}),
        ),
    ];
    let spec = object(own.into_iter().chain(values()));
    let condition = json!({"type": "object", "required": ["status", "type"],
        "properties": {"type": strings(), "status": strings(), "reason": strings(), "message": strings()}});
    let status = object([
        ("jobName", word("The job that was made for it last.")),
        (
            "conditions",
            json!({"type": "array", "items": condition, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
        ),
    ]);
    let column = |name: &str, kind: &str, path: &str| json!({"name": name, "type": kind, "jsonPath": path});
    let mut job = column("Job", "string", ".status.jobName");
    job["priority"] = 10.into();
    let columns = json!([
        column("Repo", "string", ".spec.repo"),
        column("Chart", "string", ".spec.chart"),
        column("Version", "string", ".spec.version"),
        column("TargetNamespace", "string", ".spec.targetNamespace"),
        column("Bootstrap", "boolean", ".spec.bootstrap"),
        column("Failed", "string", ".status.conditions[?(@.type=='Failed')].status"),
        job,
    ]);
    definition(
        CHARTS,
        "HelmChart",
        "hc",
        columns,
        whole(spec, Some(status)),
        json!({"status": {}}),
    )
}

pub fn configs() -> Value {
    let own = [("forceConflicts", flag("helm's --force-conflicts."))];
    let spec = object(own.into_iter().chain(values()));
    definition(
        CONFIGS,
        "HelmChartConfig",
        "hcc",
        Value::Null,
        whole(spec, None),
        Value::Null,
    )
}
