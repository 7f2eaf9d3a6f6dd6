//! The smaller groups.

use super::core::fill_zeros;
use super::{each, fill, fill_absent, fill_zero, has_items, inner};
use crate::convert::autoscaling::{to_v1, to_v2};
use keelson_api::{Map, Object, Value, value};

const RBAC: &str = "rbac.authorization.k8s.io";

pub fn of(group: &str, kind: &str) -> fn(&mut Object) {
    match (group, kind) {
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => binding,
        ("networking.k8s.io", "NetworkPolicy") => |o| network_policy(o.object_mut("spec")),
        ("networking.k8s.io", "IngressClass") => |o| {
            if let Some(p) = inner(o, "spec").and_then(|s| inner(s, "parameters")) {
                fill_absent(p, "scope", "Cluster");
            }
        },
        ("storage.k8s.io", "StorageClass") => |o| {
            fill_absent(o, "reclaimPolicy", "Delete");
            fill_absent(o, "volumeBindingMode", "Immediate");
        },
        ("storage.k8s.io", "CSIDriver") => |o| csi_driver(o.object_mut("spec")),
        ("discovery.k8s.io", "EndpointSlice") => |o| {
            each(o, "ports", |p| {
                fill_absent(p, "name", "");
                fill_absent(p, "protocol", "TCP");
            });
        },
        ("scheduling.k8s.io", "PriorityClass") => |o| fill_absent(o, "preemptionPolicy", "PreemptLowerPriority"),
        ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration") => |o| each(o, "webhooks", webhook),
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration") => |o| {
            each(o, "webhooks", |w| {
                webhook(w);
                fill_absent(w, "reinvocationPolicy", "Never");
            });
        },
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy") => |o| {
            let spec = o.object_mut("spec");
            fill_absent(spec, "failurePolicy", "Fail");
            if let Some(m) = inner(spec, "matchConstraints") {
                match_resources(m);
            }
        },
        ("admissionregistration.k8s.io", _) => |o| {
            if let Some(m) = inner(o, "spec").and_then(|s| inner(s, "matchResources")) {
                match_resources(m);
            }
        },
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => |o| {
            fill_zero(o.object_mut("spec"), "matchingPrecedence", 1000);
        },
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => |o| priority_level(o.object_mut("spec")),
        ("autoscaling", "HorizontalPodAutoscaler") => autoscaler,
        ("apiextensions.k8s.io", "CustomResourceDefinition") => custom_resource_definition,
        ("apiregistration.k8s.io", "APIService") => |o| {
            if let Some(s) = inner(o, "spec").and_then(|s| inner(s, "service")) {
                fill_absent(s, "port", 443i64);
            }
        },
        ("resource.k8s.io", "ResourceClaim") => |o| {
            if let Some(spec) = inner(o, "spec") {
                device_requests(spec);
            }
        },
        ("resource.k8s.io", "ResourceClaimTemplate") => |o| {
            if let Some(spec) = inner(o, "spec").and_then(|s| inner(s, "spec")) {
                device_requests(spec);
            }
        },
        ("resource.k8s.io", "ResourceSlice") => |o| {
            if let Some(spec) = inner(o, "spec") {
                each(spec, "devices", |d| each(d, "taints", taint));
            }
        },
        ("resource.k8s.io", "DeviceTaintRule") => |o| {
            if let Some(t) = inner(o, "spec").and_then(|s| inner(s, "taint")) {
                taint(t);
            }
        },
        _ => |_| (),
    }
}

fn binding(o: &mut Object) {
    fill(o.object_mut("roleRef"), "apiGroup", RBAC);
    each(o, "subjects", |s| {
        if matches!(s.str("kind"), Some("User" | "Group")) {
            fill(s, "apiGroup", RBAC);
        }
    });
}

fn network_policy(spec: &mut Map) {
    for list in ["ingress", "egress"] {
        each(spec, list, |rule| {
            each(rule, "ports", |p| fill_absent(p, "protocol", "TCP"))
        });
    }
    if !has_items(spec, "policyTypes") {
        let mut types = vec![Value::from("Ingress")];
        if has_items(spec, "egress") {
            types.push("Egress".into());
        }
        spec.insert("policyTypes", types);
    }
}

fn csi_driver(spec: &mut Map) {
    for (key, on) in [
        ("attachRequired", true),
        ("podInfoOnMount", false),
        ("storageCapacity", false),
        ("requiresRepublish", false),
        ("seLinuxMount", false),
        ("preventPodSchedulingIfMissing", false),
    ] {
        fill_absent(spec, key, on);
    }
    fill_absent(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    if !has_items(spec, "volumeLifecycleModes") {
        spec.insert("volumeLifecycleModes", vec![Value::from("Persistent")]);
    }
}

fn service_port(owner: &mut Map) {
    if let Some(s) = inner(owner, "clientConfig").and_then(|c| inner(c, "service")) {
        fill_absent(s, "port", 443i64);
    }
}

fn webhook(w: &mut Map) {
    fill_absent(w, "failurePolicy", "Fail");
    fill_absent(w, "matchPolicy", "Equivalent");
    fill_absent(w, "namespaceSelector", Map::new());
    fill_absent(w, "objectSelector", Map::new());
    fill_absent(w, "timeoutSeconds", 10i64);
    each(w, "rules", |r| fill_absent(r, "scope", "*"));
    service_port(w);
}

fn match_resources(m: &mut Map) {
    fill_absent(m, "matchPolicy", "Equivalent");
    fill_absent(m, "namespaceSelector", Map::new());
    fill_absent(m, "objectSelector", Map::new());
    for list in ["resourceRules", "excludeResourceRules"] {
        each(m, list, |r| fill_absent(r, "scope", "*"));
    }
}

fn priority_level(spec: &mut Map) {
    if let Some(exempt) = inner(spec, "exempt") {
        fill_absent(exempt, "nominalConcurrencyShares", 0i64);
        fill_absent(exempt, "lendablePercent", 0i64);
    }
    if let Some(limited) = inner(spec, "limited") {
        fill_absent(limited, "nominalConcurrencyShares", 30i64);
        fill_absent(limited, "lendablePercent", 0i64);
        if let Some(queuing) = inner(limited, "limitResponse").and_then(|l| inner(l, "queuing")) {
            fill_zeros(queuing, &[("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)]);
        }
    }
}

/// `v1` says the target in its spec, `v2` in metrics.
fn autoscaler(o: &mut Object) {
    let v1 = o.api_version() == "autoscaling/v1";
    let spec = o.object_mut("spec");
    fill_absent(spec, "minReplicas", 1i64);
    if v1 {
        // Upstream's own form knows metrics: what `v1` shows of them is what is left of them there.
        *o = to_v1(to_v2(std::mem::take(o)));
        return;
    }
    if !has_items(spec, "metrics") {
        let metric = value!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]);
        spec.insert("metrics", metric);
    }
    if let Some(behavior) = inner(spec, "behavior") {
        let up = behavior.object_mut("scaleUp");
        fill_absent(up, "stabilizationWindowSeconds", 0i64);
        scaling_rules(
            up,
            value!([
                {"type": "Pods", "value": 4, "periodSeconds": 15},
                {"type": "Percent", "value": 100, "periodSeconds": 15}
            ]),
        );
        let down = behavior.object_mut("scaleDown");
        scaling_rules(down, value!([{"type": "Percent", "value": 100, "periodSeconds": 15}]));
    }
}

fn scaling_rules(rules: &mut Map, policies: Value) {
    fill_absent(rules, "selectPolicy", "Max");
    fill_absent(rules, "policies", policies);
}

fn custom_resource_definition(o: &mut Object) {
    let spec = o.object_mut("spec");
    let names = spec.object_mut("names");
    let kind = names.str("kind").unwrap_or_default().to_string();
    if !kind.is_empty() {
        fill(names, "singular", kind.to_lowercase());
        fill(names, "listKind", format!("{kind}List"));
    }
    fill_absent(spec, "conversion", value!({"strategy": "None"}));
    if let Some(webhook) = inner(spec, "conversion").and_then(|c| inner(c, "webhook")) {
        service_port(webhook);
    }
    let stored: Vec<Value> = spec
        .arr("versions")
        .into_iter()
        .flatten()
        .filter(|v| v.get("storage").and_then(Value::as_bool) == Some(true))
        .filter_map(|v| v.get("name").cloned())
        .take(1)
        .collect();
    let status = o.object_mut("status");
    if !has_items(status, "storedVersions") && !stored.is_empty() {
        status.insert("storedVersions", stored);
    }
}

fn device_requests(spec: &mut Map) {
    let count = |r: &mut Map| {
        fill(r, "allocationMode", "ExactCount");
        if r.str("allocationMode") == Some("ExactCount") {
            fill_zero(r, "count", 1);
        }
    };
    if let Some(devices) = inner(spec, "devices") {
        each(devices, "requests", |r| {
            if let Some(exactly) = inner(r, "exactly") {
                count(exactly);
            }
            each(r, "firstAvailable", count);
        });
    }
}

fn taint(t: &mut Map) {
    fill_absent(t, "timeAdded", crate::meta::now());
}
