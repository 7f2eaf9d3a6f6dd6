//! The definition of add-ons, and how definitions are brought: those of somebody else stay as they are.

use crate::addon::{DEFINITION, GROUP, VERSION};
use crate::{JSON, MANAGER};
use anyhow::Context;
use keelson_client::{Patch, ResourceId, Rest, is_not_found};
use serde_json::{Value, json};
use std::time::Duration;

pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
pub const US: &str = "keelson";
/// How long, and how often, it is looked whether a kind is served.
const LOOKS: u32 = 100;
const BETWEEN: Duration = Duration::from_millis(100);

/// Writes a definition and waits until its kind is served. `false`: it is somebody else's, and stays.
pub async fn write(rest: &Rest, definition: &Value) -> anyhow::Result<bool> {
    let name = definition["metadata"]["name"].as_str().unwrap_or_default();
    match find(rest, name).await? {
        Some(found) if !is_ours(&found) => return Ok(false),
        _ => {}
    }
    let patch = Patch::Apply {
        body: definition,
        manager: MANAGER,
        force: true,
    };
    rest.patch_raw(&ResourceId::DEFINITIONS, "", name, "", &patch).await?;
    let path = format!(
        "/apis/{}/{}/{}?limit=1",
        text(&definition["spec"]["group"]),
        text(&definition["spec"]["versions"][0]["name"]),
        text(&definition["spec"]["names"]["plural"])
    );
    let mut last = None;
    for _ in 0..LOOKS {
        match rest.get(&path, JSON).await {
            Ok(_) => return Ok(true),
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(BETWEEN).await;
    }
    Err(last.map_or_else(|| anyhow::anyhow!("no answer"), Into::into))
        .with_context(|| format!("{name} is defined and its kind isn't served"))
}

pub async fn find(rest: &Rest, name: &str) -> anyhow::Result<Option<Value>> {
    match rest.get_raw(&ResourceId::DEFINITIONS, "", name, "", JSON).await {
        Err(error) if is_not_found(&error) => Ok(None),
        found => Ok(Some(serde_json::from_slice(&found?)?)),
    }
}

pub fn is_ours(definition: &Value) -> bool {
    definition["metadata"]["labels"][MANAGED_BY] == US
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(crate) fn strings() -> Value {
    json!({"type": "string"})
}

pub(crate) fn described(description: &str, mut schema: Value) -> Value {
    schema["description"] = description.into();
    schema
}

pub fn addon() -> Value {
    let object = json!({"type": "object", "properties": {
        "group": strings(), "version": strings(), "kind": strings(), "namespace": strings(), "name": strings(), "uid": strings(),
        "state": {"type": "string", "enum": ["Current", "InProgress", "Failed", "Terminating", "NotFound", "Unknown"]},
        "message": strings()}});
    let source = json!({"type": "object", "properties": {"server": strings(), "file": strings(), "hash": strings()}});
    let condition = json!({"type": "object", "required": ["type", "status", "lastTransitionTime", "reason", "message"],
        "properties": {"type": strings(), "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "reason": strings(), "message": strings(), "lastTransitionTime": {"type": "string", "format": "date-time"},
            "observedGeneration": {"type": "integer", "format": "int64"}}});
    let status = json!({"type": "object", "description": "What became of it.", "properties": {
        "source": described("Whose file is in force.", strings()),
        "hash": described("Of the content that was applied as a whole.", strings()),
        "ready": described("How many objects are ready, of how many.", strings()),
        "sources": described("All servers' files of this name.", json!({"type": "array", "items": source})),
        "objects": described("What was applied, and how it is.", json!({"type": "array", "items": object})),
        "conditions": {"type": "array", "items": condition, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}}});
    let spec = json!({"type": "object", "description": "Which file.", "properties": {
        "path": described("The file, from its directory on.", strings())}});
    let column = |name: &str, path: &str| json!({"name": name, "type": "string", "jsonPath": path});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": DEFINITION, "labels": {MANAGED_BY: US}},
        "spec": {
            "group": GROUP, "scope": "Cluster",
            "names": {"kind": "Addon", "listKind": "AddonList", "plural": "addons", "singular": "addon"},
            "versions": [{
                "name": VERSION, "served": true, "storage": true, "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    column("Applied", ".status.conditions[?(@.type==\"Applied\")].status"),
                    column("Ready", ".status.conditions[?(@.type==\"Ready\")].status"),
                    column("Objects", ".status.ready"),
                    column("File", ".spec.path"),
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}],
                "schema": {"openAPIV3Schema": {"type": "object",
                    "description": "A file of manifests in a directory of the servers. Made by the servers; what it says is changed in the file.",
                    "properties": {"apiVersion": strings(), "kind": strings(), "metadata": {"type": "object"},
                        "spec": spec, "status": status}}},
            }],
        },
    })
}
