//! Claims of devices that are extended resources, too, as the server charges them: under the class' extended resource and under its
//! implicit one, less what is counted for the pod that the scheduler made the claim for. Pure.

use super::amounts::{Amounts, DEVICES};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use keelson_api::Quantity;
use std::collections::HashMap;
use std::sync::Arc;

const IMPLICIT: &str = "requests.deviceclass.resource.kubernetes.io/";
const MARK: &str = "resource.kubernetes.io/extended-resource-claim";

/// Names of extended resources by classes' names.
pub fn names(classes: &[Arc<DeviceClass>]) -> HashMap<String, String> {
    let named = |class: &Arc<DeviceClass>| {
        Some((
            class.metadata.name.clone()?,
            class.spec.as_ref()?.extended_resource_name.clone()?,
        ))
    };
    classes.iter().filter_map(named).collect()
}

/// Counts the devices of each class under these names as well.
pub fn add(used: &mut Amounts, names: &HashMap<String, String>, of_pod: &Amounts) {
    let devices: Vec<_> = used
        .iter()
        .filter_map(|(name, n)| Some((name.strip_suffix(DEVICES)?.to_owned(), *n)))
        .collect();
    // Several classes may be known by one name.
    let mut known = Amounts::new();
    for (class, n) in devices.into_iter().filter(|(class, _)| !class.is_empty()) {
        let explicit = names.get(&class).map(|name| format!("requests.{name}"));
        for name in [Some(format!("{IMPLICIT}{class}")), explicit].into_iter().flatten() {
            known.entry(name).or_insert(Quantity::ZERO).add(n);
        }
    }
    for (name, mut left) in known {
        left.sub(of_pod.get(&name).copied().unwrap_or(Quantity::ZERO));
        if left > Quantity::ZERO {
            used.insert(name, left);
        }
    }
}

/// The pod that a marked claim belongs to.
pub fn owner(claim: &ResourceClaim) -> Option<&OwnerReference> {
    let marks = claim.metadata.annotations.as_ref()?;
    marks.get(MARK).filter(|mark| *mark == "true")?;
    let references = claim.metadata.owner_references.as_deref().unwrap_or_default();
    let controller = references.iter().find(|r| r.controller == Some(true));
    controller.filter(|r| r.kind == "Pod" && r.api_version == "v1")
}

/// Whether the claim is the one for the pod's extended resources: what the pod says, or else the first that says so itself.
pub fn is_for(claim: &ResourceClaim, pod: &Pod, all: &[Arc<ResourceClaim>]) -> bool {
    let uid = |claim: &ResourceClaim| owner(claim).map(|owner| owner.uid.clone());
    if uid(claim).is_none() || uid(claim) != pod.metadata.uid {
        return false;
    }
    let told = pod
        .status
        .as_ref()
        .and_then(|s| s.extended_resource_claim_status.as_ref());
    if let Some(told) = told {
        return Some(&told.resource_claim_name) == claim.metadata.name.as_ref();
    }
    let age = |claim: &ResourceClaim| {
        let made = claim.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (made, claim.metadata.name.clone())
    };
    let mut others = all.iter().filter(|other| uid(other) == pod.metadata.uid);
    !others.any(|other| age(other) < age(claim))
}

#[cfg(test)]
mod tests {
    use super::super::amounts;
    use super::*;
    use jiff::Timestamp;
    use serde_json::{Value, json};

    fn claim(name: &str, of: &str, count: i64) -> Arc<ResourceClaim> {
        let mut claim = json!({
            "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"devices": {"requests": [{"name": "r", "exactly":
                {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": count}}]}},
        });
        if !of.is_empty() {
            claim["metadata"]["annotations"] = json!({MARK: "true"});
            let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": of, "uid": of, "controller": true});
            claim["metadata"]["ownerReferences"] = json!([owner]);
        }
        Arc::new(serde_json::from_value(claim).unwrap())
    }

    fn pod(status: Value) -> Pod {
        let resources = json!({"requests": {"example.com/gpu": "2"}});
        serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "p"},
            "spec": {"containers": [{"name": "c", "resources": resources}]},
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn devices_count_as_what_their_class_is_known_by_too() {
        let class = json!({"metadata": {"name": "gpu"}, "spec": {"extendedResourceName": "example.com/gpu"}});
        let known = names(&[Arc::new(serde_json::from_value(class).unwrap())]);
        let counted = |claim: &ResourceClaim, names: &HashMap<String, String>, of_pod: &Amounts| {
            let mut used = amounts::devices(claim);
            add(&mut used, names, of_pod);
            let of = |name: &str| used.get(name).map(ToString::to_string);
            (
                of("requests.example.com/gpu"),
                of("requests.deviceclass.resource.kubernetes.io/gpu"),
            )
        };
        let own = claim("own", "", 3);
        let three = || Some("3".to_string());
        assert_eq!(counted(&own, &known, &Amounts::new()), (three(), three()));
        assert_eq!(counted(&own, &HashMap::new(), &Amounts::new()), (None, three()));
        // What the pod asked for is counted for it: only what the claim has beyond is added.
        let of_pod = amounts::pod(&pod(json!({})), Timestamp::UNIX_EPOCH);
        assert_eq!(counted(&own, &known, &of_pod), (Some("1".into()), three()));
        // Of two classes that are known by one name it counts both.
        let mut both = ResourceClaim::clone(&own);
        let requests = both
            .spec
            .as_mut()
            .and_then(|spec| spec.devices.as_mut()?.requests.as_mut())
            .unwrap();
        let mut more = requests[0].clone();
        more.exactly.as_mut().unwrap().device_class_name = "newer".into();
        requests.push(more);
        let same = ["gpu", "newer"].map(|class| (class.to_string(), "example.com/gpu".to_string()));
        let explicit = counted(&both, &HashMap::from(same), &of_pod).0;
        assert_eq!(explicit, Some("4".into()));
    }

    #[test]
    fn a_claim_is_for_the_pod_that_names_it_or_else_the_first_of_those_that_name_the_pod() {
        let (a, b, other) = (claim("a", "p", 1), claim("b", "p", 1), claim("0", "q", 1));
        let all = [b.clone(), other.clone(), a.clone(), claim("unmarked", "", 1)];
        let silent = pod(json!({}));
        let are = |pod: &Pod| [&a, &b, &other, &all[3]].map(|claim| is_for(claim, pod, &all));
        assert_eq!(are(&silent), [true, false, false, false]);
        let says = json!({"extendedResourceClaimStatus": {"resourceClaimName": "b", "requestMappings": []}});
        assert_eq!(are(&pod(says)), [false, true, false, false]);
    }
}
