//! Fields of features that are off by default in 1.37: what a client says in them isn't kept, unless the object has them already.

use keelson_api::{Map, Object, Value};

/// The paths of one feature from where its kind of thing begins: `a|b` is either, `a[]` each item of a list, `a{}` each value of
/// a map, `a?` an object that goes when nothing is left in it.
type Feature = &'static [&'static str];

/// Where in a kind's objects, and which features.
pub type Withheld = &'static [(&'static str, &'static [Feature])];

macro_rules! containers {
    ($path:literal) => {
        concat!("containers|initContainers|ephemeralContainers[].", $path)
    };
}

const POD_SPEC: &[Feature] = &[
    // AtomicWriteVolumeUserFields
    &[
        "volumes[].secret|configMap|downwardAPI|projected.defaultUser",
        "volumes[].secret|configMap|downwardAPI.items[].user",
        "volumes[].projected.sources[].secret|configMap|downwardAPI.items[].user",
        "volumes[].projected.sources[].serviceAccountToken|clusterTrustBundle|podCertificate.user",
    ],
    // ContainerStopSignals
    &[containers!("lifecycle?.stopSignal")],
    // EmptyDirVolumeMode
    &["volumes[].emptyDir.mode"],
    // EvictionRequestAPI
    &["evictionResponders"],
    // GenericWorkload
    &["schedulingGroup"],
    // GRPCContainerProbeTLS
    &[containers!("livenessProbe|readinessProbe|startupProbe.grpc.mode")],
    // H2CContainerProbe
    &[
        containers!("livenessProbe|readinessProbe|startupProbe.httpGet.protocol"),
        containers!("lifecycle.postStart|preStop.httpGet.protocol"),
    ],
    // VolumeBindMountOptions
    &[containers!("volumeMounts[].bindMountOptions")],
];
const POD_STATUS: &[Feature] = &[
    // CSIVolumeHealth
    &["volumeHealth"],
    // DRANodeAllocatableResources
    &["nodeAllocatableResourceClaimStatuses"],
    // ImageVolumeWithDigest
    &["containerStatuses|initContainerStatuses|ephemeralContainerStatuses[].volumeMounts[].volumeStatus"],
];
// WorkloadWithJob
const JOB_SPEC: &[Feature] = &[&["scheduling"]];
// DRADerivedAttributes
const DEVICES: &[Feature] = &[&[
    "requests[].exactly.derivedAttributes",
    "requests[].firstAvailable[].derivedAttributes",
]];
const SLICE_SPEC: &[Feature] = &[
    // DRADeviceCompatibilityGroups
    &["devices[].consumesCounters[].compatibilityGroups"],
    // DRAListTypeAttributes
    &["devices[].attributes{}.bools|ints|strings|versions"],
    // DRANodeAllocatableResources
    &["devices[].nodeAllocatableResources"],
    // DRAOptionalNodeOperations
    &["skipNodeOperations"],
    // DRAPartitionableDevicesType
    &["partitionTypeAttribute"],
];

pub fn of(group: &str, kind: &str) -> Withheld {
    match (group, kind) {
        ("", "Pod") => &[("spec", POD_SPEC), ("status", POD_STATUS)],
        ("", "PodTemplate") => &[("template.spec", POD_SPEC)],
        ("", "ReplicationController") | ("apps", "DaemonSet" | "Deployment" | "ReplicaSet" | "StatefulSet") => {
            &[("spec.template.spec", POD_SPEC)]
        }
        ("batch", "Job") => &[("spec.template.spec", POD_SPEC), ("spec", JOB_SPEC)],
        ("batch", "CronJob") => &[
            ("spec.jobTemplate.spec.template.spec", POD_SPEC),
            ("spec.jobTemplate.spec", JOB_SPEC),
        ],
        // InPlacePodVerticalScalingSchedulerPreemption
        ("", "Node") => &[("spec", &[&["podPreemptionPolicy"]])],
        // CSIVolumeHealth
        ("", "PersistentVolumeClaim") => &[("status", &[&["healthStatus"]])],
        ("storage.k8s.io", "CSINode") => &[("status", &[&["storageHealth"]])],
        ("resource.k8s.io", "ResourceClaim") => &[
            ("spec.devices", DEVICES),
            // DRAOptionalNodeOperations
            ("status", &[&["allocation.devices.results[].skipNodeOperations"]]),
        ],
        ("resource.k8s.io", "ResourceClaimTemplate") => &[("spec.spec.devices", DEVICES)],
        ("resource.k8s.io", "ResourceSlice") => &[("spec", SLICE_SPEC)],
        _ => &[],
    }
}

/// Takes out what a feature that is off has brought, where the object had nothing of that feature.
pub fn drop(withheld: Withheld, new: &mut Object, old: Option<&Object>) {
    for (place, features) in withheld {
        let Some(now) = at(new, place) else { continue };
        let before = old.and_then(|old| at(old, place));
        // As it was: the usual case of a change of status.
        if before.is_some_and(|before| before.is_shared_with(now)) {
            continue;
        }
        let uses = |feature: Feature, at: &Map| feature.iter().any(|path| has(path, at));
        let brought = |feature: &Feature| uses(feature, now) && !before.is_some_and(|before| uses(feature, before));
        let brought: Vec<Feature> = features.iter().copied().filter(brought).collect();
        if brought.is_empty() {
            continue;
        }
        let place: Vec<&str> = place.split('.').collect();
        if let Some(at) = new.at_mut(&place).and_then(Value::as_object_mut) {
            brought.into_iter().flatten().for_each(|path| take(path, at));
        }
    }
}

fn at<'a>(object: &'a Object, place: &str) -> Option<&'a Map> {
    let mut place = place.split('.');
    let first = object.get(place.next()?)?;
    place.try_fold(first, |at, key| at.get(key))?.as_object()
}

/// A path's first step: the names that it may have, what they hold, and the rest.
fn step(path: &str) -> (std::str::Split<'_, char>, Shape, &str) {
    let (first, rest) = path.split_once('.').unwrap_or((path, ""));
    for (suffix, shape) in [("[]", Shape::List), ("{}", Shape::Map), ("?", Shape::Vanishing)] {
        if let Some(names) = first.strip_suffix(suffix) {
            return (names.split('|'), shape, rest);
        }
    }
    (first.split('|'), Shape::Object, rest)
}

#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Object,
    Vanishing,
    List,
    Map,
}

fn has(path: &str, at: &Map) -> bool {
    let (mut names, shape, rest) = step(path);
    let below = |value: &Value| value.as_object().is_some_and(|at| has(rest, at));
    names.any(|name| match at.get(name) {
        None | Some(Value::Null) => false,
        Some(_) if rest.is_empty() => true,
        Some(value) => match shape {
            Shape::List => value.as_array().is_some_and(|list| list.iter().any(below)),
            Shape::Map => value.as_object().is_some_and(|map| map.values().any(below)),
            Shape::Object | Shape::Vanishing => below(value),
        },
    })
}

fn take(path: &str, at: &mut Map) {
    let (names, shape, rest) = step(path);
    let below = |value: &mut Value| {
        if let Some(at) = value.as_object_mut() {
            take(rest, at);
        }
    };
    for name in names {
        if rest.is_empty() {
            at.remove(name);
            continue;
        }
        let Some(value) = at.get_mut(name) else { continue };
        // What was empty before isn't what the feature has left.
        let had = value.as_object().is_some_and(|at| has(rest, at));
        match shape {
            Shape::List => value.as_array_mut().into_iter().flatten().for_each(below),
            Shape::Map => value
                .as_object_mut()
                .into_iter()
                .flat_map(Map::values_mut)
                .for_each(below),
            Shape::Object | Shape::Vanishing => below(value),
        }
        if had && shape == Shape::Vanishing && at.get(name).and_then(Value::as_object).is_some_and(Map::is_empty) {
            at.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn dropped(group: &str, kind: &str, new: Value, old: Option<Value>) -> Value {
        let object = |value: Value| Object(value.as_object().unwrap().clone());
        let mut new = object(new);
        drop(of(group, kind), &mut new, old.map(object).as_ref());
        Value::Object(new.0)
    }

    #[test]
    fn what_is_off_is_not_kept_and_what_is_there_stays() {
        let spec = |container: Value, more: Value| {
            let mut spec = value!({"containers": [container], "initContainers": [{"name": "i"}]});
            for (key, value) in more.as_object().unwrap().iter() {
                spec.set_at(&[key.as_str()], value.clone());
            }
            spec
        };
        let loud = value!({
            "lifecycle": {"stopSignal": "SIGUSR1"},
            "livenessProbe": {"grpc": {"port": 1, "mode": "TLS"}},
            "startupProbe": {"httpGet": {"port": 1, "protocol": "H2C"}},
            "volumeMounts": [{"name": "v", "mountPath": "/v", "bindMountOptions": ["noexec"]}],
        });
        let quiet = value!({
            "livenessProbe": {"grpc": {"port": 1}},
            "startupProbe": {"httpGet": {"port": 1}},
            "volumeMounts": [{"name": "v", "mountPath": "/v"}],
        });
        let loud = spec(
            loud,
            value!({"schedulingGroup": {"podGroupName": "g"}, "volumes": [
                {"name": "v", "emptyDir": {"mode": 448}},
                {"name": "s", "secret": {"defaultUser": 1, "items": [{"key": "k", "path": "p", "user": 2}]}},
                {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "user": 3}}]}},
            ]}),
        );
        let quiet = spec(
            quiet,
            value!({"volumes": [
                {"name": "v", "emptyDir": {}},
                {"name": "s", "secret": {"items": [{"key": "k", "path": "p"}]}},
                {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}},
            ]}),
        );
        let pod = |spec: &Value| value!({"metadata": {"name": "a"}, "spec": spec.clone()});
        assert_eq!(dropped("", "Pod", pod(&loud), None), pod(&quiet));
        assert_eq!(dropped("", "Pod", pod(&loud), Some(pod(&quiet))), pod(&quiet));
        assert_eq!(dropped("", "Pod", pod(&loud), Some(pod(&loud))), pod(&loud));
        let job = |spec: &Value| value!({"spec": {"jobTemplate": {"spec": {"template": {"spec": spec.clone()}}}}});
        assert_eq!(dropped("batch", "CronJob", job(&loud), None), job(&quiet));
        // Hooks keep what a signal stood beside.
        let both = spec(
            value!({"lifecycle": {"stopSignal": "SIGHUP", "preStop": {"sleep": {"seconds": 1}}}}),
            value!({}),
        );
        let hook = spec(
            value!({"lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}),
            value!({}),
        );
        assert_eq!(dropped("", "Pod", pod(&both), None), pod(&hook));
        // And an empty one stays what the client said.
        let beside = |first: Value| pod(&value!({"containers": [first, {"name": "b", "lifecycle": {}}]}));
        assert_eq!(
            dropped("", "Pod", beside(value!({"lifecycle": {"stopSignal": "SIGHUP"}})), None),
            beside(value!({}))
        );
    }

    #[test]
    fn each_feature_is_by_itself() {
        let slice = |device: Value| value!({"spec": {"devices": [device]}});
        let more =
            value!({"attributes": {"a": {"ints": [1]}, "b": {"int": 1}}, "nodeAllocatableResources": {"cpu": {}}});
        let lists = value!({"attributes": {"a": {"ints": [1]}, "b": {"int": 1}}});
        assert_eq!(
            dropped(
                "resource.k8s.io",
                "ResourceSlice",
                slice(more.clone()),
                Some(slice(lists.clone()))
            ),
            slice(lists)
        );
        assert_eq!(
            dropped("resource.k8s.io", "ResourceSlice", slice(more), None),
            slice(value!({"attributes": {"a": {}, "b": {"int": 1}}}))
        );
    }
}
