//! Which objects of the API a pod refers to. Pods that a node makes refer to none: by making one it would come by what is only for
//! the pods that it was given.

use keelson_api::{Map, Object, Value};

/// Volumes that need nothing of the API; of those that may name a Secret only if they do.
const PLAIN: [&str; 24] = [
    "awsElasticBlockStore",
    "azureDisk",
    "cephfs",
    "cinder",
    "downwardAPI",
    "emptyDir",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "hostPath",
    "image",
    "iscsi",
    "name",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
    "projected",
];

fn list<'a>(of: &'a Map, key: &str) -> impl Iterator<Item = &'a Map> {
    of.arr(key).into_iter().flatten().filter_map(Value::as_object)
}

fn given<'a>(of: &'a Map, key: &str) -> Option<&'a Map> {
    of.obj(key)
}

/// The names of the Secrets that a pod refers to, wherever it does so.
pub fn secrets(pod: &Object) -> Vec<String> {
    let mut names = Vec::new();
    let Some(spec) = pod.obj("spec") else { return names };
    let mut add = |name: Option<&str>| names.extend(name.filter(|n| !n.is_empty()).map(str::to_owned));
    list(spec, "imagePullSecrets").for_each(|s| add(s.str("name")));
    for container in containers(spec) {
        for env in list(container, "env") {
            let key = given(env, "valueFrom").and_then(|from| given(from, "secretKeyRef"));
            add(key.and_then(|r| r.str("name")));
        }
        for from in list(container, "envFrom") {
            add(given(from, "secretRef").and_then(|r| r.str("name")));
        }
    }
    for volume in list(spec, "volumes") {
        for (_, source) in volume {
            let Some(source) = source.as_object() else { continue };
            add(source.str("secretName"));
            for key in ["secretRef", "nodePublishSecretRef"] {
                add(given(source, key).and_then(|r| r.str("name")));
            }
        }
        for source in given(volume, "projected").into_iter().flat_map(|p| list(p, "sources")) {
            add(given(source, "secret").and_then(|r| r.str("name")));
        }
    }
    names
}

fn containers(spec: &Map) -> impl Iterator<Item = &Map> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|key| list(spec, key))
}

fn refers_to_config_maps(spec: &Map) -> bool {
    containers(spec).any(|container| {
        let by_env = |env: &Map| given(env, "valueFrom").is_some_and(|from| given(from, "configMapKeyRef").is_some());
        list(container, "env").any(by_env) || list(container, "envFrom").any(|f| given(f, "configMapRef").is_some())
    })
}

/// The first kind of objects that a pod refers to, as upstream names it. What isn't known counts as a reference.
pub fn first(pod: &Object) -> Option<String> {
    let spec = pod.obj("spec")?;
    if spec.str("serviceAccountName").is_some_and(|name| !name.is_empty()) {
        return Some("serviceaccounts".into());
    }
    if !secrets(pod).is_empty() {
        return Some("secrets".into());
    }
    if refers_to_config_maps(spec) {
        return Some("configmaps".into());
    }
    if list(spec, "resourceClaims").next().is_some() {
        return Some("resourceclaims".into());
    }
    list(spec, "volumes").find_map(by_volume).map(str::to_owned)
}

fn by_volume(volume: &Map) -> Option<&'static str> {
    let known = volume
        .iter()
        .filter(|(_, source)| !source.is_null())
        .find_map(|(kind, _)| match kind.as_str() {
            "configMap" => Some("configmaps (via configmap volumes)"),
            "secret" => Some("secrets (via secret volumes)"),
            "csi" => Some("csidrivers (via CSI volumes)"),
            "glusterfs" => Some("endpoints (via glusterFS volumes)"),
            "persistentVolumeClaim" => Some("persistentvolumeclaims"),
            "ephemeral" => Some("persistentvolumeclaims (via ephemeral volumes)"),
            "azureFile" => Some("secrets (via azureFile volumes)"),
            kind if PLAIN.contains(&kind) => None,
            _ => Some("objects (via a volume of an unknown kind)"),
        });
    known.or_else(|| {
        given(volume, "projected")
            .into_iter()
            .flat_map(|p| list(p, "sources"))
            .find_map(by_source)
    })
}

fn by_source(source: &Map) -> Option<&'static str> {
    source
        .iter()
        .filter(|(_, of)| !of.is_null())
        .find_map(|(kind, _)| match kind.as_str() {
            "configMap" => Some("configmaps (via projected volumes)"),
            "secret" => Some("secrets (via projected volumes)"),
            "serviceAccountToken" => Some("serviceaccounts (via projected volumes)"),
            "clusterTrustBundle" => Some("clustertrustbundles"),
            "podCertificate" => Some("podcertificates"),
            "downwardAPI" => None,
            _ => Some("objects (via a projected volume of an unknown source)"),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    #[test]
    fn what_a_pod_refers_to_is_found_wherever_it_stands() {
        let of = |spec: Value| first(&Object::try_from(value!({"kind": "Pod", "spec": spec})).unwrap());
        let volume = |source: Value| of(value!({"volumes": [source]}));
        let container = |c: Value| of(value!({"containers": [c]}));
        for (found, wanted) in [
            (
                of(value!({"containers": [{"name": "c"}], "volumes": [{"name": "v", "hostPath": {"path": "/"}}]})),
                None,
            ),
            (of(value!({"serviceAccountName": "a"})), Some("serviceaccounts")),
            (of(value!({"imagePullSecrets": [{"name": "s"}]})), Some("secrets")),
            (
                of(value!({"resourceClaims": [{"name": "c", "resourceClaimName": "c"}]})),
                Some("resourceclaims"),
            ),
            (
                container(
                    value!({"env": [{"name": "E", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}]}),
                ),
                Some("configmaps"),
            ),
            (
                container(value!({"envFrom": [{"secretRef": {"name": "s"}}]})),
                Some("secrets"),
            ),
            (
                volume(value!({"name": "v", "csi": {"driver": "d"}})),
                Some("csidrivers (via CSI volumes)"),
            ),
            (
                volume(value!({"name": "v", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "s"}}})),
                Some("secrets"),
            ),
            (
                volume(value!({"name": "v", "rbd": {"secretRef": {"name": "s"}}})),
                Some("secrets"),
            ),
            (volume(value!({"name": "v", "rbd": {"image": "i"}})), None),
            (
                volume(value!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}})),
                Some("persistentvolumeclaims"),
            ),
            (
                volume(value!({"name": "v", "projected": {"sources": [{"downwardAPI": {"items": []}}]}})),
                None,
            ),
            (
                volume(value!({"name": "v", "projected": {"sources": [{"podCertificate": {"signerName": "s"}}]}})),
                Some("podcertificates"),
            ),
            (
                volume(value!({"name": "v", "newer": {}})),
                Some("objects (via a volume of an unknown kind)"),
            ),
        ] {
            assert_eq!(found.as_deref(), wanted);
        }
    }
}
