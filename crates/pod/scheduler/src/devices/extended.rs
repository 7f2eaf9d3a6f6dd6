//! Extended resources that devices stand for: a class of devices may say by which name of a resource it can be asked for. On a node that has no
//! such resource of a device plug-in a pod gets devices of the class instead.
//!
//! The claim of such a pod is the scheduler's. It is made when the node is known, since what it asks for depends on the node. Its
//! requests are a container's each; what containers of the pod's whole life have, init containers before them use as well.

use k8s_openapi::api::core::v1::{Container, ContainerExtendedResourceRequest, Pod};
use k8s_openapi::api::resource::v1::{
    DeviceClaim, DeviceRequest, ExactDeviceRequest, ResourceClaim, ResourceClaimSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_api::quantity::Quantity;
use keelson_client::{ApiObject, ObjectKey};
use std::collections::BTreeMap;

/// Marks such a claim.
pub const ANNOTATION: &str = "resource.kubernetes.io/extended-resource-claim";
/// Every class can be asked for by this and its name.
pub const IMPLICIT: &str = "deviceclass.resource.kubernetes.io/";
/// As many bytes of it stay in a name that is made.
const LONGEST_BASE: usize = 58;
/// No name that a claim can have.
pub const NOT_MADE: &str = "<extended-resources>";

/// Resources, and the classes whose devices are given for them.
pub type Classes = BTreeMap<String, String>;

/// Whether the claim is of the pod's extended resources. What stands in another namespace says nothing about a pod, whoever it names as
/// its owner.
pub fn is_of(claim: &ResourceClaim, pod: &ObjectKey, uid: &str) -> bool {
    let owns = |owner: &OwnerReference| owner.controller == Some(true) && owner.uid == uid && owner.name == pod.name;
    let mut owners = claim.metadata.owner_references.iter().flatten();
    claim.namespace() == pod.namespace && is_marked(claim) && owners.any(owns)
}

fn is_marked(claim: &ResourceClaim) -> bool {
    let annotations = claim.metadata.annotations.as_ref();
    annotations.is_some_and(|all| all.get(ANNOTATION).is_some_and(|value| value == "true"))
}

/// Whether the API could have made the name for such a claim: of what a name begins with it keeps so much.
pub fn is_name_for(claim: &str, pod: &str) -> bool {
    let base = prefix(pod);
    claim.starts_with(base.get(..LONGEST_BASE).unwrap_or(&base))
}

/// What the API makes the claim's name of.
fn prefix(pod: &str) -> String {
    format!("{pod}-extended-resources-")
}

/// The claim for these resources, in memory, and which container gets what by which request.
pub fn claim(pod: &Pod, classes: &Classes, uid: String) -> (ResourceClaim, Vec<ContainerExtendedResourceRequest>) {
    let (requests, mappings) = requests(pod, classes);
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Pod".into(),
        name: pod.name().into(),
        uid: pod.uid().into(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    let metadata = ObjectMeta {
        namespace: Some(pod.namespace().into()),
        name: Some(NOT_MADE.into()),
        uid: Some(uid),
        generate_name: Some(prefix(pod.name())),
        owner_references: Some(vec![owner]),
        annotations: Some([(ANNOTATION.to_owned(), "true".to_owned())].into()),
        ..ObjectMeta::default()
    };
    let devices = DeviceClaim {
        requests: Some(requests),
        ..DeviceClaim::default()
    };
    let claim = ResourceClaim {
        metadata,
        spec: Some(ResourceClaimSpec { devices: Some(devices) }),
        status: None,
    };
    (claim, mappings)
}

/// One request of a container, before it is the API's.
#[derive(Clone)]
struct Wanted {
    name: String,
    count: i64,
}

fn requests(pod: &Pod, classes: &Classes) -> (Vec<DeviceRequest>, Vec<ContainerExtendedResourceRequest>) {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
    let main = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
    let all: Vec<&Container> = init.iter().chain(main).collect();
    let (mut requests, mut mappings) = (Vec::new(), Vec::new());
    for (resource, class) in classes {
        let ends = |i: usize| i < init.len() && all[i].restart_policy.as_deref() != Some("Always");
        let mapping = |container: &Container, request: &str| ContainerExtendedResourceRequest {
            container_name: container.name.clone(),
            resource_name: resource.clone(),
            request_name: request.to_owned(),
        };
        let lasting: Vec<Option<Wanted>> = (0..all.len())
            .map(|i| (!ends(i)).then(|| wanted(i, all[i], resource)).flatten())
            .collect();
        for (container, wanted) in all.iter().zip(&lasting) {
            mappings.extend(wanted.iter().map(|w| mapping(container, &w.name)));
        }
        // Init containers run one after the other: they share the largest request that one of them needs besides.
        let (mut largest, mut shorter): (Option<Wanted>, Vec<(&Container, Option<&str>)>) = (None, Vec::new());
        for i in (0..all.len()).filter(|i| ends(*i)) {
            let Some(mut own) = wanted(i, all[i], resource) else {
                continue;
            };
            for later in lasting[i..].iter().flatten() {
                if own.count <= 0 {
                    break;
                }
                own.count -= later.count;
                shorter.push((all[i], Some(&later.name)));
            }
            if own.count > 0 {
                shorter.push((all[i], None));
                if largest.as_ref().is_none_or(|l| l.count < own.count) {
                    largest = Some(own);
                }
            }
        }
        let shared = largest.as_ref().map_or("", |l| &l.name);
        let shorter = shorter.into_iter();
        mappings.extend(shorter.map(|(container, request)| mapping(container, request.unwrap_or(shared))));
        let of_class = lasting.into_iter().flatten().chain(largest);
        requests.extend(of_class.map(|wanted| request(wanted, class)));
    }
    requests.sort_by(|a: &DeviceRequest, b: &DeviceRequest| a.name.cmp(&b.name));
    (requests, mappings)
}

/// The name says which container it is, and which of what that asks for.
fn wanted(container: usize, of: &Container, resource: &str) -> Option<Wanted> {
    let asked = of.resources.as_ref()?.requests.as_ref()?;
    let amount = Quantity::parse(&asked.get(resource)?.0).ok()?;
    let count = amount.is_whole().then(|| amount.value()).filter(|count| *count > 0)?;
    let place = asked.keys().position(|name| name == resource)?;
    Some(Wanted {
        name: format!("container-{container}-request-{place}"),
        count,
    })
}

fn request(wanted: Wanted, class: &str) -> DeviceRequest {
    DeviceRequest {
        name: wanted.name,
        exactly: Some(ExactDeviceRequest {
            device_class_name: class.to_owned(),
            allocation_mode: Some("ExactCount".into()),
            count: Some(wanted.count),
            ..ExactDeviceRequest::default()
        }),
        ..DeviceRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// `request=count` of the claim, and `container: request` of who gets it.
    fn told(init: Value, main: Value) -> (Vec<String>, Vec<String>) {
        let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": {"initContainers": init, "containers": main}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let (requests, mappings) = requests(&pod, &[("x.io/gpu".to_owned(), "gpus".to_owned())].into());
        let count = |r: &DeviceRequest| r.exactly.as_ref().and_then(|e| e.count).unwrap();
        let requests = requests.iter().map(|r| format!("{}={}", r.name, count(r)));
        let mappings = mappings
            .iter()
            .map(|m| format!("{}: {}", m.container_name, m.request_name));
        (requests.collect(), mappings.collect())
    }

    fn asks(name: &str, count: &str) -> Value {
        json!({"name": name, "resources": {"requests": {"cpu": "1", "x.io/gpu": count}}})
    }

    #[test]
    fn each_container_has_a_request_of_its_own() {
        let plain = json!({"name": "plain"});
        let (requests, mappings) = told(json!([]), json!([asks("a", "2"), plain, asks("b", "1")]));
        assert_eq!(requests, ["container-0-request-1=2", "container-2-request-1=1"]);
        assert_eq!(mappings, ["a: container-0-request-1", "b: container-2-request-1"]);
    }

    #[test]
    fn init_containers_use_what_later_ones_have_and_share_the_rest() {
        let init = json!([asks("small", "1"), asks("large", "4"), asks("middle", "3")]);
        let (requests, mappings) = told(init, json!([asks("a", "2")]));
        assert_eq!(requests, ["container-1-request-1=2", "container-3-request-1=2"]);
        let main = "container-3-request-1";
        let expected = [
            format!("a: {main}"),
            format!("small: {main}"),
            format!("large: {main}"),
            "large: container-1-request-1".into(),
            format!("middle: {main}"),
            "middle: container-1-request-1".into(),
        ];
        assert_eq!(mappings, expected);
    }

    #[test]
    fn a_claim_is_its_own_pods() {
        let claim = |namespace: &str, owner: &str, mark: &str| -> ResourceClaim {
            let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": owner, "uid": "u", "controller": true});
            let metadata = json!({"name": "p-extended-resources-x", "namespace": namespace, "ownerReferences": [owner],
                "annotations": {ANNOTATION: mark}});
            serde_json::from_value(json!({"metadata": metadata, "spec": {}})).unwrap()
        };
        let pod = ObjectKey::new("n", "p");
        assert!(is_of(&claim("n", "p", "true"), &pod, "u"));
        for (claim, uid) in [
            (claim("other", "p", "true"), "u"),
            (claim("n", "q", "true"), "u"),
            (claim("n", "p", "false"), "u"),
            (claim("n", "p", "true"), "v"),
        ] {
            assert!(!is_of(&claim, &pod, uid), "{:?}", claim.metadata);
        }
    }

    #[test]
    fn names_are_cut_as_the_api_cuts_them() {
        let long = "a-deployment-with-a-name-of-some-length-7d9c5b8f4-abcde";
        assert!(is_name_for("p-extended-resources-x2c4d", "p"));
        assert!(is_name_for(&format!("{}bcdfg", &prefix(long)[..58]), long));
        assert!(!is_name_for("q-extended-resources-x2c4d", "p"));
    }

    #[test]
    fn a_sidecar_keeps_its_devices() {
        let mut sidecar = asks("sidecar", "1");
        sidecar["restartPolicy"] = json!("Always");
        let (requests, mappings) = told(json!([sidecar, asks("init", "1")]), json!([asks("a", "1")]));
        assert_eq!(requests, ["container-0-request-1=1", "container-2-request-1=1"]);
        assert_eq!(
            mappings,
            [
                "sidecar: container-0-request-1",
                "a: container-2-request-1",
                "init: container-2-request-1"
            ]
        );
    }
}
