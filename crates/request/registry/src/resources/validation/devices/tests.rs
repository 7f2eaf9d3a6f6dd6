//! What kube-apiserver 1.37.2 said of these objects.

use crate::resources::validation::check::Errs;
use crate::resources::validation::tests::{create, request};
use keelson_api::{Object, Value, value};

fn refused(kind: &str, spec: Value) -> Vec<String> {
    create(
        "resource.k8s.io",
        kind,
        value!({"metadata": {"name": "a"}, "spec": spec}),
    )
}

fn starts(errs: &[String], wanted: &[&str]) {
    assert_eq!(errs.len(), wanted.len(), "{errs:#?}");
    for (err, wanted) in errs.iter().zip(wanted) {
        assert!(err.starts_with(wanted), "{err}\nis not\n{wanted}");
    }
}

fn claim(name: &str, constraint: Value) -> Value {
    value!({"devices": {
        "requests": [{"name": name, "exactly": {"deviceClassName": "gpus", "allocationMode": "ExactCount", "count": 1}}],
        "constraints": [constraint]}})
}

#[test]
fn claims() {
    let matched = |requests: Value| value!({"requests": requests, "matchAttribute": "a.b/c"});
    assert!(refused("ResourceClaim", claim("one", matched(value!(["one"])))).is_empty());
    starts(
        &refused("ResourceClaim", claim("010.0.0.1", matched(value!(["one", "one"])))),
        &[
            "spec.devices.requests[0].name: Invalid value: \"010.0.0.1\": must not contain dots",
            "spec.devices.constraints[0].requests[0]: Invalid value: \"one\": must be the name of a request in the claim",
            "spec.devices.constraints[0].requests[1]: Invalid value: \"one\": must be the name of a request in the claim",
            "spec.devices.constraints[0].requests[1]: Duplicate value: \"one\"",
        ],
    );
    starts(
        &refused("ResourceClaim", claim("one", value!({"matchAttribute": "a b"}))),
        &[
            "spec.devices.constraints[0].matchAttribute: Invalid value: \"a b\": a valid C identifier must start with",
            "spec.devices.constraints[0].matchAttribute: Invalid value: \"a b\": a fully qualified name must be a domain",
        ],
    );
    starts(
        &refused("ResourceClaim", value!({"devices": {"requests": [{"name": "one"}]}})),
        &["spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required"],
    );
}

#[test]
fn templates_have_no_metadata_but_labels_and_annotations() {
    let template = value!({"metadata": {"labels": {"a": "b"}, "finalizers": ["a"]}, "spec": {"devices": {}}});
    starts(
        &refused("ResourceClaimTemplate", template),
        &["spec.metadata.finalizers: Forbidden: cannot be set"],
    );
}

#[test]
fn classes() {
    starts(
        &refused("DeviceClass", value!({"extendedResourceName": "a b"})),
        &[
            "spec.extendedResourceName: Invalid value: \"a b\": a name must be a domain-prefixed path",
            "spec.extendedResourceName: Invalid value: \"a b\": name part must consist of alphanumeric characters",
        ],
    );
}

#[test]
fn slices() {
    let slice = |device: Value| value!({"driver": "a.b", "nodeName": "n1", "pool": {"name": "n1", "generation": 1, "resourceSliceCount": 1}, "devices": [device]});
    let attributes = value!({"index": {"int": 1}, "release": {"version": "1.2.3-rc.1"}});
    assert!(refused("ResourceSlice", slice(value!({"name": "d", "attributes": attributes}))).is_empty());
    let attributes = value!({"index": {"int": 1, "string": ""}, "model": {}, "release": {"version": "01"}});
    starts(
        &refused(
            "ResourceSlice",
            slice(value!({"name": "d", "nodeName": "n1", "attributes": attributes})),
        ),
        &[
            "spec.devices[0].attributes[index]: Invalid value: \"{int, string}\": must specify exactly one of: `int`, `bool`",
            "spec.devices[0].attributes[model]: Invalid value: \"\": must specify one of: `int`, `bool`",
            "spec.devices[0].attributes[release].version: Invalid value: \"01\": must be a string compatible with semver.org",
            "spec.devices[0]: Invalid value: null: `nodeName`, `nodeSelector` and `allNodes` can only be set if",
        ],
    );
}

#[test]
fn taint_rules() {
    let long = "a".repeat(64);
    starts(
        &refused(
            "DeviceTaintRule",
            value!({"deviceSelector": {"driver": long}, "taint": {}}),
        ),
        &[
            "spec.deviceSelector.driver: Too long: may not be more than 63 bytes",
            "spec.taint.key: Invalid value: \"\": name part must be non-empty",
            "spec.taint.key: Invalid value: \"\": name part must consist of alphanumeric characters",
            "spec.taint.effect: Required value",
        ],
    );
}

#[test]
fn long_lists_take_no_longer_than_they_are_long() {
    let devices: Vec<Value> = (0..20_000)
        .map(|i| value!({"driver": "a.b", "pool": "p", "device": (format!("d{i}"))}))
        .collect();
    let conditions: Vec<Value> = (0..20_000).map(|i| Value::from(format!("a{i}"))).collect();
    let results = value!([{"driver": "a.b", "pool": "p", "device": "d0", "request": "r",
        "bindingConditions": (Value::Array(conditions.clone())), "bindingFailureConditions": (Value::Array(conditions))}]);
    let status = value!({"allocation": {"devices": {"results": results}}, "devices": (Value::Array(devices))});
    let claim = Object(value!({"status": status}).as_object().cloned().unwrap());
    let begun = std::time::Instant::now();
    let mut e = Errs::default();
    super::status::claim(&claim, &Object::default(), &mut e);
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    // Of the 20,000 that overlap and the 19,999 that nobody has allocated the first are told, the others counted.
    let has = |text: &str| e.list.iter().any(|cause| cause.message.contains(text));
    assert!(has("must not overlap") || has("must be an allocated device"));
    assert!(e.list.len() >= 39_999, "{}", e.list.len());
}

#[test]
fn policies_that_were_taken_once_stay() {
    let slice = |most: &str| {
        let policy = value!({"default": "3", "validValues": ["1"]});
        let capacity = value!({"m": {"value": most, "requestPolicy": policy}});
        let device = value!({"name": "a", "allowMultipleAllocations": true, "capacity": capacity});
        let spec = value!({"driver": "d", "nodeName": "n", "devices": [device]});
        Object::try_from(value!({"metadata": {"name": "s"}, "spec": spec})).unwrap()
    };
    let told = |new: &Object, old: &Object| {
        let mut e = Errs::default();
        (super::slices::SLICE.update)(&request("resource.k8s.io", "ResourceSlice"), new, old, &mut e);
        e.list.len()
    };
    let (old, other) = (slice("10"), slice("11"));
    assert_eq!((told(&old, &old), told(&other, &old)), (0, 1));
}
