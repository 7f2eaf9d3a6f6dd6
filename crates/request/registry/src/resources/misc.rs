//! The smaller groups, where a kind's behaviour is a line or two.

use crate::context::Cx;
use crate::resources::validation::devices::status::{allocated_devices, device_id};
use crate::strategy::{Behaviour, Generation, restore};
use keelson_api::{Object, Value};
use keelson_machinery::names;
use std::collections::HashSet;

const CREATE_ON_UPDATE: Behaviour = Behaviour {
    create_on_update: true,
    ..Behaviour::DEFAULT
};
const WITH_STATUS_NO_GENERATION: Behaviour = Behaviour {
    status: true,
    ..Behaviour::DEFAULT
};
const SPEC_GENERATION: Behaviour = Behaviour {
    generation: Generation::Follows(&["spec"]),
    ..Behaviour::DEFAULT
};
const ADMISSION: Behaviour = Behaviour {
    unconditional_update: false,
    ..SPEC_GENERATION
};
const WEBHOOKS: Behaviour = Behaviour {
    unconditional_update: false,
    generation: Generation::Follows(&["webhooks"]),
    ..Behaviour::DEFAULT
};
const GENERATION_ONCE: Behaviour = Behaviour {
    generation: Generation::Follows(&[]),
    ..Behaviour::DEFAULT
};
const RETURNED: Behaviour = Behaviour {
    returns_deleted: true,
    ..Behaviour::DEFAULT
};
const RETURNED_CONDITIONAL: Behaviour = Behaviour {
    unconditional_update: false,
    ..RETURNED
};
const STATUS_KEEPS_METADATA: Behaviour = Behaviour {
    status_keeps: &["*"],
    ..WITH_STATUS_NO_GENERATION
};
const LEASE: Behaviour = Behaviour {
    unconditional_update: false,
    prepare_create: |_, o| uncoordinated(o, None),
    prepare_update: |_, new, old| uncoordinated(new, Some(old)),
    ..CREATE_ON_UPDATE
};

/// What the feature gate CoordinatedLeaderElection would fill, which is off: it stays where it was.
fn uncoordinated(new: &mut Object, old: Option<&Object>) {
    for key in ["strategy", "preferredHolder"] {
        let was = old.and_then(|o| o.at(&["spec", key])).is_some_and(|v| !v.is_null());
        if !was && let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) {
            spec.remove(key);
        }
    }
}

const ENDPOINT_SLICE: Behaviour = Behaviour {
    generation: Generation::Everything,
    prepare_create: |_, o| without_old_topology(o, None),
    prepare_update: |_, new, old| without_old_topology(new, Some(old)),
    ..Behaviour::DEFAULT
};
/// What the version before kept of where an endpoint is isn't written any more; a node that it named goes to its own field.
fn without_old_topology(new: &mut Object, old: Option<&Object>) {
    const NODE: &str = "kubernetes.io/hostname";
    const TOPOLOGY: &str = "deprecatedTopology";
    if old.is_some_and(|old| crate::strategy::same(new.get("endpoints"), old.get("endpoints"))) {
        return;
    }
    let named = |endpoint: &Value| Some(endpoint.get(TOPOLOGY)?.get(NODE)?.as_str()?.to_owned());
    let was = old.and_then(|o| o.get("endpoints")).and_then(Value::as_array);
    let known: HashSet<String> = was.into_iter().flatten().filter_map(named).collect();
    let all = new.get_mut("endpoints").and_then(Value::as_array_mut);
    for endpoint in all.into_iter().flatten() {
        let node = named(endpoint).filter(|node| known.contains(node) && names::dns1123_subdomain(node).is_empty());
        let Some(endpoint) = endpoint.as_object_mut() else {
            continue;
        };
        endpoint.remove(TOPOLOGY);
        if let Some(node) = node.filter(|_| !endpoint.contains_key("nodeName")) {
            endpoint.insert("nodeName", node);
        }
    }
}

const CSI_DRIVER: Behaviour = Behaviour {
    unconditional_update: false,
    generation: Generation::Follows(&["spec"]),
    prepare_create: no_generation,
    ..RETURNED
};

/// Drivers are counted from their first change on.
fn no_generation(_: &Cx, o: &mut Object) {
    o.meta_mut().remove("generation");
}
const VOLUME_ATTACHMENT: Behaviour = Behaviour {
    unconditional_update: false,
    returns_deleted: true,
    ..STATUS_KEEPS_METADATA
};
const RESOURCE_SLICE: Behaviour = Behaviour {
    generation: Generation::Follows(&["spec"]),
    ..RETURNED
};
const RESOURCE_CLAIM: Behaviour = Behaviour {
    returns_deleted: true,
    prepare_status: released_devices,
    ..STATUS_KEEPS_METADATA
};

/// Of devices that the claim no longer has nothing is told.
fn released_devices(_: &Cx, new: &mut Object, old: &Object) {
    let Some(devices) = new.at(&["status", "devices"]).and_then(Value::as_array) else {
        return;
    };
    let mut released = old.obj("status").map(allocated_devices).unwrap_or_default();
    for device in new.obj("status").map(allocated_devices).unwrap_or_default() {
        released.remove(&device);
    }
    let is_kept = |device: &&Value| !released.contains(&device_id(device));
    let kept: Vec<Value> = devices.iter().filter(is_kept).cloned().collect();
    if kept.is_empty() {
        new.remove_at(&["status", "devices"]);
    } else if kept.len() < devices.len() {
        new.set_at(&["status", "devices"], Value::Array(kept));
    }
}

const DEVICE_TAINT_RULE: Behaviour = Behaviour {
    generation: Generation::Follows(&["spec"]),
    ..STATUS_KEEPS_METADATA
};
const MIGRATION: Behaviour = Behaviour {
    unconditional_update: false,
    ..STATUS_KEEPS_METADATA
};

const CSR: Behaviour = Behaviour {
    prepare_create: csr_create,
    prepare_update: csr_update,
    prepare_status: csr_status,
    prepare_sub: &[("approval", csr_approval)],
    ..WITH_STATUS_NO_GENERATION
};

/// Who asks is recorded by the server, never taken from the request.
fn csr_create(cx: &Cx, csr: &mut Object) {
    let Value::Object(user) = cx.user.to_value() else {
        return;
    };
    let spec = csr.object_mut("spec");
    for key in ["username", "uid", "groups", "extra"] {
        restore(spec, Some(&user), key);
    }
}

/// The resource itself can't be changed but for its metadata.
fn csr_update(_: &Cx, new: &mut Object, old: &Object) {
    restore(&mut new.0, Some(&old.0), "spec");
}

/// `/approval` changes conditions only.
fn csr_approval(_: &Cx, new: &mut Object, old: &Object) {
    stamp_conditions(new, old);
    let conditions = new.at(&["status", "conditions"]).cloned();
    restore(&mut new.0, Some(&old.0), "spec");
    restore(&mut new.0, Some(&old.0), "status");
    match conditions {
        Some(c) => new.set_at(&["status", "conditions"], c),
        None => {
            new.remove_at(&["status", "conditions"]);
        }
    }
}

/// `/status` issues certificates; conditions of approval are `/approval`'s.
fn csr_status(_: &Cx, new: &mut Object, old: &Object) {
    for kind in ["Approved", "Denied"] {
        let is = |c: &&Value| c.get("type").and_then(Value::as_str) == Some(kind);
        let kept: Vec<Value> = conditions(old).filter(is).cloned().collect();
        // One added or taken away is left to validation.
        if conditions(new).filter(is).count() == kept.len() {
            let mut kept = kept.into_iter();
            for c in conditions_mut(new).filter(|c| is(&&**c)) {
                if let Some(old) = kept.next() {
                    *c = old;
                }
            }
        }
    }
    stamp_conditions(new, old);
}

fn conditions(csr: &Object) -> impl Iterator<Item = &Value> {
    csr.at(&["status", "conditions"])
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn conditions_mut(csr: &mut Object) -> impl Iterator<Item = &mut Value> {
    csr.get_mut("status")
        .and_then(|s| s.get_mut("conditions"))
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

/// Conditions have their times, whoever left them out.
fn stamp_conditions(new: &mut Object, old: &Object) {
    let now = crate::meta::now();
    for c in conditions_mut(new).filter_map(Value::as_object_mut) {
        if c.str("lastUpdateTime").is_none() {
            c.insert("lastUpdateTime", now.as_str());
        }
        if c.str("lastTransitionTime").is_none() {
            let like = |o: &&Value| {
                ["type", "status"]
                    .iter()
                    .all(|k| o.get(k).and_then(Value::as_str) == c.str(k))
            };
            let time = conditions(old)
                .find(like)
                .and_then(|o| o.get("lastTransitionTime"))
                .cloned();
            c.insert("lastTransitionTime", time.unwrap_or_else(|| Value::from(now.as_str())));
        }
    }
}

const INGRESS: Behaviour = Behaviour::WITH_STATUS;
/// Policies have a generation that counts changes of what they say.
const PDB: Behaviour = Behaviour {
    unconditional_update: false,
    ..Behaviour::WITH_STATUS
};
const SERVICE_CIDR: Behaviour = STATUS_KEEPS_METADATA;

pub fn behaviour(group: &str, kind: &str) -> Option<&'static Behaviour> {
    Some(match (group, kind) {
        ("rbac.authorization.k8s.io", _) => &CREATE_ON_UPDATE,
        ("node.k8s.io", "RuntimeClass") => &LEASE,
        ("coordination.k8s.io", _) => &LEASE,
        ("networking.k8s.io", "Ingress") => &INGRESS,
        ("networking.k8s.io", "IngressClass" | "NetworkPolicy") => &SPEC_GENERATION,
        ("networking.k8s.io", "ServiceCIDR") => &SERVICE_CIDR,
        ("policy", "PodDisruptionBudget") => &PDB,
        ("discovery.k8s.io", "EndpointSlice") => &ENDPOINT_SLICE,
        ("scheduling.k8s.io", "PriorityClass") => &GENERATION_ONCE,
        ("autoscaling", _) => &Behaviour::WITH_STATUS,
        ("storage.k8s.io", "StorageClass" | "VolumeAttributesClass") => &RETURNED,
        ("storage.k8s.io", "CSINode") => &RETURNED_CONDITIONAL,
        ("storage.k8s.io", "CSIDriver") => &CSI_DRIVER,
        ("storage.k8s.io", "VolumeAttachment") => &VOLUME_ATTACHMENT,
        ("storage.k8s.io", "CSIStorageCapacity") => &Behaviour {
            unconditional_update: false,
            ..Behaviour::DEFAULT
        },
        ("certificates.k8s.io", "CertificateSigningRequest") => &CSR,
        ("certificates.k8s.io", "ClusterTrustBundle") => &Behaviour {
            unconditional_update: false,
            ..Behaviour::DEFAULT
        },
        ("certificates.k8s.io", "PodCertificateRequest") => &MIGRATION,
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration") => {
            &WEBHOOKS
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => &Behaviour {
            unconditional_update: false,
            ..Behaviour::WITH_STATUS
        },
        ("admissionregistration.k8s.io", _) => &ADMISSION,
        ("apiextensions.k8s.io", _) => &super::crd::CRD,
        ("apiregistration.k8s.io", _) => &MIGRATION,
        ("flowcontrol.apiserver.k8s.io", _) => &Behaviour::WITH_STATUS,
        ("resource.k8s.io", "ResourceSlice" | "DeviceClass") => &RESOURCE_SLICE,
        ("resource.k8s.io", "ResourceClaim") => &RESOURCE_CLAIM,
        ("resource.k8s.io", "ResourceClaimTemplate") => &RETURNED,
        ("resource.k8s.io", "DeviceTaintRule") => &DEVICE_TAINT_RULE,
        ("storagemigration.k8s.io", _) => &MIGRATION,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::validation::tests::request;
    use keelson_api::value;

    #[test]
    fn a_released_claim_tells_nothing_of_its_devices() {
        let device = |name: &str| value!({"driver": "a.b", "pool": "p", "device": name});
        let claim = |allocated: &[&str], told: &[&str]| {
            let list = |names: &[&str]| Value::Array(names.iter().map(|name| device(name)).collect());
            let mut status = value!({});
            for (path, names) in [
                (&["allocation", "devices", "results"][..], allocated),
                (&["devices"], told),
            ] {
                if !names.is_empty() {
                    status.set_at(path, list(names));
                }
            }
            Object(value!({"status": status}).as_object().cloned().unwrap_or_default())
        };
        let cx = request("resource.k8s.io", "ResourceClaim");
        let both = claim(&["x", "y"], &["x", "y"]);
        for (mut new, wanted) in [
            (claim(&[], &["x", "y"]), claim(&[], &[])),
            (claim(&["y"], &["x", "y"]), claim(&["y"], &["y"])),
            (both.clone(), both.clone()),
            // What it never had is left to be refused.
            (claim(&[], &["x", "z"]), claim(&[], &["z"])),
        ] {
            released_devices(&cx, &mut new, &both);
            assert_eq!(new, wanted);
        }
    }
}
