//! The core group besides pods.

use super::pod::{self, claim_spec, label_like_template, template_labels};
use super::{each, fill, fill_absent, fill_zero, has_items, inner, round_resources};
use keelson_api::{Map, Object, Value, value};

pub fn of(kind: &str) -> fn(&mut Object) {
    match kind {
        "Pod" => pod::pod,
        "PodTemplate" => |o| pod::template(&mut o.0),
        "ReplicationController" => replication_controller,
        "Service" => service,
        "Secret" => secret,
        "PersistentVolume" => volume,
        "PersistentVolumeClaim" => |o| claim(&mut o.0),
        "Endpoints" => |o| {
            each(&mut o.0, "subsets", |s| {
                each(s, "ports", |p| fill(p, "protocol", "TCP"))
            })
        },
        "Namespace" => namespace,
        "Node" => node,
        "LimitRange" => |o| {
            if let Some(spec) = inner(o, "spec") {
                each(spec, "limits", limit);
            }
        },
        "ResourceQuota" => quota,
        _ => |_| (),
    }
}

fn replication_controller(o: &mut Object) {
    label_like_template(o);
    let Some(spec) = inner(o, "spec") else { return };
    fill_absent(spec, "replicas", 1i64);
    if let Some(labels) = template_labels(spec)
        && !has_items(spec, "selector")
    {
        spec.insert("selector", labels);
    }
    pod::template(spec);
}

fn service(o: &mut Object) {
    let spec = o.object_mut("spec");
    fill(spec, "sessionAffinity", "None");
    match spec.str("sessionAffinity") {
        Some("None") => {
            spec.remove("sessionAffinityConfig");
        }
        Some("ClientIP")
            if spec
                .get("sessionAffinityConfig")
                .and_then(|c| c.at(&["clientIP", "timeoutSeconds"]))
                .is_none() =>
        {
            spec.insert("sessionAffinityConfig", value!({"clientIP": {"timeoutSeconds": 10800}}));
        }
        _ => {}
    }
    fill(spec, "type", "ClusterIP");
    let kind = spec.str("type").unwrap_or_default().to_string();
    each(spec, "ports", |p| {
        fill(p, "protocol", "TCP");
        let port = p.int("port").unwrap_or(0);
        match p.get("targetPort") {
            None | Some(Value::Null | Value::Int(0)) => {
                p.insert("targetPort", port);
            }
            Some(Value::String(s)) if s.is_empty() => {
                p.insert("targetPort", port);
            }
            _ => {}
        }
    });
    let external =
        matches!(kind.as_str(), "LoadBalancer" | "NodePort") || (kind == "ClusterIP" && has_items(spec, "externalIPs"));
    if external {
        fill(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind != "ExternalName" {
        fill_absent(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        fill_absent(spec, "allocateLoadBalancerNodePorts", true);
        if let Some(balancer) = inner(o, "status").and_then(|s| inner(s, "loadBalancer")) {
            each(balancer, "ingress", |i| {
                if i.str("ip").is_some_and(|ip| !ip.is_empty()) {
                    fill_absent(i, "ipMode", "VIP");
                }
            });
        }
    }
}

/// The type, and the clear-text data, which is written only.
fn secret(o: &mut Object) {
    fill(&mut o.0, "type", "Opaque");
    let Some(Value::Object(clear)) = o.remove("stringData") else {
        return;
    };
    if clear.is_empty() {
        return;
    }
    use base64::Engine;
    let data = o.object_mut("data");
    for (key, text) in clear {
        let bytes = text.as_str().unwrap_or_default().as_bytes();
        data.insert(key, base64::engine::general_purpose::STANDARD.encode(bytes));
    }
}

fn volume(o: &mut Object) {
    fill(o.object_mut("status"), "phase", "Pending");
    let spec = o.object_mut("spec");
    fill(spec, "persistentVolumeReclaimPolicy", "Retain");
    fill_absent(spec, "volumeMode", "Filesystem");
    round_resources(spec, "capacity");
    if let Some(path) = inner(spec, "hostPath") {
        fill_absent(path, "type", "");
    }
}

pub fn claim(o: &mut Map) {
    let status = o.object_mut("status");
    fill(status, "phase", "Pending");
    round_resources(status, "capacity");
    round_resources(status, "allocatedResources");
    claim_spec(o.object_mut("spec"));
}

fn namespace(o: &mut Object) {
    let name = o.name().to_string();
    if !name.is_empty() {
        o.meta_mut()
            .object_mut("labels")
            .insert("kubernetes.io/metadata.name", name);
    }
    fill(o.object_mut("status"), "phase", "Active");
}

fn node(o: &mut Object) {
    if let Some(spec) = inner(o, "spec") {
        // The single range and the list say the same; the single one wins.
        let one = spec.str("podCIDR").unwrap_or_default().to_string();
        let first = spec
            .arr("podCIDRs")
            .and_then(|l| l.first())
            .and_then(Value::as_str)
            .map(str::to_string);
        match (one.is_empty(), first) {
            (false, first) if first.as_deref() != Some(&one) => {
                spec.insert("podCIDRs", vec![Value::from(one.as_str())]);
            }
            (true, Some(first)) if !first.is_empty() => {
                spec.insert("podCIDR", first);
            }
            _ => {}
        }
    }
    let Some(status) = inner(o, "status") else { return };
    if let Some(capacity) = status.obj("capacity").filter(|c| !c.is_empty()).cloned() {
        fill_absent(status, "allocatable", capacity);
    }
    round_resources(status, "capacity");
    round_resources(status, "allocatable");
}

fn limit(l: &mut Map) {
    if l.str("type") == Some("Container") {
        let of = |l: &Map, key: &str| l.obj(key).cloned().unwrap_or_default();
        let pairs = [
            ("default", "max"),
            ("defaultRequest", "default"),
            ("defaultRequest", "min"),
        ];
        for (to, from) in pairs {
            let source = of(l, from);
            if source.is_empty() {
                continue;
            }
            let target = l.object_mut(to);
            for (name, amount) in source {
                fill_absent(target, &name, amount);
            }
        }
    }
    for key in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        round_resources(l, key);
    }
}

fn quota(o: &mut Object) {
    if let Some(spec) = inner(o, "spec") {
        round_resources(spec, "hard");
    }
    if let Some(status) = inner(o, "status") {
        round_resources(status, "hard");
        round_resources(status, "used");
    }
}

/// `fill_zero` of several members at once.
pub fn fill_zeros(map: &mut Map, values: &[(&str, i64)]) {
    for (key, value) in values {
        fill_zero(map, key, *value);
    }
}
