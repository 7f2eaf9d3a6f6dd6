//! Which node needs which object, drawn from pods, volumes, attachments and slices.

use crate::live::{Fields, METADATA};
use keelson_api::{Map, Object, Str, Value};
use std::collections::{HashMap, HashSet};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Pod,
    Secret,
    ConfigMap,
    ServiceAccount,
    Claim,
    Volume,
    ResourceClaim,
    Attachment,
    Slice,
    CertificateRequest,
}

/// Kind, namespace, name.
type Vertex = (Kind, Str, Str);

#[derive(Debug)]
struct Pod {
    node: Str,
    refers_to: Vec<Vertex>,
}

#[derive(Debug)]
struct Volume {
    claim: Vertex,
    secrets: Vec<Vertex>,
}

#[derive(Debug, Default)]
pub struct Graph {
    pods: HashMap<(Str, Str), Pod>,
    /// How many pods of each node refer to an object.
    wanted: HashMap<Vertex, HashMap<Str, u32>>,
    volumes: HashMap<Str, Volume>,
    /// The volumes that need a secret.
    volume_secrets: HashMap<Vertex, HashSet<Str>>,
    /// Objects that name their node.
    of_node: HashMap<Vertex, Str>,
}

impl Graph {
    pub fn has_path(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        let vertex = (kind, Str::from(namespace), Str::from(name));
        let wants = |v: &Vertex| self.wanted.get(v).is_some_and(|nodes| nodes.contains_key(node));
        match kind {
            Kind::Pod => self.pods.get(&(vertex.1, vertex.2)).is_some_and(|p| p.node == node),
            Kind::Volume => self.volumes.get(name).is_some_and(|v| wants(&v.claim)),
            Kind::Secret => {
                wants(&vertex)
                    || self.volume_secrets.get(&vertex).is_some_and(|volumes| {
                        volumes
                            .iter()
                            .filter_map(|v| self.volumes.get(v))
                            .any(|v| wants(&v.claim))
                    })
            }
            Kind::Attachment | Kind::Slice | Kind::CertificateRequest => {
                self.of_node.get(&vertex).is_some_and(|n| n == node)
            }
            Kind::ConfigMap | Kind::ServiceAccount | Kind::Claim | Kind::ResourceClaim => wants(&vertex),
        }
    }

    pub fn clear(&mut self, kind: Kind) {
        match kind {
            Kind::Pod => {
                self.pods.clear();
                self.wanted.clear();
            }
            Kind::Volume => {
                self.volumes.clear();
                self.volume_secrets.clear();
            }
            _ => self.of_node.retain(|(k, ..), _| *k != kind),
        }
    }

    pub fn set(&mut self, kind: Kind, o: &Object) {
        self.remove(kind, o.namespace(), o.name());
        let (namespace, name) = (Str::from(o.namespace()), Str::from(o.name()));
        match kind {
            Kind::Pod => {
                let Some(node) = o.str_at(&["spec", "nodeName"]).filter(|n| !n.is_empty()) else {
                    return;
                };
                let mut refers_to = pod_references(o);
                refers_to.sort_by(|a, b| (a.0 as u8, &a.1, &a.2).cmp(&(b.0 as u8, &b.1, &b.2)));
                refers_to.dedup();
                for v in &refers_to {
                    *self
                        .wanted
                        .entry(v.clone())
                        .or_default()
                        .entry(node.into())
                        .or_default() += 1;
                }
                self.pods.insert(
                    (namespace, name),
                    Pod {
                        node: node.into(),
                        refers_to,
                    },
                );
            }
            Kind::Volume => {
                let Some(claim) = o.at(&["spec", "claimRef"]).and_then(Value::as_object) else {
                    return;
                };
                let claim_namespace = Str::from(claim.str("namespace").unwrap_or_default());
                let secrets = volume_secrets(o, &claim_namespace);
                for s in &secrets {
                    self.volume_secrets.entry(s.clone()).or_default().insert(name.clone());
                }
                let claim = (
                    Kind::Claim,
                    claim_namespace,
                    claim.str("name").unwrap_or_default().into(),
                );
                self.volumes.insert(name, Volume { claim, secrets });
            }
            _ => {
                if let Some(node) = o.str_at(&["spec", "nodeName"]).filter(|n| !n.is_empty()) {
                    self.of_node.insert((kind, namespace, name), node.into());
                }
            }
        }
    }

    pub fn remove(&mut self, kind: Kind, namespace: &str, name: &str) {
        match kind {
            Kind::Pod => {
                let Some(pod) = self.pods.remove(&(namespace.into(), name.into())) else {
                    return;
                };
                for v in &pod.refers_to {
                    let Some(nodes) = self.wanted.get_mut(v) else { continue };
                    if let Some(count) = nodes.get_mut(&pod.node) {
                        *count -= 1;
                        if *count == 0 {
                            nodes.remove(&pod.node);
                        }
                    }
                    if nodes.is_empty() {
                        self.wanted.remove(v);
                    }
                }
            }
            Kind::Volume => {
                let Some(volume) = self.volumes.remove(name) else {
                    return;
                };
                for s in &volume.secrets {
                    if let Some(volumes) = self.volume_secrets.get_mut(s) {
                        volumes.remove(name);
                        if volumes.is_empty() {
                            self.volume_secrets.remove(s);
                        }
                    }
                }
            }
            _ => {
                self.of_node.remove(&(kind, namespace.into(), name.into()));
            }
        }
    }
}

/// The fields of pods that the graph is drawn from: those that [`pod_references`] reads.
pub const OF_PODS: Fields = &[
    METADATA,
    (
        "io.k8s.api.core.v1.PodSpec",
        &[
            "nodeName",
            "serviceAccountName",
            "imagePullSecrets",
            "volumes",
            "containers",
            "initContainers",
            "ephemeralContainers",
            "resourceClaims",
        ],
    ),
    ("io.k8s.api.core.v1.Container", &["env", "envFrom"]),
    ("io.k8s.api.core.v1.EnvVar", &["valueFrom"]),
    (
        "io.k8s.api.core.v1.PodStatus",
        &["resourceClaimStatuses", "extendedResourceClaimStatus"],
    ),
];

/// What a pod refers to. A mirror pod refers to nothing: a node must not grant itself access by making one.
fn pod_references(pod: &Object) -> Vec<Vertex> {
    let mut out = Vec::new();
    if pod.annotation("kubernetes.io/config.mirror").is_some() {
        return out;
    }
    let namespace = Str::from(pod.namespace());
    let mut add = |kind: Kind, name: Option<&str>| {
        if let Some(name) = name.filter(|n| !n.is_empty()) {
            out.push((kind, namespace.clone(), Str::from(name)));
        }
    };
    let Some(spec) = pod.obj("spec") else { return out };
    let maps = |m: &'_ Map, key: &str| -> Vec<Map> {
        m.arr(key)
            .into_iter()
            .flatten()
            .filter_map(Value::as_object)
            .cloned()
            .collect()
    };
    let named = |m: &Map, key: &str| m.obj(key).and_then(|r| r.str("name")).map(str::to_string);
    add(Kind::ServiceAccount, spec.str("serviceAccountName"));
    for secret in maps(spec, "imagePullSecrets") {
        add(Kind::Secret, secret.str("name"));
    }
    for volume in maps(spec, "volumes") {
        if let Some(claim) = volume.obj("persistentVolumeClaim") {
            add(Kind::Claim, claim.str("claimName"));
        }
        if volume.obj("ephemeral").is_some() {
            add(
                Kind::Claim,
                Some(&format!("{}-{}", pod.name(), volume.str("name").unwrap_or_default())),
            );
        }
        add(Kind::ConfigMap, named(&volume, "configMap").as_deref());
        for source in volume.obj("projected").map(|p| maps(p, "sources")).unwrap_or_default() {
            add(Kind::ConfigMap, named(&source, "configMap").as_deref());
            add(Kind::Secret, named(&source, "secret").as_deref());
        }
        for (_, source) in &volume {
            let Some(source) = source.as_object() else { continue };
            add(Kind::Secret, source.str("secretName"));
            add(Kind::Secret, named(source, "secretRef").as_deref());
            add(Kind::Secret, named(source, "nodePublishSecretRef").as_deref());
        }
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in maps(spec, list) {
            for env in maps(&container, "env") {
                let Some(from) = env.obj("valueFrom") else { continue };
                add(Kind::Secret, named(from, "secretKeyRef").as_deref());
                add(Kind::ConfigMap, named(from, "configMapKeyRef").as_deref());
            }
            for from in maps(&container, "envFrom") {
                add(Kind::Secret, named(&from, "secretRef").as_deref());
                add(Kind::ConfigMap, named(&from, "configMapRef").as_deref());
            }
        }
    }
    for claim in maps(spec, "resourceClaims") {
        add(Kind::ResourceClaim, claim.str("resourceClaimName"));
    }
    if let Some(status) = pod.obj("status") {
        for claim in maps(status, "resourceClaimStatuses") {
            add(Kind::ResourceClaim, claim.str("resourceClaimName"));
        }
        if let Some(extended) = status.obj("extendedResourceClaimStatus") {
            add(Kind::ResourceClaim, extended.str("resourceClaimName"));
        }
    }
    out
}

/// The secrets of a volume that its node needs to see.
fn volume_secrets(volume: &Object, claim_namespace: &Str) -> Vec<Vertex> {
    let mut out = Vec::new();
    for (_, source) in volume.obj("spec").into_iter().flatten() {
        let Some(source) = source.as_object() else { continue };
        for key in [
            "secretRef",
            "nodePublishSecretRef",
            "nodeStageSecretRef",
            "nodeExpandSecretRef",
        ] {
            let Some(reference) = source.obj(key) else { continue };
            let namespace = reference
                .str("namespace")
                .filter(|n| !n.is_empty())
                .map_or(claim_namespace.clone(), Str::from);
            out.push((
                Kind::Secret,
                namespace,
                reference.str("name").unwrap_or_default().into(),
            ));
        }
    }
    out
}
