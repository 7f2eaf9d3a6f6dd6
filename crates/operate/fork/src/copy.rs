//! What of a cluster's objects goes into its copy, and as what.

use serde_json::{Value, json};

/// Annotation of nodes that are played, as `keelson_simulate` reads it.
pub const PLAYED: (&str, &str) = ("kwok.x-k8s.io/node", "fake");
/// Has all that `kubectl apply` was given, values of secrets too.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Base64 of `withheld`, and of the least that is a configuration of registries in either form.
const WITHHELD: &str = "d2l0aGhlbGQ=";
const NO_REGISTRIES: [(&str, &str); 2] = [(".dockerconfigjson", "eyJhdXRocyI6e319"), (".dockercfg", "e30=")];
/// What Helm knows of what it has installed: without it it would install everything anew.
const RELEASE: &str = "helm.sh/release.v1";

#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// Values of secrets are what they are. Else each is another.
    pub secrets: bool,
}

/// Why no object of a kind is copied.
pub fn kind_left(resource: &str) -> Option<&'static str> {
    Some(match resource {
        "events" | "events.events.k8s.io" => "they tell of what happened there",
        "leases.coordination.k8s.io" | "leasecandidates.coordination.k8s.io" => "whoever holds them writes them",
        "apiservices.apiregistration.k8s.io" => "servers of other APIs aren't asked",
        "certificatesigningrequests.certificates.k8s.io" | "podcertificaterequests.certificates.k8s.io" => {
            "the copy has authorities of its own"
        }
        "flowschemas.flowcontrol.apiserver.k8s.io" | "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io" => {
            "the copy has its own"
        }
        "storageversionmigrations.storagemigration.k8s.io" => "nothing is to be migrated in a copy",
        _ => return None,
    })
}

/// The object as it goes into the copy.
///
/// # Errors
///
/// Why it doesn't.
pub fn copied(resource: &str, mut object: Value, manner: Manner) -> Result<Value, &'static str> {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
        metadata.remove("selfLink");
    }
    match resource {
        "secrets" => return secret(object, manner),
        "nodes" => node(&mut object),
        "customresourcedefinitions.apiextensions.k8s.io" => definition(&mut object),
        _ => {}
    }
    Ok(object)
}

fn secret(mut object: Value, manner: Manner) -> Result<Value, &'static str> {
    match object["type"].as_str() {
        Some("bootstrap.kubernetes.io/token") => return Err("machines join by it"),
        Some(RELEASE) => return Ok(object),
        _ if manner.secrets => return Ok(object),
        // The copy's own token is made for it.
        Some("kubernetes.io/service-account-token") => object["data"] = json!({}),
        _ => {}
    }
    if let Some(annotations) = object
        .pointer_mut("/metadata/annotations")
        .and_then(Value::as_object_mut)
    {
        annotations.remove(LAST_APPLIED);
    }
    for (key, value) in object
        .get_mut("data")
        .and_then(Value::as_object_mut)
        .into_iter()
        .flatten()
    {
        let empty = NO_REGISTRIES.iter().find(|(name, _)| name == key);
        *value = empty.map_or(WITHHELD, |(_, empty)| *empty).into();
    }
    Ok(object)
}

/// Played is who is well there. Others are silent in the copy, too.
fn node(object: &mut Value) {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let is_ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
    if conditions.into_iter().flatten().any(is_ready) {
        object["metadata"]["annotations"][PLAYED.0] = PLAYED.1.into();
    }
}

/// Webhooks that convert objects aren't asked: they are in every version as they are kept.
fn definition(object: &mut Value) {
    if object
        .pointer("/spec/conversion/strategy")
        .is_some_and(|s| s == "Webhook")
    {
        object["spec"]["conversion"] = json!({"strategy": "None"});
    }
}

/// The version in which the objects of a definition are kept.
pub fn kept_in(definition: &Value) -> Option<&str> {
    let versions = definition.pointer("/spec/versions")?.as_array()?;
    let kept = versions.iter().find(|version| version["storage"] == true)?;
    kept["name"].as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIDDEN: Manner = Manner { secrets: false };

    #[test]
    fn secrets_keep_their_keys_and_lose_their_values() {
        let secret = |kind: &str, key: &str| {
            json!({"metadata": {"name": "s", "resourceVersion": "7", "annotations": {LAST_APPLIED: "c2VjcmV0", "a": "b"}}, "type": kind,
                "data": {key: "c2VjcmV0"}})
        };
        let copy = |kind, key, manner| copied("secrets", secret(kind, key), manner);
        let hidden = copy("Opaque", "password", HIDDEN).unwrap();
        assert_eq!(
            hidden,
            json!({"metadata": {"name": "s", "annotations": {"a": "b"}}, "type": "Opaque", "data": {"password": WITHHELD}})
        );
        for (kind, key) in [
            ("kubernetes.io/dockerconfigjson", ".dockerconfigjson"),
            ("kubernetes.io/service-account-token", "token"),
            ("kubernetes.io/tls", "tls.key"),
        ] {
            assert!(
                !copy(kind, key, HIDDEN).unwrap().to_string().contains("c2VjcmV0"),
                "{kind}"
            );
        }
        assert_eq!(
            copy("Opaque", "password", Manner { secrets: true }).unwrap()["data"]["password"],
            "c2VjcmV0"
        );
        assert_eq!(copy(RELEASE, "release", HIDDEN).unwrap()["data"]["release"], "c2VjcmV0");
        assert!(
            copy(
                "bootstrap.kubernetes.io/token",
                "token-secret",
                Manner { secrets: true }
            )
            .is_err()
        );
    }

    #[test]
    fn nodes_that_are_well_are_played_and_no_webhook_converts() {
        let node = |ready: &str| json!({"metadata": {"name": "n"}, "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        let annotation = |object: &Value| object["metadata"]["annotations"][PLAYED.0].clone();
        assert_eq!(annotation(&copied("nodes", node("True"), HIDDEN).unwrap()), PLAYED.1);
        assert!(annotation(&copied("nodes", node("Unknown"), HIDDEN).unwrap()).is_null());
        let definition = json!({"metadata": {}, "spec": {"conversion": {"strategy": "Webhook", "webhook": {}},
            "versions": [{"name": "v1beta1"}, {"name": "v1", "storage": true}]}});
        assert_eq!(kept_in(&definition), Some("v1"));
        let copy = copied("customresourcedefinitions.apiextensions.k8s.io", definition, HIDDEN).unwrap();
        assert_eq!(copy["spec"]["conversion"], json!({"strategy": "None"}));
    }
}
